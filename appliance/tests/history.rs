//! Looking back: what changed between two positions, where something is or was, and a log searched.

mod support;

use pollux::app::Appliance;
use pollux::config::StoreBackend;
use serde_json::{Value, json};
use support::{Client, config, enrolled, event, pollux};
use sync_protocol::PhonePath;
use sync_protocol::chunking;
use sync_protocol::event::{Content, ControlKind, Event, FileChange, FileOp, Kind, Node};
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, phone_message::Message as FromPhone};
use tests::fake_phone::Stream;

fn put(path: &str, text: &str) -> Kind {
    let chunks = chunking::cut(text.as_bytes()).map(|(chunk, _)| chunk).collect();
    let content = Content::Regular { size: text.len() as u64, chunks };
    let node = Node { mode: 0o644, uid: 0, gid: 0, mtime_ns: 5, content };
    Kind::File(FileChange { path: PhonePath::new(path).expect("path"), op: FileOp::Put(node) })
}

fn change(path: &str, op: FileOp) -> Kind {
    Kind::File(FileChange { path: PhonePath::new(path).expect("path"), op })
}

/// Sends events, one for each minute of 2026-11-01 from 10:00 on, and the contents that are asked for.
async fn tell(stream: &mut Stream, kinds: Vec<Kind>, texts: &[String]) {
    const TEN_O_CLOCK_US: i64 = 1_793_527_200_000_000;
    let last = kinds.len() as u64;
    let minute = |(seq, kind)| Event { wall_us: TEN_O_CLOCK_US + (seq as i64 - 1) * 60_000_000, ..event(seq, kind) };
    stream.send_events((1..).zip(kinds).map(minute).collect()).await;
    loop {
        match stream.next().await.expect("an answer") {
            FromAppliance::Ack(ack) if ack.seq == last => return,
            FromAppliance::NeedChunks(needed) => {
                let pieces = texts.iter().flat_map(|text| chunking::cut(text.as_bytes()));
                let wanted = pieces.filter(|(chunk, _)| needed.hashes.contains(&chunk.hash.to_vec()));
                let chunks = wanted.map(|(chunk, bytes)| chunking::pack(chunk.hash, bytes)).collect();
                stream.send(FromPhone::Chunks(wire::Chunks { chunks })).await;
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_is_found_again() {
    let data = tempfile::tempdir().expect("folder");
    let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started");
    let admin = Client::admin(&appliance);
    let phone = enrolled(&appliance, "A").await;
    let (mut stream, _) = phone.stream(1, 9).await;
    // A text across the border of two pieces that are read.
    let long = format!("{}the needle{}", "x".repeat(256 * 1024 - 5), "y".repeat(1000));
    let texts = ["meet ben at noon".to_owned(), "meet eve at noon".to_owned(), long.clone()];
    let kinds = vec![
        put("/home/notes/one.txt", &texts[0]),
        put("/home/notes/two.txt", &texts[1]),
        put("/home/pics/cat.png", ""),
        Kind::Control(sync_protocol::event::Control { kind: ControlKind::ScanDone, text: String::new(), path: None, count: 0 }),
        put("/home/notes/one.txt", &texts[1]),
        change("/home/notes/two.txt", FileOp::Remove),
        change("/home/pics", FileOp::Rename { to: PhonePath::new("/home/pictures").expect("path") }),
        put("/home/long", &long),
        Kind::Mmi(sync_protocol::event::Frame {
            device: sync_protocol::event::MmiDevice::Keyboard,
            events: vec![sync_protocol::event::InputEvent { r#type: 1, code: 30, value: 1 }],
            device_id: 0,
            x_max: 0,
            y_max: 0,
        }),
    ];
    tell(&mut stream, kinds, &texts).await;
    admin.phone_when("A", |view| view["sync"]["applied"] == 9).await;

    let diff = admin.get("/api/phones/A/diff?from=4&to=9").await;
    let told = |diff: &Value| -> Vec<String> {
        let changes = diff["changes"].as_array().expect("changes").iter();
        changes.map(|c| format!("{} {}", c["change"].as_str().expect("kind"), c["path"].as_str().expect("path"))).collect()
    };
    let expected = ["added /home/long", "changed /home/notes/one.txt", "removed /home/notes/two.txt", "moved /home/pictures"];
    assert_eq!(told(&diff), expected, "{diff}");
    assert_eq!(diff["changes"][3]["moved_from"], "/home/pics");
    let back = admin.get("/api/phones/A/diff?from=9&to=4").await;
    assert_eq!(told(&back)[0], "removed /home/long");
    assert!(told(&back).contains(&"moved /home/pics".to_owned()), "{back}");
    let some = admin.get("/api/phones/A/diff?from=0&to=9&limit=2").await;
    assert_eq!((told(&some).len(), &some["more"]), (2, &json!(true)));
    assert_eq!(admin.call("GET", "/api/phones/A/diff?from=4&to=10", None).await.0, 404);
    let shown = pollux(&["diff", "A", "4", "9"], data.path()).await.expect("told");
    assert!(shown.contains("- /home/notes/two.txt") && shown.contains("> /home/pictures  from /home/pics"), "{shown}");

    let found = |answer: &Value| -> Vec<String> {
        answer["matches"].as_array().expect("matches").iter().map(|m| m["path"].as_str().expect("path").to_owned()).collect()
    };
    let all = admin.get("/api/phones/A/find?pattern=*.txt").await;
    assert_eq!(found(&all), ["/home/notes/one.txt"], "{all}");
    let then = admin.get("/api/phones/A/find?pattern=*.txt&at=2026-11-01T10:04:30Z").await;
    assert_eq!((found(&then).len(), &then["position"]), (2, &json!(5)), "{then}");
    let before = admin.get("/api/phones/A/find?pattern=*&contents=ben&position=4").await;
    assert_eq!((found(&before), &before["matches"][0]["offset"]), (vec!["/home/notes/one.txt".to_owned()], &json!(5)), "{before}");
    assert_eq!(before["matches"][0]["excerpt"], "meet ben at noon");
    assert!(found(&admin.get("/api/phones/A/find?pattern=*&contents=ben").await).is_empty());
    let across = admin.get("/api/phones/A/find?pattern=*&contents=the%20needle").await;
    assert_eq!((found(&across), &across["matches"][0]["offset"]), (vec!["/home/long".to_owned()], &json!(256 * 1024 - 5)));
    let (mut steps, mut after, mut paths) = (0, String::new(), Vec::new());
    loop {
        let step = admin.get(&format!("/api/phones/A/find?pattern=*&limit=1&beneath=/home{after}")).await;
        paths.extend(found(&step));
        steps += 1;
        match step["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let everything = ["/home", "/home/long", "/home/notes", "/home/notes/one.txt", "/home/pictures", "/home/pictures/cat.png"];
    assert_eq!(paths, everything);
    assert_eq!(steps, everything.len() + 1);
    assert_eq!(found(&admin.get("/api/phones/A/find?pattern=*&beneath=/home/notes").await), everything[2..4]);
    for wrong in ["pattern=", "pattern=*&contents=", "pattern=*&at=noon", "pattern=*&beneath=home", ""] {
        assert_eq!(admin.call("GET", &format!("/api/phones/A/find?{wrong}"), None).await.0, 400, "{wrong}");
    }
    let shown = pollux(&["find", "*.txt", "--contents", "ben", "--at", "2026-11-01T10:03"], data.path()).await.expect("found");
    assert!(shown.contains("A@4  /home/notes/one.txt") && shown.contains("at 5: meet ben at noon"), "{shown}");

    let log = admin.get("/api/phones/A/log?kind=file&path=/home/notes").await;
    let positions = |log: &Value| -> Vec<u64> {
        log["events"].as_array().expect("events").iter().filter_map(|event| event["position"].as_u64()).collect()
    };
    assert_eq!((positions(&log), &log["next"]), (vec![1, 2, 5, 6], &Value::Null), "{log}");
    let first = admin.get("/api/phones/A/log?kind=file&path=/home/notes&limit=2").await;
    assert_eq!((positions(&first), &first["next"]), (vec![1, 2], &json!(2)));
    let rest = admin.get("/api/phones/A/log?kind=file&path=/home/notes&limit=9&after=2").await;
    assert_eq!(positions(&rest), [5, 6]);
    assert_eq!(positions(&admin.get("/api/phones/A/log?path=/home/pictures").await), [7]);
    assert_eq!(positions(&admin.get("/api/phones/A/log?from=2026-11-01T10:07:00Z&to=2026-11-01T10:07:59Z").await), [8]);
    assert_eq!(positions(&admin.get("/api/phones/A/log?kind=control").await), [4]);
    let shown = pollux(&["log", "A", "--kind", "mmi"], data.path()).await.expect("told");
    assert_eq!(shown.lines().count(), 1, "{shown}");
    appliance.shutdown().await;
}
