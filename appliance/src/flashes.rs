//! The phones' flashes: their files at any position, and those that twins run on.
//!
//! A flash is a function of an image's files and a phone's log; the flash crate keeps it. Here it is decided which image that is, and
//! what of a flash is shown. All calls block.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flash::{BaseId, Flash, FlashError, GuestChange, Lead, Listed, TwinView};
use image_builder::{Image, ImageError};
use serde::Serialize;
use store::{BlobHash, PhoneId, Store, StoreError};
use sync_protocol::event::{Event, Node};
use sync_protocol::path::PathError;
use sync_protocol::scope::{Scope, ScopeError};
use sync_protocol::{Hash, PhonePath};
use tokio::sync::{mpsc, oneshot};

use crate::phones::Phone;

/// Chunks of files that are kept in memory for all flashes.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// Longest name of an image; it becomes part of a path.
const IMAGE_NAME_BYTES_MAX: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum FlashesError {
    #[error("there is no {path} at position {position}")]
    NoSuchPath { path: String, position: u64 },
    #[error("{0} is no directory")]
    NoDirectory(PhonePath),
    #[error("{0} is no regular file")]
    NoFile(PhonePath),
    #[error("the path is not valid: {0}")]
    Path(#[from] PathError),
    #[error("the log ends at position {last}; there is no {position} yet")]
    Ahead { position: u64, last: u64 },
    #[error("the machine of phone {0} was saved with another image, or is damaged")]
    Parked(PhoneId),
    #[error("the phone says that it runs {0:?}, which is no image's name")]
    ImageName(String),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the image's sync roots are not usable: {0}")]
    Scope(#[from] ScopeError),
    #[error("the flash of phone {phone}: {source}")]
    Flash { phone: PhoneId, source: FlashError },
    #[error("{action}: {source}")]
    Io { action: &'static str, source: std::io::Error },
    #[error("the twin's flash channel: {0}")]
    Serve(#[from] flash::fuse::ServeError),
    #[error("the twin's flash server ended without a word")]
    Vanished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    File,
    Directory,
    Link,
    /// Device nodes and the like of an image.
    Special,
}

#[derive(Debug, Clone)]
pub struct FileEntry {
    pub name: Vec<u8>,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime_ns: i64,
    pub target: Option<Vec<u8>>,
}

impl From<Listed> for FileEntry {
    fn from(listed: Listed) -> FileEntry {
        FileEntry {
            kind: kind_of(&listed),
            mode: listed.attributes.mode,
            uid: listed.attributes.uid,
            gid: listed.attributes.gid,
            size: listed.size,
            mtime_ns: listed.attributes.mtime_ns,
            target: listed.link_target,
            name: listed.name,
        }
    }
}

pub(crate) fn kind_of(listed: &Listed) -> FileKind {
    match listed.format {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Link,
        _ => FileKind::Special,
    }
}

/// The flashes of all phones. Cloning shares them.
#[derive(Clone)]
pub struct Flashes {
    inner: Arc<Inner>,
}

struct Inner {
    flashes: flash::Flashes,
    store: Store,
    images: PathBuf,
    /// Imported base trees by their image's hash: hashing an archive again would take seconds.
    bases: Mutex<HashMap<String, BaseId>>,
}

/// A phone's flash at one position.
pub(crate) struct Head {
    pub(crate) flash: Flash,
    /// What of it phone and appliance compare; `None`: the phone's image is not here.
    pub(crate) scope: Option<Scope>,
}

impl Flashes {
    pub fn new(store: &Store, images: &Path) -> Flashes {
        let flashes = flash::Flashes::new(store.clone(), CACHE_BYTES_MAX);
        let inner = Inner { flashes, store: store.clone(), images: images.to_owned(), bases: Mutex::default() };
        Flashes { inner: Arc::new(inner) }
    }

    /// The image that the phone says it runs.
    pub fn image_of(&self, phone: &Phone) -> Result<Image, FlashesError> {
        let name = &phone.description.image;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty() || name.len() > IMAGE_NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(FlashesError::ImageName(name.clone()));
        }
        Ok(Image::open(self.inner.images.join(name))?)
    }

    /// The phone's flash as it follows its log.
    pub(crate) fn head(&self, phone: &Phone) -> Result<Head, FlashesError> {
        // Files of a phone whose image we lack are kept all the same; it has no twin.
        let image = self.image_of(phone).ok();
        let base = image.as_ref().map(|image| self.base(&phone.id, image)).transpose()?;
        let scope = image.as_ref().map(scope_of).transpose()?;
        let flash = self.inner.flashes.open(&phone.id, base).map_err(|source| failed(&phone.id, source))?;
        Ok(Head { flash, scope })
    }

    /// The flash that a twin of its own runs on, as of `position`; `layer` is what its guest had written when it was parked.
    pub fn twin(
        &self,
        phone: &Phone,
        position: u64,
        layer: Option<&Path>,
        lead: Option<mpsc::Sender<GuestChange>>,
    ) -> Result<TwinFlash, FlashesError> {
        let image = self.image_of(phone)?;
        let base = self.base(&phone.id, &image)?;
        let flash = self.at(&phone.id, Some(base), position)?;
        let view = match layer {
            None => TwinView::new(flash),
            Some(path) => {
                let io = |source| FlashesError::Io { action: "reading what a parked twin had written", source };
                let saved = std::fs::read(path).map_err(io)?;
                let restored = self.inner.flashes.restore_view(&flash, &saved, &*self.inner.store.log);
                restored.map_err(|source| failed(&phone.id, source))?
            }
        };
        let twin = TwinFlash { view, image: image.manifest().hash.clone(), scope: scope_of(&image)? };
        twin.set_lead(lead)?;
        Ok(twin)
    }

    /// A directory's entries, and the position they are of; without `position`: the latest.
    pub fn list(
        &self,
        phone: &Phone,
        path: &[u8],
        position: Option<u64>,
    ) -> Result<(u64, Vec<FileEntry>), FlashesError> {
        let path = PhonePath::new(path)?;
        let flash = self.look(phone, position)?;
        let position = flash.position();
        match flash.list(&path) {
            Some(entries) => Ok((position, entries.into_iter().map(FileEntry::from).collect())),
            None if flash.stat(&path).is_some() => Err(FlashesError::NoDirectory(path)),
            None => Err(FlashesError::NoSuchPath { path: path.to_string(), position }),
        }
    }

    /// A file to read from.
    pub fn open(&self, phone: &Phone, path: &[u8], position: Option<u64>) -> Result<OpenFile, FlashesError> {
        let path = PhonePath::new(path)?;
        let flash = self.look(phone, position)?;
        let position = flash.position();
        match flash.stat(&path) {
            Some(listed) if kind_of(&listed) == FileKind::File => {
                // A copy of its own, so that a download is of one moment.
                let flash = self.at(&phone.id, flash.base(), position)?;
                Ok(OpenFile { flash, path, size: listed.size })
            }
            Some(_) => Err(FlashesError::NoFile(path)),
            None => Err(FlashesError::NoSuchPath { path: path.to_string(), position }),
        }
    }

    /// What is not the same at `from` and at `to`, by path, up to `max` changes, and whether there are more.
    pub fn changes(
        &self,
        phone: &Phone,
        from: u64,
        to: u64,
        max: usize,
    ) -> Result<(Vec<flash::Change>, bool), FlashesError> {
        let head = self.head(phone)?.flash;
        self.check_reached(&phone.id, from.max(to))?;
        let earlier = self.at(&phone.id, head.base(), from.min(to))?;
        let later = earlier.later(&*self.inner.store.log, from.max(to));
        let later = later.map_err(|source| failed(&phone.id, source))?;
        let (changes, more) = earlier.changes(&later, max);
        Ok(match from > to {
            true => (changes.into_iter().map(reversed).collect(), more),
            false => (changes, more),
        })
    }

    /// A phone's flash that stands still, at `position` or where it is now.
    pub(crate) fn still(&self, phone: &Phone, position: Option<u64>) -> Result<Flash, FlashesError> {
        let flash = self.look(phone, position)?;
        let still = flash.later(&*self.inner.store.log, flash.position());
        still.map_err(|source| failed(&phone.id, source))
    }

    /// The last position of the log; fails if it does not come to `position`.
    pub(crate) fn check_reached(&self, phone: &PhoneId, position: u64) -> Result<u64, FlashesError> {
        let last = self.inner.store.log.last_seq(phone).map_err(|source| failed(phone, source.into()))?;
        if position > last { Err(FlashesError::Ahead { position, last }) } else { Ok(last) }
    }

    /// A copy of a phone's flash at `position` of its own: it stays there until it is moved.
    pub(crate) fn copy(&self, phone: &Phone, position: u64) -> Result<Flash, FlashesError> {
        let base = self.head(phone)?.flash.base();
        self.at(&phone.id, base, position)
    }

    /// Stores what of a phone's flash needs no phone: the files of its image, and the nodes of its tree.
    pub(crate) fn store_again(&self, phone: &Phone) -> Result<(), FlashesError> {
        if let Ok(image) = self.image_of(phone) {
            let stored = self.inner.flashes.import_again(&image.base_tar());
            stored.map_err(|source| failed(&phone.id, source))?;
        }
        let stored = self.head(phone)?.flash.checkpoint_whole();
        stored.map(drop).map_err(|source| failed(&phone.id, source))
    }

    /// A chunk of a file that is not stored, or not as it was.
    pub(crate) fn missing_chunk(&self, node: &Node) -> Result<Option<Hash>, StoreError> {
        for chunk in node.chunks() {
            match self.inner.store.blobs.get(&BlobHash::from(chunk.hash.0)) {
                Ok(_) => {}
                Err(StoreError::BlobMissing(_) | StoreError::BlobDamaged(_)) => return Ok(Some(chunk.hash)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Moves a copy on to a later position.
    pub(crate) fn move_to(&self, copy: &Flash, position: u64) -> Result<(), FlashesError> {
        let moved = copy.catch_up(&*self.inner.store.log, position);
        moved.map_err(|source| failed(copy.phone(), source))
    }

    /// The root hash of a phone's flash at `position`.
    pub fn root_at(&self, phone: &Phone, position: u64, scope: &Scope) -> Result<Hash, FlashesError> {
        Ok(self.look(phone, Some(position))?.root(scope))
    }

    /// A view of the flash that refuses to write, for a mount.
    pub fn view(&self, phone: &Phone, position: Option<u64>) -> Result<TwinView, FlashesError> {
        Ok(TwinView::read_only(self.look(phone, position)?))
    }

    fn look(&self, phone: &Phone, position: Option<u64>) -> Result<Flash, FlashesError> {
        let head = self.head(phone)?.flash;
        let last = self.check_reached(&phone.id, position.unwrap_or(0))?;
        match position {
            None => {
                // Nobody follows it when the phone is not released; then it stands where it was opened.
                if head.position() < last {
                    return self.at(&phone.id, head.base(), last);
                }
                Ok(head)
            }
            Some(position) if position == head.position() => Ok(head),
            Some(position) => self.at(&phone.id, head.base(), position),
        }
    }

    fn at(&self, phone: &PhoneId, base: Option<BaseId>, position: u64) -> Result<Flash, FlashesError> {
        let flash = self.inner.flashes.at(phone, base, position, &*self.inner.store.log);
        flash.map_err(|source| failed(phone, source))
    }

    fn base(&self, phone: &PhoneId, image: &Image) -> Result<BaseId, FlashesError> {
        // Held while importing: a second caller would only do the same again.
        let mut bases = self.inner.bases.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = &image.manifest().hash;
        if let Some(base) = bases.get(hash) {
            return Ok(*base);
        }
        let base = self.inner.flashes.import_base(&image.base_tar()).map_err(|source| failed(phone, source))?;
        bases.insert(hash.clone(), base);
        Ok(base)
    }
}

/// The change that undoes a change.
fn reversed(change: flash::Change) -> flash::Change {
    let flash::Change { path, before, after, moved_from } = change;
    let (path, moved_from) = match moved_from {
        Some(from) => (from, Some(path)),
        None => (path, None),
    };
    flash::Change { path, before: after, after: before, moved_from }
}

fn scope_of(image: &Image) -> Result<Scope, FlashesError> {
    let sync = &image.manifest().sync;
    let roots = sync.roots.iter().map(|root| root.as_bytes().to_vec()).collect::<Vec<_>>();
    let excludes = sync.exclude.iter().map(|exclude| exclude.path.as_bytes().to_vec()).collect::<Vec<_>>();
    Ok(Scope::from_bytes(&roots, &excludes)?)
}

fn failed(phone: &PhoneId, source: FlashError) -> FlashesError {
    FlashesError::Flash { phone: phone.clone(), source }
}

/// A file of one position.
pub struct OpenFile {
    flash: Flash,
    path: PhonePath,
    size: u64,
}

impl OpenFile {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, offset: u64, length: usize) -> Result<bytes::Bytes, FlashesError> {
        let bytes = self.flash.read(&self.path, offset, length);
        Ok(bytes.map_err(|source| failed(self.flash.phone(), source))?.into())
    }
}

/// What one twin's guest sees: the phone's files as far as the twin has been told, and what its guest wrote. Cloning shares it.
#[derive(Clone)]
pub struct TwinFlash {
    view: TwinView,
    image: String,
    scope: Scope,
}

impl std::fmt::Debug for TwinFlash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TwinFlash").field("phone", self.view.flash().phone()).finish_non_exhaustive()
    }
}

impl TwinFlash {
    /// Names the image that it is based on.
    pub fn image_id(&self) -> &str {
        &self.image
    }

    /// Applies an event of the log; gives the paths that changed, for the guest's programs. Blocks.
    pub fn apply(&self, position: u64, event: &Event) -> Result<Vec<String>, FlashesError> {
        let flash = self.view.flash();
        let applied = flash.apply_event(position, event).map_err(|source| failed(flash.phone(), source))?;
        let text = |path: &PhonePath| String::from_utf8_lossy(path.as_bytes()).into_owned();
        Ok(applied.paths.iter().map(text).collect())
    }

    /// Of the log, up to which the phone's files are there.
    pub fn position(&self) -> u64 {
        self.view.flash().position()
    }

    /// When the guest last changed something, if it ever has.
    pub fn changed_at(&self) -> Option<Instant> {
        self.view.changed_at()
    }

    /// How much longer the guest must change nothing to have been quiet for `quiet`.
    pub fn quiet_in(&self, quiet: Duration) -> Duration {
        self.changed_at().map_or(Duration::ZERO, |at| quiet.saturating_sub(at.elapsed()))
    }

    /// Hands the lead to the guest, whose completed changes go to `changes`, or back to the phone. Blocks while `changes` is full.
    pub fn set_lead(&self, changes: Option<mpsc::Sender<GuestChange>>) -> Result<(), FlashesError> {
        let lead = match changes {
            None => Lead::Mirror,
            Some(changes) => Lead::Drive { scope: self.scope.clone(), changes },
        };
        self.view.set_lead(lead).map_err(|source| failed(self.view.flash().phone(), source))
    }

    /// Saves what the guest wrote; its machine is paused. Blocks.
    pub fn save(&self, path: &Path) -> Result<(), FlashesError> {
        let bytes = self.view.save().map_err(|source| failed(self.view.flash().phone(), source))?;
        let io = |source| FlashesError::Io { action: "saving what the twin wrote", source };
        std::fs::write(path, bytes).map_err(io)
    }

    /// Serves the guest at the other end of `stream` until it closes, on a thread of its own.
    pub fn serve(
        &self,
        stream: tokio::net::UnixStream,
    ) -> Result<oneshot::Receiver<Result<(), FlashesError>>, FlashesError> {
        let io = |action| move |source| FlashesError::Io { action, source };
        let stream: UnixStream = stream.into_std().map_err(io("taking the flash channel"))?;
        stream.set_nonblocking(false).map_err(io("taking the flash channel"))?;
        let (ended, end) = oneshot::channel();
        let view = self.view.clone();
        let serve = move || {
            // An error means that nobody waits for the end any more.
            let _ = ended.send(flash::fuse::serve(stream, view).map_err(FlashesError::from));
        };
        let name = format!("flash-{}", self.view.flash().phone());
        std::thread::Builder::new().name(name).spawn(serve).map_err(io("starting the flash server"))?;
        Ok(end)
    }
}
