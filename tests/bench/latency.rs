//! How far a twin's screen is behind its phone's, and a driven phone's behind the hand of its operator.
//!
//! A demo phone and its twin show a new note. One key at a time goes down: a letter, the next time backspace, so that the picture stays
//! as it is. Each machine tells when its screen changes; once both stand still and show the same picture, the moments of their
//! last changes count. The minute's turn is left out, because there both draw their clocks by themselves.
//!
//! - `phone_own`: from the key, given to the phone's keyboard, to the phone's own picture. That is the emulated CPU's own time, and
//!   the twin's CPU, the same one, needs as long for the same picture.
//! - `phone_to_twin_raw`: from that key to the same picture on the twin.
//! - `phone_to_twin`: what of it is beyond the CPU's own time - the same key's `phone_to_twin_raw` less `phone_own`.
//! - `drive_raw`: from the operator's request with a key, before it is sent, to the phone's picture.
//! - `drive`: what of it is beyond the CPU's own time - `drive_raw` less the median of `phone_own`.
//!
//! The agent's work on the phone, which the same emulated CPU does, is ours and counts.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use tests::appliance::{Appliance, PATIENCE, wait_for};
use tests::control::Control;
use tests::demo::DemoPhone;
use tests::hand::Handheld;
use tests::targets::Targets;

use crate::samples::Samples;
use crate::table::{Better, Row, Table};

/// A screen that has not changed for so long stands still: longer than any two drawings of one key are apart.
const STILL_MS: u64 = 250;
/// The handset saves a note when its user pauses; the next key is not to meet that each time at the same point.
const PAUSES_MS: [u64; 4] = [0, 150, 400, 800];
/// The guests' clocks are set to the second.
const AROUND_MINUTE: Duration = Duration::from_secs(2);
/// The first keys, for which nothing is translated yet.
const WARM_UP_KEYS: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Keys in each direction; a 99th percentile needs a hundred.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u16).range(100..))]
    keys: u16,
}

pub(crate) fn run(options: &Options) -> Result<Table> {
    let mut pair = Pair::start()?;
    let keys = usize::from(options.keys);
    let [mut own, mut raw, mut beyond, mut driven] = std::array::from_fn(|_| Samples::default());
    for round in 0..WARM_UP_KEYS + keys {
        let (phone_ms, twin_ms) = pair.key(round, Hand::User)?;
        if round >= WARM_UP_KEYS {
            own.add(phone_ms);
            raw.add(twin_ms);
            beyond.add(twin_ms - phone_ms);
        }
    }
    pair.take_lead()?;
    for round in 0..WARM_UP_KEYS + keys {
        let (phone_ms, _) = pair.key(round, Hand::Operator)?;
        if round >= WARM_UP_KEYS {
            driven.add(phone_ms);
        }
    }
    let own_ms = own.median()?;
    let drive_beyond = driven.map(|ms| ms - own_ms);
    let mut table = Table::new("latency");
    for (name, samples) in [
        ("phone_to_twin", &beyond),
        ("drive", &drive_beyond),
        ("phone_own", &own),
        ("phone_to_twin_raw", &raw),
        ("drive_raw", &driven),
    ] {
        table.row(Row::new(format!("{name}_p50"), "ms", Better::Less, samples.median()?));
        table.row(Row::new(format!("{name}_p99"), "ms", Better::Less, samples.quantile(0.99)?));
    }
    table.note(format!("{keys} keys in each direction; phone_to_twin and drive: beyond the emulated CPU's own time, which is phone_own"));
    Ok(table)
}

/// Who presses a key.
#[derive(Clone, Copy)]
enum Hand {
    /// The phone's user, on its keyboard.
    User,
    /// Help desk, on the twin.
    Operator,
}

/// A phone and its twin, in mirror.
struct Pair {
    appliance: Appliance,
    phone: DemoPhone,
    phone_screen: Screen,
    twin_screen: Screen,
}

impl Pair {
    /// Starts both and opens a new note on them.
    fn start() -> Result<Pair> {
        let at = Targets::of_the_handset()?;
        let appliance = Appliance::start()?;
        let serial = "BENCH-1";
        let code = appliance.post("/api/codes", json!({"note": serial}))?;
        let mut phone = DemoPhone::start(&appliance, serial, code["code"].as_str())?;
        appliance.registered(serial)?;
        let mirrored = appliance.phone_when(serial, "to be mirrored", |phone| {
            phone["connected"] == true && phone["sync"]["complete"] == true && phone["twin"]["state"] == "running"
        })?;
        let id = mirrored["id"].as_str().context("a phone has an id")?;
        let mut phone_screen = Screen::of(phone.control_socket())?;
        let mut twin_screen = Screen::of(&appliance.data().join("run").join(id).join("control.sock"))?;
        wait_for("the twin to show the phone's picture", || Ok((phone_screen.picture()? == twin_screen.picture()?).then_some(())))?;
        phone.tap_all(&at, "home.notes notes.new")?;
        wait_for("the twin to follow", || {
            phone_screen.still()?;
            twin_screen.still()?;
            Ok((phone_screen.picture()? == twin_screen.picture()?).then_some(()))
        })?;
        Ok(Pair { appliance, phone, phone_screen, twin_screen })
    }

    fn take_lead(&mut self) -> Result<()> {
        self.appliance.put(&format!("/api/phones/{}/drive", self.phone.serial), json!({}))?;
        // The phone shows its user that it is driven.
        self.phone_screen.still()?;
        self.twin_screen.still().map(drop)
    }

    /// Milliseconds from the key to the picture on the phone, and on the twin.
    fn key(&mut self, round: usize, hand: Hand) -> Result<(f64, f64)> {
        std::thread::park_timeout(Duration::from_millis(PAUSES_MS[round / 2 % PAUSES_MS.len()]));
        keep_off_the_minute();
        self.phone_screen.look()?;
        self.twin_screen.look()?;
        let Pair { appliance, phone, phone_screen, twin_screen } = self;
        let serial = phone.serial.clone();
        let (key, code) = if round.is_multiple_of(2) { ("a", 30) } else { ("backspace", 14) };
        let (pressed, mut phone_at, mut twin_at) = std::thread::scope(|scope| {
            let watching = [scope.spawn(|| phone_screen.changed()), scope.spawn(|| twin_screen.changed())];
            let pressed = Instant::now();
            match hand {
                Hand::User => phone.press_key(code)?,
                Hand::Operator => {
                    let input = json!({"actions": [{"key": key}]});
                    appliance.post(&format!("/api/phones/{serial}/drive/input"), input).map(drop)?;
                }
            }
            let [phone_at, twin_at] = watching.map(|watch| watch.join().map_err(|_| anyhow!("a watcher panicked")));
            Ok::<_, anyhow::Error>((pressed, phone_at??, twin_at??))
        })?;
        // One that was held up in the middle of a drawing seemed to stand still.
        let settling = Instant::now();
        while phone_screen.picture()? != twin_screen.picture()? {
            if settling.elapsed() > PATIENCE {
                let folder = tempfile::Builder::new().prefix("screens-").tempdir()?.keep();
                std::fs::write(folder.join("phone.png"), phone_screen.control.screen()?)?;
                std::fs::write(folder.join("twin.png"), twin_screen.control.screen()?)?;
                bail!("phone and twin show different pictures after key {round}: see {}", folder.display());
            }
            phone_at = phone_screen.changed_since(phone_at)?;
            twin_at = twin_screen.changed_since(twin_at)?;
        }
        let ms = |at: Instant| at.saturating_duration_since(pressed).as_secs_f64() * 1e3;
        Ok((ms(phone_at), ms(twin_at)))
    }
}

/// A machine's screen, watched over a connection of its own.
struct Screen {
    control: Control,
    generation: u64,
}

impl Screen {
    fn of(socket: &Path) -> Result<Screen> {
        let mut screen = Screen { control: Control::connect(socket)?, generation: 0 };
        screen.look()?;
        Ok(screen)
    }

    /// What it shows now is no change.
    fn look(&mut self) -> Result<()> {
        self.generation = self.control.generation()?;
        Ok(())
    }

    fn still(&mut self) -> Result<()> {
        self.generation = self.control.still(STILL_MS)?;
        Ok(())
    }

    /// Waits until the screen has changed and then stands still; the moment of its last change.
    fn changed(&mut self) -> Result<Instant> {
        self.generation = self.control.changed(self.generation)?;
        self.changed_since(Instant::now())
    }

    /// The moment of the last change before the screen stands still: `at` unless it changes.
    fn changed_since(&mut self, mut at: Instant) -> Result<Instant> {
        while let Some(newer) = self.control.changed_within(self.generation, STILL_MS)? {
            at = Instant::now();
            self.generation = newer;
        }
        Ok(at)
    }

    /// A digest of what is shown.
    fn picture(&mut self) -> Result<String> {
        let reply = self.control.ask(json!({"op": "screen"}))?;
        reply["sha256"].as_str().map(str::to_owned).with_context(|| format!("no digest in {reply}"))
    }
}

/// Waits while a minute turns.
fn keep_off_the_minute() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let into = Duration::from_millis((since.as_millis() % 60_000) as u64);
    let (early, late) = (AROUND_MINUTE.saturating_sub(into), into.saturating_sub(Duration::from_secs(60) - AROUND_MINUTE));
    if !late.is_zero() {
        std::thread::park_timeout(2 * AROUND_MINUTE - late);
    } else if !early.is_zero() {
        std::thread::park_timeout(early);
    }
}
