//! What must be absent, kept absent: imports, unsafe code, licences, and code maps that lie.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates each of our crates may depend on. A crate that is not here may depend on none of them.
const IMPORTS: &[(&str, &[&str])] = &[
    ("emulator", &["vmm"]),
    ("sync-agent", &["sync-protocol"]),
    ("flash", &["store", "sync-protocol"]),
    ("usage", &["store"]),
    ("pollux", &["store", "flash", "usage", "session", "sync-protocol", "image-builder"]),
];

/// The crates of tests, which may import any: nothing of them reaches a shipped binary.
const TESTS: &[&str] = &["tests", "sim"];

/// Files that may contain `unsafe`, each for what DESIGN.md grants it; and the cage, for what only bare system calls can do.
const UNSAFE: &[&str] = &[
    "vmm/src/memory.rs",
    "vmm/src/vcpu/kvm/sys.rs",
    "emulator/src/cage/raw.rs",
    "emulator/tests/cage.rs",
    "emulator/src/engine.rs",
    "emulator/src/x86/engine.rs",
    "images/gate/src/entropy.rs",
    "sync-agent/src/control_points/files/fanotify.rs",
    "tests/sim/src/os.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn tracked(pattern: &str) -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z", "--", pattern]).current_dir(root()).output().expect("git runs");
    let names = String::from_utf8(output.stdout).expect("our file names are UTF-8");
    names.split('\0').filter(|n| !n.is_empty()).map(PathBuf::from).filter(|p| root().join(p).is_file()).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn crates_import_only_what_the_design_allows() {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        if TESTS.contains(&name) {
            continue;
        }
        let allowed = IMPORTS.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, allowed)| allowed);
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = dependency["name"].as_str().unwrap();
            let for_tests_only = dependency["kind"] == "dev";
            assert!(!ours.contains(to) || allowed.contains(&to) || for_tests_only, "{name} must not import {to}");
        }
    }
}

#[test]
fn only_pollux_twin_links_the_engine() {
    let metadata = metadata(&["--no-deps"]);
    for package in metadata["packages"].as_array().unwrap() {
        let uses = package["dependencies"].as_array().unwrap().iter().any(|d| d["name"].as_str().unwrap().starts_with("unicorn"));
        assert!(!uses || package["name"] == "emulator", "{} links Unicorn", package["name"]);
    }
}

/// pollux-twin is GPL-2.0-only as a whole, with which Apache-2.0 alone does not go.
#[test]
fn everything_in_pollux_twin_goes_with_its_licence() {
    let metadata = metadata(&["--filter-platform=x86_64-unknown-linux-gnu"]);
    let packages = metadata["packages"].as_array().unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let id_of = |name: &str| packages.iter().find(|p| p["name"] == name).unwrap()["id"].as_str().unwrap();
    let mut todo = vec![id_of("emulator")];
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = nodes.iter().find(|n| n["id"] == id).unwrap();
        for dependency in node["deps"].as_array().unwrap() {
            // Proc macros and build scripts run at build time and are not linked; cargo marks only the latter.
            if dependency["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null()) {
                todo.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    assert!(seen.len() > 20, "the dependency graph was read");
    for package in packages.iter().filter(|p| seen.contains(p["id"].as_str().unwrap())) {
        let licence = package["license"].as_str().unwrap_or("none");
        let compatible = ["MIT", "BSD", "GPL-2.0", "Zlib", "ISC", "Unlicense", "0BSD", "Unicode-3.0", "CC0"];
        let goes = licence.split(" OR ").any(|l| compatible.iter().any(|c| l.contains(c)) && !l.contains("AND Apache"));
        assert!(goes, "{} is under {licence}", package["name"]);
    }
}

#[test]
fn unsafe_code_is_where_the_design_says() {
    for path in tracked("*.rs") {
        let text = read(&path);
        let uses = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or("");
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|u| code.contains(u))
        });
        let allowed = UNSAFE.iter().any(|u| path == Path::new(u)) || path == Path::new("tests/tidy.rs");
        assert!(!uses || allowed, "{} has unsafe code; the places for it are {UNSAFE:?}", path.display());
    }
}

#[test]
fn only_http_knows_axum() {
    for path in tracked("appliance/src/*.rs") {
        let inside = path.starts_with("appliance/src/http") || path == Path::new("appliance/src/http.rs");
        assert!(inside || !read(&path).contains("axum::"), "{} uses axum", path.display());
    }
}

#[test]
fn the_readme_names_every_crate() {
    let readme = read(Path::new("README.md"));
    let metadata = metadata(&["--no-deps"]);
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap();
        assert!(readme.contains(&format!("`{}/`", folder.display())), "README's code map lacks `{}/`", folder.display());
    }
}

#[test]
fn nothing_names_a_machine() {
    for path in tracked("*") {
        if path == Path::new("tests/tidy.rs") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for trace in ["/root/", "/work/main", "deb.debian.org"] {
            assert!(!text.contains(trace), "{} contains {trace:?}", path.display());
        }
    }
}
