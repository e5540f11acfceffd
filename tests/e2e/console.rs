//! The console in Chromium, against a real appliance and a real phone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tests::appliance::Appliance;
use tests::demo::DemoPhone;
use tests::targets::Targets;

/// What the browser touches on the phone's and the twin's screens.
const TOUCHED: [&str; 10] = [
    "home.phone",
    "phone.key.0",
    "phone.key.1",
    "phone.key.7",
    "phone.call",
    "call.hangup",
    "nav.home",
    "home.notes",
    "notes.new",
    "nav.back",
];

#[test]
fn administrator_help_desk_and_manager_use_the_console_in_a_browser() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let places = TOUCHED.map(|name| Ok((name.to_owned(), json!(at.at(name)?))));
    let targets = Value::Object(places.into_iter().collect::<Result<Map<_, _>>>()?);
    let appliance = Appliance::start()?;
    let phone = DemoPhone::start(&appliance, "HS-0010", None)?;
    appliance.registered(&phone.serial)?;
    let password = appliance.first_password()?;
    let pictures = match std::env::var_os("POLLUX_PICTURES") {
        Some(folder) => folder.into(),
        None => appliance.data().join("pictures"),
    };
    std::fs::create_dir_all(&pictures)?;
    let console = Path::new(env!("CARGO_MANIFEST_DIR")).join("../appliance/console");
    let output = Command::new("node")
        .args(["e2e/console.mjs", &appliance.console(), "admin", &password, &phone.serial, &targets.to_string()])
        .arg(&pictures)
        .current_dir(console)
        .output()
        .context("node runs")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}{}\n{}", text(&output.stdout), text(&output.stderr), appliance.trace());
    drop(phone);
    appliance.stop()
}
