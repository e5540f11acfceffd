//! Raw input events (type, code, value) to [`Event`]s, one decoder per device. Pure.
//!
//! Understands multi-touch protocol B, single touch, an absolute pointer with a left button, and
//! keyboards (US layout). Kernel key repeat is ignored: it depends on time, and a copy of this
//! phone that gets the same events must end in the same state.

use crate::ui::{Event, Key};

/// Event types and codes of linux/input-event-codes.h that matter here.
pub mod code {
    pub const EV_SYN: u16 = 0;
    pub const EV_KEY: u16 = 1;
    pub const EV_ABS: u16 = 3;
    pub const SYN_REPORT: u16 = 0;
    pub const ABS_X: u16 = 0x00;
    pub const ABS_Y: u16 = 0x01;
    pub const ABS_MT_SLOT: u16 = 0x2f;
    pub const ABS_MT_POSITION_X: u16 = 0x35;
    pub const ABS_MT_POSITION_Y: u16 = 0x36;
    pub const ABS_MT_TRACKING_ID: u16 = 0x39;
    pub const BTN_LEFT: u16 = 0x110;
    pub const BTN_TOUCH: u16 = 0x14a;
    pub const KEY_LEFTSHIFT: u16 = 42;
    pub const KEY_RIGHTSHIFT: u16 = 54;
    pub const KEY_CAPSLOCK: u16 = 58;
}

/// Fingers followed at once; a device that reports more has them ignored.
const SLOTS_MAX: usize = 10;

/// The range of an axis, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Axis {
    pub min: i32,
    pub max: i32,
}

impl Axis {
    /// Maps a value of the range to `0..size`.
    fn place(self, value: i32, size: i32) -> i32 {
        let span = (i64::from(self.max) - i64::from(self.min) + 1).max(1);
        let at = (i64::from(value) - i64::from(self.min)) * i64::from(size) / span;
        at.clamp(0, i64::from(size - 1).max(0)) as i32
    }
}

/// What a device can do, as far as it matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abilities {
    /// Ranges of x and y, of multi-touch if the device has it.
    pub axes: Option<(Axis, Axis)>,
    pub multi_touch: bool,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    down: bool,
    was_down: bool,
    moved: bool,
    x: i32,
    y: i32,
}

pub struct Decoder {
    abilities: Abilities,
    /// The display in dp.
    size: (i32, i32),
    slots: [Slot; SLOTS_MAX],
    slot: usize,
    /// The finger that counts: the one that came down last.
    leading: Option<usize>,
    shift: [bool; 2],
    caps: bool,
}

impl Decoder {
    pub fn new(abilities: Abilities, size: (i32, i32)) -> Self {
        Self {
            abilities,
            size,
            slots: [Slot::default(); SLOTS_MAX],
            slot: 0,
            leading: None,
            shift: [false; 2],
            caps: false,
        }
    }

    /// Takes one raw event and appends what it completes.
    pub fn feed(&mut self, (kind, code, value): (u16, u16, i32), events: &mut Vec<Event>) {
        use self::code::*;
        match (kind, code) {
            (EV_SYN, SYN_REPORT) => self.report(events),
            (EV_ABS, _) if self.abilities.multi_touch => self.multi_touch(code, value),
            (EV_ABS, ABS_X) => self.slots[0].set_x(value),
            (EV_ABS, ABS_Y) => self.slots[0].set_y(value),
            (EV_KEY, BTN_TOUCH | BTN_LEFT) if self.abilities.axes.is_some() => {
                // Multi-touch panels repeat their first finger in this older form.
                self.slots[0].down = if self.abilities.multi_touch {
                    self.slots[0].down
                } else {
                    value != 0
                };
            }
            (EV_KEY, KEY_LEFTSHIFT) => self.shift[0] = value != 0,
            (EV_KEY, KEY_RIGHTSHIFT) => self.shift[1] = value != 0,
            (EV_KEY, KEY_CAPSLOCK) if value == 1 => self.caps = !self.caps,
            (EV_KEY, _) if value == 1 => {
                let shifted = self.shift[0] || self.shift[1];
                events.extend(key(code, shifted, self.caps).map(Event::Key));
            }
            _ => {}
        }
    }

    fn multi_touch(&mut self, code: u16, value: i32) {
        use self::code::*;
        if code == ABS_MT_SLOT {
            self.slot = usize::try_from(value).unwrap_or(usize::MAX);
        }
        let Some(slot) = self.slots.get_mut(self.slot) else {
            return;
        };
        match code {
            ABS_MT_TRACKING_ID => slot.down = value >= 0,
            ABS_MT_POSITION_X => slot.set_x(value),
            ABS_MT_POSITION_Y => slot.set_y(value),
            _ => {}
        }
    }

    fn report(&mut self, events: &mut Vec<Event>) {
        let Some((axis_x, axis_y)) = self.abilities.axes else {
            return;
        };
        for index in 0..SLOTS_MAX {
            let slot = self.slots[index];
            let x = axis_x.place(slot.x, self.size.0);
            let y = axis_y.place(slot.y, self.size.1);
            let leads = self.leading == Some(index);
            match (slot.was_down, slot.down) {
                (false, true) => {
                    self.leading = Some(index);
                    events.push(Event::Down { x, y });
                }
                (true, true) if slot.moved && leads => events.push(Event::Move { x, y }),
                (true, false) if leads => {
                    self.leading = None;
                    if slot.moved {
                        events.push(Event::Move { x, y });
                    }
                    events.push(Event::Up);
                }
                _ => {}
            }
            self.slots[index].was_down = slot.down;
            self.slots[index].moved = false;
        }
    }
}

impl Slot {
    fn set_x(&mut self, value: i32) {
        self.moved |= self.x != value;
        self.x = value;
    }

    fn set_y(&mut self, value: i32) {
        self.moved |= self.y != value;
        self.y = value;
    }
}

/// The key of a code on a US keyboard.
fn key(code: u16, shifted: bool, caps: bool) -> Option<Key> {
    const PLAIN: [(u16, &str); 4] = [
        (2, "1234567890-="),
        (16, "qwertyuiop[]"),
        (30, "asdfghjkl;'`"),
        (43, "\\zxcvbnm,./"),
    ];
    const SHIFTED: [&str; 4] = [
        "!@#$%^&*()_+",
        "QWERTYUIOP{}",
        "ASDFGHJKL:\"~",
        "|ZXCVBNM<>?",
    ];
    let named = match code {
        1 | 158 => Key::Back,
        102 | 125 | 172 => Key::Home,
        14 => Key::Backspace,
        15 => Key::Tab,
        28 | 96 => Key::Enter,
        57 => Key::Char(' '),
        103 => Key::Up,
        105 => Key::Left,
        106 => Key::Right,
        108 => Key::Down,
        111 => Key::Delete,
        // The number block: 7 8 9 - 4 5 6 + 1 2 3 0 .
        71..=83 => Key::Char(char::from(b"789-456+1230."[usize::from(code - 71)])),
        55 => Key::Char('*'),
        98 => Key::Char('/'),
        // KEY_NUMERIC_0..9, star, pound
        512..=521 => Key::Char(char::from(b'0' + (code - 512) as u8)),
        522 => Key::Char('*'),
        523 => Key::Char('#'),
        _ => {
            let row = PLAIN.iter().rposition(|(first, _)| code >= *first)?;
            let (first, keys) = PLAIN[row];
            let at = usize::from(code - first);
            let plain = char::from(*keys.as_bytes().get(at)?);
            let upper = if plain.is_ascii_alphabetic() {
                shifted != caps
            } else {
                shifted
            };
            let c = if upper {
                char::from(SHIFTED[row].as_bytes()[at])
            } else {
                plain
            };
            Key::Char(c)
        }
    };
    Some(named)
}

#[cfg(test)]
mod tests {
    use super::code::*;
    use super::*;

    const AXES: (Axis, Axis) = (Axis { min: 0, max: 32767 }, Axis { min: 0, max: 32767 });

    fn decode(multi_touch: bool, raw: &[(u16, u16, i32)]) -> Vec<Event> {
        let mut decoder = Decoder::new(
            Abilities {
                axes: Some(AXES),
                multi_touch,
            },
            (360, 720),
        );
        let mut events = Vec::new();
        for &event in raw {
            decoder.feed(event, &mut events);
        }
        events
    }

    #[test]
    fn a_finger_comes_moves_and_goes() {
        let raw = [
            (EV_ABS, ABS_MT_SLOT, 0),
            (EV_ABS, ABS_MT_TRACKING_ID, 5),
            (EV_ABS, ABS_MT_POSITION_X, 16384),
            (EV_ABS, ABS_MT_POSITION_Y, 16384),
            (EV_KEY, BTN_TOUCH, 1),
            (EV_ABS, ABS_X, 1),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_POSITION_Y, 0),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_TRACKING_ID, -1),
            (EV_KEY, BTN_TOUCH, 0),
            (EV_SYN, 0, 0),
        ];
        let expected = [
            Event::Down { x: 180, y: 360 },
            Event::Move { x: 180, y: 0 },
            Event::Up,
        ];
        assert_eq!(decode(true, &raw), expected);
    }

    #[test]
    fn the_finger_that_came_last_leads() {
        let raw = [
            (EV_ABS, ABS_MT_TRACKING_ID, 1),
            (EV_ABS, ABS_MT_POSITION_X, 3277),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_SLOT, 1),
            (EV_ABS, ABS_MT_TRACKING_ID, 2),
            (EV_ABS, ABS_MT_POSITION_X, 30000),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_SLOT, 0),
            (EV_ABS, ABS_MT_TRACKING_ID, -1),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_SLOT, 1),
            (EV_ABS, ABS_MT_TRACKING_ID, -1),
            (EV_SYN, 0, 0),
        ];
        let expected = [
            Event::Down { x: 36, y: 0 },
            Event::Down { x: 329, y: 0 },
            Event::Up,
        ];
        assert_eq!(decode(true, &raw), expected);
    }

    #[test]
    fn a_tablet_touches_with_its_left_button() {
        let raw = [
            (EV_ABS, ABS_X, 32767),
            (EV_ABS, ABS_Y, 32767),
            (EV_SYN, 0, 0),
            (EV_KEY, BTN_LEFT, 1),
            (EV_SYN, 0, 0),
            (EV_KEY, BTN_LEFT, 0),
            (EV_SYN, 0, 0),
        ];
        assert_eq!(
            decode(false, &raw),
            [Event::Down { x: 359, y: 719 }, Event::Up]
        );
    }

    #[test]
    fn keys_follow_shift_and_caps_and_ignore_repeat() {
        let raw = [
            (EV_KEY, KEY_LEFTSHIFT, 1),
            (EV_KEY, 30, 1),
            (EV_KEY, 30, 2),
            (EV_KEY, 30, 0),
            (EV_KEY, 2, 1),
            (EV_KEY, KEY_LEFTSHIFT, 0),
            (EV_KEY, 30, 1),
            (EV_KEY, 52, 1),
            (EV_KEY, KEY_CAPSLOCK, 1),
            (EV_KEY, 44, 1),
            (EV_KEY, 2, 1),
            (EV_KEY, 158, 1),
            (EV_KEY, 172, 1),
            (EV_KEY, 400, 1),
        ];
        let keys: Vec<Event> = [
            Key::Char('A'),
            Key::Char('!'),
            Key::Char('a'),
            Key::Char('.'),
            Key::Char('Z'),
            Key::Char('1'),
            Key::Back,
            Key::Home,
        ]
        .map(Event::Key)
        .into();
        assert_eq!(decode(true, &raw), keys);
    }

    #[test]
    fn nonsense_is_survived() {
        let raw = [
            (EV_ABS, ABS_MT_SLOT, 99),
            (EV_ABS, ABS_MT_TRACKING_ID, 1),
            (EV_ABS, ABS_MT_SLOT, -4),
            (EV_ABS, ABS_MT_POSITION_X, i32::MIN),
            (EV_SYN, 0, 0),
            (EV_ABS, ABS_MT_SLOT, 0),
            (EV_ABS, ABS_MT_TRACKING_ID, 1),
            (EV_ABS, ABS_MT_POSITION_X, i32::MAX),
            (EV_ABS, ABS_MT_POSITION_Y, i32::MIN),
            (EV_SYN, 0, 0),
        ];
        assert_eq!(decode(true, &raw), [Event::Down { x: 359, y: 0 }]);
    }
}
