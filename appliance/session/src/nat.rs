//! The network of one machine, in user space.
//!
//! ```text
//! machine ── frames ──▶ link ─┬─ ARP, DHCP: answered here
//!                             └─ TCP to an address within reach ──▶ IP stack ──▶ a socket of the host
//! ```
//! The machine is [`GUEST`], its gateway [`GATEWAY`]. What its [`Reach`] does not name is refused before it costs
//! anything: a SYN gets a reset from nobody, it is dropped and counted.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ipstack::{IpStack, IpStackConfig, IpStackStream, IpStackTcpStream, TcpConfig};
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::{dhcp, ethernet};

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x02, 0x50, 0x4c, 0x58, 0x00, 0x02]);

/// The link's MTU in bytes. The IP stack wants at least 1280; Ethernet's own 1500 suits every guest.
const MTU: u16 = 1500;
/// Connections that a machine may hold at once; further SYNs are dropped, so that the guest retries them later.
const CONNECTIONS_MAX: usize = 128;
/// Packets that may wait in each direction. A full queue towards the machine makes connections wait; packets from a
/// machine that floods are dropped, as on any network.
const PACKETS_QUEUED_MAX: usize = 256;

/// What a connection may have under way in each direction: TCP's largest window without scaling.
const WINDOW_BYTES: usize = 64 * 1024;
/// The wire is a memory copy, so what is not acknowledged after this long met a full window or a busy guest.
const RETRANSMIT_AFTER: Duration = Duration::from_millis(200);
/// A guest that says nothing for 100 times as long (20 s) has stopped; its agent connects again when it goes on.
const RETRANSMITS_MAX: usize = 100;

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
}

/// Serves the machine at the other end of `machine` until it closes its side. Connections end with it. Needs a runtime of
/// several threads: the IP stack blocks one while it takes leave of a connection.
pub async fn serve(machine: UnixStream, reach: Reach) -> io::Result<()> {
    let (mut from_machine, mut to_machine) = machine.into_split();
    let (frames, mut frames_out) = mpsc::channel::<Vec<u8>>(PACKETS_QUEUED_MAX);
    let (packets, packets_in) = mpsc::channel::<Vec<u8>>(PACKETS_QUEUED_MAX);
    let reach = Arc::new(reach);
    let machine = Arc::new(Mutex::new(EthernetAddress::BROADCAST));
    let link = Link { machine: machine.clone(), reach: reach.clone(), frames: frames.clone(), packets };

    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(frame) = frames_out.recv().await {
            if to_machine.write_all(&ethernet::framed(&frame)).await.is_err() {
                break;
            }
        }
    });
    tasks.spawn(translate(PacketDevice { machine, packets: packets_in, frames: tokio_util::sync::PollSender::new(frames) }, reach));

    // Dropping the set at the end aborts both tasks, and with them the connections.
    while let Some(frame) = ethernet::read_frame(&mut from_machine).await? {
        link.handle(&frame);
    }
    Ok(())
}

/// The gateway's end of the wire.
struct Link {
    /// The machine's address, as its packets tell. A guest drops TCP that is not addressed to itself.
    machine: Arc<Mutex<EthernetAddress>>,
    reach: Arc<Reach>,
    frames: mpsc::Sender<Vec<u8>>,
    packets: mpsc::Sender<Vec<u8>>,
}

impl Link {
    fn handle(&self, bytes: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(bytes) else { return };
        match frame.ethertype() {
            EthernetProtocol::Arp => self.reply(ethernet::arp_reply(frame.payload(), GATEWAY, GATEWAY_MAC)),
            EthernetProtocol::Ipv4 => self.ipv4(frame.src_addr(), frame.payload()),
            _ => {}
        }
    }

    fn ipv4(&self, machine: EthernetAddress, payload: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(payload) else { return };
        match packet.next_header() {
            IpProtocol::Udp => self.reply(dhcp_reply(machine, packet.payload())),
            IpProtocol::Tcp => {
                let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return };
                let to = SocketAddrV4::new(packet.dst_addr(), segment.dst_port());
                if !self.reach.0.contains_key(&to) {
                    tracing::debug!(%to, "out of this machine's reach");
                    return;
                }
                *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = machine;
                // An Ethernet frame may be padded; the packet's own length counts. A full queue drops, TCP retries.
                let packet = payload[..usize::from(packet.total_len())].to_vec();
                drop(self.packets.try_send(packet));
            }
            _ => {}
        }
    }

    /// Sends an answer; a machine that does not read its link loses it.
    fn reply(&self, frame: Option<Vec<u8>>) {
        if let Some(frame) = frame {
            drop(self.frames.try_send(frame));
        }
    }
}

fn dhcp_reply(machine: EthernetAddress, payload: &[u8]) -> Option<Vec<u8>> {
    let datagram = UdpPacket::new_checked(payload).ok()?;
    if datagram.dst_port() != 67 {
        return None;
    }
    let message = dhcp::answer(datagram.payload(), dhcp::Lease { address: GUEST, netmask: NETMASK, server: GATEWAY })?;
    let udp = UdpRepr { src_port: 67, dst_port: 68 };
    let ip = Ipv4Repr {
        src_addr: GATEWAY,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + message.len(),
        hop_limit: 64,
    };
    let checksums = smoltcp::phy::ChecksumCapabilities::default();
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]),
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        message.len(),
        |payload| payload.copy_from_slice(&message),
        &checksums,
    );
    Some(ethernet::frame(GATEWAY_MAC, machine, EthernetProtocol::Ipv4, &bytes))
}

/// Ends the guest's TCP connections here and carries their bytes over sockets of the host.
async fn translate(device: PacketDevice, reach: Arc<Reach>) {
    let mut config = IpStackConfig::default();
    config.mtu_unchecked(MTU);
    let mut tcp = TcpConfig::default();
    // A phone's stream to the appliance lives for days; its own keepalives decide when it is dead.
    tcp.timeout = Duration::from_secs(24 * 3600);
    tcp.rto = RETRANSMIT_AFTER;
    tcp.max_retransmit_count = RETRANSMITS_MAX;
    tcp.max_unacked_bytes = WINDOW_BYTES as u32;
    tcp.read_buffer_size = WINDOW_BYTES;
    config.with_tcp_config(tcp);
    let mut stack = IpStack::new(config, device);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Ok(stream) = stack.accept().await {
        while connections.try_join_next().is_some() {}
        let IpStackStream::Tcp(guest) = stream else { continue };
        let SocketAddr::V4(to) = guest.peer_addr() else { continue };
        let (Some(target), Ok(slot)) = (reach.0.get(&to).copied(), slots.clone().try_acquire_owned()) else { continue };
        connections.spawn(async move {
            if let Err(error) = carry(guest, target).await {
                tracing::debug!(%to, %target, %error, "a machine's connection ended");
            }
            drop(slot);
        });
    }
}

async fn carry(mut guest: IpStackTcpStream, target: SocketAddr) -> io::Result<()> {
    let carried = match TcpStream::connect(target).await {
        Ok(mut host) => {
            host.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut guest, &mut host).await.map(|_| ())
        }
        Err(error) => Err(error),
    };
    guest.shutdown().await.and(carried)
}

/// The link as the IP stack wants it: a device of which each read and each write is one IP packet.
struct PacketDevice {
    machine: Arc<Mutex<EthernetAddress>>,
    packets: mpsc::Receiver<Vec<u8>>,
    frames: tokio_util::sync::PollSender<Vec<u8>>,
}

impl AsyncRead for PacketDevice {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.packets.poll_recv(cx) {
            Poll::Ready(Some(packet)) => {
                let len = packet.len().min(buffer.remaining());
                buffer.put_slice(&packet[..len]);
                Poll::Ready(Ok(()))
            }
            // The machine is gone and so will be this task; an end of file would make the stack spin until then.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for PacketDevice {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, packet: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.frames.poll_reserve(cx)).map_err(gone)?;
        let machine = *self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = ethernet::frame(GATEWAY_MAC, machine, EthernetProtocol::Ipv4, packet);
        self.frames.send_item(frame).map_err(gone)?;
        Poll::Ready(Ok(packet.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
