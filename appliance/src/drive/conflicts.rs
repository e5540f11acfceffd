//! Paths that phone and help-desk changed differently: kept until somebody has looked at them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::wire::{self, ChangeStatus, command};

use super::{DriveError, lock};
use crate::commands::Answer;
use crate::live::{Live, Notice};
use crate::phones::now_us;
use crate::records::{RecordError, Table};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub phone: PhoneId,
    /// The command that the phone did not carry out; events of ours just before it in the log hold our version.
    pub id: u64,
    pub at_us: u64,
    pub path: Vec<u8>,
    pub our_position: u64,
    pub text: String,
    pub dismissed: bool,
}

#[derive(Clone)]
pub(super) struct Conflicts {
    table: Table<Conflict>,
    live: Live,
    open: Arc<Mutex<HashMap<PhoneId, usize>>>,
}

impl Conflicts {
    pub(super) fn open(table: Table<Conflict>, live: Live) -> Result<Conflicts, RecordError> {
        let mut open = HashMap::new();
        for conflict in table.list()?.into_iter().filter(|conflict| !conflict.dismissed) {
            *open.entry(conflict.phone).or_default() += 1;
        }
        Ok(Conflicts { table, live, open: Arc::new(Mutex::new(open)) })
    }

    pub(super) fn open_of(&self, phone: &PhoneId) -> usize {
        lock(&self.open).get(phone).copied().unwrap_or(0)
    }

    pub(super) fn list(&self, phone: &PhoneId) -> Result<Vec<Conflict>, RecordError> {
        let mut conflicts = self.table.list_under(&format!("{phone}/"))?;
        conflicts.reverse();
        Ok(conflicts)
    }

    pub(super) fn record(&self, phone: &PhoneId, id: u64, path: &[u8], text: &str) -> Result<(), RecordError> {
        let conflict = Conflict {
            phone: phone.clone(),
            id,
            at_us: now_us(),
            path: path.to_vec(),
            // Our version was logged just before the phone was asked.
            our_position: id.saturating_sub(1),
            text: text.to_owned(),
            dismissed: false,
        };
        // An answer is given again if we crashed before it was acted on.
        let is_known = self.table.get(&key(phone, id))?.is_some();
        if is_known {
            return Ok(());
        }
        self.table.put(&key(phone, id), &conflict)?;
        *lock(&self.open).entry(phone.clone()).or_default() += 1;
        self.live.tell(Notice::Conflict { phone: phone.clone() });
        Ok(())
    }

    pub(super) fn dismiss(&self, phone: &PhoneId, id: u64) -> Result<(), DriveError> {
        let mut conflict = self.table.get(&key(phone, id))?.ok_or(DriveError::NoConflict(id))?;
        if !conflict.dismissed {
            conflict.dismissed = true;
            self.table.put(&key(phone, id), &conflict)?;
            if let Some(count) = lock(&self.open).get_mut(phone) {
                *count = count.saturating_sub(1);
            }
        }
        self.live.tell(Notice::Conflict { phone: phone.clone() });
        Ok(())
    }
}

fn key(phone: &PhoneId, id: u64) -> String {
    format!("{phone}/{id:020}")
}

/// The changes of ours that the phone did not make, and why.
pub(super) fn refused(answer: &Answer) -> Vec<(wire::FileChange, String)> {
    let Some(command::Command::Apply(apply)) = answer.asked.as_ref().and_then(|asked| asked.command.as_ref()) else {
        return Vec::new();
    };
    let changes = apply.changes.iter().filter_map(|change| change.change.as_ref());
    let results = &answer.result.changes;
    let outcome = |at: usize| match results.get(at) {
        // The command failed as a whole.
        None => Some(format!("the phone did not do it: {}", answer.result.text)),
        Some(result) => match result.status() {
            ChangeStatus::Applied | ChangeStatus::Unchanged => None,
            ChangeStatus::Conflict => Some("the phone has changed it too; the phone's version stands".to_owned()),
            _ => Some(format!("the phone could not: {}", result.text)),
        },
    };
    changes.enumerate().filter_map(|(at, change)| Some((change.clone(), outcome(at)?))).collect()
}

/// The paths that a change is about.
pub(super) fn paths(change: &wire::FileChange) -> Vec<Vec<u8>> {
    let to = match &change.op {
        Some(wire::file_change::Op::Rename(rename)) => Some(rename.to.clone()),
        _ => None,
    };
    std::iter::once(change.path.clone()).chain(to).collect()
}

/// Whether the phone could not read again what it was asked to.
pub(super) fn is_failed_rescan(answer: &Answer) -> bool {
    let asked = answer.asked.as_ref().and_then(|asked| asked.command.as_ref());
    matches!(asked, Some(command::Command::Rescan(_))) && answer.result.status() != wire::CommandStatus::Done
}

/// The paths that the phone was asked to change.
pub(super) fn asked(answer: &Answer) -> Vec<Vec<u8>> {
    match answer.asked.as_ref().and_then(|asked| asked.command.as_ref()) {
        Some(command::Command::Apply(apply)) => apply.changes.iter().filter_map(|change| change.change.as_ref()).flat_map(paths).collect(),
        _ => Vec::new(),
    }
}

/// Whether what happens to one path can matter for the other: they are the same, or one is around the other.
pub(super) fn meet(one: &[u8], other: &[u8]) -> bool {
    let is_around = |around: &[u8], path: &[u8]| {
        let rest = path.strip_prefix(around);
        rest.is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    };
    is_around(one, other) || is_around(other, one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_protocol::wire;

    fn answer(results: Vec<ChangeStatus>) -> Answer {
        let change = |path: &str| wire::AppliedChange {
            change: Some(wire::FileChange { path: path.into(), op: None }),
            base: None,
        };
        let apply = wire::Apply { changes: vec![change("/a"), change("/b")], chunks: Vec::new() };
        let result = |status: ChangeStatus| wire::ChangeResult { status: status.into(), ..Default::default() };
        let result = wire::CommandResult {
            command_id: 7,
            changes: results.into_iter().map(result).collect(),
            ..Default::default()
        };
        let asked = Some(wire::Command { id: 7, command: Some(command::Command::Apply(apply)) });
        Answer { phone: "p".parse().expect("id"), asked, result }
    }

    #[test]
    fn only_what_was_not_made_is_a_conflict() {
        let paths = |results| refused(&answer(results)).into_iter().map(|(change, _)| change.path).collect::<Vec<_>>();
        assert!(paths(vec![ChangeStatus::Applied, ChangeStatus::Unchanged]).is_empty());
        assert_eq!(paths(vec![ChangeStatus::Applied, ChangeStatus::Conflict]), [b"/b".to_vec()]);
        assert_eq!(paths(vec![]), [b"/a".to_vec(), b"/b".to_vec()]);
        assert!(refused(&Answer { asked: None, ..answer(vec![ChangeStatus::Conflict]) }).is_empty());
    }

    #[test]
    fn conflicts_are_counted_until_dismissed() {
        let table = Table::in_memory("conflicts");
        let phone: PhoneId = "p".parse().expect("id");
        let conflicts = Conflicts::open(table.clone(), Live::default()).expect("opened");
        conflicts.record(&phone, 3, b"/a", "x").expect("recorded");
        conflicts.record(&phone, 5, b"/b", "x").expect("recorded");
        conflicts.dismiss(&phone, 3).expect("dismissed");
        conflicts.dismiss(&phone, 3).expect("again");
        assert!(matches!(conflicts.dismiss(&phone, 4), Err(DriveError::NoConflict(4))));
        assert_eq!(Conflicts::open(table, Live::default()).expect("opened").open_of(&phone), 1);
        assert_eq!(conflicts.list(&phone).expect("list").first().map(|c| c.id), Some(5));
    }
}
