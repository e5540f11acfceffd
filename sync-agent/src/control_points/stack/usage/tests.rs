//! The usage database's promises, each broken once or about to be.

use sync_protocol::stack::{
    Call, CallEnd, CallState, Direction, Position, Radio, Registration, Tower,
};

use super::*;

const SECOND: i64 = 1_000_000;

fn at(second: i64) -> Stamp {
    Stamp {
        wall_us: second * SECOND,
        mono_us: u64::try_from(second * SECOND).unwrap(),
    }
}

fn radio(registration: Registration, code: &str, cell: u64, signal_percent: u32) -> Stack {
    Stack::Radio(Radio {
        modem: "m".into(),
        registration,
        operator_code: code.into(),
        operator_name: "Net".into(),
        technologies: 1 << 14,
        signal_percent,
        tower: Tower {
            lac: 0,
            tac: 7,
            cell,
        },
        position: Some(Position {
            latitude: 52.5,
            longitude: 13.4,
        }),
    })
}

fn call(name: &str, state: CallState, dropped: bool) -> Stack {
    let end = match state {
        CallState::Ended => CallEnd::Terminated,
        _ => CallEnd::Unspecified,
    };
    Stack::Call(Call {
        call: name.into(),
        modem: "m".into(),
        direction: Direction::Out,
        party: "110".into(),
        state,
        end,
        dropped,
    })
}

fn message(size_bytes: u64) -> TextMessage {
    TextMessage {
        modem: "m".into(),
        direction: Direction::In,
        party: "110".into(),
        size_bytes,
        network_time: "2026-11-27T10:32:45+01".into(),
    }
}

fn rows(directory: &Path, sql: &str) -> Vec<String> {
    let db = Connection::open(directory.join(FILE_NAME)).unwrap();
    let mut select = db.prepare(sql).unwrap();
    let rows = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn a_call_is_one_row_with_time_place_and_tower() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    usage
        .record(at(1), &[radio(Registration::Home, "26201", 5, 80)])
        .unwrap();
    usage
        .record(at(2), &[call("c", CallState::Dialing, false)])
        .unwrap();
    usage
        .record(at(3), &[call("c", CallState::Active, false)])
        .unwrap();
    usage
        .record(at(4), &[radio(Registration::Home, "26201", 6, 60)])
        .unwrap();
    usage
        .record(at(5), &[call("c", CallState::Held, false)])
        .unwrap();
    usage
        .record(at(6), &[call("c", CallState::Ended, false)])
        .unwrap();
    // That it was dropped is known later; it has ended no later.
    usage
        .record(at(9), &[call("c", CallState::Ended, true)])
        .unwrap();
    let sql = "SELECT concat_ws(' ', started_us / 1000000, answered_us / 1000000, call.ended_us / 1000000, state, end_reason, dropped,
                   b.cell, start_percent, start_latitude, e.cell, end_percent, end_longitude)
               FROM call JOIN radio b ON b.id = start_radio JOIN radio e ON e.id = end_radio";
    assert_eq!(
        rows(directory.path(), sql),
        ["2 3 6 ended terminated 1 5 80 52.5 6 60 13.4"]
    );
}

#[test]
fn spells_end_when_others_begin() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let spells = [
        radio(Registration::Home, "26201", 1, 50),
        radio(Registration::Home, "26201", 1, 70),
        radio(Registration::Roaming, "20801", 2, 50),
        radio(Registration::Roaming, "20801", 3, 50),
        radio(Registration::Roaming, "22801", 4, 50),
        Stack::Radio(Radio {
            modem: "m".into(),
            registration: Registration::Gone,
            ..Radio::default()
        }),
    ];
    for (spell, second) in spells.into_iter().zip(1..) {
        usage.record(at(second), &[spell]).unwrap();
    }
    assert!(
        rows(directory.path(), "SELECT mcc FROM radio").is_empty(),
        "samples wait"
    );
    assert_eq!(usage.due_us(), Some(1_000_000 + SAMPLES_WAIT_US));
    usage.write().unwrap();
    let sql =
        "SELECT concat_ws(' ', began_us / 1000000, ended_us / 1000000, cell, count(*)) FROM radio
               JOIN signal ON signal.radio = radio.id GROUP BY radio.id ORDER BY radio.id";
    assert_eq!(
        rows(directory.path(), sql),
        ["1 3 1 2", "3 4 2 1", "4 5 3 1", "5 6 4 1"]
    );
    let sql = "SELECT concat_ws(' ', began_us / 1000000, ended_us / 1000000, mcc) FROM roaming ORDER BY id";
    assert_eq!(rows(directory.path(), sql), ["3 5 208", "5 6 228"]);
}

#[test]
fn samples_are_written_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let late = 1 + i64::try_from(SAMPLES_WAIT_US).unwrap() / SECOND;
    for second in [1, late - 1] {
        usage
            .record(at(second), &[radio(Registration::Home, "26201", 1, 50)])
            .unwrap();
        assert!(rows(directory.path(), "SELECT mcc FROM radio").is_empty());
    }
    // Nothing more need be told for it.
    usage.record(at(late), &[]).unwrap();
    assert_eq!(rows(directory.path(), "SELECT mcc FROM radio"), ["262"]);
    assert_eq!(usage.due_us(), None);
}

#[test]
fn what_a_crash_left_open_is_marked_and_can_be_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let roaming = |signal| radio(Registration::Roaming, "20801", 1, signal);
    usage.record(at(1), &[roaming(50)]).unwrap();
    usage.record(at(4), &[roaming(70)]).unwrap();
    usage
        .record(
            at(5),
            &[
                call("c", CallState::Active, false),
                call("d", CallState::Active, false),
            ],
        )
        .unwrap();
    drop(usage);
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let states = "SELECT concat_ws(' ', name, state, ended_us) FROM call ORDER BY id";
    assert_eq!(
        rows(directory.path(), states),
        ["c unfinished", "d unfinished"]
    );
    let spells = "SELECT concat_ws(' ', began_us / 1000000, ended_us / 1000000) FROM radio
                  UNION ALL SELECT concat_ws(' ', began_us / 1000000, ended_us / 1000000) FROM roaming";
    assert_eq!(rows(directory.path(), spells), ["1 4", "1 4"]);
    usage
        .record(at(7), &[call("c", CallState::Active, false)])
        .unwrap();
    assert_eq!(rows(directory.path(), states), ["c open", "d unfinished"]);
    let answered = "SELECT CAST(answered_us / 1000000 AS TEXT) FROM call WHERE name = 'c'";
    assert_eq!(rows(directory.path(), answered), ["5"]);
}

#[test]
fn messages_found_in_a_store_are_known_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    assert!(!usage.knows(&message(7)).unwrap());
    usage.record(at(1), &[Stack::Message(message(7))]).unwrap();
    assert!(usage.knows(&message(7)).unwrap());
    assert!(!usage.knows(&message(8)).unwrap());
}

#[test]
fn a_damaged_file_is_put_aside_whenever_it_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    std::fs::write(&path, vec![0x55; 10_000]).unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let aside = directory.path().join("usage.damaged");
    assert_eq!(std::fs::read(&aside).unwrap().len(), 10_000);
    usage
        .record(at(1), &[call("c", CallState::Dialing, false)])
        .unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::write(&path, "not a database, and no multiple of a page").unwrap();
    usage
        .record(at(2), &[call("d", CallState::Dialing, false)])
        .unwrap();
    assert_eq!(rows(directory.path(), "SELECT name FROM call"), ["d"]);

    // One page within it: the tables' own.
    drop(usage);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..8192].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    UsageDb::open(directory.path()).unwrap();
    assert!(rows(directory.path(), "SELECT name FROM call").is_empty());
}

/// Else whoever writes when it is due would do nothing else.
#[test]
fn what_cannot_be_written_waits_and_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut usage = UsageDb::open(directory.path()).unwrap();
    let path = directory.path().join(FILE_NAME);
    std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    std::fs::create_dir(&path).unwrap();
    usage
        .record(at(1), &[radio(Registration::Home, "26201", 1, 50)])
        .unwrap();
    for _ in 0..3 {
        let due_us = usage.due_us().unwrap();
        let second = i64::try_from(due_us).unwrap() / SECOND;
        assert!(usage.record(at(second), &[]).is_err());
        assert_eq!(usage.due_us(), Some(due_us + SAMPLES_WAIT_US));
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(directory.path().join("elsewhere"), &path).unwrap();
    usage
        .record(at(300), &[call("c", CallState::Dialing, false)])
        .unwrap();
    let sql = "SELECT name || mcc FROM call JOIN radio ON radio.id = start_radio";
    assert_eq!(rows(directory.path(), sql), ["c262"]);
}

#[test]
fn a_later_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    UsageDb::open(directory.path()).unwrap();
    let db = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    db.pragma_update(None, "user_version", schema::VERSION as i64 + 1)
        .unwrap();
    assert!(matches!(
        UsageDb::open(directory.path()),
        Err(UsageError::Later { .. })
    ));
}

#[test]
fn it_stays_within_its_size_and_keeps_calls_and_their_towers() {
    let directory = tempfile::tempdir().unwrap();
    let limit = 128 * 1024;
    let mut usage = UsageDb::open_limited(directory.path(), limit).unwrap();
    for second in 1..6000 {
        let cell = u64::try_from(second / 10).unwrap();
        usage
            .record(at(second), &[radio(Registration::Home, "26201", cell, 50)])
            .unwrap();
        if second % 300 == 0 {
            let name = format!("c{second}");
            let told =
                [CallState::Dialing, CallState::Ended].map(|state| call(&name, state, false));
            usage.record(at(second), &told).unwrap();
        }
    }
    usage.write().unwrap();
    let size = directory.path().join(FILE_NAME).metadata().unwrap().len();
    assert!(size <= limit, "{size}");
    let placed = "SELECT name FROM call JOIN radio ON radio.id = start_radio";
    assert_eq!(rows(directory.path(), placed).len(), 19);
    let newest = rows(
        directory.path(),
        "SELECT CAST(max(at_us) AS TEXT) FROM signal",
    );
    assert_eq!(newest, [(5999 * SECOND).to_string()]);

    // Calls alone fill it, too: then the oldest go.
    for batch in 0..30 {
        let name = |number| format!("x{}", batch * 100 + number);
        let told: Vec<_> = (0..100)
            .map(|number| call(&name(number), CallState::Dialing, false))
            .collect();
        usage.record(at(6000 + batch), &told).unwrap();
    }
    let size = directory.path().join(FILE_NAME).metadata().unwrap().len();
    assert!(size <= limit, "{size}");
    let names = rows(directory.path(), "SELECT name FROM call ORDER BY id");
    assert_eq!(names.last().unwrap(), "x2999");
    assert!(!names.contains(&"c300".to_owned()));
}
