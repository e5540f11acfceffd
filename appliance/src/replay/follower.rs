//! Applies one phone's log to its flash, as it grows, and compares the two when the phone tells its root hash.

use std::sync::Arc;
use std::time::Duration;

use store::PhoneId;
use sync_protocol::event::{Event, Kind, Origin};
use sync_protocol::scope::Scope;
use sync_protocol::wire::HaveRoot;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{Inner, KeptOrigins, PAGE_EVENTS, Progress, Proof};
use crate::chain::Chain;
use crate::flashes::{FlashesError, Head};
use crate::health::is_disk_full;
use crate::intelligence::InspectionError;
use crate::live::Notice;
use crate::log::LogError;
use crate::phones::now_us;

/// Events between two checkpoints of a flash: what a restart has to replay.
const CHECKPOINT_EVENTS: u64 = 5_000;
/// How long to wait before what found no room on the disk is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How far back an event with a given seq is looked for.
const SEQ_LOOK_EVENTS: usize = 4_096;

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("the phone is not registered")]
    NoPhone,
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
    #[error("the flash does not take the event at {position}: {source}")]
    Apply { position: u64, source: flash::FlashError },
    #[error("usage at {position}: {source}")]
    Usage { position: u64, source: InspectionError },
    #[error("the roots of the phone's hash are not usable: {0}")]
    Scope(#[from] sync_protocol::scope::ScopeError),
    #[error("the phone's event {0} is not in its log")]
    NoSuchSeq(u64),
    #[error("interrupted")]
    Interrupted,
}

pub(super) struct Follower {
    phone: PhoneId,
    inner: Arc<Inner>,
    progress: watch::Sender<Progress>,
}

/// What is carried from page to page, on threads that may block.
struct Following {
    head: Head,
    kept: KeptOrigins,
    checkpoint: u64,
}

impl Follower {
    pub(super) fn new(phone: PhoneId, inner: Arc<Inner>, progress: watch::Sender<Progress>) -> Follower {
        Follower { phone, inner, progress }
    }

    /// Follows until the appliance stops. A full disk is waited out: what was kept last is gone on from. Anything else ends it.
    pub(super) async fn run(self, mut roots: mpsc::Receiver<HaveRoot>) {
        let stop = self.inner.stop.clone();
        let this = Arc::new(self);
        loop {
            let error = tokio::select! {
                () = stop.cancelled() => return,
                result = this.follow(&mut roots) => match result {
                    Ok(()) => return,
                    Err(error) => error,
                }
            };
            warn!(phone = %this.phone, error = %Chain(&error), "the flash does not follow");
            this.tell_trouble(Some(error.to_string()));
            if !is_disk_full(&error) {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn tell_trouble(&self, trouble: Option<String>) {
        self.progress.send_modify(|progress| progress.trouble = trouble);
        self.inner.live.tell(Notice::Phone { phone: self.phone.clone() });
    }

    async fn follow(self: &Arc<Self>, roots: &mut mpsc::Receiver<HaveRoot>) -> Result<(), FollowError> {
        let this = self.clone();
        let mut following = blocking(move || this.open()).await?;
        let mut grown = self.inner.logs.watch(&self.phone)?;
        loop {
            let this = self.clone();
            let (next, more) = blocking(move || this.page(following)).await?;
            following = next;
            if more {
                continue;
            }
            tokio::select! {
                changed = grown.changed() => if changed.is_err() { return Ok(()) },
                root = roots.recv() => {
                    let Some(root) = root else { return Ok(()) };
                    let this = self.clone();
                    blocking(move || this.compare(root)).await?;
                }
            }
        }
    }

    fn open(&self) -> Result<Following, FollowError> {
        let phone = self.inner.phones.get(&self.phone).ok_or(FollowError::NoPhone)?;
        let head = self.inner.flashes.head(&phone)?;
        let kept = self.inner.origins.get(self.phone.as_str()).map_err(LogError::from)?.unwrap_or_default();
        let checkpoint = head.flash.position();
        Ok(Following { head, kept, checkpoint })
    }

    /// Applies one page of events; false when there was none.
    fn page(&self, mut following: Following) -> Result<(Following, bool), FollowError> {
        // Both began at what was stored of them last.
        let from = following.head.flash.position().min(following.kept.position) + 1;
        let events = self.inner.logs.read(&self.phone, from, PAGE_EVENTS)?;
        for (position, event) in &events {
            self.apply(&mut following, *position, event)?;
        }
        let applied = following.head.flash.position();
        if applied >= following.checkpoint + CHECKPOINT_EVENTS {
            self.keep(&mut following)?;
        }
        if events.is_empty() {
            let position = self.inner.logs.last(&self.phone)?;
            let root = following.head.scope.as_ref().map(|scope| following.head.flash.root(scope).to_string());
            self.progress.send_modify(|progress| {
                progress.root = root;
                progress.position = position;
                progress.trouble = None;
            });
            self.inner.live.tell(Notice::Phone { phone: self.phone.clone() });
        }
        let complete = following.kept.origins.complete_at.is_some();
        let newly = complete && !self.progress.borrow().complete;
        self.progress.send_modify(|progress| {
            progress.applied = applied;
            progress.position = progress.position.max(applied);
            progress.complete = complete;
        });
        if newly {
            self.inner.twins.start_by_itself(&self.phone);
        }
        Ok((following, !events.is_empty()))
    }

    fn apply(&self, following: &mut Following, position: u64, event: &Event) -> Result<(), FollowError> {
        if position > following.kept.position {
            following.kept.origins.saw(position, event);
            following.kept.position = position;
        }
        if position > following.head.flash.position() {
            let applied = following.head.flash.apply_event(position, event);
            let applied = applied.map_err(|source| FollowError::Apply { position, source })?;
            let inspected = self.inner.intelligence.inspect(&following.head.flash, position, &applied.paths);
            inspected.map_err(|source| FollowError::Usage { position, source })?;
        }
        if let Kind::Control(control) = &event.kind {
            debug!(phone = %self.phone, position, kind = ?control.kind, text = control.text, "agent");
        }
        Ok(())
    }

    fn keep(&self, following: &mut Following) -> Result<(), FollowError> {
        let checkpoint = following.head.flash.checkpoint();
        let position = following.head.flash.position();
        following.checkpoint = checkpoint.map_err(|source| FollowError::Apply { position, source })?;
        self.inner.origins.put(self.phone.as_str(), &following.kept).map_err(LogError::from)?;
        Ok(())
    }

    /// Compares the phone's root hash with the flash's at the same event.
    fn compare(&self, told: HaveRoot) -> Result<(), FollowError> {
        let outcome = self.prove(&told);
        match outcome {
            Ok(proof) => {
                if proof.phone_root != proof.flash_root {
                    warn!(phone = %self.phone, position = proof.position, "phone and flash differ");
                }
                self.progress.send_modify(|progress| progress.proof = Some(proof));
                self.inner.live.tell(Notice::Phone { phone: self.phone.clone() });
                Ok(())
            }
            // What a phone says is not our failure.
            Err(error @ (FollowError::Scope(_) | FollowError::NoSuchSeq(_))) => {
                warn!(phone = %self.phone, %error, "the phone's root hash cannot be compared");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn prove(&self, told: &HaveRoot) -> Result<Proof, FollowError> {
        let phone = self.inner.phones.get(&self.phone).ok_or(FollowError::NoPhone)?;
        let scope = Scope::from_bytes(&told.roots, &told.excludes)?;
        let position = self.position_of(told.seq)?;
        let root = self.inner.flashes.root_at(&phone, position, &scope)?;
        Ok(Proof {
            position,
            at_us: now_us(),
            phone_root: hex::encode(&told.root),
            flash_root: root.to_string(),
        })
    }

    /// Where the log has the phone's event `seq`, and our file changes that the phone had made by then.
    fn position_of(&self, seq: u64) -> Result<u64, FollowError> {
        let last = self.inner.logs.last(&self.phone)?;
        if seq == 0 {
            return Ok(0);
        }
        let from = last.saturating_sub(SEQ_LOOK_EVENTS as u64) + 1;
        let events = self.inner.logs.read(&self.phone, from, SEQ_LOOK_EVENTS)?;
        let at = events.iter().rposition(|(_, event)| event.origin == Origin::Phone && event.seq == seq);
        let at = at.ok_or(FollowError::NoSuchSeq(seq))?;
        // Commands are carried out in order and answered before the root is: what of ours directly follows, the phone has.
        let ours = events[at + 1..].iter().take_while(|(_, event)| event.origin == Origin::Helpdesk).last();
        Ok(ours.map_or(events[at].0, |(position, _)| *position))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FollowError> + Send + 'static,
) -> Result<T, FollowError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FollowError::Interrupted)?
}
