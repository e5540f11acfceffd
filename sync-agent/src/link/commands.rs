//! Commands of the appliance, one after the other: checked, carried out by whom they concern, answered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use sync_protocol::chunking::{self, ChunkError};
use sync_protocol::event::{EventError, FileChange, FileOp, Frame};
use sync_protocol::hash::Hash;
use sync_protocol::limits::{
    APPLY_CHANGES_MAX, INPUT_FRAMES_MAX, LIST_ENTRIES_MAX, TEXT_BYTES_MAX,
};
use sync_protocol::path::{PathError, PhonePath};
use sync_protocol::wire::command::Command as Kind;
use sync_protocol::wire::phone_message::Message as FromPhone;
use sync_protocol::wire::{self, Command, CommandResult, CommandStatus, FileKind};
use tokio::sync::mpsc;

use super::stream::{Outbound, send};
use super::{Ends, LinkError};
use crate::apply::files::{ApplyJob, Base};
use crate::apply::spool::Spool;
use crate::config::Config;
use crate::control_points::files::Request;

/// What the receiver hands over, in the order it came.
pub(super) enum Order {
    Command(Command),
    Chunks(wire::Chunks),
}

/// What is remembered from stream to stream.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Input is at most once.
    last_input: u64,
}

/// Chunks asked for at once.
const CHUNKS_ASKED_MAX: usize = 256;
/// How long chunks that were asked for may take to come.
const CHUNKS_TIMEOUT: Duration = Duration::from_secs(60);

/// Commands that may come while chunks are awaited.
const COMMANDS_WAITING_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the command is empty or unknown")]
    Unknown,
    #[error("{what}: {count}, more than {max}")]
    TooMuch {
        what: &'static str,
        count: usize,
        max: usize,
    },
    #[error("a change has no base")]
    NoBase,
    #[error(transparent)]
    Event(#[from] EventError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("a base is no hash")]
    Base(#[from] sync_protocol::hash::NotAHash),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error("this input was given before")]
    Repeated,
}

pub(super) async fn run(
    config: &Config,
    ends: &Ends,
    session: &mut Session,
    orders: mpsc::Receiver<Order>,
    outbound: &Outbound,
) -> Result<Infallible, LinkError> {
    let mut executor = Executor {
        config,
        ends,
        session,
        orders,
        outbound,
        waiting: VecDeque::new(),
        spool: None,
    };
    loop {
        let command = executor.next_command().await?;
        let id = command.id;
        let answer = executor
            .carry_out(command)
            .await?
            .unwrap_or_else(|refusal| {
                let mut result = CommandResult {
                    command_id: id,
                    text: refusal.to_string(),
                    ..Default::default()
                };
                result
                    .text
                    .truncate(result.text.floor_char_boundary(TEXT_BYTES_MAX));
                result.set_status(CommandStatus::Refused);
                FromPhone::Result(result)
            });
        send(outbound, answer).await?;
    }
}

struct Executor<'a> {
    config: &'a Config,
    ends: &'a Ends,
    session: &'a mut Session,
    orders: mpsc::Receiver<Order>,
    outbound: &'a Outbound,
    /// Commands that came while chunks were awaited.
    waiting: VecDeque<Command>,
    /// Chunks for the next Apply.
    spool: Option<Spool>,
}

impl Executor<'_> {
    async fn next_command(&mut self) -> Result<Command, LinkError> {
        loop {
            if let Some(command) = self.waiting.pop_front() {
                return Ok(command);
            }
            match self.orders.recv().await.ok_or(LinkError::Ended)? {
                Order::Command(command) => return Ok(command),
                Order::Chunks(chunks) => self.keep(&chunks.chunks)?,
            }
        }
    }

    /// Refusals are answered; errors end the stream.
    async fn carry_out(
        &mut self,
        command: Command,
    ) -> Result<Result<FromPhone, Refusal>, LinkError> {
        let id = command.id;
        let mut result = CommandResult {
            command_id: id,
            ..Default::default()
        };
        result.set_status(CommandStatus::Done);
        let Some(kind) = command.command else {
            return Ok(Err(Refusal::Unknown));
        };
        match kind {
            Kind::Input(input) => {
                let frames = match self.check_input(id, input) {
                    Ok(frames) => frames,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                let (status, text) = self.ends.drive.input(frames).await;
                result.text = text;
                result.set_status(status);
            }
            Kind::Lease(lease) => {
                let (status, text) = self.ends.drive.lease(lease).await;
                result.text = text;
                result.set_status(status);
            }
            Kind::Apply(apply) => {
                let changes = match check_apply(&apply) {
                    Ok(changes) => changes,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                return Ok(Ok(FromPhone::Result(
                    self.apply(id, changes, &apply.chunks).await?,
                )));
            }
            Kind::Root(wire::RootRequest {}) => {
                return Ok(Ok(FromPhone::Root(self.root(id).await?)));
            }
            Kind::List(request) => match PhonePath::new(request.path) {
                Ok(path) => self.list(&mut result, path, &request.after).await?,
                Err(error) => return Ok(Err(error.into())),
            },
            Kind::Rescan(request) => match PhonePath::new(request.path) {
                Ok(path) => {
                    let rescan = |reply| Request::Rescan(path, request.resend, reply);
                    if !self.ends.files.ask(rescan).await.ok_or(LinkError::Ended)? {
                        result.set_status(CommandStatus::Failed);
                    }
                }
                Err(error) => return Ok(Err(error.into())),
            },
        }
        Ok(Ok(FromPhone::Result(result)))
    }

    fn check_input(&mut self, id: u64, input: wire::Input) -> Result<Vec<Frame>, Refusal> {
        if id <= self.session.last_input {
            return Err(Refusal::Repeated);
        }
        self.session.last_input = id;
        check_count("frames", input.frames.len(), INPUT_FRAMES_MAX)?;
        Ok(input
            .frames
            .into_iter()
            .map(Frame::try_from)
            .collect::<Result<_, _>>()?)
    }

    async fn root(&self, command_id: u64) -> Result<wire::HaveRoot, LinkError> {
        let answer = self
            .ends
            .files
            .ask(Request::Root)
            .await
            .ok_or(LinkError::Ended)?;
        let version = self.ends.journal.ask(super::stream::rules_version).await?;
        let bytes = |paths: &[PhonePath]| paths.iter().map(PhonePath::to_vec).collect();
        Ok(wire::HaveRoot {
            command_id,
            seq: answer.seq,
            root: answer.root.to_vec(),
            rules_version: version,
            roots: bytes(answer.scope.roots()),
            excludes: bytes(answer.scope.excludes()),
        })
    }

    async fn list(
        &self,
        result: &mut CommandResult,
        path: PhonePath,
        after: &[u8],
    ) -> Result<(), LinkError> {
        let after = after.to_vec();
        let answer = self
            .ends
            .files
            .ask(|reply| Request::List(path, after, LIST_ENTRIES_MAX, reply))
            .await
            .ok_or(LinkError::Ended)?;
        let Some(answer) = answer else {
            result.text = "the journal cannot be written".into();
            result.set_status(CommandStatus::Failed);
            return Ok(());
        };
        let listed = answer.entries.into_iter();
        result.entries = listed
            .map(|(name, entry)| wire::ListedEntry {
                name,
                kind: FileKind::from(entry.kind).into(),
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                size: entry.size,
                content: entry.content.to_vec(),
            })
            .collect();
        (result.more, result.at_seq) = (answer.more, answer.seq);
        Ok(())
    }

    async fn apply(
        &mut self,
        command_id: u64,
        changes: Vec<(FileChange, Base)>,
        chunks: &[wire::ChunkData],
    ) -> Result<CommandResult, LinkError> {
        let earlier = self
            .ends
            .journal
            .ask(move |journal| journal.result(command_id))
            .await?;
        if let Some(earlier) = earlier {
            return Ok(earlier);
        }
        let gathered = match self.keep(chunks) {
            Ok(()) => self.gather(&changes).await,
            Err(error) => Err(error),
        };
        let spool = self.spool.take();
        match (gathered, spool) {
            (Ok(()), Some(chunks)) => {
                let job = ApplyJob {
                    command_id,
                    changes,
                    chunks,
                };
                self.ends
                    .files
                    .ask(|reply| Request::Apply(job, reply))
                    .await
                    .ok_or(LinkError::Ended)
            }
            (Err(LinkError::Spool(error)), _) => {
                let mut result = CommandResult {
                    command_id,
                    text: error.to_string(),
                    ..Default::default()
                };
                result.set_status(CommandStatus::Failed);
                Ok(result)
            }
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(LinkError::Ended),
        }
    }

    /// Asks for the chunks that are missing until they are here.
    async fn gather(&mut self, changes: &[(FileChange, Base)]) -> Result<(), LinkError> {
        self.spool()?;
        let nodes = changes.iter().filter_map(|(change, _)| match &change.op {
            FileOp::Put(node) => Some(node),
            _ => None,
        });
        let needed: Vec<Hash> = nodes
            .flat_map(|node| node.chunks().iter().map(|chunk| chunk.hash))
            .collect();
        for group in needed.chunks(CHUNKS_ASKED_MAX) {
            let missing = |executor: &Self| -> Vec<Vec<u8>> {
                let spool = executor.spool.as_ref();
                group
                    .iter()
                    .filter(|hash| !spool.is_some_and(|spool| spool.has(**hash)))
                    .map(|hash| hash.to_vec())
                    .collect()
            };
            let hashes = missing(self);
            if hashes.is_empty() {
                continue;
            }
            send(
                self.outbound,
                FromPhone::NeedChunks(wire::NeedChunks { hashes }),
            )
            .await?;
            while !missing(self).is_empty() {
                let order = tokio::time::timeout(CHUNKS_TIMEOUT, self.orders.recv());
                match order
                    .await
                    .map_err(|_| LinkError::Silence)?
                    .ok_or(LinkError::Ended)?
                {
                    Order::Chunks(chunks) => self.keep(&chunks.chunks)?,
                    Order::Command(_) if self.waiting.len() >= COMMANDS_WAITING_MAX => {
                        return Err(LinkError::Contract("number of commands".into()));
                    }
                    Order::Command(command) => self.waiting.push_back(command),
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, chunks: &[wire::ChunkData]) -> Result<(), LinkError> {
        for chunk in chunks {
            let (hash, bytes) =
                chunking::unpack(chunk).map_err(|error| LinkError::Contract(error.to_string()))?;
            self.spool()?.put(hash, &bytes).map_err(LinkError::Spool)?;
        }
        Ok(())
    }

    fn spool(&mut self) -> Result<&mut Spool, LinkError> {
        if self.spool.is_none() {
            self.spool = Some(Spool::new(&self.config.state).map_err(LinkError::Spool)?);
        }
        self.spool.as_mut().ok_or(LinkError::Ended)
    }
}

fn check_apply(apply: &wire::Apply) -> Result<Vec<(FileChange, Base)>, Refusal> {
    check_count("changes", apply.changes.len(), APPLY_CHANGES_MAX)?;
    apply.changes.iter().cloned().map(check_change).collect()
}

fn check_change(change: wire::AppliedChange) -> Result<(FileChange, Base), Refusal> {
    let base = match change.base.ok_or(Refusal::NoBase)? {
        wire::applied_change::Base::BaseEntry(hash) => {
            Base::Entry(Hash::try_from(hash.as_slice())?)
        }
        wire::applied_change::Base::BaseAbsent(true) => Base::Absent,
        wire::applied_change::Base::BaseAny(true) => Base::Any,
        _ => return Err(Refusal::NoBase),
    };
    Ok((change.change.ok_or(Refusal::Unknown)?.try_into()?, base))
}

fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), Refusal> {
    if count > max {
        Err(Refusal::TooMuch { what, count, max })
    } else {
        Ok(())
    }
}
