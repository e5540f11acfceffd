//! The network between one phone and the appliance: calls go from the agent's client to the appliance's service as they are, and the
//! messages between them are delayed, held up, lost with the connection, or come too late.
//!
//! What it does is what TCP and HTTP/2 may do. Within one stream messages stay in order and none is missing; when a connection
//! breaks, each side loses a tail of what was sent and learns of it at another time, at the latest when its keepalive would tell it.
//! What was sent before may still arrive after the phone has connected anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use pollux::identity::Peer;
use pollux::sync::{PeerOf, SyncService};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sync_agent::parts::{Appliance, CallError, Connection, LinkError};
use sync_protocol::limits::MESSAGE_BYTES_MAX;
use sync_protocol::wire::sync_server::SyncServer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};

/// When each side has noticed that a connection is dead, at the latest: its keepalive's two times, together.
const PHONE_NOTICES: Duration = Duration::from_secs(25);
const APPLIANCE_NOTICES: Duration = Duration::from_secs(40);
/// Messages under way in one direction; then whoever sends waits.
const UNDER_WAY_MAX: usize = 4;

type Carried = Result<Frame<Bytes>, StdError>;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Sees every message that arrives, as gRPC frames it, and by which connection.
pub(crate) type Witness = Arc<dyn Fn(u64, Way, &[u8]) + Send + Sync>;

/// The line of one phone. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Line {
    state: Arc<Mutex<State>>,
    peer: Peer,
    witness: Witness,
}

struct State {
    random: SmallRng,
    service: Option<(SyncService, Arc<dyn Fn() -> bool + Send + Sync>)>,
    connected: Vec<Wires>,
    /// No connection is made, and none is left.
    is_down: bool,
    latency_max_ms: u64,
    /// Connections so far.
    count: u64,
}

/// The ends of one connection.
#[derive(Clone, Default)]
struct Wires {
    number: u64,
    /// Nothing arrives any more.
    up_cut: CancellationToken,
    down_cut: CancellationToken,
    phone_knows: CancellationToken,
    appliance_knows: CancellationToken,
}

impl Line {
    pub(crate) fn new(seed: u64, peer: Peer, witness: Witness) -> Line {
        let random = SmallRng::seed_from_u64(seed);
        let state = State { random, service: None, connected: Vec::new(), is_down: false, latency_max_ms: 20, count: 0 };
        Line { state: Arc::new(Mutex::new(state)), peer, witness }
    }

    /// The appliance that is there now; `is_dead` says whether it has crashed, so that nothing it still does counts.
    pub(crate) fn serve(&self, service: SyncService, is_dead: Arc<dyn Fn() -> bool + Send + Sync>) {
        self.state().service = Some((service, is_dead));
    }

    /// The appliance is gone: its kernel resets what was connected, or the machine is off and nobody says so.
    pub(crate) fn appliance_gone(&self) {
        self.state().service = None;
        self.break_all(Some(Way::Down));
    }

    /// The agent is gone.
    pub(crate) fn phone_gone(&self) {
        self.break_all(Some(Way::Up));
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.state().is_down = down;
        if down {
            self.break_all(None);
        }
    }

    pub(crate) fn set_latency_max_ms(&self, latency: u64) {
        self.state().latency_max_ms = latency;
    }

    /// Breaks what is connected. `gone` is the side whose process is gone: nothing arrives there, and what it had sent may arrive later.
    pub(crate) fn break_all(&self, gone: Option<Way>) {
        let mut state = self.state();
        for wires in std::mem::take(&mut state.connected) {
            let mut within = |most: Duration| match state.random.random_bool(0.5) {
                true => Duration::ZERO,
                false => Duration::from_millis(state.random.random_range(0..most.as_millis() as u64)),
            };
            let (phone, appliance) = (within(PHONE_NOTICES), within(APPLIANCE_NOTICES));
            let (up, down) = (within(appliance.max(Duration::from_millis(1))), within(phone.max(Duration::from_millis(1))));
            let (phone, down) = if gone == Some(Way::Up) { (Duration::ZERO, Duration::ZERO) } else { (phone, down) };
            let (appliance, up) = if gone == Some(Way::Down) { (Duration::ZERO, Duration::ZERO) } else { (appliance, up) };
            let when = |after: Duration, token: CancellationToken| {
                tokio::spawn(async move {
                    sleep(after).await;
                    token.cancel();
                });
            };
            when(up, wires.up_cut);
            when(down, wires.down_cut);
            when(phone, wires.phone_knows);
            when(appliance, wires.appliance_knows);
        }
    }

    fn latency(&self) -> Duration {
        let mut state = self.state();
        let most = state.latency_max_ms;
        Duration::from_millis(state.random.random_range(1..=most))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call over a connection of its own.
    async fn call(self, request: http::Request<Body>) -> Result<http::Response<Body>, StdError> {
        sleep(self.latency()).await;
        let (wires, service, is_dead) = {
            let mut state = self.state();
            if state.is_down {
                return Err("the network is unreachable".into());
            }
            let (service, is_dead) = state.service.clone().ok_or("connection refused")?;
            state.count += 1;
            let wires = Wires { number: state.count, ..Wires::default() };
            state.connected.push(wires.clone());
            (wires, service, is_dead)
        };
        let mut server = SyncServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (parts, up) = request.into_parts();
        let up = self.carry(Way::Up, up, &wires, Arc::new(|| false));
        let mut request = http::Request::from_parts(parts, up);
        request.extensions_mut().insert(PeerOf(self.peer.clone()));
        let answer = tokio::select! {
            answer = server.call(request) => answer.unwrap_or_else(|never| match never {}),
            () = wires.phone_knows.cancelled() => return Err("connection reset".into()),
        };
        let (parts, down) = answer.into_parts();
        let down = self.carry(Way::Down, down, &wires, is_dead);
        Ok(http::Response::from_parts(parts, down))
    }

    /// What arrives at the other end of `body`. Nothing does that was sent after `is_dead`.
    fn carry(&self, way: Way, mut body: Body, wires: &Wires, is_dead: Arc<dyn Fn() -> bool + Send + Sync>) -> Body {
        let number = wires.number;
        let wires = wires.clone();
        let (cut, sender_knows, receiver_knows) = match way {
            Way::Up => (wires.up_cut, wires.phone_knows, wires.appliance_knows),
            Way::Down => (wires.down_cut, wires.appliance_knows, wires.phone_knows),
        };
        let (put, mut under_way) = mpsc::channel::<(Instant, Carried)>(UNDER_WAY_MAX);
        let (arrive, arrived) = mpsc::channel::<Carried>(1);
        let line = self.clone();
        tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                let frame = tokio::select! {
                    biased;
                    () = sender_knows.cancelled() => return,
                    () = put.closed() => return,
                    frame = body.frame() => frame,
                };
                let Some(frame) = frame else { return };
                if is_dead() {
                    return sender_knows.cancelled().await;
                }
                last = last.max(Instant::now() + line.latency());
                if put.send((last, frame.map_err(StdError::from))).await.is_err() {
                    return;
                }
            }
        });
        let witness = self.witness.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = cut.cancelled() => break,
                    () = arrive.closed() => return,
                    next = under_way.recv() => next,
                };
                let Some((at, frame)) = next else { return };
                tokio::select! {
                    biased;
                    () = cut.cancelled() => break,
                    () = sleep_until(at) => {}
                }
                if let Ok(Some(bytes)) = frame.as_ref().map(Frame::data_ref) {
                    witness(number, way, bytes);
                }
                if arrive.send(frame).await.is_err() {
                    return;
                }
            }
            // What is still sent is sent into the void.
            let void = async { while under_way.recv().await.is_some() {} };
            tokio::select! {
                () = receiver_knows.cancelled() => {}
                () = async { void.await; std::future::pending().await } => {}
            }
            let _ = arrive.send(Err("connection reset".into())).await;
        });
        Body::new(StreamBody::new(ReceiverStream::new(arrived)))
    }
}

impl Appliance for Line {
    async fn connect(&self) -> Result<Connection, LinkError> {
        let line = self.clone();
        let call = tower::service_fn(move |request| line.clone().call(request));
        Ok(Connection::new(tower::ServiceExt::map_err(call, CallError)))
    }

    async fn ask_again(&mut self) -> Result<(), LinkError> {
        Ok(())
    }
}
