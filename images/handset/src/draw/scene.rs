//! A screen as a list of things to draw, in dp, from back to front.
//!
//! Screens build a scene from their state; the renderer compares it with the one before and draws
//! only what differs. A scene also carries what can be touched.

use std::hash::{Hash, Hasher};

use super::canvas::Color;
use super::font::Style;
use super::icons::{AppIcon, Icon};
use crate::geometry::{Rect, rect};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// The home screen's background, over the whole display.
    Wallpaper,
    Fill(Color),
    /// A rectangle with rounded corners.
    Round {
        radius: i32,
        color: Color,
    },
    /// A soft shadow around a rounded rectangle; the item's bounds are the rectangle's.
    Shadow {
        radius: i32,
    },
    /// A glyph of the icon set, fitted into the bounds.
    Icon {
        icon: Icon,
        color: Color,
    },
    AppIcon(AppIcon),
    /// One line of text, starting at the bounds' left edge, `style.ascent()` below its top.
    Text {
        text: String,
        style: Style,
        color: Color,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where the shape is.
    pub bounds: Rect,
    /// The part of it that shows.
    pub clip: Rect,
    pub shape: Shape,
    fingerprint: u64,
}

/// How far a shadow reaches beyond its rectangle, in dp.
pub const SHADOW_REACH: i32 = 6;

impl Item {
    fn new(bounds: Rect, clip: Rect, shape: Shape) -> Self {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        (bounds, clip, &shape).hash(&mut hasher);
        let fingerprint = hasher.finish();
        Self {
            bounds,
            clip,
            shape,
            fingerprint,
        }
    }

    /// A hash of everything; differs whenever two items differ, but for a rare collision.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether every pixel of the clip is replaced.
    pub fn is_opaque(&self) -> bool {
        match &self.shape {
            Shape::Wallpaper => true,
            Shape::Fill(color) => color.alpha() == 255,
            _ => false,
        }
    }
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_i32(&mut self, value: i32) {
        self.write_u32(value as u32);
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value))
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(23);
    }
}

pub struct Scene {
    pub items: Vec<Item>,
    clips: Vec<Rect>,
}

impl Scene {
    /// An empty scene for a display of `w` by `h` dp.
    pub fn new(w: i32, h: i32) -> Self {
        Self {
            items: Vec::with_capacity(160),
            clips: vec![rect(0, 0, w, h)],
        }
    }

    /// The area that is drawn to at present.
    pub fn clip(&self) -> Rect {
        self.clips.last().copied().unwrap_or_default()
    }

    /// Restricts what `draw` adds to `area`.
    pub fn push_clip(&mut self, area: Rect) {
        let clip = self.clip().intersect(&area);
        self.clips.push(clip);
    }

    pub fn pop_clip(&mut self) {
        if self.clips.len() > 1 {
            self.clips.pop();
        }
    }

    pub fn add(&mut self, bounds: Rect, shape: Shape) {
        let extent = match shape {
            Shape::Shadow { .. } => bounds.inset(-SHADOW_REACH, -SHADOW_REACH - 2),
            // Glyphs may reach a little beyond their advance box.
            Shape::Text { .. } => bounds.inset(-3, -3),
            _ => bounds,
        };
        let clip = extent.intersect(&self.clip());
        if !clip.is_empty() {
            self.items.push(Item::new(bounds, clip, shape));
        }
    }
}
