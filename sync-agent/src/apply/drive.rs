//! The task behind an operator's hand: owns the lease and the input devices.

use std::path::PathBuf;

use sync_protocol::event::{ControlKind, Frame};
use sync_protocol::wire::{self, CommandStatus};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::feeding::Feeding;
use super::input::{Injector, InputSink};
use super::lease::{Lease, LeaseChange, announce};
use crate::clock;
use crate::control_points::files::{FilesHandle, Request};

/// What to answer: a status, and why.
type Answer = (CommandStatus, String);

enum Ask {
    Lease(wire::Lease, oneshot::Sender<Answer>),
    Input(Vec<Frame>, oneshot::Sender<Answer>),
    Release,
}

/// A way to the task, which ends with the last of them.
#[derive(Clone)]
pub struct DriveHandle {
    asks: mpsc::UnboundedSender<Ask>,
}

impl DriveHandle {
    /// Starts the task. Without a sink, because the phone has no uinput, input fails with `no_sink`.
    pub fn start<S: InputSink + 'static>(
        sink: Result<S, String>,
        lease_file: PathBuf,
        files: FilesHandle,
    ) -> (Self, JoinHandle<()>) {
        // As many as the link lets wait.
        let (asks, inbox) = mpsc::unbounded_channel();
        let drive = Drive {
            lease: Lease::default(),
            injector: sink.map(Injector::new),
            feeding: Feeding::new(),
            lease_file,
            files,
        };
        (Self { asks }, tokio::spawn(drive.run(inbox)))
    }

    pub(crate) async fn lease(&self, lease: wire::Lease) -> Answer {
        self.ask(|reply| Ask::Lease(lease, reply)).await
    }

    pub(crate) async fn input(&self, frames: Vec<Frame>) -> Answer {
        self.ask(|reply| Ask::Input(frames, reply)).await
    }

    /// Lifts what is pressed. The lease stays: the operator may come back before it ends.
    pub(crate) fn release(&self) {
        // The task has ended: so has everything it pressed.
        let _ = self.asks.send(Ask::Release);
    }

    async fn ask(&self, ask: impl FnOnce(oneshot::Sender<Answer>) -> Ask) -> Answer {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(ask(reply));
        answer
            .await
            .unwrap_or((CommandStatus::Failed, "the agent is stopping".into()))
    }
}

struct Drive<S> {
    lease: Lease,
    injector: Result<Injector<S>, String>,
    feeding: Feeding<oneshot::Sender<Answer>>,
    lease_file: PathBuf,
    files: FilesHandle,
}

impl<S: InputSink> Drive<S> {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Ask>) {
        // Left over from before: nobody drives now.
        self.announce(None);
        loop {
            let expiry = self.lease.until();
            let now = Instant::now();
            let next = self.feeding.wait(now).map(|wait| now + wait);
            tokio::select! {
                ask = inbox.recv() => match ask {
                    Some(Ask::Lease(lease, reply)) => drop(reply.send(self.command(lease))),
                    Some(Ask::Input(frames, reply)) => self.input(frames, reply),
                    Some(Ask::Release) => self.release(),
                    None => break,
                },
                () = at(expiry) => {
                    let change = self.lease.expire(Instant::now());
                    self.follow(change);
                }
                () = at(next) => self.feed(),
            }
        }
        self.release();
        self.announce(None);
    }

    fn command(&mut self, lease: wire::Lease) -> Answer {
        match self.lease.command(lease, Instant::now()) {
            Ok(change) => {
                self.follow(change);
                (CommandStatus::Done, String::new())
            }
            Err(error) => (CommandStatus::Refused, error.to_string()),
        }
    }

    /// Refuses input, or has it fed.
    fn input(&mut self, frames: Vec<Frame>, reply: oneshot::Sender<Answer>) {
        let refusal = match &self.injector {
            _ if !self.lease.is_on(Instant::now()) => {
                (CommandStatus::Refused, "no lease is on".into())
            }
            Err(why) => (CommandStatus::Failed, why.clone()),
            Ok(_) => return self.feeding.add(frames, reply),
        };
        // Whoever asked may have gone.
        let _ = reply.send(refusal);
    }

    /// Feeds the frame whose time has come.
    fn feed(&mut self) {
        let fed = match (self.feeding.next(Instant::now()), &mut self.injector) {
            (Some(frame), Ok(injector)) => injector.feed(&frame),
            _ => Ok(()),
        };
        let Some(reply) = self.feeding.gave(fed.is_err()) else {
            return;
        };
        // Whoever asked may have gone.
        let _ = reply.send(match fed {
            Ok(()) => (CommandStatus::Done, String::new()),
            Err(error) => (CommandStatus::Failed, error.to_string()),
        });
    }

    fn follow(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Began(operator) => {
                self.announce(Some(&operator));
                self.files
                    .send(Request::Report(ControlKind::LeaseOn, operator, 0));
            }
            LeaseChange::Renewed(operator) => self.announce(Some(&operator)),
            LeaseChange::Ended(operator) => {
                self.release();
                self.announce(None);
                self.files
                    .send(Request::Report(ControlKind::LeaseOff, operator, 0));
            }
            LeaseChange::None => {}
        }
    }

    fn announce(&self, operator: Option<&str>) {
        let left = self.lease.until().map_or(0, |until| {
            until.saturating_duration_since(Instant::now()).as_millis()
        });
        let until_ms = clock::now().wall_us / 1000 + i64::try_from(left).unwrap_or(0);
        if let Err(error) = announce(
            &self.lease_file,
            operator.map(|operator| (operator, until_ms)),
        ) {
            tracing::warn!(path = %self.lease_file.display(), %error, "cannot tell the phone's user who drives");
        }
    }

    /// Lifts what is pressed; what has not been fed is not.
    fn release(&mut self) {
        for reply in self.feeding.give_up() {
            let why = "the lease or the stream ended before all of it was given";
            // Whoever asked may have gone.
            let _ = reply.send((CommandStatus::Failed, why.into()));
        }
        if let Ok(injector) = &mut self.injector
            && let Err(error) = injector.release()
        {
            tracing::warn!(%error, "cannot lift what is pressed");
        }
    }
}

/// Resolves at `time`; without one, never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
