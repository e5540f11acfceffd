//! A real agent and a real appliance: proven the same, or the first path that differs is named, and what does not fit is mended from
//! the good side.

mod support;

use std::fs::OpenOptions;
use std::io::Write;

use pollux::config::StoreBackend;
use pollux::app::Appliance;
use serde_json::{Value, json};
use support::agent::{Storage, let_time_pass, with_storage};
use support::{Client, config, control, enrolled, event, pollux, start};
use sync_protocol::PhonePath;
use sync_protocol::event::{Control, ControlKind, Kind};
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, command, phone_message::Message as FromPhone};

const SERIAL: &str = "A";

/// More than one list of entries.
const MANY: usize = 2500;

fn encoded(storage: &Storage, name: &str) -> String {
    storage.path(name).to_str().expect("plain").to_owned()
}

fn kinds(verdict: &Value) -> Vec<&str> {
    verdict["findings"].as_array().expect("findings").iter().filter_map(|finding| finding["kind"].as_str()).collect()
}

#[test]
fn a_phone_is_proven_equal_and_the_command_line_says_so() {
    with_storage("a_phone_is_proven_equal_and_the_command_line_says_so", async |storage| {
        let data = tempfile::tempdir().expect("folder");
        let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started");
        let admin = Client::admin(&appliance);
        std::fs::create_dir_all(storage.path("deep/er")).expect("made");
        std::fs::create_dir(storage.path("skip")).expect("made");
        storage.write("deep/er/note", "text");
        storage.write("skip/left out", "text");
        std::os::unix::fs::symlink("deep/er", storage.path("link")).expect("linked");
        (0..MANY).for_each(|n| storage.write(&format!("deep/{n:05}"), format!("{n}")));
        let agent = storage.start(&appliance, SERIAL, Some(admin.new_code().await)).await;

        let verdict = admin.verify(SERIAL, true, true).await;
        assert_eq!((&verdict["equal"], kinds(&verdict)), (&json!(true), vec![]), "{verdict}");
        storage.write("deep/er/note", "another text");
        let later = admin.verify(SERIAL, false, true).await;
        assert_eq!(later["equal"], true, "{later}");
        assert_ne!(later["root"], verdict["root"]);
        assert!(later["position"].as_u64() > verdict["position"].as_u64());
        assert!(admin.log_of(SERIAL, "control").await.iter().any(|text| text.starts_with("proven: equal at position")));

        let told = pollux(&["verify", SERIAL], data.path()).await.expect("equal");
        assert!(told.contains("A is proven equal at position") && told.contains("read everything again"), "{told}");
        agent.stop().await;
        appliance.shutdown().await;
    });
}

#[test]
fn the_first_path_that_differs_is_named_and_told_anew() {
    with_storage("the_first_path_that_differs_is_named_and_told_anew", async |storage| {
        let setup = start().await;
        let admin = Client::admin(&setup.appliance);
        std::fs::create_dir_all(storage.path("deep/er")).expect("made");
        (0..MANY).for_each(|n| storage.write(&format!("deep/er/{n:05}"), format!("{n}")));
        let agent = storage.start(&setup.appliance, SERIAL, Some(admin.new_code().await)).await;
        agent.stop().await;

        // Two events that the agent believes to have told, and one removal.
        for name in ["deep/er/01999", "deep/er/02222"] {
            storage.write(name, "never told");
            storage.believe(name, Some(b"never told"));
        }
        std::fs::remove_file(storage.path("deep/er/02400")).expect("removed");
        storage.believe("deep/er/02400", None);
        let agent = storage.start(&setup.appliance, SERIAL, None).await;

        let verdict = admin.verify(SERIAL, true, false).await;
        assert_eq!((&verdict["equal"], kinds(&verdict)), (&json!(false), vec!["divergence"]), "{verdict}");
        let found = &verdict["findings"][0];
        assert_eq!(found["path"], encoded(&storage, "deep/er/01999"));
        assert_eq!((&found["phone"]["size"], &found["flash"]["size"]), (&json!(10), &json!(4)), "{found}");
        let told = found["event"]["text"].as_str().expect("an event");
        assert!(told.starts_with("file ") && told.ends_with("01999 (4 bytes)"), "{told}");

        let verdict = admin.verify(SERIAL, false, true).await;
        assert_eq!((&verdict["equal"], kinds(&verdict)), (&json!(true), vec!["divergence"; 3]), "{verdict}");
        assert_eq!(verdict["findings"][2]["path"], encoded(&storage, "deep/er/02400"));
        assert!(verdict["findings"][2]["phone"].is_null());
        let at = format!("/api/phones/{SERIAL}/files/content?path={}", encoded(&storage, "deep/er/02222"));
        let got = admin.request("GET", &at).send().await.expect("answer").bytes().await.expect("content");
        assert_eq!(got, "never told");
        let controls = admin.log_of(SERIAL, "control").await;
        assert_eq!(controls.iter().filter(|text| text.starts_with("diverged: ")).count(), 4, "{controls:?}");
        agent.stop().await;
        setup.appliance.shutdown().await;
    });
}

#[test]
fn what_decayed_on_the_phone_is_told_and_put_back() {
    with_storage("what_decayed_on_the_phone_is_told_and_put_back", async |storage| {
        let setup = start().await;
        let admin = Client::admin(&setup.appliance);
        storage.write("good", "as it was written");
        storage.write("edited", "as it was written");
        let_time_pass(&storage);
        let agent = storage.start(&setup.appliance, SERIAL, Some(admin.new_code().await)).await;
        agent.stop().await;

        // Other contents under the same inode, times and size as were told: what a failing storage does.
        storage.write("good", "as it was wr1tten");
        storage.believe("good", None);
        let agent = storage.start(&setup.appliance, SERIAL, None).await;
        let quick = admin.verify(SERIAL, false, true).await;
        assert_eq!((&quick["equal"], kinds(&quick)), (&json!(true), vec![]), "what was told is the same: {quick}");

        // Only looked at, it stays; the next one that may mend it does.
        let looked = admin.verify(SERIAL, true, false).await;
        assert_eq!((&looked["equal"], kinds(&looked)), (&json!(true), vec!["phone_decay"]), "{looked}");
        assert_eq!(storage.read("good"), b"as it was wr1tten");
        let verdict = admin.verify(SERIAL, false, true).await;
        assert_eq!((&verdict["equal"], kinds(&verdict)), (&json!(true), vec!["phone_decay"]), "{verdict}");
        assert_eq!(storage.read("good"), b"as it was written");
        let again = admin.verify(SERIAL, true, true).await;
        assert_eq!((&again["equal"], kinds(&again)), (&json!(true), vec![]), "{again}");
        let controls = admin.log_of(SERIAL, "control").await;
        for told in ["found rotten: ", "healed: "] {
            assert!(controls.iter().any(|text| text.starts_with(told) && text.contains("/good")), "{controls:?}");
        }

        // An edit that nobody was told of, because the file was never closed, is no decay: it stands.
        let mut open = OpenOptions::new().append(true).open(storage.path("edited")).expect("opened");
        open.write_all(b" and then some").expect("written");
        let verdict = admin.verify(SERIAL, true, true).await;
        assert_eq!((&verdict["equal"], kinds(&verdict)), (&json!(true), vec!["missed_edit"]), "{verdict}");
        assert_eq!(storage.read("edited"), b"as it was written and then some");
        drop(open);
        agent.stop().await;
        setup.appliance.shutdown().await;
    });
}

#[test]
fn a_phone_that_is_used_meanwhile_is_proven_all_the_same() {
    with_storage("a_phone_that_is_used_meanwhile_is_proven_all_the_same", async |storage| {
        let setup = start().await;
        let admin = Client::admin(&setup.appliance);
        (0..MANY).for_each(|n| storage.write(&format!("{n:05}"), format!("{n}")));
        let agent = storage.start(&setup.appliance, SERIAL, Some(admin.new_code().await)).await;
        agent.stop().await;
        storage.write("02222", "never told");
        storage.believe("02222", Some(b"never told"));
        let agent = storage.start(&setup.appliance, SERIAL, None).await;

        let busy = storage.path("00001");
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let user = std::thread::spawn(move || {
            let mut n = 0;
            while ended.recv_timeout(std::time::Duration::from_millis(2)).is_err() {
                std::fs::write(&busy, format!("busy {n}")).expect("written");
                n += 1;
            }
            n
        });
        let verdict = admin.verify(SERIAL, true, true).await;
        end.send(()).expect("the user is there");
        assert!(user.join().expect("used") > 0);
        assert_eq!(verdict["equal"], true, "{verdict}");
        let diverged: Vec<&Value> = verdict["findings"].as_array().expect("findings").iter().filter(|f| f["kind"] == "divergence").collect();
        assert_eq!(diverged.len(), 1, "{verdict}");
        assert_eq!(diverged[0]["path"], encoded(&storage, "02222"));
        agent.stop().await;
        setup.appliance.shutdown().await;
    });
}

/// The next command of one kind; others are passed over.
async fn command(stream: &mut tests::fake_phone::Stream, is: impl Fn(&command::Command) -> bool) -> wire::Command {
    loop {
        if let FromAppliance::Command(asked) = stream.next().await.expect("a command")
            && asked.command.as_ref().is_some_and(&is)
        {
            return asked;
        }
    }
}

async fn answer(stream: &tests::fake_phone::Stream, result: wire::CommandResult) {
    stream.send(FromPhone::Result(wire::CommandResult { status: wire::CommandStatus::Done.into(), ..result })).await;
}

#[tokio::test]
async fn a_phone_that_breaks_the_contract_or_leaves_is_told_as_such() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let phone = enrolled(&setup.appliance, SERIAL).await;
    let (status, body) = admin.call("POST", "/api/phones/A/verification", Some(json!({}))).await;
    assert_eq!(status, 503, "not connected: {body}");
    let (mut stream, _) = phone.stream(1, 1).await;
    stream.send_events(vec![control(1, ControlKind::ScanDone, "")]).await;
    assert_eq!(stream.acked().await, 1);

    let listed = |name: &str| wire::ListedEntry {
        name: name.into(),
        kind: wire::FileKind::Regular.into(),
        content: vec![1; 32],
        ..Default::default()
    };
    let wrong: [(Vec<wire::ListedEntry>, bool); 3] =
        [(vec![listed("b"), listed("a")], false), (vec![listed("..")], false), (Vec::new(), true)];
    for (entries, more) in wrong {
        admin.post("/api/phones/A/verification", json!({"reread": false})).await;
        let (status, _) = admin.call("POST", "/api/phones/A/verification", Some(json!({}))).await;
        assert_eq!(status, 409, "one at a time");
        let asked = command(&mut stream, |asked| matches!(asked, command::Command::Root(_))).await;
        let root = wire::HaveRoot { command_id: asked.id, seq: 1, root: vec![9; 32], roots: vec![b"/".to_vec()], ..Default::default() };
        stream.send(FromPhone::Root(root)).await;
        let asked = command(&mut stream, |asked| matches!(asked, command::Command::List(_))).await;
        answer(&stream, wire::CommandResult { command_id: asked.id, at_seq: 1, entries, more, ..Default::default() }).await;
        let verdict = ended(&admin).await;
        assert!(verdict["equal"].is_null(), "{verdict}");
        assert!(verdict["trouble"].as_str().expect("why").contains("otherwise than the contract has it"), "{verdict}");
    }

    admin.post("/api/phones/A/verification", json!({"reread": false})).await;
    command(&mut stream, |asked| matches!(asked, command::Command::Root(_))).await;
    drop(stream);
    let verdict = ended(&admin).await;
    assert_eq!(verdict["trouble"], "the phone is not connected");
    setup.appliance.shutdown().await;
}

async fn ended(admin: &Client) -> Value {
    let looking = async {
        loop {
            let standing = admin.get("/api/phones/A/verification").await;
            if standing["running"].is_null() {
                return standing["verdict"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, looking).await.expect("a verdict")
}

/// A storage that gives back nothing any more is not to be had here, so a fake phone has it.
#[tokio::test]
async fn what_cannot_be_read_any_more_is_removed_and_put_back() {
    let setup = start().await;
    let admin = Client::admin(&setup.appliance);
    let phone = enrolled(&setup.appliance, SERIAL).await;
    let (mut stream, _) = phone.stream(1, 3).await;
    let path = PhonePath::new("/r/empty").expect("path");
    let content = sync_protocol::event::Content::Regular { size: 0, chunks: Vec::new() };
    let node = sync_protocol::event::Node { mode: 0o644, uid: 0, gid: 0, mtime_ns: 5, content };
    let put = sync_protocol::event::FileChange { path: path.clone(), op: sync_protocol::event::FileOp::Put(node) };
    stream.send_events(vec![event(1, Kind::File(put)), control(2, ControlKind::ScanDone, "")]).await;
    assert_eq!(stream.acked().await, 2);

    admin.post("/api/phones/A/verification", json!({})).await;
    let asked = command(&mut stream, |asked| matches!(asked, command::Command::Rescan(_))).await;
    answer(&stream, wire::CommandResult { command_id: asked.id, ..Default::default() }).await;
    let unreadable =
        Control { kind: ControlKind::FoundRotten, text: "Input/output error".into(), path: Some(path.clone()), count: 0 };
    stream.send_events(vec![event(3, Kind::Control(unreadable))]).await;
    let asked = command(&mut stream, |asked| matches!(asked, command::Command::Root(_))).await;
    let root = wire::HaveRoot { command_id: asked.id, seq: 3, root: vec![9; 32], roots: vec![b"/r".to_vec()], ..Default::default() };
    stream.send(FromPhone::Root(root)).await;

    let asked = command(&mut stream, |asked| matches!(asked, command::Command::Apply(_))).await;
    let Some(command::Command::Apply(apply)) = asked.command else { panic!("no Apply") };
    let ops: Vec<_> = apply.changes.iter().map(|change| change.change.as_ref().expect("a change")).collect();
    assert!(ops.iter().all(|change| change.path == path.as_bytes()));
    assert!(matches!(ops[0].op, Some(wire::file_change::Op::Remove(_))) && matches!(ops[1].op, Some(wire::file_change::Op::Put(_))));
    assert!(matches!(apply.changes[0].base, Some(wire::applied_change::Base::BaseEntry(_))), "only what it was is removed");
    assert!(matches!(apply.changes[1].base, Some(wire::applied_change::Base::BaseAbsent(true))));
    drop(stream);
    let verdict = ended(&admin).await;
    assert_eq!(kinds(&verdict), ["phone_decay"], "{verdict}");
    let outcome = verdict["findings"][0]["outcome"].as_str().expect("outcome");
    assert!(outcome.starts_with("Input/output error; the version of position"), "{outcome}");
    setup.appliance.shutdown().await;
}
