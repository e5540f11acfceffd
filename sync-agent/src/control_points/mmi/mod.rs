//! The man-machine interface control point (306): keys, touches and pointers of all input devices, read beside whoever
//! else reads them, without grabbing. Devices come and go. The agent's own devices are left out.
//!
//! One thread reads the devices, whose buffers are small (64 events of a keyboard), and never waits for the disk; another
//! writes what has come meanwhile to the journal, all together. What cannot be written is lost, counted, and reported as
//! soon as something can be.

mod frames;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use evdev::{AbsoluteAxisCode as Abs, Device, EventType, KeyCode, RelativeAxisCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sync_protocol::event::{Control, ControlKind, Kind, MmiDevice};

use crate::apply::input::REMOTE_PREFIX;
use crate::clock;
use crate::journal::{Draft, JournalHandle};
use frames::{Assembler, Axes};

/// Devices followed at once.
const DEVICES_MAX: usize = 64;
/// Frames that wait for the journal: half a minute of the fastest panel.
const FRAMES_WAITING_MAX: usize = 4096;

/// A way to the thread.
#[derive(Clone)]
pub struct MmiHandle {
    state: Arc<State>,
}

struct State {
    is_off: AtomicBool,
    is_stopped: AtomicBool,
    waker: EventFd,
}

pub(crate) struct MmiThread {
    reader: thread::JoinHandle<()>,
    /// Ends after the reader.
    writer: thread::JoinHandle<()>,
}

impl MmiHandle {
    /// Of a capture that has not begun.
    pub fn new(off: bool) -> io::Result<Self> {
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            state: Arc::new(State { is_off: off.into(), is_stopped: false.into(), waker }),
        })
    }

    /// Stops or resumes the capture, as rules say.
    pub(crate) fn set_off(&self, off: bool) {
        self.state.is_off.store(off, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.state.is_stopped.store(true, Ordering::Relaxed);
        // It can only fail if it has been woken 2^64 times already.
        let _ = self.state.waker.write(1);
    }
}

impl MmiThread {
    /// Follows the devices in `directory` (`/dev/input`).
    pub(crate) fn start(
        journal: JournalHandle,
        directory: &Path,
        off: bool,
    ) -> io::Result<(MmiHandle, Self)> {
        let handle = MmiHandle::new(off)?;
        let (frames, waiting) = sync_channel(FRAMES_WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let mut point = MmiControlPoint {
            frames,
            directory: directory.to_owned(),
            state: handle.state.clone(),
            devices: BTreeMap::new(),
            next_id: 1,
            lost: lost.clone(),
        };
        let body = move || {
            if let Err(error) = point.run() {
                tracing::error!(%error, "the input control point ends");
            }
        };
        let writer = thread::Builder::new()
            .name("mmi-journal".into())
            .spawn(move || write(&journal, &waiting, &lost))?;
        let reader = thread::Builder::new().name("mmi".into()).spawn(body)?;
        Ok((handle, Self { reader, writer }))
    }

    pub(crate) fn join(self) {
        if self.reader.join().is_err() || self.writer.join().is_err() {
            tracing::error!("the input control point panicked");
        }
    }
}

struct MmiControlPoint {
    frames: SyncSender<Draft>,
    directory: PathBuf,
    state: Arc<State>,
    devices: BTreeMap<PathBuf, Source>,
    next_id: u32,
    lost: Arc<AtomicU64>,
}

struct Source {
    device: Device,
    assembler: Assembler,
}

impl MmiControlPoint {
    fn run(&mut self) -> io::Result<()> {
        // Watching begins before looking, so that no device is missed between.
        let changes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // Permissions may be granted after the node was made.
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVED_TO;
        if let Err(error) = changes.add_watch(&self.directory, flags) {
            tracing::warn!(directory = %self.directory.display(), %error, "no input devices to capture");
        }
        self.look_for_devices();
        while !self.state.is_stopped.load(Ordering::Relaxed) {
            self.wait(&changes)?;
            // EAGAIN: nobody woke us, which is fine.
            let _ = self.state.waker.read();
            if changes.read_events().is_ok_and(|events| !events.is_empty()) {
                self.look_for_devices();
            }
            let drafts = self.read_frames();
            if !self.state.is_off.load(Ordering::Relaxed) {
                for draft in drafts {
                    // The writer lives as long as we; what finds no room is counted.
                    if self.frames.try_send(draft).is_err() {
                        self.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(())
    }

    fn wait(&self, changes: &Inotify) -> io::Result<()> {
        let mut sources = vec![
            PollFd::new(self.state.waker.as_fd(), PollFlags::POLLIN),
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
        ];
        sources.extend(
            self.devices
                .values()
                .map(|source| PollFd::new(source.device.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn look_for_devices(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_event = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"event"));
            if !is_event || self.devices.contains_key(&path) || self.devices.len() >= DEVICES_MAX {
                continue;
            }
            match self.open(&path) {
                Ok(Some(source)) => {
                    tracing::info!(device = source.device.name(), path = %path.display(), "capturing");
                    self.devices.insert(path, source);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(path = %path.display(), %error, "cannot open"),
            }
        }
    }

    /// None if the device is not one to capture.
    fn open(&mut self, path: &Path) -> io::Result<Option<Source>> {
        let device = Device::open(path)?;
        if device
            .name()
            .is_some_and(|name| name.starts_with(REMOTE_PREFIX))
        {
            return Ok(None);
        }
        let Some(kind) = classify(&device) else {
            return Ok(None);
        };
        device.set_nonblocking(true)?;
        let assembler = Assembler::new(kind, self.next_id, axes(&device, kind)?);
        self.next_id += 1;
        Ok(Some(Source { device, assembler }))
    }

    fn read_frames(&mut self) -> Vec<Draft> {
        let mut drafts = Vec::new();
        self.devices.retain(|path, source| {
            let events = match source.device.fetch_events() {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "device gone");
                    return false;
                }
            };
            for event in events {
                let frame =
                    source
                        .assembler
                        .push(event.event_type().0, event.code(), event.value());
                drafts.extend(frame.map(|frame| Draft {
                    stamp: clock::now(),
                    kind: Kind::Mmi(frame),
                }));
            }
            true
        });
        drafts
    }
}

/// Writes frames to the journal until nobody sends any more.
fn write(journal: &JournalHandle, frames: &Receiver<Draft>, lost: &AtomicU64) {
    while let Ok(first) = frames.recv() {
        let waiting = frames.try_iter().take(FRAMES_WAITING_MAX - 1);
        let mut drafts: Vec<Draft> = std::iter::once(first).chain(waiting).collect();
        let count = drafts.len() as u64;
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let text = "the journal was full or could not be written".into();
            let control = Control {
                kind: ControlKind::MmiLost,
                text,
                path: None,
                count: missing,
            };
            drafts.insert(
                0,
                Draft {
                    stamp: clock::now(),
                    kind: Kind::Control(control),
                },
            );
        }
        if let Err(error) = journal.call(move |journal| journal.append(drafts)) {
            if missing == 0 {
                tracing::warn!(%error, "input is lost");
            }
            lost.fetch_add(missing + count, Ordering::Relaxed);
        }
    }
}

/// What a device is to the appliance; none for those without keys or positions.
fn classify(device: &Device) -> Option<MmiDevice> {
    let has_key = |code| {
        device
            .supported_keys()
            .is_some_and(|keys| keys.contains(code))
    };
    let has_axis = |code| {
        device
            .supported_absolute_axes()
            .is_some_and(|axes| axes.contains(code))
    };
    let moves = device
        .supported_relative_axes()
        .is_some_and(|axes| axes.contains(RelativeAxisCode::REL_X));
    let is_touch =
        has_axis(Abs::ABS_MT_POSITION_X) || (has_axis(Abs::ABS_X) && has_key(KeyCode::BTN_TOUCH));
    let is_pointer = has_key(KeyCode::BTN_LEFT) && (moves || has_axis(Abs::ABS_X));
    let events = device.supported_events();
    let is_keyboard = events.contains(EventType::KEY) || events.contains(EventType::SWITCH);
    match () {
        () if is_pointer && !has_axis(Abs::ABS_MT_POSITION_X) => Some(MmiDevice::Pointer),
        () if is_touch => Some(MmiDevice::Touch),
        () if is_keyboard => Some(MmiDevice::Keyboard),
        () => None,
    }
}

fn axes(device: &Device, kind: MmiDevice) -> io::Result<Axes> {
    if kind == MmiDevice::Keyboard || device.supported_absolute_axes().is_none() {
        return Ok(Axes::default());
    }
    let mut axes = Axes::default();
    // Multi-touch axes come later in the list and win: on a panel that has both they are the exact ones.
    for (code, info) in device.get_absinfo()? {
        let range = (info.minimum(), info.maximum());
        match code {
            Abs::ABS_X | Abs::ABS_MT_POSITION_X => axes.x = range,
            Abs::ABS_Y | Abs::ABS_MT_POSITION_Y => axes.y = range,
            Abs::ABS_MT_SLOT => axes.slot = info.value(),
            _ => {}
        }
        match code {
            Abs::ABS_X => axes.position.0 = Some(info.value()),
            Abs::ABS_Y => axes.position.1 = Some(info.value()),
            _ => {}
        }
    }
    Ok(axes)
}

/// The axes of the phone's own touch panel, for the remote one to be alike.
pub(crate) fn own_panel(directory: &Path) -> Option<(u32, u32)> {
    let entries = std::fs::read_dir(directory).ok()?;
    let devices = entries
        .flatten()
        .filter_map(|entry| Device::open(entry.path()).ok());
    let mut touches = devices.filter(|device| {
        classify(device) == Some(MmiDevice::Touch)
            && !device.name().unwrap_or_default().starts_with(REMOTE_PREFIX)
    });
    touches
        .find_map(|device| axes(&device, MmiDevice::Touch).ok())
        .map(|axes| axes.maxima())
}
