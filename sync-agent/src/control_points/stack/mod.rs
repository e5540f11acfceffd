//! The stack control point (314): what the phone's modems do - registration, roaming, cell, signal, calls, short messages -
//! as ModemManager tells it. It becomes events in the journal, and rows of the usage database on the phone.
//!
//! ```text
//! ModemManager ──D-Bus──▶ modem_manager ──Notice──▶ follow ──Stack──▶ journal
//!                                                        └──────────▶ usage.db
//! ```
//! One thread with a runtime of its own, which may wait for the disk. A phone without a bus, or without the daemon, is
//! looked at again and again; the daemon may come and go. Leaves out: modems that ModemManager does not speak to, voice
//! over other networks, traffic.

mod follow;
mod modem_manager;
pub(crate) mod usage;

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use sync_protocol::event::Kind;
use sync_protocol::stack::{Stack, TextMessage};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::clock::{self, Stamp};
use crate::journal::{Draft, JournalHandle};
use follow::{Follower, Notice};
use modem_manager::{ModemManager, Noticed};
use usage::UsageDb;

/// How long to wait before the bus is tried again, at first and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often modems are asked for their cell.
const PLACE_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct StackThread {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl StackThread {
    /// Follows the modems of the daemon on the bus at `bus` (absent: the system's), and keeps the usage database in
    /// `directory`. On return the database is sound and can be synchronised.
    pub(crate) fn start(
        journal: JournalHandle,
        directory: &Path,
        bus: Option<String>,
    ) -> io::Result<Self> {
        let usage = UsageDb::open(directory)
            .inspect_err(|error| tracing::error!(%error, "usage is not kept on this phone"))
            .ok();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let point = StackControlPoint {
            follower: Follower::default(),
            usage,
            journal,
            usage_fails: false,
            journal_fails: false,
        };
        let (stop, stopped) = oneshot::channel();
        let body = move || runtime.block_on(point.run(bus, boot_id, stopped));
        let thread = thread::Builder::new().name("stack".into()).spawn(body)?;
        Ok(Self { stop, thread })
    }

    /// Stops it and waits for its end.
    pub(crate) fn join(self) {
        // It has ended if nobody takes this.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the stack control point panicked");
        }
    }
}

struct StackControlPoint {
    follower: Follower,
    /// None if it cannot be kept.
    usage: Option<UsageDb>,
    journal: JournalHandle,
    /// What could not be written, of which that was said.
    usage_fails: bool,
    journal_fails: bool,
}

impl StackControlPoint {
    async fn run(mut self, bus: Option<String>, boot_id: String, mut stop: oneshot::Receiver<()>) {
        let mut wait = RETRY_MIN;
        let mut is_said = false;
        loop {
            let error = tokio::select! {
                biased;
                _ = &mut stop => break,
                connected = ModemManager::connect(bus.as_deref(), &boot_id) => match connected {
                    Ok(mut daemon) => match daemon.survey().await {
                        Ok(noticed) => {
                            (wait, is_said) = (RETRY_MIN, false);
                            match self.follow(daemon, noticed, &mut stop).await {
                                Ok(()) => break,
                                Err(error) => error,
                            }
                        }
                        Err(error) => error,
                    },
                    Err(error) => error,
                },
            };
            if !std::mem::replace(&mut is_said, true) {
                tracing::info!(%error, "no D-Bus: modems are not followed until there is one");
            }
            self.take(vec![Notice::DaemonGone.into()], clock::now())
                .await;
            tokio::select! {
                _ = &mut stop => break,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
        let written = self.usage.as_mut().map_or(Ok(()), UsageDb::write);
        said_once(&mut self.usage_fails, written);
    }

    /// Follows the daemon until it is time to stop, or the bus breaks.
    async fn follow(
        &mut self,
        mut daemon: ModemManager,
        noticed: Vec<Noticed>,
        stop: &mut oneshot::Receiver<()>,
    ) -> zbus::Result<()> {
        match daemon.is_there() {
            true => tracing::info!("following the modems of ModemManager"),
            false => tracing::info!("no ModemManager yet"),
        }
        self.take(noticed, clock::now()).await;
        let mut place_at = Instant::now() + PLACE_EVERY;
        loop {
            let due_us = [
                self.follower.due_us(),
                self.usage.as_ref().and_then(UsageDb::due_us),
            ];
            let now_us = clock::mono_us();
            let dues = due_us.into_iter().flatten().map(|due_us| {
                Instant::now() + Duration::from_micros(due_us.saturating_sub(now_us))
            });
            let due = dues.fold(place_at, Instant::min);
            tokio::select! {
                _ = &mut *stop => return Ok(()),
                message = daemon.wait() => {
                    let (message, stamp) = (message?, clock::now());
                    let noticed = daemon.interpret(&message).await?;
                    if noticed.iter().any(|noticed| needs_place(&noticed.notice)) {
                        self.take(daemon.places().await?, stamp).await;
                    }
                    self.take(noticed, stamp).await;
                }
                () = sleep_until(due) => {
                    let stamp = clock::now();
                    let has_settled = self.follower.due_us().is_some_and(|due| due <= stamp.mono_us);
                    if has_settled || place_at <= Instant::now() {
                        self.take(daemon.places().await?, stamp).await;
                        place_at = Instant::now() + PLACE_EVERY;
                    }
                    let told = self.follower.tick(stamp.mono_us);
                    self.tell(told, stamp).await;
                }
            }
        }
    }

    async fn take(&mut self, noticed: Vec<Noticed>, stamp: Stamp) {
        for Noticed { notice, is_new } in noticed {
            if let (Notice::Message(message), false) = (&notice, is_new)
                && self.knows(message)
            {
                continue;
            }
            let told = self.follower.take(notice, stamp.mono_us);
            self.tell(told, stamp).await;
        }
    }

    /// Whether the message was told in an earlier run. Twice is worse than never: it could not be taken back.
    fn knows(&mut self, message: &TextMessage) -> bool {
        let knows = self.usage.as_ref().map(|usage| usage.knows(message));
        let knows = knows.and_then(|knows| said_once(&mut self.usage_fails, knows));
        knows.unwrap_or(true)
    }

    async fn tell(&mut self, told: Vec<Stack>, stamp: Stamp) {
        if let Some(usage) = &mut self.usage {
            let recorded = usage.record(stamp, &told);
            said_once(&mut self.usage_fails, recorded);
        }
        if told.is_empty() {
            return;
        }
        let drafts: Vec<_> = told
            .into_iter()
            .map(|stack| Draft {
                stamp,
                kind: Kind::Stack(stack),
            })
            .collect();
        let appended = self
            .journal
            .ask(move |journal| journal.append(drafts))
            .await;
        said_once(&mut self.journal_fails, appended);
    }
}

/// Says that something fails, once until it works again.
fn said_once<T, E: std::error::Error>(fails: &mut bool, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => {
            *fails = false;
            Some(value)
        }
        Err(error) => {
            if !std::mem::replace(fails, true) {
                tracing::warn!(%error, cause = ?error.source(), "what modems do is lost");
            }
            None
        }
    }
}

/// Whether it is stamped with where the phone is.
fn needs_place(notice: &Notice) -> bool {
    matches!(
        notice,
        Notice::Call { .. } | Notice::CallState { .. } | Notice::Message(_)
    )
}
