//! The tables of the usage database, and what is done to them as a whole. The tables themselves, and what is in them, are in
//! `version-1.sql`.

use rusqlite::{Connection, Transaction};

/// The version of the schema, `PRAGMA user_version`.
pub(super) const VERSION: usize = SCHEMA.len();
/// One part in so many of a table is dropped at a time when the file is full.
const DROPPED_PART: i64 = 8;

/// Each brings a database from the version of its index to the next; a change of the schema is a new one.
const SCHEMA: [&str; 1] = [include_str!("version-1.sql")];

/// From the most to the least expendable.
pub(super) const DETAIL_FIRST: [&str; 5] = ["signal", "radio", "roaming", "message", "call"];

/// Brings a database from `version` to [`VERSION`], all or nothing.
pub(super) fn migrate(db: &mut Connection, version: usize) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    for step in &SCHEMA[version..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION as i64)?;
    transaction.commit()
}

/// Ends what an earlier run left open, as far as is known.
pub(super) fn close_what_is_open(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch(
        "UPDATE call SET state = 'unfinished' WHERE state = 'open';
         UPDATE radio SET ended_us = coalesce((SELECT max(at_us) FROM signal WHERE radio = radio.id), began_us)
             WHERE ended_us IS NULL;
         UPDATE roaming SET ended_us = coalesce((SELECT max(ended_us) FROM radio
             WHERE radio.modem = roaming.modem AND registration = 'roaming'), began_us) WHERE ended_us IS NULL;",
    )
}

/// Drops the oldest part of a table and returns how many rows that were.
pub(super) fn drop_oldest(db: &Connection, table: &str) -> rusqlite::Result<usize> {
    let rows: i64 = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
        row.get(0)
    })?;
    // Calls and messages keep their towers, and no spell that goes on is dropped.
    let kept = match table {
        "radio" => {
            "AND ended_us IS NOT NULL AND id NOT IN (SELECT start_radio FROM call WHERE start_radio IS NOT NULL
             UNION SELECT end_radio FROM call WHERE end_radio IS NOT NULL
             UNION SELECT radio FROM message WHERE radio IS NOT NULL)"
        }
        _ => "",
    };
    let sql = format!(
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE 1 {kept} ORDER BY id LIMIT ?)"
    );
    db.execute(&sql, [rows / DROPPED_PART + 1])
}
