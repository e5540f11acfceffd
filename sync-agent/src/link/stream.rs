//! One stream: sends what the journal holds, trims what was acknowledged, hands over what the appliance asks for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sync_protocol::event::ControlKind;
use sync_protocol::hash::Hash;
use sync_protocol::limits::{MESSAGE_BYTES_MAX, NEED_CHUNKS_MAX};
use sync_protocol::scope::{Scope, ScopeError};
use sync_protocol::wire::appliance_message::Message as FromAppliance;
use sync_protocol::wire::phone_message::Message as FromPhone;
use sync_protocol::wire::sync_client::SyncClient;
use sync_protocol::wire::{self, ApplianceMessage, PhoneMessage};
use sync_protocol::{PROTOCOL_VERSION, batch};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::backoff::Backoff;
use super::commands::{self, Order, Session};
use super::{Appliance, Ends, LinkError};
use crate::config::Config;
use crate::control_points::files::Request;
use crate::journal::{Journal, JournalError};

/// Until the appliance says Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages on their way out: enough to keep the line busy.
const OUTBOUND_MAX: usize = 8;
/// Encoded events that are packed into one batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// Compressed chunks that are packed into one message.
const CHUNKS_BYTES: usize = 1024 * 1024;
/// Requests for chunks, and orders, that may wait for their turn. An appliance that sends more does not listen.
const WAITING_MAX: usize = 64;

/// Where the journal keeps the appliance's rules.
const RULES: &str = "rules";

pub(super) type Outbound = mpsc::Sender<PhoneMessage>;

/// Streams until something breaks, which is the only way it ends.
pub(super) async fn run(
    config: &Arc<Config>,
    appliance: &impl Appliance,
    ends: &Ends,
    session: &mut Session,
    backoff: &mut Backoff,
) -> Result<Infallible, LinkError> {
    let mut client = SyncClient::new(appliance.connect().await?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
    send(&outbound, FromPhone::Hello(hello(config, ends).await?)).await?;
    let opening = async {
        let mut inbound = client
            .stream(ReceiverStream::new(messages))
            .await?
            .into_inner();
        let welcome = receive(&mut inbound).await?;
        Ok::<_, LinkError>((inbound, welcome))
    };
    let (inbound, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, opening)
        .await
        .map_err(|_| LinkError::Silence)??;
    let FromAppliance::Welcome(welcome) = welcome else {
        return Err(LinkError::Contract(
            "first message, which is no Welcome,".into(),
        ));
    };
    let acked = agree(welcome.acked_seq, ends).await?;
    if let Some(rules) = welcome.rules {
        take_rules(config, ends, rules).await?;
    }
    backoff.reset();
    tracing::info!(acked, "streaming");

    let (need, needed) = mpsc::channel(WAITING_MAX);
    let (order, orders) = mpsc::channel(WAITING_MAX);
    tokio::select! {
        end = send_events(ends, acked, &outbound) => end,
        end = send_chunks(ends, needed, &outbound) => end,
        end = commands::run(config, ends, session, orders, &outbound) => end,
        end = receive_all(config, ends, inbound, need, order) => end,
    }
}

async fn hello(config: &Config, ends: &Ends) -> Result<wire::Hello, LinkError> {
    let hello = |journal: &mut Journal| {
        Ok(wire::Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            first_unacked_seq: journal.first_unacked(),
            last_seq: journal.last_seq(),
            journal_id: journal.id().to_vec(),
            rules_version: rules_version(journal)?,
            device: None,
        })
    };
    Ok(wire::Hello {
        device: Some(config.device.clone()),
        ..ends.journal.ask(hello).await?
    })
}

/// Settles where to go on. If the appliance lacks what the journal has forgotten, or has what it never held, their
/// numbering has come apart: a new journal and a scan make them agree again.
async fn agree(acked: u64, ends: &Ends) -> Result<u64, LinkError> {
    let agreed = move |journal: &mut Journal| {
        let agrees = acked + 1 >= journal.first_unacked() && acked <= journal.last_seq();
        if agrees {
            journal.ack(acked)?;
        } else {
            journal.begin_anew()?;
        }
        Ok(agrees)
    };
    if acked < u64::MAX && ends.journal.ask(agreed).await? {
        return Ok(acked);
    }
    ends.files.send(Request::BeginAnew(format!(
        "the appliance has events up to {acked}, the journal has others"
    )));
    Err(LinkError::Contract(
        "position, compared with this journal, which is begun anew,".into(),
    ))
}

/// The rules that hold: the appliance's, if it ever sent any.
pub fn rules_in_force(
    journal: &mut Journal,
    own: &Scope,
) -> Result<(Scope, bool), JournalError> {
    let Some(rules) = stored_rules(journal)? else {
        return Ok((own.clone(), false));
    };
    match scope_of(&rules, own) {
        Ok(scope) => Ok((scope, rules.mmi_off)),
        Err(error) => {
            tracing::warn!(%error, "the stored rules do not hold");
            Ok((own.clone(), false))
        }
    }
}

pub(super) fn rules_version(journal: &mut Journal) -> Result<u64, JournalError> {
    Ok(stored_rules(journal)?.map_or(0, |rules| rules.version))
}

fn stored_rules(journal: &Journal) -> Result<Option<wire::Rules>, JournalError> {
    Ok(journal
        .meta(RULES)?
        .and_then(|rules| wire::Rules::decode(rules.as_slice()).ok()))
}

/// Rules add to the image's own excludes and may replace the roots.
fn scope_of(rules: &wire::Rules, own: &Scope) -> Result<Scope, ScopeError> {
    let theirs = Scope::from_bytes(&rules.roots, &rules.excludes)?;
    let roots = if theirs.roots().is_empty() {
        own.roots()
    } else {
        theirs.roots()
    };
    Scope::new(
        roots.to_vec(),
        own.excludes().iter().chain(theirs.excludes()).cloned(),
    )
}

async fn take_rules(config: &Config, ends: &Ends, rules: wire::Rules) -> Result<(), LinkError> {
    let scope = match scope_of(&rules, &config.scope) {
        Ok(scope) => scope,
        // The old ones hold; breaking the stream over it would only bring the same rules again.
        Err(error) => {
            tracing::error!(%error, version = rules.version, "the appliance's rules are refused");
            return Ok(());
        }
    };
    let (version, mmi_off) = (rules.version, rules.mmi_off);
    let store = move |journal: &mut Journal| {
        let is_newer = rules.version > rules_version(journal)?;
        if is_newer {
            journal.set_meta(RULES, &rules.encode_to_vec())?;
        }
        Ok(is_newer)
    };
    if ends.journal.ask(store).await? {
        ends.mmi.set_off(mmi_off);
        ends.files
            .send(Request::Report(ControlKind::Rules, String::new(), version));
        ends.files.send(Request::Scope(scope));
    }
    Ok(())
}

async fn send_events(
    ends: &Ends,
    acked: u64,
    outbound: &Outbound,
) -> Result<Infallible, LinkError> {
    let mut sent = acked;
    let mut last_seq = ends.journal.last_seq();
    loop {
        while sent < *last_seq.borrow_and_update() {
            let events = ends
                .journal
                .ask(move |journal| journal.events_after(sent, BATCH_BYTES))
                .await?;
            let Some(last) = events.last() else { break };
            sent = last.seq;
            send(outbound, FromPhone::Batch(batch::pack(events))).await?;
        }
        last_seq.changed().await.map_err(|_| JournalError::Ended)?;
    }
}

async fn send_chunks(
    ends: &Ends,
    mut needed: mpsc::Receiver<Vec<Hash>>,
    outbound: &Outbound,
) -> Result<Infallible, LinkError> {
    while let Some(hashes) = needed.recv().await {
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for hash in hashes {
            match ends.journal.ask(move |journal| journal.chunk(hash)).await {
                Ok(chunk) => {
                    bytes += chunk.zstd.len();
                    chunks.push(chunk);
                }
                // Its events have been acknowledged since it was asked for.
                Err(JournalError::NoSuchChunk(hash)) => {
                    tracing::debug!(%hash, "asked for a chunk that is gone")
                }
                Err(error) => return Err(error.into()),
            }
            if bytes >= CHUNKS_BYTES {
                bytes = 0;
                send(
                    outbound,
                    FromPhone::Chunks(wire::Chunks {
                        chunks: std::mem::take(&mut chunks),
                    }),
                )
                .await?;
            }
        }
        if !chunks.is_empty() {
            send(outbound, FromPhone::Chunks(wire::Chunks { chunks })).await?;
        }
    }
    Err(LinkError::Ended)
}

async fn receive_all(
    config: &Config,
    ends: &Ends,
    mut inbound: Streaming<ApplianceMessage>,
    need: mpsc::Sender<Vec<Hash>>,
    order: mpsc::Sender<Order>,
) -> Result<Infallible, LinkError> {
    let flood = |_| LinkError::Contract("number of unanswered requests".into());
    loop {
        match receive(&mut inbound).await? {
            FromAppliance::Ack(wire::Ack { seq }) => {
                if seq > *ends.journal.last_seq().borrow() {
                    return Err(LinkError::Contract(format!(
                        "acknowledgement of {seq}, which was never sent,"
                    )));
                }
                match ends.journal.ask(move |journal| journal.ack(seq)).await {
                    // It will come again; a full disk must not break the stream that empties the journal.
                    Err(JournalError::Full) => tracing::warn!("no room to trim the journal"),
                    result => result?,
                }
            }
            FromAppliance::NeedChunks(wire::NeedChunks { hashes }) => {
                need.try_send(check_hashes(&hashes)?)
                    .map_err(|_| flood(()))?;
            }
            FromAppliance::Command(command) => order
                .try_send(Order::Command(command))
                .map_err(|_| flood(()))?,
            FromAppliance::Chunks(chunks) => order
                .try_send(Order::Chunks(chunks))
                .map_err(|_| flood(()))?,
            FromAppliance::Rules(rules) => take_rules(config, ends, rules).await?,
            FromAppliance::Welcome(_) => return Err(LinkError::Contract("second Welcome".into())),
        }
    }
}

fn check_hashes(hashes: &[Vec<u8>]) -> Result<Vec<Hash>, LinkError> {
    if hashes.len() > NEED_CHUNKS_MAX {
        return Err(LinkError::Contract("NeedChunks, which is too long,".into()));
    }
    let hashes = hashes
        .iter()
        .map(|hash| Hash::try_from(hash.as_slice()))
        .collect::<Result<_, _>>();
    hashes.map_err(|error| LinkError::Contract(format!("NeedChunks ({error})")))
}

async fn receive(inbound: &mut Streaming<ApplianceMessage>) -> Result<FromAppliance, LinkError> {
    let message = inbound.message().await?.ok_or(LinkError::Ended)?;
    message
        .message
        .ok_or_else(|| LinkError::Contract("empty or unknown message".into()))
}

pub(super) async fn send(outbound: &Outbound, message: FromPhone) -> Result<(), LinkError> {
    outbound
        .send(PhoneMessage {
            message: Some(message),
        })
        .await
        .map_err(|_| LinkError::Ended)
}
