use super::*;
use crate::virtio::fake_driver::{FakeDriver, Part, RAM_BYTES};

type Driver = FakeDriver<Console>;

fn console(names: &[&str]) -> (Console, Vec<UnixStream>) {
    let pair = |name: &&str| {
        let (here, there) = UnixStream::pair().unwrap();
        (PortSpec { name: (*name).into(), channel: here }, there)
    };
    let (ports, peers) = names.iter().map(pair).unzip();
    (Console::new(ports).unwrap(), peers)
}

fn say(driver: &mut Driver, port: u32, event: u16, value: u16) {
    driver.transact(CONTROL_OUT, &[Part::Out(&control_message(port as usize, event, value))]);
}

fn hear(driver: &mut Driver) -> (u32, u16, u16, Vec<u8>) {
    let message = driver.wait_used(CONTROL_IN).data;
    let half = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
    (u32::from(half(0)), half(4), half(6), message[8..].to_vec())
}

/// Shakes hands as Linux does, and opens port 1.
fn opened() -> (Driver, Vec<UnixStream>) {
    let (console, peers) = console(&["org.pollux.gate", "org.pollux.poke"]);
    let mut driver = FakeDriver::started(console);
    for _ in 0..16 {
        driver.send(CONTROL_IN, &[Part::In(4096)]);
    }
    say(&mut driver, u32::MAX, DEVICE_READY, 1);
    assert_eq!(hear(&mut driver), (0, PORT_ADD, 1, vec![]));
    assert_eq!(hear(&mut driver), (1, PORT_ADD, 1, vec![]));
    for (port, name) in [(0, "org.pollux.gate"), (1, "org.pollux.poke")] {
        say(&mut driver, port, PORT_READY, 1);
        assert_eq!(hear(&mut driver), (port, PORT_NAME, 1, name.into()));
        assert_eq!(hear(&mut driver), (port, PORT_OPEN, 1, vec![]));
    }
    say(&mut driver, 1, PORT_OPEN, 1);
    (driver, peers)
}

#[test]
fn queues_belong_to_ports_as_the_specification_says() {
    assert_eq!([port_queues(0), port_queues(1), port_queues(2)], [(0, 1), (4, 5), (6, 7)]);
    for queue in [0, 1, 4, 5, 6, 7, 8] {
        let port = port_of_queue(queue).unwrap();
        assert!([port_queues(port).0, port_queues(port).1].contains(&queue));
    }
    assert_eq!((port_of_queue(2), port_of_queue(3)), (None, None));
}

#[test]
fn tells_how_many_ports_there_are() {
    let (mut driver, _peers) = opened();
    assert_eq!(driver.config(4, 4), [2, 0, 0, 0]);
    assert_ne!(driver.device_features() & F_MULTIPORT, 0);
}

#[test]
fn carries_bytes_both_ways() {
    let (mut driver, mut peers) = opened();
    driver.send(4, &[Part::In(100)]);
    peers[1].write_all(b"changed\n").unwrap();
    assert_eq!(driver.wait_used(4).data, b"changed\n");
    driver.transact(5, &[Part::Out(b"hel"), Part::Out(b"lo")]);
    let mut answer = [0; 5];
    peers[1].read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn small_buffers_lose_nothing() {
    let (mut driver, mut peers) = opened();
    peers[1].write_all(b"abcdefgh").unwrap();
    for expected in [b"abc", b"def"] {
        driver.send(4, &[Part::In(3)]);
        assert_eq!(driver.wait_used(4).data, expected);
    }
    driver.send(4, &[Part::In(3)]);
    assert_eq!(driver.wait_used(4).data, b"gh");
}

#[test]
fn waits_until_a_program_opens_the_port() {
    let (mut driver, mut peers) = opened();
    driver.send(0, &[Part::In(100)]);
    peers[0].write_all(b"go\n").unwrap();
    peers[1].write_all(b"x").unwrap();
    driver.send(4, &[Part::In(100)]);
    driver.wait_used(4);
    assert_eq!(driver.used(0), None, "nobody has opened it");
    say(&mut driver, 0, PORT_OPEN, 1);
    assert_eq!(driver.wait_used(0).data, b"go\n");
}

#[test]
fn a_peer_that_does_not_read_holds_the_guest_back() {
    let (mut driver, mut peers) = opened();
    let block = vec![7; 64 << 10];
    let mut sent = 0;
    while driver.used(5).is_some() || sent == 0 {
        driver.send(5, &[Part::Out(&block)]);
        sent += 1;
        assert!(sent < 200, "somebody takes it all");
    }
    let mut got = vec![0; sent * block.len()];
    peers[1].read_exact(&mut got).unwrap();
    assert!(got.iter().all(|b| *b == 7));
    driver.wait_used(5);
}

#[test]
fn the_end_of_a_stream_closes_the_port() {
    let (mut driver, mut peers) = opened();
    driver.send(4, &[Part::In(100)]);
    driver.send(4, &[Part::In(100)]);
    peers[1].write_all(b"last words").unwrap();
    peers.remove(1);
    assert_eq!(driver.wait_used(4).data, b"last words");
    assert_eq!(hear(&mut driver), (1, PORT_OPEN, 0, vec![]));
    driver.transact(5, &[Part::Out(b"into the void")]);
}

#[test]
fn moves_with_what_is_under_way_and_finds_new_streams() {
    let (mut driver, mut peers) = opened();
    peers[1].write_all(b"abcdef").unwrap();
    driver.send(4, &[Part::In(3)]);
    assert_eq!(driver.wait_used(4).data, b"abc");
    peers.remove(0);
    let (there, mut new_peers) = console(&["org.pollux.gate", "org.pollux.poke"]);
    let mut driver = driver.moved_to(there);
    new_peers[1].write_all(b"gh").unwrap();
    driver.send(4, &[Part::In(3)]);
    assert_eq!(driver.wait_used(4).data, b"def");
    driver.send(4, &[Part::In(3)]);
    assert_eq!(driver.wait_used(4).data, b"gh");
}

#[test]
fn a_port_that_had_ended_is_open_again_after_a_restore() {
    let (mut driver, mut peers) = opened();
    driver.send(4, &[Part::In(3)]);
    peers.remove(1);
    assert_eq!(hear(&mut driver), (1, PORT_OPEN, 0, vec![]));
    let (there, _new_peers) = console(&["org.pollux.gate", "org.pollux.poke"]);
    let mut driver = driver.moved_to(there);
    assert_eq!(hear(&mut driver), (1, PORT_OPEN, 1, vec![]));
}

#[test]
fn nonsense_from_the_guest_is_ignored_or_breaks_the_queue() {
    let (mut driver, _peers) = opened();
    for (port, event, value) in [(99, PORT_READY, 1), (u32::MAX, PORT_OPEN, 1), (0, 77, 1), (0, PORT_ADD, 0)] {
        say(&mut driver, port, event, value);
    }
    assert!(!driver.needs_reset());
    driver.send(CONTROL_OUT, &[Part::Out(&[0; 7])]);
    assert!(driver.needs_reset());
}

#[test]
fn an_oversize_buffer_breaks_the_queue() {
    let (mut driver, _peers) = opened();
    let address = driver.allocate(1 << 20);
    driver.raw_descriptor(5, 0, address, 1 << 20, 0, 0);
    driver.offer(5, 0);
    driver.kick(5);
    assert!(driver.needs_reset());
    assert!(u64::from(1u32 << 20) < RAM_BYTES);
}

#[test]
fn a_guest_that_only_asks_costs_bounded_memory() {
    let (console, _peers) = console(&["a"]);
    let mut driver = FakeDriver::started(console);
    let asked = (0..1000).take_while(|_| {
        driver.send(CONTROL_OUT, &[Part::Out(&control_message(0, PORT_READY, 1))]);
        while driver.used(CONTROL_OUT).is_some() {}
        !driver.needs_reset()
    });
    assert!(asked.count() <= CONTROL_PENDING_MAX);
}

#[test]
fn absurd_consoles_are_refused() {
    assert!(matches!(Console::new(vec![]), Err(ConsoleError::PortCount(0))));
    let (channel, _peer) = UnixStream::pair().unwrap();
    assert!(matches!(Console::new(vec![PortSpec { name: String::new(), channel }]), Err(ConsoleError::Name(_))));
}

#[test]
fn a_reset_starts_over() {
    let (mut driver, mut peers) = opened();
    peers[1].write_all(b"early").unwrap();
    driver.start(u64::MAX);
    driver.send(4, &[Part::In(10)]);
    for _ in 0..8 {
        driver.send(CONTROL_IN, &[Part::In(4096)]);
    }
    say(&mut driver, 1, PORT_READY, 1);
    hear(&mut driver);
    say(&mut driver, 1, PORT_OPEN, 1);
    assert_eq!(driver.wait_used(4).data, b"early");
}

#[test]
fn tells_outside_whether_a_program_has_a_port_open() {
    let (console, _peers) = console(&["org.pollux.gate", "org.pollux.poke"]);
    let ports = console.ports();
    let mut driver = FakeDriver::started(console);
    let at_once = Duration::ZERO;
    assert!(!ports.wait_open("org.pollux.gate", at_once));
    assert!(!ports.wait_open("org.pollux.none", at_once));
    let waiting = std::thread::spawn({
        let ports = ports.clone();
        move || ports.wait_open("org.pollux.gate", Duration::from_secs(60))
    });
    say(&mut driver, 0, PORT_OPEN, 1);
    assert!(waiting.join().unwrap());
    assert!(!ports.wait_open("org.pollux.poke", at_once));
    say(&mut driver, 0, PORT_OPEN, 0);
    assert!(!ports.wait_open("org.pollux.gate", at_once));
}

#[test]
fn a_guest_that_asked_for_too_much_can_be_saved_and_restored() {
    let (device, _peers) = console(&["a"; PORTS_MAX]);
    let mut driver = FakeDriver::started(device);
    while !driver.needs_reset() {
        driver.send(CONTROL_OUT, &[Part::Out(&control_message(0, DEVICE_READY, 1))]);
        while driver.used(CONTROL_OUT).is_some() {}
    }
    let (device, _peers) = console(&["a"; PORTS_MAX]);
    drop(driver.moved_to(device));
}

#[test]
fn what_is_left_of_a_turn_is_served_in_the_next() {
    let (mut driver, mut peers) = opened();
    for round in 0..3_u8 {
        for _ in 0..TURN_CHAINS_MAX {
            driver.add(5, &[Part::Out(&[round])]);
        }
        driver.kick(5);
        for _ in 0..TURN_CHAINS_MAX {
            driver.wait_used(5);
        }
        let mut said = [0; TURN_CHAINS_MAX];
        peers[1].read_exact(&mut said).unwrap();
        assert_eq!(said, [round; TURN_CHAINS_MAX]);
        // It is told of the next one, although its turn ended with the last that there was.
        driver.transact(5, &[Part::Out(&[round])]);
        peers[1].read_exact(&mut [0]).unwrap();
    }
}
