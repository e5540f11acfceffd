//! `pollux-twin` with the reference phone on a disk of its own.

mod process;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use image_builder::Image;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use process::{AMD64, ARM64, BACK, NOTES, PATIENCE, Twin, add_to_cmdline, image};

const NEW_NOTE: (u16, u16) = (316, 632);

/// A phone with its own disk.
fn with_disk(folder: &Path, image: &Image) -> impl FnOnce(&mut Value) {
    let disk = folder.join("disk");
    if !disk.exists() {
        image.copy_disk(&disk).unwrap();
    }
    move |config| {
        config["disks"] = json!([{"path": disk}]);
        add_to_cmdline(config, "pollux.root=/dev/vda");
    }
}

/// A VNC client that takes Raw only.
struct Viewer {
    stream: UnixStream,
    width: usize,
    pixels: Vec<u8>,
}

impl Viewer {
    fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
        stream.write_all(b"RFB 003.008\n").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.write_all(&[1]).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(&[1]).unwrap();
        let mut init = [0; 24];
        stream.read_exact(&mut init).unwrap();
        let side = |at: usize| usize::from(u16::from_be_bytes([init[at], init[at + 1]]));
        let mut name = vec![0; usize::from(init[23])];
        stream.read_exact(&mut name).unwrap();
        Self { stream, width: side(0), pixels: vec![0; side(0) * side(2) * 4] }
    }

    fn request(&mut self, incremental: bool) {
        self.stream.write_all(&[&[3, u8::from(incremental), 0, 0, 0, 0][..], &[0xff; 4]].concat()).unwrap();
    }

    fn pointer(&mut self, buttons: u8, (x, y): (u16, u16)) {
        let [x0, x1] = x.to_be_bytes();
        let [y0, y1] = y.to_be_bytes();
        self.stream.write_all(&[5, buttons, x0, x1, y0, y1]).unwrap();
    }

    /// Takes one update; returns how many pixels it had.
    fn update(&mut self) -> usize {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head).unwrap();
        let mut count = 0;
        for _ in 0..u16::from_be_bytes([head[2], head[3]]) {
            let mut rect = [0; 12];
            self.stream.read_exact(&mut rect).unwrap();
            let [x, y, width, height] = std::array::from_fn(|i| usize::from(u16::from_be_bytes([rect[2 * i], rect[2 * i + 1]])));
            assert_eq!(rect[8..], [0; 4], "Raw");
            for row in y..y + height {
                let start = (row * self.width + x) * 4;
                self.stream.read_exact(&mut self.pixels[start..start + width * 4]).unwrap();
            }
            count += width * height;
        }
        count
    }

    /// The digest that the control socket gives for the same picture.
    fn sha256(&self) -> String {
        let height = self.pixels.len() / 4 / self.width;
        let mut digest = Sha256::new();
        digest.update((self.width as u32).to_le_bytes());
        digest.update((height as u32).to_le_bytes());
        self.pixels.chunks(4).for_each(|p| digest.update([p[2], p[1], p[0]]));
        digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[test]
fn a_phone_boots_is_used_saved_and_restored() {
    let cpu = used_saved_and_restored(ARM64);
    assert_eq!(cpu, "arm64, emulated (cortex-a53)");
}

/// Whichever way this host runs it.
#[test]
fn an_x86_64_phone_boots_is_used_saved_and_restored() {
    let cpu = used_saved_and_restored(AMD64);
    let slow = ["KVM answers but", "/dev/kvm cannot be opened", "KVM lacks"].map(|why| cpu.starts_with("x86-64, emulated (slow): ") && cpu.contains(why));
    assert!(cpu == "x86-64, KVM" || slow.contains(&true), "{cpu}");
}

/// Says what it ran on.
fn used_saved_and_restored(phone: &str) -> String {
    let image = image(phone);
    let dir = tempfile::tempdir().unwrap();
    let mut twin = Twin::start(dir.path(), &image, with_disk(dir.path(), &image));
    let created = twin.get(json!({"op": "status"}));
    assert_eq!(created["state"], "created");
    let black = twin.sha256();
    twin.get(json!({"op": "boot"}));
    let home = twin.changed_screen(0);
    assert_ne!(home, black);
    assert!(twin.ask(json!({"op": "boot"}))["error"].as_str().unwrap().contains("the machine is running"));

    let before = twin.generation();
    twin.tap(NOTES, 1);
    let notes = twin.changed_screen(before);
    assert_ne!(notes, home);
    let before = twin.generation();
    twin.tap(NEW_NOTE, 2);
    let empty = twin.changed_screen(before);
    let before = twin.generation();
    // KEY_H and KEY_I, down and up.
    for [key, value] in [[35, 1], [35, 0], [23, 1], [23, 0]] {
        twin.get(json!({"op": "input", "device": "keyboard", "events": [[1, key, value]]}));
    }
    let typed = twin.changed_screen(before);
    assert!(empty != notes && typed != empty, "a note with what was typed");
    assert_eq!(twin.get(json!({"op": "input_drained"}))["drained"], true);

    twin.get(json!({"op": "pause"}));
    let paused = twin.get(json!({"op": "status"}));
    assert_eq!(paused["state"], "paused");
    // What is touched now, the phone feels when it goes on.
    let before = twin.generation();
    twin.tap(BACK, 3);
    assert_eq!(twin.get(json!({"op": "status"}))["guest_uptime_ms"], paused["guest_uptime_ms"]);
    assert_eq!(twin.sha256(), typed);
    let saved = dir.path().join("saved");
    twin.save(&saved);
    twin.get(json!({"op": "resume"}));
    twin.changed_screen(before);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());

    // Another process takes it up where it was saved, the finger still on its way.
    let mut twin = Twin::start(dir.path(), &image, |config| {
        with_disk(dir.path(), &image)(config);
        config["restore"] = json!(saved);
    });
    let restored = twin.get(json!({"op": "status"}));
    assert_eq!((&restored["state"], &restored["guest_uptime_ms"]), (&json!("paused"), &paused["guest_uptime_ms"]));
    assert_eq!(twin.sha256(), typed);
    let before = twin.generation();
    twin.get(json!({"op": "resume"}));
    let after = twin.changed_screen(before);
    assert_ne!(after, typed);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(twin.process.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(twin.ended().success());
    created["cpu"].as_str().unwrap().to_owned()
}

#[test]
fn a_viewer_sees_and_touches_the_phone() {
    let (dir, image) = (tempfile::tempdir().unwrap(), image(ARM64));
    let mut twin = Twin::start(dir.path(), &image, with_disk(dir.path(), &image));
    let mut viewer = Viewer::connect(&dir.path().join("rfb.sock"));
    twin.get(json!({"op": "boot"}));
    viewer.request(false);
    assert_eq!(viewer.update(), 360 * 720);
    let mut shown = twin.changed_screen(0);
    for (buttons, at) in [(0, (0, 0)), (1, NOTES), (0, NOTES), (1, BACK), (0, BACK)] {
        let before = twin.generation();
        viewer.pointer(buttons, at);
        if buttons == 0 && at != (0, 0) {
            shown = twin.changed_screen(before);
        }
        // Changes only, until what the viewer has is what the phone shows.
        while viewer.sha256() != shown && buttons == 0 {
            viewer.request(true);
            viewer.update();
        }
    }
    drop(viewer);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
}

/// The process in the cage: the only child of the one that was started.
fn caged(twin: &Twin) -> u32 {
    let id = twin.process.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    children.trim().parse().expect("one child")
}

fn status_of(process: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.into(), value.trim().into())).collect()
}

fn field(status: &[(String, String)], key: &str) -> String {
    status.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("no {key}")).1.clone()
}

/// The process that runs the guest, as the host's kernel sees it.
#[test]
fn a_running_phone_is_in_a_whole_cage() {
    if std::env::var_os("POLLUX_CAGE").is_some_and(|cage| cage == "partial") {
        eprintln!("SKIPPED: POLLUX_CAGE=partial says that this host does not permit a whole cage");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut twin = Twin::start(dir.path(), &image(ARM64), with_disk(dir.path(), &image(ARM64)));
    assert_eq!(twin.get(json!({"op": "status"}))["cage_lacks"], json!([]));
    twin.get(json!({"op": "boot"}));
    twin.changed_screen(0);
    let caged = caged(&twin);
    for kind in ["user", "mnt", "net", "pid", "ipc"] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
        assert_ne!(of(&caged.to_string()), of("self"), "its {kind} namespace is ours");
    }
    let mut lists = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{caged}/task")).unwrap() {
        let task = task.unwrap().file_name().into_string().unwrap();
        let status = status_of(&format!("{caged}/task/{task}"));
        for (key, value) in [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000")] {
            assert_eq!(field(&status, key), value, "{key} of {}", field(&status, "Name"));
        }
        lists.push((field(&status, "Name"), field(&status, "Seccomp_filters").parse::<u32>().unwrap()));
    }
    let of = |name: &str| lists.iter().find(|(task, _)| task == name).unwrap_or_else(|| panic!("no {name} in {lists:?}")).1;
    let first = of("pollux-twin");
    for shorter in ["vcpu", "vcpu-timer", "virtio-console", "rfb-accept"] {
        assert!(of(shorter) > first, "{shorter} has a shorter list: {lists:?}");
    }
    let root = format!("/proc/{caged}/root");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "its root is empty");
    assert!(std::fs::write(format!("{root}/file"), "").is_err(), "and stays so");
    let limits = std::fs::read_to_string(format!("/proc/{caged}/limits")).unwrap();
    assert!(limits.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().starts_with(&["Max", "core", "file", "size", "0", "0"])), "{limits}");
    // Whoever kills the one that was started kills the guest.
    twin.process.kill().unwrap();
    let status = twin.gone();
    assert!(!status.success());
    assert_eq!(std::fs::read_link(format!("/proc/{caged}/exe")).ok(), None, "the caged process is gone");
}

/// A caged process that dies takes its warden along, which tells of it and removes the sockets.
#[test]
fn the_warden_tells_how_the_caged_process_ended() {
    let dir = tempfile::tempdir().unwrap();
    let twin = Twin::start(dir.path(), &image(ARM64), |_| {});
    let caged = nix::unistd::Pid::from_raw(caged(&twin) as i32);
    nix::sys::signal::kill(caged, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(twin.ended().code(), Some(128 + 9));
}

#[test]
fn a_twin_runs_without_room_for_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let phone = image(ARM64);
    let disk = with_disk(dir.path(), &phone);
    let without_room = |config: &mut Value| {
        disk(config);
        config["console_log"] = json!("/dev/full");
    };
    let mut twin = Twin::start_with(dir.path(), &phone, without_room, |command| {
        command.env("RUST_LOG", "debug").stderr(std::fs::File::create("/dev/full").unwrap());
    });
    twin.get(json!({"op": "boot"}));
    twin.changed_screen(0);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
}

#[test]
fn a_kernel_panic_is_reported_with_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut twin = Twin::start(dir.path(), &image(ARM64), |config| {
        config["image"]["initramfs"] = Value::Null;
        config["image"]["cmdline"] = json!("console=ttyAMA0 loglevel=7 panic=-1 cryptomgr.notests=1 root=/dev/none");
    });
    twin.get(json!({"op": "boot"}));
    let event = twin.read();
    assert_eq!((&event["event"], &event["reason"]), (&json!("exit"), &json!("reset")));
    let detail = event["detail"].as_str().unwrap();
    assert!(detail.starts_with("the kernel panicked:\n"), "{detail}");
    assert!(detail.contains("Unable to mount root fs"), "{detail}");
    let status = twin.get(json!({"op": "status"}));
    assert_eq!((&status["state"], &status["reason"]), (&json!("stopped"), &json!("reset")));
    assert!(twin.console().contains("Unable to mount root fs"));
    assert!(twin.ask(json!({"op": "pause"}))["error"].as_str().unwrap().contains("asked for a reset"));
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
}

/// Either is right, on hosts with hardware virtualisation and without.
#[test]
fn whether_kvm_runs_guests_is_told_with_the_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_pollux-twin")).arg("--probe-kvm").output().unwrap();
    let (told, why) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    match output.status.success() {
        true => assert_eq!(told, "KVM runs guests on this host\n"),
        false => assert!(why.contains("KVM answers but cannot run") || why.contains("/dev/kvm cannot be opened"), "{why}"),
    }
}

#[test]
fn a_wrong_configuration_ends_the_process_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("twin.json");
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_pollux-twin")).arg("--config").arg(&path).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run().contains("cannot read configuration"));
    let config = |restore: Value| {
        json!({"image": {"kernel": "/k"}, "control_socket": dir.path().join("c"), "rfb_socket": dir.path().join("r"), "restore": restore})
    };
    let mut unknown = config(Value::Null);
    unknown["colour"] = json!("blue");
    std::fs::write(&path, unknown.to_string()).unwrap();
    assert!(run().contains("unknown field `colour`"));
    std::fs::write(dir.path().join("foreign"), vec![7; 10_000]).unwrap();
    std::fs::write(&path, config(json!(dir.path().join("foreign"))).to_string()).unwrap();
    assert!(run().contains("is not a saved machine"));
    std::fs::write(&path, config(Value::Null).to_string()).unwrap();
    assert!(run().contains("cannot read kernel /k"));
    assert!(!dir.path().join("c").exists() && !dir.path().join("r").exists());
}
