//! The judgement at the end of a run, as far as it is of one phone's log and what was seen of it.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pollux::http::Services;
use pollux::phones::Phone as Registered;
use pollux::proof::How;
use sync_protocol::Hash;
use sync_protocol::event::{Event, Kind, Origin};
use tokio::time::sleep;

use crate::phone::Phone;
use crate::world::lock;

/// Phone and appliance find themselves the same.
pub(crate) async fn verify(services: &Services, phone: &Registered) -> anyhow::Result<()> {
    services.proofs.verify(phone.clone(), How { reread: true, heal: false })?;
    while services.proofs.standing(&phone.id).running.is_some() {
        sleep(Duration::from_millis(100)).await;
    }
    let verdict = services.proofs.standing(&phone.id).last.context("a verdict")?;
    ensure!(verdict.equal == Some(true), "phone and appliance find themselves different: {verdict:?}");
    ensure!(verdict.findings.is_empty(), "what differed had not been noticed: {:?}", verdict.findings);
    Ok(())
}

/// Invariants 1, 2 and 4.
pub(crate) fn check_log(phone: &Phone, log: &[(u64, Event)]) -> anyhow::Result<()> {
    let history = lock(&phone.history);
    if let Some(wrong) = &history.wrong {
        bail!("{wrong}");
    }
    let (mut there, mut last) = (HashSet::new(), 0);
    for (position, event) in log.iter().filter(|(_, event)| event.origin == Origin::Phone) {
        ensure!(there.insert(Hash::of(&event.clone().encode())), "the event at {position} is in the log twice");
        ensure!(event.seq == last + 1 || event.seq == 1, "after event {last}, the log has {} at {position}", event.seq);
        last = event.seq;
        match &event.kind {
            Kind::Mmi(frame) => ensure!(frame.device_id == phone.number as u32, "the event at {position} is another phone's"),
            Kind::File(change) => {
                ensure!(change.path.as_path().starts_with(&phone.home), "the file at {position}, {:?}, is another phone's", change.path);
            }
            _ => {}
        }
    }
    for ((journal, seq), hash) in &history.sent {
        let acked = history.acked.get(journal).copied().unwrap_or(0);
        ensure!(*seq > acked || there.contains(hash), "event {seq} was acknowledged, and is not in the log");
    }
    let touches: Vec<u32> = log
        .iter()
        .filter(|(_, event)| event.origin == Origin::Phone)
        .filter_map(|(_, event)| match &event.kind {
            Kind::Mmi(frame) => Some(frame.events.first()?.value.cast_unsigned()),
            _ => None,
        })
        .collect();
    ensure!(touches.is_sorted_by(|one, next| one < next), "input came out of order: {touches:?}");
    for kept in &phone.kept {
        let is_lost = phone.lost_journals.contains(&kept.journal);
        let acked = history.acked.get(&kept.journal).copied().unwrap_or(0);
        let must = !is_lost || kept.seq <= acked;
        ensure!(!must || touches.contains(&kept.mark), "event {} was kept by the agent, and is not in the log", kept.seq);
    }
    Ok(())
}
