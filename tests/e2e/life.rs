//! A phone enrols, is released, is used; its twin shows the same, its usage is reported, help desk fixes it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::appliance::{Appliance, wait_for};
use tests::demo::DemoPhone;
use tests::hand::{Handheld, same_screen};
use tests::targets::Targets;

fn started(appliance: &Appliance, serial: &str) -> Result<DemoPhone> {
    let phone = DemoPhone::start(appliance, serial, Some(&appliance.code(serial)?))?;
    appliance.in_mirror(serial)?;
    Ok(phone)
}

fn this_month(appliance: &Appliance, report: &str) -> Result<Vec<Value>> {
    let table = appliance.get(&format!("/api/reports/{report}?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z"))?;
    let names: Vec<&str> = table["columns"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    let rows = table["rows"].as_array().into_iter().flatten();
    Ok(rows.map(|row| names.iter().zip(row.as_array().into_iter().flatten()).map(|(n, v)| ((*n).to_owned(), v.clone())).collect::<serde_json::Map<_, _>>().into()).collect())
}

#[test]
fn a_phone_asks_is_released_and_used_and_its_twin_and_reports_follow() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let appliance = Appliance::start()?;
    let serial = "HS-0001";
    let mut phone = DemoPhone::start(&appliance, serial, None)?;

    // Nobody knows it: it waits, and leaves no trace but its registration.
    let waiting = appliance.registered(serial)?;
    ensure!(waiting["standing"] == "quarantined", "{waiting}");
    ensure!(waiting["sync"]["position"] == 0 && waiting["twin"]["state"] == "stopped", "{waiting}");
    ensure!(appliance.post(&format!("/api/phones/{serial}/twin/start"), json!({})).is_err(), "a quarantined phone has a twin");

    appliance.release(serial)?;
    let assignment = json!({"person": "Ada", "department": "Sales", "carrier": "Telekom"});
    appliance.put(&format!("/api/phones/{serial}/assignment"), assignment)?;
    appliance.in_mirror(serial)?;
    same_screen(&appliance, &mut phone)?;

    // Its user types a note,
    phone.tap_all(&at, "home.notes notes.new")?;
    phone.type_text("call ben about lisbon")?;
    phone.tap_all(&at, "nav.back")?;
    same_screen(&appliance, &mut phone)?;
    phone.tap_all(&at, "nav.home")?;
    // makes a call,
    phone.tap_all(&at, "home.phone phone.key.0 phone.key.1 phone.key.7 phone.key.1 phone.key.5 phone.call")?;
    phone.tap_all(&at, "call.hangup")?;
    phone.tap_all(&at, "nav.home")?;
    // and sends a message.
    phone.tap_all(&at, "home.messages messages.compose")?;
    phone.type_text("4915112345678\n")?;
    phone.type_text("see you at noon")?;
    phone.tap_all(&at, "conversation.send")?;
    same_screen(&appliance, &mut phone)?;

    appliance.proven_in_sync(serial)?;
    let note = appliance.first_note(serial)?;
    ensure!(note == "call ben about lisbon", "{note:?}");

    let calls = this_month(&appliance, "calls_by_person_and_carrier")?;
    ensure!(calls.len() == 1 && calls[0]["person"] == "Ada" && calls[0]["carrier"] == "Telekom", "{calls:?}");
    ensure!(calls[0]["made"] == 1, "{calls:?}");
    let messages = this_month(&appliance, "messages_by_person")?;
    ensure!(messages.len() == 1 && messages[0]["sent"] == 1, "{messages:?}");
    let records = appliance.get(
        "/api/reports/calls_by_person_and_carrier/records/calls?from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z&person=Ada&carrier=Telekom",
    )?;
    ensure!(records["rows"].as_array().is_some_and(|rows| rows.len() == 1), "{records}");

    drop(phone);
    appliance.stop()
}

#[test]
fn help_desk_mends_a_mail_setting_and_the_phone_has_it() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let appliance = Appliance::start()?;
    let serial = "HS-0002";
    let mut phone = started(&appliance, serial)?;
    same_screen(&appliance, &mut phone)?;

    let drive = format!("/api/phones/{serial}/drive");
    let input = format!("{drive}/input");
    let tap = |name: &str| -> Result<Value> { Ok(json!({"tap": {"x": at.x(name)?, "y": at.y(name)?}})) };
    ensure!(appliance.post(&input, json!({"actions": [tap("home.mail")?]})).is_err(), "input without the lead");
    appliance.put(&drive, json!({}))?;
    for action in [tap("home.mail")?, tap("mail.field.server")?, json!({"text": "imap.example.com"}), tap("mail.save")?] {
        let before = phone.generation()?;
        appliance.post(&input, json!({"actions": [action]}))?;
        // The same hand reaches the phone.
        phone.drawn_since(before)?;
    }
    same_screen(&appliance, &mut phone)?;
    let written = wait_for("the setting to be on the flash", || {
        Ok(appliance.content(serial, "/home/user/.config/pollux/mail.conf").ok())
    })?;
    ensure!(written.contains("imap.example.com"), "{written}");
    // The phone's own hash of its files agrees, so the phone has it.
    appliance.proven_in_sync(serial)?;
    appliance.delete(&drive)?;
    ensure!(appliance.get(&format!("/api/phones/{serial}/conflicts"))?["conflicts"] == json!([]));
    drop(phone);
    appliance.stop()
}

#[test]
fn a_phone_that_was_cut_off_converges() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let appliance = Appliance::start()?;
    let serial = "HS-0003";
    let mut phone = started(&appliance, serial)?;
    same_screen(&appliance, &mut phone)?;
    phone.tap_all(&at, "home.notes notes.new")?;
    phone.type_text("before the cut")?;

    // The appliance is killed while the phone streams; the phone is used on.
    let down = appliance.kill()?;
    phone.type_text(" and after it")?;
    phone.tap_all(&at, "nav.back")?;
    let appliance = down.start()?;

    appliance.in_mirror(serial)?;
    appliance.proven_in_sync(serial)?;
    let note = appliance.first_note(serial)?;
    ensure!(note == "before the cut and after it", "{note:?}");
    same_screen(&appliance, &mut phone)?;
    drop(phone);
    appliance.stop()
}

#[test]
fn a_killed_twin_comes_back_with_the_same_screen() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let appliance = Appliance::start()?;
    let serial = "HS-0004";
    let mut phone = started(&appliance, serial)?;
    phone.tap_all(&at, "home.settings")?;
    same_screen(&appliance, &mut phone)?;
    let twin = appliance.phone(serial)?["twin"]["pid"].as_u64().context("the twin is a process")?;
    ensure!(std::process::Command::new("kill").args(["-9", &twin.to_string()]).status()?.success());
    appliance.phone_when(serial, "its twin to run again", |phone| {
        phone["twin"]["restarts"].as_u64() > Some(0) && phone["twin"]["state"] == "running"
    })?;
    // Where the phone still is, and not where a twin begins.
    same_screen(&appliance, &mut phone)?;
    drop(phone);
    appliance.stop()
}
