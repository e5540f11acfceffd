//! The journal's tables, and the rows of the known tree.

use prost::Message;
use rusqlite::{Connection, Row, Transaction, params};
use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::tree::{Entry, FileKind};
use sync_protocol::wire;

use super::{JournalError, Known, as_i64, as_u64};

const PAGE_BYTES: u64 = 4096;
/// Free pages above which the file is shrunk after an acknowledgement.
const FREE_PAGES_KEPT: i64 = 4096;

/// Of the write-ahead log after a checkpoint.
const LOG_BYTES_KEPT: u64 = 1024 * 1024;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, is_file INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS chunk (
        id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, uses INTEGER NOT NULL,
        staged INTEGER NOT NULL, zstd BLOB NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS chunk_unused ON chunk (id) WHERE uses <= 0;
    CREATE INDEX IF NOT EXISTS chunk_staged ON chunk (id) WHERE staged = 1;
    CREATE TABLE IF NOT EXISTS known (
        path BLOB PRIMARY KEY, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
        size INTEGER NOT NULL, content BLOB NOT NULL,
        mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS result (command_id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
";

pub(super) fn prepare(db: &Connection, bytes_max: u64) -> Result<(), JournalError> {
    db.pragma_update(None, "page_size", as_i64(PAGE_BYTES))?;
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // A journal that grew under a larger limit must stay usable: SQLite raises the number to what is there.
    db.pragma_update_and_check(
        None,
        "max_page_count",
        as_i64(bytes_max / PAGE_BYTES),
        |_| Ok(()),
    )?;
    // The log is begun anew before it outgrows what is kept of it, so that it is written over in place: while a file grows,
    // each flush of it is two, one of the data and one of the file system's own journal.
    db.pragma_update(
        None,
        "wal_autocheckpoint",
        as_i64(LOG_BYTES_KEPT / PAGE_BYTES),
    )?;
    // The write-ahead log shrinks again after a large transaction.
    db.pragma_update_and_check(None, "journal_size_limit", as_i64(LOG_BYTES_KEPT), |_| {
        Ok(())
    })?;
    let soundness: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if soundness != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(JournalError::Damaged(rusqlite::Error::SqliteFailure(
            code,
            Some(soundness),
        )));
    }
    db.execute_batch(TABLES)?;
    Ok(())
}

/// Returns free space to the file system, once there is much of it.
pub(super) fn give_back(db: &Connection) -> Result<(), JournalError> {
    let free: i64 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free > FREE_PAGES_KEPT {
        let mut vacuum = db.prepare("PRAGMA incremental_vacuum(2048)")?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

/// Whether an event up to `seq` is of a file: chunks are large, and wait for nothing.
pub(super) fn has_files(db: &Connection, seq: u64) -> Result<bool, JournalError> {
    let mut select =
        db.prepare_cached("SELECT EXISTS (SELECT 1 FROM event WHERE seq <= ? AND is_file)")?;
    Ok(select.query_row([as_i64(seq)], |row| row.get(0))?)
}

/// Forgets events up to and including `seq`, and chunks that no event names any more.
pub(super) fn forget_events(db: &Transaction<'_>, seq: u64) -> Result<(), JournalError> {
    {
        let mut unuse = db.prepare_cached("UPDATE chunk SET uses = uses - 1 WHERE hash = ?")?;
        let mut files = db.prepare_cached("SELECT body FROM event WHERE seq <= ? AND is_file")?;
        let mut rows = files.query([as_i64(seq)])?;
        while let Some(row) = rows.next()? {
            for hash in chunk_hashes(&row.get::<_, Vec<u8>>(0)?) {
                unuse.execute([hash.as_bytes()])?;
            }
        }
    }
    drop_unused(db)?;
    db.prepare_cached("DELETE FROM event WHERE seq <= ?")?
        .execute([as_i64(seq)])?;
    Ok(())
}

fn chunk_hashes(body: &[u8]) -> Vec<Hash> {
    let event = wire::Event::decode(body).unwrap_or_default();
    match event.kind {
        Some(wire::event::Kind::File(wire::FileChange {
            op: Some(wire::file_change::Op::Put(put)),
            ..
        })) => put
            .chunks
            .iter()
            .filter_map(|chunk| Hash::try_from(chunk.hash.as_slice()).ok())
            .collect(),
        _ => Vec::new(),
    }
}

/// Results of commands stay, but not as of which event they are: that is numbered anew.
pub(super) fn forget_positions(db: &Transaction<'_>) -> Result<(), JournalError> {
    let mut select = db.prepare("SELECT command_id, body FROM result")?;
    let rows = select.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let results: Vec<(i64, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
    for (command_id, body) in results {
        let result = wire::CommandResult::decode(body.as_slice()).unwrap_or_default();
        let body = wire::CommandResult { at_seq: 0, ..result }.encode_to_vec();
        db.execute("UPDATE result SET body = ? WHERE command_id = ?", params![body, command_id])?;
    }
    Ok(())
}

/// Drops chunks that no event names, except those staged for one that is still to come.
pub(super) fn drop_unused(db: &Connection) -> Result<(), JournalError> {
    db.prepare_cached("DELETE FROM chunk WHERE uses <= 0 AND staged = 0")?
        .execute([])?;
    Ok(())
}

/// Ends the staging: what no event names by now goes.
pub(super) fn drop_staged(db: &Connection) -> Result<(), JournalError> {
    db.prepare_cached("UPDATE chunk SET staged = 0 WHERE staged = 1")?
        .execute([])?;
    drop_unused(db)
}

pub(super) fn write_known(
    db: &Transaction<'_>,
    path: &PhonePath,
    known: &Known,
) -> Result<(), JournalError> {
    let Entry {
        kind,
        mode,
        uid,
        gid,
        size,
        content,
    } = known.entry;
    let mut insert =
        db.prepare_cached("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
    insert.execute(params![
        path.as_bytes(),
        kind as u8,
        mode,
        uid,
        gid,
        as_i64(size),
        content.as_bytes(),
        known.mtime_ns,
        known.ctime_ns,
        known.inode.cast_signed(),
    ])?;
    Ok(())
}

pub(super) fn read_known(row: &Row<'_>) -> Result<Option<Known>, JournalError> {
    let kind = match row.get::<_, u8>(1)? {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        _ => return Ok(None),
    };
    let Ok(content) = Hash::try_from(row.get::<_, Vec<u8>>(6)?.as_slice()) else {
        return Ok(None);
    };
    let size = as_u64(row.get(5)?);
    let entry = Entry {
        kind,
        mode: row.get(2)?,
        uid: row.get(3)?,
        gid: row.get(4)?,
        size,
        content,
    };
    let inode = row.get::<_, i64>(9)?.cast_unsigned();
    Ok(Some(Known {
        entry,
        mtime_ns: row.get(7)?,
        ctime_ns: row.get(8)?,
        inode,
    }))
}

/// Forgets a path and everything beneath it: all that starts with the path and a slash, which sorts just below `0`.
pub(super) fn forget_known(db: &Transaction<'_>, path: &PhonePath) -> Result<(), JournalError> {
    let (from, to) = beneath(path);
    let mut delete =
        db.prepare_cached("DELETE FROM known WHERE path = ?1 OR (path >= ?2 AND path < ?3)")?;
    delete.execute(params![path.as_bytes(), from, to])?;
    Ok(())
}

pub(super) fn move_known(
    db: &Transaction<'_>,
    from: &PhonePath,
    to: &PhonePath,
) -> Result<(), JournalError> {
    forget_known(db, to)?;
    let (first, end) = beneath(from);
    let mut rename = db.prepare_cached(
        "UPDATE known SET path = CAST(?4 || substr(path, ?5) AS BLOB) WHERE path = ?1 OR (path >= ?2 AND path < ?3)",
    )?;
    let rest = i64::try_from(from.as_bytes().len() + 1).unwrap_or(i64::MAX);
    rename.execute(params![from.as_bytes(), first, end, to.as_bytes(), rest])?;
    Ok(())
}

fn beneath(path: &PhonePath) -> (Vec<u8>, Vec<u8>) {
    let stem = path
        .as_bytes()
        .strip_suffix(b"/")
        .unwrap_or(path.as_bytes());
    ([stem, b"/"].concat(), [stem, b"0"].concat())
}
