//! A phone that is not there: it speaks the contract over real TLS, as an agent would, and says what its test wants it to say.
//!
//! It keeps no journal and answers no command; it panics where a test could not go on.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use sync_protocol::event::Event;
use sync_protocol::limits::MESSAGE_BYTES_MAX;
use sync_protocol::wire::sync_client::SyncClient;
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, phone_message::Message as FromPhone};
use sync_protocol::{APPLIANCE_SERVER_NAME, PROTOCOL_VERSION, batch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Status, Streaming};

/// Nothing takes a tenth of it on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A phone: a key, and a certificate once it is admitted.
pub struct FakePhone {
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
    /// A phone with a new key that will connect to `sync_address` of the appliance whose authority is `ca_pem`.
    pub fn new(sync_address: &str, ca_pem: &str, serial: &str) -> FakePhone {
        FakePhone {
            serial: serial.to_owned(),
            image: String::new(),
            key: KeyPair::generate().expect("key"),
            certificate: None,
            journal_id: [7; 16],
            address: format!("https://{sync_address}"),
            ca_pem: ca_pem.to_owned(),
        }
    }

    /// After the appliance has been started again on other ports.
    pub fn moved_to(&mut self, sync_address: &str) {
        self.address = format!("https://{sync_address}");
    }

    pub async fn client(&self) -> Result<SyncClient<Channel>, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name(APPLIANCE_SERVER_NAME);
        if let Some(certificate) = &self.certificate {
            tls = tls.identity(Identity::from_pem(pem(certificate), self.key.serialize_pem()));
        }
        let channel = Channel::from_shared(self.address.clone()).expect("address").tls_config(tls)?.connect().await?;
        Ok(SyncClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub fn device(&self) -> wire::DeviceInfo {
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

    pub fn request(&self, code: &str) -> wire::RegisterRequest {
        let csr = CertificateParams::default().serialize_request(&self.key).expect("request");
        wire::RegisterRequest {
            protocol_version: PROTOCOL_VERSION,
            csr_der: csr.der().to_vec(),
            enrolment_code: code.to_owned(),
            device: Some(self.device()),
        }
    }

    /// The certificate if the phone was admitted.
    pub async fn register(&mut self, code: &str) -> Result<bool, Status> {
        let reply = self.client().await.expect("connected").register(self.request(code)).await?.into_inner();
        match reply.outcome.expect("outcome") {
            wire::register_reply::Outcome::Admitted(admitted) => {
                self.certificate = Some(admitted.cert_der);
                Ok(true)
            }
            wire::register_reply::Outcome::Pending(_) => Ok(false),
        }
    }

    pub fn hello(&self, first_unacked: u64, last: u64) -> wire::Hello {
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
    pub async fn open(&self, hello: wire::Hello) -> Result<Stream, Status> {
        let (sender, receiver) = mpsc::channel(64);
        sender.send(message(FromPhone::Hello(hello))).await.expect("room");
        let mut client = self.client().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let incoming = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Stream { sender, incoming })
    }

    /// Opens a stream as a phone whose journal holds `first_unacked..=last`; gives what the appliance has of it.
    pub async fn stream(&self, first_unacked: u64, last: u64) -> (Stream, u64) {
        let mut stream = self.open(self.hello(first_unacked, last)).await.expect("opened");
        match stream.next().await.expect("welcome") {
            FromAppliance::Welcome(welcome) => (stream, welcome.acked_seq),
            other => panic!("no Welcome but {other:?}"),
        }
    }
}

/// An open stream, seen from the phone.
pub struct Stream {
    pub sender: mpsc::Sender<wire::PhoneMessage>,
    incoming: Streaming<wire::ApplianceMessage>,
}

impl Stream {
    pub async fn send(&self, message_to_send: FromPhone) {
        self.sender.send(message(message_to_send)).await.expect("the appliance listens");
    }

    /// Sends a message of a kind that nobody knows.
    pub async fn send_unknown(&self) {
        self.sender.send(wire::PhoneMessage { message: None }).await.expect("the appliance listens");
    }

    pub async fn send_events(&self, events: Vec<Event>) {
        self.send(FromPhone::Batch(batch::pack(events.into_iter().map(Into::into).collect()))).await;
    }

    /// The next message, or the status by which the stream ended.
    pub async fn next(&mut self) -> Result<FromAppliance, Status> {
        let next = tokio::time::timeout(PATIENCE, self.incoming.message()).await.expect("an answer in time")?;
        let next = next.ok_or_else(|| Status::new(Code::Ok, "the stream ended"))?;
        Ok(next.message.expect("a message"))
    }

    /// The next acknowledgement. Commands come when they like, and more than once: those before it are skipped.
    pub async fn acked(&mut self) -> u64 {
        loop {
            match self.next().await.expect("an acknowledgement") {
                FromAppliance::Ack(ack) => return ack.seq,
                FromAppliance::Command(_) => {}
                other => panic!("no Ack but {other:?}"),
            }
        }
    }

    /// The status by which the stream ends; what comes before it is skipped.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

fn message(message: FromPhone) -> wire::PhoneMessage {
    wire::PhoneMessage { message: Some(message) }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
