//! The FUSE channel of a twin: the bytes on the socket, and what happens when they are wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use flash::fuse::{ServeError, serve};
use flash::{Caller, Flashes, ROOT_INO, TwinView};
use proptest::prelude::*;
use store::Store;

struct Guest {
    stream: UnixStream,
    server: JoinHandle<Result<(), ServeError>>,
    unique: u64,
}

fn view() -> TwinView {
    let flash = Flashes::new(Store::memory(), 1 << 20)
        .open(&"p".parse().unwrap(), None)
        .unwrap();
    let view = TwinView::new(flash);
    let file = view
        .make(ROOT_INO, b"file", 0o644, 0, false, Caller::default())
        .unwrap();
    view.write(file.ino, 0, b"contents").unwrap();
    view
}

impl Guest {
    fn new() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(theirs, view()));
        Guest {
            stream,
            server,
            unique: 0,
        }
    }

    fn message(&mut self, opcode: u32, nodeid: u64, arguments: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let mut message = Vec::new();
        message.extend(((40 + arguments.len()) as u32).to_le_bytes());
        message.extend(opcode.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(nodeid.to_le_bytes());
        message.extend([0; 16]);
        message.extend(arguments);
        message
    }

    /// Sends a request and returns the errno and the data of the reply.
    fn ask(&mut self, opcode: u32, nodeid: u64, arguments: &[u8]) -> (i32, Vec<u8>) {
        let message = self.message(opcode, nodeid, arguments);
        self.stream.write_all(&message).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> (i32, Vec<u8>) {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(
            u64::from_le_bytes(header[8..].try_into().unwrap()),
            self.unique
        );
        let mut data = vec![0; number(0) as usize - 16];
        self.stream.read_exact(&mut data).unwrap();
        (number(4) as i32, data)
    }

    fn end(self) -> Result<(), ServeError> {
        drop(self.stream);
        self.server.join().unwrap()
    }
}

fn init() -> Vec<u8> {
    let mut arguments: Vec<u8> = [7u32, 38, 131_072, u32::MAX]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    arguments.extend([0; 48]);
    arguments
}

#[test]
fn a_guest_initialises_looks_up_and_reads() {
    let mut guest = Guest::new();
    let (errno, reply) = guest.ask(26, 0, &init());
    assert_eq!((errno, reply.len()), (0, 64));
    assert_eq!(reply[..8], [7, 0, 0, 0, 31, 0, 0, 0]);
    let flags = u32::from_le_bytes(reply[12..16].try_into().unwrap());
    assert_eq!(flags & (1 << 16), 0, "no writeback cache");
    assert_ne!(flags & (1 << 12), 0, "data is invalidated automatically");
    let (errno, entry) = guest.ask(1, 1, b"file\0");
    assert_eq!((errno, entry.len()), (0, 128));
    assert_eq!(entry[16..40], [0; 24], "what is told is valid for no time");
    let ino = u64::from_le_bytes(entry[..8].try_into().unwrap());
    let mut read = vec![0; 40];
    read[8] = 2;
    read[16] = 100;
    assert_eq!(guest.ask(15, ino, &read), (0, b"ntents".to_vec()));
    assert_eq!(guest.ask(1, 1, b"nothing\0").0, -libc::ENOENT);
    assert_eq!(guest.ask(1, 1 << 40, b"x\0").0, -libc::ESTALE);
    assert_eq!(guest.ask(9999, 1, b"").0, -libc::ENOSYS);
    // No reply to these; the next answer is to the next question.
    let forget = guest.message(2, ino, &1u64.to_le_bytes());
    guest.stream.write_all(&forget).unwrap();
    assert_eq!(guest.ask(3, 1, &[0; 16]).0, 0);
    guest.end().unwrap();
}

#[test]
fn malformed_requests_get_errors_and_the_channel_goes_on() {
    let mut guest = Guest::new();
    for (opcode, arguments) in [
        (1, &b"no NUL"[..]),
        (4, &[0; 10]),
        (6, b"only one\0"),
        (12, b"short"),
        (15, &[0; 8]),
        (16, &[0xff; 40]),
        (26, b""),
        (43, b""),
    ] {
        assert_eq!(
            guest.ask(opcode, 1, arguments).0,
            -libc::EINVAL,
            "opcode {opcode}"
        );
    }
    // A batch that claims more than it has: not answered, not believed.
    let batch = guest.message(42, 1, &u64::MAX.to_le_bytes());
    guest.stream.write_all(&batch).unwrap();
    assert_eq!(guest.ask(26, 0, &init()).0, 0);
    guest.end().unwrap();
}

#[test]
fn nonsense_ends_the_channel_with_its_reason() {
    for length in [0u32, 39, (1 << 20) + 8193, u32::MAX] {
        let mut guest = Guest::new();
        guest.stream.write_all(&length.to_le_bytes()).unwrap();
        let mut rest = Vec::new();
        guest.stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert!(matches!(guest.end(), Err(ServeError::Length(found)) if found == length));
    }
    let mut guest = Guest::new();
    let message = guest.message(1, 1, b"file\0");
    guest.stream.write_all(&message[..20]).unwrap();
    assert!(matches!(guest.end(), Err(ServeError::Io(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends in well-framed messages, it gets one reply or none, and the server lives.
    #[test]
    fn any_arguments_are_survived(
        requests in prop::collection::vec((0u32..55, 0u64..6, prop::collection::vec(any::<u8>(), 0..120)), 1..60),
    ) {
        let mut guest = Guest::new();
        for (opcode, nodeid, arguments) in requests {
            match opcode {
                2 | 36 | 42 => {
                    let message = guest.message(opcode, nodeid, &arguments);
                    guest.stream.write_all(&message).unwrap();
                }
                _ => drop(guest.ask(opcode, nodeid, &arguments)),
            }
        }
        prop_assert_eq!(guest.ask(26, 0, &init()).0, 0);
        guest.end().unwrap();
    }
}
