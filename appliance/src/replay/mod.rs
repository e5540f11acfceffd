//! From the log to the flash and to the twin's screen.
//!
//! A [`follower`] task per released phone applies the log to the phone's flash as it grows. A [`feeder`] task per running twin gives
//! the same log to that machine: input to its devices, file changes to its flash, in order. Promises: both are functions of
//! the log; each knows its position. Leaves out: who appends to the log.

mod decide;
mod feeder;
mod follower;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::wire::HaveRoot;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use decide::{Beginning, GuestClock, Origins};
pub use feeder::{Fed, Feeder};
use follower::Follower;

use crate::flashes::Flashes;
use crate::intelligence::Intelligence;
use crate::live::Live;
use crate::log::{LogError, PhoneLogs};
use crate::phones::now_us;
use crate::records::Table;
use crate::twin::Twins;

/// Answers of one phone about its root hash that wait to be compared.
const ROOTS_MAX: usize = 8;
/// Events read from a log at a time.
const PAGE_EVENTS: usize = 256;
/// A phone whose clock shows less, microseconds since 1970, has none: 2020-01-01.
const SENSIBLE_US_MIN: i64 = 1_577_836_800_000_000;

/// How far a phone's flash has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Last event of the log.
    pub position: u64,
    /// Last event in the flash.
    pub applied: u64,
    /// Last event that reached the twin.
    pub fed: u64,
    /// Root hash of the flash at `applied`, in hex, within the image's sync roots.
    pub root: Option<String>,
    /// The phone's first scan has been received.
    pub complete: bool,
    pub proof: Option<Proof>,
    pub trouble: Option<String>,
}

/// Phone and flash compared by root hash at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub position: u64,
    pub at_us: u64,
    pub phone_root: String,
    pub flash_root: String,
}

/// Where a phone's twin may begin, kept so that the log need not be read from its start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeptOrigins {
    /// Events up to here have been seen.
    pub position: u64,
    pub origins: Origins,
}

/// The followers of all phones.
#[derive(Clone)]
pub struct Replays {
    inner: Arc<Inner>,
}

struct Inner {
    logs: PhoneLogs,
    flashes: Flashes,
    twins: Twins,
    intelligence: Intelligence,
    origins: Table<KeptOrigins>,
    phones: crate::phones::Phones,
    live: Live,
    tasks: TaskTracker,
    stop: CancellationToken,
    followers: Mutex<HashMap<PhoneId, Handle>>,
}

struct Handle {
    progress: watch::Receiver<Progress>,
    roots: mpsc::Sender<HaveRoot>,
}

/// What the followers are made of.
pub struct ReplaysParts {
    pub logs: PhoneLogs,
    pub flashes: Flashes,
    pub twins: Twins,
    pub intelligence: Intelligence,
    pub origins: Table<KeptOrigins>,
    pub phones: crate::phones::Phones,
    pub live: Live,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Replays {
    pub fn new(parts: ReplaysParts) -> Replays {
        let ReplaysParts { logs, flashes, twins, intelligence, origins, phones, live, tasks, stop } = parts;
        let inner = Inner { logs, flashes, twins, intelligence, origins, phones, live, tasks, stop, followers: Mutex::default() };
        Replays { inner: Arc::new(inner) }
    }

    /// Begins to apply the phone's log to its flash, if that is not done already.
    pub fn follow(&self, phone: &PhoneId) {
        let mut followers = self.followers();
        if followers.contains_key(phone) {
            return;
        }
        let (progress, watched) = watch::channel(Progress::default());
        let (roots, asked) = mpsc::channel(ROOTS_MAX);
        let follower = Follower::new(phone.clone(), self.inner.clone(), progress);
        self.inner.tasks.spawn(follower.run(asked));
        followers.insert(phone.clone(), Handle { progress: watched, roots });
    }

    pub fn progress(&self, phone: &PhoneId) -> Progress {
        let followed = self.followers().get(phone).map(|handle| handle.progress.borrow().clone());
        Progress { fed: self.inner.twins.status(phone).fed, ..followed.unwrap_or_default() }
    }

    /// A phone told its root hash: compare it when the flash is there.
    pub fn have_root(&self, phone: &PhoneId, root: HaveRoot) {
        if let Some(handle) = self.followers().get(phone) {
            // One that finds no room is asked for again.
            let _ = handle.roots.try_send(root);
        }
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<PhoneId, Handle>> {
        self.inner.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What our clock shows, as events tell it.
pub fn wall_now_us() -> i64 {
    i64::try_from(now_us()).unwrap_or(i64::MAX)
}

/// What a phone's clock showed at a position of its log, in microseconds since 1970; what ours shows if that is where the phone is, or if it
/// makes no sense. Blocks.
pub fn wall_us(logs: &PhoneLogs, phone: &PhoneId, position: u64) -> Result<i64, LogError> {
    let first = logs.read(phone, position, 1)?;
    let now_us = wall_now_us();
    let told_us = first.first().map(|(_, event)| event.wall_us);
    Ok(told_us.filter(|told_us| (SENSIBLE_US_MIN..now_us).contains(told_us)).unwrap_or(now_us))
}

/// Where a twin of `phone` that boots now begins; `None`: too early. Blocks.
pub fn beginning(
    logs: &PhoneLogs,
    origins: &Table<KeptOrigins>,
    phone: &PhoneId,
) -> Result<Option<Beginning>, LogError> {
    let KeptOrigins { mut position, mut origins } = origins.get(phone.as_str())?.unwrap_or_default();
    loop {
        let page = logs.read(phone, position + 1, PAGE_EVENTS)?;
        let Some((last, _)) = page.last() else { return Ok(origins.beginning(position)) };
        position = *last;
        page.iter().for_each(|(position, event)| origins.saw(*position, event));
    }
}
