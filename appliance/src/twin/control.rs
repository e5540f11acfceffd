//! The control socket of a `pollux-twin` process: one JSON request a line, one reply a line, events in between.
//!
//! Promises: replies are matched to requests, every request ends (reply, loss of the process, or [`REPLY_MAX`]), and what the process sends
//! is bounded. One task owns the socket; it ends when the socket does, or when the last handle is dropped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use sync_protocol::event::{Frame, MmiDevice};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::warn;

/// A reply may hold a screen as base64 of PNG; nothing longer is one.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Requests under way or waiting.
const REQUESTS_MAX: usize = 256;
/// Longest that an operation takes: saving a machine to a slow disk.
const REPLY_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the screen in one request: well below [`REPLY_MAX`].
const SCREEN_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a port in one request: a guest boots meanwhile. Below [`REPLY_MAX`].
const PORT_WAIT_MAX: Duration = Duration::from_secs(50);
/// Unsolicited events a watcher may fall behind.
const EVENTS_MAX: usize = 16;

#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    #[error("cannot reach the machine's control socket: {0}")]
    Connect(String),
    #[error("the machine's process is gone")]
    Gone,
    #[error("the machine did not answer {op} within {} s", REPLY_MAX.as_secs())]
    Slow { op: &'static str },
    #[error("the machine refused {op}: {reason}")]
    Refused { op: &'static str, reason: String },
    #[error("the machine's answer to {op} makes no sense: {reason}")]
    Nonsense { op: &'static str, reason: String },
    #[error("cannot make {path}: {source}")]
    File { path: PathBuf, source: Arc<std::io::Error> },
    #[error("too many requests wait for the machine")]
    Congested,
}

/// Something that the machine's process says unasked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MachineEvent {
    /// `exit`.
    pub event: String,
    /// `power_off`, `reset` or `fault`.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub detail: Option<Value>,
}

/// How a machine is, as far as we use it.
#[derive(Debug, Clone, Deserialize)]
pub struct MachineStatus {
    /// What it runs on, for people.
    pub cpu: String,
    /// Of the screen as it is now; see [`Screen::generation`].
    pub generation: u64,
    /// What the guest's clock shows, in microseconds; none if this machine does not tell.
    pub guest_us: Option<u64>,
    /// For how long the guest has run, in milliseconds.
    pub guest_uptime_ms: u64,
    /// What the process lacks of its cage, for people.
    pub cage_lacks: Vec<String>,
}

/// A picture of the screen.
#[derive(Debug, Clone)]
pub struct Screen {
    pub width: u16,
    pub height: u16,
    /// Rises with every change.
    pub generation: u64,
    /// Of the pixels, in hex.
    pub sha256: String,
    /// Empty unless asked for.
    pub png: Vec<u8>,
}

/// A handle to one process; cloning shares the connection.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<MachineEvent>,
}

#[derive(Debug)]
struct Request {
    op: &'static str,
    arguments: Value,
    /// The process can open nothing by itself.
    file: Option<File>,
    reply: oneshot::Sender<Result<Value, ControlError>>,
}

impl Control {
    pub async fn connect(socket: &Path) -> Result<Control, ControlError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|e| ControlError::Connect(format!("{}: {e}", socket.display())))?;
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let events = broadcast::channel(EVENTS_MAX).0;
        let (reader, writer) = stream.into_split();
        tokio::spawn(converse(reader, writer, waiting, events.clone()));
        Ok(Control { requests, events })
    }

    pub fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    /// Resolves when the process or the connection to it is gone.
    pub async fn gone(&self) {
        self.requests.closed().await;
    }

    pub async fn boot(&self) -> Result<(), ControlError> {
        self.ask("boot", json!({})).await.map(drop)
    }

    pub async fn pause(&self) -> Result<(), ControlError> {
        self.ask("pause", json!({})).await.map(drop)
    }

    pub async fn resume(&self) -> Result<(), ControlError> {
        self.ask("resume", json!({})).await.map(drop)
    }

    /// Saves the paused machine as `path`; if `whole` is not asked for, only what differs from the base snapshot that it began with, if it
    /// did. Says whether it did. After an error, what is there is of no use.
    pub async fn save(&self, path: &Path, whole: bool) -> Result<bool, ControlError> {
        // One that is there may be what the machine was restored from, and must not change.
        let _ = std::fs::remove_file(path);
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = opened.map_err(|source| ControlError::File { path: path.to_owned(), source: Arc::new(source) })?;
        let reply = self.ask_with("save", json!({"whole": whole}), Some(file)).await?;
        reply.get("differs").and_then(Value::as_bool).ok_or_else(|| nonsense("save", &"no \"differs\""))
    }

    pub async fn stop(&self) -> Result<(), ControlError> {
        self.ask("stop", json!({})).await.map(drop)
    }

    pub async fn status(&self) -> Result<MachineStatus, ControlError> {
        serde_json::from_value(self.ask("status", json!({})).await?).map_err(|e| nonsense("status", &e))
    }

    pub async fn console_tail(&self) -> Result<String, ControlError> {
        let reply = self.ask("console", json!({})).await?;
        let tail = reply.get("tail").and_then(Value::as_str);
        tail.map(str::to_owned).ok_or_else(|| nonsense("console", &"no tail"))
    }

    /// Feeds one frame of input to the machine's devices.
    pub async fn input(&self, frame: &Frame) -> Result<(), ControlError> {
        let device = match frame.device {
            MmiDevice::Keyboard | MmiDevice::Unspecified => "keyboard",
            MmiDevice::Touch | MmiDevice::Pointer => "touch",
        };
        let events: Vec<Value> = frame.events.iter().map(|e| json!([e.r#type, e.code, e.value])).collect();
        self.ask("input", json!({"device": device, "events": events})).await.map(drop)
    }

    /// Tells the guest that `paths` have changed underneath it.
    pub async fn poke(&self, paths: &[String]) -> Result<(), ControlError> {
        self.ask("poke", json!({"paths": paths})).await.map(drop)
    }

    pub async fn screen(&self) -> Result<Screen, ControlError> {
        screen("screen", self.ask("screen", json!({"png": false})).await?)
    }

    pub async fn screen_png(&self) -> Result<Screen, ControlError> {
        screen("screen", self.ask("screen", json!({"png": true})).await?)
    }

    /// Waits until the screen is newer than `generation`; false if it is not within `timeout` (at most 30 s).
    pub async fn screen_wait(&self, generation: u64, timeout: Duration) -> Result<bool, ControlError> {
        let timeout_ms = u64::try_from(timeout.min(SCREEN_WAIT_MAX).as_millis()).unwrap_or(u64::MAX);
        let arguments = json!({"after_generation": generation, "timeout_ms": timeout_ms});
        let reply = self.ask("screen_wait", arguments).await?;
        reply.get("changed").and_then(Value::as_bool).ok_or_else(|| nonsense("screen_wait", &"no \"changed\""))
    }

    /// Has the guest's clock, in microseconds, jump over the times in which the guest is idle until it shows `until_us`; gives what it shows
    /// then, or after `patience` (at most 30 s). None: this machine's time cannot be passed over.
    pub async fn pass(&self, until_us: u64, patience: Duration) -> Result<Option<u64>, ControlError> {
        let timeout_ms = u64::try_from(patience.min(SCREEN_WAIT_MAX).as_millis()).unwrap_or(u64::MAX);
        let reply = self.ask("pass", json!({"until_us": until_us, "timeout_ms": timeout_ms})).await?;
        Ok(reply.get("guest_us").and_then(Value::as_u64))
    }

    /// Waits until a program in the guest has the console port `name` open; false if none has within `timeout` (at most 50 s).
    pub async fn port_wait(&self, name: &str, timeout: Duration) -> Result<bool, ControlError> {
        let timeout_ms = u64::try_from(timeout.min(PORT_WAIT_MAX).as_millis()).unwrap_or(u64::MAX);
        let reply = self.ask("port_wait", json!({"name": name, "timeout_ms": timeout_ms})).await?;
        reply.get("open").and_then(Value::as_bool).ok_or_else(|| nonsense("port_wait", &"no \"open\""))
    }

    /// Whether the guest has taken all input that it was given.
    pub async fn input_drained(&self) -> Result<bool, ControlError> {
        let reply = self.ask("input_drained", json!({})).await?;
        reply.get("drained").and_then(Value::as_bool).ok_or_else(|| nonsense("input_drained", &"no \"drained\""))
    }

    async fn ask(&self, op: &'static str, arguments: Value) -> Result<Value, ControlError> {
        self.ask_with(op, arguments, None).await
    }

    async fn ask_with(&self, op: &'static str, arguments: Value, file: Option<File>) -> Result<Value, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(Request { op, arguments, file, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ControlError::Congested,
            mpsc::error::TrySendError::Closed(_) => ControlError::Gone,
        })?;
        match tokio::time::timeout(REPLY_MAX, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ControlError::Gone),
            Err(_) => Err(ControlError::Slow { op }),
        }
    }
}

type Waiting = HashMap<u64, (&'static str, oneshot::Sender<Result<Value, ControlError>>)>;

/// Owns the socket until either side ends.
async fn converse(
    reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    mut requests: mpsc::Receiver<Request>,
    events: broadcast::Sender<MachineEvent>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut waiting = Waiting::new();
    let mut next_id = 0u64;
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(request) = request else { return };
                next_id += 1;
                // Those whose asker gave up are forgotten when their reply comes.
                waiting.insert(next_id, (request.op, request.reply));
                let mut message = request.arguments;
                message["id"] = next_id.into();
                message["op"] = request.op.into();
                if send(&mut writer, format!("{message}\n").as_bytes(), request.file).await.is_err() {
                    return;
                }
            }
            // Cancel-safe: what was read so far stays in `line`.
            read = read_line(&mut reader, &mut line) => {
                match read {
                    Ok(true) => take_line(&line, &mut waiting, &events),
                    Ok(false) | Err(_) => return,
                }
                line.clear();
            }
        }
    }
}

/// Writes a line, and passes a file along with its beginning.
async fn send(writer: &mut OwnedWriteHalf, line: &[u8], file: Option<File>) -> std::io::Result<()> {
    let Some(file) = file else { return writer.write_all(line).await };
    let stream: &UnixStream = writer.as_ref();
    let passed = [file.as_raw_fd()];
    let pass = || -> std::io::Result<usize> {
        let message = [ControlMessage::ScmRights(&passed)];
        Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(line)], &message, MsgFlags::MSG_NOSIGNAL, None)?)
    };
    let sent = stream.async_io(Interest::WRITABLE, pass).await?;
    writer.write_all(&line[sent..]).await
}

/// Reads to the end of a line into `line`; false at the end of the stream or when the line is too long.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    let left = LINE_BYTES_MAX.saturating_sub(line.len() as u64);
    reader.take(left).read_until(b'\n', line).await?;
    Ok(line.last() == Some(&b'\n'))
}

fn take_line(line: &[u8], waiting: &mut Waiting, events: &broadcast::Sender<MachineEvent>) {
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        warn!("a machine's process sends what is no JSON");
        return;
    };
    let Some((op, reply)) = message.get("id").and_then(Value::as_u64).and_then(|id| waiting.remove(&id)) else {
        if let Ok(event) = serde_json::from_value::<MachineEvent>(message) {
            // An error means that nobody listens.
            let _ = events.send(event);
        }
        return;
    };
    let result = match (message.get("ok"), message.get("error")) {
        (_, Some(error)) => {
            let reason = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
            Err(ControlError::Refused { op, reason })
        }
        (Some(ok), None) => Ok(ok.clone()),
        (None, None) => Err(nonsense(op, &"neither ok nor error")),
    };
    // An error means that the asker gave up.
    let _ = reply.send(result);
}

fn screen(op: &'static str, reply: Value) -> Result<Screen, ControlError> {
    #[derive(Deserialize)]
    struct Reply {
        width: u16,
        height: u16,
        generation: u64,
        #[serde(default)]
        sha256: String,
        #[serde(default)]
        png_base64: Option<String>,
    }
    let reply: Reply = serde_json::from_value(reply).map_err(|e| nonsense(op, &e))?;
    let png = match reply.png_base64 {
        Some(text) => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).map_err(|e| nonsense(op, &e))?,
        None => Vec::new(),
    };
    let Reply { width, height, generation, sha256, .. } = reply;
    Ok(Screen { width, height, generation, sha256, png })
}

fn nonsense(op: &'static str, reason: &dyn std::fmt::Display) -> ControlError {
    ControlError::Nonsense { op, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn pair(folder: &Path) -> (Control, UnixStream) {
        let socket = folder.join("control.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let (control, accepted) = tokio::join!(Control::connect(&socket), listener.accept());
        (control.expect("connected"), accepted.expect("accepted").0)
    }

    #[tokio::test]
    async fn replies_may_come_in_any_order_with_events_between() {
        let folder = tempfile::tempdir().expect("folder");
        let (control, stream) = pair(folder.path()).await;
        let mut events = control.events();
        let machine = async move {
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            let first: Value = serde_json::from_str(&lines.next_line().await.expect("read").expect("line")).expect("json");
            let second: Value = serde_json::from_str(&lines.next_line().await.expect("read").expect("line")).expect("json");
            let reply = format!(
                "{}\nnonsense\n{}\n{}\n",
                json!({"id": second["id"], "error": "no"}),
                json!({"event": "exit", "reason": "power_off", "detail": null}),
                json!({"id": first["id"], "ok": {"tail": "hello"}}),
            );
            writer.write_all(reply.as_bytes()).await.expect("written");
        };
        let (tail, boot, ()) = tokio::join!(control.console_tail(), control.boot(), machine);
        assert_eq!(tail.expect("tail"), "hello");
        assert!(matches!(boot, Err(ControlError::Refused { op: "boot", .. })));
        assert_eq!(events.recv().await.expect("event").reason, "power_off");
    }

    #[tokio::test]
    async fn a_process_that_dies_answers_everything() {
        let folder = tempfile::tempdir().expect("folder");
        let (control, stream) = pair(folder.path()).await;
        let (result, ()) = tokio::join!(control.boot(), async move { drop(stream) });
        assert!(matches!(result, Err(ControlError::Gone)));
        control.gone().await;
        assert!(matches!(control.boot().await, Err(ControlError::Gone)));
    }
}
