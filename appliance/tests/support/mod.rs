//! An appliance on free ports with data of its own, a browser-like client, and a phone that speaks the contract over real TLS.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;
use std::time::Duration;

use pollux::app::Appliance;
use pollux::config::{Config, StoreBackend};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use sync_protocol::batch;
use sync_protocol::event::{Control, ControlKind, Event, Kind, Origin};
use sync_protocol::wire::sync_client::SyncClient;
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, phone_message::Message as FromPhone};
use sync_protocol::{APPLIANCE_SERVER_NAME, PROTOCOL_VERSION};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Status, Streaming};

/// Nothing here takes a tenth of it on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(data: &std::path::Path, store: StoreBackend) -> Config {
    let mut config = Config::new(data);
    config.http_listen = "127.0.0.1:0".parse().expect("address");
    config.sync_listen = "127.0.0.1:0".parse().expect("address");
    config.store = store;
    config.images = data.join("no-images");
    config
}

/// A running appliance; its data goes with it.
pub(crate) struct Setup {
    pub appliance: Appliance,
    pub data: tempfile::TempDir,
}

pub(crate) async fn start() -> Setup {
    let data = tempfile::tempdir().expect("folder");
    let appliance = Appliance::start(config(data.path(), StoreBackend::Memory)).await.expect("started");
    Setup { appliance, data }
}

/// A client of the HTTP API, with or without a token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn anonymous(appliance: &Appliance) -> Client {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(appliance.ca_pem.as_bytes()).expect("CA");
        roots.add(ca).expect("CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().build().expect("client");
        Client { http, base: format!("https://{}", appliance.http_address), token: None }
    }

    pub(crate) fn admin(appliance: &Appliance) -> Client {
        Client { token: Some(appliance.local_token.clone()), ..Client::anonymous(appliance) }
    }

    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("method");
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Status and JSON of an answer; `Null` if it is none.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answer");
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, reply) = self.call("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {reply}");
        reply
    }

    pub(crate) async fn new_code(&self) -> String {
        self.post("/api/codes", json!({})).await["code"].as_str().expect("code").to_owned()
    }

    /// The phone once `is` holds of it.
    pub(crate) async fn phone_when(&self, phone: &str, is: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/phones/{phone}");
        let looking = async {
            loop {
                let view = self.get(&path).await;
                if is(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(view) => view,
            Err(_) => panic!("{phone} never became so: {}", self.get(&path).await),
        }
    }
}

/// A phone: a key, and a certificate once it is admitted.
pub(crate) struct FakePhone {
    pub serial: String,
    /// Name of the image that it says it runs; empty: none of ours.
    pub image: String,
    pub key: KeyPair,
    pub certificate: Option<Vec<u8>>,
    pub journal_id: [u8; 16],
    address: String,
    ca_pem: String,
}

impl FakePhone {
    pub(crate) fn new(appliance: &Appliance, serial: &str) -> FakePhone {
        FakePhone {
            serial: serial.to_owned(),
            image: String::new(),
            key: KeyPair::generate().expect("key"),
            certificate: None,
            journal_id: [7; 16],
            address: format!("https://{}", appliance.sync_address),
            ca_pem: appliance.ca_pem.clone(),
        }
    }

    /// After the appliance has been started again on other ports.
    pub(crate) fn moved_to(&mut self, appliance: &Appliance) {
        self.address = format!("https://{}", appliance.sync_address);
    }

    pub(crate) async fn client(&self) -> Result<SyncClient<Channel>, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name(APPLIANCE_SERVER_NAME);
        if let Some(certificate) = &self.certificate {
            tls = tls.identity(Identity::from_pem(pem(certificate), self.key.serialize_pem()));
        }
        let channel = Channel::from_shared(self.address.clone()).expect("address").tls_config(tls)?.connect().await?;
        Ok(SyncClient::new(channel).max_decoding_message_size(32 << 20).max_encoding_message_size(32 << 20))
    }

    pub(crate) fn device(&self) -> wire::DeviceInfo {
        wire::DeviceInfo {
            serial: self.serial.clone(),
            model: "fake".into(),
            os: "none".into(),
            os_version: "1".into(),
            image: self.image.clone(),
            architecture: "aarch64".into(),
            agent_version: "test".into(),
        }
    }

    pub(crate) fn request(&self, code: &str) -> wire::RegisterRequest {
        let csr = CertificateParams::default().serialize_request(&self.key).expect("request");
        wire::RegisterRequest {
            protocol_version: PROTOCOL_VERSION,
            csr_der: csr.der().to_vec(),
            enrolment_code: code.to_owned(),
            device: Some(self.device()),
        }
    }

    /// The certificate if the phone was admitted.
    pub(crate) async fn register(&mut self, code: &str) -> Result<bool, Status> {
        let reply = self.client().await.expect("connected").register(self.request(code)).await?.into_inner();
        match reply.outcome.expect("outcome") {
            wire::register_reply::Outcome::Admitted(admitted) => {
                self.certificate = Some(admitted.cert_der);
                Ok(true)
            }
            wire::register_reply::Outcome::Pending(_) => Ok(false),
        }
    }

    pub(crate) async fn enrolled(appliance: &Appliance, serial: &str) -> FakePhone {
        let mut phone = FakePhone::new(appliance, serial);
        let code = Client::admin(appliance).new_code().await;
        assert!(phone.register(&code).await.expect("registered"));
        phone
    }

    pub(crate) fn hello(&self, first_unacked: u64, last: u64) -> wire::Hello {
        wire::Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: "test".into(),
            first_unacked_seq: first_unacked,
            last_seq: last,
            journal_id: self.journal_id.to_vec(),
            rules_version: 0,
            device: Some(self.device()),
        }
    }

    /// Opens a stream and says `hello`; what comes back is the caller's to read.
    pub(crate) async fn open(&self, hello: wire::Hello) -> Result<Stream, Status> {
        let (sender, receiver) = mpsc::channel(64);
        sender.send(message(FromPhone::Hello(hello))).await.expect("room");
        let mut client = self.client().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let incoming = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Stream { sender, incoming })
    }

    /// Opens a stream as a phone whose journal holds `first_unacked..=last`; gives what the appliance has of it.
    pub(crate) async fn stream(&self, first_unacked: u64, last: u64) -> (Stream, u64) {
        let mut stream = self.open(self.hello(first_unacked, last)).await.expect("opened");
        match stream.next().await.expect("welcome") {
            FromAppliance::Welcome(welcome) => (stream, welcome.acked_seq),
            other => panic!("no Welcome but {other:?}"),
        }
    }
}

/// An open stream, seen from the phone.
pub(crate) struct Stream {
    pub sender: mpsc::Sender<wire::PhoneMessage>,
    incoming: Streaming<wire::ApplianceMessage>,
}

impl Stream {
    pub(crate) async fn send(&self, message_to_send: FromPhone) {
        self.sender.send(message(message_to_send)).await.expect("the appliance listens");
    }

    pub(crate) async fn send_events(&self, events: Vec<Event>) {
        self.send(FromPhone::Batch(batch::pack(events.into_iter().map(Into::into).collect()))).await;
    }

    /// The next message, or the status by which the stream ended.
    pub(crate) async fn next(&mut self) -> Result<FromAppliance, Status> {
        let next = tokio::time::timeout(PATIENCE, self.incoming.message()).await.expect("an answer in time")?;
        let next = next.ok_or_else(|| Status::new(Code::Ok, "the stream ended"))?;
        Ok(next.message.expect("a message"))
    }

    pub(crate) async fn acked(&mut self) -> u64 {
        match self.next().await.expect("an acknowledgement") {
            FromAppliance::Ack(ack) => ack.seq,
            other => panic!("no Ack but {other:?}"),
        }
    }

    /// The status by which the stream ends; what comes before it is skipped.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

pub(crate) fn message(message: FromPhone) -> wire::PhoneMessage {
    wire::PhoneMessage { message: Some(message) }
}

pub(crate) fn event(seq: u64, kind: Kind) -> Event {
    Event { seq, wall_us: 1_700_000_000_000_000, mono_us: seq * 1000, origin: Origin::Phone, kind }
}

pub(crate) fn control(seq: u64, kind: ControlKind, text: &str) -> Event {
    event(seq, Kind::Control(Control { kind, text: text.into(), path: None, count: seq }))
}

pub(crate) fn controls(seqs: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    seqs.map(|seq| control(seq, ControlKind::Started, "agent, boot 0123456789")).collect()
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
