//! One machine of ours, alone: `pollux-twin` with a disk, no appliance, no network. What is measured beside QEMU.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use image_builder::Image;
use serde_json::json;

use crate::appliance::binary;
use crate::console::Console;
use crate::control::Control;

/// A running machine; it ends with its handle.
pub struct Machine {
    /// Before the folder, so that the process is gone when its sockets go.
    process: Process,
    pub control: Control,
    console: Console,
    _folder: tempfile::TempDir,
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
    /// Starts the process and boots `image` from `disk`, which it writes to; `cmdline` is added to the image's own.
    pub fn boot(image: &Image, disk: &Path, cmdline: &str) -> Result<Machine> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let manifest = image.manifest();
        let config = json!({
            "image": {
                "kernel": image.kernel(), "initramfs": image.initramfs(),
                "cmdline": format!("{} pollux.root=/dev/vda {cmdline}", manifest.kernel_cmdline),
            },
            "ram_mib": manifest.ram_mib,
            "display": {"width": manifest.display.width, "height": manifest.display.height},
            "cpu": {"model": "cortex-a53"},
            "disks": [{"path": disk}],
            "console_log": at("console"), "control_socket": at("control.sock"), "rfb_socket": at("rfb.sock"),
        });
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
        let console = reader.join().map_err(|_| anyhow::anyhow!("the console's reader panicked"))??;
        let control = Control::connect(&at("control.sock"))?;
        let mut machine = Machine { process, control, console: Console::read(console), _folder: folder };
        machine.control.ask(json!({"op": "boot"}))?;
        Ok(machine)
    }

    /// Waits until the guest has printed `text` on its serial line; returns all that it has printed.
    pub fn wait_console(&self, text: &str, timeout: Duration) -> Result<String> {
        self.console.wait(text, timeout)
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }
}
