//! FUSE over a view: to a guest through pollux-twin's virtio-fs device, and as a mount on this machine.
//!
//! - [`serve`] speaks over a socket on which messages follow each other, each framed by its own `len`.
//! - [`mount`] speaks over `/dev/fuse`.
//!
//! Promises: a message that breaks the protocol gets an error reply, or ends the connection with an error
//! that says why; memory stays within one largest message each way.

mod mount;
mod server;
mod wire;

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

pub use mount::{Mount, mount};

use crate::view::TwinView;
use server::{Outcome, Server};
use wire::{IN_HEADER_BYTES, MESSAGE_BYTES_MAX};

/// What is buffered of a socket: many small requests, or part of a large one.
const BUFFER_BYTES: usize = 64 << 10;

/// Why serving a socket ended before the other side closed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket failed, or was closed within a message.
    #[error("FUSE channel")]
    Io(#[from] io::Error),
    /// What came is no FUSE message: where the next one begins is unknown.
    #[error(
        "FUSE channel: a message claims {0} bytes; from {IN_HEADER_BYTES} to {MESSAGE_BYTES_MAX} are possible"
    )]
    Length(u32),
    /// A message without a whole header.
    #[error("FUSE channel: a message has no header")]
    Header,
}

/// Serves `view` to a guest until the other side closes `stream`. Blocks; give it a thread of its own.
///
/// Requests are answered one after the other. Everything told to the guest is valid for no time, so that
/// what the phone changes is seen at the next open.
pub fn serve(stream: UnixStream, view: TwinView) -> Result<(), ServeError> {
    let server = Server::new(view, 0);
    let mut replies = stream.try_clone()?;
    let mut requests = BufReader::with_capacity(BUFFER_BYTES, stream);
    let (mut message, mut reply) = (Vec::new(), Vec::new());
    loop {
        message.clear();
        // The end between two messages is the end; within one it is an error.
        if requests.by_ref().take(4).read_to_end(&mut message)? == 0 {
            return Ok(());
        }
        let length = message.as_slice().try_into().map(u32::from_le_bytes);
        let length = length.map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if !(IN_HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&(length as usize)) {
            return Err(ServeError::Length(length));
        }
        message.resize(length as usize, 0);
        requests.read_exact(&mut message[4..])?;
        if server
            .handle(&message, &mut reply)
            .map_err(|_| ServeError::Header)?
            == Outcome::Reply
        {
            replies.write_all(&reply)?;
        }
    }
}
