//! A guest without scruples: turns arbitrary bytes into what such a guest, and the far ends of a device's channels, may
//! do. For fuzzing; [`play`] must neither panic nor hang, whatever the bytes.
//!
//! Most of what it does is as it should be but for its contents: chains that a device takes, and answers that fit what was asked. Nonsense
//! comes in between, and after it a new start, so that a device is seldom left alone with a broken queue.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::fake_driver::{F_INDIRECT, F_NEXT, F_WRITE, FakeDriver, RAM_BYTES, descriptor_bytes, reg};
use super::{Transport, VirtioDevice};
use crate::bus::MmioDevice;
use crate::layout::RAM_BASE;

/// Where the buffers of well-formed chains lie: beyond all that the fake driver allocates for its queues.
const SCRATCH: u64 = RAM_BASE + RAM_BYTES / 2;
/// Where indirect tables lie.
const TABLES: u64 = SCRATCH - (64 << 10);
const BUFFER_BYTES: u64 = 128 << 10;
const PARTS_MAX: u8 = 6;
/// Chains that use other descriptors than each other, in a queue that has so many.
const CHAINS: u16 = 4;
/// Moves of one script: each makes a device, and perhaps its thread.
const MOVES_MAX: usize = 4;

/// Makes a device, and what is outside of it.
pub type Make<D> = fn() -> (D, Far);

/// What is outside of a device.
pub struct Far {
    /// The other ends of its channels.
    pub peers: Vec<UnixStream>,
    /// Does what somebody there may do who keeps to the rules, with contents that may be anything.
    pub speak: Speak,
}

pub type Speak = Box<dyn FnMut(&mut [UnixStream], &mut Script<'_>)>;

impl Far {
    /// Nobody is there.
    pub fn nobody() -> Self {
        Self { peers: Vec::new(), speak: Box::new(|_, _| ()) }
    }
}

/// A machine with one device, and a guest that knows no rules.
pub struct Hostile<D> {
    pub driver: FakeDriver<D>,
    make: Make<D>,
    far: Far,
    moves: usize,
}

/// Plays `script` on a device that has been started.
pub fn play<D: VirtioDevice>(make: Make<D>, script: &[u8]) -> Hostile<D> {
    let (device, far) = make();
    let mut hostile = Hostile { driver: FakeDriver::started(device), make, far, moves: 0 };
    let mut script = Script(script);
    while let Some(action) = script.byte() {
        hostile.act(action, &mut script);
    }
    hostile
}

impl<D: VirtioDevice> Hostile<D> {
    /// The low half of `action` says what, the high half how.
    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        let driver = &mut self.driver;
        let queue = usize::from(script.byte().unwrap_or(0)) % driver.queue_count();
        let otherwise = action & 0x10 != 0;
        match action % 16 {
            0 => driver.transport.write(script.number(2) % 0x210, &script.number(4).to_le_bytes()[..4]),
            1 => driver.transport.read(script.number(2) % 0x210, &mut vec![0; 1 << (queue % 4)]),
            2 => driver.transport.write(reg::CONFIG + script.number(1), script.take(1)),
            3 => {
                let address = match queue.is_multiple_of(2) {
                    true => script.number(8),
                    false => RAM_BASE + script.number(4) % RAM_BYTES,
                };
                let (index, len, flags) = (script.number(1) % 8, script.number(4), script.number(1) % 8);
                let next = script.number(1) % 9;
                driver.raw_descriptor(queue, index as u16, address, len as u32, flags as u16, next as u16);
            }
            4 => driver.offer(queue, script.number(1) as u16),
            5 => driver.set_available_index(queue, script.number(2) as u16),
            6 if otherwise => {
                driver.witness.pass(Duration::from_millis(script.number(1)));
                let pending = driver.read32(reg::INTERRUPT_STATUS);
                driver.write32(reg::INTERRUPT_ACK, pending);
                driver.transport.device().wake();
            }
            6 => kick(driver, queue),
            7 if otherwise => {
                let size = 1 << (script.number(1) % 7);
                driver.place_queue(queue, size, [16, 2, 4].map(|align| RAM_BASE + script.number(2) * align));
            }
            7 => driver.start(u64::MAX >> (script.number(1) % 4 * 8)),
            8 => {
                // Most of all where queues are.
                let place = if otherwise { script.number(2) } else { script.number(4) % (RAM_BYTES - 256) };
                driver.write_ram(RAM_BASE + place, script.some());
            }
            9 => {
                match otherwise {
                    true => (self.far.speak)(&mut self.far.peers, script),
                    false => tell(&mut self.far.peers, script.some()),
                }
                driver.transport.device().wake();
            }
            10 if otherwise && self.moves < MOVES_MAX => self.move_on(),
            10 => {
                driver.guest.close_gate();
                drop(driver.transport.save());
                driver.guest.open_gate();
            }
            _ => {
                if action & 0x20 == 0 && driver.needs_reset() {
                    driver.start(u64::MAX);
                }
                offer_chain(driver, queue, u16::from(action >> 6), otherwise, script);
                kick(driver, queue);
            }
        }
    }

    /// Saves the device, and goes on with one that was restored from that; where it cannot be, the guest broke what lay in RAM.
    fn move_on(&mut self) {
        self.moves += 1;
        self.driver.transport.quiesce(Duration::ZERO);
        self.driver.guest.close_gate();
        let state = self.driver.transport.save();
        let (device, far) = (self.make)();
        let mut there = FakeDriver::on(self.driver.ram(), device);
        if there.transport.restore(&state).is_ok() {
            let here = std::mem::replace(&mut self.driver, there);
            self.driver.inherit(here);
            self.far = far;
        } else {
            self.driver.guest.open_gate();
        }
    }
}

fn kick<D: VirtioDevice>(driver: &mut FakeDriver<D>, queue: usize) {
    driver.kick(queue);
    driver.transport.device().wake();
}

/// A chain as it should be, with contents that may be anything: one of [`CHAINS`], perhaps by an indirect table.
fn offer_chain<D: VirtioDevice>(driver: &mut FakeDriver<D>, queue: usize, which: u16, indirect: bool, script: &mut Script<'_>) {
    let count = u16::from(1 + script.byte().unwrap_or(0) % PARTS_MAX);
    let readable = u16::from(script.byte().unwrap_or(0)) % (count + 1);
    let head = if driver.queue_size(queue) >= CHAINS * u16::from(PARTS_MAX) { which % CHAINS * u16::from(PARTS_MAX) } else { 0 };
    let table = TABLES + u64::from(head) * 16;
    for index in 0..count {
        let address = SCRATCH + u64::from(head + index) * BUFFER_BYTES;
        let next = if index + 1 < count { F_NEXT } else { 0 };
        let (len, writes) = if index < readable {
            let contents = script.some();
            driver.write_ram(address, contents);
            // Now and then longer than what was written: the rest is what earlier chains left.
            let more = if contents.len().is_multiple_of(5) { script.number(2) } else { 0 };
            (contents.len() as u64 + more, 0)
        } else {
            (script.number(2), F_WRITE)
        };
        let (len, flags) = (len as u32, next | writes);
        if indirect {
            driver.write_ram(table + 16 * u64::from(index), &descriptor_bytes(address, len, flags, index + 1));
        } else {
            driver.raw_descriptor(queue, head + index, address, len, flags, head + index + 1);
        }
    }
    if indirect {
        driver.raw_descriptor(queue, head, table, 16 * u32::from(count), F_INDIRECT, 0);
    }
    driver.offer(queue, head);
}

/// Says something at the far ends, and takes what has come there; a peer that has gone is no matter.
fn tell(peers: &mut [UnixStream], bytes: &[u8]) {
    for peer in peers {
        if peer.set_nonblocking(true).is_ok() {
            let _ = peer.write(bytes);
            let _ = peer.read(&mut [0; 4096]);
        }
    }
}

/// Bytes as numbers and pieces; where they end, zeros and nothing.
pub struct Script<'a>(pub(crate) &'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    /// Up to `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// As many bytes as the next byte says.
    pub(crate) fn some(&mut self) -> &'a [u8] {
        let len = self.byte().unwrap_or(0);
        self.take(len.into())
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Little-endian, of up to eight bytes; zeros where the script ends.
    pub(crate) fn number(&mut self, len: usize) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.take(len);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }
}
