//! How many twins a small host holds: a hundred, idle, resumed at once.
//!
//! The phones are not there: each has enrolled and told that it has no files of its own. Their twins begin with the image's base snapshot,
//! are parked, and are then all asked for at the same time.
//!
//! - `pss_per_twin`: proportional set size (Linux, filesystems/proc.rst) of all their processes, by their number. What they share of the base is
//!   in it.
//! - `cpu_all`: processors that all of them use while nobody does anything.
//! - `answer_max`: from a touch, given to one twin after the other while the rest idle, to the first change of its screen; the longest.
//! - `resume_all`: from the first request to the last reply.
//! - `parked_processes`: of an appliance whose twins are all parked: its children. One is the spare, which waits for the next start.
//! - `parked_memory`: what its own proportional set size has grown by with the parked twins, by their number; their phones are in it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::appliance::{Appliance, Setup, wait_for};
use tests::control::Control;
use tests::machine::caged;
use tokio::runtime::Runtime;

use crate::absent::{self, machine};
use crate::table::{Better, Row, Table};

const STILL_MS: u64 = 700;
const CLK_TCK: f64 = 100.0;
/// How long they idle while their time is taken.
const IDLE: Duration = Duration::from_secs(30);
const ANSWER_MS_MAX: u64 = 20_000;
/// After so many parked twins, caches and pools have the size that they keep.
const PARKED_FIRST: u16 = 50;
/// Where the handset has its notes, at 360 x 720.
const NOTES: (u16, u16) = (303, 626);

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=1000))]
    twins: u16,
    /// Twins that are only parked.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(100..=10_000))]
    parked: u16,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let count = usize::from(options.twins);
    let runtime = Runtime::new()?;
    let appliance = Setup::new()?.running_max(count).start()?;
    let serials: Vec<String> = (0..count).map(|i| format!("BENCH-{i:03}")).collect();
    let mut streams = Vec::new();
    for serial in &serials {
        streams.push(absent::enrol(&runtime, &appliance, serial, 0)?);
        machine(&appliance, serial)?.still(STILL_MS)?;
        appliance.post(&format!("/api/phones/{serial}/twin/park"), json!({}))?;
    }

    let start = Instant::now();
    std::thread::scope(|scope| {
        let appliance = &appliance;
        let ask = move |serial: &str| appliance.post(&format!("/api/phones/{serial}/twin/start"), json!({}));
        let asked: Vec<_> = serials.iter().map(|serial| scope.spawn(move || ask(serial))).collect();
        asked.into_iter().try_for_each(|asked| asked.join().expect("no request panics").map(drop))
    })?;
    let resume_all = start.elapsed().as_secs_f64();
    let pids = serials.iter().map(|serial| pids(&appliance, serial)).collect::<Result<Vec<_>>>()?.concat();
    // What resuming has left to do is no idling.
    serials.iter().try_for_each(|serial| machine(&appliance, serial)?.still(STILL_MS).map(drop))?;

    let (before, since) = (cpu_seconds(&pids)?, Instant::now());
    std::thread::park_timeout(IDLE);
    let cpu_all = (cpu_seconds(&pids)? - before) / since.elapsed().as_secs_f64();
    let mut pss_kib = 0;
    for pid in &pids {
        pss_kib += pss(*pid)?;
    }
    let mut answer_max = 0.0_f64;
    for serial in &serials {
        answer_max = answer_max.max(answer(&mut machine(&appliance, serial)?)?);
    }

    drop(streams);
    drop(appliance);
    let parked = parked(&runtime, options.parked)?;

    let mut table = Table::new("density");
    table.row(Row::new("pss_per_twin", "MiB", Better::Less, pss_kib as f64 / 1024.0 / count as f64));
    table.row(Row::new("cpu_all", "cores", Better::Less, cpu_all));
    table.row(Row::new("answer_max", "s", Better::Less, answer_max));
    table.row(Row::new("resume_all", "s", Better::Less, resume_all));
    table.row(Row::new("parked_processes", "", Better::Less, parked.processes as f64));
    table.row(Row::new("parked_memory", "KiB", Better::Less, parked.kib_each));
    table.note(format!("{count} twins; {} parked", options.parked));
    Ok(table)
}

struct Parked {
    processes: usize,
    kib_each: f64,
}

/// Has many twins begin and be parked, one after the other, and their phones go away.
fn parked(runtime: &Runtime, count: u16) -> Result<Parked> {
    let appliance = Appliance::start()?;
    let mut at_first = 0;
    for i in 0..count {
        let serial = format!("BENCH-{i:05}");
        drop(absent::enrol(runtime, &appliance, &serial, 0)?);
        appliance.post(&format!("/api/phones/{serial}/twin/park"), json!({}))?;
        if i + 1 == PARKED_FIRST {
            at_first = pss(appliance.pid())?;
        }
    }
    let grown = pss(appliance.pid())?.saturating_sub(at_first);
    Ok(Parked { processes: children(appliance.pid())?, kib_each: grown as f64 / f64::from(count - PARKED_FIRST) })
}

/// How many processes one has started that still run.
fn children(pid: u32) -> Result<usize> {
    let mut count = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        count += std::fs::read_to_string(task?.path().join("children"))?.split_whitespace().count();
    }
    Ok(count)
}

/// Of both processes of a twin.
fn pids(appliance: &Appliance, serial: &str) -> Result<[u32; 2]> {
    let path = format!("/api/phones/{serial}/twin");
    let started = u32::try_from(wait_for("a twin to run", || Ok(appliance.get(&path)?["pid"].as_u64()))?)?;
    Ok([started, caged(started)?])
}

/// Of processes and all their threads: user's and system's.
fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let of = |pid: &u32| -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let ticks = |i: usize| fields.split_whitespace().nth(i).context("too few fields").and_then(|text| Ok(text.parse::<f64>()?));
        Ok((ticks(11)? + ticks(12)?) / CLK_TCK)
    };
    pids.iter().map(of).sum()
}

fn pss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = std::fs::read_to_string(Path::new(&path))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Touches it; how many seconds until it answers.
fn answer(machine: &mut Control) -> Result<f64> {
    let before = machine.generation()?;
    let (x, y) = NOTES;
    let start = Instant::now();
    let down = json!([[3, 0x2f, 0], [3, 0x39, 1], [3, 0x35, x], [3, 0x36, y], [1, 0x14a, 1], [3, 0, x], [3, 1, y]]);
    machine.frame("touch", &down)?;
    machine.frame("touch", &json!([[3, 0x2f, 0], [3, 0x39, -1], [1, 0x14a, 0]]))?;
    ensure!(machine.changed_within(before, ANSWER_MS_MAX)?.is_some(), "a twin does not answer");
    Ok(start.elapsed().as_secs_f64())
}
