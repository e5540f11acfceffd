//! The phone is no machine of ours: QEMU, a stranger in CPU, keyboard, tablet and screen; its twin shows the same all the same.

use anyhow::{Context, Result, ensure};
use tests::appliance::Appliance;
use tests::foreign::ForeignPhone;
use tests::hand::{Handheld, same_screen};
use tests::targets::Targets;

/// Frames of its user's input that have reached the appliance.
fn frames(appliance: &Appliance, serial: &str) -> Result<usize> {
    let log = appliance.get(&format!("/api/phones/{serial}/log?after=0&limit=1000"))?;
    let events = log["events"].as_array().with_context(|| format!("no events in {log}"))?;
    Ok(events.iter().filter(|event| event["kind"] == "mmi").count())
}

#[test]
fn a_foreign_phone_is_mirrored_pixel_for_pixel_and_survives_its_battery() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let appliance = Appliance::start()?;
    let serial = "QEMU-1";
    let mut phone = ForeignPhone::start(&appliance, serial, &appliance.code(serial)?)?;
    appliance.in_mirror(serial)?;
    same_screen(&appliance, &mut phone)?;

    // Its user types a note.
    phone.tap_all(&at, "home.notes notes.new")?;
    phone.type_text("typed on a stranger")?;
    phone.tap_all(&at, "nav.back")?;
    same_screen(&appliance, &mut phone)?;
    let proven = appliance.proven_in_sync(serial)?;
    ensure!(appliance.first_note(serial)? == "typed on a stranger");

    // Out of reach it is used on, and nothing of it arrives.
    let before = frames(&appliance, serial)?;
    phone.set_reach(false)?;
    let text = " and out of reach";
    phone.tap_all(&at, "notes.row.0")?;
    phone.type_text(text)?;
    phone.tap_all(&at, "nav.back")?;
    ensure!(frames(&appliance, serial)? == before, "the phone was not out of reach");

    // Its battery is pulled. It starts again, within reach, and so does its twin.
    let mut phone = phone.pull_battery()?;
    appliance.phone_when(serial, "its twin to start with it", |phone| {
        phone["connected"] == true && phone["twin"]["state"] == "running" && phone["twin"]["pid"] != proven["twin"]["pid"]
    })?;
    same_screen(&appliance, &mut phone)?;
    appliance.proven_in_sync(serial)?;
    ensure!(appliance.first_note(serial)? == format!("typed on a stranger{text}"));
    // Down and up of each key, and of the finger twice: none lost, none told twice.
    ensure!(frames(&appliance, serial)? == before + 2 * (text.len() + 2));

    // And its twin follows it as before.
    phone.tap_all(&at, "home.notes")?;
    same_screen(&appliance, &mut phone)?;
    drop(phone);
    appliance.stop()
}
