//! `image-builder`: builds images without the rest of the appliance.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use image_builder::{GuestBinaries, Options};

#[derive(Parser)]
#[command(about = "Builds Pollux phone images from exact Debian packages")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build an image, or find it built; prints its folder.
    Build {
        name: String,
        /// Where packages and images are kept.
        #[arg(long, env = "POLLUX_CACHE", default_value_os_t = image_builder::cache_dir())]
        cache: PathBuf,
        /// Folder of the guest programs `handset`, `pollux-agent` and `gate`, in it one for each architecture by Rust's name.
        #[arg(long, env = "POLLUX_GUEST_BIN")]
        guest: Option<PathBuf>,
        /// Leave out handset and agent: a system to try machines with.
        #[arg(long)]
        bare: bool,
        /// Take the packages that are on the mirror now, and print the lock to keep in images/manifests/NAME.lock.
        #[arg(long)]
        relock: bool,
    },
    /// Read a built image in full and compare it with its manifest.
    Verify { dir: PathBuf },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image-builder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Build {
            name,
            cache,
            guest,
            bare,
            relock,
        } => {
            let lock = if relock {
                Some(write_lock(&name)?)
            } else {
                None
            };
            let guest = match guest {
                _ if bare => None,
                Some(dir) => Some(GuestBinaries::in_dir(&dir)),
                None => Some(GuestBinaries::in_cache(&cache)),
            };
            let options = Options {
                cache_dir: cache,
                guest,
                lock,
            };
            let image = image_builder::build(&name, &options, &|line| eprintln!("{line}"))?;
            println!("{}", image.dir().display());
        }
        Command::Verify { dir } => {
            let image = image_builder::Image::open(dir)?;
            image.verify()?;
            println!(
                "{} {} is whole",
                image.manifest().name,
                image.manifest().hash
            );
        }
    }
    Ok(())
}

/// Renews the lock in the source tree, if run from there.
fn write_lock(name: &str) -> Result<image_builder::Lock> {
    let lock = image_builder::relock(name)?;
    let path = PathBuf::from(format!("images/manifests/{name}.lock"));
    if path.exists() {
        std::fs::write(&path, lock.to_text())
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    } else {
        print!("{}", lock.to_text());
    }
    Ok(lock)
}
