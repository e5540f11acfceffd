//! Screens in the browser: a WebSocket on one side, the machine's RFB socket on the other.
//!
//! What a watcher does with pointer and keys never goes to the machine directly: while that user drives, it becomes input of the
//! lease (logged, then given to twin and phone); otherwise it is dropped.

use std::path::PathBuf;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use store::PhoneId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::debug;

use super::Services;
use super::error::ApiError;
use super::login::Operator;
use crate::identity::UserName;
use crate::twin::InUse;
use crate::rfb::{ClientMessage, ClientParser, Hand};

/// What a viewer sends at a time is small; a list of encodings is the longest.
const CLIENT_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Read from the machine at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// The twin's screen: RFB 3.8 in binary WebSocket messages, as noVNC speaks it. Pointer and keys count while the asking user holds the
/// drive lease, and are ignored otherwise.
#[utoipa::path(get, path = "/api/phones/{phone}/twin/screen", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 101, description = "WebSocket"), (status = 503, body = super::ErrorBody)))]
pub(super) async fn twin(
    State(services): State<Services>,
    Operator(login): Operator,
    Path(phone): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    let rfb = services.twins.machine(&phone)?.rfb;
    let used = services.twins.in_use(&phone);
    let hands = Hands::OfLease { services: services.clone(), phone, user: login.user, _used: used };
    open(services, rfb, hands, upgrade).await
}

/// A fork's screen, with pointer and keys: nothing that is done there goes any further.
#[utoipa::path(get, path = "/api/phones/{phone}/twin/forks/{number}/screen", tag = "twins",
    params(("phone" = String, Path, description = "id or serial"), ("number" = u32, Path, description = "of the fork")),
    responses((status = 101, description = "WebSocket"), (status = 404, body = super::ErrorBody)))]
pub(super) async fn fork(
    State(services): State<Services>,
    _: Operator,
    Path((phone, number)): Path<(String, u32)>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    let rfb = services.twins.a_fork(&phone, number)?.running.rfb;
    open(services, rfb, Hands::Own, upgrade).await
}

/// The own screen of a demo phone of this host, with pointer and keys: what its user sees and does.
#[utoipa::path(get, path = "/api/phones/{phone}/demo/screen", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 101, description = "WebSocket"), (status = 404, body = super::ErrorBody)))]
pub(super) async fn demo(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let phone = services.phones.find(&phone)?;
    let folder = services.demo_socket(&phone);
    let folder = folder.ok_or_else(|| ApiError::not_found("this is no demo phone of this host, or it does not run"))?;
    open(services, folder, Hands::Own, upgrade).await
}

/// Whose hands a watcher's pointer and keys are.
enum Hands {
    /// The operator's, if they hold the lease.
    OfLease { services: Services, phone: PhoneId, user: UserName, _used: InUse },
    /// Those of a demo phone's own user, or of who tries something on a fork: the machine takes them directly.
    Own,
}

async fn open(
    services: Services,
    rfb: PathBuf,
    hands: Hands,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let machine = UnixStream::connect(&rfb)
        .await
        .map_err(|error| ApiError::unavailable(format!("the screen cannot be reached: {error}")))?;
    let upgrade = upgrade.protocols(["binary"]).max_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let (stop, tasks) = (services.stop.clone(), services.tasks.clone());
    Ok(upgrade.on_upgrade(move |socket| async move {
        // On our own tracker, so that shutdown waits for it.
        let bridge = tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = bridge(socket, machine, hands) => {}
            }
        });
        if let Err(error) = bridge.await {
            debug!(%error, "a screen's bridge failed");
        }
    }))
}

async fn bridge(mut socket: WebSocket, machine: UnixStream, hands: Hands) {
    let (mut from_machine, mut to_machine) = machine.into_split();
    let mut parser = ClientParser::default();
    let mut hand = Hand::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        tokio::select! {
            read = from_machine.read(&mut piece) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if socket.send(Message::Binary(Bytes::copy_from_slice(&piece[..count]))).await.is_err() {
                        break;
                    }
                }
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let taken = match &hands {
                        Hands::Own => to_machine.write_all(&bytes).await.is_ok(),
                        Hands::OfLease { .. } => match parser.take(&bytes) {
                            Ok(messages) => pass(messages, &mut to_machine, &hands, &mut hand).await,
                            Err(error) => {
                                debug!(%error, "a viewer sent what is no RFB");
                                false
                            }
                        },
                    };
                    if !taken {
                        break;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    for frame in hand.lift() {
        hands.give(frame);
    }
    // The other side may be gone already.
    let _ = socket.send(Message::Close(None)).await;
}

/// Hands on what a watcher asks, and takes what a watcher does. False: the machine is gone.
async fn pass(
    messages: Vec<ClientMessage>,
    to_machine: &mut (impl AsyncWriteExt + Unpin),
    hands: &Hands,
    hand: &mut Hand,
) -> bool {
    for message in messages {
        if let ClientMessage::Asks(bytes) = &message {
            if to_machine.write_all(bytes).await.is_err() {
                return false;
            }
        } else if hands.count()
            && let Some(frame) = hand.frame(&message)
        {
            hands.give(frame);
        }
    }
    true
}

impl Hands {
    /// Whether what this watcher does counts now.
    fn count(&self) -> bool {
        match self {
            Hands::OfLease { services, phone, user, .. } => services.drive.drives(phone, user),
            Hands::Own => false,
        }
    }

    fn give(&self, frame: sync_protocol::event::Frame) {
        if let Hands::OfLease { services, phone, user, .. } = self
            && let Err(error) = services.drive.give(phone, user, frame)
        {
            // The lease may have ended this moment; a hand that is too fast loses a frame, as on any touch screen.
            debug!(%phone, %error, "a frame of input is dropped");
        }
    }
}
