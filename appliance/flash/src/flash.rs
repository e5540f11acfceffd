//! The flash of one phone: its files at one position of its log, and the store of all of them.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use bytes::BufMut;
use store::{BlobHash, Log, PhoneId, Store};
use sync_protocol::event::{Content, Event, FileChange, Kind, Node, Origin};
use sync_protocol::scope::Scope;
use sync_protocol::tree::Entry;
use sync_protocol::{Hash, PhonePath};

use crate::FlashError;
use crate::chunks::Chunks;
use crate::codec::{Reader, put_attributes};
use crate::inode::{Attributes, Body, Ino, Inode, Name};
use crate::node::{StoredTree, load_tree, store_tree};
use crate::tree::{BaseTree, Tree};
use crate::view::ViewShared;

/// Kv bucket of stored base trees, by hash of the archive.
const BASES: &str = "flash-bases";
/// Kv bucket of checkpoints: phone, 00, position (8 bytes, big-endian).
const CHECKPOINTS: &str = "flash-checkpoints";
/// Version of the records in both.
const RECORD_VERSION: u8 = 1;
/// Events read from a log at a time.
const CATCH_UP_EVENTS: usize = 1024;

/// Names a base tree: the BLAKE3 hash of its archive.
pub type BaseId = BlobHash;

/// All flashes of a store. Cloning shares it.
#[derive(Clone)]
pub struct Flashes {
    inner: Arc<FlashesInner>,
}

struct FlashesInner {
    store: Store,
    chunks: Arc<Chunks>,
    bases: Mutex<HashMap<BaseId, Arc<BaseTree>>>,
    open: Mutex<HashMap<PhoneId, Weak<FlashShared>>>,
}

/// One phone's files at a position of its log. Cloning shares it.
///
/// A function of the base and the log: [`Flash::apply`] the log's file changes in order, from the
/// position after [`Flash::position`] on, or let [`Flash::catch_up`] do it.
#[derive(Clone)]
pub struct Flash {
    pub(crate) shared: Arc<FlashShared>,
}

pub(crate) struct FlashShared {
    pub(crate) phone: PhoneId,
    pub(crate) base: Option<BaseId>,
    pub(crate) store: Store,
    pub(crate) chunks: Arc<Chunks>,
    pub(crate) head: RwLock<Head>,
}

pub(crate) struct Head {
    pub(crate) tree: Tree,
    pub(crate) position: u64,
    pub(crate) views: Vec<Weak<ViewShared>>,
}

/// What a change did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Paths that now are something else, for whoever looks at them: inspectors, the guest's programs.
    pub paths: Vec<PhonePath>,
}

/// One file as [`Flash::stat`] and [`Flash::list`] describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in its directory; empty for the root.
    pub name: Vec<u8>,
    /// Its number, stable for its life.
    pub ino: Ino,
    /// File type as in `st_mode` (`S_IFMT` bits).
    pub format: u32,
    /// Permissions, owner, time.
    pub attributes: Attributes,
    /// Bytes of a file or link target.
    pub size: u64,
    /// Where a link leads.
    pub link_target: Option<Vec<u8>>,
}

impl Listed {
    pub(crate) fn of(inode: &Inode) -> Self {
        let link_target = match &inode.body {
            Body::Symlink(target) => Some(target.to_vec()),
            _ => None,
        };
        Listed {
            name: inode.name.to_vec(),
            ino: inode.ino,
            format: inode.body.format(),
            attributes: inode.attributes,
            size: inode.body.size(),
            link_target,
        }
    }
}

impl Flashes {
    /// The flashes in `store`, whose readers share a cache of up to `cache_bytes_max`.
    pub fn new(store: Store, cache_bytes_max: usize) -> Self {
        let chunks = Arc::new(Chunks::new(store.blobs.clone(), cache_bytes_max));
        let inner = FlashesInner {
            store,
            chunks,
            bases: Mutex::default(),
            open: Mutex::default(),
        };
        Flashes {
            inner: Arc::new(inner),
        }
    }

    /// Imports an image's `base.tar`, unless that has been done; all its phones share the result.
    /// Takes long the first time, and as long as hashing the file later.
    pub fn import_base(&self, tar: &Path) -> Result<BaseId, FlashError> {
        let id = crate::base::hash_file(tar)?;
        if self.base(id).is_ok() {
            return Ok(id);
        }
        self.import(id, tar)?;
        Ok(id)
    }

    fn import(&self, id: BaseId, tar: &Path) -> Result<(), FlashError> {
        let failed = |source| FlashError::Tar {
            what: tar.display().to_string(),
            source,
        };
        let file =
            std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(tar).map_err(failed)?);
        let mut tree = crate::base::import(file, &*self.inner.store.blobs)?;
        let stored = store_tree(&mut tree, &*self.inner.store.blobs)?;
        self.inner
            .store
            .kv
            .put(BASES, id.as_bytes(), &encode_record(None, &stored))?;
        self.bases().insert(id, Arc::new(tree.into_base()));
        Ok(())
    }

    /// Stores an image's files again, as far as they are not stored, or not whole.
    pub fn import_again(&self, tar: &Path) -> Result<(), FlashError> {
        self.import(crate::base::hash_file(tar)?, tar)
    }

    fn bases(&self) -> std::sync::MutexGuard<'_, HashMap<BaseId, Arc<BaseTree>>> {
        self.inner
            .bases
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn base(&self, id: BaseId) -> Result<Arc<BaseTree>, FlashError> {
        // Held while loading: a second caller would only load the same.
        let mut bases = self.bases();
        if let Some(base) = bases.get(&id) {
            return Ok(base.clone());
        }
        let record = self
            .inner
            .store
            .kv
            .get(BASES, id.as_bytes())?
            .ok_or(FlashError::UnknownBase(id))?;
        let (_, stored) = decode_record(&record)?;
        let tree = load_tree(
            &Arc::new(BaseTree::empty()),
            &stored,
            &*self.inner.store.blobs,
        )?;
        let base = Arc::new(tree.into_base());
        bases.insert(id, base.clone());
        Ok(base)
    }

    /// A phone's flash at its latest checkpoint, or at position 0 with the files of `base` if there is
    /// none. While one is open, opening the phone again gives the same.
    pub fn open(&self, phone: &PhoneId, base: Option<BaseId>) -> Result<Flash, FlashError> {
        let mut open = self
            .inner
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = open
            .get(phone)
            .and_then(Weak::upgrade)
            .filter(|shared| shared.base == base)
        {
            return Ok(Flash { shared });
        }
        let flash = self.load(phone, base, u64::MAX)?;
        open.insert(phone.clone(), Arc::downgrade(&flash.shared));
        Ok(flash)
    }

    /// A phone's flash as it was at `position` of `log`: apart from the open one, and left behind by it.
    pub fn at(
        &self,
        phone: &PhoneId,
        base: Option<BaseId>,
        position: u64,
        log: &dyn Log,
    ) -> Result<Flash, FlashError> {
        let flash = self.load(phone, base, position)?;
        flash.catch_up(log, position)?;
        match flash.position() {
            reached if reached == position => Ok(flash),
            reached => Err(FlashError::PositionAhead {
                position,
                last: reached,
            }),
        }
    }

    /// The latest checkpoint up to `position` on the same base.
    fn load(
        &self,
        phone: &PhoneId,
        base: Option<BaseId>,
        position: u64,
    ) -> Result<Flash, FlashError> {
        let store = &self.inner.store;
        let base_tree = match base {
            Some(base) => self.base(base)?,
            None => Arc::new(BaseTree::empty()),
        };
        let (prefix, last) = (
            checkpoint_key(phone, None),
            checkpoint_key(phone, Some(position)),
        );
        let mut loaded = (Tree::new(base_tree.clone()), 0);
        if let Some((key, record)) = store.kv.last_at_most(CHECKPOINTS, &prefix, &last)? {
            let (record_base, stored) = decode_record(&record)?;
            let position = key[prefix.len()..].try_into().map(u64::from_be_bytes);
            match position {
                // What can be rebuilt is not worth failing for.
                Ok(position) if record_base == base => {
                    match load_tree(&base_tree, &stored, &*store.blobs) {
                        Ok(tree) => loaded = (tree, position),
                        Err(error) => {
                            tracing::warn!(%phone, position, %error, "checkpoint unusable: replaying the whole log");
                        }
                    }
                }
                _ => tracing::info!(%phone, "the image changed: replaying the whole log"),
            }
        }
        let (tree, position) = loaded;
        let shared = FlashShared {
            phone: phone.clone(),
            base,
            store: store.clone(),
            chunks: self.inner.chunks.clone(),
            head: RwLock::new(Head {
                tree,
                position,
                views: Vec::new(),
            }),
        };
        Ok(Flash {
            shared: Arc::new(shared),
        })
    }
}

fn checkpoint_key(phone: &PhoneId, position: Option<u64>) -> Vec<u8> {
    let mut key = phone.as_str().as_bytes().to_vec();
    key.push(0);
    key.extend(position.into_iter().flat_map(u64::to_be_bytes));
    key
}

fn encode_record(base: Option<BaseId>, stored: &StoredTree) -> Vec<u8> {
    let mut record = vec![RECORD_VERSION];
    record.put_u8(base.is_some().into());
    record.put_slice(base.unwrap_or(BlobHash::from([0; 32])).as_bytes());
    record.put_slice(stored.root.as_bytes());
    put_attributes(&mut record, &stored.root_attributes);
    record.put_u64_le(stored.next_ino);
    record
}

fn decode_record(record: &[u8]) -> Result<(Option<BaseId>, StoredTree), FlashError> {
    let mut reader = Reader::new(record, "a checkpoint record");
    match reader.u8()? {
        RECORD_VERSION => {}
        version => {
            return Err(FlashError::RecordVersion {
                found: version,
                known: RECORD_VERSION,
            });
        }
    }
    let has_base = reader.u8()? == 1;
    let base = BlobHash::from(reader.hash()?.0);
    let root = BlobHash::from(reader.hash()?.0);
    let stored = StoredTree {
        root,
        root_attributes: reader.attributes()?,
        next_ino: reader.u64()?,
    };
    Ok((has_base.then_some(base), stored))
}

impl FlashShared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Head> {
        self.head.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Head> {
        self.head.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flash {
    /// Whose it is.
    pub fn phone(&self) -> &PhoneId {
        &self.shared.phone
    }

    /// The base tree beneath it, if any.
    pub fn base(&self) -> Option<BaseId> {
        self.shared.base
    }

    /// The log position up to which it has been made.
    pub fn position(&self) -> u64 {
        self.shared.read().position
    }

    /// Applies the file change at `position` of the log, made by `origin` at `wall_us`, to the flash and
    /// to the twins that look at it. Positions must rise; those between without file changes need no call.
    ///
    /// Of an event by help-desk, a twin keeps its own newer version of the path.
    pub fn apply(
        &self,
        position: u64,
        wall_us: i64,
        origin: Origin,
        change: &FileChange,
    ) -> Result<Applied, FlashError> {
        let mut head = self.shared.write();
        if position <= head.position {
            return Err(FlashError::PositionPassed {
                position,
                at: head.position,
            });
        }
        head.position = position;
        let effect = head.tree.apply(change, wall_us.saturating_mul(1000));
        let Head { tree, views, .. } = &mut *head;
        views.retain(|view| match view.upgrade() {
            Some(view) => {
                view.flash_changed(tree, &effect, origin);
                true
            }
            None => false,
        });
        let mut paths = vec![change.path.clone()];
        if let sync_protocol::event::FileOp::Rename { to } = &change.op {
            paths.push(to.clone());
        }
        Ok(Applied { paths })
    }

    /// Applies one event of the log, if it is about files.
    pub fn apply_event(&self, position: u64, event: &Event) -> Result<Applied, FlashError> {
        match &event.kind {
            Kind::File(change) => self.apply(position, event.wall_us, event.origin, change),
            _ => self.skip_to(position).map(|()| Applied::default()),
        }
    }

    /// Says that the log holds no file change up to `position`.
    pub fn skip_to(&self, position: u64) -> Result<(), FlashError> {
        let mut head = self.shared.write();
        if position < head.position {
            return Err(FlashError::PositionPassed {
                position,
                at: head.position,
            });
        }
        head.position = position;
        Ok(())
    }

    /// Applies the phone's log, whose records are encoded [`Event`]s, up to `position` or its end.
    pub fn catch_up(&self, log: &dyn Log, position: u64) -> Result<(), FlashError> {
        loop {
            let next = self.position() + 1;
            let most = position
                .saturating_sub(next - 1)
                .min(CATCH_UP_EVENTS as u64) as usize;
            let events = log.read(&self.shared.phone, next, most)?;
            if events.is_empty() {
                return Ok(());
            }
            for (position, event) in events {
                let event = Event::decode(&event)
                    .map_err(|source| FlashError::Event { position, source })?;
                self.apply_event(position, &event)?;
            }
        }
    }

    /// Stores the tree, so that opening the flash need not replay what came before. Returns the position.
    ///
    /// Reads and changes go on meanwhile.
    pub fn checkpoint(&self) -> Result<u64, FlashError> {
        let (tree, position) = {
            let head = self.shared.read();
            (head.tree.clone(), head.position)
        };
        self.store(tree, position)
    }

    /// As [`Flash::checkpoint`], believing of nothing that it is stored already: what decayed in the store is there again.
    pub fn checkpoint_whole(&self) -> Result<u64, FlashError> {
        let (mut tree, position) = {
            let head = self.shared.read();
            (head.tree.clone(), head.position)
        };
        tree.forget_nodes();
        self.store(tree, position)
    }

    fn store(&self, mut tree: Tree, position: u64) -> Result<u64, FlashError> {
        let stored = store_tree(&mut tree, &*self.shared.store.blobs)?;
        let record = encode_record(self.shared.base, &stored);
        self.shared.store.kv.put(
            CHECKPOINTS,
            &checkpoint_key(&self.shared.phone, Some(position)),
            &record,
        )?;
        let mut head = self.shared.write();
        if head.position == position {
            head.tree = tree;
        }
        Ok(position)
    }

    /// The hash of everything in `scope`, equal to the phone's if its files are.
    pub fn root(&self, scope: &Scope) -> Hash {
        self.shared.write().tree.root_hash(scope)
    }

    /// The tree entry at `path` with everything beneath it; none if there is nothing or a special file.
    pub fn entry(&self, path: &PhonePath) -> Option<Entry> {
        let mut head = self.shared.write();
        let ino = head.tree.resolve(path)?.ino;
        head.tree.entry(ino)
    }

    /// The tree entries in the directory at `path`, sorted by name, to compare with a phone's list.
    pub fn entries(&self, path: &PhonePath) -> Option<Vec<(Name, Entry)>> {
        let mut head = self.shared.write();
        let children = head.tree.resolve(path)?.entries()?.clone();
        let entries = children
            .into_iter()
            .filter_map(|(name, ino)| Some((name, head.tree.entry(ino)?)));
        Some(entries.collect())
    }

    /// The tree entry at `path` with what beneath it a phone with this scope captures, as the phone hashes it.
    pub fn entry_in(&self, path: &PhonePath, scope: &Scope) -> Option<Entry> {
        let mut head = self.shared.write();
        let ino = head.tree.resolve(path)?.ino;
        head.tree.entry_in_scope(ino, path, scope)
    }

    /// Up to `max` tree entries of the directory at `path` whose names come after `after`, sorted by name, as
    /// [`Flash::entry_in`] has them; none if it is no directory.
    pub fn entries_in(
        &self,
        path: &PhonePath,
        scope: &Scope,
        after: &[u8],
        max: usize,
    ) -> Option<Vec<(Name, Entry)>> {
        let mut head = self.shared.write();
        let directory = head.tree.resolve(path)?.clone();
        let rest = (Bound::Excluded(after), Bound::Unbounded);
        let rest = directory.entries()?.range::<[u8], _>(rest);
        let captured = rest.filter_map(|(name, ino)| {
            // A path too long for the contract was never captured.
            let child = path.join(name).ok()?;
            let entry = head.tree.entry_in_scope(*ino, &child, scope)?;
            Some((name.clone(), entry))
        });
        Some(captured.take(max).collect())
    }

    /// What an event says that makes the file at `path` as it is; none if there is nothing or a special file.
    pub fn node(&self, path: &PhonePath) -> Option<Node> {
        let inode = self.shared.read().tree.resolve(path)?.clone();
        let content = match &inode.body {
            Body::Regular(contents) => Content::Regular {
                size: contents.size(),
                chunks: contents.chunks().to_vec(),
            },
            Body::Directory(_) => Content::Directory,
            Body::Symlink(target) => Content::Symlink {
                target: target.to_vec(),
            },
            Body::Special { .. } => return None,
        };
        let Attributes {
            mode,
            uid,
            gid,
            mtime_ns,
        } = inode.attributes;
        Some(Node {
            mode,
            uid,
            gid,
            mtime_ns,
            content,
        })
    }

    /// The file at `path`. Links are not followed.
    pub fn stat(&self, path: &PhonePath) -> Option<Listed> {
        self.shared
            .read()
            .tree
            .resolve(path)
            .map(|inode| Listed::of(inode))
    }

    /// The files in the directory at `path`, sorted by name; none if it is no directory.
    pub fn list(&self, path: &PhonePath) -> Option<Vec<Listed>> {
        let head = self.shared.read();
        let children = head.tree.resolve(path)?.entries()?.values();
        Some(
            children
                .filter_map(|ino| head.tree.get(*ino))
                .map(|inode| Listed::of(inode))
                .collect(),
        )
    }

    /// Bytes `offset..offset + length` of the file at `path`, less where it ends before.
    pub fn read(
        &self,
        path: &PhonePath,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, FlashError> {
        let inode = self.shared.read().tree.resolve(path).cloned();
        let body = inode.as_ref().map(|inode| &inode.body);
        let Some(Body::Regular(contents)) = body else {
            return Err(FlashError::NotAFile(path.clone()));
        };
        let mut bytes = Vec::new();
        self.shared
            .chunks
            .read(contents, offset, length, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn attach(&self, view: &Arc<ViewShared>) {
        self.shared.write().views.push(Arc::downgrade(view));
    }

    /// Attaches a view if this is at `position`, so that it misses no change.
    pub(crate) fn attach_at(&self, position: u64, view: &Arc<ViewShared>) -> bool {
        let mut head = self.shared.write();
        let is_there = head.position == position;
        if is_there {
            head.views.push(Arc::downgrade(view));
        }
        is_there
    }
}
