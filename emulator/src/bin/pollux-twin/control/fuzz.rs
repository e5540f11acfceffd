//! The body of the fuzz target `control`, run by libFuzzer from `emulator/fuzz`, and among the tests for a short time.

use serde_json::Value;

use super::request::parse;

/// Lines as a client may send them: an id comes back as it was, whatever else is wrong.
pub(crate) fn control(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        let (Ok((id, _)) | Err((id, _))) = parse(line);
        let sent = serde_json::from_slice::<Value>(line).ok().and_then(|mut message| message.get_mut("id").map(Value::take));
        assert_eq!(id, sent.unwrap_or_default());
    }
}

#[cfg(test)]
#[path = "../../../../../vmm/src/fuzz/short_run.rs"]
mod short_run;

#[test]
fn a_short_run() {
    short_run::run(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/control").as_ref(), control);
}
