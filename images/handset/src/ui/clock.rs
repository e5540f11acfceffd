//! The wall clock as the screen shows it: to the minute.

use time::{OffsetDateTime, UtcOffset};

/// Minutes since 1970 UTC, and how far local time is ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    pub unix_minute: i64,
    pub offset_minutes: i32,
}

impl Clock {
    fn local(&self, unix_s: i64) -> OffsetDateTime {
        let at = OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let offset =
            UtcOffset::from_whole_seconds(self.offset_minutes * 60).unwrap_or(UtcOffset::UTC);
        at.to_offset(offset)
    }

    fn now(&self) -> OffsetDateTime {
        self.local(self.unix_minute * 60)
    }

    pub fn time(&self) -> String {
        hours_minutes(self.now())
    }

    /// Like "Monday, 23 November".
    pub fn date(&self) -> String {
        let now = self.now();
        format!("{}, {} {}", now.weekday(), now.day(), now.month())
    }

    /// The time of day of a moment.
    pub fn time_of(&self, unix_s: i64) -> String {
        hours_minutes(self.local(unix_s))
    }

    /// When something was: the time today, else "Yesterday", the weekday, or the date.
    pub fn when(&self, unix_s: i64) -> String {
        let (now, then) = (self.now(), self.local(unix_s));
        let days = now.date().to_julian_day() - then.date().to_julian_day();
        let month: String = then.month().to_string().chars().take(3).collect();
        match days {
            0 => hours_minutes(then),
            1 => "Yesterday".to_owned(),
            2..=6 => then.weekday().to_string(),
            _ if now.year() == then.year() => format!("{} {month}", then.day()),
            _ => format!("{} {month} {}", then.day(), then.year()),
        }
    }

    /// A heading for the day of something: "Today", "Yesterday" or the date.
    pub fn day(&self, unix_s: i64) -> String {
        let (now, then) = (self.now(), self.local(unix_s));
        match now.date().to_julian_day() - then.date().to_julian_day() {
            0 => "Today".to_owned(),
            1 => "Yesterday".to_owned(),
            _ => format!("{}, {} {}", then.weekday(), then.day(), then.month()),
        }
    }
}

fn hours_minutes(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}", at.hour(), at.minute())
}
