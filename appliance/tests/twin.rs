//! Twins on the real machine and the real image, driven by a phone that is not there.

mod support;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pollux::app::Appliance;
use pollux::config::{StoreBackend, image_folder_default};
use pollux::input::{self, Point};
use pollux::twin::process::Cage;
use pollux::twin::{Control, binary_beside_us};
use serde_json::{Value, json};
use support::{Client, FakePhone, Stream, config, control, event, stranger};
use sync_protocol::chunking;
use sync_protocol::PhonePath;
use sync_protocol::event::{Content, ControlKind, Event, FileChange, FileOp, Frame, Kind, Node};
use sync_protocol::wire::{self, appliance_message::Message as FromAppliance, command, phone_message::Message as FromPhone};

/// Where the handset's home has its notes, at 360 x 720.
const NOTES: Point = Point { x: 303, y: 626 };
const NEW_NOTE: Point = Point { x: 316, y: 632 };
const BACK: Point = Point { x: 40, y: 701 };
const ARM64: &str = "handset-arm64";
const AMD64: &str = "handset-amd64";

/// Says by name what is missing, if something is.
fn lacking(image: &str) -> Option<String> {
    let (image, binary) = (image_folder_default().join(image), binary_beside_us());
    if let Err(error) = image_builder::Image::open(image) {
        return Some(error.to_string());
    }
    (!binary.is_file()).then(|| format!("{} is not built", binary.display()))
}

/// Whoever starts the tests says that this host does not permit a whole cage.
fn partial_cage() -> bool {
    std::env::var_os("POLLUX_CAGE").is_some_and(|cage| cage == "partial")
}

async fn started(data: &Path, store: StoreBackend) -> Appliance {
    let mut config = config(data, store);
    config.images = image_folder_default();
    config.lease_lifetime = Duration::from_secs(600);
    if partial_cage() {
        config.twins.cage = Cage::Partial;
    }
    Appliance::start(config).await.expect("started")
}

/// A phone that says it runs the real image.
async fn phone(appliance: &Appliance, image: &str) -> FakePhone {
    let mut phone = stranger(appliance, "A");
    phone.image = image.into();
    let code = Client::admin(appliance).new_code().await;
    assert!(phone.register(&code).await.expect("registered"));
    phone
}

/// It has told all of its files: it has none. That is event 1 of its log.
async fn scanned(phone: &FakePhone) -> Stream {
    let (mut stream, _) = phone.stream(1, 100).await;
    stream.send_events(vec![control(1, ControlKind::ScanDone, "")]).await;
    assert_eq!(stream.acked().await, 1);
    stream
}

/// Resolves when its twin runs and has been given all events up to `position`.
async fn fed(admin: &Client, serial: &str, position: u64) -> Value {
    admin.phone_when(serial, |view| alive(&view["twin"]) && view["twin"]["position"] == position).await
}

fn on_screen(frame: Frame) -> Kind {
    Kind::Mmi(input::on_panel(frame, 360, 720))
}

/// A user opens the notes: two events, the first of them `seq`.
fn notes_opened(seq: u64) -> Vec<Event> {
    vec![event(seq, on_screen(input::touch_down(NOTES, 1))), event(seq + 1, on_screen(input::touch_up()))]
}

/// The screen below its clocks, in the status bar and at home, once it has stood still for a while.
async fn still(appliance: &Appliance) -> blake3::Hash {
    let id = appliance.services.phones.find("A").expect("phone").id;
    still_of(&appliance.services.twins.control(&id).expect("the twin runs")).await
}

/// The same of a machine that begins, once its handset has shown its first picture.
async fn begun(appliance: &Appliance) -> blake3::Hash {
    let id = appliance.services.phones.find("A").expect("phone").id;
    let control = appliance.services.twins.control(&id).expect("the twin runs");
    handset_shown(&control).await;
    still_of(&control).await
}

/// Resolves when a machine that begins shows its handset's first picture.
async fn handset_shown(control: &Control) {
    const SHOWN: &str = "handset: showing";
    while !control.console_tail().await.expect("console").contains(SHOWN) {
        let generation = control.screen().await.expect("screen").generation;
        // Whether it changes or not, what the guest printed is looked at.
        control.screen_wait(generation, Duration::from_millis(100)).await.expect("waited");
    }
}

/// The same of any machine.
async fn still_of(control: &Control) -> blake3::Hash {
    const CLOCK_ROWS: usize = 200;
    const ROW_BYTES: usize = 1 + 3 * 360;
    loop {
        let generation = control.screen().await.expect("screen").generation;
        if !control.screen_wait(generation, Duration::from_millis(1500)).await.expect("waited") {
            let rows = rows(&control.screen_png().await.expect("screen").png);
            assert_eq!(rows.len(), 720 * ROW_BYTES);
            return blake3::hash(&rows[CLOCK_ROWS * ROW_BYTES..]);
        }
    }
}

/// The rows of a PNG of one IDAT, as pollux-twin writes it.
fn rows(png: &[u8]) -> Vec<u8> {
    let length = u32::from_be_bytes(png[33..37].try_into().expect("length")) as usize;
    let mut rows = Vec::new();
    let mut data = flate2::read::ZlibDecoder::new(&png[41..41 + length]);
    std::io::Read::read_to_end(&mut data, &mut rows).expect("zlib");
    rows
}

fn alive(view: &Value) -> bool {
    view["state"] == "running"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_follows_its_phone_and_survives_what_happens_to_it() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let appliance = started(data.path(), StoreBackend::Sled).await;
    let admin = Client::admin(&appliance);
    let phone = phone(&appliance, ARM64).await;
    let (mut stream, _) = phone.stream(1, 100).await;
    assert_eq!(admin.get("/api/phones/A/twin").await["state"], "stopped");
    stream
        .send_events(vec![
            control(1, ControlKind::Started, "pollux-agent test, boot 0123456789"),
            control(2, ControlKind::ScanDone, ""),
        ])
        .await;
    assert_eq!(stream.acked().await, 2);

    // It starts by itself once the phone's files are known.
    fed(&admin, "A", 2).await;
    let home = begun(&appliance).await;
    stream.send_events(notes_opened(3)).await;
    assert_eq!(stream.acked().await, 4);
    fed(&admin, "A", 4).await;
    let notes = still(&appliance).await;
    assert_ne!(notes, home, "the tap opened something");

    // Parked and resumed, it is where it was.
    admin.post("/api/phones/A/twin/park", json!({})).await;
    assert_eq!(admin.get("/api/phones/A/twin").await["state"], "parked");
    assert_eq!(admin.call("GET", "/api/phones/A/twin/screen.png", None).await.0, 503);
    admin.post("/api/phones/A/twin/start", json!({})).await;
    assert_eq!(still(&appliance).await, notes);
    let picture = admin.request("GET", "/api/phones/A/twin/screen.png").send().await.expect("answer");
    assert!(picture.bytes().await.expect("PNG").starts_with(b"\x89PNG"));

    // Killed, it is noticed, goes on from where it was parked, and comes to the same screen; killed again, it begins anew.
    for (restarts, detail) in [(1, "it ended, and went on from where it was parked"), (2, "")] {
        let pid = admin.get("/api/phones/A/twin").await["pid"].as_i64().expect("pid");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
        admin.phone_when("A", |view| view["twin"]["restarts"] == restarts).await;
        let view = fed(&admin, "A", 4).await;
        assert_eq!(view["twin"]["detail"], detail);
        assert_eq!(still(&appliance).await, notes);
    }

    let pid = admin.get("/api/phones/A/twin").await["pid"].as_i64().expect("pid");
    appliance.shutdown().await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a process is left behind");
}

/// The real image, in a folder of its own: what is made beside it there is this test's.
fn own_images(folder: &Path) {
    let (image, own) = (image_folder_default().join(ARM64), folder.join(ARM64));
    std::fs::create_dir(&own).expect("folder");
    for entry in std::fs::read_dir(image.canonicalize().expect("the image")).expect("the image") {
        let path = entry.expect("the image").path();
        if path.extension().is_none_or(|extension| extension != "snapshot") {
            std::os::unix::fs::symlink(&path, own.join(path.file_name().expect("a name"))).expect("linked");
        }
    }
}

/// The base snapshot in that folder, once it is there.
fn base_in(folder: &Path) -> Option<PathBuf> {
    let mut paths = std::fs::read_dir(folder.join(ARM64)).expect("folder").map(|entry| entry.expect("entry").path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "snapshot"))
}

/// Changes one byte of a file that a running twin may have mapped: of a copy, in its place.
fn spoil(path: &Path, at: u64) {
    let copy = path.with_extension("copy");
    let copied = std::process::Command::new("cp").arg("--sparse=always").args([path, &copy]).status().expect("cp");
    assert!(copied.success());
    let file = std::fs::File::options().read(true).write(true).open(&copy).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[!byte[0]], at).expect("written");
    std::fs::rename(&copy, path).expect("renamed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_begins_with_the_base_snapshot_or_boots_if_that_is_of_no_use() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let images = tempfile::tempdir().expect("folder");
    own_images(images.path());
    let mut config = config(data.path(), StoreBackend::Sled);
    config.images = images.path().to_owned();
    let appliance = Appliance::start(config).await.expect("started");
    let admin = Client::admin(&appliance);
    let phone = phone(&appliance, ARM64).await;
    let (mut stream, _) = phone.stream(1, 2).await;
    let started = control(1, ControlKind::Started, "pollux-agent test, boot 0123456789");
    stream.send_events(vec![started, control(2, ControlKind::ScanDone, "")]).await;
    assert_eq!(stream.acked().await, 2);
    // The first boots, and is saved at its gate on the way.
    admin.phone_when("A", |view| alive(&view["twin"])).await;
    let home = begun(&appliance).await;
    let base = base_in(images.path()).expect("a base snapshot");
    let made = std::fs::metadata(&base).expect("base").ino();

    let again = async || {
        admin.post("/api/phones/A/twin/stop", json!({})).await;
        admin.post("/api/phones/A/twin/start", json!({})).await;
        let twin = admin.get("/api/phones/A/twin").await;
        assert!(alive(&twin), "{twin}");
        assert_eq!(begun(&appliance).await, home);
        twin["detail"].as_str().expect("detail").to_owned()
    };
    // It is of use: nothing is said, and it stays.
    assert_eq!(again().await, "");
    assert_eq!(std::fs::metadata(&base).expect("base").ino(), made);

    // Of another version, or damaged: it is refused, that is said, and the twin that boots instead makes another.
    let length = std::fs::metadata(&base).expect("base").len();
    for (at, told) in [(8, "this build knows format"), (length / 2, "the checksum of RAM is wrong")] {
        spoil(&base, at);
        let detail = again().await;
        assert!(detail.contains("it booted") && detail.contains(told), "{detail}");
    }
    assert_eq!(again().await, "");
    appliance.shutdown().await;
}

/// On whatever this host runs it; the rest is as for any phone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_x86_64_phone_has_a_twin_that_says_what_it_runs_on() {
    if let Some(lacking) = lacking(AMD64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let appliance = started(data.path(), StoreBackend::Memory).await;
    let admin = Client::admin(&appliance);
    let phone = phone(&appliance, AMD64).await;
    let stream = scanned(&phone).await;
    let view = fed(&admin, "A", 1).await;
    let cpu = view["twin"]["cpu"].as_str().expect("it runs on something");
    assert!(cpu == "x86-64, KVM" || cpu.starts_with("x86-64, emulated (slow): "), "{cpu}");
    let home = begun(&appliance).await;
    stream.send_events(notes_opened(2)).await;
    fed(&admin, "A", 3).await;
    let notes = still(&appliance).await;
    assert_ne!(notes, home, "the tap opened something");

    admin.post("/api/phones/A/twin/park", json!({})).await;
    assert!(admin.get("/api/phones/A/twin").await["cpu"].is_null());
    admin.post("/api/phones/A/twin/start", json!({})).await;
    assert_eq!(still(&appliance).await, notes);
    appliance.shutdown().await;
}

/// Answers every command until `wanted` takes one, which it gives back; input and leases are done at once, and no root hash is told.
async fn answer_until<T>(stream: &mut Stream, mut wanted: impl FnMut(&wire::Command) -> Option<T>) -> (u64, T) {
    loop {
        let FromAppliance::Command(asked) = stream.next().await.expect("a command") else { panic!("no command") };
        if let Some(taken) = wanted(&asked) {
            return (asked.id, taken);
        }
        assert!(matches!(asked.command, Some(command::Command::Input(_) | command::Command::Lease(_) | command::Command::Root(_))), "{asked:?}");
        answer(stream, asked.id, None).await;
    }
}

async fn answer(stream: &Stream, id: u64, changes: Option<wire::ChangeStatus>) {
    let change = |status: wire::ChangeStatus| wire::ChangeResult { status: status.into(), ..Default::default() };
    let result = wire::CommandResult {
        command_id: id,
        status: wire::CommandStatus::Done.into(),
        changes: changes.into_iter().map(change).collect(),
        ..Default::default()
    };
    stream.send(FromPhone::Result(result)).await;
}

/// The one change of an Apply.
fn applied(asked: &wire::Command) -> Option<wire::AppliedChange> {
    match &asked.command {
        Some(command::Command::Apply(apply)) => Some(apply.changes[0].clone()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_leads_and_the_phone_follows() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let appliance = started(data.path(), StoreBackend::Memory).await;
    let admin = Client::admin(&appliance);
    for name in ["ann", "bob"] {
        admin.post("/api/users", json!({"name": name, "role": "helpdesk", "password": "long enough"})).await;
    }
    let login = async |name: &str| {
        let reply = admin.post("/api/login", json!({"user": name, "password": "long enough"})).await;
        admin.with_token(reply["token"].as_str().expect("token"))
    };
    let (ann, bob) = (login("ann").await, login("bob").await);
    let phone = phone(&appliance, ARM64).await;
    let mut stream = scanned(&phone).await;
    fed(&admin, "A", 1).await;
    let home = begun(&appliance).await;

    assert_eq!(ann.call("PUT", "/api/phones/A/drive", None).await.0, 200);
    assert_eq!(bob.call("PUT", "/api/phones/A/drive", None).await.0, 409);
    let tap = json!({"actions": [{"tap": {"x": NOTES.x, "y": NOTES.y}}]});
    assert_eq!(bob.call("POST", "/api/phones/A/drive/input", Some(tap.clone())).await.0, 409);
    assert_eq!(ann.call("POST", "/api/phones/A/drive/input", Some(tap)).await.0, 204);

    // The phone is told of the lease, then given the frames, which the twin is given as well.
    let (id, lease) = answer_until(&mut stream, |asked| match &asked.command {
        Some(command::Command::Lease(lease)) => Some(lease.clone()),
        _ => None,
    })
    .await;
    assert!(lease.on && lease.operator == "ann");
    answer(&stream, id, None).await;
    let (id, input) = answer_until(&mut stream, |asked| match &asked.command {
        Some(command::Command::Input(input)) => Some(input.clone()),
        _ => None,
    })
    .await;
    assert!(input.frames.iter().all(|frame| frame.x_max == 359 && frame.y_max == 719));
    answer(&stream, id, None).await;
    assert_ne!(still(&appliance).await, home);

    // What the twin writes and the phone does not do by itself, the phone is told.
    for action in [json!({"tap": {"x": NEW_NOTE.x, "y": NEW_NOTE.y}}), json!({"text": "hello"}), json!({"tap": {"x": BACK.x, "y": BACK.y}})] {
        let input = json!({"actions": [action]});
        assert_eq!(ann.call("POST", "/api/phones/A/drive/input", Some(input)).await.0, 204);
        still(&appliance).await;
    }
    let (id, change) = answer_until(&mut stream, |asked| applied(asked).filter(is_note)).await;
    let change = change.change.expect("a change");
    let Some(wire::file_change::Op::Put(put)) = change.op else { panic!("no put") };
    let hashes = put.chunks.iter().map(|chunk| chunk.hash.clone()).collect();
    stream.send(FromPhone::NeedChunks(wire::NeedChunks { hashes })).await;
    let FromAppliance::Chunks(chunks) = stream.next().await.expect("chunks") else { panic!("no chunks") };
    let (_, bytes) = chunking::unpack(&chunks.chunks[0]).expect("a chunk");
    assert!(bytes.starts_with(b"hello"), "{}", bytes.escape_ascii());
    answer(&stream, id, Some(wire::ChangeStatus::Conflict)).await;

    // The phone has something else there: it is read again, and the conflict is shown until dismissed.
    let (id, path) = answer_until(&mut stream, |asked| match &asked.command {
        Some(command::Command::Rescan(rescan)) => Some(rescan.path.clone()),
        _ => None,
    })
    .await;
    assert_eq!(path, change.path);
    answer(&stream, id, None).await;
    admin.phone_when("A", |view| view["conflicts"] == 1).await;
    let conflicts = admin.get("/api/phones/A/conflicts").await;
    let conflict = &conflicts["conflicts"][0];
    let version = format!("path={}&position={}", conflict["path"].as_str().expect("path"), conflict["our_position"]);
    let ours = admin.request("GET", &format!("/api/phones/A/files/content?{version}")).send().await.expect("answer");
    assert!(ours.bytes().await.expect("content").starts_with(b"hello"));
    let dismiss = format!("/api/phones/A/conflicts/{}", conflict["id"]);
    assert_eq!(ann.call("DELETE", &dismiss, None).await.0, 204);
    assert_eq!(admin.get("/api/phones/A").await["conflicts"], 0);

    assert_eq!(ann.call("DELETE", "/api/phones/A/drive", None).await.0, 204);
    admin.phone_when("A", |view| view["lease"].is_null()).await;
    answer_until(&mut stream, |asked| match &asked.command {
        Some(command::Command::Lease(lease)) if !lease.on => Some(()),
        _ => None,
    })
    .await;
    assert_eq!(bob.call("PUT", "/api/phones/A/drive", None).await.0, 200);
    appliance.shutdown().await;
}

fn is_note(change: &wire::AppliedChange) -> bool {
    let path = change.change.as_ref().map(|change| change.path.as_slice()).unwrap_or_default();
    path.starts_with(b"/home/user/Notes/") && path.ends_with(b".txt")
}

/// A copy of a running twin is another machine with the same past: what is done on it stays there, and the twin goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_twin_is_forked_and_goes_on() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let appliance = started(data.path(), StoreBackend::Memory).await;
    let admin = Client::admin(&appliance);
    assert_eq!(admin.call("POST", "/api/phones/A/twin/forks", Some(json!({}))).await.0, 404);
    let phone = phone(&appliance, ARM64).await;
    let mut stream = scanned(&phone).await;
    fed(&admin, "A", 1).await;
    let home = begun(&appliance).await;

    let fork = admin.post("/api/phones/A/twin/forks", json!({})).await;
    assert_eq!((&fork["number"], &fork["position"]), (&json!(1), &json!(1)));
    let id = appliance.services.phones.find("A").expect("phone").id;
    let its = appliance.services.twins.a_fork(&id, 1).expect("a fork").running.control;
    assert_eq!(still_of(&its).await, home);
    for frame in [input::touch_down(NOTES, 1), input::touch_up()] {
        its.input(&frame).await.expect("input");
    }
    let notes = still_of(&its).await;
    assert_ne!(notes, home, "the copy answers");
    assert_eq!(still(&appliance).await, home, "the twin does not");
    // The twin is fed on, and comes to the same by itself.
    stream.send_events(notes_opened(2)).await;
    assert_eq!(stream.acked().await, 3);
    fed(&admin, "A", 3).await;
    assert_eq!(still(&appliance).await, notes);

    // It outlives its twin's machine, and what is asked of one that is not there is an error.
    admin.post("/api/phones/A/twin/park", json!({})).await;
    assert_eq!(still_of(&its).await, notes);
    let shown = admin.get("/api/phones/A/twin").await;
    assert_eq!((&shown["state"], &shown["forks"][0]["number"]), (&json!("parked"), &json!(1)));
    assert_eq!(admin.call("POST", "/api/phones/A/twin/forks", Some(json!({}))).await.0, 503, "a parked twin has nothing to copy");
    assert_eq!(admin.call("DELETE", "/api/phones/A/twin/forks/9", None).await.0, 404);
    let picture = admin.request("GET", "/api/phones/A/twin/forks/1/screen.png").send().await.expect("answer");
    assert!(picture.bytes().await.expect("PNG").starts_with(b"\x89PNG"));
    assert_eq!(admin.call("DELETE", "/api/phones/A/twin/forks/1", None).await.0, 204);
    its.gone().await;
    admin.phone_when("A", |view| view["twin"]["forks"] == json!([])).await;

    // One begins at any position of the log, with the files of then, whether or not its twin runs.
    let put = |path: &str, content| {
        let node = Node { mode: 0o755, uid: 1000, gid: 1000, mtime_ns: 0, content };
        Kind::File(FileChange { path: PhonePath::new(path).expect("path"), op: FileOp::Put(node) })
    };
    let note = Content::Regular { size: 0, chunks: Vec::new() };
    stream.send_events(vec![event(4, put("/home/user/Notes", Content::Directory)), event(5, put("/home/user/Notes/a note.txt", note))]).await;
    assert_eq!(stream.acked().await, 5);
    let mut shown = Vec::new();
    for position in [3, 5] {
        let fork = admin.post("/api/phones/A/twin/forks", json!({"position": position})).await;
        assert_eq!(fork["position"], position);
        let number = fork["number"].as_u64().expect("a number") as u32;
        let its = appliance.services.twins.a_fork(&id, number).expect("a fork").running.control;
        handset_shown(&its).await;
        assert_eq!(still_of(&its).await, home);
        for frame in [input::touch_down(NOTES, 1), input::touch_up()] {
            its.input(&frame).await.expect("input");
        }
        shown.push(still_of(&its).await);
        assert_eq!(admin.call("DELETE", &format!("/api/phones/A/twin/forks/{number}"), None).await.0, 204);
        its.gone().await;
    }
    assert_eq!(shown[0], notes);
    assert_ne!(shown[1], notes, "the note is there");
    assert_eq!(admin.call("POST", "/api/phones/A/twin/forks", Some(json!({"position": 6}))).await.0, 404);

    // No more at a time than may be, and none is left behind.
    admin.post("/api/phones/A/twin/start", json!({})).await;
    for _ in 0..4 {
        admin.post("/api/phones/A/twin/forks", json!({})).await;
    }
    assert_eq!(admin.call("POST", "/api/phones/A/twin/forks", Some(json!({}))).await.0, 409);
    let runtime = data.path().join("run");
    appliance.shutdown().await;
    let left: Vec<_> = walk(&runtime);
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// All that is in a folder, if that is there.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { [vec![path.clone()], walk(&path)].concat() } else { vec![path] }).collect()
}

/// As many run as may: one that nobody uses makes room for the one that a person asks for, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_used_twin_makes_room_for_one_that_is_asked_for() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    let data = tempfile::tempdir().expect("folder");
    let mut config = config(data.path(), StoreBackend::Memory);
    config.images = image_folder_default();
    config.twins.running_max = 1;
    let appliance = Appliance::start(config).await.expect("started");
    let admin = Client::admin(&appliance);
    let mut streams = Vec::new();
    for serial in ["A", "B"] {
        let mut phone = stranger(&appliance, serial);
        phone.image = ARM64.into();
        assert!(phone.register(&admin.new_code().await).await.expect("registered"));
        streams.push(scanned(&phone).await);
        if serial == "A" {
            fed(&admin, "A", 1).await;
        }
    }
    // What starts by itself pushes nobody out.
    admin.phone_when("B", |view| view["twin"]["detail"].as_str().is_some_and(|detail| detail.contains("as many as may"))).await;
    assert!(alive(&admin.get("/api/phones/A/twin").await));
    admin.post("/api/phones/B/twin/start", json!({})).await;
    assert!(alive(&admin.get("/api/phones/B/twin").await));
    let parked = admin.get("/api/phones/A/twin").await;
    assert_eq!(parked["state"], "parked");
    assert!(parked["detail"].as_str().expect("detail").contains("nobody had used it"), "{parked}");

    // Not while somebody has the lead of the one that runs.
    assert_eq!(admin.call("PUT", "/api/phones/B/drive", None).await.0, 200);
    let (status, error) = admin.call("POST", "/api/phones/A/twin/start", Some(json!({}))).await;
    assert_eq!(status, 409, "{error}");
    assert!(alive(&admin.get("/api/phones/B/twin").await));
    assert_eq!(admin.call("DELETE", "/api/phones/B/drive", None).await.0, 204);
    admin.phone_when("B", |view| view["lease"].is_null()).await;
    admin.post("/api/phones/A/twin/start", json!({})).await;
    assert_eq!(admin.get("/api/phones/B/twin").await["state"], "parked");
    appliance.shutdown().await;
}

/// A minute of a user's, told at once: the twin lives through its pauses in its own time, and comes to the same picture as one that was
/// there when it happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_catches_up_through_its_phones_pauses() {
    if let Some(lacking) = lacking(ARM64) {
        eprintln!("skipped: {lacking}");
        return;
    }
    const SECOND_US: i64 = 1_000_000;
    const SPAN_US: i64 = 60 * SECOND_US;
    let data = tempfile::tempdir().expect("folder");
    let appliance = started(data.path(), StoreBackend::Memory).await;
    let admin = Client::admin(&appliance);
    let phone = phone(&appliance, ARM64).await;
    let (mut stream, _) = phone.stream(1, 100).await;
    let now_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_micros() as i64;
    let began_us = now_us - SPAN_US - SECOND_US;
    let at = |mut event: Event, us: i64| {
        (event.wall_us, event.mono_us) = (began_us + us, us as u64);
        event
    };
    let started = control(1, ControlKind::Started, "pollux-agent test, boot 0123456789");
    let mut events = vec![at(started, 0), at(control(2, ControlKind::ScanDone, ""), 0)];
    let mut frames = vec![(20, input::touch_down(NOTES, 1)), (20, input::touch_up()), (40, input::touch_down(NEW_NOTE, 2)), (40, input::touch_up())];
    for (second, code) in [(45, 35), (50, 23)] {
        frames.extend([(second, input::key(code, true)), (second, input::key(code, false))]);
    }
    frames.extend([(60, input::touch_down(BACK, 3)), (60, input::touch_up())]);
    for (i, (second, frame)) in frames.into_iter().enumerate() {
        events.push(at(event(3 + i as u64, on_screen(frame)), second * SECOND_US + 80_000 * (i as i64 % 2)));
    }
    let last = events.len() as u64;
    stream.send_events(events).await;
    while stream.acked().await < last {}
    fed(&admin, "A", last).await;
    let shown = still(&appliance).await;
    let id = appliance.services.phones.find("A").expect("phone").id;
    let clock = async || {
        let status = appliance.services.twins.control(&id).expect("the twin runs").status().await.expect("status");
        let guest_us = status.guest_us.expect("a clock");
        (guest_us as i64, (status.guest_uptime_ms * 1000) as i64)
    };
    let (guest_us, run_us) = clock().await;
    assert!(guest_us >= SPAN_US, "the guest has lived through {guest_us} us");
    assert!(guest_us > run_us + SPAN_US / 4, "of {guest_us} us it has run for {run_us}: nothing was passed over");

    // Parked and resumed, its clock has stood still.
    admin.post("/api/phones/A/twin/park", json!({})).await;
    admin.post("/api/phones/A/twin/start", json!({})).await;
    assert_eq!(still(&appliance).await, shown);
    let (again_us, _) = clock().await;
    assert!(again_us >= guest_us && again_us < guest_us + SPAN_US, "{again_us} us after {guest_us}");
    appliance.shutdown().await;
}
