//! GNOME Calls, `~/.local/share/calls/records.db`: table `calls` (id, target, inbound, start, answered, end), times as
//! ISO 8601 text [GNOME Calls, src/calls-call-record.c]. Later versions add columns that are not needed here.

use rusqlite::Connection;

use super::{FACTS_MAX, micros};
use crate::fact::{Call, Direction, Fact, Provenance};

pub(super) fn facts(connection: &Connection, provenance: impl Fn(i64) -> Provenance) -> rusqlite::Result<Vec<Fact>> {
    let exists = connection.table_exists(None, "calls")?;
    if !exists {
        return Ok(Vec::new());
    }
    let (start, answered, end) = (micros("start"), micros("answered"), micros("\"end\""));
    // A row without a start never became a call.
    let sql = format!(
        "SELECT id, coalesce(target, ''), inbound, {start} AS started, {answered}, {end} FROM calls \
         WHERE started IS NOT NULL ORDER BY id LIMIT {FACTS_MAX}"
    );
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Fact::Call(Call {
            party: row.get(1)?,
            direction: if row.get::<_, Option<bool>>(2)?.unwrap_or(false) { Direction::In } else { Direction::Out },
            started_us: row.get(3)?,
            answered_us: row.get(4)?,
            ended_us: row.get(5)?,
            network: None,
            is_told_twice: false,
            from: provenance(row.get(0)?),
        }))
    })?;
    rows.collect()
}
