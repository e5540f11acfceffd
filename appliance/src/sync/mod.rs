//! Where phones connect: registration, and the stream by which their events come in and our commands go out.
//!
//! Promises: nothing but a registration is accepted from a phone that is not released; what does not keep to the contract ends the
//! stream with a status that says what and where, and stores nothing; a newer stream of a phone replaces its older one; every queue is
//! bounded. Leaves out: what events mean.

mod connection;
mod ingest;
mod links;
mod stream;

use std::sync::Arc;

use sync_protocol::PROTOCOL_VERSION;
use sync_protocol::limits::MESSAGE_BYTES_MAX;
use sync_protocol::wire;
use sync_protocol::wire::sync_server::SyncServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::commands::Commands;
use crate::identity::{Authority, AuthorityError, Peer};
use crate::log::PhoneLogs;
use crate::phones::{Admission, Description, PhoneError, Phones, Standing, now_us};
use crate::proof::Proofs;
use crate::quarantine::Quarantine;
use crate::replay::Replays;
pub use connection::{PeerOf, incoming};
pub use links::{Attached, Closing, Currency, Links, SendError};

/// How soon a phone in quarantine asks again.
const RETRY_AFTER_MS: u32 = 5_000;
/// Messages to a phone that the transport has not taken yet.
const OUTGOING_MAX: usize = 16;
/// Streams of one connection: a phone needs two, a register and a stream.
const STREAMS_MAX: u32 = 8;
/// How often a silent connection is checked, and how long the answer may take: a phone that vanished is noticed.
const KEEPALIVE_EVERY: std::time::Duration = std::time::Duration::from_secs(20);
const KEEPALIVE_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

/// Everything a phone's request may touch.
#[derive(Clone)]
pub struct SyncService {
    pub authority: Arc<Authority>,
    pub phones: Phones,
    pub logs: PhoneLogs,
    pub blobs: Arc<dyn store::Blobs>,
    pub links: Links,
    pub commands: Commands,
    pub replays: Replays,
    pub proofs: Proofs,
    pub quarantine: Quarantine,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// Serves phones until `stop`.
pub async fn serve(
    service: SyncService,
    connections: mpsc::Receiver<crate::tls::Connection>,
) -> Result<(), tonic::transport::Error> {
    let stop = service.stop.clone();
    let incoming = incoming(connections, service.authority.clone());
    let server = SyncServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WITHIN))
        .serve_with_incoming_shutdown(server, incoming, stop.cancelled_owned())
        .await
}

#[tonic::async_trait]
impl wire::sync_server::Sync for SyncService {
    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterReply>, Status> {
        let request = request.into_inner();
        check_version(request.protocol_version)?;
        let device = request.device.ok_or_else(|| Status::invalid_argument("RegisterRequest.device is missing"))?;
        let service = self.clone();
        let work = move || service.admit(&request.csr_der, &request.enrolment_code, device);
        let outcome = tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Status::unavailable("the appliance is stopping"))??;
        Ok(Response::new(wire::RegisterReply { outcome: Some(outcome) }))
    }

    type StreamStream = ReceiverStream<Result<wire::ApplianceMessage, Status>>;

    async fn stream(
        &self,
        request: Request<tonic::Streaming<wire::PhoneMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request.extensions().get::<PeerOf>().map(|peer| peer.0.clone());
        let phone = self.recognise(peer.unwrap_or(Peer::Anonymous))?;
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        self.tasks.spawn(stream::serve(self.clone(), phone, request.into_inner(), outgoing));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl SyncService {
    /// Decides about a registration. Blocks.
    fn admit(
        &self,
        csr_der: &[u8],
        code: &str,
        device: wire::DeviceInfo,
    ) -> Result<wire::register_reply::Outcome, Status> {
        let request = self.authority.read_request(csr_der).map_err(|error| match error {
            AuthorityError::Request(_) => Status::invalid_argument(error.to_string()),
            other => internal("reading a signing request", &other),
        })?;
        let code = Some(code).filter(|code| !code.is_empty());
        let registered = self.phones.register(request.key.clone(), describe(device), code, now_us());
        match registered.map_err(|error| refusal(&error))? {
            Admission::Pending(phone) => {
                info!(phone = %phone.id, serial = phone.description.serial, "phone waits in quarantine");
                self.quarantine.live.tell(crate::live::Notice::Phone { phone: phone.id });
                Ok(wire::register_reply::Outcome::Pending(wire::Pending { retry_after_ms: RETRY_AFTER_MS }))
            }
            Admission::Admitted(phone) => {
                info!(phone = %phone.id, serial = phone.description.serial, "phone admitted");
                let issued = self.authority.issue_phone(request, &phone.id);
                let cert_der = issued.map_err(|error| internal("issuing a certificate", &error))?;
                self.quarantine.admitted(&phone.id);
                Ok(wire::register_reply::Outcome::Admitted(wire::Admitted {
                    cert_der,
                    ca_der: self.authority.certificate().to_vec(),
                    phone_id: phone.id.to_string(),
                }))
            }
        }
    }

    /// The released phone at the other end, or why it is not one.
    fn recognise(&self, peer: Peer) -> Result<store::PhoneId, Status> {
        let (id, key) = match peer {
            Peer::Phone { id, key } => (id, key),
            Peer::Anonymous => {
                return Err(Status::unauthenticated("Stream needs the certificate that Register gave; none was shown"));
            }
            Peer::Foreign { reason } => {
                let text = format!("the certificate is not one that this appliance issued: {reason}; register anew");
                return Err(Status::unauthenticated(text));
            }
        };
        match self.phones.get(&id) {
            Some(phone) if phone.key != key => {
                Err(Status::unauthenticated("the certificate's key is not the one that the phone registered with"))
            }
            Some(phone) if phone.standing == Standing::Released => Ok(id),
            Some(_) => Err(Status::permission_denied(format!(
                "phone {id} is in quarantine; an administrator must release it"
            ))),
            None => Err(Status::unauthenticated(format!("this appliance does not know phone {id}; register anew"))),
        }
    }
}

fn check_version(version: u32) -> Result<(), Status> {
    if version == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the phone speaks version {version} of the protocol, this appliance version {PROTOCOL_VERSION}"
    )))
}

fn describe(device: wire::DeviceInfo) -> Description {
    Description {
        serial: device.serial,
        model: device.model,
        os: device.os,
        os_version: device.os_version,
        image: device.image,
        architecture: device.architecture,
        agent_version: device.agent_version,
    }
}

fn refusal(error: &PhoneError) -> Status {
    match error {
        PhoneError::CodeUsed => Status::failed_precondition(error.to_string()),
        PhoneError::CodeWrong | PhoneError::CodeExpired => Status::permission_denied(error.to_string()),
        PhoneError::QuarantineFull => Status::resource_exhausted(error.to_string()),
        PhoneError::DescriptionTooLong { .. } | PhoneError::NoSerial => Status::invalid_argument(error.to_string()),
        other => internal("registering a phone", other),
    }
}

/// Ours to answer for: the phone learns that it should try later, the trace learns why.
fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> Status {
    warn!(doing, error = %crate::chain::Chain(error), "a phone's request failed");
    Status::unavailable(format!("the appliance failed at {doing}; try later"))
}
