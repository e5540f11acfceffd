//! The apps, a module each. Every screen is a [`View`].

pub mod contacts;
pub mod files;
pub mod home;
pub mod messages;
pub mod notes;
pub mod phone;
pub mod settings;

use crate::ui::App;
use crate::ui::view::View;

/// An app's first screen.
pub fn open(app: App) -> Box<dyn View> {
    match app {
        App::Phone => Box::new(phone::Phone::default()),
        App::Messages => Box::new(messages::Messages::default()),
        App::Contacts => Box::new(contacts::Contacts::default()),
        App::Notes => Box::new(notes::Notes::default()),
        App::Files => Box::new(files::Folder::default()),
        App::Mail => Box::new(settings::Form::mail()),
        App::Wifi => Box::new(settings::Form::wifi()),
        App::Settings => Box::new(settings::Settings::default()),
    }
}
