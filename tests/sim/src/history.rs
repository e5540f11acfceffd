//! What one phone was seen to send, and what it was told of it.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use sync_protocol::event::{Content, Event, FileChange, FileOp, Kind};
use sync_protocol::wire::appliance_message::Message as Down;
use sync_protocol::wire::phone_message::Message as Up;
use sync_protocol::wire::{ApplianceMessage, PhoneMessage};
use sync_protocol::{Hash, batch};

use crate::net::Way;
use crate::os::now_ms;

/// A journal's id.
pub(crate) type JournalId = Vec<u8>;

#[derive(Default)]
pub(crate) struct History {
    /// Of each connection.
    journals: HashMap<u64, JournalId>,
    /// Every event that arrived, by its journal and seq.
    pub(crate) sent: BTreeMap<(JournalId, u64), Hash>,
    /// Up to which seq the phone was told that its events are safe.
    pub(crate) acked: BTreeMap<JournalId, u64>,
    /// What was seen to be wrong.
    pub(crate) wrong: Option<String>,
    /// Of everything that arrived, and when.
    pub(crate) trace: blake3::Hasher,
    pub(crate) messages: u64,
    /// Prints what arrives.
    pub(crate) verbose: Option<String>,
}

impl History {
    /// Notes the messages in `frame`, which arrived by a connection.
    pub(crate) fn saw(&mut self, connection: u64, way: Way, mut frame: &[u8]) {
        while let Some((prefix, rest)) = frame.split_at_checked(5) {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let Some((message, rest)) = rest.split_at_checked(length) else { break };
            frame = rest;
            self.messages += 1;
            self.trace.update(&now_ms().to_le_bytes()).update(&[way as u8]);
            match way {
                Way::Up => self.saw_up(connection, PhoneMessage::decode(message).ok().and_then(|message| message.message)),
                Way::Down => self.saw_down(connection, ApplianceMessage::decode(message).ok().and_then(|message| message.message)),
            }
        }
    }

    fn tell(&self, connection: u64, what: impl FnOnce() -> String) {
        if let Some(phone) = &self.verbose {
            let text = what();
            println!("{:>9} {phone} #{connection} {}", now_ms(), text.chars().take(300).collect::<String>());
        }
    }

    fn saw_up(&mut self, connection: u64, message: Option<Up>) {
        match message {
            Some(Up::Hello(hello)) => {
                self.tell(connection, || format!("> hello {}..{}", hello.first_unacked_seq, hello.last_seq));
                self.journals.insert(connection, hello.journal_id);
            }
            Some(Up::Batch(batch)) => {
                let events = batch::unpack(&batch).unwrap_or_default();
                self.tell(connection, || {
                    let kinds: Vec<_> = events.iter().map(|event| &event.kind).collect();
                    format!("> batch from {}: {kinds:?}", batch.first_seq)
                });
                let Some(journal) = self.journals.get(&connection) else { return };
                for event in events {
                    self.trace.update(&timeless(event.clone()).encode());
                    let (seq, hash) = (event.seq, Hash::of(&event.encode()));
                    let before = self.sent.insert((journal.clone(), seq), hash);
                    if before.is_some_and(|before| before != hash) {
                        self.wrong = Some(format!("event {seq} was sent twice, as different ones"));
                    }
                }
            }
            other => self.tell(connection, || format!("> {other:?}")),
        }
    }

    fn saw_down(&mut self, connection: u64, message: Option<Down>) {
        let acked = match &message {
            Some(Down::Ack(ack)) => ack.seq,
            Some(Down::Welcome(welcome)) => welcome.acked_seq,
            _ => 0,
        };
        self.tell(connection, || format!("< {message:?}"));
        if let Some(journal) = self.journals.get(&connection) {
            let known = self.acked.entry(journal.clone()).or_default();
            *known = acked.max(*known);
        }
    }
}

/// Without what comes from the real clock: the times of directories.
fn timeless(mut event: Event) -> Event {
    if let Kind::File(FileChange { op: FileOp::Put(node), .. }) = &mut event.kind
        && node.content == Content::Directory
    {
        node.mtime_ns = 0;
    }
    event
}
