//! A machine on the network: smoltcp plays the guest, at the other end of the real stream.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use session::nat::{self, GATEWAY, GUEST, Reach};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// How long the guest keeps trying before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct Link {
    stream: UnixStream,
    received: VecDeque<u8>,
}

impl Link {
    /// Length of the frame that has been received whole, if one has.
    fn frame_len(&self) -> Option<usize> {
        let header: Vec<u8> = self.received.iter().take(4).copied().collect();
        let len = u32::from_be_bytes(header.try_into().ok()?) as usize;
        (self.received.len() >= 4 + len).then_some(len)
    }
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut UnixStream);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.write_all(&(len as u32).to_be_bytes()).unwrap();
        self.0.write_all(&frame).unwrap();
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        if self.frame_len().is_none() {
            let mut chunk = [0; 65_536];
            // The read times out after a millisecond: that is the guest's idle loop.
            if let Ok(n) = self.stream.read(&mut chunk) {
                self.received.extend(&chunk[..n]);
            }
        }
        let len = self.frame_len()?;
        let frame: Vec<u8> = self.received.drain(..4 + len).skip(4).collect();
        // Linux takes TCP only where it is addressed to itself; smoltcp is less strict.
        let tcp = frame.len() > 23 && frame[12..14] == [8, 0] && frame[23] == 6;
        assert!(!tcp || frame[..6] == MAC, "TCP that is not addressed to the guest");
        Some((Received(frame), Sending(&mut self.stream)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.stream))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    tcp: SocketHandle,
    network: Option<JoinHandle<std::io::Result<()>>>,
}

impl Guest {
    fn start(reach: Reach) -> Guest {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let network = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async { nat::serve(tokio::net::UnixStream::from_std(theirs).unwrap(), reach).await })
        });
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut link = Link { stream: ours, received: VecDeque::new() };
        let interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut link, Instant::now());
        let mut sockets = SocketSet::new(vec![]);
        let dhcp = sockets.add(dhcpv4::Socket::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; 16 * 1024]);
        let tcp = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Guest { link, interface, sockets, dhcp, tcp, network: Some(network) }
    }

    fn poll(&mut self) {
        self.interface.poll(Instant::now(), &mut self.link, &mut self.sockets);
    }

    /// Asks for an address and takes it up.
    fn join_network(&mut self) {
        let start = Clock::now();
        loop {
            self.poll();
            if let Some(dhcpv4::Event::Configured(config)) = self.sockets.get_mut::<dhcpv4::Socket>(self.dhcp).poll() {
                assert_eq!(config.address.address(), GUEST);
                assert_eq!(config.router, Some(GATEWAY));
                self.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(config.address)).unwrap());
                self.interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
                return;
            }
            assert!(start.elapsed() < PATIENCE, "no address was given");
        }
    }

    fn connect(&mut self, to: SocketAddrV4) {
        let socket = self.sockets.get_mut::<tcp::Socket>(self.tcp);
        socket.connect(self.interface.context(), to, 49_152).unwrap();
    }

    /// Sends all of `data` while receiving, until as many bytes have come back.
    fn exchange(&mut self, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut back) = (0, Vec::new());
        let start = Clock::now();
        while back.len() < data.len() {
            self.poll();
            let socket = self.sockets.get_mut::<tcp::Socket>(self.tcp);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            if socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
            }
            assert!(start.elapsed() < PATIENCE, "{} of {} bytes came back", back.len(), data.len());
        }
        back
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.link.stream.shutdown(std::net::Shutdown::Both).ok();
        self.network.take().map(JoinHandle::join);
    }
}

fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    address
}

#[test]
fn a_machine_gets_an_address_and_reaches_what_it_may() {
    let mut guest = Guest::start(Reach::default().with_gateway_port(7443, echo_server()));
    guest.join_network();
    guest.connect(SocketAddrV4::new(GATEWAY, 7443));
    let data: Vec<u8> = (0..100_000u32).map(|i| (i * 31 >> 3) as u8).collect();
    assert!(guest.exchange(&data) == data, "the bytes came back changed");
}

#[test]
fn what_is_out_of_reach_is_never_connected() {
    let forbidden = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = forbidden.local_addr().unwrap().port();
    forbidden.set_nonblocking(true).unwrap();
    let allowed = echo_server();
    let mut guest = Guest::start(Reach::default().with_gateway_port(7443, allowed));
    guest.join_network();
    guest.connect(SocketAddrV4::new(GATEWAY, port));
    for _ in 0..50 {
        guest.poll();
    }
    assert!(!guest.sockets.get_mut::<tcp::Socket>(guest.tcp).may_send());
    assert_eq!(forbidden.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // The link still serves what is allowed: the refusal broke nothing.
    guest.sockets.get_mut::<tcp::Socket>(guest.tcp).abort();
    guest.poll();
    guest.connect(SocketAddrV4::new(GATEWAY, 7443));
    assert_eq!(guest.exchange(b"still here"), b"still here");
}

#[test]
fn garbage_on_the_link_is_survived_and_broken_framing_ends_it() {
    let mut guest = Guest::start(Reach::default().with_gateway_port(7443, echo_server()));
    for len in 0..200u32 {
        guest.link.stream.write_all(&len.to_be_bytes()).unwrap();
        guest.link.stream.write_all(&vec![len as u8; len as usize]).unwrap();
    }
    guest.join_network();
    guest.link.stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    let ended = guest.network.take().unwrap().join().unwrap();
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}
