//! The control socket of a `pollux-twin` process, as its protocol is documented there: one request at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::appliance::PATIENCE;

/// Longest that the machine itself waits in one request.
const WAIT_MS_MAX: u64 = 60_000;

pub struct Control {
    stream: BufReader<UnixStream>,
    requests: u64,
}

impl Control {
    pub fn connect(socket: &Path) -> Result<Control> {
        Ok(Control { stream: BufReader::new(UnixStream::connect(socket)?), requests: 0 })
    }

    /// One request, and what is `ok` in its reply.
    pub fn ask(&mut self, mut request: Value) -> Result<Value> {
        self.requests += 1;
        request["id"] = self.requests.into();
        // In one piece: a request that trickles in wakes the machine's process for each of its words.
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the machine is gone");
            let reply: Value = serde_json::from_str(&line)?;
            if reply["id"] == self.requests {
                if !reply["error"].is_null() {
                    bail!("{request}: {}", reply["error"]);
                }
                return Ok(reply["ok"].clone());
            }
        }
    }

    /// One SYN frame of input events, `[[type, code, value], ...]`; `device` is `keyboard` or `touch`.
    pub fn frame(&mut self, device: &str, events: &Value) -> Result<()> {
        self.ask(json!({"op": "input", "device": device, "events": events})).map(drop)
    }

    /// The screen as PNG.
    pub fn screen(&mut self) -> Result<Vec<u8>> {
        use base64::Engine;
        let reply = self.ask(json!({"op": "screen", "png": true}))?;
        let png = reply["png_base64"].as_str().with_context(|| format!("no picture in {reply}"))?;
        Ok(base64::engine::general_purpose::STANDARD.decode(png)?)
    }

    /// A number that rises with each change of the screen.
    pub fn generation(&mut self) -> Result<u64> {
        let reply = self.ask(json!({"op": "status"}))?;
        reply["generation"].as_u64().with_context(|| format!("no generation in {reply}"))
    }

    /// Returns as soon as the screen is newer than `generation`, with its present one.
    pub fn changed(&mut self, generation: u64) -> Result<u64> {
        let start = Instant::now();
        loop {
            if let Some(generation) = self.changed_within(generation, WAIT_MS_MAX)? {
                return Ok(generation);
            }
            ensure!(start.elapsed() < PATIENCE, "the screen did not change within {PATIENCE:?}");
        }
    }

    /// As [`Control::changed`]; `None` if it has not changed after `ms`.
    pub fn changed_within(&mut self, generation: u64, ms: u64) -> Result<Option<u64>> {
        let reply = self.ask(json!({"op": "screen_wait", "after_generation": generation, "timeout_ms": ms.min(WAIT_MS_MAX)}))?;
        let now = reply["generation"].as_u64().with_context(|| format!("no generation in {reply}"))?;
        Ok((reply["changed"] == true).then_some(now))
    }

    /// Returns once the screen has not changed for `ms`, with its generation.
    pub fn still(&mut self, ms: u64) -> Result<u64> {
        let mut known = self.generation()?;
        while let Some(newer) = self.changed_within(known, ms)? {
            known = newer;
        }
        Ok(known)
    }
}
