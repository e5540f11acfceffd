//! The address server of one machine: it has one address to give (RFC 2131).

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use std::net::Ipv4Addr;

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// How long a lease lasts, in seconds. There is nobody to give the address to afterwards; a day keeps renewals rare.
pub const LEASE_SECONDS: u32 = 86_400;

/// What the server gives out.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub netmask: Ipv4Addr,
    /// Gateway, and the server's own address.
    pub server: Ipv4Addr,
}

/// Answers one DHCP message (the payload of a UDP datagram to port 67). `None` where the protocol is silent:
/// malformed messages, requests to another server, releases.
pub fn answer(request: &[u8], lease: Lease) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(request)).ok()?;
    let kind = match request.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if !meant_for(&request, lease.server) => return None,
        MessageType::Request if requested_address(&request).is_none_or(|a| a == lease.address) => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let mut reply = Message::default();
    reply.set_opcode(Opcode::BootReply).set_xid(request.xid()).set_flags(request.flags()).set_chaddr(request.chaddr());
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(lease.server));
    if kind != MessageType::Nak {
        options.insert(DhcpOption::SubnetMask(lease.netmask));
        options.insert(DhcpOption::Router(vec![lease.server]));
        options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
        reply.set_yiaddr(lease.address).set_siaddr(lease.server);
    }
    let mut bytes = Vec::new();
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

fn meant_for(request: &Message, server: Ipv4Addr) -> bool {
    match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(chosen)) => *chosen == server,
        _ => true,
    }
}

fn requested_address(request: &Message) -> Option<Ipv4Addr> {
    match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => (!request.ciaddr().is_unspecified()).then(|| request.ciaddr()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease =
        Lease { address: Ipv4Addr::new(10, 0, 2, 15), netmask: Ipv4Addr::new(255, 255, 255, 0), server: Ipv4Addr::new(10, 0, 2, 2) };

    fn ask(kind: MessageType, options: &[DhcpOption]) -> Option<Message> {
        let mut request = Message::default();
        request.set_xid(7).set_chaddr(&[2, 0, 0, 0, 0, 1]);
        request.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            request.opts_mut().insert(option.clone());
        }
        let mut bytes = Vec::new();
        request.encode(&mut Encoder::new(&mut bytes)).unwrap();
        answer(&bytes, LEASE).map(|reply| Message::decode(&mut Decoder::new(&reply)).unwrap())
    }

    #[test]
    fn discover_is_offered_the_one_address() {
        let offer = ask(MessageType::Discover, &[]).unwrap();
        assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!((offer.yiaddr(), offer.xid()), (LEASE.address, 7));
    }

    #[test]
    fn a_request_is_acknowledged_refused_or_left_to_another_server() {
        let right = ask(MessageType::Request, &[DhcpOption::RequestedIpAddress(LEASE.address)]).unwrap();
        assert_eq!(right.opts().msg_type(), Some(MessageType::Ack));
        let wrong = ask(MessageType::Request, &[DhcpOption::RequestedIpAddress(Ipv4Addr::new(192, 168, 1, 5))]).unwrap();
        assert_eq!(wrong.opts().msg_type(), Some(MessageType::Nak));
        assert!(ask(MessageType::Request, &[DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 9, 9, 9))]).is_none());
    }

    #[test]
    fn noise_is_not_answered() {
        for len in 0..300 {
            assert!(answer(&vec![0xff; len], LEASE).is_none());
        }
    }
}
