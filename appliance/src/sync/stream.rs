//! One phone's stream, from its Hello to its end.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use store::{BlobHash, PhoneId, StoreError};
use sync_protocol::batch::{self, BatchError};
use sync_protocol::wire::appliance_message::Message as ToPhone;
use sync_protocol::wire::phone_message::Message as FromPhone;
use sync_protocol::{Hash, chunking, wire};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::{debug, info};

use super::ingest::{Batch, Ingest, IngestError, chunks_of};
use super::{Attached, Closing, Currency, SyncService, check_version, internal};
use crate::log::LogError;
use crate::phones::now_us;

/// A phone that opened a stream says Hello at once.
const HELLO_MAX: Duration = Duration::from_secs(30);
/// Chunks wanted by the phone in one message.
const WANTED_MAX: usize = sync_protocol::limits::NEED_CHUNKS_MAX;
/// Commands that a phone has not answered yet: agents queue only some dozens.
const COMMANDS_UNANSWERED_MAX: usize = 32;
/// Answers that wait for the events they are as of: as many as are under way, and some.
const RESULTS_WAITING_MAX: usize = 2 * COMMANDS_UNANSWERED_MAX;
/// Root hashes that wait for the events they are of.
const ROOTS_WAITING_MAX: usize = 16;

type Outgoing = mpsc::Sender<Result<wire::ApplianceMessage, Status>>;

/// Serves one stream; its end, if not by the phone, is told to the phone as a status.
pub(super) async fn serve(
    service: SyncService,
    phone: PhoneId,
    incoming: Streaming<wire::PhoneMessage>,
    outgoing: Outgoing,
) {
    let result = tokio::select! {
        result = converse(&service, &phone, incoming, &outgoing) => result,
        () = service.stop.cancelled() => Err(Status::unavailable("the appliance is stopping")),
        () = outgoing.closed() => Ok(()),
    };
    match result {
        Ok(()) => info!(%phone, "phone left"),
        Err(status) => {
            info!(%phone, status = status.message(), "stream closed");
            // An error means that the phone is gone already.
            let _ = outgoing.send(Err(status)).await;
        }
    }
}

async fn converse(
    service: &SyncService,
    phone: &PhoneId,
    mut incoming: Streaming<wire::PhoneMessage>,
    outgoing: &Outgoing,
) -> Result<(), Status> {
    let hello = tokio::time::timeout(HELLO_MAX, incoming.message())
        .await
        .map_err(|_| Status::invalid_argument(format!("no Hello within {} s", HELLO_MAX.as_secs())))??;
    let hello = match hello.and_then(|message| message.message) {
        Some(FromPhone::Hello(hello)) => hello,
        Some(_) => return Err(Status::invalid_argument("the first message must be Hello")),
        None => return Ok(()),
    };
    check_version(hello.protocol_version)?;
    let mut attached = service.links.attach(phone);
    let acked = welcome(service, phone, &hello, attached.currency()).await?;
    info!(%phone, acked, agent = hello.agent_version, "phone streams");
    let welcome = wire::Welcome { acked_seq: acked, rules: None, wall_us: now_us() as i64 };
    tell(outgoing, ToPhone::Welcome(welcome)).await?;
    let (resending, settling, to) = (service.commands.clone(), service.proofs.clone(), phone.clone());
    service.tasks.spawn_blocking(move || {
        if let Err(error) = resending.resend(&to) {
            tracing::warn!(phone = %to, %error, "commands that wait for the phone cannot be sent");
        }
        settling.settle_doubts(&to);
    });
    let mut stream = Stream {
        service,
        phone,
        outgoing,
        currency: attached.currency(),
        ingest: Ingest::new(acked),
        acked,
        unanswered: 0,
        roots: Vec::new(),
        results: Vec::new(),
    };
    stream.run(&mut incoming, &mut attached).await
}

/// Finds where the phone goes on, and asks it to read its files again if nothing else can mend what is missing.
async fn welcome(
    service: &SyncService,
    phone: &PhoneId,
    hello: &wire::Hello,
    currency: Currency,
) -> Result<u64, Status> {
    let service = service.clone();
    let (phone, hello) = (phone.clone(), hello.clone());
    blocking(move || {
        let (first, last) = (hello.first_unacked_seq, hello.last_seq);
        if first == 0 || last.checked_add(1).is_none_or(|next| first > next) {
            let text = format!("Hello: a journal from {first} to {last} cannot be");
            return Err(Status::invalid_argument(text));
        }
        // A stream that was displaced while it waited must not move the journal under the newer one.
        if !currency.holds() {
            return Err(closing_status(Closing::Displaced));
        }
        service.phones.seen(&phone, now_us()).map_err(|error| internal("noting the phone", &error))?;
        let joined = service.logs.join(&phone, &hello.journal_id, first, last).map_err(log_status)?;
        if joined.broken {
            tracing::warn!(%phone, acked = joined.acked, "the phone's journal does not continue its log");
            service.commands.rescan(&phone, b"/").map_err(|error| internal("asking for a scan", &error))?;
        }
        service.replays.follow(&phone);
        Ok(joined.acked)
    })
    .await
}

struct Stream<'a> {
    service: &'a SyncService,
    phone: &'a PhoneId,
    outgoing: &'a Outgoing,
    currency: Currency,
    ingest: Ingest,
    acked: u64,
    unanswered: usize,
    /// Root hashes told by the phone for events that are not durable yet.
    roots: Vec<wire::HaveRoot>,
    /// Answers to commands, as of events that are not durable yet.
    results: Vec<wire::CommandResult>,
}

impl Stream<'_> {
    async fn run(
        &mut self,
        incoming: &mut Streaming<wire::PhoneMessage>,
        attached: &mut Attached,
    ) -> Result<(), Status> {
        loop {
            tokio::select! {
                why = &mut attached.closing => return Err(closing_status(why.unwrap_or(Closing::Displaced))),
                Some(message) = attached.answers.recv() => self.forward(message).await,
                Some(message) = attached.to_send.recv(), if self.unanswered < COMMANDS_UNANSWERED_MAX => {
                    self.unanswered += 1;
                    self.forward(message).await;
                }
                message = incoming.message() => match message? {
                    None => return Ok(()),
                    Some(message) => self.take(message).await?,
                },
            }
        }
    }

    async fn take(&mut self, message: wire::PhoneMessage) -> Result<(), Status> {
        match message.message {
            Some(FromPhone::Batch(batch)) => self.take_batch(batch).await,
            Some(FromPhone::Chunks(chunks)) => self.take_chunks(chunks).await,
            Some(FromPhone::Result(_)) if self.results.len() >= RESULTS_WAITING_MAX => {
                Err(Status::resource_exhausted("too many answers as of events that have not come"))
            }
            Some(FromPhone::Result(result)) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                self.results.push(result);
                self.take_results().await
            }
            Some(FromPhone::NeedChunks(wanted)) if wanted.hashes.len() > WANTED_MAX => {
                Err(Status::invalid_argument(format!("NeedChunks: {} hashes", wanted.hashes.len())))
            }
            Some(FromPhone::NeedChunks(wanted)) => {
                let (commands, phone) = (self.service.commands.clone(), self.phone.clone());
                let sending = move || commands.send_chunks(&phone, &wanted.hashes);
                // Not awaited: what it sends passes through this very loop.
                self.service.tasks.spawn_blocking(move || {
                    if let Err(error) = sending() {
                        debug!(%error, "chunks are not sent");
                    }
                });
                Ok(())
            }
            Some(FromPhone::Root(_)) if self.roots.len() >= ROOTS_WAITING_MAX => {
                Err(Status::resource_exhausted("too many root hashes for events that have not come"))
            }
            Some(FromPhone::Root(root)) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                self.roots.push(root);
                self.tell_roots();
                Ok(())
            }
            Some(FromPhone::Hello(_)) => Err(Status::invalid_argument("a second Hello")),
            None => Err(Status::invalid_argument("a message of a kind that this appliance does not know")),
        }
    }

    async fn take_batch(&mut self, batch: wire::Batch) -> Result<(), Status> {
        let blobs = self.service.blobs.clone();
        let (batch, missing) = blocking(move || {
            let events = batch::unpack(&batch).map_err(|error| batch_status(batch.first_seq, &error))?;
            let named: Vec<Hash> = chunks_of(&events).into_iter().collect();
            let hashes: Vec<BlobHash> = named.iter().map(|hash| BlobHash::from(hash.0)).collect();
            let present = blobs.has_many(&hashes).map_err(|error| store_status(&error))?;
            let missing = named.into_iter().zip(present).filter(|(_, there)| !there).map(|(hash, _)| hash);
            Ok((Batch { first_seq: batch.first_seq, events }, missing.collect::<HashSet<_>>()))
        })
        .await?;
        self.ingest.add(batch, missing).map_err(|error| match error {
            IngestError::Gap { .. } => Status::invalid_argument(error.to_string()),
            IngestError::TooFarAhead => Status::resource_exhausted(error.to_string()),
        })?;
        self.ask_for_chunks().await?;
        self.store_ready().await
    }

    async fn ask_for_chunks(&mut self) -> Result<(), Status> {
        while let Some(hashes) = self.ingest.request() {
            let hashes = hashes.into_iter().map(Hash::to_vec).collect();
            tell(self.outgoing, ToPhone::NeedChunks(wire::NeedChunks { hashes })).await?;
        }
        Ok(())
    }

    async fn take_chunks(&mut self, chunks: wire::Chunks) -> Result<(), Status> {
        let asked = |data: &wire::ChunkData| {
            Hash::try_from(data.hash.as_slice()).is_ok_and(|hash| self.ingest.wants(&hash))
        };
        let wanted: Vec<wire::ChunkData> = chunks.chunks.into_iter().filter(asked).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let blobs = self.service.blobs.clone();
        let stored = blocking(move || {
            let mut hashes = Vec::with_capacity(wanted.len());
            let mut contents = Vec::with_capacity(wanted.len());
            for data in &wanted {
                let (hash, bytes) = chunking::unpack(data).map_err(|e| Status::invalid_argument(e.to_string()))?;
                hashes.push(hash);
                contents.push(Bytes::from(bytes));
            }
            blobs.put_many(&contents).map_err(|error| store_status(&error))?;
            Ok(hashes)
        })
        .await?;
        self.ingest.stored(&stored);
        self.ask_for_chunks().await?;
        self.store_ready().await
    }

    /// Stores every batch that is complete, and acknowledges it once it is durable.
    async fn store_ready(&mut self) -> Result<(), Status> {
        let mut ready = Vec::new();
        while let Some(batch) = self.ingest.ready() {
            ready.push(batch);
        }
        if ready.is_empty() {
            return Ok(());
        }
        let (logs, phone, currency) = (self.service.logs.clone(), self.phone.clone(), self.currency.clone());
        let acked = blocking(move || {
            let mut acked = 0;
            for batch in ready {
                let current = || currency.holds();
                acked = logs.append_from_phone(&phone, batch.first_seq, batch.events, current).map_err(log_status)?;
            }
            Ok(acked)
        })
        .await?;
        self.acked = acked;
        tell(self.outgoing, ToPhone::Ack(wire::Ack { seq: acked })).await?;
        self.tell_roots();
        self.take_results().await
    }

    /// Takes the answers as of events that are durable by now.
    async fn take_results(&mut self) -> Result<(), Status> {
        let acked = self.acked;
        let reached: Vec<wire::CommandResult> = self.results.extract_if(.., |result| result.at_seq <= acked).collect();
        if reached.is_empty() {
            return Ok(());
        }
        let (commands, phone) = (self.service.commands.clone(), self.phone.clone());
        blocking(move || {
            let answered = reached.into_iter().try_for_each(|result| commands.answered(&phone, result));
            answered.map_err(|e| internal("noting an answer", &e))
        })
        .await
    }

    fn tell_roots(&mut self) {
        let acked = self.acked;
        let (reached, waiting) = std::mem::take(&mut self.roots).into_iter().partition(|root| root.seq <= acked);
        self.roots = waiting;
        let reached: Vec<wire::HaveRoot> = reached;
        for root in reached {
            self.service.commands.told_root(self.phone, &root);
            self.service.replays.have_root(self.phone, root);
        }
    }

    async fn forward(&self, message: wire::ApplianceMessage) {
        // The phone being gone is noticed by `outgoing.closed()`.
        let _ = self.outgoing.send(Ok(message)).await;
    }
}

async fn tell(outgoing: &Outgoing, message: ToPhone) -> Result<(), Status> {
    let message = wire::ApplianceMessage { message: Some(message) };
    outgoing.send(Ok(message)).await.map_err(|_| Status::cancelled("the phone left"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::unavailable("the appliance is stopping"))?
}

fn closing_status(why: Closing) -> Status {
    match why {
        Closing::Displaced => Status::aborted("the phone opened a newer stream"),
        Closing::Quarantined => Status::permission_denied("the phone was put into quarantine"),
    }
}

fn batch_status(first_seq: u64, error: &BatchError) -> Status {
    Status::invalid_argument(format!("the batch from {first_seq}: {}", crate::chain::Chain(error)))
}

fn log_status(error: LogError) -> Status {
    match &error {
        LogError::Gap { .. } | LogError::JournalId(_) => Status::invalid_argument(error.to_string()),
        LogError::Replaced => closing_status(Closing::Displaced),
        LogError::Store { source, .. } => store_status(source),
        LogError::Damaged { .. } | LogError::Records(_) => internal("the phone's log", &error),
    }
}

fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::DiskFull { .. } => {
            tracing::error!(%error, "nothing can be stored");
            Status::resource_exhausted("the appliance's disk is full; try later")
        }
        other => internal("storing what the phone sent", other),
    }
}
