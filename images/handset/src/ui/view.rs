//! The contract between the shell and one screen.

use std::path::PathBuf;

use super::builder::Ui;
use super::clock::Clock;
use super::field::Field;
use super::{Action, App, Key};
use crate::draw::font::Fonts;
use crate::geometry::Rect;
use crate::store::{Store, StoreError};

/// What a view may use while it handles something.
pub struct Context<'a> {
    pub store: &'a Store,
    pub fonts: &'a Fonts,
    pub clock: Clock,
    /// Where the view is drawn.
    pub body: Rect,
    /// What the banner says, if anything.
    pub banner: &'a mut Option<String>,
}

impl Context<'_> {
    /// Shows an error to the user and gives nothing, so that the caller can carry on without.
    pub fn tell<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                *self.banner = Some(error.to_string());
                None
            }
        }
    }

    /// Shows that a damaged file had to be replaced.
    pub fn tell_replaced(&mut self, replaced: Option<StoreError>) {
        if let Some(error) = replaced {
            *self.banner = Some(error.to_string());
        }
    }
}

/// Where to go after handling something.
pub enum Go {
    /// Nowhere; a back key that ends here leaves the view.
    Stay,
    /// Nowhere, and the key was used.
    Keep,
    Push(Box<dyn View>),
    /// In place of the present view.
    Replace(Box<dyn View>),
    Back,
    Home,
    Open(App),
}

/// One screen.
///
/// The shell calls `act`, `key`, `reload` and `leave` one at a time and draws afterwards; `draw`
/// only reads. A view that has a focused field gets editing keys through it, then `edited`.
pub trait View {
    /// Prefix of the names of its touch targets.
    fn name(&self) -> &'static str;

    /// The app that brings it back if it was left with text that could not be saved.
    fn app(&self) -> Option<App> {
        None
    }

    /// Draws into `body`: the display without status bar, navigation bar and keyboard.
    fn draw(&self, ui: &mut Ui<'_>, body: Rect);

    fn act(&mut self, _action: &Action, _cx: &mut Context<'_>) -> Go {
        Go::Stay
    }

    /// Keys that the focused field did not take.
    fn key(&mut self, _key: Key, _cx: &mut Context<'_>) -> Go {
        Go::Stay
    }

    /// The field that typed text goes to.
    fn focus(&mut self) -> Option<&mut Field> {
        None
    }

    /// The focused field's text or cursor changed.
    fn edited(&mut self, _cx: &mut Context<'_>) -> Go {
        Go::Stay
    }

    /// A touch at rest that hit no target: for placing a cursor in a text of several lines.
    fn tap(&mut self, _x: i32, _y: i32, _cx: &mut Context<'_>) {}

    /// Reads its data anew, keeping what the user typed. Called when it appears and when files change.
    fn reload(&mut self, _cx: &mut Context<'_>) {}

    /// A folder whose changes matter to it, besides those the store knows.
    fn watched(&self) -> Option<PathBuf> {
        None
    }

    /// Whether something waits to be saved at the next pause.
    fn unsaved(&self) -> bool {
        false
    }

    /// Saves what waits. Called at a pause, and before another view takes over.
    fn save(&mut self, _cx: &mut Context<'_>) {}

    /// The view is about to be dropped.
    fn leave(&mut self, _cx: &mut Context<'_>) {}

    /// Whether the on-screen keyboard shows: whenever there is a focused field.
    fn wants_keyboard(&self) -> bool {
        false
    }

    /// How far its list is scrolled, if it has one.
    fn scroll(&mut self) -> Option<&mut i32> {
        None
    }

    /// The same, for drawing.
    fn scrolled(&self) -> i32 {
        0
    }

    /// Whether its list clings to its end, so that dragging down scrolls away from there.
    fn scrolls_from_end(&self) -> bool {
        false
    }

    /// Dark screens get light status and navigation bars; `None` is the default light background.
    fn backdrop(&self) -> Backdrop {
        Backdrop::Light
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backdrop {
    Light,
    Night,
    Wallpaper,
}
