//! What a guest's work costs the host: `pollux-twin` and QEMU, with the same kernel, initramfs, files, CPU model, memory and display,
//! one vCPU, no network.
//!
//! Figures are CPU seconds of the host, of all threads that work for the machine: on a host with other work they say what the wall
//! clock cannot. For QEMU those are its process and virtiofsd's; for ours `pollux-twin` and the thread of this process that serves the
//! flash, with the appliance's own file server. The notes give the wall clock's ratios for comparison.
//!
//! In each round both machines boot to the handset's home on the same tree of files (the image's, and this bench's), then do each
//! workload of `rows.sh` in turn, ours and QEMU's alternating, while the other is idle. Who computes something else than the other has
//! not done the work, and ends the bench. QEMU's virtiofsd needs root, and so does this bench.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flash::{BaseId, Flashes, TwinView};
use image_builder::{Image, cache_dir};
use store::Store;
use tests::machine::{Machine, Root, Worker};
use tests::qemu::{self, Phone, Qemu};

use crate::samples::Samples;
use crate::table::{Better, Row, Table};

const ROWS: [&str; 9] = ["sha256sum", "md5sum", "awk", "sort", "fork_exec", "syscalls", "sh_loop", "tree_walk", "draw"];
const BOOT: &str = "boot";
/// The handset says so when it has handed its first picture to the display.
const SHOWN: &str = "handset: showing";
const CMDLINE: &str = "pollux.shell=1";
/// What the shell on the serial line says before its first prompt. Of our machine whole lines are seen, so the prompt itself is not.
const SHELL: &str = "Enter 'help'";
/// A guest that has not ended a workload by then never will.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where the guest finds the workloads and the tree that is walked.
const FOLDER: &str = "srv/bench";
const TREE_FOLDERS: usize = 24;
const TREE_FILES: usize = 16;
/// Of chunks that the flash's server keeps in memory, as an appliance does.
const CACHE_BYTES: usize = 64 << 20;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds of all workloads.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(5..))]
    rounds: u16,
    /// Only these workloads, of those that the table names; all rounds boot.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(ROWS))]
    rows: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let image = Image::latest(&cache_dir(), "handset-arm64")?;
    let files = Files::prepare(&image)?;
    let rows: Vec<&str> = ROWS.into_iter().filter(|row| options.rows.is_empty() || options.rows.iter().any(|r| r == row)).collect();
    let names: Vec<&str> = std::iter::once(BOOT).chain(rows.iter().copied()).collect();
    let mut figures: Vec<[Figures; 2]> = names.iter().map(|_| Default::default()).collect();
    let mut table = Table::new("machine");
    // The first boots, of which nothing is counted, read the files into the host's memory.
    drop(Guest::ours(&image, &files)?);
    let peer = Guest::peer(&image, &files).and_then(|mut guest| guest.name());
    for round in 0..options.rounds {
        let mut guests = vec![Guest::ours(&image, &files)?];
        if peer.is_ok() {
            guests.push(Guest::peer(&image, &files)?);
        }
        for (guest, figures) in guests.iter_mut().zip(&mut figures[0]) {
            figures.add(guest.booted);
            guest.prepare()?;
        }
        for (row, figures) in rows.iter().zip(&mut figures[1..]) {
            let mut results = Vec::new();
            for (guest, figures) in guests.iter_mut().zip(figures) {
                let (cost, result) = guest.row(row, round)?;
                figures.add(cost);
                results.push(result);
            }
            ensure!(results.windows(2).all(|pair| pair[0] == pair[1]), "{row}: the machines do not compute the same: {results:?}");
        }
    }
    let mut walls = Vec::new();
    for (name, [ours, theirs]) in names.iter().zip(&figures) {
        let row = Row::new(*name, "s", Better::Less, ours.cpu.median()?);
        table.row(match &peer {
            Ok(peer) => {
                walls.push(format!("{name} {:.2}", theirs.wall.median()? / ours.wall.median()?));
                row.beside(peer, theirs.cpu.median()?)
            }
            Err(_) => row,
        });
    }
    if let Err(error) = peer {
        table.missing("QEMU", format!("{error:#}"));
    }
    if let Some(mean) = table.mean_ratio() {
        table.note(format!("geometric mean of the ratios: {mean:.3}"));
    }
    table.note(format!("CPU seconds of the host, median of {} rounds, alternating", options.rounds));
    if !walls.is_empty() {
        table.note(format!("ratios by the wall clock: {}", walls.join(", ")));
    }
    Ok(table)
}

/// What one workload cost.
#[derive(Clone, Copy)]
struct Cost {
    cpu_s: f64,
    wall_s: f64,
}

#[derive(Default)]
struct Figures {
    cpu: Samples,
    wall: Samples,
}

impl Figures {
    fn add(&mut self, cost: Cost) {
        self.cpu.add(cost.cpu_s);
        self.wall.add(cost.wall_s);
    }
}

/// The image's tree and this bench's files, for either machine.
struct Files {
    flashes: Flashes,
    base: BaseId,
    /// The same, for a peer's folder.
    archive: tempfile::NamedTempFile,
}

impl Files {
    fn prepare(image: &Image) -> Result<Files> {
        let folder = unpacked(&image.base_tar())?;
        let ours = folder.path().join(FOLDER);
        std::fs::create_dir_all(&ours)?;
        std::fs::write(ours.join("rows.sh"), include_str!("rows.sh"))?;
        for number in 0..TREE_FOLDERS {
            let leaf = ours.join(format!("tree/{}/{number}", number % 4));
            std::fs::create_dir_all(&leaf)?;
            for file in 0..TREE_FILES {
                // From 80 bytes to some 20 KiB.
                let lines = 1 << (file % 9);
                let text: String = (0..lines).map(|line| format!("{number:20}{file:20}{line:39}\n")).collect();
                std::fs::write(leaf.join(format!("file-{file}")), text)?;
            }
        }
        let archive = tempfile::NamedTempFile::new()?;
        // All of one time, so that no walk finds files of its own day.
        tar(&["-c", "--numeric-owner", "--sort=name", "--mtime=@1700000000", "-f"], archive.path(), folder.path(), &["."])?;
        let flashes = Flashes::new(Store::memory(), CACHE_BYTES);
        let base = flashes.import_base(archive.path())?;
        Ok(Files { flashes, base, archive })
    }

    /// As a phone that has nothing yet but its image.
    fn view(&self) -> Result<TwinView> {
        Ok(TwinView::new(self.flashes.open(&"bench".to_owned().try_into()?, Some(self.base))?))
    }
}

/// A folder with the files of an archive, and their owners.
fn unpacked(archive: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    tar(&["-xp", "--numeric-owner", "-f"], archive, folder.path(), &[])?;
    Ok(folder)
}

fn tar(options: &[&str], archive: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(options).arg(archive).arg("-C").arg(folder).args(names);
    let output = command.output().context("cannot run tar")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A machine with a shell on its serial line.
struct Guest {
    machinery: Machinery,
    workers: Vec<Worker>,
    /// From the start of its process to the handset's home.
    booted: Cost,
}

enum Machinery {
    Ours(Machine),
    /// With the folder that is its root, which goes with it.
    Peer(Qemu, #[expect(dead_code, reason = "kept until it is dropped")] tempfile::TempDir),
}

impl Guest {
    fn ours(image: &Image, files: &Files) -> Result<Guest> {
        let (view, start) = (files.view()?, Instant::now());
        let machine = Machine::boot(image, Root::Flash(view), CMDLINE)?;
        let workers = machine.workers()?;
        Guest::booted(Machinery::Ours(machine), workers, start)
    }

    fn peer(image: &Image, files: &Files) -> Result<Guest> {
        let root = unpacked(files.archive.path())?;
        let phone = Phone::new(image, qemu::Root::Folder(root.path().into()), CMDLINE);
        let start = Instant::now();
        let qemu = Qemu::start(&phone)?;
        let workers = qemu.workers();
        Guest::booted(Machinery::Peer(qemu, root), workers, start)
    }

    /// Waits for the home of a machine whose first process started at `start`.
    fn booted(machinery: Machinery, workers: Vec<Worker>, start: Instant) -> Result<Guest> {
        let mut guest = Guest { machinery, workers, booted: Cost { cpu_s: 0.0, wall_s: 0.0 } };
        guest.wait(SHOWN)?;
        guest.booted = Cost { cpu_s: guest.cpu_seconds()?, wall_s: start.elapsed().as_secs_f64() };
        Ok(guest)
    }

    /// Makes the files that workloads need.
    fn prepare(&mut self) -> Result<()> {
        self.wait(SHELL)?;
        self.type_serial(&format!(". /{FOLDER}/rows.sh; run prepare 0\n"))?;
        self.answer("prepare", 0).map(drop)
    }

    /// Runs one workload; gives what it cost and what it computed.
    fn row(&mut self, name: &str, round: u16) -> Result<(Cost, String)> {
        let (cpu, start) = (self.cpu_seconds()?, Instant::now());
        let name = format!("row_{name}");
        self.type_serial(&format!("run {name} {round}\n"))?;
        let whose = if let Machinery::Ours(_) = self.machinery { "our guest" } else { "the peer's guest" };
        let result = self.answer(&name, round).context(whose)?;
        Ok((Cost { cpu_s: self.cpu_seconds()? - cpu, wall_s: start.elapsed().as_secs_f64() }, result))
    }

    /// What `rows.sh` says at the end of a workload.
    fn answer(&self, name: &str, round: u16) -> Result<String> {
        let over = format!("bench: {name} {round} over");
        let printed = self.wait(&over)?;
        let begin = format!("bench: {name} {round} status ");
        let answer = printed.split(&begin).nth(1).and_then(|rest| rest.split(&over).next());
        let answer = answer.with_context(|| format!("{name} is over without a status: {printed}"))?;
        let result = answer.strip_prefix("0 result ").with_context(|| format!("{name} failed: {answer}"))?;
        Ok(result.trim().replace('\r', ""))
    }

    /// The name of what runs it.
    fn name(&mut self) -> Result<String> {
        match &mut self.machinery {
            Machinery::Ours(_) => Ok("pollux-twin".into()),
            Machinery::Peer(qemu, _) => qemu.name(),
        }
    }

    fn cpu_seconds(&self) -> Result<f64> {
        self.workers.iter().map(|worker| worker.cpu_seconds()).sum()
    }

    fn type_serial(&mut self, text: &str) -> Result<()> {
        match &mut self.machinery {
            Machinery::Ours(machine) => machine.type_serial(text),
            Machinery::Peer(qemu, _) => qemu.type_serial(text),
        }
    }

    fn wait(&self, text: &str) -> Result<String> {
        match &self.machinery {
            Machinery::Ours(machine) => machine.wait_console(text, PATIENCE),
            Machinery::Peer(qemu, _) => qemu.wait_console(text, PATIENCE),
        }
    }
}
