//! The handset's program: draws on the kernel's display, or, asked so, renders and lists screens.

use std::path::PathBuf;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let fonts = std::env::var_os("HANDSET_FONTS")
        .map_or_else(|| handset::draw::font::FOLDER.into(), PathBuf::from);
    match arguments.next() {
        Some(option) if option == "--render" => {
            let folder = PathBuf::from(arguments.next().context("--render needs a folder")?);
            let scale = std::env::var("HANDSET_SCALE")
                .ok()
                .and_then(|s| s.parse().ok())
                .unwrap_or(1);
            handset::gallery::render(&folder, &fonts, scale)
        }
        Some(option) if option == "--targets" => {
            let folder = PathBuf::from(
                arguments
                    .next()
                    .context("--targets needs an empty folder to work in")?,
            );
            for (name, x, y) in handset::gallery::targets(&folder, &fonts)? {
                println!("{name} {x} {y}");
            }
            Ok(())
        }
        Some(other) => bail!("unknown option {other:?}; options: --render DIR, --targets DIR"),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            handset::platform::run(&PathBuf::from(home), &fonts)
        }
    }
}
