//! What a guest may expect of its network.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread::JoinHandle;

use session::nat::{CONNECTIONS_MAX, GATEWAY, GUEST, Reach};
use smoltcp::socket::tcp::RecvError;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr};

use crate::guest::{Guest, MAC, PATIENCE};

/// The service of the tests, as the guest names it.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 7443);

fn listen() -> (TcpListener, Reach) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reach = Reach::default().with_gateway_port(SERVICE.port(), listener.local_addr().unwrap());
    (listener, reach)
}

/// A guest of which `serve` is given the first connection, at the host's end.
fn with_service<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (Guest, JoinHandle<T>) {
    let (listener, reach) = listen();
    let service = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        serve(stream)
    });
    (Guest::start(reach), service)
}

fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
}

/// Bytes that are nowhere the same.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..len.div_ceil(4)).flat_map(|_| word().to_le_bytes()).take(len).collect()
}

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_machine_gets_an_address_and_reaches_what_it_may() {
    let (listener, reach) = listen();
    echo(listener);
    let mut guest = Guest::start(reach);
    let socket = guest.connected(SERVICE);
    let data = pattern(100_000, 1);
    assert!(guest.exchange(socket, &data) == data, "the bytes came back changed");
}

#[test]
fn much_goes_both_ways_at_once_and_arrives_whole() {
    const LEN: usize = 32 << 20;
    let (mut guest, service) = with_service(|mut stream| {
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            writing.write_all(&pattern(LEN, 2)).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        received == pattern(LEN, 3)
    });
    let socket = guest.connected(SERVICE);
    let upload = pattern(LEN, 3);
    let (mut sent, mut received) = (0, Vec::new());
    guest.until("both ways are done", |guest| {
        let socket = guest.socket(socket);
        if sent < LEN {
            sent += socket.send_slice(&upload[sent..]).unwrap();
            if sent == LEN {
                socket.close();
            }
        }
        match socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))) {
            Ok(()) => false,
            Err(RecvError::Finished) => sent == LEN,
            Err(RecvError::InvalidState) => panic!("the connection was reset"),
        }
    });
    assert!(received == pattern(LEN, 2), "what came down was changed");
    guest.close(socket);
    assert!(service.join().unwrap(), "what went up was changed");
}

#[test]
fn a_guest_that_has_said_all_still_hears_the_answer() {
    let (mut guest, service) = with_service(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&pattern(200_000, 4)).unwrap();
        question
    });
    let socket = guest.connected(SERVICE);
    guest.send(socket, b"what do you know?");
    guest.socket(socket).close();
    let (answer, end) = guest.receive(socket);
    assert!(answer == pattern(200_000, 4) && end == RecvError::Finished, "{} bytes, {end}", answer.len());
    assert_eq!(service.join().unwrap(), b"what do you know?");
}

#[test]
fn a_host_that_has_said_all_still_hears_the_guest() {
    let (mut guest, service) = with_service(|mut stream| {
        stream.write_all(b"tell me").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).unwrap();
        told
    });
    let socket = guest.connected(SERVICE);
    assert_eq!(guest.receive(socket), (b"tell me".to_vec(), RecvError::Finished));
    guest.send(socket, &pattern(200_000, 5));
    guest.close(socket);
    assert!(service.join().unwrap() == pattern(200_000, 5));
}

#[test]
fn a_connection_that_the_host_refuses_is_refused_to_the_guest() {
    let mut guest = Guest::start(Reach::default().with_gateway_port(SERVICE.port(), closed_port()));
    guest.refused(SERVICE);
}

#[test]
fn what_is_out_of_reach_is_refused_and_never_connected() {
    let (listener, reach) = listen();
    echo(listener);
    let forbidden = TcpListener::bind("127.0.0.1:0").unwrap();
    forbidden.set_nonblocking(true).unwrap();
    let port = forbidden.local_addr().unwrap().port();
    let mut guest = Guest::start(reach);
    guest.refused(SocketAddrV4::new(GATEWAY, port));
    guest.refused(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    guest.refused(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), SERVICE.port()));
    assert_eq!(forbidden.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    // The refusals broke nothing.
    let socket = guest.connected(SERVICE);
    assert_eq!(guest.exchange(socket, b"still here"), b"still here");
}

#[test]
fn a_reset_of_the_host_is_one_to_the_guest() {
    // What is closed before it was read to the end is reset.
    let (mut guest, service) = with_service(|stream| assert_eq!(stream.peek(&mut [0]).unwrap(), 1));
    let socket = guest.connected(SERVICE);
    guest.send(socket, b"?");
    assert_eq!(guest.receive(socket), (vec![], RecvError::InvalidState));
    service.join().unwrap();
}

#[test]
fn a_reset_of_the_guest_is_one_to_the_host() {
    let (mut guest, service) = with_service(|mut stream| stream.read(&mut [0]).unwrap_err().kind());
    let socket = guest.connected(SERVICE);
    guest.socket(socket).abort();
    guest.until("the host hears of it", |_| service.is_finished());
    assert_eq!(service.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn a_guest_that_vanishes_resets_what_it_was_doing() {
    let (mut guest, service) = with_service(|mut stream| {
        let endless = [0; 65_536];
        loop {
            if let Err(error) = stream.write_all(&endless) {
                return error.kind();
            }
        }
    });
    let socket = guest.connected(SERVICE);
    guest.until("something has come", |guest| guest.socket(socket).can_recv());
    guest.vanish().unwrap();
    assert!([ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&service.join().unwrap()));
}

#[test]
fn a_machine_holds_so_many_connections_and_no_more() {
    let (listener, reach) = listen();
    echo(listener);
    let mut guest = Guest::start(reach);
    let mut held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| guest.connected(SERVICE)).collect();
    guest.refused(SERVICE);
    guest.close(held.pop().unwrap());
    let last = guest.connected(SERVICE);
    assert_eq!(guest.exchange(last, b"room again"), b"room again");
    assert_eq!(guest.exchange(held[0], b"me too"), b"me too");
}

#[test]
fn connections_that_are_over_leave_nothing_behind() {
    // As many again as can be held, several times; every other one is ended by the host first.
    const COUNT: usize = 3 * CONNECTIONS_MAX;
    let (listener, reach) = listen();
    let service = std::thread::spawn(move || {
        for (index, stream) in listener.incoming().take(COUNT).enumerate() {
            let mut stream = stream.unwrap();
            let mut question = [0; 2];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&question).unwrap();
            if index % 2 == 0 {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(stream.read(&mut question).unwrap(), 0, "the guest's end is not one");
        }
    });
    let mut guest = Guest::start(reach);
    for index in 0..COUNT {
        let socket = guest.connected(SERVICE);
        let question = (index as u16).to_be_bytes();
        assert_eq!(guest.exchange(socket, &question), question);
        if index % 2 == 0 {
            assert_eq!(guest.receive(socket), (vec![], RecvError::Finished));
        }
        guest.close(socket);
    }
    service.join().unwrap();
}

#[test]
fn garbage_on_the_wire_is_survived_and_broken_framing_ends_the_network() {
    let (listener, reach) = listen();
    echo(listener);
    let mut guest = Guest::start(reach);
    for len in (0..200u32).chain([65_550]) {
        guest.write(&len.to_be_bytes());
        guest.write(&vec![len as u8; len as usize]);
    }
    let socket = guest.connected(SERVICE);
    assert_eq!(guest.exchange(socket, b"still here"), b"still here");
    guest.write(&65_551u32.to_be_bytes());
    assert_eq!(guest.network_ended().unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn a_guest_that_only_writes_is_taken_in_and_may_read_again() {
    let (listener, reach) = listen();
    echo(listener);
    let mut guest = Guest::start(reach);
    // Asks for the gateway's address so often that the answers are many times what the wire holds.
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(MAC),
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: GATEWAY,
    };
    let mut frame = vec![0; 4 + 14 + question.buffer_len()];
    frame[3] = frame.len() as u8 - 4;
    let ethernet = EthernetRepr { src_addr: EthernetAddress(MAC), dst_addr: EthernetAddress::BROADCAST, ethertype: EthernetProtocol::Arp };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[4..]));
    question.emit(&mut ArpPacket::new_unchecked(&mut frame[18..]));
    for _ in 0..100 {
        guest.write(&frame.repeat(1000));
    }
    let socket = guest.connected(SERVICE);
    assert_eq!(guest.exchange(socket, b"still here"), b"still here");
}
