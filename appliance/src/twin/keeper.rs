//! The keeper of one twin: the only task that starts, feeds, parks and ends its machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use store::PhoneId;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::control::{Control, MachineEvent};
use super::decide::{AfterCrash, Crashes, TwinState};
use super::gate::Identity;
use super::launch::{self, Launched};
use super::process::{Folder, Machine, ProcessError, Saved};
use super::{End, Inner, TwinError, TwinStatus};
use crate::flashes::{FlashesError, TwinFlash};
use crate::live::Notice;
use crate::phones::{Phone, now_us};
use crate::replay::{Beginning, Fed, Feeder, GuestClock, wall_now_us};

/// Files in the folder of a saved machine.
const MACHINE: &str = "machine";
const LAYER: &str = "layer";

pub(super) type Reply = oneshot::Sender<Result<(), TwinError>>;

#[derive(Debug)]
pub(super) enum Request {
    Start(Reply),
    /// Only if nobody has stopped, parked or given up on it.
    StartByItself(Reply),
    /// With what to say of it.
    Park(Reply, String),
    Stop(Reply),
    /// Saves the running machine into a folder, and lets it go on.
    Copy(PathBuf, oneshot::Sender<Result<Copied, TwinError>>),
}

/// A running machine, as it was.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) saved: Saved,
    /// What its guest had written.
    pub(super) layer: PathBuf,
    /// Last event of the log that it had been given.
    pub(super) position: u64,
    /// Last event in its flash.
    pub(super) files: u64,
}

pub(super) struct Keeper {
    phone: PhoneId,
    inner: Arc<Inner>,
    status: watch::Sender<TwinStatus>,
    crashes: Crashes,
    /// Somebody stopped or parked it: it does not start by itself.
    at_rest: bool,
    restart_at: Option<tokio::time::Instant>,
    /// The machine that ended had been parked: it is to go on from there once more.
    retrying: bool,
    running: Option<Keeping>,
}

/// A running machine with all that belongs to it.
struct Keeping {
    machine: Machine,
    events: broadcast::Receiver<MachineEvent>,
    flash: TwinFlash,
    /// What its machine began with, now or before it was parked.
    base: Option<PathBuf>,
    /// It began where it was parked, and may do so once more if it ends by itself.
    retry: bool,
    /// Serves the flash; ends when the machine does.
    server: oneshot::Receiver<Result<(), FlashesError>>,
    feeding: CancellationToken,
    /// What a feeder of it is made of.
    food: Feeder,
    feeder: Option<JoinHandle<Fed>>,
    /// What the feeder said when it ended.
    fed: Option<Fed>,
    _slot: Slot,
}

/// What is kept beside a parked machine.
#[derive(Debug, Serialize, Deserialize)]
struct Parked {
    fed: u64,
    boot_id: Option<String>,
    image: String,
    /// Last event in its flash: one that was parked before it was fed has more files than input.
    #[serde(default)]
    files: u64,
    /// The base snapshot that the machine was saved as the difference from.
    #[serde(default)]
    base: Option<PathBuf>,
    /// The guest's, when the machine was saved.
    #[serde(default)]
    clock: Option<GuestClock>,
}

/// The right to run; kept over a second attempt.
type Slot = Arc<OwnedSemaphorePermit>;

/// What a machine begins with.
#[derive(Debug, Clone)]
enum Start {
    /// The machine that was parked in this folder; once more if it ends by itself and that may be.
    Parked { folder: PathBuf, retry: bool },
    /// The base snapshot of its image, which is to be there; at the gate.
    Base,
    /// Its image's kernel.
    Kernel,
}

enum Happened {
    Asked(Request),
    Ended(End),
    PhoneRebooted,
    TimeToRestart,
    Stopping,
}

impl Keeper {
    pub(super) fn new(phone: PhoneId, inner: Arc<Inner>, status: watch::Sender<TwinStatus>) -> Keeper {
        let crashes = Crashes::default();
        Keeper { phone, inner, status, crashes, at_rest: false, restart_at: None, retrying: false, running: None }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        if self.parked_folder().join("parked.json").exists() {
            self.set(TwinState::Parked, "parked by an earlier run of the appliance");
        }
        loop {
            match self.next(&mut requests).await {
                Happened::Asked(request) => self.answer(request).await,
                Happened::Ended(end) => self.crashed(end).await,
                Happened::PhoneRebooted => {
                    info!(phone = %self.phone, "the phone booted anew, and so does its twin");
                    self.end().await;
                    if let Err(error) = self.start().await {
                        self.cannot_start(&error);
                    }
                }
                Happened::TimeToRestart => {
                    self.restart_at = None;
                    if let Err(error) = self.start().await {
                        self.cannot_start(&error);
                    }
                }
                Happened::Stopping => {
                    self.end().await;
                    return;
                }
            }
        }
    }

    async fn next(&mut self, requests: &mut mpsc::Receiver<Request>) -> Happened {
        let restart_at = self.restart_at;
        let restart = async {
            match restart_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let running = &mut self.running;
        let ended = async {
            match running {
                Some(keeping) => keeping.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.inner.stop.cancelled() => Happened::Stopping,
            request = requests.recv() => request.map_or(Happened::Stopping, Happened::Asked),
            ended = ended => ended,
            () = restart => Happened::TimeToRestart,
        }
    }

    async fn answer(&mut self, request: Request) {
        let (reply, result) = match request {
            Request::Start(reply) => {
                self.crashes.forgive();
                self.at_rest = false;
                (reply, self.start().await)
            }
            Request::StartByItself(reply) if self.at_rest || self.restart_at.is_some() => (reply, Ok(())),
            Request::StartByItself(reply) => (reply, self.start().await),
            Request::Park(reply, why) => (reply, self.park(&why).await),
            Request::Stop(reply) => (reply, self.stop().await),
            Request::Copy(folder, reply) => {
                // An error means that nobody waits for the answer.
                let _ = reply.send(self.copy(&folder).await);
                return;
            }
        };
        match &result {
            // It may simply be too early, or too full: neither is a failure of this twin.
            Err(error @ (TwinError::Incomplete | TwinError::TooMany(_))) => {
                self.set(self.state(), &error.to_string());
            }
            Err(error) if self.running.is_none() => self.cannot_start(error),
            _ => {}
        }
        // An error means that nobody waits for the answer.
        let _ = reply.send(result);
    }

    fn cannot_start(&mut self, error: &TwinError) {
        warn!(phone = %self.phone, %error, "twin failed");
        self.at_rest = true;
        self.set(TwinState::Failed, &error.to_string());
    }

    async fn crashed(&mut self, end: End) {
        warn!(phone = %self.phone, how = end.how, last_words = end.last_words, "twin ended");
        self.retrying = self.running.as_ref().is_some_and(|keeping| keeping.retry);
        self.end().await;
        let how = end.how.clone();
        self.status.send_modify(|status| status.last_end = Some(end));
        match self.crashes.crashed(Instant::now(), self.inner.config.restarts_max) {
            AfterCrash::StartAgain { after } => {
                self.restart_at = Some(tokio::time::Instant::now() + after);
                self.status.send_modify(|status| status.restarts += 1);
                self.set(TwinState::Starting, &format!("it ended ({how}) and is started again"));
            }
            AfterCrash::GiveUp => {
                self.at_rest = true;
                self.set(TwinState::Failed, &format!("it ended too often; the last time: {how}"));
            }
        }
    }

    async fn start(&mut self) -> Result<(), TwinError> {
        if self.running.is_some() {
            return Ok(());
        }
        self.restart_at = None;
        let slots = self.inner.slots.clone();
        let slot = slots.try_acquire_owned().map_err(|_| TwinError::TooMany(self.inner.config.running_max))?;
        let slot = Arc::new(slot);
        let retrying = std::mem::take(&mut self.retrying);
        let was_parked = retrying || self.state() == TwinState::Parked;
        self.set(TwinState::Starting, "");
        let resumed = if was_parked {
            let detail = if retrying { "it ended, and went on from where it was parked" } else { "" };
            self.bring_up(slot.clone(), Start::Parked { folder: self.parked_folder(), retry: !retrying }, detail).await
        } else {
            self.begin(slot.clone(), "").await
        };
        let started = match resumed {
            // The log tells all that the parked machine had seen.
            Err(error @ (TwinError::Process(ProcessError::Ended(_)) | TwinError::Flash(FlashesError::Parked(_)))) if was_parked => {
                let why = format!("its parked machine is of no use, so it began anew: {error}");
                warn!(phone = %self.phone, why);
                self.begin(slot, &why).await
            }
            other => other,
        };
        if let Err(TwinError::Incomplete) = started {
            self.set(TwinState::Stopped, "");
        }
        started
    }

    /// Begins with the image's base snapshot if that is of use, and boots otherwise.
    async fn begin(&mut self, slot: Slot, detail: &str) -> Result<(), TwinError> {
        // Whatever was parked before is older than what begins now.
        remove(&self.parked_folder());
        match self.bring_up(slot.clone(), Start::Base, detail).await {
            Err(error @ TwinError::Base(_)) => {
                let why = format!("it booted: {error}");
                warn!(phone = %self.phone, why);
                self.bring_up(slot, Start::Kernel, &why).await
            }
            begun => begun,
        }
    }

    /// Has a machine run that begins as `start` says. `detail` is what to say of it.
    async fn bring_up(&mut self, slot: Slot, start: Start, detail: &str) -> Result<(), TwinError> {
        let phone = self.inner.released(&self.phone)?;
        let identity = Identity::of(&phone.id, &phone.description.serial);
        let retry = matches!(start, Start::Parked { retry: true, .. });
        let inner = self.inner.clone();
        let prepared = tokio::task::spawn_blocking(move || prepare(&inner, &phone, start)).await;
        let Prepared { flash, image, beginning, wall_us, saved, parked } = prepared.map_err(|_| TwinError::Stopping)??;
        let resumed = parked.is_some();
        let config = launch::config(&image, saved, self.inner.config.cage);
        let folder = Folder::make(&self.inner.runtime.join(self.phone.as_str()))?;
        let launched = self.inner.launch(folder, &image, &config, &flash, resumed).await?;
        let control = launched.machine.control().clone();
        let (running, status) = launched.running(&config, &flash).await?;
        launched.tell(|gate| if resumed { gate.reseed() } else { gate.open(&identity, wall_us) })?;
        let began = status.guest_us.map(|guest_us| GuestClock { wall_us, guest_us });
        let fed = beginning.input.saturating_sub(1);
        let (base, clock) = match parked {
            Some(parked) => (parked.base, parked.clock.or(began)),
            None => (config.restore.map(|base| base.path), began),
        };
        let Launched { machine, events, server, gate } = launched;
        let feeder = Feeder {
            phone: self.phone.clone(),
            logs: self.inner.logs.clone(),
            flash: flash.clone(),
            control,
            width: running.width,
            height: running.height,
            beginning,
            blank: (!resumed).then_some(status.generation),
            clock,
            gate: Arc::new(gate),
            status: self.status.clone(),
            live: self.inner.live.clone(),
        };
        let pid = machine.pid();
        let feeding = self.inner.stop.child_token();
        info!(phone = %self.phone, pid, resumed, base = base.is_some(), "twin runs");
        let food = feeder.clone();
        let mut keeping =
            Keeping { machine, events, flash, base, retry, server, feeding: feeding.clone(), food, feeder: None, fed: None, _slot: slot };
        keeping.feed(feeder, feeding);
        self.running = Some(keeping);
        self.status.send_modify(|status| {
            status.running = Some(running);
            status.pid = pid;
            // Before it is said to run: what an earlier machine was fed must not be taken for this one's.
            status.fed = fed;
        });
        self.set(TwinState::Running, detail);
        self.inner.prepare_spare(image);
        Ok(())
    }

    async fn park(&mut self, why: &str) -> Result<(), TwinError> {
        let Some(keeping) = self.running.as_mut() else {
            return if self.state() == TwinState::Parked { Ok(()) } else { Err(TwinError::NothingToPark) };
        };
        let folder = self.inner.parked.join(self.phone.as_str());
        let image = keeping.flash.image_id().to_owned();
        let fed = keeping.stop_feeding().await.ok_or(TwinError::Stopping)?;
        let control = keeping.machine.control().clone();
        let (flash, base) = (keeping.flash.clone(), keeping.base.clone());
        self.set(TwinState::Parking, "");
        let saved = async {
            let folder = Folder::make(&folder)?;
            let base = save(&control, flash.clone(), folder.path(), base).await?.base;
            let files = flash.position();
            let record = serde_json::to_vec(&Parked { fed: fed.position, boot_id: fed.boot_id, image, files, base, clock: fed.clock }).unwrap_or_default();
            // Last: its presence says that the rest is whole.
            let path = folder.path().join("parked.json");
            std::fs::write(&path, record)
                .map_err(|source| TwinError::Process(ProcessError::File { action: "write", path, source }))
        };
        let result = saved.await;
        self.at_rest = true;
        self.end().await;
        match &result {
            Ok(()) => self.set(TwinState::Parked, why),
            Err(_) => remove(&folder),
        }
        result
    }

    /// Saves the running machine and what its guest wrote into `folder`. The machine goes on, and is fed on.
    async fn copy(&mut self, folder: &Path) -> Result<Copied, TwinError> {
        let stop = self.inner.stop.clone();
        let keeping = self.running.as_mut().ok_or(TwinError::NotRunning)?;
        let fed = keeping.stop_feeding().await.ok_or(TwinError::Stopping)?;
        let control = keeping.machine.control().clone();
        let saved = save(&control, keeping.flash.clone(), folder, keeping.base.clone()).await;
        // Whatever became of either, one that still runs is to be fed.
        let resumed = control.resume().await;
        let files = keeping.flash.position();
        let beginning = Beginning { files, input: fed.position + 1, boot_id: fed.boot_id };
        keeping.feed(Feeder { beginning, blank: None, clock: fed.clock, ..keeping.food.clone() }, stop.child_token());
        let saved = saved?;
        resumed?;
        Ok(Copied { saved, layer: folder.join(LAYER), position: fed.position, files })
    }

    async fn stop(&mut self) -> Result<(), TwinError> {
        self.at_rest = true;
        self.restart_at = None;
        self.retrying = false;
        self.end().await;
        remove(&self.parked_folder());
        self.set(TwinState::Stopped, "");
        Ok(())
    }

    /// Ends process, flash server and feeder, in that order of dependence, and waits for all.
    async fn end(&mut self) {
        let Some(keeping) = self.running.take() else { return };
        let Keeping { machine, server, feeding, feeder, .. } = keeping;
        self.status.send_modify(|status| {
            status.running = None;
            status.pid = None;
            // What becomes of it is decided later; from here on it must not be taken for one that can be used.
            if status.state == TwinState::Running {
                (status.state, status.since_us) = (TwinState::Stopped, now_us());
            }
        });
        feeding.cancel();
        machine.end().await;
        if let Ok(Err(error)) = server.await {
            warn!(phone = %self.phone, %error, "the twin's flash server failed");
        }
        // Its machine is gone, so it cannot be waiting for it.
        if let Some(Err(error)) = futures::future::OptionFuture::from(feeder).await {
            warn!(phone = %self.phone, %error, "the twin's feeder failed");
        }
    }

    fn parked_folder(&self) -> PathBuf {
        self.inner.parked.join(self.phone.as_str())
    }

    fn state(&self) -> TwinState {
        self.status.borrow().state
    }

    fn set(&self, state: TwinState, detail: &str) {
        self.status.send_modify(|status| {
            if status.state != state {
                status.since_us = now_us();
            }
            status.state = state;
            status.detail = detail.to_owned();
        });
        self.inner.live.tell(Notice::Twin { phone: self.phone.clone() });
    }
}

impl Keeping {
    /// Resolves when the machine is no more, or must be another. Cancel-safe.
    async fn ended(&mut self) -> Happened {
        loop {
            let feeder = async {
                match &mut self.feeder {
                    Some(feeder) => feeder.await.ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                how = self.machine.ended() => return ended(how, ""),
                event = self.events.recv() => match event {
                    Ok(event) if event.event == "exit" => {
                        let detail = event.detail.as_ref().and_then(|detail| detail.as_str()).unwrap_or_default();
                        let (why, last_words) = detail.split_once('\n').unwrap_or((detail, ""));
                        let why = why.trim_end_matches(':');
                        let how = if why.is_empty() { event.reason } else { format!("{}: {why}", event.reason) };
                        return ended(format!("the guest ended by {how}"), last_words);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // The connection is gone; so is, or will be, the process.
                    Err(broadcast::error::RecvError::Closed) => return ended(self.machine.ended().await, ""),
                },
                fed = feeder => {
                    self.feeder = None;
                    let rebooted = fed.as_ref().is_some_and(|fed| fed.phone_rebooted);
                    self.fed = fed;
                    if rebooted {
                        return Happened::PhoneRebooted;
                    }
                }
            }
        }
    }

    /// Has `feeder` feed it until `feeding` is cancelled.
    fn feed(&mut self, feeder: Feeder, feeding: CancellationToken) {
        self.feeding = feeding.clone();
        self.feeder = Some(tokio::spawn(feeder.run(feeding)));
        self.fed = None;
    }

    /// Stops the feeder between two events; says how far it came.
    async fn stop_feeding(&mut self) -> Option<Fed> {
        self.feeding.cancel();
        self.feeder_ended().await;
        self.fed.clone()
    }

    async fn feeder_ended(&mut self) {
        if let Some(feeder) = self.feeder.take() {
            self.fed = feeder.await.ok();
        }
    }
}

/// Pauses a machine and saves it into `folder`, with what its guest wrote. `base` is the base snapshot that it began with; one that booted, and
/// be it before it was parked, is saved whole.
async fn save(control: &Control, flash: TwinFlash, folder: &Path, base: Option<PathBuf>) -> Result<Saved, TwinError> {
    control.pause().await?;
    let (path, layer) = (folder.join(MACHINE), folder.join(LAYER));
    let differs = control.save(&path, base.is_none()).await?;
    tokio::task::spawn_blocking(move || flash.save(&layer)).await.map_err(|_| TwinError::Stopping)??;
    Ok(Saved { path, base: base.filter(|_| differs), verify: false })
}

fn ended(how: String, last_words: &str) -> Happened {
    Happened::Ended(End { at_us: now_us(), how, last_words: last_words.to_owned() })
}

struct Prepared {
    flash: TwinFlash,
    image: image_builder::Image,
    beginning: Beginning,
    /// What the guest's wall clock is to show when it begins.
    wall_us: i64,
    /// What the machine begins with; none: with its image's kernel.
    saved: Option<Saved>,
    /// Of a machine that was parked.
    parked: Option<Parked>,
}

/// Finds image, flash and beginning for a machine. Blocks.
fn prepare(inner: &Inner, phone: &Phone, start: Start) -> Result<Prepared, TwinError> {
    let image = inner.flashes.image_of(phone)?;
    let lead = inner.leads.of(&phone.id);
    if let Start::Parked { folder, .. } = start {
        let read = std::fs::read(folder.join("parked.json")).ok();
        let record = read.and_then(|bytes| serde_json::from_slice::<Parked>(&bytes).ok());
        // A machine goes on only on the image that it was saved with.
        let parked = record.filter(|record| record.image == image.manifest().hash).ok_or_else(|| FlashesError::Parked(phone.id.clone()))?;
        let files = parked.files.max(parked.fed);
        let flash = inner.flashes.twin(phone, files, Some(&folder.join(LAYER)), lead)?;
        let beginning = Beginning { files, input: parked.fed + 1, boot_id: parked.boot_id.clone() };
        let saved = Saved { path: folder.join(MACHINE), base: parked.base.clone(), verify: false };
        return Ok(Prepared { flash, image, beginning, wall_us: wall_now_us(), saved: Some(saved), parked: Some(parked) });
    }
    let beginning = crate::replay::beginning(&inner.logs, &inner.origins, &phone.id)?.ok_or(TwinError::Incomplete)?;
    let flash = inner.flashes.twin(phone, beginning.files, None, lead)?;
    let wall_us = crate::replay::wall_us(&inner.logs, &phone.id, beginning.input)?;
    let saved = if let Start::Base = start { inner.bases.find(&image) } else { None };
    Ok(Prepared { flash, image, beginning, wall_us, saved, parked: None })
}

/// `pollux-twin` in the folder of the running program; of tests, which run from a folder below it, one up.
pub fn binary_beside_us() -> PathBuf {
    let ours = std::env::current_exe().unwrap_or_default();
    let folder = ours.parent().map(std::path::Path::to_owned).unwrap_or_default();
    let beside = folder.join("pollux-twin");
    match folder.parent().map(|up| up.join("pollux-twin")) {
        Some(above) if !beside.is_file() && above.is_file() => above,
        _ => beside,
    }
}

fn remove(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), %error, "cannot remove a parked machine");
        }
        _ => {}
    }
}
