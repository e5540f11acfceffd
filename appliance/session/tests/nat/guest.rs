//! A guest with a TCP/IP stack of its own, on a thread of its own.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use session::nat::{self, GATEWAY, GUEST, Reach};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::RecvError;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// How long anybody keeps trying before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BUFFER_BYTES: usize = 64 * 1024;

struct Link {
    stream: UnixStream,
    received: VecDeque<u8>,
}

impl Link {
    /// Waits for frames. The read times out after a millisecond: that is the guest's idle loop.
    fn wait(&mut self) {
        let mut chunk = [0; 65_536];
        if let Ok(n) = self.stream.read(&mut chunk) {
            self.received.extend(&chunk[..n]);
        }
    }

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
        let mut frame = vec![0; 4 + len];
        frame[..4].copy_from_slice(&(len as u32).to_be_bytes());
        let result = f(&mut frame[4..]);
        self.0.write_all(&frame).unwrap();
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
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

pub(crate) struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    network: Option<JoinHandle<std::io::Result<()>>>,
}

impl Guest {
    /// A guest that has its address. Its network is served by a thread that has no other to help it.
    pub(crate) fn start(reach: Reach) -> Guest {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let network = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { nat::serve(tokio::net::UnixStream::from_std(theirs).unwrap(), reach).await })
        });
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut link = Link { stream: ours, received: VecDeque::new() };
        let interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut link, Instant::now());
        let sockets = SocketSet::new(vec![]);
        let mut guest = Guest { link, interface, sockets, next_port: 49_152, network: Some(network) };
        guest.join_network();
        guest
    }

    fn join_network(&mut self) {
        let dhcp = self.sockets.add(dhcpv4::Socket::new());
        self.until("an address is given", |guest| {
            let Some(dhcpv4::Event::Configured(config)) = guest.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll() else {
                return false;
            };
            assert_eq!((config.address.address(), config.router), (GUEST, Some(GATEWAY)));
            guest.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(config.address)).unwrap());
            guest.interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
            true
        });
        self.sockets.remove(dhcp);
    }

    /// Lets the guest run until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        let start = Clock::now();
        while !done(self) {
            while self.interface.poll_egress(Instant::now(), &mut self.link, &mut self.sockets) != PollResult::None {}
            self.link.wait();
            self.interface.poll(Instant::now(), &mut self.link, &mut self.sockets);
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        }
    }

    /// Begins a connection.
    pub(crate) fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        self.next_port += 1;
        self.sockets.add(socket)
    }

    /// A connection that stands.
    pub(crate) fn connected(&mut self, to: SocketAddrV4) -> SocketHandle {
        let socket = self.connect(to);
        self.until("a connection is accepted", |guest| {
            let socket = guest.socket(socket);
            assert!(socket.is_open(), "a connection was refused");
            socket.may_send()
        });
        socket
    }

    /// Sees a connection refused.
    pub(crate) fn refused(&mut self, to: SocketAddrV4) {
        let socket = self.connect(to);
        self.until("a connection is refused", |guest| {
            let socket = guest.socket(socket);
            assert!(!socket.may_send(), "a connection was accepted");
            !socket.is_open()
        });
        self.sockets.remove(socket);
    }

    pub(crate) fn socket(&mut self, socket: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(socket)
    }

    /// Sends all of `data` while receiving, until as many bytes have come back.
    pub(crate) fn exchange(&mut self, socket: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut back) = (0, Vec::new());
        self.until("all has come back", |guest| {
            let socket = guest.socket(socket);
            if sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
            back.len() >= data.len()
        });
        back
    }

    pub(crate) fn send(&mut self, socket: SocketHandle, data: &[u8]) {
        let mut sent = 0;
        self.until("all is sent", |guest| {
            sent += guest.socket(socket).send_slice(&data[sent..]).unwrap();
            sent == data.len()
        });
    }

    /// Receives to the end, and how it ended.
    pub(crate) fn receive(&mut self, socket: SocketHandle) -> (Vec<u8>, RecvError) {
        let (mut data, mut end) = (Vec::new(), None);
        self.until("the other side ends", |guest| {
            match guest.socket(socket).recv(|bytes| (bytes.len(), data.extend_from_slice(bytes))) {
                Ok(()) => {}
                Err(error) => end = Some(error),
            }
            end.is_some()
        });
        (data, end.unwrap())
    }

    /// Takes leave of a connection that both sides have ended.
    pub(crate) fn close(&mut self, socket: SocketHandle) {
        self.socket(socket).close();
        self.until("leave is taken", |guest| !guest.socket(socket).is_open());
        self.sockets.remove(socket);
    }

    /// Writes to the wire past the guest's own stack.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.link.stream.write_all(bytes).unwrap();
    }

    /// Waits for the network to end of itself.
    pub(crate) fn network_ended(mut self) -> std::io::Result<()> {
        self.network.take().unwrap().join().unwrap()
    }

    /// Turns the machine off, and how its network ended.
    pub(crate) fn vanish(self) -> std::io::Result<()> {
        self.link.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.network_ended()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.link.stream.shutdown(std::net::Shutdown::Both).ok();
        self.network.take().map(JoinHandle::join);
    }
}
