//! A demo phone: the image booted as a stand-alone phone, with a disk of its own, an agent inside, and a network on which it
//! finds its appliance and nothing else.
//!
//! Promises: the phone's state outlives the demo (its disk stays); its user, scripted or by hand, reaches it only through its touch
//! panel and keyboard; nothing is left running or mounted when it ends. Leaves out: any path into the phone behind its back.

pub mod script;

use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::Image;
use serde::{Deserialize, Serialize};
use session::nat::{self, Reach};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::twin::control::{Control, ControlError};
use crate::twin::process::{Cage, Folder, Machine, MachineConfig, ProcessError};
use script::Step;

/// The port of the gateway on which the phone finds its appliance.
const GATEWAY_PORT: u16 = 7443;
/// How long the phone may take to draw its first picture.
const FIRST_PICTURE_MAX: Duration = Duration::from_secs(180);
/// A screen that has not changed for so long stands still.
const STILL: Duration = Duration::from_millis(700);
/// A screen that does not stand still by then never will.
const STILL_MAX: Duration = Duration::from_secs(60);
/// Longest serial; it is part of a socket's path.
const SERIAL_BYTES_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the serial {0:?} is not usable: 1 to {SERIAL_BYTES_MAX} letters, digits, '-' and '_' are")]
    Serial(String),
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("a demo phone {0} runs already")]
    Running(String),
    #[error("the demo phone ended: {0}")]
    Ended(String),
    #[error("the phone drew nothing within {} s", FIRST_PICTURE_MAX.as_secs())]
    NoPicture,
    #[error("the screen did not stand still within {} s", STILL_MAX.as_secs())]
    NeverStill,
}

/// What a demo phone is told.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// The appliance's data folder.
    pub data: PathBuf,
    pub serial: String,
    pub model: String,
    /// Enrolment code; without one the phone waits in quarantine.
    pub code: Option<String>,
    /// Where the appliance listens for phones, as seen from this host.
    pub appliance: std::net::SocketAddr,
    pub ca_sha256: String,
    pub twin_binary: PathBuf,
    pub cage: Cage,
    /// Begin with a new disk.
    pub fresh: bool,
}

/// A running demo phone. Dropping it kills it.
pub struct DemoPhone {
    machine: Machine,
    network: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

/// What a disk was made from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskRecord {
    image: String,
}

impl DemoPhone {
    /// Starts the phone; it boots when this returns.
    pub async fn start(config: &DemoConfig, image: &Image) -> Result<DemoPhone, DemoError> {
        check_serial(&config.serial)?;
        let folder = config.data.join("demo").join(&config.serial);
        if Control::connect(&folder.join("control.sock")).await.is_ok() {
            return Err(DemoError::Running(config.serial.clone()));
        }
        let (copying, with) = (config.clone(), image.clone());
        let disk = tokio::task::spawn_blocking(move || disk(&copying, &with));
        let disk = disk.await.map_err(|_| DemoError::Ended("interrupted".into()))??;
        let folder = Folder::make(&folder)?;
        let net = UnixListener::bind(folder.net())
            .map_err(|source| DemoError::File { action: "cannot listen on", path: folder.net(), source })?;
        let stop = CancellationToken::new();
        let network = tokio::spawn(serve_network(net, config.appliance, stop.clone()));
        let machine = Machine::start(&config.twin_binary, folder, &machine_config(config, image, disk)).await;
        let machine = match machine {
            Ok(machine) => machine,
            Err(error) => {
                stop.cancel();
                return Err(error.into());
            }
        };
        machine.control().boot().await?;
        info!(serial = config.serial, image = image.manifest().hash, "demo phone boots");
        Ok(DemoPhone { machine, network, stop })
    }

    pub fn control(&self) -> &Control {
        self.machine.control()
    }

    /// Waits until the phone shows something and stands still.
    pub async fn ready(&self) -> Result<(), DemoError> {
        let give_up = Instant::now() + FIRST_PICTURE_MAX;
        while !self.control().screen_wait(0, Duration::from_secs(10)).await? {
            if Instant::now() > give_up {
                return Err(DemoError::NoPicture);
            }
        }
        still(self.control()).await
    }

    /// Plays a script. Each step is told to `progress` first.
    pub async fn play(
        &self,
        steps: &[(usize, Step)],
        progress: &(dyn Fn(usize, &Step) + Sync),
    ) -> Result<(), DemoError> {
        play(self.control(), steps, progress).await
    }

    /// Resolves when the phone has ended; says how. Cancel-safe.
    pub async fn ended(&mut self) -> String {
        let mut events = self.machine.control().events();
        tokio::select! {
            how = self.machine.ended() => how,
            event = events.recv() => match event {
                Ok(event) => {
                    // A kernel that panicked: what it said last.
                    if let Some(detail) = event.detail.as_ref().and_then(|detail| detail.as_str()) {
                        warn!(reason = event.reason, detail, "the demo phone's guest ended");
                    }
                    event.reason
                }
                Err(_) => self.machine.ended().await,
            },
        }
    }

    /// Ends the phone as a battery that is pulled, and waits until everything of it is gone.
    pub async fn end(self) {
        self.stop.cancel();
        self.machine.end().await;
        if let Err(error) = self.network.await {
            warn!(%error, "the demo phone's network failed");
        }
    }
}

/// Plays a script on any machine.
pub async fn play(
    control: &Control,
    steps: &[(usize, Step)],
    progress: &(dyn Fn(usize, &Step) + Sync),
) -> Result<(), DemoError> {
    for (line, step) in steps {
        progress(*line, step);
        match step {
            Step::Do(action) => {
                // Checked when the script was read.
                for timed in action.frames().unwrap_or_default() {
                    tokio::time::sleep(timed.after).await;
                    control.input(&timed.frame).await?;
                }
            }
            Step::Wait(time) => tokio::time::sleep(*time).await,
            Step::WaitScreen => still(control).await?,
            Step::Screenshot(path) => {
                let screen = control.screen_png().await?;
                std::fs::write(path, screen.png)
                    .map_err(|source| DemoError::File { action: "cannot write", path: path.clone(), source })?;
            }
        }
    }
    Ok(())
}

/// Waits until the screen stands still.
async fn still(control: &Control) -> Result<(), DemoError> {
    let give_up = Instant::now() + STILL_MAX;
    while Instant::now() < give_up {
        let generation = control.status().await?.generation;
        if !control.screen_wait(generation, STILL).await? {
            return Ok(());
        }
    }
    Err(DemoError::NeverStill)
}

/// The machine's card leads to a network on which only the appliance answers.
async fn serve_network(listener: UnixListener, appliance: std::net::SocketAddr, stop: CancellationToken) {
    loop {
        let machine = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "the demo phone has no network");
                    return;
                }
            }
        };
        let reach = Reach::default().with_gateway_port(GATEWAY_PORT, appliance);
        tokio::select! {
            () = stop.cancelled() => return,
            served = nat::serve(machine, reach) => if let Err(error) = served {
                debug!(%error, "the demo phone's network ended");
            }
        }
    }
}

fn machine_config(config: &DemoConfig, image: &Image, disk: PathBuf) -> MachineConfig {
    let manifest = image.manifest();
    let mut cmdline = format!(
        "{} pollux.root=/dev/vda pollux.agent=1 pollux.appliance={}:{GATEWAY_PORT} pollux.ca={} pollux.serial={} pollux.model={}",
        manifest.kernel_cmdline,
        nat::GATEWAY,
        config.ca_sha256,
        config.serial,
        config.model.replace(char::is_whitespace, "-"),
    );
    if let Some(code) = &config.code {
        cmdline.push_str(&format!(" pollux.code={code}"));
    }
    MachineConfig {
        kernel: image.kernel(),
        initramfs: image.initramfs(),
        cmdline,
        ram_mib: manifest.ram_mib,
        width: manifest.display.width,
        height: manifest.display.height,
        architecture: manifest.architecture,
        disk: Some(disk),
        flash: false,
        mac: Some(mac_of(&config.serial)),
        gate: false,
        restore: None,
        base_in_memory: None,
        cage: config.cage,
    }
}

/// A locally administered address that is the phone's own.
fn mac_of(serial: &str) -> String {
    let hash = blake3::hash(serial.as_bytes());
    let bytes = hash.as_bytes();
    format!("02:50:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3])
}

fn check_serial(serial: &str) -> Result<(), DemoError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let good = (1..=SERIAL_BYTES_MAX).contains(&serial.len()) && serial.bytes().all(allowed);
    if good { Ok(()) } else { Err(DemoError::Serial(serial.to_owned())) }
}

/// The phone's disk: the one it had, or a copy of the image's. Blocks.
fn disk(config: &DemoConfig, image: &Image) -> Result<PathBuf, DemoError> {
    let folder = config.data.join("demo-phones").join(&config.serial);
    let (disk, record) = (folder.join("disk.ext4"), folder.join("disk.json"));
    let made_from = DiskRecord { image: image.manifest().hash.clone() };
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| DemoError::File { action, path, source }
    };
    let known = std::fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<DiskRecord>(&bytes).ok());
    if !config.fresh && known.as_ref() == Some(&made_from) && disk.exists() {
        return Ok(disk);
    }
    std::fs::create_dir_all(&folder).map_err(failed("cannot make", &folder))?;
    match std::fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("cannot remove", &record)(error));
        }
        _ => {}
    }
    image.copy_disk(&disk).map_err(failed("cannot copy the image's disk to", &disk))?;
    // Last: without it the copy counts as unfinished.
    let text = serde_json::to_vec(&made_from).unwrap_or_default();
    std::fs::write(&record, text).map_err(failed("cannot write", &record))?;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_safe_in_a_path() {
        for bad in ["", "..", "a/b", "a b", &"x".repeat(SERIAL_BYTES_MAX + 1)] {
            assert!(check_serial(bad).is_err(), "{bad:?}");
        }
        assert!(check_serial("DEMO-1").is_ok());
        assert_ne!(mac_of("DEMO-1"), mac_of("DEMO-2"));
    }
}
