//! Phones that are connected now, and the way to tell them something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use store::PhoneId;
use sync_protocol::wire;
use sync_protocol::wire::appliance_message::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::live::{Live, Notice};

/// Messages to one phone that wait to be sent.
const WAITING_MAX: usize = 256;

/// Why we close a phone's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The same phone opened a newer one.
    Displaced,
    /// The phone was put into quarantine.
    Quarantined,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the phone is not connected")]
    NotConnected,
    #[error("the phone does not keep up: {WAITING_MAX} messages wait for it")]
    Congested,
}

/// The register of open streams: at most one a phone.
#[derive(Clone)]
pub struct Links {
    links: Arc<Mutex<State>>,
    live: Live,
}

#[derive(Default)]
struct State {
    by_phone: HashMap<PhoneId, Link>,
    /// Streams so far: tells a phone's newer stream from its older.
    count: u64,
}

struct Link {
    number: u64,
    sender: mpsc::Sender<wire::ApplianceMessage>,
    /// What answers the phone's own requests: never waits behind commands, which may wait for just that.
    answers: mpsc::Sender<wire::ApplianceMessage>,
    close: oneshot::Sender<Closing>,
    gone: CancellationToken,
}

/// One open stream's entry in the register; dropping it takes it out.
pub struct Attached {
    links: Links,
    phone: PhoneId,
    number: u64,
    pub to_send: mpsc::Receiver<wire::ApplianceMessage>,
    pub answers: mpsc::Receiver<wire::ApplianceMessage>,
    pub closing: oneshot::Receiver<Closing>,
    _gone: DropGuard,
}

/// Tells whether a stream is still its phone's present one.
#[derive(Clone)]
pub struct Currency {
    links: Links,
    phone: PhoneId,
    number: u64,
}

impl Links {
    pub fn new(live: Live) -> Links {
        Links { links: Arc::default(), live }
    }

    /// Enters a stream of `phone`, closing an older one.
    pub fn attach(&self, phone: &PhoneId) -> Attached {
        let (sender, to_send) = mpsc::channel(WAITING_MAX);
        let (answers_sender, answers) = mpsc::channel(WAITING_MAX);
        let (close, closing) = oneshot::channel();
        let mut state = self.state();
        state.count += 1;
        let number = state.count;
        let gone = CancellationToken::new();
        let link = Link { number, sender, answers: answers_sender, close, gone: gone.clone() };
        if let Some(older) = state.by_phone.insert(phone.clone(), link) {
            // An error means that it ended by itself just now.
            let _ = older.close.send(Closing::Displaced);
        }
        drop(state);
        self.live.tell(Notice::Phone { phone: phone.clone() });
        let _gone = gone.drop_guard();
        Attached { links: self.clone(), phone: phone.clone(), number, to_send, answers, closing, _gone }
    }

    pub fn is_connected(&self, phone: &PhoneId) -> bool {
        self.state().by_phone.contains_key(phone)
    }

    /// Cancelled when the phone's present stream ends: what was asked by it is not answered any more.
    pub fn gone(&self, phone: &PhoneId) -> Result<CancellationToken, SendError> {
        self.state().by_phone.get(phone).map(|link| link.gone.clone()).ok_or(SendError::NotConnected)
    }

    /// Hands a command to the phone's stream without waiting.
    pub fn send(&self, phone: &PhoneId, command: wire::Command) -> Result<(), SendError> {
        let message = wire::ApplianceMessage { message: Some(Message::Command(command)) };
        let state = self.state();
        let link = state.by_phone.get(phone).ok_or(SendError::NotConnected)?;
        link.sender.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Congested,
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
        })
    }

    /// Hands chunks that the phone asked for to its stream. Blocks while many wait.
    pub fn send_chunks(&self, phone: &PhoneId, chunks: wire::Chunks) -> Result<(), SendError> {
        let message = wire::ApplianceMessage { message: Some(Message::Chunks(chunks)) };
        let answers = self.state().by_phone.get(phone).map(|link| link.answers.clone());
        let answers = answers.ok_or(SendError::NotConnected)?;
        answers.blocking_send(message).map_err(|_| SendError::NotConnected)
    }

    /// Closes the phone's stream, if it has one.
    pub fn close(&self, phone: &PhoneId, why: Closing) {
        if let Some(link) = self.state().by_phone.remove(phone) {
            let _ = link.close.send(why);
        }
        self.live.tell(Notice::Phone { phone: phone.clone() });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    pub fn currency(&self) -> Currency {
        Currency { links: self.links.clone(), phone: self.phone.clone(), number: self.number }
    }
}

impl Currency {
    pub fn holds(&self) -> bool {
        self.links.state().by_phone.get(&self.phone).is_some_and(|link| link.number == self.number)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.links.state();
        if state.by_phone.get(&self.phone).is_some_and(|link| link.number == self.number) {
            state.by_phone.remove(&self.phone);
        }
        drop(state);
        self.links.live.tell(Notice::Phone { phone: self.phone.clone() });
    }
}
