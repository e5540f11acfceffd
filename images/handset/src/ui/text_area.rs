//! Text over several lines: drawing, and where a touch or an arrow key puts the cursor.

use super::Key;
use super::builder::Ui;
use super::field::Field;
use crate::draw::font::{Fonts, Style};
use crate::draw::scene::Shape;
use crate::draw::theme;
use crate::geometry::{Rect, rect};

const STYLE: Style = theme::BODY;
const LINE: i32 = STYLE.line() + 4;

/// Height of a text in a column of `width` dp.
pub fn height(fonts: &Fonts, text: &str, width: i32) -> i32 {
    fonts.wrap(STYLE, text, width).len() as i32 * LINE
}

/// Draws the lines that show in `area`. When `cursor` is wanted, so is the field's cursor.
pub fn draw(ui: &mut Ui<'_>, area: Rect, text: &str, cursor: Option<usize>) {
    let lines = ui.fonts.wrap(STYLE, text, area.w);
    let top = ui.begin_list(area.inset(-4, 0), lines.len() as i32 * LINE + LINE);
    for (index, range) in lines.iter().enumerate() {
        let y = top + index as i32 * LINE;
        if !ui.shows(rect(area.x, y, area.w, LINE)) {
            continue;
        }
        let line = &text[range.clone()];
        if !line.is_empty() {
            let bounds = rect(area.x, y, ui.fonts.width(STYLE, line), STYLE.line());
            let shape = Shape::Text {
                text: line.to_owned(),
                style: STYLE,
                color: theme::TEXT,
            };
            ui.scene.add(bounds, shape);
        }
        let next = lines
            .get(index + 1)
            .map_or(text.len() + 1, |next| next.start);
        if cursor.is_some_and(|at| at >= range.start && at < next) {
            let at = cursor.unwrap_or(0).min(range.end);
            let x = area.x + ui.fonts.width(STYLE, &text[range.start..at]);
            ui.fill(rect(x, y, 2, STYLE.line() + 1), theme::PRIMARY);
        }
    }
    ui.end_list();
}

/// The text offset under a point, for text drawn in `area` scrolled by `scrolled`.
pub fn offset_at(
    fonts: &Fonts,
    area: Rect,
    text: &str,
    scrolled: i32,
    (x, y): (i32, i32),
) -> usize {
    let lines = fonts.wrap(STYLE, text, area.w);
    let index = ((y - area.y + scrolled).div_euclid(LINE)).clamp(0, lines.len() as i32 - 1);
    let Some(range) = lines.get(index as usize) else {
        return 0;
    };
    range.start + fonts.offset_at(STYLE, &text[range.clone()], x - area.x)
}

/// The scroll offset nearest to `scrolled` at which the cursor shows.
pub fn follow(fonts: &Fonts, area: Rect, field: &Field, scrolled: i32) -> i32 {
    let y = cursor_line(fonts, area.w, field) as i32 * LINE;
    scrolled.min(y).max(y + LINE - area.h)
}

/// Moves the cursor a line up or down.
pub fn vertical(fonts: &Fonts, width: i32, field: &mut Field, key: Key) {
    let lines = fonts.wrap(STYLE, field.text(), width);
    let line = cursor_line(fonts, width, field);
    let other = match key {
        Key::Up => line.checked_sub(1),
        _ => Some(line + 1),
    };
    let Some(target) = other.and_then(|index| lines.get(index)) else {
        return;
    };
    let x = fonts.width(
        STYLE,
        &field.text()[lines[line].start..field.cursor().min(lines[line].end)],
    );
    let offset = target.start + fonts.offset_at(STYLE, &field.text()[target.clone()], x);
    field.move_to(offset);
}

fn cursor_line(fonts: &Fonts, width: i32, field: &Field) -> usize {
    let lines = fonts.wrap(STYLE, field.text(), width);
    lines
        .iter()
        .rposition(|range| range.start <= field.cursor())
        .unwrap_or(0)
}
