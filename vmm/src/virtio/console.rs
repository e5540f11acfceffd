//! Console device (virtio 1.2, 5.3) with named ports: byte streams between programs in the guest and Unix streams
//! outside.
//!
//! ```text
//! guest                        device                       outside
//! DEVICE_READY  ──────────▶
//!               ◀──────────  PORT_ADD (each port)
//! PORT_READY    ──────────▶
//!               ◀──────────  PORT_NAME, PORT_OPEN
//! PORT_OPEN     ──────────▶  reads the stream from now on
//!               ◀─ data ──▶                           ◀─ data ─▶
//! ```
//! It promises that no byte is lost while both ends live: from outside it reads only what the guest has a buffer for
//! and a program to read; from the guest it takes a buffer only when the last one has gone out. When a stream ends,
//! the guest sees the port closed.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::guest::lock;
use super::worker::{Kick, Outside, Worker};
use super::{Activation, DeviceState, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};

const DEVICE_ID: u32 = 3;
const F_MULTIPORT: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;

/// Ports of one device: a machine has three or so, and each costs two queues.
pub const PORTS_MAX: usize = 16;
/// Longest name of a port; Linux cuts at a page.
const NAME_BYTES_MAX: usize = 128;
/// Bytes that a port holds for the guest.
const INWARD_BYTES_MAX: usize = 4096;
/// Most bytes of one buffer from the guest, and so what a port holds for the outside. Linux writes 32 KiB at a time.
const OUTWARD_BYTES_MAX: u64 = 256 << 10;
/// Control messages that wait for the guest to offer buffers; a guest that asks for more without reading is broken.
const CONTROL_PENDING_MAX: usize = 8 * PORTS_MAX;
/// Buffers that a port takes or fills before others have their turn, lest a guest that goes on offering them keeps the device to itself.
const TURN_CHAINS_MAX: usize = QUEUE_SIZE as usize;

const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;

/// Control messages (5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A port and the stream that it is wired to.
pub struct PortSpec {
    /// Appears in the guest as /dev/virtio-ports/NAME.
    pub name: String,
    pub channel: UnixStream,
}

#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("{0} ports: a console has 1 to {PORTS_MAX}")]
    PortCount(usize),
    #[error("port name {0:?} is empty or longer than {NAME_BYTES_MAX} bytes")]
    Name(String),
    #[error("console channel")]
    Channel(#[from] std::io::Error),
}

pub struct Console {
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

struct Shared {
    channels: Vec<UnixStream>,
    names: Vec<String>,
    kick: Kick,
    state: Mutex<State>,
    /// A program in the guest has opened or closed a port.
    opened: Condvar,
}

/// Looks at the ports from outside; cloning shares them.
#[derive(Clone)]
pub struct Ports(Arc<Shared>);

impl Ports {
    /// Waits, at most so long, until a program in the guest has the port open; says whether one has. There is no such port: no.
    pub fn wait_open(&self, name: &str, timeout: Duration) -> bool {
        let Some(index) = self.0.names.iter().position(|n| n == name) else { return false };
        let state = lock(&self.0.state);
        let closed = |state: &mut State| !state.ports[index].guest_open;
        let (state, _) = self.0.opened.wait_timeout_while(state, timeout, closed).expect("nobody panics looking at ports");
        state.ports[index].guest_open
    }
}

#[derive(Default)]
struct State {
    queues: Option<Vec<VirtQueue>>,
    ports: Vec<Port>,
    control: VecDeque<Vec<u8>>,
}

/// Which of a port's ends live, and what is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Port {
    /// A program in the guest has the port open.
    guest_open: bool,
    /// The guest knows the port, so that it can be told of changes.
    ready: bool,
    /// The stream has ended.
    closed: bool,
    inward: Vec<u8>,
    outward: VecDeque<u8>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    ports: Vec<Port>,
    control: VecDeque<Vec<u8>>,
}

impl Console {
    pub fn new(ports: Vec<PortSpec>) -> Result<Self, ConsoleError> {
        if !(1..=PORTS_MAX).contains(&ports.len()) {
            return Err(ConsoleError::PortCount(ports.len()));
        }
        if let Some(bad) = ports.iter().find(|p| p.name.is_empty() || p.name.len() > NAME_BYTES_MAX) {
            return Err(ConsoleError::Name(bad.name.clone()));
        }
        ports.iter().try_for_each(|p| p.channel.set_nonblocking(true))?;
        let state = State { ports: vec![Port::default(); ports.len()], ..State::default() };
        let (names, channels) = ports.into_iter().map(|p| (p.name, p.channel)).unzip();
        let shared = Shared { channels, names, kick: Kick::new()?, state: Mutex::new(state), opened: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), worker: None })
    }

    pub fn ports(&self) -> Ports {
        Ports(self.shared.clone())
    }
}

/// The queues of port `index`: from outside to the guest, and back (5.3.2).
fn port_queues(index: usize) -> (usize, usize) {
    let first = if index == 0 { 0 } else { 2 + 2 * index };
    (first, first + 1)
}

/// The port whose queue this is, unless it is a control queue.
fn port_of_queue(queue: usize) -> Option<usize> {
    match queue {
        0 | 1 => Some(0),
        CONTROL_IN | CONTROL_OUT => None,
        other => Some(other / 2 - 1),
    }
}

fn control_message(port: usize, event: u16, value: u16) -> Vec<u8> {
    let port = (port as u32).to_le_bytes();
    [port.as_slice(), &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl State {
    /// Moves what can be moved for port `index`, both ways, in one turn; whether there may be more.
    fn serve(&mut self, index: usize, channel: &UnixStream) -> bool {
        self.serve_outward(index, channel) | self.serve_inward(index, channel)
    }

    fn serve_outward(&mut self, index: usize, channel: &UnixStream) -> bool {
        let Some(queues) = &self.queues else { return false };
        let (port, queue) = (&mut self.ports[index], &queues[port_queues(index).1]);
        for _ in 0..TURN_CHAINS_MAX {
            match port.flush(channel) {
                Flushed::All => {}
                Flushed::Some => return false,
                Flushed::Ended => {
                    self.end(index);
                    return false;
                }
            }
            let Some(mut chain) = queue.pop() else { return false };
            if chain.readable_len() > OUTWARD_BYTES_MAX {
                queue.fail("a console buffer is too long");
                return false;
            }
            if !port.closed {
                port.outward.extend(chain.read_rest());
            }
            queue.complete(chain);
        }
        true
    }

    fn serve_inward(&mut self, index: usize, mut channel: &UnixStream) -> bool {
        let Some(queues) = &self.queues else { return false };
        let (port, queue) = (&mut self.ports[index], &queues[port_queues(index).0]);
        for _ in 0..TURN_CHAINS_MAX {
            if !port.guest_open || !queue.has_available() {
                return false;
            }
            if port.inward.is_empty() && !port.closed {
                port.inward.resize(INWARD_BYTES_MAX, 0);
                let read = channel.read(&mut port.inward);
                port.inward.truncate(*read.as_ref().unwrap_or(&0));
                match read {
                    Ok(1..) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Ok(0) | Err(_) => {
                        self.end(index);
                        return false;
                    }
                }
            }
            if port.inward.is_empty() && port.closed {
                return false;
            }
            let Some(mut chain) = queue.pop() else { return false };
            let taken = chain.write(&port.inward);
            port.inward.drain(..taken);
            queue.complete(chain);
        }
        true
    }

    /// The stream of port `index` has ended: nothing goes out any more, and the guest is told once.
    fn end(&mut self, index: usize) {
        let port = &mut self.ports[index];
        port.outward.clear();
        if !std::mem::replace(&mut port.closed, true) && port.ready {
            self.control.push_back(control_message(index, PORT_OPEN, 0));
            self.serve_control_in();
        }
    }

    fn serve_control_in(&mut self) {
        let Some(queues) = &self.queues else { return };
        while !self.control.is_empty() {
            let Some(mut chain) = queues[CONTROL_IN].pop() else { return };
            let Some(message) = self.control.pop_front() else { return };
            if chain.write(&message) < message.len() {
                return queues[CONTROL_IN].fail("a console control buffer is too short");
            }
            queues[CONTROL_IN].complete(chain);
        }
    }

    fn serve_control_out(&mut self, names: &[String]) {
        let Some(queue) = self.queues.as_ref().map(|q| q[CONTROL_OUT].clone()) else { return };
        for mut chain in queue.drain() {
            let Some(message) = chain.read_array() else {
                return queue.fail("a console control message is too short");
            };
            queue.complete(chain);
            self.hear(message, names);
            if self.control.len() > CONTROL_PENDING_MAX {
                self.control.truncate(CONTROL_PENDING_MAX);
                return queue.fail("the guest does not read its console control messages");
            }
        }
        self.serve_control_in();
    }

    fn hear(&mut self, message: [u8; 8], names: &[String]) {
        let [a, b, c, d, event @ .., e, f] = message;
        let (index, event, value) =
            (u32::from_le_bytes([a, b, c, d]) as usize, u16::from_le_bytes(event), u16::from_le_bytes([e, f]));
        match (event, self.ports.get_mut(index)) {
            (DEVICE_READY, _) if value == 1 => {
                self.control.extend((0..names.len()).map(|index| control_message(index, PORT_ADD, 1)));
            }
            (PORT_READY, Some(port)) if value == 1 => {
                port.ready = true;
                let name = [control_message(index, PORT_NAME, 1).as_slice(), names[index].as_bytes()].concat();
                self.control.push_back(name);
                if !port.closed {
                    self.control.push_back(control_message(index, PORT_OPEN, 1));
                }
            }
            (PORT_OPEN, Some(port)) => port.guest_open = value == 1,
            _ => tracing::debug!(index, event, value, "console control message ignored"),
        }
    }
}

enum Flushed {
    All,
    Some,
    Ended,
}

impl Port {
    /// Writes what waits for the outside, as far as the stream takes it.
    fn flush(&mut self, mut channel: &UnixStream) -> Flushed {
        while !self.outward.is_empty() {
            match channel.write(self.outward.as_slices().0) {
                Ok(written) => drop(self.outward.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Flushed::Some,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Flushed::Ended,
            }
        }
        Flushed::All
    }
}

impl Outside for Shared {
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let state = lock(&self.state);
        let Some(queues) = &state.queues else { return Vec::new() };
        let wanted = |(index, port): (usize, &Port)| {
            let reads = !port.closed
                && port.guest_open
                && port.inward.is_empty()
                && queues[port_queues(index).0].has_available();
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, reads);
            flags.set(PollFlags::POLLOUT, !port.outward.is_empty());
            (self.channels[index].as_fd(), flags)
        };
        state.ports.iter().enumerate().map(wanted).collect()
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        let more = self.channels.iter().enumerate().fold(false, |more, (index, channel)| state.serve(index, channel) | more);
        if more {
            self.kick.kick();
        }
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2 + 2 * self.shared.names.len()]
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    /// cols, rows, max_nr_ports, emerg_wr.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(self.shared.names.len() as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        lock(&self.shared.state).queues = Some(activation.queues);
        if self.worker.is_none() {
            self.worker = Worker::start("console", self.shared.clone(), self.shared.kick.clone(), activation.guest);
        }
    }

    fn notify(&mut self, index: usize) {
        let mut state = lock(&self.shared.state);
        match (index, port_of_queue(index)) {
            (CONTROL_IN, _) => state.serve_control_in(),
            (CONTROL_OUT, _) => state.serve_control_out(&self.shared.names),
            (_, Some(port)) => {
                // The worker sees to what is left.
                let _more = state.serve(port, &self.shared.channels[port]);
            }
            _ => {}
        }
        drop(state);
        self.shared.opened.notify_all();
        // What the worker waits for may be another thing now.
        self.shared.kick.kick();
    }

    fn reset(&mut self) {
        let mut state = lock(&self.shared.state);
        let forget = |port: &Port| Port { closed: port.closed, inward: port.inward.clone(), ..Port::default() };
        let ports = state.ports.iter().map(forget).collect();
        *state = State { ports, ..State::default() };
    }

    #[cfg(any(test, feature = "testing"))]
    fn wake(&self) {
        self.shared.work();
    }

    fn save(&self) -> DeviceState {
        let state = lock(&self.shared.state);
        DeviceState::of(&Saved { ports: state.ports.clone(), control: state.control.clone() })
    }

    /// The streams are new ones: a port whose stream had ended is open again, and the guest is told.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let saved: Saved = state.fields("console")?;
        if saved.ports.len() != self.shared.names.len() {
            let reason = format!("it has {} ports, this one {}", saved.ports.len(), self.shared.names.len());
            return Err(RestoreError::damaged("console", reason));
        }
        let fits = |p: &Port| p.inward.len() <= INWARD_BYTES_MAX && p.outward.len() as u64 <= OUTWARD_BYTES_MAX;
        // Of each port may have been said that it closed.
        if saved.control.len() > CONTROL_PENDING_MAX + PORTS_MAX || !saved.ports.iter().all(fits) {
            return Err(RestoreError::damaged("console", "more is under way than can be"));
        }
        let mut state = lock(&self.shared.state);
        (state.ports, state.control) = (saved.ports, saved.control);
        for index in 0..state.ports.len() {
            let port = &mut state.ports[index];
            if std::mem::take(&mut port.closed) && port.ready {
                state.control.push_back(control_message(index, PORT_OPEN, 1));
            }
        }
        state.serve_control_in();
        drop(state);
        self.shared.opened.notify_all();
        self.shared.kick.kick();
        Ok(())
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
