//! An appliance in memory: keeps the contract strictly, notes what a phone gets wrong, and breaks on demand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use sync_protocol::event::{Content, Event, FileOp, Kind, Node};
use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::scope::Scope;
use sync_protocol::tree::{TreeHasher, root_hash};
use sync_protocol::wire::appliance_message::Message as FromAppliance;
use sync_protocol::wire::phone_message::Message as FromPhone;
use sync_protocol::wire::register_reply::Outcome;
use sync_protocol::wire::sync_server::{Sync, SyncServer};
use sync_protocol::wire::*;
use sync_protocol::{APPLIANCE_SERVER_NAME, PROTOCOL_VERSION, batch, chunking, limits};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the appliance knows; tests wait for it to look a certain way.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) codes: HashMap<String, Option<Vec<u8>>>,
    pub(crate) released: bool,
    pub(crate) registrations: u32,
    pub(crate) refusals: Vec<String>,
    pub(crate) admitted: HashMap<Vec<u8>, Admitted>,
    pub(crate) streams: u32,
    pub(crate) journal_id: Vec<u8>,
    pub(crate) events: Vec<Event>,
    pub(crate) chunks: HashMap<Hash, Vec<u8>>,
    pub(crate) acked: u64,
    pub(crate) results: HashMap<u64, CommandResult>,
    pub(crate) roots: HashMap<u64, HaveRoot>,
    pub(crate) rules: Option<Rules>,
    /// What the phone did against the contract.
    pub(crate) violations: Vec<String>,
    /// Acknowledgements are withheld.
    pub(crate) holds_acks: bool,
    /// Messages until the stream breaks.
    pub(crate) fuse: Option<u32>,
    /// Sent once instead of a Welcome, or after it.
    pub(crate) poison: Option<Poison>,
    to_phone: Option<mpsc::Sender<Result<ApplianceMessage, Status>>>,
    serves_chunks: HashMap<Hash, Vec<u8>>,
}

#[derive(Clone)]
pub(crate) enum Poison {
    InsteadOfWelcome(ApplianceMessage),
    AfterWelcome(ApplianceMessage),
}

#[derive(Clone)]
struct Service {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    ca: Arc<CertifiedIssuer<'static, KeyPair>>,
}

pub(crate) struct FakeAppliance {
    pub(crate) address: SocketAddr,
    pub(crate) ca_fingerprint: String,
    service: Service,
    changes: watch::Receiver<u64>,
    _stop: oneshot::Sender<()>,
}

/// Whose certificate the server shows.
#[derive(PartialEq)]
pub(crate) enum Shows {
    Appliance,
    /// One that the same CA issued to a phone.
    Phone,
}

impl FakeAppliance {
    pub(crate) async fn start() -> Self {
        Self::showing(Shows::Appliance).await
    }

    pub(crate) async fn showing(shows: Shows) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Fake appliance CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = match shows {
            Shows::Appliance => {
                let mut params =
                    CertificateParams::new([APPLIANCE_SERVER_NAME.to_owned()]).unwrap();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.signed_by(&key, &ca).unwrap()
            }
            Shows::Phone => {
                let mut params = CertificateParams::new(["phone-1".to_owned()]).unwrap();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                params.signed_by(&key, &ca).unwrap()
            }
        };
        let chain = format!("{}{}", certificate.pem(), ca.pem());
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(ca.pem()))
            .client_auth_optional(true);
        let ca_fingerprint = hex::encode(sync_agent::identity::fingerprint(ca.der()));
        let (changed, changes) = watch::channel(0);
        let service = Service {
            state: Arc::default(),
            changed,
            ca: Arc::new(ca),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = SyncServer::new(service.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        let serving = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(server)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                let _ = stopped.await;
            });
        tokio::spawn(serving);
        Self {
            address,
            ca_fingerprint,
            service,
            changes,
            _stop: stop,
        }
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        self.service.with(act)
    }

    /// Waits until the state is as wanted, and returns what was found.
    pub(crate) async fn until<R>(
        &self,
        what: &str,
        mut check: impl FnMut(&mut State) -> Option<R>,
    ) -> R {
        let mut changes = self.changes.clone();
        let found = async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = self
                    .service
                    .state
                    .lock()
                    .map(|mut state| check(&mut state))
                    .unwrap()
                {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!(
                "waited in vain until {what}; {}",
                self.with(|state| state.describe())
            ),
        }
    }

    /// Waits until a scan has ended after the first `events` events, everything is acknowledged, and there was no
    /// violation.
    pub(crate) async fn until_scanned(&self, events: usize) {
        self.until("a scan is done", |state| {
            let is_scanned = state.events[events.min(state.events.len())..]
                .iter()
                .any(Event::ends_scan);
            (is_scanned && state.acked == state.events.len() as u64).then_some(())
        })
        .await;
        self.with(|state| assert_eq!(state.violations, Vec::<String>::new()));
    }

    /// Asks the phone for its root, and waits for it and all events up to it. Breaks of the stream do not matter.
    pub(crate) async fn root(&self, id: u64) -> HaveRoot {
        loop {
            self.command(id, command::Command::Root(RootRequest {}))
                .await;
            let streams = self.with(|state| state.streams);
            let root = self
                .until("the root arrives", |state| match state.roots.get(&id) {
                    Some(root) if state.acked >= root.seq => Some(Some(root.clone())),
                    None if state.streams != streams => Some(None),
                    _ => None,
                })
                .await;
            if let Some(root) = root {
                return root;
            }
        }
    }

    pub(crate) async fn apply(
        &self,
        id: u64,
        changes: Vec<(FileChange, applied_change::Base)>,
    ) -> CommandResult {
        let changes = changes.into_iter().map(|(change, base)| AppliedChange {
            change: Some(change),
            base: Some(base),
        });
        self.ask(
            id,
            command::Command::Apply(Apply {
                changes: changes.collect(),
                chunks: Vec::new(),
            }),
        )
        .await
    }

    /// Gives a command on an open stream and waits for its result.
    pub(crate) async fn ask(&self, id: u64, command: command::Command) -> CommandResult {
        self.with(|state| state.results.remove(&id));
        self.command(id, command).await;
        self.until("the command is answered", |state| {
            state.results.get(&id).cloned()
        })
        .await
    }

    pub(crate) async fn command(&self, id: u64, command: command::Command) {
        let message = FromAppliance::Command(Command {
            id,
            command: Some(command),
        });
        let line = self
            .until("a stream is open", |state| state.to_phone.clone())
            .await;
        // A stream that just broke: the next one gets it from whoever repeats it.
        let _ = line
            .send(Ok(ApplianceMessage {
                message: Some(message),
            }))
            .await;
    }

    /// Makes chunks of `contents` available to the phone, and returns a Put of them.
    pub(crate) fn offer(&self, path: &PhonePath, contents: &[u8], mode: u32) -> FileChange {
        let pieces: Vec<_> = chunking::cut(contents)
            .map(|(chunk, bytes)| (chunk, bytes.to_vec()))
            .collect();
        let chunks = pieces.iter().map(|(chunk, _)| *chunk).collect();
        self.with(|state| {
            state
                .serves_chunks
                .extend(pieces.into_iter().map(|(chunk, bytes)| (chunk.hash, bytes)))
        });
        let content = Content::Regular {
            size: contents.len() as u64,
            chunks,
        };
        let node = Node {
            mode,
            uid: 0,
            gid: 0,
            mtime_ns: 1_700_000_000_123_456_789,
            content,
        };
        sync_protocol::event::FileChange {
            path: path.clone(),
            op: FileOp::Put(node),
        }
        .into()
    }
}

/// What tests ask of events.
pub(crate) trait EventExt {
    fn ends_scan(&self) -> bool;
    fn file_path(&self) -> Option<&PhonePath>;
    fn control(&self) -> Option<ControlKind>;
}

impl EventExt for Event {
    fn ends_scan(&self) -> bool {
        self.control() == Some(ControlKind::ScanDone)
    }

    fn file_path(&self) -> Option<&PhonePath> {
        match &self.kind {
            Kind::File(change) => Some(&change.path),
            _ => None,
        }
    }

    fn control(&self) -> Option<ControlKind> {
        match &self.kind {
            Kind::Control(control) => Some(control.kind),
            _ => None,
        }
    }
}

impl State {
    /// The phone's files as its events describe them.
    pub(crate) fn tree(&self) -> BTreeMap<PhonePath, Node> {
        let mut tree: BTreeMap<PhonePath, Node> = BTreeMap::new();
        for event in &self.events {
            let Kind::File(change) = &event.kind else {
                continue;
            };
            let within = |tree: &BTreeMap<PhonePath, Node>, path: &PhonePath| -> Vec<PhonePath> {
                tree.keys()
                    .filter(|key| key.is_within(path))
                    .cloned()
                    .collect()
            };
            match &change.op {
                FileOp::Put(node) => {
                    let keeps = node.content == Content::Directory
                        && tree
                            .get(&change.path)
                            .is_some_and(|old| old.content == Content::Directory);
                    if !keeps {
                        within(&tree, &change.path)
                            .iter()
                            .for_each(|path| drop(tree.remove(path)));
                    }
                    tree.insert(change.path.clone(), node.clone());
                }
                FileOp::Remove => within(&tree, &change.path)
                    .iter()
                    .for_each(|path| drop(tree.remove(path))),
                FileOp::Rename { to } => {
                    within(&tree, to)
                        .iter()
                        .for_each(|path| drop(tree.remove(path)));
                    for path in within(&tree, &change.path) {
                        let node = tree.remove(&path).unwrap();
                        tree.insert(path.moved(&change.path, to).unwrap().unwrap(), node);
                    }
                }
            }
        }
        tree
    }

    pub(crate) fn contents(&self, node: &Node) -> Vec<u8> {
        node.chunks()
            .iter()
            .flat_map(|chunk| self.chunks[&chunk.hash].clone())
            .collect()
    }

    pub(crate) fn root(&self, scope: &Scope) -> Hash {
        let mut hasher = TreeHasher::new();
        for (path, node) in self.tree() {
            hasher.add(&path, node.entry());
        }
        let tops = hasher.finish();
        let entry = |root: &PhonePath| {
            tops.iter()
                .find(|(path, _)| path == root)
                .map(|(_, entry)| *entry)
        };
        root_hash(scope.roots().iter().map(|root| (root, entry(root))))
    }

    fn describe(&self) -> String {
        let last: Vec<String> = self
            .events
            .iter()
            .rev()
            .take(5)
            .map(|event| format!("{event:?}"))
            .collect();
        format!(
            "{} registrations, {} streams, {} events, {} acked, refusals {:?}, violations {:?}, last events {last:#?}",
            self.registrations,
            self.streams,
            self.events.len(),
            self.acked,
            self.refusals,
            self.violations
        )
    }

    /// The last event before which no chunk is missing.
    fn complete(&self) -> u64 {
        let is_complete = |event: &&Event| match &event.kind {
            Kind::File(sync_protocol::event::FileChange {
                op: FileOp::Put(node),
                ..
            }) => node
                .chunks()
                .iter()
                .all(|chunk| self.chunks.contains_key(&chunk.hash)),
            _ => true,
        };
        self.events[self.acked as usize..]
            .iter()
            .take_while(is_complete)
            .count() as u64
            + self.acked
    }

    fn missing(&self) -> Vec<Hash> {
        let mut missing = HashSet::new();
        for event in &self.events[self.acked as usize..] {
            if let Kind::File(sync_protocol::event::FileChange {
                op: FileOp::Put(node),
                ..
            }) = &event.kind
            {
                missing.extend(
                    node.chunks()
                        .iter()
                        .map(|chunk| chunk.hash)
                        .filter(|hash| !self.chunks.contains_key(hash)),
                );
            }
        }
        missing.into_iter().collect()
    }

    /// One message passes; false if the stream breaks instead.
    fn burn(&mut self) -> bool {
        match &mut self.fuse {
            Some(0) => {
                self.fuse = None;
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), Status> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition("protocol version"));
        }
        if hello.journal_id != self.journal_id {
            self.journal_id = hello.journal_id.clone();
            self.events.clear();
            self.acked = 0;
        }
        if hello.first_unacked_seq > self.acked + 1 && self.acked > 0 {
            self.violations.push(format!(
                "trimmed to {} but acked was {}",
                hello.first_unacked_seq, self.acked
            ));
        }
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), Status> {
        let events =
            batch::unpack(batch).map_err(|error| Status::invalid_argument(error.to_string()))?;
        for event in events {
            let expected = self.events.len() as u64 + 1;
            match event.seq.cmp(&expected) {
                std::cmp::Ordering::Less if self.events[event.seq as usize - 1] != event => {
                    self.violations.push(format!("event {} changed", event.seq));
                }
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => self.events.push(event),
                std::cmp::Ordering::Greater => self
                    .violations
                    .push(format!("{} came, not {expected}", event.seq)),
            }
        }
        Ok(())
    }
}

type ToPhone = Pin<Box<dyn Stream<Item = Result<ApplianceMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Sync for Service {
    type StreamStream = ToPhone;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        let request = request.into_inner();
        let reply = self.with(|state| {
            state.registrations += 1;
            self.decide(state, &request)
                .inspect_err(|status| state.refusals.push(status.message().to_owned()))
        });
        reply.map(|outcome| {
            Response::new(RegisterReply {
                outcome: Some(outcome),
            })
        })
    }

    async fn stream(
        &self,
        request: Request<Streaming<PhoneMessage>>,
    ) -> Result<Response<ToPhone>, Status> {
        if request.peer_certs().is_none_or(|chain| chain.is_empty()) {
            return Err(Status::unauthenticated("no certificate"));
        }
        let (outbound, messages) = mpsc::channel(64);
        self.with(|state| {
            state.streams += 1;
            state.to_phone = None;
        });
        let service = self.clone();
        tokio::spawn(async move {
            let mut inbound = request.into_inner();
            if let Err(status) = service.serve(&mut inbound, &outbound).await {
                let _ = outbound.send(Err(status)).await;
            }
            service.with(|state| {
                if state
                    .to_phone
                    .as_ref()
                    .is_some_and(|line| line.same_channel(&outbound))
                {
                    state.to_phone = None;
                }
            });
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl Service {
    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let result = act(&mut self.state.lock().unwrap());
        self.changed.send_modify(|version| *version += 1);
        result
    }

    fn decide(&self, state: &mut State, request: &RegisterRequest) -> Result<Outcome, Status> {
        let csr = CertificateSigningRequestParams::from_der(&request.csr_der.as_slice().into());
        let mut csr = csr.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = rcgen::PublicKeyData::der_bytes(&csr.public_key).to_vec();
        if let Some(admitted) = state.admitted.get(&key) {
            return Ok(Outcome::Admitted(admitted.clone()));
        }
        if !request.enrolment_code.is_empty() {
            match state.codes.get_mut(&request.enrolment_code) {
                None => return Err(Status::permission_denied("wrong code")),
                Some(Some(_)) => return Err(Status::failed_precondition("used code")),
                Some(user) => *user = Some(key.clone()),
            }
        } else if !state.released {
            return Ok(Outcome::Pending(Pending {
                retry_after_ms: 200,
            }));
        }
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = csr
            .signed_by(&*self.ca)
            .map_err(|error| Status::internal(error.to_string()))?;
        let phone_id = format!("phone-{}", state.admitted.len() + 1);
        let admitted = Admitted {
            cert_der: certificate.der().to_vec(),
            ca_der: self.ca.der().to_vec(),
            phone_id,
        };
        state.admitted.insert(key, admitted.clone());
        Ok(Outcome::Admitted(admitted))
    }

    async fn serve(
        &self,
        inbound: &mut Streaming<PhoneMessage>,
        outbound: &mpsc::Sender<Result<ApplianceMessage, Status>>,
    ) -> Result<(), Status> {
        let mut asked = HashSet::new();
        while let Some(message) = inbound.message().await? {
            let message = message
                .message
                .ok_or_else(|| Status::invalid_argument("empty"))?;
            if !self.with(State::burn) {
                return Err(Status::unavailable("break before the message"));
            }
            let is_hello = matches!(message, FromPhone::Hello(_));
            let answers = self.with(|state| self.receive(state, message, &mut asked))?;
            for answer in answers {
                if !self.with(State::burn) {
                    return Err(Status::unavailable("break before the answer"));
                }
                let _ = outbound.send(Ok(answer)).await;
            }
            if is_hello {
                // Only now: nothing may come before the Welcome.
                self.with(|state| state.to_phone = Some(outbound.clone()));
            }
        }
        Ok(())
    }

    fn receive(
        &self,
        state: &mut State,
        message: FromPhone,
        asked: &mut HashSet<Hash>,
    ) -> Result<Vec<ApplianceMessage>, Status> {
        let mut answers = Vec::new();
        match message {
            FromPhone::Hello(hello) => {
                state.hello(&hello)?;
                let welcome = Welcome {
                    acked_seq: state.acked,
                    rules: state.rules.clone(),
                    wall_us: 0,
                };
                let welcome = ApplianceMessage {
                    message: Some(FromAppliance::Welcome(welcome)),
                };
                return Ok(match state.poison.take() {
                    Some(Poison::InsteadOfWelcome(poison)) => vec![poison],
                    Some(Poison::AfterWelcome(poison)) => vec![welcome, poison],
                    None => vec![welcome],
                });
            }
            FromPhone::Batch(batch) => state.batch(&batch)?,
            FromPhone::Chunks(chunks) => {
                for chunk in &chunks.chunks {
                    let (hash, bytes) = chunking::unpack(chunk)
                        .map_err(|error| Status::invalid_argument(error.to_string()))?;
                    state.chunks.insert(hash, bytes);
                }
            }
            FromPhone::Result(result) => drop(state.results.insert(result.command_id, result)),
            FromPhone::Root(root) => drop(state.roots.insert(root.command_id, root)),
            FromPhone::NeedChunks(need) => {
                let hashes = need
                    .hashes
                    .iter()
                    .map(|hash| Hash::try_from(hash.as_slice()).unwrap());
                let packed = hashes
                    .map(|hash| chunking::pack(hash, &state.serves_chunks[&hash]))
                    .collect();
                answers.push(FromAppliance::Chunks(Chunks { chunks: packed }));
            }
        }
        let missing: Vec<Hash> = state
            .missing()
            .into_iter()
            .filter(|hash| asked.insert(*hash))
            .collect();
        for hashes in missing.chunks(limits::NEED_CHUNKS_MAX) {
            let hashes = hashes.iter().map(|hash| hash.to_vec()).collect();
            answers.push(FromAppliance::NeedChunks(NeedChunks { hashes }));
        }
        let complete = state.complete();
        if complete > state.acked && !state.holds_acks {
            state.acked = complete;
            answers.push(FromAppliance::Ack(Ack { seq: complete }));
        }
        Ok(answers
            .into_iter()
            .map(|answer| ApplianceMessage {
                message: Some(answer),
            })
            .collect())
    }
}
