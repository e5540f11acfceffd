//! Requests on the control socket, from a line's bytes to typed values. Parsing only.

use serde::Deserialize;
use serde_json::Value;

/// What `console` gives unless asked for another length.
const CONSOLE_BYTES: usize = 64 << 10;

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
