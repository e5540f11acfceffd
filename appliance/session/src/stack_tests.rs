//! What no guest can do to its network, and what time does. The guest makes its frames by hand, time passes when the
//! test says so, and the host's sockets are real ones.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::pin::pin;
use std::task::Poll;

use smoltcp::time::Duration;
use smoltcp::wire::{ArpOperation, TcpControl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::raw_guest::{Heard, SERVICE, Segment, Standing, arp, datagram, hear, ping, with_header};

const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// How long to wait, in true time, for the host's sockets before a test fails.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// Longer than a handshake may take.
const HANDSHAKE_OVER: Duration = Duration::from_secs(30);
/// Between two questions whether a guest is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(10 * 60);

struct Machine {
    stack: Stack,
    outbox: Outbox,
    now: Instant,
    heard: VecDeque<Heard>,
    service: TcpListener,
}

impl Machine {
    async fn new() -> Self {
        let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reach = Reach::default().with_gateway_port(SERVICE.port(), service.local_addr().unwrap());
        let mut machine = Self { stack: Stack::new(reach), outbox: Outbox::new(), now: Instant::ZERO, heard: VecDeque::new(), service };
        machine.say(arp(ArpOperation::Request, GATEWAY));
        assert_eq!(machine.heard.pop_front(), Some(Heard::IsAt { whose: GATEWAY }));
        machine
    }

    fn say(&mut self, frame: Vec<u8>) {
        self.stack.receive(&frame, self.now, &mut self.outbox);
        self.listen();
    }

    fn send(&mut self, segment: &Segment) {
        self.say(segment.frame());
    }

    /// Answers the gateway's questions for the guest's address, and keeps what else it says; whether it said anything.
    fn listen(&mut self) -> bool {
        let frames = self.outbox.take();
        for frame in &frames {
            match hear(frame) {
                Heard::WhereAreYou => self.say(arp(ArpOperation::Reply, GATEWAY)),
                other => self.heard.push_back(other),
            }
        }
        !frames.is_empty()
    }

    /// Lets the network work until `done`, which is woken like any future.
    async fn work<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        let working = std::future::poll_fn(|cx| {
            self.run(cx);
            done.as_mut().poll(cx)
        });
        tokio::time::timeout(PATIENCE, working).await.expect("the network does what is waited for")
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        while self.stack.work(cx, self.now, &mut self.outbox) | self.listen() {}
    }

    async fn pass(&mut self, time: Duration) {
        self.now += time;
        self.work(async {}).await;
    }

    async fn hear(&mut self) -> Heard {
        let hearing = std::future::poll_fn(|cx| {
            self.run(cx);
            self.heard.pop_front().map_or(Poll::Pending, Poll::Ready)
        });
        tokio::time::timeout(PATIENCE, hearing).await.expect("the gateway says something")
    }

    async fn hear_segment(&mut self) -> Segment {
        match self.hear().await {
            Heard::Segment(segment) => segment,
            other => panic!("not a segment: {other:?}"),
        }
    }

    /// Nothing has been said that was not heard, and nothing will be without a cause.
    async fn hear_silence(&mut self) {
        self.work(async {}).await;
        assert_eq!(self.heard, []);
    }

    async fn hear_accepted(&mut self, syn: &Segment) -> Standing {
        let answer = loop {
            let heard = self.hear_segment().await;
            if heard.port == syn.port {
                break heard;
            }
        };
        assert_eq!((answer.control, answer.ack), (TcpControl::Syn, Some(syn.seq + 1)));
        let standing = Standing { port: syn.port, seq: syn.seq + 1, ack: answer.seq + 1 };
        self.send(&standing.segment(b""));
        standing
    }

    /// A connection, and the host's end of it.
    async fn connect(&mut self, port: u16) -> (Standing, TcpStream) {
        let syn = Segment::syn(port, 1000);
        self.send(&syn);
        let standing = self.hear_accepted(&syn).await;
        (standing, self.service.accept().await.unwrap().0)
    }

    /// What the gateway has taken of a connection and what it would take: its answer to a byte that it has already,
    /// which it does not put off.
    async fn state_of(&mut self, standing: Standing) -> Segment {
        self.work(async {}).await;
        self.heard.clear();
        self.send(&Standing { seq: standing.seq - 1, ..standing }.segment(b"?"));
        self.hear_segment().await
    }

    /// Shows that the network lives: a connection is made, and used in both directions.
    async fn assert_alive(&mut self) {
        self.work(async {}).await;
        self.heard.clear();
        let (mut standing, mut host) = self.connect(60_000).await;
        self.send(&standing.segment(b"ping"));
        let mut question = [0; 4];
        self.work(host.read_exact(&mut question)).await.unwrap();
        assert_eq!(&question, b"ping");
        standing.seq += 4;
        host.write_all(b"pong").await.unwrap();
        let answer = self.hear_segment().await;
        assert_eq!((answer.ack, &answer.payload[..]), (Some(standing.seq), &b"pong"[..]));
    }
}

#[tokio::test]
async fn only_what_the_gateway_is_for_is_answered() {
    let mut machine = Machine::new().await;
    for noise in 0..=u8::MAX {
        machine.say(vec![noise; usize::from(noise)]);
    }
    let syn = Segment::syn(5000, 1).frame();
    for len in 0..syn.len() {
        machine.say(syn[..len].to_vec());
    }
    machine.say(arp(ArpOperation::Request, GUEST));
    machine.say(arp(ArpOperation::Request, Ipv4Addr::new(10, 0, 2, 3)));
    machine.say(ping(ELSEWHERE));
    machine.say(with_header(syn.clone(), |ip| ip.set_more_frags(true)));
    machine.say(with_header(syn.clone(), |ip| ip.set_frag_offset(8)));
    machine.say(with_header(syn.clone(), |ip| ip.set_src_addr(Ipv4Addr::new(10, 0, 2, 99))));
    machine.say(with_header(syn, |ip| ip.set_dst_addr(Ipv4Addr::BROADCAST)));
    machine.hear_silence().await;

    machine.say(ping(GATEWAY));
    assert_eq!(machine.hear().await, Heard::Pong { from: GATEWAY });
    machine.assert_alive().await;
}

#[tokio::test]
async fn what_is_out_of_reach_is_refused_in_its_name() {
    let mut machine = Machine::new().await;
    for to in [SocketAddrV4::new(ELSEWHERE, SERVICE.port()), SocketAddrV4::new(GATEWAY, 53)] {
        machine.say(datagram(to));
        assert_eq!(machine.hear().await, Heard::PortUnreachable { to });
        let syn = Segment { peer: to, ..Segment::syn(5000, 1) };
        machine.send(&syn);
        let answer = machine.hear_segment().await;
        assert_eq!((answer.peer, answer.control, answer.ack), (to, TcpControl::Rst, Some(syn.seq + 1)));
    }
    // Data before the handshake is for nobody, even within reach.
    machine.send(&Segment { payload: b"early".to_vec(), ..Segment::syn(5000, 1) });
    assert_eq!(machine.hear_segment().await.control, TcpControl::Rst);
    machine.hear_silence().await;
}

#[tokio::test]
async fn handshakes_that_are_not_completed_are_bounded_and_end() {
    let mut machine = Machine::new().await;
    let (mut accepted, mut refused) = (0, 0);
    for port in 1..=2 * CONNECTIONS_MAX as u16 {
        machine.send(&Segment::syn(port, 1));
        match machine.hear_segment().await.control {
            TcpControl::Syn => accepted += 1,
            TcpControl::Rst => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((accepted, refused), (CONNECTIONS_MAX, CONNECTIONS_MAX));
    // An answer that is on its way is not given twice.
    machine.send(&Segment::syn(1, 1));
    machine.hear_silence().await;

    machine.pass(HANDSHAKE_OVER).await;
    for _ in 0..CONNECTIONS_MAX {
        assert_eq!(machine.hear_segment().await.control, TcpControl::Rst);
        machine.service.accept().await.unwrap();
    }
    assert!(machine.stack.connections.is_empty() && machine.stack.sockets.iter().count() == 1, "something is left behind");
    machine.assert_alive().await;
}

#[tokio::test]
async fn a_guest_that_changes_its_mind_leaves_nothing_behind() {
    let mut machine = Machine::new().await;
    // Before the host has answered, ...
    let syn = Segment::syn(5000, 1);
    machine.send(&syn);
    machine.send(&Segment { control: TcpControl::Rst, seq: syn.seq + 1, ..syn.clone() });
    let answer = machine.hear_segment().await;
    // ... and after.
    machine.send(&Segment { control: TcpControl::Rst, seq: syn.seq + 1, ack: Some(answer.seq + 1), ..syn });
    machine.hear_silence().await;
    assert!(machine.stack.connections.is_empty() && machine.stack.sockets.iter().count() == 1, "something is left behind");
    let (mut host, _) = machine.service.accept().await.unwrap();
    assert_eq!(machine.work(host.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    machine.assert_alive().await;
}

#[tokio::test]
async fn a_guest_that_begins_anew_is_not_held_to_what_it_forgot() {
    let mut machine = Machine::new().await;
    let (_, mut former) = machine.connect(5000).await;
    let syn = Segment::syn(5000, 999_999);
    machine.send(&syn);
    machine.hear_accepted(&syn).await;
    assert_eq!(machine.work(former.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(machine.stack.connections.len(), 1);
}

#[tokio::test]
async fn more_than_the_window_is_not_taken() {
    let mut machine = Machine::new().await;
    let (standing, mut host) = machine.connect(5000).await;
    let piece: Vec<u8> = (0..1024u32).map(|at| at as u8).collect();
    let later = |pieces: usize| Standing { seq: standing.seq + pieces * piece.len(), ..standing };
    // Twice the window from behind, so that nothing is acknowledged before the first piece closes the row.
    for at in (0..128).rev() {
        machine.send(&later(at).segment(&piece));
    }
    // The rest as a guest would, from what is acknowledged on.
    let mut received = vec![0; 128 * piece.len()];
    let (mut came, mut taken) = (0, 0);
    while taken < 128 {
        taken = (machine.state_of(standing).await.ack.unwrap() - standing.seq) / piece.len();
        let known = taken * piece.len();
        machine.work(host.read_exact(&mut received[came..known])).await.unwrap();
        came = known;
        if taken < 128 {
            machine.send(&later(taken).segment(&piece));
        }
    }
    assert!(received == piece.repeat(128), "the host got other bytes than were sent");
}

#[tokio::test]
async fn segments_of_any_kind_break_nothing_else() {
    let mut machine = Machine::new().await;
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..100 {
        let (mut standing, _host) = machine.connect(6000 + round).await;
        for _ in 0..50 {
            let payload = vec![7; random(1461)];
            let controls = [TcpControl::Psh, TcpControl::Fin, TcpControl::Syn, TcpControl::Rst];
            // Around the edges of the window, and anywhere at all.
            let distances = [0, 0, 0, 1, 1460, 65_534, 65_535, 65_536, 1 << 20, i32::MAX as usize];
            let acks = [0, 0, 0, 1, 1 << 20, i32::MAX as usize];
            let segment = Segment {
                control: if random(10) == 0 { controls[random(4)] } else { TcpControl::None },
                seq: standing.seq + distances[random(10)],
                ack: (random(10) != 0).then_some(standing.ack + acks[random(6)]),
                window: [0, 1, 512, u16::MAX][random(4)],
                ..standing.segment(&payload)
            };
            if segment.seq == standing.seq && random(2) == 0 {
                standing.seq += payload.len();
            }
            machine.send(&segment);
            machine.pass(Duration::from_millis(random(2000) as u64)).await;
        }
        machine.heard.clear();
    }
    machine.pass(KEEP_ALIVE * 6).await;
    machine.pass(KEEP_ALIVE).await;
    assert!(machine.stack.connections.is_empty() && machine.stack.sockets.iter().count() == 1, "something is left behind");
    machine.assert_alive().await;
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_asked_seldom_and_then_given_up() {
    let mut machine = Machine::new().await;
    let (standing, mut host) = machine.connect(5000).await;
    machine.hear_silence().await;
    for _ in 0..3 {
        // Nothing is to be done until then.
        let due = machine.stack.due(machine.now).unwrap();
        assert_eq!(due, machine.now + KEEP_ALIVE);
        machine.pass(due - machine.now).await;
        let question = machine.hear_segment().await;
        assert_eq!((question.control, question.ack), (TcpControl::None, Some(standing.seq)));
        machine.send(&standing.segment(b""));
        machine.hear_silence().await;
    }
    for _ in 0..2 {
        machine.pass(KEEP_ALIVE).await;
        assert_eq!(machine.hear_segment().await.control, TcpControl::None);
    }
    machine.pass(KEEP_ALIVE).await;
    assert_eq!(machine.hear_segment().await.control, TcpControl::Rst);
    assert_eq!(machine.work(host.read(&mut [0])).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(machine.stack.connections.is_empty());
    assert_eq!(machine.stack.due(machine.now), None, "an idle network has a timer");
}

#[tokio::test]
async fn what_a_slow_host_has_not_read_outlives_the_guests_leave() {
    let mut machine = Machine::new().await;
    let (mut standing, mut host) = machine.connect(5000).await;
    host.shutdown().await.unwrap();
    let end = machine.hear_segment().await;
    assert_eq!(end.control, TcpControl::Fin);
    standing.ack = end.seq + 1;
    // Until the way is full, and stays so: what is said now waits at the gateway for the host to read.
    let (mut said, mut full) = (Vec::new(), 0);
    while full < 2 {
        let state = machine.state_of(standing).await;
        assert_eq!(state.ack, Some(standing.seq));
        let piece: Vec<u8> = (0..state.window.min(1460)).map(|at| (said.len() + usize::from(at)).to_le_bytes()[1]).collect();
        full = if piece.is_empty() { full + 1 } else { 0 };
        machine.send(&standing.segment(&piece));
        standing.seq += piece.len();
        said.extend_from_slice(&piece);
    }
    machine.send(&Segment { control: TcpControl::Fin, ..standing.segment(b"") });
    machine.work(async {}).await;
    assert_eq!(machine.heard.pop_back().map(|heard| matches!(heard, Heard::Segment(s) if s.ack == Some(standing.seq + 1))), Some(true));
    // A connection is forgotten a while after both have taken leave, but not what is still to be delivered.
    machine.pass(KEEP_ALIVE).await;
    let mut received = Vec::new();
    machine.work(host.read_to_end(&mut received)).await.unwrap();
    assert!(received == said, "the host did not get what the guest has said");
    machine.hear_silence().await;
    assert!(machine.stack.connections.is_empty());
}
