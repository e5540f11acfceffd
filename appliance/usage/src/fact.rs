//! One thing that happened on a phone, and where we know it from.

use serde::{Deserialize, Serialize};

/// Whether the phone's user began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    In,
    Out,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

/// Where a fact was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Absolute path on the phone; lossy where it is not UTF-8.
    pub path: String,
    /// Row id in that database.
    pub row: i64,
    /// Position in the phone's log at which the row was first seen so.
    pub position: u64,
}

/// A call. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub direction: Direction,
    /// The other party as the phone recorded it.
    pub party: String,
    pub started_us: i64,
    /// Absent when nobody answered.
    pub answered_us: Option<i64>,
    /// Absent while the call lasts.
    pub ended_us: Option<i64>,
    pub from: Provenance,
}

impl Call {
    /// Time spoken, in seconds; zero for an unanswered or a running call.
    pub fn duration_s(&self) -> f64 {
        match (self.answered_us, self.ended_us) {
            (Some(answered), Some(ended)) => ended.saturating_sub(answered).max(0) as f64 / 1e6,
            _ => 0.0,
        }
    }
}

/// A text or multimedia message. Its words are not kept: reports count, they do not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub direction: Direction,
    pub party: String,
    pub at_us: i64,
    /// Length of its text in bytes of UTF-8.
    pub size_bytes: i64,
    pub from: Provenance,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Fact {
    Call(Call),
    Message(Message),
}
