//! Compares the disk with the known tree and turns differences into events.
//!
//! Work comes as paths to look at and directories to walk; each look reads the truth, so it does not matter why or in
//! which order. Steps are small, so that commands are not kept waiting by a scan.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sync_protocol::event::{Control, ControlKind, FileChange, FileOp, Kind};
use sync_protocol::hash::Hash;
use sync_protocol::limits::TEXT_BYTES_MAX;
use sync_protocol::path::PhonePath;
use sync_protocol::scope::Scope;
use sync_protocol::tree::FileKind;

use super::fanotify::Notice;
use super::known::{KnownChange, KnownTree};
use super::reading;
use crate::beneath;
use crate::clock;
use crate::journal::{Draft, JournalError, JournalHandle, Limits};

/// Paths waiting to be looked at; more than that and a scan is cheaper.
const CHANGED_PATHS_MAX: usize = 65_536;
/// Sizes at which events found so far are committed.
const PENDING_EVENTS_MAX: usize = 256;
const PENDING_CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// How long the journal is left alone after trouble: doubled each time, until there is none.
const TROUBLE_WAIT: Duration = Duration::from_millis(200);
const TROUBLE_DOUBLINGS_MAX: u32 = 7;
/// Complaints remembered, so that each is made once.
const COMPLAINTS_MAX: usize = 4096;
/// Directories walked in one step.
const STEP_DIRECTORIES: usize = 32;

/// Why the tracker cannot go on now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    #[error("the journal has no room for files")]
    NoRoom,
    #[error(transparent)]
    Journal(#[from] JournalError),
}

pub(crate) struct Tracker {
    journal: JournalHandle,
    limits: Limits,
    scope: Scope,
    tree: KnownTree,
    pending: Pending,
    changed: BTreeSet<PhonePath>,
    /// Paths that kept changing while they were read.
    unsettled: BTreeSet<PhonePath>,
    walk: Vec<Walk>,
    scan: Option<Scan>,
    scan_due: Option<String>,
    has_room: bool,
    /// Why the journal could not be written, until it can and this has been reported.
    trouble: Option<String>,
    /// Times in a row that there was trouble, and when to try again.
    troubles: u32,
    retry_at: Instant,
    complaints: BTreeMap<PhonePath, i64>,
    /// The next file event is of what a look came upon that no notice had announced.
    finding: Option<Finding>,
}

/// What a look that trusts nothing came upon.
struct Finding {
    kind: ControlKind,
    path: PhonePath,
    text: String,
}

/// Events and what belongs to them, until they are committed.
#[derive(Default)]
struct Pending {
    drafts: Vec<Draft>,
    chunks: Vec<(Hash, Vec<u8>)>,
    chunk_bytes: usize,
    changes: Vec<KnownChange>,
}

/// A directory whose entries are to be looked at.
struct Walk {
    directory: PhonePath,
    look: Look,
}

/// A scan of all roots, as announced to the appliance.
struct Scan {
    differences: u64,
}

/// How closely to look at a path.
#[derive(Clone, Copy, Default)]
struct Look {
    /// Everything beneath, too, even where the directory itself has not changed.
    deep: bool,
    /// Describe again what has not changed.
    resend: bool,
    /// Read even what looks untouched, and say of what differs how it was found.
    reread: bool,
}

impl Tracker {
    pub(crate) fn new(journal: JournalHandle, scope: Scope) -> Result<Self, JournalError> {
        let (tree, limits) =
            journal.call(|journal| Ok((journal.known_tree()?, journal.limits())))?;
        let mut tracker = Self {
            journal,
            limits,
            scope: scope.clone(),
            tree,
            pending: Pending::default(),
            changed: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            walk: Vec::new(),
            scan: None,
            scan_due: None,
            has_room: true,
            trouble: None,
            troubles: 0,
            retry_at: Instant::now(),
            complaints: BTreeMap::new(),
            finding: None,
        };
        tracker.set_scope(scope);
        Ok(tracker)
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    pub(crate) fn tree(&self) -> &KnownTree {
        &self.tree
    }

    pub(crate) fn journal(&self) -> &JournalHandle {
        &self.journal
    }

    /// Takes new roots and excludes. What is no longer captured is forgotten without an event: both sides leave it out.
    pub(crate) fn set_scope(&mut self, scope: Scope) {
        for path in self.tree.outside(&scope) {
            self.tree.forget(&path);
            self.pending.changes.push(KnownChange::Forget(path));
        }
        self.scope = scope;
    }

    /// Has everything looked at, starting with the next step.
    pub(crate) fn scan(&mut self, reason: impl Into<String>) {
        self.scan_due = Some(reason.into());
    }

    /// Nothing is known any more: the journal was begun anew.
    pub(crate) fn forget_all(&mut self) {
        self.tree = KnownTree::default();
        self.pending = Pending::default();
        self.walk.clear();
        self.scan = None;
    }

    /// Has one subtree looked at, trusting nothing; a path above roots stands for them.
    /// False if the journal cannot take it now; asking again may help.
    pub(crate) fn rescan(&mut self, path: &PhonePath, resend: bool) -> bool {
        let look = Look {
            deep: true,
            resend,
            reread: true,
        };
        let beneath = |root: &&PhonePath| root.is_within(path) && *root != path;
        let mut tops: Vec<PhonePath> = self.scope.roots().iter().filter(beneath).cloned().collect();
        if tops.is_empty() {
            tops.push(path.clone());
        }
        let result = tops.iter().try_for_each(|top| self.look(top, look));
        result.map_err(|halt| self.halt(halt)).is_ok()
    }

    /// Commits what was found so far. The tree is then what the events up to the returned seq describe; none if the journal
    /// cannot take it.
    pub(crate) fn settled_seq(&mut self) -> Option<u64> {
        if let Err(halt) = self.commit() {
            self.halt(halt);
            return None;
        }
        // No event about files comes but from here.
        self.journal.call(|journal| Ok(journal.last_seq())).ok()
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Changed(path) => self.mark(path),
            Notice::Renamed(from, to) => {
                self.follow_rename(&from, &to);
                self.mark(from);
                self.mark(to);
            }
            Notice::Overflow => {
                self.report(ControlKind::QueueOverflow, String::new(), None, 0);
                self.scan("overflow");
            }
        }
        if self.changed.len() > CHANGED_PATHS_MAX {
            self.changed.clear();
            self.scan("many changes");
        }
    }

    /// Nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.changed.is_empty()
            && self.walk.is_empty()
            && self.scan_due.is_none()
            && self.trouble.is_none()
    }

    /// There is work, but it has to wait for room or for the disk.
    pub(crate) fn is_halted(&self) -> bool {
        !self.has_room || self.trouble.is_some()
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Looks again at what kept changing.
    pub(crate) fn retry_unsettled(&mut self) {
        self.changed.append(&mut self.unsettled);
    }

    /// Does some of the work and commits what it found. Halts are remembered and tried again in the next step.
    pub(crate) fn step(&mut self) {
        if let Err(halt) = self.try_step() {
            self.halt(halt);
        }
    }

    /// Looks at `path` and commits, so that the known tree has it as it is now; false if the journal cannot take it.
    pub(crate) fn settle(&mut self, path: &PhonePath) -> bool {
        let result = self
            .look(path, Look::default())
            .and_then(|()| self.commit());
        result.map_err(|halt| self.halt(halt)).is_ok()
    }

    /// Takes into the known tree what the agent itself did, without an event. The caller makes the changes durable.
    pub(crate) fn adopt(&mut self, changes: &[KnownChange]) {
        for change in changes {
            match change {
                KnownChange::Set(path, known) => self.tree.insert(path.clone(), *known),
                KnownChange::Forget(path) => self.tree.forget(path),
                KnownChange::Move(from, to) => self.tree.rename(from, to),
            }
        }
    }

    /// Records something about the agent itself.
    pub(crate) fn report(
        &mut self,
        kind: ControlKind,
        mut text: String,
        path: Option<PhonePath>,
        count: u64,
    ) {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        self.draft(Kind::Control(Control {
            kind,
            text,
            path,
            count,
        }));
    }

    fn try_step(&mut self) -> Result<(), Halt> {
        self.recover()?;
        if let Some(reason) = self.scan_due.clone() {
            self.begin_scan(reason)?;
            self.scan_due = None;
        }
        while let Some(path) = self.changed.pop_first() {
            self.look(&path, Look::default()).inspect_err(|_| {
                self.changed.insert(path.clone());
            })?;
        }
        for _ in 0..STEP_DIRECTORIES {
            let Some(walk) = self.walk.pop() else { break };
            self.walk_one(walk)?;
        }
        if self.walk.is_empty()
            && let Some(scan) = self.scan.take()
        {
            self.report(ControlKind::ScanDone, String::new(), None, scan.differences);
        }
        self.commit()?;
        if self.is_idle() {
            self.troubles = 0;
        }
        Ok(())
    }

    /// After trouble, or when there was no room: goes on if the journal can be written again.
    fn recover(&mut self) -> Result<(), Halt> {
        if !self.has_room {
            self.has_room = self.journal.call(|journal| journal.has_room_for_files())?;
        }
        if let Some(text) = self.trouble.clone() {
            if Instant::now() < self.retry_at {
                return Err(Halt::NoRoom);
            }
            self.report(ControlKind::JournalTrouble, text, None, 0);
            self.commit()?;
            self.trouble = None;
            self.scan("after trouble with the journal");
        }
        if self.has_room {
            Ok(())
        } else {
            Err(Halt::NoRoom)
        }
    }

    fn halt(&mut self, halt: Halt) {
        match halt {
            Halt::NoRoom if self.trouble.is_some() => {}
            Halt::NoRoom => {
                // What was found so far is small and can be told; its chunks are already in.
                self.has_room = false;
                if let Err(Halt::Journal(error)) = self.commit() {
                    self.distrust(&error);
                }
            }
            Halt::Journal(error) => self.distrust(&error),
        }
    }

    /// The journal did not take what the tree already has: back to what the journal has.
    pub(crate) fn distrust(&mut self, error: &JournalError) {
        tracing::warn!(%error, "cannot write the journal");
        self.trouble.get_or_insert_with(|| error.to_string());
        self.retry_at =
            Instant::now() + TROUBLE_WAIT * (1 << self.troubles.min(TROUBLE_DOUBLINGS_MAX));
        self.troubles += 1;
        self.pending = Pending::default();
        match self.journal.call(|journal| journal.known_tree()) {
            Ok(tree) => self.tree = tree,
            Err(error) => tracing::error!(%error, "cannot read the journal"),
        }
        self.scan = None;
        self.walk.clear();
    }

    fn begin_scan(&mut self, reason: String) -> Result<(), Halt> {
        if self.scan.is_none() {
            self.scan = Some(Scan { differences: 0 });
            self.report(ControlKind::ScanStarted, reason, None, 0);
        }
        self.walk.clear();
        for root in self.scope.roots().to_vec() {
            self.look(
                &root,
                Look {
                    deep: true,
                    ..Look::default()
                },
            )?;
        }
        Ok(())
    }

    fn walk_one(&mut self, walk: Walk) -> Result<(), Halt> {
        let names = match reading::names(&walk.directory) {
            Ok(names) => names,
            Err(error) if beneath::is_absence(&error) => BTreeSet::new(),
            Err(error) => {
                self.complain(
                    &walk.directory,
                    i64::MIN,
                    ControlKind::FileSkipped,
                    error.to_string(),
                );
                return Ok(());
            }
        };
        let all: BTreeSet<Vec<u8>> = names
            .into_iter()
            .chain(self.tree.names(&walk.directory))
            .collect();
        for name in all {
            match walk.directory.join(&name) {
                Ok(path) => {
                    if let Err(halt) = self.look(&path, walk.look) {
                        self.walk.push(walk);
                        return Err(halt);
                    }
                }
                Err(error) => {
                    self.complain(
                        &walk.directory,
                        i64::MIN,
                        ControlKind::FileSkipped,
                        error.to_string(),
                    );
                }
            }
        }
        Ok(())
    }

    fn mark(&mut self, path: PhonePath) {
        if self.scope.contains(&path) {
            self.changed.insert(path);
        }
    }

    /// A rename keeps subtrees from being described again - if it is still what the disk shows.
    fn follow_rename(&mut self, from: &PhonePath, to: &PhonePath) {
        let Some(known) = self.tree.get(from) else {
            return;
        };
        let known_kind = known.entry.kind;
        let target_is_it = matches!(beneath::stat(to), Ok(Some(stat))
            if stat.inode == known.inode && stat.kind == Some(known.entry.kind));
        let source_is_gone = match beneath::stat(from) {
            Ok(Some(stat)) => stat.inode != known.inode,
            Ok(None) => true,
            Err(_) => false,
        };
        let excludes_inside = self
            .scope
            .excludes()
            .iter()
            .any(|exclude| exclude.is_within(from) || exclude.is_within(to));
        let parent_is_known = self.scope.roots().contains(to)
            || to
                .parent()
                .is_some_and(|parent| self.tree.get(&parent).is_some());
        if target_is_it
            && source_is_gone
            && !excludes_inside
            && parent_is_known
            && self.scope.contains(from)
            && self.scope.contains(to)
            && !from.is_within(to)
            && !to.is_within(from)
        {
            self.tree.rename(from, to);
            self.pending
                .changes
                .push(KnownChange::Move(from.clone(), to.clone()));
            let op = FileOp::Rename { to: to.clone() };
            self.draft(Kind::File(FileChange {
                path: from.clone(),
                op,
            }));
            if known_kind == FileKind::Directory {
                // The disk is ahead of the notices: what was last found at the old path may have been in a directory made
                // there since.
                self.walk.push(Walk {
                    directory: to.clone(),
                    look: Look {
                        deep: true,
                        ..Look::default()
                    },
                });
            }
        }
    }

    fn draft(&mut self, kind: Kind) {
        if let (Kind::File(_), Some(finding)) = (&kind, self.finding.take()) {
            let Finding { kind, path, text } = finding;
            self.report(kind, text, Some(path), 0);
        }
        if let (Some(scan), Kind::File(_)) = (&mut self.scan, &kind) {
            scan.differences += 1;
        }
        self.pending.drafts.push(Draft {
            stamp: clock::now(),
            kind,
        });
    }

    fn mark_unsettled(&mut self, path: &PhonePath) {
        if self.unsettled.len() < CHANGED_PATHS_MAX {
            self.unsettled.insert(path.clone());
        }
    }

    /// Reports a path that is not captured, once for each state it is in.
    fn complain(&mut self, path: &PhonePath, state: i64, kind: ControlKind, text: String) {
        if self.complaints.get(path) == Some(&state) {
            return;
        }
        if self.complaints.len() >= COMPLAINTS_MAX {
            self.complaints.clear();
        }
        tracing::warn!(%path, text, "not captured");
        self.complaints.insert(path.clone(), state);
        self.report(kind, text, Some(path.clone()), 0);
    }

    fn commit(&mut self) -> Result<(), Halt> {
        let Pending {
            drafts,
            chunks,
            changes,
            ..
        } = std::mem::take(&mut self.pending);
        if drafts.is_empty() && changes.is_empty() {
            return Ok(());
        }
        self.has_room = self.journal.call(move |journal| {
            journal.append_files(drafts, &chunks, &changes)?;
            journal.has_room_for_files()
        })?;
        Ok(())
    }
}
