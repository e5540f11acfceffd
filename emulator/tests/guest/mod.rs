//! A whole guest for tests: Debian's kernel, unmodified, and an initramfs of nothing but busybox.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use emulator::cpu::{CpuConfig, CpuModel, UnicornCpu};
use emulator::x86::UnicornX86Cpu;
use vmm::board::arm64::Arm64;
use vmm::board::x86_64::X86;
use vmm::boot::{self, arm64::BootSource};
use vmm::clock::HostClock;
use vmm::devices::uart::UartSink;
use vmm::machine::{ExitReason, Machine, MachineBuilder};
use vmm::memory;

/// Long enough for a host under load; a hanging guest fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const PROMPT: &str = "~guest~ ";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin PS1='~guest~ ' HOME=/
stty -echo
exec setsid cttyhack sh
"#;

/// Kernel and initramfs as files in the cache.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Guest {
    pub(crate) fn prepare() -> Guest {
        Self::of("arm64")
    }

    /// Gets the packages unless they are in the cache, and makes the initramfs. Debian's name of the architecture.
    pub(crate) fn of(architecture: &str) -> Guest {
        let cache = std::env::var_os("POLLUX_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/pollux"));
        let folder = cache.join("test-guest");
        std::fs::create_dir_all(&folder).unwrap();
        let image = dependency(&format!("linux-image-{architecture}:{architecture}"));
        let image = image.split(':').next().unwrap();
        let name = image.strip_prefix("linux-image-").unwrap();
        let kernel = folder.join(format!("vmlinuz-{name}"));
        let initramfs = folder.join(format!("busybox-{architecture}.cpio"));
        let extract = |package: &str, path: &str| extract(&cache.join("debs"), package, architecture, path);
        if !kernel.exists() {
            let file = extract(image, &format!("./boot/vmlinuz-{name}"));
            put(&kernel, &file);
        }
        if !initramfs.exists() {
            let busybox = extract("busybox-static", "./bin/busybox");
            let mut cpio = Cpio::default();
            cpio.add("dev", 0o040_755, (0, 0), b"");
            cpio.add("dev/console", 0o020_600, (5, 1), b"");
            cpio.add("bin", 0o040_755, (0, 0), b"");
            cpio.add("bin/busybox", 0o100_755, (0, 0), &busybox);
            cpio.add("init", 0o100_755, (0, 0), INIT.as_bytes());
            put(&initramfs, &cpio.finish());
        }
        Guest { kernel, initramfs }
    }
}

/// The package that a meta-package stands for.
fn dependency(package: &str) -> String {
    let run = Command::new("apt-cache").args(["depends", "--no-recommends", "--no-suggests", package]).output().unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    let line = text.lines().find_map(|l| l.trim().strip_prefix("Depends: "));
    line.unwrap_or_else(|| panic!("apt knows no {package}: run scripts/setup")).to_owned()
}

/// One file out of a Debian package.
fn extract(folder: &Path, name: &str, architecture: &str, path: &str) -> Vec<u8> {
    std::fs::create_dir_all(folder).unwrap();
    let find = || {
        let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        found.retain(|p| {
            let file = p.file_name().unwrap().to_string_lossy();
            file.starts_with(&format!("{name}_")) && file.ends_with(&format!("_{architecture}.deb"))
        });
        found.sort();
        found.pop()
    };
    let package = find().unwrap_or_else(|| {
        let run = Command::new("apt-get").args(["download", &format!("{name}:{architecture}")]).current_dir(folder).output().unwrap();
        assert!(run.status.success(), "cannot download {name}: {}", String::from_utf8_lossy(&run.stderr));
        find().unwrap()
    });
    let mut dpkg = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn().unwrap();
    let tar = Command::new("tar").args(["-xOf", "-", path]).stdin(dpkg.stdout.take().unwrap()).output().unwrap();
    assert!(dpkg.wait().unwrap().success() && tar.status.success(), "no {path} in {name}");
    tar.stdout
}

/// Writes a file whole or not at all: tests run at the same time.
fn put(path: &Path, bytes: &[u8]) {
    let mut temporary = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    temporary.write_all(bytes).unwrap();
    temporary.persist(path).unwrap();
}

/// Writes the "newc" format.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    files: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.files += 1;
        let fields = [self.files, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

/// A running guest and its serial console.
pub(crate) struct Console {
    pub(crate) machine: Machine,
    pub(crate) exit: Receiver<ExitReason>,
    printed: Receiver<u8>,
    pub(crate) log: String,
}

struct Sink(Sender<u8>);

impl UartSink for Sink {
    fn put(&mut self, byte: u8) {
        // The test may have ended.
        let _ = self.0.send(byte);
    }
}

pub(crate) fn config() -> CpuConfig {
    CpuConfig { model: CpuModel::CortexA53, tcg_buffer_bytes: 32 << 20 }
}

impl Console {
    /// A machine without devices beyond the board's, over this RAM; not started.
    pub(crate) fn new(ram: memory::GuestRam, config: CpuConfig) -> Console {
        let (sender, printed) = channel();
        let (exited, exit) = channel();
        let builder = MachineBuilder::new(ram, Arm64::new(Arc::new(HostClock), Box::new(Sink(sender)))).unwrap();
        let on_exit = move |reason: &ExitReason| drop(exited.send(reason.clone()));
        let machine = builder.build(move |ram, bus, irq_chip| UnicornCpu::new(ram, bus, irq_chip, config), on_exit).unwrap();
        Console { machine, exit, printed, log: String::new() }
    }

    /// The same for x86-64.
    pub(crate) fn new_x86(ram: memory::GuestRam, tcg_buffer_bytes: usize) -> Console {
        let (sender, printed) = channel();
        let (exited, exit) = channel();
        let board = X86::new(Arc::new(HostClock), Box::new(Sink(sender))).unwrap();
        let (parts, chips) = (board.parts(), board.chips().unwrap());
        let builder = MachineBuilder::new(ram, board).unwrap();
        let on_exit = move |reason: &ExitReason| drop(exited.send(reason.clone()));
        let machine = builder.build(move |ram, bus, _| UnicornX86Cpu::new(ram, bus, parts, chips, tcg_buffer_bytes), on_exit).unwrap();
        Console { machine, exit, printed, log: String::new() }
    }

    /// Boots the x86-64 guest with 256 MiB.
    pub(crate) fn boot_x86(guest: &Guest, cmdline: &str, tcg_buffer_bytes: usize) -> Console {
        let ram = memory::anonymous_x86(256 << 20).unwrap();
        let (kernel, initramfs) = (&guest.kernel, Some(guest.initramfs.as_path()));
        let source = boot::x86_64::BootSource { kernel, initramfs, cmdline, virtio_slots: &[], rng_seed: [7; 64] };
        let entry = boot::x86_64::load(&ram, &source).unwrap();
        let mut console = Console::new_x86(ram, tcg_buffer_bytes);
        console.machine.boot(entry).unwrap();
        console
    }

    /// Boots the guest with 256 MiB.
    pub(crate) fn boot(guest: &Guest, config: CpuConfig) -> Console {
        let ram = memory::anonymous(256 << 20).unwrap();
        let source = BootSource {
            kernel: &guest.kernel,
            initramfs: Some(&guest.initramfs),
            cmdline: "console=ttyAMA0 panic=-1",
            cpu_compatible: &format!("arm,{}", config.model.name()),
            virtio_slots: &[],
            rng_seed: [7; 64],
            kaslr_seed: None,
        };
        let entry = boot::arm64::load(&ram, &source).unwrap();
        let mut console = Console::new(ram, config);
        console.machine.boot(entry).unwrap();
        console
    }

    /// Reads the console until `text` comes; gives what came before it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = String::new();
        while !seen.ends_with(text) {
            let Ok(byte) = self.printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                panic!("no {text:?} on the console; machine {}; it said:\n{}", self.machine.state(), self.log);
            };
            seen.push(byte as char);
            self.log.push(byte as char);
        }
        seen.truncate(seen.len() - text.len());
        seen
    }

    /// Types a line at the prompt; gives what the guest printed before the next one.
    pub(crate) fn command(&mut self, line: &str) -> String {
        self.type_line(line);
        self.wait_for(PROMPT).replace('\r', "").trim().to_owned()
    }

    /// Types a line as fast as the guest reads.
    pub(crate) fn type_line(&mut self, line: &str) {
        let input = self.machine.uart_input();
        let deadline = Instant::now() + PATIENCE;
        let mut rest = line.to_owned().into_bytes();
        rest.push(b'\n');
        while !rest.is_empty() {
            let sent = input.send(&rest);
            rest.drain(..sent);
            assert!(Instant::now() < deadline, "the guest does not read its console");
            std::thread::yield_now();
        }
    }
}
