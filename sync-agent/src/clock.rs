//! The two clocks that every event carries.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// When something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Since the Unix epoch; jumps when the phone's clock is set.
    pub wall_us: i64,
    /// Since boot, suspension included.
    pub mono_us: u64,
}

pub(crate) fn now() -> Stamp {
    let wall_us = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    };
    Stamp {
        wall_us,
        mono_us: mono_us(),
    }
}

/// Microseconds since boot, suspension included.
pub(crate) fn mono_us() -> u64 {
    let since_boot =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    u64::try_from(since_boot.tv_sec()).unwrap_or(0) * 1_000_000
        + u64::try_from(since_boot.tv_nsec()).unwrap_or(0) / 1000
}
