//! Building an image: fetch, unpack, lay over, write, seal.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::image::{self, BuiltManifest, Image, Piece, Pieces};
use crate::manifest::{Architecture, Lock, Manifest};
use crate::overlay::GuestPrograms;
use crate::packages::{self, Debs, sha256_of};
use crate::tree::{Node, Tree, merged_usr};
use crate::{BuildError, Progress, Result, cpio, deb, disk, initramfs, overlay};

/// What makes an image of its inputs is an input itself: a changed builder never finds an old image.
const BUILDER: [&str; 8] = [
    include_str!("build.rs"),
    include_str!("cpio.rs"),
    include_str!("deb.rs"),
    include_str!("disk.rs"),
    include_str!("initramfs.rs"),
    include_str!("module.rs"),
    include_str!("overlay.rs"),
    include_str!("tree.rs"),
];
/// How much of the hash names the image's folder.
const HASH_DIGITS: usize = 12;
/// Where `scripts/setup` puts the programs for guests, below the cache directory.
const GUEST_DIR: &str = "guest";

/// Our own programs for guests: static binaries, in a folder for each architecture that has Rust's name of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestBinaries(PathBuf);

impl GuestBinaries {
    /// Where `scripts/setup` puts them for this cache directory.
    pub fn in_cache(cache_dir: &Path) -> GuestBinaries {
        GuestBinaries::in_dir(&cache_dir.join(GUEST_DIR))
    }

    pub fn in_dir(dir: &Path) -> GuestBinaries {
        GuestBinaries(dir.to_owned())
    }

    fn path(&self, architecture: Architecture, program: &str) -> PathBuf {
        self.0.join(architecture.target()).join(program)
    }
}

/// What one build is made of beside its manifest.
#[derive(Clone, Debug)]
pub struct Options {
    pub cache_dir: PathBuf,
    /// None: an image without our programs, to try machines with.
    pub guest: Option<GuestBinaries>,
    /// Packages to use instead of those that this crate carries for the image.
    pub lock: Option<Lock>,
}

/// `$POLLUX_CACHE`, or `.cache/pollux` in the home folder.
pub fn cache_dir() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("POLLUX_CACHE").unwrap_or_else(|| {
        set("HOME")
            .unwrap_or_else(|| PathBuf::from("/var/tmp"))
            .join(".cache/pollux")
    })
}

/// The lock for the packages that are on the mirror now.
pub fn relock(name: &str) -> Result<Lock> {
    let (manifest, _) = Manifest::carried(name)?;
    packages::lock_present(&manifest)
}

/// Builds the image called `name`, or finds it built.
pub fn build(name: &str, options: &Options, progress: Progress<'_>) -> Result<Image> {
    let (manifest, carried) = Manifest::carried(name)?;
    let lock = options.lock.clone().unwrap_or(carried);
    let guest = options.guest.as_ref();
    let guest = guest
        .map(|binaries| Guest::read(binaries, manifest.architecture))
        .transpose()?;
    let images = options.cache_dir.join("images");

    let hash = input_hash(&manifest, &lock, guest.as_ref());
    let published = if guest.is_some() {
        name.to_owned()
    } else {
        format!("{name}-bare")
    };
    if let Ok(image) = Image::open(images.join(folder(&published, &hash))) {
        progress(&format!("{} is built already", folder(&published, &hash)));
        publish(&images, &published, &folder(&published, &hash))?;
        return Ok(image);
    }

    let (lock, debs) =
        packages::fetch(&manifest, &lock, &options.cache_dir.join("debs"), progress)?;
    // Another hash if the mirror no longer had what was locked.
    let hash = input_hash(&manifest, &lock, guest.as_ref());
    let folder = folder(&published, &hash);
    let target = images.join(&folder);

    fs::create_dir_all(&images).map_err(|source| BuildError::io("create", &images, source))?;
    let work = tempfile::Builder::new()
        .prefix(".building-")
        .tempdir_in(&images)
        .map_err(|source| BuildError::io("create a folder in", &images, source))?;
    let inputs = Inputs {
        manifest: &manifest,
        lock: &lock,
        debs: &debs,
        guest,
    };
    let sealed = inputs.write(work.path(), &hash, progress)?;
    write_file(&work.path().join(image::MANIFEST), sealed.as_bytes())?;

    // A damaged image, or one that another build has just made.
    if target.exists() && Image::open(&target).is_err() {
        fs::remove_dir_all(&target).map_err(|source| BuildError::io("remove", &target, source))?;
    }
    if !target.exists() {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(work.path(), mode)
            .map_err(|source| BuildError::io("open up", work.path(), source))?;
        match fs::rename(work.path(), &target) {
            // Nothing is left for it to remove.
            Ok(()) => drop(work.keep()),
            // Another build was faster; ours is the same, and goes.
            Err(_) if Image::open(&target).is_ok() => {}
            Err(source) => return Err(BuildError::io("put in place", &target, source)),
        }
    }
    publish(&images, &published, &folder)?;
    progress(&format!("built {}", target.display()));
    Ok(Image::open(target)?)
}

fn folder(name: &str, hash: &str) -> String {
    format!("{name}-{}", &hash[..HASH_DIGITS])
}

/// Points `images/NAME` at the image built last.
fn publish(images: &Path, name: &str, folder: &str) -> Result<()> {
    let link = images.join(name);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(folder)) {
        return Ok(());
    }
    let fresh = images.join(format!(".{name}-{}", std::process::id()));
    let failed = |source| BuildError::io("link", &link, source);
    if fresh.is_symlink() {
        fs::remove_file(&fresh).map_err(failed)?;
    }
    symlink(folder, &fresh).map_err(failed)?;
    fs::rename(&fresh, &link).map_err(failed)
}

/// The guest's programs as built; they are stripped only if an image is really made.
struct Guest {
    handset: Program,
    agent: Program,
    gate: Program,
}

struct Program {
    path: PathBuf,
    hash: String,
}

impl Guest {
    fn read(binaries: &GuestBinaries, architecture: Architecture) -> Result<Guest> {
        let read = |program| Program::read(binaries.path(architecture, program), program);
        Ok(Guest {
            handset: read("handset")?,
            agent: read("pollux-agent")?,
            gate: read("gate")?,
        })
    }

    fn hashes(&self) -> [&str; 3] {
        [&self.handset.hash, &self.agent.hash, &self.gate.hash]
    }
}

impl Program {
    fn read(path: PathBuf, program: &'static str) -> Result<Program> {
        let file = File::open(&path).map_err(|_| BuildError::GuestProgramMissing {
            program,
            path: path.clone(),
        })?;
        let hash = sha256_of(file).map_err(|source| BuildError::io("read", &path, source))?;
        Ok(Program { path, hash })
    }
}

fn input_hash(manifest: &Manifest, lock: &Lock, guest: Option<&Guest>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{BUILDER:?}\n{manifest:?}\n{}\n", lock.to_text()));
    hasher.update(format!("{:?}\n", guest.map(Guest::hashes)));
    hasher.update(format!("{:?}\n{:?}\n", initramfs::FILES, overlay::FILES));
    hex::encode(hasher.finalize())
}

struct Inputs<'a> {
    manifest: &'a Manifest,
    lock: &'a Lock,
    debs: &'a Debs,
    guest: Option<Guest>,
}

impl Inputs<'_> {
    /// Writes all pieces into `dir` and returns the manifest that seals them.
    fn write(&self, dir: &Path, hash: &str, progress: Progress<'_>) -> Result<String> {
        let manifest = self.manifest;
        progress("unpacking the kernel");
        let kernel = initramfs::read_kernel(manifest, self.deb_of_kernel()?)?;
        let mut base = self.base_from_packages(progress)?;
        let busybox = match base.get("usr/bin/busybox").map(|entry| &entry.node) {
            Some(Node::File(contents)) => contents.clone(),
            _ => {
                return Err(BuildError::NotLocked {
                    name: manifest.name.clone(),
                    package: "busybox-static".into(),
                });
            }
        };

        progress("writing kernel and initramfs");
        let programs = self.programs(dir)?;
        let gate = programs.as_ref().map(|programs| programs.gate.as_slice());
        write_file(&dir.join(image::KERNEL), &kernel.image)?;
        let path = dir.join(image::INITRAMFS);
        write_with(&path, |out| {
            cpio::write(
                &initramfs::tree(manifest, &kernel, &busybox, gate),
                out,
                manifest.epoch,
            )
        })?;

        progress("writing the base tree");
        overlay::apply(&mut base, programs.as_ref(), &self.identity(hash));
        write_with(&dir.join(image::BASE_TAR), |out| {
            base.write_tar(out, manifest.epoch)
        })?;
        let base_dir = dir.join(image::BASE_DIR);
        fs::create_dir(&base_dir)
            .and_then(|()| base.unpack(&base_dir, is_root(&base_dir)))
            .map_err(|source| BuildError::io("unpack the base tree into", &base_dir, source))?;

        progress("writing the disk");
        disk::make(
            &base,
            &base_dir,
            &dir.join(image::DISK),
            manifest.disk_mib,
            manifest.epoch,
        )?;

        let sealed = BuiltManifest {
            name: manifest.name.clone(),
            hash: hash.to_owned(),
            architecture: manifest.architecture,
            os: manifest.os.clone(),
            os_version: manifest.os_version.clone(),
            ram_mib: manifest.ram_mib,
            kernel_cmdline: manifest.kernel_cmdline.clone(),
            display: manifest.display,
            pieces: Pieces {
                kernel: piece(&dir.join(image::KERNEL))?,
                initramfs: piece(&dir.join(image::INITRAMFS))?,
                base_tar: piece(&dir.join(image::BASE_TAR))?,
                disk: piece(&dir.join(image::DISK))?,
            },
            sync: manifest.sync.clone(),
        };
        Ok(toml::to_string(&sealed).expect("plain strings and numbers always serialise"))
    }

    fn deb_of_kernel(&self) -> Result<&Path> {
        let locked = self.lock.find_kernel();
        locked
            .and_then(|package| self.debs.get(&package.name))
            .map(PathBuf::as_path)
            .ok_or_else(|| self.not_locked(&self.manifest.kernel.metapackage))
    }

    fn not_locked(&self, package: &str) -> BuildError {
        BuildError::NotLocked {
            name: self.manifest.name.clone(),
            package: package.to_owned(),
        }
    }

    fn base_from_packages(&self, progress: Progress<'_>) -> Result<Tree> {
        let mut base = Tree::default();
        for package in &self.manifest.packages {
            progress(&format!("unpacking {}", package.name));
            let deb = self
                .debs
                .get(&package.name)
                .ok_or_else(|| self.not_locked(&package.name))?;
            let wanted = |path: &str| {
                package
                    .paths
                    .iter()
                    .any(|wanted| match wanted.strip_suffix('/') {
                        Some(_) => path.starts_with(wanted.as_str()),
                        None => path == wanted,
                    })
            };
            let files = deb::read(deb, wanted)?;
            for path in package.paths.iter().filter(|path| !path.ends_with('/')) {
                if files.get(path).is_none() {
                    return Err(BuildError::Package {
                        path: deb.clone(),
                        what: format!("it carries no {path}"),
                    });
                }
            }
            for (path, entry) in files.iter() {
                if !matches!(entry.node, Node::Directory) {
                    base.insert(&merged_usr(path), entry.clone());
                }
            }
        }
        Ok(base)
    }

    /// What the system, and its agent, know of their own image: `/usr/share/pollux/sync.toml`.
    fn identity(&self, hash: &str) -> String {
        #[derive(serde::Serialize)]
        struct Identity<'a> {
            name: &'a str,
            hash: &'a str,
            architecture: &'a Architecture,
            os: &'a str,
            os_version: &'a str,
            sync: &'a crate::manifest::Sync,
        }
        let Manifest {
            name,
            architecture,
            os,
            os_version,
            sync,
            ..
        } = self.manifest;
        toml::to_string(&Identity {
            name,
            hash,
            architecture,
            os,
            os_version,
            sync,
        })
        .expect("plain strings and numbers always serialise")
    }

    fn programs(&self, scratch: &Path) -> Result<Option<GuestPrograms>> {
        let Some(guest) = &self.guest else {
            return Ok(None);
        };
        let architecture = self.manifest.architecture;
        let strip = |program: &Program| stripped(&program.path, architecture, scratch);
        Ok(Some(GuestPrograms {
            handset: strip(&guest.handset)?,
            agent: strip(&guest.agent)?,
            gate: strip(&guest.gate)?,
        }))
    }
}

/// The program without its symbols: a third of the size, and all that a phone needs.
fn stripped(program: &Path, architecture: Architecture, scratch: &Path) -> Result<Vec<u8>> {
    let strip = format!("{}-strip", architecture.triplet());
    let target = scratch.join("stripped");
    let output = Command::new(&strip)
        .args(["--strip-all", "--enable-deterministic-archives", "-o"])
        .args([&target, program])
        .output()
        .map_err(|source| BuildError::tool(&strip, source))?;
    if !output.status.success() {
        let what = format!(
            "{strip} {}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        return Err(BuildError::Tool { what, source: None });
    }
    let contents = fs::read(&target).map_err(|source| BuildError::io("read", &target, source))?;
    fs::remove_file(&target).map_err(|source| BuildError::io("remove", &target, source))?;
    Ok(contents)
}

/// Whoever made `dir` is who we are.
fn is_root(dir: &Path) -> bool {
    fs::metadata(dir).is_ok_and(|metadata| metadata.uid() == 0)
}

fn piece(path: &Path) -> Result<Piece> {
    let read = |source| BuildError::io("read", path, source);
    let file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    Ok(Piece {
        sha256: sha256_of(file).map_err(read)?,
        size,
    })
}

fn write_file(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).map_err(|source| BuildError::io("write", path, source))
}

fn write_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let failed = |source| BuildError::io("write", path, source);
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    write(&mut out).map_err(failed)?;
    out.flush().map_err(failed)
}
