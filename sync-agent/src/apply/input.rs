//! Input on the appliance's behalf: decides what goes to the agent's own two devices, so that the phone behaves as its
//! twin did under the operator's hand.
//!
//! Keys go to the keyboard as they are. Touches are scaled to the panel; an absolute pointer becomes a finger. What is
//! pressed is remembered and lifted when the lease or the stream ends: nothing stays stuck.

use std::collections::BTreeSet;
use std::io;

use evdev::{AbsoluteAxisCode as Abs, EventType, KeyCode};
use sync_protocol::event::{Frame, InputEvent, MmiDevice};

/// Fingers that the remote panel can follow.
pub(crate) const SLOTS: i32 = 10;

/// Names of the agent's devices begin with this; it captures nothing from them.
pub(crate) const REMOTE_PREFIX: &str = "Pollux Remote";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RemoteDevice {
    Keyboard,
    Touch,
}

/// Where frames go: uinput on a phone.
pub(crate) trait InputSink: Send {
    /// Largest values of the panel's axes.
    fn panel(&self) -> (u32, u32);
    /// Feeds one frame; the sink ends it with a SYN_REPORT.
    fn emit(&mut self, device: RemoteDevice, events: &[InputEvent]) -> io::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("a relative pointer cannot become touches")]
    RelativePointer,
    #[error("the frame has coordinates but no axes")]
    NoAxes,
    #[error("finger {0} is beyond the {SLOTS} that the panel follows")]
    Slot(i32),
    #[error("cannot write to the input device")]
    Write(#[from] io::Error),
}

pub(crate) struct Injector<S> {
    sink: S,
    keys: BTreeSet<u32>,
    /// Slots with a finger.
    fingers: BTreeSet<i32>,
    slot: i32,
    pointer: Pointer,
    next_tracking_id: i32,
}

/// An absolute pointer on its way to being a finger.
#[derive(Default)]
struct Pointer {
    x: i32,
    y: i32,
    is_down: bool,
}

impl<S: InputSink> Injector<S> {
    pub(crate) fn new(sink: S) -> Self {
        Self {
            sink,
            keys: BTreeSet::new(),
            fingers: BTreeSet::new(),
            slot: 0,
            pointer: Pointer::default(),
            next_tracking_id: 1,
        }
    }

    pub(crate) fn feed(&mut self, frame: &Frame) -> Result<(), InputError> {
        match frame.device {
            MmiDevice::Touch => self.feed_touch(frame),
            MmiDevice::Pointer => self.feed_pointer(frame),
            MmiDevice::Keyboard | MmiDevice::Unspecified => self.feed_keys(frame),
        }
    }

    /// Lifts everything that is pressed.
    pub(crate) fn release(&mut self) -> Result<(), InputError> {
        if !self.keys.is_empty() {
            let lifted: Vec<InputEvent> = std::mem::take(&mut self.keys)
                .into_iter()
                .map(|code| key(code, 0))
                .collect();
            self.sink.emit(RemoteDevice::Keyboard, &lifted)?;
        }
        self.pointer.is_down = false;
        if !self.fingers.is_empty() {
            let mut lifted = Vec::new();
            for slot in std::mem::take(&mut self.fingers) {
                lifted.extend([
                    abs(Abs::ABS_MT_SLOT, slot),
                    abs(Abs::ABS_MT_TRACKING_ID, -1),
                ]);
                self.slot = slot;
            }
            lifted.push(key(KeyCode::BTN_TOUCH.0.into(), 0));
            self.sink.emit(RemoteDevice::Touch, &lifted)?;
        }
        Ok(())
    }

    fn feed_keys(&mut self, frame: &Frame) -> Result<(), InputError> {
        let keys: Vec<InputEvent> = frame
            .events
            .iter()
            .filter(|event| is(event, EventType::KEY))
            .copied()
            .collect();
        for event in &keys {
            match event.value {
                0 => self.keys.remove(&event.code),
                _ => self.keys.insert(event.code),
            };
        }
        self.emit(RemoteDevice::Keyboard, &keys)
    }

    fn feed_touch(&mut self, frame: &Frame) -> Result<(), InputError> {
        let mut events = Vec::with_capacity(frame.events.len());
        let (mut fingers, mut slot) = (self.fingers.clone(), self.slot);
        for event in &frame.events {
            if is(event, EventType::KEY) && event.code == u32::from(KeyCode::BTN_TOUCH.0) {
                events.push(*event);
            }
            if !is(event, EventType::ABSOLUTE) {
                continue;
            }
            match Abs(u16::try_from(event.code).unwrap_or(u16::MAX)) {
                Abs::ABS_MT_SLOT if !(0..SLOTS).contains(&event.value) => {
                    return Err(InputError::Slot(event.value));
                }
                Abs::ABS_MT_SLOT => {
                    slot = event.value;
                    events.push(*event);
                }
                Abs::ABS_MT_TRACKING_ID => {
                    match event.value {
                        -1 => fingers.remove(&slot),
                        _ => fingers.insert(slot),
                    };
                    events.push(*event);
                }
                code @ (Abs::ABS_MT_POSITION_X | Abs::ABS_X) => {
                    events.push(abs(
                        code,
                        scale(event.value, frame.x_max, self.sink.panel().0)?,
                    ));
                }
                code @ (Abs::ABS_MT_POSITION_Y | Abs::ABS_Y) => {
                    events.push(abs(
                        code,
                        scale(event.value, frame.y_max, self.sink.panel().1)?,
                    ));
                }
                _ => {}
            }
        }
        (self.fingers, self.slot) = (fingers, slot);
        self.emit(RemoteDevice::Touch, &events)
    }

    fn feed_pointer(&mut self, frame: &Frame) -> Result<(), InputError> {
        let was_down = self.pointer.is_down;
        let before = (self.pointer.x, self.pointer.y);
        for event in &frame.events {
            let code = u16::try_from(event.code).unwrap_or(u16::MAX);
            if is(event, EventType::RELATIVE) && code <= evdev::RelativeAxisCode::REL_Y.0 {
                return Err(InputError::RelativePointer);
            } else if is(event, EventType::ABSOLUTE) && code == Abs::ABS_X.0 {
                self.pointer.x = scale(event.value, frame.x_max, self.sink.panel().0)?;
            } else if is(event, EventType::ABSOLUTE) && code == Abs::ABS_Y.0 {
                self.pointer.y = scale(event.value, frame.y_max, self.sink.panel().1)?;
            } else if is(event, EventType::KEY)
                && [KeyCode::BTN_LEFT.0, KeyCode::BTN_TOUCH.0].contains(&code)
            {
                self.pointer.is_down = event.value != 0;
            }
        }
        let Pointer { x, y, is_down } = self.pointer;
        let position = [
            abs(Abs::ABS_MT_POSITION_X, x),
            abs(Abs::ABS_MT_POSITION_Y, y),
            abs(Abs::ABS_X, x),
            abs(Abs::ABS_Y, y),
        ];
        let touch = u32::from(KeyCode::BTN_TOUCH.0);
        let mut events = Vec::new();
        if self.slot != 0 {
            events.push(abs(Abs::ABS_MT_SLOT, 0));
        }
        match (was_down, is_down) {
            (false, true) => {
                events.push(abs(Abs::ABS_MT_TRACKING_ID, self.next_tracking_id));
                self.next_tracking_id = self.next_tracking_id % 0xffff + 1;
                events.extend(position);
                events.push(key(touch, 1));
                self.fingers.insert(0);
            }
            (true, true) if before != (x, y) => events.extend(position),
            (true, false) => {
                events.extend([abs(Abs::ABS_MT_TRACKING_ID, -1), key(touch, 0)]);
                self.fingers.remove(&0);
            }
            // A pointer that hovers is no finger.
            _ => return Ok(()),
        }
        self.slot = 0;
        self.emit(RemoteDevice::Touch, &events)
    }

    fn emit(&mut self, device: RemoteDevice, events: &[InputEvent]) -> Result<(), InputError> {
        if !events.is_empty() {
            self.sink.emit(device, events)?;
        }
        Ok(())
    }
}

/// From a device whose axis ends at `from_max` to one that ends at `to_max`, as the contract has it.
fn scale(value: i32, from_max: u32, to_max: u32) -> Result<i32, InputError> {
    if from_max == 0 {
        return Err(InputError::NoAxes);
    }
    let value = i128::from(value.clamp(0, i32::try_from(from_max).unwrap_or(i32::MAX)));
    let scaled = (2 * value + 1) * (i128::from(to_max) + 1) / (2 * (i128::from(from_max) + 1));
    Ok(i32::try_from(scaled).unwrap_or(i32::MAX))
}

fn is(event: &InputEvent, kind: EventType) -> bool {
    event.r#type == u32::from(kind.0)
}

fn key(code: u32, value: i32) -> InputEvent {
    InputEvent {
        r#type: EventType::KEY.0.into(),
        code,
        value,
    }
}

fn abs(code: Abs, value: i32) -> InputEvent {
    InputEvent {
        r#type: EventType::ABSOLUTE.0.into(),
        code: code.0.into(),
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, code and value of each event.
    type Recorded = Vec<(u32, u32, i32)>;

    #[derive(Default)]
    struct Recorder(Vec<(RemoteDevice, Recorded)>);

    impl InputSink for Recorder {
        fn panel(&self) -> (u32, u32) {
            (719, 1439)
        }

        fn emit(&mut self, device: RemoteDevice, events: &[InputEvent]) -> io::Result<()> {
            self.0.push((
                device,
                events
                    .iter()
                    .map(|event| (event.r#type, event.code, event.value))
                    .collect(),
            ));
            Ok(())
        }
    }

    fn frame(device: MmiDevice, events: &[(u32, u16, i32)]) -> Frame {
        let event = |&(r#type, code, value): &(u32, u16, i32)| InputEvent {
            r#type,
            code: code.into(),
            value,
        };
        Frame {
            device,
            device_id: 0,
            events: events.iter().map(event).collect(),
            x_max: 359,
            y_max: 719,
        }
    }

    const KEY: u32 = 1;
    const ABS: u32 = 3;

    #[test]
    fn what_is_pressed_is_lifted_once() {
        let mut injector = Injector::new(Recorder::default());
        injector
            .feed(&frame(MmiDevice::Keyboard, &[(KEY, 30, 1)]))
            .unwrap();
        injector
            .feed(&frame(MmiDevice::Keyboard, &[(KEY, 42, 1)]))
            .unwrap();
        injector
            .feed(&frame(MmiDevice::Keyboard, &[(KEY, 42, 0)]))
            .unwrap();
        injector
            .feed(&frame(
                MmiDevice::Touch,
                &[(ABS, 0x2f, 2), (ABS, 0x39, 7), (KEY, 0x14a, 1)],
            ))
            .unwrap();
        injector.sink.0.clear();
        injector.release().unwrap();
        let lifted = [
            (RemoteDevice::Keyboard, vec![(KEY, 30, 0)]),
            (
                RemoteDevice::Touch,
                vec![(ABS, 0x2f, 2), (ABS, 0x39, -1), (KEY, 0x14a, 0)],
            ),
        ];
        assert_eq!(injector.sink.0, lifted);
        injector.sink.0.clear();
        injector.release().unwrap();
        assert_eq!(injector.sink.0, []);
    }

    #[test]
    fn an_absolute_pointer_is_a_finger_while_pressed() {
        let mut injector = Injector::new(Recorder::default());
        injector
            .feed(&frame(MmiDevice::Pointer, &[(ABS, 0, 10), (ABS, 1, 20)]))
            .unwrap();
        assert_eq!(injector.sink.0, []);
        injector
            .feed(&frame(MmiDevice::Pointer, &[(KEY, 0x110, 1)]))
            .unwrap();
        let down = vec![
            (ABS, 0x39, 1),
            (ABS, 0x35, 21),
            (ABS, 0x36, 41),
            (ABS, 0, 21),
            (ABS, 1, 41),
            (KEY, 0x14a, 1),
        ];
        assert_eq!(injector.sink.0, [(RemoteDevice::Touch, down)]);
        injector.sink.0.clear();
        injector
            .feed(&frame(MmiDevice::Pointer, &[(KEY, 0x110, 0)]))
            .unwrap();
        assert_eq!(
            injector.sink.0,
            [(RemoteDevice::Touch, vec![(ABS, 0x39, -1), (KEY, 0x14a, 0)])]
        );
    }

    #[test]
    fn coordinates_are_scaled_and_kept_when_equal() {
        assert_eq!(
            (0..360)
                .map(|x| scale(x, 359, 359).unwrap())
                .collect::<Vec<_>>(),
            (0..360).collect::<Vec<_>>()
        );
        assert_eq!(
            (
                scale(0, 32767, 359).unwrap(),
                scale(32767, 32767, 359).unwrap()
            ),
            (0, 359)
        );
        assert_eq!(
            scale(i32::MAX, 359, u32::MAX / 2).unwrap() as u32 / 1000,
            (u32::MAX / 2 - 2982616) / 1000
        );
        assert!(scale(1, 0, 359).is_err());
    }

    #[test]
    fn what_the_panel_cannot_do_is_refused_whole() {
        let mut injector = Injector::new(Recorder::default());
        assert!(
            injector
                .feed(&frame(MmiDevice::Touch, &[(ABS, 0x39, 7), (ABS, 0x2f, 99)]))
                .is_err()
        );
        assert!(
            injector
                .feed(&frame(MmiDevice::Pointer, &[(2, 0, 5)]))
                .is_err()
        );
        assert_eq!(injector.sink.0, []);
        injector.release().unwrap();
        assert_eq!(injector.sink.0, []);
    }
}
