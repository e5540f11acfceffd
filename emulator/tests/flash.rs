//! `pollux-twin` with the reference phone on a flash that the appliance's file server serves.

mod process;

use std::os::unix::net::UnixListener;
use std::path::Path;

use flash::{Flashes, TwinView, fuse};
use serde_json::json;
use store::Store;

use process::{BACK, NOTES, Twin, add_to_cmdline, image};

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
