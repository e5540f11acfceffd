use std::time::Instant;

use super::*;
use crate::virtio::Transport;
use crate::virtio::fake_driver::{FakeDriver, Part};

fn touch() -> (FakeDriver<Input>, InputSender) {
    let device = Input::touch(360, 720, &InputOrder::default()).unwrap();
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

/// Waits for an event and offers its buffer again, as Linux does.
fn take(driver: &mut FakeDriver<Input>) -> Vec<u8> {
    let used = driver.wait_used(0);
    driver.add(0, &[Part::In(8)]);
    used.data
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
    let mut driver = FakeDriver::started(Input::keyboard(&InputOrder::default()).unwrap());
    assert_eq!(select(&mut driver, 1, 0), b"Pollux Keyboard");
    let keys = select(&mut driver, 0x11, 1);
    assert_eq!((keys.len(), keys[0], keys[14]), (32, 0xfe, 0xff));
    assert_eq!(select(&mut driver, 0x11, 3), b"");
    assert_eq!(select(&mut driver, 0x11, 0x14), b"", "no repetition");
}

#[test]
fn a_burst_arrives_whole_and_no_faster_than_a_panel_reports() {
    let (mut driver, sender) = touch();
    for _ in 0..8 {
        driver.send(0, &[Part::In(8)]);
    }
    let start = Instant::now();
    for x in 0..40 {
        sender.send(&[(EV_ABS, ABS_MT_POSITION_X, x), (EV_KEY, BTN_TOUCH, 1)]).unwrap();
    }
    for x in 0..40 {
        for expected in [event(EV_ABS, ABS_MT_POSITION_X, x), event(EV_KEY, BTN_TOUCH, 1), event(EV_SYN, 0, 0)] {
            assert_eq!(take(&mut driver), expected);
        }
    }
    assert!(start.elapsed() >= 39 * order::FRAME_GAP);
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
    let idle = Input::keyboard(&InputOrder::default()).unwrap();
    assert_eq!(idle.sender().send(&[(EV_KEY, 30, 1)]), Err(InputError::NotReady("Pollux Keyboard")));
    let (_driver, sender) = touch();
    let refused = |event: Event| (0..100_000).find_map(|_| sender.send(&[event]).err());
    assert_eq!(refused((EV_KEY, BTN_TOUCH, 1)), Some(InputError::Full("Pollux Touch")));
    // The finger that is down can still be lifted; but not for ever.
    sender.send(&[(EV_ABS, ABS_MT_SLOT, 0), (EV_ABS, ABS_MT_TRACKING_ID, -1), (EV_KEY, BTN_TOUCH, 0)]).unwrap();
    assert_eq!(refused((EV_KEY, BTN_TOUCH, 0)), Some(InputError::Full("Pollux Touch")));
}

#[test]
fn small_buffers_break_the_queue_and_status_is_drained() {
    let (mut driver, sender) = touch();
    driver.transact(1, &[Part::Out(&[0; 8])]);
    sender.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
    driver.send(0, &[Part::In(7)]);
    while !driver.needs_reset() {
        std::thread::yield_now();
    }
    assert_eq!(sender.send(&[(EV_KEY, BTN_TOUCH, 1)]), Err(InputError::NotReady("Pollux Touch")));
    assert!(sender.is_drained());
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
    let mut there = driver.moved_to(Input::touch(360, 720, &InputOrder::default()).unwrap());
    assert_eq!(there.config(8, 12), b"Pollux Touch");
    assert_eq!(there.wait_used(0).data, event(EV_KEY, BTN_TOUCH, 1));
    assert_eq!(there.wait_used(0).data, event(EV_SYN, 0, 0));
}

#[test]
fn the_clock_of_devices_stands_still_while_paused() {
    let (driver, _) = touch();
    driver.guest.close_gate();
    let (stopped, start) = (driver.guest.guest_time(), Instant::now());
    while start.elapsed() < order::FRAME_GAP {
        std::thread::yield_now();
    }
    assert_eq!(driver.guest.guest_time(), stopped);
}

/// Keyboard and panel of one machine that is paused, so that the test alone decides what time it is and when devices work.
struct Pair {
    order: InputOrder,
    keyboard: FakeDriver<Input>,
    keys: InputSender,
    panel: FakeDriver<Input>,
    fingers: InputSender,
}

const KEYBOARD: usize = 0;
const PANEL: usize = 1;

impl Pair {
    fn new() -> Self {
        let order = InputOrder::default();
        let (keyboard, panel) = (Input::keyboard(&order).unwrap(), Input::touch(360, 720, &order).unwrap());
        let (keys, fingers) = (keyboard.sender(), panel.sender());
        let (mut keyboard, mut panel) = (FakeDriver::started(keyboard), FakeDriver::started(panel));
        for driver in [&mut keyboard, &mut panel] {
            driver.guest.close_gate();
            for _ in 0..16 {
                driver.add(0, &[Part::In(8)]);
            }
        }
        Self { order, keyboard, keys, panel, fingers }
    }

    fn press(&self, code: u16) {
        self.keys.send(&[(EV_KEY, code, 1)]).unwrap();
    }

    /// The device that something is due for, and in how many milliseconds.
    fn due(&self, now_ms: u64) -> Option<(usize, u64)> {
        let due = |device| Some((device, self.order.due(device, ms(now_ms))?.as_millis() as u64));
        let (keyboard, panel) = (due(KEYBOARD), due(PANEL));
        assert!(keyboard.is_none() || panel.is_none(), "one thread wakes, not two");
        keyboard.or(panel)
    }

    /// Works at a time; gives the codes of the key events and positions that each guest has got by that.
    fn work(&mut self, now_ms: u64) -> (Vec<u16>, Vec<u16>) {
        self.order.deliver(KEYBOARD, ms(now_ms));
        let codes = |driver: &mut FakeDriver<Input>| {
            let used = std::iter::from_fn(|| driver.used(0));
            let code = |used: crate::virtio::fake_driver::Used| u16::from_le_bytes([used.data[2], used.data[3]]);
            used.map(code).filter(|code| *code != SYN_REPORT).collect()
        };
        (codes(&mut self.keyboard), codes(&mut self.panel))
    }

    fn refill(&mut self, device: usize, count: usize) {
        let driver = if device == KEYBOARD { &mut self.keyboard } else { &mut self.panel };
        for _ in 0..count {
            driver.add(0, &[Part::In(8)]);
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_frame_follows_when_the_one_before_is_taken_and_its_time_has_come() {
    let mut pair = Pair::new();
    assert_eq!(pair.due(0), None, "nothing wakes while nothing waits");
    [30, 31, 32].into_iter().for_each(|code| pair.press(code));
    assert_eq!(pair.due(100), Some((KEYBOARD, 0)));
    assert_eq!(pair.work(100), (vec![30], vec![]));
    assert_eq!(pair.due(100), Some((KEYBOARD, 8)));
    assert_eq!(pair.work(107), (vec![], vec![]));
    // The driver has not taken it: no more is given, but it is looked again.
    assert_eq!(pair.work(108), (vec![], vec![]));
    pair.refill(KEYBOARD, 2);
    assert_eq!(pair.due(108), Some((KEYBOARD, 8)));
    assert_eq!(pair.work(116), (vec![31], vec![]));
    // One that never gives its buffers back is not waited for without end.
    assert_eq!(pair.work(1115), (vec![], vec![]));
    assert!(!pair.order.is_drained(ms(1115)));
    assert_eq!(pair.work(1116), (vec![32], vec![]));
    assert_eq!(pair.due(1116), None);
    assert!(!pair.order.is_drained(ms(1200)), "the guest has not taken the last one");
    pair.refill(KEYBOARD, 2);
    assert!(pair.order.is_drained(ms(1200)));
}

#[test]
fn what_was_sent_first_arrives_first_on_whichever_device() {
    let mut pair = Pair::new();
    pair.press(30);
    pair.fingers.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
    pair.press(31);
    assert_eq!(pair.work(0), (vec![30], vec![]));
    pair.refill(KEYBOARD, 2);
    // From one device to the other a hand takes longer, and a program needs it.
    assert_eq!(pair.due(0), Some((PANEL, 50)));
    assert_eq!(pair.work(49), (vec![], vec![]));
    assert_eq!(pair.work(50), (vec![], vec![BTN_TOUCH]));
    pair.refill(PANEL, 2);
    assert_eq!(pair.due(50), Some((KEYBOARD, 50)));
    assert_eq!(pair.work(100), (vec![31], vec![]));
}

#[test]
fn a_position_takes_the_place_of_an_older_one() {
    let mut pair = Pair::new();
    let at = |x| [(EV_ABS, ABS_MT_POSITION_X, x)];
    pair.press(30);
    (0..5).for_each(|x| pair.fingers.send_position(&at(x)).unwrap());
    pair.fingers.send(&[(EV_KEY, BTN_TOUCH, 0)]).unwrap();
    pair.fingers.send_position(&at(9)).unwrap();
    for (now, refilled) in [(0, KEYBOARD), (50, PANEL), (58, PANEL)] {
        pair.order.deliver(PANEL, ms(now));
        pair.refill(refilled, 2);
    }
    pair.order.deliver(PANEL, ms(66));
    let got: Vec<_> = std::iter::from_fn(|| pair.panel.used(0)).map(|used| used.data).collect();
    let syn = || event(EV_SYN, 0, 0);
    let expected = [event(EV_ABS, ABS_MT_POSITION_X, 4), syn(), event(EV_KEY, BTN_TOUCH, 0), syn()];
    assert_eq!(got[..4], expected);
    assert_eq!(got[4..], [event(EV_ABS, ABS_MT_POSITION_X, 9), syn()]);
}

#[test]
fn a_driver_that_breaks_its_queue_does_not_hold_up_the_other_device() {
    let mut pair = Pair::new();
    let keyboard = Input::keyboard(&pair.order).unwrap();
    let sender = keyboard.sender();
    let mut broken = FakeDriver::started(keyboard);
    broken.guest.close_gate();
    broken.add(0, &[Part::In(7)]);
    sender.send(&[(EV_KEY, 30, 1)]).unwrap();
    sender.send(&[(EV_KEY, 30, 0)]).unwrap();
    pair.fingers.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
    assert_eq!(pair.work(0), (vec![], vec![]));
    assert!(broken.needs_reset());
    assert_eq!(pair.work(1), (vec![], vec![BTN_TOUCH]));
}

#[test]
fn both_devices_move_with_their_frames_in_order() {
    let pair = Pair::new();
    pair.press(30);
    pair.fingers.send(&[(EV_KEY, BTN_TOUCH, 1)]).unwrap();
    pair.press(31);
    let order = InputOrder::default();
    let (keyboard, panel) = (Input::keyboard(&order).unwrap(), Input::touch(360, 720, &order).unwrap());
    let (keys, fingers) = (keyboard.sender(), panel.sender());
    // The panel first: what counts is when it was sent.
    let panel = still_paused(pair.panel, panel);
    let keyboard = still_paused(pair.keyboard, keyboard);
    let mut pair = Pair { order, keyboard, keys, panel, fingers };
    pair.press(32);
    assert_eq!(pair.work(0), (vec![30], vec![]));
    pair.refill(KEYBOARD, 2);
    assert_eq!(pair.work(50), (vec![], vec![BTN_TOUCH]));
    pair.refill(PANEL, 2);
    assert_eq!(pair.work(100), (vec![31], vec![]));
    pair.refill(KEYBOARD, 2);
    assert_eq!(pair.work(108), (vec![32], vec![]));
}

/// Moves to a machine that does not run yet.
fn still_paused(old: FakeDriver<Input>, device: Input) -> FakeDriver<Input> {
    let state = old.transport.save();
    let mut there = FakeDriver::on(old.ram(), device);
    there.guest.close_gate();
    there.inherit(old);
    there.transport.restore(&state).unwrap();
    there
}
