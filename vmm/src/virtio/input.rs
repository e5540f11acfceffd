//! Input device (virtio 1.2, 5.8): the phone's keyboard and its multi-touch panel (protocol B).
//!
//! Frames come in by [`InputSender`], whole or not at all, and reach the guest in order as it offers buffers. It
//! promises that a guest sees only events that the device announces. It leaves out key repetition (EV_REP): a guest
//! that repeats by its own clock could not be replayed; whoever sends may send value 2.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::guest::lock;
use super::worker::{Kick, Outside, Worker};
use super::{Activation, DeviceState, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};

const DEVICE_ID: u32 = 18;
/// Linux fills the event queue with this many buffers at most.
const QUEUE_SIZE: u16 = 64;
const EVENT_QUEUE: usize = 0;
const STATUS_QUEUE: usize = 1;

/// Events in one frame: ten contacts with five events each, and some.
const FRAME_EVENTS_MAX: usize = 64;
/// Events waiting for a guest that does not listen: seconds of the fastest panel.
const PENDING_EVENTS_MAX: usize = 4096;
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
    #[error("the guest has not taken the earlier events of its {0}")]
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: Option<[VirtQueue; 2]>,
    pending: VecDeque<Event>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    select: u8,
    subselect: u8,
    pending: VecDeque<Event>,
}

impl Input {
    pub fn keyboard() -> std::io::Result<Self> {
        let keys = KEYBOARD_KEYS.collect();
        Self::new(Kind { name: "Pollux Keyboard", product: 1, properties: vec![], keys, axes: vec![] })
    }

    /// A panel whose coordinates are the screen's pixels. `width` and `height` are at least 1.
    pub fn touch(width: u32, height: u32) -> std::io::Result<Self> {
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
        Self::new(Kind { name: "Pollux Touch", product: 2, properties, keys: vec![BTN_TOUCH], axes })
    }

    fn new(kind: Kind) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { kind, kick: Kick::new()?, state: Mutex::default() });
        Ok(Self { shared, select: 0, subselect: 0, worker: None })
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
        let Shared { kind, kick, state } = self.0.as_ref();
        if events.len() > FRAME_EVENTS_MAX {
            return Err(InputError::FrameTooLong(events.len()));
        }
        events.iter().try_for_each(|event| kind.check(*event))?;
        let mut state = lock(state);
        if state.queues.is_none() {
            return Err(InputError::NotReady(kind.name));
        }
        if state.pending.len() + events.len() + 1 > PENDING_EVENTS_MAX {
            return Err(InputError::Full(kind.name));
        }
        state.pending.extend(events);
        if events.last().is_none_or(|e| e.0 != EV_SYN) {
            state.pending.push_back((EV_SYN, SYN_REPORT, 0));
        }
        drop(state);
        kick.kick();
        Ok(())
    }

    /// Whether the guest has taken all that was sent.
    pub fn is_drained(&self) -> bool {
        lock(&self.0.state).pending.is_empty()
    }
}

impl State {
    /// Gives the guest what it has buffers for.
    fn deliver(&mut self) {
        let Some([events, _]) = &self.queues else { return };
        while let Some(&(kind, code, value)) = self.pending.front() {
            let Some(mut chain) = events.pop() else { return };
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[2..4].copy_from_slice(&code.to_le_bytes());
            bytes[4..].copy_from_slice(&value.to_le_bytes());
            if chain.write(&bytes) < bytes.len() {
                return events.fail("an input buffer has no room for an event");
            }
            self.pending.pop_front();
            events.complete(chain);
        }
    }

    /// What the guest tells its keyboard (LEDs, none here) is taken and forgotten.
    fn drain_status(&self) {
        let Some([_, status]) = &self.queues else { return };
        while let Some(chain) = status.pop() {
            status.complete(chain);
        }
    }
}

impl Outside for Shared {
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    fn work(&self) {
        lock(&self.state).deliver();
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
        lock(&self.shared.state).queues = activation.queues.try_into().ok();
        if self.worker.is_none() {
            self.worker = Worker::start("input", self.shared.clone(), self.shared.kick.clone(), activation.guest);
        }
    }

    fn notify(&mut self, index: usize) {
        let mut state = lock(&self.shared.state);
        match index {
            EVENT_QUEUE => state.deliver(),
            STATUS_QUEUE => state.drain_status(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        *lock(&self.shared.state) = State::default();
        (self.select, self.subselect) = (0, 0);
    }

    fn save(&self) -> DeviceState {
        let pending = lock(&self.shared.state).pending.clone();
        DeviceState::of(&Saved { select: self.select, subselect: self.subselect, pending })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let saved: Saved = state.fields("input")?;
        let fits = saved.pending.len() <= PENDING_EVENTS_MAX;
        if !fits || saved.pending.iter().any(|e| self.shared.kind.check(*e).is_err()) {
            return Err(RestoreError::damaged("input", "events that this device never had"));
        }
        (self.select, self.subselect) = (saved.select, saved.subselect);
        lock(&self.shared.state).pending = saved.pending;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{FakeDriver, Part};

    fn touch() -> (FakeDriver<Input>, InputSender) {
        let device = Input::touch(360, 720).unwrap();
        let sender = device.sender();
        (FakeDriver::started(device), sender)
    }

    fn select(driver: &mut FakeDriver<Input>, select: u8, subselect: u8) -> Vec<u8> {
        driver.write_config(0, select);
        driver.write_config(1, subselect);
        let size = driver.config(2, 1)[0];
        driver.config(8, usize::from(size))
    }

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        [kind.to_le_bytes().as_slice(), &code.to_le_bytes(), &value.to_le_bytes()].concat()
    }

    #[test]
    fn a_panel_tells_what_it_is() {
        let (mut driver, _) = touch();
        assert_eq!(select(&mut driver, 1, 0), b"Pollux Touch");
        assert_eq!(select(&mut driver, 2, 0), b"pollux-2");
        assert_eq!(select(&mut driver, 3, 0), [6, 0, 0x4c, 0x50, 2, 0, 1, 0]);
        assert_eq!(select(&mut driver, 0x10, 0), [2]);
        let keys = select(&mut driver, 0x11, 1);
        assert_eq!((keys.len(), keys[41]), (42, 1 << 2));
        let axes = u64::from_le_bytes(select(&mut driver, 0x11, 3).try_into().unwrap());
        assert_eq!(axes, 0b11 | 1 << 0x2f | 1 << 0x35 | 1 << 0x36 | 1 << 0x39);
        let max = |info: Vec<u8>| u32::from_le_bytes(info[4..8].try_into().unwrap());
        assert_eq!(max(select(&mut driver, 0x12, 0x36)), 719);
        assert_eq!(max(select(&mut driver, 0x12, 0x2f)), 9);
        for (sel, sub) in [(0, 0), (0x11, 2), (0x11, 20), (0x12, 5), (9, 9), (1, 1), (255, 255)] {
            assert_eq!(select(&mut driver, sel, sub), b"");
        }
    }

    #[test]
    fn a_keyboard_has_keys_only() {
        let mut driver = FakeDriver::started(Input::keyboard().unwrap());
        assert_eq!(select(&mut driver, 1, 0), b"Pollux Keyboard");
        let keys = select(&mut driver, 0x11, 1);
        assert_eq!((keys.len(), keys[0], keys[14]), (32, 0xfe, 0xff));
        assert_eq!(select(&mut driver, 0x11, 3), b"");
        assert_eq!(select(&mut driver, 0x11, 0x14), b"", "no repetition");
    }

    #[test]
    fn frames_reach_the_guest_in_order() {
        let (mut driver, sender) = touch();
        for _ in 0..8 {
            driver.send(0, &[Part::In(8)]);
        }
        let down = [(EV_ABS, ABS_MT_TRACKING_ID, 5), (EV_ABS, ABS_MT_POSITION_X, 100), (EV_KEY, BTN_TOUCH, 1)];
        sender.send(&down).unwrap();
        sender.send(&[(EV_ABS, ABS_MT_TRACKING_ID, -1), (EV_SYN, SYN_REPORT, 0)]).unwrap();
        let expected = [
            event(EV_ABS, ABS_MT_TRACKING_ID, 5),
            event(EV_ABS, ABS_MT_POSITION_X, 100),
            event(EV_KEY, BTN_TOUCH, 1),
            event(EV_SYN, 0, 0),
            event(EV_ABS, ABS_MT_TRACKING_ID, -1),
            event(EV_SYN, 0, 0),
        ];
        for bytes in expected {
            assert_eq!(driver.wait_used(0).data, bytes);
        }
        assert!(sender.is_drained());
    }

    #[test]
    fn events_wait_for_buffers() {
        let (mut driver, sender) = touch();
        sender.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
        assert_eq!(driver.transact(0, &[Part::In(8)]), event(EV_KEY, BTN_TOUCH, 1));
        assert!(!sender.is_drained());
        assert_eq!(driver.transact(0, &[Part::In(8)]), event(EV_SYN, 0, 0));
    }

    #[test]
    fn refuses_what_the_device_does_not_have() {
        let (_driver, sender) = touch();
        assert!(matches!(sender.send(&[(EV_KEY, 30, 1)]), Err(InputError::Unsupported { .. })));
        assert!(matches!(sender.send(&[(4, 4, 1)]), Err(InputError::Unsupported { .. })));
        assert!(matches!(sender.send(&[(EV_SYN, 3, 0)]), Err(InputError::Unsupported { .. })));
        assert_eq!(sender.send(&[(EV_KEY, BTN_TOUCH, 1); 65]), Err(InputError::FrameTooLong(65)));
        assert!(sender.is_drained());
    }

    #[test]
    fn a_guest_that_does_not_listen_costs_bounded_memory() {
        let idle = Input::keyboard().unwrap();
        assert_eq!(idle.sender().send(&[(EV_KEY, 30, 1)]), Err(InputError::NotReady("Pollux Keyboard")));
        let (_driver, sender) = touch();
        let refused = (0..PENDING_EVENTS_MAX).find_map(|_| sender.send(&[(EV_KEY, BTN_TOUCH, 1)]).err());
        assert_eq!(refused, Some(InputError::Full("Pollux Touch")));
    }

    #[test]
    fn small_buffers_break_the_queue_and_status_is_drained() {
        let (mut driver, sender) = touch();
        driver.transact(1, &[Part::Out(&[0; 8])]);
        sender.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
        driver.send(0, &[Part::In(7)]);
        assert!(driver.needs_reset());
    }

    #[test]
    fn waits_at_the_gate_while_paused_and_moves_with_its_events() {
        let (mut driver, sender) = touch();
        driver.guest.close_gate();
        for _ in 0..3 {
            driver.add(0, &[Part::In(8)]);
        }
        driver.reported_writes();
        sender.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
        assert!(driver.reported_writes().is_empty());
        select(&mut driver, 1, 0);
        let mut there = driver.moved_to(Input::touch(360, 720).unwrap());
        assert_eq!(there.config(8, 12), b"Pollux Touch");
        assert_eq!(there.wait_used(0).data, event(EV_KEY, BTN_TOUCH, 1));
        assert_eq!(there.wait_used(0).data, event(EV_SYN, 0, 0));
    }
}
