//! The machine's two clocks outside the CPU: what time it is, and for how long the guest has run.
//!
//! The guest's counter (the generic timer's) belongs to the vCPU.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the guest's real-time clock takes the time of day from.
pub trait WallClock: Send + Sync {
    /// Seconds since 1970, UTC.
    fn unix_seconds(&self) -> u64;
}

/// The host's time of day.
pub struct HostClock;

impl WallClock for HostClock {
    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }
}

/// Measures how long a machine has run: it stands still while the machine does, and goes on in a restored one.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunTime {
    before: Duration,
    since: Option<Instant>,
}

impl RunTime {
    /// A stopped clock that already shows `before`.
    pub fn from(before: Duration) -> Self {
        Self { before, since: None }
    }

    pub fn start(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    pub fn stop(&mut self, now: Instant) {
        self.before = self.at(now);
        self.since = None;
    }

    pub fn at(&self, now: Instant) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_time_counts_only_while_running() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut time = RunTime::from(Duration::from_secs(5));
        assert_eq!(time.at(at(3)), Duration::from_secs(5));
        time.start(at(3));
        assert_eq!(time.at(at(4)), Duration::from_secs(6));
        time.start(at(9));
        time.stop(at(10));
        assert_eq!(time.at(at(100)), Duration::from_secs(12));
    }
}
