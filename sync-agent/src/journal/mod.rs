//! The journal: events that the appliance does not have for good yet, with the chunks they name; and what must survive
//! together with them - the tree as last described, rules, and results of commands.
//!
//! One SQLite database, WAL, `synchronous=FULL`: what [`Journal::append`] returned from survives a power loss. Seqs rise
//! without gaps across restarts. Only an acknowledgement deletes events.
//!
//! **When it is full.** Keys and touches exist nowhere else, files do. So at [`Limits::files_bytes`] the files control
//! point pauses (see [`Journal::has_room_for_files`]) while input goes on until [`Limits::bytes`]; after that input is
//! lost, counted and reported. Files are compared with the journal's tree when there is room again, so only intermediate
//! versions are lost.
//!
//! A damaged database is put aside and begun anew under a new journal id; a full scan then tells the truth about files.

mod owner;
mod schema;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use prost::Message;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use sync_protocol::chunking;
use sync_protocol::event::{Event, FileChange, FileOp, Kind, Origin};
use sync_protocol::hash::Hash;
use sync_protocol::limits::{BATCH_EVENTS_MAX, RESULTS_REMEMBERED};
use sync_protocol::path::PhonePath;
use sync_protocol::wire;

pub use owner::JournalHandle;
pub(crate) use owner::JournalThread;

use crate::clock::Stamp;
use crate::control_points::files::known::{Known, KnownChange, KnownTree};

/// Acknowledged events that may wait to be forgotten: as many frames of input, some 20 KiB.
const ACKED_KEPT_MAX: u64 = 256;

/// How much of the phone's storage the journal may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All of it.
    pub bytes: u64,
    /// Above this, files wait so that there is room for input.
    pub files_bytes: u64,
}

impl Limits {
    /// Files may take four fifths: the rest holds about a million input frames at the default size.
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            files_bytes: bytes / 5 * 4,
        }
    }
}

/// An event before it has a seq.
#[derive(Clone, Debug)]
pub struct Draft {
    pub stamp: Stamp,
    pub kind: Kind,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal has reached its limit, or the disk is full")]
    Full,
    #[error("the journal is damaged")]
    Damaged(#[source] rusqlite::Error),
    #[error("the journal's database fails")]
    Database(#[source] rusqlite::Error),
    #[error("cannot put the damaged journal {path} aside")]
    PutAside { path: PathBuf, source: io::Error },
    #[error("chunk {0} is not in the journal")]
    NoSuchChunk(Hash),
    #[error("the journal's thread has ended")]
    Ended,
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error),
            _ => Self::Database(error),
        }
    }
}

/// How a journal came to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Origination {
    Fresh,
    Resumed,
    /// The one found was damaged, for this reason.
    Replaced(String),
}

/// What becomes of staged chunks that no event names by the end of an append: they are for the files control point, so
/// its appends end the staging and those of others leave it alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Staged {
    Keep,
    Drop,
}

pub struct Journal {
    db: Connection,
    id: Vec<u8>,
    limits: Limits,
    /// Seq of the oldest event in the database; `next_seq` when there is none.
    first_held: u64,
    /// Events up to here need not be held.
    acked: u64,
    next_seq: u64,
}

impl Journal {
    /// Opens the journal in `directory`, or begins one.
    pub fn open(
        directory: &Path,
        limits: Limits,
    ) -> Result<(Self, Origination), JournalError> {
        let path = directory.join("journal.db");
        let existed = path.exists();
        match Self::open_sound(&path, limits) {
            Ok(journal) if existed => Ok((journal, Origination::Resumed)),
            Ok(journal) => Ok((journal, Origination::Fresh)),
            Err(JournalError::Damaged(why)) => {
                put_aside(&path)?;
                Ok((
                    Self::open_sound(&path, limits)?,
                    Origination::Replaced(why.to_string()),
                ))
            }
            Err(error) => Err(error),
        }
    }

    fn open_sound(path: &Path, limits: Limits) -> Result<Self, JournalError> {
        let db = Connection::open(path)?;
        schema::prepare(&db, limits.bytes)?;
        let id = match meta(&db, "id")? {
            Some(id) => id,
            None => {
                let id = rand::random::<[u8; 16]>().to_vec();
                set_meta(&db, "id", &id)?;
                id
            }
        };
        let next_seq = meta_number(&db, "next_seq")?.unwrap_or(1);
        let oldest: Option<i64> =
            db.query_row("SELECT min(seq) FROM event", [], |row| row.get(0))?;
        let first_held = oldest.map_or(next_seq, as_u64);
        // Chunks staged for events that were never appended.
        schema::drop_staged(&db)?;
        Ok(Self {
            db,
            id,
            limits,
            first_held,
            acked: first_held - 1,
            next_seq,
        })
    }

    /// Identifies this journal's numbering.
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// Seq of the oldest event that the appliance may lack; `last_seq() + 1` when there is none.
    pub fn first_unacked(&self) -> u64 {
        self.acked + 1
    }

    /// Seq of the newest event ever appended, 0 if there is none.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Bytes of the database that are in use.
    pub(crate) fn used_bytes(&self) -> Result<u64, JournalError> {
        let pragma = |name: &str| {
            self.db
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
                .map(as_u64)
        };
        Ok((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?)
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether files may still be appended; input may as long as there is any room.
    pub(crate) fn has_room_for_files(&self) -> Result<bool, JournalError> {
        Ok(self.used_bytes()? < self.limits.files_bytes)
    }

    /// Appends events durably and returns the seq of the last. All or none.
    pub fn append(&mut self, drafts: Vec<Draft>) -> Result<u64, JournalError> {
        self.append_all(drafts, &[], &[], Staged::Keep)
            .inspect_err(|_| self.make_room())
    }

    /// Appends events together with the chunks they name, as far as these were not [staged](Self::stage) before, and with
    /// what they make of the known tree. Staged chunks that no event names are dropped.
    pub(crate) fn append_files(
        &mut self,
        drafts: Vec<Draft>,
        chunks: &[(Hash, Vec<u8>)],
        changes: &[KnownChange],
    ) -> Result<u64, JournalError> {
        self.append_all(drafts, chunks, changes, Staged::Drop)
            .inspect_err(|_| self.make_room())
    }

    fn append_all(
        &mut self,
        drafts: Vec<Draft>,
        chunks: &[(Hash, Vec<u8>)],
        changes: &[KnownChange],
        staged: Staged,
    ) -> Result<u64, JournalError> {
        let transaction = self.db.transaction()?;
        if self.acked >= self.first_held {
            schema::forget_events(&transaction, self.acked)?;
        }
        let mut seq = self.next_seq;
        insert_chunks(&transaction, chunks)?;
        for draft in drafts {
            append_one(&transaction, seq, draft)?;
            seq += 1;
        }
        apply_known(&transaction, changes)?;
        set_meta(&transaction, "next_seq", &seq.to_le_bytes())?;
        if staged == Staged::Drop {
            schema::drop_staged(&transaction)?;
        }
        transaction.commit()?;
        self.first_held = self.acked + 1;
        self.next_seq = seq;
        Ok(self.last_seq())
    }

    /// Stores chunks of a large file ahead of the event that names them.
    pub(crate) fn stage(&mut self, chunks: &[(Hash, Vec<u8>)]) -> Result<(), JournalError> {
        let transaction = self.db.transaction()?;
        let staged = insert_chunks(&transaction, chunks).and_then(|()| Ok(transaction.commit()?));
        staged.inspect_err(|_| self.make_room())
    }

    /// After a failure: the write-ahead log may hold what was rolled back, and the disk be full of it.
    fn make_room(&self) {
        let checkpoint = self
            .db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                row.get::<_, i64>(0)
            });
        if !matches!(checkpoint, Ok(0)) {
            tracing::debug!(?checkpoint, "the write-ahead log cannot be emptied");
        }
    }

    /// Records what a command did to the tree and its result in one step. No event: the appliance made the change.
    pub(crate) fn record_result(
        &mut self,
        changes: &[KnownChange],
        result: &wire::CommandResult,
    ) -> Result<(), JournalError> {
        let transaction = self.db.transaction()?;
        apply_known(&transaction, changes)?;
        transaction.execute(
            "INSERT OR REPLACE INTO result (command_id, body) VALUES (?, ?)",
            params![as_i64(result.command_id), result.encode_to_vec()],
        )?;
        transaction.execute(
            "DELETE FROM result WHERE command_id <= (SELECT max(command_id) FROM result) - ?",
            [RESULTS_REMEMBERED as i64],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// The result of a command that was carried out before.
    pub(crate) fn result(
        &self,
        command_id: u64,
    ) -> Result<Option<wire::CommandResult>, JournalError> {
        let body: Option<Vec<u8>> = self
            .db
            .query_row(
                "SELECT body FROM result WHERE command_id = ?",
                [as_i64(command_id)],
                |row| row.get(0),
            )
            .optional()?;
        Ok(body.and_then(|body| wire::CommandResult::decode(body.as_slice()).ok()))
    }

    /// The appliance has the events up to and including `seq` for good: they may go, and with them chunks that no event
    /// names any more.
    ///
    /// Keys and touches are acknowledged one by one while they are made, and forgetting each by itself would cost the phone
    /// as many flushes as keeping it did. They go with the next append, or when there are [`ACKED_KEPT_MAX`]. What a
    /// crash brings back of them is not sent again: the appliance says at each connection what it has.
    pub(crate) fn ack(&mut self, seq: u64) -> Result<(), JournalError> {
        self.acked = self.acked.max(seq.min(self.last_seq()));
        let kept = self.acked + 1 - self.first_held;
        if kept >= ACKED_KEPT_MAX || (kept > 0 && schema::has_files(&self.db, self.acked)?) {
            let transaction = self.db.transaction()?;
            schema::forget_events(&transaction, self.acked)?;
            transaction.commit()?;
            self.first_held = self.acked + 1;
            schema::give_back(&self.db)?;
        }
        Ok(())
    }

    /// Forgets all events and files, under a new id: the appliance's log and this journal have come apart. Rules and
    /// results of commands stay.
    pub(crate) fn begin_anew(&mut self) -> Result<(), JournalError> {
        let id = rand::random::<[u8; 16]>().to_vec();
        let transaction = self.db.transaction()?;
        transaction.execute_batch("DELETE FROM event; DELETE FROM chunk; DELETE FROM known;")?;
        schema::forget_positions(&transaction)?;
        set_meta(&transaction, "id", &id)?;
        set_meta(&transaction, "next_seq", &1u64.to_le_bytes())?;
        transaction.commit()?;
        self.id = id;
        (self.first_held, self.acked, self.next_seq) = (1, 0, 1);
        Ok(())
    }

    /// Events after `seq`, in order: as many as fit in `bytes`, but at least one if there is any.
    pub(crate) fn events_after(
        &self,
        seq: u64,
        bytes: usize,
    ) -> Result<Vec<wire::Event>, JournalError> {
        let mut select = self
            .db
            .prepare_cached("SELECT body FROM event WHERE seq > ? ORDER BY seq LIMIT ?")?;
        let mut rows = select.query(params![as_i64(seq), BATCH_EVENTS_MAX as i64])?;
        let mut events = Vec::new();
        let mut total = 0;
        while let Some(row) = rows.next()? {
            let body: Vec<u8> = row.get(0)?;
            total += body.len();
            if total > bytes && !events.is_empty() {
                break;
            }
            let event = wire::Event::decode(body.as_slice()).map_err(|error| {
                JournalError::Damaged(rusqlite::Error::FromSqlConversionFailure(
                    0,
                    rusqlite::types::Type::Blob,
                    Box::new(error),
                ))
            })?;
            events.push(event);
        }
        Ok(events)
    }

    /// A chunk that an unacknowledged event names, packed for the wire.
    pub(crate) fn chunk(&self, hash: Hash) -> Result<wire::ChunkData, JournalError> {
        let mut select = self
            .db
            .prepare_cached("SELECT zstd FROM chunk WHERE hash = ?")?;
        let zstd = select
            .query_row([hash.as_bytes()], |row| row.get(0))
            .optional()?;
        let zstd = zstd.ok_or(JournalError::NoSuchChunk(hash))?;
        Ok(wire::ChunkData {
            hash: hash.to_vec(),
            zstd,
        })
    }

    /// The tree as the events so far describe it.
    pub(crate) fn known_tree(&self) -> Result<KnownTree, JournalError> {
        let mut select = self.db.prepare("SELECT path, kind, mode, uid, gid, size, content, mtime_ns, ctime_ns, inode FROM known")?;
        let mut rows = select.query([])?;
        let mut tree = KnownTree::default();
        while let Some(row) = rows.next()? {
            if let (Ok(path), Some(known)) = (
                PhonePath::new(row.get::<_, Vec<u8>>(0)?),
                schema::read_known(row)?,
            ) {
                tree.insert(path, known);
            }
        }
        Ok(tree)
    }

    /// A value kept for the agent across restarts.
    pub(crate) fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        meta(&self.db, key)
    }

    pub(crate) fn set_meta(&mut self, key: &str, value: &[u8]) -> Result<(), JournalError> {
        set_meta(&self.db, key, value)
    }
}

fn insert_chunks(
    transaction: &Transaction<'_>,
    chunks: &[(Hash, Vec<u8>)],
) -> Result<(), JournalError> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO chunk (hash, zstd, uses, staged) VALUES (?, ?, 0, 1) ON CONFLICT (hash) DO UPDATE SET staged = 1",
    )?;
    for (hash, bytes) in chunks {
        insert.execute(params![hash.as_bytes(), chunking::pack(*hash, bytes).zstd])?;
    }
    Ok(())
}

fn append_one(transaction: &Transaction<'_>, seq: u64, draft: Draft) -> Result<(), JournalError> {
    let Stamp { wall_us, mono_us } = draft.stamp;
    let is_file = matches!(draft.kind, Kind::File(_));
    if let Kind::File(FileChange {
        op: FileOp::Put(node),
        ..
    }) = &draft.kind
    {
        let mut add_use =
            transaction.prepare_cached("UPDATE chunk SET uses = uses + 1 WHERE hash = ?")?;
        for chunk in node.chunks() {
            if add_use.execute([chunk.hash.as_bytes()])? != 1 {
                return Err(JournalError::NoSuchChunk(chunk.hash));
            }
        }
    }
    let body = Event {
        seq,
        wall_us,
        mono_us,
        origin: Origin::Phone,
        kind: draft.kind,
    }
    .encode();
    let mut insert =
        transaction.prepare_cached("INSERT INTO event (seq, is_file, body) VALUES (?, ?, ?)")?;
    insert.execute(params![as_i64(seq), is_file, body])?;
    Ok(())
}

fn apply_known(transaction: &Transaction<'_>, changes: &[KnownChange]) -> Result<(), JournalError> {
    for change in changes {
        match change {
            KnownChange::Set(path, known) => schema::write_known(transaction, path, known)?,
            KnownChange::Forget(path) => schema::forget_known(transaction, path)?,
            KnownChange::Move(from, to) => schema::move_known(transaction, from, to)?,
        }
    }
    Ok(())
}

fn meta(db: &Connection, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
    Ok(db
        .query_row("SELECT value FROM meta WHERE key = ?", [key], |row| {
            row.get(0)
        })
        .optional()?)
}

fn meta_number(db: &Connection, key: &str) -> Result<Option<u64>, JournalError> {
    let value = meta(db, key)?;
    Ok(value
        .and_then(|value| value.try_into().ok())
        .map(u64::from_le_bytes))
}

fn set_meta(db: &Connection, key: &str, value: &[u8]) -> Result<(), JournalError> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?
        .execute(params![key, value])?;
    Ok(())
}

fn put_aside(path: &Path) -> Result<(), JournalError> {
    let failed = |source| JournalError::PutAside {
        path: path.to_owned(),
        source,
    };
    // One damaged journal is kept for whoever wants to look, not all of them.
    std::fs::rename(path, path.with_extension("damaged")).map_err(failed)?;
    for suffix in ["db-wal", "db-shm"] {
        match std::fs::remove_file(path.with_extension(suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}

/// SQLite has signed integers only; seqs stay far below the limit.
fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn as_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
