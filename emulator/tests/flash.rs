//! `pollux-twin` with the reference phone on a flash that the appliance's file server serves.

mod process;

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use flash::{Flashes, TwinView, fuse};
use image_builder::Image;
use serde_json::json;
use store::Store;

use process::{AMD64, ARM64, BACK, NOTES, PATIENCE, Twin, add_to_cmdline, image};

/// Serves the view to whoever connects, for as long as the test runs.
fn serve(socket: &Path, view: TwinView) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, view) = (stream.unwrap(), view.clone());
            std::thread::spawn(move || fuse::serve(stream, view));
        }
    });
}

fn view(image: &Image) -> TwinView {
    let flashes = Flashes::new(Store::memory(), 16 << 20);
    let base = flashes.import_base(&image.base_tar()).unwrap();
    TwinView::new(flashes.open(&"phone-1".to_owned().try_into().unwrap(), Some(base)).unwrap())
}

#[test]
fn a_twin_lives_on_its_flash_and_is_restored_with_it() {
    lives_on_its_flash(&image(ARM64));
}

#[test]
fn an_x86_64_twin_lives_on_its_flash_and_is_restored_with_it() {
    lives_on_its_flash(&image(AMD64));
}

fn lives_on_its_flash(image: &Image) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("flash.sock");
    serve(&socket, view(image));
    let mut twin = Twin::start(dir.path(), image, |config| {
        config["flash"] = json!({"tag": "flash", "socket": socket});
        add_to_cmdline(config, "pollux.root=virtiofs:flash");
    });
    twin.get(json!({"op": "boot"}));
    let home = twin.changed_screen(0);
    let before = twin.generation();
    twin.tap(NOTES, 1);
    let notes = twin.changed_screen(before);
    assert_ne!(notes, home);

    twin.get(json!({"op": "pause"}));
    let saved = dir.path().join("saved");
    twin.save(&saved);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());

    // Its files are still attached: what it opens now it finds.
    let mut twin = Twin::start(dir.path(), image, |config| {
        config["flash"] = json!({"tag": "flash", "socket": socket});
        config["restore"] = json!(saved);
    });
    assert_eq!(twin.sha256(), notes);
    twin.get(json!({"op": "resume"}));
    let before = twin.generation();
    twin.tap(BACK, 2);
    let home_again = twin.changed_screen(before);
    assert_ne!(home_again, notes);
    let before = twin.generation();
    twin.tap(NOTES, 3);
    twin.changed_screen(before);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
}

const GATE: &str = "org.pollux.gate";
/// What a guest says of itself, in one line on its console; the words around it are typed in two parts, lest the echo is taken for them.
const WHO: &str = "echo I''AM $(cat /etc/machine-id /etc/hostname /proc/sys/kernel/hostname /run/identity/serial) \
    $(cat /sys/class/net/eth0/address /proc/sys/kernel/random/boot_id) $(head -c 24 /dev/urandom | base64) $(date +%s) E''ND\n";

/// Waits until the guest has printed `text`; gives all that it has printed.
fn console_until(twin: &mut Twin, text: &str) -> String {
    let start = Instant::now();
    loop {
        let tail = twin.get(json!({"op": "console"}))["tail"].as_str().unwrap().to_owned();
        if tail.contains(text) {
            return tail;
        }
        assert!(start.elapsed() < PATIENCE, "{text:?} is not printed:\n{tail}");
        // Nothing announces what is printed.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Types all of `text`, as fast as the guest's serial port takes it.
fn type_whole(twin: &mut Twin, text: &str) {
    let (start, mut left) = (Instant::now(), text);
    while !left.is_empty() {
        let taken = twin.get(json!({"op": "type", "text": left}))["taken"].as_u64().unwrap();
        left = &left[taken as usize..];
        assert!(start.elapsed() < PATIENCE, "the guest does not read {left:?}");
        // Nothing announces that it has read.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// The words of a clone's answer to [`WHO`].
fn who(twin: &mut Twin) -> Vec<String> {
    console_until(twin, ":~# ");
    type_whole(twin, WHO);
    let console = console_until(twin, " END");
    let answer = console.lines().find_map(|line| line.split_once("IAM ")).expect("an answer").1;
    answer.split_ascii_whitespace().map(str::to_owned).collect()
}

/// A machine saved at the gate has touched no flash yet: any phone's twin may begin with it, and becomes who it is told to be.
/// `POLLUX_CLONES` says how many are made of it, if not a few.
#[test]
fn clones_of_a_machine_saved_at_the_gate_are_individuals() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let image = image(ARM64);
    let start = |phone: &str, restore: bool| {
        let folder = dir.path().join(phone);
        std::fs::create_dir(&folder).unwrap();
        let [flash, gate, net] = ["flash.sock", "gate.sock", "net.sock"].map(|name| folder.join(name));
        serve(&flash, view(&image));
        let listeners = [&gate, &net].map(|socket| UnixListener::bind(socket).unwrap());
        let twin = Twin::start(&folder, &image, |config| {
            config["flash"] = json!({"tag": "flash", "socket": flash});
            config["ports"] = json!([{"name": GATE, "socket": gate}]);
            config["net"] = json!({"mac": "02:00:00:00:00:01", "socket": net});
            add_to_cmdline(config, "pollux.root=virtiofs:flash pollux.gate=1 pollux.shell=1");
            if restore {
                config["restore"] = json!(base);
                config["verify"] = json!(true);
            }
        });
        (twin, listeners)
    };
    let (mut twin, _listeners) = start("base-maker", false);
    twin.get(json!({"op": "boot"}));
    let at_gate = twin.get(json!({"op": "port_wait", "name": GATE, "timeout_ms": PATIENCE.as_millis() as u64}));
    assert_eq!(at_gate["open"], true, "{}", twin.console());
    twin.get(json!({"op": "pause"}));
    twin.save(&base);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());

    let clones = std::env::var("POLLUX_CLONES").map_or(4, |count| count.parse::<u16>().expect("a number of clones"));
    let mut seen = HashSet::new();
    for i in 1..=clones {
        let (mut twin, [gate, _net]) = start(&format!("phone-{i}"), true);
        let (mut gate, _) = gate.accept().unwrap();
        let before = twin.generation();
        twin.get(json!({"op": "resume"}));
        let (machine, host, serial, mac) = (format!("{i:032x}"), format!("twin-{i}"), format!("S{i}"), format!("02:00:00:01:{:02x}:{:02x}", i >> 8, i & 0xff));
        let seed = format!("{i:04x}").repeat(32);
        let line = format!("go seed={seed} time=1900000000.5 host={host} machine={machine} serial={serial} mac={mac}\n");
        gate.write_all(line.as_bytes()).unwrap();
        twin.changed_screen(before);
        let said = who(&mut twin);
        assert_eq!(said[..5], [machine, host.clone(), host, serial, mac]);
        let [boot_id, random, time, end] = &said[5..] else { panic!("{said:?}") };
        assert_eq!((boot_id.len(), random.len(), end.as_str()), (36, 32, "END"));
        assert!(seen.insert(boot_id.clone()) && seen.insert(random.clone()), "random numbers repeat: {said:?}");
        assert!((1_900_000_000..1_900_000_000 + PATIENCE.as_secs()).contains(&time.parse().unwrap()), "{said:?}");
        // While it runs it may be told that it is another now.
        let other = format!("go seed={seed} host=fork-{i} machine={:032x}\n", 0xf_0000 + u32::from(i));
        gate.write_all(other.as_bytes()).unwrap();
        type_whole(&mut twin, "until grep -q fork /etc/machine-id /etc/hostname; do sleep 0.1; done; echo NO''W $(hostname) $(cat /etc/machine-id) E''ND\n");
        console_until(&mut twin, &format!("NOW fork-{i} {:032x} END", 0xf_0000 + u32::from(i)));
        twin.get(json!({"op": "stop"}));
        assert!(twin.ended().success());
    }
}

/// The guest's clock jumps from one of its timers to the next: what is due on the way happens at its own time.
#[test]
fn an_idle_hour_passes_at_once() {
    const SLEEP: &str = "read -r up _ </proc/uptime; sleep 1000; read -r woken _ </proc/uptime; echo SL''EPT $up $woken E''ND\n";
    let (dir, image) = (tempfile::tempdir().unwrap(), image(ARM64));
    let socket = dir.path().join("flash.sock");
    serve(&socket, view(&image));
    let mut twin = Twin::start(dir.path(), &image, |config| {
        config["flash"] = json!({"tag": "flash", "socket": socket});
        add_to_cmdline(config, "pollux.root=virtiofs:flash pollux.shell=1");
    });
    assert!(twin.ask(json!({"op": "pass", "until_us": 1, "timeout_ms": 1}))["error"].is_string(), "there is no guest yet");
    twin.get(json!({"op": "boot"}));
    twin.changed_screen(0);
    console_until(&mut twin, ":~# ");
    type_whole(&mut twin, SLEEP);
    let clock = |twin: &mut Twin| twin.get(json!({"op": "status"}))["guest_us"].as_u64().unwrap();
    let until = clock(&mut twin) + 3_600_000_000;
    let shown = twin.get(json!({"op": "pass", "until_us": until, "timeout_ms": PATIENCE.as_millis() as u64}))["guest_us"].as_u64().unwrap();
    assert!(shown >= until, "{shown} of {until} us");
    let console = console_until(&mut twin, " END");
    let answer = console.lines().find_map(|line| line.split_once("SLEPT ")).expect("an answer").1;
    let [up, woken] = [0, 1].map(|i| answer.split(' ').nth(i).unwrap().parse::<f64>().unwrap());
    assert!((1000.0..1500.0).contains(&(woken - up)), "slept {} s", woken - up);
    // Nobody asks any more: its time is ours.
    let uptime = twin.get(json!({"op": "status"}))["guest_uptime_ms"].as_u64().unwrap();
    assert!(clock(&mut twin) / 1000 >= uptime + 3_000_000, "an hour was passed over");
    // A clock that is further already is left alone; and it is kept with the machine.
    twin.get(json!({"op": "pass", "until_us": 0, "timeout_ms": 0}));
    twin.get(json!({"op": "pause"}));
    let stands = clock(&mut twin);
    let saved = dir.path().join("saved");
    twin.save(&saved);
    assert_eq!(clock(&mut twin), stands);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
    let mut twin = Twin::start(dir.path(), &image, |config| {
        config["flash"] = json!({"tag": "flash", "socket": socket});
        config["restore"] = json!(saved);
    });
    assert_eq!(clock(&mut twin), stands);
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());
}
