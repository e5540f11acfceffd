//! The generic timer's arithmetic: guest time, and when the physical timer fires.
//!
//! Times in nanoseconds are of the host's monotonic clock, which the engine reads for the guest's counter too.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vmm::layout;

use crate::engine::Timer;

const NS_PER_TICK: u64 = 1_000_000_000 / layout::COUNTER_HZ;
const ENABLE: u32 = 1 << 0;
const MASKED: u32 = 1 << 1;

/// Now, on the clock of the counter.
pub(crate) fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has a monotonic clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// The guest's clock: runs while the CPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Stands still, having run for so long.
    Stopped { elapsed_ns: u64 },
    /// Runs since this host time.
    Running { origin_ns: i64 },
}

impl Clock {
    pub(crate) fn elapsed_ns(self, now_ns: i64) -> u64 {
        match self {
            Clock::Stopped { elapsed_ns } => elapsed_ns,
            Clock::Running { origin_ns } => now_ns.saturating_sub(origin_ns).max(0) as u64,
        }
    }

    pub(crate) fn started(self, now_ns: i64) -> Self {
        Clock::Running { origin_ns: now_ns.saturating_sub(i64::try_from(self.elapsed_ns(now_ns)).unwrap_or(i64::MAX)) }
    }

    /// A clock that runs, put forward; and its new origin.
    pub(crate) fn put_forward(self, by: Duration) -> (Self, i64) {
        let Clock::Running { origin_ns } = self else { unreachable!("a guest is idle only while its clock runs") };
        let origin_ns = origin_ns.saturating_sub(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX));
        (Clock::Running { origin_ns }, origin_ns)
    }

    pub(crate) fn stopped(self, now_ns: i64) -> Self {
        Clock::Stopped { elapsed_ns: self.elapsed_ns(now_ns) }
    }
}

/// What the timer's output does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Low, and stays so until the guest programs it.
    Low,
    /// High until the guest programs it.
    High,
    /// Goes high after this guest time.
    HighIn(Duration),
}

impl Output {
    /// Until it goes high.
    pub(crate) fn delay(self) -> Option<Duration> {
        if let Output::HighIn(delay) = self { Some(delay) } else { None }
    }
}

impl Timer {
    /// The output when the guest's clock shows `elapsed_ns`.
    pub(crate) fn output(self, elapsed_ns: u64) -> Output {
        if self.control & (ENABLE | MASKED) != ENABLE {
            return Output::Low;
        }
        let count = elapsed_ns / NS_PER_TICK;
        if count >= self.compare {
            return Output::High;
        }
        // A guest may name a time so far off that it never comes.
        let due_ns = self.compare.saturating_mul(NS_PER_TICK);
        Output::HighIn(Duration::from_nanos(due_ns - elapsed_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_while_stopped() {
        let clock = Clock::Stopped { elapsed_ns: 1000 }.started(5_000);
        assert_eq!(clock.elapsed_ns(5_500), 1_500);
        let clock = clock.stopped(6_000);
        assert_eq!(clock.elapsed_ns(9_999_999), 2_000);
        assert_eq!(clock.started(10_000).elapsed_ns(10_001), 2_001);
    }

    #[test]
    fn output_follows_control_and_compare() {
        let timer = |control, compare| Timer { control, compare };
        assert_eq!(timer(0, 0).output(100), Output::Low);
        assert_eq!(timer(ENABLE | MASKED, 0).output(100), Output::Low);
        assert_eq!(timer(ENABLE, 10).output(160), Output::High);
        assert_eq!(timer(ENABLE, 10).output(159), Output::HighIn(Duration::from_nanos(1)));
        assert!(matches!(timer(ENABLE, u64::MAX).output(0), Output::HighIn(_)));
    }
}
