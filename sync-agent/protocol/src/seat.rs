//! Any phone's input as that of one seat: a keyboard, and a multi-touch panel.
//!
//! This is what every twin has, and what an agent makes to give its phone an operator's hand. Phones differ: one panel
//! counts otherwise than another, knows a single finger only, or tells far more than where it is touched; and some have
//! no panel but a tablet with a button. Pure: one frame in, at most one out.
//!
//! Promises: what comes out is of the two devices alone, and a finger is at the pixel where a program would have seen it
//! on the device it came from. Leaves out pointers that tell only how far they moved: a seat has no cursor.

use std::collections::BTreeSet;

use crate::event::{Frame, InputEvent, MmiDevice};
use code::{
    ABS_MT_POSITION_X, ABS_MT_POSITION_Y, ABS_MT_SLOT, ABS_MT_TRACKING_ID, ABS_X, ABS_Y, BTN_LEFT,
    BTN_TOUCH, EV_ABS, EV_KEY, EV_REL, KEYS, REL_X, REL_Y,
};

/// Types and codes of Linux `input-event-codes.h` that a seat knows.
pub mod code {
    pub const EV_KEY: u32 = 1;
    pub const EV_REL: u32 = 2;
    pub const EV_ABS: u32 = 3;
    pub const REL_X: u32 = 0;
    pub const REL_Y: u32 = 1;
    pub const ABS_X: u32 = 0;
    pub const ABS_Y: u32 = 1;
    pub const ABS_MT_SLOT: u32 = 0x2f;
    pub const ABS_MT_POSITION_X: u32 = 0x35;
    pub const ABS_MT_POSITION_Y: u32 = 0x36;
    pub const ABS_MT_TRACKING_ID: u32 = 0x39;
    pub const BTN_LEFT: u32 = 0x110;
    pub const BTN_TOUCH: u32 = 0x14a;
    /// `KEY_ESC` to `KEY_MICMUTE`: all keys of keyboards and phones. Buttons would make a keyboard look like a mouse.
    pub const KEYS: std::ops::RangeInclusive<u32> = 1..=248;
}

/// Fingers that the panel can follow: ten, as on every phone.
pub const SLOTS: i32 = 10;
/// Tracking IDs are 16 bits wide by the kernel's convention.
pub const TRACKING_ID_MAX: i32 = 0xffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeatError {
    #[error("a relative pointer cannot become touches")]
    RelativePointer,
    #[error("the frame has coordinates but no axes")]
    NoAxes,
    #[error("finger {0} is beyond the {SLOTS} that the panel follows")]
    Slot(i32),
}

/// The two devices, and what is pressed on them.
#[derive(Debug)]
pub struct Seat {
    /// Largest values of the panel's axes.
    panel: (u32, u32),
    keys: BTreeSet<u32>,
    /// Slots with a finger.
    fingers: BTreeSet<i32>,
    slot: i32,
    pointer: Pointer,
    tracking_id: i32,
}

/// A pointer, or a panel for one finger, on its way to being the finger in slot 0. What it has not told yet is unknown: a
/// seat may begin while it is pressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pointer {
    x: Option<i32>,
    y: Option<i32>,
    is_down: Option<bool>,
}

impl Seat {
    /// A seat whose panel's axes begin at 0 and end at `panel`.
    pub fn new(panel: (u32, u32)) -> Self {
        Self {
            panel,
            keys: BTreeSet::new(),
            fingers: BTreeSet::new(),
            slot: 0,
            pointer: Pointer::default(),
            tracking_id: 0,
        }
    }

    /// What the keyboard or the panel reports where another device reported `frame`; `None` if that is nothing. A frame
    /// that is refused changes nothing.
    pub fn take(&mut self, frame: &Frame) -> Result<Option<Frame>, SeatError> {
        let (device, events) = match frame.device {
            MmiDevice::Touch if frame.events.iter().any(is_slotted) => {
                (MmiDevice::Touch, self.fingers(frame)?)
            }
            MmiDevice::Touch | MmiDevice::Pointer => (MmiDevice::Touch, self.pointer(frame)?),
            MmiDevice::Keyboard | MmiDevice::Unspecified => (MmiDevice::Keyboard, self.keys(frame)),
        };
        Ok((!events.is_empty()).then(|| self.frame(device, events)))
    }

    /// Lifts everything that is pressed.
    pub fn lift(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let keys = std::mem::take(&mut self.keys).into_iter();
        let keys: Vec<_> = keys.map(|code| event(EV_KEY, code, 0)).collect();
        if !keys.is_empty() {
            frames.push(self.frame(MmiDevice::Keyboard, keys));
        }
        let mut fingers = Vec::new();
        for slot in std::mem::take(&mut self.fingers) {
            fingers.push(event(EV_ABS, ABS_MT_SLOT, slot));
            fingers.push(event(EV_ABS, ABS_MT_TRACKING_ID, -1));
            self.slot = slot;
        }
        if !fingers.is_empty() {
            fingers.push(event(EV_KEY, BTN_TOUCH, 0));
            frames.push(self.frame(MmiDevice::Touch, fingers));
        }
        self.pointer.is_down = Some(false);
        frames
    }

    fn keys(&mut self, frame: &Frame) -> Vec<InputEvent> {
        let keys = frame.events.iter().copied();
        let keys: Vec<_> = keys
            .filter(|event| event.r#type == EV_KEY && KEYS.contains(&event.code))
            .collect();
        for event in &keys {
            match event.value {
                0 => self.keys.remove(&event.code),
                _ => self.keys.insert(event.code),
            };
        }
        keys
    }

    /// A panel of the same kind: multi-touch protocol B.
    fn fingers(&mut self, frame: &Frame) -> Result<Vec<InputEvent>, SeatError> {
        let mut events = Vec::with_capacity(frame.events.len());
        let (mut fingers, mut slot) = (self.fingers.clone(), self.slot);
        for told in &frame.events {
            let value = match (told.r#type, told.code) {
                (EV_KEY, BTN_TOUCH) => told.value,
                (EV_ABS, ABS_MT_SLOT) if (0..SLOTS).contains(&told.value) => {
                    slot = told.value;
                    slot
                }
                (EV_ABS, ABS_MT_SLOT) => return Err(SeatError::Slot(told.value)),
                (EV_ABS, ABS_MT_TRACKING_ID) => {
                    match told.value {
                        -1 => fingers.remove(&slot),
                        _ => fingers.insert(slot),
                    };
                    told.value
                }
                (EV_ABS, ABS_X | ABS_MT_POSITION_X) => {
                    scale(told.value, frame.x_max, self.panel.0)?
                }
                (EV_ABS, ABS_Y | ABS_MT_POSITION_Y) => {
                    scale(told.value, frame.y_max, self.panel.1)?
                }
                _ => continue,
            };
            events.push(InputEvent { value, ..*told });
        }
        (self.fingers, self.slot) = (fingers, slot);
        Ok(events)
    }

    /// An absolute pointer, which is a finger while its button is down, or a panel that knows a single finger.
    fn pointer(&mut self, frame: &Frame) -> Result<Vec<InputEvent>, SeatError> {
        let (before, mut now) = (self.pointer, self.pointer);
        for told in &frame.events {
            match (told.r#type, told.code) {
                (EV_REL, REL_X | REL_Y) => return Err(SeatError::RelativePointer),
                (EV_ABS, ABS_X) => now.x = Some(scale(told.value, frame.x_max, self.panel.0)?),
                (EV_ABS, ABS_Y) => now.y = Some(scale(told.value, frame.y_max, self.panel.1)?),
                (EV_KEY, BTN_LEFT | BTN_TOUCH) => now.is_down = Some(told.value != 0),
                _ => {}
            }
        }
        self.pointer = now;
        let lands = now.is_down == Some(true) && before.is_down != Some(true);
        let lifts = now.is_down == Some(false) && before.is_down != Some(false);
        let moves = (now.x, now.y) != (before.x, before.y) && before.is_down != Some(false);
        if !(lands || lifts || moves) {
            return Ok(Vec::new());
        }

        let mut events = vec![event(EV_ABS, ABS_MT_SLOT, 0)];
        self.slot = 0;
        if lands {
            self.tracking_id = self.tracking_id % TRACKING_ID_MAX + 1;
            self.fingers.insert(0);
            events.push(event(EV_ABS, ABS_MT_TRACKING_ID, self.tracking_id));
        }
        if lands || moves {
            let x = [ABS_MT_POSITION_X, ABS_X].map(|axis| (axis, now.x));
            let y = [ABS_MT_POSITION_Y, ABS_Y].map(|axis| (axis, now.y));
            let place = x.into_iter().chain(y);
            events.extend(place.filter_map(|(axis, at)| Some(event(EV_ABS, axis, at?))));
        }
        if lifts {
            self.fingers.remove(&0);
            events.push(event(EV_ABS, ABS_MT_TRACKING_ID, -1));
        }
        if lands || lifts {
            events.push(event(EV_KEY, BTN_TOUCH, i32::from(lands)));
        }
        Ok(events)
    }

    fn frame(&self, device: MmiDevice, events: Vec<InputEvent>) -> Frame {
        let (x_max, y_max) = match device {
            MmiDevice::Touch => self.panel,
            _ => (0, 0),
        };
        Frame {
            device,
            device_id: 0,
            events,
            x_max,
            y_max,
        }
    }
}

/// From an axis that ends at `from_max` to one that ends at `to_max`, as the contract has it at `Mmi`.
///
/// Programs place a touch on a screen of so many pixels at `value * pixels / (max + 1)`, rounded down. On the coarser of
/// two axes, with a step for each pixel, the same pixel is therefore the step that the value lies in; on the finer one, the
/// first step that lies in the value's own.
fn scale(value: i32, from_max: u32, to_max: u32) -> Result<i32, SeatError> {
    if from_max == 0 {
        return Err(SeatError::NoAxes);
    }
    let (from, to) = (i64::from(from_max) + 1, i64::from(to_max) + 1);
    let value = i64::from(value).clamp(0, i64::from(from_max));
    let rest = if to > from { from - 1 } else { 0 };
    Ok(i32::try_from((value * to + rest) / from).unwrap_or(i32::MAX))
}

/// Whether an event is of multi-touch: `ABS_MT_SLOT` and all that follow it.
fn is_slotted(event: &InputEvent) -> bool {
    event.r#type == EV_ABS && event.code >= ABS_MT_SLOT
}

fn event(r#type: u32, code: u32, value: i32) -> InputEvent {
    InputEvent {
        r#type,
        code,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Events = Vec<(u32, u32, i32)>;

    fn told(device: MmiDevice, max: u32, events: &[(u32, u32, i32)]) -> Frame {
        let events = events
            .iter()
            .map(|&(r#type, code, value)| event(r#type, code, value));
        Frame {
            device,
            device_id: 7,
            events: events.collect(),
            x_max: max,
            y_max: max,
        }
    }

    fn plain(frame: &Frame) -> (MmiDevice, Events) {
        let events = frame
            .events
            .iter()
            .map(|event| (event.r#type, event.code, event.value));
        (frame.device, events.collect())
    }

    fn panel(events: &[(u32, u32, i32)]) -> Option<(MmiDevice, Events)> {
        Some((MmiDevice::Touch, events.to_vec()))
    }

    /// What a seat with a panel of 360 by 720 makes of what a tablet tells.
    fn tablet(seat: &mut Seat, events: &[(u32, u32, i32)]) -> Option<(MmiDevice, Events)> {
        let frame = told(MmiDevice::Pointer, 32_767, events);
        seat.take(&frame).unwrap().as_ref().map(plain)
    }

    #[test]
    fn a_tablet_is_a_finger_while_its_button_is_down() {
        let mut seat = Seat::new((359, 719));
        let pressed = [(3, 0, 16_384), (3, 1, 32_767), (1, 0x110, 1)];
        let place = [(3, 0x35, 180), (3, 0, 180), (3, 0x36, 719), (3, 1, 719)];
        let down = [&[(3, 0x2f, 0), (3, 0x39, 1)], &place[..], &[(1, 0x14a, 1)]].concat();
        assert_eq!(tablet(&mut seat, &pressed), panel(&down));
        // Within the same pixel.
        assert_eq!(tablet(&mut seat, &[(3, 0, 16_400)]), None);
        let place = [(3, 0x35, 181), (3, 0, 181), (3, 0x36, 719), (3, 1, 719)];
        let moved = [&[(3, 0x2f, 0)], &place[..]].concat();
        assert_eq!(tablet(&mut seat, &[(3, 0, 16_500)]), panel(&moved));
        // It moves while it is lifted.
        let place = [(3, 0x35, 0), (3, 0, 0), (3, 0x36, 719), (3, 1, 719)];
        let up = [&[(3, 0x2f, 0)], &place[..], &[(3, 0x39, -1), (1, 0x14a, 0)]].concat();
        assert_eq!(tablet(&mut seat, &[(3, 0, 5), (1, 0x110, 0)]), panel(&up));
        // One that hovers is no finger, and its other buttons and wheel are none either.
        assert_eq!(tablet(&mut seat, &[(3, 0, 20_000), (3, 1, 7)]), None);
        assert_eq!(tablet(&mut seat, &[(1, 0x111, 1), (2, 8, -1)]), None);
        // It lands where it has hovered to.
        let down = tablet(&mut seat, &[(1, 0x110, 1)]).unwrap().1;
        assert_eq!(down[..3], [(3, 0x2f, 0), (3, 0x39, 2), (3, 0x35, 219)]);
    }

    #[test]
    fn a_seat_that_begins_while_a_pointer_is_pressed_follows_and_lifts_it() {
        let mut seat = Seat::new((359, 719));
        let moved = [(3, 0x2f, 0), (3, 0x35, 3), (3, 0, 3)];
        assert_eq!(tablet(&mut seat, &[(3, 0, 300)]), panel(&moved));
        let up = [(3, 0x2f, 0), (3, 0x39, -1), (1, 0x14a, 0)];
        assert_eq!(tablet(&mut seat, &[(1, 0x110, 0)]), panel(&up));
    }

    #[test]
    fn a_panel_for_one_finger_is_one_for_many() {
        let mut seat = Seat::new((359, 719));
        let tap = told(
            MmiDevice::Touch,
            719,
            &[(3, 0, 100), (3, 1, 719), (1, 0x14a, 1), (3, 0x18, 9)],
        );
        let place = [(3, 0x35, 50), (3, 0, 50), (3, 0x36, 719), (3, 1, 719)];
        let down = [&[(3, 0x2f, 0), (3, 0x39, 1)], &place[..], &[(1, 0x14a, 1)]].concat();
        assert_eq!(seat.take(&tap).unwrap().as_ref().map(plain), panel(&down));
        let lifted = seat.lift();
        assert_eq!(lifted.len(), 1);
        assert_eq!(
            plain(&lifted[0]).1,
            [(3, 0x2f, 0), (3, 0x39, -1), (1, 0x14a, 0)]
        );
    }

    #[test]
    fn only_what_the_two_devices_have_comes_out() {
        let mut seat = Seat::new((359, 719));
        // Pressure and the size of the fingertip.
        let rich = [
            (3, 0x2f, 1),
            (3, 0x39, 5),
            (3, 0x3a, 80),
            (3, 0x30, 6),
            (3, 0x35, 359),
            (1, 0x145, 1),
        ];
        let touch = seat
            .take(&told(MmiDevice::Touch, 719, &rich))
            .unwrap()
            .unwrap();
        assert_eq!(
            plain(&touch).1,
            [(3, 0x2f, 1), (3, 0x39, 5), (3, 0x35, 179)]
        );
        assert_eq!((touch.x_max, touch.y_max), (359, 719));
        let keys = seat.take(&told(
            MmiDevice::Keyboard,
            0,
            &[(5, 0, 1), (1, 0x161, 1), (1, 116, 1)],
        ));
        assert_eq!(
            keys.unwrap().as_ref().map(plain),
            Some((MmiDevice::Keyboard, vec![(1, 116, 1)]))
        );
        assert_eq!(
            seat.take(&told(MmiDevice::Keyboard, 0, &[(5, 0, 1)])),
            Ok(None)
        );
    }

    #[test]
    fn what_is_pressed_is_lifted_once() {
        let mut seat = Seat::new((359, 719));
        for (code, value) in [(30, 1), (42, 1), (42, 0)] {
            seat.take(&told(MmiDevice::Keyboard, 0, &[(1, code, value)]))
                .unwrap();
        }
        seat.take(&told(
            MmiDevice::Touch,
            719,
            &[(3, 0x2f, 2), (3, 0x39, 7), (1, 0x14a, 1)],
        ))
        .unwrap();
        let lifted: Vec<_> = seat.lift().iter().map(plain).collect();
        let expected = [
            (MmiDevice::Keyboard, vec![(1, 30, 0)]),
            (
                MmiDevice::Touch,
                vec![(3, 0x2f, 2), (3, 0x39, -1), (1, 0x14a, 0)],
            ),
        ];
        assert_eq!(lifted, expected);
        assert_eq!(seat.lift(), []);
    }

    #[test]
    fn what_the_panel_cannot_do_is_refused_whole() {
        let mut seat = Seat::new((359, 719));
        let refused = [
            (
                told(MmiDevice::Touch, 719, &[(3, 0x39, 7), (3, 0x2f, 99)]),
                SeatError::Slot(99),
            ),
            (
                told(MmiDevice::Pointer, 719, &[(1, 0x110, 1), (2, 0, 5)]),
                SeatError::RelativePointer,
            ),
            (
                told(MmiDevice::Pointer, 0, &[(1, 0x110, 1), (3, 0, 5)]),
                SeatError::NoAxes,
            ),
        ];
        for (frame, error) in refused {
            assert_eq!(seat.take(&frame), Err(error));
        }
        assert_eq!(seat.lift(), []);
    }

    #[test]
    fn a_touch_is_on_the_same_pixel_whatever_the_axis() {
        let pixel =
            |value: i32, max: u32, pixels: i64| i64::from(value) * pixels / (i64::from(max) + 1);
        for (from, to) in [
            (32_767, 359),
            (32_767, 719),
            (4095, 1079),
            (359, 359),
            (359, 32_767),
            (719, 799),
            (9, 10),
        ] {
            let pixels = i64::from(from.min(to)) + 1;
            for value in 0..=i32::try_from(from).unwrap() {
                let scaled = scale(value, from, to).unwrap();
                assert_eq!(
                    pixel(scaled, to, pixels),
                    pixel(value, from, pixels),
                    "{value} from {from} to {to}"
                );
            }
        }
        assert_eq!(scale(-5, 359, 719), Ok(0));
        assert_eq!(scale(i32::MAX, i32::MAX as u32, 359), Ok(359));
        assert_eq!(
            scale(i32::MAX, 359, i32::MAX as u32),
            Ok(i32::MAX - 5_965_231)
        );
    }
}
