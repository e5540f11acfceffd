//! A virtqueue as devices use it: take a chain, read and write it, give it back.
//!
//! It promises that whatever a guest puts into its rings and descriptors, a device sees only whole chains that lie in
//! RAM, within the limits below; anything else breaks the queue (`DEVICE_NEEDS_RESET`), and a broken queue stays
//! silent until the driver resets the device. It reports every write to guest RAM to the vCPU before the driver can
//! learn of it. Rings themselves are not reported: the driver clears them with its own stores before it hands
//! them over, so that no translated code of their pages can be left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use super::guest::{Errand, GuestAccess, lock};
use super::interrupt::Interrupt;

/// Descriptors in one chain, empty ones included. No driver of ours sends more than 260 (a 1 MiB FUSE read by pages); QEMU's limit
/// is the same.
const CHAIN_DESCRIPTORS_MAX: usize = 1024;
/// Size of a split ring's parts for `n` entries (virtio 1.2, 2.7).
const DESCRIPTOR_SIZE: u64 = 16;

#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("queue size {0} is not a power of two, or beyond what the device offers")]
    Size(u32),
    #[error("ring at {0:#x} is misaligned or outside RAM")]
    Ring(u64),
    #[error("available ring: {0}")]
    Available(#[from] virtio_queue::Error),
    #[error("descriptor chain {head} is malformed: {reason}")]
    Chain { head: u16, reason: &'static str },
    #[error("request: {0}")]
    Request(&'static str),
}

/// Where a driver put a queue, as its registers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueLayout {
    pub(super) size: u32,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// One queue of one device. Cloning shares it, so that a device's thread can have it too.
#[derive(Clone)]
pub struct VirtQueue(Arc<Shared>);

struct Shared {
    guest: Arc<GuestAccess>,
    interrupt: Interrupt,
    queue: Mutex<Queue>,
    broken: AtomicBool,
    /// For messages only.
    name: String,
}

/// A queue's progress, for a snapshot.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    next_available: u16,
    next_used: u16,
    broken: bool,
}

impl VirtQueue {
    /// `size_max` must be a power of two of at most 32768; it is a constant of the device.
    pub(super) fn new(guest: Arc<GuestAccess>, interrupt: Interrupt, name: String, size_max: u16) -> Self {
        let queue = Queue::new(size_max).expect("queue sizes of devices are powers of two");
        Self(Arc::new(Shared { guest, interrupt, queue: Mutex::new(queue), broken: AtomicBool::new(false), name }))
    }

    /// Takes the next chain that the driver made available. `None` when there is none; the driver then notifies the
    /// device of the next. Also `None`, for ever, when the queue is not ready or broken.
    pub fn pop(&self) -> Option<Chain> {
        let mut queue = lock(&self.0.queue);
        if !queue.ready() || self.is_broken() {
            return None;
        }
        self.next_chain(&mut queue).unwrap_or_else(|error| {
            self.break_down(&error);
            None
        })
    }

    /// All chains that are available, for a device that works on the vCPU's thread. While that stands no driver offers more, so one
    /// whose queue has held more than it has entries lets the device's own answers feed it, perhaps without end: the queue breaks.
    pub fn drain(&self) -> impl Iterator<Item = Chain> {
        let mut left = lock(&self.0.queue).size();
        std::iter::from_fn(move || {
            if left == 0 && self.has_available() {
                self.fail("the device's own answers feed the queue");
            }
            left = left.checked_sub(1)?;
            self.pop()
        })
    }

    /// See [`GuestAccess::errand`].
    pub(super) fn errand(&self) -> Errand {
        self.0.guest.errand()
    }

    fn next_chain(&self, queue: &mut Queue) -> Result<Option<Chain>, QueueError> {
        let ram = self.0.guest.ram().as_ref();
        loop {
            if let Some(descriptors) = queue.iter(ram)?.next() {
                let head = descriptors.head_index();
                return Chain::parse(self.0.guest.clone(), head, descriptors).map(Some);
            }
            let arrived_meanwhile = queue.enable_notification(ram)?;
            if !arrived_meanwhile {
                return Ok(None);
            }
        }
    }

    /// Whether [`VirtQueue::pop`] would give a chain (or break the queue). As with `pop`, the driver notifies the
    /// device of the next one after this said no.
    pub fn has_available(&self) -> bool {
        let mut queue = lock(&self.0.queue);
        // What it returns is exactly the question: it compares the driver's index with ours after asking for
        // notifications.
        queue.ready() && !self.is_broken() && queue.enable_notification(self.0.guest.ram().as_ref()).unwrap_or(true)
    }

    /// How many chains the driver has made available and nobody has taken: its word, which may be nonsense.
    pub(super) fn available(&self) -> u16 {
        let queue = lock(&self.0.queue);
        let index = queue.avail_idx(self.0.guest.ram().as_ref(), Ordering::Acquire);
        index.map_or(0, |index| index.0.wrapping_sub(queue.next_avail()))
    }

    /// Gives a chain back to the driver, with what was written into it, and interrupts if the driver wants that.
    pub fn complete(&self, chain: Chain) {
        chain.report_writes();
        let mut queue = lock(&self.0.queue);
        if !queue.ready() || self.is_broken() {
            return;
        }
        let ram = self.0.guest.ram().as_ref();
        let wants_interrupt =
            queue.add_used(ram, chain.head, chain.written_len()).and_then(|()| queue.needs_notification(ram));
        match wants_interrupt {
            Ok(true) => self.0.interrupt.used_buffer(),
            Ok(false) => {}
            Err(error) => self.break_down(&error.into()),
        }
    }

    /// Undoes the last [`VirtQueue::pop`]: nothing was written into `chain`, and the next pop gives it again.
    pub fn put_back(&self, chain: Chain) {
        debug_assert_eq!(chain.written, 0);
        lock(&self.0.queue).go_to_previous_position();
    }

    /// The driver sent something that this device cannot answer at all: it must reset the device.
    pub fn fail(&self, reason: &'static str) {
        self.break_down(&QueueError::Request(reason));
    }

    /// Takes back a chain that was with the device when the machine was saved.
    pub(super) fn adopt(&self, state: ChainState) -> Option<Chain> {
        let ram = self.0.guest.ram();
        let spans = || state.readable.iter().chain(&state.writable);
        let count = state.readable.len() + state.writable.len();
        let fits = count <= CHAIN_DESCRIPTORS_MAX && spans().all(|s| s.lies_in(ram.as_ref()));
        let total: u64 = spans().map(|s| u64::from(s.len)).sum();
        let known = u32::from(state.head) < u32::from(lock(&self.0.queue).size());
        (fits && known && total <= u64::from(u32::MAX)).then(|| Chain::new(self.0.guest.clone(), state))
    }

    /// Whether it can give chains, now or later.
    pub(super) fn is_usable(&self) -> bool {
        self.is_ready() && !self.is_broken()
    }

    /// Whether one more line that the guest caused may be logged.
    pub(super) fn may_log(&self) -> bool {
        self.0.guest.may_log()
    }

    pub(super) fn is_ready(&self) -> bool {
        lock(&self.0.queue).ready()
    }

    pub(super) fn size_max(&self) -> u16 {
        lock(&self.0.queue).max_size()
    }

    /// Checks and takes up the driver's layout.
    pub(super) fn set_ready(&self, layout: QueueLayout, event_idx: bool) -> Result<(), QueueError> {
        let mut queue = lock(&self.0.queue);
        let size = u16::try_from(layout.size).map_err(|_| QueueError::Size(layout.size))?;
        queue.try_set_size(size).map_err(|_| QueueError::Size(layout.size))?;
        let n = u64::from(size);
        let inside = |base: u64, len: u64| {
            let whole = Span { address: base, len: len as u32 };
            whole.lies_in(self.0.guest.ram().as_ref()).then_some(()).ok_or(QueueError::Ring(base))
        };
        inside(layout.descriptors, n * DESCRIPTOR_SIZE)?;
        inside(layout.available, 6 + 2 * n)?;
        inside(layout.used, 6 + 8 * n)?;
        let misaligned = |base| move |_| QueueError::Ring(base);
        queue.try_set_desc_table_address(GuestAddress(layout.descriptors)).map_err(misaligned(layout.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(layout.available)).map_err(misaligned(layout.available))?;
        queue.try_set_used_ring_address(GuestAddress(layout.used)).map_err(misaligned(layout.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(())
    }

    pub(super) fn set_unready(&self) {
        lock(&self.0.queue).set_ready(false);
    }

    pub(super) fn progress(&self) -> Progress {
        let queue = lock(&self.0.queue);
        Progress { next_available: queue.next_avail(), next_used: queue.next_used(), broken: self.is_broken() }
    }

    pub(super) fn restore_progress(&self, progress: Progress) {
        let mut queue = lock(&self.0.queue);
        queue.set_next_avail(progress.next_available);
        queue.set_next_used(progress.next_used);
        self.0.broken.store(progress.broken, Ordering::Release);
    }

    /// Breaks the queue for a reason found outside it.
    pub(super) fn break_down(&self, error: &QueueError) {
        let first = !self.0.broken.swap(true, Ordering::AcqRel);
        if first && self.0.guest.may_log() {
            tracing::warn!(queue = self.0.name, %error, "the driver broke a queue");
        }
        self.0.interrupt.needs_reset();
    }

    fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }
}

/// A piece of guest RAM, checked to lie there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    pub(super) address: u64,
    pub(super) len: u32,
}

impl Span {
    /// RAM is one region, so that a range lies in it if its first and last byte do and it does not wrap.
    pub(super) fn lies_in(&self, ram: &impl GuestMemory) -> bool {
        let first = GuestAddress(self.address);
        let last = first.checked_add(u64::from(self.len.saturating_sub(1)));
        ram.address_in_range(first) && last.is_some_and(|last| ram.address_in_range(last))
    }
}

/// A chain of descriptors that the driver lent to the device: first what the device reads, then what it writes.
pub struct Chain {
    guest: Arc<GuestAccess>,
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
    read: u64,
    written: u64,
}

/// A chain in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ChainState {
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

impl Chain {
    fn new(guest: Arc<GuestAccess>, state: ChainState) -> Self {
        let ChainState { head, readable, writable } = state;
        Self { guest, head, readable, writable, read: 0, written: 0 }
    }

    /// Walks the descriptors. The iterator ends early, without a word, where the guest erred: then the last
    /// descriptor that it gave still announces a next one, or there was none at all.
    fn parse(
        guest: Arc<GuestAccess>,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, QueueError> {
        let malformed = |reason| QueueError::Chain { head, reason };
        let mut state = ChainState { head, readable: Vec::new(), writable: Vec::new() };
        let mut more = true;
        for (index, descriptor) in descriptors.enumerate() {
            more = descriptor.has_next();
            let span = Span { address: descriptor.addr().raw_value(), len: descriptor.len() };
            if index == CHAIN_DESCRIPTORS_MAX {
                return Err(malformed("it has too many descriptors"));
            }
            if span.len > 0 && !span.lies_in(guest.ram().as_ref()) {
                return Err(malformed("a buffer lies outside RAM"));
            }
            match descriptor.is_write_only() {
                _ if span.len == 0 => {}
                true => state.writable.push(span),
                false if state.writable.is_empty() => state.readable.push(span),
                false => return Err(malformed("a readable buffer follows a writable one")),
            }
        }
        if more {
            return Err(malformed("it loops, leaves its table, or is longer than 4 GiB"));
        }
        Ok(Self::new(guest, state))
    }

    /// Bytes that the device has not read yet.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable) - self.read
    }

    /// Bytes that the device can write in all, whether it has or not.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Reads on from where the last read ended; returns how many bytes there were.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let ram = self.guest.ram();
        let done = for_pieces(&self.readable, self.read, buffer.len(), |address, range| {
            ram.read_slice(&mut buffer[range], address).is_ok()
        });
        self.read += done as u64;
        done
    }

    /// Reads a whole header, or nothing counts.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Reads all that is left; the caller has checked how much that is.
    pub fn read_rest(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.readable_len() as usize];
        let len = self.read(&mut bytes);
        bytes.truncate(len);
        bytes
    }

    /// Writes after what has been written so far; returns how many bytes fitted.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.write_at(self.written, bytes)
    }

    /// Writes at a place in the writable part; returns how many bytes fitted. All up to the furthest byte counts as
    /// written.
    pub fn write_at(&mut self, position: u64, bytes: &[u8]) -> usize {
        let ram = self.guest.ram();
        let done = for_pieces(&self.writable, position, bytes.len(), |address, range| {
            ram.write_slice(&bytes[range], address).is_ok()
        });
        self.written = self.written.max(position + done as u64);
        done
    }

    pub(super) fn state(&self) -> ChainState {
        ChainState { head: self.head, readable: self.readable.clone(), writable: self.writable.clone() }
    }

    fn written_len(&self) -> u32 {
        u32::try_from(self.written).expect("a chain is shorter than 4 GiB")
    }

    fn report_writes(&self) {
        let mut left = self.written;
        for span in &self.writable {
            let len = left.min(u64::from(span.len));
            if len == 0 {
                break;
            }
            self.guest.written(span.address, len);
            left -= len;
        }
    }
}

fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|s| u64::from(s.len)).sum()
}

/// Calls `copy` for each contiguous piece of `len` bytes from `position` on; returns how many bytes were copied.
fn for_pieces(
    spans: &[Span],
    position: u64,
    len: usize,
    mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
) -> usize {
    let mut skip = position;
    let mut done = 0;
    for span in spans {
        let span_len = u64::from(span.len);
        if skip >= span_len {
            skip -= span_len;
            continue;
        }
        let piece = (len - done).min((span_len - skip) as usize);
        if piece == 0 || !copy(GuestAddress(span.address + skip), done..done + piece) {
            break;
        }
        done += piece;
        skip = 0;
    }
    done
}
