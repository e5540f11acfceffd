//! A tour of every screen with sample data: `handset --render DIR` writes pictures of it,
//! `handset --targets` lists what can be touched on it.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, ensure};

use crate::bench_phone::BenchPhone;
use crate::draw::font::Fonts;

/// Renders all screens into `folder` as PNG files, at `scale` pixels per dp.
pub fn render(folder: &Path, fonts: &Path, scale: i32) -> Result<()> {
    fs::create_dir_all(folder)?;
    let home = folder.join("home");
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    tour(&home, fonts, scale, |phone, stop| {
        if let Some(name) = stop {
            let png = phone.png().map_err(|error| anyhow!(error))?;
            fs::write(folder.join(format!("{name}.png")), png).context("writing a picture")?;
        }
        Ok(())
    })
}

/// Name and middle, in dp, of every target met on the tour. Each is listed where it is met first.
pub fn targets(home: &Path, fonts: &Path) -> Result<Vec<(String, i32, i32)>> {
    let mut list: Vec<(String, i32, i32)> = Vec::new();
    tour(home, fonts, 1, |phone, _| {
        for target in phone.shell.targets() {
            if list.iter().all(|(name, _, _)| *name != target.name) {
                let (x, y) = target.area.center();
                list.push((target.name.clone(), x, y));
            }
        }
        Ok(())
    })?;
    Ok(list)
}

/// Walks through all screens on a phone whose user's folder is `home`, an empty or missing folder.
/// `visit` sees each step, and with it the picture's name where a picture is due.
pub fn tour(
    home: &Path,
    fonts: &Path,
    scale: i32,
    mut visit: impl FnMut(&BenchPhone, Option<&str>) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(home)?;
    sample(home)?;
    let fonts = Rc::new(Fonts::load(fonts, scale)?);
    let mut phone = BenchPhone::new(home, fonts, 360 * scale, 720 * scale);
    for (name, steps) in TOUR {
        for step in steps.split_ascii_whitespace() {
            match step.strip_prefix("type:") {
                Some(text) => phone.type_text(&text.replace('_', " ").replace('|', "\n")),
                None => ensure!(phone.tap(step), "{name}: no target {step}"),
            }
            visit(&phone, None)?;
        }
        visit(&phone, Some(name))?;
    }
    Ok(())
}

/// Each picture's name, and the taps (target names) and typing that lead there from the one before.
const TOUR: &[(&str, &str)] = &[
    ("01-home", ""),
    (
        "02-keypad",
        "home.phone phone.key.0 phone.key.1 phone.key.7 phone.key.1",
    ),
    (
        "03-call",
        "phone.key.2 phone.key.3 phone.key.4 phone.key.5 phone.key.6 phone.call call.speaker",
    ),
    ("04-recents", "call.hangup phone.tab.recents"),
    ("05-notes", "nav.home home.notes"),
    (
        "06-note",
        "notes.row.0 type:|Grüße_aus_Köln,_привет_из_Москвы!",
    ),
    ("07-messages-empty", "nav.home home.messages"),
    ("08-compose", "messages.compose type:an"),
    (
        "09-conversation",
        "compose.contact.0 type:Hello_Anna,_are_we_still_meeting_at_noon? conversation.send type:I_would_bring_the_papers_for_the_Lisbon_trip_and_the_contract. conversation.send type:See_you",
    ),
    ("10-messages", "nav.home home.messages"),
    ("11-contacts", "nav.home home.contacts"),
    ("12-contact", "contacts.row.0"),
    ("13-contact-edit", "contact.edit contact_form.field.phone"),
    ("14-settings", "nav.home home.settings"),
    ("15-mail", "settings.mail"),
    (
        "16-mail-typing",
        "mail.field.email_address type:user@example.com mail.field.server type:imap.example.com",
    ),
    (
        "17-wifi",
        "nav.home home.wifi wifi.field.network type:Office wifi.field.password type:secret",
    ),
    ("18-files", "wifi.save nav.home home.files"),
    ("19-notes-folder", "files.row.0"),
    ("20-viewer", "files.row.1"),
    ("21-about", "nav.home home.settings settings.about"),
    ("22-home-wifi", "nav.home"),
    (
        "23-cyrillic",
        "home.notes notes.new keyboard.key.language keyboard.key.language keyboard.key.shift",
    ),
    ("24-signs", "keyboard.key.page"),
];

fn sample(home: &Path) -> Result<()> {
    let contacts = home.join(crate::store::contacts::FOLDER);
    fs::create_dir_all(&contacts)?;
    for (file, name, phone, email) in [
        (
            "anna",
            "Anna Schmidt",
            "+49171234567",
            "anna.schmidt@example.com",
        ),
        (
            "ben",
            "Benjamin Okafor",
            "+4915112345678",
            "ben@example.com",
        ),
        ("olga", "Ольга Иванова", "+79161234567", "olga@example.ru"),
        ("chloe", "Chloé Dubois", "+33612345678", ""),
        ("desk", "Help desk", "+498001234567", "help@example.com"),
    ] {
        let email = if email.is_empty() {
            String::new()
        } else {
            format!("EMAIL:{email}\r\n")
        };
        let card = format!(
            "BEGIN:VCARD\r\nVERSION:3.0\r\nFN:{name}\r\nTEL;TYPE=CELL:{phone}\r\n{email}END:VCARD\r\n"
        );
        fs::write(contacts.join(format!("{file}.vcf")), card)?;
    }
    let notes = home.join("Notes");
    fs::create_dir_all(&notes)?;
    fs::write(
        notes.join("Note 1.txt"),
        "Shopping\nMilk, bread, coffee, two lemons\n",
    )?;
    fs::write(
        notes.join("Note 2.txt"),
        "Flight to Lisbon\nTuesday 07:35, gate B12, seat 14A\nHotel: Rua da Bica 20",
    )?;
    fs::write(
        notes.join("Note 3.txt"),
        "Заметки с встречи\nДоговорились о сроках: до 12 декабря",
    )?;
    Ok(())
}
