//! The network of one machine, in user space.
//!
//! ```text
//! machine ── frames ──▶ wire ──▶ stack ─┬─ ARP, DHCP, ping: answered here
//!                                       ├─ TCP to an address within reach ──▶ a socket of the host
//!                                       └─ TCP and UDP to any other: refused, in its name
//! ```
//! The machine is [`GUEST`], its gateway [`GATEWAY`]. What its [`Reach`] does not name is refused before it costs
//! anything, by a reset or an ICMP "port unreachable": a phone in quarantine learns at once that it gets nowhere, where
//! silence would keep its programs waiting for minutes. The host is connected first, so a guest meets what its peer says:
//! a refusal is a reset, and so is a connection beyond [`CONNECTIONS_MAX`].
//!
//! One task owns all of it, works on any runtime, and sleeps until a socket or a timer of TCP wakes it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::time::Instant as StackTime;
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep};

use crate::stack::Stack;
use crate::wire::{Inbox, Outbox};

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Connections that a machine may hold at once, begun or open. A phone needs a handful; each may keep some 300 KiB.
pub const CONNECTIONS_MAX: usize = 128;

/// Rounds of work before others on this thread get their turn; one moves up to a batch of frames in each direction.
const ROUNDS_MAX: usize = 8;
/// The shortest sleep until a timer of TCP, which counts in milliseconds, so that no timer can make a task spin.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// Where a machine may go: each destination as the guest names it, and the host's address that it means.
/// Everything else is out of reach. An empty one is a network with an address and nobody to talk to.
#[derive(Clone, Debug, Default)]
pub struct Reach(HashMap<SocketAddrV4, SocketAddr>);

impl Reach {
    /// Lets the guest's connections to `port` of the gateway reach `target`.
    pub fn with_gateway_port(mut self, port: u16, target: SocketAddr) -> Self {
        self.0.insert(SocketAddrV4::new(GATEWAY, port), target);
        self
    }

    pub(crate) fn target(&self, to: &SocketAddrV4) -> Option<SocketAddr> {
        self.0.get(to).copied()
    }
}

/// Serves the machine at the other end of `machine` until it closes its side. Connections end with it, by a reset.
///
/// # Errors
/// `InvalidData` if the stream is not one of frames; whatever else the stream fails with.
pub async fn serve(machine: UnixStream, reach: Reach) -> io::Result<()> {
    let mut network = Network {
        machine,
        inbox: Inbox::new(),
        outbox: Outbox::new(),
        stack: Stack::new(reach),
        epoch: Instant::now(),
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    // It bounds its turns itself. Tokio's budget would cut them short always at the same connections.
    tokio::task::coop::unconstrained(std::future::poll_fn(|cx| network.poll(cx))).await
}

struct Network {
    machine: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
    stack: Stack,
    /// When the stack was made.
    epoch: Instant,
    timer: Pin<Box<Sleep>>,
}

/// What a round found.
enum Round {
    /// Work, so there may be more.
    Busy,
    /// Nothing until something happens, or until the time given.
    Idle(Option<Instant>),
    /// The machine is gone.
    Over,
}

impl Network {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS_MAX {
            match self.round(cx) {
                Ok(Round::Busy) => {}
                Ok(Round::Idle(due)) => {
                    if !self.is_due(due, cx) {
                        return Poll::Pending;
                    }
                }
                Ok(Round::Over) => return Poll::Ready(Ok(())),
                Err(error) if is_gone(&error) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> io::Result<Round> {
        let now = StackTime::ZERO + self.epoch.elapsed().into();
        let mut busy = false;
        if let Poll::Ready(filled) = self.inbox.poll_fill(&mut self.machine, cx) {
            if !filled? {
                return Ok(Round::Over);
            }
            while let Some(frame) = self.inbox.next_frame()? {
                self.stack.receive(frame, now, &mut self.outbox);
            }
            busy = true;
        }
        let had_room = self.outbox.has_room();
        busy |= self.stack.work(cx, now, &mut self.outbox);
        let due = match self.outbox.poll_flush(&mut self.machine, cx) {
            Poll::Ready(written) => {
                written?;
                // What the stack could not send before, it can now.
                busy |= !had_room;
                self.stack.due(now)
            }
            // What the stack has still to send waits for the machine, not for the time.
            Poll::Pending => None,
        };
        Ok(if busy { Round::Busy } else { Round::Idle(due.map(|due| self.epoch + (due - StackTime::ZERO).into())) })
    }

    /// Whether `due` has come; if not, wakes this task when it does.
    fn is_due(&mut self, due: Option<Instant>, cx: &mut Context<'_>) -> bool {
        let Some(due) = due else { return false };
        self.timer.as_mut().reset(due.max(Instant::now() + SLEEP_MIN));
        self.timer.as_mut().poll(cx).is_ready()
    }
}

/// Whether the machine has closed its side while there was still something for it, or from it.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
