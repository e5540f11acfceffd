//! How long a help-desk click takes: from the request that starts a twin, before it is sent, over the console's own API.
//!
//! - `running`: to its reply, which says that the machine runs: of a twin that begins with its image's base snapshot.
//! - `home`: to the handset's home on its screen.
//! - `resume`: of a twin that was parked, to the reply, when its screen is again the last that it showed.
//! - `fork`: of a running twin, to the reply, which says that the fork runs.
//!
//! The phone is not there: it has enrolled and told that it has no files of its own. The first start, which makes the base snapshot, is
//! not counted.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::appliance::{Appliance, PATIENCE, wait_for};
use tests::control::Control;
use tokio::runtime::Runtime;

use crate::absent;
use crate::samples::Samples;
use crate::table::{Better, Row, Table};

const SERIAL: &str = "BENCH-1";
const SHOWN: &str = "handset: showing";
/// Between two looks at what the guest prints, if its screen does not change.
const LOOK_MS: u64 = 5;
const STILL_MS: u64 = 700;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Starts; a 99th percentile needs a hundred.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(100..))]
    starts: u16,
    /// Times that it is parked and resumed.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(5..))]
    resumes: u16,
    /// Forks.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(5..))]
    forks: u16,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let runtime = Runtime::new()?;
    let appliance = Appliance::start()?;
    let _stream = absent::enrol(&runtime, &appliance, SERIAL, 0)?;
    let bench = Bench { appliance };

    let (mut running, mut home, mut resume, mut fork) = (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    for _ in 0..options.starts {
        bench.ask("stop")?;
        let start = Instant::now();
        bench.ask("start")?;
        running.add(ms(start));
        bench.shown()?;
        home.add(ms(start));
    }
    for _ in 0..options.resumes {
        let mut control = bench.control()?;
        control.still(STILL_MS)?;
        let last = control.screen()?;
        bench.ask("park")?;
        let start = Instant::now();
        bench.ask("start")?;
        resume.add(ms(start));
        ensure!(bench.control()?.screen()? == last, "the resumed twin shows something else");
    }
    for _ in 0..options.forks {
        let start = Instant::now();
        let number = bench.appliance.post(&bench.path("forks"), json!({}))?["number"].as_u64().context("a fork without a number")?;
        fork.add(ms(start));
        bench.appliance.delete(&bench.path(&format!("forks/{number}")))?;
        wait_for("the fork to end", || Ok((bench.appliance.phone(SERIAL)?["twin"]["forks"] == json!([])).then_some(())))?;
    }
    let mut table = Table::new("start");
    for (name, samples) in [("running", &running), ("home", &home)] {
        table.row(Row::new(format!("{name}_p50"), "ms", Better::Less, samples.median()?));
        table.row(Row::new(format!("{name}_p99"), "ms", Better::Less, samples.quantile(0.99)?));
    }
    table.row(Row::new("resume_p50", "ms", Better::Less, resume.median()?));
    table.row(Row::new("fork_p50", "ms", Better::Less, fork.median()?));
    table.note(format!("{} starts, {} resumes, {} forks, one twin at a time", running.len(), resume.len(), fork.len()));
    Ok(table)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

struct Bench {
    appliance: Appliance,
}

impl Bench {
    fn ask(&self, what: &str) -> Result<()> {
        self.appliance.post(&self.path(what), json!({})).map(drop)
    }

    fn path(&self, what: &str) -> String {
        format!("/api/phones/{SERIAL}/twin/{what}")
    }

    /// The running twin's own control socket.
    fn control(&self) -> Result<Control> {
        absent::machine(&self.appliance, SERIAL)
    }

    /// Waits until the handset says, right after its first picture, that it has shown it.
    fn shown(&self) -> Result<()> {
        let mut control = self.control()?;
        let start = Instant::now();
        while !control.ask(json!({"op": "console"}))?["tail"].as_str().is_some_and(|tail| tail.contains(SHOWN)) {
            ensure!(start.elapsed() < PATIENCE, "the handset shows nothing");
            let generation = control.generation()?;
            control.changed_within(generation, LOOK_MS)?;
        }
        wait_for("the handset's home on the screen", || Ok((control.generation()? > 0).then_some(())))
    }
}
