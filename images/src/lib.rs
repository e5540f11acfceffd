//! Images: what a kind of phone is made of, built from exact Debian packages and our own programs.
//!
//! An image is kernel + initramfs + base tree + manifest. [`build`] makes one into the cache, [`Image::open`] uses it.
//! Promises: equal inputs make equal bytes, on any machine, root or not; a build is complete or absent; a second build
//! with the same inputs finds the first. Leaves out: compiling the guest's programs (scripts cross-compile them), and
//! running the image.

mod build;
mod cpio;
mod deb;
mod disk;
mod image;
mod initramfs;
mod manifest;
mod module;
mod overlay;
mod packages;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

pub use build::{GuestBinaries, Options, build, cache_dir, relock};
pub use image::{BuiltManifest, Image, ImageError, Piece, Pieces};
pub use manifest::{Architecture, Display, Exclude, Lock, LockedPackage, Manifest, Sync};

/// Takes one line of progress at a time.
pub type Progress<'a> = &'a dyn Fn(&str);

pub type Result<T, E = BuildError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("there is no image called {name}; known: {known}")]
    UnknownImage { name: String, known: String },
    #[error("{name} is not valid")]
    Manifest {
        name: String,
        source: Box<toml::de::Error>,
    },
    #[error(
        "{name}.lock names no package {package}; `image-builder build {name} --relock` renews it"
    )]
    NotLocked { name: String, package: String },
    #[error("{what} (are the package lists there? `scripts/setup` gets them)")]
    Apt { what: String },
    #[error("package {}: {what}", path.display())]
    Package { path: PathBuf, what: String },
    #[error("the guest's {program} is not at {}; `scripts/setup` builds it", path.display())]
    GuestProgramMissing {
        program: &'static str,
        path: PathBuf,
    },
    #[error("{what}")]
    Tool {
        what: String,
        source: Option<io::Error>,
    },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl BuildError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> BuildError {
        BuildError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn tool(name: &str, source: io::Error) -> BuildError {
        BuildError::Tool {
            what: format!("cannot run {name}; `scripts/setup` installs it"),
            source: Some(source),
        }
    }
}
