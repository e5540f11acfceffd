//! The reference phone's graphical shell: home, phone, messages, contacts, settings, files, notes.
//!
//! A pure core ([`ui::shell::Shell`]) turns input, clock and file changes into a scene; [`draw`]
//! turns scenes into pixels, drawing only what differs; [`store`] keeps the user's data; and
//! [`platform`] connects them to the kernel's display and input devices. What the screen shows is a
//! function of the files, the input so far and the minute of the clock: nothing blinks, ticks or
//! moves by itself, so a copy that gets the same files and input shows the same pixels.
//!
//! Type is Inter from the Debian package `fonts-inter` ([`draw::font`]); nothing else is needed at
//! run time. Left out: sound, a modem (calls connect at once and messages count as sent), and
//! scripts that need shaping.

pub mod bench_phone;
pub mod draw;
pub mod gallery;
pub mod geometry;
pub mod platform;
pub mod screens;
pub mod store;
pub mod ui;
