//! The client's half of RFB 3.8 (RFC 6143), parsed so that what a watcher does can be told from what a watcher asks.
//!
//! Pure: bytes go in, messages come out. A message that RFC 6143 does not define ends the parse, because its length is
//! unknown. [`Hand`] turns pointer and key messages into frames of input.

use std::collections::BTreeSet;

use sync_protocol::event::Frame;

use crate::input::{self, Point};

/// Bytes of a client's handshake: version, security type, shared flag.
const VERSION_BYTES: usize = 12;
/// Encodings a client may list; RFC 6143 knows about a dozen, pseudo-encodings included some dozens.
const ENCODINGS_MAX: usize = 1024;
/// Clipboard text is thrown away, but must end somewhere.
const CUT_TEXT_BYTES_MAX: usize = 1 << 20;
/// Keys that one hand holds.
const KEYS_HELD_MAX: usize = 16;
const LEFT_BUTTON: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    /// To be handed to the machine as it is: handshake, formats, requests for updates.
    Asks(Vec<u8>),
    Key { down: bool, keysym: u32 },
    Pointer { buttons: u8, x: u16, y: u16 },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RfbError {
    #[error("RFB message of unknown type {0}")]
    Unknown(u8),
    #[error("{what}: {count}, more than {max}")]
    TooMuch { what: &'static str, count: usize, max: usize },
}

/// Cuts a client's bytes into messages.
#[derive(Debug, Default)]
pub(crate) struct ClientParser {
    buffer: Vec<u8>,
    handshake: usize,
    /// Clipboard bytes still to be thrown away.
    skip: usize,
}

impl ClientParser {
    /// Takes what came; gives every message that is complete now.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Vec<ClientMessage>, RfbError> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        while let Some(message) = self.next()? {
            messages.extend(message);
        }
        Ok(messages)
    }

    /// The next message, `Some(None)` for one that concerns nobody; `None` when more bytes are needed.
    fn next(&mut self) -> Result<Option<Option<ClientMessage>>, RfbError> {
        if self.skip > 0 {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.drain(..skipped);
            self.skip -= skipped;
            return Ok((skipped > 0).then_some(None));
        }
        const HANDSHAKE: [usize; 3] = [VERSION_BYTES, 1, 1];
        if let Some(&length) = HANDSHAKE.get(self.handshake) {
            return Ok(self.cut(length).map(|bytes| {
                self.handshake += 1;
                Some(ClientMessage::Asks(bytes))
            }));
        }
        let Some(&kind) = self.buffer.first() else { return Ok(None) };
        match kind {
            0 => Ok(self.cut(20).map(|bytes| Some(ClientMessage::Asks(bytes)))),
            2 => {
                let Some(count) = self.u16_at(2) else { return Ok(None) };
                let count = within("encodings", count.into(), ENCODINGS_MAX)?;
                Ok(self.cut(4 + 4 * count).map(|bytes| Some(ClientMessage::Asks(bytes))))
            }
            3 => Ok(self.cut(10).map(|bytes| Some(ClientMessage::Asks(bytes)))),
            4 => Ok(self.cut(8).map(|bytes| {
                let keysym = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                Some(ClientMessage::Key { down: bytes[1] != 0, keysym })
            })),
            5 => Ok(self.cut(6).map(|bytes| {
                let (x, y) = (u16::from_be_bytes([bytes[2], bytes[3]]), u16::from_be_bytes([bytes[4], bytes[5]]));
                Some(ClientMessage::Pointer { buttons: bytes[1], x, y })
            })),
            6 => {
                let (Some(high), Some(low)) = (self.u16_at(4), self.u16_at(6)) else { return Ok(None) };
                let length = (usize::from(high) << 16) | usize::from(low);
                self.skip = within("clipboard bytes", length, CUT_TEXT_BYTES_MAX)?;
                Ok(self.cut(8).map(|_| None))
            }
            other => Err(RfbError::Unknown(other)),
        }
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes([*self.buffer.get(at)?, *self.buffer.get(at + 1)?]))
    }

    fn cut(&mut self, length: usize) -> Option<Vec<u8>> {
        (self.buffer.len() >= length).then(|| self.buffer.drain(..length).collect())
    }
}

fn within(what: &'static str, count: usize, max: usize) -> Result<usize, RfbError> {
    if count <= max { Ok(count) } else { Err(RfbError::TooMuch { what, count, max }) }
}

/// A watcher's pointer and keyboard as the finger and keys of a phone.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    finger: Option<Point>,
    contact: u16,
    held: BTreeSet<u32>,
}

impl Hand {
    /// The frame that a message amounts to, if any.
    pub(crate) fn frame(&mut self, message: &ClientMessage) -> Option<Frame> {
        match *message {
            ClientMessage::Asks(_) => None,
            ClientMessage::Key { down, keysym } => self.key(down, keysym),
            ClientMessage::Pointer { buttons, x, y } => self.pointer(buttons & LEFT_BUTTON != 0, Point { x, y }),
        }
    }

    /// Lifts the finger and every key: the watcher has left.
    pub(crate) fn lift(&mut self) -> Vec<Frame> {
        let finger = self.finger.take().map(|_| input::touch_up());
        let keys = std::mem::take(&mut self.held).into_iter().map(|code| input::key(code, false));
        finger.into_iter().chain(keys).collect()
    }

    fn key(&mut self, down: bool, keysym: u32) -> Option<Frame> {
        let code = input::key_of_keysym(keysym)?;
        let changes = match down {
            // A key that is down and comes again repeats; the phone's kernel repeats by itself.
            true => self.held.len() < KEYS_HELD_MAX && self.held.insert(code),
            false => self.held.remove(&code),
        };
        changes.then(|| input::key(code, down))
    }

    fn pointer(&mut self, pressed: bool, at: Point) -> Option<Frame> {
        match (self.finger, pressed) {
            (None, true) => {
                self.finger = Some(at);
                self.contact = self.contact.wrapping_add(1);
                Some(input::touch_down(at, self.contact))
            }
            (Some(before), true) if before != at => {
                self.finger = Some(at);
                Some(input::touch_move(at))
            }
            (Some(_), false) => {
                self.finger = None;
                Some(input::touch_up())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Vec<u8> {
        let mut bytes = b"RFB 003.008\n\x01\x01".to_vec();
        bytes.extend([0; 20]);
        bytes.extend([2, 0, 0, 1, 0, 0, 0, 16]);
        bytes.extend([3, 0, 0, 0, 0, 0, 1, 104, 2, 208]);
        bytes.extend([4, 1, 0, 0, 0, 0, 0, 0x61]);
        bytes.extend([6, 0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c']);
        bytes.extend([5, 1, 0, 10, 1, 0]);
        bytes
    }

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let bytes = session();
        let whole = ClientParser::default().take(&bytes).expect("parsed");
        for size in 1..bytes.len() {
            let mut parser = ClientParser::default();
            let cut: Vec<_> = bytes.chunks(size).flat_map(|piece| parser.take(piece).expect("parsed")).collect();
            assert_eq!(cut, whole, "cut every {size}");
        }
        assert_eq!(whole.len(), 8);
        assert_eq!(whole[6], ClientMessage::Key { down: true, keysym: 0x61 });
        assert_eq!(whole[7], ClientMessage::Pointer { buttons: 1, x: 10, y: 256 });
    }

    #[test]
    fn what_is_unknown_or_too_much_ends_it() {
        let after = |tail: &[u8]| {
            let mut parser = ClientParser::default();
            parser.take(b"RFB 003.008\n\x01\x01").expect("handshake");
            parser.take(tail)
        };
        assert_eq!(after(&[255]), Err(RfbError::Unknown(255)));
        assert!(matches!(after(&[2, 0, 255, 255]), Err(RfbError::TooMuch { .. })));
        assert!(matches!(after(&[6, 0, 0, 0, 255, 255, 255, 255]), Err(RfbError::TooMuch { .. })));
    }

    #[test]
    fn a_hand_lifts_what_it_held() {
        let mut hand = Hand::default();
        let pointer = |buttons, x| ClientMessage::Pointer { buttons, x, y: 5 };
        assert_eq!(hand.frame(&pointer(0, 1)), None);
        assert_eq!(hand.frame(&pointer(1, 1)), Some(input::touch_down(Point { x: 1, y: 5 }, 1)));
        assert_eq!(hand.frame(&pointer(1, 1)), None);
        assert_eq!(hand.frame(&pointer(1, 2)), Some(input::touch_move(Point { x: 2, y: 5 })));
        let key = |down| ClientMessage::Key { down, keysym: 0x61 };
        assert_eq!(hand.frame(&key(true)), Some(input::key(30, true)));
        assert_eq!(hand.frame(&key(true)), None);
        assert_eq!(hand.lift(), [input::touch_up(), input::key(30, false)]);
        assert_eq!(hand.frame(&key(false)), None);
    }
}
