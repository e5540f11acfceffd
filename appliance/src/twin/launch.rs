//! A twin's machine, from its process to its running guest: started, joined to its flash and its gate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder::Image;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, oneshot};

use super::TwinError;
use super::control::MachineEvent;
use super::gate::Gate;
use super::process::{Cage, Folder, Machine, MachineConfig, ProcessError, Saved};
use crate::flashes::{FlashesError, TwinFlash};

/// A machine that has not connected to its flash and its gate by then will not.
const CONNECT_MAX: Duration = Duration::from_secs(20);

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
        cage,
    }
}

/// Starts it in a `folder` of its own and lets it run, on `flash`. Fails with [`ProcessError::Ended`] if the process refuses, for one what it was
/// to go on with.
pub(super) async fn launch(binary: &Path, folder: Folder, config: &MachineConfig, flash: &TwinFlash) -> Result<Launched, TwinError> {
    let (flash_door, gate_door) = (listen(folder.flash())?, listen(folder.gate())?);
    let machine = Machine::start(binary, folder, config).await?;
    let (control, events) = (machine.control(), machine.control().events());
    // It connects to us while it boots or restores.
    let running = async {
        if config.restore.is_some() { control.resume().await } else { control.boot().await }
    };
    let connecting = async { tokio::try_join!(flash_door.accept(), gate_door.accept()) };
    let (runs, connected) = tokio::join!(running, tokio::time::timeout(CONNECT_MAX, connecting));
    runs?;
    let failed = |source| ProcessError::File { action: "accept connections in", path: machine.folder().path().into(), source };
    let ((flash_stream, _), (gate_stream, _)) = connected
        .map_err(|_| ProcessError::Ended("it did not connect to its flash and its gate".into()))?
        .map_err(failed)?;
    let gate = Gate::new(gate_stream).map_err(failed)?;
    let server = flash.serve(flash_stream)?;
    Ok(Launched { machine, events, server, gate })
}

fn listen(path: PathBuf) -> Result<UnixListener, ProcessError> {
    UnixListener::bind(&path).map_err(|source| ProcessError::File { action: "listen on", path, source })
}
