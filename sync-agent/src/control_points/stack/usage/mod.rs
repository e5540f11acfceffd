//! The usage database: what the stack control point learned, in a SQLite file on the phone's own flash. It is
//! synchronised like any file, and the appliance's inspector reads it there.
//!
//! The schema, with what each column means, is in `version-1.sql`; `PRAGMA user_version` is its version, and a database of an older
//! one is migrated when it is opened. Each record is stamped with time, place and tower [US 8,340,633, FIG. 8].
//!
//! **For synchronisation** a file must be closed when it is whole: each [`UsageDb::record`] opens it, makes one
//! transaction, and closes it. It has a rollback journal and no write-ahead log, so that the main file alone is the
//! database whenever nobody writes. Writing at every sample would cost flash, network and power, so samples wait for
//! something that matters, or for [`SAMPLES_WAIT_US`].
//!
//! **Size.** At [`BYTES_MAX`] the oldest samples go, then the oldest of everything.
//!
//! **Safety.** A transaction is whole or not at all, whenever the power fails. A damaged file is put aside and begun anew.
//! A call is one row from its first ring on; one that the agent did not see end is marked so.

mod rows;
mod schema;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Transaction};
use sync_protocol::stack::{Stack, TextMessage};

use crate::clock::Stamp;

/// All of the file: at a sample a minute, day and night, some five months of them.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
const PAGE_BYTES: u64 = 4096;
/// Samples kept back until something that matters is written, and how long at most.
const SAMPLES_MAX: usize = 256;
const SAMPLES_WAIT_US: u64 = 60_000_000;
/// What waits while the disk is full; then the oldest goes.
const WAITING_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("cannot make the usage database's directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("the usage database {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("the usage database {path} is of version {version}, which a later agent made")]
    Later { path: PathBuf, version: usize },
    #[error("the usage database {path} cannot be written")]
    Database {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("cannot put the damaged usage database {path} aside")]
    PutAside { path: PathBuf, source: io::Error },
}

/// The name of the database in its directory.
const FILE_NAME: &str = "usage.db";
/// SQLite's rollback journal, which is there while a transaction is written. Nobody else needs to see it: when the agent
/// starts, the database is whole before anything is synchronised.
pub(crate) const JOURNAL_FILE_NAME: &str = "usage.db-journal";

pub(crate) struct UsageDb {
    path: PathBuf,
    bytes_max: u64,
    /// Not written yet.
    waiting: Vec<(Stamp, Stack)>,
    /// After a failure, samples wait again: since boot.
    not_before_us: u64,
}

impl UsageDb {
    /// Opens the database in `directory`, or begins one there, and marks what an earlier run left open. Blocks.
    pub(crate) fn open(directory: &Path) -> Result<Self, UsageError> {
        Self::open_limited(directory, BYTES_MAX)
    }

    fn open_limited(directory: &Path, bytes_max: u64) -> Result<Self, UsageError> {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(directory);
        made.map_err(|source| UsageError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let usage = Self {
            path: directory.join(FILE_NAME),
            bytes_max,
            waiting: Vec::new(),
            not_before_us: 0,
        };
        usage.mending(|usage| {
            let mut db = usage.connect()?;
            usage.check(&db)?;
            let transaction = db.transaction();
            let left = transaction.and_then(|transaction| {
                schema::close_what_is_open(&transaction).map(|()| transaction)
            });
            left.and_then(Transaction::commit)
                .map_err(|source| usage.error(source))
        })?;
        Ok(usage)
    }

    /// Takes what happened, and writes it with all that waits unless it is a sample, which can wait. Blocks.
    ///
    /// On an error everything waits for the next call, as far as there is room.
    pub(crate) fn record(&mut self, stamp: Stamp, told: &[Stack]) -> Result<(), UsageError> {
        self.waiting
            .extend(told.iter().map(|stack| (stamp, stack.clone())));
        let excess = self.waiting.len().saturating_sub(WAITING_MAX);
        self.waiting.drain(..excess);
        let matters = told.iter().any(|stack| !matches!(stack, Stack::Radio(_)));
        let is_full = self.waiting.len() >= SAMPLES_MAX && self.not_before_us <= stamp.mono_us;
        let is_due = is_full || self.due_us().is_some_and(|due_us| due_us <= stamp.mono_us);
        if !matters && !is_due {
            return Ok(());
        }
        self.write().inspect_err(|_| {
            self.not_before_us = stamp.mono_us.saturating_add(SAMPLES_WAIT_US);
        })
    }

    /// When what waits should be [written](Self::write), since boot.
    pub(crate) fn due_us(&self) -> Option<u64> {
        let (stamp, _) = self.waiting.first()?;
        let due_us = stamp.mono_us.saturating_add(SAMPLES_WAIT_US);
        Some(due_us.max(self.not_before_us))
    }

    /// Writes what waits. Blocks.
    pub(crate) fn write(&mut self) -> Result<(), UsageError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.mending(|usage| match usage.write_once() {
            // The file is full, or the disk: room within the file is made all the same.
            Err(UsageError::Database { source, .. })
                if source.sqlite_error_code() == Some(ErrorCode::DiskFull) =>
            {
                usage.make_room()?;
                usage.write_once()
            }
            other => other,
        })?;
        self.waiting.clear();
        Ok(())
    }

    /// Whether a message that was found in a modem's store has been recorded before, which only its stamp can tell.
    pub(crate) fn knows(&self, message: &TextMessage) -> Result<bool, UsageError> {
        let waits = self
            .waiting
            .iter()
            .any(|(_, stack)| matches!(stack, Stack::Message(other) if other == message));
        if waits {
            return Ok(true);
        }
        let db = self.connect()?;
        rows::knows_message(&db, message).map_err(|source| self.error(source))
    }

    fn write_once(&self) -> Result<(), UsageError> {
        let mut db = self.connect()?;
        let write = |db: &mut Connection| {
            let transaction = db.transaction()?;
            for (stamp, stack) in &self.waiting {
                rows::write_one(&transaction, stamp.wall_us, stack)?;
            }
            transaction.commit()
        };
        write(&mut db).map_err(|source| self.error(source))?;
        if self.used_bytes(&db)? > self.bytes_max / 8 * 7 {
            self.make_room()?;
        }
        Ok(())
    }

    /// Drops the oldest part of the most expendable table that has rows, until an eighth of the file is free.
    fn make_room(&self) -> Result<(), UsageError> {
        let db = self.connect()?;
        for table in schema::DETAIL_FIRST {
            while self.used_bytes(&db)? > self.bytes_max / 8 * 7 {
                let dropped =
                    schema::drop_oldest(&db, table).map_err(|source| self.error(source))?;
                if dropped == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn used_bytes(&self, db: &Connection) -> Result<u64, UsageError> {
        let pages = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let used = pages("page_count").and_then(|all| Ok(all - pages("freelist_count")?));
        let used = used.map_err(|source| self.error(source))?;
        Ok(u64::try_from(used).unwrap_or(0) * PAGE_BYTES)
    }

    /// Does it, and if the file is found to be damaged, puts that aside and does it with a new one.
    fn mending<T>(&self, what: impl Fn(&Self) -> Result<T, UsageError>) -> Result<T, UsageError> {
        match what(self) {
            Err(error @ UsageError::Damaged { .. }) => {
                tracing::error!(%error, "it is put aside and begun anew");
                self.put_aside()?;
                what(self)
            }
            other => other,
        }
    }

    /// One damaged file is kept for whoever wants to look.
    fn put_aside(&self) -> Result<(), UsageError> {
        let failed = |source| UsageError::PutAside {
            path: self.path.clone(),
            source,
        };
        std::fs::rename(&self.path, self.path.with_extension("damaged")).map_err(failed)?;
        match std::fs::remove_file(self.path.with_file_name(JOURNAL_FILE_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    fn connect(&self) -> Result<Connection, UsageError> {
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let db = Connection::open(&self.path)?;
            db.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
            db.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
            db.pragma_update(None, "synchronous", "FULL")?;
            let pages = i64::try_from(self.bytes_max / PAGE_BYTES).unwrap_or(i64::MAX);
            db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
            let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok((db, version))
        };
        let (mut db, version) = open().map_err(|source| self.error(source))?;
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > schema::VERSION {
            return Err(UsageError::Later {
                path: self.path.clone(),
                version,
            });
        }
        if version < schema::VERSION {
            schema::migrate(&mut db, version).map_err(|source| self.error(source))?;
            let private = std::fs::Permissions::from_mode(0o600);
            let made_private = std::fs::set_permissions(&self.path, private);
            made_private.map_err(|source| UsageError::Directory {
                path: self.path.clone(),
                source,
            })?;
        }
        Ok(db)
    }

    fn check(&self, db: &Connection) -> Result<(), UsageError> {
        let soundness: String = db
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| self.error(source))?;
        match soundness.as_str() {
            "ok" => Ok(()),
            _ => Err(UsageError::Damaged {
                path: self.path.clone(),
                reason: soundness,
            }),
        }
    }

    fn error(&self, source: rusqlite::Error) -> UsageError {
        let path = self.path.clone();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => UsageError::Damaged {
                path,
                reason: source.to_string(),
            },
            _ => UsageError::Database { path, source },
        }
    }
}

#[cfg(test)]
mod tests;
