//! A Unix socket that this process listens on: a file of mode 0600, one thread per client, a bounded number of clients.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use vmm::log_limit::LogLimit;

/// Of what clients cause.
static LOG_LIMIT: LogLimit = LogLimit::new();

/// How long to wait for others to leave when there is no room for one more.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Stack of a client's thread: parsing and small buffers.
const STACK_BYTES: usize = 512 << 10;

/// A socket that nobody is served at yet.
pub(crate) struct Listener(UnixListener);

impl Listener {
    /// Listens at `path`. Whoever made it removes the file in the end, by [`remove_stale`].
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self(socket))
    }

    /// Calls `serve` with each client, on a thread of its own, and a number that no other client has. A client beyond
    /// `clients_max` is turned away. `begin` is called first on the thread from which those of the clients come. The
    /// threads go with the process.
    pub(crate) fn serve(
        self,
        name: &'static str,
        clients_max: usize,
        begin: impl FnOnce() + Send + 'static,
        serve: impl Fn(UnixStream, u64) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let serve = Arc::new(serve);
        let accept = move || {
            begin();
            let (clients, numbers) = (Arc::new(AtomicUsize::new(0)), AtomicU64::new(1));
            for client in self.0.incoming() {
                match client {
                    Ok(client) => admit(client, name, clients_max, &clients, &numbers, &serve),
                    // Out of descriptors or memory: the client is lost, others may fare better.
                    Err(error) => {
                        if LOG_LIMIT.allows() {
                            tracing::warn!(%error, "cannot accept a {name} client");
                        }
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        };
        std::thread::Builder::new().name(format!("{name}-accept")).stack_size(STACK_BYTES).spawn(accept).map(drop)
    }
}

fn admit(
    client: UnixStream,
    name: &'static str,
    clients_max: usize,
    clients: &Arc<AtomicUsize>,
    numbers: &AtomicU64,
    serve: &Arc<impl Fn(UnixStream, u64) + Send + Sync + 'static>,
) {
    if clients.fetch_add(1, Ordering::SeqCst) >= clients_max {
        clients.fetch_sub(1, Ordering::SeqCst);
        if LOG_LIMIT.allows() {
            tracing::warn!(clients_max, "too many {name} clients: one is turned away");
        }
        return;
    }
    let number = numbers.fetch_add(1, Ordering::SeqCst);
    let place = Place(clients.clone());
    let serve = serve.clone();
    let spawned = std::thread::Builder::new().name(format!("{name}-{number}")).stack_size(STACK_BYTES).spawn(move || {
        let _place = place;
        serve(client, number);
    });
    if let Err(error) = spawned
        && LOG_LIMIT.allows()
    {
        tracing::warn!(%error, "cannot serve a {name} client");
    }
}

/// One of the places for clients; given back on drop.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Removes the socket that a process left behind; one that is in use, or another kind of file, stays and is an error.
pub(crate) fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?.file_type().is_socket(),
    };
    if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        return std::fs::remove_file(path);
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "something is already there"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn serve(path: &Path, clients_max: usize, serve: impl Fn(UnixStream, u64) + Send + Sync + 'static) {
        Listener::bind(path).unwrap().serve("test", clients_max, || {}, serve).unwrap();
    }

    #[test]
    fn serves_bounded_clients() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        serve(&path, 1, |mut client, _| {
            let mut byte = [0];
            while client.read_exact(&mut byte).and_then(|()| client.write_all(&byte)).is_ok() {}
        });
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut byte = [0];
        let mut first = UnixStream::connect(&path).unwrap();
        first.write_all(b"a").unwrap();
        first.read_exact(&mut byte).unwrap();
        assert_eq!(UnixStream::connect(&path).unwrap().read(&mut byte).unwrap(), 0, "the second is turned away");
        first.write_all(b"b").unwrap();
        first.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"b");
    }

    #[test]
    fn a_socket_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        serve(&path, 4, |_, _| {});
        assert!(Listener::bind(&path).is_err());
        assert!(remove_stale(&path).is_err());
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn stale_sockets_are_replaced_and_other_files_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path).unwrap());
        remove_stale(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
