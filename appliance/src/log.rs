//! The phones' logs: the only writer and reader of them.
//!
//! A log interleaves what a phone sent (numbered by the phone: its seqs) with events of ours (numbered by their position). The
//! position counts both. What a phone's journal has been acknowledged is found again from the log itself, which is ground state.
//!
//! Promises: what is appended is durable on return; a phone's events are stored once, in order, without gaps unless the gap
//! is recorded; positions never change. All calls block on the disk. Leaves out: chunks of file contents, which must be
//! stored before the events that name them ([`crate::sync`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use store::{Log, PhoneId, StoreError};
use sync_protocol::event::{Content, Event, EventError, FileChange, FileOp, Kind, Origin};
use tokio::sync::watch;

use crate::live::{Live, Notice};
use crate::phones::now_us;
use crate::records::{RecordError, Table};

/// Events read at a time while looking for the last one that a phone sent.
const SCAN_EVENTS: u64 = 512;
/// Events of a log's end that are searched for where a phone's answer belongs: it is of the last seconds.
const CUT_EVENTS_MAX: u64 = 65_536;
/// A journal's id, as the contract has it.
const JOURNAL_ID_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log of phone {phone}: {source}")]
    Store { phone: PhoneId, source: StoreError },
    #[error("the log of phone {phone} holds at {position} what is no event: {source}")]
    Damaged { phone: PhoneId, position: u64, source: EventError },
    #[error("a batch from {found}, but {expected} comes next")]
    Gap { expected: u64, found: u64 },
    #[error("a journal's id has {0} bytes, not {JOURNAL_ID_BYTES}")]
    JournalId(usize),
    #[error("the phone's stream was replaced by a newer one")]
    Replaced,
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// Where a phone's present journal begins in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    /// Hex.
    id: String,
    /// Events of earlier journals lie before it.
    first_position: u64,
    /// Seqs up to here count as acknowledged whatever the log holds.
    floor: u64,
    /// The log up to here may not tell all of the phone's files; 0: nothing is in doubt.
    #[serde(default)]
    doubt: u64,
}

/// Where in a log a phone stood when it answered a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Here: the log up to this position is what the phone had told, and been told, when it answered.
    At(u64),
    /// No position is: a file was changed by one side just before the other side's change came, or the answer is too old.
    None,
}

/// What a phone's journal and its log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The phone's events up to this seq are durable here.
    pub acked: u64,
    /// The phone's journal does not continue what the log has: files must be read again from the start.
    pub broken: bool,
}

#[derive(Clone)]
pub struct PhoneLogs {
    log: Arc<dyn Log>,
    journals: Table<Journal>,
    live: Live,
    writers: Arc<Mutex<HashMap<PhoneId, Arc<Mutex<Writer>>>>>,
}

/// The one place from which a phone's log grows.
#[derive(Debug)]
struct Writer {
    last: u64,
    /// `None` until the phone's journal was opened.
    acked: Option<u64>,
}

impl PhoneLogs {
    pub fn new(log: Arc<dyn Log>, kv: Arc<dyn store::Kv>, live: Live) -> PhoneLogs {
        PhoneLogs { log, journals: Table::new(kv, "journals"), live, writers: Arc::default() }
    }

    /// Position of the last event; 0: none.
    pub fn last(&self, phone: &PhoneId) -> Result<u64, LogError> {
        self.log.last_seq(phone).map_err(|source| store_error(phone, source))
    }

    /// Follows [`PhoneLogs::last`].
    pub fn watch(&self, phone: &PhoneId) -> Result<watch::Receiver<u64>, LogError> {
        self.log.subscribe(phone).map_err(|source| store_error(phone, source))
    }

    /// Up to `max` events from `position` on.
    pub fn read(&self, phone: &PhoneId, position: u64, max: usize) -> Result<Vec<(u64, Event)>, LogError> {
        let stored = self.log.read(phone, position.max(1), max).map_err(|source| store_error(phone, source))?;
        let decode = |(position, bytes): (u64, Bytes)| match Event::decode(&bytes) {
            Ok(event) => Ok((position, event)),
            Err(source) => Err(LogError::Damaged { phone: phone.clone(), position, source }),
        };
        stored.into_iter().map(decode).collect()
    }

    /// Up to which seq the log has the phone's events, as far as its journal was ever opened.
    pub fn acked(&self, phone: &PhoneId) -> Result<Option<u64>, LogError> {
        let writer = self.writer(phone)?;
        Ok(lock(&writer).acked)
    }

    /// Finds what the phone's journal and its log have in common. `first_unacked` and `last` are the journal's bounds.
    pub fn join(&self, phone: &PhoneId, id: &[u8], first_unacked: u64, last: u64) -> Result<Joined, LogError> {
        if id.len() != JOURNAL_ID_BYTES {
            return Err(LogError::JournalId(id.len()));
        }
        let writer = self.writer(phone)?;
        let mut writer = lock(&writer);
        let known = self.journals.get(phone.as_str())?.filter(|journal| journal.id == hex::encode(id));
        let acked = match &known {
            Some(journal) => self.last_seq_of(phone, journal, writer.last)?,
            None => 0,
        };
        let joined = join(known.is_some(), acked, first_unacked, last, writer.last > 0);
        if known.is_none() || joined.broken {
            // What was removed meanwhile, its scan will not tell.
            let doubt = writer.last;
            let journal = Journal { id: hex::encode(id), first_position: writer.last + 1, floor: joined.acked, doubt };
            self.journals.put(phone.as_str(), &journal)?;
        }
        writer.acked = Some(joined.acked);
        Ok(joined)
    }

    /// What the log tells so far of the phone's files may not be what the phone has. Kept until phone and flash are found the same.
    pub fn doubt(&self, phone: &PhoneId) -> Result<(), LogError> {
        self.set_doubt(phone, |_, last| last)
    }

    /// Whether the log is in doubt.
    pub fn is_in_doubt(&self, phone: &PhoneId) -> Result<bool, LogError> {
        Ok(self.journals.get(phone.as_str())?.is_some_and(|journal| journal.doubt > 0))
    }

    /// Phone and flash have been found the same at `position`.
    pub fn proven(&self, phone: &PhoneId, position: u64) -> Result<(), LogError> {
        self.set_doubt(phone, |doubt, _| if doubt <= position { 0 } else { doubt })
    }

    fn set_doubt(&self, phone: &PhoneId, doubt: impl FnOnce(u64, u64) -> u64) -> Result<(), LogError> {
        let writer = self.writer(phone)?;
        let writer = lock(&writer);
        let Some(journal) = self.journals.get(phone.as_str())? else { return Ok(()) };
        let doubt = doubt(journal.doubt, writer.last);
        match doubt == journal.doubt {
            true => Ok(()),
            false => Ok(self.journals.put(phone.as_str(), &Journal { doubt, ..journal })?),
        }
    }

    /// Appends events that the phone numbered `first_seq` and on; those already here are skipped. Returns the last seq that
    /// is durable. `current` says whether the stream they came by is still the phone's present one.
    pub fn append_from_phone(
        &self,
        phone: &PhoneId,
        first_seq: u64,
        events: Vec<Event>,
        current: impl Fn() -> bool,
    ) -> Result<u64, LogError> {
        let writer = self.writer(phone)?;
        let mut writer = lock(&writer);
        if !current() {
            return Err(LogError::Replaced);
        }
        let acked = writer.acked.ok_or(LogError::Replaced)?;
        if first_seq > acked + 1 {
            return Err(LogError::Gap { expected: acked + 1, found: first_seq });
        }
        let known = usize::try_from(acked + 1 - first_seq).unwrap_or(usize::MAX);
        let fresh: Vec<Bytes> = events.into_iter().skip(known).map(|event| event.encode().into()).collect();
        if fresh.is_empty() {
            return Ok(acked);
        }
        let count = fresh.len() as u64;
        self.append(phone, &mut writer, &fresh)?;
        writer.acked = Some(acked + count);
        Ok(acked + count)
    }

    /// Where the phone stood when it answered `command`, which it was given as that position, with `seq` as its last event.
    ///
    /// A phone carries out commands in order: by then it had made our file changes before the command, and none after.
    pub fn cut(&self, phone: &PhoneId, seq: u64, command: u64) -> Result<Cut, LogError> {
        let last = self.last(phone)?;
        let Some(of_seq) = self.position_of(phone, seq, last)? else { return Ok(Cut::None) };
        let mut finding = FindingCut { of_seq, command, reached: of_seq, passed: None };
        let mut position = of_seq.min(command);
        if last - position.min(last) > CUT_EVENTS_MAX {
            return Ok(Cut::None);
        }
        while position < last {
            let events = self.read(phone, position + 1, SCAN_EVENTS as usize)?;
            let Some((end, _)) = events.last() else { break };
            position = *end;
            events.iter().for_each(|(position, event)| finding.saw(*position, event));
        }
        Ok(finding.cut())
    }

    /// The last position that a phone's clock dates up to `wall_us`, microseconds since 1970; 0 if none is.
    ///
    /// Only the phone's own events count: what happened on a phone that was away comes into the log later than what we did meanwhile.
    /// Where a phone's clock was set back, one of the possible positions.
    pub fn position_at(&self, phone: &PhoneId, wall_us: i64) -> Result<u64, LogError> {
        let (mut low, mut high) = (0, self.last(phone)?);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let by_phone = |event: &Event| event.origin == Origin::Phone;
            match self.search_back(phone, middle, middle - low, by_phone)? {
                (Some((position, event)), _) if event.wall_us > wall_us => high = position - 1,
                _ => low = middle,
            }
        }
        Ok(low)
    }

    /// Where the phone's event `seq` of its present journal is; 0 for the seq 0. `None`: not among the last of the log.
    fn position_of(&self, phone: &PhoneId, seq: u64, last: u64) -> Result<Option<u64>, LogError> {
        if seq == 0 {
            return Ok(Some(0));
        }
        let is_it = |event: &Event| event.origin == Origin::Phone && event.seq == seq;
        self.search_back(phone, last, CUT_EVENTS_MAX, is_it).map(|(found, _)| found.map(|(position, _)| position))
    }

    /// The last event up to `from` of which `is` holds, among `max` events; and down to where was searched.
    pub fn search_back(
        &self,
        phone: &PhoneId,
        from: u64,
        max: u64,
        is: impl Fn(&Event) -> bool,
    ) -> Result<(Option<(u64, Event)>, u64), LogError> {
        let floor = from.saturating_sub(max) + 1;
        let mut end = from;
        while end >= floor {
            let start = end.saturating_sub(SCAN_EVENTS - 1).max(floor);
            let mut events = self.read(phone, start, usize::try_from(end - start + 1).unwrap_or(usize::MAX))?;
            if let Some(at) = events.iter().rposition(|(_, event)| is(event)) {
                return Ok((Some(events.swap_remove(at)), start));
            }
            end = start - 1;
        }
        Ok((None, floor))
    }

    /// Appends events of ours; `kinds` is given the position of the first one. Returns that position.
    pub fn append_ours(
        &self,
        phone: &PhoneId,
        kinds: impl FnOnce(u64) -> Vec<Kind>,
    ) -> Result<u64, LogError> {
        self.append_ours_noting(phone, |first| Ok(kinds(first)))
    }

    /// The same, where something is to be noted before, which may fail.
    pub(crate) fn append_ours_noting(
        &self,
        phone: &PhoneId,
        kinds: impl FnOnce(u64) -> Result<Vec<Kind>, LogError>,
    ) -> Result<u64, LogError> {
        let writer = self.writer(phone)?;
        let mut writer = lock(&writer);
        let first = writer.last + 1;
        let wall_us = i64::try_from(now_us()).unwrap_or(i64::MAX);
        let event = |(seq, kind)| Event { seq, wall_us, mono_us: 0, origin: Origin::Helpdesk, kind };
        let events: Vec<Bytes> = (first..).zip(kinds(first)?).map(|numbered| event(numbered).encode().into()).collect();
        if !events.is_empty() {
            self.append(phone, &mut writer, &events)?;
        }
        Ok(first)
    }

    fn append(&self, phone: &PhoneId, writer: &mut Writer, events: &[Bytes]) -> Result<(), LogError> {
        let last = self
            .log
            .append_batch(phone, writer.last + 1, events)
            .map_err(|source| store_error(phone, source))?;
        writer.last = last;
        self.live.tell(Notice::Log { phone: phone.clone(), position: last });
        Ok(())
    }

    /// The last seq that the log holds of `journal`, looked for from the log's end.
    fn last_seq_of(&self, phone: &PhoneId, journal: &Journal, last: u64) -> Result<u64, LogError> {
        let events = (last + 1).saturating_sub(journal.first_position);
        let (found, _) = self.search_back(phone, last, events, |event| event.origin == Origin::Phone)?;
        Ok(found.map_or(journal.floor, |(_, event)| event.seq.max(journal.floor)))
    }

    fn writer(&self, phone: &PhoneId) -> Result<Arc<Mutex<Writer>>, LogError> {
        if let Some(writer) = lock(&self.writers).get(phone) {
            return Ok(writer.clone());
        }
        // Read outside the lock: it may go to disk. Only the first writer that is entered counts.
        let last = self.last(phone)?;
        let fresh = Arc::new(Mutex::new(Writer { last, acked: None }));
        Ok(lock(&self.writers).entry(phone.clone()).or_insert(fresh).clone())
    }
}

/// A file change in words.
pub fn describe_change(change: &FileChange) -> String {
    let path = &change.path;
    match &change.op {
        FileOp::Put(node) => match &node.content {
            Content::Regular { size, .. } => format!("file {path} ({size} bytes)"),
            Content::Directory => format!("directory {path}"),
            Content::Symlink { .. } => format!("link {path}"),
        },
        FileOp::Remove => format!("removed {path}"),
        FileOp::Rename { to } => format!("renamed {path} to {to}"),
    }
}

/// Looks for the position up to which a log holds the phone's file changes up to an event, and ours up to a command: exactly those.
struct FindingCut {
    of_seq: u64,
    command: u64,
    /// The position is here or later,
    reached: u64,
    /// and before the first change that must not be in it.
    passed: Option<u64>,
}

impl FindingCut {
    fn saw(&mut self, position: u64, event: &Event) {
        if !matches!(event.kind, Kind::File(_)) {
            return;
        }
        let is_in = match event.origin {
            Origin::Helpdesk => position < self.command,
            _ => position <= self.of_seq,
        };
        match is_in {
            true => self.reached = self.reached.max(position),
            false => self.passed = Some(self.passed.map_or(position, |passed| passed.min(position))),
        }
    }

    fn cut(&self) -> Cut {
        match self.passed {
            Some(passed) if passed < self.reached => Cut::None,
            _ => Cut::At(self.reached),
        }
    }
}

/// Pure: how a journal with these bounds goes on from a log that has `acked` of it.
fn join(known: bool, acked: u64, first_unacked: u64, last: u64, log_has_events: bool) -> Joined {
    let floor = first_unacked.saturating_sub(1);
    match known {
        // The journal forgot what the log never got (a log restored from an old copy), or the log has what the journal never
        // wrote (a phone restored from one). Neither can be mended from numbers: go on from what the phone has.
        true if floor > acked || last < acked => Joined { acked: floor, broken: true },
        true => Joined { acked, broken: false },
        // A first journal begins at 1. Another is a new one: a full scan follows by itself if it begins at 1.
        false => Joined { acked: floor, broken: floor > 0 && log_has_events },
    }
}

fn store_error(phone: &PhoneId, source: StoreError) -> LogError {
    LogError::Store { phone: phone.clone(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_protocol::event::{Control, ControlKind};

    fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Event> {
        let event = |seq| Event {
            seq,
            wall_us: 1,
            mono_us: 1,
            origin: Origin::Phone,
            kind: Kind::Control(Control { kind: ControlKind::Started, text: String::new(), path: None, count: seq }),
        };
        seqs.map(event).collect()
    }

    fn ours(logs: &PhoneLogs, phone: &PhoneId) {
        let kind = |_| vec![Kind::Outcome(sync_protocol::wire::CommandResult::default())];
        logs.append_ours(phone, kind).expect("appended");
    }

    const JOURNAL: [u8; 16] = [1; 16];
    const OTHER: [u8; 16] = [2; 16];

    #[test]
    fn a_phones_seqs_are_found_again_between_events_of_ours() {
        let store = store::Store::memory();
        let phone: PhoneId = "p".parse().expect("id");
        let open = || PhoneLogs::new(store.log.clone(), store.kv.clone(), Live::default());
        let logs = open();
        assert_eq!(logs.join(&phone, &JOURNAL, 1, 3).expect("joined"), Joined { acked: 0, broken: false });
        ours(&logs, &phone);
        assert_eq!(logs.append_from_phone(&phone, 1, events(1..=3), || true).expect("appended"), 3);
        for _ in 0..SCAN_EVENTS + 10 {
            ours(&logs, &phone);
        }
        let logs = open();
        assert_eq!(logs.join(&phone, &JOURNAL, 2, 5).expect("joined"), Joined { acked: 3, broken: false });
        // A batch that overlaps is stored once.
        assert_eq!(logs.append_from_phone(&phone, 2, events(2..=5), || true).expect("appended"), 5);
        assert_eq!(logs.append_from_phone(&phone, 2, events(2..=5), || true).expect("appended"), 5);
        let all = logs.read(&phone, 1, 10_000).expect("read");
        let seqs: Vec<u64> = all.iter().filter(|(_, e)| e.origin == Origin::Phone).map(|(_, e)| e.seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4, 5]);
        assert_eq!(all.last().map(|(position, _)| *position), Some(logs.last(&phone).expect("last")));
    }

    #[test]
    fn a_phones_answer_is_of_one_position_or_of_none() {
        let file = |origin| {
            let path = sync_protocol::PhonePath::new("/f").expect("path");
            let kind = Kind::File(sync_protocol::event::FileChange { path, op: sync_protocol::event::FileOp::Remove });
            Event { seq: 0, wall_us: 1, mono_us: 1, origin, kind }
        };
        // The command is at 4, the phone's last event at 6; where each side's file changes are decides.
        let cut = |phone: &[u64], ours: &[u64]| {
            let mut finding = FindingCut { of_seq: 6, command: 4, reached: 6, passed: None };
            phone.iter().for_each(|at| finding.saw(*at, &file(Origin::Phone)));
            ours.iter().for_each(|at| finding.saw(*at, &file(Origin::Helpdesk)));
            finding.cut()
        };
        assert_eq!(cut(&[5, 6], &[3]), Cut::At(6));
        assert_eq!(cut(&[6, 7], &[3, 8]), Cut::At(6));
        // Ours came between the command and the phone's event: the phone has not made it.
        assert_eq!(cut(&[6], &[5]), Cut::None);
        let late = |phone: &[u64], ours: &[u64]| {
            let mut finding = FindingCut { of_seq: 6, command: 9, reached: 6, passed: None };
            phone.iter().for_each(|at| finding.saw(*at, &file(Origin::Phone)));
            ours.iter().for_each(|at| finding.saw(*at, &file(Origin::Helpdesk)));
            finding.cut()
        };
        assert_eq!(late(&[6], &[8]), Cut::At(8));
        // The phone's change at 7 came after its answer, ours at 8 before.
        assert_eq!(late(&[7], &[8]), Cut::None);
    }

    #[test]
    fn a_time_is_found_by_the_phones_clock_whatever_we_did_meanwhile() {
        let store = store::Store::memory();
        let phone: PhoneId = "p".parse().expect("id");
        let logs = PhoneLogs::new(store.log, store.kv, Live::default());
        logs.join(&phone, &JOURNAL, 1, 9).expect("joined");
        assert_eq!(logs.position_at(&phone, i64::MAX).expect("position"), 0);
        ours(&logs, &phone);
        for seq in 1..=4u64 {
            let event = Event { wall_us: seq as i64 * 10, ..events(seq..=seq).remove(0) };
            logs.append_from_phone(&phone, seq, vec![event], || true).expect("appended");
            ours(&logs, &phone);
        }
        // Ours at 1, 3, 5, 7, 9, by our clock, which is far ahead; the phone's at 2, 4, 6, 8.
        let at = |wall_us| logs.position_at(&phone, wall_us).expect("position");
        assert_eq!([at(9), at(10), at(25), at(39), at(40), at(i64::MAX)], [1, 3, 5, 7, 9, 9]);
    }

    #[test]
    fn gaps_and_replaced_streams_store_nothing() {
        let store = store::Store::memory();
        let phone: PhoneId = "p".parse().expect("id");
        let logs = PhoneLogs::new(store.log, store.kv, Live::default());
        assert!(matches!(logs.append_from_phone(&phone, 1, events(1..=1), || true), Err(LogError::Replaced)));
        logs.join(&phone, &JOURNAL, 1, 9).expect("joined");
        let gap = logs.append_from_phone(&phone, 2, events(2..=3), || true);
        assert!(matches!(gap, Err(LogError::Gap { expected: 1, found: 2 })));
        assert!(matches!(logs.append_from_phone(&phone, 1, events(1..=1), || false), Err(LogError::Replaced)));
        assert_eq!(logs.last(&phone).expect("last"), 0);
        assert!(matches!(logs.join(&phone, b"short", 1, 0), Err(LogError::JournalId(5))));
    }

    #[test]
    fn a_new_journal_begins_anew_and_the_old_one_is_forgotten() {
        let store = store::Store::memory();
        let phone: PhoneId = "p".parse().expect("id");
        let logs = PhoneLogs::new(store.log, store.kv, Live::default());
        logs.join(&phone, &JOURNAL, 1, 9).expect("joined");
        logs.append_from_phone(&phone, 1, events(1..=9), || true).expect("appended");
        assert_eq!(logs.join(&phone, &OTHER, 1, 2).expect("joined"), Joined { acked: 0, broken: false });
        assert_eq!(logs.append_from_phone(&phone, 1, events(1..=2), || true).expect("appended"), 2);
        assert_eq!(logs.last(&phone).expect("last"), 11);
    }

    #[test]
    fn journals_that_do_not_continue_the_log_are_noticed() {
        assert_eq!(join(true, 5, 6, 5, true), Joined { acked: 5, broken: false });
        assert_eq!(join(true, 5, 3, 9, true), Joined { acked: 5, broken: false });
        assert_eq!(join(true, 5, 8, 9, true), Joined { acked: 7, broken: true });
        assert_eq!(join(true, 5, 2, 3, true), Joined { acked: 1, broken: true });
        assert_eq!(join(false, 0, 4, 9, true), Joined { acked: 3, broken: true });
    }
}
