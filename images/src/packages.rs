//! Getting exact Debian packages: by name, version and SHA-256, through the host's apt, into a cache.
//!
//! Promises: what `fetch` returns has the bytes that the lock names, or the lock it returns says otherwise and progress
//! has said so loudly. Leaves out: dependency resolution; a manifest names every package it takes from.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::manifest::{Lock, LockedPackage, Manifest};
use crate::{BuildError, Progress, Result};

/// Cached packages by name.
pub(crate) type Debs = HashMap<String, PathBuf>;

/// Brings every package of `lock` into `dir`, and returns the lock that was really fetched.
///
/// A version that has left the mirror is replaced by the present one.
pub(crate) fn fetch(
    manifest: &Manifest,
    lock: &Lock,
    dir: &Path,
    progress: Progress<'_>,
) -> Result<(Lock, Debs)> {
    fs::create_dir_all(dir).map_err(|source| BuildError::io("create", dir, source))?;
    let (mut missing, mut damaged) = (Vec::new(), Vec::new());
    for package in &lock.packages {
        match check(package, &dir.join(package.file_name()))? {
            Cached::Good => {}
            Cached::Missing => missing.push(package),
            Cached::Damaged => damaged.push(package),
        }
    }
    for package in &damaged {
        progress(&format!(
            "cached {} is damaged, fetching it again",
            package.file_name()
        ));
        let path = dir.join(package.file_name());
        fs::remove_file(&path).map_err(|source| BuildError::io("remove", &path, source))?;
    }
    missing.append(&mut damaged);
    if missing.is_empty() {
        return Ok((lock.clone(), debs(lock, dir)));
    }

    let bytes: u64 = missing.iter().map(|package| package.size).sum();
    progress(&format!(
        "fetching {} packages, {:.1} MB",
        missing.len(),
        bytes as f64 / 1e6
    ));
    // One call: apt fetches in parallel. If one has left the mirror apt fetches none, so each is then tried alone.
    let mut present = lock.clone();
    if download(&missing, dir).is_err() {
        let mut mirror = Mirror {
            manifest,
            dir,
            progress,
            asked: false,
        };
        for package in missing {
            let obtained = mirror.obtain(package)?;
            if let Some(slot) = present
                .packages
                .iter_mut()
                .find(|locked| *locked == package)
            {
                *slot = obtained;
            }
        }
    }
    for package in &present.packages {
        let path = dir.join(package.file_name());
        match check(package, &path)? {
            Cached::Good => {}
            Cached::Missing => {
                return Err(BuildError::Package {
                    path,
                    what: "apt said it was fetched, but it is not there".into(),
                });
            }
            Cached::Damaged => {
                return Err(BuildError::Package {
                    path,
                    what: format!("its SHA-256 is not the locked {}", package.sha256),
                });
            }
        }
    }
    let debs = debs(&present, dir);
    Ok((present, debs))
}

/// The present versions of all packages that `manifest` names.
pub(crate) fn lock_present(manifest: &Manifest) -> Result<Lock> {
    let mut packages = vec![candidate(
        &kernel_package(manifest)?,
        manifest.architecture.name(),
    )?];
    for package in &manifest.packages {
        packages.push(candidate(&package.name, manifest.architecture.name())?);
    }
    Ok(Lock { packages })
}

/// Getting packages one by one, from a mirror that may have moved on.
struct Mirror<'a> {
    manifest: &'a Manifest,
    dir: &'a Path,
    progress: Progress<'a>,
    /// Whether the host's package lists were renewed already.
    asked: bool,
}

impl Mirror<'_> {
    /// Fetches the package, or the present version of it; returns which.
    fn obtain(&mut self, package: &LockedPackage) -> Result<LockedPackage> {
        loop {
            let Err(reason) = download(&[package], self.dir) else {
                return Ok(package.clone());
            };
            if let Ok(present) = self.present(package)
                && present.version != package.version
                && (is_cached(&present, self.dir)? || download(&[&present], self.dir).is_ok())
            {
                (self.progress)(&format!(
                    "WARNING: {} {} has left the mirror; taking {} {}. The image will NOT be the locked one: its hash differs. \
                     `image-builder build {} --relock` makes the change lasting.",
                    package.name,
                    package.version,
                    present.name,
                    present.version,
                    self.manifest.name
                ));
                return Ok(present);
            }
            if self.asked {
                return Err(reason);
            }
            // The host's lists may be older than the mirror, or absent.
            self.asked = true;
            (self.progress)("renewing the host's package lists");
            let mut update = Command::new("apt-get");
            update.args(["-q", "update"]);
            run(update, "apt-get update")?;
        }
    }

    fn present(&self, package: &LockedPackage) -> Result<LockedPackage> {
        let is_kernel = !self
            .manifest
            .packages
            .iter()
            .any(|named| named.name == package.name);
        let name = if is_kernel {
            kernel_package(self.manifest)?
        } else {
            package.name.clone()
        };
        candidate(&name, self.manifest.architecture.name())
    }
}

fn is_cached(package: &LockedPackage, dir: &Path) -> Result<bool> {
    Ok(matches!(
        check(package, &dir.join(package.file_name()))?,
        Cached::Good
    ))
}

fn debs(lock: &Lock, dir: &Path) -> Debs {
    lock.packages
        .iter()
        .map(|package| (package.name.clone(), dir.join(package.file_name())))
        .collect()
}

impl LockedPackage {
    /// As `apt-get download` names it.
    fn file_name(&self) -> String {
        format!(
            "{}_{}_{}.deb",
            self.name,
            self.version.replace(':', "%3a"),
            self.architecture
        )
    }

    fn apt_name(&self) -> String {
        // Packages for all architectures are not found under a foreign one.
        if self.architecture == "all" {
            self.name.clone()
        } else {
            format!("{}:{}", self.name, self.architecture)
        }
    }
}

enum Cached {
    Good,
    Missing,
    Damaged,
}

fn check(package: &LockedPackage, path: &Path) -> Result<Cached> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cached::Missing),
        Err(source) => return Err(BuildError::io("open", path, source)),
    };
    let hash = sha256_of(file).map_err(|source| BuildError::io("read", path, source))?;
    Ok(if hash == package.sha256 {
        Cached::Good
    } else {
        Cached::Damaged
    })
}

pub(crate) fn sha256_of(mut from: impl io::Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut from, &mut hasher)?;
    Ok(hex::encode(hasher.finalize()))
}

fn download(packages: &[&LockedPackage], dir: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    // apt's sandbox user may not write to a cache in someone's home folder.
    command
        .current_dir(dir)
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
    command.args(
        packages
            .iter()
            .map(|package| format!("{}={}", package.apt_name(), package.version)),
    );
    run(command, "apt-get download").map(drop)
}

fn kernel_package(manifest: &Manifest) -> Result<String> {
    let stanza = apt_show(&manifest.kernel.metapackage, manifest.architecture.name())?;
    let depends = field(&stanza, "Depends").unwrap_or_default();
    depends
        .split([' ', ',', ':'])
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| BuildError::Apt {
            what: format!(
                "{} depends on no linux-image package",
                manifest.kernel.metapackage
            ),
        })
}

fn candidate(name: &str, architecture: &str) -> Result<LockedPackage> {
    let stanza = apt_show(name, architecture).or_else(|_| apt_show(name, ""))?;
    let need = |key: &str| {
        field(&stanza, key).ok_or_else(|| BuildError::Apt {
            what: format!("apt-cache shows no {key} for {name}"),
        })
    };
    Ok(LockedPackage {
        name: need("Package")?,
        version: need("Version")?,
        architecture: need("Architecture")?,
        sha256: need("SHA256")?,
        size: need("Size")?.parse().map_err(|_| BuildError::Apt {
            what: format!("apt-cache shows no numeric Size for {name}"),
        })?,
    })
}

fn apt_show(name: &str, architecture: &str) -> Result<String> {
    let mut command = Command::new("apt-cache");
    let name = if architecture.is_empty() {
        name.to_owned()
    } else {
        format!("{name}:{architecture}")
    };
    command.args(["show", "--no-all-versions", &name]);
    let stanza = run(command, &format!("apt-cache show {name}"))?;
    // It succeeds, and prints nothing, when there is no such package.
    if stanza.is_empty() {
        Err(BuildError::Apt {
            what: format!("there is no package {name}"),
        })
    } else {
        Ok(stanza)
    }
}

fn field(stanza: &str, key: &str) -> Option<String> {
    stanza.lines().find_map(|line| {
        Some(
            line.strip_prefix(key)?
                .strip_prefix(": ")?
                .trim()
                .to_owned(),
        )
    })
}

fn run(mut command: Command, what: &str) -> Result<String> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| BuildError::tool(what, source))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(BuildError::Apt {
            what: format!("{what}: {}", stderr.trim()),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
