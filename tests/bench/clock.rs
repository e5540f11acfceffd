//! How long a twin takes for an hour of its phone's: what the user did then is replayed with the guest's idle time passed over.
//!
//! The phone is not there; its log tells of a user who opens a note and types a letter, or takes it back, every second and a half. The
//! twin begins with its image's base snapshot, and is there when the last event was given and the screen stands still. It must have
//! passed the hour by its own clock. The peer is the hour itself: a machine whose time cannot be passed over needs it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sync_protocol::event::{Event, Frame, InputEvent, Kind, MmiDevice, Origin};
use tests::appliance::Appliance;
use tokio::runtime::Runtime;

use crate::absent;
use crate::table::{Better, Row, Table};

const SERIAL: &str = "BENCH-1";
const SECOND_US: u64 = 1_000_000;
/// From one key to the next.
const EACH_US: u64 = 1_500_000;
const HELD_US: u64 = 80_000;
const STILL_MS: u64 = 700;
/// Between two looks how far the twin has come.
const LOOK: Duration = Duration::from_millis(100);
const A: u32 = 30;
const BACKSPACE: u32 = 14;
/// Where the handset has them, at 360 x 720.
const NOTES: (i32, i32) = (303, 626);
const NEW_NOTE: (i32, i32) = (316, 632);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Minutes of the recorded time.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=240))]
    minutes: u64,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let span_us = options.minutes * 60 * SECOND_US;
    let runtime = Runtime::new()?;
    let appliance = Appliance::start()?;
    let now_us = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    let mut log = Log { began_us: now_us - span_us - 10 * SECOND_US, events: Vec::new() };
    let mut stream = absent::enrol(&runtime, &appliance, SERIAL, i64::try_from(log.began_us)?)?;
    appliance.post(&format!("/api/phones/{SERIAL}/twin/stop"), json!({}))?;

    log.record(span_us);
    let (keys, last) = (log.events.len() / 2, log.last());
    runtime.block_on(async {
        for some in log.events.chunks(256) {
            stream.send_events(some.to_vec()).await;
            stream.acked().await;
        }
    });
    let start = Instant::now();
    appliance.post(&format!("/api/phones/{SERIAL}/twin/start"), json!({}))?;
    while appliance.phone(SERIAL)?["twin"]["position"] != last {
        ensure!(start.elapsed().as_secs() < options.minutes * 60, "it takes longer than the phone did");
        std::thread::park_timeout(LOOK);
    }
    let mut control = absent::machine(&appliance, SERIAL)?;
    control.still(STILL_MS)?;
    let took = start.elapsed().as_secs_f64();
    let status = control.ask(json!({"op": "status"}))?;
    let guest_us = status["guest_us"].as_u64().context("the machine does not tell its clock")?;
    ensure!(guest_us >= span_us, "the guest has lived through {guest_us} of {span_us} us");

    let mut table = Table::new("clock");
    let real = span_us as f64 / 1e6;
    table.row(Row::new("catchup", "s", Better::Less, took).beside("real time", real));
    table.note(format!("{keys} keys in {} minutes; the guest ran for {} ms", options.minutes, status["guest_uptime_ms"]));
    Ok(table)
}

/// What the phone did, and when.
struct Log {
    began_us: u64,
    events: Vec<Event>,
}

impl Log {
    fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.seq)
    }

    fn add(&mut self, at_us: u64, kind: Kind) {
        let wall_us = i64::try_from(self.began_us + at_us).unwrap_or(i64::MAX);
        let seq = absent::NEXT_SEQ + self.events.len() as u64;
        self.events.push(Event { seq, wall_us, mono_us: at_us, origin: Origin::Phone, kind });
    }

    fn frame(&mut self, at_us: u64, device: MmiDevice, events: &[(u32, u32, i32)]) {
        let events = events.iter().map(|(r#type, code, value)| InputEvent { r#type: *r#type, code: *code, value: *value }).collect();
        self.add(at_us, Kind::Mmi(Frame { device, device_id: 0, events, x_max: 359, y_max: 719 }));
    }

    /// One finger, as the multi-touch protocol's type B has it (Linux, input/multi-touch-protocol.rst).
    fn tap(&mut self, at_us: u64, (x, y): (i32, i32), contact: i32) {
        let down = [(3, 0x2f, 0), (3, 0x39, contact), (3, 0x35, x), (3, 0x36, y), (1, 0x14a, 1), (3, 0, x), (3, 1, y)];
        self.frame(at_us, MmiDevice::Touch, &down);
        self.frame(at_us + HELD_US, MmiDevice::Touch, &[(3, 0x2f, 0), (3, 0x39, -1), (1, 0x14a, 0)]);
    }

    fn key(&mut self, at_us: u64, code: u32) {
        self.frame(at_us, MmiDevice::Keyboard, &[(1, code, 1)]);
        self.frame(at_us + HELD_US, MmiDevice::Keyboard, &[(1, code, 0)]);
    }

    /// A user who types for as long as `span_us`.
    fn record(&mut self, span_us: u64) {
        self.tap(5 * SECOND_US, NOTES, 1);
        self.tap(8 * SECOND_US, NEW_NOTE, 2);
        for (i, at_us) in (12 * SECOND_US..span_us + SECOND_US).step_by(EACH_US as usize).enumerate() {
            self.key(at_us, if i % 2 == 0 { A } else { BACKSPACE });
        }
    }
}
