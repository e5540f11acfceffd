//! Proof that a phone's files and its flash are the same, and healing where they are not.
//!
//! ```text
//!   asked ─▶ the phone reads its files again ─▶ roots compared ─▶ equal: proven at this position
//!                                                   ▲   │ unequal
//!                                           told anew   ▼
//!                                                   └── down to the first path that differs
//! ```
//!
//! **What is compared.** A phone's agent keeps a record of what it has told of each path; its hashes are of that record, and name
//! the event up to which it goes. The flash is compared at just that event ([`crate::log::Cut`]), so a phone that is used meanwhile
//! neither hides nor fakes a difference: what moved between two questions is asked again. That the record is what the disk
//! holds is the phone's to say: before it answers it reads everything again, contents too, and tells what it came upon.
//!
//! **Which side is good.** An edit has an event, decay has none.
//!
//! - The disk is not what was told, with the marks of an edit: an edit that no notice announced. The phone tells it as an event, and that is
//!   all; it is reported, because there should be none.
//! - The disk is not what was told, without those marks: the phone's storage decayed. The phone tells what can still be read - should
//!   the verdict be wrong, nothing is lost - and the last good version goes back to the phone as a change of ours.
//! - What was told is not what the flash has: the phone leads, and tells the path again.
//! - A chunk that is stored here decayed: see [`crate::scrub`].
//!
//! Promises: one verification of a phone at a time, bounded in time, questions and memory; each difference and what became of it is an
//! event of the phone's log; what is known to be doubtful is settled without being asked, across restarts. Leaves out: when to verify
//! otherwise.

mod compare;
mod heal;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::scope::ScopeError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::chain::Chain;
use crate::commands::{CommandError, Commands};
use crate::flashes::{Flashes, FlashesError};
use crate::live::{Live, Notice};
use crate::log::{LogError, PhoneLogs};
use crate::phones::{Phone, Phones, now_us};
use crate::records::{RecordError, Table};
use verify::Verification;

/// Verifications at once: each holds a copy of a flash's tree.
const RUNNING_MAX: usize = 4;
/// Between two verifications of a phone whose log stays in doubt.
const SETTLE_AGAIN: Duration = Duration::from_secs(10);
/// Of paths, that are kept with a verdict.
const PATH_BYTES_MAX: usize = 64 * 1024;
/// Longest that one may take: a phone that reads some 60 GB.
const TIME_MAX: Duration = Duration::from_secs(1800);

#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("this phone is being verified already")]
    Running,
    #[error("{RUNNING_MAX} phones are being verified already")]
    TooMany,
    #[error("the phone answered otherwise than the contract has it: {0}")]
    Contract(&'static str),
    #[error("the phone could not do it: {0}")]
    Phone(String),
    #[error("phone and flash were changed by both sides each time they were compared")]
    Moving,
    #[error("it took longer than {} minutes", TIME_MAX.as_secs() / 60)]
    TooLong,
    #[error("more than {0} questions to the phone")]
    TooDeep(usize),
    #[error("{0} commands wait for the phone to carry them out")]
    Waiting(usize),
    #[error("the phone's roots or excludes are not usable: {0}")]
    Scope(#[from] ScopeError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error("interrupted")]
    Interrupted,
}

/// How to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// The phone reads everything again first.
    pub reread: bool,
    /// What differs is mended, and not only told.
    pub heal: bool,
}

/// What a verification came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub at_us: u64,
    /// Of the phone's log: where phone and flash were compared last.
    pub position: u64,
    /// They are the same there; `None`: it could not be told.
    pub equal: Option<bool>,
    /// Root hash there, in hex, if they are the same.
    pub root: Option<String>,
    /// The phone had read everything again.
    pub reread: bool,
    /// What was come upon, in order.
    pub findings: Vec<Finding>,
    /// How many more; only the phone's log has them.
    pub unnamed: usize,
    /// Why it could not be told.
    pub trouble: Option<String>,
}

/// One path that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub path: Vec<u8>,
    pub position: u64,
    pub kind: FindingKind,
    /// What the phone had, if it had anything, and was asked.
    pub phone: Option<Side>,
    pub flash: Option<Side>,
    /// The last event of the log that is about the path, which should explain what the flash has.
    pub event: Option<Explanation>,
    /// What became of it, for people.
    pub outcome: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An edit on the phone that no notice had announced.
    MissedEdit,
    /// The phone's storage decayed.
    PhoneDecay,
    /// What the phone told is not what the flash has.
    Divergence,
}

/// A path on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Side {
    /// `file`, `directory` or `link`.
    pub kind: String,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Content hash, in hex; of a directory, of everything in it.
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    pub position: u64,
    pub at_us: u64,
    /// Help desk's doing, not the phone's.
    pub by_helpdesk: bool,
    pub text: String,
}

/// How a phone's proof stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// What is being done, if a verification runs.
    pub running: Option<String>,
    pub last: Option<Arc<Verdict>>,
}

/// The verifications of all phones. Cloning shares them.
#[derive(Clone)]
pub struct Proofs {
    inner: Arc<Inner>,
}

/// What verifications work on.
pub struct ProofsParts {
    pub phones: Phones,
    pub logs: PhoneLogs,
    pub flashes: Flashes,
    pub commands: Commands,
    pub verdicts: Table<Verdict>,
    pub live: Live,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

struct Inner {
    parts: ProofsParts,
    standings: Mutex<HashMap<PhoneId, Standing>>,
    /// Phones whose doubts are being settled.
    settling: Mutex<HashSet<PhoneId>>,
}

impl Proofs {
    /// Blocks.
    pub fn open(parts: ProofsParts) -> Result<Proofs, RecordError> {
        let mut standings = HashMap::new();
        for phone in parts.phones.list() {
            if let Some(verdict) = parts.verdicts.get(phone.id.as_str())? {
                standings.insert(phone.id, Standing { running: None, last: Some(Arc::new(verdict)) });
            }
        }
        Ok(Proofs { inner: Arc::new(Inner { parts, standings: Mutex::new(standings), settling: Mutex::default() }) })
    }

    pub fn standing(&self, phone: &PhoneId) -> Standing {
        self.inner.standings().get(phone).cloned().unwrap_or_default()
    }

    /// Begins to verify a phone that is connected; [`Proofs::standing`] tells how it goes.
    pub fn verify(&self, phone: Phone, how: How) -> Result<(), ProofError> {
        self.inner.enter(&phone)?;
        self.inner.parts.tasks.spawn(self.inner.clone().run(phone, how));
        Ok(())
    }

    /// If what the log tells of the phone is in doubt ([`PhoneLogs::doubt`]), compares and heals until it is not, or the phone
    /// leaves. Call it when the phone connects, and when there is doubt.
    pub fn settle_doubts(&self, phone: &PhoneId) {
        if self.inner.settling().insert(phone.clone()) {
            let (inner, phone) = (self.inner.clone(), phone.clone());
            self.inner.parts.tasks.spawn(async move {
                inner.settle(&phone).await;
                inner.settling().remove(&phone);
            });
        }
    }
}

impl Inner {
    fn standings(&self) -> MutexGuard<'_, HashMap<PhoneId, Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settling(&self) -> MutexGuard<'_, HashSet<PhoneId>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a verification begins, if it may.
    fn enter(&self, phone: &Phone) -> Result<(), ProofError> {
        self.parts.commands.gone(&phone.id)?;
        let mut standings = self.standings();
        if standings.values().filter(|standing| standing.running.is_some()).count() >= RUNNING_MAX {
            return Err(ProofError::TooMany);
        }
        let standing = standings.entry(phone.id.clone()).or_default();
        if standing.running.is_some() {
            return Err(ProofError::Running);
        }
        standing.running = Some("begins".to_owned());
        Ok(())
    }

    async fn settle(self: &Arc<Self>, id: &PhoneId) {
        let how = How { reread: false, heal: true };
        while let Ok(gone) = self.parts.commands.gone(id) {
            let (this, of) = (self.clone(), id.clone());
            match blocking(move || Ok(this.parts.logs.is_in_doubt(&of)?)).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(phone = %id, error = %Chain(&error), "whether its log is in doubt cannot be told"),
            }
            if let Some(phone) = self.parts.phones.get(id)
                && self.enter(&phone).is_ok()
            {
                self.clone().run(phone, how).await;
            }
            tokio::select! {
                () = self.parts.stop.cancelled() => return,
                () = gone.cancelled() => {}
                () = tokio::time::sleep(SETTLE_AGAIN) => {}
            }
        }
    }

    fn tell(&self, phone: &PhoneId, change: impl FnOnce(&mut Standing)) {
        change(self.standings().entry(phone.clone()).or_default());
        self.parts.live.tell(Notice::Phone { phone: phone.clone() });
    }

    async fn run(self: Arc<Self>, phone: Phone, how: How) {
        let id = phone.id.clone();
        let mut verification = Verification::new(self.clone(), phone, how);
        let result = tokio::select! {
            () = self.parts.stop.cancelled() => Err(ProofError::Interrupted),
            () = tokio::time::sleep(TIME_MAX) => Err(ProofError::TooLong),
            result = verification.run() => result,
        };
        let mut verdict = verification.into_verdict();
        match result {
            Ok(root) => {
                verdict.equal = Some(root.is_some());
                verdict.root = root.map(|root| root.to_string());
            }
            Err(error) => {
                warn!(phone = %id, error = %Chain(&error), "the phone cannot be verified");
                verdict.trouble = Some(error.to_string());
            }
        }
        info!(phone = %id, equal = verdict.equal, position = verdict.position, findings = verdict.findings.len() + verdict.unnamed, "verified");
        let (this, to, kept) = (self.clone(), id.clone(), verdict.clone());
        let keeping = tokio::task::spawn_blocking(move || this.keep(&to, &kept)).await;
        if let Ok(Err(error)) = keeping {
            warn!(phone = %id, error = %Chain(&error), "the verdict is not kept");
        }
        self.tell(&id, |standing| *standing = Standing { running: None, last: Some(Arc::new(verdict)) });
    }

    /// Blocks.
    fn keep(&self, phone: &PhoneId, verdict: &Verdict) -> Result<(), ProofError> {
        if verdict.equal == Some(true) {
            self.parts.logs.append_ours(phone, |_| vec![heal::proven(verdict)])?;
            self.parts.logs.proven(phone, verdict.position)?;
        }
        Ok(self.parts.verdicts.put(phone.as_str(), verdict)?)
    }
}

impl Verdict {
    fn begun(reread: bool) -> Verdict {
        let findings = Vec::new();
        Verdict { at_us: now_us(), position: 0, equal: None, root: None, reread, findings, unnamed: 0, trouble: None }
    }

    fn note(&mut self, finding: Finding) {
        let told: usize = self.findings.iter().map(|finding| finding.path.len()).sum();
        match told + finding.path.len() <= PATH_BYTES_MAX {
            true => self.findings.push(finding),
            false => self.unnamed += 1,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProofError> + Send + 'static,
) -> Result<T, ProofError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ProofError::Interrupted)?
}
