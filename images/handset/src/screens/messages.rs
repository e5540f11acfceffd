//! Messages: the list of conversations, one conversation, and choosing whom to write to.

use crate::draw::icons::Icon;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::chatty::{Message, Thread};
use crate::store::contacts::{Contact, display_name, find_by_number};
use crate::store::normal_number;
use crate::ui::builder::{Align, BAR, FieldLook, ROW, Ui};
use crate::ui::field::Field;
use crate::ui::view::{Context, Go, View};
use crate::ui::{Action, Key};

/// Height of the line one writes in.
const COMPOSER: i32 = 60;
const BUBBLE_GAP: i32 = 6;
const DAY: i32 = 36;
const FOCUSED: FieldLook = FieldLook {
    focused: true,
    masked: false,
    trailing: 0,
};
/// Contacts offered while a recipient is typed.
const OFFERS_MAX: usize = 20;

#[derive(Default)]
pub struct Messages {
    threads: Vec<Thread>,
    contacts: Vec<Contact>,
    scrolled: i32,
}

impl View for Messages {
    fn name(&self) -> &'static str {
        "messages"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let list = ui.big_bar(body, "Messages");
        if self.threads.is_empty() {
            ui.empty(
                list,
                Icon::Message,
                "No messages yet",
                "Tap the pencil to write one.",
            );
        } else {
            let content = self.threads.len() as i32 * ROW;
            let mut y = ui.begin_list(list, content + 90);
            ui.round(
                rect(theme::GAP, y, body.w - 2 * theme::GAP, content),
                theme::RADIUS,
                theme::SURFACE,
            );
            for (index, thread) in self.threads.iter().enumerate() {
                let area = rect(theme::GAP, y, body.w - 2 * theme::GAP, ROW);
                y += ROW;
                if !ui.shows(area) {
                    continue;
                }
                ui.row_back(&format!("row.{index}"), area, Action::Pick(index));
                let name = thread
                    .alias
                    .clone()
                    .unwrap_or_else(|| display_name(&self.contacts, &thread.name));
                let sender = if thread.last_out { "You: " } else { "" };
                let last = format!("{sender}{}", thread.last.replace('\n', " "));
                ui.person_row(area, &name, &last, &ui.clock.when(thread.time));
                if index > 0 {
                    ui.divider(area.x + 74, area.y, area.w - 74);
                }
            }
            ui.end_list();
        }
        ui.floating_button(body, "compose", Icon::Edit);
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("compose") => Go::Push(Box::new(Recipient::default())),
            Action::Pick(index) => match self.threads.get(*index) {
                Some(thread) => Go::Push(Box::new(Conversation::with(&thread.name))),
                None => Go::Stay,
            },
            _ => Go::Stay,
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let threads = cx.store.threads();
        self.threads = cx.tell(threads).unwrap_or_default();
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

/// Choosing whom to write to: a number, or a contact by its name.
#[derive(Default)]
struct Recipient {
    to: Field,
    contacts: Vec<Contact>,
    scrolled: i32,
}

impl Recipient {
    fn offers(&self) -> impl Iterator<Item = (usize, &Contact)> {
        let wanted = self.to.text().to_lowercase();
        let matches = move |c: &Contact| {
            !c.phone.is_empty()
                && (c.name.to_lowercase().contains(&wanted) || c.phone.contains(&wanted))
        };
        self.contacts
            .iter()
            .enumerate()
            .filter(move |(_, c)| matches(c))
            .take(OFFERS_MAX)
    }

    /// The number typed, or that of the only contact that fits.
    fn number(&self) -> Option<String> {
        let typed = self.to.text();
        let number = normal_number(typed);
        let is_number = !number.is_empty() && !typed.chars().any(char::is_alphabetic);
        if is_number {
            return Some(number);
        }
        let mut offers = self.offers();
        match (offers.next(), offers.next()) {
            (Some((_, only)), None) if !typed.is_empty() => Some(normal_number(&only.phone)),
            _ => None,
        }
    }

    fn go_on(&self) -> Go {
        match self.number() {
            Some(number) => Go::Replace(Box::new(Conversation::with(&number))),
            None => Go::Stay,
        }
    }
}

impl View for Recipient {
    fn name(&self) -> &'static str {
        "compose"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(body, "New message");
        if self.number().is_some() {
            ui.bar_button(body, "next", "Next");
        }
        let field = rect(MARGIN, rest.y + 4, body.w - 2 * MARGIN, 64);
        ui.field(field, 0, "To", &self.to, FOCUSED);
        let list = rect(
            body.x,
            field.bottom() + 4,
            body.w,
            rest.bottom() - field.bottom() - 4,
        );
        let content = self.offers().count() as i32 * ROW;
        let mut y = ui.begin_list(list, content);
        for (index, contact) in self.offers() {
            let area = rect(0, y, body.w, ROW);
            y += ROW;
            if ui.shows(area) {
                ui.row_back(&format!("contact.{index}"), area, Action::Pick(index));
                ui.person_row(area, &contact.name, &contact.phone, "");
            }
        }
        ui.end_list();
    }

    fn focus(&mut self) -> Option<&mut Field> {
        Some(&mut self.to)
    }

    fn wants_keyboard(&self) -> bool {
        true
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("next") => self.go_on(),
            Action::Pick(index) => match self.contacts.get(*index) {
                Some(contact) => Go::Replace(Box::new(Conversation::with(&contact.phone))),
                None => Go::Stay,
            },
            _ => Go::Stay,
        }
    }

    fn key(&mut self, key: Key, _cx: &mut Context<'_>) -> Go {
        if key == Key::Enter {
            self.go_on()
        } else {
            Go::Stay
        }
    }

    fn edited(&mut self, _cx: &mut Context<'_>) -> Go {
        self.scrolled = 0;
        Go::Stay
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

/// The messages exchanged with one number.
pub struct Conversation {
    number: String,
    name: String,
    contact: Option<String>,
    messages: Vec<Message>,
    draft: Field,
    scrolled: i32,
}

impl Conversation {
    pub fn with(number: &str) -> Self {
        Self {
            number: normal_number(number),
            name: String::new(),
            contact: None,
            messages: Vec::new(),
            draft: Field::default(),
            scrolled: 0,
        }
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        let body = self.draft.text().trim().to_owned();
        if body.is_empty() {
            return;
        }
        let sent = cx
            .store
            .send_message(&self.number, self.contact.as_deref(), &body);
        if let Some(replaced) = cx.tell(sent) {
            cx.tell_replaced(replaced);
            self.draft.clear();
            self.scrolled = 0;
            let messages = cx.store.messages(&self.number);
            self.messages = cx.tell(messages).unwrap_or_default();
        }
    }

    fn draw_messages(&self, ui: &mut Ui<'_>, area: Rect) {
        let widest = area.w * 76 / 100;
        let line = theme::BODY.line();
        let mut content = 12;
        let mut day = String::new();
        // Where each begins, its lines, and the heading of its day if it is that day's first.
        let mut placed = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            let lines = ui.fonts.wrap(theme::BODY, &message.body, widest - 28);
            let today = ui.clock.day(message.time);
            let heading = (today != day).then(|| today.clone());
            content += if heading.is_some() { DAY } else { 0 };
            let height = lines.len() as i32 * line + 18 + 16;
            placed.push((content, height, lines, heading));
            content += height + BUBBLE_GAP;
            day = today;
        }
        let top = ui.begin_list_at_end(area, content);
        for (message, (y, height, lines, heading)) in self.messages.iter().zip(placed) {
            let y = top + y;
            if let Some(heading) = heading {
                let row = rect(area.x, y - DAY, area.w, DAY);
                ui.text(
                    row,
                    Align::Center,
                    theme::CAPTION,
                    theme::TEXT_FAINT,
                    &heading,
                );
            }
            if !ui.shows(rect(area.x, y, area.w, height)) {
                continue;
            }
            let time = ui.clock.time_of(message.time);
            let texts: Vec<&str> = lines
                .into_iter()
                .map(|range| message.body[range].trim_end())
                .collect();
            let text_w = texts
                .iter()
                .map(|text| ui.fonts.width(theme::BODY, text))
                .max()
                .unwrap_or(0);
            let w = text_w.max(ui.fonts.width(theme::CAPTION, &time)) + 28;
            let x = if message.outgoing {
                area.right() - MARGIN - w
            } else {
                area.x + MARGIN
            };
            let (back, ink, faint) = match message.outgoing {
                true => (theme::PRIMARY, theme::ON_COLOR, theme::BUBBLE_TIME),
                false => (theme::SURFACE, theme::TEXT, theme::TEXT_FAINT),
            };
            ui.round(rect(x, y, w, height), 18, back);
            for (index, text) in texts.iter().enumerate() {
                let row = rect(x + 14, y + 8 + index as i32 * line, w - 28, line);
                ui.text(row, Align::Left, theme::BODY, ink, text);
            }
            let foot = rect(x + 14, y + height - 22, w - 28, 16);
            ui.text(foot, Align::Right, theme::CAPTION, faint, &time);
        }
        ui.end_list();
    }

    fn draw_composer(&self, ui: &mut Ui<'_>, area: Rect) {
        let pill = rect(area.x + 12, area.y + 8, area.w - 24 - 56, 44);
        ui.round(pill, 22, theme::OUTLINE);
        ui.round(pill.inset(1, 1), 21, theme::SURFACE);
        let line = rect(pill.x + 18, pill.y + 8, pill.w - 36, 28);
        if self.draft.text().is_empty() {
            let hint = rect(line.x + 4, line.y, line.w, line.h);
            ui.text(
                hint,
                Align::Left,
                theme::BODY,
                theme::TEXT_FAINT,
                "Text message",
            );
        }
        ui.line_of_text(line, &self.draft, FOCUSED);
        ui.target("field.message", pill, Action::Focus(0));
        let ready = !self.draft.text().trim().is_empty();
        let colors = if ready {
            (theme::PRIMARY, theme::PRIMARY_PRESSED)
        } else {
            (theme::KEY_SPECIAL, theme::KEY_SPECIAL)
        };
        ui.round_button(
            "send",
            (area.right() - 36, pill.y + 22),
            46,
            Icon::Send,
            colors,
        );
    }
}

impl View for Conversation {
    fn name(&self) -> &'static str {
        "conversation"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(body, "");
        ui.avatar((76, body.y + BAR / 2), 36, &self.name);
        let text = rect(104, body.y, body.w - 104 - 60, BAR);
        if self.contact.is_some() {
            let upper = rect(text.x, body.y + 8, text.w, 22);
            ui.text(
                upper,
                Align::Left,
                theme::BODY_STRONG,
                theme::TEXT,
                &self.name,
            );
            let lower = rect(text.x, body.y + 28, text.w, 18);
            ui.text(
                lower,
                Align::Left,
                theme::CAPTION,
                theme::TEXT_SECONDARY,
                &self.number,
            );
        } else {
            ui.text(text, Align::Left, theme::TITLE, theme::TEXT, &self.name);
        }
        ui.bar_icon(body, 0, "call", Icon::Phone, theme::GREEN);
        ui.divider(0, rest.y - 1, body.w);
        let list = rect(body.x, rest.y, body.w, rest.h - COMPOSER);
        if self.messages.is_empty() {
            let hint = rect(list.x + 40, list.y + list.h / 2 - 12, list.w - 80, 24);
            ui.text(
                hint,
                Align::Center,
                theme::SECOND,
                theme::TEXT_SECONDARY,
                "No messages yet",
            );
        } else {
            self.draw_messages(ui, list);
        }
        self.draw_composer(ui, rect(body.x, list.bottom(), body.w, COMPOSER));
    }

    fn focus(&mut self) -> Option<&mut Field> {
        Some(&mut self.draft)
    }

    fn wants_keyboard(&self) -> bool {
        true
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("send") => self.send(cx),
            Action::Press("call") => return super::phone::begin_call(&self.number, cx),
            _ => {}
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, cx: &mut Context<'_>) -> Go {
        if key == Key::Enter {
            self.send(cx);
        }
        Go::Stay
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let messages = cx.store.messages(&self.number);
        self.messages = cx.tell(messages).unwrap_or_default();
        let contacts = cx.store.contacts();
        let contacts = cx.tell(contacts).unwrap_or_default();
        self.contact = find_by_number(&contacts, &self.number).map(|contact| contact.name.clone());
        self.name = self.contact.clone().unwrap_or_else(|| self.number.clone());
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }

    fn scrolls_from_end(&self) -> bool {
        true
    }
}
