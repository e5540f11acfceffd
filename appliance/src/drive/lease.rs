//! The task that owns one lease: takes the operator's input, the guest's changes and the phone's, until the lease ends.

use std::time::{Duration, Instant, SystemTime};

use flash::{Before, GuestChange};
use store::PhoneId;
use sync_protocol::event::{FileOp, Frame, Kind, Origin};
use sync_protocol::wire::{self, applied_change::Base};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::settle::{Held, Settling};
use super::{DriveError, Inner, Lease};
use crate::chain::Chain;

/// Guest's changes that wait for us; the guest waits when there are more.
pub(super) const CHANGES_WAITING_MAX: usize = 256;
/// Frames that wait to be logged: a hand makes at most some hundred a second.
pub(super) const FRAMES_WAITING_MAX: usize = 512;
/// How often we look whether the phone is back, or the lease over.
const LOOK: Duration = Duration::from_millis(500);
/// Events of the log read at a time.
const PAGE_EVENTS: usize = 256;

/// One lease, owned by its task.
pub(super) struct Keeping {
    pub(super) inner: std::sync::Arc<Inner>,
    pub(super) phone: PhoneId,
    pub(super) lease: watch::Receiver<Lease>,
    pub(super) frames: mpsc::Receiver<Frame>,
    pub(super) changes: mpsc::Receiver<GuestChange>,
    pub(super) end: CancellationToken,
}

impl Keeping {
    /// Runs until the lease ends, then lets what is left settle.
    pub(super) async fn run(mut self) {
        let (inner, phone) = (self.inner.clone(), self.phone.clone());
        let read = super::blocking(move || Ok(inner.logs.last(&phone)?)).await;
        let mut position = read.unwrap_or(0);
        let mut settling = Settling::new(Instant::now());
        let mut announced = None;
        let mut grown = self.inner.logs.watch(&self.phone).ok();
        info!(phone = %self.phone, operator = %self.lease.borrow().operator, "drive begins");
        while !self.end.is_cancelled() && self.lease.borrow().expires > SystemTime::now() {
            self.announce(&mut announced).await;
            let due = settling.due().map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
            let mut frames = Vec::new();
            let growth = async {
                match &mut grown {
                    Some(grown) => grown.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.end.cancelled() => {}
                () = tokio::time::sleep(due) => {}
                _ = self.frames.recv_many(&mut frames, FRAMES_WAITING_MAX) => {
                    settling.input(Instant::now());
                    self.log_input(frames).await;
                }
                Some(change) = self.changes.recv() => settling.guest_changed(change, Instant::now()),
                true = growth => {}
            }
            position = self.read_phone(position, &mut settling).await;
            let at_once = !self.inner.links.is_connected(&self.phone);
            self.tell_phone(settling.release(Instant::now(), at_once)).await;
        }
        self.finish(position, settling).await;
    }

    async fn finish(mut self, mut position: u64, mut settling: Settling) {
        let operator = self.lease.borrow().operator.clone();
        info!(phone = %self.phone, %operator, "drive ends");
        self.inner.forget(&self.phone);
        let off = wire::Lease { on: false, operator: operator.to_string(), duration_ms: 1 };
        self.tell_lease(off).await;
        // Giving back the lead completes what the guest is writing: drain while that happens.
        let mirror = self.inner.lead(&self.phone, None);
        tokio::pin!(mirror);
        let mut returned = false;
        loop {
            tokio::select! {
                () = &mut mirror, if !returned => returned = true,
                change = self.changes.recv() => match change {
                    Some(change) => settling.guest_changed(change, Instant::now()),
                    // Nobody can send any more.
                    None if returned => break,
                    None => {
                        mirror.as_mut().await;
                        break;
                    }
                },
            }
        }
        while let Some(due) = settling.due() {
            tokio::select! {
                () = tokio::time::sleep(due.saturating_duration_since(Instant::now())) => {}
                () = self.inner.stop.cancelled() => {}
            }
            position = self.read_phone(position, &mut settling).await;
            let at_once = self.inner.stop.is_cancelled() || !self.inner.links.is_connected(&self.phone);
            self.tell_phone(settling.release(Instant::now(), at_once)).await;
        }
    }

    /// Tells the phone of the lease: when it begins, is renewed, or the phone is back.
    async fn announce(&self, announced: &mut Option<SystemTime>) {
        if !self.inner.links.is_connected(&self.phone) {
            *announced = None;
            return;
        }
        let Lease { operator, expires, .. } = self.lease.borrow().clone();
        if *announced == Some(expires) {
            return;
        }
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let duration_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        self.tell_lease(wire::Lease { on: true, operator: operator.to_string(), duration_ms }).await;
        *announced = Some(expires);
    }

    async fn tell_lease(&self, lease: wire::Lease) {
        let (commands, phone) = (self.inner.commands.clone(), self.phone.clone());
        if let Err(error) = super::blocking(move || Ok(commands.lease(&phone, lease)?)).await {
            // It is told again when the phone is back, and ends by itself there.
            info!(phone = %self.phone, error = %Chain(&error), "the phone was not told of the lease");
        }
    }

    async fn log_input(&self, frames: Vec<Frame>) {
        let (commands, phone) = (self.inner.commands.clone(), self.phone.clone());
        if let Err(error) = super::blocking(move || Ok(commands.input(&phone, frames)?)).await {
            warn!(phone = %self.phone, error = %Chain(&error), "an operator's input is lost");
        }
    }

    /// Notes what the phone has changed since `position`; gives the new one.
    async fn read_phone(&self, position: u64, settling: &mut Settling) -> u64 {
        let mut position = position;
        loop {
            let (logs, phone) = (self.inner.logs.clone(), self.phone.clone());
            let page = super::blocking(move || Ok(logs.read(&phone, position + 1, PAGE_EVENTS)?)).await;
            let Ok(page) = page else { return position };
            let Some((last, _)) = page.last() else { return position };
            position = *last;
            for (_, event) in &page {
                if let (Origin::Phone, Kind::File(change)) = (event.origin, &event.kind) {
                    let to = if let FileOp::Rename { to } = &change.op { Some(to) } else { None };
                    settling.phone_changed(&change.path, to);
                }
            }
        }
    }

    /// Logs the guest's changes as events of ours, and asks the phone to make them.
    async fn tell_phone(&self, released: Vec<Held>) {
        if released.is_empty() {
            return;
        }
        let (inner, phone) = (self.inner.clone(), self.phone.clone());
        let result = super::blocking(move || {
            for held in released {
                inner.apply(&phone, held)?;
            }
            Ok(())
        });
        if let Err(error) = result.await {
            warn!(phone = %self.phone, error = %Chain(&error), "what the twin changed does not reach the phone");
        }
    }
}

impl Inner {
    /// Logs one change as an event of ours, and asks the phone to make it. Blocks.
    fn apply(&self, phone: &PhoneId, held: Held) -> Result<(), DriveError> {
        let Held { change: GuestChange { change, before }, base_from_flash } = held;
        let base = if base_from_flash { self.base_of(phone, &change.path)? } else { before };
        let base = match base {
            Before::Absent => Base::BaseAbsent(true),
            Before::Entry(hash) => Base::BaseEntry(hash.to_vec()),
            Before::Any => Base::BaseAny(true),
        };
        let ours = Kind::File(change.clone());
        let change = wire::AppliedChange { change: Some(change.into()), base: Some(base) };
        self.commands.apply(phone, vec![ours], vec![change])?;
        Ok(())
    }

    fn base_of(&self, phone: &PhoneId, path: &sync_protocol::PhonePath) -> Result<Before, DriveError> {
        let phone = self.phones.get(phone).ok_or(DriveError::Interrupted)?;
        let entry = self.flashes.head(&phone)?.flash.entry(path);
        Ok(entry.map_or(Before::Absent, |entry| Before::Entry(entry.hash())))
    }
}
