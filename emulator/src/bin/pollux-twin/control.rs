//! The control socket: one JSON request a line, one JSON reply a line, and events in between.
//!
//! ```json
//! {"id":1,"op":"boot"}                       {"id":1,"ok":{}}   or   {"id":1,"error":"cannot boot: the machine is running"}
//! ```
//! | op | arguments | in `ok` |
//! |---|---|---|
//! | `boot` `pause` `resume` `stop` | | |
//! | `save` | `whole` (true), and a file to write to | `differs`: only what differs from its base was written |
//! | `status` | | `state`, `reason`, `guest_uptime_ms`, `guest_us` (its clock; null if not known), `width`, `height`, `generation`, `build`, `cpu`: which, and how fast it is run, `cage_lacks`: what is missing of the cage |
//! | `input` | `device` (`keyboard`, `touch`), `events` ([[type, code, value], ...]) | |
//! | `input_drained` | | `drained`: the guest's drivers have taken all input |
//! | `screen` | `png` (false) | `width`, `height`, `generation`, `sha256`, `png_base64` |
//! | `screen_wait` | `after_generation`, `timeout_ms` | `generation`, `changed` |
//! | `pass` | `until_us`, `timeout_ms` | `guest_us`: the guest's clock, which jumped over idle time to be there by then |
//! | `port_wait` | `name`, `timeout_ms` | `open`: a program in the guest has that console port open |
//! | `poke` | `paths` | |
//! | `console` | `bytes` (65536) | `tail` |
//! | `type` | `text` | `taken`: bytes that the serial console had room for |
//!
//! This process can open nothing, so a file comes open and empty, as a descriptor sent with the request's line (SCM_RIGHTS).
//!
//! Events: `{"event":"exit","reason":"power_off|reset|fault","detail":...}`. Requests of one client are answered in order, but for
//! `screen_wait`, `pass` and `port_wait`, which are answered when they are over. `id` may be any JSON value and comes back as it was. A line that is too long, and a client that
//! does not read its replies, end the connection; anything else that is wrong is answered with an error.

#[cfg(test)]
mod fuzz;
mod request;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use vmm::machine::{ExitReason, State};

use crate::console::Console;
use crate::listener::Listener;
use crate::screen::{Picture, base64};
use crate::twin::{Twin, TwinError};
use request::{Device, LINE_BYTES_MAX, Line, Request, parse, read_line};

/// The appliance, its console, an administrator's shell.
const CLIENTS_MAX: usize = 16;
/// Replies that wait for a client to read them, and their bytes: the picture of the largest screen is half of that.
const REPLIES_WAITING_MAX: usize = 64;
const REPLY_BYTES_WAITING_MAX: usize = 64 << 20;
/// Waits that one client may have under way.
const WAITS_MAX: usize = 4;
const WAIT_MS_MAX: u64 = 60_000;
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Those who are told when the machine ends.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<HashMap<u64, Replies>>>);

impl Events {
    /// Tells all clients that the machine has ended by itself.
    pub(crate) fn exit(&self, reason: &ExitReason, console: &Console) {
        console.flush();
        let (word, detail) = describe(reason, console);
        tracing::info!(reason = word, detail, "the guest has ended");
        let event = json!({"event": "exit", "reason": word, "detail": detail});
        self.lock().values().for_each(|client| client.send(&event));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Replies>> {
        self.0.lock().expect("nobody panics while it tells an event")
    }
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.and_then(|time| u64::try_from(time.as_micros()).ok())
}

/// An exit in words: which, and what is known about it.
fn describe(reason: &ExitReason, console: &Console) -> (&'static str, Option<String>) {
    match reason {
        ExitReason::PowerOff => ("power_off", None),
        ExitReason::Reset if console.has_panicked() => ("reset", Some(format!("the kernel panicked:\n{}", console.last_words()))),
        ExitReason::Reset => ("reset", Some(format!("the guest asked for a reset; its last words:\n{}", console.last_words()))),
        ExitReason::Fault(why) => ("fault", Some(format!("{why}; the guest's last words:\n{}", console.last_words()))),
        ExitReason::Stopped => ("stopped", None),
    }
}

/// Starts to serve; `quit` is sent to when a client asks to stop.
pub(crate) fn serve(listener: Listener, twin: Arc<Twin>, events: Events, quit: SyncSender<()>) -> std::io::Result<()> {
    // A client's thread boots the machine, whose threads do all that this process does.
    listener.serve("control", CLIENTS_MAX, || {}, move |stream, number| {
        if let Err(error) = attend(stream, number, &twin, &events, &quit) {
            tracing::debug!(client = number, %error, "control client left");
        }
    })
}

/// Serves one client until it leaves.
fn attend(stream: UnixStream, number: u64, twin: &Arc<Twin>, events: &Events, quit: &SyncSender<()>) -> std::io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (replies, waiting) = Replies::new(stream.try_clone()?);
    let (writing, bytes_waiting) = (stream.try_clone()?, replies.bytes_waiting.clone());
    let quit_there = quit.clone();
    let writer = std::thread::Builder::new().name(format!("control-{number}-out")).stack_size(64 << 10);
    let writer = writer.spawn(move || write(writing, &waiting, &bytes_waiting, &quit_there))?;
    events.lock().insert(number, replies.clone());
    let from = BufReader::new(Incoming { stream: stream.try_clone()?, passed: None });
    let client = Client { twin: twin.clone(), replies, quit: quit.clone(), waits: Arc::default() };
    let result = client.listen(from);
    events.lock().remove(&number);
    // Waits for the screen still hold the replies; the writer ends with its socket.
    let shut = stream.shutdown(Shutdown::Read);
    drop(client);
    if writer.join().is_err() {
        tracing::error!(client = number, "a control client's writer had panicked");
    }
    result.and(shut)
}

/// Where a client's replies go. One that does not read them is cut off.
#[derive(Clone)]
struct Replies {
    sender: SyncSender<Outgoing>,
    bytes_waiting: Arc<AtomicUsize>,
    stream: Arc<UnixStream>,
}

enum Outgoing {
    Line(String),
    /// This process is to end, now that what came before has been written.
    Quit,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        if let Self::Line(line) = self { line.len() } else { 0 }
    }
}

impl Replies {
    fn new(stream: UnixStream) -> (Self, Receiver<Outgoing>) {
        let (sender, waiting) = sync_channel(REPLIES_WAITING_MAX);
        (Self { sender, bytes_waiting: Arc::default(), stream: Arc::new(stream) }, waiting)
    }

    fn send(&self, message: &Value) {
        self.put(Outgoing::Line(format!("{message}\n")));
    }

    /// False if the client does not read; it is then cut off.
    fn put(&self, outgoing: Outgoing) -> bool {
        let bytes = outgoing.bytes();
        let waiting = self.bytes_waiting.fetch_add(bytes, Ordering::SeqCst);
        let room = waiting + bytes <= REPLY_BYTES_WAITING_MAX && self.sender.try_send(outgoing).is_ok();
        if !room {
            // Fails if the client has left already, which is as well.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        room
    }
}

fn write(mut stream: UnixStream, waiting: &Receiver<Outgoing>, bytes_waiting: &AtomicUsize, quit: &SyncSender<()>) {
    for outgoing in waiting {
        let bytes = outgoing.bytes();
        match outgoing {
            Outgoing::Line(line) => {
                if stream.write_all(line.as_bytes()).is_err() {
                    // Fails if the client has left already. A wish to quit may still follow.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            // Full means that somebody else has asked already.
            Outgoing::Quit => drop(quit.try_send(())),
        }
        bytes_waiting.fetch_sub(bytes, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Client {
    twin: Arc<Twin>,
    replies: Replies,
    quit: SyncSender<()>,
    waits: Arc<AtomicUsize>,
}

/// What a client sends: bytes, and with them the file for a request; a second one that no request has taken replaces the first.
struct Incoming {
    stream: UnixStream,
    passed: Option<File>,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (bytes, passed) = emulator::cage::receive(&self.stream, buffer)?;
        self.passed = passed.map(File::from).or_else(|| self.passed.take());
        Ok(bytes)
    }
}

impl Client {
    fn listen(&self, mut from: BufReader<Incoming>) -> std::io::Result<()> {
        let mut line = Vec::new();
        loop {
            match read_line(&mut from, &mut line)? {
                Line::Whole if line.iter().all(u8::is_ascii_whitespace) => {}
                Line::Whole => self.answer(&line, &mut from.get_mut().passed),
                Line::TooLong => {
                    self.replies.send(&json!({"id": null, "error": format!("a line of more than {LINE_BYTES_MAX} bytes; goodbye")}));
                    return Ok(());
                }
                Line::End => return Ok(()),
            }
        }
    }

    fn answer(&self, line: &[u8], passed: &mut Option<File>) {
        let (id, request) = match parse(line) {
            Ok(parsed) => parsed,
            Err((id, error)) => return self.reply(&id, Err(error)),
        };
        match request {
            Request::ScreenWait { after_generation: after, timeout_ms } => {
                let screen = self.twin.screen.clone();
                self.wait(id, timeout_ms, move |timeout| {
                    let generation = screen.wait_beyond(after, timeout);
                    json!({"generation": generation, "changed": generation > after})
                });
            }
            Request::Pass { until_us, timeout_ms } => match self.twin.vcpu() {
                Ok(vcpu) => self.wait(id, timeout_ms, move |timeout| json!({"guest_us": micros(vcpu.pass_idle(Duration::from_micros(until_us), timeout))})),
                Err(error) => self.reply(&id, Err(error.to_string())),
            },
            Request::PortWait { name, timeout_ms } => match self.twin.ports() {
                Ok(ports) => self.wait(id, timeout_ms, move |timeout| json!({"open": ports.wait_open(&name, timeout)})),
                Err(error) => self.reply(&id, Err(error.to_string())),
            },
            Request::Stop => {
                self.twin.stop();
                self.reply(&id, Ok(json!({})));
                if !self.replies.put(Outgoing::Quit) {
                    // Full means that somebody else has asked already.
                    let _ = self.quit.try_send(());
                }
            }
            request => self.reply(&id, self.execute(request, passed).map_err(|e| e.to_string())),
        }
    }

    fn reply(&self, id: &Value, result: Result<Value, String>) {
        self.replies.send(&match result {
            Ok(value) => json!({"id": id, "ok": value}),
            Err(error) => json!({"id": id, "error": error}),
        });
    }

    fn execute(&self, request: Request, passed: &mut Option<File>) -> Result<Value, TwinError> {
        let twin = &self.twin;
        match request {
            Request::Boot => twin.boot()?,
            Request::Pause => twin.pause()?,
            Request::Resume => twin.resume()?,
            Request::Save { whole } => return Ok(json!({"differs": twin.save(&passed.take().ok_or(TwinError::NoFile)?, whole)?})),
            Request::Status => return Ok(self.status()),
            Request::Input { device: Device::Keyboard, events } => twin.send_keyboard(&events)?,
            Request::Input { device: Device::Touch, events } => twin.send_touch(&events)?,
            Request::InputDrained => {
                // Of one order: what holds for one device holds for both.
                return Ok(json!({"drained": twin.keyboard.is_drained()}));
            }
            Request::Screen { png } => return Ok(self.screen(png)),
            Request::Poke { paths } => twin.poke(format!("{}\n", json!({"changed": paths})))?,
            Request::Console { bytes } => return Ok(json!({"tail": twin.console.tail(bytes)})),
            Request::Type { text } => return Ok(json!({"taken": twin.type_on_console(&text)?})),
            Request::Stop | Request::ScreenWait { .. } | Request::Pass { .. } | Request::PortWait { .. } => {}
        }
        Ok(json!({}))
    }

    fn status(&self) -> Value {
        let (state, run_time) = self.twin.state();
        let (word, reason) = match &state {
            State::Created => ("created", None),
            State::Running => ("running", None),
            State::Paused => ("paused", None),
            State::Stopped(reason) => ("stopped", Some(describe(reason, &self.twin.console).0)),
        };
        let (width, height, generation) = self.twin.screen.look(|f| (f.width(), f.height(), f.generation()));
        json!({
            "state": word, "reason": reason, "guest_uptime_ms": run_time.as_millis() as u64, "guest_us": micros(self.twin.vcpu().ok().and_then(|vcpu| vcpu.guest_time())),
            "width": width, "height": height, "generation": generation, "build": Twin::build(), "cpu": self.twin.processor.describe(),
            "cage_lacks": self.twin.cage_lacks,
        })
    }

    fn screen(&self, png: bool) -> Value {
        let (picture, generation) = self.twin.screen.look(|frame| (Picture::of(frame), frame.generation()));
        let mut answer = json!({
            "width": picture.width, "height": picture.height, "generation": generation, "sha256": picture.sha256(),
        });
        if png {
            answer["png_base64"] = base64(&picture.png()).into();
        }
        answer
    }

    /// Waits on a thread of its own, so that the client's other requests go on.
    fn wait(&self, id: Value, timeout_ms: u64, wait: impl FnOnce(Duration) -> Value + Send + 'static) {
        if self.waits.fetch_add(1, Ordering::SeqCst) >= WAITS_MAX {
            self.waits.fetch_sub(1, Ordering::SeqCst);
            return self.reply(&id, Err(format!("{WAITS_MAX} waits are under way already")));
        }
        let (client, id_there) = (self.clone(), id.clone());
        let spawned = std::thread::Builder::new().name("wait".into()).stack_size(64 << 10).spawn(move || {
            let answer = wait(Duration::from_millis(timeout_ms.min(WAIT_MS_MAX)));
            client.waits.fetch_sub(1, Ordering::SeqCst);
            client.reply(&id_there, Ok(answer));
        });
        if let Err(error) = spawned {
            self.waits.fetch_sub(1, Ordering::SeqCst);
            self.reply(&id, Err(format!("no thread to wait on: {error}")));
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
