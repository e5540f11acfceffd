//! The thread that owns the journal. Others hand it closures, so that each of their steps is one uninterrupted turn.

use std::sync::mpsc;
use std::thread;

use tokio::sync::{oneshot, watch};

use super::{Journal, JournalError};

type Turn = Box<dyn FnOnce(&mut Journal) + Send>;

/// A way to the journal; cheap to clone.
#[derive(Clone)]
pub(crate) struct JournalHandle {
    turns: mpsc::Sender<Turn>,
    last_seq: watch::Receiver<u64>,
}

/// Ends, and can be joined, when the last [`JournalHandle`] is gone.
pub(crate) struct JournalThread {
    thread: thread::JoinHandle<()>,
}

impl JournalThread {
    pub(crate) fn start(mut journal: Journal) -> (JournalHandle, Self) {
        let (turns, inbox) = mpsc::channel::<Turn>();
        let (announce, last_seq) = watch::channel(journal.last_seq());
        let body = move || {
            for turn in inbox {
                turn(&mut journal);
                announce.send_if_modified(|last| {
                    let is_new = *last != journal.last_seq();
                    *last = journal.last_seq();
                    is_new
                });
            }
        };
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(body)
            .expect("a thread can be started");
        (JournalHandle { turns, last_seq }, Self { thread })
    }

    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
    }
}

impl JournalHandle {
    /// Takes a turn from a thread and waits for it.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut Journal) -> Result<R, JournalError> + Send + 'static,
    ) -> Result<R, JournalError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let turn = Box::new(move |journal: &mut Journal| drop(reply.send(turn(journal))));
        self.turns.send(turn).map_err(|_| JournalError::Ended)?;
        answer.recv().map_err(|_| JournalError::Ended)?
    }

    /// Takes a turn from a task.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        turn: impl FnOnce(&mut Journal) -> Result<R, JournalError> + Send + 'static,
    ) -> Result<R, JournalError> {
        let (reply, answer) = oneshot::channel();
        let turn = Box::new(move |journal: &mut Journal| drop(reply.send(turn(journal))));
        self.turns.send(turn).map_err(|_| JournalError::Ended)?;
        answer.await.map_err(|_| JournalError::Ended)?
    }

    /// Follows the seq of the newest event.
    pub(crate) fn last_seq(&self) -> watch::Receiver<u64> {
        self.last_seq.clone()
    }
}
