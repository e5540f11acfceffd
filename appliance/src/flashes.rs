//! The phones' flashes: their files at any position, and those that twins run on.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use store::PhoneId;

use crate::phones::Phone;

#[derive(Debug, thiserror::Error)]
pub enum FlashesError {
    #[error("there is no {path} at position {position}")]
    NoSuchPath { path: String, position: u64 },
    #[error("{0} is no directory")]
    NoDirectory(String),
    #[error("{0} is no regular file")]
    NoFile(String),
    #[error("the path is not valid: {0}")]
    Path(#[from] sync_protocol::path::PathError),
    #[error("the log ends at position {last}; there is no {position} yet")]
    Ahead { position: u64, last: u64 },
    #[error("the machine of phone {0} was saved with another image, or is damaged; stop the twin, then start it anew")]
    Parked(PhoneId),
    #[error(transparent)]
    Image(#[from] image_builder::ImageError),
    #[error("the twin's flash: {0}")]
    Io(#[from] std::io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    File,
    Directory,
    Link,
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

#[derive(Clone)]
pub struct Flashes {
    images: Arc<Path>,
}

pub struct OpenFile {
    size: u64,
}

impl OpenFile {
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&mut self, _offset: u64, _length: usize) -> Result<bytes::Bytes, FlashesError> {
        Ok(bytes::Bytes::new())
    }
}

#[derive(Clone, Debug)]
pub struct TwinFlash {}

impl TwinFlash {
    pub fn image_id(&self) -> String {
        String::new()
    }
    pub fn apply(&self, _position: u64, _event: &sync_protocol::event::Event) -> Result<Vec<String>, FlashesError> {
        Ok(Vec::new())
    }
    pub fn save(&self, _path: &Path) -> Result<(), FlashesError> {
        Ok(())
    }
    pub fn serve(
        &self,
        _stream: tokio::net::UnixStream,
    ) -> Result<tokio::task::JoinHandle<Result<(), FlashesError>>, FlashesError> {
        Ok(tokio::spawn(async { Ok(()) }))
    }
}

impl Flashes {
    pub fn new(_store: &store::Store, images: &Path, _logs: crate::log::PhoneLogs, _phones: crate::phones::Phones) -> Flashes {
        Flashes { images: images.into() }
    }
    pub fn image_of(&self, phone: &Phone) -> Result<image_builder::Image, FlashesError> {
        Ok(image_builder::Image::open(self.images.join(&phone.description.image))?)
    }
    pub fn twin(
        &self,
        _phone: &Phone,
        _position: u64,
        _layer: Option<&Path>,
        _lead: crate::drive::Lead,
    ) -> Result<TwinFlash, FlashesError> {
        Ok(TwinFlash {})
    }
    pub fn list(
        &self,
        _phone: &PhoneId,
        path: &[u8],
        position: Option<u64>,
    ) -> Result<(u64, Vec<FileEntry>), FlashesError> {
        Err(FlashesError::NoSuchPath { path: path.escape_ascii().to_string(), position: position.unwrap_or(0) })
    }
    pub fn open(&self, _phone: &PhoneId, path: &[u8], position: Option<u64>) -> Result<OpenFile, FlashesError> {
        Err(FlashesError::NoSuchPath { path: path.escape_ascii().to_string(), position: position.unwrap_or(0) })
    }
}
