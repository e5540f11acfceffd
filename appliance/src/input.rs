//! Input as people give it - taps, swipes, keys, text - turned into the frames that a phone's kernel would see.
//!
//! Pure: nothing here sends anything. Codes are those of Linux `input-event-codes.h`; text follows the US keyboard
//! layout, as the handset does. Touch frames are multi-touch protocol B on slot 0.

use std::time::Duration;

use serde::Deserialize;
use sync_protocol::event::{Frame, InputEvent, MmiDevice};
use sync_protocol::seat::code::{
    ABS_MT_POSITION_X, ABS_MT_POSITION_Y, ABS_MT_SLOT, ABS_MT_TRACKING_ID, ABS_X, ABS_Y, BTN_LEFT, BTN_TOUCH, EV_ABS, EV_KEY,
};

/// Actions in one request.
const ACTIONS_MAX: usize = 64;
/// Characters typed by one action.
const TEXT_CHARS_MAX: usize = 1000;
/// Longest swipe: longer ones are several.
const SWIPE_MS_MAX: u32 = 5000;
/// How often a panel reports a moving finger.
const SWIPE_STEP_MS: u32 = 16;
const TAP_MS: u64 = 60;
const KEY_MS: u64 = 20;
const LONG_PRESS_MS: u64 = 900;

const KEY_LEFTSHIFT: u32 = 42;

/// One frame, and how long to wait before it.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedFrame {
    pub after: Duration,
    pub frame: Frame,
}

/// A finger's place on the screen, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    pub x: u16,
    pub y: u16,
}

/// One thing a person does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Tap(Point),
    LongPress(Point),
    Swipe {
        from: Point,
        to: Point,
        /// 1 to 5000; 250 if absent.
        ms: Option<u32>,
    },
    /// A key by name: `enter`, `backspace`, `esc`, `power`, `a`, `f1`, ...
    Key(String),
    /// Text of at most 1000 characters that a US keyboard has.
    Text(String),
}

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputRequest {
    /// At most 64, carried out in order.
    actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    #[error("{0} actions; at most {ACTIONS_MAX} are taken at once")]
    TooManyActions(usize),
    #[error("text of {0} characters; at most {TEXT_CHARS_MAX} are typed at once")]
    TextTooLong(usize),
    #[error("a US keyboard has no key for {0:?}")]
    NoKeyFor(char),
    #[error("there is no key {0:?}; keys are a-z, 0-9, enter, space, backspace, tab, esc, arrows, home, end, power, volumeup, ...")]
    NoKey(String),
    #[error("a swipe of {0} ms; 1 to {SWIPE_MS_MAX} are possible")]
    SwipeTooLong(u32),
}

impl InputRequest {
    pub fn frames(&self) -> Result<Vec<TimedFrame>, InputError> {
        if self.actions.len() > ACTIONS_MAX {
            return Err(InputError::TooManyActions(self.actions.len()));
        }
        let mut frames = Vec::new();
        for action in &self.actions {
            frames.extend(action.frames()?);
        }
        Ok(frames)
    }
}

impl Action {
    pub fn frames(&self) -> Result<Vec<TimedFrame>, InputError> {
        match self {
            Action::Tap(at) => Ok(press(*at, TAP_MS)),
            Action::LongPress(at) => Ok(press(*at, LONG_PRESS_MS)),
            Action::Swipe { from, to, ms } => swipe(*from, *to, ms.unwrap_or(250)),
            Action::Key(name) => {
                let code = key_by_name(name).ok_or_else(|| InputError::NoKey(name.clone()))?;
                Ok(vec![timed(0, key(code, true)), timed(KEY_MS, key(code, false))])
            }
            Action::Text(text) => type_text(text),
        }
    }
}

/// A key of the keyboard goes down or up.
pub fn key(code: u32, down: bool) -> Frame {
    frame(MmiDevice::Keyboard, &[(EV_KEY, code, i32::from(down))])
}

/// The finger lands at `at`, as contact number `contact`.
pub fn touch_down(at: Point, contact: u16) -> Frame {
    let (x, y) = (i32::from(at.x), i32::from(at.y));
    frame(
        MmiDevice::Touch,
        &[
            (EV_ABS, ABS_MT_SLOT, 0),
            (EV_ABS, ABS_MT_TRACKING_ID, i32::from(contact)),
            (EV_ABS, ABS_MT_POSITION_X, x),
            (EV_ABS, ABS_MT_POSITION_Y, y),
            (EV_KEY, BTN_TOUCH, 1),
            (EV_ABS, ABS_X, x),
            (EV_ABS, ABS_Y, y),
        ],
    )
}

pub fn touch_move(at: Point) -> Frame {
    let (x, y) = (i32::from(at.x), i32::from(at.y));
    frame(
        MmiDevice::Touch,
        &[
            (EV_ABS, ABS_MT_SLOT, 0),
            (EV_ABS, ABS_MT_POSITION_X, x),
            (EV_ABS, ABS_MT_POSITION_Y, y),
            (EV_ABS, ABS_X, x),
            (EV_ABS, ABS_Y, y),
        ],
    )
}

pub fn touch_up() -> Frame {
    frame(MmiDevice::Touch, &[(EV_ABS, ABS_MT_SLOT, 0), (EV_ABS, ABS_MT_TRACKING_ID, -1), (EV_KEY, BTN_TOUCH, 0)])
}

/// Says how large the panel is that the frame's coordinates are of.
pub fn on_panel(mut frame: Frame, width: u16, height: u16) -> Frame {
    if frame.device != MmiDevice::Keyboard {
        frame.x_max = u32::from(width.saturating_sub(1));
        frame.y_max = u32::from(height.saturating_sub(1));
    }
    frame
}

/// A frame in words, for the log.
pub fn describe(frame: &Frame) -> String {
    let find = |kind, code| frame.events.iter().find(|e| e.r#type == kind && e.code == code).map(|e| e.value);
    match frame.device {
        MmiDevice::Touch | MmiDevice::Pointer => {
            let x = find(EV_ABS, ABS_MT_POSITION_X).or_else(|| find(EV_ABS, ABS_X));
            let y = find(EV_ABS, ABS_MT_POSITION_Y).or_else(|| find(EV_ABS, ABS_Y));
            let axis = |value: Option<i32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            let button = find(EV_KEY, BTN_TOUCH).or_else(|| find(EV_KEY, BTN_LEFT));
            match (button, find(EV_ABS, ABS_MT_TRACKING_ID)) {
                (Some(0), _) | (None, Some(-1)) => "finger up".into(),
                (Some(_), _) | (None, Some(_)) => format!("finger down at {}, {}", axis(x), axis(y)),
                _ => format!("finger at {}, {}", axis(x), axis(y)),
            }
        }
        _ => {
            let keys = frame.events.iter().filter(|e| e.r#type == EV_KEY).map(|event| {
                let name = name_of_key(event.code).map_or_else(|| format!("key {}", event.code), str::to_owned);
                let deed = ["up", "down", "repeat"].get(event.value as usize).copied().unwrap_or("?");
                format!("{name} {deed}")
            });
            keys.collect::<Vec<_>>().join(", ")
        }
    }
}

fn press(at: Point, ms: u64) -> Vec<TimedFrame> {
    vec![timed(0, touch_down(at, 1)), timed(ms, touch_up())]
}

fn swipe(from: Point, to: Point, ms: u32) -> Result<Vec<TimedFrame>, InputError> {
    if !(1..=SWIPE_MS_MAX).contains(&ms) {
        return Err(InputError::SwipeTooLong(ms));
    }
    let steps = (ms / SWIPE_STEP_MS).max(2);
    let between = |a: u16, b: u16, step: u32| {
        let (a, b) = (i64::from(a), i64::from(b));
        u16::try_from(a + (b - a) * i64::from(step) / i64::from(steps)).unwrap_or(0)
    };
    let mut frames = vec![timed(0, touch_down(from, 1))];
    for step in 1..=steps {
        let at = Point { x: between(from.x, to.x, step), y: between(from.y, to.y, step) };
        frames.push(timed(u64::from(ms / steps), touch_move(at)));
    }
    frames.push(timed(0, touch_up()));
    Ok(frames)
}

fn type_text(text: &str) -> Result<Vec<TimedFrame>, InputError> {
    let count = text.chars().count();
    if count > TEXT_CHARS_MAX {
        return Err(InputError::TextTooLong(count));
    }
    let mut frames = Vec::new();
    for character in text.chars() {
        let (code, shift) = key_of_char(character).ok_or(InputError::NoKeyFor(character))?;
        if shift {
            frames.push(timed(KEY_MS, key(KEY_LEFTSHIFT, true)));
        }
        frames.push(timed(KEY_MS, key(code, true)));
        frames.push(timed(KEY_MS, key(code, false)));
        if shift {
            frames.push(timed(KEY_MS, key(KEY_LEFTSHIFT, false)));
        }
    }
    Ok(frames)
}

fn timed(after_ms: u64, frame: Frame) -> TimedFrame {
    TimedFrame { after: Duration::from_millis(after_ms), frame }
}

fn frame(device: MmiDevice, events: &[(u32, u32, i32)]) -> Frame {
    let events = events.iter().map(|&(r#type, code, value)| InputEvent { r#type, code, value }).collect();
    Frame { device, device_id: 0, events, x_max: 0, y_max: 0 }
}

/// Key code and whether shift is held, on a US keyboard.
pub fn key_of_char(character: char) -> Option<(u32, bool)> {
    let plain = "1234567890-=\tqwertyuiop[]\nasdfghjkl;'`\\zxcvbnm,./ ";
    let shifted = "!@#$%^&*()_+\0QWERTYUIOP{}\0ASDFGHJKL:\"~|ZXCVBNM<>?\0";
    const CODES: [u32; 50] = [
        2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 30, 31, 32, 33,
        34, 35, 36, 37, 38, 39, 40, 41, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 57,
    ];
    if let Some(at) = plain.chars().position(|c| c == character) {
        return CODES.get(at).map(|&code| (code, false));
    }
    let at = shifted.chars().position(|c| c == character && c != '\0')?;
    CODES.get(at).map(|&code| (code, true))
}

/// Keys that have a name but no character.
const NAMED_KEYS: &[(&str, u32)] = &[
    ("esc", 1),
    ("backspace", 14),
    ("tab", 15),
    ("enter", 28),
    ("ctrl", 29),
    ("shift", 42),
    ("rightshift", 54),
    ("alt", 56),
    ("space", 57),
    ("capslock", 58),
    ("f1", 59),
    ("f2", 60),
    ("f3", 61),
    ("f4", 62),
    ("f5", 63),
    ("f6", 64),
    ("f7", 65),
    ("f8", 66),
    ("f9", 67),
    ("f10", 68),
    ("f11", 87),
    ("f12", 88),
    ("home", 102),
    ("up", 103),
    ("pageup", 104),
    ("left", 105),
    ("right", 106),
    ("end", 107),
    ("down", 108),
    ("pagedown", 109),
    ("insert", 110),
    ("delete", 111),
    ("volumedown", 114),
    ("volumeup", 115),
    ("power", 116),
    ("menu", 139),
    ("back", 158),
    ("homepage", 172),
];

fn key_by_name(name: &str) -> Option<u32> {
    if let Some((_, code)) = NAMED_KEYS.iter().find(|(key, _)| *key == name) {
        return Some(*code);
    }
    let mut characters = name.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) => key_of_char(character).filter(|(_, shift)| !shift).map(|(code, _)| code),
        _ => None,
    }
}

fn name_of_key(code: u32) -> Option<&'static str> {
    const ROW: &[(&str, u32)] = &[
        ("1", 2), ("2", 3), ("3", 4), ("4", 5), ("5", 6), ("6", 7), ("7", 8), ("8", 9), ("9", 10), ("0", 11),
        ("-", 12), ("=", 13), ("q", 16), ("w", 17), ("e", 18), ("r", 19), ("t", 20), ("y", 21), ("u", 22), ("i", 23),
        ("o", 24), ("p", 25), ("[", 26), ("]", 27), ("a", 30), ("s", 31), ("d", 32), ("f", 33), ("g", 34), ("h", 35),
        ("j", 36), ("k", 37), ("l", 38), (";", 39), ("'", 40), ("`", 41), ("\\", 43), ("z", 44), ("x", 45), ("c", 46),
        ("v", 47), ("b", 48), ("n", 49), ("m", 50), (",", 51), (".", 52), ("/", 53),
    ];
    NAMED_KEYS.iter().chain(ROW).find(|(_, c)| *c == code).map(|(name, _)| *name)
}

/// Key code of an X11 keysym, as RFB clients send them; shift and its like are keys of their own there.
pub fn key_of_keysym(keysym: u32) -> Option<u32> {
    let named = match keysym {
        0xff08 => "backspace",
        0xff09 => "tab",
        0xff0d | 0xff8d => "enter",
        0xff1b => "esc",
        0xff50 => "home",
        0xff51 => "left",
        0xff52 => "up",
        0xff53 => "right",
        0xff54 => "down",
        0xff55 => "pageup",
        0xff56 => "pagedown",
        0xff57 => "end",
        0xff63 => "insert",
        0xffff => "delete",
        0xffe1 => "shift",
        0xffe2 => "rightshift",
        0xffe3 | 0xffe4 => "ctrl",
        0xffe5 => "capslock",
        0xffe9 | 0xffea => "alt",
        0xff67 => "menu",
        0x1008_ff11 => "volumedown",
        0x1008_ff13 => "volumeup",
        0x1008_ff18 => "homepage",
        0x1008_ff26 => "back",
        0x1008_ff2a => "power",
        0xffbe..=0xffc9 => NAMED_KEYS[10 + (keysym - 0xffbe) as usize].0,
        0x20..=0x7e => return key_of_char(char::from_u32(keysym)?).map(|(code, _)| code),
        _ => return None,
    };
    key_by_name(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_the_codes_of_a_us_keyboard() {
        for (character, expected) in [
            ('1', (2, false)), ('!', (2, true)), ('q', (16, false)), ('Q', (16, true)), ('a', (30, false)),
            ('\n', (28, false)), (' ', (57, false)), ('?', (53, true)), ('z', (44, false)), ('|', (43, true)),
            ('"', (40, true)), ('~', (41, true)), ('M', (50, true)), ('{', (26, true)),
        ] {
            assert_eq!(key_of_char(character), Some(expected), "{character:?}");
        }
        assert_eq!(key_of_char('ä'), None);
        assert_eq!(key_of_char('\0'), None);
        for character in (0x20..0x7fu8).map(char::from) {
            assert!(key_of_char(character).is_some(), "{character:?}");
        }
    }

    #[test]
    fn keysyms_reach_keys() {
        assert_eq!(key_of_keysym(0xff0d), Some(28));
        assert_eq!(key_of_keysym(0x41), Some(30));
        assert_eq!(key_of_keysym(0xffbe), Some(59));
        assert_eq!(key_of_keysym(0xffc9), Some(88));
        assert_eq!(key_of_keysym(0x1234_5678), None);
    }

    #[test]
    fn typing_holds_shift_where_needed() {
        let frames = Action::Text("aB".into()).frames().expect("frames");
        let keys: Vec<_> = frames.iter().map(|f| (f.frame.events[0].code, f.frame.events[0].value)).collect();
        assert_eq!(keys, [(30, 1), (30, 0), (42, 1), (48, 1), (48, 0), (42, 0)]);
        assert_eq!(Action::Text("ü".into()).frames(), Err(InputError::NoKeyFor('ü')));
    }

    #[test]
    fn a_swipe_ends_where_it_should() {
        let (from, to) = (Point { x: 10, y: 700 }, Point { x: 10, y: 100 });
        let frames = Action::Swipe { from, to, ms: Some(160) }.frames().expect("frames");
        assert_eq!(frames.first().map(|f| &f.frame), Some(&touch_down(from, 1)));
        assert_eq!(frames[frames.len() - 2].frame, touch_move(to));
        assert_eq!(frames.last().map(|f| &f.frame), Some(&touch_up()));
        assert!(Action::Swipe { from, to, ms: Some(0) }.frames().is_err());
    }

    #[test]
    fn the_log_tells_fingers_whatever_makes_them() {
        let touch = on_panel(touch_down(Point { x: 359, y: 719 }, 1), 720, 1440);
        assert_eq!((touch.x_max, touch.y_max), (719, 1439));
        assert_eq!(describe(&touch), "finger down at 359, 719");
        assert_eq!(describe(&touch_up()), "finger up");
        let tablet = |events: &[(u32, u32, i32)]| describe(&frame(MmiDevice::Pointer, events));
        assert_eq!(tablet(&[(EV_ABS, ABS_X, 7), (EV_ABS, ABS_Y, 8), (EV_KEY, BTN_LEFT, 1)]), "finger down at 7, 8");
        assert_eq!(tablet(&[(EV_KEY, BTN_LEFT, 0)]), "finger up");
    }

    #[test]
    fn requests_are_bounded() {
        let request = InputRequest { actions: vec![Action::Key("enter".into()); ACTIONS_MAX + 1] };
        assert!(matches!(request.frames(), Err(InputError::TooManyActions(_))));
        let request: Result<InputRequest, _> = serde_json::from_str(r#"{"actions":[{"tap":{"x":1,"y":2}},{"key":"a"}]}"#);
        assert_eq!(request.expect("parsed").frames().expect("frames").len(), 4);
    }
}
