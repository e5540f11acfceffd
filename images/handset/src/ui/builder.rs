//! What views draw with: a scene under construction, the touch targets in it, and the design
//! system's parts (bars, cards, rows, buttons, fields).

use super::clock::Clock;
use super::field::Field;
use super::{Action, App};
use crate::draw::canvas::Color;
use crate::draw::font::{Fonts, Style};
use crate::draw::icons::{AppIcon, Icon};
use crate::draw::scene::{Scene, Shape};
use crate::draw::theme::{self, MARGIN, TOUCH_MIN};
use crate::geometry::{Rect, rect};

/// Height of a screen's title bar.
pub const BAR: i32 = 56;
/// Height of a list row with an avatar.
pub const ROW: i32 = 68;
/// Height of a labelled text field.
pub const FIELD: i32 = 64;

/// How a text field shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct FieldLook {
    pub focused: bool,
    /// Dots in place of the text.
    pub masked: bool,
    /// Room kept free at its right end, in dp.
    pub trailing: i32,
}

/// Where the focused one-line field's text is.
#[derive(Clone, Copy, Debug)]
pub struct TypedLine {
    area: Rect,
    shift: i32,
    masked: bool,
}

impl TypedLine {
    /// The text offset under a column of the display.
    pub fn offset_at(&self, fonts: &Fonts, text: &str, x: i32) -> usize {
        let x = x - self.area.x + self.shift;
        if !self.masked {
            return fonts.offset_at(theme::BODY, text, x);
        }
        let dots = fonts.offset_at(theme::BODY, &mask(text), x) / '•'.len_utf8();
        text.char_indices()
            .nth(dots)
            .map_or(text.len(), |(offset, _)| offset)
    }
}

fn mask(text: &str) -> String {
    "•".repeat(text.chars().count())
}

/// Something that can be touched.
#[derive(Clone, Debug)]
pub struct Target {
    /// Stable name for scripts, such as `home.phone`.
    pub name: String,
    pub area: Rect,
    pub action: Action,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Center,
    Right,
}

pub struct Ui<'a> {
    pub scene: Scene,
    pub targets: Vec<Target>,
    pub fonts: &'a Fonts,
    pub clock: Clock,
    pub pressed: Option<&'a Action>,
    /// How far the view's list is scrolled.
    pub scrolled: i32,
    /// How much longer the list is than its place; set by [`Ui::begin_list`].
    pub overflow: i32,
    /// Set by [`Ui::line_of_text`] for the focused field.
    pub typed: Option<TypedLine>,
    /// Prefix of target names.
    pub screen: &'static str,
}

impl<'a> Ui<'a> {
    pub fn is_pressed(&self, action: &Action) -> bool {
        self.pressed == Some(action)
    }

    /// Makes `area` touchable where it shows.
    pub fn target(&mut self, name: &str, area: Rect, action: Action) {
        let area = area.intersect(&self.scene.clip());
        if !area.is_empty() {
            self.targets.push(Target {
                name: format!("{}.{name}", self.screen),
                area,
                action,
            });
        }
    }

    pub fn fill(&mut self, area: Rect, color: Color) {
        self.scene.add(area, Shape::Fill(color));
    }

    pub fn round(&mut self, area: Rect, radius: i32, color: Color) {
        self.scene.add(area, Shape::Round { radius, color });
    }

    /// An icon of `side` dp centred on a point.
    pub fn icon(&mut self, center: (i32, i32), side: i32, icon: Icon, color: Color) {
        let area = rect(center.0 - side / 2, center.1 - side / 2, side, side);
        self.scene.add(area, Shape::Icon { icon, color });
    }

    /// One line in `area`, centred vertically, cut to its width.
    pub fn text(&mut self, area: Rect, align: Align, style: Style, color: Color, text: &str) {
        if text.is_empty() {
            return;
        }
        let text = self.fonts.fit(style, text, area.w);
        let w = self.fonts.width(style, &text);
        let x = match align {
            Align::Left => area.x,
            Align::Center => area.x + (area.w - w) / 2,
            Align::Right => area.right() - w,
        };
        // Capitals are about 0.73 em high: centre those, not the line box.
        let baseline = area.y + (area.h + i32::from(style.size) * 73 / 100) / 2;
        let bounds = rect(x, baseline - style.ascent(), w, style.line());
        self.scene.add(bounds, Shape::Text { text, style, color });
    }

    /// Several lines from the area's top; gives the height used.
    pub fn paragraph(
        &mut self,
        area: Rect,
        align: Align,
        style: Style,
        color: Color,
        text: &str,
    ) -> i32 {
        let mut y = area.y;
        for range in self.fonts.wrap(style, text, area.w) {
            let line = rect(area.x, y, area.w, style.line());
            self.text(line, align, style, color, text[range].trim_end());
            y += style.line();
        }
        y - area.y
    }

    /// A white card with a soft shadow.
    pub fn card(&mut self, area: Rect) {
        self.scene.add(
            area,
            Shape::Shadow {
                radius: theme::RADIUS,
            },
        );
        self.round(area, theme::RADIUS, theme::SURFACE);
    }

    /// A circle with the initial of a name, coloured by the name.
    pub fn avatar(&mut self, center: (i32, i32), side: i32, name: &str) {
        let sum = name.bytes().fold(7u32, |sum, b| {
            sum.wrapping_mul(31).wrapping_add(u32::from(b))
        });
        let color = theme::AVATARS[(sum % theme::AVATARS.len() as u32) as usize];
        let area = rect(center.0 - side / 2, center.1 - side / 2, side, side);
        self.round(area, side / 2, color);
        let initials: String = name
            .split_whitespace()
            .filter_map(|word| word.chars().next().filter(|c| c.is_alphabetic()))
            .take(2)
            .flat_map(char::to_uppercase)
            .collect();
        if initials.is_empty() {
            self.icon(center, side * 55 / 100, Icon::Person, theme::ON_COLOR);
        } else {
            let size = (side * 38 / 100).clamp(11, 40) as u16;
            let style = Style::new(size, crate::draw::font::Weight::SemiBold);
            self.text(area, Align::Center, style, theme::ON_COLOR, &initials);
        }
    }

    /// The title bar of an app's first screen: a large title.
    pub fn big_bar(&mut self, body: Rect, title: &str) -> Rect {
        let area = rect(body.x, body.y, body.w, BAR + 8);
        let text = rect(MARGIN + 4, body.y + 4, body.w - 120, BAR + 4);
        self.text(text, Align::Left, theme::DISPLAY_TITLE, theme::TEXT, title);
        rect(body.x, area.bottom(), body.w, body.h - area.h)
    }

    /// The title bar of an inner screen: back, title, and a place for actions at the right.
    pub fn bar(&mut self, body: Rect, title: &str) -> Rect {
        let area = rect(body.x, body.y, body.w, BAR);
        let back = rect(4, body.y + 4, 48, 48);
        self.touch_round("back", back, Action::Back);
        self.icon(back.center(), 24, Icon::Back, theme::TEXT);
        let text = rect(56, body.y, body.w - 56 - 112, BAR);
        self.text(text, Align::Left, theme::TITLE, theme::TEXT, title);
        rect(body.x, area.bottom(), body.w, body.h - area.h)
    }

    /// An icon button at a title bar's right end; `slot` counts from the right.
    pub fn bar_icon(
        &mut self,
        body: Rect,
        slot: i32,
        name: &'static str,
        icon: Icon,
        color: Color,
    ) {
        let area = rect(body.right() - 52 - slot * 50, body.y + 4, 48, 48);
        self.touch_round(name, area, Action::Press(name));
        self.icon(area.center(), 22, icon, color);
    }

    /// A worded button at a title bar's right end.
    pub fn bar_button(&mut self, body: Rect, name: &'static str, label: &str) {
        let w = self.fonts.width(theme::BODY_STRONG, label) + 32;
        let area = rect(body.right() - w - 12, body.y + 8, w, 40);
        let action = Action::Press(name);
        let color = if self.is_pressed(&action) {
            theme::PRIMARY_PRESSED
        } else {
            theme::PRIMARY
        };
        self.round(area, 20, color);
        self.text(
            area,
            Align::Center,
            theme::BODY_STRONG,
            theme::ON_COLOR,
            label,
        );
        self.target(name, area.inset(-4, -2), action);
    }

    /// A round target that shows only while pressed.
    fn touch_round(&mut self, name: &str, area: Rect, action: Action) {
        if self.is_pressed(&action) {
            self.round(area, area.w / 2, theme::DIVIDER);
        }
        self.target(name, area, action);
    }

    /// A filled round button with an icon.
    pub fn round_button(
        &mut self,
        name: &'static str,
        center: (i32, i32),
        side: i32,
        icon: Icon,
        colors: (Color, Color),
    ) {
        let area = rect(center.0 - side / 2, center.1 - side / 2, side, side);
        let action = Action::Press(name);
        let color = if self.is_pressed(&action) {
            colors.1
        } else {
            colors.0
        };
        self.round(area, side / 2, color);
        self.icon(center, side * 44 / 100, icon, theme::ON_COLOR);
        let grow = ((TOUCH_MIN - side) / 2).max(0);
        self.target(name, area.inset(-grow, -grow), action);
    }

    /// The button that makes something new, floating over a list.
    pub fn floating_button(&mut self, body: Rect, name: &'static str, icon: Icon) {
        let area = rect(
            body.right() - 56 - MARGIN,
            body.bottom() - 56 - MARGIN,
            56,
            56,
        );
        self.scene.add(area, Shape::Shadow { radius: 18 });
        let action = Action::Press(name);
        let color = if self.is_pressed(&action) {
            theme::PRIMARY_PRESSED
        } else {
            theme::PRIMARY
        };
        self.round(area, 18, color);
        self.icon(area.center(), 26, icon, theme::ON_COLOR);
        self.target(name, area, action);
    }

    /// A wide button.
    pub fn button(
        &mut self,
        area: Rect,
        name: &'static str,
        label: &str,
        colors: (Color, Color, Color),
    ) {
        let action = Action::Press(name);
        let (normal, pressed, ink) = colors;
        let color = if self.is_pressed(&action) {
            pressed
        } else {
            normal
        };
        self.round(area, area.h.min(48) / 2, color);
        self.text(area, Align::Center, theme::BODY_STRONG, ink, label);
        self.target(name, area, action);
    }

    /// Begins a list of `content` dp height in `area`; gives the top of its first row. Rows are
    /// clipped to the area until [`Ui::end_list`].
    pub fn begin_list(&mut self, area: Rect, content: i32) -> i32 {
        self.overflow = (content - area.h).max(0);
        self.scene.push_clip(area);
        area.y - self.scrolled.clamp(0, self.overflow)
    }

    /// Like [`Ui::begin_list`] for a list that clings to its end: scrolling goes backwards.
    pub fn begin_list_at_end(&mut self, area: Rect, content: i32) -> i32 {
        self.overflow = (content - area.h).max(0);
        self.scene.push_clip(area);
        area.y - self.overflow + self.scrolled.clamp(0, self.overflow)
    }

    pub fn end_list(&mut self) {
        self.scene.pop_clip();
    }

    /// Whether any of `area` shows in the current clip.
    pub fn shows(&self, area: Rect) -> bool {
        !area.intersect(&self.scene.clip()).is_empty()
    }

    /// The background of a touchable row.
    pub fn row_back(&mut self, name: &str, area: Rect, action: Action) {
        if self.is_pressed(&action) {
            self.fill(area, theme::SURFACE_PRESSED);
        }
        self.target(name, area, action);
    }

    /// A row with avatar, two lines, and a note at the right.
    pub fn person_row(&mut self, area: Rect, who: &str, second: &str, note: &str) {
        let middle = area.y + area.h / 2;
        self.avatar((area.x + MARGIN + 22, middle), 44, who);
        let x = area.x + MARGIN + 44 + 14;
        let note_w = self.fonts.width(theme::CAPTION, note);
        let right = area.right() - MARGIN;
        let first = if second.is_empty() {
            rect(x, area.y, right - x, area.h)
        } else {
            rect(x, middle - 23, right - x - note_w - 8, 22)
        };
        self.text(first, Align::Left, theme::BODY_STRONG, theme::TEXT, who);
        self.text(
            rect(x, middle, right - x, 22),
            Align::Left,
            theme::SECOND,
            theme::TEXT_SECONDARY,
            second,
        );
        self.text(
            rect(right - note_w, middle - 23, note_w, 22),
            Align::Right,
            theme::CAPTION,
            theme::TEXT_FAINT,
            note,
        );
    }

    /// What an empty list says.
    pub fn empty(&mut self, area: Rect, icon: Icon, title: &str, hint: &str) {
        let (x, y) = area.center();
        let y = y - 40;
        self.round(rect(x - 40, y - 60, 80, 80), 40, theme::PRIMARY_SOFT);
        self.icon((x, y - 20), 36, icon, theme::PRIMARY);
        let line = rect(area.x + 32, y + 36, area.w - 64, 24);
        self.text(line, Align::Center, theme::TITLE, theme::TEXT, title);
        let hint_area = rect(area.x + 48, y + 66, area.w - 96, 60);
        self.paragraph(
            hint_area,
            Align::Center,
            theme::SECOND,
            theme::TEXT_SECONDARY,
            hint,
        );
    }

    /// A labelled one-line text field of height [`FIELD`].
    pub fn field(&mut self, area: Rect, index: usize, label: &str, field: &Field, look: FieldLook) {
        let focused = look.focused;
        let area = rect(area.x, area.y, area.w, FIELD - 8);
        let edge = if focused {
            theme::PRIMARY
        } else {
            theme::OUTLINE
        };
        self.round(area, 12, edge);
        let thick = if focused { 2 } else { 1 };
        self.round(area.inset(thick, thick), 12 - thick, theme::SURFACE);
        let ink = if focused {
            theme::PRIMARY
        } else {
            theme::TEXT_SECONDARY
        };
        self.text(
            rect(area.x + 14, area.y + 7, area.w - 28, 16),
            Align::Left,
            theme::CAPTION,
            ink,
            label,
        );
        let line = rect(area.x + 14, area.y + 25, area.w - 28 - look.trailing, 24);
        self.line_of_text(line, field, look);
        let name = format!("field.{}", label.to_lowercase().replace(' ', "_"));
        self.target(&name, area, Action::Focus(index));
    }

    /// A field's text and cursor in one line; the end near the cursor shows when it is too long.
    pub fn line_of_text(&mut self, area: Rect, field: &Field, look: FieldLook) {
        let style = theme::BODY;
        let shown = |text: &str| {
            if look.masked {
                mask(text)
            } else {
                text.to_owned()
            }
        };
        let before = shown(&field.text()[..field.cursor()]);
        let at = self.fonts.width(style, &before);
        let shift = (at + 2 - area.w).max(0);
        let text = shown(field.text());
        self.scene.push_clip(area);
        let baseline = area.y + (area.h + i32::from(style.size) * 73 / 100) / 2;
        if !text.is_empty() {
            let w = self.fonts.width(style, &text);
            let bounds = rect(area.x - shift, baseline - style.ascent(), w, style.line());
            self.scene.add(
                bounds,
                Shape::Text {
                    text,
                    style,
                    color: theme::TEXT,
                },
            );
        }
        if look.focused {
            self.typed = Some(TypedLine {
                area,
                shift,
                masked: look.masked,
            });
            self.fill(
                rect(area.x + at - shift, baseline - 14, 2, 19),
                theme::PRIMARY,
            );
        }
        self.scene.pop_clip();
    }

    pub fn divider(&mut self, x: i32, y: i32, w: i32) {
        self.fill(rect(x, y, w, 1), theme::DIVIDER);
    }
}

/// The look and name of an app on the home screen.
pub fn app_look(app: App) -> (AppIcon, &'static str, &'static str) {
    match app {
        App::Phone => (AppIcon::Phone, "Phone", "phone"),
        App::Messages => (AppIcon::Messages, "Messages", "messages"),
        App::Contacts => (AppIcon::Contacts, "Contacts", "contacts"),
        App::Notes => (AppIcon::Notes, "Notes", "notes"),
        App::Files => (AppIcon::Files, "Files", "files"),
        App::Mail => (AppIcon::Mail, "Mail", "mail"),
        App::Wifi => (AppIcon::Wifi, "Wi-Fi", "wifi"),
        App::Settings => (AppIcon::Settings, "Settings", "settings"),
    }
}
