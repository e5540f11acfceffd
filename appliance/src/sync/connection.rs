//! A phone's TLS connection, and who is at the other end of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

use crate::identity::{Authority, Peer};

/// Judged once, when the connection was made; every request on it carries this.
#[derive(Clone)]
pub struct PeerOf(pub Peer);

/// A connection that tonic can serve.
pub struct PhoneConnection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

/// Connections with their peers judged.
pub fn incoming(
    connections: mpsc::Receiver<crate::tls::Connection>,
    authority: Arc<Authority>,
) -> impl Stream<Item = io::Result<PhoneConnection>> {
    ReceiverStream::new(connections).map(move |(stream, _)| {
        let peer = authority.judge(stream.get_ref().1.peer_certificates(), UnixTime::now());
        Ok(PhoneConnection { stream, peer })
    })
}

impl Connected for PhoneConnection {
    type ConnectInfo = PeerOf;

    fn connect_info(&self) -> PeerOf {
        PeerOf(self.peer.clone())
    }
}

impl AsyncRead for PhoneConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PhoneConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
