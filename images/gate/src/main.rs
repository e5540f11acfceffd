//! `gate`: where a twin's machine waits before it is anybody's, in the initramfs, before the root is touched.
//!
//! It reads one line from the console port org.pollux.gate, makes the machine what the line says, and lets it pass. A machine that
//! was saved while it waits becomes, each time it is restored, an individual: what the kernel's random numbers were is mixed with
//! a seed of its own before any other program runs, its clock is right, and its names are its own.
//!
//! ```text
//! go [seed=HEX] [time=SECONDS[.NANOSECONDS]] [host=NAME] [machine=HEX] [serial=TEXT] [mac=ADDRESS]
//! ```
//! A word that it does not know is for a later image. Names are left as files in [`IDENTITY`], for /init to put where the system
//! looks for them. A process of it stays on the port and heeds every later line, but for the network card's address: a machine that goes on
//! after its clock has stood still is told what time it is, and one that was copied while it ran, who it is now.

mod entropy;
mod line;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::sethostname;

use line::{LINE_BYTES_MAX, Line};

const PORT: &str = "/dev/virtio-ports/org.pollux.gate";
const IDENTITY: &str = "/run/identity";
/// How often to look whether somebody has come to the other end: the port ends at once while nobody is there.
const LOOK: Duration = Duration::from_millis(50);
/// The same where nobody is in a hurry.
const LOOK_LATER: Duration = Duration::from_secs(1);
/// As an argument: the process that stays. The root that it began in is about to vanish, so it has the port as its standard input, the
/// device of random numbers as its standard output, and [`IDENTITY`] as its working directory.
const STAY: &str = "stay";
const RANDOM: &str = "/dev/random";

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(STAY) {
        let (port, random) = (std::io::stdin().as_fd().try_clone_to_owned()?, std::io::stdout().as_fd().try_clone_to_owned()?);
        return stay(&port.into(), &random.into());
    }
    let port = File::open(PORT).with_context(|| format!("cannot open {PORT}"))?;
    let random = File::options().read(true).write(true).open(RANDOM).with_context(|| format!("cannot open {RANDOM}"))?;
    let line = Line::parse(&wait(&port, LOOK)?)?;
    fs::create_dir_all(IDENTITY).with_context(|| format!("cannot make {IDENTITY}"))?;
    heed(&line, &random, Path::new(IDENTITY))?;
    // The port stays open: closing it would drop what was not yet read.
    Command::new("/proc/self/exe").arg(STAY).stdin(port).stdout(random).current_dir(IDENTITY).spawn().context("cannot stay")?;
    Ok(())
}

/// Heeds lines until the port fails; one that is wrong is told on the console, and is no more than that.
fn stay(port: &File, random: &File) -> Result<()> {
    loop {
        let line = wait(port, LOOK_LATER)?;
        if let Err(error) = Line::parse(&line).and_then(|line| heed(&line, random, Path::new("."))) {
            eprintln!("gate: {error:#}");
        }
    }
}

/// Makes the machine what the line says; names go into `folder`.
fn heed(line: &Line, random: &File, folder: &Path) -> Result<()> {
    if !line.seed.is_empty() {
        entropy::reseed(random, &line.seed).context("cannot seed the kernel's random numbers")?;
    }
    if let Some(time) = line.time {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))
            .context("cannot set the clock")?;
    }
    if let Some(host) = line.host() {
        sethostname(host).context("cannot set the host name")?;
    }
    leave(line, folder).context("cannot write the machine's names")
}

/// Reads one line.
fn wait(mut port: &File, look: Duration) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if port
            .read(&mut byte)
            .context("cannot read the gate's port")?
            == 0
        {
            std::thread::sleep(look);
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

/// Writes each name into a file of its own; no file where there is no name. A file that is there stays the same one, over which the system's
/// is mounted.
fn leave(line: &Line, folder: &Path) -> std::io::Result<()> {
    line.names
        .iter()
        .try_for_each(|(name, text)| fs::write(folder.join(name), format!("{text}\n")))
}
