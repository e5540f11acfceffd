//! The machine's clocks: what time it is, for how long the guest has run, and the clock that its timers go by.
//!
//! On arm64 the guest's counter (the generic timer's) belongs to the vCPU; on x86-64 timers and vCPU share a [`GuestClock`].

use std::sync::Mutex;
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
        self.before.saturating_add(self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)))
    }
}

/// Nanoseconds that the guest has run, on the host's monotonic clock. It stands still while the vCPU does.
#[derive(Debug)]
pub struct GuestClock(Mutex<Reading>);

#[derive(Clone, Copy, Debug)]
enum Reading {
    Stopped { elapsed_ns: u64 },
    Running { origin_ns: i64 },
}

impl Default for GuestClock {
    fn default() -> Self {
        Self(Mutex::new(Reading::Stopped { elapsed_ns: 0 }))
    }
}

impl GuestClock {
    pub fn now_ns(&self) -> u64 {
        match *self.lock() {
            Reading::Stopped { elapsed_ns } => elapsed_ns,
            Reading::Running { origin_ns } => monotonic_ns().saturating_sub(origin_ns).max(0) as u64,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(*self.lock(), Reading::Running { .. })
    }

    /// Lets it run; gives the host's monotonic time at which it would have shown zero.
    pub fn start(&self) -> i64 {
        let elapsed_ns = self.now_ns();
        let origin_ns = monotonic_ns().saturating_sub(i64::try_from(elapsed_ns).unwrap_or(i64::MAX));
        *self.lock() = Reading::Running { origin_ns };
        origin_ns
    }

    pub fn stop(&self) {
        let elapsed_ns = self.now_ns();
        self.set(elapsed_ns);
    }

    /// Stops it, showing this.
    pub fn set(&self, elapsed_ns: u64) {
        *self.lock() = Reading::Stopped { elapsed_ns };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().expect("nothing panics while it holds the clock")
    }
}

fn monotonic_ns() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
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

    #[test]
    fn the_guests_clock_stands_still_while_stopped() {
        let clock = GuestClock::default();
        clock.set(5_000_000_000);
        assert_eq!(clock.now_ns(), 5_000_000_000);
        let origin_ns = clock.start();
        assert!(clock.is_running());
        let now = monotonic_ns();
        assert!(clock.now_ns() >= (now - origin_ns) as u64);
        clock.stop();
        let stopped = clock.now_ns();
        assert!(stopped >= 5_000_000_000);
        assert_eq!(clock.now_ns(), stopped);
    }
}
