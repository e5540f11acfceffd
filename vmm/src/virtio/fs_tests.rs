use super::*;
use crate::virtio::Transport;
use crate::virtio::fake_driver::{FakeDriver, Part, Used};

const REQUESTS: usize = 1;
const HIPRIO: usize = 0;
const GETATTR: u32 = 3;

type Driver = FakeDriver<Fs>;

fn fs() -> (Fs, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Fs::new("flash", here).unwrap(), there)
}

fn started() -> (Driver, UnixStream) {
    let (fs, server) = fs();
    (FakeDriver::started(fs), server)
}

fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let len = (IN_HEADER_BYTES + body.len()) as u32;
    let mut message = [len.to_le_bytes(), opcode.to_le_bytes()].concat();
    message.extend(unique.to_le_bytes());
    message.resize(IN_HEADER_BYTES, 0);
    message.extend(body);
    message
}

fn reply(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let len = (OUT_HEADER_BYTES + body.len()) as u32;
    let head = [len.to_le_bytes(), error.to_le_bytes()].concat();
    [head.as_slice(), &unique.to_le_bytes(), body].concat()
}

fn ask(driver: &mut Driver, unique: u64, body: &[u8]) -> u16 {
    driver.send(REQUESTS, &[Part::Out(&request(GETATTR, unique, b"")), Part::Out(body), Part::In(16), Part::In(100)])
}

/// A request as the server sees it: opcode, unique, body.
fn receive(server: &mut UnixStream) -> (u32, u64, Vec<u8>) {
    let mut header = [0; IN_HEADER_BYTES];
    server.read_exact(&mut header).unwrap();
    let mut body = vec![0; number(&header, 0) as usize - IN_HEADER_BYTES];
    server.read_exact(&mut body).unwrap();
    (number(&header, 4), long_number(&header, 8), body)
}

fn asked(driver: &mut Driver, server: &mut UnixStream, guest_unique: u64) -> u64 {
    ask(driver, guest_unique, b"");
    receive(server).1
}

fn eio(unique: u64) -> Vec<u8> {
    reply(unique, -EIO, b"")
}

#[test]
fn tells_its_tag() {
    let (mut driver, _server) = started();
    let config = driver.config(0, 40);
    assert_eq!(config[..8], *b"flash\0\0\0");
    assert_eq!(config[36..], [1, 0, 0, 0]);
    let (channel, _peer) = UnixStream::pair().unwrap();
    assert!(Fs::new(&"x".repeat(37), channel).is_err());
}

#[test]
fn carries_requests_and_replies_in_any_order() {
    let (mut driver, mut server) = started();
    let message = request(GETATTR, 70, b"abcd");
    let first = driver.send(REQUESTS, &[Part::Out(&message), Part::In(16), Part::In(100)]);
    let second = driver.send(REQUESTS, &[Part::Out(&request(GETATTR, 72, b"")), Part::In(100)]);
    let (opcode, unique_1, body) = receive(&mut server);
    assert_eq!((opcode, body.as_slice()), (GETATTR, &b"abcd"[..]));
    let (_, unique_2, _) = receive(&mut server);
    server.write_all(&reply(unique_2, 0, b"second")).unwrap();
    assert_eq!(driver.wait_used(REQUESTS), Used { head: second, data: reply(72, 0, b"second") });
    let both = [reply(unique_1, -2, b"")].concat();
    for byte in both {
        server.write_all(&[byte]).unwrap();
    }
    assert_eq!(driver.wait_used(REQUESTS), Used { head: first, data: reply(70, -2, b"") });
}

#[test]
fn a_megabyte_goes_both_ways() {
    let (mut driver, mut server) = started();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 1001) as u8).collect();
    let echo = std::thread::spawn(move || {
        let (_, unique, body) = receive(&mut server);
        server.write_all(&reply(unique, 0, &body)).unwrap();
        server
    });
    let message = request(16, 2, &data);
    let got = driver.transact(REQUESTS, &[Part::Out(&message), Part::In(16), Part::In(1 << 20)]);
    assert!(got[16..] == data);
    let reported: u64 = driver.reported_writes().iter().map(|w| w.1).sum();
    assert_eq!(reported, got.len() as u64);
    echo.join().unwrap();
}

#[test]
fn forgets_go_out_and_are_done() {
    let (mut driver, mut server) = started();
    for opcode in [FORGET, BATCH_FORGET] {
        assert_eq!(driver.transact(HIPRIO, &[Part::Out(&request(opcode, 9, &[1; 8]))]), b"");
        assert_eq!(receive(&mut server).0, opcode);
    }
    driver.transact(HIPRIO, &[Part::Out(&request(INTERRUPT, 9, &[1; 8]))]);
    ask(&mut driver, 2, b"");
    assert_eq!(receive(&mut server).0, GETATTR, "interrupts stay here");
}

#[test]
fn replies_to_nobody_are_ignored() {
    let (mut driver, mut server) = started();
    let unique = asked(&mut driver, &mut server, 4);
    for stranger in [0, unique + 2, u64::MAX] {
        server.write_all(&reply(stranger, 0, b"boo")).unwrap();
    }
    server.write_all(&reply(unique, 0, b"ok")).unwrap();
    assert_eq!(driver.wait_used(REQUESTS).data, reply(4, 0, b"ok"));
    server.write_all(&reply(unique, 0, b"twice")).unwrap();
    let unique = asked(&mut driver, &mut server, 6);
    server.write_all(&reply(unique, 0, b"")).unwrap();
    assert_eq!(driver.wait_used(REQUESTS).data, reply(6, 0, b""));
    assert_eq!(driver.used(REQUESTS), None);
}

#[test]
fn replies_that_do_not_fit_become_errors() {
    let (mut driver, mut server) = started();
    let unique = asked(&mut driver, &mut server, 4);
    server.write_all(&reply(unique, 0, &[0; 101])).unwrap();
    assert_eq!(driver.wait_used(REQUESTS).data, eio(4));
    let unique = asked(&mut driver, &mut server, 6);
    server.write_all(&reply(unique, 7, b"")).unwrap();
    assert_eq!(driver.wait_used(REQUESTS).data, eio(6));
}

#[test]
fn an_impossible_length_ends_the_channel() {
    for len in [0, 15, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
        let (mut driver, mut server) = started();
        let unique = asked(&mut driver, &mut server, 4);
        let mut bad = reply(unique, 0, b"");
        bad[..4].copy_from_slice(&len.to_le_bytes());
        server.write_all(&bad).unwrap();
        assert_eq!(driver.wait_used(REQUESTS).data, eio(4));
    }
}

#[test]
fn a_lost_server_means_errors_from_then_on() {
    let (mut driver, mut server) = started();
    asked(&mut driver, &mut server, 4);
    asked(&mut driver, &mut server, 6);
    server.write_all(&[1, 2, 3]).unwrap();
    drop(server);
    assert_eq!(driver.wait_used(REQUESTS).data, eio(4));
    assert_eq!(driver.wait_used(REQUESTS).data, eio(6));
    ask(&mut driver, 8, b"");
    assert_eq!(driver.wait_used(REQUESTS).data, eio(8));
    assert_eq!(driver.transact(HIPRIO, &[Part::Out(&request(FORGET, 9, &[1; 8]))]), b"");
}

#[test]
fn malformed_requests_break_the_queue() {
    let mut lies = request(GETATTR, 2, b"");
    lies[0] += 1;
    let whole = request(GETATTR, 2, b"");
    for parts in [
        &[Part::Out(&lies), Part::In(100)][..],
        &[Part::Out(&whole[..39]), Part::In(100)][..],
        &[Part::Out(&whole), Part::In(15)][..],
        &[Part::Out(&whole)][..],
        &[Part::In(100)][..],
        &[Part::Out(&vec![0; MESSAGE_BYTES_MAX + 1]), Part::In(100)][..],
    ] {
        let (mut driver, _server) = started();
        driver.send(REQUESTS, parts);
        assert!(driver.needs_reset());
    }
}

#[test]
fn a_server_that_does_not_read_holds_the_guest_back() {
    let (mut driver, mut server) = started();
    let body = vec![5; 500 << 10];
    for unique in 0..14 {
        driver.send(REQUESTS, &[Part::Out(&request(16, unique, &body)), Part::In(16)]);
    }
    for unique in 0..14 {
        let (_, ours, got) = receive(&mut server);
        assert!(got == body);
        server.write_all(&reply(ours, 0, b"")).unwrap();
        assert_eq!(driver.wait_used(REQUESTS).data, reply(unique, 0, b""));
    }
}

#[test]
fn a_guest_that_offers_a_head_twice_has_bounded_requests_outside() {
    let (mut driver, server) = started();
    let message = request(GETATTR, 2, b"");
    let address = driver.allocate(4096);
    driver.write_ram(address, &message);
    driver.raw_descriptor(REQUESTS, 0, address, message.len() as u32, 1, 1);
    driver.raw_descriptor(REQUESTS, 1, address + 2048, 100, 2, 0);
    for _ in 0..2 * PENDING_MAX {
        driver.offer(REQUESTS, 0);
        driver.kick(REQUESTS);
    }
    server.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let len = (&server).read(&mut bytes).unwrap();
    assert!(len <= PENDING_MAX * message.len());
}

#[test]
fn a_reset_guest_is_not_met_by_old_replies() {
    let (mut driver, mut server) = started();
    let old = asked(&mut driver, &mut server, 2);
    driver.start(u64::MAX);
    let new = asked(&mut driver, &mut server, 2);
    assert_ne!(old, new);
    server.write_all(&reply(old, 0, b"old")).unwrap();
    server.write_all(&reply(new, 0, b"new")).unwrap();
    assert_eq!(driver.wait_used(REQUESTS).data, reply(2, 0, b"new"));
}

#[test]
fn quiescing_waits_for_the_reply_and_the_gate_holds_the_next() {
    let (mut driver, mut server) = started();
    let unique = asked(&mut driver, &mut server, 2);
    let server = std::thread::spawn(move || {
        server.write_all(&reply(unique, 0, b"")).unwrap();
        server
    });
    driver.transport.quiesce(Duration::from_secs(20));
    assert!(driver.used(REQUESTS).is_some());
    let mut server = server.join().unwrap();
    let unique = asked(&mut driver, &mut server, 4);
    driver.guest.close_gate();
    server.write_all(&reply(unique, 0, b"")).unwrap();
    driver.transport.quiesce(Duration::from_millis(20));
    assert_eq!(driver.used(REQUESTS), None, "paused");
    driver.guest.open_gate();
    assert_eq!(driver.wait_used(REQUESTS).data, reply(4, 0, b""));
}

#[test]
fn requests_that_were_outside_are_sent_again_after_a_restore() {
    let (mut driver, mut server) = started();
    let unique = asked(&mut driver, &mut server, 44);
    let (there, mut new_server) = fs();
    let mut moved = driver_at(driver, there);
    let (opcode, _, _) = receive(&mut new_server);
    assert_eq!((opcode, unique), (GETATTR, 2));
    new_server.write_all(&reply(2, 0, b"here")).unwrap();
    assert_eq!(moved.wait_used(REQUESTS).data, reply(44, 0, b"here"));
}

#[test]
fn requests_that_are_sent_again_wait_for_a_server_that_does_not_read() {
    let (mut driver, mut server) = started();
    let body = vec![7; 1 << 20];
    for unique in 0..4 {
        driver.send(REQUESTS, &[Part::Out(&request(GETATTR, unique, &body)), Part::In(100)]);
        receive(&mut server);
    }
    let (there, mut new_server) = fs();
    let mut moved = driver_at(driver, there);
    assert!(lock(&moved.transport.device().shared.state).outward.len() < OUTWARD_BYTES_HIGH + MESSAGE_BYTES_MAX);
    for number in 1..=4 {
        assert_eq!(receive(&mut new_server), (GETATTR, 2 * number, body.clone()));
        new_server.write_all(&reply(2 * number, 0, b"here")).unwrap();
    }
    for unique in 0..4 {
        assert_eq!(moved.wait_used(REQUESTS).data, reply(unique, 0, b"here"));
    }
}

/// Saves the device without waiting for its server, and restores it in `there`.
fn driver_at(driver: Driver, there: Fs) -> Driver {
    driver.guest.close_gate();
    let state = driver.transport.save();
    let mut moved = FakeDriver::on(driver.ram(), there);
    moved.inherit(driver);
    moved.transport.restore(&state).unwrap();
    moved
}
