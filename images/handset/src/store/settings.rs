//! Settings: `key=value` lines. Lines and keys that the phone does not know are kept.

use std::path::PathBuf;

use super::{Result, Store, TEXT_BYTES_MAX, atomic, files};

pub const FOLDER: &str = ".config/pollux";
const WHAT: &str = "settings";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    Mail,
    Wifi,
}

impl Settings {
    pub const fn file(self) -> &'static str {
        match self {
            Settings::Mail => "mail.conf",
            Settings::Wifi => "wifi.conf",
        }
    }
}

/// One settings file's lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    lines: Vec<String>,
}

impl Values {
    /// The value of `key`, or an empty text.
    pub fn get(&self, key: &str) -> &str {
        self.lines
            .iter()
            .find_map(|line| value_of(line, key))
            .unwrap_or("")
    }

    /// Sets `key`; line breaks in the value become blanks.
    pub fn set(&mut self, key: &str, value: &str) {
        let line = format!("{key}={}", value.replace(['\n', '\r'], " "));
        match self
            .lines
            .iter_mut()
            .find(|line| value_of(line, key).is_some())
        {
            Some(old) => *old = line,
            None => self.lines.push(line),
        }
    }
}

fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once('=')?;
    // Blanks belong to a value (a password may end in one) unless the file is written "key = value".
    let value = if name.ends_with(' ') {
        value.strip_prefix(' ').unwrap_or(value)
    } else {
        value
    };
    (name.trim() == key).then_some(value)
}

impl Store {
    pub fn settings(&self, which: Settings) -> Result<Values> {
        let path = self.settings_path(which);
        if !path.exists() {
            return Ok(Values::default());
        }
        let text = files::read_text(&path, TEXT_BYTES_MAX, WHAT)?;
        Ok(Values {
            lines: text.lines().map(str::to_owned).collect(),
        })
    }

    /// Replaces the file. It holds passwords, so only its owner may read it.
    pub fn save_settings(&self, which: Settings, values: &Values) -> Result<()> {
        let mut text = values.lines.join("\n");
        text.push('\n');
        atomic::write(&self.settings_path(which), text.as_bytes(), 0o600, WHAT)
    }

    fn settings_path(&self, which: Settings) -> PathBuf {
        self.home.join(FOLDER).join(which.file())
    }
}
