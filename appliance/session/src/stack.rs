//! The gateway's IP stack: answers for its own address, and holds the table of the machine's connections.
//!
//! Answers also for every address that is out of reach, to refuse what is sent there. What reaches the stack has been
//! sorted by [`ethernet::read`]: it comes from the machine's one address, whole. Time is told by the caller, and counts
//! from when the stack was made.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::Ipv4Addr;
use std::task::Context;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{IpCidr, Ipv4Cidr, TcpSeqNumber};

use crate::connection::Connection;
use crate::dhcp::{self, Lease};
use crate::ethernet::{self, Arrival, Flow, GATEWAY_MAC};
use crate::nat::{CONNECTIONS_MAX, GATEWAY, GUEST, Reach};
use crate::wire::{Outbox, Port};

const PREFIX_LEN: u8 = 24;

/// DHCP messages that may wait in each direction, and their bytes: one client, which asks and waits. The rest is lost.
const DHCP_MESSAGES_MAX: usize = 4;
const DHCP_BYTES_MAX: usize = 4 * 1500;

pub(crate) struct Stack {
    reach: Reach,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    connections: HashMap<Flow, Connection>,
}

impl Stack {
    pub(crate) fn new(reach: Reach) -> Self {
        let mut config = Config::new(GATEWAY_MAC.into());
        // The seed of sequence numbers: the standard library's hashers begin at random.
        config.random_seed = RandomState::new().build_hasher().finish();
        let mut outbox = Outbox::new();
        let mut interface = Interface::new(config, &mut Port::sending(&mut outbox), Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(GATEWAY, PREFIX_LEN))).expect("an interface has room for an address");
        });
        interface.set_any_ip(true);
        let messages = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DHCP_MESSAGES_MAX], vec![0; DHCP_BYTES_MAX]);
        let mut dhcp = udp::Socket::new(messages(), messages());
        dhcp.bind(dhcp::SERVER_PORT).expect("a new socket is free");
        let mut sockets = SocketSet::new(vec![]);
        let dhcp = sockets.add(dhcp);
        Self { reach, interface, sockets, dhcp, connections: HashMap::new() }
    }

    /// Takes a frame of the machine's. May answer at once.
    pub(crate) fn receive(&mut self, frame: &[u8], now: Instant, outbox: &mut Outbox) {
        match ethernet::read(frame) {
            Arrival::Noise => {}
            Arrival::Packet => self.process(frame, now, outbox),
            Arrival::Syn { flow, sequence } => self.connect(flow, sequence, frame, now, outbox),
        }
    }

    fn connect(&mut self, flow: Flow, sequence: TcpSeqNumber, syn: &[u8], now: Instant, outbox: &mut Outbox) {
        match self.connections.remove(&flow) {
            // Its answer is under way.
            Some(connection) if connection.sequence() == sequence => {
                self.connections.insert(flow, connection);
                return;
            }
            // The machine has begun anew and knows nothing of the former one.
            Some(connection) => connection.abandon(&mut self.sockets),
            None => {}
        }
        if self.connections.len() >= CONNECTIONS_MAX {
            // The machine may have ended one just before.
            self.forget_ended(now);
        }
        match self.reach.target(&flow.to) {
            Some(target) if self.connections.len() < CONNECTIONS_MAX => {
                self.connections.insert(flow, Connection::begin(target, sequence, syn.into()));
                return;
            }
            Some(_) => tracing::debug!(to = %flow.to, "refused: this machine has too many connections"),
            None => tracing::debug!(to = %flow.to, "refused: out of this machine's reach"),
        }
        // Nobody listens, so the stack refuses it.
        self.process(syn, now, outbox);
    }

    fn process(&mut self, frame: &[u8], now: Instant, outbox: &mut Outbox) {
        self.interface.poll_ingress_single(now, &mut Port::receiving(frame, outbox), &mut self.sockets);
    }

    /// Does what can be done without waiting: moves bytes between the machine's connections and the host's, and fills
    /// `outbox`. Whether anything was done. The task of `cx` is woken when the host's side has more to do.
    pub(crate) fn work(&mut self, cx: &mut Context<'_>, now: Instant, outbox: &mut Outbox) -> bool {
        self.answer_dhcp();
        let Self { interface, sockets, connections, .. } = self;
        let mut worked = false;
        for (flow, connection) in connections.iter_mut() {
            if let Some(syn) = connection.poll_decide(cx, flow.to, sockets) {
                interface.poll_ingress_single(now, &mut Port::receiving(&syn, outbox), sockets);
                worked = true;
            }
            worked |= connection.carry(cx, now, sockets);
        }
        while interface.poll_egress(now, &mut Port::sending(outbox), sockets) == PollResult::SocketStateChanged {
            worked = true;
        }
        // A connection that is over has had its last word by now, unless the machine has yet to make room for it.
        if outbox.has_room() {
            self.forget_ended(now);
        }
        worked
    }

    /// When [`Self::work`] is due though nothing happens.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    fn forget_ended(&mut self, now: Instant) {
        self.connections.retain(|_, connection| !connection.is_over(now, &mut self.sockets));
    }

    fn answer_dhcp(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket>(self.dhcp);
        while let Ok((request, _)) = socket.recv() {
            let lease = Lease { address: GUEST, netmask: Ipv4Cidr::new(GATEWAY, PREFIX_LEN).netmask(), server: GATEWAY };
            let Some(reply) = dhcp::answer(request, lease) else { continue };
            // What does not fit is lost; who wants an address asks again.
            socket.send_slice(&reply, (Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT)).ok();
        }
    }
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
