//! Notes: the list, and the editor. What is typed is saved at each pause and before leaving.

use std::path::PathBuf;

use crate::draw::icons::Icon;
use crate::draw::scene::Shape;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::notes::Note;
use crate::ui::builder::{Align, BAR, Ui};
use crate::ui::field::Field;
use crate::ui::text_area;
use crate::ui::view::{Context, Go, View};
use crate::ui::{Action, App, Key};

const CARD: i32 = 84;

#[derive(Default)]
pub struct Notes {
    notes: Vec<Note>,
    scrolled: i32,
}

impl View for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let list = ui.big_bar(body, "Notes");
        if self.notes.is_empty() {
            ui.empty(
                list,
                Icon::Note,
                "No notes yet",
                "Tap the plus to write one.",
            );
        } else {
            let step = CARD + 10;
            let mut y = ui.begin_list(list, self.notes.len() as i32 * step + 90) + 4;
            for (index, note) in self.notes.iter().enumerate() {
                let area = rect(MARGIN, y, body.w - 2 * MARGIN, CARD);
                y += step;
                if ui.shows(area.inset(-8, -8)) {
                    draw_note(ui, index, area, note);
                }
            }
            ui.end_list();
        }
        ui.floating_button(body, "new", Icon::Plus);
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        let path = match action {
            Action::Press("new") => cx.store.new_note_path(),
            Action::Pick(index) => match self.notes.get(*index) {
                Some(note) => note.path.clone(),
                None => return Go::Stay,
            },
            _ => return Go::Stay,
        };
        Go::Push(Box::new(Editor {
            path,
            field: None,
            scrolled: 0,
            removed: false,
        }))
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let notes = cx.store.notes();
        self.notes = cx.tell(notes).unwrap_or_default();
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}

fn draw_note(ui: &mut Ui<'_>, index: usize, area: Rect, note: &Note) {
    let action = Action::Pick(index);
    ui.scene.add(
        area,
        Shape::Shadow {
            radius: theme::RADIUS,
        },
    );
    let back = if ui.is_pressed(&action) {
        theme::SURFACE_PRESSED
    } else {
        theme::SURFACE
    };
    ui.round(area, theme::RADIUS, back);
    let mut lines = note
        .text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let title = lines.next().unwrap_or("Empty note");
    let rest = lines.next().unwrap_or("No more text");
    let file = note.path.file_name().unwrap_or_default().to_string_lossy();
    let line = |y: i32| rect(area.x + 16, area.y + y, area.w - 32, 20);
    ui.text(
        line(12),
        Align::Left,
        theme::BODY_STRONG,
        theme::TEXT,
        title,
    );
    ui.text(
        line(34),
        Align::Left,
        theme::SECOND,
        theme::TEXT_SECONDARY,
        rest,
    );
    ui.text(
        line(56),
        Align::Left,
        theme::CAPTION,
        theme::TEXT_FAINT,
        &file,
    );
    ui.target(&format!("row.{index}"), area, action);
}

struct Editor {
    path: PathBuf,
    /// `None` until the file has been read.
    field: Option<Field>,
    scrolled: i32,
    removed: bool,
}

impl Editor {
    fn area(body: Rect) -> Rect {
        rect(
            MARGIN + 4,
            body.y + BAR + 8,
            body.w - 2 * MARGIN - 8,
            body.h - BAR - 16,
        )
    }
}

impl View for Editor {
    fn name(&self) -> &'static str {
        "note"
    }

    fn app(&self) -> Option<App> {
        Some(App::Notes)
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let title = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let rest = ui.bar(body, &title);
        ui.bar_icon(body, 0, "delete", Icon::Trash, theme::TEXT_SECONDARY);
        let paper = rect(8, rest.y, body.w - 16, rest.h - 4);
        ui.round(paper, theme::RADIUS, theme::SURFACE);
        let Some(field) = &self.field else { return };
        if field.text().is_empty() {
            let area = Self::area(body);
            let hint = rect(area.x + 5, area.y, area.w, 18);
            ui.text(
                hint,
                Align::Left,
                theme::BODY,
                theme::TEXT_FAINT,
                "Write something",
            );
        }
        text_area::draw(ui, Self::area(body), field.text(), Some(field.cursor()));
    }

    fn act(&mut self, action: &Action, cx: &mut Context<'_>) -> Go {
        if *action == Action::Press("delete") {
            let deleted = cx.store.delete_note(&self.path);
            if cx.tell(deleted).is_some() {
                self.removed = true;
                return Go::Back;
            }
        }
        Go::Stay
    }

    fn focus(&mut self) -> Option<&mut Field> {
        self.field.as_mut()
    }

    fn wants_keyboard(&self) -> bool {
        true
    }

    fn edited(&mut self, cx: &mut Context<'_>) -> Go {
        if let Some(field) = &self.field {
            self.scrolled = text_area::follow(cx.fonts, Self::area(cx.body), field, self.scrolled);
        }
        Go::Stay
    }

    fn key(&mut self, key: Key, cx: &mut Context<'_>) -> Go {
        let Some(field) = &mut self.field else {
            return Go::Stay;
        };
        match key {
            Key::Enter => field.insert('\n'),
            Key::Tab => field.insert('\t'),
            Key::Up | Key::Down => text_area::vertical(cx.fonts, Self::area(cx.body).w, field, key),
            _ => return Go::Stay,
        }
        self.edited(cx)
    }

    fn tap(&mut self, x: i32, y: i32, cx: &mut Context<'_>) {
        let area = Self::area(cx.body);
        if let Some(field) = &mut self.field
            && y >= area.y - 8
        {
            let offset = text_area::offset_at(cx.fonts, area, field.text(), self.scrolled, (x, y));
            field.move_to(offset);
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let read = cx.store.note(&self.path);
        let Some(text) = cx.tell(read) else { return };
        match &mut self.field {
            None => self.field = Some(Field::new(&text)),
            // What was typed and is not saved yet wins over what came from outside.
            Some(field) if !field.is_edited() && field.text() != text => field.set(&text),
            Some(_) => {}
        }
    }

    fn unsaved(&self) -> bool {
        !self.removed && self.field.as_ref().is_some_and(Field::is_edited)
    }

    fn save(&mut self, cx: &mut Context<'_>) {
        let Some(field) = &mut self.field else { return };
        let saved = cx.store.save_note(&self.path, field.text());
        if cx.tell(saved).is_some() {
            field.settle();
            *cx.banner = None;
        }
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}
