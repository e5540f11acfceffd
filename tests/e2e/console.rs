//! The console in Chromium, against a real appliance and a real phone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::appliance::Appliance;
use tests::demo::DemoPhone;

#[test]
fn an_administrator_releases_watches_and_drives_in_a_browser() -> Result<()> {
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
        .args(["e2e/console.mjs", &appliance.console(), "admin", &password, &phone.serial])
        .arg(&pictures)
        .current_dir(console)
        .output()
        .context("node runs")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}{}\n{}", text(&output.stdout), text(&output.stderr), appliance.trace());
    drop(phone);
    appliance.stop()
}
