//! What the stack control point tells, as typed values: a modem's place in the network, calls, short messages.
//!
//! Unlike other enums of events, one that this contract does not know is an error here: a call in an unknown state would
//! be counted wrongly.

use crate::event::{EventError, check_count};
use crate::limits::{
    CALL_NAME_BYTES_MAX, MODEM_BYTES_MAX, NETWORK_TIME_BYTES_MAX, OPERATOR_NAME_BYTES_MAX,
    PARTY_BYTES_MAX,
};
use crate::wire;

pub use crate::wire::{CallEnd, CallState, Direction, Position, Registration};

#[derive(Clone, Debug, PartialEq)]
pub enum Stack {
    Radio(Radio),
    Call(Call),
    Message(TextMessage),
}

/// A modem's place in the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Radio {
    pub modem: String,
    pub registration: Registration,
    /// MCC and MNC, five or six digits; empty if unknown.
    pub operator_code: String,
    pub operator_name: String,
    /// Bits of MMModemAccessTechnology.
    pub technologies: u32,
    /// 0 to 100.
    pub signal_percent: u32,
    pub tower: Tower,
    pub position: Option<Position>,
}

/// What identifies a cell within its network (3GPP TS 23.003); 0 where unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tower {
    pub lac: u32,
    pub tac: u32,
    pub cell: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names it, on its phone for good.
    pub call: String,
    pub modem: String,
    pub direction: Direction,
    /// Empty if it is withheld.
    pub party: String,
    pub state: CallState,
    /// Of an ended call.
    pub end: CallEnd,
    /// Answered, and cut off by the network.
    pub dropped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextMessage {
    pub modem: String,
    pub direction: Direction,
    pub party: String,
    pub size_bytes: u64,
    /// ISO 8601; empty if there is none.
    pub network_time: String,
}

impl Radio {
    /// Mobile country code, three digits; empty if unknown.
    pub fn mcc(&self) -> &str {
        self.operator_code.get(..3).unwrap_or_default()
    }

    /// Mobile network code, two or three digits; empty if unknown.
    pub fn mnc(&self) -> &str {
        self.operator_code.get(3..).unwrap_or_default()
    }
}

/// The newest generation among `technologies` (bits of MMModemAccessTechnology), as people call it; empty if unknown.
pub fn technology_name(technologies: u32) -> &'static str {
    const NEWEST_FIRST: [(u32, &str); 5] = [
        (1 << 15, "5G"),
        (1 << 14 | 1 << 16 | 1 << 17, "4G"),
        // UMTS and its HSPAs, CDMA2000 and its EV-DOs.
        (0x1ff << 5, "3G"),
        (1 << 4 | 1 << 3, "2.5G"),
        (1 << 2 | 1 << 1, "2G"),
    ];
    let found = NEWEST_FIRST
        .iter()
        .find(|(bits, _)| technologies & bits != 0);
    found.map_or("", |(_, name)| name)
}

/// Whether `code` is an MCC and an MNC: five or six digits.
pub fn is_operator_code(code: &str) -> bool {
    matches!(code.len(), 5 | 6) && code.bytes().all(|byte| byte.is_ascii_digit())
}

impl TryFrom<wire::Stack> for Stack {
    type Error = EventError;

    fn try_from(stack: wire::Stack) -> Result<Self, EventError> {
        Ok(
            match stack
                .what
                .ok_or(EventError::Missing("what a stack event tells"))?
            {
                wire::stack::What::Radio(radio) => Self::Radio(radio.try_into()?),
                wire::stack::What::Call(call) => Self::Call(call.try_into()?),
                wire::stack::What::Message(message) => Self::Message(message.try_into()?),
            },
        )
    }
}

impl From<Stack> for wire::Stack {
    fn from(stack: Stack) -> Self {
        let what = match stack {
            Stack::Radio(radio) => wire::stack::What::Radio(radio.into()),
            Stack::Call(call) => wire::stack::What::Call(call.into()),
            Stack::Message(message) => wire::stack::What::Message(message.into()),
        };
        Self { what: Some(what) }
    }
}

impl TryFrom<wire::Radio> for Radio {
    type Error = EventError;

    fn try_from(radio: wire::Radio) -> Result<Self, EventError> {
        check_modem(&radio.modem)?;
        let registration = known("registration", radio.registration, Registration::try_from)?;
        if !radio.operator_code.is_empty() && !is_operator_code(&radio.operator_code) {
            return Err(EventError::Malformed("an operator's code"));
        }
        check_count(
            "bytes of an operator's name",
            radio.operator_name.len(),
            OPERATOR_NAME_BYTES_MAX,
        )?;
        if radio.signal_percent > 100 {
            return Err(EventError::Malformed("a signal's strength"));
        }
        let is_on_earth = |position: &Position| {
            position.latitude.abs() <= 90.0 && position.longitude.abs() <= 180.0
        };
        if radio
            .position
            .as_ref()
            .is_some_and(|position| !is_on_earth(position))
        {
            return Err(EventError::Malformed("a position"));
        }
        Ok(Self {
            modem: radio.modem,
            registration,
            operator_code: radio.operator_code,
            operator_name: radio.operator_name,
            technologies: radio.technologies,
            signal_percent: radio.signal_percent,
            tower: Tower {
                lac: radio.lac,
                tac: radio.tac,
                cell: radio.cell,
            },
            position: radio.position,
        })
    }
}

impl From<Radio> for wire::Radio {
    fn from(radio: Radio) -> Self {
        Self {
            modem: radio.modem,
            registration: radio.registration.into(),
            operator_code: radio.operator_code,
            operator_name: radio.operator_name,
            technologies: radio.technologies,
            signal_percent: radio.signal_percent,
            lac: radio.tower.lac,
            tac: radio.tower.tac,
            cell: radio.tower.cell,
            position: radio.position,
        }
    }
}

impl TryFrom<wire::Call> for Call {
    type Error = EventError;

    fn try_from(call: wire::Call) -> Result<Self, EventError> {
        check_modem(&call.modem)?;
        check_count(
            "bytes of a call's name",
            call.call.len(),
            CALL_NAME_BYTES_MAX,
        )?;
        if call.call.is_empty() {
            return Err(EventError::Missing("a call's name"));
        }
        check_party(&call.party)?;
        let state = known("call state", call.state, CallState::try_from)?;
        let end = CallEnd::try_from(call.end).map_err(|_| EventError::Unknown {
            what: "call end",
            value: call.end,
        })?;
        if state != CallState::Ended && (call.dropped || end != CallEnd::Unspecified) {
            return Err(EventError::Malformed("the end of a call that goes on"));
        }
        Ok(Self {
            direction: known("direction", call.direction, Direction::try_from)?,
            call: call.call,
            modem: call.modem,
            party: call.party,
            state,
            end,
            dropped: call.dropped,
        })
    }
}

impl From<Call> for wire::Call {
    fn from(call: Call) -> Self {
        Self {
            call: call.call,
            modem: call.modem,
            direction: call.direction.into(),
            party: call.party,
            state: call.state.into(),
            end: call.end.into(),
            dropped: call.dropped,
        }
    }
}

impl TryFrom<wire::TextMessage> for TextMessage {
    type Error = EventError;

    fn try_from(message: wire::TextMessage) -> Result<Self, EventError> {
        check_modem(&message.modem)?;
        check_party(&message.party)?;
        check_count(
            "bytes of a time stamp",
            message.network_time.len(),
            NETWORK_TIME_BYTES_MAX,
        )?;
        Ok(Self {
            direction: known("direction", message.direction, Direction::try_from)?,
            modem: message.modem,
            party: message.party,
            size_bytes: message.size_bytes,
            network_time: message.network_time,
        })
    }
}

impl From<TextMessage> for wire::TextMessage {
    fn from(message: TextMessage) -> Self {
        Self {
            modem: message.modem,
            direction: message.direction.into(),
            party: message.party,
            size_bytes: message.size_bytes,
            network_time: message.network_time,
        }
    }
}

fn check_modem(modem: &str) -> Result<(), EventError> {
    match modem.is_empty() {
        true => Err(EventError::Missing("a modem's name")),
        false => check_count("bytes of a modem's name", modem.len(), MODEM_BYTES_MAX),
    }
}

fn check_party(party: &str) -> Result<(), EventError> {
    check_count("bytes of a party", party.len(), PARTY_BYTES_MAX)
}

/// An enum's value that says something: neither unspecified nor from a later contract.
fn known<T, E>(
    what: &'static str,
    value: i32,
    parse: fn(i32) -> Result<T, E>,
) -> Result<T, EventError> {
    match parse(value) {
        Ok(known) if value != 0 => Ok(known),
        _ => Err(EventError::Unknown { what, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Kind, Origin};

    fn radio() -> Radio {
        Radio {
            modem: "m".into(),
            registration: Registration::Roaming,
            operator_code: "26201".into(),
            operator_name: "Telekom.de".into(),
            technologies: 1 << 14,
            signal_percent: 64,
            tower: Tower {
                lac: 0,
                tac: 0x18a2,
                cell: 0x0123_4567,
            },
            position: Some(Position {
                latitude: -33.9,
                longitude: 151.2,
            }),
        }
    }

    fn call() -> Call {
        Call {
            call: "b:1.3/0".into(),
            modem: "m".into(),
            direction: Direction::In,
            party: String::new(),
            state: CallState::Ended,
            end: CallEnd::Error,
            dropped: true,
        }
    }

    fn message() -> TextMessage {
        TextMessage {
            modem: "m".into(),
            direction: Direction::Out,
            party: "+4930".into(),
            size_bytes: 7,
            network_time: String::new(),
        }
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for stack in [
            Stack::Radio(radio()),
            Stack::Call(call()),
            Stack::Message(message()),
        ] {
            let event = Event {
                seq: 1,
                wall_us: 1,
                mono_us: 1,
                origin: Origin::Phone,
                kind: Kind::Stack(stack),
            };
            assert_eq!(Event::decode(&event.clone().encode()), Ok(event.clone()));
            assert_eq!(event.check_from_phone(), Ok(()));
        }
    }

    #[test]
    fn what_breaks_the_contract_is_refused() {
        let radios: [fn(&mut wire::Radio); 7] = [
            |radio| radio.modem.clear(),
            |radio| radio.modem = "m".repeat(65),
            |radio| radio.registration = 0,
            |radio| radio.registration = 77,
            |radio| radio.operator_code = "2620".into(),
            |radio| radio.signal_percent = 101,
            |radio| {
                radio.position = Some(Position {
                    latitude: f64::NAN,
                    longitude: 0.0,
                });
            },
        ];
        for spoil in radios {
            let mut wire = wire::Radio::from(radio());
            assert!(Radio::try_from(wire.clone()).is_ok());
            spoil(&mut wire);
            assert!(Radio::try_from(wire.clone()).is_err(), "{wire:?}");
        }
        let calls: [fn(&mut wire::Call); 6] = [
            |call| call.call.clear(),
            |call| call.call = "c".repeat(129),
            |call| call.party = "1".repeat(65),
            |call| call.direction = 0,
            |call| call.end = 99,
            |call| call.state = CallState::Active.into(),
        ];
        for spoil in calls {
            let mut wire = wire::Call::from(call());
            assert!(Call::try_from(wire.clone()).is_ok());
            spoil(&mut wire);
            assert!(Call::try_from(wire.clone()).is_err(), "{wire:?}");
        }
        let mut late = wire::TextMessage::from(message());
        late.network_time = "2".repeat(33);
        assert!(TextMessage::try_from(late).is_err());
        assert!(Stack::try_from(wire::Stack { what: None }).is_err());
    }

    #[test]
    fn generations_are_told_apart() {
        let bits = [
            0,
            1 << 1,
            1 << 4,
            1 << 5,
            1 << 13,
            1 << 14,
            1 << 14 | 1 << 15,
        ];
        let names = bits.map(technology_name);
        assert_eq!(names, ["", "2G", "2.5G", "3G", "3G", "4G", "5G"]);
    }
}
