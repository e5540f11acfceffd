//! Events as typed values: what came over the wire is checked here once, and is right from then on.
//!
//! `Event::try_from(wire)` refuses what breaks the contract and says where; `wire::Event::from(event)` writes it back.
//! Whether a *phone* may send such an event is a further question: [`Event::check_from_phone`].

use prost::Message;

use crate::chunking::Chunk;
use crate::hash::NotAHash;
use crate::limits::{
    BATCH_BYTES_MAX, CHUNK_BYTES_MAX, FILE_CHUNKS_MAX, FRAME_EVENTS_MAX, LINK_TARGET_BYTES_MAX,
    TEXT_BYTES_MAX,
};
use crate::path::{PathError, PhonePath};
use crate::stack::Stack;
use crate::tree::{self, Entry, FileKind};
use crate::wire;

pub use crate::wire::{ControlKind, InputEvent, MmiDevice, Origin};

/// One recorded fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub seq: u64,
    /// Since the Unix epoch; can jump.
    pub wall_us: i64,
    /// Since the phone's boot.
    pub mono_us: u64,
    pub origin: Origin,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Mmi(Frame),
    File(FileChange),
    Control(Control),
    Stack(Stack),
    /// A command that the appliance gave: only in its own log.
    Issued(wire::Command),
    /// What became of one: only in the appliance's own log.
    Outcome(wire::CommandResult),
}

/// What one input device reported between two SYN_REPORTs.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub device: MmiDevice,
    pub device_id: u32,
    /// Without the SYN_REPORT.
    pub events: Vec<InputEvent>,
    /// Largest values of the axes, 0 if there are none.
    pub x_max: u32,
    pub y_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    pub path: PhonePath,
    pub op: FileOp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOp {
    Put(Node),
    Remove,
    Rename { to: PhonePath },
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i64,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Regular { size: u64, chunks: Vec<Chunk> },
    Directory,
    Symlink { target: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub kind: ControlKind,
    pub text: String,
    pub path: Option<PhonePath>,
    pub count: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EventError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} is {value}, which this contract does not know")]
    Unknown { what: &'static str, value: i32 },
    #[error("{what}: {count}, more than {max}")]
    TooMuch {
        what: &'static str,
        count: usize,
        max: usize,
    },
    #[error("{0} is not as the contract has it")]
    Malformed(&'static str),
    #[error("the file's size is {size} but its chunks add up to {chunks}")]
    Size { size: u64, chunks: u64 },
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Hash(#[from] NotAHash),
    #[error("event {0} is not a phone's to send")]
    NotFromPhone(u64),
    #[error("event does not decode: {0}")]
    Encoding(String),
}

impl Event {
    /// The bytes of the event, as kept in a log.
    pub fn encode(self) -> Vec<u8> {
        wire::Event::from(self).encode_to_vec()
    }

    /// Reads and checks an event from the bytes of [`Event::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EventError> {
        check_count("bytes of an event", bytes.len(), BATCH_BYTES_MAX)?;
        let event =
            wire::Event::decode(bytes).map_err(|error| EventError::Encoding(error.to_string()))?;
        event.try_into()
    }

    /// Refuses what only the appliance itself may put in a log.
    pub fn check_from_phone(&self) -> Result<(), EventError> {
        let phones_kind = !matches!(self.kind, Kind::Issued(_) | Kind::Outcome(_));
        match phones_kind && self.origin == Origin::Phone {
            true => Ok(()),
            false => Err(EventError::NotFromPhone(self.seq)),
        }
    }
}

impl Node {
    pub fn kind(&self) -> FileKind {
        match self.content {
            Content::Regular { .. } => FileKind::Regular,
            Content::Directory => FileKind::Directory,
            Content::Symlink { .. } => FileKind::Symlink,
        }
    }

    pub fn chunks(&self) -> &[Chunk] {
        match &self.content {
            Content::Regular { chunks, .. } => chunks,
            _ => &[],
        }
    }

    /// The node as tree hashes see it. Of a directory: one without entries.
    pub fn entry(&self) -> Entry {
        let (size, content) = match &self.content {
            Content::Regular { size, chunks } => (*size, tree::file_content(chunks)),
            Content::Directory => (0, tree::directory_content([])),
            Content::Symlink { target } => (target.len() as u64, tree::link_content(target)),
        };
        Entry {
            kind: self.kind(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            size,
            content,
        }
    }
}

impl TryFrom<wire::Event> for Event {
    type Error = EventError;

    fn try_from(event: wire::Event) -> Result<Self, EventError> {
        if event.seq == 0 {
            return Err(EventError::Missing("an event's seq"));
        }
        let origin = match event.origin() {
            Origin::Unspecified => {
                return Err(EventError::Unknown {
                    what: "origin",
                    value: event.origin,
                });
            }
            origin => origin,
        };
        let kind = match event.kind.ok_or(EventError::Missing("an event's kind"))? {
            wire::event::Kind::Mmi(mmi) => Kind::Mmi(mmi.try_into()?),
            wire::event::Kind::File(change) => Kind::File(change.try_into()?),
            wire::event::Kind::Control(control) => Kind::Control(control.try_into()?),
            wire::event::Kind::Stack(stack) => Kind::Stack(stack.try_into()?),
            wire::event::Kind::Issued(command) => Kind::Issued(command),
            wire::event::Kind::Outcome(result) => Kind::Outcome(result),
        };
        Ok(Self {
            seq: event.seq,
            wall_us: event.wall_us,
            mono_us: event.mono_us,
            origin,
            kind,
        })
    }
}

impl From<Event> for wire::Event {
    fn from(event: Event) -> Self {
        let kind = match event.kind {
            Kind::Mmi(frame) => wire::event::Kind::Mmi(frame.into()),
            Kind::File(change) => wire::event::Kind::File(change.into()),
            Kind::Control(control) => wire::event::Kind::Control(control.into()),
            Kind::Stack(stack) => wire::event::Kind::Stack(stack.into()),
            Kind::Issued(command) => wire::event::Kind::Issued(command),
            Kind::Outcome(result) => wire::event::Kind::Outcome(result),
        };
        Self {
            seq: event.seq,
            wall_us: event.wall_us,
            mono_us: event.mono_us,
            origin: event.origin.into(),
            kind: Some(kind),
        }
    }
}

impl TryFrom<wire::Mmi> for Frame {
    type Error = EventError;

    fn try_from(mmi: wire::Mmi) -> Result<Self, EventError> {
        let device = match mmi.device() {
            MmiDevice::Unspecified => {
                return Err(EventError::Unknown {
                    what: "input device",
                    value: mmi.device,
                });
            }
            device => device,
        };
        check_count(
            "events of an input frame",
            mmi.events.len(),
            FRAME_EVENTS_MAX,
        )?;
        if mmi
            .events
            .iter()
            .any(|event| event.r#type > 0x1f || event.code > 0x2ff)
        {
            return Err(EventError::Malformed("an input event's type or code"));
        }
        if mmi.x_max > AXIS_MAX || mmi.y_max > AXIS_MAX {
            return Err(EventError::Malformed("an axis of an input device"));
        }
        Ok(Self {
            device,
            device_id: mmi.device_id,
            events: mmi.events,
            x_max: mmi.x_max,
            y_max: mmi.y_max,
        })
    }
}

/// Axes are i32 in the kernel.
const AXIS_MAX: u32 = i32::MAX as u32;

impl From<Frame> for wire::Mmi {
    fn from(frame: Frame) -> Self {
        Self {
            device: frame.device.into(),
            events: frame.events,
            device_id: frame.device_id,
            x_max: frame.x_max,
            y_max: frame.y_max,
        }
    }
}

impl TryFrom<wire::FileChange> for FileChange {
    type Error = EventError;

    fn try_from(change: wire::FileChange) -> Result<Self, EventError> {
        let path = PhonePath::new(change.path)?;
        let op = match change
            .op
            .ok_or(EventError::Missing("a file change's operation"))?
        {
            wire::file_change::Op::Put(put) => FileOp::Put(put.try_into()?),
            wire::file_change::Op::Remove(_) => FileOp::Remove,
            wire::file_change::Op::Rename(rename) => {
                let to = PhonePath::new(rename.to)?;
                if to.is_within(&path) || path.is_within(&to) {
                    return Err(EventError::Malformed("a rename into itself"));
                }
                FileOp::Rename { to }
            }
        };
        Ok(Self { path, op })
    }
}

impl From<FileChange> for wire::FileChange {
    fn from(change: FileChange) -> Self {
        let op = match change.op {
            FileOp::Put(node) => wire::file_change::Op::Put(node.into()),
            FileOp::Remove => wire::file_change::Op::Remove(wire::Remove {}),
            FileOp::Rename { to } => {
                wire::file_change::Op::Rename(wire::Rename { to: to.to_vec() })
            }
        };
        Self {
            path: change.path.to_vec(),
            op: Some(op),
        }
    }
}

impl TryFrom<wire::Put> for Node {
    type Error = EventError;

    fn try_from(put: wire::Put) -> Result<Self, EventError> {
        let content = match put.kind() {
            wire::FileKind::Unspecified => {
                return Err(EventError::Unknown {
                    what: "file kind",
                    value: put.kind,
                });
            }
            wire::FileKind::Regular => regular(put.size, put.chunks)?,
            wire::FileKind::Directory => Content::Directory,
            wire::FileKind::Symlink => {
                check_count(
                    "bytes of a link's target",
                    put.link_target.len(),
                    LINK_TARGET_BYTES_MAX,
                )?;
                if put.link_target.is_empty() || put.link_target.contains(&0) {
                    return Err(EventError::Malformed("a link's target"));
                }
                Content::Symlink {
                    target: put.link_target,
                }
            }
        };
        let mode = match content {
            Content::Symlink { .. } => SYMLINK_MODE,
            _ if put.mode > 0o7777 => return Err(EventError::Malformed("a file's mode")),
            _ => put.mode,
        };
        Ok(Self {
            mode,
            uid: put.uid,
            gid: put.gid,
            mtime_ns: put.mtime_ns,
            content,
        })
    }
}

/// Symbolic links have no mode of their own on Linux.
pub const SYMLINK_MODE: u32 = 0o777;

fn regular(size: u64, chunks: Vec<wire::Chunk>) -> Result<Content, EventError> {
    check_count("chunks of a file", chunks.len(), FILE_CHUNKS_MAX)?;
    let chunks = chunks
        .into_iter()
        .map(Chunk::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    let total = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    match size == total {
        true => Ok(Content::Regular { size, chunks }),
        false => Err(EventError::Size {
            size,
            chunks: total,
        }),
    }
}

impl From<Node> for wire::Put {
    fn from(node: Node) -> Self {
        let kind = wire::FileKind::from(node.kind());
        let (size, chunks, link_target) = match node.content {
            Content::Regular { size, chunks } => (
                size,
                chunks.into_iter().map(Into::into).collect(),
                Vec::new(),
            ),
            Content::Directory => (0, Vec::new(), Vec::new()),
            Content::Symlink { target } => (target.len() as u64, Vec::new(), target),
        };
        Self {
            kind: kind.into(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime_ns: node.mtime_ns,
            size,
            chunks,
            link_target,
        }
    }
}

impl TryFrom<wire::Chunk> for Chunk {
    type Error = EventError;

    fn try_from(chunk: wire::Chunk) -> Result<Self, EventError> {
        match chunk.size {
            1..=CHUNK_BYTES_MAX => Ok(Self {
                hash: chunk.hash.as_slice().try_into()?,
                size: chunk.size,
            }),
            _ => Err(EventError::Malformed("a chunk's size")),
        }
    }
}

impl From<Chunk> for wire::Chunk {
    fn from(chunk: Chunk) -> Self {
        Self {
            hash: chunk.hash.to_vec(),
            size: chunk.size,
        }
    }
}

impl From<FileKind> for wire::FileKind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::Regular => Self::Regular,
            FileKind::Directory => Self::Directory,
            FileKind::Symlink => Self::Symlink,
        }
    }
}

impl TryFrom<wire::Control> for Control {
    type Error = EventError;

    fn try_from(control: wire::Control) -> Result<Self, EventError> {
        check_count(
            "bytes of a control event's text",
            control.text.len(),
            TEXT_BYTES_MAX,
        )?;
        let kind = control.kind();
        let path = match control.path.is_empty() {
            true => None,
            false => Some(PhonePath::new(control.path)?),
        };
        Ok(Self {
            kind,
            text: control.text,
            path,
            count: control.count,
        })
    }
}

impl From<Control> for wire::Control {
    fn from(control: Control) -> Self {
        Self {
            kind: control.kind.into(),
            text: control.text,
            path: control.path.map(|path| path.to_vec()).unwrap_or_default(),
            count: control.count,
        }
    }
}

pub(crate) fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), EventError> {
    match count > max {
        true => Err(EventError::TooMuch { what, count, max }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    fn event(kind: Kind) -> Event {
        Event {
            seq: 1,
            wall_us: -1,
            mono_us: 2,
            origin: Origin::Phone,
            kind,
        }
    }

    fn put(content: Content) -> Kind {
        let mode = if matches!(content, Content::Symlink { .. }) {
            SYMLINK_MODE
        } else {
            0o644
        };
        let node = Node {
            mode,
            uid: 1000,
            gid: 1000,
            mtime_ns: -5,
            content,
        };
        Kind::File(FileChange {
            path: PhonePath::new(&b"/home/user/a\n\xff"[..]).unwrap(),
            op: FileOp::Put(node),
        })
    }

    fn path(text: &str) -> PhonePath {
        PhonePath::new(text).unwrap()
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let frame = Frame {
            device: MmiDevice::Touch,
            device_id: 3,
            events: vec![InputEvent {
                r#type: 3,
                code: 0x35,
                value: -7,
            }],
            x_max: 359,
            y_max: 719,
        };
        let chunk = Chunk {
            hash: Hash::of(b"abc"),
            size: 3,
        };
        let control = Control {
            kind: ControlKind::FileSkipped,
            text: "kept changing".into(),
            path: Some(path("/home")),
            count: 4,
        };
        let rename = FileChange {
            path: path("/a"),
            op: FileOp::Rename { to: path("/b") },
        };
        for kind in [
            Kind::Mmi(frame),
            put(Content::Regular {
                size: 3,
                chunks: vec![chunk],
            }),
            put(Content::Directory),
            put(Content::Symlink {
                target: b"../x".to_vec(),
            }),
            Kind::File(FileChange {
                path: path("/a"),
                op: FileOp::Remove,
            }),
            Kind::File(rename),
            Kind::Control(control),
        ] {
            let event = event(kind);
            assert_eq!(Event::decode(&event.clone().encode()), Ok(event.clone()));
            assert_eq!(event.check_from_phone(), Ok(()));
        }
    }

    #[test]
    fn what_breaks_the_contract_is_refused() {
        let good = wire::Event::from(event(put(Content::Directory)));
        assert!(
            Event::try_from(wire::Event {
                seq: 0,
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            Event::try_from(wire::Event {
                origin: 77,
                ..good.clone()
            })
            .is_err()
        );
        assert!(
            Event::try_from(wire::Event {
                kind: None,
                ..good.clone()
            })
            .is_err()
        );

        let change =
            |change: wire::FileChange| FileChange::try_from(change).unwrap_err().to_string();
        let base = wire::FileChange::from(FileChange {
            path: path("/a"),
            op: FileOp::Remove,
        });
        assert!(
            change(wire::FileChange {
                path: b"/a/../b".to_vec(),
                ..base.clone()
            })
            .contains("\"..\"")
        );
        assert!(
            change(wire::FileChange {
                path: b"a".to_vec(),
                ..base.clone()
            })
            .contains("not absolute")
        );
        assert!(
            change(wire::FileChange {
                op: None,
                ..base.clone()
            })
            .contains("operation")
        );
        let into_itself = wire::file_change::Op::Rename(wire::Rename {
            to: b"/a/b".to_vec(),
        });
        assert!(
            change(wire::FileChange {
                op: Some(into_itself),
                ..base
            })
            .contains("itself")
        );

        let chunk = wire::Chunk {
            hash: Hash::of(b"abc").to_vec(),
            size: 3,
        };
        let put = wire::Put {
            kind: 1,
            size: 3,
            chunks: vec![chunk.clone()],
            ..Default::default()
        };
        assert!(Node::try_from(put.clone()).is_ok());
        for bad in [
            wire::Put {
                size: 4,
                ..put.clone()
            },
            wire::Put {
                mode: 0o10000,
                ..put.clone()
            },
            wire::Put {
                kind: 9,
                ..put.clone()
            },
            wire::Put {
                chunks: vec![wire::Chunk {
                    hash: vec![1; 31],
                    ..chunk.clone()
                }],
                ..put.clone()
            },
            wire::Put {
                chunks: vec![
                    wire::Chunk {
                        size: 0,
                        ..chunk.clone()
                    },
                    chunk.clone(),
                ],
                ..put.clone()
            },
            wire::Put {
                chunks: vec![chunk; FILE_CHUNKS_MAX + 1],
                ..put.clone()
            },
            wire::Put {
                kind: 3,
                ..put.clone()
            },
            wire::Put {
                kind: 3,
                link_target: b"a\0b".to_vec(),
                ..put.clone()
            },
            wire::Put {
                kind: 3,
                link_target: vec![b'a'; 4096],
                ..put
            },
        ] {
            assert!(Node::try_from(bad).is_err());
        }

        let flood = wire::Mmi {
            device: 1,
            events: vec![InputEvent::default(); 257],
            ..Default::default()
        };
        assert!(Frame::try_from(flood).is_err());
        assert!(Event::decode(b"\xff\xff\xff").is_err());
    }

    #[test]
    fn a_phone_cannot_speak_for_the_appliance() {
        let ours = Event {
            origin: Origin::Helpdesk,
            ..event(put(Content::Directory))
        };
        assert_eq!(ours.check_from_phone(), Err(EventError::NotFromPhone(1)));
        assert!(
            event(Kind::Issued(wire::Command::default()))
                .check_from_phone()
                .is_err()
        );
    }
}
