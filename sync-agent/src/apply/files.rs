//! File changes on the appliance's behalf: each all or nothing, never through a symbolic link, and only if the phone's
//! user has not changed the path since.
//!
//! Runs on the files control point's thread. Before a deed the path is looked at, so that the known tree is the truth;
//! after it, what was done enters the tree, so that the kernel's notices of it find nothing new. A user's edit a moment
//! later differs from the tree and becomes an event like any other.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstatat, mkdirat, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};
use sync_protocol::event::{Content, FileChange, FileOp, Node};
use sync_protocol::hash::Hash;
use sync_protocol::path::PhonePath;
use sync_protocol::tree::{Entry, FileKind};
use sync_protocol::wire::{self, ChangeStatus, CommandStatus};

use super::spool::Spool;
use crate::beneath;
use crate::clock;
use crate::control_points::files::Tracker;
use crate::control_points::files::known::{Known, KnownChange};

/// What a change demands of the path before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Entry(Hash),
    Absent,
    Any,
}

/// A checked `Apply` with all its chunks.
pub struct ApplyJob {
    pub(crate) command_id: u64,
    pub(crate) changes: Vec<(FileChange, Base)>,
    pub(crate) chunks: Spool,
}

/// Names of files that are being written, which are not captured.
const UNFINISHED_PREFIX: &[u8] = b".pollux-unfinished-";

pub(crate) fn is_unfinished(name: &[u8]) -> bool {
    name.starts_with(UNFINISHED_PREFIX)
}

#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error("outside the roots, or excluded")]
    OutOfScope,
    #[error("the phone has changed it")]
    Conflict { phone: Option<Hash> },
    #[error("the journal is full, so the phone's own changes cannot be told apart")]
    Unsettled,
    #[error("there is nothing to rename")]
    NothingThere,
    #[error("{doing}: {source}")]
    Io {
        doing: &'static str,
        source: io::Error,
    },
}

fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ChangeError {
    move |source| ChangeError::Io {
        doing,
        source: source.into(),
    }
}

impl ApplyJob {
    pub(crate) fn run(self, tracker: &mut Tracker) -> wire::CommandResult {
        let mut result = wire::CommandResult {
            command_id: self.command_id,
            ..Default::default()
        };
        // The result comes from the journal if the deed was done before.
        let before = tracker
            .journal()
            .call(move |journal| Ok((journal.last_seq(), journal.result(self.command_id)?)));
        match before {
            Ok((_, Some(earlier))) => return earlier,
            Ok((seq, None)) => result.at_seq = seq,
            Err(error) => {
                result.set_status(CommandStatus::Failed);
                result.text = error.to_string();
                return result;
            }
        }
        let mut adopted = Vec::new();
        for (change, base) in &self.changes {
            let mut deed = Deed {
                tracker,
                chunks: &self.chunks,
                changes: Vec::new(),
            };
            let outcome = deed.perform(change, *base);
            adopted.append(&mut deed.changes);
            result.changes.push(describe(outcome, *base));
        }
        if let Ok(seq) = tracker.journal().call(|journal| Ok(journal.last_seq())) {
            result.at_seq = seq;
        }
        let made = [ChangeStatus::Applied, ChangeStatus::Unchanged];
        let all_made = result
            .changes
            .iter()
            .all(|change| made.contains(&change.status()));
        result.set_status(if all_made {
            CommandStatus::Done
        } else {
            CommandStatus::Partly
        });
        let kept = result.clone();
        if let Err(error) = tracker
            .journal()
            .call(move |journal| journal.record_result(&adopted, &kept))
        {
            // What was done is not known to be ours: a scan finds it, or that it has gone since, which only the appliance could tell.
            tracker.distrust(&error);
            result.set_status(CommandStatus::Partly);
            for change in result.changes.iter_mut().filter(|change| made.contains(&change.status())) {
                change.set_status(ChangeStatus::Failed);
                change.text = format!("it was made, and cannot be recorded: {error}");
            }
        }
        result
    }
}

fn describe(outcome: Result<ChangeStatus, ChangeError>, base: Base) -> wire::ChangeResult {
    let mut result = wire::ChangeResult::default();
    match outcome {
        Ok(status) => result.set_status(status),
        Err(error) => {
            result.text = error.to_string();
            result.set_status(match error {
                ChangeError::OutOfScope => ChangeStatus::Refused,
                ChangeError::Conflict { .. } => ChangeStatus::Conflict,
                ChangeError::Io { ref source, .. } if beneath::is_absence(source) => {
                    ChangeStatus::Refused
                }
                _ => ChangeStatus::Failed,
            });
            if let ChangeError::Conflict { phone } = error {
                result.phone_entry = phone.map(Hash::to_vec).unwrap_or_default();
                result.base_entry = match base {
                    Base::Entry(hash) => hash.to_vec(),
                    _ => Vec::new(),
                };
            }
        }
    }
    result
}

/// One change being made.
struct Deed<'a> {
    tracker: &'a mut Tracker,
    chunks: &'a Spool,
    /// What it did to the known tree.
    changes: Vec<KnownChange>,
}

impl Deed<'_> {
    fn perform(&mut self, change: &FileChange, base: Base) -> Result<ChangeStatus, ChangeError> {
        let path = &change.path;
        self.check_scope(path)?;
        if let FileOp::Rename { to } = &change.op {
            self.check_scope(to)?;
            self.settle(to)?;
        }
        self.settle(path)?;
        let current = self.tracker.tree().entry(path);
        if is_so_already(change, current, self.tracker) {
            return self.touch(change);
        }
        let keeps_children = matches!(&change.op, FileOp::Put(node) if node.kind() == FileKind::Directory)
            && current.is_none_or(|entry| entry.kind == FileKind::Directory);
        let phone = current.map(|entry| entry.hash());
        let holds = match base {
            Base::Any => true,
            Base::Absent => phone.is_none(),
            Base::Entry(hash) => phone == Some(hash),
        };
        if !holds && !keeps_children {
            return Err(ChangeError::Conflict { phone });
        }
        match &change.op {
            FileOp::Put(node) => self.put(path, node, current)?,
            FileOp::Remove => self.remove(path)?,
            FileOp::Rename { to } => self.rename(path, to, current)?,
        }
        Ok(ChangeStatus::Applied)
    }

    fn check_scope(&self, path: &PhonePath) -> Result<(), ChangeError> {
        if self.tracker.scope().contains(path) {
            Ok(())
        } else {
            Err(ChangeError::OutOfScope)
        }
    }

    /// What is left out must not go, or move, with a directory around it either.
    fn check_nothing_excluded_in(&self, path: &PhonePath) -> Result<(), ChangeError> {
        let holds_excluded = self
            .tracker
            .scope()
            .excludes()
            .iter()
            .any(|exclude| exclude.is_within(path));
        if holds_excluded {
            Err(ChangeError::OutOfScope)
        } else {
            Ok(())
        }
    }

    /// Everything is as the change wants it, except perhaps a file's time.
    fn touch(&mut self, change: &FileChange) -> Result<ChangeStatus, ChangeError> {
        let FileOp::Put(node) = &change.op else {
            return Ok(ChangeStatus::Unchanged);
        };
        let is_same_time = self
            .tracker
            .tree()
            .get(&change.path)
            .is_some_and(|known| known.mtime_ns == node.mtime_ns);
        if is_same_time || node.kind() == FileKind::Directory {
            return Ok(ChangeStatus::Unchanged);
        }
        let (parent, name) =
            beneath::open_parent(&change.path).map_err(doing("cannot open the directory"))?;
        set_time(&parent, &name, node)?;
        self.adopt(&change.path, node)?;
        Ok(ChangeStatus::Applied)
    }

    fn settle(&mut self, path: &PhonePath) -> Result<(), ChangeError> {
        if self.tracker.settle(path) {
            Ok(())
        } else {
            Err(ChangeError::Unsettled)
        }
    }

    fn put(
        &mut self,
        path: &PhonePath,
        node: &Node,
        current: Option<Entry>,
    ) -> Result<(), ChangeError> {
        self.make_parents(path)?;
        let (parent, name) =
            beneath::open_parent(path).map_err(doing("cannot open the directory"))?;
        let current_kind = current.map(|entry| entry.kind);
        if node.kind() == FileKind::Directory {
            if current_kind != Some(FileKind::Directory) {
                self.clear(path, current)?;
                mkdirat(&parent, name.as_c_str(), Mode::S_IRWXU)
                    .map_err(doing("cannot make the directory"))?;
            }
            let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
            fchownat(
                &parent,
                name.as_c_str(),
                owner.0,
                owner.1,
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .map_err(doing("cannot set the owner"))?;
            let directory =
                beneath::open_directory(path).map_err(doing("cannot open the directory"))?;
            fchmod(&directory, mode(node)).map_err(doing("cannot set the mode"))?;
        } else {
            let unfinished = unfinished_name();
            let written = self
                .write_unfinished(&parent, &unfinished, node)
                .and_then(|()| {
                    if current_kind == Some(FileKind::Directory) {
                        self.clear(path, current)?;
                    }
                    renameat2(
                        &parent,
                        unfinished.as_c_str(),
                        &parent,
                        name.as_c_str(),
                        RenameFlags::empty(),
                    )
                    .map_err(doing("cannot put the file in place"))
                });
            if let Err(error) = written {
                // It may not even exist; a scan ignores it.
                let _ = unlinkat(&parent, unfinished.as_c_str(), UnlinkatFlags::NoRemoveDir);
                return Err(error);
            }
        }
        sync_directory(parent)?;
        self.adopt(path, node)
    }

    fn write_unfinished(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        node: &Node,
    ) -> Result<(), ChangeError> {
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        match &node.content {
            Content::Symlink { target } => {
                let target =
                    CString::new(target.as_slice()).map_err(doing("cannot write the link"))?;
                symlinkat(target.as_c_str(), parent, name)
                    .map_err(doing("cannot write the link"))?;
                fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(doing("cannot set the owner"))?;
            }
            Content::Regular { chunks, .. } => {
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let file = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
                    .map_err(doing("cannot create the file"))?;
                let mut file = File::from(file);
                for chunk in chunks {
                    let bytes = self
                        .chunks
                        .get(chunk.hash)
                        .map_err(doing("cannot read a chunk"))?;
                    file.write_all(&bytes)
                        .map_err(doing("cannot write the file"))?;
                }
                // Before the mode: a change of owner clears set-user-id bits.
                fchown(&file, owner.0, owner.1).map_err(doing("cannot set the owner"))?;
                fchmod(&file, mode(node)).map_err(doing("cannot set the mode"))?;
                file.sync_all().map_err(doing("cannot write the file"))?;
            }
            Content::Directory => {}
        }
        set_time(parent, name, node)
    }

    fn remove(&mut self, path: &PhonePath) -> Result<(), ChangeError> {
        let current = self.tracker.tree().entry(path);
        self.clear(path, current)?;
        let (parent, _) = beneath::open_parent(path).map_err(doing("cannot open the directory"))?;
        sync_directory(parent)
    }

    fn rename(
        &mut self,
        from: &PhonePath,
        to: &PhonePath,
        current: Option<Entry>,
    ) -> Result<(), ChangeError> {
        let current = current.ok_or(ChangeError::NothingThere)?;
        self.check_nothing_excluded_in(from)?;
        self.make_parents(to)?;
        let (old, old_name) =
            beneath::open_parent(from).map_err(doing("cannot open the directory"))?;
        let (new, new_name) =
            beneath::open_parent(to).map_err(doing("cannot open the directory"))?;
        let replaced = self.tracker.tree().entry(to);
        if replaced.is_some_and(|entry| {
            entry.kind == FileKind::Directory || current.kind == FileKind::Directory
        }) {
            self.clear(to, replaced)?;
        }
        renameat2(
            &old,
            old_name.as_c_str(),
            &new,
            new_name.as_c_str(),
            RenameFlags::empty(),
        )
        .map_err(doing("cannot rename"))?;
        sync_directory(old)?;
        sync_directory(new)?;
        self.change(KnownChange::Move(from.clone(), to.clone()));
        Ok(())
    }

    /// Removes what is at a path, with everything beneath it.
    fn clear(&mut self, path: &PhonePath, current: Option<Entry>) -> Result<(), ChangeError> {
        let Some(current) = current else {
            return Ok(());
        };
        let (parent, name) =
            beneath::open_parent(path).map_err(doing("cannot open the directory"))?;
        if current.kind == FileKind::Directory {
            self.check_nothing_excluded_in(path)?;
            let directory =
                beneath::open_directory(path).map_err(doing("cannot open the directory"))?;
            empty(directory, 0)?;
            unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir)
                .map_err(doing("cannot remove"))?;
        } else {
            unlinkat(&parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
                .map_err(doing("cannot remove"))?;
        }
        self.change(KnownChange::Forget(path.clone()));
        Ok(())
    }

    /// Makes missing parents as the contract says: mode 0755, owned by root.
    fn make_parents(&mut self, path: &PhonePath) -> Result<(), ChangeError> {
        let mut missing = Vec::new();
        let mut next = path.parent();
        while let Some(parent) = next {
            match beneath::stat(&parent).map_err(doing("cannot look at the directory"))? {
                Some(_) => break,
                None => missing.push(parent.clone()),
            }
            next = parent.parent();
        }
        let node = Node {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ns: 0,
            content: Content::Directory,
        };
        for parent in missing.iter().rev() {
            let (above, name) =
                beneath::open_parent(parent).map_err(doing("cannot open the directory"))?;
            mkdirat(&above, name.as_c_str(), mode(&node))
                .map_err(doing("cannot make the directory"))?;
            let directory =
                beneath::open_directory(parent).map_err(doing("cannot open the directory"))?;
            fchmod(&directory, mode(&node)).map_err(doing("cannot set the mode"))?;
            if self.tracker.scope().contains(parent) {
                self.adopt(parent, &node)?;
            }
        }
        Ok(())
    }

    /// Takes what was written into the known tree, as it was meant: should the user have changed it already, it differs.
    fn adopt(&mut self, path: &PhonePath, node: &Node) -> Result<(), ChangeError> {
        let stat = beneath::stat(path).map_err(doing("cannot look at what was written"))?;
        if let Some(stat) = stat {
            let known = Known::new(node.entry(), &stat, clock::now().wall_us);
            let known = Known {
                mtime_ns: if node.kind() == FileKind::Directory {
                    stat.mtime_ns
                } else {
                    node.mtime_ns
                },
                ..known
            };
            self.change(KnownChange::Set(path.clone(), known));
        }
        Ok(())
    }

    fn change(&mut self, change: KnownChange) {
        self.tracker.adopt(std::slice::from_ref(&change));
        self.changes.push(change);
    }
}

fn is_so_already(change: &FileChange, current: Option<Entry>, tracker: &Tracker) -> bool {
    match &change.op {
        FileOp::Put(node) => match node.kind() {
            FileKind::Directory => tracker
                .tree()
                .get(&change.path)
                .is_some_and(|known| known.entry == node.entry()),
            _ => current == Some(node.entry()),
        },
        FileOp::Remove => current.is_none(),
        FileOp::Rename { .. } => false,
    }
}

/// Directories nested deeper than this are not removed: deeper than any path allows.
const DEPTH_MAX: usize = 2048;

/// Removes everything in a directory, by descriptors, so that no link can lead elsewhere.
fn empty(directory: OwnedFd, depth: usize) -> Result<(), ChangeError> {
    if depth > DEPTH_MAX {
        return Err(doing("cannot remove")(io::Error::from(
            io::ErrorKind::InvalidInput,
        )));
    }
    let mut opened =
        nix::dir::Dir::from_fd(directory).map_err(doing("cannot read the directory"))?;
    let mut names = Vec::new();
    for entry in opened.iter() {
        let name = entry
            .map_err(doing("cannot read the directory"))?
            .file_name()
            .to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        let stat = fstatat(&opened, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(doing("cannot remove"))?;
        let is_directory = beneath::Stat::from(stat).kind == Some(FileKind::Directory);
        if is_directory {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let child = openat(&opened, name.as_c_str(), flags, Mode::empty())
                .map_err(doing("cannot remove"))?;
            empty(child, depth + 1)?;
        }
        let flag = if is_directory {
            UnlinkatFlags::RemoveDir
        } else {
            UnlinkatFlags::NoRemoveDir
        };
        unlinkat(&opened, name.as_c_str(), flag).map_err(doing("cannot remove"))?;
    }
    Ok(())
}

fn sync_directory(directory: OwnedFd) -> Result<(), ChangeError> {
    File::from(directory)
        .sync_all()
        .map_err(doing("cannot write the directory"))
}

fn set_time(parent: &OwnedFd, name: &CStr, node: &Node) -> Result<(), ChangeError> {
    let time = TimeSpec::nanoseconds(node.mtime_ns);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .map_err(doing("cannot set the time"))
}

fn mode(node: &Node) -> Mode {
    Mode::from_bits_truncate(node.mode)
}

fn unfinished_name() -> CString {
    let name = [
        UNFINISHED_PREFIX,
        hex::encode(rand::random::<[u8; 8]>()).as_bytes(),
    ]
    .concat();
    CString::new(name).expect("the prefix and hexadecimal digits hold no NUL")
}
