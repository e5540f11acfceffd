//! The server as a VNC client meets it. Changing screens need a guest and are tested with one.

use std::io::Read;

use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Event, InputError};

use super::*;
use crate::hands::Device;

/// A device that takes everything, or nothing.
struct Dummy {
    is_full: bool,
}

impl Device for Dummy {
    fn send(&self, _: &[Event]) -> Result<(), InputError> {
        if self.is_full { Err(InputError::Full("it")) } else { Ok(()) }
    }

    fn send_position(&self, frame: &[Event]) -> Result<(), InputError> {
        self.send(frame)
    }
}

struct Server {
    dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(is_full: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let screen = Gpu::new(100, 80).unwrap().screen();
        let hands = Arc::new(Hands::new(Dummy { is_full }, Dummy { is_full }));
        serve(Listener::bind(&dir.path().join("rfb")).unwrap(), || {}, screen, hands).unwrap();
        Self { dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("rfb")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// A client past its handshake.
    fn client(&self) -> UnixStream {
        let mut stream = self.connect();
        assert_eq!(&read::<12>(&mut stream), b"RFB 003.008\n");
        stream.write_all(b"RFB 003.008\n").unwrap();
        assert_eq!(read(&mut stream), [1, 1]);
        stream.write_all(&[1]).unwrap();
        assert_eq!(read(&mut stream), [0; 4]);
        stream.write_all(&[1]).unwrap();
        let init: [u8; 24] = read(&mut stream);
        assert_eq!(init[..4], [0, 100, 0, 80]);
        assert_eq!(init[20..], [0, 0, 0, NAME.len() as u8]);
        assert_eq!(&read::<{ NAME.len() }>(&mut stream), NAME.as_bytes());
        stream
    }
}

fn read<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    // A reset is as good an end as a close.
    stream.read_to_end(&mut rest).is_ok() || rest.is_empty()
}

const ALL: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 100, 0, 80];
const CHANGES: [u8; 10] = [3, 1, 0, 0, 0, 0, 0, 100, 0, 80];

#[test]
fn a_client_gets_the_screen_raw() {
    let server = Server::new();
    let mut client = server.client();
    client.write_all(&ALL).unwrap();
    assert_eq!(read(&mut client), [0, 0, 0, 1]);
    assert_eq!(read(&mut client), [0, 0, 0, 0, 0, 100, 0, 80, 0, 0, 0, 0]);
    assert!(read::<32_000>(&mut client) == [0; 32_000]);
}

#[test]
fn a_client_gets_zrle_in_its_own_pixels() {
    let server = Server::new();
    let mut client = server.client();
    client.write_all(&[0, 0, 0, 0, 16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]).unwrap();
    client.write_all(&[2, 0, 0, 3, 0, 0, 0, 99, 0, 0, 0, 16, 0, 0, 0, 0]).unwrap();
    client.write_all(&ALL).unwrap();
    assert_eq!(read::<4>(&mut client), [0, 0, 0, 1]);
    assert_eq!(read::<12>(&mut client)[8..], [0, 0, 0, 16]);
    let length = u32::from_be_bytes(read(&mut client));
    let mut bytes = vec![0; length as usize];
    client.read_exact(&mut bytes).unwrap();
    let mut tiles = Vec::with_capacity(1000);
    flate2::Decompress::new(true).decompress_vec(&bytes, &mut tiles, flate2::FlushDecompress::Sync).unwrap();
    assert_eq!(tiles, [1, 0, 0].repeat(4), "four black tiles, two bytes a pixel");
}

#[test]
fn changes_are_not_sent_before_there_are_any() {
    let server = Server::new();
    let mut client = server.client();
    client.write_all(&CHANGES).unwrap();
    // Answered at once, so what comes first is it, not the request for changes.
    client.write_all(&[3, 0, 0, 5, 0, 5, 0, 1, 0, 1]).unwrap();
    assert_eq!(read(&mut client), [0, 0, 0, 1]);
    assert_eq!(read(&mut client), [0, 5, 0, 5, 0, 1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(read(&mut client), [0; 4]);
    // Outside of the screen there is nothing to send.
    client.write_all(&[3, 0, 0, 100, 0, 80, 0, 1, 0, 1]).unwrap();
    client.write_all(&[3, 0, 0, 99, 0, 79, 0xff, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(read(&mut client), [0, 0, 0, 1]);
    assert_eq!(read(&mut client), [0, 99, 0, 79, 0, 1, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn malformed_clients_are_dropped_and_others_served() {
    let server = Server::new();
    let mut steady = server.client();
    let mut http = server.connect();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(is_closed(&mut http));
    for nonsense in [&[99][..], &[2, 0, 0xff, 0xff], &[0, 0, 0, 0, 7], &[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
        let mut client = server.client();
        client.write_all(nonsense).unwrap();
        client.write_all(&[0; 15]).unwrap_or_default();
        assert!(is_closed(&mut client), "{nonsense:?}");
    }
    steady.write_all(&ALL).unwrap();
    assert_eq!(read(&mut steady), [0, 0, 0, 1]);
}

#[test]
fn watchers_are_bounded() {
    let server = Server::new();
    let clients: Vec<_> = (0..WATCHERS_MAX).map(|_| server.client()).collect();
    assert!(is_closed(&mut server.connect()));
    drop(clients);
}

#[test]
fn a_watcher_that_does_not_read_is_sent_one_update_at_a_time() {
    let server = Server::new();
    let mut client = server.client();
    for _ in 0..10_000 {
        client.write_all(&ALL).unwrap();
        client.write_all(&[5, 1, 0, 1, 0, 1]).unwrap();
    }
    // What was asked for while an update was under way counts once.
    assert_eq!(read(&mut client), [0, 0, 0, 1]);
}

#[test]
fn hands_that_are_too_fast_hear_a_bell() {
    let server = Server::with(true);
    let mut client = server.client();
    client.write_all(&[4, 1, 0, 0, 0, 0, 0, b'a']).unwrap();
    assert_eq!(read(&mut client), [2]);
    client.write_all(&ALL).unwrap();
    assert_eq!(read(&mut client), [0, 0, 0, 1]);
}

#[test]
fn damage_that_a_watcher_does_not_look_at_is_bounded() {
    let gallery = Gallery {
        screen: Gpu::new(100, 80).unwrap().screen(),
        hands: Arc::new(Hands::new(Dummy { is_full: false }, Dummy { is_full: false })),
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    let (stream, _watcher) = UnixStream::pair().unwrap();
    let mut writer = Writer::new(Arc::new(gallery), stream, 1, (100, 80));
    let corner = Rect { x: 0, y: 0, width: 1, height: 1 };
    for i in 0..1000 {
        writer.note(vec![vmm::virtio::gpu::Rect { x: 10 + i % 80, y: 10 + i / 80, width: 1, height: 1 }; 3]);
        assert!(writer.damage.len() <= DAMAGE_MAX);
        assert!(writer.damage_in(corner).is_empty());
    }
    let all = Rect { x: 10, y: 10, width: 80, height: 13 };
    let covered = writer.damage.iter().copied().reduce(Rect::union);
    assert_eq!(covered, Some(all));
}
