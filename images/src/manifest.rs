//! What goes into an image: its manifest, as a person writes it, and the lock that names exact packages.
//!
//! Promises: a key that is not known is an error that names it. Leaves out: fetching and building.

use serde::{Deserialize, Serialize};

use crate::{BuildError, Result};

/// The manifests this crate carries: name, manifest, lock.
const CARRIED: &[(&str, &str, &str)] = &[
    (
        "handset-amd64",
        include_str!("../manifests/handset-amd64.toml"),
        include_str!("../manifests/handset-amd64.lock"),
    ),
    (
        "handset-arm64",
        include_str!("../manifests/handset-arm64.toml"),
        include_str!("../manifests/handset-arm64.lock"),
    ),
];

/// One image as `images/manifests/NAME.toml` describes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    pub architecture: Architecture,
    pub os: String,
    pub os_version: String,
    pub ram_mib: u32,
    pub kernel_cmdline: String,
    /// Modification time of everything in the image, in seconds since 1970.
    pub epoch: u64,
    pub disk_mib: u32,
    pub display: Display,
    pub kernel: Kernel,
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
    pub sync: Sync,
}

/// What the guest's CPU is, by Debian's name.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }

    /// As compilers and linkers have it before their names.
    pub(crate) fn triplet(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-linux-gnu",
            Architecture::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Rust's name.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Architecture::Amd64 => "x86_64-unknown-linux-gnu",
            Architecture::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Display {
    pub width: u32,
    pub height: u32,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    pub metapackage: String,
    /// Module names in the order of loading, each with its parameters after a space.
    pub modules: Vec<String>,
    /// Loaded after these if the root is on a disk, and if it is on virtio-fs.
    pub disk_modules: Vec<String>,
    pub flash_modules: Vec<String>,
}

/// A package and the paths taken from it: files, or whole folders where the path ends in `/`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub paths: Vec<String>,
}

/// Which part of a phone its twin must equal.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// Absolute folders that are kept equal.
    pub roots: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<Exclude>,
}

/// A path, with all below it, that differs between phone and twin by its nature.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Exclude {
    pub path: String,
    pub reason: String,
}

/// The exact packages of an image.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    #[serde(default, rename = "package")]
    pub packages: Vec<LockedPackage>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    pub name: String,
    pub version: String,
    /// `all` or the image's own.
    pub architecture: String,
    pub sha256: String,
    pub size: u64,
}

impl Manifest {
    /// The manifest that this crate carries under `name`, and its lock.
    pub fn carried(name: &str) -> Result<(Manifest, Lock)> {
        let (_, manifest, lock) = CARRIED
            .iter()
            .find(|carried| carried.0 == name)
            .ok_or_else(|| BuildError::UnknownImage {
                name: name.to_owned(),
                known: Self::names().collect::<Vec<_>>().join(", "),
            })?;
        Ok((Self::parse(name, manifest)?, Lock::parse(name, lock)?))
    }

    /// Names of all images that can be built.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CARRIED.iter().map(|carried| carried.0)
    }

    pub fn parse(name: &str, text: &str) -> Result<Manifest> {
        toml::from_str(text).map_err(|source| BuildError::Manifest {
            name: format!("{name}.toml"),
            source: Box::new(source),
        })
    }
}

impl Lock {
    pub fn parse(name: &str, text: &str) -> Result<Lock> {
        toml::from_str(text).map_err(|source| BuildError::Manifest {
            name: format!("{name}.lock"),
            source: Box::new(source),
        })
    }

    pub fn to_text(&self) -> String {
        let body = toml::to_string(self).expect("plain strings and numbers always serialise");
        format!("# Written by `image-builder build NAME --relock`.\n\n{body}")
    }

    /// The kernel is locked under the versioned name that its metapackage depends on.
    pub(crate) fn find_kernel(&self) -> Option<&LockedPackage> {
        self.packages
            .iter()
            .find(|package| package.name.starts_with("linux-image-"))
    }
}
