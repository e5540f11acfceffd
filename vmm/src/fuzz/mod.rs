//! The ways by which bytes that somebody else chose come in - a guest, an image, a saved machine - each with the body of its fuzz
//! target. A body returns, whatever the bytes: no panic, no hang, no growth beyond the limits that [`crate::virtio`] lists.
//!
//! libFuzzer runs the bodies without end, from `vmm/fuzz`; `cargo test` gives each a short run. To add one: a function and its
//! name here, its lines in `vmm/fuzz/Cargo.toml`, a file like the others in `fuzz_targets`, and in `corpus/NAME` something to begin
//! with.

mod machine;
#[cfg(test)]
mod short_run;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::boot::{self, BootEntry};
use crate::bus::MmioDevice;
use crate::memory::{self, GuestRam};
use crate::virtio::block::Block;
use crate::virtio::console::{Console, PortSpec};
use crate::virtio::fake_driver::{FakeDriver, RAM_BYTES, reg};
use crate::virtio::fs::Fs;
use crate::virtio::gpu::Gpu;
use crate::virtio::hostile_driver::{Far, Hostile, Make, Script, play};
use crate::virtio::input::{Event, Input, InputOrder};
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::{Transport, VirtioDevice};
pub use machine::{arm64_board, snapshot, x86_board};

/// Names the targets, and gives each its short run.
macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        #[cfg(test)]
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        #[cfg(test)]
        mod short_runs {
            $(
                #[test]
                fn $name() {
                    super::short_run::run(&super::corpus(stringify!($name)), super::$name);
                }
            )*
        }
    };
}

targets! {
    block, console, fs, gpu, input, net, rng,
    mmio, restore,
    arm64_board, x86_board, snapshot,
    boot_arm64, boot_x86,
}

/// A hostile guest on the disk.
pub fn block(script: &[u8]) {
    hostile_guest(a_disk, script);
}

/// A hostile guest, and hostile peers, on the console.
pub fn console(script: &[u8]) {
    hostile_guest(a_console, script);
}

/// A hostile guest, and a hostile server, on the file system.
pub fn fs(script: &[u8]) {
    hostile_guest(a_file_system, script);
}

/// A hostile guest on the GPU.
pub fn gpu(script: &[u8]) {
    hostile_guest(a_gpu, script);
}

/// A hostile guest on the touch panel, and hands that it does not see.
pub fn input(script: &[u8]) {
    hostile_guest(a_panel, script);
}

/// A hostile guest, and a hostile network, on the network card.
pub fn net(script: &[u8]) {
    hostile_guest(a_network, script);
}

/// A hostile guest on the entropy device: what remains is queues.
pub fn rng(script: &[u8]) {
    hostile_guest(an_entropy_source, script);
}

/// A guest that begins with nothing and writes registers as it likes, at any place and of any width.
pub fn mmio(script: &[u8]) {
    let (device, _far) = a_console();
    let mut driver = FakeDriver::new(device);
    let mut script = Script(script);
    while let Some(action) = script.byte() {
        let offset = match action & 0x40 {
            0 => u64::from(script.byte().unwrap_or(0)) * 4,
            _ => script.number(2),
        };
        match action % 8 {
            0 => driver.transport.read(offset, &mut vec![0; 1 << (action >> 4 & 3)]),
            1 => driver.transport.write(offset, script.take(1 << (action >> 4 & 3))),
            2 => driver.write32(reg::STATUS, script.number(1) as u32),
            3 => driver.write_ram(crate::layout::RAM_BASE + script.number(2), script.some()),
            4 => {
                let state = driver.transport.save();
                driver.transport.restore(&state).expect("what was saved can be restored");
            }
            _ => driver.write32(offset & !3, script.number(4) as u32),
        }
    }
    is_as_new(&mut driver);
}

/// Saved devices that were damaged, or made up, and then a guest that goes on with them. The first byte chooses the device.
pub fn restore(state: &[u8]) {
    let Some((kind, state)) = state.split_first() else { return };
    match kind % 7 {
        0 => restored(a_disk, state),
        1 => restored(a_console, state),
        2 => restored(a_file_system, state),
        3 => restored(a_gpu, state),
        4 => restored(a_panel, state),
        5 => restored(a_network, state),
        _ => restored(an_entropy_source, state),
    }
}

/// An arm64 kernel, an initramfs, a command line and devices, for the device tree to name.
pub fn boot_arm64(input: &[u8]) {
    let image = BootFiles::read(input);
    let ram = memory::anonymous(RAM_BYTES).expect("64 MiB of address space");
    let entry = boot::arm64::load(&ram, &boot::arm64::BootSource {
        kernel: &image.kernel.path,
        initramfs: image.initramfs.as_ref().map(|file| file.path.as_path()),
        cmdline: &image.cmdline,
        cpu_compatible: "arm,cortex-a53",
        virtio_slots: &image.slots,
        rng_seed: [0; 64],
        kaslr_seed: None,
    });
    assert!(entry.is_err() || entry.is_ok_and(|entry| lies_in(&ram, entry)));
}

/// The same for x86-64, and ACPI tables.
pub fn boot_x86(input: &[u8]) {
    let image = BootFiles::read(input);
    let ram = memory::anonymous_x86(RAM_BYTES).expect("64 MiB of address space");
    let entry = boot::x86_64::load(&ram, &boot::x86_64::BootSource {
        kernel: &image.kernel.path,
        initramfs: image.initramfs.as_ref().map(|file| file.path.as_path()),
        cmdline: &image.cmdline,
        virtio_slots: &image.slots,
        rng_seed: [0; 64],
    });
    assert!(entry.is_err() || entry.is_ok_and(|entry| lies_in(&ram, entry)));
}

struct BootFiles {
    kernel: MemoryFile,
    initramfs: Option<MemoryFile>,
    cmdline: String,
    slots: Vec<usize>,
}

impl BootFiles {
    /// How often the command line is repeated; a bit for each slot; command line; initramfs; and the rest is the kernel.
    fn read(input: &[u8]) -> Self {
        let mut script = Script(input);
        let (repeated, slots) = (script.number(1), script.number(2));
        Self {
            slots: (0..crate::layout::VIRTIO_SLOTS).filter(|slot| slots >> slot & 1 == 1).collect(),
            cmdline: String::from_utf8_lossy(script.some()).repeat(1 + (repeated % 16) as usize),
            initramfs: Some(script.some()).filter(|bytes| !bytes.is_empty()).map(MemoryFile::new),
            kernel: MemoryFile::new(script.rest()),
        }
    }
}

fn lies_in(ram: &GuestRam, entry: BootEntry) -> bool {
    let (base, size) = memory::extent(ram);
    [entry.kernel, entry.parameters].iter().all(|address| (base..base + size).contains(address))
}

/// Plays a script on a device. Afterwards it can be saved and restored, and is good for an honest driver.
fn hostile_guest<D: VirtioDevice>(make: Make<D>, script: &[u8]) {
    let Hostile { mut driver, .. } = play(make, script);
    // A guest that changes requests which are under way may have made itself unfit for it.
    move_away(&mut driver, make);
    is_as_new(&mut driver);
    assert!(move_away(&mut driver, make), "a device that was reset cannot be restored");
}

/// Saves a device and restores it elsewhere; whether that was possible.
fn move_away<D: VirtioDevice>(driver: &mut FakeDriver<D>, make: Make<D>) -> bool {
    driver.guest.close_gate();
    let state = driver.transport.save();
    let (device, _far) = make();
    let moved = FakeDriver::on(driver.ram(), device).transport.restore(&state).is_ok();
    driver.guest.open_gate();
    moved
}

fn is_as_new<D: VirtioDevice>(driver: &mut FakeDriver<D>) {
    driver.start(u64::MAX);
    assert!(!driver.needs_reset(), "a device that was reset is not as new");
}

fn restored<D: VirtioDevice>(make: Make<D>, state: &[u8]) {
    let (device, _far) = make();
    let mut driver = FakeDriver::new(device);
    if driver.transport.restore(state).is_ok() {
        // The resource that the saved screen shows, if there is one, is shown anew.
        (0..8).for_each(|queue| driver.kick(queue));
        driver.transport.device().wake();
        drop(driver.config(0, 256));
        move_away(&mut driver, make);
    }
    is_as_new(&mut driver);
}

fn a_disk() -> (Block, Far) {
    let file = MemoryFile::new(&[]).file;
    file.set_len(1 << 20).expect("1 MiB of disk");
    (Block::new(file, false).expect("a disk"), Far::nobody())
}

fn a_console() -> (Console, Far) {
    let (ours, peers): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().expect("a channel")).unzip();
    let ports = ours.into_iter().zip(["a", "b"]).map(|(channel, name)| PortSpec { name: name.into(), channel });
    let speak = |peers: &mut [UnixStream], script: &mut Script<'_>| {
        let peer = &peers[script.number(1) as usize % 2];
        // What has no room is lost.
        let _ = { peer }.write(script.some());
    };
    (Console::new(ports.collect()).expect("a console"), far(peers, speak))
}

/// The server answers the next request, with any error and contents.
fn a_file_system() -> (Fs, Far) {
    let (channel, server) = UnixStream::pair().expect("a channel");
    let speak = |peers: &mut [UnixStream], script: &mut Script<'_>| {
        let mut server = &peers[0];
        let mut header = [0; 40];
        if server.read_exact(&mut header).is_err() {
            return;
        }
        let len = u32::from_le_bytes(std::array::from_fn(|i| header[i]));
        // What does not come is as well lost.
        let _ = std::io::copy(&mut server.take(u64::from(len).saturating_sub(40)), &mut std::io::sink());
        let (error, contents) = (-(script.number(1) as i32), script.some());
        let _ = server.write(&[&(16 + contents.len() as u32).to_le_bytes(), &error.to_le_bytes(), &header[8..16], contents].concat());
    };
    (Fs::new("flash", channel).expect("a file system"), far(vec![server], speak))
}

fn a_gpu() -> (Gpu, Far) {
    (Gpu::new(36, 72).expect("a screen"), Far::nobody())
}

/// Hands move on the panel; some of what they do no panel does.
fn a_panel() -> (Input, Far) {
    const EVENTS: [(u16, u16); 8] = [(3, 0x2f), (3, 0x39), (1, 0x14a), (3, 0x35), (3, 0x36), (3, 0), (3, 1), (0, 0)];
    let panel = Input::touch(36, 72, &InputOrder::default()).expect("a panel");
    let sender = panel.sender();
    let speak = move |_: &mut [UnixStream], script: &mut Script<'_>| {
        let how = script.number(1);
        let event = |script: &mut Script<'_>| -> Event {
            let which = script.number(1) as u16;
            let (kind, code) = if which < 0xf0 { EVENTS[usize::from(which % 8)] } else { (which & 7, script.number(2) as u16) };
            (kind, code, script.number(2) as i16 as i32)
        };
        let frame: Vec<Event> = (0..how % 80).map(|_| event(script)).collect();
        // A panel whose driver has gone, or takes nothing, refuses.
        let _ = if how < 0x80 { sender.send(&frame) } else { sender.send_position(&frame) };
    };
    (panel, far(vec![], speak))
}

/// The network sends a frame.
fn a_network() -> (Net, Far) {
    let (channel, peer) = UnixStream::pair().expect("a channel");
    let speak = |peers: &mut [UnixStream], script: &mut Script<'_>| {
        let frame = [script.some(), &[0; 14]].concat();
        let _ = { &peers[0] }.write(&[&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat());
    };
    (Net::new([2, 0, 0, 0, 0, 1], channel).expect("a network"), far(vec![peer], speak))
}

fn an_entropy_source() -> (Rng, Far) {
    (Rng::new(), Far::nobody())
}

fn far(peers: Vec<UnixStream>, speak: impl FnMut(&mut [UnixStream], &mut Script<'_>) + 'static) -> Far {
    peers.iter().for_each(|peer| peer.set_nonblocking(true).expect("a socket"));
    Far { peers, speak: Box::new(speak) }
}

/// A file in memory, which has a path for as long as it lives.
struct MemoryFile {
    file: File,
    path: PathBuf,
}

impl MemoryFile {
    fn new(bytes: &[u8]) -> Self {
        let mut file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
        file.write_all(bytes).expect("memory");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { file, path }
    }
}

#[cfg(test)]
fn corpus(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", name].iter().collect()
}

#[test]
fn every_target_is_known_to_the_fuzzer() {
    let folder = corpus("").join("..");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let built: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\"")).collect();
    assert_eq!(built, NAMES, "in vmm/fuzz/Cargo.toml");
    for name in NAMES {
        let file = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&format!("vmm::fuzz::{name}(")), "fuzz_targets/{name}.rs runs something else");
    }
}
