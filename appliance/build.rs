//! Tells the code where the console's built files are: `console/dist`, or a page that says how to build it.

use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let built = root.join("console").join("dist");
    println!("cargo:rerun-if-changed=build.rs");
    // The folder's own time changes when a build replaces its files.
    println!("cargo:rerun-if-changed=console/dist");
    println!("cargo:rerun-if-changed=console/dist/index.html");
    let dist = if built.join("index.html").exists() { built } else { placeholder()? };
    println!("cargo:rustc-env=POLLUX_CONSOLE_DIST={}", dist.display());
    Ok(())
}

fn placeholder() -> std::io::Result<PathBuf> {
    let folder = Path::new(&std::env::var_os("OUT_DIR").unwrap_or_default()).join("console");
    std::fs::create_dir_all(&folder)?;
    let page = "<!doctype html><meta charset=utf-8><title>Pollux</title><body style=\"font-family:sans-serif;margin:4em\">\
        <h1>Pollux</h1><p>The appliance runs, but this build has no console: run <code>npm ci && npm run build</code> in \
        <code>appliance/console</code> and build again. The API is described at <a href=/api/openapi.json>/api/openapi.json</a>.";
    std::fs::write(folder.join("index.html"), page)?;
    Ok(folder)
}
