//! The pure core: input and clock in, scenes out; data only through [`crate::store::Store`].
//!
//! A [`view::View`] is one screen. The [`shell::Shell`] keeps the stack of them, turns touches into
//! actions, feeds typed text to the focused field, and frames every screen with status bar,
//! on-screen keyboard and navigation bar.

pub mod builder;
pub mod clock;
pub mod field;
pub mod keyboard;
pub mod shell;
pub mod text_area;
pub mod view;

/// A key, from the on-screen keyboard or a real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Enter,
    Backspace,
    Delete,
    Left,
    Right,
    Up,
    Down,
    Tab,
    /// Leaves the screen.
    Back,
    Home,
}

/// One input to the core. Touch positions are in dp.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Down {
        x: i32,
        y: i32,
    },
    Move {
        x: i32,
        y: i32,
    },
    Up,
    Key(Key),
    /// The wall clock was looked at.
    Clock(clock::Clock),
    /// Files changed, by whomever.
    Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    Phone,
    Messages,
    Contacts,
    Notes,
    Files,
    Mail,
    Wifi,
    Settings,
}

/// What touching something asks for. Views give the generic ones their meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Back,
    Home,
    Open(App),
    /// A row, by the view's own number for it.
    Pick(usize),
    /// A control, by name.
    Press(&'static str),
    /// A key of the dial pad.
    Dial(char),
    /// A text field, by the view's own number for it.
    Focus(usize),
    Type(keyboard::Cap),
    DismissBanner,
}
