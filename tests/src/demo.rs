//! A demo phone: `pollux demo`, driven as a user would, by fingers and keys on its own machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::appliance::{Appliance, Process, binary, wait_for};
use crate::control::Control;
use crate::hand::{Handheld, STILL};

/// A running demo phone.
pub struct DemoPhone {
    pub serial: String,
    /// Its own `pollux demo`, unless the appliance runs it.
    process: Option<Process>,
    socket: PathBuf,
    control: Control,
}

impl DemoPhone {
    /// Starts a phone that reaches `appliance`, and waits until its machine runs.
    pub fn start(appliance: &Appliance, serial: &str, code: Option<&str>) -> Result<DemoPhone> {
        let mut command = Command::new(binary("pollux")?);
        command.arg("demo").arg("--data").arg(appliance.data()).args(["--serial", serial]);
        if let Some(code) = code {
            command.args(["--code", code]);
        }
        let mut process = Process::start(command, appliance.data().join(format!("{serial}.trace")))?;
        let socket = control_socket(appliance, serial);
        let control = wait_for("the demo phone's machine", || {
            process.ensure_alive()?;
            Ok(Control::connect(&socket).ok())
        })?;
        Ok(DemoPhone { serial: serial.to_owned(), process: Some(process), socket, control })
    }

    /// The demo phone that runs beside `appliance`, once its machine does.
    pub fn beside(appliance: &Appliance) -> Result<DemoPhone> {
        let serial = "DEMO-1".to_owned();
        let socket = control_socket(appliance, &serial);
        let control = wait_for("the demo phone's machine", || Ok(Control::connect(&socket).ok()))?;
        Ok(DemoPhone { serial, process: None, socket, control })
    }

    /// Where its machine is reached by more than one.
    pub fn control_socket(&self) -> &Path {
        &self.socket
    }

    /// Takes up the phone again after it has started anew.
    pub fn reconnect(&mut self) -> Result<()> {
        self.control = wait_for("the phone's new machine", || Ok(Control::connect(&self.socket).ok()))?;
        Ok(())
    }

    /// The phone's machine; what it cannot do is told with what the phone printed.
    pub fn machine<T>(&mut self, act: impl FnOnce(&mut Control) -> Result<T>) -> Result<T> {
        let process = &self.process;
        act(&mut self.control).with_context(|| process.as_ref().map_or_else(String::new, Process::printed))
    }

    fn frame(&mut self, device: &str, events: Value) -> Result<()> {
        self.machine(|machine| machine.frame(device, &events))
    }
}

impl Handheld for DemoPhone {
    fn serial(&self) -> &str {
        &self.serial
    }

    fn screen(&mut self) -> Result<Vec<u8>> {
        self.machine(Control::screen)
    }

    fn generation(&mut self) -> Result<u64> {
        self.machine(Control::generation)
    }

    fn drawn_since(&mut self, generation: u64) -> Result<()> {
        self.machine(|machine| {
            machine.changed(generation)?;
            machine.still(STILL.as_millis() as u64).map(drop)
        })
    }

    fn finger(&mut self, x: u32, y: u32, down: bool) -> Result<()> {
        self.frame("touch", match down {
            true => json!([[3, 0x2f, 0], [3, 0x39, 1], [3, 0x35, x], [3, 0x36, y], [1, 0x14a, 1], [3, 0, x], [3, 1, y]]),
            false => json!([[3, 0x2f, 0], [3, 0x39, -1], [1, 0x14a, 0]]),
        })
    }

    fn key(&mut self, code: u16, down: bool) -> Result<()> {
        self.frame("keyboard", json!([[1, code, u8::from(down)]]))
    }
}

fn control_socket(appliance: &Appliance, serial: &str) -> PathBuf {
    appliance.data().join("demo").join(serial).join("control.sock")
}
