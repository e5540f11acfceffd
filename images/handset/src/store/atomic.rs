//! Replacing a file so that a reader sees the old or the new content, also after power loss.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Result, StoreError};

/// Writes `content` beside `path`, flushes it, and renames it into place.
pub(super) fn write(path: &Path, content: &[u8], mode: u32, what: &'static str) -> Result<()> {
    let fail = |source| StoreError::io(what, source);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(fail(std::io::ErrorKind::InvalidInput.into()));
    };
    fs::create_dir_all(folder).map_err(fail)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = folder.join(hidden);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        // The original is untouched; a leftover would only take space.
        let _ = fs::remove_file(&temporary);
        fail(source)
    })
}
