//! Files: browsing the user's folder, and reading text. Names may be any bytes.

use std::path::{Path, PathBuf};

use crate::draw::icons::Icon;
use crate::draw::theme::{self, MARGIN};
use crate::geometry::{Rect, rect};
use crate::store::files::Entry;
use crate::ui::Action;
use crate::ui::builder::{Align, Ui};
use crate::ui::text_area;
use crate::ui::view::{Context, Go, View};

const ROW: i32 = 60;

#[derive(Default)]
pub struct Folder {
    /// `None` is the user's own folder.
    path: Option<PathBuf>,
    /// As found at the last look.
    place: PathBuf,
    entries: Vec<Entry>,
    scrolled: i32,
}

impl View for Folder {
    fn name(&self) -> &'static str {
        "files"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let list = match &self.path {
            None => ui.big_bar(body, "Files"),
            Some(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                ui.bar(body, &name)
            }
        };
        if self.entries.is_empty() {
            return ui.empty(
                list,
                Icon::Folder,
                "Empty folder",
                "There are no files here.",
            );
        }
        let content = self.entries.len() as i32 * ROW;
        let mut y = ui.begin_list(list, content + 2 * theme::GAP);
        ui.round(
            rect(theme::GAP, y, body.w - 2 * theme::GAP, content),
            theme::RADIUS,
            theme::SURFACE,
        );
        for (index, entry) in self.entries.iter().enumerate() {
            let area = rect(theme::GAP, y, body.w - 2 * theme::GAP, ROW);
            y += ROW;
            if ui.shows(area) {
                draw_entry(ui, index, area, entry);
            }
        }
        ui.end_list();
    }

    fn act(&mut self, action: &Action, _cx: &mut Context<'_>) -> Go {
        let Action::Pick(index) = action else {
            return Go::Stay;
        };
        match self.entries.get(*index) {
            Some(entry) if entry.is_folder => Go::Push(Box::new(Folder {
                path: Some(entry.path.clone()),
                ..Folder::default()
            })),
            Some(entry) => Go::Push(Box::new(Viewer {
                path: entry.path.clone(),
                text: None,
                scrolled: 0,
            })),
            None => Go::Stay,
        }
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        self.place = self
            .path
            .clone()
            .unwrap_or_else(|| cx.store.home().to_owned());
        let entries = cx.store.folder(&self.place);
        self.entries = cx.tell(entries).unwrap_or_default();
    }

    fn watched(&self) -> Option<PathBuf> {
        Some(self.place.clone())
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}

fn draw_entry(ui: &mut Ui<'_>, index: usize, area: Rect, entry: &Entry) {
    ui.row_back(&format!("row.{index}"), area, Action::Pick(index));
    let tile = rect(area.x + 14, area.y + 10, 40, 40);
    let (icon, back, ink) = match entry.is_folder {
        true => (Icon::Folder, theme::PRIMARY_SOFT, theme::PRIMARY),
        false => (Icon::File, theme::FIELD, theme::TEXT_SECONDARY),
    };
    ui.round(tile, 12, back);
    ui.icon(tile.center(), 22, icon, ink);
    let note = if entry.is_folder {
        String::new()
    } else {
        size(entry.bytes)
    };
    let note_w = ui.fonts.width(theme::CAPTION, &note);
    let text = rect(
        area.x + 68,
        area.y,
        area.w - 68 - MARGIN - 28 - note_w,
        area.h,
    );
    ui.text(text, Align::Left, theme::BODY, theme::TEXT, &entry.name);
    let right = area.right() - MARGIN;
    if entry.is_folder {
        ui.icon(
            (right - 8, area.y + ROW / 2),
            18,
            Icon::Chevron,
            theme::TEXT_FAINT,
        );
    } else {
        ui.text(
            rect(right - note_w, area.y, note_w, area.h),
            Align::Right,
            theme::CAPTION,
            theme::TEXT_FAINT,
            &note,
        );
    }
    if index > 0 {
        ui.divider(area.x + 68, area.y, area.w - 68);
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{}.{} kB", bytes / 1000, bytes % 1000 / 100),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

/// A file's text.
struct Viewer {
    path: PathBuf,
    /// `None` when it could not be read.
    text: Option<String>,
    scrolled: i32,
}

impl View for Viewer {
    fn name(&self) -> &'static str {
        "viewer"
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let rest = ui.bar(
            body,
            &self.path.file_name().unwrap_or_default().to_string_lossy(),
        );
        let paper = rect(8, rest.y, body.w - 16, rest.h - 4);
        ui.round(paper, theme::RADIUS, theme::SURFACE);
        let Some(text) = &self.text else {
            return ui.empty(
                paper,
                Icon::File,
                "Cannot be shown",
                "This file could not be read.",
            );
        };
        if text.chars().take(1000).any(|c| c == '\0') {
            return ui.empty(
                paper,
                Icon::File,
                "Not a text file",
                "It can be kept here, but not shown.",
            );
        }
        if text.is_empty() {
            return ui.empty(paper, Icon::File, "Empty file", "There is nothing in it.");
        }
        text_area::draw(ui, paper.inset(12, 10), text, None);
    }

    fn reload(&mut self, cx: &mut Context<'_>) {
        let read = cx.store.text(&self.path);
        self.text = cx
            .tell(read)
            .map(|text| text.replace('\t', "    ").replace('\r', ""));
    }

    fn watched(&self) -> Option<PathBuf> {
        self.path.parent().map(Path::to_owned)
    }

    fn scroll(&mut self) -> Option<&mut i32> {
        Some(&mut self.scrolled)
    }

    fn scrolled(&self) -> i32 {
        self.scrolled
    }
}
