//! A guest for tests that makes its frames by hand, so that it can say what no honest one does.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4DstUnreachable, Icmpv4Packet,
    Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::ethernet::GATEWAY_MAC;
use crate::nat::{GATEWAY, GUEST};

const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
/// A service within reach, as the guest names it.
pub(crate) const SERVICE: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 7443);

/// A TCP segment between the guest's `port` and `peer`, in either direction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) port: u16,
    pub(crate) peer: SocketAddrV4,
    pub(crate) control: TcpControl,
    pub(crate) seq: TcpSeqNumber,
    pub(crate) ack: Option<TcpSeqNumber>,
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
}

impl Segment {
    pub(crate) fn syn(port: u16, seq: i32) -> Self {
        let (control, seq) = (TcpControl::Syn, TcpSeqNumber(seq));
        Self { port, peer: SERVICE, control, seq, ack: None, window: u16::MAX, payload: vec![] }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: self.port,
            dst_port: self.peer.port(),
            control: self.control,
            seq_number: self.seq,
            ack_number: self.ack,
            window_len: self.window,
            window_scale: (self.control == TcpControl::Syn).then_some(7),
            max_seg_size: (self.control == TcpControl::Syn).then_some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &self.payload,
        };
        let to = *self.peer.ip();
        ip(to, IpProtocol::Tcp, tcp.buffer_len(), |bytes| {
            tcp.emit(&mut TcpPacket::new_unchecked(bytes), &GUEST.into(), &to.into(), &ChecksumCapabilities::default());
        })
    }
}

/// A connection that stands, at the guest's end: the next number of its own, and the next that it expects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) port: u16,
    pub(crate) seq: TcpSeqNumber,
    pub(crate) ack: TcpSeqNumber,
}

impl Standing {
    pub(crate) fn segment(&self, payload: &[u8]) -> Segment {
        let Self { port, seq, ack } = *self;
        Segment { control: TcpControl::None, seq, ack: Some(ack), payload: payload.to_vec(), ..Segment::syn(port, 0) }
    }
}

/// A frame with an IPv4 packet to `to`; `fill` writes the `len` bytes in it.
fn ip(to: Ipv4Addr, protocol: IpProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let ip = Ipv4Repr { src_addr: GUEST, dst_addr: to, next_header: protocol, payload_len: len, hop_limit: 64 };
    let mut bytes = vec![0; 14 + ip.buffer_len() + len];
    let ethernet = EthernetRepr { src_addr: MAC, dst_addr: GATEWAY_MAC, ethertype: EthernetProtocol::Ipv4 };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    fill(&mut bytes[14 + ip.buffer_len()..]);
    bytes
}

/// `frame` with its IPv4 header changed, and right again.
pub(crate) fn with_header(mut frame: Vec<u8>, change: impl FnOnce(&mut Ipv4Packet<&mut [u8]>)) -> Vec<u8> {
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[14..]);
    change(&mut ip);
    ip.fill_checksum();
    frame
}

pub(crate) fn ping(to: Ipv4Addr) -> Vec<u8> {
    let echo = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 1, data: b"?" };
    ip(to, IpProtocol::Icmp, echo.buffer_len(), |bytes| {
        echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    })
}

pub(crate) fn datagram(to: SocketAddrV4) -> Vec<u8> {
    let udp = UdpRepr { src_port: 5000, dst_port: to.port() };
    ip(*to.ip(), IpProtocol::Udp, udp.header_len() + 1, |bytes| {
        let (from, to) = (GUEST.into(), (*to.ip()).into());
        let checksums = ChecksumCapabilities::default();
        udp.emit(&mut UdpPacket::new_unchecked(bytes), &from, &to, 1, |payload| payload.fill(b'?'), &checksums);
    })
}

pub(crate) fn arp(operation: ArpOperation, about: Ipv4Addr) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: MAC,
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: about,
    };
    let mut bytes = vec![0; 14 + arp.buffer_len()];
    let ethernet = EthernetRepr { src_addr: MAC, dst_addr: EthernetAddress::BROADCAST, ethertype: EthernetProtocol::Arp };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    arp.emit(&mut ArpPacket::new_unchecked(&mut bytes[14..]));
    bytes
}

/// What a gateway says.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Segment(Segment),
    Pong { from: Ipv4Addr },
    PortUnreachable { to: SocketAddrV4 },
    IsAt { whose: Ipv4Addr },
    WhereAreYou,
}

/// Panics at what this gateway never says.
pub(crate) fn hear(frame: &[u8]) -> Heard {
    let frame = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(frame.src_addr(), GATEWAY_MAC);
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).unwrap()).unwrap();
            match arp {
                ArpRepr::EthernetIpv4 { operation: ArpOperation::Request, target_protocol_addr: GUEST, .. } => Heard::WhereAreYou,
                ArpRepr::EthernetIpv4 { operation: ArpOperation::Reply, source_protocol_addr, .. } => {
                    Heard::IsAt { whose: source_protocol_addr }
                }
                other => panic!("{other:?}"),
            }
        }
        EthernetProtocol::Ipv4 => {
            assert_eq!(frame.dst_addr(), MAC);
            packet(frame.payload())
        }
        other => panic!("a frame of type {other}"),
    }
}

fn packet(bytes: &[u8]) -> Heard {
    let ip = Ipv4Packet::new_checked(bytes).unwrap();
    assert!(ip.verify_checksum() && ip.dst_addr() == GUEST);
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
            let tcp = TcpRepr::parse(&tcp, &ip.src_addr().into(), &GUEST.into(), &ChecksumCapabilities::default()).unwrap();
            Heard::Segment(Segment {
                port: tcp.dst_port,
                peer: SocketAddrV4::new(ip.src_addr(), tcp.src_port),
                control: tcp.control,
                seq: tcp.seq_number,
                ack: tcp.ack_number,
                window: tcp.window_len,
                payload: tcp.payload.to_vec(),
            })
        }
        IpProtocol::Icmp => match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(ip.payload()).unwrap(), &ChecksumCapabilities::default()) {
            Ok(Icmpv4Repr::EchoReply { .. }) => Heard::Pong { from: ip.src_addr() },
            Ok(Icmpv4Repr::DstUnreachable { reason: Icmpv4DstUnreachable::PortUnreachable, header, data }) => {
                let port = UdpPacket::new_unchecked(data).dst_port();
                Heard::PortUnreachable { to: SocketAddrV4::new(header.dst_addr, port) }
            }
            other => panic!("{other:?}"),
        },
        other => panic!("a packet of {other}"),
    }
}
