//! Packing consecutive events into a batch, and unpacking one without trusting it.

use std::io::{self, Read};

use prost::Message;

use crate::chunking::ZSTD_LEVEL;
use crate::event::{Event, EventError};
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::wire;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("a batch does not decompress")]
    Compression(#[source] io::Error),
    #[error("a batch is larger than {BATCH_BYTES_MAX} bytes")]
    TooLarge,
    #[error("a batch has {0} events; 1 to {BATCH_EVENTS_MAX} are allowed")]
    Count(usize),
    #[error("a batch does not decode: {0}")]
    Encoding(String),
    #[error("event {found} stands where {expected} should")]
    Gap { expected: u64, found: u64 },
    #[error("event {seq} is wrong")]
    Event { seq: u64, source: EventError },
}

/// Packs events whose seqs follow each other without gap. The caller keeps within [`BATCH_EVENTS_MAX`] events and
/// [`BATCH_BYTES_MAX`] encoded bytes.
pub fn pack(events: Vec<wire::Event>) -> wire::Batch {
    let first_seq = events.first().map_or(0, |event| event.seq);
    let list = wire::EventList { events }.encode_to_vec();
    let events_zstd = zstd::bulk::compress(&list, ZSTD_LEVEL)
        .expect("compressing memory to memory does not fail");
    wire::Batch {
        first_seq,
        events_zstd,
    }
}

/// Unpacks and checks a batch from a phone: bounded, without gaps, each event valid and a phone's to send.
pub fn unpack(batch: &wire::Batch) -> Result<Vec<Event>, BatchError> {
    let list = decompress(&batch.events_zstd)?;
    let list = wire::EventList::decode(list.as_slice())
        .map_err(|error| BatchError::Encoding(error.to_string()))?;
    if !(1..=BATCH_EVENTS_MAX).contains(&list.events.len()) {
        return Err(BatchError::Count(list.events.len()));
    }
    let mut events = Vec::with_capacity(list.events.len());
    for (index, event) in list.events.into_iter().enumerate() {
        let expected = batch.first_seq.saturating_add(index as u64);
        let seq = event.seq;
        if seq != expected {
            return Err(BatchError::Gap {
                expected,
                found: seq,
            });
        }
        let checked =
            Event::try_from(event).and_then(|event| event.check_from_phone().map(|()| event));
        events.push(checked.map_err(|source| BatchError::Event { seq, source })?);
    }
    Ok(events)
}

fn decompress(compressed: &[u8]) -> Result<Vec<u8>, BatchError> {
    let mut list = Vec::new();
    zstd::Decoder::new(compressed)
        .and_then(|decoder| {
            decoder
                .take(BATCH_BYTES_MAX as u64 + 1)
                .read_to_end(&mut list)
        })
        .map_err(BatchError::Compression)?;
    match list.len() > BATCH_BYTES_MAX {
        true => Err(BatchError::TooLarge),
        false => Ok(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Control, ControlKind, Kind, Origin};

    fn events(seqs: impl IntoIterator<Item = u64>) -> Vec<wire::Event> {
        let control = Control {
            kind: ControlKind::Started,
            text: "v1".into(),
            path: None,
            count: 0,
        };
        let event = |seq| Event {
            seq,
            wall_us: 1,
            mono_us: 1,
            origin: Origin::Phone,
            kind: Kind::Control(control.clone()),
        };
        seqs.into_iter().map(|seq| event(seq).into()).collect()
    }

    #[test]
    fn a_batch_comes_back() {
        let batch = pack(events(5..105));
        assert_eq!(batch.first_seq, 5);
        let back: Vec<wire::Event> = unpack(&batch)
            .unwrap()
            .into_iter()
            .map(Into::into)
            .collect();
        assert_eq!(back, events(5..105));
    }

    #[test]
    fn nothing_in_a_batch_is_trusted() {
        let good = pack(events(1..3));
        for length in 0..good.events_zstd.len() {
            let truncated = wire::Batch {
                events_zstd: good.events_zstd[..length].to_vec(),
                ..good.clone()
            };
            assert!(unpack(&truncated).is_err(), "cut at {length}");
        }
        assert!(matches!(
            unpack(&pack(events([1, 3]))),
            Err(BatchError::Gap {
                expected: 2,
                found: 3
            })
        ));
        assert!(matches!(
            unpack(&wire::Batch {
                first_seq: 2,
                ..good
            }),
            Err(BatchError::Gap { .. })
        ));
        assert!(matches!(
            unpack(&pack(events([]))),
            Err(BatchError::Count(0))
        ));
        assert!(matches!(
            unpack(&pack(events(1..4098))),
            Err(BatchError::Count(4097))
        ));
        let bomb = zstd::bulk::compress(&vec![0; BATCH_BYTES_MAX + 1], 1).unwrap();
        let bomb = wire::Batch {
            first_seq: 1,
            events_zstd: bomb,
        };
        assert!(matches!(unpack(&bomb), Err(BatchError::TooLarge)));
        let mut foreign = events([1]);
        foreign[0].origin = Origin::Helpdesk.into();
        assert!(matches!(
            unpack(&pack(foreign)),
            Err(BatchError::Event { seq: 1, .. })
        ));
    }
}
