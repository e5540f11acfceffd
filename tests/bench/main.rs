//! `scripts/bench NAME`: what is measured, beside a peer where there is one. Never part of the tests.
//!
//! Promises: ours and the peer run in the same call, alternating, warm; a figure is a median of at least five rounds, or a quantile
//! of enough samples; what could not be run is named, with the reason. Leaves out: pass or fail - a bench ends with an error only if a
//! row could not be measured.
//!
//! To add one: a file with `run(&Options) -> Result<Table>`, and a line in [`Bench`] and [`Bench::run`].

mod absent;
mod boot;
mod clock;
mod density;
mod ingest;
mod latency;
mod machine;
mod samples;
mod start;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use table::Table;

#[derive(Parser)]
#[command(name = "scripts/bench", bin_name = "scripts/bench", about = "Measures Pollux, beside a peer where there is one", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// One JSON object a line, and nothing else, on standard output.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// From the start of the process to the handset's home on screen, beside QEMU.
    Boot(boot::Options),
    /// CPU seconds of a guest's workloads, beside QEMU.
    Machine(machine::Options),
    /// From a key on the phone to its twin's screen, and from the operator's key to the phone's.
    Latency(latency::Options),
    /// From the request that starts a twin to its running, its home on screen, its last screen.
    Start(start::Options),
    /// A hundred idle twins on this host.
    Density(density::Options),
    /// An hour of a phone's, replayed on its twin.
    Clock(clock::Options),
    /// Events acknowledged in a second, by one phone and by a hundred, beside SQLite.
    Ingest(ingest::Options),
}

impl Bench {
    fn run(&self) -> Result<Table> {
        match self {
            Bench::Boot(options) => boot::run(options),
            Bench::Machine(options) => machine::run(options),
            Bench::Latency(options) => latency::run(options),
            Bench::Start(options) => start::run(options),
            Bench::Density(options) => density::run(options),
            Bench::Clock(options) => clock::run(options),
            Bench::Ingest(options) => ingest::run(options),
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::try_parse().unwrap_or_else(|error| refuse(&error));
    let before = load();
    let mut table = arguments.bench.run()?;
    table.note(format!("load of the host (1 min) before: {before}, after: {}", load()));
    if arguments.json {
        print!("{}", table.json());
        table.foot().for_each(|line| eprintln!("{line}"));
    } else {
        print!("{}", table.text());
    }
    Ok(if table.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what is wrong with the arguments; to a name that there is not, which there are.
fn refuse(error: &clap::Error) -> ! {
    if error.kind() == ErrorKind::InvalidSubcommand {
        let command = Arguments::command();
        let names: Vec<&str> = command.get_subcommands().map(|bench| bench.get_name()).collect();
        eprintln!("{error}\nthere are: {}", names.join(", "));
        std::process::exit(2);
    }
    error.exit()
}

/// Processes that ran or waited to run in the last minute; a figure taken beside others' work is to be seen as such.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}
