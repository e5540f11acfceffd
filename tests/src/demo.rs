//! A demo phone: `pollux demo`, driven as a user would, by fingers and keys on its own machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::appliance::{Appliance, Process, binary, wait_for};
use crate::control::Control;
use crate::targets::Targets;

/// How long a finger rests on the glass, or on a key.
const TAP: Duration = Duration::from_millis(60);

/// A screen that has not changed for so long stands still.
const STILL_MS: u64 = 700;

/// Between two keys of a very fast typist.
const KEY: Duration = Duration::from_millis(20);

/// A running demo phone.
pub struct DemoPhone {
    pub serial: String,
    process: Process,
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
        Ok(DemoPhone { serial: serial.to_owned(), process, control })
    }

    /// Where its machine is reached by more than one.
    pub fn control_socket(&self, appliance: &Appliance) -> PathBuf {
        control_socket(appliance, &self.serial)
    }

    /// The phone's machine; what it cannot do is told with what the phone printed.
    fn machine<T>(&mut self, act: impl FnOnce(&mut Control) -> Result<T>) -> Result<T> {
        act(&mut self.control).with_context(|| self.process.printed())
    }

    /// The phone's own screen as PNG.
    pub fn screen(&mut self) -> Result<Vec<u8>> {
        self.machine(Control::screen)
    }

    /// A number that rises with each change of the screen.
    pub fn generation(&mut self) -> Result<u64> {
        self.machine(Control::generation)
    }

    fn frame(&mut self, device: &str, events: Value) -> Result<()> {
        self.machine(|machine| machine.frame(device, &events))
    }

    /// Puts a finger down and lifts it, and waits until the phone has drawn something.
    pub fn tap(&mut self, x: u32, y: u32) -> Result<()> {
        let before = self.generation()?;
        self.frame("touch", json!([[3, 0x2f, 0], [3, 0x39, 1], [3, 0x35, x], [3, 0x36, y], [1, 0x14a, 1], [3, 0, x], [3, 1, y]]))?;
        // A finger has its own pace; no panel reports a touch that ends as it begins.
        std::thread::park_timeout(TAP);
        self.frame("touch", json!([[3, 0x2f, 0], [3, 0x39, -1], [1, 0x14a, 0]]))?;
        self.drawn_since(before)
    }

    /// Taps targets one after the other, by name.
    pub fn tap_all(&mut self, at: &Targets, names: &str) -> Result<()> {
        for name in names.split_ascii_whitespace() {
            let (x, y) = at.at(name)?;
            self.tap(x, y).with_context(|| format!("tapping {name}"))?;
        }
        Ok(())
    }

    /// Waits until the screen has changed since `generation`, and then stands still.
    pub fn drawn_since(&mut self, generation: u64) -> Result<()> {
        self.machine(|machine| {
            machine.changed(generation)?;
            machine.still(STILL_MS).map(drop)
        })
    }

    /// Presses one key of the hardware keyboard as a finger does, and waits for nothing.
    pub fn press_key(&mut self, code: u16) -> Result<()> {
        self.frame("keyboard", json!([[1, code, 1]]))?;
        std::thread::park_timeout(TAP);
        self.frame("keyboard", json!([[1, code, 0]]))
    }

    /// Types on the hardware keyboard: lower-case letters, digits, space, and what else `key_code` knows.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let before = self.generation()?;
        for letter in text.chars() {
            let code = key_code(letter).with_context(|| format!("no key for {letter:?}"))?;
            self.frame("keyboard", json!([[1, code, 1]]))?;
            self.frame("keyboard", json!([[1, code, 0]]))?;
            // The guest's kernel keeps 64 events for a program that is slow to read; no typist fills that.
            std::thread::park_timeout(KEY);
        }
        self.drawn_since(before)
    }
}

fn control_socket(appliance: &Appliance, serial: &str) -> PathBuf {
    appliance.data().join("demo").join(serial).join("control.sock")
}

/// Linux key codes of a US keyboard [input-event-codes.h].
fn key_code(letter: char) -> Option<u16> {
    const ROWS: [(&str, u16); 4] = [("1234567890-=", 2), ("qwertyuiop", 16), ("asdfghjkl;'", 30), ("zxcvbnm,./", 44)];
    match letter {
        ' ' => return Some(57),
        '\n' => return Some(28),
        _ => {}
    }
    ROWS.iter().find_map(|(row, first)| row.find(letter).map(|at| first + at as u16))
}
