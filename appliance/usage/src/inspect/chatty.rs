//! Chatty, `~/.purple/chatty/db/chatty-history.db`: `messages` in `threads`, named after the other party; direction
//! 1 in, -1 out, 0 the system's own words; time in seconds [Chatty, src/chatty-history.c, schema version 4].

use rusqlite::Connection;

use super::FACTS_MAX;
use crate::fact::{Direction, Fact, Message, Provenance};

pub(super) fn facts(connection: &Connection, provenance: impl Fn(i64) -> Provenance) -> rusqlite::Result<Vec<Fact>> {
    if !connection.table_exists(None, "messages")? {
        return Ok(Vec::new());
    }
    // Drafts (status 1) were never sent.
    let mut statement = connection.prepare(&format!(
        "SELECT messages.id, threads.name, messages.direction, messages.time, length(CAST(messages.body AS BLOB)) \
         FROM messages JOIN threads ON threads.id = messages.thread_id \
         WHERE messages.direction IN (1, -1) AND coalesce(messages.status, 0) <> 1 ORDER BY messages.id LIMIT {FACTS_MAX}"
    ))?;
    let rows = statement.query_map([], |row| {
        Ok(Fact::Message(Message {
            party: row.get(1)?,
            direction: if row.get::<_, i64>(2)? == 1 { Direction::In } else { Direction::Out },
            at_us: row.get::<_, i64>(3)?.saturating_mul(1_000_000),
            size_bytes: row.get(4)?,
            from: provenance(row.get(0)?),
        }))
    })?;
    rows.collect()
}
