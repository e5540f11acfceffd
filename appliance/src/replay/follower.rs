//! Applies one phone's log to its flash, as it grows.

use std::sync::Arc;

use store::PhoneId;
use sync_protocol::wire::HaveRoot;
use tokio::sync::{mpsc, watch};

use super::{Inner, Progress};

pub(super) struct Follower {
    phone: PhoneId,
    inner: Arc<Inner>,
    progress: watch::Sender<Progress>,
}

impl Follower {
    pub(super) fn new(phone: PhoneId, inner: Arc<Inner>, progress: watch::Sender<Progress>) -> Follower {
        Follower { phone, inner, progress }
    }

    pub(super) async fn run(self, mut _roots: mpsc::Receiver<HaveRoot>) {
        self.inner.stop.cancelled().await;
        self.progress.send_modify(|_| ());
        tracing::debug!(phone = %self.phone, "follower ends");
    }
}
