//! What help desk asks of a phone, as its drive does.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use pollux::commands::CommandError;
use pollux::http::Services;
use rand::Rng;
use rand::rngs::SmallRng;
use store::{Blobs, PhoneId};
use sync_protocol::event::{Content, FileChange, FileOp, Frame, InputEvent, Kind, MmiDevice, Node};
use sync_protocol::tree::{Entry, FileKind, file_content};
use sync_protocol::wire::{self, applied_change::Base};
use sync_protocol::{PhonePath, chunking};

use crate::tree;

/// A change of a phone's files, and what must be there before it.
#[derive(Debug)]
pub(crate) struct Asked {
    change: FileChange,
    chunks: Vec<Bytes>,
    base: Base,
}

/// A change somewhere in `home`.
pub(crate) fn change(home: &Path, random: &mut SmallRng) -> Asked {
    let at = tree::some_path(home, random);
    let path = |path: &Path| PhonePath::new(path.as_os_str().as_bytes()).expect("a path");
    let node = |mode, content| Node { mode, uid: 0, gid: 0, mtime_ns: 1_650_000_000_000_000_000, content };
    let mut bytes = Vec::new();
    let op = match random.random_range(0..8) {
        0..4 => {
            let contents = tree::some_bytes(random);
            let pieces: Vec<_> = chunking::cut(&contents).collect();
            bytes = pieces.iter().map(|(_, bytes)| Bytes::copy_from_slice(bytes)).collect();
            let chunks = pieces.iter().map(|(chunk, _)| *chunk).collect();
            FileOp::Put(node(0o640, Content::Regular { size: contents.len() as u64, chunks }))
        }
        4 => FileOp::Put(node(0o750, Content::Directory)),
        5 => FileOp::Put(node(0o777, Content::Symlink { target: b"/nowhere/else".to_vec() })),
        6 => FileOp::Remove,
        _ => match tree::some_path(home, random) {
            to if to.starts_with(&at) || at.starts_with(&to) => FileOp::Remove,
            to => FileOp::Rename { to: path(&to) },
        },
    };
    let base = match random.random_range(0..3) {
        0 => Base::BaseAny(true),
        _ => base_of(&at),
    };
    Asked { change: FileChange { path: path(&at), op }, chunks: bytes, base }
}

/// What is there now, for what is no directory.
fn base_of(path: &Path) -> Base {
    let Ok(stat) = path.symlink_metadata() else { return Base::BaseAbsent(true) };
    let Ok(contents) = std::fs::read(path) else { return Base::BaseAny(true) };
    let chunks: Vec<_> = chunking::cut(&contents).map(|(chunk, _)| chunk).collect();
    let entry = Entry {
        kind: FileKind::Regular,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
        size: contents.len() as u64,
        content: file_content(&chunks),
    };
    Base::BaseEntry(entry.hash().to_vec())
}

impl Asked {
    /// Logs the change as ours, and asks the phone to make it. Blocks.
    pub(crate) fn ask(self, services: &Services, blobs: &dyn Blobs, phone: &PhoneId) -> anyhow::Result<()> {
        blobs.put_many(&self.chunks)?;
        let ours = Kind::File(self.change.clone());
        let change = wire::AppliedChange { change: Some(self.change.into()), base: Some(self.base) };
        services.commands.apply(phone, vec![ours], vec![change])?;
        Ok(())
    }
}

/// A lease, or a touch of the panel.
pub(crate) fn input(random: &mut SmallRng) -> Vec<Result<wire::Lease, Frame>> {
    let lease = wire::Lease { on: random.random_bool(0.8), operator: "admin".into(), duration_ms: 5000 };
    let events = vec![InputEvent { r#type: 1, code: 30, value: random.random_range(0..=1) }];
    let frame = Frame { device: MmiDevice::Keyboard, device_id: 0, events, x_max: 0, y_max: 0 };
    vec![Ok(lease), Err(frame)]
}

pub(crate) fn once(services: &Services, phone: &PhoneId, asked: Result<wire::Lease, Frame>) -> Result<(), CommandError> {
    match asked {
        Ok(lease) => services.commands.lease(phone, lease),
        Err(frame) => services.commands.input(phone, vec![frame]),
    }
}
