//! `pollux image`: building phone images, and which there are.

use std::path::PathBuf;

use clap::Subcommand;

use super::table;
use crate::config::cache_folder;

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build an image, or find it built; prints its folder.
    Build {
        name: String,
        /// Folder of the cross-built programs that go into the image.
        #[arg(long, env = "POLLUX_GUEST_BIN")]
        guest: Option<PathBuf>,
    },
    /// Images that are built.
    List,
}

pub(super) fn run(command: ImageCommand) -> anyhow::Result<()> {
    let cache = cache_folder();
    match command {
        ImageCommand::Build { name, guest } => {
            let guest = match guest {
                Some(folder) => image_builder::GuestBinaries::in_dir(&folder),
                None => image_builder::GuestBinaries::in_cache(&cache),
            };
            let options = image_builder::Options { cache_dir: cache, guest: Some(guest), lock: None };
            let image = image_builder::build(&name, &options, &|line| eprintln!("{line}"))?;
            println!("{}", image.dir().display());
        }
        ImageCommand::List => {
            let folder = cache.join("images");
            let mut images = Vec::new();
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let entry = entry?;
                // A link is another name for one of the others.
                if entry.file_type()?.is_symlink() {
                    continue;
                }
                if let Ok(image) = image_builder::Image::open(entry.path()) {
                    let manifest = image.manifest();
                    images.push(serde_json::json!({
                        "name": manifest.name, "hash": manifest.hash.get(..12), "architecture": manifest.architecture,
                        "os": format!("{} {}", manifest.os, manifest.os_version), "folder": entry.path(),
                    }));
                }
            }
            print!("{}", table::render(&["name", "hash", "architecture", "os", "folder"], &images));
        }
    }
    Ok(())
}
