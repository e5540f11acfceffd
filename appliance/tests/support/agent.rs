//! A phone that is there: the real agent, on a directory of this host as its storage.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pollux::app::Appliance;
use serde_json::{Value, json};
use sync_agent::config::{Config, Flags};
use sync_protocol::chunking;
use sync_protocol::tree::file_content;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Client, PATIENCE};

/// Runs a test that watches files, on a file system and in a mount namespace of its own; says by name if it cannot.
pub(crate) fn with_storage<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Storage) -> F) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: {name} needs root, for fanotify and mounts");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private mounts");
    let storage = Storage::new();
    mount(Some("tmpfs"), &storage.folder.path().join("disk"), Some("tmpfs"), MsFlags::empty(), Some("size=64m")).expect("a disk");
    std::fs::create_dir(storage.root()).expect("a root");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test(storage));
}

/// What a phone keeps: its files, and its agent's state.
pub(crate) struct Storage {
    folder: tempfile::TempDir,
}

impl Storage {
    fn new() -> Storage {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["disk", "state", "input"] {
            std::fs::create_dir(folder.path().join(name)).expect("folder");
        }
        Storage { folder }
    }

    /// The directory that the agent captures, beneath the mount so that the mount's own root is outside.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("path").join("disk/home")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).expect("written");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("read")
    }

    /// The agent enrols with `code`, or goes on. `skip` is left out.
    pub(crate) async fn start(&self, appliance: &Appliance, serial: &str, code: Option<String>) -> Agent {
        let flags = Flags {
            appliance: Some(appliance.sync_address.to_string()),
            ca: Some(appliance.ca_sha256.clone()),
            code,
            serial: Some(serial.into()),
            model: Some("test".into()),
            roots: vec![self.root()],
            excludes: vec![self.path("skip")],
            state: Some(self.folder.path().join("state")),
            usage: Some(self.folder.path().join("usage")),
            cmdline: "/nonexistent".into(),
            image_sync: "/nonexistent".into(),
            ..Flags::default()
        };
        let mut config = Config::load(flags).expect("configuration");
        config.input_devices = self.folder.path().join("input");
        config.lease_file = self.folder.path().join("lease");
        let (stop, stopped) = oneshot::channel::<()>();
        let stopping = async {
            // Dropped or told, it stops.
            let _ = stopped.await;
        };
        let task = tokio::spawn(sync_agent::agent::run(config, stopping));
        let admin = Client::admin(appliance);
        admin.appears(serial).await;
        admin.phone_when(serial, |view| view["connected"] == true && view["sync"]["complete"] == true).await;
        Agent { stop, task }
    }

    /// Makes the stopped agent believe that it has told of `name` as it is on the disk now: what of its contents, is up to `contents`.
    pub(crate) fn believe(&self, name: &str, contents: Option<&[u8]>) {
        let journal = rusqlite::Connection::open(self.folder.path().join("state/journal.db")).expect("journal");
        let path = self.path(name);
        let key = path.as_os_str().as_encoded_bytes();
        let changed = match std::fs::symlink_metadata(&path) {
            Err(_) => journal.execute("DELETE FROM known WHERE path = ?", [key]),
            Ok(stat) => {
                let ns = |seconds: i64, ns: i64| seconds * 1_000_000_000 + ns;
                let chunks = |contents| chunking::cut(contents).map(|(chunk, _)| chunk).collect::<Vec<_>>();
                let content = contents.map(|contents| file_content(&chunks(contents)).to_vec());
                journal.execute(
                    "UPDATE known SET content = coalesce(?, content), size = ?, mtime_ns = ?, ctime_ns = ?, inode = ? WHERE path = ?",
                    rusqlite::params![
                        content,
                        stat.size().cast_signed(),
                        ns(stat.mtime(), stat.mtime_nsec()),
                        ns(stat.ctime(), stat.ctime_nsec()),
                        stat.ino().cast_signed(),
                        key
                    ],
                )
            }
        };
        assert_eq!(changed.expect("journal"), 1, "the agent knows of {name}");
    }
}

/// An agent at work.
pub(crate) struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), sync_agent::agent::AgentError>>,
}

impl Agent {
    pub(crate) async fn stop(self) {
        // An error means that it has ended by itself, which the next line tells.
        let _ = self.stop.send(());
        self.task.await.expect("joined").expect("ended well");
    }
}

impl Client {
    async fn appears(&self, serial: &str) {
        let path = format!("/api/phones/{serial}");
        let looking = async {
            while self.call("GET", &path, None).await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("the phone registers");
    }

    /// Verifies a phone; gives the verdict.
    pub(crate) async fn verify(&self, serial: &str, reread: bool, heal: bool) -> Value {
        let path = format!("/api/phones/{serial}/verification");
        self.post(&path, json!({"reread": reread, "heal": heal})).await;
        let looking = async {
            loop {
                let standing = self.get(&path).await;
                if standing["running"].is_null() {
                    return standing["verdict"].clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("a verdict")
    }

    /// The summaries of a phone's log, of one kind.
    pub(crate) async fn log_of(&self, serial: &str, kind: &str) -> Vec<String> {
        let log = self.get(&format!("/api/phones/{serial}/log?limit=1000")).await;
        let events = log["events"].as_array().expect("events").iter();
        let summary = |event: &Value| event["summary"].as_str().expect("summary").to_owned();
        events.filter(|event| event["kind"] == kind).map(summary).collect()
    }
}

/// A clock tick of the kernel and some: what was written before is settled, and its time tells it from what comes after.
pub(crate) fn let_time_pass(storage: &Storage) {
    let probe = storage.root().parent().expect("a disk").join("probe");
    std::fs::write(&probe, "x").expect("written");
    let time = |path: &Path| std::fs::metadata(path).expect("stat").modified().expect("time");
    let begun = time(&probe);
    while time(&probe).duration_since(begun).unwrap_or_default() < Duration::from_millis(50) {
        std::fs::write(&probe, "x").expect("written");
    }
}
