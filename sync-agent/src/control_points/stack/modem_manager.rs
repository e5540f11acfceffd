//! ModemManager over D-Bus: what it says of modems, calls, short messages and cells, as [`Notice`]s.
//!
//! Only its properties and signals are read; nothing is set, so the phone behaves as if nobody watched. It is addressed
//! by its unique name, so that nothing here starts it. Interfaces and numbers are those of the ModemManager D-Bus
//! reference, version 1.20; what a later one adds to an enum is unknown here and is taken as such.
//!
//! Everything that comes in is cut to the bounds of the protocol's events.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::Duration;

use sync_protocol::limits::{
    MODEM_BYTES_MAX, NETWORK_TIME_BYTES_MAX, OPERATOR_NAME_BYTES_MAX, PARTY_BYTES_MAX,
};
use sync_protocol::stack::{
    CallEnd, CallState, Direction, Position, Registration, TextMessage, Tower, is_operator_code,
};
use tokio_stream::StreamExt;
use zbus::message::{Message, Type};
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use super::follow::{Notice, Property};

const SERVICE: &str = "org.freedesktop.ModemManager1";
const ROOT: &str = "/org/freedesktop/ModemManager1";
const MODEM: &str = "org.freedesktop.ModemManager1.Modem";
const MODEM_3GPP: &str = "org.freedesktop.ModemManager1.Modem.Modem3gpp";
const LOCATION: &str = "org.freedesktop.ModemManager1.Modem.Location";
const VOICE: &str = "org.freedesktop.ModemManager1.Modem.Voice";
const MESSAGING: &str = "org.freedesktop.ModemManager1.Modem.Messaging";
const CALL: &str = "org.freedesktop.ModemManager1.Call";
const SMS: &str = "org.freedesktop.ModemManager1.Sms";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const BUS: &str = "org.freedesktop.DBus";

/// An answer comes at once or, of a daemon that hangs, never.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Signals that wait while one is looked into; more are a daemon gone mad, and the way to it is made anew.
const SIGNALS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");
/// Messages that modems keep and that may still change state.
const MESSAGES_MAX: usize = 4096;

type Properties = HashMap<String, OwnedVariant>;
type Interfaces = HashMap<String, Properties>;

/// A way to the daemon, whether it runs or not.
pub(super) struct ModemManager {
    connection: Connection,
    signals: MessageStream,
    owners: MessageStream,
    /// The daemon's unique name, while it runs.
    owner: Option<String>,
    /// Tells this boot's objects from those of others.
    boot: String,
    /// Names of modems, by path.
    modems: BTreeMap<String, String>,
    /// Messages that were not told yet, by path.
    messages: BTreeMap<String, Untold>,
}

struct Untold {
    modem: String,
    /// It came while we watched.
    is_new: bool,
    /// It had not been sent yet when it was seen first; of an outgoing one only that tells that it is new.
    was_unsent: bool,
}

/// What was noticed, and whether it is about a message that may have been noticed in an earlier run.
#[derive(Debug, PartialEq)]
pub(super) struct Noticed {
    pub(super) notice: Notice,
    pub(super) is_new: bool,
}

impl From<Notice> for Noticed {
    fn from(notice: Notice) -> Self {
        Self {
            notice,
            is_new: true,
        }
    }
}

impl ModemManager {
    /// Connects to the bus at `address`, or the system's. The daemon need not be there.
    pub(super) async fn connect(address: Option<&str>, boot_id: &str) -> zbus::Result<Self> {
        let builder = match address {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let connection = builder.method_timeout(ANSWER_WAIT).build().await?;
        let signals = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SERVICE)
            .build()?;
        let owners = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(BUS)
            .interface(BUS)
            .member("NameOwnerChanged")
            .arg(0, SERVICE)
            .build()?;
        Ok(Self {
            signals: MessageStream::for_match_rule(signals, &connection, Some(SIGNALS_MAX)).await?,
            owners: MessageStream::for_match_rule(owners, &connection, None).await?,
            connection,
            owner: None,
            boot: boot_id.chars().take(8).collect(),
            modems: BTreeMap::new(),
            messages: BTreeMap::new(),
        })
    }

    /// Whether the daemon runs.
    pub(super) fn is_there(&self) -> bool {
        self.owner.is_some()
    }

    /// Looks for the daemon, and at everything it has.
    pub(super) async fn survey(&mut self) -> zbus::Result<Vec<Noticed>> {
        let owner = self
            .connection
            .call_method(
                Some(BUS),
                "/org/freedesktop/DBus",
                Some(BUS),
                "GetNameOwner",
                &SERVICE,
            )
            .await;
        self.owner = match owner {
            Ok(reply) => Some(reply.body().deserialize()?),
            Err(error) if is_broken(&error) => return Err(error),
            // NameHasNoOwner.
            Err(_) => None,
        };
        if self.owner.is_none() {
            return Ok(Vec::new());
        }
        type Objects = HashMap<OwnedObjectPath, Interfaces>;
        let objects: Objects = self
            .ask(ROOT, OBJECT_MANAGER, "GetManagedObjects", &())
            .await?
            .unwrap_or_default();
        let mut noticed = Vec::new();
        for (path, interfaces) in objects {
            noticed.extend(self.modem_added(path.as_str(), interfaces).await?);
        }
        Ok(noticed)
    }

    /// The next signal. Dropping the future loses none.
    pub(super) async fn wait(&mut self) -> zbus::Result<Message> {
        let next = tokio::select! {
            message = self.signals.next() => message,
            message = self.owners.next() => message,
        };
        next.unwrap_or_else(|| {
            let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            Err(zbus::Error::InputOutput(ended.into()))
        })
    }

    /// What a signal says, asking the daemon for what it leaves out. Not to be dropped halfway.
    pub(super) async fn interpret(&mut self, message: &Message) -> zbus::Result<Vec<Noticed>> {
        let header = message.header();
        let (Some(interface), Some(member), Some(path)) =
            (header.interface(), header.member(), header.path())
        else {
            return Ok(Vec::new());
        };
        let (path, body) = (path.as_str(), message.body());
        let notice = match (interface.as_str(), member.as_str()) {
            (BUS, "NameOwnerChanged") => return self.owner_changed().await,
            (OBJECT_MANAGER, "InterfacesAdded") => {
                let added: zbus::Result<(OwnedObjectPath, Interfaces)> = body.deserialize();
                let Some((path, interfaces)) = sound(added) else {
                    return Ok(Vec::new());
                };
                return self.modem_added(path.as_str(), interfaces).await;
            }
            (OBJECT_MANAGER, "InterfacesRemoved") => {
                let removed: zbus::Result<(OwnedObjectPath, Vec<String>)> = body.deserialize();
                sound(removed).and_then(|(path, interfaces)| {
                    let is_modem = interfaces.iter().any(|interface| interface == MODEM);
                    let name = is_modem.then(|| self.modems.remove(path.as_str()))??;
                    self.messages.retain(|_, message| message.modem != name);
                    Some(Notice::ModemGone(name))
                })
            }
            (PROPERTIES, "PropertiesChanged") => {
                let changed: zbus::Result<(String, Properties, Vec<String>)> = body.deserialize();
                let Some((interface, properties, _)) = sound(changed) else {
                    return Ok(Vec::new());
                };
                if interface == SMS {
                    return self.look_at_message(path).await;
                }
                let name = self.modems.get(path).cloned();
                let properties = modem_properties(&interface, &properties);
                name.filter(|_| !properties.is_empty())
                    .map(|name| Notice::Modem(name, properties))
            }
            (VOICE, "CallAdded") => {
                let added = sound(body.deserialize::<OwnedObjectPath>());
                // Changes of its state follow in signals of their own, even if it has gone further by now.
                return match (added, self.modems.get(path).cloned()) {
                    (Some(call), Some(modem)) => self.call_added(call.as_str(), modem, true).await,
                    _ => Ok(Vec::new()),
                };
            }
            (VOICE, "CallDeleted") => {
                sound(body.deserialize::<OwnedObjectPath>()).map(|call| Notice::CallState {
                    call: self.call_name(call.as_str()),
                    state: CallState::Ended,
                    end: CallEnd::Unspecified,
                })
            }
            (CALL, "StateChanged") => {
                let changed = sound(body.deserialize::<(i32, i32, u32)>());
                changed.map(|(_, state, reason)| Notice::CallState {
                    call: self.call_name(path),
                    state: call_state(state),
                    end: call_end(reason),
                })
            }
            (MESSAGING, "Added") => {
                let added = sound(body.deserialize::<(OwnedObjectPath, bool)>());
                return match (added, self.modems.get(path).cloned()) {
                    (Some((message, is_new)), Some(modem)) => {
                        self.message_added(message.as_str(), modem, is_new);
                        self.look_at_message(message.as_str()).await
                    }
                    _ => Ok(Vec::new()),
                };
            }
            (MESSAGING, "Deleted") => {
                if let Some(message) = sound(body.deserialize::<OwnedObjectPath>()) {
                    self.messages.remove(message.as_str());
                }
                None
            }
            _ => None,
        };
        Ok(notice.map(Noticed::from).into_iter().collect())
    }

    /// Where each modem is: cells change without a signal unless somebody asked for that, which costs power.
    pub(super) async fn places(&self) -> zbus::Result<Vec<Noticed>> {
        let mut noticed = Vec::new();
        for (path, name) in &self.modems {
            if let Some(place) = self.place(path).await? {
                noticed.push(Notice::Modem(name.clone(), vec![place]).into());
            }
        }
        Ok(noticed)
    }

    async fn owner_changed(&mut self) -> zbus::Result<Vec<Noticed>> {
        self.modems.clear();
        self.messages.clear();
        let mut noticed = vec![Noticed::from(Notice::DaemonGone)];
        noticed.extend(self.survey().await?);
        Ok(noticed)
    }

    async fn modem_added(
        &mut self,
        path: &str,
        interfaces: Interfaces,
    ) -> zbus::Result<Vec<Noticed>> {
        let own = interfaces.get(MODEM);
        let name = own.and_then(|properties| text(properties, "DeviceIdentifier", MODEM_BYTES_MAX));
        // What is added later to a modem that is known comes without it.
        let name = name.filter(|name| !name.is_empty());
        let Some(name) = name.or_else(|| self.modems.get(path).cloned()) else {
            return Ok(Vec::new());
        };
        self.modems.insert(path.to_owned(), name.clone());
        let mut properties: Vec<_> = interfaces
            .iter()
            .flat_map(|(interface, properties)| modem_properties(interface, properties))
            .collect();
        properties.extend(self.place(path).await?);
        let mut noticed = vec![Notice::Modem(name.clone(), properties).into()];
        for call in paths(&interfaces, VOICE, "Calls") {
            noticed.extend(self.call_added(&call, name.clone(), false).await?);
        }
        for message in paths(&interfaces, MESSAGING, "Messages") {
            self.message_added(&message, name.clone(), false);
            noticed.extend(self.look_at_message(&message).await?);
        }
        Ok(noticed)
    }

    async fn call_added(
        &self,
        path: &str,
        modem: String,
        is_new: bool,
    ) -> zbus::Result<Vec<Noticed>> {
        let Some(properties) = self.properties(path, CALL).await? else {
            tracing::warn!(path, "a call was gone before it could be looked at");
            return Ok(Vec::new());
        };
        // MMCallDirection: incoming 1.
        let direction = match signed(&properties, "Direction") {
            Some(1) => Direction::In,
            _ => Direction::Out,
        };
        let state = match (is_new, direction) {
            (false, _) => signed(&properties, "State").map_or(CallState::Unspecified, call_state),
            (true, Direction::In) => CallState::Ringing,
            // Prepared; it is made when it is started.
            (true, _) => CallState::Unspecified,
        };
        let notice = Notice::Call {
            call: self.call_name(path),
            modem,
            direction,
            party: text(&properties, "Number", PARTY_BYTES_MAX).unwrap_or_default(),
            state,
            end: CallEnd::Unspecified,
        };
        Ok(vec![notice.into()])
    }

    /// A call's name: its number is unique while the daemon runs, the daemon's name while the bus does.
    fn call_name(&self, path: &str) -> String {
        let number = path.rsplit('/').next().unwrap_or_default();
        let owner = self.owner.as_deref().unwrap_or_default();
        clip(
            &format!("{}{owner}/{number}", self.boot),
            sync_protocol::limits::CALL_NAME_BYTES_MAX,
        )
    }

    fn message_added(&mut self, path: &str, modem: String, is_new: bool) {
        if self.messages.len() < MESSAGES_MAX {
            let untold = Untold {
                modem,
                is_new,
                was_unsent: false,
            };
            self.messages.insert(path.to_owned(), untold);
        }
    }

    /// Tells a message once it was received whole, or sent.
    async fn look_at_message(&mut self, path: &str) -> zbus::Result<Vec<Noticed>> {
        if !self.messages.contains_key(path) {
            return Ok(Vec::new());
        }
        let Some(properties) = self.properties(path, SMS).await? else {
            return Ok(Vec::new());
        };
        // MMSmsState: received 3, sent 5. MMSmsPduType: deliver 1, submit 2, status report 3.
        let direction = match (number(&properties, "State"), number(&properties, "PduType")) {
            (Some(3), Some(1)) => Direction::In,
            (Some(5), Some(2)) => Direction::Out,
            _ => {
                if let Some(untold) = self.messages.get_mut(path) {
                    untold.was_unsent = true;
                }
                return Ok(Vec::new());
            }
        };
        let Some(untold) = self.messages.remove(path) else {
            return Ok(Vec::new());
        };
        if direction == Direction::Out && !untold.was_unsent {
            return Ok(Vec::new());
        }
        let words = properties
            .get("Text")
            .and_then(|text| <&str>::try_from(text).ok());
        let data = properties.get("Data").and_then(|data| match &**data {
            Variant::Array(array) => Some(array.len()),
            _ => None,
        });
        let size = words.map_or(0, str::len).max(data.unwrap_or(0));
        let message = TextMessage {
            modem: untold.modem,
            direction,
            party: text(&properties, "Number", PARTY_BYTES_MAX).unwrap_or_default(),
            size_bytes: size as u64,
            network_time: text(&properties, "Timestamp", NETWORK_TIME_BYTES_MAX)
                .unwrap_or_default(),
        };
        Ok(vec![Noticed {
            is_new: untold.is_new || direction == Direction::Out,
            notice: Notice::Message(message),
        }])
    }

    async fn place(&self, path: &str) -> zbus::Result<Option<Property>> {
        let location: Option<HashMap<u32, OwnedVariant>> =
            self.ask(path, LOCATION, "GetLocation", &()).await?;
        Ok(location.map(|location| place_of(&location)))
    }

    async fn properties(&self, path: &str, interface: &str) -> zbus::Result<Option<Properties>> {
        self.ask(path, PROPERTIES, "GetAll", &interface).await
    }

    /// Asks the daemon; nothing if it has no answer to that.
    async fn ask<T, B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<Option<T>>
    where
        T: for<'de> serde::Deserialize<'de> + zbus::Type,
        B: serde::Serialize + zbus::DynamicType,
    {
        let Some(owner) = self.owner.as_deref() else {
            return Ok(None);
        };
        let reply = self
            .connection
            .call_method(Some(owner), path, Some(interface), method, body)
            .await;
        match reply {
            Ok(reply) => Ok(sound(reply.body().deserialize())),
            Err(error) if is_broken(&error) => Err(error),
            Err(error) => {
                tracing::debug!(path, method, %error, "no answer");
                Ok(None)
            }
        }
    }
}

/// Whether the way to the daemon is of no more use.
fn is_broken(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(_))
}

/// What was said, if it is of the form that it should have.
fn sound<T>(said: zbus::Result<T>) -> Option<T> {
    said.inspect_err(|error| tracing::debug!(%error, "ModemManager said something unheard of"))
        .ok()
}

fn modem_properties(interface: &str, properties: &Properties) -> Vec<Property> {
    let found = match interface {
        MODEM => vec![
            number(properties, "AccessTechnologies").map(Property::Technologies),
            properties
                .get("SignalQuality")
                .and_then(signal_percent)
                .map(Property::SignalPercent),
        ],
        MODEM_3GPP => vec![
            number(properties, "RegistrationState")
                .map(|state| Property::Registration(registration(state))),
            text(properties, "OperatorCode", usize::MAX)
                .map(|code| {
                    if is_operator_code(&code) {
                        code
                    } else {
                        String::new()
                    }
                })
                .map(Property::OperatorCode),
            text(properties, "OperatorName", OPERATOR_NAME_BYTES_MAX).map(Property::OperatorName),
        ],
        LOCATION => vec![
            properties
                .get("Location")
                .and_then(|location| HashMap::<u32, OwnedVariant>::try_from(location.clone()).ok())
                .filter(|location| !location.is_empty())
                .map(|location| place_of(&location)),
        ],
        _ => Vec::new(),
    };
    found.into_iter().flatten().collect()
}

/// `SignalQuality` is a percentage, and whether it is recent.
fn signal_percent(quality: &OwnedVariant) -> Option<u32> {
    let Variant::Structure(fields) = &**quality else {
        return None;
    };
    match fields.fields().first()? {
        Variant::U32(percent) => Some((*percent).min(100)),
        _ => None,
    }
}

/// MMModem3gppRegistrationState.
fn registration(state: u32) -> Registration {
    match state {
        1 | 6 | 9 => Registration::Home,
        5 | 7 | 10 => Registration::Roaming,
        3 => Registration::Denied,
        8 => Registration::EmergencyOnly,
        _ => Registration::None,
    }
}

/// MMCallState.
fn call_state(state: i32) -> CallState {
    match state {
        1 | 2 => CallState::Dialing,
        3 | 6 => CallState::Ringing,
        4 => CallState::Active,
        5 => CallState::Held,
        7 => CallState::Ended,
        _ => CallState::Unspecified,
    }
}

/// MMCallStateReason.
fn call_end(reason: u32) -> CallEnd {
    match reason {
        4 => CallEnd::Terminated,
        5 => CallEnd::RefusedOrBusy,
        6 => CallEnd::Error,
        7 => CallEnd::Audio,
        8 => CallEnd::Transferred,
        9 => CallEnd::Deflected,
        _ => CallEnd::Unspecified,
    }
}

/// MMModemLocationSource 1<<0 is the cell, as text; 1<<1 is what the satellites say, as a dictionary.
fn place_of(location: &HashMap<u32, OwnedVariant>) -> Property {
    let cell = location
        .get(&1)
        .and_then(|cell| <&str>::try_from(cell).ok());
    let position = location.get(&2).and_then(position);
    Property::Place(cell.and_then(tower).unwrap_or_default(), position)
}

/// `MCC,MNC,LAC,CI,TAC`, the last three hexadecimal.
fn tower(text: &str) -> Option<Tower> {
    let mut parts = text.split(',').skip(2);
    let mut next = || u64::from_str_radix(parts.next()?, 16).ok();
    let (lac, cell) = (next()?, next()?);
    let tac = next().unwrap_or(0);
    Some(Tower {
        lac: u32::try_from(lac).ok()?,
        tac: u32::try_from(tac).ok()?,
        cell,
    })
}

fn position(satellites: &OwnedVariant) -> Option<Position> {
    let fields = Properties::try_from(satellites.clone()).ok()?;
    let degrees = |name: &str, max: f64| {
        let degrees = f64::try_from(fields.get(name)?).ok()?;
        (degrees.abs() <= max).then_some(degrees)
    };
    Some(Position {
        latitude: degrees("latitude", 90.0)?,
        longitude: degrees("longitude", 180.0)?,
    })
}

fn number(properties: &Properties, name: &str) -> Option<u32> {
    u32::try_from(properties.get(name)?).ok()
}

fn signed(properties: &Properties, name: &str) -> Option<i32> {
    i32::try_from(properties.get(name)?).ok()
}

fn text(properties: &Properties, name: &str, bytes_max: usize) -> Option<String> {
    let text = <&str>::try_from(properties.get(name)?).ok()?;
    Some(clip(text, bytes_max))
}

fn paths(interfaces: &Interfaces, interface: &str, name: &str) -> Vec<String> {
    let listed = interfaces
        .get(interface)
        .and_then(|properties| properties.get(name));
    let paths = listed.and_then(|paths| Vec::<OwnedObjectPath>::try_from(paths.clone()).ok());
    let paths = paths.unwrap_or_default().into_iter();
    paths
        .take(MESSAGES_MAX)
        .map(|path| path.as_str().to_owned())
        .collect()
}

/// As much of the text as fits.
fn clip(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn towers_are_read_as_the_daemon_writes_them() {
        let read = |text: &str| tower(text).map(|tower| (tower.lac, tower.cell, tower.tac));
        assert_eq!(read("262,01,0,1234567,18A2"), Some((0, 0x123_4567, 0x18a2)));
        assert_eq!(read("310,410,DEA6,5A42,0"), Some((0xdea6, 0x5a42, 0)));
        assert_eq!(read("310,410,DEA6,5A42"), Some((0xdea6, 0x5a42, 0)));
        for odd in ["", "262,01", "262,01,x,1,1", "262,01,1FFFFFFFF,1,1"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn positions_are_on_earth() {
        let satellites = |latitude: f64, longitude: f64| {
            let fields = HashMap::from([
                ("latitude".to_owned(), Variant::from(latitude)),
                ("longitude".to_owned(), Variant::from(longitude)),
                ("utc-time".to_owned(), Variant::from("120000.0")),
            ]);
            position(&OwnedVariant::try_from(Variant::from(fields)).unwrap())
        };
        assert_eq!(
            satellites(-33.9, 151.2),
            Some(Position {
                latitude: -33.9,
                longitude: 151.2
            })
        );
        assert_eq!(satellites(91.0, 0.0), None);
        assert_eq!(satellites(0.0, f64::NAN), None);
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(clip("Österreich", 1), "");
        assert_eq!(clip("Österreich", 3), "Ös");
        assert_eq!(clip("A1", 64), "A1");
    }
}
