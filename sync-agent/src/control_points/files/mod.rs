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
use std::os::fd::{AsFd, BorrowedFd};
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
pub use fanotify::Notice;
pub(crate) use tracker::Tracker;

/// How long to wait before asking the journal for room again.
const HALTED_POLL: Duration = Duration::from_millis(200);
/// How long a file that kept changing is left alone.
const UNSETTLED_POLL: Duration = Duration::from_secs(1);
/// How often roots are scanned if the kernel does not tell what changes.
const UNWATCHED_POLL: Duration = Duration::from_secs(30);

/// What others ask of the thread.
pub enum Request {
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
pub struct RootAnswer {
    pub seq: u64,
    pub root: Hash,
    pub scope: Scope,
}

/// Entries of one directory. They are what the events up to `seq` describe, all of them and none after.
#[derive(Debug)]
pub struct ListAnswer {
    pub seq: u64,
    pub entries: Vec<(Vec<u8>, Entry)>,
    pub more: bool,
}

/// What tells of changes as they happen: the kernel, on a phone.
pub trait Notices: Send {
    /// What has come; empty if nothing has. Never waits.
    fn read(&mut self) -> io::Result<Vec<Notice>>;
    /// Readable when something has come.
    fn wakes(&self) -> BorrowedFd<'_>;
}

/// Begins to watch what is captured; none if that cannot be done.
pub type Watch = Box<dyn FnMut(&Scope) -> Option<Box<dyn Notices>> + Send>;

/// A way to the thread; cheap to clone.
#[derive(Clone)]
pub struct FilesHandle {
    requests: mpsc::Sender<Request>,
    waker: Arc<EventFd>,
}

pub(crate) struct FilesThread {
    thread: thread::JoinHandle<()>,
}

impl FilesHandle {
    /// Whether the thread still runs.
    pub fn send(&self, request: Request) -> bool {
        self.requests.send(request).is_ok() && self.waker.write(1).is_ok()
    }

    /// Asks, and waits for the answer; none if the thread has ended.
    pub async fn ask<A>(
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
        let (files, mut point) =
            FilesControlPoint::new(journal, scope, reason, Box::new(watch))?;
        let body = move || {
            if let Err(error) = point.run() {
                tracing::error!(%error, "the files control point ends");
            }
        };
        let thread = thread::Builder::new().name("files".into()).spawn(body)?;
        Ok((files, Self { thread }))
    }

    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the files control point panicked");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot wait for file changes")]
    Wait(#[from] io::Error),
    #[error("cannot read what is known of the phone's files")]
    Journal(#[from] JournalError),
}

/// The control point itself, which whoever has it gives turns.
pub struct FilesControlPoint {
    tracker: Tracker,
    watch: Watch,
    notices: Option<Box<dyn Notices>>,
    inbox: mpsc::Receiver<Request>,
    waker: Arc<EventFd>,
    /// Those who asked for the root, answered when nothing is left to look at.
    waiting: Vec<oneshot::Sender<RootAnswer>>,
    /// Those who asked for something to be read again, answered when all of that is in the journal, or cannot be now.
    rescanning: Vec<oneshot::Sender<bool>>,
}

impl FilesControlPoint {
    /// Watches, and has everything looked at, for `reason`, in its first turns.
    pub fn new(
        journal: JournalHandle,
        scope: Scope,
        reason: &str,
        mut watch: Watch,
    ) -> Result<(FilesHandle, Self), FilesError> {
        let (requests, inbox) = mpsc::channel();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let waker = Arc::new(EventFd::from_flags(flags).map_err(io::Error::from)?);
        // Watching begins before the scan: what changes meanwhile is noticed.
        let notices = watch(&scope);
        let mut tracker = Tracker::new(journal, scope)?;
        tracker.scan(reason);
        let point = Self {
            tracker,
            watch,
            notices,
            inbox,
            waker: waker.clone(),
            waiting: Vec::new(),
            rescanning: Vec::new(),
        };
        Ok((FilesHandle { requests, waker }, point))
    }

    fn run(&mut self) -> Result<(), FilesError> {
        while self.wait().and_then(|in_vain| self.turn(in_vain))? {}
        Ok(())
    }

    /// Does some of what is to do; `in_vain` if neither notices nor requests came within [`FilesControlPoint::patience`]. False
    /// if it was told to stop.
    pub fn turn(&mut self, in_vain: bool) -> Result<bool, FilesError> {
        if in_vain {
            if self.tracker.has_unsettled() {
                self.tracker.retry_unsettled();
            }
            if self.notices.is_none() && self.tracker.is_idle() {
                self.tracker.scan("regular");
            }
        }
        // EAGAIN: nobody woke us, which is fine.
        let _ = self.waker.read();
        loop {
            match self.inbox.try_recv() {
                Ok(Request::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(false),
                Ok(request) => self.serve(request)?,
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        self.read_notices()?;
        self.tracker.step();
        if self.tracker.is_idle() || self.tracker.is_halted() {
            let done = !self.tracker.is_halted();
            // Those who asked and went away do not mind.
            for reply in self.rescanning.drain(..) {
                let _ = reply.send(done);
            }
        }
        if self.tracker.is_idle() {
            self.answer_waiting()?;
        }
        Ok(true)
    }

    /// Readable when there is a request.
    pub fn wakes(&self) -> &Arc<EventFd> {
        &self.waker
    }

    /// How long to wait for notices or requests before the next turn; none: until something comes.
    pub fn patience(&self) -> Option<Duration> {
        match () {
            () if self.tracker.is_halted() => Some(HALTED_POLL),
            () if !self.tracker.is_idle() => Some(Duration::ZERO),
            () if self.tracker.has_unsettled() => Some(UNSETTLED_POLL),
            () if self.notices.is_none() => Some(UNWATCHED_POLL),
            () => None,
        }
    }

    /// Waits for notices or requests; true if neither came in time.
    fn wait(&self) -> Result<bool, FilesError> {
        let timeout = self.patience().map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).expect("nobody's patience is a day's")
        });
        let mut sources = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        if let Some(notices) = &self.notices {
            sources.push(PollFd::new(notices.wakes(), PollFlags::POLLIN));
        }
        match poll(&mut sources, timeout) {
            Ok(ready) => Ok(ready == 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn read_notices(&mut self) -> Result<(), FilesError> {
        let Some(notices) = &mut self.notices else {
            return Ok(());
        };
        loop {
            let come = notices.read()?;
            if come.is_empty() {
                return Ok(());
            }
            for notice in come {
                self.tracker.notice(notice);
            }
        }
    }

    fn serve(&mut self, request: Request) -> Result<(), FilesError> {
        // Those who asked and went away do not mind that nobody takes the answer.
        match request {
            Request::Scope(scope) => {
                if scope != *self.tracker.scope() {
                    self.notices = (self.watch)(&scope);
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
                if self.notices.is_none() {
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
                match self.tracker.rescan(&path, resend) {
                    true => self.rescanning.push(reply),
                    false => drop(reply.send(false)),
                }
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
fn watch(scope: &Scope) -> Option<Box<dyn Notices>> {
    let watched = Fanotify::new().and_then(|mut watch| {
        for root in scope.roots() {
            watch.watch(fanotify::nearest_directory(root).as_path())?;
        }
        Ok(Box::new(watch) as Box<dyn Notices>)
    });
    watched
        .inspect_err(|error| tracing::warn!(%error, "no fanotify; scanning regularly instead"))
        .ok()
}
