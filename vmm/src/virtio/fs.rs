//! File system device (virtio 1.2, 5.11): carries FUSE messages between the guest and a server outside, and
//! understands no more of them than their headers.
//!
//! Both directions of the stream are plain FUSE messages, one after another, framed by their own length field.
//! Requests go out under numbers (`unique`) of the device's own, so that a reply to a guest that has been reset
//! meanwhile meets nobody. Replies find their chain by that number, in any order. When the stream ends, all that
//! waits gets EIO, and all that comes.
//!
//! A machine is saved with no request outside if the server answers in time ([`VirtioDevice::quiesce`]); requests
//! that are outside nevertheless are sent again after a restore, as there is room.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::guest::{Errand, lock};
use super::queue::ChainState;
use super::worker::{Kick, Outside, Worker};
use super::{Activation, Chain, DeviceState, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};

const DEVICE_ID: u32 = 26;
const TAG_BYTES: usize = 36;
/// hiprio, then one request queue. Linux reads as many pages at once as the request queue has entries, less four.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// Longest message either way: 1 MiB of data, which is Linux's limit, and its headers.
pub const MESSAGE_BYTES_MAX: usize = (1 << 20) + (8 << 10);
/// Requests that are outside at a time. A driver that keeps to its queues has fewer.
const PENDING_MAX: usize = 512;
/// While so much waits to go out, the guest's requests stay in the queue.
const OUTWARD_BYTES_HIGH: usize = 1 << 20;
/// Requests taken before others have their turn, lest a guest that goes on sending keeps the device to itself.
const TURN_CHAINS_MAX: usize = PENDING_MAX;
/// Bytes read from the stream at a time, and times a thread reads on before it lets others have the device.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_MAX: usize = 64;

// Linux fuse.h. Requests: len, opcode, unique, nodeid, uid, gid, pid, padding. Replies: len, error, unique.
const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;
const EIO: i32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("tag {0:?} is empty or longer than {TAG_BYTES} bytes")]
    Tag(String),
    #[error("file system channel")]
    Channel(#[from] std::io::Error),
}

pub struct Fs {
    tag: [u8; TAG_BYTES],
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

struct Shared {
    channel: UnixStream,
    kick: Kick,
    state: Mutex<State>,
    /// Something that was pending no longer is.
    settled: Condvar,
}

#[derive(Default)]
struct State {
    queues: Option<Vec<VirtQueue>>,
    pending: BTreeMap<u64, Pending>,
    /// Requests that were outside when the machine was saved, with their queues: they go out again before others.
    again: VecDeque<(usize, Chain)>,
    last_unique: u64,
    outward: VecDeque<u8>,
    inward: Vec<u8>,
    /// Where the stream is read into, kept so that it need not be made anew.
    piece: Vec<u8>,
    lost: bool,
}

/// A request whose reply has not come.
struct Pending {
    queue: usize,
    /// The guest's own number.
    unique: u64,
    chain: Chain,
    _errand: Errand,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    pending: Vec<(usize, ChainState)>,
}

impl Fs {
    /// `tag` is what the guest mounts.
    pub fn new(tag: &str, channel: UnixStream) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_BYTES {
            return Err(FsError::Tag(tag.into()));
        }
        channel.set_nonblocking(true)?;
        let mut padded = [0; TAG_BYTES];
        padded[..tag.len()].copy_from_slice(tag.as_bytes());
        let shared = Shared { channel, kick: Kick::new()?, state: Mutex::default(), settled: Condvar::new() };
        Ok(Self { tag: padded, shared: Arc::new(shared), worker: None })
    }
}

impl State {
    /// Takes requests from the guest as long as there is room for them outside, in one turn; whether there may be more.
    fn serve_queue(&mut self, index: usize, channel: &UnixStream) -> bool {
        let Some(queues) = self.queues.clone() else { return false };
        let mut taken = 0;
        while taken < TURN_CHAINS_MAX && self.outward.len() < OUTWARD_BYTES_HIGH && self.pending.len() < PENDING_MAX {
            let next = self.again.pop_front().or_else(|| Some((index, queues.get(index)?.pop()?)));
            let Some((index, chain)) = next else { break };
            let queue = &queues[index];
            if let Err(reason) = self.accept(index, queue, chain) {
                queue.fail(reason);
                return false;
            }
            taken += 1;
        }
        self.flush(channel);
        taken == TURN_CHAINS_MAX
    }

    fn accept(&mut self, index: usize, queue: &VirtQueue, mut chain: Chain) -> Result<(), &'static str> {
        if !(IN_HEADER_BYTES as u64..=MESSAGE_BYTES_MAX as u64).contains(&chain.readable_len()) {
            return Err("a FUSE request is shorter than its header or longer than can be");
        }
        let mut message = chain.read_rest();
        if number(&message, 0) as usize != message.len() {
            return Err("a FUSE request's length is not that of its buffers");
        }
        let (opcode, unique) = (number(&message, 4), long_number(&message, 8));
        let answered = !matches!(opcode, FORGET | BATCH_FORGET | NOTIFY_REPLY | INTERRUPT);
        if answered && chain.writable_len() < OUT_HEADER_BYTES as u64 {
            return Err("a FUSE request has no room for its reply");
        }
        match (self.lost, answered) {
            (true, true) => refuse(queue, chain, unique),
            // A server may ignore interrupts, and the numbers in them are not those it knows.
            (true, false) => queue.complete(chain),
            (false, false) => {
                if opcode != INTERRUPT {
                    self.outward.extend(&message);
                }
                queue.complete(chain);
            }
            (false, true) => {
                // Even: odd numbers are interrupts' by convention.
                self.last_unique += 2;
                message[8..16].copy_from_slice(&self.last_unique.to_le_bytes());
                self.outward.extend(&message);
                self.pending.insert(self.last_unique, Pending { queue: index, unique, chain, _errand: queue.errand() });
            }
        }
        Ok(())
    }

    fn flush(&mut self, mut channel: &UnixStream) {
        while !self.outward.is_empty() {
            match channel.write(self.outward.as_slices().0) {
                Ok(written) => drop(self.outward.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.lose(&error.to_string()),
            }
        }
    }

    /// Reads replies that have come.
    fn receive(&mut self, mut channel: &UnixStream) {
        self.piece.resize(PIECE_BYTES, 0);
        for _ in 0..PIECES_MAX {
            let len = match channel.read(&mut self.piece) {
                Ok(0) => return self.lose("the server closed it"),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.lose(&error.to_string()),
            };
            self.inward.extend_from_slice(&self.piece[..len]);
            if let Err(reason) = self.take_replies() {
                return self.lose(reason);
            }
            if len < PIECE_BYTES {
                // Most likely that was all; if not, the poll says so.
                return;
            }
        }
    }

    fn take_replies(&mut self) -> Result<(), &'static str> {
        let inward = std::mem::take(&mut self.inward);
        let mut rest = inward.as_slice();
        while rest.len() >= OUT_HEADER_BYTES {
            let len = number(rest, 0) as usize;
            if !(OUT_HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&len) {
                return Err("the server sent a reply of an impossible length");
            }
            let Some((reply, following)) = rest.split_at_checked(len) else { break };
            self.answer(reply);
            rest = following;
        }
        let taken = inward.len() - rest.len();
        self.inward = inward;
        self.inward.drain(..taken);
        Ok(())
    }

    fn answer(&mut self, reply: &[u8]) {
        let (error, unique) = (number(reply, 4) as i32, long_number(reply, 8));
        let Some(mut pending) = self.pending.remove(&unique) else {
            tracing::debug!(unique, "a FUSE reply that nobody waits for");
            return;
        };
        let Some(queue) = self.queues.as_ref().map(|q| &q[pending.queue]) else { return };
        if reply.len() as u64 > pending.chain.writable_len() || error > 0 {
            if queue.may_log() {
                tracing::warn!(unique, error, len = reply.len(), "a FUSE reply that does not fit its request");
            }
            return refuse(queue, pending.chain, pending.unique);
        }
        pending.chain.write(&reply[..8]);
        pending.chain.write(&pending.unique.to_le_bytes());
        pending.chain.write(&reply[OUT_HEADER_BYTES..]);
        queue.complete(pending.chain);
    }

    /// The stream is of no use any more.
    fn lose(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.lost, true) {
            tracing::warn!(reason, pending = self.pending.len(), "lost the file system channel");
        }
        self.outward = VecDeque::new();
        self.inward = Vec::new();
        for (_, pending) in std::mem::take(&mut self.pending) {
            if let Some(queues) = &self.queues {
                refuse(&queues[pending.queue], pending.chain, pending.unique);
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.again.is_empty() && self.outward.is_empty()
    }
}

/// Answers EIO.
fn refuse(queue: &VirtQueue, mut chain: Chain, unique: u64) {
    let len = (OUT_HEADER_BYTES as u32).to_le_bytes();
    chain.write(&[len, (-EIO).to_le_bytes()].concat());
    chain.write(&unique.to_le_bytes());
    queue.complete(chain);
}

fn number(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(message[at..at + 4].try_into().expect("4 bytes"))
}

fn long_number(message: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"))
}

impl Outside for Shared {
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let state = lock(&self.state);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !state.lost);
        flags.set(PollFlags::POLLOUT, !state.outward.is_empty());
        vec![(self.channel.as_fd(), flags)]
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        if !state.lost {
            state.flush(&self.channel);
            state.receive(&self.channel);
        }
        // What had to stay in the queues may find room now.
        let more = (0..QUEUE_SIZES.len()).fold(false, |more, index| state.serve_queue(index, &self.channel) | more);
        if more {
            self.kick.kick();
        }
        self.settled.notify_all();
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.into()
    }

    /// tag, num_request_queues.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; TAG_BYTES + 4];
        config[..TAG_BYTES].copy_from_slice(&self.tag);
        config[TAG_BYTES] = 1;
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        lock(&self.shared.state).queues = Some(activation.queues);
        if self.worker.is_none() {
            self.worker = Worker::start("fs", self.shared.clone(), self.shared.kick.clone(), activation.guest);
        }
    }

    fn notify(&mut self, index: usize) {
        let mut state = lock(&self.shared.state);
        let more = state.serve_queue(index, &self.shared.channel);
        if more || !state.outward.is_empty() {
            self.shared.kick.kick();
        }
    }

    /// A message that is half out goes out to its end, so that the stream stays framed.
    fn reset(&mut self) {
        let mut state = lock(&self.shared.state);
        state.queues = None;
        state.pending.clear();
        state.again.clear();
    }

    fn quiesce(&mut self, timeout: Duration) {
        let state = lock(&self.shared.state);
        let waiting = |state: &mut State| !state.is_settled();
        let (state, result) =
            self.shared.settled.wait_timeout_while(state, timeout, waiting).expect("no device panics with its lock");
        if result.timed_out() {
            tracing::warn!(pending = state.pending.len(), "the file system server does not answer");
        }
    }

    #[cfg(any(test, feature = "testing"))]
    fn wake(&self) {
        self.shared.work();
    }

    fn save(&self) -> DeviceState {
        let state = lock(&self.shared.state);
        let outside = state.pending.values().map(|p| (p.queue, &p.chain)).chain(state.again.iter().map(|(queue, chain)| (*queue, chain)));
        DeviceState::of(&Saved { pending: outside.map(|(queue, chain)| (queue, chain.state())).collect() })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let damaged = |reason: &str| RestoreError::damaged("fs", reason);
        let saved: Saved = state.fields("fs")?;
        if saved.pending.len() > PENDING_MAX {
            return Err(damaged("more requests wait than can"));
        }
        let mut state = lock(&self.shared.state);
        for (index, chain) in saved.pending {
            let queue = state.queues.as_ref().and_then(|q| q.get(index)).cloned();
            let queue = queue.ok_or_else(|| damaged("a request of no queue"))?;
            let chain = queue.adopt(chain).ok_or_else(|| damaged("a request outside RAM"))?;
            state.again.push_back((index, chain));
        }
        drop(state);
        self.shared.kick.kick();
        Ok(())
    }
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
