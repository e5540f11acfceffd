//! When a guest idles, so that what it has translated is worth less than the memory it takes.

use std::cell::Cell;
use std::time::Duration;

/// What makes a lull.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// It lasts so long.
    pub(crate) length: Duration,
    /// At most this part of it is work.
    pub(crate) work: u32,
    /// Bytes of translated code that are left to an idle guest: more than it needs.
    pub(crate) code_bytes: usize,
}

const LIMITS: Limits = Limits { length: Duration::from_secs(10), work: 33, code_bytes: 4 << 20 };

/// Looks at one stretch of time after the other.
pub(crate) struct Lull {
    limits: Cell<Limits>,
    /// The host's time, and how long the CPU had rested, when this stretch began.
    began: Cell<Option<(Duration, Duration)>>,
}

impl Default for Lull {
    fn default() -> Self {
        Self { limits: Cell::new(LIMITS), began: Cell::default() }
    }
}

impl Lull {
    /// True at the end of a lull, of a guest with so much translated code, which has `rested` for so long by `now`.
    pub(crate) fn ends(&self, code_bytes: usize, now: Duration, rested: impl FnOnce() -> Duration) -> bool {
        let limits = self.limits.get();
        if code_bytes <= limits.code_bytes {
            return false;
        }
        let Some((began, rested_before)) = self.began.get() else {
            self.began.set(Some((now, rested())));
            return false;
        };
        let passed = now.saturating_sub(began);
        if passed < limits.length {
            return false;
        }
        let rested = rested();
        self.began.set(Some((now, rested)));
        passed.saturating_sub(rested.saturating_sub(rested_before)) < passed / limits.work
    }

    #[cfg(test)]
    pub(crate) fn limit(&self, limits: Limits) {
        self.limits.set(limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_when_a_guest_has_rested_for_long_and_not_before() {
        let at = |ms| Duration::from_millis(ms);
        let (lull, much) = (Lull::default(), LIMITS.code_bytes + 1);
        assert!(!lull.ends(LIMITS.code_bytes, at(1), || panic!("there is nothing to win")));
        assert!(!lull.ends(much, at(5_000), || at(100)), "nothing is known yet");
        assert!(!lull.ends(much, at(14_999), || panic!("too early to ask")));
        assert!(lull.ends(much, at(15_000), || at(9_900)), "it did 200 ms of work in 10 s");
        assert!(!lull.ends(much, at(15_001), || panic!("it was told")));
        assert!(!lull.ends(much, at(25_000), || at(19_000)), "it did 900 ms of work in 10 s");
        assert!(lull.ends(much, at(45_000), || at(39_000)), "a longer stretch, all of it rest");
    }
}
