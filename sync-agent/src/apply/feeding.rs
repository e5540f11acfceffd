//! The pace of an operator's hand on the phone: frames wait here until the phone's programs had time to read those
//! before. Pure: time comes as an argument.
//!
//! evdev keeps 64 events of a keyboard for each program that reads it, and throws all of them away when another comes.

use std::collections::VecDeque;
use std::time::Duration;

use sync_protocol::event::{Frame, MmiDevice};
use tokio::time::Instant;

/// Between two frames of one device: as often as a keyboard on USB is polled and a panel scans.
const FRAME_GAP: Duration = Duration::from_millis(8);
/// Between frames of keyboard and panel: a program that waits for both cannot tell which came first.
const DEVICE_GAP: Duration = Duration::from_millis(50);

/// Batches of frames, each with whom to tell when it is done.
pub(crate) struct Feeding<R> {
    batches: VecDeque<(VecDeque<Frame>, R)>,
    /// When the last frame went, and whether to the keyboard.
    last: Option<(Instant, bool)>,
}

impl<R> Feeding<R> {
    pub(crate) fn new() -> Self {
        Self {
            batches: VecDeque::new(),
            last: None,
        }
    }

    pub(crate) fn add(&mut self, frames: Vec<Frame>, reply: R) {
        self.batches.push_back((frames.into(), reply));
    }

    /// How long until the next frame may go; none if nothing waits.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let next = self.batches.front()?.0.front();
        Some(match (next, self.last) {
            (Some(next), Some((at, keyboard))) => {
                let gap = if is_keyboard(next) == keyboard {
                    FRAME_GAP
                } else {
                    DEVICE_GAP
                };
                (at + gap).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        })
    }

    /// The next frame, if its time has come. Tell with [`Feeding::gave`] what became of it.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Frame> {
        self.wait(now).filter(Duration::is_zero)?;
        let frame = self.batches.front_mut()?.0.pop_front()?;
        self.last = Some((now, is_keyboard(&frame)));
        Some(frame)
    }

    /// Whom to tell that a batch is done; or, if a frame failed, that it is given up.
    pub(crate) fn gave(&mut self, failed: bool) -> Option<R> {
        let is_done = failed || self.batches.front()?.0.is_empty();
        self.batches
            .pop_front_if(|_| is_done)
            .map(|(_, reply)| reply)
    }

    /// Gives up everything; whom to tell.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = R> {
        self.batches.drain(..).map(|(_, reply)| reply)
    }
}

fn is_keyboard(frame: &Frame) -> bool {
    matches!(frame.device, MmiDevice::Keyboard | MmiDevice::Unspecified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(device: MmiDevice) -> Frame {
        Frame {
            device,
            device_id: 0,
            events: Vec::new(),
            x_max: 0,
            y_max: 0,
        }
    }

    #[test]
    fn frames_go_at_the_pace_of_a_hand_and_batches_are_answered_in_turn() {
        use MmiDevice::{Keyboard, Touch};
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut feeding = Feeding::new();
        assert_eq!(feeding.wait(at(0)), None);
        feeding.add(vec![frame(Keyboard), frame(Keyboard), frame(Touch)], 'a');
        feeding.add(vec![frame(Touch)], 'b');
        // When, to which device, and whose batch is done then.
        let expected = [
            (0, Keyboard, None),
            (8, Keyboard, None),
            (58, Touch, Some('a')),
            (66, Touch, Some('b')),
        ];
        for (ms, device, done) in expected {
            if let Some(before) = u64::checked_sub(ms, 1) {
                assert_eq!(feeding.wait(at(before)), Some(Duration::from_millis(1)));
                assert_eq!(feeding.next(at(before)), None);
            }
            assert_eq!(feeding.next(at(ms)).map(|frame| frame.device), Some(device));
            assert_eq!(feeding.gave(false), done);
        }
        assert_eq!(feeding.wait(at(66)), None);
    }

    #[test]
    fn what_fails_is_given_up_whole_and_the_rest_on_request() {
        let now = Instant::now();
        let mut feeding = Feeding::new();
        feeding.add(vec![frame(MmiDevice::Touch), frame(MmiDevice::Touch)], 'a');
        feeding.add(vec![], 'b');
        feeding.add(vec![frame(MmiDevice::Touch)], 'c');
        assert!(feeding.next(now).is_some());
        assert_eq!(feeding.gave(true), Some('a'));
        // Nothing to give is done at once.
        assert_eq!(feeding.wait(now), Some(Duration::ZERO));
        assert_eq!(feeding.next(now), None);
        assert_eq!(feeding.gave(false), Some('b'));
        assert_eq!(feeding.give_up().collect::<Vec<_>>(), ['c']);
        assert_eq!(feeding.wait(now), None);
    }
}
