//! The first user space of a guest: kernel modules, busybox, and `/init`, which finds the root and hands over to it.

use std::path::Path;

use crate::manifest::Manifest;
use crate::tree::{Entry, Node, Tree};
use crate::{BuildError, Result, deb};

pub(crate) const INIT: &str = include_str!("../initramfs/init");
/// Programs that `/init` runs, as links: busybox's shell finds its own applets only once /proc is mounted.
const APPLETS: &[&str] = &["chown", "cttyhack", "date", "insmod", "ln", "mkdir", "mount", "setsid", "sh", "sleep", "switch_root"];
const CONSOLE: Node = Node::CharDevice { major: 5, minor: 1 };

/// What a kernel package gives to an image.
pub(crate) struct Kernel {
    /// A raw arm64 `Image`.
    pub(crate) image: Vec<u8>,
    /// File name without `.ko`, parameters, contents; in the order of loading.
    pub(crate) modules: Vec<Module>,
}

pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) parameters: String,
    pub(crate) contents: Vec<u8>,
}

/// Takes the kernel and the modules that `manifest` names out of a kernel package.
pub(crate) fn read_kernel(manifest: &Manifest, package: &Path) -> Result<Kernel> {
    let wanted: Vec<(&str, &str)> = manifest
        .kernel
        .modules
        .iter()
        .map(|module| module.split_once(' ').unwrap_or((module, "")))
        .collect();
    let files = deb::read(package, |path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        path.starts_with("boot/vmlinuz-")
            || name.strip_suffix(".ko").is_some_and(|stem| wanted.iter().any(|(name, _)| *name == stem))
    })?;
    let failed = |what: String| BuildError::Package { path: package.to_owned(), what };
    let packed = files
        .iter()
        .find_map(|(path, entry)| match &entry.node {
            Node::File(contents) if path.starts_with("boot/vmlinuz-") => Some(contents),
            _ => None,
        })
        .ok_or_else(|| failed("it carries no kernel".into()))?;
    let image = raw_image(packed).map_err(failed)?;
    let mut modules = Vec::new();
    for (name, parameters) in wanted {
        let contents = files
            .find_file(&format!("{name}.ko"))
            .ok_or_else(|| failed(format!("it carries no module {name}")))?
            .to_vec();
        modules.push(Module { name: name.to_owned(), parameters: parameters.to_owned(), contents });
    }
    Ok(Kernel { image, modules })
}

/// Debian's arm64 kernel is either the raw `Image` or that in gzip (Documentation/arm64/booting.rst).
fn raw_image(packed: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let image = if packed.starts_with(&[0x1f, 0x8b]) {
        let mut image = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed), &mut image)
            .map_err(|error| format!("its kernel does not decompress: {error}"))?;
        image
    } else {
        packed.to_vec()
    };
    if image.get(0x38..0x3c) == Some(b"ARM\x64") { Ok(image) } else { Err("its kernel is no arm64 Image".into()) }
}

/// The initramfs as a tree, ready to be written as cpio.
pub(crate) fn tree(kernel: &Kernel, busybox: &[u8]) -> Tree {
    let mut tree = Tree::default();
    for dir in ["dev", "proc", "sys", "run", "newroot"] {
        tree.insert(dir, Entry::directory(0o755));
    }
    // Without it the kernel cannot give /init its standard streams.
    tree.insert("dev/console", Entry { mode: 0o600, uid: 0, gid: 0, node: CONSOLE });
    tree.insert("bin/busybox", Entry::file(0o755, busybox));
    for applet in APPLETS {
        tree.insert(&format!("bin/{applet}"), Entry::symlink("busybox"));
    }
    tree.insert("init", Entry::file(0o755, INIT));
    let mut order = String::new();
    for module in &kernel.modules {
        tree.insert(&format!("modules/{}.ko", module.name), Entry::file(0o644, module.contents.clone()));
        order.push_str(format!("{}.ko {}", module.name, module.parameters).trim_end());
        order.push('\n');
    }
    tree.insert("modules/order", Entry::file(0o644, order));
    tree
}
