//! What the phone keeps: plain files and two SQLite databases under the user's home folder.
//!
//! Layouts are those of real Linux phones: GNOME Calls' `records.db`, Chatty's
//! `chatty-history.db`, vCard files, text notes, `key=value` settings. Databases are opened per
//! operation, so that whoever looks from outside finds them closed and complete. Files are replaced
//! atomically. Nothing here draws, and nothing else in this crate touches files.

mod atomic;
pub mod calls;
pub mod chatty;
pub mod contacts;
mod database;
pub mod files;
pub mod notes;
pub mod settings;

use std::path::{Path, PathBuf};

/// Larger files are shown and edited only up to here, so that no file can exhaust memory.
pub const TEXT_BYTES_MAX: u64 = 256 * 1024;
/// Directory entries read from one folder.
pub const ENTRIES_MAX: usize = 5000;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("Storage full. Could not save {what}.")]
    Full { what: &'static str },
    #[error("The {what} is damaged.")]
    Damaged { what: &'static str },
    #[error("The {what} was damaged. A copy is kept as {kept}.")]
    Replaced { what: &'static str, kept: String },
    #[error("Could not access {what}: {source}")]
    Io {
        what: &'static str,
        source: std::io::Error,
    },
    #[error("Could not access {what}: {source}")]
    Database {
        what: &'static str,
        source: rusqlite::Error,
    },
}

impl StoreError {
    fn io(what: &'static str, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { what }
            }
            _ => Self::Io { what, source },
        }
    }
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// Wall clock in microseconds since 1970, and 16 random bytes a call: given by the caller so
/// that tests decide both.
pub struct Sources {
    pub now_us: Box<dyn Fn() -> i64>,
    pub random: Box<dyn Fn() -> [u8; 16]>,
}

pub struct Store {
    home: PathBuf,
    sources: Sources,
}

impl Store {
    pub fn new(home: impl Into<PathBuf>, sources: Sources) -> Self {
        Self {
            home: home.into(),
            sources,
        }
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    fn now_us(&self) -> i64 {
        (self.sources.now_us)()
    }

    /// Folders whose changes matter to some screen; they may not exist yet.
    pub fn watched(&self) -> Vec<PathBuf> {
        [
            notes::FOLDER,
            contacts::FOLDER,
            calls::FOLDER,
            chatty::FOLDER,
            settings::FOLDER,
        ]
        .iter()
        .map(|folder| self.home.join(folder))
        .collect()
    }
}

/// Keeps what a dialler keeps of a number: digits, `*`, `#` and a leading plus.
pub fn normal_number(number: &str) -> String {
    let mut normal = String::new();
    for c in number.trim().chars() {
        if c.is_ascii_digit() || c == '*' || c == '#' || (c == '+' && normal.is_empty()) {
            normal.push(c);
        }
    }
    normal
}

/// Whether two numbers reach the same line: equal, or equal in their last nine digits, which
/// leaves out country and trunk prefixes.
pub fn same_number(a: &str, b: &str) -> bool {
    const SIGNIFICANT: usize = 9;
    let (a, b) = (normal_number(a), normal_number(b));
    if a == b {
        return !a.is_empty();
    }
    let tail = |n: &str| {
        n.len()
            .checked_sub(SIGNIFICANT)
            .map(|at| n[at..].to_owned())
    };
    matches!((tail(&a), tail(&b)), (Some(x), Some(y)) if x == y)
}
