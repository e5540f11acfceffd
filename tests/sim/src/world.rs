//! One run: phones and an appliance, what people and faults do to them, and the judgement at the end.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pollux::http::Services;
use pollux::identity::{KeyFingerprint, Peer, UserName};
use pollux::phones::{Admission, Description, Phone as Registered};
use pollux::proof::How;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sync_agent::parts::Notice;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::appliance::Server;
use crate::helpdesk;
use crate::history::History;
use crate::judge::{check_log, verify};
use crate::net::Line;
use crate::os::{self, now_ms};
use crate::phone::Phone;
use crate::tree;

/// Longest time, after all faults are healed, until nothing is left to do: scans, waits of a minute, and the longest latencies.
const REST_S: u64 = 3600;
/// Looks at which nothing was left to do that count as rest: together longer than a dead connection goes unnoticed.
const QUIET_LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Years by which a clock jumps, at most.
const SKEW_YEARS: i64 = 3;
const YEAR_US: i64 = 365 * 86_400 * 1_000_000;

/// What may go wrong in a run: few things in most, so that each is met alone and with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    AgentCrash,
    AgentPower,
    ApplianceCrash,
    Break,
    Partition,
    Slow,
    PhoneFull,
    ApplianceFull,
    Clock,
    Overflow,
    JournalDamage,
    Decay,
}

const FAULTS: [Fault; 12] = [
    Fault::AgentCrash,
    Fault::AgentPower,
    Fault::ApplianceCrash,
    Fault::Break,
    Fault::Partition,
    Fault::Slow,
    Fault::PhoneFull,
    Fault::ApplianceFull,
    Fault::Clock,
    Fault::Overflow,
    Fault::JournalDamage,
    Fault::Decay,
];

/// Runs a seed; gives a hash of everything that happened, or what was wrong. Only once in a process.
pub(crate) fn run(seed: u64, steps: u32, folder: &Path, verbose: bool) -> anyhow::Result<String> {
    let runtime = os::begin(seed);
    let outcome = runtime.block_on(LocalSet::new().run_until(async {
        let mut world = World::new(seed, folder, verbose).await?;
        world.live(steps).await?;
        world.rest().await?;
        world.judge().await
    }));
    // Its blocking thread stands at a gate; the process ends with the run.
    std::mem::forget(runtime);
    outcome
}

pub(crate) struct World {
    random: SmallRng,
    verbose: bool,
    faults: Vec<Fault>,
    phones: Vec<Phone>,
    registered: Vec<Registered>,
    lines: Vec<Line>,
    server: Server,
    /// What a power cut may undo of a phone's own files, and when it was done.
    unflushed: Vec<Vec<(u64, (PathBuf, Option<Vec<u8>>))>>,
    decayed: bool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("not interrupted")
}

impl World {
    async fn new(seed: u64, folder: &Path, verbose: bool) -> anyhow::Result<World> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut faults = Vec::new();
        for fault in FAULTS {
            let rare = matches!(fault, Fault::JournalDamage | Fault::Decay);
            if random.random_bool(if rare { 0.1 } else { 0.35 }) {
                faults.push(fault);
            }
        }
        let mut server = Server::new(&folder.join("appliance"), random.random());
        server.start(&[])?;
        let (mut phones, mut registered, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..random.random_range(1..=3) {
            let services = server.services().context("it runs")?.clone();
            let phone = blocking(move || register(&services, number)).await?;
            let history = Arc::new(Mutex::new(History::default()));
            lock(&history).verbose = verbose.then(|| format!("phone {number}"));
            let witness = {
                let history = history.clone();
                Arc::new(move |connection, way, bytes: &[u8]| lock(&history).saw(connection, way, bytes))
            };
            let peer = Peer::Phone { id: phone.id.clone(), key: phone.key.clone() };
            let line = Line::new(random.random(), peer, witness);
            phones.push(Phone::new(number, &folder.join(format!("phone-{number}")), line.clone(), history, random.random()));
            lines.push(line);
            registered.push(phone);
        }
        server.crash(&[], 0).await;
        let unflushed = vec![Vec::new(); phones.len()];
        Ok(World { random, verbose, faults, phones, registered, lines, server, unflushed, decayed: false })
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9} {}", now_ms(), what());
        }
    }

    /// Lives through so many steps.
    async fn live(&mut self, steps: u32) -> anyhow::Result<()> {
        self.tell(|| format!("{} phones; {:?}", self.phones.len(), self.faults));
        for _ in 0..steps {
            let pause = if self.random.random_bool(0.1) { 20_000 } else { 400 };
            sleep(Duration::from_millis(self.random.random_range(1..pause))).await;
            self.keep_going().await?;
            let at = self.random.random_range(0..self.phones.len());
            match self.random.random_range(0..20) {
                0..9 => self.change(at),
                9..13 => self.phones[at].touch(),
                13..15 => self.help(at).await?,
                _ => self.strike(at).await,
            }
        }
        Ok(())
    }

    /// Starts what has ended.
    async fn keep_going(&mut self) -> anyhow::Result<()> {
        if self.server.has_crashed() {
            self.tell(|| "the appliance has crashed".into());
            let off_ms = self.random.random_range(0..5000);
            self.server.crash(&self.lines, off_ms).await;
        }
        if self.server.services().is_none() && now_ms() >= self.server.starts_at_ms {
            self.tell(|| "the appliance starts".into());
            self.server.start(&self.lines).context("the appliance does not start again")?;
        }
        for (phone, unflushed) in self.phones.iter_mut().zip(&mut self.unflushed) {
            if phone.has_ended() {
                if self.verbose {
                    println!("{:>9} phone {}: the agent has ended", now_ms(), phone.number);
                }
                let off_ms = self.random.random_range(0..5000);
                phone.crash(off_ms).await;
                if self.faults.contains(&Fault::AgentPower) && self.random.random_bool(0.5) {
                    let recent = unflushed.iter().filter(|(at, _)| at + 5000 > now_ms());
                    recent.for_each(|(_, written)| tree::undo(written, &mut self.random));
                }
                unflushed.clear();
            }
            if !phone.is_running() && now_ms() >= phone.starts_at_ms && let Err(error) = phone.start() {
                // As after a full disk: whoever starts it tries again.
                if self.verbose {
                    println!("{:>9} phone {}: the agent does not start: {error}", now_ms(), phone.number);
                }
                phone.starts_at_ms = now_ms() + 1000;
            }
        }
        Ok(())
    }

    fn change(&mut self, at: usize) {
        let phone = &self.phones[at];
        let done = tree::change(&phone.home, &mut self.random);
        self.tell(|| format!("phone {at}: {:?}", done.notices));
        self.unflushed[at].extend(done.undo.map(|undo| (now_ms(), undo)));
        if self.faults.contains(&Fault::Overflow) && self.random.random_bool(0.2) {
            return phone.notice(Notice::Overflow);
        }
        done.notices.into_iter().for_each(|notice| phone.notice(notice));
    }

    async fn help(&mut self, at: usize) -> anyhow::Result<()> {
        let (Some(services), Some(blobs)) = (self.server.services().cloned(), self.server.blobs()) else { return Ok(()) };
        let (id, registered) = (self.registered[at].id.clone(), self.registered[at].clone());
        match self.random.random_range(0..8) {
            0 => {
                let how = How { reread: self.random.random_bool(0.5), heal: true };
                // One that runs already, or a phone that is away, is no fault.
                let _ = services.proofs.verify(registered, how);
            }
            1 => {
                let input = helpdesk::input(&mut self.random);
                let _ = blocking(move || input.into_iter().try_for_each(|asked| helpdesk::once(&services, &id, asked))).await;
            }
            2 => {
                let path = self.phones[at].root();
                let _ = blocking(move || services.commands.rescan(&id, path.as_bytes())).await;
            }
            _ => {
                let asked = helpdesk::change(&self.phones[at].home, &mut self.random);
                self.tell(|| format!("help desk, for phone {at}: {asked:?}"));
                // What the store refuses - a full disk - help desk is told.
                let _ = blocking(move || asked.ask(&services, &*blobs, &id)).await;
            }
        }
        Ok(())
    }

    /// Something goes wrong, if it may in this run.
    async fn strike(&mut self, at: usize) {
        let Some(fault) = self.faults.choose(&mut self.random).copied() else { return };
        self.tell(|| format!("phone {at}: {fault:?}"));
        let soon = self.random.random_range(0..12);
        match fault {
            Fault::AgentCrash | Fault::AgentPower => match self.phones[at].disk() {
                Some(disk) if self.random.random_bool(0.8) => disk.crash_in(soon),
                _ => self.phones[at].crash(self.random.random_range(0..30_000)).await,
            },
            Fault::ApplianceCrash => match self.server.disk() {
                Some(disk) if self.random.random_bool(0.8) => disk.crash_in(soon),
                _ => self.server.crash(&self.lines, self.random.random_range(0..30_000)).await,
            },
            Fault::Break => self.lines[at].break_all(None),
            Fault::Partition => self.lines[at].set_down(self.random.random_bool(0.4)),
            Fault::Slow => self.lines[at].set_latency_max_ms([2, 200, 3000, 15_000][self.random.random_range(0..4)]),
            Fault::PhoneFull => {
                let full = self.random.random_bool(0.4);
                self.phones[at].disk().iter().for_each(|disk| disk.set_full(full));
            }
            Fault::ApplianceFull => {
                let full = self.random.random_bool(0.4);
                self.server.disk().iter().for_each(|disk| disk.set_full(full));
            }
            Fault::Clock => {
                let skew = self.random.random_range(-SKEW_YEARS * YEAR_US..SKEW_YEARS * YEAR_US);
                self.phones[at].skew_us.store(skew, Relaxed);
            }
            Fault::Overflow => self.phones[at].notice(Notice::Overflow),
            Fault::JournalDamage => {
                let Some((_, _, id)) = self.phones[at].journal() else { return };
                self.phones[at].crash(0).await;
                self.phones[at].damage_journal(id);
            }
            Fault::Decay => {
                let seed = self.random.random();
                self.decayed |= self.server.disk().is_some_and(|disk| disk.decay(seed));
            }
        }
    }

    /// Heals everything, and waits until nothing is left to do.
    async fn rest(&mut self) -> anyhow::Result<()> {
        self.tell(|| "everything is healed".into());
        self.faults.clear();
        self.lines.iter().for_each(|line| {
            line.set_down(false);
            line.set_latency_max_ms(20);
        });
        let disks = self.phones.iter().filter_map(Phone::disk).chain(self.server.disk());
        disks.for_each(|disk| disk.heal());
        let (mut quiet, until, mut why) = (0, now_ms() + REST_S * 1000, String::new());
        let mut scrubbed = !self.decayed;
        while now_ms() < until {
            sleep(LOOK_EVERY).await;
            self.keep_going().await?;
            match self.at_rest().await {
                Ok(()) => quiet += 1,
                Err(error) => (quiet, why) = (0, format!("{error:#}")),
            }
            if quiet >= QUIET_LOOKS && scrubbed {
                self.tell(|| "nothing is left to do".into());
                return Ok(());
            }
            if quiet >= QUIET_LOOKS {
                scrubbed = true;
                self.scrub().await?;
                quiet = 0;
            }
        }
        bail!("it does not come to rest: {why}")
    }

    /// Has the appliance read all that it stores, and mend it.
    async fn scrub(&self) -> anyhow::Result<()> {
        let scrub = self.server.services().context("it runs")?.scrub.clone();
        // It may go on already, and be past what decayed: only one that begins now has seen everything.
        for _ in 0..2 {
            let before = scrub.passes().1.map(|pass| pass.begun_us);
            scrub.begin();
            let until = now_ms() + REST_S * 1000;
            while scrub.passes().1.map(|pass| pass.begun_us) == before {
                ensure!(now_ms() < until, "the scrub does not end");
                sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    }

    async fn at_rest(&self) -> anyhow::Result<()> {
        let services = self.server.services().context("the appliance is off")?;
        for (phone, registered) in self.phones.iter().zip(&self.registered) {
            let name = format!("phone {}", phone.number);
            let (last, first_unacked, _) = phone.journal().with_context(|| format!("{name} is off"))?;
            ensure!(services.links.is_connected(&registered.id), "{name} is not connected");
            ensure!(first_unacked == last + 1, "{name}: events from {first_unacked} to {last} are not acknowledged");
            let settled = phone.settled().await.with_context(|| format!("{name} is off"))?;
            ensure!(settled == last, "{name}: at {last} not everything had been looked at");
            ensure!(services.proofs.standing(&registered.id).running.is_none(), "{name} is being verified");
            let (to, id) = (services.clone(), registered.id.clone());
            ensure!(!blocking(move || to.logs.is_in_doubt(&id)).await?, "{name}: its log is in doubt");
            let progress = services.replays.progress(&registered.id);
            ensure!(progress.trouble.is_none(), "{name}: {}", progress.trouble.unwrap_or_default());
            let (services, id) = (services.clone(), registered.id.clone());
            let (waiting, position) = blocking(move || (services.commands.waiting(&id), services.logs.last(&id))).await;
            ensure!(waiting? == 0, "{name}: commands wait");
            ensure!(position? == progress.applied, "{name}: the flash is behind its log");
        }
        Ok(())
    }

    async fn judge(&mut self) -> anyhow::Result<String> {
        let services = self.server.services().context("it runs")?.clone();
        let mut trace = blake3::Hasher::new();
        for (phone, registered) in self.phones.iter().zip(&self.registered) {
            let name = format!("phone {}", phone.number);
            let (id, to, home) = (registered.clone(), services.clone(), phone.home.clone());
            let (log, differences) = blocking(move || {
                let log = to.logs.read(&id.id, 1, usize::MAX);
                (log, tree::differences(&to.flashes, &id, &home))
            })
            .await;
            ensure!(differences.is_empty(), "{name} and its flash differ: {}", differences.join("; "));
            check_log(phone, &log?).with_context(|| name.clone())?;
            let history = lock(&phone.history);
            trace.update(history.trace.clone().finalize().as_bytes()).update(&now_ms().to_le_bytes());
        }
        for (phone, registered) in self.phones.iter().zip(&self.registered) {
            verify(&services, registered).await.with_context(|| format!("phone {}", phone.number))?;
        }
        let messages: u64 = self.phones.iter().map(|phone| lock(&phone.history).messages).sum();
        Ok(format!("{} ({messages} messages, {} s)", trace.finalize().to_hex(), now_ms() / 1000))
    }
}

/// A phone that is let in.
fn register(services: &Services, number: usize) -> anyhow::Result<Registered> {
    let key = KeyFingerprint(hex::encode([number as u8; 32]));
    let text = |text: &str| text.to_owned();
    let description = Description {
        serial: format!("phone-{number}"),
        model: text("simulated"),
        os: text("none"),
        os_version: text("0"),
        image: String::new(),
        architecture: text("none"),
        agent_version: text("0"),
    };
    let (Admission::Pending(phone) | Admission::Admitted(phone)) = services.phones.register(key, description, None, 0)?;
    let by = UserName::try_from(String::from("admin"))?;
    Ok(services.quarantine.release(&phone.id, "simulated", &by)?)
}
