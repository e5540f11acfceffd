//! Slows guessing: after a few failures a name or an address must wait, longer with each further failure.
//!
//! Pure: time comes as an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Failures that cost nothing: people mistype.
const FREE_FAILURES: u32 = 4;
const WAIT_FIRST: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Failures older than this are forgotten.
const MEMORY: Duration = Duration::from_secs(30 * 60);
/// Names and addresses remembered; beyond, the stalest is forgotten.
const SUBJECTS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Throttle {
    subjects: HashMap<String, Failures>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Throttle {
    /// How long `subject` must still wait before it may try.
    pub(super) fn wait(&self, subject: &str, now: Instant) -> Option<Duration> {
        let failures = self.subjects.get(subject)?;
        let over = failures.count.checked_sub(FREE_FAILURES)?.checked_sub(1)?;
        let wait = WAIT_FIRST.saturating_mul(1 << over.min(16)).min(WAIT_MAX);
        (failures.last + wait).checked_duration_since(now).filter(|left| !left.is_zero())
    }

    pub(super) fn failed(&mut self, subject: &str, now: Instant) {
        self.subjects.retain(|_, f| now.duration_since(f.last) < MEMORY);
        if self.subjects.len() >= SUBJECTS_MAX && !self.subjects.contains_key(subject) {
            let stalest = self.subjects.iter().min_by_key(|(_, f)| f.last).map(|(s, _)| s.clone());
            if let Some(stalest) = stalest {
                self.subjects.remove(&stalest);
            }
        }
        let failures = self.subjects.entry(subject.to_owned()).or_insert(Failures { count: 0, last: now });
        failures.count += 1;
        failures.last = now;
    }

    pub(super) fn succeeded(&mut self, subject: &str) {
        self.subjects.remove(subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        for _ in 0..FREE_FAILURES {
            throttle.failed("eve", start);
        }
        assert_eq!(throttle.wait("eve", start), None);
        throttle.failed("eve", start);
        assert_eq!(throttle.wait("eve", start), Some(WAIT_FIRST));
        throttle.failed("eve", start);
        assert_eq!(throttle.wait("eve", start), Some(WAIT_FIRST * 2));
        assert_eq!(throttle.wait("eve", start + WAIT_FIRST * 2), None);
        for _ in 0..100 {
            throttle.failed("eve", start);
        }
        assert_eq!(throttle.wait("eve", start), Some(WAIT_MAX));
        throttle.succeeded("eve");
        assert_eq!(throttle.wait("eve", start), None);
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        for n in 0..SUBJECTS_MAX + 50 {
            throttle.failed(&format!("s{n}"), start);
        }
        assert!(throttle.subjects.len() <= SUBJECTS_MAX);
    }
}
