//! QEMU as the phone: a stand-alone phone, or the peer to compare our own machine with.
//!
//! Promises: no fixed ports and no waiting for a fixed time - QEMU connects to sockets that are there before it starts,
//! and what the guest prints is waited for; QEMU ends with its [`Qemu`]. Leaves out: acceleration; it is plain TCG.
//! Its devices are found by name, because it numbers them in the reverse order of its command line; it has no
//! multi-touch panel before version 8, so a finger is a tablet's left button.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use image_builder::Image;
use serde_json::{Value, json};

use crate::console::Console;
use crate::machine::Worker;

/// The host, as a phone on [`Network::User`] sees it.
pub const HOST: &str = "10.0.2.2";

const PROGRAM: &str = "qemu-system-aarch64";
/// Debian keeps it out of the path.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// QEMU's absolute axes, whatever the screen.
const AXIS_MAX: i64 = 0x7fff;
/// QEMU's and virtiofsd's standard error, in the phone's folder.
const COMPLAINTS: &str = "complaints";
const NETDEV: &str = "net";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// A phone to start.
#[derive(Clone, Debug)]
pub struct Phone {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The kernel's whole command line.
    pub cmdline: String,
    pub ram_mib: u32,
    /// Width and height.
    pub display: (u32, u32),
    pub root: Root,
    pub network: Network,
    /// Named console ports: each connects to a socket that must be listening.
    pub ports: Vec<(String, PathBuf)>,
}

#[derive(Clone, Debug)]
pub enum Root {
    /// A raw disk that the phone writes to.
    Disk(PathBuf),
    /// A folder, through virtiofsd; needs root.
    Folder(PathBuf),
}

#[derive(Clone, Debug)]
pub enum Network {
    None,
    /// QEMU's own user-mode network: the phone finds what listens on the host's loopback at [`HOST`].
    User,
}

impl Phone {
    /// A phone of this image without network or ports; `cmdline` is added to the image's own.
    pub fn new(image: &Image, root: Root, cmdline: &str) -> Phone {
        let manifest = image.manifest();
        let place = match root {
            Root::Disk(_) => "/dev/vda",
            Root::Folder(_) => "virtiofs:flash",
        };
        Phone {
            kernel: image.kernel(),
            initramfs: image.initramfs(),
            cmdline: format!("{} pollux.root={place} {cmdline}", manifest.kernel_cmdline),
            ram_mib: manifest.ram_mib,
            display: (manifest.display.width, manifest.display.height),
            root,
            network: Network::None,
            ports: Vec::new(),
        }
    }
}

/// A running phone.
pub struct Qemu {
    /// Before the folder, so that QEMU is gone when its sockets go.
    qemu: Process,
    virtiofsd: Option<Process>,
    monitor: BufReader<UnixStream>,
    console: Console,
    serial: UnixStream,
    display: (u32, u32),
    folder: tempfile::TempDir,
}

/// Killed and reaped when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell either way.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Qemu {
    /// Starts the phone; returns once QEMU's monitor answers.
    pub fn start(phone: &Phone) -> Result<Qemu> {
        let folder = tempfile::tempdir()?;
        let monitor_path = folder.path().join("monitor");
        let serial_path = folder.path().join("serial");
        let monitor = UnixListener::bind(&monitor_path)?;
        let serial = UnixListener::bind(&serial_path)?;

        let complaints = folder.path().join(COMPLAINTS);
        let mut arguments = Arguments::default();
        arguments.machine(phone);
        arguments.add(
            "-chardev",
            [b"socket,id=monitor,path=", path_bytes(&monitor_path)],
        );
        arguments.add("-mon", [b"chardev=monitor,mode=control".as_slice()]);
        arguments.add(
            "-chardev",
            [b"socket,id=serial,path=", path_bytes(&serial_path)],
        );
        arguments.add("-serial", [b"chardev:serial".as_slice()]);
        arguments.network(&phone.network);
        arguments.ports(&phone.ports);
        let virtiofsd = match &phone.root {
            Root::Disk(disk) => {
                arguments.disk(disk);
                None
            }
            Root::Folder(root) => {
                let socket = folder.path().join("flash");
                let daemon = start_virtiofsd(root, &socket, &complaints)?;
                arguments.flash(&socket, phone.ram_mib);
                Some(daemon)
            }
        };

        let child = Command::new(PROGRAM)
            .args(&arguments.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(append(&complaints)?)
            .spawn()
            .with_context(|| format!("cannot run {PROGRAM} (apt package qemu-system-arm)"))?;
        let mut qemu = Process(child);
        let monitor = accept(&monitor, &mut qemu, &complaints)?;
        let serial = accept(&serial, &mut qemu, &complaints)?;
        let console = Console::read(serial.try_clone()?);
        monitor.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut started = Qemu {
            qemu,
            virtiofsd,
            monitor: BufReader::new(monitor),
            console,
            serial,
            display: phone.display,
            folder,
        };
        started.command("qmp_capabilities", json!({}))?;
        Ok(started)
    }

    /// Runs a QMP command and returns what it returns.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value> {
        self.exchange(name, arguments).with_context(|| {
            let complaints =
                std::fs::read_to_string(self.folder.path().join(COMPLAINTS)).unwrap_or_default();
            format!("QMP command {name} fails; QEMU says: {}", complaints.trim())
        })
    }

    fn exchange(&mut self, name: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": name, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            ensure!(self.monitor.read_line(&mut line)? > 0, "QEMU has ended");
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{error}");
            }
            // Greetings and events come in between.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Its name and version, as in `qemu 7.2`.
    pub fn name(&mut self) -> Result<String> {
        let version = self.command("query-version", json!({}))?["qemu"].clone();
        let part = |key: &str| {
            version[key]
                .as_u64()
                .with_context(|| format!("no version in {version}"))
        };
        Ok(format!("qemu {}.{}", part("major")?, part("minor")?))
    }

    /// Who does the machine's work: QEMU, and the server of its folder.
    pub fn workers(&self) -> Vec<Worker> {
        let processes = std::iter::once(&self.qemu).chain(&self.virtiofsd);
        processes
            .map(|process| Worker::Process(process.0.id()))
            .collect()
    }

    /// Waits until the guest has printed `text` on its serial line; returns all that it has printed.
    pub fn wait_console(&self, text: &str, timeout: Duration) -> Result<String> {
        self.console.wait(text, timeout)
    }

    /// Types on the serial line.
    pub fn type_serial(&mut self, text: &str) -> Result<()> {
        Ok(self.serial.write_all(text.as_bytes())?)
    }

    /// What the guest has printed on its serial line so far.
    pub fn printed(&self) -> String {
        self.console.printed()
    }

    /// Takes the phone out of its network's reach, as where there is no signal, or brings it back.
    pub fn set_reach(&mut self, reached: bool) -> Result<()> {
        self.command("set_link", json!({ "name": NETDEV, "up": reached }))
            .map(drop)
    }

    /// Presses or releases a key of a keyboard's main block, by its Linux key code: up to 83 they are those of PCs, which QEMU
    /// takes by number.
    pub fn key(&mut self, code: u16, down: bool) -> Result<()> {
        self.send(json!([{ "type": "key", "data": { "down": down, "key": { "type": "number", "data": code } } }]))
    }

    /// Moves the finger to a pixel; `down` is whether it touches. One frame.
    pub fn touch(&mut self, x: u32, y: u32, down: bool) -> Result<()> {
        let axis = |axis: &str, at: u32, of: u32| {
            let value = (i64::from(at) * AXIS_MAX + AXIS_MAX / 2) / i64::from(of);
            json!({ "type": "abs", "data": { "axis": axis, "value": value } })
        };
        let (width, height) = self.display;
        self.send(json!([
            axis("x", x, width),
            axis("y", y, height),
            { "type": "btn", "data": { "down": down, "button": "left" } },
        ]))
    }

    fn send(&mut self, events: Value) -> Result<()> {
        self.command("input-send-event", json!({ "events": events }))
            .map(drop)
    }

    /// The screen as a PNG file.
    pub fn screenshot(&mut self) -> Result<Vec<u8>> {
        let path = self.folder.path().join("screen.png");
        self.command("screendump", json!({ "filename": path, "format": "png" }))?;
        Ok(std::fs::read(path)?)
    }

    /// Waits for QEMU to end by itself, as after the guest's power-off.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<()> {
        self.console.wait_closed(timeout)?;
        self.qemu.0.wait()?;
        Ok(())
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<const N: usize>(&mut self, flag: &str, parts: [&[u8]; N]) {
        use std::os::unix::ffi::OsStringExt;
        self.0.push(flag.into());
        self.0.push(OsString::from_vec(parts.concat()));
    }

    fn device(&mut self, device: &str) {
        self.add("-device", [device.as_bytes()]);
    }

    fn machine(&mut self, phone: &Phone) {
        let (width, height) = phone.display;
        for (flag, value) in [
            // Else the kernel is randomised, turns KPTI on, and is three times slower at system calls.
            (
                "-machine",
                "virt,gic-version=2,dtb-randomness=off".to_owned(),
            ),
            ("-cpu", "cortex-a53".to_owned()),
            ("-m", phone.ram_mib.to_string()),
            ("-append", phone.cmdline.clone()),
            ("-display", "none".to_owned()),
            // Else display and input silently do not bind.
            ("-global", "virtio-mmio.force-legacy=false".to_owned()),
        ] {
            self.add(flag, [value.as_bytes()]);
        }
        self.0.push("-nodefaults".into());
        self.0.push("-no-reboot".into());
        self.add("-kernel", [path_bytes(&phone.kernel)]);
        self.add("-initrd", [path_bytes(&phone.initramfs)]);
        self.device(&format!("virtio-gpu-device,xres={width},yres={height}"));
        for device in [
            "virtio-keyboard-device",
            "virtio-tablet-device",
            "virtio-rng-device",
        ] {
            self.device(device);
        }
    }

    fn disk(&mut self, disk: &Path) {
        self.add(
            "-drive",
            [b"if=none,id=disk,format=raw,file=", path_bytes(disk)],
        );
        self.device("virtio-blk-device,drive=disk");
    }

    fn flash(&mut self, socket: &Path, ram_mib: u32) {
        // The daemon reaches into guest memory.
        self.add(
            "-object",
            [format!("memory-backend-memfd,id=ram,share=on,size={ram_mib}M").as_bytes()],
        );
        self.add("-machine", [b"memory-backend=ram".as_slice()]);
        self.add("-chardev", [b"socket,id=flash,path=", path_bytes(socket)]);
        self.device("vhost-user-fs-device,chardev=flash,tag=flash");
    }

    fn network(&mut self, network: &Network) {
        if let Network::User = network {
            self.add("-netdev", [format!("user,id={NETDEV}").as_bytes()]);
            self.device(&format!("virtio-net-device,netdev={NETDEV}"));
        }
    }

    fn ports(&mut self, ports: &[(String, PathBuf)]) {
        if ports.is_empty() {
            return;
        }
        self.device("virtio-serial-device");
        for (index, (name, socket)) in ports.iter().enumerate() {
            self.add(
                "-chardev",
                [
                    format!("socket,id=port{index},path=").as_bytes(),
                    path_bytes(socket),
                ],
            );
            self.device(&format!("virtserialport,chardev=port{index},name={name}"));
        }
    }
}

fn append(path: &Path) -> Result<File> {
    Ok(File::options().create(true).append(true).open(path)?)
}

fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// Waits for QEMU to connect, or to end with an error.
fn accept(listener: &UnixListener, qemu: &mut Process, complaints: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = qemu.0.try_wait()? {
            bail!(
                "QEMU ended at its start ({status}): {}",
                std::fs::read_to_string(complaints)?.trim()
            );
        }
        ensure!(
            Instant::now() < deadline,
            "QEMU did not connect within {CONNECT_TIMEOUT:?}"
        );
        // Polled, not timed: ends at the connection, the process's end, or the deadline.
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start_virtiofsd(root: &Path, socket: &Path, complaints: &Path) -> Result<Process> {
    let mut source = OsString::from("source=");
    source.push(root);
    let mut socket_option = OsString::from("--socket-path=");
    socket_option.push(socket);
    let child = Command::new(VIRTIOFSD)
        .arg(socket_option)
        .args(["-o", "cache=none,sandbox=chroot", "-o"])
        .arg(source)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(append(complaints)?)
        .spawn()
        .with_context(|| format!("cannot run {VIRTIOFSD} (apt package qemu-system-common)"))?;
    let mut daemon = Process(child);
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    while !socket.exists() {
        if let Some(status) = daemon.0.try_wait()? {
            bail!(
                "virtiofsd ended at its start ({status}): {}",
                std::fs::read_to_string(complaints)?.trim()
            );
        }
        ensure!(
            Instant::now() < deadline,
            "virtiofsd did not listen within {CONNECT_TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(daemon)
}
