//! Input device (virtio 1.2, 5.8): the phone's keyboard and its multi-touch panel (protocol B).
//!
//! Frames come in by [`InputSender`], whole or not at all, and reach the guest in the order in which they were sent to
//! any device of one [`InputOrder`], no faster than a person's devices report. It promises that a guest sees only events
//! that the device announces. It leaves out key repetition (EV_REP): a guest that repeats by its own clock could not be
//! replayed; whoever sends may send value 2.

mod order;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::guest::GuestAccess;
use super::worker::{Kick, Outside, Worker};
use super::{Activation, DeviceState, RestoreError, VirtioDevice, read_config_bytes};
pub use order::InputOrder;
use order::SavedFrame;

const DEVICE_ID: u32 = 18;
/// Linux fills the event queue with this many buffers at most.
const QUEUE_SIZE: u16 = 64;
const EVENT_QUEUE: usize = 0;
const STATUS_QUEUE: usize = 1;

/// Events in one frame: ten contacts with five events each, and some.
const FRAME_EVENTS_MAX: usize = 64;
/// Contacts that the panel tells apart, as on every phone.
const TOUCH_SLOTS: u32 = 10;
/// Tracking IDs are 16 bits wide by the kernel's convention.
const TRACKING_ID_MAX: u32 = 0xffff;

const CONFIG_ID_NAME: u8 = 1;
const CONFIG_ID_SERIAL: u8 = 2;
const CONFIG_ID_DEVIDS: u8 = 3;
const CONFIG_PROP_BITS: u8 = 0x10;
const CONFIG_EV_BITS: u8 = 0x11;
const CONFIG_ABS_INFO: u8 = 0x12;
/// select, subsel, size, reserved[5], then the answer.
const CONFIG_ANSWER: usize = 8;
const CONFIG_ANSWER_MAX: usize = 128;

// Linux input-event-codes.h.
const EV_SYN: u16 = 0;
const EV_KEY: u16 = 1;
const EV_ABS: u16 = 3;
const SYN_REPORT: u16 = 0;
/// KEY_ESC to KEY_MICMUTE: all keys of keyboards and phones, no buttons, so that guests take it for a keyboard.
const KEYBOARD_KEYS: std::ops::RangeInclusive<u16> = 1..=248;
const BTN_TOUCH: u16 = 0x14a;
const ABS_X: u16 = 0;
const ABS_Y: u16 = 1;
const ABS_MT_SLOT: u16 = 0x2f;
const ABS_MT_POSITION_X: u16 = 0x35;
const ABS_MT_POSITION_Y: u16 = 0x36;
const ABS_MT_TRACKING_ID: u16 = 0x39;
const INPUT_PROP_DIRECT: u16 = 1;

const BUS_VIRTUAL: u16 = 6;
const VENDOR: u16 = 0x504c;

/// Type, code, value: as in Linux's `struct input_event`.
pub type Event = (u16, u16, i32);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    #[error("{device} has no event of type {kind}, code {code}")]
    Unsupported { device: &'static str, kind: u16, code: u16 },
    #[error("a frame of {0} events is longer than any device makes")]
    FrameTooLong(usize),
    #[error("the guest does not listen to its {0} yet")]
    NotReady(&'static str),
    #[error("the guest has not taken what it was sent before; {0} must wait")]
    Full(&'static str),
}

/// What kind of device it is: all that its configuration tells.
struct Kind {
    name: &'static str,
    product: u16,
    properties: Vec<u16>,
    keys: Vec<u16>,
    axes: Vec<(u16, u32)>,
}

pub struct Input {
    shared: Arc<Shared>,
    select: u8,
    subselect: u8,
    worker: Option<Worker>,
}

/// Sends what somebody outside types or touches. Any thread may; it never blocks.
#[derive(Clone)]
pub struct InputSender(Arc<Shared>);

struct Shared {
    kind: Kind,
    kick: Kick,
    order: InputOrder,
    /// This device in the order.
    device: usize,
    /// Known from the first activation on; a device stays with its machine.
    guest: OnceLock<Arc<GuestAccess>>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    select: u8,
    subselect: u8,
    frames: Vec<SavedFrame>,
}

impl Input {
    pub fn keyboard(order: &InputOrder) -> std::io::Result<Self> {
        let keys = KEYBOARD_KEYS.collect();
        let kind = Kind { name: "Pollux Keyboard", product: 1, properties: vec![], keys, axes: vec![] };
        Self::new(kind, order)
    }

    /// A panel whose coordinates are the screen's pixels. `width` and `height` are at least 1.
    pub fn touch(width: u32, height: u32, order: &InputOrder) -> std::io::Result<Self> {
        let (x, y) = (width.saturating_sub(1), height.saturating_sub(1));
        let axes = vec![
            (ABS_X, x),
            (ABS_Y, y),
            (ABS_MT_SLOT, TOUCH_SLOTS - 1),
            (ABS_MT_POSITION_X, x),
            (ABS_MT_POSITION_Y, y),
            (ABS_MT_TRACKING_ID, TRACKING_ID_MAX),
        ];
        let properties = vec![INPUT_PROP_DIRECT];
        Self::new(Kind { name: "Pollux Touch", product: 2, properties, keys: vec![BTN_TOUCH], axes }, order)
    }

    fn new(kind: Kind, order: &InputOrder) -> std::io::Result<Self> {
        let kick = Kick::new()?;
        let device = order.join(kind.name, kick.clone());
        let shared = Shared { kind, kick, order: order.clone(), device, guest: OnceLock::new() };
        Ok(Self { shared: Arc::new(shared), select: 0, subselect: 0, worker: None })
    }

    pub fn sender(&self) -> InputSender {
        InputSender(self.shared.clone())
    }

    fn answer(&self) -> Vec<u8> {
        let kind = &self.shared.kind;
        match (self.select, self.subselect) {
            (CONFIG_ID_NAME, 0) => kind.name.into(),
            (CONFIG_ID_SERIAL, 0) => format!("pollux-{}", kind.product).into(),
            // Bus, vendor, product, version.
            (CONFIG_ID_DEVIDS, 0) => [BUS_VIRTUAL, VENDOR, kind.product, 1].map(u16::to_le_bytes).concat(),
            (CONFIG_PROP_BITS, 0) => bitmap(kind.properties.iter().copied()),
            (CONFIG_EV_BITS, event) if u16::from(event) == EV_KEY => bitmap(kind.keys.iter().copied()),
            (CONFIG_EV_BITS, event) if u16::from(event) == EV_ABS => bitmap(kind.axes.iter().map(|a| a.0)),
            (CONFIG_ABS_INFO, axis) => match kind.axes.iter().find(|a| a.0 == u16::from(axis)) {
                // min, max, fuzz, flat, resolution.
                Some(&(_, max)) => [0, max, 0, 0, 0].map(u32::to_le_bytes).concat(),
                None => vec![],
            },
            _ => vec![],
        }
    }
}

/// Bits as the configuration gives them; empty where no bit is set.
fn bitmap(bits: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bit in bits.map(usize::from) {
        bytes.resize(bytes.len().max(bit / 8 + 1), 0);
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

impl Kind {
    fn check(&self, event: Event) -> Result<(), InputError> {
        let (kind, code, _) = event;
        let supported = match kind {
            EV_SYN => code == SYN_REPORT,
            EV_KEY => self.keys.contains(&code),
            EV_ABS => self.axes.iter().any(|a| a.0 == code),
            _ => false,
        };
        supported.then_some(()).ok_or(InputError::Unsupported { device: self.name, kind, code })
    }
}

impl InputSender {
    /// Sends one frame; a closing SYN_REPORT is added where it is missing.
    pub fn send(&self, events: &[Event]) -> Result<(), InputError> {
        self.0.send(events, false)
    }

    /// Sends a frame that only says where something is: if the one before, to any device, was such a frame and has not
    /// begun to reach the guest, this one takes its place, as a panel reports the last position only.
    pub fn send_position(&self, events: &[Event]) -> Result<(), InputError> {
        self.0.send(events, true)
    }

    /// Whether the guest's driver has taken all that was sent to any device of the same order.
    pub fn is_drained(&self) -> bool {
        self.0.order.is_drained(self.0.guest_time())
    }
}

impl Shared {
    fn send(&self, events: &[Event], is_position: bool) -> Result<(), InputError> {
        if events.len() > FRAME_EVENTS_MAX {
            return Err(InputError::FrameTooLong(events.len()));
        }
        events.iter().try_for_each(|event| self.kind.check(*event))?;
        let mut frame = events.to_vec();
        if events.last().is_none_or(|e| e.0 != EV_SYN) {
            frame.push((EV_SYN, SYN_REPORT, 0));
        }
        self.order.send(self.device, frame, is_position)
    }

    fn guest_time(&self) -> Duration {
        self.guest.get().map_or(Duration::ZERO, |guest| guest.guest_time())
    }
}

impl Outside for Shared {
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    fn due(&self) -> Option<Duration> {
        self.order.due(self.device, self.guest_time())
    }

    fn work(&self) {
        self.order.deliver(self.device, self.guest_time());
    }
}

impl VirtioDevice for Input {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "input"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// The driver writes `select` and `subsel`; `size` and what follows is the answer.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let answer = self.answer();
        let mut config = [0; CONFIG_ANSWER + CONFIG_ANSWER_MAX];
        config[0] = self.select;
        config[1] = self.subselect;
        config[2] = answer.len() as u8;
        config[CONFIG_ANSWER..CONFIG_ANSWER + answer.len()].copy_from_slice(&answer);
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, &byte) in (offset..).zip(data) {
            match at {
                0 => self.select = byte,
                1 => self.subselect = byte,
                _ => {}
            }
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.shared.guest.get_or_init(|| activation.guest.clone());
        self.shared.order.set_queues(self.shared.device, activation.queues.try_into().ok());
        if self.worker.is_none() {
            self.worker = Worker::start("input", self.shared.clone(), self.shared.kick.clone(), activation.guest);
        }
    }

    fn notify(&mut self, index: usize) {
        match index {
            EVENT_QUEUE => self.shared.order.refilled(self.shared.device),
            STATUS_QUEUE => self.shared.order.drain_status(self.shared.device),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.shared.order.set_queues(self.shared.device, None);
        (self.select, self.subselect) = (0, 0);
    }

    #[cfg(any(test, feature = "testing"))]
    fn wake(&self) {
        self.shared.work();
    }

    fn save(&self) -> DeviceState {
        let frames = self.shared.order.save(self.shared.device);
        DeviceState::of(&Saved { select: self.select, subselect: self.subselect, frames })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let saved: Saved = state.fields("input")?;
        let known = |event: &Event| self.shared.kind.check(*event).is_ok();
        let is_sound = saved.frames.iter().all(|frame| frame.events().iter().all(known))
            && self.shared.order.restore(self.shared.device, saved.frames);
        if !is_sound {
            return Err(RestoreError::damaged("input", "events that this device never had"));
        }
        (self.select, self.subselect) = (saved.select, saved.subselect);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
