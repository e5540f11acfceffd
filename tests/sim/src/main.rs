//! The seeded simulator of sync: real agents, the real appliance, and a network, disks and clocks that fail, in one process and in
//! virtual time. One seed is one run; the same seed is the same run.
//!
//! **May happen**, to any part and at any moment that the seed chooses:
//!
//! - *Network*: delay; connections that break, each side noticing when it does; messages lost with them, or arriving after the phone has
//!   connected anew; batches sent twice, therefore; partition; a peer so slow that everything waits for it.
//! - *Agent and appliance*: killed, at any write or flush, or between.
//! - *Power*: lost at any write or flush. What was not flushed is there, lost, torn or reordered, by sectors; also the phone's own files.
//! - *Disk*: full, and free again. Contents that decay in the appliance's store. A phone's journal that cannot be read any more.
//! - *Clock*: a phone's wall clock jumps by years, forward and back.
//! - *Kernel*: notices of changed files merge, come late, or are lost, and then it says so.
//!
//! **Must survive**, once all faults are healed and nothing is left to do:
//!
//! 1. Every event that was acknowledged is in the log: once, in the order of its journal, unaltered. So is everything that an agent
//!    had kept, unless its journal was damaged.
//! 2. A seq never means two things.
//! 3. The flash has what the phone has: names, kinds, permissions, owners, contents. Read again from the log, it is the same.
//! 4. No phone's log has anything of another phone.
//! 5. Nothing panics, and everything comes to rest.
//!
//! **Left out**: corrupted, doubled or reordered messages within a stream (TLS excludes them; what a hostile phone may send is tested and
//! fuzzed elsewhere), TLS and HTTP/2 themselves, the kernel's fanotify, decay on the phone, guests, and what the database flushes by itself
//! beside its main file.

mod appliance;
mod disk;
mod helpdesk;
mod history;
mod judge;
mod net;
mod os;
mod phone;
mod tree;
mod world;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// Runs seeds, and says which fails.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Changes by the phones' users, and faults, in one run.
    #[arg(long, default_value_t = 60)]
    steps: u32,
    /// Runs at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Goes on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// Prints a hash of everything that happened, for each seed.
    #[arg(long)]
    traces: bool,
    /// Prints what happens.
    #[arg(long, short)]
    verbose: bool,
}

/// Seeds between two lines of progress.
const PROGRESS_SEEDS: u64 = 500;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.jobs > 0, "--jobs: at least 1");
    let folder = std::env::temp_dir().join("pollux-sim");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let begun = Instant::now();
    let (mut done, mut failed) = (0, Vec::new());
    let mut running: HashMap<Pid, u64> = HashMap::new();
    let mut seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    loop {
        while running.len() < arguments.jobs && (failed.is_empty() || arguments.keep_going) {
            let Some(seed) = seeds.next() else { break };
            std::io::stdout().flush()?;
            let pid = os::fork(|| child(seed, &arguments, &folder)).context("cannot make a process")?;
            running.insert(pid, seed);
        }
        if running.is_empty() {
            break;
        }
        let status = wait().context("cannot wait for a run")?;
        let Some(seed) = status.pid().and_then(|pid| running.remove(&pid)) else { continue };
        done += 1;
        if status != WaitStatus::Exited(status.pid().expect("of a run"), 0) {
            println!("seed {seed} FAILS ({status:?}); again: sim --from {seed} --steps {} --verbose", arguments.steps);
            failed.push(seed);
        }
        if done % PROGRESS_SEEDS == 0 {
            println!("{done} seeds, {:.1}/s, {} failed", done as f64 / begun.elapsed().as_secs_f64(), failed.len());
        }
    }
    println!("{done} seeds, {:.1}/s, {} failed: {failed:?}", done as f64 / begun.elapsed().as_secs_f64(), failed.len());
    ensure!(failed.is_empty(), "the first seed that fails is {}", failed.iter().min().unwrap_or(&0));
    Ok(())
}

/// One run, in a process of its own; gives its exit status.
fn child(seed: u64, arguments: &Arguments, folder: &Path) -> i32 {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    if arguments.verbose {
        let filter = tracing_subscriber::EnvFilter::try_from_env("POLLUX_LOG").unwrap_or_else(|_| "info,sled=warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time().init();
    }
    let folder = private(folder);
    let outcome = world::run(seed, arguments.steps, &folder, arguments.verbose);
    match outcome {
        Ok(trace) => {
            if arguments.seeds == 1 || arguments.traces {
                println!("seed {seed}: {trace}");
            }
            0
        }
        Err(error) => {
            println!("seed {seed}: {error:#}");
            1
        }
    }
}

/// The same path in every run, with a disk of the run's own behind it where this host permits that, which takes root.
fn private(folder: &Path) -> PathBuf {
    let own = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>)
    };
    match own() {
        Ok(()) => folder.to_owned(),
        // Paths are as long for every process, so runs are nearly the same.
        Err(_) => folder.join(format!("{:010}", std::process::id())),
    }
}
