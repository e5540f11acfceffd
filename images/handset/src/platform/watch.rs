//! Changes made by others: inotify on the user's folders and /dev/input, and the poke port.
//!
//! Where this phone's files are served by a host (a twin), inotify does not see what the host
//! changes; the host then writes a line of JSON, `{"changed":["/path",...]}`, to a virtio port.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::devices;

const POKE_PORT: &str = "/dev/virtio-ports/org.pollux.poke";
/// Poke lines longer than this are dropped.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// What a look at the watches found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub files: bool,
    pub devices: bool,
}

pub(super) struct Watch {
    inotify: Inotify,
    input: Option<WatchDescriptor>,
}

impl Watch {
    pub(super) fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            inotify,
            input: None,
        })
    }

    /// Watches for input devices; says whether that began only now.
    pub(super) fn devices(&mut self) -> bool {
        if self.input.is_none() {
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB;
            self.input = self.inotify.add_watch(devices::FOLDER, flags).ok();
            return self.input.is_some();
        }
        false
    }

    /// Watches `folders` and, so as to see them appear, the folders above them up to `home`.
    /// Repeating it costs little and changes nothing.
    pub(super) fn folders(&self, home: &Path, folders: &[PathBuf]) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ONLYDIR;
        for folder in folders {
            let mut place = Some(folder.as_path());
            while let Some(path) = place {
                // Folders that do not exist yet are added when they appear.
                let _ = self.inotify.add_watch(path, flags);
                place = path
                    .parent()
                    .filter(|_| path != home && path.starts_with(home));
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    pub(super) fn read(&self) -> Seen {
        let mut seen = Seen::default();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                if self.input == Some(event.wd) {
                    seen.devices = true;
                } else {
                    seen.files |= event.name.as_deref().is_none_or(matters);
                }
            }
        }
        seen
    }
}

/// Half-written files and SQLite's side files come and go without meaning.
fn matters(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let half_written = name.starts_with('.') && name.ends_with(".new");
    !half_written && !name.ends_with("-journal")
}

/// The port by which a host tells of changed files.
pub(super) struct PokePort {
    port: File,
    line: Vec<u8>,
}

impl PokePort {
    /// `None` where there is no such port: on every phone that is not a twin.
    pub(super) fn open() -> Option<Self> {
        let port = OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(POKE_PORT)
            .ok()?;
        Some(Self {
            port,
            line: Vec::new(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }

    /// Reads what is waiting: whether files changed, or an error when the host is not listening.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = [0; 4096];
        loop {
            match self.port.read(&mut buffer) {
                Ok(0) => {
                    return if changed {
                        Ok(true)
                    } else {
                        Err(io::ErrorKind::NotConnected.into())
                    };
                }
                Ok(count) => {
                    for &byte in &buffer[..count] {
                        if byte == b'\n' {
                            changed |= is_change(&self.line);
                            self.line.clear();
                        } else if self.line.len() < LINE_BYTES_MAX {
                            self.line.push(byte);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a line is a well-formed poke.
fn is_change(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| {
        value
            .get("changed")
            .is_some_and(serde_json::Value::is_array)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_pokes_count() {
        assert!(is_change(br#"{"changed":["/home/user/Notes/Note 1.txt"]}"#));
        assert!(!is_change(br#"{"changed":1}"#));
        assert!(!is_change(b"\xff{"));
    }

    #[test]
    fn temporary_files_do_not_matter() {
        assert!(matters(OsStr::new("Note 1.txt")));
        assert!(!matters(OsStr::new(".Note 1.txt.new")));
        assert!(!matters(OsStr::new("records.db-journal")));
    }

    #[test]
    fn a_file_in_a_folder_that_appears_later_is_seen() {
        let home = tempfile::tempdir().expect("a temporary folder");
        let notes = home.path().join("deep/Notes");
        let watch = Watch::new().expect("inotify");
        let folders = [notes.clone()];
        watch.folders(home.path(), &folders);
        std::fs::create_dir_all(&notes).expect("making the folder");
        assert!(watch.read().files);
        watch.folders(home.path(), &folders);
        watch.read();
        std::fs::write(notes.join("a.txt"), "x").expect("writing a file");
        assert!(watch.read().files);
        assert!(!watch.read().files);
    }

    #[test]
    fn reading_is_no_change() {
        use crate::store::{Sources, Store};
        let home = tempfile::tempdir().expect("a temporary folder");
        let sources = Sources {
            now_us: Box::new(|| 1),
            random: Box::new(|| [1; 16]),
        };
        let store = Store::new(home.path(), sources);
        store.begin_call("1").expect("recording a call");
        store
            .send_message("1", None, "x")
            .expect("recording a message");
        store
            .save_note(&store.new_note_path(), "x")
            .expect("saving a note");
        let watch = Watch::new().expect("inotify");
        watch.folders(home.path(), &store.watched());
        assert_eq!(store.calls().expect("calls").len(), 1);
        assert_eq!(store.messages("1").expect("messages").len(), 1);
        assert_eq!(store.notes().expect("notes").len(), 1);
        assert_eq!(watch.read(), Seen::default());
    }
}
