//! A phone for a test: a tmpfs of its own to watch, a state directory, and the agent running on both.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use sync_agent::config::{Config, Flags};
use sync_agent::{agent, identity};
use sync_protocol::path::PhonePath;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake_appliance::FakeAppliance;

/// Runs a test that watches files, in a mount namespace of its own; says by name if it cannot.
pub(crate) fn with_phone<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Phone) -> F) {
    if !geteuid().is_root() {
        eprintln!("skipped: {name} needs root, for fanotify and mounts");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    let phone = Phone::new();
    phone.mount_tmpfs(&phone.directory.path().join("root"), "64m");
    std::fs::create_dir(phone.root()).unwrap();
    run(test(phone));
}

/// Runs a test on a runtime of its own.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let filter = tracing_subscriber::EnvFilter::from_env("POLLUX_LOG");
    // Only the first test in a process sets it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_test_writer()
        .try_init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// Where the agent lives: its files and its state.
pub(crate) struct Phone {
    directory: tempfile::TempDir,
}

impl Phone {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["root", "state", "input"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    pub(crate) fn mount_tmpfs(&self, at: &Path, size: &str) {
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(format!("size={size}").as_str()),
        )
        .unwrap();
    }

    /// The directory that the agent watches; beneath the mount, so that the mount's own root is outside.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory
            .path()
            .canonicalize()
            .unwrap()
            .join("root/home")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn path(&self, name: impl AsRef<[u8]>) -> PhonePath {
        let root = PhonePath::try_from(self.root().as_path()).unwrap();
        name.as_ref()
            .split(|byte| *byte == b'/')
            .fold(root, |path, name| path.join(name).unwrap())
    }

    pub(crate) fn write(&self, name: impl AsRef<[u8]>, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    pub(crate) fn flags(&self, appliance: &FakeAppliance) -> Flags {
        Flags {
            appliance: Some(appliance.address.to_string()),
            ca: Some(appliance.ca_fingerprint.clone()),
            serial: Some("S1".into()),
            model: Some("test".into()),
            roots: vec![self.root()],
            excludes: vec![self.root().join(".cache"), self.root().join(".usage")],
            state: Some(self.state()),
            usage: Some(self.root().join(".usage")),
            bus: Some("unix:path=/nonexistent".into()),
            cmdline: "/nonexistent".into(),
            image_sync: "/nonexistent".into(),
            ..Flags::default()
        }
    }

    pub(crate) fn start(&self, appliance: &FakeAppliance) -> Agent {
        appliance.with(|state| state.released = true);
        self.start_with(self.flags(appliance))
    }

    pub(crate) fn start_with(&self, flags: Flags) -> Agent {
        let mut config = Config::load(flags).unwrap();
        config.input_devices = self.directory.path().join("input");
        config.lease_file = self.lease_file();
        let (stop, stopped) = oneshot::channel();
        let stopping = async {
            let _ = stopped.await;
        };
        Agent {
            stop,
            task: tokio::spawn(agent::run(config, stopping)),
        }
    }

    pub(crate) fn lease_file(&self) -> PathBuf {
        self.directory.path().join("run/lease")
    }

    pub(crate) fn is_admitted(&self, appliance: &FakeAppliance) -> bool {
        let fingerprint = hex::decode(&appliance.ca_fingerprint)
            .unwrap()
            .try_into()
            .unwrap();
        identity::Identity::open(&self.state(), &fingerprint)
            .unwrap()
            .admission()
            .is_some()
    }
}

/// An agent at work.
pub(crate) struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), agent::AgentError>>,
}

impl Agent {
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
    }
}

/// Compares what the appliance has with the disk, and its root with the phone's.
pub(crate) async fn assert_in_step(phone: &Phone, appliance: &FakeAppliance, command_id: u64) {
    let root = appliance.root(command_id).await;
    let scope = sync_protocol::scope::Scope::from_bytes(&root.roots, &root.excludes).unwrap();
    appliance.with(|state| {
        assert_eq!(state.violations, Vec::<String>::new());
        let mut tree = state.tree();
        assert_disk(&phone.root(), &scope, &mut tree, state);
        assert_eq!(
            tree.keys().collect::<Vec<_>>(),
            Vec::<&PhonePath>::new(),
            "the appliance has these, the disk not"
        );
        assert_eq!(state.root(&scope).to_vec(), root.root, "roots differ");
    });
}

/// Checks the path and everything beneath it, and takes it out of `tree`.
fn assert_disk(
    at: &Path,
    scope: &sync_protocol::scope::Scope,
    tree: &mut std::collections::BTreeMap<PhonePath, sync_protocol::event::Node>,
    state: &crate::fake_appliance::State,
) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use sync_protocol::event::Content;

    let path = PhonePath::try_from(at).unwrap();
    if scope.is_excluded(&path) {
        return;
    }
    let metadata = std::fs::symlink_metadata(at).unwrap();
    let node = tree
        .remove(&path)
        .unwrap_or_else(|| panic!("the disk has {path}, the appliance not"));
    assert_eq!(
        (node.mode, node.uid, node.gid),
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        "{path}"
    );
    match &node.content {
        Content::Directory => {
            assert!(metadata.is_dir(), "{path}");
            for entry in std::fs::read_dir(at).unwrap() {
                assert_disk(&entry.unwrap().path(), scope, tree, state);
            }
        }
        Content::Symlink { target } => assert_eq!(
            std::fs::read_link(at).unwrap().as_os_str().as_bytes(),
            target
        ),
        Content::Regular { .. } => {
            assert!(
                state.contents(&node) == std::fs::read(at).unwrap(),
                "{path} differs"
            );
            assert_eq!(
                node.mtime_ns,
                metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                "{path}"
            );
        }
    }
}
