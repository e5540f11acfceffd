//! The apps, a module each. Every screen is a [`View`].

pub mod home;
pub mod notes;
pub mod phone;

use crate::ui::App;
use crate::ui::view::View;

/// An app's first screen.
pub fn open(app: App) -> Box<dyn View> {
    match app {
        App::Phone => Box::new(phone::Phone::default()),
        _ => Box::new(notes::Notes::default()),
    }
}
