//! A view as a mounted file system of this machine, through `/dev/fuse`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::server::{Outcome, Server};
use super::wire::MESSAGE_BYTES_MAX;
use crate::FlashError;
use crate::view::TwinView;

/// Threads that answer requests: one waits for a disk while another has its answer in memory.
const THREADS: usize = 2;
/// How long the kernel may believe what it is told of a view that nothing changes.
const VALIDITY_S: u64 = 3600;

/// A mounted view. Dropping it unmounts, whoever still uses it.
pub struct Mount {
    dir: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

/// Mounts `view` on the directory `dir`. Needs the right to mount (root).
///
/// `changes` says whether the flash beneath may still be changed by its phone's log; if not, as at a
/// position of the past, the kernel is allowed to remember what it was told.
pub fn mount(view: TwinView, dir: &Path, changes: bool) -> Result<Mount, FlashError> {
    let failed = |action: String| move |source: io::Error| FlashError::Fuse { action, source };
    let dir = dir
        .canonicalize()
        .map_err(failed(format!("mount point {}", dir.display())))?;
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let device = device.map_err(failed("opening /dev/fuse".into()))?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    flags.set(MsFlags::MS_RDONLY, view.is_read_only());
    nix::mount::mount(
        Some("pollux"),
        &dir,
        Some("fuse.pollux"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| failed(format!("mounting on {}", dir.display()))(errno.into()))?;
    // From here on dropping it unmounts, also when a thread cannot be started.
    let mut mount = Mount {
        dir,
        threads: Vec::new(),
    };
    let validity_s = if view.is_read_only() && !changes {
        VALIDITY_S
    } else {
        0
    };
    let server = Arc::new(Server::new(view, validity_s));
    for number in 0..THREADS {
        let (server, device) = (server.clone(), device.try_clone());
        let device = device.map_err(failed("duplicating /dev/fuse".into()))?;
        let thread = std::thread::Builder::new()
            .name(format!("fuse-{number}"))
            .spawn(move || answer(&server, &device))
            .map_err(failed("starting a thread".into()))?;
        mount.threads.push(thread);
    }
    Ok(mount)
}

/// Answers requests until the file system is unmounted.
fn answer(server: &Server, device: &File) {
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    let mut reply = Vec::new();
    loop {
        let length = match nix::unistd::read(device, &mut message) {
            Ok(length) => length,
            // ENOENT: the request was interrupted before it was read.
            Err(Errno::EINTR | Errno::ENOENT | Errno::EAGAIN) => continue,
            Err(Errno::ENODEV) => return,
            Err(errno) => {
                tracing::error!(%errno, "reading from /dev/fuse");
                return;
            }
        };
        match server.handle(&message[..length], &mut reply) {
            Ok(Outcome::NoReply) => {}
            Ok(Outcome::Reply) => match nix::unistd::write(device, &reply) {
                // ENOENT: whoever asked was killed.
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(Errno::ENODEV) => return,
                Err(errno) => tracing::error!(%errno, "writing to /dev/fuse"),
            },
            Err(error) => tracing::error!(%error, "a FUSE request without a header"),
        }
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until somebody unmounts it.
    pub fn wait(mut self) {
        for thread in self.threads.drain(..) {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Fails when it has been unmounted already; it may then be somebody else's by now.
        if self.threads.iter().any(|thread| !thread.is_finished()) || self.threads.is_empty() {
            // Forcing ends the connection, so that the threads end although files may be open.
            let _ = umount2(&self.dir, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
