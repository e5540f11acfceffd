//! TLS in front of our two servers: accepts, shakes hands beside each other, and hands on what came through.
//!
//! Promises: a client that stalls its handshake holds up nobody and is dropped after [`HANDSHAKE_MAX`]; at most
//! [`HANDSHAKES_AT_ONCE`] are under way; the accepting task ends with its [`CancellationToken`]. Leaves out: who the client is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// A handshake is a few round trips; who needs longer is not talking TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// Handshakes under way; each costs some kilobytes and a signature.
const HANDSHAKES_AT_ONCE: usize = 256;
/// Connections that shook hands and wait to be served.
const READY_MAX: usize = 64;
/// Pause after the host ran out of sockets, so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client's connection after the handshake.
pub(crate) type Connection = (TlsStream<TcpStream>, SocketAddr);

/// Accepts on `listener` until `stop`; connections come out of the receiver. Tasks run on `tasks`.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> mpsc::Receiver<Connection> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let acceptor = TlsAcceptor::from(config);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
    let own_tasks = tasks.clone();
    tasks.spawn(async move {
        while let Some((stream, address)) = next(&listener, &stop).await {
            let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
            let (acceptor, ready, stop) = (acceptor.clone(), ready.clone(), stop.clone());
            own_tasks.spawn(async move {
                let shake = shake_hands(acceptor, stream, address, ready);
                tokio::select! {
                    () = shake => {}
                    () = stop.cancelled() => {}
                }
                drop(permit);
            });
        }
    });
    connections
}

async fn next(listener: &TcpListener, stop: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => match accepted {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    ready: mpsc::Sender<Connection>,
) {
    // Input events are small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "cannot switch off Nagle's algorithm");
    }
    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            // The receiver is gone only when we are stopping.
            let _ = ready.send((stream, address)).await;
        }
        Ok(Err(error)) => debug!(%address, %error, "TLS handshake failed"),
        Err(_) => debug!(%address, "TLS handshake took too long"),
    }
}

/// Binds `address`, or says what stands in the way.
pub(crate) async fn bind(purpose: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { purpose, address, source })
}

#[derive(Debug)]
pub struct BindError {
    purpose: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let BindError { purpose, address, source } = self;
        write!(f, "cannot listen on {address} for {purpose}: {source}")?;
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "; another program has the port: end it, or choose another port")
            }
            io::ErrorKind::PermissionDenied => write!(f, "; ports below 1024 need privileges: choose a higher one"),
            io::ErrorKind::AddrNotAvailable => write!(f, "; this host does not have that address"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
