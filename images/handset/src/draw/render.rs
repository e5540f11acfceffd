//! Draws scenes, and of each scene only what differs from the one before.
//!
//! The promise kept by a test: after any sequence of scenes the canvas equals a fresh drawing of
//! the last one. Items are matched in order; whatever has no partner is dirty, before and after.

use std::collections::HashMap;
use std::rc::Rc;

use super::canvas::{Canvas, Color, Mask, Picture};
use super::font::Fonts;
use super::icons::{AppIcon, Icon, disc};
use super::scene::{Item, SHADOW_REACH, Scene, Shape};
use super::{theme, wallpaper};
use crate::geometry::{Rect, rect};

/// More dirty rectangles than this are merged: each costs a walk over the scene.
const DIRTY_MAX: usize = 6;

pub struct Renderer {
    scale: i32,
    fonts: Rc<Fonts>,
    pub canvas: Canvas,
    shown: Vec<Item>,
    wallpaper: Option<Vec<u32>>,
    icons: HashMap<(Icon, i32), Mask>,
    app_icons: HashMap<(AppIcon, i32), Picture>,
    discs: HashMap<i32, Mask>,
}

impl Renderer {
    /// A renderer for a display of `w` by `h` pixels, at the fonts' scale.
    pub fn new(fonts: Rc<Fonts>, w: i32, h: i32) -> Self {
        Self {
            scale: fonts.scale(),
            fonts,
            canvas: Canvas::new(w, h),
            shown: Vec::new(),
            wallpaper: None,
            icons: HashMap::new(),
            app_icons: HashMap::new(),
            discs: HashMap::new(),
        }
    }

    /// Draws `scene`; gives the changed areas in pixels.
    pub fn show(&mut self, scene: Scene) -> Vec<Rect> {
        let dirty = if self.shown.is_empty() {
            vec![scene.clip()]
        } else {
            merge(differences(&self.shown, &scene.items))
        };
        self.shown = scene.items;
        let items = std::mem::take(&mut self.shown);
        let bounds = self.canvas.bounds();
        let mut changed = Vec::with_capacity(dirty.len());
        for area in dirty {
            let area = area.scaled(self.scale).intersect(&bounds);
            if area.is_empty() {
                continue;
            }
            let covers =
                |item: &Item| item.is_opaque() && item.clip.scaled(self.scale).covers(&area);
            let first = items.iter().rposition(covers).unwrap_or(0);
            for item in &items[first..] {
                let clip = item.clip.scaled(self.scale).intersect(&area);
                if !clip.is_empty() {
                    self.draw(item, &clip);
                }
            }
            changed.push(area);
        }
        self.shown = items;
        changed
    }

    fn draw(&mut self, item: &Item, clip: &Rect) {
        let bounds = item.bounds.scaled(self.scale);
        match &item.shape {
            Shape::Wallpaper => {
                let (w, h) = (self.canvas.w, self.canvas.h);
                let paper = self.wallpaper.get_or_insert_with(|| wallpaper::paint(w, h));
                self.canvas.copy(paper, clip);
            }
            Shape::Fill(color) => self.canvas.fill(bounds, *color, clip),
            Shape::Round { radius, color } => self.round(bounds, radius * self.scale, *color, clip),
            Shape::Shadow { radius } => self.shadow(bounds, radius * self.scale, clip),
            Shape::Icon { icon, color } => {
                let side = bounds.w.min(bounds.h);
                let mask = self
                    .icons
                    .entry((*icon, side))
                    .or_insert_with(|| icon.mask(side));
                self.canvas.mask(bounds.x, bounds.y, mask, *color, clip);
            }
            Shape::AppIcon(app) => {
                let side = bounds.w.min(bounds.h);
                let picture = self
                    .app_icons
                    .entry((*app, side))
                    .or_insert_with(|| app.picture(side));
                self.canvas.picture(bounds.x, bounds.y, picture, clip);
            }
            Shape::Text { text, style, color } => {
                let baseline = bounds.y + style.ascent() * self.scale;
                let canvas = &mut self.canvas;
                self.fonts
                    .glyphs(*style, text, bounds.x, baseline, |x, y, glyph| {
                        canvas.mask(x, y, &glyph.mask, *color, clip);
                    });
            }
        }
    }

    fn round(&mut self, area: Rect, radius: i32, color: Color, clip: &Rect) {
        let r = radius.min(area.w / 2).min(area.h / 2);
        if r <= 0 {
            return self.canvas.fill(area, color, clip);
        }
        let mask = self.discs.entry(r).or_insert_with(|| disc(r));
        let (right, bottom) = (area.right() - r, area.bottom() - r);
        let corners = [
            (area.x, area.y, 0, 0),
            (right, area.y, r, 0),
            (area.x, bottom, 0, r),
            (right, bottom, r, r),
        ];
        for (x, y, mx, my) in corners {
            self.canvas
                .mask_part(x, y, mask, rect(mx, my, r, r), color, clip);
        }
        self.canvas
            .fill(rect(area.x + r, area.y, area.w - 2 * r, r), color, clip);
        self.canvas.fill(
            rect(area.x, area.y + r, area.w, area.h - 2 * r),
            color,
            clip,
        );
        self.canvas
            .fill(rect(area.x + r, bottom, area.w - 2 * r, r), color, clip);
    }

    /// A few stacked translucent boxes, each a step smaller: soft enough at this size, and cheap.
    fn shadow(&mut self, area: Rect, radius: i32, clip: &Rect) {
        let step = 2 * self.scale;
        for ring in (1..=SHADOW_REACH / 2).rev() {
            let grow = ring * step;
            let halo = area.inset(-grow, -grow);
            let halo = rect(halo.x, halo.y + step, halo.w, halo.h);
            self.round(halo, radius + grow, theme::SHADOW, clip);
        }
    }
}

/// The clips of all items that have no equal in the other list, in order.
fn differences(before: &[Item], after: &[Item]) -> Vec<Rect> {
    let same = |a: &Item, b: &Item| a.fingerprint() == b.fingerprint() && a == b;
    let prefix = before
        .iter()
        .zip(after)
        .take_while(|(a, b)| same(a, b))
        .count();
    let (before, after) = (&before[prefix..], &after[prefix..]);
    let suffix = before
        .iter()
        .rev()
        .zip(after.iter().rev())
        .take_while(|(a, b)| same(a, b))
        .count();
    let (before, after) = (
        &before[..before.len() - suffix],
        &after[..after.len() - suffix],
    );
    let mut dirty = Vec::new();
    let mut at = 0;
    for item in after {
        match before[at..].iter().position(|old| same(old, item)) {
            Some(skipped) => {
                dirty.extend(before[at..at + skipped].iter().map(|old| old.clip));
                at += skipped + 1;
            }
            None => dirty.push(item.clip),
        }
    }
    dirty.extend(before[at..].iter().map(|old| old.clip));
    dirty
}

/// Joins rectangles that overlap or whose union wastes little, until few are left.
fn merge(mut rects: Vec<Rect>) -> Vec<Rect> {
    rects.retain(|r| !r.is_empty());
    let mut merged: Vec<Rect> = Vec::new();
    for mut area in rects {
        while let Some(index) = merged.iter().position(|other| {
            let joined = area.union(other);
            joined.area() <= area.area() + other.area() + 400
        }) {
            area = area.union(&merged.swap_remove(index));
        }
        merged.push(area);
    }
    while merged.len() > DIRTY_MAX {
        let mut best = (i64::MAX, 0, 1);
        for i in 0..merged.len() {
            for j in i + 1..merged.len() {
                let waste =
                    merged[i].union(&merged[j]).area() - merged[i].area() - merged[j].area();
                if waste < best.0 {
                    best = (waste, i, j);
                }
            }
        }
        let joined = merged[best.1].union(&merged[best.2]);
        merged.swap_remove(best.2);
        merged[best.1] = joined;
    }
    merged
}
