//! Drive: the lease by which one operator leads a phone through its twin, and what follows from it.
//!
//! ```text
//!   operator's hand ─▶ log (origin: help-desk) ─▶ twin (by its feeder)
//!                          └─▶ phone (Command.input) ─▶ its own files change ─▶ log (origin: phone)
//!   guest's completed change ─▶ held while input settles ─▶ the phone did it itself? nothing to do
//!                                                       └▶ log (origin: help-desk) ─▶ Command.apply
//! ```
//!
//! Input reaches both sides, so most changes are made by both; one that is applied *and* done again by the phone's own programs would be
//! done twice. Therefore a guest's change waits until the phone has had time to do the same, and is sent only if it did not.
//!
//! Promises: one operator at a time; the lease ends by itself; what the phone changed since is never overwritten: it stands, ours is
//! kept in the log, and the conflict is shown until somebody dismisses it.

mod conflicts;
mod lease;
mod settle;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use flash::GuestChange;
use store::PhoneId;
use sync_protocol::event::{Frame, Kind, Origin};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub use conflicts::Conflict;
use conflicts::Conflicts;
use lease::{CHANGES_WAITING_MAX, FRAMES_WAITING_MAX, Keeping};

use crate::chain::Chain;
use crate::commands::{Answer, CommandError, Commands};
use crate::flashes::{Flashes, FlashesError};
use crate::identity::UserName;
use crate::input::{self, TimedFrame};
use crate::live::{Live, Notice};
use crate::log::{LogError, PhoneLogs};
use crate::phones::Phones;
use crate::proof::Proofs;
use crate::records::{RecordError, Table};
use crate::sync::Links;
use crate::twin::{InUse, TwinError, Twins};

/// Before a phone is asked again for what it could not read.
const RESCAN_AGAIN: Duration = Duration::from_secs(60);
/// Events read at a time while looking for what overtook a change of ours.
const OVERTAKEN_PAGE_EVENTS: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    #[error("{0} drives this phone")]
    Held(UserName),
    #[error("you do not drive this phone")]
    NotYours,
    #[error("the twin is busy with input already")]
    Congested,
    #[error("there is no conflict {0}")]
    NoConflict(u64),
    #[error(transparent)]
    Twin(#[from] TwinError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error("interrupted")]
    Interrupted,
}

#[derive(Debug, Clone)]
pub struct Lease {
    pub operator: UserName,
    pub since: SystemTime,
    pub expires: SystemTime,
}

/// Where guests' changes go while somebody drives, for twins that start meanwhile.
#[derive(Clone, Default)]
pub struct Leads {
    changes: Arc<Mutex<HashMap<PhoneId, mpsc::Sender<GuestChange>>>>,
}

impl Leads {
    pub fn of(&self, phone: &PhoneId) -> Option<mpsc::Sender<GuestChange>> {
        lock(&self.changes).get(phone).cloned()
    }

    fn set(&self, phone: &PhoneId, changes: Option<mpsc::Sender<GuestChange>>) {
        match changes {
            Some(changes) => lock(&self.changes).insert(phone.clone(), changes),
            None => lock(&self.changes).remove(phone),
        };
    }
}

#[derive(Clone)]
pub struct Drive {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Commands,
    logs: PhoneLogs,
    proofs: Proofs,
    links: Links,
    twins: Twins,
    flashes: Flashes,
    phones: Phones,
    leads: Leads,
    conflicts: Conflicts,
    live: Live,
    lifetime: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
    leases: Mutex<HashMap<PhoneId, Held>>,
}

struct Held {
    lease: watch::Sender<Lease>,
    frames: mpsc::Sender<Frame>,
    end: CancellationToken,
    /// The twin is not parked under the operator's hands.
    _used: InUse,
}

/// What drive is made of.
pub struct DriveParts {
    pub commands: Commands,
    /// The phones' answers.
    pub answers: mpsc::Receiver<Answer>,
    pub logs: PhoneLogs,
    pub proofs: Proofs,
    pub links: Links,
    pub twins: Twins,
    pub flashes: Flashes,
    pub phones: Phones,
    pub leads: Leads,
    pub conflicts: Table<Conflict>,
    pub live: Live,
    pub lifetime: Duration,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Drive {
    /// Reads the conflicts that nobody has dismissed, and begins to listen for answers. Blocks.
    pub fn open(parts: DriveParts) -> Result<Drive, RecordError> {
        let conflicts = Conflicts::open(parts.conflicts, parts.live.clone())?;
        let inner = Arc::new(Inner {
            commands: parts.commands,
            logs: parts.logs,
            proofs: parts.proofs,
            links: parts.links,
            twins: parts.twins,
            flashes: parts.flashes,
            phones: parts.phones,
            leads: parts.leads,
            conflicts,
            live: parts.live,
            lifetime: parts.lifetime,
            tasks: parts.tasks.clone(),
            stop: parts.stop,
            leases: Mutex::default(),
        });
        parts.tasks.spawn(inner.clone().listen(parts.answers));
        Ok(Drive { inner })
    }

    pub fn lease(&self, phone: &PhoneId) -> Option<Lease> {
        lock(&self.inner.leases).get(phone).map(|held| held.lease.borrow().clone())
    }

    pub fn drives(&self, phone: &PhoneId, operator: &UserName) -> bool {
        self.lease(phone).is_some_and(|lease| lease.operator == *operator)
    }

    /// Makes or renews the lease of `operator`.
    pub async fn take(&self, phone: &PhoneId, operator: &UserName) -> Result<Lease, DriveError> {
        self.inner.twins.machine(phone)?;
        let (lease, fresh) = self.enter(phone, operator)?;
        if let Some(keeping) = fresh {
            let changes = self.inner.leads.of(phone);
            self.inner.tasks.spawn(keeping.run());
            self.inner.lead(phone, changes).await;
        }
        self.inner.live.tell(Notice::Drive { phone: phone.clone() });
        Ok(lease)
    }

    /// Enters the lease into the register; the task that will own it, if it is a new one.
    fn enter(&self, phone: &PhoneId, operator: &UserName) -> Result<(Lease, Option<Keeping>), DriveError> {
        let now = SystemTime::now();
        let expires = now + self.inner.lifetime;
        let mut leases = lock(&self.inner.leases);
        if let Some(held) = leases.get(phone) {
            if held.lease.borrow().operator != *operator {
                return Err(DriveError::Held(held.lease.borrow().operator.clone()));
            }
            held.lease.send_modify(|lease| lease.expires = expires);
            return Ok((held.lease.borrow().clone(), None));
        }
        let lease = Lease { operator: operator.clone(), since: now, expires };
        let (sender, watched) = watch::channel(lease.clone());
        let (frames, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
        let (changes, changed) = mpsc::channel(CHANGES_WAITING_MAX);
        let end = self.inner.stop.child_token();
        leases.insert(phone.clone(), Held { lease: sender, frames, end: end.clone(), _used: self.inner.twins.in_use(phone) });
        self.inner.leads.set(phone, Some(changes));
        let keeping = Keeping {
            inner: self.inner.clone(),
            phone: phone.clone(),
            lease: watched,
            frames: waiting,
            changes: changed,
            end,
        };
        Ok((lease, Some(keeping)))
    }

    pub async fn give_back(&self, phone: &PhoneId, operator: &UserName) -> Result<(), DriveError> {
        match lock(&self.inner.leases).get(phone) {
            Some(held) if held.lease.borrow().operator == *operator => held.end.cancel(),
            _ => return Err(DriveError::NotYours),
        }
        Ok(())
    }

    /// Ends the lease whoever holds it.
    pub fn revoke(&self, phone: &PhoneId) {
        if let Some(held) = lock(&self.inner.leases).get(phone) {
            held.end.cancel();
        }
    }

    /// Carries out what the operator did, in its rhythm.
    pub async fn input(
        &self,
        phone: &PhoneId,
        operator: &UserName,
        frames: Vec<TimedFrame>,
    ) -> Result<(), DriveError> {
        for TimedFrame { after, frame } in frames {
            tokio::time::sleep(after).await;
            self.give(phone, operator, frame)?;
        }
        Ok(())
    }

    /// Hands in one frame, without waiting.
    pub fn give(&self, phone: &PhoneId, operator: &UserName, frame: Frame) -> Result<(), DriveError> {
        let machine = self.inner.twins.machine(phone)?;
        let leases = lock(&self.inner.leases);
        let held = leases.get(phone).filter(|held| held.lease.borrow().operator == *operator);
        let held = held.ok_or(DriveError::NotYours)?;
        let frame = input::on_panel(frame, machine.width, machine.height);
        held.frames.try_send(frame).map_err(|_| DriveError::Congested)
    }

    pub fn conflicts_open(&self, phone: &PhoneId) -> usize {
        self.inner.conflicts.open_of(phone)
    }

    /// Newest first. Blocks.
    pub fn conflicts(&self, phone: &PhoneId) -> Result<Vec<Conflict>, DriveError> {
        Ok(self.inner.conflicts.list(phone)?)
    }

    /// Blocks.
    pub fn dismiss(&self, phone: &PhoneId, id: u64) -> Result<(), DriveError> {
        self.inner.conflicts.dismiss(phone, id)
    }
}

impl Inner {
    /// Gives the lead to the running twin's guest, or back to the phone.
    async fn lead(&self, phone: &PhoneId, changes: Option<mpsc::Sender<GuestChange>>) {
        let Ok(machine) = self.twins.machine(phone) else { return };
        let handed = blocking(move || Ok(machine.flash.set_lead(changes)?)).await;
        if let Err(error) = handed {
            warn!(%phone, error = %Chain(&error), "the lead was not handed over");
        }
    }

    fn forget(&self, phone: &PhoneId) {
        lock(&self.leases).remove(phone);
        self.leads.set(phone, None);
        self.live.tell(Notice::Drive { phone: phone.clone() });
    }

    /// Acts on the phones' answers until nobody can give any.
    async fn listen(self: Arc<Self>, mut answers: mpsc::Receiver<Answer>) {
        loop {
            let answer = tokio::select! {
                () = self.stop.cancelled() => return,
                answer = answers.recv() => answer,
            };
            let Some(answer) = answer else { return };
            let (this, phone) = (self.clone(), answer.phone.clone());
            if let Err(error) = blocking(move || this.answered(&answer)).await {
                warn!(%phone, error = %Chain(&error), "a phone's answer was not acted on");
            }
        }
    }

    /// What the phone did not make is a conflict: its own version stands, and is read again so that the flash has it. So is what it
    /// made after something of its own that the log has later.
    fn answered(&self, answer: &Answer) -> Result<(), DriveError> {
        if conflicts::is_failed_rescan(answer) {
            self.ask_again_later(answer);
            return Ok(());
        }
        let mut doubtful = BTreeSet::new();
        for (change, text) in conflicts::refused(answer) {
            self.conflicts.record(&answer.phone, answer.result.command_id, &change.path, &text)?;
            doubtful.extend(conflicts::paths(&change));
        }
        doubtful.extend(self.overtaken(answer)?);
        // Reading these again tells what is there, but not what of ours has been moved elsewhere by the phone, or lies beneath.
        if !doubtful.is_empty() {
            self.logs.doubt(&answer.phone)?;
            self.proofs.settle_doubts(&answer.phone);
        }
        doubtful.iter().try_for_each(|path| self.commands.rescan(&answer.phone, path).map(drop))?;
        if answer.asked.is_some() {
            self.commands.done(&answer.phone, answer.result.command_id)?;
        }
        Ok(())
    }

    /// What a phone could not read again, for want of room in its journal, it is asked for until it can.
    fn ask_again_later(&self, answer: &Answer) {
        let (commands, phone, id) = (self.commands.clone(), answer.phone.clone(), answer.result.command_id);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RESCAN_AGAIN) => {}
            }
            let (to, asking) = (phone.clone(), commands);
            if let Err(error) = blocking(move || Ok(asking.again(&to, id)?)).await {
                warn!(%phone, error = %Chain(&error), "the phone is not asked again");
            }
        });
    }

    /// Paths of ours of which the phone had told otherwise before it made our change, when that was in the log already: there, the phone's
    /// seems to have come last.
    fn overtaken(&self, answer: &Answer) -> Result<Vec<Vec<u8>>, DriveError> {
        let ours = conflicts::asked(answer);
        let mut position = answer.result.command_id;
        let mut overtaken = Vec::new();
        while !ours.is_empty() {
            let page = self.logs.read(&answer.phone, position + 1, OVERTAKEN_PAGE_EVENTS)?;
            let Some((last, _)) = page.last() else { break };
            position = *last;
            let by_phone = page.iter().filter(|(_, event)| event.origin == Origin::Phone && event.seq <= answer.result.at_seq);
            for (_, event) in by_phone {
                if let Kind::File(change) = &event.kind {
                    let theirs = conflicts::paths(&change.clone().into());
                    let met = ours.iter().filter(|ours| theirs.iter().any(|theirs| conflicts::meet(ours, theirs)));
                    overtaken.extend(met.cloned());
                }
            }
        }
        Ok(overtaken)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriveError> + Send + 'static,
) -> Result<T, DriveError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DriveError::Interrupted)?
}
