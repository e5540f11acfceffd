//! A limit on what somebody else - a guest, a peer, a watcher - can make this process log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines that may come at once; beyond, one each [`LINE_EVERY`]: a guest that errs all day is still heard of, and a day's lines fit
/// a screen or two of a log.
pub const BURST_LINES_MAX: u32 = 20;
pub const LINE_EVERY: Duration = Duration::from_secs(60);

/// One for all lines that one origin can cause.
pub struct LogLimit(Mutex<State>);

struct State {
    /// Lines of the burst that have been used, and are not yet given back.
    used: u32,
    /// From when on the next one is given back.
    since: Option<Instant>,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    pub const fn new() -> Self {
        Self(Mutex::new(State { used: 0, since: None }))
    }

    /// Whether one more line may be logged. The last that may says that others will not be.
    pub fn allows(&self) -> bool {
        let mut state = self.0.lock().expect("nobody panics while counting lines");
        let allowed = state.take(Instant::now());
        if allowed && state.used == BURST_LINES_MAX {
            tracing::warn!("this goes on: only a line a minute is logged of it");
        }
        allowed
    }
}

impl State {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let back = now.saturating_duration_since(since).as_secs() / LINE_EVERY.as_secs();
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        if back > 0 {
            self.used = self.used.saturating_sub(back);
            self.since = Some(if self.used == 0 { now } else { since + LINE_EVERY * back });
        }
        let allowed = self.used < BURST_LINES_MAX;
        self.used += u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_burst_and_then_to_a_line_a_minute() {
        let (mut state, start) = (State { used: 0, since: None }, Instant::now());
        let mut lines_at = |seconds: u64| (0..10_000).filter(|_| state.take(start + Duration::from_secs(seconds))).count();
        assert_eq!(lines_at(0), BURST_LINES_MAX as usize);
        assert_eq!(lines_at(59), 0);
        assert_eq!(lines_at(60), 1);
        assert_eq!(lines_at(60 * 4), 3);
        assert_eq!(lines_at(1 << 40), BURST_LINES_MAX as usize, "what was quiet for long may burst again");
    }
}
