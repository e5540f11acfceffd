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
    /// What the network had to do with it, where the record knows.
    pub network: Option<Network>,
    /// Another record of the same call is the one that counts; see [`mark_told_twice`].
    pub is_told_twice: bool,
    pub from: Provenance,
}

/// The network's part in a call. Texts are empty where the phone did not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// It had been answered, and was cut off by the network.
    pub dropped: bool,
    /// The phone was in a network other than its own.
    pub roaming: bool,
    /// As the network calls itself.
    pub operator: String,
    /// 2G, 2.5G, 3G, 4G or 5G.
    pub technology: String,
    /// Where the call began: MCC-MNC-AREA-CELL, the last two decimal (3GPP TS 23.003).
    pub tower: String,
    /// 0 to 100, when the call began.
    pub signal_percent: Option<i64>,
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

/// How far apart two records of one call may have it begin: both are of the phone's clock, but the telephone's application
/// notices a call when it gets round to it.
const SAME_CALL_US: u64 = 10_000_000;
/// Digits at the end of a number that two ways of writing it share: what comes before is how one dials there.
const SAME_NUMBER_DIGITS: usize = 7;
/// Calls of one phone that begin within [`SAME_CALL_US`] of another and are looked at; a person makes two or three.
const NEAR_MAX: usize = 16;

/// Finds calls that two databases of one phone tell of: what the network knew (the agent's own records, with
/// [`Call::network`]) and what the telephone's application kept. They are one call if they have the same direction and
/// party and begin within [`SAME_CALL_US`]; each record is matched once, with the nearest first. The network's counts, as it
/// says more, unless it has no end and the other has. A function of `calls`, whatever was marked before.
pub fn mark_told_twice(calls: &mut [&mut Call]) {
    calls.sort_by_key(|call| call.started_us);
    calls.iter_mut().for_each(|call| call.is_told_twice = false);
    let mut pairs = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        let near = calls.iter().enumerate().skip(index + 1).take(NEAR_MAX);
        let near = near.take_while(|(_, other)| other.started_us.abs_diff(call.started_us) <= SAME_CALL_US);
        let same = near.filter(|(_, other)| call.network.is_some() != other.network.is_some() && is_same(call, other));
        pairs.extend(same.map(|(other, it)| (it.started_us.abs_diff(call.started_us), index, other)));
    }
    pairs.sort();
    let mut matched = vec![false; calls.len()];
    for (_, first, second) in pairs {
        if matched[first] || matched[second] {
            continue;
        }
        (matched[first], matched[second]) = (true, true);
        let (networks, other) = if calls[first].network.is_some() { (first, second) } else { (second, first) };
        let loser = if calls[networks].ended_us.is_none() && calls[other].ended_us.is_some() { networks } else { other };
        calls[loser].is_told_twice = true;
    }
}

fn is_same(call: &Call, other: &Call) -> bool {
    let end = |party: &str| party.bytes().filter(u8::is_ascii_digit).rev().take(SAME_NUMBER_DIGITS).collect::<Vec<_>>();
    let (digits, others) = (end(&call.party), end(&other.party));
    let same_party = if digits.is_empty() || others.is_empty() { call.party == other.party } else { digits == others };
    same_party && call.direction == other.direction
}
