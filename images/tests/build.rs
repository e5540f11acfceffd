//! Building the bare image for real: the same every time, found again, and checked.
//!
//! Needs the network, or the packages in the cache already.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;

use image_builder::{
    BuildError, GuestBinaries, Image, ImageError, Manifest, Options, build, cache_dir,
};

const NAME: &str = "handset-arm64";

/// A cache of its own that shares fetched packages.
fn options(cache: &Path) -> Options {
    let debs = cache_dir().join("debs");
    fs::create_dir_all(&debs).unwrap();
    symlink(debs, cache.join("debs")).unwrap();
    Options {
        cache_dir: cache.to_owned(),
        guest: None,
        lock: None,
    }
}

#[test]
fn two_builds_are_the_same_to_the_byte_and_a_third_is_found() {
    builds_are_the_same_and_found("handset-arm64");
}

#[test]
fn so_they_are_for_x86_64() {
    builds_are_the_same_and_found("handset-amd64");
}

fn builds_are_the_same_and_found(name: &str) {
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let images = caches
        .each_ref()
        .map(|cache| build(name, &options(cache.path()), &|_| {}).unwrap());
    // The manifest holds the SHA-256 of every piece, and each image is what its manifest says.
    let [first, second] = images.each_ref().map(Image::manifest);
    assert_eq!(first, second);
    for image in &images {
        image.verify().unwrap();
    }

    let said = Mutex::new(Vec::new());
    let again = Options {
        cache_dir: caches[0].path().to_owned(),
        guest: None,
        lock: None,
    };
    let found = build(name, &again, &|line| {
        said.lock().unwrap().push(line.to_owned())
    })
    .unwrap();
    assert_eq!(found, images[0]);
    assert_eq!(
        said.into_inner().unwrap(),
        [format!(
            "{name}-bare-{} is built already",
            &first.hash[..12]
        )]
    );

    let latest = Image::latest(caches[0].path(), &format!("{name}-bare")).unwrap();
    assert_eq!(latest.manifest(), first);

    let copy = caches[1].path().join("disk");
    found.copy_disk(&copy).unwrap();
    assert!(
        fs::read(&copy).unwrap() == fs::read(found.disk()).unwrap(),
        "a sparse copy is a copy"
    );

    let kernel = found.kernel();
    let mut damaged = fs::read(&kernel).unwrap();
    damaged[1 << 20] ^= 1;
    fs::write(&kernel, &damaged).unwrap();
    let error = found.verify().unwrap_err().to_string();
    assert!(
        error.contains(&format!("/kernel of image {name} is damaged")),
        "{error}"
    );
    assert!(
        error.contains(&format!("pollux image build {name}")),
        "{error}"
    );
    fs::write(&kernel, &damaged[1..]).unwrap();
    let error = Image::open(found.dir()).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
}

#[test]
fn what_is_missing_is_named_with_the_command_that_makes_it() {
    let cache = tempfile::tempdir().unwrap();
    let error = Image::latest(cache.path(), NAME).unwrap_err().to_string();
    assert!(
        error.contains("`pollux image build handset-arm64` builds it"),
        "{error}"
    );
    let hashed = cache.path().join("images/handset-arm64-0123456789ab");
    let error = Image::open(hashed).unwrap_err().to_string();
    assert!(
        error.contains("`pollux image build handset-arm64` builds it"),
        "{error}"
    );

    let error = build("no-such-phone", &options(cache.path()), &|_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("known: handset-amd64, handset-arm64"),
        "{error}"
    );

    let guest = Some(GuestBinaries::in_dir(cache.path()));
    let again = Options {
        cache_dir: cache.path().to_owned(),
        guest,
        lock: None,
    };
    let error = build(NAME, &again, &|_| {}).unwrap_err();
    assert!(
        matches!(
            error,
            BuildError::GuestProgramMissing {
                program: "handset",
                ..
            }
        ),
        "{error}"
    );
    let error = error.to_string();
    assert!(
        error.contains("handset") && error.contains("`scripts/setup` builds it"),
        "{error}"
    );
}

#[test]
fn a_version_that_left_the_mirror_is_replaced_loudly() {
    let cache = tempfile::tempdir().unwrap();
    let (_, mut lock) = Manifest::carried(NAME).unwrap();
    let gone = lock
        .packages
        .iter_mut()
        .find(|package| package.name == "netbase")
        .unwrap();
    gone.version = "0.1".to_owned();
    gone.sha256 = "0".repeat(64);
    let stale = Options {
        lock: Some(lock),
        ..options(cache.path())
    };

    let said = Mutex::new(String::new());
    let image = build(NAME, &stale, &|line| {
        said.lock().unwrap().push_str(&format!("{line}\n"))
    })
    .unwrap();
    let said = said.into_inner().unwrap();
    assert!(
        said.contains("WARNING: netbase 0.1 has left the mirror; taking netbase "),
        "{said}"
    );
    assert!(said.contains("--relock"), "{said}");
    image.verify().unwrap();
}
