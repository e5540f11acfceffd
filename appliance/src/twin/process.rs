//! One `pollux-twin` process: its configuration, its sockets, its birth and its end.
//!
//! Promises: the process dies with us, whatever we die of; its folder is readable by its owner only; nothing is left after
//! [`Machine::end`].

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use image_builder::Architecture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tracing::warn;

use super::control::{Control, ControlError};
use super::gate;

/// A process that has not said by then that it listens will not.
const READY_MAX: Duration = Duration::from_secs(10);
/// What it says then, and all that it ever says.
const READY: &str = "ready\n";
/// A machine that was asked to stop is killed after this.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Longest path of a Unix socket (`sockaddr_un`), less its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Lines of the process's own diagnostics that are kept when it fails.
const DIAGNOSTICS_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("the twin's program {0} is not there; build it, or name it by twins.binary in the configuration")]
    NoBinary(PathBuf),
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the path {0} is too long for a socket ({SOCKET_PATH_BYTES_MAX} bytes); choose a data folder with a shorter name")]
    PathTooLong(PathBuf),
    #[error("cannot start {path}: {source}")]
    Spawn { path: PathBuf, source: io::Error },
    #[error("the machine ended while it started: {0}")]
    Ended(String),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The folder of one machine: sockets, configuration, console log.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it anew, with nothing in it.
    pub fn make(path: &Path) -> Result<Folder, ProcessError> {
        let failed = |action| move |source| ProcessError::File { action, path: path.to_owned(), source };
        Folder::clear(path)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder"))?;
        // `recursive` keeps the mode of what was there already.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed("close the folder"))?;
        Folder::at(path)
    }

    /// Moves it to `path`, where nothing that was there stays.
    fn moved(&self, path: &Path) -> Result<Folder, ProcessError> {
        Folder::clear(path)?;
        let moved = Folder::at(path)?;
        std::fs::rename(&self.0, path).map_err(|source| ProcessError::File { action: "move a folder to", path: path.to_owned(), source })?;
        Ok(moved)
    }

    fn at(path: &Path) -> Result<Folder, ProcessError> {
        let longest = path.join("control.sock");
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ProcessError::PathTooLong(longest));
        }
        Ok(Folder(path.to_owned()))
    }

    fn clear(path: &Path) -> Result<(), ProcessError> {
        match std::fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ProcessError::File { action: "empty the folder", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    pub fn rfb(&self) -> PathBuf {
        self.0.join("rfb.sock")
    }

    pub fn flash(&self) -> PathBuf {
        self.0.join("flash.sock")
    }

    pub fn gate(&self) -> PathBuf {
        self.0.join("gate.sock")
    }

    pub fn net(&self) -> PathBuf {
        self.0.join("net.sock")
    }

    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    fn diagnostics(&self) -> PathBuf {
        self.0.join("pollux-twin.log")
    }
}

/// What a machine is made of; becomes the JSON that `pollux-twin` reads.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub cmdline: String,
    pub ram_mib: u32,
    pub width: u32,
    pub height: u32,
    pub architecture: Architecture,
    /// Writable disk of a stand-alone phone.
    pub disk: Option<PathBuf>,
    /// Served by us on [`Folder::flash`].
    pub flash: bool,
    /// Card address; served by us on [`Folder::net`].
    pub mac: Option<String>,
    /// Where a guest that waits to be told who it is hears it; served by us on [`Folder::gate`].
    pub gate: bool,
    /// A saved machine to go on with.
    pub restore: Option<Saved>,
    /// The base snapshot among what it goes on with, read into memory.
    pub base_in_memory: Option<Arc<std::fs::File>>,
    pub cage: Cage,
}

/// What a machine of this architecture runs on, as `pollux-twin` names it.
fn cpu_model(architecture: Architecture) -> &'static str {
    match architecture {
        // The host's own where KVM runs guests, else an emulated one.
        Architecture::Amd64 => "x86-64",
        Architecture::Arm64 => "cortex-a53",
    }
}

/// A saved machine's file.
#[derive(Debug, Clone)]
pub struct Saved {
    pub path: PathBuf,
    /// The base snapshot that it was saved as the difference from.
    pub base: Option<PathBuf>,
    /// Read all of its RAM first, to see that it is whole.
    pub verify: bool,
}

/// What to do where this host does not permit all of the cage around a machine's process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cage {
    /// Do not start the machine.
    #[default]
    Whole,
    /// Start it in what is left of the cage, with a warning.
    Partial,
}

impl MachineConfig {
    fn json(&self, folder: &Folder) -> Value {
        let disks: Vec<Value> = self.disk.iter().map(|path| json!({"path": path, "read_only": false})).collect();
        let ports: Vec<Value> = self.gate.then(|| json!({"name": gate::PORT, "socket": folder.gate()})).into_iter().collect();
        json!({
            "image": {"kernel": self.kernel, "initramfs": self.initramfs, "cmdline": self.cmdline},
            "ram_mib": self.ram_mib,
            "display": {"width": self.width, "height": self.height},
            "cpu": {"model": cpu_model(self.architecture)},
            "disks": disks,
            "flash": self.flash.then(|| json!({"tag": "flash", "socket": folder.flash()})),
            "net": self.mac.as_ref().map(|mac| json!({"mac": mac, "socket": folder.net()})),
            "console_log": folder.console_log(),
            "control_socket": folder.control(),
            "rfb_socket": folder.rfb(),
            "ports": ports,
            "restore": self.restore.as_ref().map(|saved| &saved.path),
            "base": self.restore.as_ref().and_then(|saved| saved.base.as_ref()),
            "base_on_stdin": self.base_in_memory.is_some(),
            "verify": self.restore.as_ref().is_some_and(|saved| saved.verify),
            "cage": self.cage,
        })
    }
}

/// A running process. Dropping it kills the process.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    control: Control,
    folder: Folder,
}

impl Machine {
    /// Starts a process in `folder`, which holds the sockets it will connect to. The machine in it does not run yet.
    pub async fn start(binary: &Path, folder: Folder, config: &MachineConfig) -> Result<Machine, ProcessError> {
        if !binary.is_file() {
            return Err(ProcessError::NoBinary(binary.to_owned()));
        }
        let file = folder.path().join("twin.json");
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ProcessError::File { action, path, source }
        };
        std::fs::write(&file, config.json(&folder).to_string()).map_err(failed("write", &file))?;
        let diagnostics = folder.diagnostics();
        let log = std::fs::File::create(&diagnostics).map_err(failed("make", &diagnostics))?;
        let base = config.base_in_memory.as_deref().map(std::fs::File::try_clone).transpose().map_err(failed("hand on", &file))?;
        let child = dying_with_us(binary)
            .arg("--config")
            .arg(&file)
            // The last line of an error is then its cause, which we tell on.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(base.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| ProcessError::Spawn { path: binary.to_owned(), source })?;
        let machine = Machine::reach(child, folder).await?;
        if config.cage == Cage::Partial {
            machine.warn_of_cage().await?;
        }
        Ok(machine)
    }

    /// Says in our log what the process lacks of its cage.
    async fn warn_of_cage(&self) -> Result<(), ProcessError> {
        for part in self.control.status().await?.cage_lacks {
            warn!(folder = %self.folder.path().display(), "THE CAGE OF A MACHINE IS NOT WHOLE: {part}. Its guest is less confined than it should be");
        }
        Ok(())
    }

    async fn reach(mut child: Child, folder: Folder) -> Result<Machine, ProcessError> {
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(READY.len() as u64));
            // What it said, and not how the reading ended, is what counts.
            let _ = tokio::time::timeout(READY_MAX, stdout.read_line(&mut said)).await;
        }
        if said == READY {
            let control = Control::connect(&folder.control()).await?;
            return Ok(Machine { child, control, folder });
        }
        match tokio::time::timeout(STOP_MAX, child.wait()).await {
            Ok(Ok(status)) => Err(ProcessError::Ended(format!("{status}; {}", last_words(&folder)))),
            Ok(Err(error)) => Err(ProcessError::Ended(error.to_string())),
            Err(_) => Err(ProcessError::Ended(format!("it did not listen within {} s", READY_MAX.as_secs()))),
        }
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Moves its folder to `path`, where nothing that was there stays. Its sockets are then there.
    pub(super) fn move_to(&mut self, path: &Path) -> Result<(), ProcessError> {
        self.folder = self.folder.moved(path)?;
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Resolves when the process has ended; says how. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => format!("cannot be waited for: {error}"),
        };
        let words = last_words(&self.folder);
        if words.is_empty() { how } else { format!("{how}; {words}") }
    }

    /// Asks the process to end, and kills it if it does not. Its folder is removed.
    pub async fn end(mut self) {
        let stop = async {
            // Whether it answers or is gone already, what counts is that it ends.
            let _ = self.control.stop().await;
            let _ = self.child.wait().await;
        };
        if tokio::time::timeout(STOP_MAX, stop).await.is_err() {
            // An error means that it has ended meanwhile.
            let _ = self.child.kill().await;
        }
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

/// What the process said last: the reason, if it failed.
fn last_words(folder: &Folder) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(folder.diagnostics())?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(DIAGNOSTICS_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    let text = read().unwrap_or_default();
    text.lines().last().unwrap_or_default().to_owned()
}

/// A command that runs `program` so that the kernel kills it when the thread that starts it ends - which, as async workers
/// live as long as the runtime, means: when we end, be it by `kill -9`. util-linux's `setpriv` sets that up without unsafe
/// code of ours; where it is missing, a killed appliance may leave a twin behind until the next start.
fn dying_with_us(program: &Path) -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    if !Path::new(SETPRIV).is_file() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
