//! Input devices: finds and opens them, also those that appear later, and reads them.
//!
//! Devices are not grabbed: the agent that mirrors this phone reads them as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use evdev::{AbsoluteAxisCode, Device, EventType};

use super::decode::{Abilities, Axis, Decoder};
use crate::ui::Event;

pub(super) const FOLDER: &str = "/dev/input";
/// More than any phone has.
const DEVICES_MAX: usize = 32;

pub(super) struct Devices {
    size: (i32, i32),
    open: Vec<Input>,
}

struct Input {
    path: PathBuf,
    device: Device,
    decoder: Decoder,
}

impl Devices {
    /// No devices yet, for a display of `size` dp.
    pub(super) fn new(size: (i32, i32)) -> Self {
        Self {
            size,
            open: Vec::new(),
        }
    }

    /// Opens what is new in /dev/input. What cannot be opened now is tried again next time.
    pub(super) fn discover(&mut self) {
        let Ok(entries) = std::fs::read_dir(FOLDER) else {
            return;
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let is_event = path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("event"));
            let known = self.open.iter().any(|input| input.path == path);
            if is_event && !known && self.open.len() < DEVICES_MAX {
                match open(&path, self.size) {
                    Ok(Some(input)) => self.open.push(input),
                    Ok(None) => {}
                    // Until it is handed to this user, which is a change that wakes us again.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(error) => eprintln!("handset: {}: {error}", path.display()),
                }
            }
        }
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.open.iter().map(|input| input.device.as_fd())
    }

    /// Appends all that is waiting. Devices that went away are closed.
    pub(super) fn read(&mut self, events: &mut Vec<Event>) {
        self.open.retain_mut(|input| {
            loop {
                match input.device.fetch_events() {
                    Ok(raw) => {
                        for event in raw {
                            let triple = (event.event_type().0, event.code(), event.value());
                            input.decoder.feed(triple, events);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
        });
    }
}

/// Opens a device if it is a keyboard or has absolute axes.
fn open(path: &Path, size: (i32, i32)) -> io::Result<Option<Input>> {
    let device = Device::open(path)?;
    let events = device.supported_events();
    let axes = device.supported_absolute_axes();
    let has = |axis| axes.is_some_and(|axes| axes.contains(axis));
    let multi_touch =
        has(AbsoluteAxisCode::ABS_MT_SLOT) && has(AbsoluteAxisCode::ABS_MT_POSITION_X);
    let (x, y) = match multi_touch {
        true => (
            AbsoluteAxisCode::ABS_MT_POSITION_X,
            AbsoluteAxisCode::ABS_MT_POSITION_Y,
        ),
        false => (AbsoluteAxisCode::ABS_X, AbsoluteAxisCode::ABS_Y),
    };
    let mut abilities = Abilities {
        axes: None,
        multi_touch,
    };
    if has(x) && has(y) {
        let mut range = [Axis::default(); 2];
        for (code, info) in device.get_absinfo()? {
            let axis = Axis {
                min: info.minimum(),
                max: info.maximum(),
            };
            if code == x {
                range[0] = axis;
            } else if code == y {
                range[1] = axis;
            }
        }
        abilities.axes = Some((range[0], range[1]));
    }
    if abilities.axes.is_none() && !events.contains(EventType::KEY) {
        return Ok(None);
    }
    device.set_nonblocking(true)?;
    Ok(Some(Input {
        path: path.to_owned(),
        device,
        decoder: Decoder::new(abilities, size),
    }))
}
