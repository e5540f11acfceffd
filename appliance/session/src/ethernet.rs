//! Ethernet frames on a stream, as QEMU's `-netdev stream` frames them: a big-endian `u32` length, then the frame.
//! And what a gateway answers by itself on that link: ARP.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr};
use std::io;
use std::net::Ipv4Addr;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest frame on the link: a 64 KiB segment and its headers. A longer length means that the peer is not
/// speaking this framing, so the stream is given up.
pub(crate) const FRAME_BYTES_MAX: usize = 65_550;
pub(crate) const HEADER_BYTES: usize = 14;

/// Reads the next frame; `None` at the end of the stream.
pub(crate) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u32().await {
        Ok(len) => len as usize,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    if len > FRAME_BYTES_MAX {
        let what = format!("a frame of {len} bytes, more than {FRAME_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await?;
    Ok(Some(frame))
}

/// `frame` with its length in front, ready to be written.
pub(crate) fn framed(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + frame.len());
    out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    out.extend_from_slice(frame);
    out
}

/// Puts an Ethernet header before `payload`.
pub(crate) fn frame(src: EthernetAddress, dst: EthernetAddress, ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + payload.len()];
    let repr = EthernetRepr { src_addr: src, dst_addr: dst, ethertype };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes[HEADER_BYTES..].copy_from_slice(payload);
    bytes
}

/// The reply to an ARP request for `gateway`; nothing to any other packet.
pub(crate) fn arp_reply(payload: &[u8], gateway: Ipv4Addr, gateway_mac: EthernetAddress) -> Option<Vec<u8>> {
    let request = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 { operation: ArpOperation::Request, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } = request
    else {
        return None;
    };
    if target_protocol_addr != gateway {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: gateway_mac,
        source_protocol_addr: gateway,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    Some(frame(gateway_mac, source_hardware_addr, EthernetProtocol::Arp, &bytes))
}
