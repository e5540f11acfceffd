//! The wire to a machine: a stream of Ethernet frames, as QEMU's `-netdev stream` frames them (a big-endian `u32`
//! length, then the frame). Reads and writes many frames at a time, since each call may wake an emulated processor.
//!
//! Neither side can grow it: what the machine sends is taken as fast as it comes, and what is sent to it waits in an
//! [`Outbox`] of fixed size, which holds the connections back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The longest frame on the wire: a 64 KiB packet and its headers. A longer length means that the peer does not speak
/// this framing, so the stream is given up.
const FRAME_BYTES_MAX: usize = 65_550;
const LENGTH_BYTES: usize = 4;
/// The longest frame to the machine: Ethernet's own MTU of 1500, which suits every guest, and its header.
const SENT_FRAME_BYTES_MAX: usize = 1514;

/// Bytes taken from the stream at a time; room for any frame and its length.
const INBOX_BYTES: usize = 128 * 1024;
/// Bytes for the machine in one batch: some ninety frames, half of what a Unix socket holds by default, so that the
/// machine still has frames to take while the next batch is made.
const OUTBOX_BYTES: usize = 128 * 1024;

const _: () = assert!(INBOX_BYTES >= LENGTH_BYTES + FRAME_BYTES_MAX);

/// Frames from the machine.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; INBOX_BYTES].into(), start: 0, end: 0 }
    }

    /// Reads what the machine has sent, once all whole frames have been taken; `false` at the end of the stream.
    pub(crate) fn poll_fill(&mut self, stream: &mut UnixStream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // What is left is the beginning of one frame.
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let mut space = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(stream).poll_read(cx, &mut space))?;
        let len = space.filled().len();
        self.end += len;
        Poll::Ready(Ok(len > 0))
    }

    /// The next frame that has come whole. An error if its length is impossible.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        let Some((len, rest)) = self.bytes[self.start..self.end].split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*len) as usize;
        if len > FRAME_BYTES_MAX {
            let what = format!("a frame of {len} bytes, more than {FRAME_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if rest.len() < len {
            return Ok(None);
        }
        self.start += LENGTH_BYTES + len;
        Ok(Some(&self.bytes[self.start - len..self.start]))
    }
}

/// Frames for the machine: a batch that is filled, then written whole before the next is begun.
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(OUTBOX_BYTES), written: 0 }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.written == 0 && self.bytes.len() + LENGTH_BYTES + SENT_FRAME_BYTES_MAX <= OUTBOX_BYTES
    }

    /// Writes the batch, as far as the machine takes it; ready when nothing is left.
    pub(crate) fn poll_flush(&mut self, stream: &mut UnixStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            self.written += ready!(Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.written..]))?;
        }
        self.bytes.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// The frames, as if they had been written.
    #[cfg(test)]
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut rest = &self.bytes[..];
        while let Some((len, frames_left)) = rest.split_first_chunk::<LENGTH_BYTES>() {
            let frame;
            (frame, rest) = frames_left.split_at(u32::from_be_bytes(*len) as usize);
            frames.push(frame.to_vec());
        }
        self.bytes.clear();
        frames
    }
}

/// The wire as the IP stack sees it for one step: a device on which at most one frame has arrived.
pub(crate) struct Port<'a> {
    arrived: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
}

impl<'a> Port<'a> {
    pub(crate) fn receiving(frame: &'a [u8], outbox: &'a mut Outbox) -> Self {
        Self { arrived: Some(frame), outbox }
    }

    pub(crate) fn sending(outbox: &'a mut Outbox) -> Self {
        Self { arrived: None, outbox }
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Arrived<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Departing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Departing<'_>)> {
        Some((Arrived(self.arrived.take()?), Departing(self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departing<'_>> {
        self.outbox.has_room().then_some(Departing(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = SENT_FRAME_BYTES_MAX;
        // Memory flips no bits on the way here; the guest's kernel does look at what it is sent.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

pub(crate) struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// The next frame for the machine. The answer to a frame is lost where there is no room: the machine does not read its
/// wire, and must be read all the same, or two sides that only write would wait for each other.
pub(crate) struct Departing<'a>(&'a mut Outbox);

impl TxToken for Departing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let has_room = self.0.has_room();
        let bytes = &mut self.0.bytes;
        let start = bytes.len();
        bytes.extend_from_slice(&(len as u32).to_be_bytes());
        bytes.resize(start + LENGTH_BYTES + len, 0);
        let result = fill(&mut bytes[start + LENGTH_BYTES..]);
        if !has_room {
            bytes.truncate(start);
        }
        result
    }
}
