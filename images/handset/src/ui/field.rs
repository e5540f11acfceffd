//! Editable text with a cursor; the same for one-line fields and whole notes.

use super::Key;

/// Longer texts are not accepted from the keyboard.
const CHARS_MAX: usize = 100_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    text: String,
    /// Byte offset, always on a character boundary.
    cursor: usize,
    /// Whether the user changed it since it was last set.
    edited: bool,
}

impl Field {
    pub fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            cursor: text.len(),
            edited: false,
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn cursor(&self) -> usize {
        self.cursor
    }

    pub fn is_edited(&self) -> bool {
        self.edited
    }

    /// Replaces the text from outside; the cursor stays where it was, as far as the text reaches.
    pub fn set(&mut self, text: &str) {
        let mut cursor = if self.cursor == self.text.len() {
            text.len()
        } else {
            self.cursor.min(text.len())
        };
        while !text.is_char_boundary(cursor) {
            cursor -= 1;
        }
        *self = Self {
            text: text.to_owned(),
            cursor,
            edited: false,
        };
    }

    /// Replaces the text as an edit by the user.
    pub fn replace(&mut self, text: &str) {
        *self = Self {
            text: text.to_owned(),
            cursor: text.len(),
            edited: true,
        };
    }

    /// Takes the text as saved.
    pub fn settle(&mut self) {
        self.edited = false;
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn move_to(&mut self, offset: usize) {
        if self.text.is_char_boundary(offset) {
            self.cursor = offset;
        }
    }

    pub fn insert(&mut self, c: char) {
        if self.text.len() < CHARS_MAX {
            self.text.insert(self.cursor, c);
            self.cursor += c.len_utf8();
            self.edited = true;
        }
    }

    /// Applies an editing key; says whether it was one for a one-line field.
    pub fn key(&mut self, key: Key) -> bool {
        match key {
            Key::Char(c) => self.insert(c),
            Key::Backspace => {
                if let Some(c) = self.text[..self.cursor].chars().next_back() {
                    self.cursor -= c.len_utf8();
                    self.text.remove(self.cursor);
                    self.edited = true;
                }
            }
            Key::Delete => {
                if self.cursor < self.text.len() {
                    self.text.remove(self.cursor);
                    self.edited = true;
                }
            }
            Key::Left => {
                let c = self.text[..self.cursor].chars().next_back();
                self.cursor -= c.map_or(0, char::len_utf8);
            }
            Key::Right => {
                let c = self.text[self.cursor..].chars().next();
                self.cursor += c.map_or(0, char::len_utf8);
            }
            _ => return false,
        }
        true
    }
}
