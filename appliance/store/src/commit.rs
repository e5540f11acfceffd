//! Group commit: many writers share one flush.
//!
//! A writer makes its change, then calls [`GroupCommit::wait`], which returns once a flush that began
//! after the call has ended. One thread flushes; writers that arrive meanwhile are served together by
//! the next flush.
//!
//! After a failed flush it is unknown what reached the disk, and a later flush that succeeds would not
//! tell either (the kernel reports a lost page once). So the first failure is final.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::{Result, StoreError};

#[derive(Default)]
struct State {
    /// Number of the last change waiting for a flush.
    requested: u64,
    /// Number of the last change flushed.
    durable: u64,
    failure: Option<String>,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the flusher.
    work: Condvar,
    /// Wakes the writers.
    flushed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct GroupCommit {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
}

impl GroupCommit {
    /// Starts the flusher thread, called `name`; it ends when this is dropped.
    pub(crate) fn start(
        name: &str,
        flush: impl Fn() -> std::result::Result<(), String> + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let flusher = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn({
                let shared = shared.clone();
                move || flush_until_stopped(&shared, flush)
            })
            .map_err(|source| StoreError::io("starting the flusher thread", source))?;
        Ok(GroupCommit {
            shared,
            flusher: Some(flusher),
        })
    }

    /// Returns when everything this thread wrote before the call is durable.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut state = self.shared.lock();
        state.requested += 1;
        let ours = state.requested;
        self.shared.work.notify_one();
        while state.durable < ours && state.failure.is_none() {
            state = self
                .shared
                .flushed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failure {
            Some(failure) if state.durable < ours => Err(StoreError::Failed(failure.clone())),
            _ => Ok(()),
        }
    }

    /// Fails if a flush has failed, or a write has been reported by [`GroupCommit::fail`].
    pub(crate) fn check(&self) -> Result<()> {
        match &self.shared.lock().failure {
            Some(failure) => Err(StoreError::Failed(failure.clone())),
            None => Ok(()),
        }
    }

    /// Makes a failed write as final as a failed flush.
    pub(crate) fn fail(&self, failure: String) {
        self.shared.lock().failure.get_or_insert(failure);
        self.shared.flushed.notify_all();
    }
}

fn flush_until_stopped(shared: &Shared, flush: impl Fn() -> std::result::Result<(), String>) {
    let mut state = shared.lock();
    loop {
        while state.requested == state.durable && !state.stopping {
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.requested == state.durable || state.failure.is_some() {
            return;
        }
        let requested = state.requested;
        drop(state);
        let outcome = flush();
        state = shared.lock();
        match outcome {
            Ok(()) => state.durable = requested,
            Err(failure) => {
                tracing::error!(failure, "flush failed: the store accepts no more writes");
                state.failure.get_or_insert(failure);
            }
        }
        shared.flushed.notify_all();
    }
}

impl Drop for GroupCommit {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_one();
        if let Some(flusher) = self.flusher.take() {
            // A panic there has been reported by the panic hook; writers have been failed by nobody,
            // but no writer can be waiting while this is being dropped.
            let _ = flusher.join();
        }
    }
}
