//! The body of the fuzz target `control`, run by libFuzzer from `emulator/fuzz`, and among the tests for a short time.

use std::io::BufReader;

use serde_json::Value;

use super::request::{LINE_BYTES_MAX, Line, parse, read_line};

/// How often the first byte has what follows repeated: so that small inputs are long lines.
const REPEATED: [usize; 4] = [1, 1, 64, 1024];
/// The stream comes in pieces as long as the first byte says, this at most.
const PIECE_BYTES_MAX: usize = 63;

/// Lines as a client may send them: an id comes back as it was, whatever else is wrong.
pub(crate) fn control(input: &[u8]) {
    let Some((&how, sent)) = input.split_first() else { return };
    let sent = sent.repeat(REPEATED[usize::from(how >> 6)]);
    let mut from = BufReader::with_capacity(usize::from(how).clamp(1, PIECE_BYTES_MAX), sent.as_slice());
    let mut lines = sent.split(|byte| *byte == b'\n');
    let mut line = Vec::new();
    while let Line::Whole = read_line(&mut from, &mut line).expect("memory can be read") {
        assert_eq!(Some(line.as_slice()), lines.next());
        let (Ok((id, _)) | Err((id, _))) = parse(&line);
        let sent = serde_json::from_slice::<Value>(&line).ok().and_then(|mut message| message.get_mut("id").map(Value::take));
        assert_eq!(id, sent.unwrap_or_default());
    }
    let rest = lines.next().unwrap_or_default();
    assert!(line.len() <= LINE_BYTES_MAX + 1 && rest.starts_with(line.strip_suffix(b"\n").unwrap_or(&line)));
}

#[cfg(test)]
#[path = "../../../../../vmm/src/fuzz/short_run.rs"]
mod short_run;

#[test]
fn a_short_run() {
    short_run::run(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/control").as_ref(), control);
}
