//! One connection of the machine, carried over a socket of the host.
//!
//! ```text
//! SYN ──▶ Connecting ──▶ Open: bytes go both ways, each way ends by itself ──▶ over
//!             └─▶ Refused
//! ```
//! The machine's SYN waits until the host has answered, and only then gets memory and an answer of its own. Bytes are
//! held once in each direction, in the buffers of the stack's socket, and read and written there by the host's: where
//! one side does not take them, the other is not asked for more.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, RecvError, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpSeqNumber;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How long the host may take to connect; a guest's own patience is about as long.
const CONNECT_MAX: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a guest may take to complete a handshake: time for three repeated SYNs of ours.
const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// How long a guest may be silent. A living one answers [`KEEP_ALIVE`]; one that is paused this long connects again.
const SILENCE_MAX: Duration = Duration::from_secs(30 * 60);
/// How often a silent guest is asked whether it is still there. Seldom, since it wakes an emulated processor.
const KEEP_ALIVE: Duration = Duration::from_secs(10 * 60);
/// How long a reset may wait until the guest has told its hardware address, which it does at once or not at all.
const RESET_MAX: Duration = Duration::from_secs(5);

/// Bytes from the guest that wait for the host: TCP's largest window without scaling, which is plenty over memory. A
/// scaled one is not safe: until its first ACK, the stack takes data for a window of 65535 scaled units, more than its
/// buffer, and a guest that sends so much makes it panic (smoltcp 0.14).
const FROM_GUEST_BYTES: usize = 65_535;
const _: () = assert!(FROM_GUEST_BYTES <= u16::MAX as usize);
/// Bytes for the guest that are under way: two batches of frames, so that the guest works on one while the other is made.
const TO_GUEST_BYTES: usize = 256 * 1024;

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

pub(crate) struct Connection {
    sequence: TcpSeqNumber,
    stage: Stage,
}

enum Stage {
    Connecting { host: Connecting, syn: Box<[u8]> },
    Refused,
    Open(Open),
}

impl Connection {
    /// Begins to connect to `target`, because of the frame `syn`.
    pub(crate) fn begin(target: SocketAddr, sequence: TcpSeqNumber, syn: Box<[u8]>) -> Self {
        let host = Box::pin(async move {
            let host = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(target)).await??;
            host.set_nodelay(true)?;
            Ok(host)
        });
        Self { sequence, stage: Stage::Connecting { host, syn } }
    }

    /// What the guest's SYN was numbered.
    pub(crate) fn sequence(&self) -> TcpSeqNumber {
        self.sequence
    }

    /// Once the host has answered, returns the frame that asked: if the host is connected, a socket of the stack listens
    /// for it at `to`; else none does, and it will be refused.
    pub(crate) fn poll_decide(&mut self, cx: &mut Context<'_>, to: SocketAddrV4, sockets: &mut SocketSet<'static>) -> Option<Box<[u8]>> {
        let Stage::Connecting { host, syn } = &mut self.stage else { return None };
        let Poll::Ready(answer) = host.as_mut().poll(cx) else { return None };
        let syn = std::mem::take(syn);
        self.stage = match answer {
            Ok(host) => Stage::Open(Open::new(sockets.add(listener(to)), host)),
            Err(error) => {
                tracing::debug!(%to, %error, "refused: the host did not connect");
                Stage::Refused
            }
        };
        Some(syn)
    }

    /// Moves the bytes that can be moved; whether there were any.
    pub(crate) fn carry(&mut self, cx: &mut Context<'_>, now: Instant, sockets: &mut SocketSet<'static>) -> bool {
        match &mut self.stage {
            Stage::Open(open) => open.carry(cx, now, sockets),
            Stage::Connecting { .. } | Stage::Refused => false,
        }
    }

    /// Whether nothing is left to be done, if the stack has sent what it could.
    pub(crate) fn is_over(&mut self, now: Instant, sockets: &mut SocketSet<'static>) -> bool {
        match &mut self.stage {
            Stage::Connecting { .. } => false,
            Stage::Refused => true,
            Stage::Open(open) => open.is_over(now, sockets),
        }
    }

    /// Gives back the stack's socket, if there is one, unasked.
    pub(crate) fn abandon(self, sockets: &mut SocketSet<'static>) {
        if let Stage::Open(Open { socket: Socket::InStack(socket), .. }) = self.stage {
            sockets.remove(socket);
        }
    }
}

fn listener(to: SocketAddrV4) -> tcp::Socket<'static> {
    let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
    let mut socket = tcp::Socket::new(buffer(FROM_GUEST_BYTES), buffer(TO_GUEST_BYTES));
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(HANDSHAKE_MAX));
    // It fails for port 0 only, where the SYN will find nobody.
    socket.listen(to).ok();
    socket
}

struct Open {
    socket: Socket,
    host: Host,
    /// The guest's end has come; what came before it may still wait for the host.
    guest_ended: bool,
    /// Since when the stack's side is closed, though the guest may have to be told yet.
    closed_since: Option<Instant>,
}

/// The stack's socket. It leaves the stack when guest and gateway have taken leave, lest it forgets (as one does there
/// after some seconds) what the host has not read yet.
enum Socket {
    InStack(SocketHandle),
    Left(Box<tcp::Socket<'static>>),
}

impl Open {
    fn new(socket: SocketHandle, host: TcpStream) -> Self {
        let host = Host { stream: host, has_all: false, has_ended: false };
        Self { socket: Socket::InStack(socket), host, guest_ended: false, closed_since: None }
    }

    fn carry(&mut self, cx: &mut Context<'_>, now: Instant, sockets: &mut SocketSet<'static>) -> bool {
        let socket = match &mut self.socket {
            Socket::InStack(handle) => sockets.get_mut::<tcp::Socket>(*handle),
            Socket::Left(socket) => socket,
        };
        match socket.state() {
            State::Listen | State::SynReceived => return false,
            State::Closed => {
                self.closed_since.get_or_insert(now);
                if !self.guest_ended {
                    return false;
                }
            }
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait => self.guest_ended = true,
            _ => {}
        }
        socket.set_timeout(Some(SILENCE_MAX));
        let taken = self.host.take(cx, socket);
        match taken.and_then(|taken| Ok(self.host.give(cx, socket)? | taken)) {
            Ok(moved) => moved,
            Err(error) => {
                tracing::debug!(%error, "the host's side of a connection failed");
                self.guest_ended = false;
                socket.abort();
                true
            }
        }
    }

    fn is_over(&mut self, now: Instant, sockets: &mut SocketSet<'static>) -> bool {
        if let Socket::InStack(handle) = self.socket {
            let socket = sockets.get::<tcp::Socket>(handle);
            let parted = match socket.state() {
                // The guest gave up the handshake, which makes the stack listen again.
                State::Listen => true,
                State::Closed => socket.remote_endpoint().is_none() || self.closed_since.is_some_and(|since| now - since > RESET_MAX),
                // Frames on this wire do not overtake one another, so no late one is to be waited for.
                State::TimeWait => true,
                _ => false,
            };
            if !parted {
                return false;
            }
            let smoltcp::socket::Socket::Tcp(left) = sockets.remove(handle) else {
                unreachable!("a TCP socket was added under this handle");
            };
            self.socket = Socket::Left(Box::new(left));
        }
        !self.guest_ended || self.host.has_all
    }
}

/// The host's end of a connection.
struct Host {
    stream: TcpStream,
    /// It has been told that the guest has said all.
    has_all: bool,
    /// It has said all, and so has been told to the guest.
    has_ended: bool,
}

impl Host {
    /// Takes what the guest has said; whether it was anything.
    fn take(&mut self, cx: &mut Context<'_>, guest: &mut tcp::Socket<'_>) -> io::Result<bool> {
        let mut moved = false;
        while guest.can_recv() {
            let written = guest.recv(|bytes| match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(len)) => (len, Poll::Ready(Ok(()))),
                Poll::Ready(Err(error)) => (0, Poll::Ready(Err(error))),
                Poll::Pending => (0, Poll::Pending),
            });
            match written {
                Ok(Poll::Ready(written)) => written?,
                Ok(Poll::Pending) | Err(_) => return Ok(moved),
            }
            moved = true;
        }
        // To shut down never waits.
        if !self.has_all
            && guest.peek(0) == Err(RecvError::Finished)
            && let Poll::Ready(shut) = Pin::new(&mut self.stream).poll_shutdown(cx)
        {
            shut?;
            self.has_all = true;
            moved = true;
        }
        Ok(moved)
    }

    /// Gives the guest what it has room for; whether it was anything.
    fn give(&mut self, cx: &mut Context<'_>, guest: &mut tcp::Socket<'_>) -> io::Result<bool> {
        let mut moved = false;
        while !self.has_ended && guest.can_send() {
            let read = guest.send(|space| {
                let mut space = ReadBuf::new(space);
                match Pin::new(&mut self.stream).poll_read(cx, &mut space) {
                    Poll::Ready(Ok(())) => (space.filled().len(), Poll::Ready(Ok(space.filled().len()))),
                    Poll::Ready(Err(error)) => (0, Poll::Ready(Err(error))),
                    Poll::Pending => (0, Poll::Pending),
                }
            });
            match read {
                Ok(Poll::Ready(len)) => self.has_ended = len? == 0,
                Ok(Poll::Pending) | Err(_) => return Ok(moved),
            }
            if self.has_ended {
                guest.close();
                // No answer will follow that an ACK could wait for.
                guest.set_ack_delay(None);
            }
            moved = true;
        }
        Ok(moved)
    }
}

/// What did not end in both directions ends in a reset, lest what was said so far be taken for all.
impl Drop for Host {
    fn drop(&mut self) {
        if !(self.has_all && self.has_ended) {
            // It fails only for what is no socket.
            self.stream.set_zero_linger().ok();
        }
    }
}
