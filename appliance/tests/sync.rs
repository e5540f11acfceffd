//! Phones against a real appliance over real TLS: what is accepted, what is refused and how, and what is never lost.

mod support;

use pollux::app::Appliance;
use pollux::config::StoreBackend;
use serde_json::json;
use support::{Client, config, control, controls, enrolled, event, start, stranger};
use sync_protocol::chunking;
use sync_protocol::event::{Content, ControlKind, FileChange, FileOp, Kind, Node};
use sync_protocol::scope::Scope;
use sync_protocol::tree;
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, command, phone_message::Message as FromPhone};
use sync_protocol::{PhonePath, batch};
use tonic::Code;

#[tokio::test]
async fn nothing_but_registration_before_release_and_nothing_after_quarantine() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let mut phone = stranger(&setup.appliance, "STRAY");
    assert!(!phone.register("").await.expect("registered"));
    assert_eq!(admin.get("/api/phones/STRAY").await["standing"], "quarantined");
    let refused = phone.open(phone.hello(1, 0)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    admin.post("/api/phones/STRAY/release", json!({"reason": "known"})).await;
    assert!(phone.register("").await.expect("registered"));
    let (mut stream, acked) = phone.stream(1, 0).await;
    assert_eq!(acked, 0);
    admin.phone_when("STRAY", |view| view["connected"] == true).await;

    admin.post("/api/phones/STRAY/quarantine", json!({"reason": "lost"})).await;
    let closed = stream.end().await;
    assert_eq!(closed.code(), Code::PermissionDenied, "{closed}");
    let refused = phone.open(phone.hello(1, 0)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(!phone.register("").await.expect("still heard"));
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn strangers_and_other_versions_are_told_why() {
    let setup = start().await;
    let other = start().await;
    let mut foreign = enrolled(&other.appliance, "X").await;
    let certificate = foreign.certificate.take();
    let mut phone = stranger(&setup.appliance, "X");
    (phone.key, phone.certificate) = (foreign.key, certificate);
    let refused = phone.open(phone.hello(1, 0)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("not one that this appliance issued"), "{refused}");

    let phone = stranger(&setup.appliance, "Y");
    let request = wire::RegisterRequest { protocol_version: 99, ..phone.request("") };
    let refused = phone.client().await.expect("connected").register(request).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("99") && refused.message().contains('1'), "{refused}");
    let request = wire::RegisterRequest { csr_der: b"garbage".to_vec(), ..phone.request("") };
    let refused = phone.client().await.expect("connected").register(request).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);

    let phone = enrolled(&setup.appliance, "Z").await;
    let hello = wire::Hello { protocol_version: 99, ..phone.hello(1, 0) };
    let refused = phone.open(hello).await.expect("opened").end().await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let refused = phone.open(phone.hello(5, 1)).await.expect("opened").end().await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let hello = wire::Hello { journal_id: vec![1], ..phone.hello(1, 0) };
    let refused = phone.open(hello).await.expect("opened").end().await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    other.appliance.shutdown().await;
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn what_breaks_the_contract_ends_the_stream_and_stores_nothing() {
    let setup = start().await;
    let phone = enrolled(&setup.appliance, "A").await;
    let good = batch::pack(controls(1..=3).into_iter().map(Into::into).collect());
    let mut truncated = good.clone();
    truncated.events_zstd.truncate(truncated.events_zstd.len() / 2);
    let mut flipped = good.clone();
    flipped.events_zstd[0] ^= 0x40;
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compressed");
    // As of an agent of a later version: what cannot be understood must not be acknowledged.
    let mut unknown: Vec<wire::Event> = controls(1..=3).into_iter().map(Into::into).collect();
    unknown[1].kind = None;
    for bad in [
        FromPhone::Batch(truncated),
        FromPhone::Batch(flipped),
        FromPhone::Batch(wire::Batch { first_seq: 1, events_zstd: bomb }),
        FromPhone::Batch(wire::Batch { first_seq: 2, ..good.clone() }),
        FromPhone::Batch(batch::pack(controls(2..=3).into_iter().map(Into::into).collect())),
        FromPhone::Batch(batch::pack(unknown)),
        FromPhone::Hello(phone.hello(1, 0)),
        FromPhone::NeedChunks(wire::NeedChunks { hashes: vec![vec![0; 32]; 5000] }),
    ] {
        let (mut stream, acked) = phone.stream(1, 3).await;
        assert_eq!(acked, 0);
        let shown = format!("{bad:.60?}");
        stream.send(bad).await;
        let status = stream.end().await;
        assert!(matches!(status.code(), Code::InvalidArgument), "{shown}: {status}");
    }
    let (mut stream, _) = phone.stream(1, 3).await;
    stream.send_unknown().await;
    let status = stream.end().await;
    assert!(status.message().contains("of a kind that this appliance does not know"), "{status}");
    let (mut stream, acked) = phone.stream(1, 3).await;
    assert_eq!(acked, 0);
    stream.send(FromPhone::Batch(good)).await;
    assert_eq!(stream.acked().await, 3);
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn repetitions_are_stored_once_and_a_restart_forgets_nothing() {
    let data = tempfile::tempdir().expect("folder");
    let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started");
    let mut phone = enrolled(&appliance, "A").await;
    let (mut stream, _) = phone.stream(1, 10).await;
    stream.send_events(controls(1..=4)).await;
    assert_eq!(stream.acked().await, 4);
    stream.send_events(controls(2..=6)).await;
    assert_eq!(stream.acked().await, 6);
    drop(stream);
    let (_, acked) = phone.stream(3, 10).await;
    assert_eq!(acked, 6);
    appliance.shutdown().await;

    let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started again");
    assert!(appliance.first_login.is_none());
    phone.moved_to(&appliance.sync_address.to_string());
    let (mut stream, acked) = phone.stream(3, 10).await;
    assert_eq!(acked, 6);
    stream.send_events(controls(7..=10)).await;
    assert_eq!(stream.acked().await, 10);
    let log = Client::admin(&appliance).get("/api/phones/A/log").await;
    let seqs: Vec<u64> = log["events"].as_array().expect("events").iter().filter_map(|e| e["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=10).collect::<Vec<_>>());
    appliance.shutdown().await;
}

#[tokio::test]
async fn a_newer_stream_replaces_the_older() {
    let setup = start().await;
    let phone = enrolled(&setup.appliance, "A").await;
    let (mut older, _) = phone.stream(1, 5).await;
    let (mut newer, _) = phone.stream(1, 5).await;
    let status = older.end().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    newer.send_events(controls(1..=5)).await;
    assert_eq!(newer.acked().await, 5);
    setup.appliance.shutdown().await;
}

fn put(path: &[u8], chunks: Vec<chunking::Chunk>) -> Kind {
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    let content = Content::Regular { size, chunks };
    let node = Node { mode: 0o640, uid: 1000, gid: 1000, mtime_ns: 5, content };
    Kind::File(FileChange { path: PhonePath::new(path).expect("path"), op: FileOp::Put(node) })
}

/// Content larger than one chunk.
fn content() -> Vec<u8> {
    (0..200_000u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..1].to_vec()).collect()
}

#[tokio::test]
async fn a_file_is_acknowledged_with_its_chunks_and_can_be_read() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let phone = enrolled(&setup.appliance, "A").await;
    let content = content();
    let pieces: Vec<_> = chunking::cut(&content).collect();
    let chunks: Vec<_> = pieces.iter().map(|(chunk, _)| *chunk).collect();
    assert!(chunks.len() > 3);
    let (mut stream, _) = phone.stream(1, 2).await;
    let name = b"/home/user/a\nb\xff";
    stream.send_events(vec![event(1, put(name, chunks.clone())), control(2, ControlKind::ScanDone, "")]).await;
    let FromAppliance::NeedChunks(needed) = stream.next().await.expect("a request") else { panic!("no request") };
    assert_eq!(needed.hashes.len(), chunks.len());
    // A chunk that is not what it says ends the stream; nothing was acknowledged.
    let mut wrong = chunking::pack(chunks[0].hash, pieces[0].1);
    wrong.zstd = chunking::pack(chunks[1].hash, pieces[1].1).zstd;
    stream.send(FromPhone::Chunks(wire::Chunks { chunks: vec![wrong] })).await;
    assert_eq!(stream.end().await.code(), Code::InvalidArgument);

    let (mut stream, acked) = phone.stream(1, 2).await;
    assert_eq!(acked, 0);
    stream.send_events(vec![event(1, put(name, chunks.clone())), control(2, ControlKind::ScanDone, "")]).await;
    let FromAppliance::NeedChunks(_) = stream.next().await.expect("a request") else { panic!("no request") };
    for (chunk, bytes) in &pieces {
        let chunks = vec![chunking::pack(chunk.hash, bytes)];
        stream.send(FromPhone::Chunks(wire::Chunks { chunks })).await;
    }
    assert_eq!(stream.acked().await, 2);

    admin.phone_when("A", |view| view["sync"]["applied"] == 2 && view["sync"]["complete"] == true).await;
    let listing = admin.get("/api/phones/A/files?path=/home/user").await;
    let entry = &listing["entries"][0];
    assert_eq!(entry["path"], "/home/user/a%0Ab%FF");
    assert_eq!((entry["kind"].as_str(), entry["mode"].as_u64()), (Some("file"), Some(0o640)));
    let url = format!("/api/phones/A/files/content?path={}", entry["path"].as_str().expect("path"));
    let got = admin.request("GET", &url).send().await.expect("answer").bytes().await.expect("content");
    assert_eq!(got, content);
    // The same chunks are not asked for again.
    stream.send_events(vec![event(3, put(b"/home/user/copy", chunks))]).await;
    assert_eq!(stream.acked().await, 3);
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn phone_and_flash_are_proven_equal_or_not() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let phone = enrolled(&setup.appliance, "A").await;
    let (mut stream, _) = phone.stream(1, 2).await;
    stream.send_events(vec![event(1, put(b"/r/a", Vec::new())), event(2, put(b"/r/b", Vec::new()))]).await;
    assert_eq!(stream.acked().await, 2);

    let mut hasher = tree::TreeHasher::new();
    let Kind::File(FileChange { op: FileOp::Put(node), .. }) = put(b"/r/a", Vec::new()) else { panic!("no put") };
    let path = |text: &str| PhonePath::new(text).expect("path");
    let directory = Node { mode: 0o755, uid: 0, gid: 0, mtime_ns: 0, content: Content::Directory };
    hasher.add(&path("/r"), directory.entry());
    for name in ["/r/a", "/r/b"] {
        hasher.add(&path(name), node.entry());
    }
    let entries = hasher.finish();
    let entry = entries.iter().find(|(at, _)| *at == path("/r")).map(|(_, entry)| *entry);
    let scope = Scope::new([path("/r")], []).expect("scope");
    let root = tree::root_hash(scope.roots().iter().map(|at| (at, entry)));

    for (told, equal) in [(root.to_vec(), true), (vec![9; 32], false)] {
        admin.post("/api/phones/A/prove", json!({})).await;
        let FromAppliance::Command(asked) = stream.next().await.expect("a command") else { panic!("no command") };
        assert!(matches!(asked.command, Some(command::Command::Root(_))));
        let answer = wire::HaveRoot {
            command_id: asked.id,
            seq: 2,
            root: told,
            rules_version: 0,
            roots: vec![b"/r".to_vec()],
            excludes: Vec::new(),
        };
        stream.send(FromPhone::Root(answer)).await;
        admin.phone_when("A", |view| view["sync"]["proof"]["equal"] == equal).await;
    }
    setup.appliance.shutdown().await;
}

#[tokio::test]
async fn a_journal_that_does_not_continue_the_log_is_read_anew() {
    let setup = start().await;
    let mut phone = enrolled(&setup.appliance, "A").await;
    let (mut stream, _) = phone.stream(1, 3).await;
    stream.send_events(controls(1..=3)).await;
    assert_eq!(stream.acked().await, 3);
    drop(stream);
    // The phone has forgotten 4 to 6, which we never had: it goes on, and is asked to read everything again.
    let (mut stream, acked) = phone.stream(7, 9).await;
    assert_eq!(acked, 6);
    let FromAppliance::Command(asked) = stream.next().await.expect("a command") else { panic!("no command") };
    assert!(matches!(asked.command, Some(command::Command::Rescan(_))));
    drop(stream);
    // Unanswered, it is asked again.
    let (mut stream, _) = phone.stream(7, 9).await;
    let FromAppliance::Command(again) = stream.next().await.expect("a command") else { panic!("no command") };
    assert_eq!(again.id, asked.id);
    let done = wire::CommandResult {
        command_id: asked.id,
        status: wire::CommandStatus::Done.into(),
        ..Default::default()
    };
    stream.send(FromPhone::Result(done)).await;
    stream.send_events(controls(7..=9)).await;
    assert_eq!(stream.acked().await, 9);
    drop(stream);
    // A new journal begins at 1.
    phone.journal_id = [8; 16];
    let (mut stream, acked) = phone.stream(1, 2).await;
    assert_eq!(acked, 0);
    stream.send_events(controls(1..=2)).await;
    assert_eq!(stream.acked().await, 2);
    setup.appliance.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_phones_stream_at_once() {
    const PHONES: usize = 20;
    const EVENTS: u64 = 300;
    let data = tempfile::tempdir().expect("folder");
    let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started");
    let mut streaming = tokio::task::JoinSet::new();
    for n in 0..PHONES {
        let phone = enrolled(&appliance, &format!("P{n}")).await;
        streaming.spawn(async move {
            let (mut stream, _) = phone.stream(1, EVENTS).await;
            for first in (1..=EVENTS).step_by(10) {
                stream.send_events(controls(first..=first + 9)).await;
            }
            while stream.acked().await < EVENTS {}
        });
    }
    while let Some(done) = streaming.join_next().await {
        done.expect("streamed");
    }
    let admin = Client::admin(&appliance);
    for n in 0..PHONES {
        admin.phone_when(&format!("P{n}"), |view| view["sync"]["applied"] == EVENTS).await;
    }
    appliance.shutdown().await;
}
