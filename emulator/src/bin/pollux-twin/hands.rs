//! The hands of those who watch by RFB: pointer and keys of a desktop become touches and key presses of a phone.
//!
//! One finger, whoever holds the button first; others are ignored until it lifts. Keys are counted by watcher, so that a watcher who
//! leaves holds none down. What a guest does not take is an error to whose hand it was, and leaves nothing pressed.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use vmm::log_limit::LogLimit;
use vmm::virtio::input::{Event, InputError, InputSender};

use crate::keymap::{self, KEY_LEFTSHIFT, KEY_RIGHTSHIFT};

const EV_KEY: u16 = 1;
const EV_ABS: u16 = 3;
const BTN_TOUCH: u16 = 0x14a;
const ABS_X: u16 = 0;
const ABS_Y: u16 = 1;
const ABS_MT_SLOT: u16 = 0x2f;
const ABS_MT_POSITION_X: u16 = 0x35;
const ABS_MT_POSITION_Y: u16 = 0x36;
const ABS_MT_TRACKING_ID: u16 = 0x39;
/// Tracking IDs are 16 bits wide.
const TRACKING_ID_MAX: i32 = 0xffff;
const LEFT_BUTTON: u8 = 1;
/// Nobody has more fingers; a client that claims so is ignored.
const KEYS_DOWN_MAX: usize = 32;

/// Takes frames of events for one of the guest's devices.
pub(crate) trait Device: Send + Sync {
    fn send(&self, frame: &[Event]) -> Result<(), InputError>;
    /// For a frame that says nothing but where the finger is: the last of several counts.
    fn send_position(&self, frame: &[Event]) -> Result<(), InputError>;
}

impl Device for InputSender {
    fn send(&self, frame: &[Event]) -> Result<(), InputError> {
        InputSender::send(self, frame)
    }

    fn send_position(&self, frame: &[Event]) -> Result<(), InputError> {
        InputSender::send_position(self, frame)
    }
}

/// Shared by all watchers.
pub(crate) struct Hands {
    keyboard: Box<dyn Device>,
    touch: Box<dyn Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The watcher whose finger is down, and where.
    finger: Option<(u64, i32, i32)>,
    tracking_id: i32,
    /// Watcher and key code.
    keys: HashSet<(u64, u16)>,
}

impl Hands {
    pub(crate) fn new(keyboard: impl Device + 'static, touch: impl Device + 'static) -> Self {
        Self { keyboard: Box::new(keyboard), touch: Box::new(touch), state: Mutex::default() }
    }

    /// The pointer of a watcher is at a place on a screen of so many pixels, with these buttons.
    pub(crate) fn pointer(
        &self,
        watcher: u64,
        buttons: u8,
        (x, y): (u16, u16),
        (width, height): (u32, u32),
    ) -> Result<(), InputError> {
        let clamp = |at: u16, side: u32| u32::from(at).min(side.saturating_sub(1)) as i32;
        let (x, y) = (clamp(x, width), clamp(y, height));
        let mut state = self.lock();
        match (state.finger, buttons & LEFT_BUTTON != 0) {
            (None, true) => {
                state.tracking_id = (state.tracking_id + 1) & TRACKING_ID_MAX;
                let id = state.tracking_id;
                let down = [(EV_ABS, ABS_MT_SLOT, 0), (EV_ABS, ABS_MT_TRACKING_ID, id), (EV_KEY, BTN_TOUCH, 1)];
                self.touch.send(&[&down[..], &position(x, y)].concat())?;
                state.finger = Some((watcher, x, y));
            }
            (Some((holder, old_x, old_y)), true) if holder == watcher && (x, y) != (old_x, old_y) => {
                self.touch.send_position(&[&[(EV_ABS, ABS_MT_SLOT, 0)][..], &position(x, y)].concat())?;
                state.finger = Some((watcher, x, y));
            }
            (Some((holder, ..)), false) if holder == watcher => return self.lift(&mut state),
            _ => {}
        }
        Ok(())
    }

    /// A watcher presses or releases what makes `keysym`.
    pub(crate) fn key(&self, watcher: u64, down: bool, keysym: u32) -> Result<(), InputError> {
        let Some(key) = keymap::key(keysym) else { return Ok(()) };
        let mut state = self.lock();
        let held = state.keys.contains(&(watcher, key.code));
        if !down {
            return if state.keys.remove(&(watcher, key.code)) { self.keyboard.send(&[(EV_KEY, key.code, 0)]) } else { Ok(()) };
        }
        if !held && state.keys.len() >= KEYS_DOWN_MAX {
            return Ok(());
        }
        let press = (EV_KEY, key.code, if held { 2 } else { 1 });
        // The watcher's layout may make the symbol with another state of Shift than a US keyboard does.
        let shifts: Vec<u16> = [KEY_LEFTSHIFT, KEY_RIGHTSHIFT].into_iter().filter(|s| state.keys.iter().any(|k| k.1 == *s)).collect();
        let all = |shifts: &[u16], value| shifts.iter().map(|shift| (EV_KEY, *shift, value)).collect::<Vec<Event>>();
        let (before, after) = match key.shift {
            Some(true) if shifts.is_empty() => (all(&[KEY_LEFTSHIFT], 1), all(&[KEY_LEFTSHIFT], 0)),
            Some(false) => (all(&shifts, 0), all(&shifts, 1)),
            _ => (vec![], vec![]),
        };
        let send = |frame: &[Event]| if frame.is_empty() { Ok(()) } else { self.keyboard.send(frame) };
        send(&before)?;
        let pressed = send(&[press]);
        if pressed.is_ok() {
            // Whatever becomes of Shift: it must come up again.
            state.keys.insert((watcher, key.code));
        }
        send(&after)?;
        pressed
    }

    /// A watcher has gone: its finger lifts, its keys come up.
    pub(crate) fn leave(&self, watcher: u64) {
        let mut state = self.lock();
        if state.finger.is_some_and(|(holder, ..)| holder == watcher) {
            tell(self.lift(&mut state));
        }
        let theirs: Vec<_> = state.keys.iter().filter(|k| k.0 == watcher).copied().collect();
        for key in theirs {
            state.keys.remove(&key);
            tell(self.keyboard.send(&[(EV_KEY, key.1, 0)]));
        }
    }

    fn lift(&self, state: &mut State) -> Result<(), InputError> {
        state.finger = None;
        self.touch.send(&[(EV_ABS, ABS_MT_SLOT, 0), (EV_ABS, ABS_MT_TRACKING_ID, -1), (EV_KEY, BTN_TOUCH, 0)])
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while moving a finger")
    }
}

/// For a watcher who cannot be told any more.
fn tell(sent: Result<(), InputError>) {
    static LOG_LIMIT: LogLimit = LogLimit::new();
    if let Err(error) = sent
        && LOG_LIMIT.allows()
    {
        tracing::warn!(%error, "something stays pressed");
    }
}

fn position(x: i32, y: i32) -> [Event; 4] {
    [(EV_ABS, ABS_MT_POSITION_X, x), (EV_ABS, ABS_MT_POSITION_Y, y), (EV_ABS, ABS_X, x), (EV_ABS, ABS_Y, y)]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What was sent, and how many frames more are taken; at first without end.
    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<(Vec<Vec<Event>>, Option<usize>)>>);

    impl Device for Sent {
        fn send(&self, frame: &[Event]) -> Result<(), InputError> {
            let mut sent = self.0.lock().unwrap();
            // As the device does, one that is full takes what lifts.
            if frame.iter().any(|event| event.2 > 0) && let Some(room) = &mut sent.1 {
                *room = room.checked_sub(1).ok_or(InputError::Full("it"))?;
            }
            sent.0.push(frame.to_vec());
            Ok(())
        }

        fn send_position(&self, frame: &[Event]) -> Result<(), InputError> {
            self.send(frame)
        }
    }

    impl Sent {
        fn take(&self) -> Vec<Vec<Event>> {
            std::mem::take(&mut self.0.lock().unwrap().0)
        }

        fn has_room(&self, frames: usize) {
            self.0.lock().unwrap().1 = Some(frames);
        }
    }

    fn hands() -> (Hands, Sent, Sent) {
        let (keyboard, touch) = (Sent::default(), Sent::default());
        (Hands::new(keyboard.clone(), touch.clone()), keyboard, touch)
    }

    const SCREEN: (u32, u32) = (360, 720);

    #[test]
    fn a_button_is_a_finger() {
        let (hands, _, touch) = hands();
        hands.pointer(1, 0, (5, 5), SCREEN).unwrap();
        assert!(touch.take().is_empty(), "hovering is nothing");
        hands.pointer(1, 1, (10, 20), SCREEN).unwrap();
        let down = touch.take();
        assert_eq!(down.len(), 1);
        assert_eq!(down[0][..3], [(3, 0x2f, 0), (3, 0x39, 1), (1, 0x14a, 1)]);
        assert_eq!(down[0][3..], [(3, 0x35, 10), (3, 0x36, 20), (3, 0, 10), (3, 1, 20)]);
        hands.pointer(1, 1, (10, 20), SCREEN).unwrap();
        assert!(touch.take().is_empty());
        hands.pointer(1, 1, (9999, 65535), SCREEN).unwrap();
        assert_eq!(touch.take()[0][1..3], [(3, 0x35, 359), (3, 0x36, 719)]);
        hands.pointer(1, 4, (0, 0), SCREEN).unwrap();
        assert_eq!(touch.take(), [vec![(3, 0x2f, 0), (3, 0x39, -1), (1, 0x14a, 0)]]);
    }

    #[test]
    fn one_finger_at_a_time_and_none_left_behind() {
        let (hands, _, touch) = hands();
        hands.pointer(1, 1, (1, 1), SCREEN).unwrap();
        touch.take();
        hands.pointer(2, 1, (2, 2), SCREEN).unwrap();
        hands.pointer(2, 0, (2, 2), SCREEN).unwrap();
        hands.leave(2);
        assert!(touch.take().is_empty());
        hands.leave(1);
        assert_eq!(touch.take().len(), 1);
        hands.pointer(2, 1, (2, 2), SCREEN).unwrap();
        assert_eq!(touch.take().len(), 1);
    }

    #[test]
    fn symbols_get_the_shift_that_a_us_keyboard_needs() {
        let (hands, keyboard, _) = hands();
        hands.key(1, true, u32::from('a')).unwrap();
        hands.key(1, true, u32::from('a')).unwrap();
        hands.key(1, false, u32::from('a')).unwrap();
        assert_eq!(keyboard.take(), [[(1, 30, 1)], [(1, 30, 2)], [(1, 30, 0)]]);
        // '@' without Shift, as a German keyboard sends it.
        hands.key(1, true, u32::from('@')).unwrap();
        hands.key(1, false, u32::from('@')).unwrap();
        assert_eq!(keyboard.take(), [[(1, 42, 1)], [(1, 3, 1)], [(1, 42, 0)], [(1, 3, 0)]]);
        // '7' with Shift, as a French keyboard sends it.
        hands.key(1, true, 0xffe1).unwrap();
        hands.key(1, true, u32::from('7')).unwrap();
        assert_eq!(keyboard.take(), [[(1, 42, 1)], [(1, 42, 0)], [(1, 8, 1)], [(1, 42, 1)]]);
        hands.key(1, true, 0xe4).unwrap();
        assert!(keyboard.take().is_empty());
    }

    #[test]
    fn keys_come_up_when_their_watcher_leaves() {
        let (hands, keyboard, _) = hands();
        hands.key(1, true, 0xff0d).unwrap();
        hands.key(2, false, 0xff0d).unwrap();
        assert_eq!(keyboard.take().len(), 1, "who does not hold a key cannot release it");
        hands.leave(1);
        assert_eq!(keyboard.take(), [[(1, 28, 0)]]);
        for key in 0..100u32 {
            hands.key(1, true, 0x21 + key % 94).unwrap();
        }
        assert!(hands.lock().keys.len() <= KEYS_DOWN_MAX);
    }

    #[test]
    fn what_is_not_taken_is_an_error_and_leaves_nothing_pressed() {
        let (hands, keyboard, touch) = hands();
        let full = |error: InputError| assert_eq!(error, InputError::Full("it"));
        hands.key(1, true, u32::from('a')).unwrap();
        keyboard.take();
        keyboard.has_room(0);
        touch.has_room(0);
        full(hands.key(1, true, u32::from('b')).unwrap_err());
        full(hands.key(1, true, u32::from('@')).unwrap_err());
        full(hands.pointer(1, 1, (10, 20), SCREEN).unwrap_err());
        hands.key(1, false, u32::from('a')).unwrap();
        assert_eq!(keyboard.take(), [[(1, 30, 0)]]);
        // What was never pressed is not lifted.
        hands.key(1, false, u32::from('b')).unwrap();
        hands.pointer(1, 0, (10, 20), SCREEN).unwrap();
        hands.leave(1);
        assert!(keyboard.take().is_empty() && touch.take().is_empty());
    }

    #[test]
    fn a_key_comes_up_though_the_shift_that_was_lifted_for_it_found_no_room() {
        let (hands, keyboard, _) = hands();
        hands.key(1, true, 0xffe1).unwrap();
        keyboard.has_room(1);
        // '7' with Shift: Shift up, 7 down, Shift down again.
        assert_eq!(hands.key(1, true, u32::from('7')), Err(InputError::Full("it")));
        hands.key(1, false, u32::from('7')).unwrap();
        assert_eq!(keyboard.take(), [[(1, 42, 1)], [(1, 42, 0)], [(1, 8, 1)], [(1, 8, 0)]]);
    }
}
