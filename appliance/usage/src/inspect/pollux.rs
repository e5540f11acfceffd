//! Our own agent's usage database, `usage.db` in the directory the agent was given (`/var/lib/pollux-usage`), whose schema
//! version 1 is documented where it is written: sync-agent, `control_points/stack/usage/version-1.sql`. Later versions add to
//! it. Only its calls are read: messages are the messenger's to tell.

use rusqlite::Connection;

use super::FACTS_MAX;
use crate::fact::{Call, Direction, Fact, Network, Provenance};

pub(super) fn facts(connection: &Connection, provenance: impl Fn(i64) -> Provenance) -> rusqlite::Result<Vec<Fact>> {
    // Made, and not filled yet.
    if !connection.table_exists(None, "call")? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare(&format!(
        "SELECT call.id, party, direction, started_us, answered_us, call.ended_us, dropped, coalesce(registration, ''), \
         coalesce(mcc, ''), coalesce(mnc, ''), coalesce(operator, ''), coalesce(technology, ''), \
         coalesce(nullif(tac, 0), lac, 0), coalesce(cell, 0), start_percent \
         FROM call LEFT JOIN radio ON radio.id = start_radio ORDER BY call.id LIMIT {FACTS_MAX}"
    ))?;
    let rows = statement.query_map([], |row| {
        let registration: String = row.get(7)?;
        let (mcc, mnc): (String, String) = (row.get(8)?, row.get(9)?);
        let (area, cell): (i64, i64) = (row.get(12)?, row.get(13)?);
        let network = Network {
            dropped: row.get(6)?,
            roaming: registration == "roaming",
            operator: row.get(10)?,
            technology: row.get(11)?,
            tower: if cell == 0 { String::new() } else { format!("{mcc}-{mnc}-{area}-{cell}") },
            signal_percent: row.get(14)?,
        };
        Ok(Fact::Call(Call {
            party: row.get(1)?,
            direction: if row.get::<_, String>(2)? == "in" { Direction::In } else { Direction::Out },
            started_us: row.get(3)?,
            answered_us: row.get(4)?,
            ended_us: row.get(5)?,
            network: Some(network),
            is_told_twice: false,
            from: provenance(row.get(0)?),
        }))
    })?;
    rows.collect()
}
