//! The first user space of a guest: kernel modules, busybox, and `/init`, which finds the root and hands over to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::manifest::{Architecture, Manifest};
use crate::tree::{Entry, Node, Tree};
use crate::{BuildError, Result, deb, module};

/// Path, mode, contents.
pub(crate) const FILES: [(&str, u32, &str); 2] = [
    ("init", 0o755, include_str!("../initramfs/init")),
    ("etc/fstab", 0o644, include_str!("../initramfs/fstab")),
];
/// Programs that `/init` runs, as links: busybox's shell finds its own applets only once /proc is mounted.
const APPLETS: &[&str] = &[
    "cat",
    "chown",
    "cttyhack",
    "insmod",
    "ip",
    "ln",
    "mkdir",
    "mount",
    "setsid",
    "sh",
    "switch_root",
];
const CONSOLE: Node = Node::CharDevice { major: 5, minor: 1 };

/// What a kernel package gives to an image.
pub(crate) struct Kernel {
    /// As the machine's loader takes it.
    pub(crate) image: Vec<u8>,
    /// File names without `.ko`, and contents.
    modules: BTreeMap<String, Vec<u8>>,
}

/// Takes the kernel and the modules that `manifest` names out of a kernel package.
pub(crate) fn read_kernel(manifest: &Manifest, package: &Path) -> Result<Kernel> {
    let wanted: BTreeSet<&str> = lists(manifest)
        .into_iter()
        .flat_map(|(_, list)| list)
        .map(|line| module_name(line))
        .collect();
    let files = deb::read(package, |path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        path.starts_with("boot/vmlinuz-")
            || name
                .strip_suffix(".ko")
                .is_some_and(|stem| wanted.contains(stem))
    })?;
    let failed = |what: String| BuildError::Package {
        path: package.to_owned(),
        what,
    };
    let packed = files
        .iter()
        .find_map(|(path, entry)| match &entry.node {
            Node::File(contents) if path.starts_with("boot/vmlinuz-") => Some(contents),
            _ => None,
        })
        .ok_or_else(|| failed("it carries no kernel".into()))?;
    let image = match manifest.architecture {
        Architecture::Amd64 => unpacked(packed),
        Architecture::Arm64 => raw_image(packed),
    };
    let image = image.map_err(failed)?;
    let mut modules = BTreeMap::new();
    for name in wanted {
        let module = files
            .find_file(&format!("{name}.ko"))
            .ok_or_else(|| failed(format!("it carries no module {name}")))?;
        let quick = module::quicken(module)
            .map_err(|what| failed(format!("its module {name} is no 64-bit ELF file: {what}")))?;
        modules.insert(name.to_owned(), quick);
    }
    Ok(Kernel { image, modules })
}

/// The order of loading: for every machine, for one that starts from a disk, for one that starts from its flash.
fn lists(manifest: &Manifest) -> [(&'static str, &Vec<String>); 3] {
    let kernel = &manifest.kernel;
    [
        ("all", &kernel.modules),
        ("disk", &kernel.disk_modules),
        ("flash", &kernel.flash_modules),
    ]
}

fn module_name(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
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
    if image.get(0x38..0x3c) == Some(b"ARM\x64") {
        Ok(image)
    } else {
        Err("its kernel is no arm64 Image".into())
    }
}

/// Debian's amd64 kernel is a bzImage, around an ELF file in xz (Documentation/x86/boot.rst, `payload_offset`). It would unpack itself, for
/// which an emulated CPU takes 3 s.
fn unpacked(image: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let field = |at: usize| {
        let bytes = image
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("its kernel is no bzImage".into());
    }
    // The 64-bit part follows the boot sector and so many more.
    let kernel = (usize::from(image[0x1f1]) + 1) * 512;
    let payload = image
        .get(kernel..)
        .and_then(|part| part.get(field(0x248)..)?.get(..field(0x24c)));
    let elf = payload.map(unxz).ok_or("its kernel ends too early")??;
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        Err("its kernel holds no ELF file".into())
    }
}

/// The first stream in `packed`; behind it the kernel keeps its size.
fn unxz(packed: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("its kernel does not decompress: {error}");
    let mut xz = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = xz.stdin.take().ok_or("xz reads nothing")?;
    let output = std::thread::scope(|scope| {
        // It may end before it has read all; what it wrote then tells.
        scope.spawn(move || stdin.write_all(packed));
        xz.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!(
            "its kernel does not decompress: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// The initramfs as a tree, ready to be written as cpio. `gate`: the program that waits for a twin's identity.
pub(crate) fn tree(
    manifest: &Manifest,
    kernel: &Kernel,
    busybox: &[u8],
    gate: Option<&[u8]>,
) -> Tree {
    let mut tree = Tree::default();
    for dir in ["dev", "proc", "sys", "run", "newroot"] {
        tree.insert(dir, Entry::directory(0o755));
    }
    // Without it the kernel cannot give /init its standard streams.
    tree.insert(
        "dev/console",
        Entry {
            mode: 0o600,
            uid: 0,
            gid: 0,
            node: CONSOLE,
        },
    );
    tree.insert("bin/busybox", Entry::file(0o755, busybox));
    for applet in APPLETS {
        tree.insert(&format!("bin/{applet}"), Entry::symlink("busybox"));
    }
    if let Some(gate) = gate {
        tree.insert("bin/gate", Entry::file(0o755, gate));
    }
    for (path, mode, contents) in FILES {
        tree.insert(path, Entry::file(mode, contents));
    }
    for (name, contents) in &kernel.modules {
        tree.insert(
            &format!("modules/{name}.ko"),
            Entry::file(0o644, contents.as_slice()),
        );
    }
    for (list, lines) in lists(manifest) {
        let text: String = lines
            .iter()
            .map(|line| {
                format!(
                    "{}.ko{}\n",
                    module_name(line),
                    &line[module_name(line).len()..]
                )
            })
            .collect();
        tree.insert(&format!("modules/{list}"), Entry::file(0o644, text));
    }
    tree
}
