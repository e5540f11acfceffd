//! Phone: keypad, call log, and the call in progress.

use crate::draw::icons::Icon;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::calls::Call;
use crate::store::contacts::{Contact, display_name, find_by_number};
use crate::ui::builder::{Align, ROW, Ui};
use crate::ui::field::Field;
use crate::ui::view::{Backdrop, Context, Go, View};
use crate::ui::{Action, Key};

const KEYS: [(char, &str); 12] = [
    ('1', ""),
    ('2', "ABC"),
    ('3', "DEF"),
    ('4', "GHI"),
    ('5', "JKL"),
    ('6', "MNO"),
    ('7', "PQRS"),
    ('8', "TUV"),
    ('9', "WXYZ"),
    ('*', ""),
    ('0', "+"),
    ('#', ""),
];
/// Digits accepted, as many as a modem takes.
const NUMBER_MAX: usize = 40;
const TABS: i32 = 60;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Tab {
    #[default]
    Keypad,
    Recents,
}

#[derive(Default)]
pub struct Phone {
    tab: Tab,
    number: Field,
    calls: Vec<Call>,
    contacts: Vec<Contact>,
    scrolled: i32,
}

impl Phone {
    /// The keypad with a number already in it.
    pub fn with_number(number: &str) -> Self {
        Self {
            number: Field::new(number),
            ..Self::default()
        }
    }

    fn draw_keypad(&self, ui: &mut Ui<'_>, body: Rect) {
        let number = self.number.text();
        let top = body.y + (body.h - 478).max(0) / 2;
        let style = if number.chars().count() > 14 {
            theme::HEADLINE
        } else {
            theme::DISPLAY
        };
        let (ink, shown) = if number.is_empty() {
            (theme::TEXT_FAINT, "Enter a number")
        } else {
            (theme::TEXT, number)
        };
        let style = if number.is_empty() {
            theme::HEADLINE
        } else {
            style
        };
        ui.text(
            rect(24, top, body.w - 48, 48),
            Align::Center,
            style,
            ink,
            shown,
        );
        if let Some(contact) = find_by_number(&self.contacts, number) {
            ui.text(
                rect(24, top + 46, body.w - 48, 22),
                Align::Center,
                theme::BODY,
                theme::PRIMARY,
                &contact.name,
            );
        }
        let (side, step_x, step_y) = (72, 96, 80);
        let left = body.w / 2 - step_x;
        for (index, (key, letters)) in KEYS.iter().enumerate() {
            let (column, row) = (index as i32 % 3, index as i32 / 3);
            let center = (left + column * step_x, top + 114 + row * step_y);
            let area = rect(center.0 - side / 2, center.1 - side / 2, side, side);
            let action = Action::Dial(*key);
            let color = if ui.is_pressed(&action) {
                theme::PRIMARY_SOFT
            } else {
                theme::SURFACE
            };
            ui.round(area, side / 2, color);
            let mut text = [0; 4];
            let lift = if letters.is_empty() { 0 } else { 8 };
            let digit = rect(area.x, area.y - lift, area.w, area.h);
            ui.text(
                digit,
                Align::Center,
                theme::KEYPAD,
                theme::TEXT,
                key.encode_utf8(&mut text),
            );
            ui.text(
                rect(area.x, area.y + 44, area.w, 14),
                Align::Center,
                theme::KEYPAD_LETTERS,
                theme::TEXT_SECONDARY,
                letters,
            );
            ui.target(&format!("key.{key}"), area, action);
        }
        let y = top + 114 + 4 * step_y + 6;
        ui.round_button(
            "call",
            (body.w / 2, y),
            68,
            Icon::Phone,
            (theme::GREEN, theme::GREEN_PRESSED),
        );
        if !number.is_empty() {
            let erase = rect(left + 2 * step_x - 28, y - 28, 56, 56);
            let action = Action::Press("erase");
            if ui.is_pressed(&action) {
                ui.round(erase, 28, theme::DIVIDER);
            }
            ui.icon(erase.center(), 26, Icon::Backspace, theme::TEXT_SECONDARY);
            ui.target("erase", erase, action);
        }
    }

    fn draw_recents(&self, ui: &mut Ui<'_>, body: Rect) {
        let list = ui.big_bar(body, "Recents");
        if self.calls.is_empty() {
            return ui.empty(
                list,
                Icon::Recents,
                "No calls yet",
                "Calls you make and get are listed here.",
            );
        }
        let content = self.calls.len() as i32 * ROW + 2 * theme::GAP;
        let mut y = ui.begin_list(list, content) + theme::GAP;
        ui.round(
            rect(
                theme::GAP,
                y,
                body.w - 2 * theme::GAP,
                content - 2 * theme::GAP,
            ),
            theme::RADIUS,
            theme::SURFACE,
        );
        for (index, call) in self.calls.iter().enumerate() {
            let area = rect(theme::GAP, y, body.w - 2 * theme::GAP, ROW);
            y += ROW;
            if !ui.shows(area) {
                continue;
            }
            ui.row_back(&format!("row.{index}"), area, Action::Pick(index));
            self.draw_call(ui, area, call);
            if index > 0 {
                ui.divider(area.x + 74, area.y, area.w - 74);
            }
        }
        ui.end_list();
    }

    fn draw_call(&self, ui: &mut Ui<'_>, area: Rect, call: &Call) {
        let name = display_name(&self.contacts, &call.target);
        let (icon, ink, kind) = match (call.inbound, call.answered) {
            (true, Some(_)) => (Icon::CallIn, theme::PRIMARY, "Incoming"),
            (true, None) => (Icon::CallMissed, theme::RED, "Missed"),
            (false, Some(_)) => (Icon::CallOut, theme::GREEN, "Outgoing"),
            (false, None) => (Icon::CallOut, theme::TEXT_FAINT, "Not answered"),
        };
        let length = match (call.answered, call.end) {
            (Some(from), Some(to)) => format!(" · {}", duration(to - from)),
            _ => String::new(),
        };
        ui.person_row(area, &name, " ", &ui.clock.when(call.start));
        let middle = area.y + area.h / 2;
        ui.icon((area.x + 82, middle + 11), 15, icon, ink);
        let text = rect(area.x + 94, middle, area.w - 94 - 56, 22);
        ui.text(
            text,
            Align::Left,
            theme::SECOND,
            theme::TEXT_SECONDARY,
            &format!("{kind}{length}"),
        );
        ui.icon(
            (area.right() - 28, middle + 11),
            17,
            Icon::Phone,
            theme::GREEN,
        );
    }

    fn draw_tabs(&self, ui: &mut Ui<'_>, area: Rect) {
        ui.divider(0, area.y, area.w);
        let tabs = [
            ("keypad", "Keypad", Icon::Keypad, Tab::Keypad),
            ("recents", "Recents", Icon::Recents, Tab::Recents),
        ];
        for (index, (name, label, icon, tab)) in tabs.into_iter().enumerate() {
            let cell = rect(
                area.x + index as i32 * area.w / 2,
                area.y + 1,
                area.w / 2,
                area.h - 1,
            );
            let ink = if self.tab == tab {
                theme::PRIMARY
            } else {
                theme::TEXT_SECONDARY
            };
            let pill = rect(cell.x + cell.w / 2 - 32, cell.y + 6, 64, 30);
            let action = Action::Press(name);
            if self.tab == tab || ui.is_pressed(&action) {
                ui.round(pill, 15, theme::PRIMARY_SOFT);
            }
            ui.icon(pill.center(), 20, icon, ink);
            ui.text(
                rect(cell.x, pill.bottom() + 2, cell.w, 18),
                Align::Center,
                theme::CAPTION,
                ink,
                label,
            );
            ui.target(&format!("tab.{name}"), cell, action);
        }
    }
}

impl View for Phone {
    fn name(&self) -> &'static str {
        "phone"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let upper = rect(body.x, body.y, body.w, body.h - TABS);
        match self.tab {
            Tab::Keypad => self.draw_keypad(ui, upper),
            Tab::Recents => self.draw_recents(ui, upper),
        }
        self.draw_tabs(ui, rect(0, upper.bottom(), body.w, TABS));
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        match action {
            Action::Dial(c) if self.number.text().len() < NUMBER_MAX => self.number.insert(*c),
            Action::Press("erase") => {
                self.number.key(Key::Backspace);
            }
            Action::Press("keypad") => self.tab = Tab::Keypad,
            Action::Press("recents") => {
                self.tab = Tab::Recents;
                self.scrolled = 0;
            }
            Action::Press("call") => {
                if self.number.text().is_empty() {
                    // As on other phones: the last number dialled.
                    if let Some(call) = self.calls.iter().find(|call| !call.inbound) {
                        self.number = Field::new(&call.target);
                    }
                } else {
                    let number = self.number.text().to_owned();
                    self.number.clear();
                    return begin_call(&number, cx);
                }
            }
            Action::Pick(index) => {
                if let Some(call) = self.calls.get(*index) {
                    let number = call.target.clone();
                    return begin_call(&number, cx);
                }
            }
            _ => {}
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, cx: &mut Context<'_>) -> Go {
        match key {
            Key::Char(c)
                if self.tab == Tab::Keypad && (c.is_ascii_digit() || "+*#".contains(c)) =>
            {
                return self.act(&Action::Dial(c), cx);
            }
            Key::Backspace => {
                self.number.key(Key::Backspace);
            }
            Key::Enter => return self.act(&Action::Press("call"), cx),
            _ => {}
        }
        Go::Stay
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let calls = cx.store.calls();
        self.calls = cx.tell(calls).unwrap_or_default();
        let contacts = cx.store.contacts();
        self.contacts = cx.tell(contacts).unwrap_or_default();
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        (self.tab == Tab::Recents).then_some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        if self.tab == Tab::Recents {
            self.scrolled
        } else {
            0
        }
    }
}

/// Records a call and shows it.
pub fn begin_call(number: &str, cx: &mut Context<'_>) -> Go {
    let begun = cx.store.begin_call(number);
    let Some((id, replaced)) = cx.tell(begun) else {
        return Go::Stay;
    };
    cx.tell_replaced(replaced);
    Go::Push(Box::new(InCall {
        id,
        number: number.to_owned(),
        name: String::new(),
        since: None,
        muted: false,
        loud: false,
    }))
}

/// The call in progress. Leaving this screen by any way ends the call.
pub struct InCall {
    id: i64,
    number: String,
    name: String,
    /// Unix seconds.
    since: Option<i64>,
    muted: bool,
    loud: bool,
}

impl InCall {
    fn toggle(
        &self,
        ui: &mut Ui<'_>,
        center: (i32, i32),
        name: &'static str,
        label: &str,
        icon: Icon,
        on: bool,
    ) {
        let area = rect(center.0 - 32, center.1 - 32, 64, 64);
        let action = Action::Press(name);
        let (back, ink) = match (on, ui.is_pressed(&action)) {
            (true, _) => (theme::ON_COLOR, theme::NIGHT),
            (false, true) => (theme::NIGHT_TEXT, theme::NIGHT),
            (false, false) => (theme::NIGHT_RAISED, theme::ON_COLOR),
        };
        ui.round(area, 32, back);
        ui.icon(center, 28, icon, ink);
        ui.text(
            rect(center.0 - 48, center.1 + 40, 96, 18),
            Align::Center,
            theme::LABEL,
            theme::NIGHT_TEXT,
            label,
        );
        ui.target(name, area, action);
    }
}

impl View for InCall {
    fn name(&self) -> &'static str {
        "call"
    }

    fn backdrop(&self) -> Backdrop {
        Backdrop::Night
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let middle = body.w / 2;
        let line = |y: i32, h: i32| rect(MARGIN, body.y + y, body.w - 2 * MARGIN, h);
        ui.avatar((middle, body.y + 120), 112, &self.name);
        ui.text(
            line(196, 36),
            Align::Center,
            theme::DISPLAY_TITLE,
            theme::ON_COLOR,
            &self.name,
        );
        if self.name != self.number {
            ui.text(
                line(234, 22),
                Align::Center,
                theme::BODY,
                theme::NIGHT_TEXT,
                &self.number,
            );
        }
        let state = match self.since {
            Some(at) => format!("Connected since {}", ui.clock.time_of(at)),
            None => "Connected".to_owned(),
        };
        ui.text(
            line(264, 22),
            Align::Center,
            theme::LABEL,
            theme::CALL_ACTIVE,
            &state,
        );
        let y = body.bottom() - 230;
        self.toggle(ui, (middle - 62, y), "mute", "Mute", Icon::Mic, self.muted);
        self.toggle(
            ui,
            (middle + 62, y),
            "speaker",
            "Speaker",
            Icon::Speaker,
            self.loud,
        );
        ui.round_button(
            "hangup",
            (middle, body.bottom() - 84),
            72,
            Icon::HangUp,
            (theme::RED, theme::RED_PRESSED),
        );
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        match action {
            Action::Press("hangup") => return Go::Back,
            Action::Press("mute") => self.muted = !self.muted,
            Action::Press("speaker") => self.loud = !self.loud,
            _ => {}
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, _cx: &mut Context<'_>) -> Go {
        if key == Key::Enter {
            Go::Back
        } else {
            Go::Stay
        }
    }

    fn leave(&mut self, cx: &mut Context<'_>) {
        let ended = cx.store.end_call(self.id);
        if let Some(replaced) = cx.tell(ended) {
            cx.tell_replaced(replaced);
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let contacts = cx.store.contacts().unwrap_or_default();
        self.name = display_name(&contacts, &self.number);
        let calls = cx.store.calls().unwrap_or_default();
        self.since = calls
            .iter()
            .find(|call| call.id == self.id)
            .and_then(|call| call.answered);
    }
}

/// A length of time in seconds, as people say it.
fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes @ 1..=59 => format!("{minutes} min {} s", seconds % 60),
        minutes => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}
