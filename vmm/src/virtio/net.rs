//! Network device (virtio 1.2, 5.1): one queue pair, no offloads, wired to a stream of Ethernet frames.
//!
//! The stream is framed as QEMU's `-netdev stream`: each frame's length as u32 big-endian, then the frame. Frames
//! from the guest that the other side does not take in time are dropped, as a network may; frames for the guest wait
//! until it offers buffers, and hold the stream back. When the stream ends the link goes down. Frames under way are
//! not saved.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::guest::lock;
use super::worker::{Kick, Outside, Worker};
use super::{Activation, Chain, DeviceState, Interrupt, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};

const DEVICE_ID: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;

const F_MAC: u64 = 1 << 5;
const F_STATUS: u64 = 1 << 16;
const LINK_UP: u16 = 1;

/// `struct virtio_net_hdr` of a modern device.
const HEADER_BYTES: usize = 12;
/// Where it says how many buffers a received frame fills: one.
const NUM_BUFFERS_AT: usize = 10;
/// Two addresses and a type.
const FRAME_BYTES_MIN: usize = 14;
/// The longest frame on a stream: what QEMU's peers accept.
pub const FRAME_BYTES_MAX: usize = 65550;
/// Frames from the guest that wait for the other side: some milliseconds at the guest's pace.
const OUTWARD_BYTES_MAX: usize = 256 << 10;
/// Bytes read from the stream at a time, and times a thread reads on before it lets others have the device.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_MAX: usize = 16;

pub struct Net {
    mac: [u8; 6],
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

struct Shared {
    channel: UnixStream,
    kick: Kick,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    driver: Option<Driver>,
    /// Whole frames with their lengths, but for the first, which may be half out.
    outward: VecDeque<u8>,
    /// Bytes of the stream that have not become a frame in the guest.
    inward: Vec<u8>,
    /// Where the stream is read into, kept so that it need not be made anew.
    piece: Vec<u8>,
    down: bool,
}

struct Driver {
    queues: Vec<VirtQueue>,
    interrupt: Interrupt,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    down: bool,
}

impl Net {
    pub fn new(mac: [u8; 6], channel: UnixStream) -> std::io::Result<Self> {
        channel.set_nonblocking(true)?;
        let shared = Shared { channel, kick: Kick::new()?, state: Mutex::default() };
        Ok(Self { mac, shared: Arc::new(shared), worker: None })
    }
}

impl State {
    fn transmit(&mut self, channel: &UnixStream) {
        let Some(queue) = self.driver.as_ref().map(|d| d.queues[TRANSMIT_QUEUE].clone()) else { return };
        for mut chain in queue.drain() {
            if chain.read_array::<HEADER_BYTES>().is_none() {
                return queue.fail("a network packet lacks its header");
            }
            let len = chain.readable_len() as usize;
            let fits = (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len);
            if fits && !self.down && self.outward.len() + 4 + len <= OUTWARD_BYTES_MAX {
                self.outward.extend((len as u32).to_be_bytes());
                self.outward.extend(chain.read_rest());
            }
            queue.complete(chain);
        }
        self.flush(channel);
    }

    fn flush(&mut self, mut channel: &UnixStream) {
        while !self.outward.is_empty() {
            match channel.write(self.outward.as_slices().0) {
                Ok(written) => drop(self.outward.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.link_down(&error.to_string()),
            }
        }
    }

    /// Reads from the stream as long as the guest takes the frames.
    fn receive(&mut self, mut channel: &UnixStream) {
        self.piece.resize(PIECE_BYTES, 0);
        for _ in 0..PIECES_MAX {
            match self.deliver() {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return self.link_down(reason),
            }
            match channel.read(&mut self.piece) {
                Ok(0) => return self.link_down("the other side closed it"),
                Ok(len) => self.inward.extend_from_slice(&self.piece[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.link_down(&error.to_string()),
            }
        }
    }

    /// Gives the guest the whole frames that have come; whether it took them all.
    fn deliver(&mut self) -> Result<bool, &'static str> {
        let Some(driver) = &self.driver else { return Ok(false) };
        let queue = &driver.queues[RECEIVE_QUEUE];
        let mut done = 0;
        while let Some(frame) = first_frame(&self.inward[done..])? {
            let Some(chain) = queue.pop() else { break };
            hand_over(queue, chain, frame);
            done += 4 + frame.len();
        }
        self.inward.drain(..done);
        Ok(first_frame(&self.inward)?.is_none())
    }

    fn link_down(&mut self, reason: &str) {
        if std::mem::replace(&mut self.down, true) {
            return;
        }
        tracing::info!(reason, "network link down");
        (self.outward, self.inward) = (VecDeque::new(), Vec::new());
        if let Some(driver) = &self.driver {
            driver.interrupt.config_changed();
        }
    }

    fn wants_input(&self) -> bool {
        let takes = |driver: &Driver| driver.queues[RECEIVE_QUEUE].has_available();
        !self.down && self.driver.as_ref().is_some_and(takes)
    }
}

/// The first frame, if it is there to its end.
fn first_frame(inward: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let Some((len, rest)) = inward.split_first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*len) as usize;
    if len > FRAME_BYTES_MAX {
        return Err("the other side sent a frame of an impossible length");
    }
    Ok(rest.get(..len))
}

/// A frame that is no frame, or longer than the guest's buffer, is dropped.
fn hand_over(queue: &VirtQueue, mut chain: Chain, frame: &[u8]) {
    let room = chain.writable_len();
    if room < (HEADER_BYTES + FRAME_BYTES_MIN) as u64 {
        return queue.fail("a network buffer has no room for a frame");
    }
    if frame.len() < FRAME_BYTES_MIN || room < (HEADER_BYTES + frame.len()) as u64 {
        return queue.put_back(chain);
    }
    let mut header = [0; HEADER_BYTES];
    header[NUM_BUFFERS_AT] = 1;
    chain.write(&header);
    chain.write(frame);
    queue.complete(chain);
}

impl Outside for Shared {
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let state = lock(&self.state);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, state.wants_input());
        flags.set(PollFlags::POLLOUT, !state.outward.is_empty());
        vec![(self.channel.as_fd(), flags)]
    }

    fn work(&self) {
        let mut state = lock(&self.state);
        if !state.down {
            state.flush(&self.channel);
            state.receive(&self.channel);
        }
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        F_MAC | F_STATUS
    }

    /// mac, status.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if lock(&self.shared.state).down { 0 } else { LINK_UP };
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac);
        config[6..].copy_from_slice(&status.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { queues, interrupt, guest, .. } = activation;
        lock(&self.shared.state).driver = Some(Driver { queues, interrupt });
        if self.worker.is_none() {
            self.worker = Worker::start("net", self.shared.clone(), self.shared.kick.clone(), guest);
        }
    }

    fn notify(&mut self, index: usize) {
        let mut state = lock(&self.shared.state);
        if index == TRANSMIT_QUEUE {
            state.transmit(&self.shared.channel);
        }
        // The worker has frames to send on, or room to receive.
        if index == RECEIVE_QUEUE || !state.outward.is_empty() {
            self.shared.kick.kick();
        }
    }

    fn reset(&mut self) {
        lock(&self.shared.state).driver = None;
    }

    #[cfg(any(test, feature = "testing"))]
    fn wake(&self) {
        self.shared.work();
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(&Saved { down: lock(&self.shared.state).down })
    }

    /// The stream is a new one: a link that was down is up again, and the guest is told.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let saved: Saved = state.fields("net")?;
        let state = lock(&self.shared.state);
        if let (true, false, Some(driver)) = (saved.down, state.down, &state.driver) {
            driver.interrupt.config_changed();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{FakeDriver, PATIENCE, Part, reg};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const RX: usize = RECEIVE_QUEUE;
    const TX: usize = TRANSMIT_QUEUE;

    fn started() -> (FakeDriver<Net>, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        (FakeDriver::started(Net::new(MAC, here).unwrap()), there)
    }

    fn packet(frame: &[u8]) -> Vec<u8> {
        [&[0; HEADER_BYTES], frame].concat()
    }

    fn received(frame: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], frame].concat()
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    fn next_frame(peer: &mut UnixStream) -> Vec<u8> {
        let mut len = [0; 4];
        peer.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        peer.read_exact(&mut frame).unwrap();
        frame
    }

    #[test]
    fn tells_its_address_and_link() {
        let (mut driver, _peer) = started();
        assert_eq!(driver.config(0, 8), [2, 0, 0, 0, 0, 7, 1, 0]);
    }

    #[test]
    fn carries_frames_both_ways() {
        let (mut driver, mut peer) = started();
        driver.transact(TX, &[Part::Out(&[0; 12]), Part::Out(&[1; 60])]);
        driver.transact(TX, &[Part::Out(&packet(&[2; 1514]))]);
        assert_eq!(next_frame(&mut peer), [1; 60]);
        assert_eq!(next_frame(&mut peer), [2; 1514]);
        driver.send(RX, &[Part::In(12), Part::In(1514)]);
        peer.write_all(&framed(&[3; 1514])).unwrap();
        assert_eq!(driver.wait_used(RX).data, received(&[3; 1514]));
    }

    #[test]
    fn frames_wait_for_buffers() {
        let (mut driver, mut peer) = started();
        for i in 0..10 {
            peer.write_all(&framed(&[i; 60])).unwrap();
        }
        for i in 0..10 {
            assert_eq!(driver.transact(RX, &[Part::In(1526)]), received(&[i; 60]));
        }
    }

    #[test]
    fn a_driver_that_saves_notifications_is_told_when_to_send_them() {
        let (mut driver, mut peer) = started();
        for i in 0..200 {
            driver.send(RX, &[Part::In(1526)]);
            peer.write_all(&framed(&[i; 60])).unwrap();
            assert_eq!(driver.wait_used(RX).data, received(&[i; 60]));
        }
    }

    #[test]
    fn frames_in_pieces_are_put_together() {
        let (mut driver, mut peer) = started();
        driver.send(RX, &[Part::In(1526)]);
        for byte in framed(&[9; 20]) {
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(driver.wait_used(RX).data, received(&[9; 20]));
    }

    #[test]
    fn frames_longer_than_the_buffer_are_dropped() {
        let (mut driver, mut peer) = started();
        driver.send(RX, &[Part::In(1526)]);
        for frame in [&[1; 2000][..], &[], &[1; 13], &[2; 60]] {
            peer.write_all(&framed(frame)).unwrap();
        }
        assert_eq!(driver.wait_used(RX).data, received(&[2; 60]));
    }

    #[test]
    fn a_peer_that_does_not_read_loses_whole_frames() {
        let (mut driver, mut peer) = started();
        for i in 0..2000u32 {
            let frame = [&i.to_le_bytes(), [0; 1510].as_slice()].concat();
            driver.transact(TX, &[Part::Out(&packet(&frame))]);
        }
        assert!(lock(&driver_state(&driver)).outward.len() <= OUTWARD_BYTES_MAX);
        let mut last = None;
        peer.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        while lock(&driver_state(&driver)).outward.iter().next().is_some() {
            assert!(std::time::Instant::now() < deadline);
            let _would_block = peer.read_to_end(&mut bytes);
        }
        let _would_block = peer.read_to_end(&mut bytes);
        let mut rest = bytes.as_slice();
        while let Some(frame) = first_frame(rest).unwrap() {
            let number = u32::from_le_bytes(frame[..4].try_into().unwrap());
            assert!(last.is_none_or(|last| last < number) && frame.len() == 1514);
            last = Some(number);
            rest = &rest[4 + frame.len()..];
        }
        assert!(rest.is_empty() && last.is_some());
    }

    fn driver_state(driver: &FakeDriver<Net>) -> &Mutex<State> {
        &driver.transport.device().shared.state
    }

    #[test]
    fn odd_packets_are_dropped_and_headerless_ones_break_the_queue() {
        let (mut driver, mut peer) = started();
        for len in [0, 13, FRAME_BYTES_MAX + 1] {
            driver.transact(TX, &[Part::Out(&packet(&vec![1; len]))]);
        }
        driver.transact(TX, &[Part::Out(&packet(&vec![2; FRAME_BYTES_MAX]))]);
        assert_eq!(next_frame(&mut peer).len(), FRAME_BYTES_MAX);
        driver.send(TX, &[Part::Out(&[0; 11])]);
        assert!(driver.needs_reset());
    }

    #[test]
    fn tiny_receive_buffers_break_the_queue() {
        let (mut driver, mut peer) = started();
        peer.write_all(&framed(&[1; 60])).unwrap();
        driver.send(RX, &[Part::In(20)]);
        let deadline = std::time::Instant::now() + PATIENCE;
        while !driver.needs_reset() {
            assert!(std::time::Instant::now() < deadline);
        }
    }

    fn wait_link_down(driver: &mut FakeDriver<Net>) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while driver.config(6, 1) != [0] {
            assert!(std::time::Instant::now() < deadline);
        }
        assert_eq!(driver.read32(reg::INTERRUPT_STATUS) & 2, 2);
    }

    #[test]
    fn the_link_goes_down_with_the_stream() {
        let (mut driver, peer) = started();
        driver.send(RX, &[Part::In(1526)]);
        drop(peer);
        wait_link_down(&mut driver);
        driver.transact(TX, &[Part::Out(&packet(&[1; 60]))]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn an_impossible_length_ends_the_stream() {
        for len in [FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            let (mut driver, mut peer) = started();
            driver.send(RX, &[Part::In(1526)]);
            driver.send(RX, &[Part::In(1526)]);
            peer.write_all(&len.to_be_bytes()).unwrap();
            wait_link_down(&mut driver);
        }
    }

    #[test]
    fn a_link_is_up_again_after_a_restore() {
        let (mut driver, peer) = started();
        driver.send(RX, &[Part::In(1526)]);
        drop(peer);
        wait_link_down(&mut driver);
        let pending = driver.read32(reg::INTERRUPT_STATUS);
        driver.write32(reg::INTERRUPT_ACK, pending);
        let (here, mut peer) = UnixStream::pair().unwrap();
        let mut driver = driver.moved_to(Net::new(MAC, here).unwrap());
        assert_eq!(driver.read32(reg::INTERRUPT_STATUS) & 2, 2);
        assert_eq!(driver.config(6, 1), [1]);
        peer.write_all(&framed(&[4; 60])).unwrap();
        assert_eq!(driver.wait_used(RX).data, received(&[4; 60]));
    }
}
