//! What a twin's keeper should do next: pure decisions, no process and no clock.
//!
//! ```text
//!             start              booted
//!  Stopped ──────────▶ Starting ────────▶ Running ──park──▶ Parking ─▶ Parked
//!     ▲                   │  ▲               │ crash                     │
//!     │ stop              │  └── again ──────┤                           │ start
//!     └──(any state)      ▼                  ▼                           ▼
//!                       Failed ◀──────── too often                    Starting
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Crashes older than this do not count against a twin.
const CRASH_WINDOW: Duration = Duration::from_secs(600);
/// Pause before the first restart; doubles with each further one.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TwinState {
    /// No machine, nothing saved: the next start boots.
    Stopped,
    Starting,
    Running,
    Parking,
    /// The machine is saved; the next start goes on where it was.
    Parked,
    /// It crashed too often, or cannot start; `detail` says why. Starting again is possible.
    Failed,
}

/// Counts crashes and says whether another start is worth trying.
#[derive(Debug, Default)]
pub(super) struct Crashes {
    recent: VecDeque<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum AfterCrash {
    StartAgain { after: Duration },
    GiveUp,
}

impl Crashes {
    pub(super) fn crashed(&mut self, now: Instant, restarts_max: u32) -> AfterCrash {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > CRASH_WINDOW) {
            self.recent.pop_front();
        }
        let before = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if before >= restarts_max {
            return AfterCrash::GiveUp;
        }
        self.recent.push_back(now);
        AfterCrash::StartAgain { after: RESTART_PAUSE * 2u32.saturating_pow(before.min(8)) }
    }

    /// Somebody asked for a start: what was before is forgiven.
    pub(super) fn forgive(&mut self) {
        self.recent.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_that_keeps_crashing_is_left_alone() {
        let start = Instant::now();
        let mut crashes = Crashes::default();
        assert_eq!(crashes.crashed(start, 2), AfterCrash::StartAgain { after: RESTART_PAUSE });
        assert_eq!(crashes.crashed(start, 2), AfterCrash::StartAgain { after: RESTART_PAUSE * 2 });
        assert_eq!(crashes.crashed(start, 2), AfterCrash::GiveUp);
        let later = start + CRASH_WINDOW + Duration::from_secs(1);
        assert_eq!(crashes.crashed(later, 2), AfterCrash::StartAgain { after: RESTART_PAUSE });
        crashes.forgive();
        assert_eq!(crashes.crashed(later, 1), AfterCrash::StartAgain { after: RESTART_PAUSE });
        assert_eq!(crashes.crashed(later, 1), AfterCrash::GiveUp);
        assert_eq!(Crashes::default().crashed(start, 0), AfterCrash::GiveUp);
    }
}
