//! `gate`: where a twin's machine waits before it is anybody's, in the initramfs, before the root is touched.
//!
//! It reads one line from the console port org.pollux.gate, makes the machine what the line says, and ends. A machine that was
//! saved while it waits becomes, each time it is restored, an individual: what the kernel's random numbers were is mixed with
//! a seed of its own before any other program runs, its clock is right, and its names are its own.
//!
//! ```text
//! go [seed=HEX] [time=SECONDS[.NANOSECONDS]] [host=NAME] [machine=HEX] [serial=TEXT] [mac=ADDRESS]
//! ```
//! A word that it does not know is for a later image. Names are left as files in [`IDENTITY`], for /init to put where the system
//! looks for them.

mod entropy;
mod line;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use line::{LINE_BYTES_MAX, Line};

const PORT: &str = "/dev/virtio-ports/org.pollux.gate";
const IDENTITY: &str = "/run/identity";
/// How often to look whether somebody has come to the other end: the port ends at once while nobody is there.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let line = wait(File::open(PORT).with_context(|| format!("cannot open {PORT}"))?)?;
    let line = Line::parse(&line)?;
    if !line.seed.is_empty() {
        entropy::reseed(&line.seed).context("cannot seed the kernel's random numbers")?;
    }
    if let Some(time) = line.time {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))
            .context("cannot set the clock")?;
    }
    if let Some(host) = line.host() {
        fs::write("/proc/sys/kernel/hostname", host).context("cannot set the host name")?;
    }
    leave(&line, Path::new(IDENTITY)).with_context(|| format!("cannot write to {IDENTITY}"))
}

/// Reads one line. The port is opened once: closing it would drop what was not yet read.
fn wait(mut port: File) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if port
            .read(&mut byte)
            .context("cannot read the gate's port")?
            == 0
        {
            std::thread::sleep(LOOK);
            continue;
        }
        if byte == *b"\n" {
            return String::from_utf8(line).context("the gate's line is no text");
        }
        line.extend(byte);
        ensure!(
            line.len() < LINE_BYTES_MAX,
            "the gate's line has more than {LINE_BYTES_MAX} bytes"
        );
    }
}

/// Writes each name into a file of its own; no file where there is no name.
fn leave(line: &Line, folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    line.names
        .iter()
        .try_for_each(|(name, text)| fs::write(folder.join(name), format!("{text}\n")))
}
