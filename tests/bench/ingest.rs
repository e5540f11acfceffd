//! Events that a real appliance acknowledges in a second, over real mutual TLS, from phones that are not there.
//!
//! What is acknowledged is durable: that is the appliance's promise, and SQLite's beside it with `synchronous=FULL`.
//!
//! - `one_phone`, `hundred_phones`: each phone sends a backlog as an agent does that was cut off - full batches, without waiting for
//!   acknowledgements - and the time is that to the last acknowledgement.
//! - `..._live`: each phone sends one event a batch, the next when the last was acknowledged.
//!
//! The events are frames of a moving finger. They are encoded and packed beforehand, so that only the appliance's work and the
//! transport's counts. The peer is SQLite in this process, on the same disk, one transaction a batch, one thread a phone: it neither
//! decodes nor encrypts nor crosses a network. The appliance applies its phones' logs to their flashes meanwhile, as it always does.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use rusqlite::{Connection, params};
use serde_json::json;
use sync_protocol::event::{Event, Frame, InputEvent, Kind, MmiDevice, Origin};
use sync_protocol::limits::BATCH_EVENTS_MAX;
use sync_protocol::wire::phone_message::Message as FromPhone;
use sync_protocol::{batch, wire};
use tests::appliance::Appliance;
use tests::fake_phone::{FakePhone, Stream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::samples::Samples;
use crate::table::{Better, Row, Table};

const PHONES: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds of each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(5..))]
    rounds: u16,
    /// Only this row.
    #[arg(long)]
    row: Option<String>,
}

/// What one row measures.
struct Load {
    row: &'static str,
    phones: usize,
    /// Of each phone.
    batches: usize,
    batch_events: usize,
    /// A batch is sent only when the last was acknowledged.
    live: bool,
}

static LOADS: [Load; 4] = [
    Load { row: "one_phone", phones: 1, batches: 40, batch_events: BATCH_EVENTS_MAX, live: false },
    Load { row: "hundred_phones", phones: PHONES, batches: 1, batch_events: BATCH_EVENTS_MAX, live: false },
    Load { row: "one_phone_live", phones: 1, batches: 300, batch_events: 1, live: true },
    Load { row: "hundred_phones_live", phones: PHONES, batches: 30, batch_events: 1, live: true },
];

impl Load {
    fn events(&self) -> f64 {
        (self.phones * self.batches * self.batch_events) as f64
    }
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let runtime = Runtime::new()?;
    let appliance = Appliance::start()?;
    let mut fleet = Fleet::enrol(&appliance, &runtime)?;
    let mut peer = Peer::open()?;
    let mut table = Table::new("ingest");
    let wanted = |load: &&Load| options.row.as_ref().is_none_or(|row| row == load.row);
    for load in LOADS.iter().filter(wanted) {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        // One more than are counted: the first finds everything cold.
        for round in 0..=options.rounds {
            let (of_ours, of_theirs) = (fleet.round(load, &runtime)?, peer.round(load)?);
            if round > 0 {
                ours.add(of_ours);
                theirs.add(of_theirs);
            }
        }
        table.row(Row::new(load.row, "events/s", Better::More, ours.median()?).beside(&peer.name, theirs.median()?));
    }
    drop(fleet);
    table.note(format!("median of {} rounds each, alternating; the peer has neither network nor TLS nor decoding", options.rounds));
    Ok(table)
}

/// A finger's move, as the event with this seq.
fn event(seq: u64) -> Event {
    const EV_ABS: u32 = 3;
    let (x, y) = ((seq * 7 % 360) as i32, (seq * 3 % 720) as i32);
    // Slot, then the contact's place and the panel's.
    let axes = [(0x2f, 0), (0x35, x), (0x36, y), (0, x), (1, y)];
    let events = axes.map(|(code, value)| InputEvent { r#type: EV_ABS, code, value }).to_vec();
    let frame = Frame { device: MmiDevice::Touch, device_id: 1, events, x_max: 359, y_max: 719 };
    Event { seq, wall_us: 1_700_000_000_000_000 + seq as i64 * 16_000, mono_us: seq * 16_000, origin: Origin::Phone, kind: Kind::Mmi(frame) }
}

/// Phones with open streams.
struct Fleet(Vec<Feed>);

struct Feed {
    stream: Stream,
    next_seq: u64,
}

impl Fleet {
    fn enrol(appliance: &Appliance, runtime: &Runtime) -> Result<Fleet> {
        let mut feeds = Vec::new();
        for number in 0..PHONES {
            let code = appliance.post("/api/codes", json!({"note": "bench"}))?;
            let code = code["code"].as_str().context("a code")?;
            let mut phone = FakePhone::new(appliance.sync(), &appliance.ca_pem, &format!("BENCH-{number}"));
            let stream = runtime.block_on(async {
                ensure!(phone.register(code).await?, "an enrolment code does not admit");
                Ok(phone.stream(1, 0).await.0)
            })?;
            feeds.push(Feed { stream, next_seq: 1 });
        }
        Ok(Fleet(feeds))
    }

    /// Events that were acknowledged in a second.
    fn round(&mut self, load: &'static Load, runtime: &Runtime) -> Result<f64> {
        let packed: Vec<_> = self.0.drain(..load.phones).map(|feed| (feed.pack(load), feed)).collect();
        let start = Instant::now();
        let feeds = runtime.block_on(async {
            let mut sending = JoinSet::new();
            packed.into_iter().for_each(|(batches, feed)| drop(sending.spawn(feed.send(batches, load))));
            sending.join_all().await
        });
        let seconds = start.elapsed().as_secs_f64();
        self.0.extend(feeds);
        Ok(load.events() / seconds)
    }
}

impl Feed {
    fn pack(&self, load: &Load) -> Vec<wire::Batch> {
        let firsts = (self.next_seq..).step_by(load.batch_events).take(load.batches);
        let events = |first: u64| (first..first + load.batch_events as u64).map(|seq| event(seq).into()).collect();
        firsts.map(|first| batch::pack(events(first))).collect()
    }

    /// Sends all, and waits until the last is acknowledged.
    async fn send(mut self, batches: Vec<wire::Batch>, load: &'static Load) -> Feed {
        let last = self.next_seq + load.batches as u64 * load.batch_events as u64 - 1;
        let sender = self.stream.sender.clone();
        let send = async |batch| {
            let message = wire::PhoneMessage { message: Some(FromPhone::Batch(batch)) };
            sender.send(message).await.expect("the appliance listens");
        };
        if load.live {
            for batch in batches {
                send(batch).await;
                self.stream.acked().await;
            }
        } else {
            let sending = async {
                for batch in batches {
                    send(batch).await;
                }
            };
            let waiting = async { while self.stream.acked().await < last {} };
            tokio::join!(sending, waiting);
        }
        self.next_seq = last + 1;
        self
    }
}

/// SQLite, as a log of the same events.
struct Peer {
    name: String,
    database: Mutex<Connection>,
    next_seq: u64,
    _folder: tempfile::TempDir,
}

impl Peer {
    fn open() -> Result<Peer> {
        let folder = tempfile::tempdir()?;
        let database = Connection::open(folder.path().join("log.db"))?;
        database.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        database.pragma_update(None, "synchronous", "FULL")?;
        database.execute_batch("CREATE TABLE event (phone INTEGER, seq INTEGER, body BLOB, PRIMARY KEY (phone, seq)) WITHOUT ROWID")?;
        Ok(Peer { name: format!("sqlite {}", rusqlite::version()), database: Mutex::new(database), next_seq: 1, _folder: folder })
    }

    /// Events that were committed in a second.
    fn round(&mut self, load: &Load) -> Result<f64> {
        let first = self.next_seq;
        self.next_seq += (load.batches * load.batch_events) as u64;
        let encoded: Vec<(u64, Vec<u8>)> = (first..self.next_seq).map(|seq| (seq, event(seq).encode())).collect();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..load.phones).map(|phone| scope.spawn({
                let (encoded, database) = (&encoded, &self.database);
                move || encoded.chunks(load.batch_events).try_for_each(|batch| commit(database, phone, batch))
            })).collect();
            writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?)
        })?;
        Ok(load.events() / start.elapsed().as_secs_f64())
    }
}

/// One batch in one transaction.
fn commit(database: &Mutex<Connection>, phone: usize, batch: &[(u64, Vec<u8>)]) -> Result<()> {
    let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
    let transaction = database.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO event VALUES (?, ?, ?)")?;
        for (seq, body) in batch {
            insert.execute(params![phone as i64, *seq as i64, body])?;
        }
    }
    Ok(transaction.commit()?)
}
