//! The on-screen keyboard: four rows, a page of signs, and layouts for English, German and Russian.

use super::builder::{Align, Ui};
use super::{Action, Key};
use crate::draw::icons::Icon;
use crate::draw::theme;
use crate::geometry::{Rect, rect};

const ROW: i32 = 50;
/// Height of the whole keyboard.
pub const HEIGHT: i32 = 4 * ROW + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    Char(char),
    Shift,
    /// Letters or signs.
    Page,
    /// The next language.
    Language,
    Backspace,
    Space,
    Enter,
}

struct Layout {
    label: &'static str,
    rows: [&'static str; 3],
}

const LAYOUTS: [Layout; 3] = [
    Layout {
        label: "English",
        rows: ["qwertyuiop", "asdfghjkl", "zxcvbnm"],
    },
    Layout {
        label: "Deutsch",
        rows: ["qwertzuiopü", "asdfghjklöä", "yxcvbnmß"],
    },
    Layout {
        label: "Русский",
        rows: ["йцукенгшщзх", "фывапролджэ", "ячсмитьбю"],
    },
];
const SIGNS: [&str; 3] = ["1234567890", "@#€_&-+()/", "=*\"':;!?"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyboard {
    shifted: bool,
    signs: bool,
    layout: usize,
}

impl Keyboard {
    /// Applies a cap; gives the key it types, if it types one.
    pub fn press(&mut self, cap: Cap) -> Option<Key> {
        match cap {
            Cap::Char(c) => {
                self.shifted = false;
                return Some(Key::Char(c));
            }
            Cap::Shift => self.shifted = !self.shifted,
            Cap::Page => {
                self.signs = !self.signs;
                self.shifted = false;
            }
            Cap::Language => self.layout = (self.layout + 1) % LAYOUTS.len(),
            Cap::Backspace => return Some(Key::Backspace),
            Cap::Space => return Some(Key::Char(' ')),
            Cap::Enter => return Some(Key::Enter),
        }
        None
    }

    /// Back to lower-case letters, for the next field.
    pub fn reset(&mut self) {
        self.shifted = false;
        self.signs = false;
    }

    pub fn draw(&self, ui: &mut Ui<'_>, area: Rect) {
        ui.fill(area, theme::KEYBOARD);
        let rows = if self.signs {
            SIGNS
        } else {
            LAYOUTS[self.layout].rows
        };
        let widest = rows
            .iter()
            .map(|row| row.chars().count() as i32)
            .max()
            .unwrap_or(10)
            .max(10);
        // Letter keys share the width in sixteenths of a dp, so that rounding does not add up.
        let unit = (area.w - 8) * 16 / widest;
        for (index, row) in rows.iter().enumerate() {
            let y = area.y + 4 + index as i32 * ROW;
            let count = row.chars().count() as i32;
            let mut x = area.x * 16 + (area.w * 16 - count * unit) / 2;
            if index == 2 {
                let side = (area.w * 16 - count * unit) / 2 - 4 * 16;
                let left = key_area(area.x * 16 + 4 * 16, side, y);
                let right = key_area(x + count * unit, side, y);
                if self.signs {
                    self.letter(ui, left, '%');
                } else {
                    let icon = if self.shifted {
                        Icon::ShiftOn
                    } else {
                        Icon::Shift
                    };
                    self.special(ui, left, Cap::Shift, icon, "shift");
                }
                self.special(ui, right, Cap::Backspace, Icon::Backspace, "backspace");
            }
            for c in row.chars() {
                let c = if self.shifted { upper(c) } else { c };
                self.letter(ui, key_area(x, unit, y), c);
                x += unit;
            }
        }
        self.bottom_row(ui, area);
    }

    fn bottom_row(&self, ui: &mut Ui<'_>, area: Rect) {
        let y = area.y + 4 + 3 * ROW;
        let at = |from: i32, to: i32| {
            let w = area.w - 8;
            key_area(
                (area.x + 4 + w * from / 100) * 16,
                w * (to - from) / 100 * 16,
                y,
            )
        };
        let page = if self.signs { "ABC" } else { "?123" };
        self.word(ui, at(0, 14), Cap::Page, page, "page");
        self.special(ui, at(14, 26), Cap::Language, Icon::Globe, "language");
        self.letter(ui, at(26, 36), ',');
        self.word(
            ui,
            at(36, 73),
            Cap::Space,
            LAYOUTS[self.layout].label,
            "space",
        );
        self.letter(ui, at(73, 83), '.');
        self.special(ui, at(83, 100), Cap::Enter, Icon::Enter, "enter");
    }

    fn letter(&self, ui: &mut Ui<'_>, area: Rect, c: char) {
        let action = Action::Type(Cap::Char(c));
        let pressed = ui.is_pressed(&action);
        let cap = area.inset(2, 4);
        ui.round(rect(cap.x, cap.y + 1, cap.w, cap.h), 7, theme::KEY_EDGE);
        ui.round(
            cap,
            7,
            if pressed {
                theme::KEY_PRESSED
            } else {
                theme::SURFACE
            },
        );
        let mut text = [0; 4];
        ui.text(
            cap,
            Align::Center,
            theme::KEYCAP,
            theme::TEXT,
            c.encode_utf8(&mut text),
        );
        ui.target(&format!("key.{c}"), area, action);
    }

    fn special(&self, ui: &mut Ui<'_>, area: Rect, cap: Cap, icon: Icon, name: &str) {
        let color = if self.back(ui, area, cap, name) {
            theme::ON_COLOR
        } else {
            theme::TEXT
        };
        ui.icon(area.center(), 21, icon, color);
    }

    fn word(&self, ui: &mut Ui<'_>, area: Rect, cap: Cap, label: &str, name: &str) {
        let color = if self.back(ui, area, cap, name) {
            theme::ON_COLOR
        } else {
            theme::TEXT_SECONDARY
        };
        ui.text(area.inset(2, 4), Align::Center, theme::LABEL, color, label);
    }

    /// A cap's background; says whether it is a coloured one.
    fn back(&self, ui: &mut Ui<'_>, area: Rect, cap: Cap, name: &str) -> bool {
        let action = Action::Type(cap);
        let pressed = ui.is_pressed(&action);
        let (normal, held) = match cap {
            Cap::Enter => (theme::PRIMARY, theme::PRIMARY_PRESSED),
            Cap::Space => (theme::SURFACE, theme::KEY_PRESSED),
            _ => (theme::KEY_SPECIAL, theme::KEY_PRESSED),
        };
        let face = area.inset(2, 4);
        ui.round(rect(face.x, face.y + 1, face.w, face.h), 7, theme::KEY_EDGE);
        ui.round(face, 7, if pressed { held } else { normal });
        ui.target(&format!("key.{name}"), area, action);
        cap == Cap::Enter
    }
}

fn upper(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(single), None) => single,
        // ß has no single capital in this sense.
        _ => c,
    }
}

/// A key's touch area, from sixteenths of a dp.
fn key_area(x16: i32, w16: i32, y: i32) -> Rect {
    let left = x16 / 16;
    rect(left, y, (x16 + w16) / 16 - left, ROW)
}
