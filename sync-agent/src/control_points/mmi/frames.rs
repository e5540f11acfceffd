//! Puts a device's events together to frames that can be replayed from any point on.
//!
//! The kernel reports only what changes: a second tap on one spot comes without coordinates, a finger in the slot used
//! last without its slot. A replay that begins between would put it elsewhere. So every contact carries its position and
//! every multi-touch frame begins with its slot.

use std::collections::BTreeMap;

use evdev::{AbsoluteAxisCode as Abs, EventType, KeyCode, SynchronizationCode};
use sync_protocol::event::{Frame, InputEvent, MmiDevice};
use sync_protocol::limits::FRAME_EVENTS_MAX;

/// Slots whose positions are remembered.
const SLOTS_MAX: usize = 64;

/// A device's axes, as it describes them: smallest and largest values, current position and slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Axes {
    pub(super) x: (i32, i32),
    pub(super) y: (i32, i32),
    pub(super) position: (Option<i32>, Option<i32>),
    pub(super) slot: i32,
}

impl Axes {
    /// Largest values once the smallest is 0.
    pub(super) fn maxima(&self) -> (u32, u32) {
        let max =
            |(min, max): (i32, i32)| u32::try_from(i64::from(max) - i64::from(min)).unwrap_or(0);
        (max(self.x), max(self.y))
    }
}

pub(super) struct Assembler {
    device: MmiDevice,
    id: u32,
    axes: Axes,
    events: Vec<InputEvent>,
    slot: i32,
    /// Position of the single touch or pointer, and of each slot.
    position: Position,
    slots: BTreeMap<i32, Position>,
}

type Position = (Option<i32>, Option<i32>);

impl Assembler {
    pub(super) fn new(device: MmiDevice, id: u32, axes: Axes) -> Self {
        let (x, y) = axes.position;
        let position = (x.map(|x| x - axes.x.0), y.map(|y| y - axes.y.0));
        Self {
            device,
            id,
            axes,
            events: Vec::new(),
            slot: axes.slot,
            position,
            slots: BTreeMap::new(),
        }
    }

    /// Takes the next event; returns a frame when it ends with it.
    pub(super) fn push(&mut self, kind: u16, code: u16, value: i32) -> Option<Frame> {
        match EventType(kind) {
            EventType::SYNCHRONIZATION if code == SynchronizationCode::SYN_REPORT.0 => {
                return self.finish();
            }
            EventType::KEY | EventType::RELATIVE | EventType::SWITCH => self.add(kind, code, value),
            EventType::ABSOLUTE => self.push_axis(Abs(code), value),
            _ => {}
        }
        // Longer than any the kernel makes: split rather than lost.
        if self.events.len() >= FRAME_EVENTS_MAX - 8 {
            self.finish()
        } else {
            None
        }
    }

    fn push_axis(&mut self, code: Abs, value: i32) {
        let is_slotted = (Abs::ABS_MT_TOUCH_MAJOR.0..=Abs::ABS_MT_TOOL_Y.0).contains(&code.0);
        if is_slotted && !self.has(Abs::ABS_MT_SLOT) {
            self.add_axis(Abs::ABS_MT_SLOT, self.slot);
        }
        let (x, y) = (
            value.saturating_sub(self.axes.x.0),
            value.saturating_sub(self.axes.y.0),
        );
        let value = match code {
            Abs::ABS_MT_SLOT => {
                self.slot = value;
                value
            }
            Abs::ABS_X => *self.position.0.insert(x),
            Abs::ABS_Y => *self.position.1.insert(y),
            Abs::ABS_MT_POSITION_X => *self.of_slot().0.insert(x),
            Abs::ABS_MT_POSITION_Y => *self.of_slot().1.insert(y),
            _ => value,
        };
        self.add_axis(code, value);
    }

    fn of_slot(&mut self) -> &mut Position {
        if self.slots.len() >= SLOTS_MAX {
            self.slots.clear();
        }
        self.slots.entry(self.slot).or_default()
    }

    fn finish(&mut self) -> Option<Frame> {
        if self.events.is_empty() {
            return None;
        }
        let events = std::mem::take(&mut self.events);
        let events = self.complete(events);
        let (x_max, y_max) = self.axes.maxima();
        Some(Frame {
            device: self.device,
            device_id: self.id,
            events,
            x_max,
            y_max,
        })
    }

    /// Adds the positions that the kernel left out because they had not changed.
    fn complete(&self, events: Vec<InputEvent>) -> Vec<InputEvent> {
        let mut complete = Vec::with_capacity(events.len() + 4);
        let mut slot = self.slot;
        for (index, event) in events.iter().enumerate() {
            let is_axis = event.r#type == u32::from(EventType::ABSOLUTE.0);
            let is_press = event.r#type == u32::from(EventType::KEY.0)
                && event.value == 1
                && [KeyCode::BTN_TOUCH.0, KeyCode::BTN_LEFT.0]
                    .map(u32::from)
                    .contains(&event.code);
            if is_axis && event.code == u32::from(Abs::ABS_MT_SLOT.0) {
                slot = event.value;
            }
            if is_press {
                let missing = |code: Abs| !events.iter().any(|event| is_axis_event(event, code));
                complete.extend(
                    self.position
                        .0
                        .filter(|_| missing(Abs::ABS_X))
                        .map(|x| axis(Abs::ABS_X, x)),
                );
                complete.extend(
                    self.position
                        .1
                        .filter(|_| missing(Abs::ABS_Y))
                        .map(|y| axis(Abs::ABS_Y, y)),
                );
            }
            complete.push(*event);
            if is_axis && event.code == u32::from(Abs::ABS_MT_TRACKING_ID.0) && event.value >= 0 {
                let rest = events[index + 1..]
                    .iter()
                    .take_while(|event| !is_axis_event(event, Abs::ABS_MT_SLOT));
                let missing = |code: Abs| !rest.clone().any(|event| is_axis_event(event, code));
                let (x, y) = self.slots.get(&slot).copied().unwrap_or_default();
                complete.extend(
                    x.filter(|_| missing(Abs::ABS_MT_POSITION_X))
                        .map(|x| axis(Abs::ABS_MT_POSITION_X, x)),
                );
                complete.extend(
                    y.filter(|_| missing(Abs::ABS_MT_POSITION_Y))
                        .map(|y| axis(Abs::ABS_MT_POSITION_Y, y)),
                );
            }
        }
        complete
    }

    fn has(&self, code: Abs) -> bool {
        self.events.iter().any(|event| is_axis_event(event, code))
    }

    fn add_axis(&mut self, code: Abs, value: i32) {
        self.add(EventType::ABSOLUTE.0, code.0, value);
    }

    fn add(&mut self, kind: u16, code: u16, value: i32) {
        self.events.push(InputEvent {
            r#type: kind.into(),
            code: code.into(),
            value,
        });
    }
}

fn axis(code: Abs, value: i32) -> InputEvent {
    InputEvent {
        r#type: EventType::ABSOLUTE.0.into(),
        code: code.0.into(),
        value,
    }
}

fn is_axis_event(event: &InputEvent, code: Abs) -> bool {
    event.r#type == u32::from(EventType::ABSOLUTE.0) && event.code == u32::from(code.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u16 = 0x2f;
    const ID: u16 = 0x39;
    const X: u16 = 0x35;
    const Y: u16 = 0x36;

    fn touch() -> Assembler {
        Assembler::new(
            MmiDevice::Touch,
            1,
            Axes {
                x: (10, 369),
                y: (0, 719),
                ..Axes::default()
            },
        )
    }

    fn frames(assembler: &mut Assembler, events: &[(u16, u16, i32)]) -> Vec<Vec<(u32, u32, i32)>> {
        let frames = events
            .iter()
            .filter_map(|&(kind, code, value)| assembler.push(kind, code, value));
        frames
            .map(|frame| {
                frame
                    .events
                    .iter()
                    .map(|event| (event.r#type, event.code, event.value))
                    .collect()
            })
            .collect()
    }

    const SYN: (u16, u16, i32) = (0, 0, 0);

    #[test]
    fn a_second_tap_on_one_spot_says_where() {
        let mut assembler = touch();
        let first = [
            (3, ID, 5),
            (3, X, 110),
            (3, Y, 200),
            (1, 0x14a, 1),
            (3, 0, 110),
            (3, 1, 200),
            SYN,
        ];
        let lift = [(3, ID, -1), (1, 0x14a, 0), SYN];
        let second = [(3, ID, 6), (1, 0x14a, 1), SYN];
        let all = frames(&mut assembler, &[&first[..], &lift, &second].concat());
        assert_eq!(
            all[0],
            [
                (3, 0x2f, 0),
                (3, 0x39, 5),
                (3, 0x35, 100),
                (3, 0x36, 200),
                (1, 0x14a, 1),
                (3, 0, 100),
                (3, 1, 200)
            ]
        );
        assert_eq!(all[1], [(3, 0x2f, 0), (3, 0x39, -1), (1, 0x14a, 0)]);
        assert_eq!(
            all[2],
            [
                (3, 0x2f, 0),
                (3, 0x39, 6),
                (3, 0x35, 100),
                (3, 0x36, 200),
                (3, 0, 100),
                (3, 1, 200),
                (1, 0x14a, 1)
            ]
        );
    }

    #[test]
    fn fingers_keep_their_slots() {
        let mut assembler = touch();
        let two = [
            (3, ID, 1),
            (3, X, 20),
            (3, Y, 1),
            (3, SLOT, 1),
            (3, ID, 2),
            (3, X, 30),
            (3, Y, 2),
            SYN,
        ];
        let all = frames(&mut assembler, &[&two[..], &[(3, X, 31), SYN]].concat());
        assert_eq!(all[1], [(3, 0x2f, 1), (3, 0x35, 21)]);
    }

    #[test]
    fn noise_makes_no_frames_and_floods_are_split() {
        let mut keyboard = Assembler::new(MmiDevice::Keyboard, 1, Axes::default());
        assert!(frames(&mut keyboard, &[(4, 4, 30), SYN, SYN]).is_empty());
        assert_eq!(
            frames(&mut keyboard, &[(4, 4, 30), (1, 30, 1), SYN]),
            [[(1, 30, 1)]]
        );
        let flood = vec![(1, 30, 1); 1000];
        assert!(
            frames(&mut keyboard, &flood)
                .iter()
                .all(|frame| frame.len() <= FRAME_EVENTS_MAX)
        );
    }

    #[test]
    fn a_tablet_says_where_it_clicks() {
        let axes = Axes {
            x: (0, 32767),
            y: (0, 32767),
            position: (Some(7), Some(8)),
            slot: 0,
        };
        let mut tablet = Assembler::new(MmiDevice::Pointer, 1, axes);
        assert_eq!(
            frames(&mut tablet, &[(1, 0x110, 1), SYN]),
            [[(3, 0, 7), (3, 1, 8), (1, 0x110, 1)]]
        );
    }
}
