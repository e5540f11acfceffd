//! A built image on disk: where its pieces are, and whether they are still what was built.
//!
//! ```text
//! $POLLUX_CACHE/images/handset-arm64            -> handset-arm64-<hash12>, the one built last
//! $POLLUX_CACHE/images/handset-arm64-<hash12>/
//!     manifest.toml     written last: its presence means the build was completed
//!     kernel            raw Image on arm64, ELF file (vmlinux) on amd64
//!     initramfs.cpio    plain cpio
//!     base.tar          the base tree, sorted, one time for all files
//!     base/             the same, unpacked
//!     disk.ext4         the same as a file system for stand-alone phones, sparse
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::manifest::{Architecture, Display, Sync};
use crate::packages::sha256_of;

pub(crate) const MANIFEST: &str = "manifest.toml";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs.cpio";
pub(crate) const BASE_TAR: &str = "base.tar";
pub(crate) const BASE_DIR: &str = "base";
pub(crate) const DISK: &str = "disk.ext4";

/// A built image; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    dir: PathBuf,
    manifest: BuiltManifest,
}

/// The built image's `manifest.toml`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BuiltManifest {
    pub name: String,
    /// SHA-256 over all inputs, in hex; equal inputs make an equal image.
    pub hash: String,
    pub architecture: Architecture,
    pub os: String,
    pub os_version: String,
    pub ram_mib: u32,
    /// Without `pollux.*`: whoever starts the machine adds those.
    pub kernel_cmdline: String,
    pub display: Display,
    pub pieces: Pieces,
    pub sync: Sync,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Pieces {
    pub kernel: Piece,
    pub initramfs: Piece,
    pub base_tar: Piece,
    pub disk: Piece,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub sha256: String,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image at {}; `pollux image build {name}` builds it", dir.display())]
    Missing { dir: PathBuf, name: String },
    #[error("{} of image {name} is damaged: {what}; remove {} and run `pollux image build {name}`", file.display(), dir.display())]
    Damaged {
        dir: PathBuf,
        name: String,
        file: PathBuf,
        what: String,
    },
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Image {
    /// Opens the image in `dir` and checks that all its pieces are there in full size.
    ///
    /// Contents are not read: see [`Image::verify`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Image, ImageError> {
        let dir = dir.into();
        let path = dir.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = name_of(&dir);
                return Err(ImageError::Missing { dir, name });
            }
            Err(source) => return Err(ImageError::Io { path, source }),
        };
        let manifest: BuiltManifest =
            toml::from_str(&text).map_err(|error| ImageError::Damaged {
                name: name_of(&dir),
                dir: dir.clone(),
                file: path,
                what: error.to_string(),
            })?;
        let image = Image { dir, manifest };
        for (path, piece) in image.pieces() {
            let size = fs::metadata(&path).map(|metadata| metadata.len());
            match size {
                Ok(size) if size == piece.size => {}
                Ok(size) => {
                    return Err(
                        image.damaged(path, format!("it has {size} bytes of {}", piece.size))
                    );
                }
                Err(error) => return Err(image.damaged(path, error.to_string())),
            }
        }
        Ok(image)
    }

    /// Opens the image called `name` that was built last into `cache_dir`.
    pub fn latest(cache_dir: &Path, name: &str) -> Result<Image, ImageError> {
        Image::open(cache_dir.join("images").join(name))
    }

    /// Reads every piece in full and compares it with the manifest's hash; takes about a second.
    pub fn verify(&self) -> Result<(), ImageError> {
        for (path, piece) in self.pieces() {
            let hash = File::open(&path)
                .and_then(sha256_of)
                .map_err(|source| ImageError::Io {
                    path: path.clone(),
                    source,
                })?;
            if hash != piece.sha256 {
                return Err(
                    self.damaged(path, format!("its SHA-256 is {hash}, not {}", piece.sha256))
                );
            }
        }
        Ok(())
    }

    pub fn manifest(&self) -> &BuiltManifest {
        &self.manifest
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL)
    }

    pub fn initramfs(&self) -> PathBuf {
        self.dir.join(INITRAMFS)
    }

    pub fn base_tar(&self) -> PathBuf {
        self.dir.join(BASE_TAR)
    }

    pub fn base_dir(&self) -> PathBuf {
        self.dir.join(BASE_DIR)
    }

    /// Copy it before a phone writes to it, keeping holes (`cp --sparse=always`, or [`Image::copy_disk`]).
    pub fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    fn pieces(&self) -> [(PathBuf, &Piece); 4] {
        let pieces = &self.manifest.pieces;
        [
            (self.kernel(), &pieces.kernel),
            (self.initramfs(), &pieces.initramfs),
            (self.base_tar(), &pieces.base_tar),
            (self.disk(), &pieces.disk),
        ]
    }

    fn damaged(&self, file: PathBuf, what: String) -> ImageError {
        ImageError::Damaged {
            dir: self.dir.clone(),
            name: self.manifest.name.clone(),
            file,
            what,
        }
    }

    /// Copies the disk to `target` for a phone of its own, leaving holes where it is empty.
    pub fn copy_disk(&self, target: &Path) -> io::Result<()> {
        crate::disk::copy_sparse(&self.disk(), target)
    }
}

/// `handset-arm64` from `.../handset-arm64-0123456789ab` or `.../handset-arm64`.
fn name_of(dir: &Path) -> String {
    let name = dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match name.rsplit_once('-') {
        Some((stem, hash))
            if hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            stem.to_owned()
        }
        _ => name,
    }
}
