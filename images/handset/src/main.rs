//! The handset's program: draws on the kernel's display, or, asked so, renders and lists screens.

use std::path::PathBuf;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let fonts = std::env::var_os("HANDSET_FONTS").map_or_else(|| handset::draw::font::FOLDER.into(), PathBuf::from);
    match arguments.next() {
        Some(option) if option == "--render" => {
            let folder = PathBuf::from(arguments.next().context("--render needs a folder")?);
            let scale = std::env::var("HANDSET_SCALE").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
            handset::gallery::render(&folder, &fonts, scale)
        }
        Some(other) => bail!("unknown option {other:?}; options: --render DIR"),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            handset::platform::run(&PathBuf::from(home), &fonts)
        }
    }
}
