//! Operations on what is in files: opening, reading, writing, closing.

use nix::errno::Errno;
use store::StoreError;

use crate::chunks::Chunks;
use crate::inode::{Body, Ino};
use crate::view::layer::{LayerBody, Seen};
use crate::view::ops::OpResult;
use crate::view::paged::{PAGE_BYTES, PagedFile};
use crate::view::{LAYER_PAGE_BYTES_MAX, StatChange, TwinView, now_ns};

impl TwinView {
    /// Opens a file, cutting it off if `truncate`. Returns whether what the guest has read of it before
    /// still holds.
    pub fn open(&self, ino: Ino, writes: bool, truncate: bool) -> OpResult<bool> {
        if writes && self.shared.read_only {
            return Err(Errno::EROFS);
        }
        if truncate {
            let change = StatChange {
                size: Some(0),
                open: true,
                ..Default::default()
            };
            return self.set_stat(ino, &change).map(|_| false);
        }
        self.op(|tree, state| {
            let ino = state.layer.canonical(ino);
            state.seen(tree, ino)?;
            Ok(state.layer.is_cache_good(ino))
        })
    }

    /// Bytes `offset..offset + length` of a file, less where it ends before.
    pub fn read(&self, ino: Ino, offset: u64, length: usize) -> OpResult<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_into(ino, offset, length, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`TwinView::read`], appending to `out`.
    pub(crate) fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> OpResult<()> {
        let chunks = self.chunks();
        let contents =
            self.op(
                |tree, state| match state.seen(tree, state.layer.canonical(ino))? {
                    Seen::Flash(inode) => match &inode.body {
                        Body::Regular(contents) => Ok(Some(contents.clone())),
                        body => Err(not_a_file(body.is_directory())),
                    },
                    Seen::Layer(inode) => match &inode.body {
                        LayerBody::Regular(file) => match file.contents() {
                            Some(contents) => Ok(Some(contents.clone())),
                            None => {
                                let bytes = file.read(chunks, offset, length);
                                out.extend_from_slice(
                                    &bytes.map_err(|error| unreadable(ino, &error))?,
                                );
                                Ok(None)
                            }
                        },
                        body => Err(not_a_file(matches!(body, LayerBody::Directory))),
                    },
                },
            )?;
        // Chunks do not change, so they are read with nothing locked.
        let read = contents.map_or(Ok(()), |contents| {
            out.reserve(contents.size().saturating_sub(offset).min(length as u64) as usize);
            chunks.read(&contents, offset, length, out)
        });
        read.map_err(|error| unreadable(ino, &error))
    }

    /// Writes to a file.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> OpResult<()> {
        self.check_size(offset.saturating_add(data.len() as u64))?;
        self.write_file(ino, |file, chunks| file.write(chunks, offset, data))
    }

    fn write_file(
        &self,
        ino: Ino,
        write: impl FnOnce(&mut PagedFile, &Chunks) -> Result<(), StoreError>,
    ) -> OpResult<()> {
        self.change(|tree, state| {
            let ino = state.layer.canonical(ino);
            if state.seen(tree, ino)?.format() != libc::S_IFREG {
                return Err(not_a_file(state.seen(tree, ino)?.is_directory()));
            }
            state.check_room()?;
            state.begin_writing(tree, ino)?;
            let now = now_ns();
            let inode = state.edit(tree, ino)?;
            inode.attributes.mtime_ns = now;
            inode.ctime_ns = now;
            let LayerBody::Regular(file) = &mut inode.body else {
                return Err(Errno::EINVAL);
            };
            let pages = file.page_count();
            let written = write(file, self.chunks());
            let new_pages = file.page_count();
            state.layer.page_count = state.layer.page_count + new_pages - pages;
            written.map_err(|error| unreadable(ino, &error))?;
            if state.layer.page_count * PAGE_BYTES > LAYER_PAGE_BYTES_MAX {
                self.shared.store_pages(state)?;
            }
            Ok(())
        })
    }

    /// Reserves, zeroes or cuts holes, as `fallocate(2)`; space is never really reserved.
    pub fn allocate(&self, ino: Ino, mode: i32, offset: u64, length: u64) -> OpResult<()> {
        let end = offset.saturating_add(length);
        self.check_size(end)?;
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zeroes = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_ZERO_RANGE => true,
            libc::FALLOC_FL_PUNCH_HOLE if keeps_size => true,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        self.write_file(ino, |file, chunks| {
            if zeroes {
                file.zero(chunks, offset, length)?;
            }
            if !keeps_size && end > file.size() {
                file.truncate(end);
            }
            Ok(())
        })
    }

    /// The guest closed or synced a file: in drive, what it wrote is announced.
    pub fn flush(&self, ino: Ino) -> OpResult<()> {
        match self.shared.read_only {
            true => Ok(()),
            false => self.op(|tree, state| {
                self.shared
                    .complete(tree, state, state.layer.canonical(ino))
            }),
        }
    }
}

fn not_a_file(is_directory: bool) -> Errno {
    if is_directory {
        Errno::EISDIR
    } else {
        Errno::EINVAL
    }
}

fn unreadable(ino: Ino, error: &StoreError) -> Errno {
    tracing::error!(ino, %error, "a file of the flash cannot be read");
    Errno::EIO
}
