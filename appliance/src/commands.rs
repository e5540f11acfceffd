//! What the appliance asks of phones, and what became of it.
//!
//! ```text
//!   issue ─▶ outbox ─▶ log ("issued") ─▶ sent ─▶ answered ─▶ log ("outcome")
//!              │                           ▲│
//!              └ not in the log: dropped   └┘ the stream broke: sent again with the same id
//! ```
//!
//! Promises: a file change for a phone is kept until the phone has answered it, across restarts of either side; input is sent at most
//! once, and only to a connected phone; ids rise per phone and are positions of its log. Leaves out: who may ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use serde::{Deserialize, Serialize};
use store::{Blobs, PhoneId, StoreError};
use sync_protocol::event::{Event, Frame, Kind};
use sync_protocol::limits::{CHUNKS_MESSAGE_BYTES_MAX, INPUT_FRAMES_MAX};
use sync_protocol::wire::{self, command};
use sync_protocol::{Hash, chunking};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::log::{LogError, PhoneLogs};
use crate::records::{RecordError, Table};
use crate::sync::{Links, SendError};

/// Commands of one phone that wait for their answers; beyond, help-desk must wait for the phone.
const OUTBOX_MAX: usize = 10_000;
/// Answers that wait to be acted on; then the phones wait.
const ANSWERS_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{OUTBOX_MAX} commands wait for phone {0} already")]
    OutboxFull(PhoneId),
    #[error("a command in the outbox is damaged: {0}")]
    Damaged(String),
    #[error("a chunk for the phone cannot be read: {0}")]
    Chunk(#[source] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error("the phone did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("interrupted")]
    Interrupted,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    id: u64,
    /// The command, encoded, in hex; without chunk data.
    command: String,
}

/// A phone's answer, for whoever acts on it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub phone: PhoneId,
    /// What was asked, if it was kept.
    pub asked: Option<wire::Command>,
    pub result: wire::CommandResult,
}

/// A phone's answer to [`Commands::ask`].
#[derive(Debug, Clone)]
pub enum Reply {
    Result(wire::CommandResult),
    /// Everything up to its seq is in the log.
    Root(wire::HaveRoot),
}

/// Who waits for the answer to which command of which phone.
type Asking = Arc<Mutex<HashMap<(PhoneId, u64), oneshot::Sender<Reply>>>>;

/// One who waits; dropped, nobody does.
struct Awaited {
    asking: Asking,
    key: (PhoneId, u64),
    reply: oneshot::Receiver<Reply>,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        lock(&self.asking).remove(&self.key);
    }
}

#[derive(Clone)]
pub struct Commands {
    logs: PhoneLogs,
    links: Links,
    blobs: Arc<dyn Blobs>,
    outbox: Table<Waiting>,
    answers: mpsc::Sender<Answer>,
    asking: Asking,
}

impl Commands {
    /// The receiver is given the phones' answers.
    pub fn new(logs: PhoneLogs, links: Links, store: &store::Store) -> (Commands, mpsc::Receiver<Answer>) {
        let outbox = Table::new(store.kv.clone(), "outbox");
        let (answers, received) = mpsc::channel(ANSWERS_MAX);
        let asking = Asking::default();
        (Commands { logs, links, blobs: store.blobs.clone(), outbox, answers, asking }, received)
    }

    /// Logs what an operator did with keys and fingers, and hands it to the phone if it is connected. Blocks.
    pub fn input(&self, phone: &PhoneId, frames: Vec<Frame>) -> Result<(), CommandError> {
        for frames in frames.chunks(INPUT_FRAMES_MAX) {
            let id = self.logs.append_ours(phone, |_| frames.iter().cloned().map(Kind::Mmi).collect())?;
            let frames = frames.iter().cloned().map(Into::into).collect();
            let command = wire::Command { id, command: Some(command::Command::Input(wire::Input { frames })) };
            match self.links.send(phone, command) {
                // The twin does it all the same; what follows for files reaches the phone when it is back.
                Ok(()) | Err(SendError::NotConnected) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Logs `ours`, and with it asks for file changes; kept until answered. The chunks they name are in the blob store. Blocks.
    pub fn apply(&self, phone: &PhoneId, ours: Vec<Kind>, changes: Vec<wire::AppliedChange>) -> Result<u64, CommandError> {
        let apply = wire::Apply { changes, chunks: Vec::new() };
        self.keep(phone, ours, command::Command::Apply(apply))
    }

    /// Asks to read `path` again and to send all of it; kept until answered. Blocks.
    pub fn rescan(&self, phone: &PhoneId, path: &[u8]) -> Result<u64, CommandError> {
        self.keep(phone, Vec::new(), command::Command::Rescan(wire::RescanRequest { path: path.to_vec(), resend: true }))
    }

    /// Tells the phone's user that an operator drives, or no longer does. Blocks.
    pub fn lease(&self, phone: &PhoneId, lease: wire::Lease) -> Result<(), CommandError> {
        self.once(phone, command::Command::Lease(lease))
    }

    /// Asks the phone for its root hash; the answer goes to the phone's replay.
    pub async fn ask_root(&self, phone: &PhoneId) -> Result<(), CommandError> {
        if !self.links.is_connected(phone) {
            return Err(SendError::NotConnected.into());
        }
        let (commands, phone) = (self.clone(), phone.clone());
        let ask = move || commands.once(&phone, command::Command::Root(wire::RootRequest {}));
        tokio::task::spawn_blocking(ask).await.map_err(|_| CommandError::Interrupted)?
    }

    /// Asks a question that is not worth keeping, and waits for its answer up to `within`; gives the command's id, too.
    pub async fn ask(
        &self,
        phone: &PhoneId,
        command: command::Command,
        within: Duration,
    ) -> Result<(u64, Reply), CommandError> {
        let gone = self.links.gone(phone)?;
        let (commands, to) = (self.clone(), phone.clone());
        let asked = tokio::task::spawn_blocking(move || commands.await_reply(&to, command));
        let mut awaited = asked.await.map_err(|_| CommandError::Interrupted)??;
        tokio::select! {
            reply = &mut awaited.reply => Ok((awaited.key.1, reply.map_err(|_| CommandError::Interrupted)?)),
            () = gone.cancelled() => Err(SendError::NotConnected.into()),
            () = tokio::time::sleep(within) => Err(CommandError::Silent(within)),
        }
    }

    /// Cancelled when the phone's present stream ends.
    pub fn gone(&self, phone: &PhoneId) -> Result<CancellationToken, CommandError> {
        Ok(self.links.gone(phone)?)
    }

    fn await_reply(&self, phone: &PhoneId, command: command::Command) -> Result<Awaited, CommandError> {
        let command = self.log(phone, command)?;
        let (told, reply) = oneshot::channel();
        let key = (phone.clone(), command.id);
        // Entered before it is sent: the answer may be quick.
        lock(&self.asking).insert(key.clone(), told);
        let awaited = Awaited { asking: self.asking.clone(), key, reply };
        self.transmit(phone, command)?;
        Ok(awaited)
    }

    /// Gives an answer to who waits for it, if anybody does.
    fn reply(&self, phone: &PhoneId, id: u64, reply: Reply) -> bool {
        let waiting = lock(&self.asking).remove(&(phone.clone(), id));
        // An error means that they have just gone away.
        waiting.map(|waiting| drop(waiting.send(reply))).is_some()
    }

    /// A phone told its root hash, and everything up to its seq is in the log.
    pub fn told_root(&self, phone: &PhoneId, root: &wire::HaveRoot) {
        self.reply(phone, root.command_id, Reply::Root(root.clone()));
    }

    /// Commands that `phone` has not answered and will be given again. Blocks.
    pub fn waiting(&self, phone: &PhoneId) -> Result<usize, CommandError> {
        Ok(self.outbox.list_under(&format!("{phone}/"))?.len())
    }

    /// Sends everything that waits for `phone`, in order: it has just connected. Blocks.
    pub fn resend(&self, phone: &PhoneId) -> Result<(), CommandError> {
        for waiting in self.outbox.list_under(&format!("{phone}/"))? {
            let command = decode(&waiting)?;
            if !self.is_logged(phone, &command)? {
                self.outbox.delete(&key(phone, command.id))?;
                continue;
            }
            match self.transmit(phone, command) {
                // What does not fit now is sent when the phone connects again.
                Err(CommandError::Send(_)) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// A phone answered. Blocks.
    pub fn answered(&self, phone: &PhoneId, result: wire::CommandResult) -> Result<(), CommandError> {
        if self.reply(phone, result.command_id, Reply::Result(result.clone())) {
            return Ok(());
        }
        let key = key(phone, result.command_id);
        let asked = self.outbox.get(&key)?.map(|waiting| decode(&waiting)).transpose()?;
        // Input is frequent and answered each time: only its failures are worth keeping.
        if asked.is_some() || result.status() != wire::CommandStatus::Done {
            self.logs.append_ours(phone, |_| vec![Kind::Outcome(result.clone())])?;
        }
        // An error means that we are stopping.
        let _ = self.answers.blocking_send(Answer { phone: phone.clone(), asked, result });
        Ok(())
    }

    /// Gives a kept command to the phone again, if it is there. Blocks.
    pub fn again(&self, phone: &PhoneId, id: u64) -> Result<(), CommandError> {
        let Some(waiting) = self.outbox.get(&key(phone, id))? else { return Ok(()) };
        match self.transmit(phone, decode(&waiting)?) {
            // It is when the phone connects again.
            Err(CommandError::Send(_)) => Ok(()),
            other => other,
        }
    }

    /// The answer to a command was acted on: it is not given to the phone again. Blocks.
    pub fn done(&self, phone: &PhoneId, id: u64) -> Result<(), CommandError> {
        Ok(self.outbox.delete(&key(phone, id))?)
    }

    /// A phone wants chunks of file changes that we asked for. Blocks.
    pub fn send_chunks(&self, phone: &PhoneId, wanted: &[Vec<u8>]) -> Result<(), CommandError> {
        let mut message = wire::Chunks::default();
        let mut bytes = 0;
        for hash in wanted {
            let Ok(hash) = Hash::try_from(hash.as_slice()) else { continue };
            let chunk = match self.blobs.get(&store::BlobHash::from(hash.0)) {
                Ok(chunk) => chunk,
                Err(StoreError::BlobMissing(_) | StoreError::BlobDamaged(_)) => {
                    self.give_up(phone, &hash)?;
                    continue;
                }
                Err(source) => return Err(CommandError::Chunk(source)),
            };
            let packed = chunking::pack(hash, &chunk);
            if bytes + packed.zstd.len() > CHUNKS_MESSAGE_BYTES_MAX {
                self.links.send_chunks(phone, std::mem::take(&mut message))?;
                bytes = 0;
            }
            bytes += packed.zstd.len();
            message.chunks.push(packed);
        }
        if !message.chunks.is_empty() {
            self.links.send_chunks(phone, message)?;
        }
        Ok(())
    }

    /// Answers for the phone what waits for a chunk that is not here any more: it cannot be made, and what comes after it can.
    fn give_up(&self, phone: &PhoneId, lost: &Hash) -> Result<(), CommandError> {
        for waiting in self.outbox.list_under(&format!("{phone}/"))? {
            let command = decode(&waiting)?;
            if names_chunk(&command, lost) {
                let text = format!("chunk {lost} is not stored any more");
                let mut result = wire::CommandResult { command_id: command.id, text, ..Default::default() };
                result.set_status(wire::CommandStatus::Failed);
                self.answered(phone, result)?;
            }
        }
        Ok(())
    }

    /// Whether a kept command is in the log; if not, we crashed before anybody was told of it.
    fn is_logged(&self, phone: &PhoneId, command: &wire::Command) -> Result<bool, CommandError> {
        let there = self.logs.read(phone, command.id, 1)?;
        Ok(matches!(there.first(), Some((_, Event { kind: Kind::Issued(issued), .. })) if issued == command))
    }

    /// Keeps, logs and sends a command; with it, in one step, `ours` is logged.
    fn keep(&self, phone: &PhoneId, mut ours: Vec<Kind>, command: command::Command) -> Result<u64, CommandError> {
        if self.waiting(phone)? >= OUTBOX_MAX {
            return Err(CommandError::OutboxFull(phone.clone()));
        }
        let mut command = wire::Command { id: 0, command: Some(command) };
        self.logs.append_ours_noting(phone, |first| {
            command.id = first + ours.len() as u64;
            let waiting = Waiting { id: command.id, command: hex::encode(command.encode_to_vec()) };
            self.outbox.put(&key(phone, command.id), &waiting)?;
            ours.push(Kind::Issued(command.clone()));
            Ok(ours)
        })?;
        let id = command.id;
        match self.transmit(phone, command) {
            Ok(()) | Err(CommandError::Send(_)) => Ok(id),
            Err(error) => Err(error),
        }
    }

    /// Logs and sends a command that is not worth keeping.
    fn once(&self, phone: &PhoneId, command: command::Command) -> Result<(), CommandError> {
        let command = self.log(phone, command)?;
        self.transmit(phone, command)
    }

    fn log(&self, phone: &PhoneId, command: command::Command) -> Result<wire::Command, CommandError> {
        let command = |id| wire::Command { id, command: Some(command.clone()) };
        let id = self.logs.append_ours(phone, |id| vec![Kind::Issued(command(id))])?;
        Ok(command(id))
    }

    fn transmit(&self, phone: &PhoneId, command: wire::Command) -> Result<(), CommandError> {
        Ok(self.links.send(phone, command)?)
    }
}

/// A command in words, for the log.
pub fn describe(command: &wire::Command) -> String {
    let what = match &command.command {
        None => "unknown".to_owned(),
        Some(command::Command::Input(input)) => format!("input, {} frames", input.frames.len()),
        Some(command::Command::Apply(apply)) => {
            let paths = apply.changes.iter().filter_map(|change| change.change.as_ref());
            let paths: Vec<String> = paths.map(|change| change.path.escape_ascii().to_string()).collect();
            format!("apply {}", paths.join(", "))
        }
        Some(command::Command::Lease(lease)) if lease.on => format!("{} drives", lease.operator),
        Some(command::Command::Lease(_)) => "drive ended".to_owned(),
        Some(command::Command::Root(_)) => "root hash?".to_owned(),
        Some(command::Command::List(list)) => format!("list {}", list.path.escape_ascii()),
        Some(command::Command::Rescan(rescan)) => format!("read {} again", rescan.path.escape_ascii()),
    };
    format!("command {}: {what}", command.id)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a command asks for a file that has this chunk.
fn names_chunk(command: &wire::Command, chunk: &Hash) -> bool {
    let Some(command::Command::Apply(apply)) = &command.command else { return false };
    let ops = apply.changes.iter().filter_map(|change| change.change.as_ref()?.op.as_ref());
    ops.into_iter().any(|op| match op {
        wire::file_change::Op::Put(put) => put.chunks.iter().any(|named| named.hash == chunk.0),
        _ => false,
    })
}

fn key(phone: &PhoneId, id: u64) -> String {
    format!("{phone}/{id:020}")
}

fn decode(waiting: &Waiting) -> Result<wire::Command, CommandError> {
    let bytes = hex::decode(&waiting.command).map_err(|e| CommandError::Damaged(e.to_string()))?;
    wire::Command::decode(bytes.as_slice()).map_err(|e| CommandError::Damaged(e.to_string()))
}
