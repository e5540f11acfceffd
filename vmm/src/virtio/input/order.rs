//! The order and the pace in which the frames of a machine's input devices reach its guest.
//!
//! One queue for all devices: what hands did in turn arrives in turn. A frame leaves it when the guest's driver has taken
//! the one before and a program had time to read that: evdev keeps 64 events of a keyboard for each reader and throws all of
//! them away when another comes (SYN_DROPPED). Time is the guest's own, so that programs get theirs on a busy host, too; while
//! the machine is paused, and while nothing waits, no thread wakes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_KEY, EV_SYN, Event, InputError};
use crate::virtio::VirtQueue;
use crate::virtio::guest::lock;
use crate::virtio::worker::Kick;

/// Between two frames of one device: keyboards on USB are polled as often, and panels scan about as often. A program may
/// then look away for a quarter of a second before its 64 events are full.
pub(super) const FRAME_GAP: Duration = Duration::from_millis(8);
/// Between frames of different devices: a program that polls several files cannot tell which was first, so it must have
/// read the one when the other comes. No hand is faster from keys to glass.
const DEVICE_GAP: Duration = Duration::from_millis(50);
/// A driver that has not given its buffers back by then does so otherwise than Linux, one by one, and is not waited for.
const TAKE_MAX: Duration = Duration::from_secs(1);
/// Events waiting for the guest: a page of text, with capitals.
const WAITING_EVENTS_MAX: usize = 8192;
/// As many more for frames that only lift, so that no key stays down because its release found no room.
const LIFTING_EVENTS_MAX: usize = 512;

/// Shared by the input devices of one machine.
#[derive(Clone, Default)]
pub struct InputOrder(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    devices: Vec<Device>,
    frames: VecDeque<Frame>,
    /// Events in `frames` that the guest does not have.
    events: usize,
    next_number: u64,
    given: Option<Given>,
    /// When to look whether the first frame may go; `None`: not before its driver offers buffers.
    look_at: Option<Duration>,
}

struct Device {
    name: &'static str,
    kick: Kick,
    /// Event and status queue, while there is a driver.
    queues: Option<[VirtQueue; 2]>,
}

struct Frame {
    /// Rises over all devices.
    number: u64,
    device: usize,
    events: VecDeque<Event>,
    /// Another such frame may still take its place.
    is_position: bool,
}

/// What a device saves of a frame, or of what is left of it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SavedFrame {
    number: u64,
    events: Vec<Event>,
}

impl SavedFrame {
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }
}

/// What the guest got last.
#[derive(Clone, Copy)]
struct Given {
    device: usize,
    /// By the guest's time.
    at: Duration,
    /// Buffers that its driver had offered before.
    buffers_before: u16,
}

impl Given {
    /// How long from `now` until a frame of `next` may follow, or until it is time to look again.
    fn wait(&self, next: usize, now: Duration, is_taken: bool) -> Duration {
        let gap = if self.device == next { FRAME_GAP } else { DEVICE_GAP };
        match now.saturating_sub(self.at) {
            since if since < gap => gap - since,
            since if is_taken || since >= TAKE_MAX => Duration::ZERO,
            _ => FRAME_GAP,
        }
    }
}

/// `now` is always [`super::GuestAccess::guest_time`].
impl InputOrder {
    /// Adds a device; `kick` wakes its thread.
    pub(super) fn join(&self, name: &'static str, kick: Kick) -> usize {
        let mut state = lock(&self.0);
        state.devices.push(Device { name, kick, queues: None });
        state.devices.len() - 1
    }

    /// A driver has come, or gone; what waited for the one before is forgotten.
    pub(super) fn set_queues(&self, device: usize, queues: Option<[VirtQueue; 2]>) {
        let mut state = lock(&self.0);
        state.devices[device].queues = queues;
        state.forget(device);
        state.kick_first();
    }

    /// Takes a whole frame. `is_position`: see [`super::InputSender::send_position`].
    pub(super) fn send(&self, device: usize, events: Vec<Event>, is_position: bool) -> Result<(), InputError> {
        let mut state = lock(&self.0);
        let Device { name, queues, .. } = &state.devices[device];
        let name = *name;
        if !queues.as_ref().is_some_and(|[events, _]| events.is_usable()) {
            return Err(InputError::NotReady(name));
        }
        if is_position && state.frames.back().is_some_and(|last| (last.device, last.is_position) == (device, true)) {
            let replaced = state.frames.pop_back().map_or(0, |last| last.events.len());
            state.events -= replaced;
        }
        let room = WAITING_EVENTS_MAX + if events.iter().all(lifts) { LIFTING_EVENTS_MAX } else { 0 };
        if state.events + events.len() > room {
            return Err(InputError::Full(name));
        }
        let number = state.next_number;
        state.next_number = number.saturating_add(1);
        state.events += events.len();
        state.frames.push_back(Frame { number, device, events: events.into(), is_position });
        if state.frames.len() == 1 {
            state.look_at = Some(Duration::ZERO);
            state.kick_first();
        }
        Ok(())
    }

    /// The driver of `device` has offered buffers.
    pub(super) fn refilled(&self, device: usize) {
        let state = lock(&self.0);
        if state.look_at.is_none() && state.frames.front().is_some_and(|first| first.device == device) {
            state.kick_first();
        }
    }

    /// Gives the guest the first frame, if it is time. Called by the thread of `by`, inside the gate.
    pub(super) fn deliver(&self, by: usize, now: Duration) {
        let mut state = lock(&self.0);
        state.deliver(now);
        if state.frames.front().is_some_and(|first| first.device != by) {
            state.kick_first();
        }
    }

    /// How soon the thread of `device` has something to do: only the first frame's does.
    pub(super) fn due(&self, device: usize, now: Duration) -> Option<Duration> {
        let state = lock(&self.0);
        state.frames.front().filter(|first| first.device == device)?;
        state.look_at.map(|at| at.saturating_sub(now))
    }

    pub(super) fn is_drained(&self, now: Duration) -> bool {
        let state = lock(&self.0);
        let is_over = |given: &Given| state.is_taken(given) || now.saturating_sub(given.at) >= TAKE_MAX;
        state.frames.is_empty() && state.given.as_ref().is_none_or(is_over)
    }

    /// What a guest tells its keyboard (LEDs, none here) is taken and forgotten.
    pub(super) fn drain_status(&self, device: usize) {
        let state = lock(&self.0);
        let Some([_, status]) = &state.devices[device].queues else { return };
        for chain in status.drain() {
            status.complete(chain);
        }
    }

    pub(super) fn save(&self, device: usize) -> Vec<SavedFrame> {
        let state = lock(&self.0);
        let own = state.frames.iter().filter(|frame| frame.device == device);
        own.map(|frame| SavedFrame { number: frame.number, events: frame.events.iter().copied().collect() }).collect()
    }

    /// Puts frames that `device` saved among those of the others. False, and nothing happens, if they could not be there.
    pub(super) fn restore(&self, device: usize, saved: Vec<SavedFrame>) -> bool {
        let mut state = lock(&self.0);
        let events: usize = saved.iter().map(|frame| frame.events.len()).sum();
        let is_there = state.devices[device].queues.is_some() || saved.is_empty();
        if !is_there || state.events + events > WAITING_EVENTS_MAX + LIFTING_EVENTS_MAX {
            return false;
        }
        state.events += events;
        for SavedFrame { number, events } in saved.into_iter().filter(|frame| !frame.events.is_empty()) {
            let at = state.frames.partition_point(|frame| frame.number <= number);
            state.frames.insert(at, Frame { number, device, events: events.into(), is_position: false });
            state.next_number = state.next_number.max(number.saturating_add(1));
        }
        state.look_at = Some(Duration::ZERO);
        state.kick_first();
        true
    }
}

impl State {
    fn deliver(&mut self, now: Duration) {
        let Some(device) = self.frames.front().map(|first| first.device) else { return };
        let wait = self.wait(device, now);
        if !wait.is_zero() {
            self.look_at = Some(now + wait);
            return;
        }
        self.look_at = None;
        self.give(device, now);
        let is_usable = |queues: &[VirtQueue; 2]| queues[0].is_usable();
        if !self.devices[device].queues.as_ref().is_some_and(is_usable) {
            // It takes nothing until its driver resets it, and must not hold up the others.
            self.forget(device);
        }
        if self.frames.front().is_some_and(|first| first.events.is_empty()) {
            self.frames.pop_front();
            if let Some(next) = self.frames.front() {
                self.look_at = Some(now + self.wait(next.device, now));
            }
        }
    }

    /// Gives the guest of the first frame what it has buffers for.
    fn give(&mut self, device: usize, now: Duration) {
        let (Some(first), Some([queue, _])) = (self.frames.front_mut(), &self.devices[device].queues) else { return };
        let buffers_before = queue.available();
        while let Some(&(kind, code, value)) = first.events.front() {
            let Some(mut chain) = queue.pop() else { return };
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[2..4].copy_from_slice(&code.to_le_bytes());
            bytes[4..].copy_from_slice(&value.to_le_bytes());
            if chain.write(&bytes) < bytes.len() {
                return queue.fail("an input buffer has no room for an event");
            }
            queue.complete(chain);
            first.events.pop_front();
            // The rest must not be replaced by another frame's.
            first.is_position = false;
            self.events -= 1;
            self.given = Some(Given { device, at: now, buffers_before });
        }
    }

    fn wait(&self, next: usize, now: Duration) -> Duration {
        self.given.as_ref().map_or(Duration::ZERO, |given| given.wait(next, now, self.is_taken(given)))
    }

    /// The driver has offered as many buffers again as were filled.
    fn is_taken(&self, given: &Given) -> bool {
        let queues = self.devices[given.device].queues.as_ref();
        queues.is_none_or(|[events, _]| events.available() >= given.buffers_before)
    }

    fn forget(&mut self, device: usize) {
        self.frames.retain(|frame| frame.device != device);
        self.events = self.frames.iter().map(|frame| frame.events.len()).sum();
        self.given = self.given.filter(|given| given.device != device);
        self.look_at = Some(Duration::ZERO);
    }

    /// Wakes the thread whose turn it is.
    fn kick_first(&self) {
        if let Some(first) = self.frames.front() {
            self.devices[first.device].kick.kick();
        }
    }
}

/// Whether an event presses nothing.
fn lifts(&(kind, code, value): &Event) -> bool {
    match kind {
        EV_SYN => true,
        EV_KEY => value == 0,
        EV_ABS => code == ABS_MT_SLOT || (code, value) == (ABS_MT_TRACKING_ID, -1),
        _ => false,
    }
}
