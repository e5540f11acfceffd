//! Who owns the journal: a thread, which others hand closures, so that each of their steps is one uninterrupted turn.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::sync::{oneshot, watch};

use super::{Journal, JournalError};

type Turn = Box<dyn FnOnce(&mut Journal) + Send>;
/// Has a turn taken, now or soon; false if nobody is there to take it.
type Take = dyn Fn(Turn) -> bool + Send + Sync;

/// A way to the journal; cheap to clone.
#[derive(Clone)]
pub struct JournalHandle {
    take: Arc<Take>,
    last_seq: watch::Receiver<u64>,
}

/// Ends, and can be joined, when the last [`JournalHandle`] is gone.
pub(crate) struct JournalThread {
    thread: thread::JoinHandle<()>,
}

impl JournalThread {
    pub(crate) fn start(journal: Journal) -> (JournalHandle, Self) {
        let (turns, inbox) = mpsc::channel::<Turn>();
        let (mut owner, last_seq) = Owner::of(journal);
        let body = move || inbox.into_iter().for_each(|turn| owner.take(turn));
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(body)
            .expect("a thread can be started");
        let take = Arc::new(move |turn| turns.send(turn).is_ok());
        (JournalHandle { take, last_seq }, Self { thread })
    }

    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
    }
}

struct Owner {
    journal: Journal,
    announce: watch::Sender<u64>,
}

impl Owner {
    fn of(journal: Journal) -> (Self, watch::Receiver<u64>) {
        let (announce, last_seq) = watch::channel(journal.last_seq());
        (Self { journal, announce }, last_seq)
    }

    fn take(&mut self, turn: Turn) {
        turn(&mut self.journal);
        let now = self.journal.last_seq();
        self.announce.send_if_modified(|last| std::mem::replace(last, now) != now);
    }
}

impl JournalHandle {
    /// A way to a journal without a thread: whoever takes a turn takes it there and then.
    pub fn without_thread(journal: Journal) -> Self {
        let (owner, last_seq) = Owner::of(journal);
        let owner = Mutex::new(owner);
        let take = move |turn| {
            owner.lock().unwrap_or_else(PoisonError::into_inner).take(turn);
            true
        };
        Self { take: Arc::new(take), last_seq }
    }

    /// Takes a turn from a thread and waits for it.
    pub fn call<R: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut Journal) -> Result<R, JournalError> + Send + 'static,
    ) -> Result<R, JournalError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let turn = Box::new(move |journal: &mut Journal| drop(reply.send(turn(journal))));
        if !(self.take)(turn) {
            return Err(JournalError::Ended);
        }
        answer.recv().map_err(|_| JournalError::Ended)?
    }

    /// Takes a turn from a task.
    pub async fn ask<R: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut Journal) -> Result<R, JournalError> + Send + 'static,
    ) -> Result<R, JournalError> {
        let (reply, answer) = oneshot::channel();
        let turn = Box::new(move |journal: &mut Journal| drop(reply.send(turn(journal))));
        if !(self.take)(turn) {
            return Err(JournalError::Ended);
        }
        answer.await.map_err(|_| JournalError::Ended)?
    }

    /// Follows the seq of the newest event.
    pub fn last_seq(&self) -> watch::Receiver<u64> {
        self.last_seq.clone()
    }
}
