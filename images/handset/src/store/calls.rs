//! The call log, as GNOME Calls keeps it: `records.db`, table `calls`, written through libgom.
//!
//! libgom numbers its schema in `_gom_version` (one row per version reached; Calls is at 2), quotes
//! column names, gives date columns the type BLOB and stores them as ISO 8601 text in UTC with
//! microseconds. A row is made when a call starts, then stamped when answered and when ended.

use rusqlite::{Connection, params};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::database::{self, Database};
use super::{Result, Store, StoreError, normal_number};

pub const FOLDER: &str = ".local/share/calls";
pub const FILE: &str = "records.db";
/// Rows shown; older ones stay in the file.
const SHOWN_MAX: u32 = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub id: i64,
    pub target: String,
    pub inbound: bool,
    /// Unix seconds.
    pub start: i64,
    pub answered: Option<i64>,
    pub end: Option<i64>,
}

impl Store {
    /// The latest calls, newest first.
    pub fn calls(&self) -> Result<Vec<Call>> {
        self.calls_database().read(|connection| {
            let mut statement = connection.prepare(
                "SELECT id, target, inbound, start, answered, \"end\" FROM calls \
                 WHERE start IS NOT NULL ORDER BY start DESC, id DESC LIMIT ?1",
            )?;
            let rows = statement.query_map([SHOWN_MAX], |row| {
                Ok(Call {
                    id: row.get(0)?,
                    target: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                    inbound: row.get::<_, Option<bool>>(2)?.unwrap_or(false),
                    start: stamp(row, 3)?.unwrap_or(0),
                    answered: stamp(row, 4)?,
                    end: stamp(row, 5)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Records an outgoing call that is answered at once; gives its row id and, when the log had
    /// to be replaced, why.
    pub fn begin_call(&self, target: &str) -> Result<(i64, Option<StoreError>)> {
        let (target, now) = (normal_number(target), iso8601(self.now_us()));
        self.calls_database().write(|connection| {
            connection.execute(
                "INSERT INTO calls (target, inbound, start, protocol) VALUES (?1, 0, ?2, 'tel')",
                params![target, now],
            )?;
            let id = connection.last_insert_rowid();
            connection.execute(
                "UPDATE calls SET answered = ?1 WHERE id = ?2",
                params![now, id],
            )?;
            Ok(id)
        })
    }

    pub fn end_call(&self, id: i64) -> Result<Option<StoreError>> {
        let now = iso8601(self.now_us());
        let (_, replaced) = self.calls_database().write(|connection| {
            connection.execute(
                "UPDATE calls SET \"end\" = ?1 WHERE id = ?2 AND \"end\" IS NULL",
                params![now, id],
            )
        })?;
        Ok(replaced)
    }

    fn calls_database(&self) -> Database {
        Database {
            path: database::at(&self.home, FOLDER, FILE),
            what: "call log",
            prepare,
        }
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    let columns = database::columns(connection, "calls")?;
    if columns.iter().any(|name| name == "protocol") {
        return Ok(());
    }
    if columns.is_empty() {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS _gom_version (version INTEGER);
             CREATE TABLE IF NOT EXISTS 'calls' ('id' INTEGER PRIMARY KEY AUTOINCREMENT,'target' TEXT,\
             'inbound' INTEGER,'start' BLOB,'answered' BLOB,'end' BLOB);
             INSERT INTO _gom_version (version) VALUES (1);",
        )?;
    }
    connection.execute_batch(
        "ALTER TABLE 'calls' ADD COLUMN 'protocol' TEXT;
         INSERT INTO _gom_version (version) VALUES (2);",
    )
}

/// As `g_time_val_to_iso8601` writes it: the fraction only when there is one.
fn iso8601(us: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(us.div_euclid(1_000_000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (at.date(), at.time());
    let micros = us.rem_euclid(1_000_000);
    let fraction = if micros == 0 {
        String::new()
    } else {
        format!(".{micros:06}")
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{fraction}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
    )
}

/// Unix seconds of a date column. libgom writes an unset date as the epoch.
fn stamp(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    let text: Option<String> = row.get(column)?;
    let parsed = text.and_then(|t| OffsetDateTime::parse(&t, &Rfc3339).ok());
    Ok(parsed
        .map(OffsetDateTime::unix_timestamp)
        .filter(|&seconds| seconds != 0))
}
