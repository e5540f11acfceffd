//! Contacts: the list, one contact, and the form to make or change one.

use crate::draw::icons::Icon;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::contacts::Contact;
use crate::ui::builder::{Align, FIELD, FieldLook, ROW, Ui};
use crate::ui::field::Field;
use crate::ui::view::{Context, Go, View};
use crate::ui::{Action, Key};

#[derive(Default)]
pub struct Contacts {
    contacts: Vec<Contact>,
    scrolled: i32,
}

impl View for Contacts {
    fn name(&self) -> &'static str {
        "contacts"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let list = ui.big_bar(body, "Contacts");
        if self.contacts.is_empty() {
            ui.empty(
                list,
                Icon::Contacts,
                "No contacts yet",
                "Tap the plus to add one.",
            );
        } else {
            let content = self.contacts.len() as i32 * ROW;
            let mut y = ui.begin_list(list, content + 90);
            ui.round(
                rect(theme::GAP, y, body.w - 2 * theme::GAP, content),
                theme::RADIUS,
                theme::SURFACE,
            );
            for (index, contact) in self.contacts.iter().enumerate() {
                let area = rect(theme::GAP, y, body.w - 2 * theme::GAP, ROW);
                y += ROW;
                if !ui.shows(area) {
                    continue;
                }
                ui.row_back(&format!("row.{index}"), area, Action::Pick(index));
                ui.person_row(area, shown_name(contact), &contact.phone, "");
                if index > 0 {
                    ui.divider(area.x + 74, area.y, area.w - 74);
                }
            }
            ui.end_list();
        }
        ui.floating_button(body, "new", Icon::Plus);
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("new") => Go::Push(Box::new(Form::new(Contact::default()))),
            Action::Pick(index) => match self.contacts.get(*index) {
                Some(contact) => Go::Push(Box::new(Detail {
                    contact: contact.clone(),
                })),
                None => Go::Stay,
            },
            _ => Go::Stay,
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let contacts = cx.store.contacts();
        self.contacts = cx.tell(contacts).unwrap_or_default();
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}

fn shown_name(contact: &Contact) -> &str {
    match contact.name.as_str() {
        "" => "No name",
        name => name,
    }
}

struct Detail {
    contact: Contact,
}

impl View for Detail {
    fn name(&self) -> &'static str {
        "contact"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(body, "");
        ui.bar_icon(body, 0, "edit", Icon::Edit, theme::TEXT);
        let middle = body.w / 2;
        ui.avatar((middle, rest.y + 56), 96, &self.contact.name);
        let line = rect(MARGIN, rest.y + 116, body.w - 2 * MARGIN, 36);
        ui.text(
            line,
            Align::Center,
            theme::HEADLINE,
            theme::TEXT,
            shown_name(&self.contact),
        );
        let y = rest.y + 168;
        if !self.contact.phone.is_empty() {
            let w = (body.w - 2 * MARGIN - 12) / 2;
            ui.button(
                rect(MARGIN, y, w, 48),
                "call",
                "Call",
                (theme::GREEN, theme::GREEN_PRESSED, theme::ON_COLOR),
            );
            let right = rect(MARGIN + w + 12, y, w, 48);
            ui.button(
                right,
                "message",
                "Message",
                (theme::PRIMARY, theme::PRIMARY_PRESSED, theme::ON_COLOR),
            );
        }
        let lines = [
            ("Phone", &self.contact.phone, Icon::Phone),
            ("Email", &self.contact.email, Icon::Mail),
        ];
        let shown: Vec<_> = lines
            .iter()
            .filter(|(_, value, _)| !value.is_empty())
            .collect();
        let card = rect(MARGIN, y + 68, body.w - 2 * MARGIN, shown.len() as i32 * 64);
        if !shown.is_empty() {
            ui.card(card);
        }
        for (index, (label, value, icon)) in shown.into_iter().enumerate() {
            let row = rect(card.x, card.y + index as i32 * 64, card.w, 64);
            ui.icon((row.x + 30, row.y + 32), 22, *icon, theme::PRIMARY);
            let text = |dy: i32| rect(row.x + 60, row.y + dy, row.w - 72, 20);
            ui.text(
                text(12),
                Align::Left,
                theme::CAPTION,
                theme::TEXT_SECONDARY,
                label,
            );
            ui.text(text(32), Align::Left, theme::BODY, theme::TEXT, value);
            if index > 0 {
                ui.divider(row.x + 60, row.y, row.w - 60);
            }
        }
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("edit") => Go::Push(Box::new(Form::new(self.contact.clone()))),
            Action::Press("call") => super::phone::begin_call(&self.contact.phone, cx),
            Action::Press("message") => Go::Push(Box::new(super::messages::Conversation::with(
                &self.contact.phone,
            ))),
            _ => Go::Stay,
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let contacts = cx.store.contacts();
        let found = cx
            .tell(contacts)
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.place == self.contact.place);
        if let Some(contact) = found {
            self.contact = contact;
        }
    }
}

struct Form {
    contact: Contact,
    fields: [Field; 3],
    focused: usize,
    scrolled: i32,
}

const LABELS: [&str; 3] = ["Name", "Phone", "Email"];

impl Form {
    fn new(contact: Contact) -> Self {
        let fields = [&contact.name, &contact.phone, &contact.email].map(|text| Field::new(text));
        Self {
            contact,
            fields,
            focused: 0,
            scrolled: 0,
        }
    }

    fn save(&mut self, cx: &mut Context<'_>) -> Go {
        let [name, phone, email] = self
            .fields
            .each_ref()
            .map(|field| field.text().trim().to_owned());
        if name.is_empty() && phone.is_empty() {
            *cx.banner = Some("A contact needs a name or a number.".to_owned());
            return Go::Stay;
        }
        let name = if name.is_empty() { phone.clone() } else { name };
        let saved = cx.store.save_contact(&Contact {
            place: self.contact.place.clone(),
            name,
            phone,
            email,
        });
        match cx.tell(saved) {
            Some(_) => {
                *cx.banner = None;
                Go::Back
            }
            None => Go::Stay,
        }
    }
}

impl View for Form {
    fn name(&self) -> &'static str {
        "contact_form"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let title = if self.contact.place.is_some() {
            "Edit contact"
        } else {
            "New contact"
        };
        let rest = ui.bar(body, title);
        ui.bar_button(body, "save", "Save");
        let delete = if self.contact.place.is_some() { 60 } else { 0 };
        let top = ui.begin_list(rest, 3 * (FIELD + 4) + delete + 16);
        for (index, field) in self.fields.iter().enumerate() {
            let area = rect(
                MARGIN,
                top + 4 + index as i32 * (FIELD + 4),
                body.w - 2 * MARGIN,
                FIELD,
            );
            let look = FieldLook {
                focused: index == self.focused,
                ..FieldLook::default()
            };
            ui.field(area, index, LABELS[index], field, look);
        }
        if delete > 0 {
            let area = rect(MARGIN, top + 3 * (FIELD + 4) + 4, body.w - 2 * MARGIN, 48);
            ui.button(
                area,
                "delete",
                "Delete contact",
                (theme::RED_SOFT, theme::RED_SOFT_PRESSED, theme::RED),
            );
        }
        ui.end_list();
    }

    fn focus(&mut self) -> Option<&mut Field> {
        self.fields.get_mut(self.focused)
    }

    fn wants_keyboard(&self) -> bool {
        true
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("save") => return self.save(cx),
            Action::Press("delete") => {
                let deleted = cx.store.delete_contact(&self.contact);
                if cx.tell(deleted).is_some() {
                    // The detail below shows what is gone: leave it as well.
                    return Go::Open(crate::ui::App::Contacts);
                }
            }
            Action::Focus(index) if *index < self.fields.len() => self.focused = *index,
            _ => {}
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, cx: &mut Context<'_>) -> Go {
        match key {
            Key::Tab | Key::Down => self.focused = (self.focused + 1) % self.fields.len(),
            Key::Up => self.focused = self.focused.saturating_sub(1),
            Key::Enter if self.focused + 1 < self.fields.len() => self.focused += 1,
            Key::Enter => return self.save(cx),
            _ => {}
        }
        Go::Stay
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let contacts = cx.store.contacts();
        let contacts = cx.tell(contacts).unwrap_or_default();
        let here = |c: &&Contact| c.place.is_some() && c.place == self.contact.place;
        let Some(found) = contacts.iter().find(here) else {
            return;
        };
        for (field, value) in self
            .fields
            .iter_mut()
            .zip([&found.name, &found.phone, &found.email])
        {
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
