//! What is noticed of the modems becomes what is told: a pure core, without clock, bus or disk.
//!
//! A modem's properties change one by one, and what they say together holds only when they have settled: a new operator
//! with the old cell is no place where the phone ever was. So a change is told [`SETTLES_US`] after it began, or at once
//! when a call or a message needs to be placed.
//!
//! ```text
//! a call:  dialing ─┐
//!                   ├─▶ active ◀─▶ held ──▶ ended ──network lost soon after──▶ ended, dropped
//!          ringing ─┘  (anything) ──the daemon goes away──▶ unfinished ──it is back, same call──▶ any
//! ```
//!
//! **Dropped** is a call that had been answered and ended by the modem's error, with the modem itself, or within
//! [`LOSS_US`] after the network was lost; or before it was lost, if nobody knew why: modems report the end of such a call
//! like that of any other, but say so when somebody hung up.

use std::collections::{BTreeMap, VecDeque};

use sync_protocol::stack::{
    Call, CallEnd, CallState, Direction, Position, Radio, Registration, Stack, TextMessage, Tower,
};

/// How long a modem's properties may take to agree.
pub(super) const SETTLES_US: u64 = 1_000_000;
/// How far apart a call's end and the loss of the network may be noticed when one is the other's cause. Modems give up
/// a radio link after some five seconds without one (3GPP TS 36.331, T310 and T311).
const LOSS_US: u64 = 10_000_000;
/// A signal that moves by less is told with the next change of something else.
const SIGNAL_STEP_PERCENT: u32 = 10;
/// Modems of one phone.
const MODEMS_MAX: usize = 8;
/// Calls of one phone at a time: networks have seven, and a daemon may keep some that ended.
const CALLS_MAX: usize = 64;
/// Calls that ended lately, which a lost network may have cut off.
const ENDED_MAX: usize = 8;

/// What was noticed. Modems are named as in events.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Notice {
    /// Some of a modem's properties; the first notice of a modem makes it known.
    Modem(String, Vec<Property>),
    ModemGone(String),
    Call {
        call: String,
        modem: String,
        direction: Direction,
        party: String,
        state: CallState,
        end: CallEnd,
    },
    CallState {
        call: String,
        state: CallState,
        end: CallEnd,
    },
    Message(TextMessage),
    /// Nothing is known of any modem any more: their daemon, or the way to it, went away.
    DaemonGone,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Property {
    Registration(Registration),
    OperatorCode(String),
    OperatorName(String),
    Technologies(u32),
    SignalPercent(u32),
    /// Both as the modem's location interface gives them.
    Place(Tower, Option<Position>),
}

#[derive(Default)]
pub(super) struct Follower {
    modems: BTreeMap<String, Modem>,
    /// Those that go on.
    calls: BTreeMap<String, Going>,
    /// With when they ended, since boot.
    ended: VecDeque<(u64, Call)>,
}

struct Modem {
    now: Radio,
    told: Option<Radio>,
    /// When what changed is to be told, since boot.
    due_us: Option<u64>,
    /// When the network was lost, since boot.
    lost_us: Option<u64>,
}

struct Going {
    call: Call,
    was_answered: bool,
}

impl Follower {
    /// What is to be told now that `notice` came at `now_us`, microseconds since boot.
    pub(super) fn take(&mut self, notice: Notice, now_us: u64) -> Vec<Stack> {
        match notice {
            Notice::Modem(name, properties) => self.modem_changed(name, properties, now_us),
            Notice::ModemGone(name) => self.modem_gone(&name, now_us),
            Notice::Call {
                call,
                modem,
                direction,
                party,
                state,
                end,
            } => {
                let call = Call {
                    call,
                    modem,
                    direction,
                    party,
                    state,
                    end,
                    dropped: false,
                };
                self.call_began(call, now_us)
            }
            Notice::CallState { call, state, end } => {
                let mut told = self.settle_all();
                told.extend(self.call_changed(&call, state, end, now_us));
                told
            }
            Notice::Message(message) => {
                let mut told = self.settle_all();
                told.push(Stack::Message(message));
                told
            }
            Notice::DaemonGone => {
                let mut told = self.give_up_calls();
                for name in self.modems.keys().cloned().collect::<Vec<_>>() {
                    told.extend(self.modem_gone(&name, now_us));
                }
                told
            }
        }
    }

    /// When [`Follower::tick`] is wanted, since boot.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.modems.values().filter_map(|modem| modem.due_us).min()
    }

    /// What has settled by `now_us`.
    pub(super) fn tick(&mut self, now_us: u64) -> Vec<Stack> {
        let due = self
            .modems
            .values_mut()
            .filter(|modem| modem.due_us.is_some_and(|due| due <= now_us));
        due.filter_map(Modem::settle).collect()
    }

    /// What is known of modems whatever has settled: a call or message must not be placed where the phone was before.
    fn settle_all(&mut self) -> Vec<Stack> {
        self.modems.values_mut().filter_map(Modem::settle).collect()
    }

    fn modem_changed(
        &mut self,
        name: String,
        properties: Vec<Property>,
        now_us: u64,
    ) -> Vec<Stack> {
        if !self.modems.contains_key(&name) && self.modems.len() >= MODEMS_MAX {
            return Vec::new();
        }
        let modem = self
            .modems
            .entry(name.clone())
            .or_insert_with(|| Modem::new(name.clone()));
        let was_served = is_served(modem.now.registration);
        for property in properties {
            modem.set(property);
        }
        if modem.differs() {
            modem.due_us.get_or_insert(now_us + SETTLES_US);
        }
        match (was_served, is_served(modem.now.registration)) {
            (true, false) => {
                modem.lost_us = Some(now_us);
                self.cut_off(&name, now_us)
            }
            (_, true) => {
                modem.lost_us = None;
                Vec::new()
            }
            (false, false) => Vec::new(),
        }
    }

    /// Calls that ended shortly before the network was lost were dropped.
    fn cut_off(&mut self, modem: &str, now_us: u64) -> Vec<Stack> {
        let mut told = Vec::new();
        for (ended_us, call) in &mut self.ended {
            let is_unexplained = call.modem == modem && call.end == CallEnd::Unspecified;
            if is_unexplained && !call.dropped && now_us.saturating_sub(*ended_us) <= LOSS_US {
                call.dropped = true;
                told.push(Stack::Call(call.clone()));
            }
        }
        told
    }

    fn modem_gone(&mut self, name: &str, now_us: u64) -> Vec<Stack> {
        let with_it = self.calls.values().filter(|going| going.call.modem == name);
        let with_it: Vec<_> = with_it.map(|going| going.call.call.clone()).collect();
        let mut told = Vec::new();
        for call in with_it {
            told.extend(self.call_changed(&call, CallState::Ended, CallEnd::ModemGone, now_us));
        }
        if self.modems.remove(name).is_some() {
            let gone = Radio {
                modem: name.to_owned(),
                registration: Registration::Gone,
                ..Radio::default()
            };
            told.push(Stack::Radio(gone));
        }
        told
    }

    fn give_up_calls(&mut self) -> Vec<Stack> {
        let calls = std::mem::take(&mut self.calls).into_values();
        calls
            .filter(|going| going.call.state != CallState::Unspecified)
            .map(|mut going| {
                going.call.state = CallState::Unfinished;
                Stack::Call(going.call)
            })
            .collect()
    }

    fn call_began(&mut self, call: Call, now_us: u64) -> Vec<Stack> {
        if self.calls.contains_key(&call.call)
            || self.calls.len() >= CALLS_MAX
            || call.state == CallState::Ended
        {
            return Vec::new();
        }
        let mut told = self.settle_all();
        let (name, state, end) = (call.call.clone(), call.state, call.end);
        let going = Going {
            call: Call {
                state: CallState::Unspecified,
                ..call
            },
            was_answered: false,
        };
        self.calls.insert(name.clone(), going);
        told.extend(self.call_changed(&name, state, end, now_us));
        told
    }

    fn call_changed(
        &mut self,
        name: &str,
        state: CallState,
        end: CallEnd,
        now_us: u64,
    ) -> Option<Stack> {
        let going = self.calls.get_mut(name)?;
        if going.call.state == state || state == CallState::Unspecified {
            return None;
        }
        if going.call.state == CallState::Unspecified && state == CallState::Ended {
            // It was prepared, and never made.
            self.calls.remove(name);
            return None;
        }
        going.call.state = state;
        going.was_answered |= matches!(state, CallState::Active | CallState::Held);
        if state != CallState::Ended {
            return Some(Stack::Call(going.call.clone()));
        }
        let Going {
            mut call,
            was_answered,
        } = self.calls.remove(name)?;
        call.end = end;
        let lost_us = self.modems.get(&call.modem).and_then(|modem| modem.lost_us);
        let is_cut_off = lost_us.is_some_and(|lost| now_us.saturating_sub(lost) <= LOSS_US);
        let has_failed = matches!(end, CallEnd::Error | CallEnd::ModemGone);
        call.dropped = was_answered && (has_failed || is_cut_off);
        if was_answered {
            self.ended.push_back((now_us, call.clone()));
            self.ended
                .drain(..self.ended.len().saturating_sub(ENDED_MAX));
        }
        Some(Stack::Call(call))
    }
}

impl Modem {
    fn new(name: String) -> Self {
        let now = Radio {
            modem: name,
            registration: Registration::None,
            ..Radio::default()
        };
        Self {
            now,
            told: None,
            due_us: None,
            lost_us: None,
        }
    }

    fn set(&mut self, property: Property) {
        let now = &mut self.now;
        match property {
            Property::Registration(registration) => now.registration = registration,
            Property::OperatorCode(code) => now.operator_code = code,
            Property::OperatorName(name) => now.operator_name = name,
            Property::Technologies(technologies) => now.technologies = technologies,
            Property::SignalPercent(percent) => now.signal_percent = percent,
            Property::Place(tower, position) => (now.tower, now.position) = (tower, position),
        }
    }

    /// Whether there is something to tell.
    fn differs(&self) -> bool {
        let Some(told) = &self.told else {
            return true;
        };
        let but_for_signal = Radio {
            signal_percent: told.signal_percent,
            ..self.now.clone()
        };
        but_for_signal != *told
            || self.now.signal_percent.abs_diff(told.signal_percent) >= SIGNAL_STEP_PERCENT
    }

    fn settle(&mut self) -> Option<Stack> {
        self.due_us = None;
        self.differs().then(|| {
            self.told = Some(self.now.clone());
            Stack::Radio(self.now.clone())
        })
    }
}

fn is_served(registration: Registration) -> bool {
    matches!(registration, Registration::Home | Registration::Roaming)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn served() -> Notice {
        let properties = vec![
            Property::Registration(Registration::Home),
            Property::OperatorCode("26201".into()),
            Property::SignalPercent(60),
        ];
        Notice::Modem("m".into(), properties)
    }

    fn registration(registration: Registration) -> Notice {
        Notice::Modem("m".into(), vec![Property::Registration(registration)])
    }

    fn ringing() -> Notice {
        Notice::Call {
            call: "c".into(),
            modem: "m".into(),
            direction: Direction::In,
            party: "110".into(),
            state: CallState::Ringing,
            end: CallEnd::Unspecified,
        }
    }

    fn state(state: CallState, end: CallEnd) -> Notice {
        Notice::CallState {
            call: "c".into(),
            state,
            end,
        }
    }

    /// Takes notices a second apart and gives the last call told, if any was.
    fn last_call(notices: impl IntoIterator<Item = Notice>) -> Option<Call> {
        let mut follower = Follower::default();
        let told = notices
            .into_iter()
            .zip(1..)
            .flat_map(|(notice, second)| follower.take(notice, second * SECOND))
            .collect::<Vec<_>>();
        told.into_iter().rev().find_map(|stack| match stack {
            Stack::Call(call) => Some(call),
            _ => None,
        })
    }

    #[test]
    fn what_changes_together_is_told_together() {
        let mut follower = Follower::default();
        assert_eq!(follower.take(served(), 0), []);
        assert_eq!(follower.due_us(), Some(SETTLES_US));
        let tower = Tower {
            lac: 1,
            tac: 2,
            cell: 3,
        };
        let place = Notice::Modem("m".into(), vec![Property::Place(tower, None)]);
        assert_eq!(follower.take(place, SETTLES_US / 2), []);
        assert_eq!(follower.tick(SETTLES_US - 1), []);
        let told = follower.tick(SETTLES_US);
        assert!(
            matches!(&told[..], [Stack::Radio(radio)] if radio.tower == tower && radio.mnc() == "01"),
            "{told:?}"
        );
        assert_eq!(follower.due_us(), None);
    }

    #[test]
    fn a_signal_is_told_when_it_has_moved() {
        let mut follower = Follower::default();
        follower.take(served(), 0);
        follower.tick(SETTLES_US);
        let signal = |percent| Notice::Modem("m".into(), vec![Property::SignalPercent(percent)]);
        follower.take(signal(55), SETTLES_US);
        assert_eq!(follower.due_us(), None);
        follower.take(signal(50), SETTLES_US);
        assert_eq!(follower.tick(2 * SETTLES_US).len(), 1);
        // Back before it was told: nothing happened.
        follower.take(signal(90), 2 * SETTLES_US);
        follower.take(signal(50), 2 * SETTLES_US);
        assert_eq!(follower.tick(3 * SETTLES_US), []);
    }

    #[test]
    fn a_call_is_placed_where_the_phone_is() {
        let mut follower = Follower::default();
        follower.take(served(), 0);
        let told = follower.take(ringing(), 1);
        assert!(
            matches!(&told[..], [Stack::Radio(_), Stack::Call(call)] if call.state == CallState::Ringing),
            "{told:?}"
        );
        assert_eq!(follower.take(ringing(), 2), []);
    }

    #[test]
    fn a_call_that_somebody_ended_was_not_dropped() {
        let active = state(CallState::Active, CallEnd::Unspecified);
        let ended = state(CallState::Ended, CallEnd::Terminated);
        let told = last_call([served(), ringing(), active, ended]).unwrap();
        assert_eq!((told.state, told.dropped), (CallState::Ended, false));
    }

    #[test]
    fn a_call_is_dropped_by_an_error_a_lost_network_or_a_lost_modem() {
        let active = || state(CallState::Active, CallEnd::Unspecified);
        let ended = |end| state(CallState::Ended, end);
        let lost = || registration(Registration::None);
        let ways: [Vec<Notice>; 4] = [
            vec![ended(CallEnd::Error)],
            vec![lost(), ended(CallEnd::Terminated)],
            vec![ended(CallEnd::Unspecified), lost()],
            vec![Notice::ModemGone("m".into())],
        ];
        for way in ways {
            let all = [served(), ringing(), active()].into_iter();
            let told = last_call(all.chain(way.clone())).unwrap();
            assert_eq!(
                (told.state, told.dropped),
                (CallState::Ended, true),
                "{way:?}"
            );
            // One that nobody answered was not.
            let told = last_call([served(), ringing()].into_iter().chain(way.clone())).unwrap();
            assert_eq!(
                (told.state, told.dropped),
                (CallState::Ended, false),
                "{way:?}"
            );
        }
    }

    #[test]
    fn a_network_that_was_lost_long_after_or_is_back_dropped_nothing() {
        let mut follower = Follower::default();
        let active = state(CallState::Active, CallEnd::Unspecified);
        let ended = state(CallState::Ended, CallEnd::Unspecified);
        for notice in [served(), ringing(), active.clone(), ended.clone()] {
            follower.take(notice, 0);
        }
        assert_eq!(
            follower.take(registration(Registration::None), LOSS_US + 1),
            []
        );
        let back = registration(Registration::Home);
        let lost = registration(Registration::Denied);
        let told = last_call([
            served(),
            ringing(),
            active.clone(),
            lost.clone(),
            back,
            ended,
        ]);
        assert!(!told.unwrap().dropped);
        // Somebody had hung up before.
        let hung_up = state(CallState::Ended, CallEnd::Terminated);
        let told = last_call([served(), ringing(), active, hung_up, lost]);
        assert!(!told.unwrap().dropped);
    }

    #[test]
    fn without_its_daemon_a_call_is_unfinished_and_can_be_taken_up_again() {
        let told = last_call([served(), ringing(), Notice::DaemonGone]).unwrap();
        assert_eq!(told.state, CallState::Unfinished);
        let told = last_call([ringing(), Notice::DaemonGone, ringing()]).unwrap();
        assert_eq!(told.state, CallState::Ringing);
    }

    #[test]
    fn a_call_that_was_never_made_is_not_told() {
        let prepared = Notice::Call {
            call: "c".into(),
            modem: "m".into(),
            direction: Direction::Out,
            party: "110".into(),
            state: CallState::Unspecified,
            end: CallEnd::Unspecified,
        };
        for end in [
            state(CallState::Ended, CallEnd::Terminated),
            Notice::DaemonGone,
            Notice::ModemGone("m".into()),
        ] {
            assert_eq!(last_call([served(), prepared.clone(), end]), None);
        }
        let dialing = state(CallState::Dialing, CallEnd::Unspecified);
        assert!(last_call([prepared, dialing]).is_some());
    }

    #[test]
    fn modems_and_calls_are_bounded() {
        let mut follower = Follower::default();
        for number in 0..100 {
            follower.take(Notice::Modem(format!("m{number}"), Vec::new()), 0);
            let call = Notice::Call {
                call: format!("c{number}"),
                modem: "m0".into(),
                direction: Direction::Out,
                party: String::new(),
                state: CallState::Dialing,
                end: CallEnd::Unspecified,
            };
            follower.take(call, 0);
        }
        assert_eq!(
            (follower.modems.len(), follower.calls.len()),
            (MODEMS_MAX, CALLS_MAX)
        );
    }
}
