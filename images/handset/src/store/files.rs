//! Folders and text files, as the Files app shows them. Names are bytes; text may be anything.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{ENTRIES_MAX, Result, Store, StoreError, TEXT_BYTES_MAX};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    /// The name as text; bytes that are not UTF-8 appear as replacement characters.
    pub name: String,
    pub is_folder: bool,
    pub bytes: u64,
}

impl Store {
    /// A folder's entries: folders first, then files, each by name; hidden ones are left out.
    pub fn folder(&self, path: &Path) -> Result<Vec<Entry>> {
        const WHAT: &str = "folder";
        let fail = |source| StoreError::io(WHAT, source);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path).map_err(fail)?.take(ENTRIES_MAX) {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // An entry that vanished meanwhile is not shown.
            let Ok(metadata) = std::fs::metadata(entry.path()) else {
                continue;
            };
            if !name.starts_with('.') {
                let is_folder = metadata.is_dir();
                entries.push(Entry {
                    path: entry.path(),
                    name,
                    is_folder,
                    bytes: metadata.len(),
                });
            }
        }
        entries.sort_by_key(|e| (!e.is_folder, e.name.to_lowercase(), e.path.clone()));
        Ok(entries)
    }

    /// The beginning of a file as text.
    pub fn text(&self, path: &Path) -> Result<String> {
        read_text(path, TEXT_BYTES_MAX, "file")
    }
}

pub(super) fn read_text(path: &Path, bytes_max: u64, what: &'static str) -> Result<String> {
    let fail = |source| StoreError::io(what, source);
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(fail)?
        .take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Files of a folder with an extension, by name; none when the folder is missing.
pub(super) fn with_extension(
    folder: &Path,
    extension: &str,
    what: &'static str,
) -> Result<Vec<PathBuf>> {
    let fail = |source| StoreError::io(what, source);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut paths = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let path = entry.map_err(fail)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|e| e == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
