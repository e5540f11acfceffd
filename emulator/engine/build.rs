//! Builds Unicorn: fetches the pristine upstream crate, applies our patches, compiles, generates bindings.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

mod bindings;

/// Part of the identity of a build: raise it when this file changes what is compiled.
const RECIPE: &str = "2: aarch64 and x86, Release, -O2";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for input in ["build.rs", "bindings.rs", "patches", "upstream/Cargo.toml", "upstream/Cargo.lock"] {
        println!("cargo:rerun-if-changed={input}");
    }

    let patches = patches(&here.join("patches"));
    let identity = identity(&here.join("upstream/Cargo.lock"), &patches);
    let source = out.join("source");
    if fs::read_to_string(out.join("prepared")).ok().as_deref() != Some(&identity) {
        prepare(&here, &source, &patches);
        fs::write(out.join("prepared"), &identity).expect("OUT_DIR is writable");
    }
    compile(&source);
    bindings::generate(&source.join("include/unicorn/unicorn.h"), &out.join("bindings.rs"));

    let library = source.join("bindings/rust/sys/src/lib.rs");
    let module = format!("#[path = {library:?}]\nmod upstream;\npub use upstream::*;\n");
    fs::write(out.join("upstream.rs"), module).expect("OUT_DIR is writable");
    println!("cargo:rustc-env=UNICORN_BUILD_ID={identity}");
}

/// The patches in the order of their names.
fn patches(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the crate has a folder of patches");
    let mut patches: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    patches.retain(|p| p.extension().is_some_and(|e| e == "patch"));
    patches.sort();
    patches
}

/// Names what goes into the build: FNV-1a over the recipe, the upstream checksum and all patches.
fn identity(lock: &Path, patches: &[PathBuf]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(RECIPE.as_bytes());
    add(env::var("TARGET").expect("cargo sets it").as_bytes());
    for file in std::iter::once(lock).chain(patches.iter().map(PathBuf::as_path)) {
        add(&fs::read(file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display())));
    }
    format!("unicorn-2.1.5-{hash:016x}")
}

/// Puts the patched upstream source at `source`.
fn prepare(here: &Path, source: &Path, patches: &[PathBuf]) {
    let upstream = upstream(&here.join("upstream/Cargo.toml"));
    if source.exists() {
        fs::remove_dir_all(source).expect("OUT_DIR is writable");
    }
    copy_tree(&upstream, source);
    for patch in patches {
        let input = fs::File::open(patch).expect("listed above");
        let mut run = Command::new("patch");
        run.args(["-p1", "--silent", "--forward", "--no-backup-if-mismatch"]).current_dir(source).stdin(input);
        let status = run.status().expect("cannot run `patch`: install Debian's package patch");
        assert!(status.success(), "{} does not apply", patch.display());
    }
}

/// Has cargo download the upstream crate, checked against our lock file, and says where it lies.
fn upstream(manifest: &Path) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo.args(["metadata", "--locked", "--format-version=1", "--manifest-path"]).arg(manifest);
    // What the outer cargo set for this build is not meant for another workspace.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
        if (text.starts_with("CARGO") || text.starts_with("RUST")) && !text.starts_with("RUSTUP_") && !kept.iter().any(|k| text.starts_with(k)) {
            cargo.env_remove(&name);
        }
    }
    let output = cargo.current_dir(manifest.parent().expect("a file has a folder")).output().expect("cannot run cargo");
    assert!(output.status.success(), "cannot fetch upstream: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let package = packages.iter().find(|p| p["name"] == "unicorn-engine-sys").expect("the manifest depends on it");
    let path = package["manifest_path"].as_str().expect("cargo metadata gives paths");
    Path::new(path).parent().expect("a file has a folder").to_path_buf()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("OUT_DIR is writable");
    for entry in fs::read_dir(from).expect("cargo unpacked it") {
        let entry = entry.expect("cargo unpacked it");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("cargo unpacked it").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("OUT_DIR is writable");
        }
    }
}

/// Compiles the C library; cmake does again only what changed.
fn compile(source: &Path) {
    let built = cmake::Config::new(source)
        .profile("Release")
        .define("CMAKE_C_FLAGS_RELEASE", "-O2 -DNDEBUG")
        .define("UNICORN_ARCH", "aarch64;x86")
        .define("UNICORN_BUILD_TESTS", "OFF")
        .define("UNICORN_INSTALL", "ON")
        .define("BUILD_SHARED_LIBS", "OFF")
        .build();
    for folder in ["lib", "lib64"] {
        println!("cargo:rustc-link-search=native={}", built.join(folder).display());
    }
    println!("cargo:rustc-link-lib=static=unicorn");
    println!("cargo:rustc-link-lib=pthread");
    println!("cargo:rustc-link-lib=m");
}
