//! Design tokens: the only place where colours, type sizes and spacing are chosen.
//!
//! Light theme. Text colours keep a contrast of at least 4.5:1 on the surfaces they are used on.

use super::canvas::Color;
use super::font::{Style, Weight};

// Surfaces
pub const BACKGROUND: Color = Color::rgb(0xf3f4f8);
pub const SURFACE: Color = Color::rgb(0xffffff);
pub const SURFACE_PRESSED: Color = Color::rgb(0xe7eaf3);
pub const FIELD: Color = Color::rgb(0xf0f2f7);
pub const DIVIDER: Color = Color::rgb(0xe4e7ee);
pub const OUTLINE: Color = Color::rgb(0xd3d8e3);
pub const SHADOW: Color = Color(0x0810_1a33);
pub const KEYBOARD: Color = Color::rgb(0xd9dde7);
pub const KEY_EDGE: Color = Color::rgb(0xb3bac9);
pub const KEY_SPECIAL: Color = Color::rgb(0xc3cad8);
pub const KEY_PRESSED: Color = Color::rgb(0xa9b6dc);

// Text
pub const TEXT: Color = Color::rgb(0x151a26);
pub const TEXT_SECONDARY: Color = Color::rgb(0x596275);
pub const TEXT_FAINT: Color = Color::rgb(0x6b7487);
pub const ON_COLOR: Color = Color::rgb(0xffffff);

// Accents
pub const PRIMARY: Color = Color::rgb(0x2f5be7);
pub const PRIMARY_PRESSED: Color = Color::rgb(0x2447bd);
pub const PRIMARY_SOFT: Color = Color::rgb(0xe3e9fd);
pub const GREEN: Color = Color::rgb(0x178a4b);
pub const GREEN_PRESSED: Color = Color::rgb(0x10693a);
pub const RED: Color = Color::rgb(0xd23440);
pub const RED_PRESSED: Color = Color::rgb(0xa72530);
pub const RED_SOFT: Color = Color::rgb(0xfbe4e6);
pub const RED_SOFT_PRESSED: Color = Color::rgb(0xf4cbcf);
/// The time in a bubble of one's own.
pub const BUBBLE_TIME: Color = Color::rgb(0xd5defc);
pub const AMBER_SOFT: Color = Color::rgb(0xfff1d6);
pub const AMBER_TEXT: Color = Color::rgb(0x6f4700);
/// The screen of a call in progress.
pub const NIGHT: Color = Color::rgb(0x17203c);
pub const NIGHT_RAISED: Color = Color::rgb(0x2a3558);
pub const NIGHT_TEXT: Color = Color::rgb(0xb9c3e0);
pub const CALL_ACTIVE: Color = Color::rgb(0x6fe0a2);

/// Backgrounds of initials; white text reads on each.
pub const AVATARS: [Color; 8] = [
    Color::rgb(0x3b66d6),
    Color::rgb(0x8a4fc4),
    Color::rgb(0x0f7f8c),
    Color::rgb(0xb4503c),
    Color::rgb(0x2f7d4f),
    Color::rgb(0xb03d78),
    Color::rgb(0x7a6a1f),
    Color::rgb(0x50648c),
];

// Type scale
pub const CLOCK: Style = Style::new(64, Weight::Medium);
pub const DISPLAY: Style = Style::new(32, Weight::Medium);
pub const KEYPAD: Style = Style::new(28, Weight::Medium);
pub const KEYPAD_LETTERS: Style = Style::new(10, Weight::SemiBold);
pub const HEADLINE: Style = Style::new(22, Weight::SemiBold);
/// Title of an app's first screen.
pub const DISPLAY_TITLE: Style = Style::new(27, Weight::SemiBold);
pub const TITLE: Style = Style::new(18, Weight::SemiBold);
pub const BODY: Style = Style::new(15, Weight::Regular);
pub const BODY_STRONG: Style = Style::new(15, Weight::SemiBold);
/// Second lines of rows, hints.
pub const SECOND: Style = Style::new(14, Weight::Regular);
pub const KEYCAP: Style = Style::new(19, Weight::Regular);
pub const LABEL: Style = Style::new(13, Weight::Medium);
pub const CAPTION: Style = Style::new(12, Weight::Medium);
pub const STATUS: Style = Style::new(13, Weight::SemiBold);

pub const HOME_DATE: Style = Style::new(17, Weight::Medium);

// Spacing and shape
pub const GAP: i32 = 8;
pub const MARGIN: i32 = 16;
pub const RADIUS: i32 = 16;
pub const RADIUS_SMALL: i32 = 10;
/// The smallest side of anything to be touched.
pub const TOUCH_MIN: i32 = 44;
