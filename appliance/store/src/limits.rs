//! Checks of outside input against the crate's named limits, shared by the backends.

use bytes::Bytes;

use crate::{
    BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BLOB_BYTES_MAX, EVENT_BYTES_MAX, KEY_BYTES_MAX, Result,
    StoreError, VALUE_BYTES_MAX,
};

fn check(what: &'static str, size: usize, max: usize) -> Result<()> {
    if size > max {
        Err(StoreError::TooLarge { what, size, max })
    } else {
        Ok(())
    }
}

pub(crate) fn check_batch(first_seq: u64, events: &[Bytes]) -> Result<()> {
    if first_seq == 0 {
        return Err(StoreError::ZeroSeq);
    }
    check("a batch (events)", events.len(), BATCH_EVENTS_MAX)?;
    events
        .iter()
        .try_for_each(|event| check("an event (bytes)", event.len(), EVENT_BYTES_MAX))?;
    check(
        "a batch (bytes)",
        events.iter().map(Bytes::len).sum(),
        BATCH_BYTES_MAX,
    )
}

pub(crate) fn check_record(bucket: &str, key: &[u8], value: &[u8]) -> Result<()> {
    check("a bucket's name (bytes)", bucket.len(), KEY_BYTES_MAX)?;
    check("a key (bytes)", key.len(), KEY_BYTES_MAX)?;
    check("a value (bytes)", value.len(), VALUE_BYTES_MAX)
}

pub(crate) fn check_blob(blob: &Bytes) -> Result<()> {
    check("a blob (bytes)", blob.len(), BLOB_BYTES_MAX)
}
