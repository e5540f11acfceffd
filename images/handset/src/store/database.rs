//! Opening a SQLite file for one operation, and what to do when it is damaged.
//!
//! Reading never changes a damaged file: the reader may be looking at a copy that is still being
//! written. Writing keeps the damaged file aside under a free name and starts afresh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Result, StoreError};

/// How long another writer may hold the file.
const BUSY_MAX: Duration = Duration::from_secs(2);

pub(super) struct Database {
    pub path: PathBuf,
    /// What the user calls it, in messages.
    pub what: &'static str,
    /// Brings an empty or older file to the present schema; called in a transaction of its own.
    pub prepare: fn(&Connection) -> rusqlite::Result<()>,
}

impl Database {
    /// Runs `query` on the file, read-only. A missing file gives `T::default()`.
    ///
    /// The file is opened for writing only if it cannot be read otherwise (an unfinished change has to
    /// be rolled back first): closing a file that was open for writing looks like a change to others.
    pub(super) fn read<T: Default>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        if !self.path.exists() {
            return Ok(T::default());
        }
        let run = |flags| {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_MAX)?;
            query(&connection)
        };
        let result = match run(OpenFlags::SQLITE_OPEN_READ_ONLY) {
            Err(error) if needs_writing(&error) => run(OpenFlags::SQLITE_OPEN_READ_WRITE),
            other => other,
        };
        match result {
            // The file was just made, and its schema is not there yet.
            Err(error) if error.to_string().starts_with("no such table") => Ok(T::default()),
            other => other.map_err(|error| self.error(error)),
        }
    }

    /// Runs `change` in one transaction, making the file and its schema if need be.
    ///
    /// When the file was damaged the change is made in a fresh one, and the second value says
    /// where the damaged one went.
    pub(super) fn write<T>(
        &self,
        change: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<(T, Option<StoreError>)> {
        match self.try_write(&change) {
            Err(StoreError::Damaged { what }) => {
                let kept = self.keep_aside()?;
                let value = self.try_write(&change)?;
                Ok((value, Some(StoreError::Replaced { what, kept })))
            }
            other => other.map(|value| (value, None)),
        }
    }

    fn try_write<T>(&self, change: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| StoreError::io(self.what, source))?;
        }
        let run = || {
            let mut connection = Connection::open(&self.path)?;
            connection.busy_timeout(BUSY_MAX)?;
            connection.pragma_update(None, "journal_mode", "DELETE")?;
            let transaction = connection.transaction()?;
            (self.prepare)(&transaction)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|error| self.error(error))
    }

    fn keep_aside(&self) -> Result<String> {
        let fail = |source| StoreError::io(self.what, source);
        let name = self
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kept = (1..1000)
            .map(|number| format!("{name}.damaged-{number}"))
            .find(|candidate| !self.path.with_file_name(candidate).exists())
            .ok_or_else(|| fail(std::io::ErrorKind::AlreadyExists.into()))?;
        std::fs::rename(&self.path, self.path.with_file_name(&kept)).map_err(fail)?;
        // A rollback journal of the damaged file must not be applied to the fresh one.
        for suffix in ["-journal", "-wal", "-shm"] {
            let side = self.path.with_file_name(format!("{name}{suffix}"));
            if side.exists() {
                let aside = self.path.with_file_name(format!("{kept}{suffix}"));
                std::fs::rename(side, aside).map_err(fail)?;
            }
        }
        Ok(kept)
    }

    fn error(&self, source: rusqlite::Error) -> StoreError {
        let what = self.what;
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged { what }
            }
            Some(ErrorCode::DiskFull) => StoreError::Full { what },
            _ => StoreError::Database { what, source },
        }
    }
}

/// Whether reading failed for want of write access: a hot journal, or a log to be merged.
fn needs_writing(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen)
    )
}

/// Names of a table's columns; empty when there is no such table.
pub(super) fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?;
    names.collect()
}

/// Where the file lies below `home`.
pub(super) fn at(home: &Path, folder: &str, name: &str) -> PathBuf {
    home.join(folder).join(name)
}
