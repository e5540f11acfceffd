//! A phone: a folder that its user changes, and the real agent on it, which can be killed and lose its power.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sync_agent::config::{Config, Flags};
use sync_agent::parts::{
    self, Draft, DriveHandle, Ends, FilesControlPoint, FilesHandle, InputSink, Journal, JournalError, JournalHandle, Limits, MmiHandle,
    Notice, Notices, Origination, Request, Stamp,
};
use sync_protocol::PhonePath;
use sync_protocol::event::{Frame, InputEvent, Kind, MmiDevice};
use tokio::task::{JoinHandle, spawn_local};

use crate::disk::{Disk, Image};
use crate::history::History;
use crate::net::Line;
use crate::os::{self, Skewed, now_ms};

/// So small that runs fill it.
const JOURNAL_BYTES: u64 = 2 << 20;

/// An event that the agent was given and has kept: of which journal, its seq, and what tells it from others.
pub(crate) struct Kept {
    pub(crate) journal: Vec<u8>,
    pub(crate) seq: u64,
    pub(crate) mark: u32,
}

pub(crate) struct Phone {
    pub(crate) number: usize,
    pub(crate) line: Line,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) skew_us: Arc<AtomicI64>,
    /// Input that must not be lost.
    pub(crate) kept: Vec<Kept>,
    /// Journals that were damaged beyond use: what of them was not acknowledged is gone.
    pub(crate) lost_journals: Vec<Vec<u8>>,
    pub(crate) home: PathBuf,
    folder: PathBuf,
    config: Arc<Config>,
    random: SmallRng,
    starts: u32,
    marks: u32,
    running: Option<Running>,
    /// What is on the disk while the agent does not run.
    image: Image,
    pub(crate) starts_at_ms: u64,
}

struct Running {
    disk: Arc<Disk>,
    journal: JournalHandle,
    files: FilesHandle,
    notices: Queue,
    tasks: Vec<JoinHandle<()>>,
}

/// What the kernel would tell of files.
#[derive(Clone)]
pub(crate) struct Queue {
    come: Arc<Mutex<VecDeque<Notice>>>,
    waker: Arc<EventFd>,
}

impl Queue {
    fn new() -> Queue {
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        Queue { come: Arc::default(), waker: Arc::new(waker) }
    }

    fn tell(&self, notice: Notice) {
        self.come.lock().unwrap_or_else(PoisonError::into_inner).push_back(notice);
        self.waker.write(1).expect("told");
    }
}

impl Notices for Queue {
    fn read(&mut self) -> io::Result<Vec<Notice>> {
        let _ = self.waker.read();
        Ok(self.come.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect())
    }

    fn wakes(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

/// Input devices on which an operator's frames disappear.
struct Nowhere;

impl InputSink for Nowhere {
    fn panel(&self) -> (u32, u32) {
        (1000, 1000)
    }

    fn emit(&mut self, _: &Frame) -> io::Result<()> {
        Ok(())
    }
}

impl Phone {
    pub(crate) fn new(number: usize, folder: &Path, line: Line, history: Arc<Mutex<History>>, seed: u64) -> Phone {
        let home = folder.join("home");
        std::fs::create_dir_all(&home).expect("a folder");
        let flags = Flags {
            appliance: Some("appliance:1".into()),
            ca: Some("00".repeat(32)),
            serial: Some(format!("phone-{number}")),
            model: Some("simulated".into()),
            roots: vec![home.clone()],
            state: Some(folder.join("state")),
            // A root, too; not the host's own.
            usage: Some(folder.join("usage")),
            cmdline: "/nonexistent".into(),
            image_sync: "/nonexistent".into(),
            ..Flags::default()
        };
        let mut config = Config::load(flags).expect("a configuration");
        config.lease_file = folder.join("lease");
        config.journal = Limits::new(JOURNAL_BYTES);
        Phone {
            number,
            line,
            history,
            skew_us: Arc::default(),
            kept: Vec::new(),
            lost_journals: Vec::new(),
            home,
            folder: folder.to_owned(),
            config: Arc::new(config),
            random: SmallRng::seed_from_u64(seed),
            starts: 0,
            marks: 0,
            running: None,
            image: Image::new(),
            starts_at_ms: 0,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The agent has crashed, or has ended by itself to be started again.
    pub(crate) fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.disk.is_dead() || running.tasks.iter().any(JoinHandle::is_finished))
    }

    pub(crate) fn disk(&self) -> Option<&Arc<Disk>> {
        self.running.as_ref().map(|running| &running.disk)
    }

    /// As the agent's `run` does it, without its devices.
    pub(crate) fn start(&mut self) -> Result<(), JournalError> {
        self.starts += 1;
        let state = self.folder.join(format!("state-{:04}", self.starts));
        let disk = Disk::new(&state, &self.image, self.random.random());
        self.config = Arc::new(Config { state: state.clone(), ..(*self.config).clone() });
        match self.put_together(&state, disk.clone()) {
            Ok(running) => {
                self.running = Some(running);
                Ok(())
            }
            Err(error) => {
                self.image = disk.crash();
                disk.remove();
                Err(error)
            }
        }
    }

    fn put_together(&mut self, state: &Path, disk: Arc<Disk>) -> Result<Running, JournalError> {
        let (mut journal, origination) = Journal::open(state, self.config.journal)?;
        let (scope, mmi_off) = parts::rules_in_force(&mut journal, &self.config.scope)?;
        parts::report_start(&mut journal, &origination);
        let journal = JournalHandle::without_thread(journal);
        let reason = if origination == Origination::Resumed { "start" } else { "enrolment" };
        let notices = Queue::new();
        let watch = {
            let notices = notices.clone();
            Box::new(move |_: &_| Some(Box::new(notices.clone()) as Box<dyn Notices>))
        };
        let begun = FilesControlPoint::new(journal.clone(), scope, reason, watch);
        let (files, point) = begun.map_err(|_| JournalError::Ended)?;
        let (drive, drive_task) = DriveHandle::start(Ok(Nowhere), self.config.lease_file.clone(), files.clone());
        let mmi = MmiHandle::new(mmi_off).expect("an eventfd");
        let ends = Ends { journal: journal.clone(), files: files.clone(), mmi, drive };
        let (config, line) = (self.config.clone(), self.line.clone());
        let skewed = |skew: &Arc<AtomicI64>| skew.clone();
        let link = async move { drop(parts::link(config, line, ends).await) };
        let tasks = vec![
            spawn_local(Skewed::new(skewed(&self.skew_us), run_files(point, notices.clone()))),
            spawn_local(Skewed::new(skewed(&self.skew_us), link)),
        ];
        drop(drive_task);
        Ok(Running { disk, journal, files, notices, tasks })
    }

    /// Ends the agent at once, if it has not crashed by itself, and leaves it off for `off_ms`.
    pub(crate) async fn crash(&mut self, off_ms: u64) {
        let Some(running) = self.running.take() else { return };
        self.image = running.disk.crash();
        self.line.phone_gone();
        for task in running.tasks {
            task.abort();
            let _ = task.await;
        }
        drop((running.journal, running.files));
        running.disk.remove();
        self.starts_at_ms = now_ms() + off_ms;
    }

    /// Damages the journal so that it cannot be read any more, while the agent is off.
    pub(crate) fn damage_journal(&mut self, id: Vec<u8>) {
        if let Some(journal) = self.image.get_mut(Path::new("journal.db")) {
            journal.iter_mut().take(4096).for_each(|byte| *byte ^= 0x55);
            self.image.remove(Path::new("journal.db-wal"));
            self.lost_journals.push(id);
        }
    }

    /// Tells the agent what the kernel would; unless it does not run.
    pub(crate) fn notice(&self, notice: Notice) {
        if let Some(running) = &self.running {
            running.notices.tell(notice);
        }
    }

    /// The user touches the panel. What the agent keeps of it must not be lost.
    pub(crate) fn touch(&mut self) {
        let Some(running) = &self.running else { return };
        self.marks += 1;
        let mark = self.marks;
        let events = vec![InputEvent { r#type: 3, code: 0, value: mark.cast_signed() }];
        let frame = Frame { device: MmiDevice::Touch, device_id: self.number as u32, events, x_max: 1000, y_max: 1000 };
        let wall_us = 1_600_000_000_000_000 + now_ms().cast_signed() * 1000 + self.skew_us.load(Relaxed);
        let stamp = Stamp { wall_us, mono_us: now_ms() * 1000 };
        let append = move |journal: &mut Journal| {
            let seq = journal.append(vec![Draft { stamp, kind: Kind::Mmi(frame) }])?;
            Ok((journal.id().to_vec(), seq))
        };
        if let Ok((journal, seq)) = running.journal.call(append) {
            self.kept.push(Kept { journal, seq, mark });
        }
    }

    /// Seqs of the newest event and of the first that is not acknowledged, and the journal's id.
    pub(crate) fn journal(&self) -> Option<(u64, u64, Vec<u8>)> {
        let journal = &self.running.as_ref()?.journal;
        journal.call(|journal| Ok((journal.last_seq(), journal.first_unacked(), journal.id().to_vec()))).ok()
    }

    /// The seq up to which the agent has looked at everything, once it has.
    pub(crate) async fn settled(&self) -> Option<u64> {
        let files = self.running.as_ref()?.files.clone();
        Some(files.ask(Request::Root).await?.seq)
    }

    /// The one root.
    pub(crate) fn root(&self) -> PhonePath {
        PhonePath::try_from(self.home.as_path()).expect("a path")
    }
}

/// Gives the control point its turns, as its thread would.
async fn run_files(mut point: FilesControlPoint, notices: Queue) {
    let requested = os::watched(point.wakes().clone());
    let noticed = os::watched(notices.waker.clone());
    loop {
        let patience = point.patience();
        let patience = async {
            match patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let in_vain = tokio::select! {
            biased;
            come = requested.readable() => { come.map(|mut come| come.clear_ready()).expect("an eventfd"); false }
            come = noticed.readable() => { come.map(|mut come| come.clear_ready()).expect("an eventfd"); false }
            () = patience => true,
        };
        if !matches!(point.turn(in_vain), Ok(true)) {
            return;
        }
    }
}
