//! What the phone's modems do reaches the appliance, as events and as the usage database: the agent beside the real
//! ModemManager, which drives a simulated modem.

use rusqlite::Connection;
use sync_protocol::event::Kind;
use sync_protocol::stack::{Call, CallEnd, CallState, Direction, Radio, Registration, Stack};

use crate::daemons::{self, Bus, ModemManager};
use crate::fake_appliance::{FakeAppliance, State};
use crate::harness::{Agent, Phone, with_phone};
use crate::modem::{ABROAD, HOME, Modem};

/// What all tests here begin with: a modem that is switched on, and an agent that knows it.
struct Setting {
    agent: Agent,
    appliance: FakeAppliance,
    daemon: ModemManager,
    modem: Modem,
    path: String,
    _bus: Bus,
}

impl Setting {
    async fn new(phone: &Phone, name: &str) -> Self {
        let appliance = FakeAppliance::start().await;
        appliance.with(|state| state.released = true);
        let agent = start(phone, &appliance);
        // The agent is there first: it finds the bus, the daemon and the modem when each appears.
        appliance.until_scanned(0).await;
        let bus = Bus::start(&phone.state());
        let daemon = ModemManager::start(&bus, phone.state().join("modem-manager.log")).await;
        // As ModemManager has it, with the prefix as part of the name.
        let socket = format!("abstract:pollux-{name}-{}", std::process::id());
        let modem = Modem::start(&socket);
        let path = daemon.plug_in(&socket).await;
        daemon.enable(&path).await;
        let setting = Self {
            agent,
            appliance,
            daemon,
            modem,
            path,
            _bus: bus,
        };
        setting
            .until_radio(|radio| radio.registration == Registration::Home)
            .await;
        setting
    }

    async fn until_radio(&self, wanted: impl Fn(&Radio) -> bool) -> Radio {
        let find = |state: &mut State| {
            let radio = told(state).into_iter().rev().find_map(|stack| match stack {
                Stack::Radio(radio) => Some(radio),
                _ => None,
            });
            radio.filter(&wanted)
        };
        self.appliance.until("the modem is so", find).await
    }

    async fn until_call(&self, wanted: impl Fn(&Call) -> bool) -> Call {
        let find = |state: &mut State| calls(state).into_iter().rev().find(&wanted);
        self.appliance.until("a call is so", find).await
    }

    /// Waits until what `sql` selects from the usage database on the appliance is `wanted`.
    async fn until_rows(&self, phone: &Phone, sql: &str, wanted: &[&str]) {
        let find = |state: &mut State| {
            let found = rows(&synchronised(phone, state)?, sql);
            (found == wanted).then_some(())
        };
        let what = format!("{sql} is {wanted:?}");
        self.appliance.until(&what, find).await;
    }
}

fn start(phone: &Phone, appliance: &FakeAppliance) -> Agent {
    phone.start_with(sync_agent::config::Flags {
        usage: Some(phone.root().join("usage")),
        bus: Some(Bus::address_in(&phone.state())),
        ..phone.flags(appliance)
    })
}

fn told(state: &State) -> Vec<Stack> {
    let stacks = state.events.iter().filter_map(|event| match &event.kind {
        Kind::Stack(stack) => Some(stack.clone()),
        _ => None,
    });
    stacks.collect()
}

fn calls(state: &State) -> Vec<Call> {
    let calls = told(state).into_iter().filter_map(|stack| match stack {
        Stack::Call(call) => Some(call),
        _ => None,
    });
    calls.collect()
}

/// The usage database as the appliance has it.
fn synchronised(phone: &Phone, state: &State) -> Option<tempfile::NamedTempFile> {
    let tree = state.tree();
    let node = tree.get(&phone.path("usage/usage.db"))?;
    let has_all = node
        .chunks()
        .iter()
        .all(|chunk| state.chunks.contains_key(&chunk.hash));
    let file = has_all.then(|| tempfile::NamedTempFile::new().unwrap())?;
    std::fs::write(file.path(), state.contents(node)).unwrap();
    Some(file)
}

/// Each row's columns, joined.
fn rows(file: &tempfile::NamedTempFile, sql: &str) -> Vec<String> {
    let db = Connection::open(file.path()).unwrap();
    let mut select = match db.prepare(sql) {
        Ok(select) => select,
        // It may have come in the middle of a write, of which the next version is the end.
        Err(rusqlite::Error::SqliteFailure(..)) => return Vec::new(),
        Err(error) => panic!("{error}"),
    };
    let columns = select.column_count();
    let found = select.query_map([], |row| {
        let cells = (0..columns).map(|column| {
            Ok(match row.get_ref(column)? {
                rusqlite::types::ValueRef::Null => "-".to_owned(),
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                rusqlite::types::ValueRef::Real(number) => number.to_string(),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                rusqlite::types::ValueRef::Blob(_) => panic!("no column is binary"),
            })
        });
        Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join(" "))
    });
    found
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap_or_default()
}

#[test]
fn calls_are_told_with_their_ends_and_towers() {
    let name = "calls_are_told_with_their_ends_and_towers";
    if !daemons::are_there(name) {
        return;
    }
    with_phone(name, |phone| async move {
        let setting = Setting::new(&phone, "calls").await;
        let Setting {
            daemon,
            modem,
            path,
            ..
        } = &setting;

        modem.ring("+49301234567");
        setting
            .until_call(|call| call.state == CallState::Ringing)
            .await;
        let call = daemon.only_call(path).await;
        daemon.on_call(&call, "Accept").await;
        setting
            .until_call(|call| call.state == CallState::Active)
            .await;
        // The phone's user hangs up.
        daemon.on_call(&call, "Hangup").await;
        let first = setting
            .until_call(|call| call.state == CallState::Ended)
            .await;
        assert_eq!(
            (
                first.direction,
                first.party.as_str(),
                first.end,
                first.dropped
            ),
            (Direction::In, "+49301234567", CallEnd::Terminated, false)
        );

        daemon.dial(path, "+33145678901").await;
        setting
            .until_call(|call| call.state == CallState::Dialing && call.direction == Direction::Out)
            .await;
        modem.answer();
        setting
            .until_call(|call| call.state == CallState::Active && call.direction == Direction::Out)
            .await;
        // The network goes, and takes the call with it.
        modem.lose_network();
        modem.end_call();
        let second = setting.until_call(|call| call.dropped).await;
        assert_eq!(
            (second.direction, second.party.as_str(), second.state),
            (Direction::Out, "+33145678901", CallState::Ended)
        );
        assert_ne!(first.call, second.call);

        let sql = "SELECT direction, party, call.state, end_reason IN ('terminated', 'unknown'), dropped, answered_us >= started_us, call.ended_us >= answered_us,
                       mcc, mnc, operator, registration, technology, lac, tac, cell, start_percent
                   FROM call JOIN radio ON radio.id = start_radio ORDER BY call.id";
        let home = "262 01 Telekom.de home 4G 0 6306 19088743 64";
        let wanted = [
            format!("in +49301234567 ended 1 0 1 1 {home}"),
            format!("out +33145678901 ended 1 1 1 1 {home}"),
        ];
        let wanted = [wanted[0].as_str(), wanted[1].as_str()];
        setting.until_rows(&phone, sql, &wanted).await;
        setting.agent.stop().await;
    });
}

#[test]
fn roaming_messages_and_signal_are_told() {
    let name = "roaming_messages_and_signal_are_told";
    if !daemons::are_there(name) {
        return;
    }
    with_phone(name, |phone| async move {
        let setting = Setting::new(&phone, "roaming").await;
        let Setting {
            daemon,
            modem,
            path,
            ..
        } = &setting;
        modem.move_to(ABROAD);
        let abroad = setting
            .until_radio(|radio| {
                radio.operator_code == ABROAD.code && radio.tower.tac == u32::from(ABROAD.area)
            })
            .await;
        assert_eq!(
            (
                abroad.registration,
                abroad.operator_name.as_str(),
                abroad.tower.cell
            ),
            (Registration::Roaming, ABROAD.name, u64::from(ABROAD.cell))
        );

        modem.deliver("+33612345678", "Grüße");
        let sql =
            "SELECT direction, party, size_bytes, network_time, mcc, registration FROM message
                   JOIN radio ON radio.id = message.radio ORDER BY message.id";
        let received = "in +33612345678 7 2026-11-27T10:32:45+01 208 roaming";
        setting.until_rows(&phone, sql, &[received]).await;
        daemon.send(path, "+33687654321", "Bonjour").await;
        setting
            .until_rows(&phone, sql, &[received, "out +33687654321 7  208 roaming"])
            .await;

        modem.move_to(HOME);
        setting
            .until_radio(|radio| radio.operator_code == HOME.code)
            .await;
        let sql = "SELECT mcc, mnc, operator, ended_us > began_us FROM roaming";
        // A call writes what waits.
        modem.ring("+49301234567");
        setting
            .until_rows(&phone, sql, &["208 01 Orange F 1"])
            .await;
        modem.end_call();

        // Switched off, a modem is registered nowhere.
        daemon.disable(path).await;
        setting
            .until_radio(|radio| radio.registration == Registration::None)
            .await;
        setting.agent.stop().await;
    });
}

#[test]
fn a_daemon_that_dies_leaves_an_unfinished_call_and_is_found_again() {
    let name = "a_daemon_that_dies_leaves_an_unfinished_call_and_is_found_again";
    if !daemons::are_there(name) {
        return;
    }
    with_phone(name, |phone| async move {
        let Setting {
            agent,
            appliance,
            daemon,
            modem,
            _bus: bus,
            ..
        } = Setting::new(&phone, "death").await;
        modem.ring("+49301234567");
        let ringing =
            |state: &mut State| (calls(state).last()?.state == CallState::Ringing).then_some(());
        appliance.until("a call rings", ringing).await;
        drop(daemon);
        let unfinished = |state: &mut State| {
            let gone = told(state).into_iter().any(
                |stack| matches!(stack, Stack::Radio(radio) if radio.registration == Registration::Gone),
            );
            (gone && calls(state).last()?.state == CallState::Unfinished).then_some(())
        };
        appliance.until("the call is given up", unfinished).await;

        let daemon = ModemManager::start(&bus, phone.state().join("again.log")).await;
        let socket = format!("abstract:pollux-again-{}", std::process::id());
        let modem = Modem::start(&socket);
        daemon.enable(&daemon.plug_in(&socket).await).await;
        modem.ring("+33145678901");
        let again = |state: &mut State| {
            let call = calls(state).pop()?;
            (call.party == "+33145678901" && call.state == CallState::Ringing).then_some(())
        };
        appliance.until("another call rings", again).await;

        // The agent goes and comes back while the call is answered and goes on: it is the same one.
        agent.stop().await;
        let agent = start(&phone, &appliance);
        modem.answer();
        let answered = |state: &mut State| {
            let call = calls(state).pop()?;
            (call.party == "+33145678901" && call.state == CallState::Active).then_some(())
        };
        appliance.until("the call goes on", answered).await;
        let sql = "SELECT party, state, answered_us IS NOT NULL FROM call ORDER BY id";
        let wanted = ["+49301234567 unfinished 0", "+33145678901 open 1"];
        let found =
            |state: &mut State| (rows(&synchronised(&phone, state)?, sql) == wanted).then_some(());
        appliance.until("both calls are kept", found).await;
        agent.stop().await;
    });
}
