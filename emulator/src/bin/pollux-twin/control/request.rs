//! Requests on the control socket, from bytes to lines to typed values. Parsing only.

use std::io::{self, BufRead, Read};

use serde::Deserialize;
use serde_json::Value;

/// A poke with many paths is the longest request.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// What `console` gives unless asked for another length.
const CONSOLE_BYTES: usize = 64 << 10;

/// What [`read_line`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// All of it, without its end.
    Whole,
    /// More than [`LINE_BYTES_MAX`]: the rest is not worth reading.
    TooLong,
    /// The stream has ended, perhaps within a line.
    End,
}

/// Reads the next line in place of what `line` holds.
pub(super) fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    from.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line)?;
    if line.len() > LINE_BYTES_MAX {
        return Ok(Line::TooLong);
    }
    Ok(if line.pop() == Some(b'\n') { Line::Whole } else { Line::End })
}

/// A request without its id.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    Boot,
    Pause,
    Resume,
    Stop,
    Save { #[serde(default = "yes")] whole: bool },
    Status,
    Input { device: Device, events: Vec<(u16, u16, i32)> },
    InputDrained,
    Screen { #[serde(default)] png: bool },
    ScreenWait { after_generation: u64, timeout_ms: u64 },
    Pass { until_us: u64, timeout_ms: u64 },
    PortWait { name: String, timeout_ms: u64 },
    Poke { paths: Vec<String> },
    Console { #[serde(default = "console_bytes")] bytes: usize },
    Type { text: String },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Device {
    Keyboard,
    Touch,
}

fn yes() -> bool {
    true
}

fn console_bytes() -> usize {
    CONSOLE_BYTES
}

/// A line's id and request; an error keeps the id if there was one.
pub(super) fn parse(line: &[u8]) -> Result<(Value, Request), (Value, String)> {
    let mut message: Value = serde_json::from_slice(line).map_err(|e| (Value::Null, format!("not JSON: {e}")))?;
    let Some(fields) = message.as_object_mut() else {
        return Err((Value::Null, "not a JSON object".into()));
    };
    let id = fields.remove("id").unwrap_or(Value::Null);
    match serde_json::from_value(message) {
        Ok(request) => Ok((id, request)),
        Err(error) => Err((id, error.to_string())),
    }
}
