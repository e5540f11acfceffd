//! What was told, as rows of the usage database.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use sync_protocol::stack::{
    Call, CallEnd, CallState, Direction, Radio, Registration, Stack, TextMessage, technology_name,
};

/// Adds what was told at `at_us` (microseconds since the Unix epoch) to the rows that are there.
pub(super) fn write_one(db: &Transaction<'_>, at_us: i64, stack: &Stack) -> rusqlite::Result<()> {
    match stack {
        Stack::Radio(radio) => write_radio(db, at_us, radio),
        Stack::Call(call) => write_call(db, at_us, call),
        Stack::Message(message) => write_message(db, at_us, message),
    }
}

/// Whether a received message has been recorded: by the service centre's stamp, its sender and its size.
pub(super) fn knows_message(db: &Connection, message: &TextMessage) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM message
        WHERE network_time = ? AND party = ? AND direction = ? AND size_bytes = ?)";
    let TextMessage {
        direction,
        party,
        size_bytes,
        network_time,
        ..
    } = message;
    let size = i64::try_from(*size_bytes).unwrap_or(i64::MAX);
    let values = params![network_time, party, direction_name(*direction), size];
    db.query_row(sql, values, |row| row.get(0))
}

fn write_radio(db: &Transaction<'_>, at_us: i64, radio: &Radio) -> rusqlite::Result<()> {
    let registration = registration_name(radio.registration);
    let (mcc, mnc) = (radio.mcc(), radio.mnc());
    let technology = technology_name(radio.technologies);
    let cell = i64::try_from(radio.tower.cell).unwrap_or(0);
    let spell = params![
        radio.modem,
        registration,
        mcc,
        mnc,
        radio.operator_name,
        technology,
        radio.tower.lac,
        radio.tower.tac,
        cell
    ];
    let same = db
        .prepare_cached(
            "SELECT id FROM radio WHERE modem = ? AND ended_us IS NULL AND registration = ? AND mcc = ? AND mnc = ?
             AND operator = ? AND technology = ? AND lac = ? AND tac = ? AND cell = ?",
        )?
        .query_row(spell, |row| row.get::<_, i64>(0))
        .optional()?;
    let is_gone = radio.registration == Registration::Gone;
    let id = match same {
        Some(id) => id,
        None => {
            db.execute(
                "UPDATE radio SET ended_us = ? WHERE modem = ? AND ended_us IS NULL",
                params![at_us, radio.modem],
            )?;
            write_roaming(db, at_us, radio)?;
            if is_gone {
                return Ok(());
            }
            db.prepare_cached(
                "INSERT INTO radio (modem, registration, mcc, mnc, operator, technology, lac, tac, cell, began_us)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                radio.modem,
                registration,
                mcc,
                mnc,
                radio.operator_name,
                technology,
                radio.tower.lac,
                radio.tower.tac,
                cell,
                at_us
            ])?;
            db.last_insert_rowid()
        }
    };
    let position = radio.position.as_ref();
    db.prepare_cached(
        "INSERT INTO signal (at_us, radio, percent, latitude, longitude) VALUES (?, ?, ?, ?, ?)",
    )?
    .execute(params![
        at_us,
        id,
        radio.signal_percent,
        position.map(|position| position.latitude),
        position.map(|position| position.longitude)
    ])?;
    Ok(())
}

/// Begins and ends spells of roaming as `radio` has it.
fn write_roaming(db: &Transaction<'_>, at_us: i64, radio: &Radio) -> rusqlite::Result<()> {
    let is_roaming = radio.registration == Registration::Roaming;
    let (mcc, mnc) = (radio.mcc(), radio.mnc());
    let going: Option<(i64, String, String)> = db
        .query_row(
            "SELECT id, mcc, mnc FROM roaming WHERE modem = ? AND ended_us IS NULL",
            [&radio.modem],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    if let Some((id, going_mcc, going_mnc)) = going {
        if is_roaming && (going_mcc.as_str(), going_mnc.as_str()) == (mcc, mnc) {
            return Ok(());
        }
        db.execute(
            "UPDATE roaming SET ended_us = ? WHERE id = ?",
            params![at_us, id],
        )?;
    }
    if is_roaming {
        db.execute(
            "INSERT INTO roaming (modem, began_us, mcc, mnc, operator) VALUES (?, ?, ?, ?, ?)",
            params![radio.modem, at_us, mcc, mnc, radio.operator_name],
        )?;
    }
    Ok(())
}

/// Where a modem is: its spell, its signal, its position.
type Place = (Option<i64>, Option<i64>, Option<f64>, Option<f64>);

fn place(db: &Transaction<'_>, modem: &str) -> rusqlite::Result<Place> {
    let found = db
        .prepare_cached(
            "SELECT radio.id, percent, latitude, longitude FROM radio LEFT JOIN signal ON signal.radio = radio.id
             WHERE modem = ? AND ended_us IS NULL ORDER BY signal.id DESC LIMIT 1",
        )?
        .query_row([modem], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

fn write_call(db: &Transaction<'_>, at_us: i64, call: &Call) -> rusqlite::Result<()> {
    let state = match call.state {
        CallState::Ended => "ended",
        CallState::Unfinished => "unfinished",
        _ => "open",
    };
    let (radio, percent, latitude, longitude) = place(db, &call.modem)?;
    db.prepare_cached(
        "INSERT INTO call (name, modem, direction, party, started_us, state, dropped,
             start_radio, start_percent, start_latitude, start_longitude)
         VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET state = excluded.state",
    )?
    .execute(params![
        call.call,
        call.modem,
        direction_name(call.direction),
        call.party,
        at_us,
        state,
        radio,
        percent,
        latitude,
        longitude
    ])?;
    if matches!(call.state, CallState::Active | CallState::Held) {
        db.execute(
            "UPDATE call SET answered_us = coalesce(answered_us, ?) WHERE name = ?",
            params![at_us, call.call],
        )?;
    }
    if call.state == CallState::Ended {
        // Told again, it has ended no later.
        db.execute(
            "UPDATE call SET end_reason = ?, dropped = ? WHERE name = ?",
            params![end_name(call.end), call.dropped, call.call],
        )?;
        db.execute(
            "UPDATE call SET ended_us = ?, end_radio = ?, end_percent = ?, end_latitude = ?, end_longitude = ?
             WHERE name = ? AND ended_us IS NULL",
            params![at_us, radio, percent, latitude, longitude, call.call],
        )?;
    }
    Ok(())
}

fn write_message(db: &Transaction<'_>, at_us: i64, message: &TextMessage) -> rusqlite::Result<()> {
    let (radio, percent, latitude, longitude) = place(db, &message.modem)?;
    db.execute(
        "INSERT INTO message (modem, direction, party, at_us, network_time, size_bytes, radio, percent, latitude, longitude)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            message.modem,
            direction_name(message.direction),
            message.party,
            at_us,
            message.network_time,
            i64::try_from(message.size_bytes).unwrap_or(i64::MAX),
            radio,
            percent,
            latitude,
            longitude
        ],
    )?;
    Ok(())
}

fn registration_name(registration: Registration) -> &'static str {
    match registration {
        Registration::Home => "home",
        Registration::Roaming => "roaming",
        Registration::Denied => "denied",
        Registration::EmergencyOnly => "emergency",
        Registration::Unspecified | Registration::None | Registration::Gone => "none",
    }
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Unspecified | Direction::Out => "out",
    }
}

fn end_name(end: CallEnd) -> &'static str {
    match end {
        CallEnd::Unspecified => "unknown",
        CallEnd::Terminated => "terminated",
        CallEnd::RefusedOrBusy => "refused",
        CallEnd::Error => "error",
        CallEnd::Audio => "audio",
        CallEnd::Transferred => "transferred",
        CallEnd::Deflected => "deflected",
        CallEnd::ModemGone => "modem",
    }
}
