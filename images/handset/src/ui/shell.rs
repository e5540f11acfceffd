//! The shell: the stack of screens and everything around them.
//!
//! Each event is applied at once and in order, so the state depends on the input alone; how often a
//! scene is asked for in between makes no difference. A touch becomes an action when it is lifted
//! over the target it began on; once it has moved further than a few dp it scrolls instead.

use std::path::PathBuf;
use std::rc::Rc;

use super::builder::{Align, Target, TypedLine, Ui};
use super::clock::Clock;
use super::keyboard::{self, Keyboard};
use super::view::{Backdrop, Context, Go, View};
use super::{Action, Event, Key};
use crate::draw::font::Fonts;
use crate::draw::icons::Icon;
use crate::draw::scene::{Scene, Shape};
use crate::draw::theme;
use crate::geometry::{Rect, rect};
use crate::screens;
use crate::store::Store;
use crate::store::settings::Settings;

/// Height of the bar with the time.
pub const STATUS: i32 = 28;
/// Height of the bar with back and home.
pub const NAVIGATION: i32 = 44;
/// A touch that moves further than this, in dp, is a drag.
const DRAG_MIN: i32 = 10;
/// A drag up from the navigation bar as long as this goes home.
const SWIPE_HOME: i32 = 60;
/// Screens kept with text that could not be saved.
const PARKED_MAX: usize = 8;
/// Screens on top of each other; opening more drops the oldest above home.
const DEPTH_MAX: usize = 16;

struct Touch {
    start: (i32, i32),
    last: (i32, i32),
    action: Option<Action>,
    /// The scroll offset when the touch began, once it has become a drag.
    drag: Option<i32>,
    moved: bool,
}

pub struct Shell {
    size: (i32, i32),
    store: Store,
    fonts: Rc<Fonts>,
    clock: Clock,
    views: Vec<Box<dyn View>>,
    keyboard: Keyboard,
    /// What went wrong when something was asked for; stays until dismissed or done.
    banner: Option<String>,
    /// What went wrong when files were last read.
    notice: Option<String>,
    /// Screens that were left while their text could not be saved, until it is.
    parked: Vec<Box<dyn View>>,
    wifi_network: bool,
    touch: Option<Touch>,
    targets: Vec<Target>,
    overflow: i32,
    typed: Option<TypedLine>,
}

impl Shell {
    /// A shell for a display of `size` dp, showing the home screen.
    pub fn new(size: (i32, i32), store: Store, fonts: Rc<Fonts>, clock: Clock) -> Self {
        let mut shell = Self {
            size,
            store,
            fonts,
            clock,
            views: vec![Box::new(screens::home::Home)],
            keyboard: Keyboard::default(),
            banner: None,
            notice: None,
            parked: Vec::new(),
            wifi_network: false,
            touch: None,
            targets: Vec::new(),
            overflow: 0,
            typed: None,
        };
        shell.read_status();
        shell.lay_out();
        shell
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A folder that the present screen lists besides [`Store::watched`], if any.
    pub fn watched(&self) -> Option<PathBuf> {
        self.views.last().and_then(|view| view.watched())
    }

    /// What can be touched now.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What the banner says, if it shows.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref().or(self.notice.as_deref())
    }

    /// Whether [`Shell::save`] has something to do.
    pub fn unsaved(&self) -> bool {
        !self.parked.is_empty() || self.views.last().is_some_and(|view| view.unsaved())
    }

    /// Saves what waits for a pause in typing.
    pub fn save(&mut self) {
        self.save_top();
        let parked = std::mem::take(&mut self.parked);
        let current = std::mem::take(&mut self.views);
        for view in parked {
            self.views.push(view);
            self.save_top();
            self.parked
                .extend(self.views.pop().filter(|view| view.unsaved()));
        }
        self.views = current;
        self.lay_out();
    }

    fn save_top(&mut self) {
        self.with_view(|view, cx| {
            if view.unsaved() {
                view.save(cx);
            }
            Go::Stay
        });
    }

    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Down { x, y } => self.down(x, y),
            Event::Move { x, y } => self.moved(x, y),
            Event::Up => self.up(),
            Event::Key(key) => self.key(key),
            Event::Clock(clock) => self.clock = clock,
            Event::Changed => self.reload(),
        }
        self.lay_out();
    }

    /// The present screen.
    pub fn scene(&self) -> Scene {
        self.build().scene
    }

    fn read_status(&mut self) {
        let wifi = self.store.settings(Settings::Wifi);
        self.wifi_network = wifi.is_ok_and(|values| !values.get("network").is_empty());
    }

    fn reload(&mut self) {
        self.read_status();
        self.notice = None;
        let asked = self.banner.take();
        self.with_view(|view, cx| {
            view.reload(cx);
            Go::Stay
        });
        // Trouble with reading goes away with its cause, so it is kept apart.
        self.notice = std::mem::replace(&mut self.banner, asked);
    }

    /// Finds out what can be touched, and keeps the scroll offset within the list.
    fn lay_out(&mut self) {
        let ui = self.build();
        let (targets, overflow, typed) = (ui.targets, ui.overflow, ui.typed);
        self.typed = typed;
        self.targets = targets;
        self.overflow = overflow;
        if let Some(offset) = self.views.last_mut().and_then(|view| view.scroll()) {
            *offset = (*offset).clamp(0, overflow);
        }
    }

    /// Runs `work` on the top view, then goes where it says.
    fn with_view(&mut self, work: impl FnOnce(&mut dyn View, &mut Context<'_>) -> Go) {
        let body = self.view_body();
        let Some(view) = self.views.last_mut() else {
            return;
        };
        let mut cx = Context {
            store: &self.store,
            fonts: &self.fonts,
            clock: self.clock,
            body,
            banner: &mut self.banner,
        };
        let go = work(view.as_mut(), &mut cx);
        self.go(go);
    }

    fn go(&mut self, go: Go) {
        if matches!(go, Go::Stay | Go::Keep) {
            return;
        }
        self.save_top();
        match go {
            Go::Stay | Go::Keep => return,
            Go::Push(view) => self.views.push(view),
            Go::Replace(view) => {
                self.drop_views(self.views.len() - 1);
                self.views.push(view);
            }
            Go::Back => self.drop_views((self.views.len() - 1).max(1)),
            Go::Home => self.drop_views(1),
            Go::Open(app) => {
                self.drop_views(1);
                self.views.push(screens::open(app));
                let waiting = self.parked.iter().position(|view| view.app() == Some(app));
                self.views
                    .extend(waiting.map(|index| self.parked.remove(index)));
            }
        }
        if self.views.len() > DEPTH_MAX {
            self.views.remove(1);
        }
        self.keyboard.reset();
        self.reload();
    }

    /// Takes leave of views until `keep` are left. Those that could not be saved are parked.
    fn drop_views(&mut self, keep: usize) {
        while self.views.len() > keep {
            self.with_view(|view, cx| {
                view.leave(cx);
                Go::Stay
            });
            let unsaved = self.views.pop().filter(|view| view.unsaved());
            if self.parked.len() < PARKED_MAX {
                self.parked.extend(unsaved);
            }
        }
    }

    fn down(&mut self, x: i32, y: i32) {
        if self.touch.is_some() {
            // A second finger: the first one counts as lifted.
            self.up();
            self.lay_out();
        }
        let hit = self
            .targets
            .iter()
            .rev()
            .find(|target| target.area.contains(x, y));
        let action = hit.map(|target| target.action.clone());
        self.touch = Some(Touch {
            start: (x, y),
            last: (x, y),
            action,
            drag: None,
            moved: false,
        });
    }

    fn moved(&mut self, x: i32, y: i32) {
        let body = self.body();
        let from_end = self
            .views
            .last()
            .is_some_and(|view| view.scrolls_from_end());
        let offset = self.views.last_mut().and_then(|view| view.scroll());
        let Some(touch) = &mut self.touch else { return };
        touch.last = (x, y);
        let (dx, dy) = (x - touch.start.0, y - touch.start.1);
        if dx.abs() > DRAG_MIN || dy.abs() > DRAG_MIN {
            touch.moved = true;
        }
        let Some(offset) = offset else { return };
        if touch.drag.is_none()
            && dy.abs() > DRAG_MIN
            && body.contains(touch.start.0, touch.start.1)
        {
            touch.drag = Some(*offset);
            touch.action = None;
        }
        if let Some(start) = touch.drag {
            let wanted = if from_end { start + dy } else { start - dy };
            *offset = wanted.clamp(0, self.overflow);
        }
    }

    fn up(&mut self) {
        let Some(touch) = self.touch.take() else {
            return;
        };
        let (x, y) = touch.last;
        if touch.drag.is_some() {
            return;
        }
        if touch.start.1 >= self.size.1 - NAVIGATION && touch.start.1 - y > SWIPE_HOME {
            return self.go(Go::Home);
        }
        let hit = self
            .targets
            .iter()
            .rev()
            .find(|target| target.area.contains(x, y));
        let action = hit.map(|target| target.action.clone());
        if action == touch.action {
            if let Some(action) = action {
                return self.act(action, (x, y));
            }
            if !touch.moved && self.body().contains(x, y) {
                self.with_view(|view, cx| {
                    view.tap(x, y, cx);
                    Go::Stay
                });
            }
        }
    }

    fn act(&mut self, action: Action, at: (i32, i32)) {
        match action {
            Action::Back => self.key(Key::Back),
            Action::Home => self.go(Go::Home),
            Action::Open(app) => self.go(Go::Open(app)),
            Action::DismissBanner => {
                self.banner = None;
                self.notice = None;
            }
            Action::Type(cap) => {
                if let Some(key) = self.keyboard.press(cap) {
                    self.key(key);
                }
            }
            Action::Focus(_) => {
                self.with_view(|view, cx| view.act(&action, cx));
                self.lay_out();
                let Some(line) = self.typed else { return };
                if let Some(field) = self.views.last_mut().and_then(|view| view.focus()) {
                    let offset = line.offset_at(&self.fonts, field.text(), at.0);
                    field.move_to(offset);
                }
            }
            _ => self.with_view(|view, cx| view.act(&action, cx)),
        }
    }

    fn key(&mut self, key: Key) {
        match key {
            Key::Home => return self.go(Go::Home),
            Key::Back => {
                let mut handled = false;
                self.with_view(|view, cx| {
                    let go = view.key(Key::Back, cx);
                    handled = !matches!(go, Go::Stay);
                    go
                });
                if !handled {
                    self.go(Go::Back);
                }
                return;
            }
            _ => {}
        }
        self.with_view(|view, cx| {
            let taken = view.focus().is_some_and(|field| field.key(key));
            if taken {
                view.edited(cx)
            } else {
                view.key(key, cx)
            }
        });
    }

    fn body(&self) -> Rect {
        rect(0, STATUS, self.size.0, self.size.1 - STATUS - NAVIGATION)
    }

    /// What is left of the body for the view.
    fn view_body(&self) -> Rect {
        let mut body = self.body();
        if let Some(text) = self.banner() {
            let used = self.banner_height(text) + 8;
            body = rect(body.x, body.y + used, body.w, body.h - used);
        }
        if self.views.last().is_some_and(|view| view.wants_keyboard()) {
            body.h -= keyboard::HEIGHT;
        }
        body
    }

    fn banner_lines(&self, text: &str) -> i32 {
        let width = self.size.0 - 2 * theme::MARGIN - 90;
        self.fonts.wrap(theme::LABEL, text, width).len().clamp(1, 4) as i32
    }

    fn banner_height(&self, text: &str) -> i32 {
        (self.banner_lines(text) * theme::LABEL.line() + 20).max(theme::TOUCH_MIN)
    }

    fn build(&self) -> Ui<'_> {
        let (w, h) = self.size;
        let mut ui = Ui {
            scene: Scene::new(w, h),
            targets: Vec::with_capacity(64),
            fonts: &self.fonts,
            clock: self.clock,
            pressed: self.touch.as_ref().and_then(|touch| touch.action.as_ref()),
            scrolled: 0,
            overflow: 0,
            typed: None,
            screen: "",
        };
        let Some(view) = self.views.last() else {
            return ui;
        };
        let backdrop = view.backdrop();
        match backdrop {
            Backdrop::Light => ui.fill(rect(0, 0, w, h), theme::BACKGROUND),
            Backdrop::Night => ui.fill(rect(0, 0, w, h), theme::NIGHT),
            Backdrop::Wallpaper => ui.scene.add(rect(0, 0, w, h), Shape::Wallpaper),
        }
        ui.scrolled = view.scrolled();
        if let Some(text) = self.banner() {
            self.draw_banner(&mut ui, text);
        }
        let typing = view.wants_keyboard();
        ui.screen = view.name();
        view.draw(&mut ui, self.view_body());
        if typing {
            ui.screen = "keyboard";
            let area = rect(0, h - NAVIGATION - keyboard::HEIGHT, w, keyboard::HEIGHT);
            self.keyboard.draw(&mut ui, area);
        }
        self.draw_status(&mut ui, backdrop);
        self.draw_navigation(&mut ui, backdrop, typing);
        ui
    }

    fn draw_status(&self, ui: &mut Ui<'_>, backdrop: Backdrop) {
        let w = self.size.0;
        let ink = if backdrop == Backdrop::Light {
            theme::TEXT
        } else {
            theme::ON_COLOR
        };
        let middle = STATUS / 2 + 1;
        let line = rect(18, 2, w - 36, STATUS - 2);
        let time = self.clock.time();
        ui.text(line, Align::Left, theme::STATUS, ink, &time);
        let mut x = w - 18 - 11;
        ui.icon((x, middle), 22, Icon::Battery, ink);
        x -= 26;
        if self.wifi_network {
            ui.icon((x, middle), 17, Icon::Wifi, ink);
            x -= 22;
        }
        ui.icon((x, middle), 16, Icon::Signal, ink);
        let carrier = rect(x - 112, 2, 100, STATUS - 2);
        ui.text(carrier, Align::Right, theme::CAPTION, ink, "Pollux");
    }

    fn draw_navigation(&self, ui: &mut Ui<'_>, backdrop: Backdrop, typing: bool) {
        let (w, h) = self.size;
        let area = rect(0, h - NAVIGATION, w, NAVIGATION);
        if typing {
            ui.fill(area, theme::KEYBOARD);
        }
        ui.screen = "nav";
        let ink = if backdrop == Backdrop::Light {
            theme::TEXT
        } else {
            theme::ON_COLOR
        };
        let home = rect(w / 2 - 70, area.y, 140, area.h);
        let wide = if ui.is_pressed(&Action::Home) {
            72
        } else {
            112
        };
        ui.round(
            rect(w / 2 - wide / 2, area.y + area.h / 2 + 5, wide, 5),
            2,
            ink.with_alpha(200),
        );
        ui.target("home", home, Action::Home);
        if self.views.len() > 1 {
            let back = rect(8, area.y, 64, area.h);
            if ui.is_pressed(&Action::Back) {
                ui.round(back.inset(10, 3), 19, ink.with_alpha(40));
            }
            ui.icon(
                (back.x + 32, area.y + area.h / 2 + 3),
                22,
                Icon::Back,
                ink.with_alpha(220),
            );
            ui.target("back", back, Action::Back);
        }
    }

    fn draw_banner(&self, ui: &mut Ui<'_>, text: &str) {
        let body = self.body();
        let inner = body.w - 2 * theme::MARGIN - 90;
        let (lines, height) = (self.banner_lines(text), self.banner_height(text));
        let area = rect(theme::GAP, body.y + 4, body.w - 2 * theme::GAP, height);
        ui.round(area, 14, theme::AMBER_SOFT);
        ui.icon(
            (area.x + 24, area.y + height / 2),
            20,
            Icon::Warning,
            theme::AMBER_TEXT,
        );
        let top = area.y + (height - lines * theme::LABEL.line()) / 2;
        let words = rect(area.x + 46, top, inner, height);
        ui.scene.push_clip(area);
        ui.paragraph(words, Align::Left, theme::LABEL, theme::AMBER_TEXT, text);
        ui.scene.pop_clip();
        ui.screen = "banner";
        let close = rect(area.right() - 60, area.y, 60, height);
        ui.text(close, Align::Center, theme::LABEL, theme::AMBER_TEXT, "OK");
        ui.target("ok", close, Action::DismissBanner);
    }
}
