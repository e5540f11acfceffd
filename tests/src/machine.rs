//! One machine of ours, alone: `pollux-twin` with a disk or a flash, no appliance, no network. What is measured beside QEMU.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flash::{TwinView, fuse};
use image_builder::Image;
use serde_json::json;

use crate::appliance::{PATIENCE, binary};
use crate::console::Console;
use crate::control::Control;

/// A running machine; it ends with its handle.
pub struct Machine {
    /// Before the folder and the flash, so that the process is gone when its sockets go.
    process: Process,
    flash: Option<FlashServer>,
    pub control: Control,
    console: Console,
    _folder: tempfile::TempDir,
}

/// Where the guest's root is.
pub enum Root<'a> {
    /// A raw disk that the guest writes to.
    Disk(&'a Path),
    /// The appliance's file server over this view, on a thread of this process.
    Flash(TwinView),
}

/// Who uses the host's CPUs, as its kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// All threads of a process.
    Process(u32),
    /// A thread of this process.
    Thread(u32),
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

impl Machine {
    /// Starts the process and boots `image` from `root`; `cmdline` is added to the image's own.
    pub fn boot(image: &Image, root: Root<'_>, cmdline: &str) -> Result<Machine> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let manifest = image.manifest();
        let place = match root {
            Root::Disk(_) => "/dev/vda",
            Root::Flash(_) => "virtiofs:flash",
        };
        let mut config = json!({
            "image": {
                "kernel": image.kernel(), "initramfs": image.initramfs(),
                "cmdline": format!("{} pollux.root={place} {cmdline}", manifest.kernel_cmdline),
            },
            "ram_mib": manifest.ram_mib,
            "display": {"width": manifest.display.width, "height": manifest.display.height},
            "cpu": {"model": "cortex-a53"},
            "console_log": at("console"), "control_socket": at("control.sock"), "rfb_socket": at("rfb.sock"),
            "cage": std::env::var("POLLUX_CAGE").unwrap_or("whole".into()),
        });
        let mut flash = None;
        match root {
            Root::Disk(disk) => config["disks"] = json!([{"path": disk}]),
            Root::Flash(view) => {
                config["flash"] = json!({"tag": "flash", "socket": at("flash.sock")});
                flash = Some(FlashServer::start(&at("flash.sock"), view)?);
            }
        }
        std::fs::write(at("twin.json"), config.to_string())?;
        // A pipe, so that what the guest prints can be waited for.
        ensure!(Command::new("mkfifo").arg(at("console")).status()?.success(), "cannot make a pipe");
        let (pipe, trace) = (at("console"), at("trace"));
        let reader = std::thread::spawn(move || File::open(pipe));
        let mut command = Command::new(binary("pollux-twin")?);
        command.arg("--config").arg(at("twin.json")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&trace)?);
        let mut process = Process(command.spawn()?);
        let mut ready = String::new();
        let stdout = process.0.stdout.take().context("its output is piped")?;
        BufReader::new(stdout).read_line(&mut ready)?;
        if ready != "ready\n" {
            bail!("pollux-twin ended ({}): {}", process.0.wait()?, std::fs::read_to_string(&trace)?.trim());
        }
        let console = reader.join().map_err(|_| anyhow!("the console's reader panicked"))??;
        let control = Control::connect(&at("control.sock"))?;
        let mut machine = Machine { process, flash, control, console: Console::read(console), _folder: folder };
        machine.control.ask(json!({"op": "boot"}))?;
        Ok(machine)
    }

    /// Waits until the guest has printed `text` on its serial line; returns all that it has printed.
    pub fn wait_console(&self, text: &str, timeout: Duration) -> Result<String> {
        self.console.wait(text, timeout)
    }

    /// Types on the serial line, as fast as the guest reads.
    pub fn type_serial(&mut self, text: &str) -> Result<()> {
        let start = Instant::now();
        let mut rest = text;
        while !rest.is_empty() {
            let reply = self.control.ask(json!({"op": "type", "text": rest}))?;
            let taken = reply["taken"].as_u64().with_context(|| format!("no count in {reply}"))?;
            rest = rest.get(taken as usize..).context("only ASCII is typed")?;
            ensure!(start.elapsed() < PATIENCE, "the guest does not read its console");
        }
        Ok(())
    }

    /// Who does the machine's work: the caged process, and the thread that serves its flash.
    pub fn workers(&self) -> Result<Vec<Worker>> {
        let server = self.flash.as_ref().map(|server| Worker::Thread(server.thread));
        Ok(std::iter::once(Worker::Process(caged(self.process.0.id())?)).chain(server).collect())
    }
}

/// The process that runs a machine: the only child of the `pollux-twin` that was started.
pub fn caged(started: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{started}/task/{started}/children"))?;
    children.trim().parse().with_context(|| format!("one child, not {children:?}"))
}

impl Worker {
    /// Seconds that it has run so far, in steps of a hundredth (proc(5), `utime` and `stime`).
    pub fn cpu_seconds(self) -> Result<f64> {
        /// The kernel's unit in `/proc`, on every architecture that we run on.
        const TICKS_PER_SECOND: f64 = 100.0;
        let path = match self {
            Worker::Process(id) => format!("/proc/{id}/stat"),
            Worker::Thread(id) => format!("/proc/self/task/{id}/stat"),
        };
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // After the name, which may contain anything, comes the third field.
        let fields = text.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
        let times: Vec<f64> = fields.into_iter().flatten().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        ensure!(times.len() == 2, "{path} holds no times: {text}");
        Ok(times.iter().sum::<f64>() / TICKS_PER_SECOND)
    }
}

/// A thread that serves a view to one machine; it ends with the machine's process.
struct FlashServer {
    thread: u32,
}

impl FlashServer {
    fn start(socket: &Path, view: TwinView) -> Result<FlashServer> {
        let listener = UnixListener::bind(socket)?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            if let Err(error) = serve(&listener, view, &tell) {
                eprintln!("a machine's flash: {error:#}");
            }
        });
        Ok(FlashServer { thread: told.recv().context("the flash's thread ended")?? })
    }
}

fn serve(listener: &UnixListener, view: TwinView, tell: &Sender<Result<u32>>) -> Result<()> {
    // `PID/task/TID`.
    let name = || -> Result<u32> {
        let link: PathBuf = std::fs::read_link("/proc/thread-self")?;
        let id = link.file_name().and_then(|id| id.to_str()).context("a thread has a number")?;
        Ok(id.parse()?)
    };
    if tell.send(name()).is_err() {
        return Ok(());
    }
    let (stream, _) = listener.accept()?;
    Ok(fuse::serve(stream, view)?)
}
