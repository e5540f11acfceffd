//! Saving a view with its parked machine: the guest's own writes, the numbers it holds, and the files
//! that only it still holds. Contents go to the store as chunks; the rest is small.

use std::sync::{Arc, Mutex};

use bytes::BufMut;
use store::{BlobHash, Log};

use crate::FlashError;
use crate::codec::{Damaged, Reader, chunk_list, put_attributes, put_short_bytes};
use crate::flash::{Flash, Flashes};
use crate::inode::{Contents, Ino};
use crate::view::layer::{Layer, LayerBody, LayerInode, NameChange};
use crate::view::paged::PagedFile;
use crate::view::{State, TwinView, ViewShared};

/// Version of the saved bytes.
const SAVED_VERSION: u8 = 1;
/// Stands for a name that is gone: no file has this number.
const GONE: Ino = 0;

impl TwinView {
    /// The view as bytes, to go on with [`Flashes::restore_view`] when its machine does. The machine must be
    /// paused; in drive, everything announced must have been applied.
    pub fn save(&self) -> Result<Vec<u8>, FlashError> {
        self.complete()?;
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        self.shared
            .store_pages(&mut state)
            .map_err(|_| FlashError::Complete)?;
        let layer = &state.layer;
        let mut out = vec![SAVED_VERSION];
        out.put_u64_le(head.position);
        out.put_u64_le(layer.made);
        out.put_u64_le(state.stored_bytes);
        out.put_u64_le(layer.inodes.len() as u64);
        for (ino, inode) in &layer.inodes {
            out.put_u64_le(*ino);
            put_attributes(&mut out, &inode.attributes);
            out.put_i64_le(inode.ctime_ns);
            self.put_body(&mut out, &inode.body)?;
        }
        out.put_u64_le(layer.names.values().map(|names| names.len() as u64).sum());
        for (directory, names) in &layer.names {
            for (name, change) in names {
                out.put_u64_le(*directory);
                put_short_bytes(&mut out, name);
                out.put_u64_le(match change {
                    NameChange::Here(ino) => *ino,
                    NameChange::Gone => GONE,
                });
            }
        }
        for pairs in [&layer.aliases, layer.shown_as(), &layer.lookups] {
            out.put_u64_le(pairs.len() as u64);
            for (from, to) in pairs {
                out.put_u64_le(*from);
                out.put_u64_le(*to);
            }
        }
        Ok(out)
    }

    fn put_body(&self, out: &mut Vec<u8>, body: &LayerBody) -> Result<(), FlashError> {
        match body {
            LayerBody::Regular(file) => {
                let contents = file.contents().ok_or(FlashError::Complete)?;
                let list = self
                    .shared
                    .flash
                    .shared
                    .chunks
                    .blobs()
                    .put(&chunk_list(contents.chunks()))?;
                out.put_u8(1);
                out.put_u32_le(contents.chunks().len() as u32);
                out.put_slice(list.as_bytes());
            }
            LayerBody::Directory => out.put_u8(2),
            LayerBody::Symlink(target) => {
                out.put_u8(3);
                put_short_bytes(out, target);
            }
            LayerBody::Special { format, rdev } => {
                out.put_u8(4);
                out.put_u32_le(*format);
                out.put_u32_le(*rdev);
            }
        }
        Ok(())
    }

    /// The view in `saved` over `flash`, which must be at the position at which it was saved.
    fn restore_at(flash: Flash, saved: &SavedView<'_>) -> Result<Self, FlashError> {
        let mut reader = Reader::new(saved.state, "a saved view");
        let mut layer = Layer::default();
        layer.made = reader.u64()?;
        let stored_bytes = reader.u64()?;
        for _ in 0..reader.u64()? {
            let ino = reader.u64()?;
            let (attributes, ctime_ns) = (reader.attributes()?, reader.i64()?);
            let body = read_body(&mut reader, &flash)?;
            layer.inodes.insert(
                ino,
                LayerInode {
                    attributes,
                    ctime_ns,
                    body,
                    written: None,
                },
            );
        }
        for _ in 0..reader.u64()? {
            let (directory, name) = (reader.u64()?, reader.short_bytes()?);
            let change = match reader.u64()? {
                GONE => NameChange::Gone,
                ino => NameChange::Here(ino),
            };
            layer.set_name(directory, name, Some(change));
        }
        layer.aliases = read_pairs(&mut reader)?;
        let shown_as = read_pairs(&mut reader)?;
        layer.set_shown_as(shown_as);
        layer.lookups = read_pairs(&mut reader)?;
        match reader.is_empty() {
            true => Ok(Self::with_state(
                flash,
                false,
                State {
                    layer,
                    stored_bytes,
                    ..State::default()
                },
            )),
            false => Err(reader.damaged().into()),
        }
    }

    /// The view on another handle of its flash, if that is at the same position.
    fn moved_to(&self, flash: &Flash) -> Option<Self> {
        let position = self.shared.flash.position();
        let mut state = self.shared.lock();
        let shared = ViewShared {
            flash: flash.clone(),
            read_only: false,
            state: Mutex::default(),
        };
        let moved = TwinView {
            shared: Arc::new(shared),
        };
        std::mem::swap(&mut *state, &mut *moved.shared.lock());
        if flash.attach_at(position, &moved.shared) {
            return Some(moved);
        }
        std::mem::swap(&mut *state, &mut *moved.shared.lock());
        None
    }
}

/// The bytes of a saved view, as far as they are needed to find the flash for it.
struct SavedView<'a> {
    position: u64,
    state: &'a [u8],
}

impl<'a> SavedView<'a> {
    fn parse(saved: &'a [u8]) -> Result<Self, FlashError> {
        let mut reader = Reader::new(saved, "a saved view");
        match reader.u8()? {
            SAVED_VERSION => {}
            version => {
                return Err(FlashError::RecordVersion {
                    found: version,
                    known: SAVED_VERSION,
                });
            }
        }
        let position = reader.u64()?;
        Ok(SavedView {
            position,
            state: reader.rest(),
        })
    }
}

impl Flashes {
    /// A view saved by [`TwinView::save`], on `flash` as it is now: what the phone did meanwhile has
    /// replaced what the guest wrote at the same paths. In mirror.
    pub fn restore_view(
        &self,
        flash: &Flash,
        saved: &[u8],
        log: &dyn Log,
    ) -> Result<TwinView, FlashError> {
        let saved = SavedView::parse(saved)?;
        if saved.position > flash.position() {
            // It would never be there: a handle may stay at its position.
            return Err(FlashError::PositionPassed {
                position: flash.position(),
                at: saved.position,
            });
        }
        // Numbers are a function of the log, so those that the guest knows mean the same files here.
        let then = self.at(flash.phone(), flash.base(), saved.position, log)?;
        let view = TwinView::restore_at(then.clone(), &saved)?;
        loop {
            then.catch_up(log, flash.position())?;
            // If the flash has gone on meanwhile, a little more is to be caught up with.
            if let Some(moved) = view.moved_to(flash) {
                return Ok(moved);
            }
        }
    }
}

fn read_pairs<C: FromIterator<(Ino, u64)>>(reader: &mut Reader<'_>) -> Result<C, Damaged> {
    (0..reader.u64()?)
        .map(|_| Ok((reader.u64()?, reader.u64()?)))
        .collect()
}

fn read_body(reader: &mut Reader<'_>, flash: &Flash) -> Result<LayerBody, FlashError> {
    Ok(match reader.u8()? {
        1 => {
            let count = reader.u32()?;
            let list = flash
                .shared
                .chunks
                .blobs()
                .get(&BlobHash::from(reader.hash()?.0))?;
            let chunks = Reader::new(&list, "a chunk list").chunks(count)?;
            LayerBody::Regular(PagedFile::new(Arc::new(Contents::new(chunks))))
        }
        2 => LayerBody::Directory,
        3 => LayerBody::Symlink(reader.short_bytes()?.into()),
        4 => LayerBody::Special {
            format: reader.u32()?,
            rdev: reader.u32()?,
        },
        _ => return Err(reader.damaged().into()),
    })
}
