//! The drive lease: while an operator leads, the phone's user is told.
//!
//! [`Lease`] decides, [`announce`] writes what the phone's shell shows: `/run/pollux/lease`, JSON, absent when nobody
//! drives: `{"operator": "...", "until_ms": <milliseconds since the epoch>}`.

use std::io;
use std::path::Path;
use std::time::Duration;

use sync_protocol::limits::{CLAIM_BYTES_MAX, LEASE_DURATION_MS_MAX};
use sync_protocol::wire;
use tokio::time::Instant;

/// off -> on (command) -> on (renewed) -> off (command, or its time is over)
#[derive(Debug, Default)]
pub(crate) struct Lease {
    held: Option<(String, Instant)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    Began(String),
    Renewed(String),
    Ended(String),
    None,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LeaseError {
    #[error("a lease lasts 1 to {LEASE_DURATION_MS_MAX} ms, not {0}")]
    Duration(u32),
    #[error("an operator's name has 1 to {CLAIM_BYTES_MAX} bytes, not {0}")]
    Operator(usize),
}

impl Lease {
    pub(crate) fn command(
        &mut self,
        command: wire::Lease,
        now: Instant,
    ) -> Result<LeaseChange, LeaseError> {
        if !command.on {
            return Ok(self.held.take().map_or(LeaseChange::None, |(operator, _)| {
                LeaseChange::Ended(operator)
            }));
        }
        if !(1..=LEASE_DURATION_MS_MAX).contains(&command.duration_ms) {
            return Err(LeaseError::Duration(command.duration_ms));
        }
        if !(1..=CLAIM_BYTES_MAX).contains(&command.operator.len()) {
            return Err(LeaseError::Operator(command.operator.len()));
        }
        let until = now + Duration::from_millis(command.duration_ms.into());
        let was_on = self
            .held
            .replace((command.operator.clone(), until))
            .is_some();
        Ok(if was_on {
            LeaseChange::Renewed(command.operator)
        } else {
            LeaseChange::Began(command.operator)
        })
    }

    pub(crate) fn is_on(&self, now: Instant) -> bool {
        self.held.as_ref().is_some_and(|(_, until)| now < *until)
    }

    /// When to call [`Lease::expire`].
    pub(crate) fn until(&self) -> Option<Instant> {
        self.held.as_ref().map(|(_, until)| *until)
    }

    pub(crate) fn expire(&mut self, now: Instant) -> LeaseChange {
        match self.held.take_if(|(_, until)| *until <= now) {
            Some((operator, _)) => LeaseChange::Ended(operator),
            None => LeaseChange::None,
        }
    }
}

/// Tells the phone's shell who drives, or that nobody does.
pub(crate) fn announce(path: &Path, operator: Option<(&str, i64)>) -> io::Result<()> {
    match operator {
        Some((operator, until_ms)) => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let text =
                serde_json::json!({ "operator": operator, "until_ms": until_ms }).to_string();
            let unfinished = path.with_extension("new");
            std::fs::write(&unfinished, text)?;
            std::fs::rename(&unfinished, path)
        }
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(duration_ms: u32) -> wire::Lease {
        wire::Lease {
            on: true,
            operator: "ada".into(),
            duration_ms,
        }
    }

    #[test]
    fn a_lease_begins_is_renewed_and_ends_by_itself() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let mut lease = Lease::default();
        assert_eq!(
            lease.command(on(100), start),
            Ok(LeaseChange::Began("ada".into()))
        );
        assert!(lease.is_on(later(99)) && !lease.is_on(later(100)));
        assert_eq!(
            lease.command(on(100), later(50)),
            Ok(LeaseChange::Renewed("ada".into()))
        );
        assert_eq!(lease.expire(later(149)), LeaseChange::None);
        assert_eq!(lease.expire(later(150)), LeaseChange::Ended("ada".into()));
        assert_eq!(
            lease.command(wire::Lease::default(), later(151)),
            Ok(LeaseChange::None)
        );
        assert_eq!(lease.command(on(0), start), Err(LeaseError::Duration(0)));
    }

    #[test]
    fn the_shell_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pollux/lease");
        announce(&path, None).unwrap();
        announce(&path, Some(("a \"b\"", 7))).unwrap();
        let told: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            told,
            serde_json::json!({ "operator": "a \"b\"", "until_ms": 7 })
        );
        announce(&path, None).unwrap();
        assert!(!path.exists());
    }
}
