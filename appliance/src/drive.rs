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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::event::Frame;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::commands::{CommandError, Commands};
use crate::identity::UserName;
use crate::input::{self, TimedFrame};
use crate::live::{Live, Notice};
use crate::records::{RecordError, Table};
use crate::twin::{TwinError, Twins};

/// Frames that wait to be logged: a hand makes at most some hundred a second.
const FRAMES_WAITING_MAX: usize = 512;

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

/// A path that phone and help-desk changed differently.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conflict {
    pub id: u64,
    pub at_us: u64,
    pub path: Vec<u8>,
    pub our_position: u64,
    pub text: String,
    pub dismissed: bool,
}

#[derive(Debug, Clone, Default)]
pub enum Lead {
    #[default]
    Mirror,
}

/// Who leads each phone, for the flashes of twins that start meanwhile.
#[derive(Clone, Default)]
pub struct GuestChanges {}

impl GuestChanges {
    pub fn of(&self, _phone: &PhoneId) -> Lead {
        Lead::Mirror
    }
}

#[derive(Clone)]
pub struct Drive {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Commands,
    twins: Twins,
    conflicts: Table<Conflict>,
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
}

/// What drive is made of.
pub struct DriveParts {
    pub commands: Commands,
    pub logs: crate::log::PhoneLogs,
    pub links: crate::sync::Links,
    pub twins: Twins,
    pub flashes: crate::flashes::Flashes,
    pub leads: GuestChanges,
    pub conflicts: Table<Conflict>,
    pub live: Live,
    pub lifetime: Duration,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Drive {
    pub fn new(parts: DriveParts) -> Drive {
        let DriveParts { commands, twins, conflicts, live, lifetime, tasks, stop, .. } = parts;
        let leases = Mutex::default();
        Drive { inner: Arc::new(Inner { commands, twins, conflicts, live, lifetime, tasks, stop, leases }) }
    }

    pub fn lease(&self, phone: &PhoneId) -> Option<Lease> {
        self.leases().get(phone).map(|held| held.lease.borrow().clone())
    }

    /// Makes or renews the lease of `operator`.
    pub async fn take(&self, phone: &PhoneId, operator: &UserName) -> Result<Lease, DriveError> {
        self.inner.twins.machine(phone)?;
        let lease = {
            let mut leases = self.leases();
            let now = SystemTime::now();
            let expires = now + self.inner.lifetime;
            match leases.get(phone) {
                Some(held) if held.lease.borrow().operator != *operator => {
                    return Err(DriveError::Held(held.lease.borrow().operator.clone()));
                }
                Some(held) => {
                    held.lease.send_modify(|lease| lease.expires = expires);
                    held.lease.borrow().clone()
                }
                None => {
                    let lease = Lease { operator: operator.clone(), since: now, expires };
                    let (sender, watched) = watch::channel(lease.clone());
                    let (frames, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
                    let end = self.inner.stop.child_token();
                    leases.insert(phone.clone(), Held { lease: sender, frames, end: end.clone() });
                    self.inner.tasks.spawn(self.clone().keep(phone.clone(), watched, waiting, end));
                    lease
                }
            }
        };
        self.inner.live.tell(Notice::Drive { phone: phone.clone() });
        Ok(lease)
    }

    pub async fn give_back(&self, phone: &PhoneId, operator: &UserName) -> Result<(), DriveError> {
        match self.leases().get(phone) {
            Some(held) if held.lease.borrow().operator == *operator => held.end.cancel(),
            _ => return Err(DriveError::NotYours),
        }
        Ok(())
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
        let leases = self.leases();
        let held = leases.get(phone).filter(|held| held.lease.borrow().operator == *operator);
        let held = held.ok_or(DriveError::NotYours)?;
        let frame = input::on_panel(frame, machine.width, machine.height);
        held.frames.try_send(frame).map_err(|_| DriveError::Congested)
    }

    pub fn drives(&self, phone: &PhoneId, operator: &UserName) -> bool {
        self.lease(phone).is_some_and(|lease| lease.operator == *operator)
    }

    pub fn conflicts_open(&self, _phone: &PhoneId) -> usize {
        0
    }

    /// Newest first. Blocks.
    pub fn conflicts(&self, phone: &PhoneId) -> Result<Vec<Conflict>, DriveError> {
        let mut conflicts = self.inner.conflicts.list_under(&format!("{phone}/"))?;
        conflicts.reverse();
        Ok(conflicts)
    }

    /// Blocks.
    pub fn dismiss(&self, phone: &PhoneId, id: u64) -> Result<(), DriveError> {
        let key = format!("{phone}/{id:020}");
        let mut conflict = self.inner.conflicts.get(&key)?.ok_or(DriveError::NoConflict(id))?;
        conflict.dismissed = true;
        self.inner.conflicts.put(&key, &conflict)?;
        self.inner.live.tell(Notice::Conflict { phone: phone.clone() });
        Ok(())
    }

    /// Owns one lease until it ends.
    async fn keep(
        self,
        phone: PhoneId,
        lease: watch::Receiver<Lease>,
        mut frames: mpsc::Receiver<Frame>,
        end: CancellationToken,
    ) {
        loop {
            let left = lease.borrow().expires.duration_since(SystemTime::now());
            let Ok(left) = left else { break };
            let mut batch = Vec::new();
            tokio::select! {
                () = end.cancelled() => break,
                () = tokio::time::sleep(left) => continue,
                count = frames.recv_many(&mut batch, FRAMES_WAITING_MAX) => if count == 0 { break },
            }
            let (commands, to) = (self.inner.commands.clone(), phone.clone());
            match tokio::task::spawn_blocking(move || commands.input(&to, batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%phone, %error, "input does not reach the phone"),
                Err(_) => break,
            }
        }
        self.leases().remove(&phone);
        self.inner.live.tell(Notice::Drive { phone });
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<PhoneId, Held>> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
