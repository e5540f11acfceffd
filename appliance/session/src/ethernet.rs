//! What the machine's frames are to its gateway, decided before they cost anything: the machine speaks IPv4 from one
//! address to one gateway, and everything else on its wire is noise.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

use crate::dhcp;
use crate::nat::{GATEWAY, GUEST};

pub(crate) const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x50, 0x4c, 0x58, 0x00, 0x02]);

/// A connection as the machine names it: its own port, and where it wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) port: u16,
    pub(crate) to: SocketAddrV4,
}

/// A frame from the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Asks for a connection, numbered from `sequence`.
    Syn { flow: Flow, sequence: TcpSeqNumber },
    /// For the IP stack: it belongs to a connection, asks for an address, or is to be refused.
    Packet,
    /// Not answered.
    Noise,
}

/// Says what `frame` is. Of a fragment nobody knows; nothing that is sent to this gateway needs to be one.
pub(crate) fn read(frame: &[u8]) -> Arrival {
    known(frame).unwrap_or(Arrival::Noise)
}

fn known(frame: &[u8]) -> Option<Arrival> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.dst_addr() != GATEWAY_MAC && !frame.dst_addr().is_broadcast() {
        return None;
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(frame.payload()),
        EthernetProtocol::Ipv4 => ipv4(frame.payload()),
        _ => None,
    }
}

/// The machine asks for its gateway or tells it its own address. The stack would claim every address that is asked for.
fn arp(payload: &[u8]) -> Option<Arrival> {
    let ArpRepr::EthernetIpv4 { source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    ((source_protocol_addr, target_protocol_addr) == (GUEST, GATEWAY)).then_some(Arrival::Packet)
}

fn ipv4(payload: &[u8]) -> Option<Arrival> {
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    if packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    match packet.next_header() {
        // Who asks for an address need not have one, or still has one from elsewhere.
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
            (from == GUEST || datagram.dst_port() == dhcp::SERVER_PORT).then_some(Arrival::Packet)
        }
        _ if from != GUEST => None,
        IpProtocol::Tcp if !to.is_multicast() && !to.is_broadcast() => tcp(to, packet.payload()),
        // Only the gateway can say that the gateway is there.
        _ => (to == GATEWAY).then_some(Arrival::Packet),
    }
}

/// A SYN that carries data (RFC 7413) is not taken for one, and so is refused: no guest sends it without our consent.
fn tcp(to: Ipv4Addr, payload: &[u8]) -> Option<Arrival> {
    let segment = TcpPacket::new_checked(payload).ok()?;
    let asks = segment.syn() && !segment.ack() && !segment.rst() && !segment.fin() && segment.payload().is_empty();
    if !asks {
        return Some(Arrival::Packet);
    }
    let flow = Flow { port: segment.src_port(), to: SocketAddrV4::new(to, segment.dst_port()) };
    Some(Arrival::Syn { flow, sequence: segment.seq_number() })
}
