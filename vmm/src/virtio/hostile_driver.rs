//! A guest without scruples: turns arbitrary bytes into what such a guest, and the far ends of a device's channels, may
//! do. For fuzzing; [`play`] must neither panic nor hang, whatever the bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::fake_driver::{FakeDriver, RAM_BYTES, reg};
use super::{Transport, VirtioDevice};
use crate::bus::MmioDevice;
use crate::layout::RAM_BASE;

/// Where the buffers of well-formed chains lie: beyond all that the fake driver allocates for its queues.
const SCRATCH: u64 = RAM_BASE + RAM_BYTES / 2;
const BUFFER_BYTES: u64 = 128 << 10;
const PARTS_MAX: u8 = 6;

/// Plays `script` on a device that has been started.
pub fn play<D: VirtioDevice>(driver: &mut FakeDriver<D>, peers: &mut [UnixStream], script: &[u8]) {
    let mut script = Script(script);
    while let Some(action) = script.byte() {
        let queue = usize::from(script.byte().unwrap_or(0)) % driver.queue_count();
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
            6 => driver.kick(queue),
            7 => driver.start(u64::MAX >> (script.number(1) % 4 * 8)),
            8 => {
                let address = RAM_BASE + script.number(4) % (RAM_BYTES - 256);
                driver.write_ram(address, script.some());
            }
            9 => tell(peers, script.some()),
            10 => {
                driver.guest.close_gate();
                drop(driver.transport.save());
                driver.guest.open_gate();
            }
            _ => {
                offer_chain(driver, queue, &mut script);
                driver.kick(queue);
            }
        }
    }
}

/// A chain as it should be, with contents that may be anything.
fn offer_chain<D: VirtioDevice>(driver: &mut FakeDriver<D>, queue: usize, script: &mut Script<'_>) {
    let count = 1 + script.byte().unwrap_or(0) % PARTS_MAX;
    let readable = script.byte().unwrap_or(0) % (count + 1);
    for index in 0..count {
        let address = SCRATCH + u64::from(index) * BUFFER_BYTES;
        let next = if index + 1 < count { 1 } else { 0 };
        let (len, writes) = if index < readable {
            let contents = script.some();
            driver.write_ram(address, contents);
            // Now and then longer than what was written: the rest is what earlier chains left.
            let more = if contents.len().is_multiple_of(5) { script.number(2) } else { 0 };
            (contents.len() as u64 + more, 0)
        } else {
            (script.number(2), 2)
        };
        driver.raw_descriptor(queue, index.into(), address, len as u32, next | writes, u16::from(index) + 1);
    }
    driver.offer(queue, 0);
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
pub(crate) struct Script<'a>(pub(crate) &'a [u8]);

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
