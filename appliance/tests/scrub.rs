//! What decays in the appliance's own store is found, told, and sent again by the phone that has it.

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use pollux::app::Appliance;
use pollux::config::StoreBackend;
use serde_json::{Value, json};
use support::agent::with_storage;
use support::{Client, config, pollux};

const SERIAL: &str = "A";

/// Changes one byte of where `text` is stored.
fn rot(data: &Path, text: &[u8]) {
    let pack = data.join("store/blobs/pack-000001");
    let stored = std::fs::read(&pack).expect("a pack");
    let at = stored.windows(text.len()).position(|window| window == text).expect("it is stored as it is");
    let file = std::fs::OpenOptions::new().write(true).open(&pack).expect("opened");
    file.write_all_at(&[text[0] ^ 1], at as u64).expect("written");
}

/// Scrubs; gives the pass.
async fn scrub(admin: &Client) -> Value {
    let ended = |status: &Value| status["scrub"]["last"]["ended_at"].clone();
    let before = ended(&admin.get("/api/status").await);
    admin.post("/api/scrub", json!({})).await;
    let looking = async {
        loop {
            let status = admin.get("/api/status").await;
            if status["scrub"]["running"].is_null() && ended(&status) != before {
                return status["scrub"]["last"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, looking).await.expect("a pass")
}

#[test]
fn what_decays_in_the_store_is_sent_again_by_the_phone_that_has_it() {
    with_storage("what_decays_in_the_store_is_sent_again_by_the_phone_that_has_it", async |storage| {
        let data = tempfile::tempdir().expect("folder");
        let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started");
        let admin = Client::admin(&appliance);
        let (kept, gone) = ("contents that the phone still has", "contents that the phone has no more");
        storage.write("kept", kept);
        storage.write("gone", gone);
        storage.write("other", "never touched");
        let agent = storage.start(&appliance, SERIAL, Some(admin.new_code().await)).await;
        storage.write("gone", "written over");
        assert_eq!(admin.verify(SERIAL, true, true).await["equal"], true);
        let clean = scrub(&admin).await;
        assert_eq!((&clean["damaged"], &clean["asked"], &clean["lost"]), (&json!(0), &json!(0), &json!(0)), "{clean}");
        assert!(clean["blobs"].as_u64() >= Some(4), "{clean}");

        rot(data.path(), kept.as_bytes());
        rot(data.path(), gone.as_bytes());
        let pass = scrub(&admin).await;
        assert_eq!((&pass["damaged"], &pass["asked"], &pass["lost"]), (&json!(2), &json!(1), &json!(1)), "{pass}");
        let path = storage.path("kept").to_str().expect("plain").to_owned();
        assert_eq!(pass["files"][0]["path"], path);
        assert!(admin.log_of(SERIAL, "control").await.iter().any(|text| text.starts_with("store rotten: ") && text.contains("/kept")));

        // The phone carries out one command after the other: by the proof it has sent the file.
        assert_eq!(admin.verify(SERIAL, false, true).await["equal"], true);
        let again = scrub(&admin).await;
        assert_eq!((&again["damaged"], &again["asked"], &again["lost"]), (&json!(1), &json!(0), &json!(1)), "{again}");
        agent.stop().await;
        appliance.shutdown().await;

        // Nothing in memory: what is read is what is stored.
        let appliance = Appliance::start(config(data.path(), StoreBackend::Sled)).await.expect("started again");
        let admin = Client::admin(&appliance);
        let at = format!("/api/phones/{SERIAL}/files/content?path={path}");
        let got = admin.request("GET", &at).send().await.expect("answer").bytes().await.expect("content");
        assert_eq!(got, kept);
        let told = pollux(&["health"], data.path()).await.expect("well");
        assert!(told.contains("phones are heard") && told.contains("last scrub ended"), "{told}");
        appliance.shutdown().await;
    });
}
