//! From a phone's databases to a report and back to the records.

use rusqlite::Connection;
use serde_json::{Value, json};
use usage::fact::{Call, Direction, Fact};
use usage::inspect::{Database, InspectError, Inspector, inspector_of};
use usage::report::{Catalog, Period, PhoneEntry, Report, ReportError, Table};
use usage::store::FactStore;

const RECORDS_DB: &[u8] = b"/home/user/.local/share/calls/records.db";
const CHATTY_DB: &[u8] = b"/home/user/.purple/chatty/db/chatty-history.db";
const USAGE_DB: &[u8] = b"/var/lib/pollux-usage/usage.db";
const DAY_US: i64 = 86_400_000_000;
/// 2026-11-01T00:00:00Z
const NOVEMBER_US: i64 = 1_793_491_200_000_000;

const CALLS_SCHEMA: &str = "CREATE TABLE calls (id INTEGER PRIMARY KEY, target TEXT, inbound INTEGER, start TEXT, answered TEXT, \"end\" TEXT)";
const CHATTY_SCHEMA: &str = "CREATE TABLE threads (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE messages (id INTEGER PRIMARY KEY, thread_id INTEGER, body TEXT, direction INTEGER, time INTEGER, status INTEGER)";

/// As the agent makes it.
const USAGE_SCHEMA: &str = include_str!("../../../sync-agent/src/control_points/stack/usage/version-1.sql");

/// The files of a database that `fill` has written, as a phone's flash would hold them.
fn database(path: &[u8], position: u64, fill: impl FnOnce(&Connection)) -> Database {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db");
    let connection = Connection::open(&file).unwrap();
    fill(&connection);
    let read = |suffix: &str| std::fs::read(dir.path().join(format!("db{suffix}"))).ok();
    // Read while the connection is open: a phone does not close its databases for us.
    Database { path: path.to_vec(), position, main: read("").unwrap(), wal: read("-wal"), journal: read("-journal") }
}

fn call_log(position: u64, rows: &[(&str, bool, &str, Option<&str>, Option<&str>)]) -> Database {
    database(RECORDS_DB, position, |db| {
        db.execute_batch(CALLS_SCHEMA).unwrap();
        for row in rows {
            let sql = "INSERT INTO calls (target, inbound, start, answered, \"end\") VALUES (?1, ?2, ?3, ?4, ?5)";
            db.execute(sql, rusqlite::params![row.0, row.1, row.2, row.3, row.4]).unwrap();
        }
    })
}

#[test]
fn changed_files_find_their_inspector_and_database() {
    assert_eq!(inspector_of(RECORDS_DB), Some((Inspector::GnomeCalls, RECORDS_DB)));
    let journal = [CHATTY_DB, b"-wal"].concat();
    assert_eq!(inspector_of(&journal), Some((Inspector::Chatty, CHATTY_DB)));
    assert_eq!(inspector_of(USAGE_DB), Some((Inspector::Pollux, USAGE_DB)));
    assert_eq!(inspector_of(b"/home/user/Notes/records.db"), None);
    assert_eq!(inspector_of(b"/home/user/usage.db"), None);
}

#[test]
fn calls_are_read_with_their_times_and_rows() {
    let log = call_log(
        7,
        &[
            ("+49301234", false, "2026-11-02T10:00:00Z", Some("2026-11-02T10:00:05Z"), Some("2026-11-02T10:02:35.5Z")),
            ("+33145678", true, "2026-11-02T12:00:00+01", None, Some("2026-11-02T12:00:30+01")),
            ("not begun", false, "", None, None),
        ],
    );
    let facts = Inspector::GnomeCalls.inspect(&log).unwrap();
    let calls: Vec<&Call> = facts.iter().map(|f| if let Fact::Call(call) = f { call } else { panic!("{f:?}") }).collect();
    assert_eq!(calls.len(), 2);
    assert_eq!((calls[0].direction, calls[0].started_us), (Direction::Out, NOVEMBER_US + DAY_US + 36_000_000_000));
    assert_eq!(calls[0].duration_s(), 150.5);
    assert_eq!((calls[1].direction, calls[1].answered_us), (Direction::In, None));
    // The second was at noon, one hour east of Greenwich.
    assert_eq!(calls[1].started_us, calls[0].started_us + 3_600_000_000);
    assert_eq!((calls[1].from.row, calls[1].from.position), (2, 7));
}

#[test]
fn what_is_only_in_the_write_ahead_log_counts() {
    let log = database(RECORDS_DB, 1, |db| {
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch(CALLS_SCHEMA).unwrap();
        db.execute("INSERT INTO calls VALUES (1, '110', 0, '2026-11-02T10:00:00Z', NULL, NULL)", []).unwrap();
    });
    assert!(log.wal.as_ref().is_some_and(|wal| !wal.is_empty()));
    assert_eq!(Inspector::GnomeCalls.inspect(&log).unwrap().len(), 1);
}

#[test]
fn damaged_and_foreign_databases_are_refused_with_their_path() {
    let mut log = call_log(1, &[("110", false, "2026-11-02T10:00:00Z", None, None)]);
    log.main.truncate(log.main.len() - 1000);
    log.main[100..400].fill(0xa5);
    let error = Inspector::GnomeCalls.inspect(&log).unwrap_err();
    assert!(matches!(error, InspectError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("records.db"), "{error}");

    let garbage = Database { path: CHATTY_DB.to_vec(), main: vec![0x55; 10_000], ..Database::default() };
    assert!(Inspector::Chatty.inspect(&garbage).is_err());
    let empty = Database { path: CHATTY_DB.to_vec(), ..Database::default() };
    assert_eq!(Inspector::Chatty.inspect(&empty).unwrap(), []);
}

#[test]
fn facts_outlive_their_rows_and_change_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = FactStore::open(dir.path()).unwrap();
    let start = "2026-11-02T10:00:00Z";
    let running = Inspector::GnomeCalls.inspect(&call_log(1, &[("110", false, start, Some(start), None)])).unwrap();
    assert_eq!(store.record("p1", &running).unwrap(), 1);
    let ended = call_log(2, &[("110", false, start, Some(start), Some("2026-11-02T10:01:00Z"))]);
    let ended = Inspector::GnomeCalls.inspect(&ended).unwrap();
    assert_eq!(store.record("p1", &ended).unwrap(), 1, "the call has ended since");
    assert_eq!(store.record("p1", &ended).unwrap(), 0, "nothing new");
    assert_eq!(store.record("p1", &[]).unwrap(), 0, "the user cleared the call log");
    let table = run(&store, "calls_by_person_and_carrier", november());
    assert_eq!(table.rows.len(), 1);
    assert!(store.record("../p1", &ended).is_err());
}

/// The agent's own records: party, incoming, seconds into November at which the call started, was answered, ended; dropped.
fn usage_log(rows: &[(&str, bool, i64, Option<i64>, Option<i64>, bool)]) -> Database {
    database(USAGE_DB, 9, |db| {
        db.execute_batch(USAGE_SCHEMA).unwrap();
        let radio = "INSERT INTO radio VALUES (4, 'm', 0, NULL, 'roaming', '208', '01', 'Orange F', '4G', 0, 11009, 11259375)";
        db.execute(radio, []).unwrap();
        for (number, (party, incoming, start, answered, end, dropped)) in rows.iter().enumerate() {
            let us = |second: i64| NOVEMBER_US + second * 1_000_000;
            let sql = "INSERT INTO call (name, modem, direction, party, started_us, answered_us, ended_us, state, dropped,
                start_radio, start_percent) VALUES (?1, 'm', ?2, ?3, ?4, ?5, ?6, 'ended', ?7, 4, 61)";
            let direction = if *incoming { "in" } else { "out" };
            let name = number.to_string();
            let values = rusqlite::params![name, direction, party, us(*start), answered.map(us), end.map(us), dropped];
            db.execute(sql, values).unwrap();
        }
    })
}

#[test]
fn the_agents_own_records_tell_of_the_network() {
    let log = usage_log(&[("+33612345678", false, 60, Some(65), Some(95), true)]);
    let facts = Inspector::Pollux.inspect(&log).unwrap();
    let [Fact::Call(call)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!((call.direction, call.party.as_str(), call.duration_s()), (Direction::Out, "+33612345678", 30.0));
    let network = call.network.as_ref().unwrap();
    assert_eq!((network.dropped, network.roaming, network.signal_percent), (true, true, Some(61)));
    assert_eq!((network.tower.as_str(), network.technology.as_str()), ("208-01-11009-11259375", "4G"));
    let made = database(USAGE_DB, 1, |db| db.pragma_update(None, "page_size", 4096).unwrap());
    assert_eq!(Inspector::Pollux.inspect(&made).unwrap(), []);
}

#[test]
fn a_call_that_two_databases_tell_of_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = FactStore::open(dir.path()).unwrap();
    let at = |second: i64| format!("2026-11-01T00:{:02}:{:02}Z", second / 60, second % 60);
    let (first, redialled, ended) = (at(61), at(68), at(98));
    let calls = call_log(
        5,
        &[
            // The same number twice within seconds: each is matched with its own.
            ("0612345678", false, &first, None, Some(&redialled)),
            ("0612345678", false, &redialled, Some(&redialled), Some(&ended)),
            // The same time, but another number, another direction; another time.
            ("0699999999", false, &first, None, None),
            ("0612345678", true, &first, None, None),
            ("0612345678", false, "2026-11-02T00:01:01Z", None, None),
        ],
    );
    let agents = [
        ("+33612345678", false, 60, None, Some(66), false),
        ("+33612345678", false, 67, Some(70), Some(98), true),
        // It never saw the end of this one, and the telephone's application did.
        ("", true, 200, None, None, false),
    ];
    let withheld = call_log(6, &[("", true, &at(201), Some(&at(203)), Some(&at(233)))]);
    let withheld = Database { path: [b"/other", RECORDS_DB].concat(), ..withheld };
    // Whichever comes first.
    store.record("p1", &Inspector::GnomeCalls.inspect(&calls).unwrap()).unwrap();
    let own = Inspector::Pollux.inspect(&usage_log(&agents)).unwrap();
    assert_eq!(store.record("p1", &own).unwrap(), 3);
    assert_eq!(store.record("p1", &own).unwrap(), 0, "nothing new");
    store.record("p1", &Inspector::GnomeCalls.inspect(&withheld).unwrap()).unwrap();

    let catalog = Catalog::built_in();
    let report = catalog.report("calls_by_person_and_carrier").unwrap();
    let key = [("person".to_owned(), "Ada".to_owned()), ("carrier".to_owned(), "Telekom".to_owned())];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(report.records(&store, &phones(), november(), "calls", &key)).unwrap();
    let mut told: Vec<String> = (0..found.rows.len())
        .map(|index| row(&found, index))
        .map(|call| format!("{} {} {} {}", call["party"], call["started"], call["dropped"], call["tower"]))
        .collect();
    told.sort();
    let tower = "\"208-01-11009-11259375\"";
    let expected = [
        "\"\" \"2026-11-01T00:03:21Z\" null null".to_owned(),
        format!("\"+33612345678\" \"2026-11-01T00:01:00Z\" false {tower}"),
        format!("\"+33612345678\" \"2026-11-01T00:01:07Z\" true {tower}"),
        "\"0612345678\" \"2026-11-01T00:01:01Z\" null null".to_owned(),
        "\"0612345678\" \"2026-11-02T00:01:01Z\" null null".to_owned(),
        "\"0699999999\" \"2026-11-01T00:01:01Z\" null null".to_owned(),
    ];
    assert_eq!(told, expected);
    let table = run(&store, "calls_by_person_and_carrier", november());
    assert_eq!(row(&table, 0)["calls"], json!(6));
}

/// Facts are kept for years: those of before calls had networks are read on, beside new ones.
#[test]
fn facts_of_an_earlier_version_are_read() {
    use datafusion::parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
    let dir = tempfile::tempdir().unwrap();
    let store = FactStore::open(dir.path()).unwrap();
    let start = "2026-11-02T10:00:00Z";
    let old = Inspector::GnomeCalls.inspect(&call_log(1, &[("110", false, start, Some(start), None)])).unwrap();
    store.record("p1", &old).unwrap();
    let path = dir.path().join("calls/p1.parquet");
    let file = std::fs::File::open(&path).unwrap();
    let batch = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().next().unwrap().unwrap();
    let earlier = batch.project(&(0..10).collect::<Vec<_>>()).unwrap();
    assert_eq!(earlier.schema().field(9).name(), "duration_s");
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), earlier.schema(), None).unwrap();
    writer.write(&earlier).unwrap();
    writer.close().unwrap();

    assert_eq!(row(&run(&store, "calls_by_person_and_carrier", november()), 0)["calls"], json!(1));
    let new = Inspector::Pollux.inspect(&usage_log(&[("112", false, 60, None, None, false)])).unwrap();
    assert_eq!(store.record("p1", &new).unwrap(), 1);
    assert_eq!(row(&run(&store, "calls_by_person_and_carrier", november()), 0)["calls"], json!(2));
}

fn november() -> Period {
    Period { from_us: NOVEMBER_US, to_us: NOVEMBER_US + 30 * DAY_US }
}

fn phones() -> Vec<PhoneEntry> {
    let entry = |phone: &str, person: &str, department: &str, carrier: &str| PhoneEntry {
        phone: phone.into(),
        person: person.into(),
        department: department.into(),
        carrier: carrier.into(),
    };
    vec![entry("p1", "Ada", "Sales", "Telekom"), entry("p2", "Ben O'Neil", "Service", "Vodafone")]
}

fn run(store: &FactStore, name: &str, period: Period) -> Table {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Catalog::built_in().report(name).unwrap().run(store, &phones(), period)).unwrap()
}

/// A row as an object.
fn row(table: &Table, index: usize) -> Value {
    table.columns.iter().map(|c| c.name.clone()).zip(table.rows[index].iter().cloned()).collect::<serde_json::Map<_, _>>().into()
}

fn filled_store(dir: &std::path::Path) -> FactStore {
    let store = FactStore::open(dir).unwrap();
    let ada = call_log(
        1,
        &[
            ("+49301", false, "2026-10-20T10:00:00Z", Some("2026-10-20T10:00:00Z"), Some("2026-10-20T10:01:00Z")),
            ("+49301", false, "2026-11-02T10:00:00Z", Some("2026-11-02T10:00:00Z"), Some("2026-11-02T10:03:00Z")),
            ("+49302", true, "2026-11-03T10:00:00Z", None, Some("2026-11-03T10:00:20Z")),
        ],
    );
    store.record("p1", &Inspector::GnomeCalls.inspect(&ada).unwrap()).unwrap();
    let ben = call_log(1, &[("+49303", true, "2026-11-05T08:00:00Z", Some("2026-11-05T08:00:01Z"), Some("2026-11-05T08:01:01Z"))]);
    store.record("p2", &Inspector::GnomeCalls.inspect(&ben).unwrap()).unwrap();
    let messages = database(CHATTY_DB, 3, |db| {
        db.execute_batch(CHATTY_SCHEMA).unwrap();
        db.execute("INSERT INTO threads VALUES (1, '+49304')", []).unwrap();
        let november = NOVEMBER_US / 1_000_000;
        for (body, direction, status) in [("Grüße", -1, 3), ("ok", 1, 2), ("unsent", -1, 1), ("You joined", 0, 0)] {
            let sql = "INSERT INTO messages (thread_id, body, direction, time, status) VALUES (1, ?1, ?2, ?3, ?4)";
            db.execute(sql, rusqlite::params![body, direction, november + 60, status]).unwrap();
        }
    });
    store.record("p2", &Inspector::Chatty.inspect(&messages).unwrap()).unwrap();
    store
}

#[test]
fn the_three_reports_count_what_happened() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled_store(dir.path());

    let calls = run(&store, "calls_by_person_and_carrier", november());
    let expected = json!({"person": "Ada", "carrier": "Telekom", "calls": 2, "made": 1, "received": 0, "missed": 1, "minutes": 3.0,
        "latest": "2026-11-03T10:00:00Z"});
    assert_eq!(row(&calls, 0), expected);
    assert_eq!(row(&calls, 1)["minutes"], json!(1.0));

    let messages = run(&store, "messages_by_person", november());
    let expected = json!({"person": "Ben O'Neil", "messages": 2, "sent": 1, "received": 1, "parties": 1, "bytes": 9,
        "latest": "2026-11-01T00:01:00Z"});
    assert_eq!(row(&messages, 0), expected);

    let overall = run(&store, "overall_activity", november());
    let ada = (0..2).map(|i| row(&overall, i)).find(|r| r["person"] == "Ada").unwrap();
    assert_eq!((&ada["calls"], &ada["calls_before"], &ada["calls_change_pct"]), (&json!(2), &json!(1), &json!(100.0)));
    assert_eq!((&ada["minutes_change_pct"], &ada["messages_change_pct"]), (&json!(200.0), &Value::Null));
}

#[test]
fn every_row_leads_to_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled_store(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let catalog = Catalog::built_in();
    for report in catalog.reports() {
        let table = runtime.block_on(report.run(&store, &phones(), november())).unwrap();
        assert!(!table.rows.is_empty(), "{}", report.name);
        for index in 0..table.rows.len() {
            let cells = row(&table, index);
            for records in &report.records {
                let key: Vec<(String, String)> =
                    records.by.iter().map(|c| (c.clone(), cells[c].as_str().unwrap().to_owned())).collect();
                let found = runtime.block_on(report.records(&store, &phones(), november(), &records.table, &key)).unwrap();
                assert_eq!(json!(found.rows.len()), cells[&records.table], "{} {key:?}", report.name);
                if !found.rows.is_empty() {
                    assert!(row(&found, 0)["source_path"].as_str().unwrap().starts_with("/home/user/"));
                }
            }
        }
    }
}

#[test]
fn an_empty_store_gives_an_empty_table() {
    let dir = tempfile::tempdir().unwrap();
    let store = FactStore::open(dir.path()).unwrap();
    let table = run(&store, "overall_activity", november());
    assert_eq!(table.rows.len(), 0);
    assert!(table.columns.iter().any(|c| c.name == "messages_change_pct"));
}

#[test]
fn reports_only_read_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled_store(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for sql in ["DROP VIEW calls", "CREATE TABLE t AS SELECT 1", "COPY calls TO '/tmp/x.csv'", "SELECT nonsense FROM calls", "not sql"] {
        let report = Report::parse("custom", sql).unwrap();
        let error = runtime.block_on(report.run(&store, &phones(), november())).unwrap_err();
        assert!(matches!(error, ReportError::Query { .. }), "{sql}: {error}");
    }
    let backwards = Period { from_us: 1, to_us: 0 };
    assert!(matches!(
        runtime.block_on(Catalog::built_in().reports()[0].run(&store, &phones(), backwards)),
        Err(ReportError::Period)
    ));
    for header in ["-- chart: pie x by y", "-- records: users by person", "-- records: calls by person; DROP", "-- colour: red", "-- title"] {
        assert!(matches!(Report::parse("custom", &format!("{header}\nSELECT 1")), Err(ReportError::Header { .. })), "{header}");
    }
}
