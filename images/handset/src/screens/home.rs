//! The home screen: time, date, and the apps.

use crate::draw::scene::Shape;
use crate::draw::theme;
use crate::geometry::{Rect, rect};
use crate::ui::builder::{Align, Ui, app_look};
use crate::ui::view::{Backdrop, View};
use crate::ui::{Action, App};

const GRID: [App; 4] = [App::Files, App::Mail, App::Wifi, App::Settings];
const DOCK: [App; 4] = [App::Phone, App::Messages, App::Contacts, App::Notes];
const ICON: i32 = 58;

pub struct Home;

impl View for Home {
    fn name(&self) -> &'static str {
        "home"
    }

    fn backdrop(&self) -> Backdrop {
        Backdrop::Wallpaper
    }

    fn draw(&self, ui: &mut Ui<'_>, body: Rect) {
        let time = ui.clock.time();
        let date = ui.clock.date();
        let clock = rect(body.x, body.y + 48, body.w, 72);
        ui.text(clock, Align::Center, theme::CLOCK, theme::ON_COLOR, &time);
        let line = rect(body.x, clock.bottom() + 6, body.w, 24);
        ui.text(
            line,
            Align::Center,
            theme::HOME_DATE,
            theme::ON_COLOR,
            &date,
        );

        let dock = rect(12, body.bottom() - 94, body.w - 24, 88);
        ui.round(dock, 28, theme::ON_COLOR.with_alpha(56));
        apps(
            ui,
            &DOCK,
            rect(dock.x + 4, dock.y, dock.w - 8, dock.h),
            false,
        );
        apps(ui, &GRID, rect(16, dock.y - 116, body.w - 32, 96), true);
    }
}

/// A row of app icons spread over `area`.
fn apps(ui: &mut Ui<'_>, row: &[App], area: Rect, labels: bool) {
    let cell_w = area.w / row.len() as i32;
    for (index, &app) in row.iter().enumerate() {
        let cell = rect(area.x + index as i32 * cell_w, area.y, cell_w, area.h);
        let (icon, label, name) = app_look(app);
        let action = Action::Open(app);
        let shrink = if ui.is_pressed(&action) { 3 } else { 0 };
        let room = if labels { cell.h - 22 } else { cell.h };
        let tile = rect(
            cell.x + (cell.w - ICON) / 2,
            cell.y + (room - ICON) / 2,
            ICON,
            ICON,
        );
        ui.scene
            .add(tile.inset(shrink, shrink), Shape::AppIcon(icon));
        if labels {
            let line = rect(cell.x, tile.bottom() + 6, cell.w, 18);
            ui.text(line, Align::Center, theme::LABEL, theme::ON_COLOR, label);
        }
        ui.target(name, cell, action);
    }
}
