//! One look: what is at a path, compared with what is known of it.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sync_protocol::event::{ControlKind, FileChange, FileOp, Kind, Node};
use sync_protocol::limits::FILE_CHUNKS_MAX;
use sync_protocol::path::PhonePath;
use sync_protocol::tree::FileKind;

use super::{Finding, Halt, Look, PENDING_CHUNK_BYTES_MAX, PENDING_EVENTS_MAX, Tracker, Walk};
use crate::apply::is_unfinished;
use crate::beneath::{self, Stat};
use crate::clock;
use crate::control_points::files::known::{Known, KnownChange};
use crate::control_points::files::reading::{self, Reading};

/// How often a file that changes under the reader is read again before it is left for later.
const READ_ATTEMPTS: usize = 5;

impl Tracker {
    /// Compares one path with the disk. Errors only if it has to be done again later.
    pub(super) fn look(&mut self, path: &PhonePath, look: Look) -> Result<(), Halt> {
        let path = &self.topmost_unknown(path);
        if !self.scope.contains(path) || path.name().is_some_and(is_unfinished) {
            return Ok(());
        }
        let stat = match beneath::stat(path) {
            Ok(stat) => stat,
            Err(error) => {
                self.complain(path, i64::MIN, ControlKind::FileSkipped, error.to_string());
                return Ok(());
            }
        };
        let is_announced = self.changed.contains(path) || self.unsettled.contains(path);
        if look.reread && !look.resend && !is_announced {
            self.finding = Some(Finding {
                kind: ControlKind::FoundChanged,
                path: path.clone(),
                text: String::new(),
            });
        }
        let compared = match stat.and_then(|stat| Some((stat.kind?, stat))) {
            None => {
                self.gone(path, look);
                Ok(())
            }
            Some((FileKind::Directory, stat)) => {
                self.directory(path, &stat, look);
                Ok(())
            }
            Some((FileKind::Symlink, stat)) => {
                self.link(path, &stat, look);
                Ok(())
            }
            Some((FileKind::Regular, stat)) => self.regular(path, &stat, look),
        };
        self.finding = None;
        compared?;
        if self.pending.drafts.len() >= PENDING_EVENTS_MAX
            || self.pending.chunk_bytes >= PENDING_CHUNK_BYTES_MAX
        {
            self.commit()?;
        }
        Ok(())
    }

    /// Parents are described before their children: the first directory on the way that is not known, or the path.
    fn topmost_unknown(&self, path: &PhonePath) -> PhonePath {
        let mut topmost = path.clone();
        let mut next = path.parent();
        while let Some(parent) = next.filter(|parent| self.scope.contains(parent)) {
            if self
                .tree
                .get(&parent)
                .is_none_or(|known| known.entry.kind != FileKind::Directory)
            {
                topmost = parent.clone();
            }
            next = parent.parent();
        }
        topmost
    }

    fn gone(&mut self, path: &PhonePath, look: Look) {
        if self.tree.get(path).is_some() || look.resend {
            self.tree.forget(path);
            self.pending.changes.push(KnownChange::Forget(path.clone()));
            self.draft(Kind::File(FileChange {
                path: path.clone(),
                op: FileOp::Remove,
            }));
        }
    }

    fn directory(&mut self, path: &PhonePath, stat: &Stat, look: Look) {
        let known = self.tree.get(path).copied();
        let is_another = known.is_none_or(|known| {
            known.entry.kind != FileKind::Directory || known.inode != stat.inode
        });
        self.compare(path, reading::directory(stat), stat, look);
        if is_another || look.deep {
            self.walk.push(Walk {
                directory: path.clone(),
                look: Look {
                    deep: look.deep || is_another,
                    ..look
                },
            });
        }
    }

    fn link(&mut self, path: &PhonePath, stat: &Stat, look: Look) {
        match reading::link(path, stat) {
            Ok(node) => self.compare(path, node, stat, look),
            // It changed since: there will be another notice.
            Err(_) => self.mark_unsettled(path),
        }
    }

    fn regular(&mut self, path: &PhonePath, stat: &Stat, look: Look) -> Result<(), Halt> {
        let known = self.tree.get(path).copied();
        let looks_untouched = known.is_some_and(|known| known.is_still(stat));
        if looks_untouched && !look.resend && !look.reread {
            return Ok(());
        }
        if stat.size > self.limits.files_bytes / 2 {
            self.too_large(path, stat, look);
            return Ok(());
        }
        for _ in 0..READ_ATTEMPTS {
            let (chunks_before, bytes_before) =
                (self.pending.chunks.len(), self.pending.chunk_bytes);
            let reading = self.read(path)?;
            match reading {
                Reading::Changed => continue,
                Reading::Stable(node, _) if node.chunks().len() > FILE_CHUNKS_MAX => {
                    self.too_large(path, stat, look)
                }
                Reading::Stable(node, stat) => {
                    let is_decay = look.reread
                        && known.is_some_and(|known| known.is_still(&stat) && known.entry != node.entry());
                    if is_decay && !is_open(&stat) {
                        self.finding = Some(decay(path, "the contents are others".into()));
                    }
                    if !self.is_news(path, &node, look)
                        && self.pending.chunks.len() >= chunks_before
                    {
                        self.pending.chunks.truncate(chunks_before);
                        self.pending.chunk_bytes = bytes_before;
                    }
                    self.compare(path, node, &stat, look);
                }
                Reading::Absent => self.gone(path, look),
                Reading::Unreadable(error) if look.reread && looks_untouched => {
                    let Finding { kind, path, text } = decay(path, error.to_string());
                    self.report(kind, text, Some(path), 0);
                }
                Reading::Unreadable(error) => {
                    self.complain(
                        path,
                        stat.ctime_ns,
                        ControlKind::FileSkipped,
                        error.to_string(),
                    );
                }
            }
            return Ok(());
        }
        self.mark_unsettled(path);
        self.complain(
            path,
            i64::MIN,
            ControlKind::FileSkipped,
            "kept changing while it was read".into(),
        );
        Ok(())
    }

    /// Reads a file, staging its chunks in the journal as they get many.
    fn read(&mut self, path: &PhonePath) -> Result<Reading, Halt> {
        let Self {
            pending,
            journal,
            has_room,
            ..
        } = self;
        reading::regular(path, |hash, bytes| {
            pending.chunk_bytes += bytes.len();
            pending.chunks.push((hash, bytes));
            if pending.chunk_bytes < PENDING_CHUNK_BYTES_MAX {
                return Ok(());
            }
            pending.chunk_bytes = 0;
            let chunks = std::mem::take(&mut pending.chunks);
            *has_room = journal.call(move |journal| {
                journal.stage(&chunks)?;
                journal.has_room_for_files()
            })?;
            if *has_room { Ok(()) } else { Err(Halt::NoRoom) }
        })
    }

    fn too_large(&mut self, path: &PhonePath, stat: &Stat, look: Look) {
        // Left out on both sides, rather than kept as it once was.
        self.gone(path, look);
        self.complain(
            path,
            stat.ctime_ns,
            ControlKind::FileTooLarge,
            format!("{} bytes", stat.size),
        );
    }

    fn is_news(&self, path: &PhonePath, node: &Node, look: Look) -> bool {
        let Some(known) = self.tree.get(path) else {
            return true;
        };
        let entry = node.entry();
        // A directory's time follows from its children.
        let is_same_time = node.mtime_ns == known.mtime_ns || entry.kind == FileKind::Directory;
        look.resend || entry != known.entry || !is_same_time
    }

    /// Makes an event of `node` if it differs from what is known.
    fn compare(&mut self, path: &PhonePath, node: Node, stat: &Stat, look: Look) {
        let known = Known::new(node.entry(), stat, clock::now().wall_us);
        let before = self.tree.get(path).copied();
        if before == Some(known) && !look.resend {
            return;
        }
        let is_news = self.is_news(path, &node, look);
        if before.is_some_and(|before| before.entry.kind != known.entry.kind) {
            self.tree.forget(path);
            self.pending.changes.push(KnownChange::Forget(path.clone()));
        }
        self.tree.insert(path.clone(), known);
        self.pending
            .changes
            .push(KnownChange::Set(path.clone(), known));
        if is_news {
            self.draft(Kind::File(FileChange {
                path: path.clone(),
                op: FileOp::Put(node),
            }));
        }
    }
}

fn decay(path: &PhonePath, text: String) -> Finding {
    Finding {
        kind: ControlKind::FoundRotten,
        path: path.clone(),
        text,
    }
}

/// Whether any process has the file open or mapped, as far as `/proc` tells. A page that is mapped can be written without the
/// file's times moving, so nobody may have it while contents that changed by themselves are called decay.
///
/// Slow, and asked of files only whose contents did change by themselves.
fn is_open(stat: &Stat) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    processes
        .filter(|process| {
            let name = process.file_name();
            name.as_bytes().iter().all(u8::is_ascii_digit) && name != own.as_str()
        })
        .any(|process| holds(&process.path(), stat.inode))
}

/// Whether a process has a file with this inode, on whatever file system.
fn holds(process: &Path, inode: u64) -> bool {
    let opened = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut opened = opened.filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok());
    // A line is: range, rights, offset, device, inode, path (proc_pid_maps(5)).
    let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = |line: &str| line.split_ascii_whitespace().nth(4) == Some(&inode.to_string());
    opened.any(|file| file.is_file() && file.ino() == inode) || maps.lines().any(mapped)
}
