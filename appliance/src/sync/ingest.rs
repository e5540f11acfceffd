//! What waits between a phone's batch and its acknowledgement: pure bookkeeping of batches and the chunks they need.
//!
//! A batch is stored only when every chunk that its events name is stored, and in order; so what was acknowledged can be
//! replayed completely.

use std::collections::{HashSet, VecDeque};

use sync_protocol::Hash;
use sync_protocol::event::{Event, FileOp, Kind};

/// Events that wait for chunks. An agent sends them without waiting for acknowledgements, so this bounds our memory; a stream that
/// exceeds it ends, and goes on from what was acknowledged.
const EVENTS_WAITING_MAX: usize = 262_144;
/// Requests for chunks under way: agents queue only some dozens.
const REQUESTS_MAX: usize = 8;
/// Chunks asked for in one request: some 8 MiB.
const REQUEST_CHUNKS_MAX: usize = 512;
const _: () = assert!(REQUEST_CHUNKS_MAX <= sync_protocol::limits::NEED_CHUNKS_MAX);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IngestError {
    #[error("{EVENTS_WAITING_MAX} events wait for chunks already")]
    TooFarAhead,
    #[error("a batch from {found}, but {expected} comes next")]
    Gap { expected: u64, found: u64 },
}

/// A batch on its way to the log.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) first_seq: u64,
    pub(super) events: Vec<Event>,
}

struct Waiting {
    batch: Batch,
    missing: HashSet<Hash>,
}

/// The batches of one stream.
pub(super) struct Ingest {
    /// The seq that comes next.
    next: u64,
    waiting: VecDeque<Waiting>,
    events_waiting: usize,
    /// Chunks that are wanted, asked for or not.
    wanted: HashSet<Hash>,
    to_ask: VecDeque<Hash>,
    /// Requests under way, each with what has not come of it.
    requests: Vec<HashSet<Hash>>,
}

impl Ingest {
    /// After `acked`.
    pub(super) fn new(acked: u64) -> Ingest {
        Ingest {
            next: acked + 1,
            waiting: VecDeque::new(),
            events_waiting: 0,
            wanted: HashSet::new(),
            to_ask: VecDeque::new(),
            requests: Vec::new(),
        }
    }

    /// Takes a batch whose chunks in `missing` are not stored.
    pub(super) fn add(&mut self, batch: Batch, missing: HashSet<Hash>) -> Result<(), IngestError> {
        if batch.first_seq > self.next {
            return Err(IngestError::Gap { expected: self.next, found: batch.first_seq });
        }
        let count = batch.events.len();
        if self.events_waiting + count > EVENTS_WAITING_MAX {
            return Err(IngestError::TooFarAhead);
        }
        self.next = self.next.max(batch.first_seq + count as u64);
        self.events_waiting += count;
        let fresh = missing.iter().copied().filter(|hash| self.wanted.insert(*hash));
        self.to_ask.extend(fresh);
        self.waiting.push_back(Waiting { batch, missing });
        Ok(())
    }

    /// The next request for chunks, if there is one and not too many are under way.
    pub(super) fn request(&mut self) -> Option<Vec<Hash>> {
        if self.to_ask.is_empty() || self.requests.len() >= REQUESTS_MAX {
            return None;
        }
        let hashes: Vec<Hash> = self.to_ask.drain(..self.to_ask.len().min(REQUEST_CHUNKS_MAX)).collect();
        self.requests.push(hashes.iter().copied().collect());
        Some(hashes)
    }

    /// Whether a chunk was asked for: others are not stored.
    pub(super) fn wants(&self, hash: &Hash) -> bool {
        self.wanted.contains(hash)
    }

    /// These chunks are stored now.
    pub(super) fn stored(&mut self, hashes: &[Hash]) {
        for hash in hashes {
            self.wanted.remove(hash);
            self.waiting.iter_mut().for_each(|waiting| {
                waiting.missing.remove(hash);
            });
            self.requests.iter_mut().for_each(|request| {
                request.remove(hash);
            });
        }
        self.requests.retain(|request| !request.is_empty());
    }

    /// The next batch that has all its chunks, if it is its turn.
    pub(super) fn ready(&mut self) -> Option<Batch> {
        if !self.waiting.front()?.missing.is_empty() {
            return None;
        }
        let batch = self.waiting.pop_front()?.batch;
        self.events_waiting -= batch.events.len();
        Some(batch)
    }
}

/// The chunks that these events name.
pub(super) fn chunks_of(events: &[Event]) -> HashSet<Hash> {
    let nodes = events.iter().filter_map(|event| match &event.kind {
        Kind::File(change) => match &change.op {
            FileOp::Put(node) => Some(node),
            FileOp::Remove | FileOp::Rename { .. } => None,
        },
        _ => None,
    });
    nodes.flat_map(|node| node.chunks()).map(|chunk| chunk.hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sync_protocol::event::Origin;

    fn batch(first_seq: u64, count: u64) -> Batch {
        let event = |seq| Event {
            seq,
            wall_us: 0,
            mono_us: 0,
            origin: Origin::Phone,
            kind: Kind::Mmi(crate::input::touch_up()),
        };
        Batch { first_seq, events: (first_seq..first_seq + count).map(event).collect() }
    }

    fn hashes(names: &[&str]) -> HashSet<Hash> {
        names.iter().map(|name| Hash::of(name.as_bytes())).collect()
    }

    #[test]
    fn batches_wait_for_their_chunks_and_for_each_other() {
        let mut ingest = Ingest::new(4);
        ingest.add(batch(5, 2), hashes(&["a", "b"])).expect("added");
        assert_eq!(ingest.request().map(|hashes| hashes.len()), Some(2));
        // "b" was asked for already.
        ingest.add(batch(7, 1), hashes(&["b"])).expect("added");
        assert_eq!(ingest.request(), None);
        ingest.add(batch(8, 1), HashSet::new()).expect("added");
        ingest.stored(&[Hash::of(b"b")]);
        assert!(ingest.ready().is_none());
        assert!(ingest.wants(&Hash::of(b"a")) && !ingest.wants(&Hash::of(b"b")));
        ingest.stored(&[Hash::of(b"a")]);
        let firsts: Vec<u64> = std::iter::from_fn(|| ingest.ready()).map(|batch| batch.first_seq).collect();
        assert_eq!(firsts, [5, 7, 8]);
    }

    #[test]
    fn gaps_and_floods_are_refused() {
        let mut ingest = Ingest::new(4);
        assert_eq!(ingest.add(batch(6, 1), HashSet::new()), Err(IngestError::Gap { expected: 5, found: 6 }));
        ingest.add(batch(2, 2), HashSet::new()).expect("a repetition is no gap");
        let many = EVENTS_WAITING_MAX as u64;
        assert_eq!(ingest.add(batch(5, many), HashSet::new()), Err(IngestError::TooFarAhead));
        ingest.add(batch(5, 10), HashSet::new()).expect("added");
    }

    #[test]
    fn requests_for_chunks_are_bounded() {
        let names: Vec<String> = (0..REQUEST_CHUNKS_MAX + 1).map(|n| n.to_string()).collect();
        let missing = names.iter().map(|name| Hash::of(name.as_bytes())).collect();
        let mut ingest = Ingest::new(0);
        ingest.add(batch(1, 1), missing).expect("added");
        let first = ingest.request().expect("a request");
        assert_eq!(first.len(), REQUEST_CHUNKS_MAX);
        assert_eq!(ingest.request().map(|hashes| hashes.len()), Some(1));
        for seq in 2..=REQUESTS_MAX as u64 {
            ingest.add(batch(seq, 1), hashes(&[&format!("x{seq}")])).expect("added");
            assert_eq!(ingest.request().is_some(), (seq as usize) < REQUESTS_MAX);
        }
        ingest.stored(&first);
        assert!(ingest.request().is_some());
    }
}
