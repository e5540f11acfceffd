//! What replaying one event means: pure decisions, no clock, no machine.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sync_protocol::event::{ControlKind, Event, Frame, Kind, Origin};

/// Least time between two frames of input: an emulated guest must drain its queue before the next comes.
const GAP_MIN: Duration = Duration::from_millis(4);
/// Longest pause that is kept while a key or finger is down: a long press stays one.
const GAP_HELD_MAX: Duration = Duration::from_millis(1200);
/// Longest pause that is kept otherwise: two taps stay two, and a twin that lags catches up.
const GAP_FREE_MAX: Duration = Duration::from_millis(150);
/// Longest pause that a guest goes through from one of its timers to the next; of a longer one its wall clock is set forward.
const PASSED_US_MAX: u64 = 10 * 60 * 1_000_000;
/// Input that a twin is given before it shows what the phone does; beyond, it begins with the phone's files alone.
pub(super) const INPUT_REPLAYED_MAX: usize = 20_000;

/// What a phone's events have told so far about where a twin may begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    /// The phone's first scan ended here: from here on its files are known completely.
    pub complete_at: Option<u64>,
    /// The phone's present boot began here.
    pub boot_at: Option<u64>,
    boot_id: Option<String>,
    /// Frames of input since that boot.
    pub frames: usize,
}

impl Origins {
    pub fn saw(&mut self, position: u64, event: &Event) {
        match &event.kind {
            Kind::Control(control) if control.kind == ControlKind::ScanDone => {
                self.complete_at.get_or_insert(position);
            }
            Kind::Control(control) if control.kind == ControlKind::Started => {
                let boot_id = boot_id(&control.text);
                // An agent that was only restarted does not change what the phone shows.
                if self.boot_at.is_none() || boot_id.is_none() || boot_id != self.boot_id {
                    self.boot_at = Some(position);
                    self.frames = 0;
                }
                self.boot_id = boot_id;
            }
            Kind::Mmi(_) => self.frames += 1,
            _ => {}
        }
    }

    /// Where a fresh twin begins, if it may: the position of its files, and that from which input is replayed.
    pub fn beginning(&self, last: u64) -> Option<Beginning> {
        let complete = self.complete_at?;
        let boot = self.boot_at.unwrap_or(1);
        let boot_id = self.boot_id.clone();
        if self.frames > INPUT_REPLAYED_MAX {
            return Some(Beginning { files: last, input: last + 1, boot_id });
        }
        Some(Beginning { files: complete.max(boot), input: boot, boot_id })
    }
}

/// Where a twin that boots anew begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Its flash is as of this position.
    pub files: u64,
    /// Input from this position on is given to it.
    pub input: u64,
    /// The phone's boot that it begins with, as far as known.
    pub boot_id: Option<String>,
}

/// The phone's boot that an event tells of, if it is an agent's start.
pub(super) fn boot_of(event: &Event) -> Option<String> {
    match &event.kind {
        Kind::Control(control) if control.kind == ControlKind::Started => boot_id(&control.text),
        _ => None,
    }
}

/// The last word of an agent's start message is the phone's boot id.
fn boot_id(text: &str) -> Option<String> {
    text.split_whitespace().next_back().filter(|word| word.len() >= 8).map(str::to_owned)
}

/// The wall clock of a machine's guest: what it showed when the machine's own clock, which stands still while the machine does, showed
/// what. In microseconds, of which the wall clock's count from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClock {
    pub wall_us: i64,
    pub guest_us: u64,
}

/// How a guest comes to the time at which its phone did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passage {
    /// Its machine's clock is to come here, by passing over the times in which it is idle.
    pub(super) until_us: u64,
    /// Its wall clock is to be set then.
    pub(super) jumps: bool,
}

impl GuestClock {
    /// From now, when the machine's clock shows `now_us`, to `wall_us` on the phone's, but not before `earliest_us` on the machine's.
    pub(super) fn passage(self, now_us: u64, wall_us: i64, earliest_us: u64) -> Passage {
        let since = u64::try_from(wall_us.saturating_sub(self.wall_us)).unwrap_or(0);
        let wanted_us = self.guest_us.saturating_add(since).max(earliest_us);
        let until_us = wanted_us.min(now_us.saturating_add(PASSED_US_MAX)).max(earliest_us);
        Passage { until_us, jumps: wanted_us > until_us }
    }

    /// What it shows when the machine's clock shows `guest_us`.
    pub(super) fn shows(self, guest_us: u64) -> i64 {
        self.wall_us.saturating_add(i64::try_from(guest_us.saturating_sub(self.guest_us)).unwrap_or(i64::MAX))
    }
}

/// When something was done, by the clock of who did it: the phone's counts from its boot, ours from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    origin: Origin,
    us: u64,
}

impl Moment {
    pub(super) fn of(event: &Event) -> Moment {
        let us = match event.origin {
            Origin::Phone => event.mono_us,
            _ => u64::try_from(event.wall_us).unwrap_or(0),
        };
        Moment { origin: event.origin, us }
    }
}

/// The rhythm in which a twin is given input.
#[derive(Debug, Default)]
pub(super) struct Rhythm {
    last: Option<Moment>,
    /// Keys and fingers that are down.
    held: HashSet<u32>,
}

impl Rhythm {
    /// How long to wait before giving a frame of `moment`, when the one before was given `since` ago. A twin that lags keeps the phone's
    /// rhythm but shortens its pauses.
    pub(super) fn pause(&self, moment: Moment, since: Duration) -> Duration {
        let gap = match self.last {
            // A reboot turns the phone's clock back.
            Some(last) if last.origin == moment.origin => Duration::from_micros(moment.us.saturating_sub(last.us)),
            _ => Duration::ZERO,
        };
        let longest = if self.held.is_empty() { GAP_FREE_MAX } else { GAP_HELD_MAX };
        gap.clamp(GAP_MIN, longest).saturating_sub(since)
    }

    /// A frame of `moment` was given.
    pub(super) fn gave(&mut self, moment: Moment, frame: &Frame) {
        const EV_KEY: u32 = 1;
        self.last = Some(moment);
        for event in frame.events.iter().filter(|event| event.r#type == EV_KEY) {
            match event.value {
                0 => self.held.remove(&event.code),
                _ => self.held.insert(event.code),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_protocol::event::Control;

    fn control(kind: ControlKind, text: &str) -> Event {
        let control = Control { kind, text: text.into(), path: None, count: 0 };
        Event { seq: 1, wall_us: 0, mono_us: 0, origin: Origin::Phone, kind: Kind::Control(control) }
    }

    fn frame() -> Event {
        let kind = Kind::Mmi(crate::input::touch_up());
        Event { seq: 1, wall_us: 0, mono_us: 0, origin: Origin::Phone, kind }
    }

    const BOOT: &str = "0.1.0 boot 11111111-aaaa";
    const OTHER_BOOT: &str = "0.1.0 boot 22222222-bbbb";

    #[test]
    fn a_twin_waits_for_the_first_scan_and_then_begins_at_the_phones_boot() {
        let mut origins = Origins::default();
        origins.saw(1, &control(ControlKind::Started, BOOT));
        origins.saw(2, &frame());
        assert_eq!(origins.beginning(2), None);
        origins.saw(9, &control(ControlKind::ScanDone, ""));
        let first = Beginning { files: 9, input: 1, boot_id: Some("11111111-aaaa".into()) };
        assert_eq!(origins.beginning(9).as_ref(), Some(&first));
        origins.saw(20, &control(ControlKind::ScanDone, ""));
        assert_eq!(origins.beginning(20).as_ref(), Some(&first));
        origins.saw(30, &control(ControlKind::Started, BOOT));
        assert_eq!(origins.beginning(30).as_ref(), Some(&first));
        origins.saw(40, &control(ControlKind::Started, OTHER_BOOT));
        let second = Beginning { files: 40, input: 40, boot_id: Some("22222222-bbbb".into()) };
        assert_eq!(origins.beginning(40), Some(second));
    }

    #[test]
    fn too_much_input_is_not_replayed() {
        let mut origins = Origins::default();
        origins.saw(1, &control(ControlKind::Started, BOOT));
        origins.saw(2, &control(ControlKind::ScanDone, ""));
        for position in 3..3 + INPUT_REPLAYED_MAX as u64 + 1 {
            origins.saw(position, &frame());
        }
        let files_only = origins.beginning(99_999).expect("a beginning");
        assert_eq!((files_only.files, files_only.input), (99_999, 100_000));
    }

    #[test]
    fn a_guest_goes_through_pauses_and_jumps_over_long_ones() {
        const S: u64 = 1_000_000;
        let clock = GuestClock { wall_us: 5_000 * S as i64, guest_us: 2 * S };
        assert_eq!(clock.passage(3 * S, 5_060 * S as i64, 0), Passage { until_us: 62 * S, jumps: false });
        // It is there already, or not before the rhythm lets it be.
        assert_eq!(clock.passage(70 * S, 5_060 * S as i64, 70 * S), Passage { until_us: 70 * S, jumps: false });
        assert_eq!(clock.passage(70 * S, 0, 71 * S), Passage { until_us: 71 * S, jumps: false });
        assert_eq!(clock.passage(3 * S, 9_000 * S as i64, 0), Passage { until_us: 603 * S, jumps: true });
        assert_eq!(clock.passage(3 * S, i64::MAX, u64::MAX), Passage { until_us: u64::MAX, jumps: false });
        assert_eq!(clock.shows(62 * S), 5_060 * S as i64);
        assert_eq!(clock.shows(0), 5_000 * S as i64);
    }

    #[test]
    fn the_phones_rhythm_is_kept_within_bounds() {
        let ms = Duration::from_millis;
        let phone = |us| Moment { origin: Origin::Phone, us };
        let ours = |us| Moment { origin: Origin::Helpdesk, us };
        let mut rhythm = Rhythm::default();
        assert_eq!(rhythm.pause(phone(5_000_000), ms(0)), GAP_MIN);
        rhythm.gave(phone(0), &crate::input::touch_up());
        assert_eq!(rhythm.pause(phone(80_000), ms(0)), ms(80));
        assert_eq!(rhythm.pause(phone(80_000), ms(30)), ms(50));
        assert_eq!(rhythm.pause(phone(80_000), ms(200)), ms(0));
        assert_eq!(rhythm.pause(phone(3_600_000_000), ms(0)), GAP_FREE_MAX);
        assert_eq!(rhythm.pause(ours(u64::MAX), ms(0)), GAP_MIN);
        // Held down: a long press stays long.
        rhythm.gave(phone(0), &crate::input::key(30, true));
        assert_eq!(rhythm.pause(phone(900_000), ms(0)), ms(900));
        assert_eq!(rhythm.pause(phone(3_600_000_000), ms(0)), GAP_HELD_MAX);
        rhythm.gave(phone(900_000), &crate::input::key(30, false));
        assert_eq!(rhythm.pause(phone(0), ms(0)), GAP_MIN);
    }
}
