//! Settings: the list, mail account, Wi-Fi, and about. Each account form is one settings file.

use crate::draw::canvas::Color;
use crate::draw::icons::Icon;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::settings::{Settings as File, Values};
use crate::ui::builder::{Align, FIELD, FieldLook, Ui};
use crate::ui::field::Field;
use crate::ui::view::{Context, Go, View};
use crate::ui::{Action, Key};

const ENTRY: i32 = 72;

#[derive(Default)]
pub struct Settings {
    wifi: String,
    mail: String,
}

impl View for Settings {
    fn name(&self) -> &'static str {
        "settings"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.big_bar(body, "Settings");
        let or = |text: &str, other: &str| {
            if text.is_empty() {
                other.to_owned()
            } else {
                text.to_owned()
            }
        };
        let entries: [(&'static str, &str, String, Icon, Color); 3] = [
            (
                "wifi",
                "Wi-Fi",
                or(&self.wifi, "Not set up"),
                Icon::Wifi,
                theme::AVATARS[1],
            ),
            (
                "mail",
                "Mail account",
                or(&self.mail, "Not set up"),
                Icon::Mail,
                theme::AVATARS[5],
            ),
            (
                "about",
                "About this phone",
                "Pollux reference handset".to_owned(),
                Icon::Info,
                theme::AVATARS[0],
            ),
        ];
        let card = rect(
            MARGIN,
            rest.y + 4,
            body.w - 2 * MARGIN,
            ENTRY * entries.len() as i32,
        );
        ui.card(card);
        ui.scene.push_clip(card);
        for (index, (name, title, value, icon, color)) in entries.into_iter().enumerate() {
            let row = rect(card.x, card.y + index as i32 * ENTRY, card.w, ENTRY);
            let action = Action::Press(name);
            if ui.is_pressed(&action) {
                ui.round(row.inset(4, 4), 12, theme::SURFACE_PRESSED);
            }
            let tile = rect(row.x + 16, row.y + 16, 40, 40);
            ui.round(tile, 12, color);
            ui.icon(tile.center(), 22, icon, theme::ON_COLOR);
            let text = |dy: i32| rect(row.x + 70, row.y + dy, row.w - 70 - 40, 22);
            ui.text(
                text(14),
                Align::Left,
                theme::BODY_STRONG,
                theme::TEXT,
                title,
            );
            ui.text(
                text(36),
                Align::Left,
                theme::SECOND,
                theme::TEXT_SECONDARY,
                &value,
            );
            ui.icon(
                (row.right() - 24, row.y + ENTRY / 2),
                18,
                Icon::Chevron,
                theme::TEXT_FAINT,
            );
            if index > 0 {
                ui.divider(row.x + 70, row.y, row.w - 70);
            }
            ui.target(name, row, action);
        }
        ui.scene.pop_clip();
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("wifi") => Go::Push(Box::new(Form::wifi())),
            Action::Press("mail") => Go::Push(Box::new(Form::mail())),
            Action::Press("about") => Go::Push(Box::new(About::default())),
            _ => Go::Stay,
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let (wifi, mail) = (cx.store.settings(File::Wifi), cx.store.settings(File::Mail));
        self.wifi = cx.tell(wifi).unwrap_or_default().get("network").to_owned();
        self.mail = cx.tell(mail).unwrap_or_default().get("address").to_owned();
    }
}

/// How one value of a settings file is edited.
enum Kind {
    Text,
    Password,
    /// One of a few: stored value and label.
    Choice(&'static [(&'static str, &'static str)]),
}

struct Entry {
    key: &'static str,
    label: &'static str,
    kind: Kind,
    /// What a new account begins with.
    initial: &'static str,
}

const MAIL: [Entry; 8] = [
    Entry {
        key: "account",
        label: "Account name",
        kind: Kind::Text,
        initial: "",
    },
    Entry {
        key: "address",
        label: "Email address",
        kind: Kind::Text,
        initial: "",
    },
    Entry {
        key: "server",
        label: "Server",
        kind: Kind::Text,
        initial: "",
    },
    Entry {
        key: "port",
        label: "Port",
        kind: Kind::Text,
        initial: "993",
    },
    Entry {
        key: "security",
        label: "Security",
        kind: Kind::Choice(&[
            ("ssl", "SSL/TLS"),
            ("starttls", "STARTTLS"),
            ("none", "None"),
        ]),
        initial: "ssl",
    },
    Entry {
        key: "user",
        label: "User name",
        kind: Kind::Text,
        initial: "",
    },
    Entry {
        key: "password",
        label: "Password",
        kind: Kind::Password,
        initial: "",
    },
    Entry {
        key: "outgoing_server",
        label: "Outgoing server",
        kind: Kind::Text,
        initial: "",
    },
];

const WIFI: [Entry; 3] = [
    Entry {
        key: "network",
        label: "Network",
        kind: Kind::Text,
        initial: "",
    },
    Entry {
        key: "security",
        label: "Security",
        kind: Kind::Choice(&[("wpa3", "WPA3"), ("wpa2", "WPA2"), ("open", "Open")]),
        initial: "wpa2",
    },
    Entry {
        key: "password",
        label: "Password",
        kind: Kind::Password,
        initial: "",
    },
];

/// The form of a settings file.
pub struct Form {
    name: &'static str,
    title: &'static str,
    file: File,
    entries: &'static [Entry],
    fields: Vec<Field>,
    focused: Option<usize>,
    reveal: bool,
    loaded: bool,
    scrolled: i32,
}

impl Form {
    pub fn mail() -> Self {
        Self::new("mail", "Mail account", File::Mail, &MAIL)
    }

    pub fn wifi() -> Self {
        Self::new("wifi", "Wi-Fi", File::Wifi, &WIFI)
    }

    fn new(name: &'static str, title: &'static str, file: File, entries: &'static [Entry]) -> Self {
        let fields = entries.iter().map(|_| Field::default()).collect();
        Self {
            name,
            title,
            file,
            entries,
            fields,
            focused: None,
            reveal: false,
            loaded: false,
            scrolled: 0,
        }
    }

    fn area(body: Rect, top: i32, index: usize) -> Rect {
        rect(
            MARGIN,
            top + 4 + index as i32 * (FIELD + 6),
            body.w - 2 * MARGIN,
            FIELD,
        )
    }

    fn save(&mut self, cx: &mut Context<'_>) -> Go {
        if self.file == File::Mail {
            let port = self.entries.iter().position(|entry| entry.key == "port");
            let text = port.map_or("", |index| self.fields[index].text()).trim();
            if !text.is_empty() && !matches!(text.parse::<u16>(), Ok(1..)) {
                *cx.banner = Some("The port is a number from 1 to 65535.".to_owned());
                return Go::Stay;
            }
        }
        // Read again: others may have changed keys that this form does not show.
        let read = cx.store.settings(self.file);
        let Some(mut values) = cx.tell(read) else {
            return Go::Stay;
        };
        for (entry, field) in self.entries.iter().zip(&self.fields) {
            let value = if matches!(entry.kind, Kind::Password) {
                field.text()
            } else {
                field.text().trim()
            };
            values.set(entry.key, value);
        }
        let saved = cx.store.save_settings(self.file, &values);
        if cx.tell(saved).is_none() {
            return Go::Stay;
        }
        *cx.banner = None;
        Go::Back
    }

    fn draw_choice(
        &self,
        ui: &mut Ui<'_>,
        area: Rect,
        index: usize,
        options: &[(&'static str, &'static str)],
    ) {
        let entry = &self.entries[index];
        let label = rect(area.x + 14, area.y - 1, area.w - 28, 18);
        ui.text(
            label,
            Align::Left,
            theme::CAPTION,
            theme::TEXT_SECONDARY,
            entry.label,
        );
        let track = rect(area.x, area.y + 18, area.w, 44);
        ui.round(track, 12, theme::DIVIDER);
        let w = (track.w - 8) / options.len() as i32;
        for (at, (value, text)) in options.iter().enumerate() {
            let cell = rect(track.x + 4 + at as i32 * w, track.y + 4, w, track.h - 8);
            let action = Action::Pick(index * 10 + at);
            let chosen = self.fields[index].text() == *value;
            if chosen {
                ui.round(cell, 9, theme::SURFACE);
            } else if ui.is_pressed(&action) {
                ui.round(cell, 9, theme::SURFACE_PRESSED);
            }
            let ink = if chosen {
                theme::PRIMARY
            } else {
                theme::TEXT_SECONDARY
            };
            ui.text(cell, Align::Center, theme::LABEL, ink, text);
            ui.target(
                &format!("{}.{value}", entry.key),
                rect(cell.x, track.y, cell.w, track.h),
                action,
            );
        }
    }
}

impl View for Form {
    fn name(&self) -> &'static str {
        self.name
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(body, self.title);
        ui.bar_button(body, "save", "Save");
        let content = self.entries.len() as i32 * (FIELD + 6) + 20;
        let top = ui.begin_list(rest, content);
        for (index, entry) in self.entries.iter().enumerate() {
            let area = Self::area(body, top, index);
            let field = &self.fields[index];
            let look = FieldLook {
                focused: self.focused == Some(index),
                ..FieldLook::default()
            };
            match entry.kind {
                Kind::Text => ui.field(area, index, entry.label, field, look),
                Kind::Choice(options) => self.draw_choice(ui, area, index, options),
                Kind::Password => {
                    let look = FieldLook {
                        masked: !self.reveal,
                        trailing: 44,
                        ..look
                    };
                    ui.field(area, index, entry.label, field, look);
                    let eye = rect(area.right() - 52, area.y + 4, 48, 48);
                    let icon = if self.reveal { Icon::EyeOff } else { Icon::Eye };
                    ui.icon(eye.center(), 22, icon, theme::TEXT_SECONDARY);
                    ui.target("reveal", eye, Action::Press("reveal"));
                }
            }
        }
        ui.end_list();
    }

    fn focus(&mut self) -> Option<&mut Field> {
        self.fields.get_mut(self.focused?)
    }

    fn wants_keyboard(&self) -> bool {
        self.focused.is_some()
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("save") => return self.save(cx),
            Action::Press("reveal") => self.reveal = !self.reveal,
            Action::Focus(index) => self.focus_on(*index, cx),
            Action::Pick(number) => {
                let (index, at) = (number / 10, number % 10);
                if let Some(Kind::Choice(options)) =
                    self.entries.get(index).map(|entry| &entry.kind)
                    && let Some((value, _)) = options.get(at)
                {
                    self.fields[index].replace(value);
                }
            }
            _ => {}
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, cx: &mut Context<'_>) -> Go {
        let Some(focused) = self.focused else {
            return Go::Stay;
        };
        match key {
            Key::Tab | Key::Down | Key::Enter => {
                let next = (focused + 1..self.entries.len())
                    .find(|&index| !matches!(self.entries[index].kind, Kind::Choice(_)));
                match next {
                    Some(index) => self.focus_on(index, cx),
                    None => self.focused = None,
                }
            }
            // First puts the keyboard away.
            Key::Back => {
                self.focused = None;
                return Go::Keep;
            }
            _ => {}
        }
        Go::Stay
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let read = cx.store.settings(self.file);
        let Some(values) = cx.tell(read) else { return };
        let fresh = !self.loaded && values == Values::default();
        self.loaded = true;
        if values == Values::default() && !fresh {
            // The file is gone: what it said stays on screen.
            return;
        }
        for (entry, field) in self.entries.iter().zip(&mut self.fields) {
            let value = if fresh {
                entry.initial
            } else {
                values.get(entry.key)
            };
            // What the user changed and has not saved stays.
            if !field.is_edited() && field.text() != value {
                field.set(value);
            }
        }
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}

impl Form {
    /// Focuses a field and scrolls it into what the keyboard leaves free.
    fn focus_on(&mut self, index: usize, cx: &Context<'_>) {
        if index >= self.fields.len() {
            return;
        }
        let keyboard = if self.focused.is_none() {
            crate::ui::keyboard::HEIGHT
        } else {
            0
        };
        self.focused = Some(index);
        let place = Self::area(cx.body, 0, index);
        let room = cx.body.h - crate::ui::builder::BAR - keyboard;
        self.scrolled = self
            .scrolled
            .min(place.y - 4)
            .max(place.bottom() + 4 - room);
    }
}

#[derive(Default)]
struct About {
    contacts: usize,
    notes: usize,
}

impl View for About {
    fn name(&self) -> &'static str {
        "about"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(body, "About this phone");
        let lines = [
            ("Model", "Pollux reference handset".to_owned()),
            ("Shell", format!("Handset {}", env!("CARGO_PKG_VERSION"))),
            ("Contacts", self.contacts.to_string()),
            ("Notes", self.notes.to_string()),
        ];
        let card = rect(
            MARGIN,
            rest.y + 4,
            body.w - 2 * MARGIN,
            56 * lines.len() as i32,
        );
        ui.card(card);
        for (index, (label, value)) in lines.iter().enumerate() {
            let row = rect(card.x + 16, card.y + index as i32 * 56, card.w - 32, 56);
            ui.text(row, Align::Left, theme::BODY, theme::TEXT_SECONDARY, label);
            ui.text(row, Align::Right, theme::BODY_STRONG, theme::TEXT, value);
            if index > 0 {
                ui.divider(row.x, row.y, row.w);
            }
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        self.contacts = cx.store.contacts().map_or(0, |contacts| contacts.len());
        self.notes = cx.store.notes().map_or(0, |notes| notes.len());
    }
}
