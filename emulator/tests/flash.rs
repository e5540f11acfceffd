//! `pollux-twin` with the reference phone on a flash that the appliance's file server serves.

mod process;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;

use flash::{Flashes, TwinView, fuse};
use serde_json::json;
use store::Store;

use process::{BACK, NOTES, PATIENCE, Twin, add_to_cmdline, image};

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

fn view() -> TwinView {
    let flashes = Flashes::new(Store::memory(), 16 << 20);
    let base = flashes.import_base(&image().base_tar()).unwrap();
    TwinView::new(flashes.open(&"phone-1".to_owned().try_into().unwrap(), Some(base)).unwrap())
}

#[test]
fn a_twin_lives_on_its_flash_and_is_restored_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("flash.sock");
    serve(&socket, view());
    let mut twin = Twin::start(dir.path(), |config| {
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
    twin.get(json!({"op": "save", "path": saved}));
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());

    // Its files are still attached: what it opens now it finds.
    let mut twin = Twin::start(dir.path(), |config| {
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

/// A machine saved at the gate has touched no flash yet: any phone's twin may begin with it.
#[test]
fn twins_begin_with_a_machine_saved_at_the_gate() {
    const GATE: &str = "org.pollux.gate";
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    let start = |phone: &str, restore: bool| {
        let folder = dir.path().join(phone);
        std::fs::create_dir(&folder).unwrap();
        let (flash, gate) = (folder.join("flash.sock"), folder.join("gate.sock"));
        serve(&flash, view());
        let listener = UnixListener::bind(&gate).unwrap();
        let twin = Twin::start(&folder, |config| {
            config["flash"] = json!({"tag": "flash", "socket": flash});
            config["ports"] = json!([{"name": GATE, "socket": gate}]);
            add_to_cmdline(config, "pollux.root=virtiofs:flash pollux.gate=1");
            if restore {
                config["restore"] = json!(base);
            }
        });
        (twin, listener)
    };
    let (mut twin, _listener) = start("base-maker", false);
    twin.get(json!({"op": "boot"}));
    let at_gate = twin.get(json!({"op": "port_wait", "name": GATE, "timeout_ms": PATIENCE.as_millis() as u64}));
    assert_eq!(at_gate["open"], true, "{}", twin.console());
    twin.get(json!({"op": "pause"}));
    twin.get(json!({"op": "save", "path": base}));
    twin.get(json!({"op": "stop"}));
    assert!(twin.ended().success());

    for phone in ["phone-1", "phone-2"] {
        let (mut twin, listener) = start(phone, true);
        let (mut gate, _) = listener.accept().unwrap();
        let before = twin.generation();
        twin.get(json!({"op": "resume"}));
        gate.write_all(b"go time=1900000000\n").unwrap();
        twin.changed_screen(before);
        twin.get(json!({"op": "stop"}));
        assert!(twin.ended().success());
    }
}
