//! The control socket as a client meets it; no machine is booted here.

use std::io::BufRead;
use std::path::Path;

use emulator::processor::Processor;
use serde_json::from_str;

use super::*;
use crate::twin::Outside;

struct Server {
    dir: tempfile::TempDir,
    wait_quit: Receiver<()>,
}

/// A twin whose kernel is a header only; serves at `c`.
fn start(dir: &Path, events: Events, console: Console) -> Receiver<()> {
    let at = |name: &str| dir.join(name);
    let mut kernel = [0; 64];
    kernel[56..60].copy_from_slice(b"ARM\x64");
    std::fs::write(at("kernel"), kernel).unwrap();
    let config = json!({
        "image": {"kernel": at("kernel")}, "ram_mib": 64, "control_socket": at("c"), "rfb_socket": at("r"),
    });
    let config: emulator::config::TwinConfig = serde_json::from_value(config).unwrap();
    let processor = Processor::choose(config.cpu.model).unwrap();
    let outside = Outside::reach(&config, &processor).unwrap();
    let twin = Arc::new(Twin::new(config, processor, outside, Vec::new(), |_| {}, console).unwrap());
    let (quit, wait_quit) = sync_channel(1);
    serve(Listener::bind(&at("c")).unwrap(), twin, events, quit).unwrap();
    wait_quit
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wait_quit = start(dir.path(), Events::default(), Console::new(None));
        Self { dir, wait_quit }
    }

    fn client(&self) -> TestClient {
        let stream = UnixStream::connect(self.dir.path().join("c")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        TestClient(BufReader::new(stream))
    }
}

struct TestClient(BufReader<UnixStream>);

impl TestClient {
    fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        from_str(&line).unwrap()
    }

    fn ask(&mut self, request: &str) -> Value {
        self.write(format!("{request}\n").as_bytes());
        self.read()
    }

    fn pass(&mut self, request: &str, file: &File) {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        use std::os::fd::AsRawFd;
        let (line, passed) = (format!("{request}\n"), [file.as_raw_fd()]);
        let bytes = [std::io::IoSlice::new(line.as_bytes())];
        let socket = self.0.get_ref().as_raw_fd();
        assert_eq!(sendmsg::<()>(socket, &bytes, &[ControlMessage::ScmRights(&passed)], MsgFlags::empty(), None), Ok(line.len()));
    }

    fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0]).is_ok_and(|n| n == 0)
    }
}

#[test]
fn replies_carry_the_requests_id() {
    let server = Server::new();
    let mut client = server.client();
    let status = client.ask(r#"{"id":7,"op":"status"}"#);
    assert_eq!(status["id"], 7);
    assert_eq!(status["ok"]["state"], "created");
    assert_eq!((&status["ok"]["width"], &status["ok"]["height"]), (&json!(360), &json!(720)));
    assert_eq!(client.ask(r#"{"id":["a",null],"op":"console"}"#), json!({"id": ["a", null], "ok": {"tail": ""}}));
    assert_eq!(client.ask(r#"{"op":"input_drained"}"#), json!({"id": null, "ok": {"drained": true}}));
    client.write(b"\n  \r\n{\"id\":8,\"op\":\"status\"}\r\n");
    assert_eq!(client.read()["id"], 8, "empty lines are nothing");
}

#[test]
fn what_is_wrong_is_told_and_the_connection_goes_on() {
    let server = Server::new();
    let mut client = server.client();
    for (request, id, text) in [
        ("hello", json!(null), "not JSON"),
        ("[1,2]", json!(null), "not a JSON object"),
        ("\u{7f}\u{1}", json!(null), "not JSON"),
        (r#"{"id":1}"#, json!(1), "missing field `op`"),
        (r#"{"id":2,"op":"explode"}"#, json!(2), "unknown variant `explode`"),
        (r#"{"id":3,"op":5}"#, json!(3), "invalid type"),
        (r#"{"id":4,"op":"save"}"#, json!(4), "pass an open file"),
        (r#"{"id":5,"op":"pause"}"#, json!(5), "cannot pause: the machine is not booted yet"),
        (r#"{"id":7,"op":"poke","paths":["/a"]}"#, json!(7), "not booted yet"),
        (r#"{"id":20,"op":"port_wait","name":"a","timeout_ms":1}"#, json!(20), "not booted yet"),
        (r#"{"id":10,"op":"input","device":"mouse","events":[]}"#, json!(10), "unknown variant `mouse`"),
        (r#"{"id":11,"op":"input","device":"touch","events":[[1,2]]}"#, json!(11), "invalid length"),
        (r#"{"id":12,"op":"input","device":"touch","events":[[70000,0,0]]}"#, json!(12), "invalid value"),
        (r#"{"id":13,"op":"input","device":"keyboard","events":[[1,30,1]]}"#, json!(13), "does not listen"),
        (r#"{"id":14,"op":"input","device":"keyboard","events":[[3,0,1]]}"#, json!(14), "no event of type 3"),
    ] {
        let reply = client.ask(request);
        assert_eq!(reply["id"], id);
        let error = reply["error"].as_str().unwrap();
        assert!(error.contains(text), "{request}: {error} does not say {text}");
    }
    client.write(&[0xff, 0xfe, b'\n']);
    assert!(client.read()["error"].as_str().unwrap().contains("not JSON"));
    assert_eq!(client.ask(r#"{"op":"status"}"#)["ok"]["state"], "created");
}

#[test]
fn a_file_is_taken_once_by_the_request_that_needs_it() {
    let server = Server::new();
    let mut client = server.client();
    let file = tempfile::tempfile().unwrap();
    for id in 1..100 {
        client.pass(&format!(r#"{{"id":{id},"op":"status"}}"#), &file);
        assert_eq!(client.read()["id"], id);
    }
    for text in ["not booted yet", "pass an open file"] {
        assert!(client.ask(r#"{"op":"save"}"#)["error"].as_str().unwrap().contains(text));
    }
}

#[test]
fn an_endless_line_ends_the_connection() {
    let server = Server::new();
    let mut client = server.client();
    let mut longest = br#"{"id":1,"op":"status"}"#.to_vec();
    longest.resize(LINE_BYTES_MAX as usize - 1, b' ');
    longest.push(b'\n');
    client.write(&longest);
    assert_eq!(client.read()["id"], 1, "the longest line is answered");
    client.write(&vec![b'x'; LINE_BYTES_MAX as usize + 1]);
    assert!(client.read()["error"].as_str().unwrap().contains("more than 65536 bytes"));
    assert!(client.is_closed());
    assert_eq!(server.client().ask(r#"{"op":"status"}"#)["ok"]["state"], "created", "others are served");
}

#[test]
fn half_a_line_is_no_request() {
    let server = Server::new();
    let mut client = server.client();
    client.write(br#"{"op":"stop"}"#);
    client.0.get_mut().shutdown(Shutdown::Write).unwrap();
    assert!(client.is_closed());
    assert!(server.wait_quit.try_recv().is_err());
}

#[test]
fn waits_for_the_screen_do_not_hold_up_other_requests_and_are_bounded() {
    let server = Server::new();
    let mut client = server.client();
    for id in 0..WAITS_MAX {
        client.write(format!("{{\"id\":{id},\"op\":\"screen_wait\",\"after_generation\":0,\"timeout_ms\":500}}\n").as_bytes());
    }
    let error = client.ask(r#"{"id":9,"op":"screen_wait","after_generation":0,"timeout_ms":1}"#);
    assert!(error["error"].as_str().unwrap().contains("under way"), "{error}");
    assert_eq!(client.ask(r#"{"id":10,"op":"status"}"#)["id"], 10);
    for _ in 0..WAITS_MAX {
        assert_eq!(client.read()["ok"], json!({"generation": 0, "changed": false}));
    }
}

#[test]
fn screen_tells_digest_and_picture() {
    let server = Server::new();
    let mut client = server.client();
    let screen = client.ask(r#"{"op":"screen"}"#);
    assert!(screen["ok"].get("png_base64").is_none());
    let black = Picture { width: 360, height: 720, pixels: vec![0; 360 * 720] };
    assert_eq!(screen["ok"]["sha256"], black.sha256());
    let screen = client.ask(r#"{"op":"screen","png":true}"#);
    assert_eq!(screen["ok"]["png_base64"], base64(&black.png()));
}

#[test]
fn stop_is_answered_before_the_process_is_told() {
    let server = Server::new();
    let mut client = server.client();
    assert_eq!(client.ask(r#"{"id":1,"op":"stop"}"#), json!({"id": 1, "ok": {}}));
    server.wait_quit.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn all_clients_hear_of_the_machines_end() {
    let events = Events::default();
    let dir = tempfile::tempdir().unwrap();
    let console = Console::new(None);
    let _wait_quit = start(dir.path(), events.clone(), console.clone());
    let connect = || {
        let stream = UnixStream::connect(dir.path().join("c")).unwrap();
        let mut client = TestClient(BufReader::new(stream));
        // Once it is answered it is known.
        client.ask(r#"{"op":"status"}"#);
        client
    };
    let mut clients = [connect(), connect()];
    let mut sink = console.sink();
    b"[ 1.0] Kernel panic - not syncing: no init\n".iter().for_each(|byte| sink.put(*byte));
    events.exit(&ExitReason::Reset, &console);
    for client in &mut clients {
        let event = client.read();
        assert_eq!((&event["event"], &event["reason"]), (&json!("exit"), &json!("reset")));
        assert_eq!(event["detail"], "the kernel panicked:\n[ 1.0] Kernel panic - not syncing: no init");
    }
}

#[test]
fn replies_that_wait_have_a_bound_in_bytes_too() {
    let half = || Outgoing::Line("x".repeat(REPLY_BYTES_WAITING_MAX / 2));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (replies, waiting) = Replies::new(ours.try_clone().unwrap());
    let (bytes_waiting, quit) = (replies.bytes_waiting.clone(), sync_channel(1).0);
    let writer = std::thread::spawn(move || write(ours, &waiting, &bytes_waiting, &quit));
    for _ in 0..4 {
        assert!(replies.put(half()), "those before were read");
        theirs.read_exact(&mut vec![0; REPLY_BYTES_WAITING_MAX / 2]).unwrap();
    }
    drop(replies);
    writer.join().unwrap();

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (replies, _waiting) = Replies::new(ours);
    assert!(replies.put(half()) && replies.put(half()));
    assert!(!replies.put(Outgoing::Line("x".into())));
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "who does not read is cut off");
}
