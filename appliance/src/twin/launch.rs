//! A twin's machine, from its process to its running guest: started, joined to its flash and its gate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::Image;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, oneshot};
use tracing::warn;

use super::control::{MachineEvent, MachineStatus};
use super::gate::Gate;
use super::process::{Cage, Folder, Machine, MachineConfig, ProcessError, Saved};
use super::{ControlError, Inner, Running, TwinError};
use crate::flashes::{FlashesError, TwinFlash};

/// A machine that has not connected to its flash and its gate by then will not.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// A machine that is there, restored or about to boot, and does not run yet. Nothing of it is any phone's.
pub(super) struct Ready {
    machine: Machine,
    events: broadcast::Receiver<MachineEvent>,
    /// Where it asks for its files.
    flash: UnixStream,
    gate: Gate,
    restored: bool,
}

/// A machine that runs.
pub(super) struct Launched {
    pub(super) machine: Machine,
    /// What it tells by itself, from its beginning.
    pub(super) events: broadcast::Receiver<MachineEvent>,
    /// Serves the flash; ends when the machine does.
    pub(super) server: oneshot::Receiver<Result<(), FlashesError>>,
    pub(super) gate: Gate,
}

/// A twin's machine on `image`, which goes on with `restore`, or boots.
pub(super) fn config(image: &Image, restore: Option<Saved>, cage: Cage) -> MachineConfig {
    let manifest = image.manifest();
    MachineConfig {
        kernel: image.kernel(),
        initramfs: image.initramfs(),
        cmdline: format!("{} pollux.root=virtiofs:flash pollux.gate=1", manifest.kernel_cmdline),
        ram_mib: manifest.ram_mib,
        width: manifest.display.width,
        height: manifest.display.height,
        architecture: manifest.architecture,
        disk: None,
        flash: true,
        mac: None,
        gate: true,
        restore,
        base_in_memory: None,
        cage,
    }
}

impl Ready {
    async fn make(binary: &Path, folder: Folder, config: &MachineConfig) -> Result<Ready, TwinError> {
        let (flash_door, gate_door) = (listen(folder.flash())?, listen(folder.gate())?);
        let machine = Machine::start(binary, folder, config).await?;
        let events = machine.control().events();
        let connecting = async { tokio::try_join!(flash_door.accept(), gate_door.accept()) };
        let failed = |source| ProcessError::File { action: "accept connections in", path: machine.folder().path().into(), source };
        let ((flash, _), (gate, _)) = tokio::time::timeout(CONNECT_MAX, connecting)
            .await
            .map_err(|_| ProcessError::Ended("it did not connect to its flash and its gate".into()))?
            .map_err(failed)?;
        let gate = Gate::new(gate).map_err(failed)?;
        Ok(Ready { machine, events, flash, gate, restored: config.restore.is_some() })
    }

    /// Moves its folder to `path`, where nothing that was there stays.
    pub(super) fn moved(mut self, path: &Path) -> Result<Ready, ProcessError> {
        self.machine.move_to(path)?;
        Ok(self)
    }

    /// Lets it run on `flash`.
    pub(super) async fn run(self, flash: &TwinFlash) -> Result<Launched, TwinError> {
        let Ready { machine, events, flash: channel, gate, restored } = self;
        let server = flash.serve(channel)?;
        if restored { machine.control().resume().await? } else { machine.control().boot().await? }
        Ok(Launched { machine, events, server, gate })
    }

    /// Resolves when its process has ended; says how. Cancel-safe.
    pub(super) async fn ended(&mut self) -> String {
        self.machine.ended().await
    }

    pub(super) async fn end(self) {
        self.machine.end().await;
    }
}

impl Inner {
    /// Has a process ready in a `folder` of its own for a machine as `config` says. `resumed`: it goes on with what was parked or copied, not with a
    /// base snapshot itself. Fails with [`ProcessError::Ended`] if the process refuses, for one what it was to go on with.
    pub(super) async fn ready(&self, folder: Folder, config: &MachineConfig, resumed: bool) -> Result<Ready, TwinError> {
        let base = config.restore.as_ref().and_then(|saved| if resumed { saved.base.as_ref() } else { Some(&saved.path) });
        let base_in_memory = match base {
            Some(base) => self.bases.in_memory(base).await,
            None => None,
        };
        Ready::make(&self.binary(), folder, &MachineConfig { base_in_memory, ..config.clone() }).await
    }

    /// Lets a machine on `image` run on `flash`; `folder`, for what belongs to its process, is its own. If it begins at the gate that is the
    /// spare, if there is one. One that boots is saved at its gate if its image has no base yet. `resumed`: it has passed the gate.
    pub(super) async fn launch(
        &self,
        mut folder: Folder,
        image: &Image,
        config: &MachineConfig,
        flash: &TwinFlash,
        resumed: bool,
    ) -> Result<Launched, TwinError> {
        let base = config.restore.as_ref().filter(|_| !resumed).map(|base| &base.path);
        if let Some(base) = base
            && let Some(spare) = self.spares.take(base).await
        {
            let launched = async { spare.moved(folder.path())?.run(flash).await };
            match launched.await {
                Ok(launched) => return Ok(launched),
                Err(error) => warn!(%error, "the machine that waited for a twin does not run; another is started"),
            }
            folder = Folder::make(folder.path())?;
        }
        let launched = async { self.ready(folder, config, resumed).await?.run(flash).await };
        let launched = match (launched.await, base) {
            (Err(TwinError::Process(error @ ProcessError::Ended(_))), Some(base)) => {
                self.bases.refused(base);
                Err(TwinError::Base(error))
            }
            (Ok(launched), Some(base)) => {
                self.bases.found_whole(base);
                Ok(launched)
            }
            (launched, _) => launched,
        }?;
        if config.restore.is_none() {
            tokio::select! {
                made = self.bases.make(image, launched.machine.control()) => made?,
                () = self.stop.cancelled() => return Err(TwinError::Stopping),
            }
        }
        Ok(launched)
    }
}

impl Launched {
    /// What others may use of it, and how it is now.
    pub(super) async fn running(&self, config: &MachineConfig, flash: &TwinFlash) -> Result<(Running, MachineStatus), ControlError> {
        let control = self.machine.control().clone();
        let status = control.status().await?;
        let (width, height) = (config.width as u16, config.height as u16);
        let running = Running { control, cpu: status.cpu.clone(), rfb: self.machine.folder().rfb(), flash: flash.clone(), width, height };
        Ok((running, status))
    }

    /// Tells its guest something at its gate.
    pub(super) fn tell(&self, what: impl FnOnce(&Gate) -> std::io::Result<()>) -> Result<(), ProcessError> {
        what(&self.gate).map_err(|source| ProcessError::File { action: "write to", path: self.machine.folder().gate(), source })
    }
}

fn listen(path: PathBuf) -> Result<UnixListener, ProcessError> {
    UnixListener::bind(&path).map_err(|source| ProcessError::File { action: "listen on", path, source })
}
