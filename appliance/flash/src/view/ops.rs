//! The operations of a guest's file system. Each is one step: it sees and leaves a consistent view.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use sync_protocol::limits::LINK_TARGET_BYTES_MAX;
use sync_protocol::path::is_name;

use crate::inode::{Attributes, Body, Ino, Name, ROOT_INO};
use crate::tree::{Place, Tree};
use crate::view::drive::expected;
use crate::view::layer::{LayerBody, LayerInode, NameChange, Seen};
use crate::view::paged::{PAGE_BYTES, PagedFile};
use crate::view::{FILE_BYTES_MAX, LAYER_FILES_MAX, LAYER_STORED_BYTES_MAX, State, TwinView};

/// Result of an operation: the error goes to the guest.
pub(crate) type OpResult<T> = Result<T, Errno>;

/// Whose process asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What a guest is told about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The number to ask by.
    pub ino: Ino,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Names it has; 1 for directories, which says that it is not counted.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub mtime_ns: i64,
    /// Change time.
    pub ctime_ns: i64,
}

/// What to change of a file; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Modification time.
    pub mtime_ns: Option<i64>,
    /// Whether the guest has the file open, so that more changes and a close follow.
    pub open: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedName {
    /// Number of the file.
    pub ino: Ino,
    /// File type bits of its mode.
    pub format: u32,
    /// Its name.
    pub name: Name,
}

/// Names of a directory by number, as of a version of the state.
pub(super) struct Listing {
    directory: Ino,
    version: u64,
    names: Arc<Vec<ListedName>>,
}

/// Room for a guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes left.
    pub bytes_free: u64,
    /// Files that may be made or changed.
    pub files: u64,
    /// Files left.
    pub files_free: u64,
}

/// The appliance's time: what a guest's "now" means in its files.
pub(crate) fn now_ns() -> i64 {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

impl State {
    pub(super) fn seen<'a>(&'a self, tree: &'a Tree, ino: Ino) -> OpResult<Seen<'a>> {
        // A number that nobody gave out, or that was forgotten.
        self.layer.seen(tree, ino).ok_or(Errno::ESTALE)
    }

    pub(super) fn directory(&self, tree: &Tree, shown: Ino) -> OpResult<Ino> {
        let ino = self.layer.canonical(shown);
        match self.seen(tree, ino)?.is_directory() {
            true => Ok(ino),
            false => Err(Errno::ENOTDIR),
        }
    }

    pub(super) fn child(&self, tree: &Tree, directory: Ino, name: &[u8]) -> OpResult<Ino> {
        self.layer.child(tree, directory, name).ok_or(Errno::ENOENT)
    }

    pub(super) fn stat(&self, tree: &Tree, ino: Ino) -> OpResult<Stat> {
        let seen = self.seen(tree, ino)?;
        let (size, rdev, ctime_ns) = match &seen {
            Seen::Flash(inode) => {
                let rdev = if let Body::Special { rdev, .. } = inode.body {
                    rdev
                } else {
                    0
                };
                (inode.body.size(), rdev, inode.attributes.mtime_ns)
            }
            Seen::Layer(inode) => {
                let rdev = if let LayerBody::Special { rdev, .. } = inode.body {
                    rdev
                } else {
                    0
                };
                (inode.body.size(), rdev, inode.ctime_ns)
            }
        };
        let nlink = match seen.is_directory() {
            true => 1,
            false => self.layer.places(tree, ino).len() as u32,
        };
        let Attributes {
            mode,
            uid,
            gid,
            mtime_ns,
        } = *seen.attributes();
        let mode = seen.format() | mode;
        Ok(Stat {
            ino: self.layer.shown(ino),
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size,
            mtime_ns,
            ctime_ns,
        })
    }

    pub(super) fn stat_and_count(&mut self, tree: &Tree, ino: Ino) -> OpResult<Stat> {
        let stat = self.stat(tree, ino)?;
        self.layer.count_lookup(stat.ino);
        Ok(stat)
    }

    pub(super) fn check_room(&self) -> OpResult<()> {
        let files = self.layer.inodes.len().max(self.layer.names.len());
        match files < LAYER_FILES_MAX && self.stored_bytes < LAYER_STORED_BYTES_MAX {
            true => Ok(()),
            false => Err(Errno::ENOSPC),
        }
    }

    /// The guest's copy of a file, about to be changed.
    pub(super) fn edit(&mut self, tree: &Tree, ino: Ino) -> OpResult<&mut LayerInode> {
        if !self.layer.inodes.contains_key(&ino) {
            self.check_room()?;
        }
        self.version += 1;
        self.layer.edit(tree, ino).ok_or(Errno::ESTALE)
    }

    /// Marks a file as being changed: remembers what is known to be at its place, to which it is a change.
    pub(super) fn begin_writing(&mut self, tree: &Tree, ino: Ino) -> OpResult<()> {
        let begun = self
            .layer
            .inodes
            .get(&ino)
            .is_some_and(|inode| inode.written.is_some());
        if !begun {
            let place = self.layer.places(tree, ino).into_iter().next();
            let before = place.map(|place| expected(&self.layer, tree, &place));
            self.edit(tree, ino)?.written = Some(before.unwrap_or(super::drive::Known::Absent));
        }
        Ok(())
    }

    /// A directory's names changed.
    pub(super) fn touch(&mut self, tree: &Tree, directory: Ino, now: i64) -> OpResult<()> {
        let inode = self.edit(tree, directory)?;
        inode.attributes.mtime_ns = now;
        inode.ctime_ns = now;
        Ok(())
    }
}

pub(super) fn check_name(name: &[u8]) -> OpResult<()> {
    match is_name(name) {
        true => Ok(()),
        false if name.len() > 255 => Err(Errno::ENAMETOOLONG),
        false => Err(Errno::EINVAL),
    }
}

impl TwinView {
    pub(super) fn op<T>(
        &self,
        operation: impl FnOnce(&Tree, &mut State) -> OpResult<T>,
    ) -> OpResult<T> {
        self.shared.with(operation)
    }

    pub(super) fn change<T>(
        &self,
        operation: impl FnOnce(&Tree, &mut State) -> OpResult<T>,
    ) -> OpResult<T> {
        match self.shared.read_only {
            true => Err(Errno::EROFS),
            false => self.shared.with(|tree, state| {
                state.changed_at = Some(Instant::now());
                operation(tree, state)
            }),
        }
    }

    pub(super) fn chunks(&self) -> &crate::chunks::Chunks {
        &self.shared.flash.shared.chunks
    }

    /// Whether every change is refused.
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only
    }

    /// The file called `name`; the guest then knows its number until it forgets it.
    pub fn lookup(&self, directory: Ino, name: &[u8]) -> OpResult<Stat> {
        self.op(|tree, state| {
            let directory = state.directory(tree, directory)?;
            let ino = state.child(tree, directory, name)?;
            state.stat_and_count(tree, ino)
        })
    }

    /// The guest forgets a number as often as it was told.
    pub fn forget(&self, ino: Ino, count: u64) {
        let head = self.shared.flash.shared.read();
        let mut state = self.shared.lock();
        state.layer.forget(&head.tree, ino, count);
        // A listing may hold a number that is no longer given out.
        state.version += 1;
    }

    /// Describes a file.
    pub fn stat(&self, ino: Ino) -> OpResult<Stat> {
        self.op(|tree, state| state.stat(tree, state.layer.canonical(ino)))
    }

    /// Changes a file's attributes or size.
    pub fn set_stat(&self, ino: Ino, change: &StatChange) -> OpResult<Stat> {
        self.change(|tree, state| {
            let ino = state.layer.canonical(ino);
            let now = now_ns();
            if let Some(size) = change.size {
                self.check_size(size)?;
                if !matches!(state.seen(tree, ino)?.format(), libc::S_IFREG) {
                    return Err(Errno::EINVAL);
                }
            }
            state.begin_writing(tree, ino)?;
            let inode = state.edit(tree, ino)?;
            let is_link = matches!(inode.body, LayerBody::Symlink(_));
            let Attributes {
                mode,
                uid,
                gid,
                mtime_ns,
            } = &mut inode.attributes;
            // Links have no mode of their own.
            *mode = change
                .mode
                .filter(|_| !is_link)
                .map_or(*mode, |mode| mode & 0o7777);
            *uid = change.uid.unwrap_or(*uid);
            *gid = change.gid.unwrap_or(*gid);
            *mtime_ns = change.mtime_ns.unwrap_or(*mtime_ns);
            inode.ctime_ns = now;
            if let (Some(size), LayerBody::Regular(file)) = (change.size, &mut inode.body) {
                let pages = file.page_count();
                file.truncate(size);
                let new_pages = file.page_count();
                inode.attributes.mtime_ns = change.mtime_ns.unwrap_or(now);
                state.layer.page_count = state.layer.page_count + new_pages - pages;
            }
            if !change.open {
                self.shared.complete(tree, state, ino)?;
            }
            state.stat(tree, ino)
        })
    }

    pub(super) fn check_size(&self, size: u64) -> OpResult<()> {
        if size > FILE_BYTES_MAX {
            Err(Errno::EFBIG)
        } else {
            Ok(())
        }
    }

    /// Where a symbolic link leads.
    pub fn read_link(&self, ino: Ino) -> OpResult<Arc<[u8]>> {
        self.op(
            |tree, state| match state.seen(tree, state.layer.canonical(ino))? {
                Seen::Flash(inode) => match &inode.body {
                    Body::Symlink(target) => Ok(target.clone()),
                    _ => Err(Errno::EINVAL),
                },
                Seen::Layer(inode) => match &inode.body {
                    LayerBody::Symlink(target) => Ok(target.clone()),
                    _ => Err(Errno::EINVAL),
                },
            },
        )
    }

    /// Makes a file, pipe, socket or device node of `mode` (type and permissions), or with
    /// `S_IFDIR` a directory. A file made to be `open` is announced when it is closed.
    pub fn make(
        &self,
        directory: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
        open: bool,
        caller: Caller,
    ) -> OpResult<Stat> {
        let body = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => LayerBody::Regular(PagedFile::empty()),
            libc::S_IFDIR => LayerBody::Directory,
            format @ (libc::S_IFIFO | libc::S_IFSOCK) => LayerBody::Special { format, rdev: 0 },
            format @ (libc::S_IFCHR | libc::S_IFBLK) => LayerBody::Special { format, rdev },
            _ => return Err(Errno::EINVAL),
        };
        self.insert(directory, name, mode & 0o7777, body, open, caller)
    }

    /// Makes a symbolic link.
    pub fn make_link(
        &self,
        directory: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> OpResult<Stat> {
        match target.len() {
            0 => Err(Errno::ENOENT),
            length if length > LINK_TARGET_BYTES_MAX => Err(Errno::ENAMETOOLONG),
            _ => self.insert(
                directory,
                name,
                0o777,
                LayerBody::Symlink(target.into()),
                false,
                caller,
            ),
        }
    }

    fn insert(
        &self,
        directory: Ino,
        name: &[u8],
        mode: u32,
        body: LayerBody,
        open: bool,
        caller: Caller,
    ) -> OpResult<Stat> {
        check_name(name)?;
        self.change(|tree, state| {
            let directory = state.directory(tree, directory)?;
            if state.layer.child(tree, directory, name).is_some() {
                return Err(Errno::EEXIST);
            }
            state.check_room()?;
            let parent = *state.seen(tree, directory)?.attributes();
            if state.layer.places(tree, directory).is_empty() && directory != ROOT_INO {
                // A removed directory that somebody is still in.
                return Err(Errno::ENOENT);
            }
            let now = now_ns();
            let inherits = parent.mode & libc::S_ISGID != 0;
            let set_gid = if inherits && matches!(body, LayerBody::Directory) {
                libc::S_ISGID
            } else {
                0
            };
            let attributes = Attributes {
                mode: mode | set_gid,
                uid: caller.uid,
                gid: if inherits { parent.gid } else { caller.gid },
                mtime_ns: now,
            };
            let before = expected(&state.layer, tree, &(directory, name.into()));
            let inode = LayerInode {
                attributes,
                ctime_ns: now,
                body,
                written: Some(before),
            };
            let ino = state.layer.next_ino();
            state.layer.inodes.insert(ino, inode);
            state
                .layer
                .set_name(directory, name, Some(NameChange::Here(ino)));
            state.touch(tree, directory, now)?;
            if !open {
                self.shared.complete(tree, state, ino)?;
            }
            state.stat_and_count(tree, ino)
        })
    }

    /// Takes away the name of something that is not a directory.
    pub fn unlink(&self, directory: Ino, name: &[u8]) -> OpResult<()> {
        self.change(|tree, state| {
            let directory = state.directory(tree, directory)?;
            let ino = state.child(tree, directory, name)?;
            match state.seen(tree, ino)?.is_directory() {
                true => Err(Errno::EISDIR),
                false => self.take(tree, state, (directory, name.into()), ino),
            }
        })
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, directory: Ino, name: &[u8]) -> OpResult<()> {
        self.change(|tree, state| {
            let directory = state.directory(tree, directory)?;
            let ino = state.child(tree, directory, name)?;
            if !state.seen(tree, ino)?.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            if !state.layer.children(tree, ino).is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            self.take(tree, state, (directory, name.into()), ino)
        })
    }

    fn take(&self, tree: &Tree, state: &mut State, place: Place, ino: Ino) -> OpResult<()> {
        state.check_room()?;
        let now = now_ns();
        state.announce(self.chunks(), tree, |announcer, layer| {
            announcer.remove(layer, place.clone());
            Ok(())
        })?;
        state.layer.take_name(tree, place.0, &place.1);
        if let Some(inode) = state.layer.inodes.get_mut(&ino) {
            inode.ctime_ns = now;
        }
        state.layer.free_if_unreachable(tree, ino);
        state.touch(tree, place.0, now)
    }

    /// Gives a file a further name.
    pub fn link(&self, ino: Ino, directory: Ino, name: &[u8]) -> OpResult<Stat> {
        check_name(name)?;
        self.change(|tree, state| {
            let ino = state.layer.canonical(ino);
            let directory = state.directory(tree, directory)?;
            if state.seen(tree, ino)?.is_directory() {
                return Err(Errno::EPERM);
            }
            if state.layer.child(tree, directory, name).is_some() {
                return Err(Errno::EEXIST);
            }
            state.check_room()?;
            let now = now_ns();
            // The flash has one place for each file, so a file with two is the guest's own.
            state.edit(tree, ino)?.ctime_ns = now;
            state
                .layer
                .set_name(directory, name, Some(NameChange::Here(ino)));
            state.touch(tree, directory, now)?;
            state.announce(self.chunks(), tree, |announcer, layer| {
                announcer.put(layer, ino, None)
            })?;
            state.stat_and_count(tree, ino)
        })
    }

    /// The names in a directory by ascending number of their files; the same list while nothing changes.
    pub fn list(&self, directory: Ino) -> OpResult<Arc<Vec<ListedName>>> {
        self.op(|tree, state| {
            let ino = state.directory(tree, directory)?;
            if let Some(listing) = &state.listing
                && (listing.directory, listing.version) == (ino, state.version)
            {
                return Ok(listing.names.clone());
            }
            let children = state.layer.children(tree, ino);
            let listed = children.into_iter().filter_map(|(name, ino)| {
                let format = state.layer.seen(tree, ino)?.format();
                Some(ListedName {
                    ino: state.layer.shown(ino),
                    format,
                    name,
                })
            });
            let mut names: Vec<_> = listed.collect();
            names.sort_by(|a, b| (a.ino, &a.name).cmp(&(b.ino, &b.name)));
            let names = Arc::new(names);
            let version = state.version;
            state.listing = Some(Listing {
                directory: ino,
                version,
                names: names.clone(),
            });
            Ok(names)
        })
    }

    /// The directory in which a directory is.
    pub fn parent(&self, directory: Ino) -> OpResult<Ino> {
        self.op(|tree, state| {
            let ino = state.directory(tree, directory)?;
            let place = state.layer.places(tree, ino).into_iter().next();
            Ok(place.map_or(ROOT_INO, |(parent, _)| state.layer.shown(parent)))
        })
    }

    /// Room left for the guest's writes.
    pub fn statistics(&self) -> Statistics {
        let state = self.shared.lock();
        let used = state.stored_bytes + (state.layer.page_count * PAGE_BYTES) as u64;
        Statistics {
            bytes: LAYER_STORED_BYTES_MAX,
            bytes_free: LAYER_STORED_BYTES_MAX.saturating_sub(used),
            files: LAYER_FILES_MAX as u64,
            files_free: LAYER_FILES_MAX.saturating_sub(state.layer.inodes.len()) as u64,
        }
    }
}
