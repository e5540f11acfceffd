//! Notes: plain text files in `~/Notes`. A note's title is its first line.

use std::path::{Path, PathBuf};

use super::{Result, Store, StoreError, TEXT_BYTES_MAX, atomic, files};

pub const FOLDER: &str = "Notes";
const WHAT: &str = "note";
const NOTES_MAX: u32 = 5000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub path: PathBuf,
    pub text: String,
}

impl Store {
    /// All notes, the highest-numbered first: the order does not depend on time stamps, which
    /// copies of the files need not share.
    pub fn notes(&self) -> Result<Vec<Note>> {
        let mut paths = files::with_extension(&self.home.join(FOLDER), "txt", WHAT)?;
        paths.sort_by_key(|path| (std::cmp::Reverse(number_of(path)), path.clone()));
        paths
            .into_iter()
            .map(|path| {
                Ok(Note {
                    text: files::read_text(&path, TEXT_BYTES_MAX, WHAT)?,
                    path,
                })
            })
            .collect()
    }

    /// The text of a note; empty when it does not exist (yet, or any more).
    pub fn note(&self, path: &Path) -> Result<String> {
        if !path.exists() {
            return Ok(String::new());
        }
        files::read_text(path, TEXT_BYTES_MAX, WHAT)
    }

    /// The path for a new note: the next free number.
    pub fn new_note_path(&self) -> PathBuf {
        let folder = self.home.join(FOLDER);
        let last = files::with_extension(&folder, "txt", WHAT)
            .unwrap_or_default()
            .iter()
            .filter_map(|path| number_of(path))
            .max()
            .unwrap_or(0);
        folder.join(format!(
            "Note {}.txt",
            last.saturating_add(1).min(NOTES_MAX)
        ))
    }

    pub fn save_note(&self, path: &Path, text: &str) -> Result<()> {
        atomic::write(path, text.as_bytes(), 0o644, WHAT)
    }

    pub fn delete_note(&self, path: &Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io(WHAT, error))
            }
            _ => Ok(()),
        }
    }
}

/// The number in a name like `Note 12.txt`.
fn number_of(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.rsplit(' ').next()?.parse().ok()
}
