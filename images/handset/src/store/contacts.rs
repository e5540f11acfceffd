//! Contacts as vCard files (versions 3.0 and 4.0; RFC 2426, RFC 6350), one or several to a file.
//!
//! Only names, telephone numbers and addresses are shown; every other line of an edited card is
//! kept as it was. New cards are version 3.0, in a file named after the contact.

use std::path::PathBuf;

use super::{ENTRIES_MAX, Result, Store, StoreError, TEXT_BYTES_MAX, atomic, files, same_number};

pub const FOLDER: &str = ".local/share/contacts";
const WHAT: &str = "contacts";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The file, and the card's place among those in it. `None` before it is first saved.
    pub place: Option<(PathBuf, usize)>,
    pub name: String,
    pub phone: String,
    pub email: String,
}

impl Store {
    /// All contacts, by name.
    pub fn contacts(&self) -> Result<Vec<Contact>> {
        let mut contacts = Vec::new();
        for path in files::with_extension(&self.home.join(FOLDER), "vcf", WHAT)? {
            let text = files::read_text(&path, TEXT_BYTES_MAX, WHAT)?;
            for (index, card) in cards(&text).into_iter().enumerate() {
                let mut contact = read_card(&card);
                contact.place = Some((path.clone(), index));
                contacts.push(contact);
            }
            if contacts.len() >= ENTRIES_MAX {
                break;
            }
        }
        contacts.sort_by_key(|c| (c.name.to_lowercase(), c.place.clone()));
        Ok(contacts)
    }

    /// Writes a contact, new or changed; gives it back with its place.
    pub fn save_contact(&self, contact: &Contact) -> Result<Contact> {
        let mut saved = contact.clone();
        let content = match &contact.place {
            Some((path, index)) => {
                let text = files::read_text(path, TEXT_BYTES_MAX, WHAT)?;
                replace_card(&text, *index, Some(contact))
            }
            None => {
                let card = write_card(contact, &[]);
                saved.place = Some((self.new_contact_path(&contact.name, &card), 0));
                card
            }
        };
        let Some((path, _)) = &saved.place else {
            return Ok(saved);
        };
        atomic::write(path, content.as_bytes(), 0o644, WHAT)?;
        Ok(saved)
    }

    pub fn delete_contact(&self, contact: &Contact) -> Result<()> {
        let Some((path, index)) = &contact.place else {
            return Ok(());
        };
        let text = files::read_text(path, TEXT_BYTES_MAX, WHAT)?;
        let rest = replace_card(&text, *index, None);
        if cards(&rest).is_empty() {
            return std::fs::remove_file(path).map_err(|source| StoreError::io(WHAT, source));
        }
        atomic::write(path, rest.as_bytes(), 0o644, WHAT)
    }

    /// A file name made of the contact's name, so that the same input gives the same file. A file
    /// that already holds just this card is taken as the same contact.
    fn new_contact_path(&self, name: &str, card: &str) -> PathBuf {
        let mut slug = String::new();
        for c in name.to_lowercase().chars().take(60) {
            if c.is_alphanumeric() {
                slug.push(c);
            } else if !slug.is_empty() && !slug.ends_with('-') {
                slug.push('-');
            }
        }
        let slug = slug.trim_end_matches('-');
        let slug = if slug.is_empty() { "contact" } else { slug };
        let folder = self.home.join(FOLDER);
        (1..=ENTRIES_MAX)
            .map(|n| {
                folder.join(if n == 1 {
                    format!("{slug}.vcf")
                } else {
                    format!("{slug}-{n}.vcf")
                })
            })
            .find(|path| {
                !path.exists() || std::fs::read(path).is_ok_and(|held| held == card.as_bytes())
            })
            .unwrap_or_else(|| folder.join("contact.vcf"))
    }
}

/// Who a number belongs to.
pub fn find_by_number<'a>(contacts: &'a [Contact], number: &str) -> Option<&'a Contact> {
    contacts.iter().find(|c| same_number(&c.phone, number))
}

/// A number's name in the contacts, else the number itself.
pub fn display_name(contacts: &[Contact], number: &str) -> String {
    find_by_number(contacts, number).map_or_else(|| number.to_owned(), |c| c.name.clone())
}

/// One logical line: its property name in capitals without group, its value, and its raw text.
struct Line {
    property: String,
    value: String,
    raw: String,
}

fn parse_line(raw: &str) -> Line {
    let (head, value) = raw.split_once(':').unwrap_or((raw, ""));
    let name = head.split(';').next().unwrap_or_default();
    let name = name.rsplit('.').next().unwrap_or_default();
    Line {
        property: name.to_ascii_uppercase(),
        value: value.to_owned(),
        raw: raw.to_owned(),
    }
}

/// Undoes line folding: a line that starts with a blank continues the one before.
fn unfold(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix([' ', '\t']), lines.last_mut()) {
            (Some(rest), Some(last)) => last.push_str(rest),
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

/// The lines between BEGIN:VCARD and END:VCARD of each card.
fn cards(text: &str) -> Vec<Vec<Line>> {
    let mut cards = Vec::new();
    let mut current: Option<Vec<Line>> = None;
    for raw in unfold(text) {
        let line = parse_line(&raw);
        match (
            line.property.as_str(),
            line.value.trim().eq_ignore_ascii_case("VCARD"),
        ) {
            ("BEGIN", true) => current = Some(Vec::new()),
            ("END", true) => cards.extend(current.take()),
            _ => {
                if let Some(card) = &mut current {
                    card.push(line);
                }
            }
        }
    }
    cards
}

fn read_card(card: &[Line]) -> Contact {
    let first = |property: &str| {
        let line = card
            .iter()
            .find(|line| line.property == property && !line.value.trim().is_empty());
        line.map(|line| unescape(line.value.trim()))
            .unwrap_or_default()
    };
    let mut name = first("FN");
    if name.is_empty() {
        // N is family;given;...
        let n = first("N");
        let mut parts = n.split(';');
        let (family, given) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        name = format!("{given} {family}").trim().to_owned();
    }
    let phone = first("TEL");
    let phone = phone.strip_prefix("tel:").unwrap_or(&phone).to_owned();
    Contact {
        place: None,
        name,
        phone,
        email: first("EMAIL"),
    }
}

/// The text with one card replaced, or taken out.
fn replace_card(text: &str, index: usize, contact: Option<&Contact>) -> String {
    let mut out = String::new();
    for (at, card) in cards(text).iter().enumerate() {
        match contact {
            Some(contact) if at == index => out.push_str(&write_card(contact, card)),
            None if at == index => {}
            _ => {
                out.push_str("BEGIN:VCARD\r\n");
                for line in card {
                    out.push_str(&line.raw);
                    out.push_str("\r\n");
                }
                out.push_str("END:VCARD\r\n");
            }
        }
    }
    out
}

fn write_card(contact: &Contact, before: &[Line]) -> String {
    let name = contact.name.trim();
    let (given, family) = name.rsplit_once(' ').unwrap_or((name, ""));
    let mut lines = vec![
        ("VERSION", "VERSION:3.0".to_owned()),
        ("FN", format!("FN:{}", escape(name))),
        ("N", format!("N:{};{};;;", escape(family), escape(given))),
    ];
    if !contact.phone.trim().is_empty() {
        lines.push((
            "TEL",
            format!("TEL;TYPE=CELL:{}", escape(contact.phone.trim())),
        ));
    }
    if !contact.email.trim().is_empty() {
        lines.push((
            "EMAIL",
            format!("EMAIL;TYPE=INTERNET:{}", escape(contact.email.trim())),
        ));
    }
    let unchanged = read_card(before);
    let mut out = String::from("BEGIN:VCARD\r\n");
    let mut seen: Vec<&str> = Vec::new();
    for line in before {
        let property = line.property.as_str();
        let shown = ["FN", "N", "TEL", "EMAIL"].contains(&property);
        // The first of each shown property is replaced when it was edited; others stay.
        let edited = match property {
            "FN" | "N" => unchanged.name != name,
            "TEL" => unchanged.phone != contact.phone.trim(),
            "EMAIL" => unchanged.email != contact.email.trim(),
            _ => false,
        };
        if shown && edited && !seen.contains(&property) {
            seen.push(property);
            if let Some((_, new)) = lines.iter().find(|(p, _)| *p == property) {
                out.push_str(new);
                out.push_str("\r\n");
            }
            continue;
        }
        seen.push(property);
        out.push_str(&line.raw);
        out.push_str("\r\n");
    }
    for (property, line) in &lines {
        if !seen.contains(property) {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    out.push_str("END:VCARD\r\n");
    out
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace(';', "\\;")
        .replace(',', "\\,")
        .replace('\n', "\\n")
}

fn unescape(value: &str) -> String {
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n' | 'N') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            _ => out.push(c),
        }
    }
    out
}
