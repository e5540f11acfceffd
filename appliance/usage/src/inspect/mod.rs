//! Inspectors: from a database that a phone keeps to facts.
//!
//! An inspector is found by path, works on a private copy of the database together with its write-ahead log or
//! rollback journal (so that what is committed but not yet in the main file counts), and never sees the original.

mod chatty;
mod gnome_calls;
mod pollux;

use std::io::Write;

use rusqlite::Connection;

use crate::fact::{Fact, Provenance};

/// The largest database that is inspected; a phone's call log or message history stays far below.
pub const DATABASE_BYTES_MAX: usize = 512 << 20;
/// The most facts taken from one database, so that a made-up one cannot fill the appliance's memory.
pub const FACTS_MAX: usize = 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("{path} is {size} bytes, more than the {DATABASE_BYTES_MAX} that are inspected")]
    TooLarge { path: String, size: usize },
    #[error("{path} is not a sound {what} database: {reason}")]
    Damaged { path: String, what: &'static str, reason: String },
    #[error("cannot copy {path} for inspection")]
    Copy { path: String, source: std::io::Error },
}

/// What a phone keeps usage records in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspector {
    /// GNOME Calls' `records.db`.
    GnomeCalls,
    /// Chatty's `chatty-history.db`.
    Chatty,
    /// Our own agent's `usage.db`.
    Pollux,
}

/// A database as it stood at one position: the main file and what belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Absolute path of the main file on the phone.
    pub path: Vec<u8>,
    /// Position of the phone's log that these contents belong to.
    pub position: u64,
    pub main: Vec<u8>,
    /// Contents of `PATH-wal`, if there is one.
    pub wal: Option<Vec<u8>>,
    /// Contents of `PATH-journal`, if there is one.
    pub journal: Option<Vec<u8>>,
}

/// The inspector for a changed file, and the path of the main database that it belongs to: a change of
/// `records.db-wal` is a change of `records.db`.
pub fn inspector_of(path: &[u8]) -> Option<(Inspector, &[u8])> {
    let main = path.strip_suffix(b"-wal").or(path.strip_suffix(b"-journal")).unwrap_or(path);
    let inspector = match main {
        _ if main.ends_with(b"/.local/share/calls/records.db") => Inspector::GnomeCalls,
        _ if main.ends_with(b"/.purple/chatty/db/chatty-history.db") => Inspector::Chatty,
        _ if main.ends_with(b"/pollux-usage/usage.db") => Inspector::Pollux,
        _ => return None,
    };
    Some((inspector, main))
}

impl Inspector {
    /// Reads all facts out of a database. Blocking; takes time in proportion to the database.
    pub fn inspect(self, database: &Database) -> Result<Vec<Fact>, InspectError> {
        let path = String::from_utf8_lossy(&database.path).into_owned();
        let size = database.main.len() + database.wal.as_ref().map_or(0, Vec::len);
        if size > DATABASE_BYTES_MAX {
            return Err(InspectError::TooLarge { path, size });
        }
        // A database that has just been created is an empty file until its first transaction.
        if database.main.is_empty() && database.wal.is_none() {
            return Ok(Vec::new());
        }
        let copy = Copy::of(database).map_err(|source| InspectError::Copy { path: path.clone(), source })?;
        let provenance = |row| Provenance { path: path.clone(), row, position: database.position };
        let facts = copy.open().and_then(|connection| match self {
            Inspector::GnomeCalls => gnome_calls::facts(&connection, provenance),
            Inspector::Chatty => chatty::facts(&connection, provenance),
            Inspector::Pollux => pollux::facts(&connection, provenance),
        });
        facts.map_err(|e| InspectError::Damaged { path: path.clone(), what: self.name(), reason: e.to_string() })
    }

    fn name(self) -> &'static str {
        match self {
            Inspector::GnomeCalls => "GNOME Calls",
            Inspector::Chatty => "Chatty",
            Inspector::Pollux => "Pollux usage",
        }
    }
}

/// A private copy on disk, removed when dropped; recovery of a WAL or a hot journal happens here.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(database: &Database) -> std::io::Result<Copy> {
        let dir = tempfile::tempdir()?;
        let parts = [("db", Some(&database.main)), ("db-wal", database.wal.as_ref()), ("db-journal", database.journal.as_ref())];
        for (name, bytes) in parts.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
            std::fs::File::create_new(dir.path().join(name))?.write_all(bytes)?;
        }
        Ok(Copy(dir))
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(self.0.path().join("db"))?;
        // The database comes from a phone: no views, triggers or functions of its making may run.
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        Ok(connection)
    }
}

/// SQL for a stored time as microseconds since the epoch: an ISO 8601 text (what GLib writes, with whole hours from
/// Greenwich as `+01`, which SQLite does not read) or integer seconds.
/// NULL where it is neither.
fn micros(column: &str) -> String {
    format!(
        "CASE typeof({column}) WHEN 'integer' THEN {column} * 1000000 \
         ELSE CAST(round(unixepoch(CASE WHEN {column} GLOB '*T*[+-][0-9][0-9]' THEN {column} || ':00' ELSE {column} END, 'subsec') \
         * 1000000.0) AS INTEGER) END"
    )
}
