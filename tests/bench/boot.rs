//! From the start of the process to the handset's home on screen: `pollux-twin` and QEMU, with the same kernel, initramfs, disk
//! image, CPU model, memory and display, no network; a cold boot each, from a fresh copy of the disk.
//!
//! The handset says on the serial line that it has shown its first picture, right after it has handed it to the display. That line is
//! waited for on both machines, so neither is slowed by somebody who looks at its screen.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use image_builder::{Image, cache_dir};
use tests::machine::{self, Machine};
use tests::qemu::{Phone, Qemu, Root};

use crate::samples::Samples;
use crate::table::{Better, Row, Table};

const SHOWN: &str = "handset: showing";
/// A phone that shows nothing by then never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// The seconds of a boot in which nothing is measured yet: the files are read into the host's memory.
const WARM_UP_ROUNDS: usize = 1;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Boots of each machine.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(5..))]
    rounds: u16,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let image = Image::latest(&cache_dir(), "handset-arm64")?;
    let mut table = Table::new("boot");
    let (mut ours, mut peer) = (Samples::default(), Samples::default());
    let (mut peer_name, mut peer_fails) = (String::new(), None);
    for round in 0..WARM_UP_ROUNDS + usize::from(options.rounds) {
        let measured = round >= WARM_UP_ROUNDS;
        let seconds = boot_ours(&image)?;
        if measured {
            ours.add(seconds);
        }
        if peer_fails.is_some() {
            continue;
        }
        match boot_qemu(&image) {
            Ok((seconds, name)) => {
                peer_name = name;
                if measured {
                    peer.add(seconds);
                }
            }
            Err(error) => peer_fails = Some(error),
        }
    }
    let row = Row::new("home", "s", Better::Less, ours.median()?);
    match peer_fails {
        None => table.row(row.beside(peer_name, peer.median()?)),
        Some(error) => {
            table.row(row);
            table.missing("QEMU", format!("{error:#}"));
        }
    }
    table.note(format!("median of {} cold boots each, alternating", ours.len()));
    Ok(table)
}

/// Seconds to the handset's home.
fn boot_ours(image: &Image) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image.copy_disk(&disk)?;
    let start = Instant::now();
    let mut machine = Machine::boot(image, machine::Root::Disk(&disk), "")?;
    machine.wait_console(SHOWN, PATIENCE)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(machine.control.generation()? > 0, "the handset says that it shows something, but the screen is empty");
    Ok(seconds)
}

/// Seconds to the handset's home, and QEMU's name.
fn boot_qemu(image: &Image) -> Result<(f64, String)> {
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image.copy_disk(&disk)?;
    let phone = Phone::new(image, Root::Disk(disk), "");
    let start = Instant::now();
    let mut qemu = Qemu::start(&phone)?;
    qemu.wait_console(SHOWN, PATIENCE)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((seconds, qemu.name()?))
}
