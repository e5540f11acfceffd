//! The file-system control point (310): one thread that owns the known tree, watches the roots, and carries out file
//! changes for the appliance, so that these and the phone's own can be told apart.
//!
//! fanotify says where to look, the disk what is there. A full scan runs at every start, after lost notices and after
//! trouble with the journal. Without fanotify (no root, or a file system that cannot) the roots are scanned regularly.

mod fanotify;
pub(crate) mod known;
mod reading;
mod tracker;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sync_protocol::event::ControlKind;
use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::scope::Scope;
use sync_protocol::tree::Entry;
use sync_protocol::wire;
use tokio::sync::oneshot;

use crate::apply::files::ApplyJob;
use crate::journal::{JournalError, JournalHandle};

use fanotify::Fanotify;
pub(crate) use tracker::Tracker;

/// How long to wait before asking the journal for room again.
const HALTED_POLL: Duration = Duration::from_millis(200);
/// How long a file that kept changing is left alone.
const UNSETTLED_POLL: Duration = Duration::from_secs(1);
/// How often roots are scanned if the kernel does not tell what changes.
const UNWATCHED_POLL: Duration = Duration::from_secs(30);

/// What others ask of the thread.
pub(crate) enum Request {
    Scope(Scope),
    Apply(ApplyJob, oneshot::Sender<wire::CommandResult>),
    Root(oneshot::Sender<RootAnswer>),
    /// Of the entries after this name, up to that many.
    List(PhonePath, Vec<u8>, usize, oneshot::Sender<Option<ListAnswer>>),
    Rescan(PhonePath, bool, oneshot::Sender<bool>),
    Report(ControlKind, String, u64),
    /// The journal was begun anew, for this reason.
    BeginAnew(String),
    Stop,
}

/// The tree after everything noticed before the question.
#[derive(Debug)]
pub(crate) struct RootAnswer {
    pub(crate) seq: u64,
    pub(crate) root: Hash,
    pub(crate) scope: Scope,
}

/// Entries of one directory. They are what the events up to `seq` describe, all of them and none after.
#[derive(Debug)]
pub(crate) struct ListAnswer {
    pub(crate) seq: u64,
    pub(crate) entries: Vec<(Vec<u8>, Entry)>,
    pub(crate) more: bool,
}

/// A way to the thread; cheap to clone.
#[derive(Clone)]
pub(crate) struct FilesHandle {
    requests: mpsc::Sender<Request>,
    waker: Arc<EventFd>,
}

pub(crate) struct FilesThread {
    thread: thread::JoinHandle<()>,
}

impl FilesHandle {
    /// Whether the thread still runs.
    pub(crate) fn send(&self, request: Request) -> bool {
        self.requests.send(request).is_ok() && self.waker.write(1).is_ok()
    }

    /// Asks, and waits for the answer; none if the thread has ended.
    pub(crate) async fn ask<A>(
        &self,
        request: impl FnOnce(oneshot::Sender<A>) -> Request,
    ) -> Option<A> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply));
        answer.await.ok()
    }
}

impl FilesThread {
    pub(crate) fn start(
        journal: JournalHandle,
        scope: Scope,
        reason: &str,
    ) -> Result<(FilesHandle, Self), FilesError> {
        let (requests, inbox) = mpsc::channel();
        let waker = Arc::new(
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(io::Error::from)?,
        );
        // Watching begins before the scan: what changes meanwhile is noticed.
        let watch = watch(&scope);
        let mut tracker = Tracker::new(journal, scope)?;
        tracker.scan(reason);
        let mut point = FilesControlPoint {
            tracker,
            watch,
            inbox,
            waker: waker.clone(),
            waiting: Vec::new(),
        };
        let body = move || {
            if let Err(error) = point.run() {
                tracing::error!(%error, "the files control point ends");
            }
        };
        let thread = thread::Builder::new().name("files".into()).spawn(body)?;
        Ok((FilesHandle { requests, waker }, Self { thread }))
    }

    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the files control point panicked");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("cannot wait for file changes")]
    Wait(#[from] io::Error),
    #[error("cannot read what is known of the phone's files")]
    Journal(#[from] JournalError),
}

struct FilesControlPoint {
    tracker: Tracker,
    watch: Option<Fanotify>,
    inbox: mpsc::Receiver<Request>,
    waker: Arc<EventFd>,
    /// Those who asked for the root, answered when nothing is left to look at.
    waiting: Vec<oneshot::Sender<RootAnswer>>,
}

impl FilesControlPoint {
    fn run(&mut self) -> Result<(), FilesError> {
        loop {
            if self.wait()? {
                if self.tracker.has_unsettled() {
                    self.tracker.retry_unsettled();
                }
                if self.watch.is_none() && self.tracker.is_idle() {
                    self.tracker.scan("regular");
                }
            }
            // EAGAIN: nobody woke us, which is fine.
            let _ = self.waker.read();
            loop {
                match self.inbox.try_recv() {
                    Ok(Request::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                    Ok(request) => self.serve(request)?,
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.read_notices()?;
            self.tracker.step();
            if self.tracker.is_idle() {
                self.answer_waiting()?;
            }
        }
    }

    /// Waits for notices or requests; true if neither came in time.
    fn wait(&self) -> Result<bool, FilesError> {
        let timeout = match () {
            () if self.tracker.is_halted() => Some(HALTED_POLL),
            () if !self.tracker.is_idle() => Some(Duration::ZERO),
            () if self.tracker.has_unsettled() => Some(UNSETTLED_POLL),
            () if self.watch.is_none() => Some(UNWATCHED_POLL),
            () => None,
        };
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).expect("the timeouts above are less than a day")
        });
        let mut sources = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        if let Some(watch) = &self.watch {
            sources.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut sources, timeout) {
            Ok(ready) => Ok(ready == 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn read_notices(&mut self) -> Result<(), FilesError> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        loop {
            let notices = watch.read()?;
            if notices.is_empty() {
                return Ok(());
            }
            for notice in notices {
                self.tracker.notice(notice);
            }
        }
    }

    fn serve(&mut self, request: Request) -> Result<(), FilesError> {
        // Those who asked and went away do not mind that nobody takes the answer.
        match request {
            Request::Scope(scope) => {
                if scope != *self.tracker.scope() {
                    self.watch = watch(&scope);
                    self.tracker.set_scope(scope);
                    self.tracker.scan("rules");
                }
            }
            Request::Apply(job, reply) => {
                self.read_notices()?;
                let _ = reply.send(job.run(&mut self.tracker));
            }
            Request::Root(reply) => {
                // Without notices only a scan tells.
                if self.watch.is_none() {
                    self.tracker.scan("request");
                }
                self.waiting.push(reply);
            }
            Request::List(path, after, max, reply) => {
                let answer = self.tracker.settled_seq().map(|seq| {
                    let (entries, more) = self.tracker.tree().entries(&path, &after, max);
                    ListAnswer { seq, entries, more }
                });
                let _ = reply.send(answer);
            }
            Request::Rescan(path, resend, reply) => {
                let _ = reply.send(self.tracker.rescan(&path, resend));
            }
            Request::Report(kind, text, count) => self.tracker.report(kind, text, None, count),
            Request::BeginAnew(reason) => {
                self.tracker.forget_all();
                self.tracker
                    .report(ControlKind::JournalTrouble, reason, None, 0);
                self.tracker.scan("the journal was begun anew");
            }
            Request::Stop => {}
        }
        Ok(())
    }

    fn answer_waiting(&mut self) -> Result<(), FilesError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let seq = self
            .tracker
            .journal()
            .call(|journal| Ok(journal.last_seq()))?;
        let scope = self.tracker.scope();
        let root = self.tracker.tree().root_hash(scope);
        for reply in self.waiting.drain(..) {
            let _ = reply.send(RootAnswer {
                seq,
                root,
                scope: scope.clone(),
            });
        }
        Ok(())
    }
}

/// Watches the file systems of all roots, or none: then nothing would be missed unnoticed.
fn watch(scope: &Scope) -> Option<Fanotify> {
    let watched = Fanotify::new().and_then(|mut watch| {
        for root in scope.roots() {
            watch.watch(fanotify::nearest_directory(root).as_path())?;
        }
        Ok(watch)
    });
    watched
        .inspect_err(|error| tracing::warn!(%error, "no fanotify; scanning regularly instead"))
        .ok()
}
