//! The screen as somebody outside sees it: pixels, and what of them changed since when.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::virtio::guest::lock;

/// Rectangles remembered; who asks less often gets the whole screen.
const DAMAGE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Rect {
    pub(super) fn fits(&self, width: u32, height: u32) -> bool {
        let inside = |start: u32, len: u32, end| len > 0 && start.checked_add(len).is_some_and(|e| e <= end);
        inside(self.x, self.width, width) && inside(self.y, self.height, height)
    }

    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        let cut = |a: u32, a_len: u32, b: u32, b_len: u32| {
            let (start, end) = (a.max(b), a.saturating_add(a_len).min(b.saturating_add(b_len)));
            (start < end).then(|| (start, end - start))
        };
        let (x, width) = cut(self.x, self.width, other.x, other.width)?;
        let (y, height) = cut(self.y, self.height, other.y, other.height)?;
        Some(Self { x, y, width, height })
    }
}

/// A handle on the screen; cloning shares it. Any thread may use it.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

struct Shared {
    frame: Mutex<Frame>,
    changed: Condvar,
}

/// What is on the screen. Its generation changes exactly when a pixel or the size does.
pub struct Frame {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
    generation: u64,
    /// Since which generation `damage` is complete.
    known_since: u64,
    damage: VecDeque<(u64, Rect)>,
}

impl Screen {
    pub(super) fn new(width: u32, height: u32) -> Self {
        let pixels = vec![0; width as usize * height as usize];
        let frame = Frame { width, height, pixels, generation: 0, known_since: 0, damage: VecDeque::new() };
        Self(Arc::new(Shared { frame: Mutex::new(frame), changed: Condvar::new() }))
    }

    /// Looks at the screen. The guest cannot draw meanwhile: copy what is needed and come back.
    pub fn look<R>(&self, with: impl FnOnce(&Frame) -> R) -> R {
        with(&lock(&self.0.frame))
    }

    /// Waits until the screen's generation is beyond `generation`, at most so long; gives the generation then.
    pub fn wait_beyond(&self, generation: u64, timeout: Duration) -> u64 {
        let frame = lock(&self.0.frame);
        let (frame, _) = self
            .0
            .changed
            .wait_timeout_while(frame, timeout, |frame| frame.generation <= generation)
            .expect("nobody panics looking at the screen");
        frame.generation
    }

    pub(super) fn change(&self, with: impl FnOnce(&mut Frame)) {
        let mut frame = lock(&self.0.frame);
        let before = frame.generation;
        with(&mut frame);
        if frame.generation != before {
            self.0.changed.notify_all();
        }
    }
}

impl Frame {
    pub fn width(&self) -> u32 {
        self.width
    }

    pub fn height(&self) -> u32 {
        self.height
    }

    /// Row by row, 0x00RRGGBB.
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// Grows with each visible change; 0 is the black screen of a machine that has drawn nothing.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What changed after `generation`: rectangles that may overlap, or the whole screen where that is not known (any
    /// more).
    pub fn damage_since(&self, generation: u64) -> Vec<Rect> {
        if generation >= self.generation {
            return Vec::new();
        }
        if generation < self.known_since {
            return vec![self.whole()];
        }
        self.damage.iter().filter(|d| d.0 > generation).map(|d| d.1).collect()
    }

    fn whole(&self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Gives the screen another size, black. Nothing happens where it has that size.
    pub(super) fn resize(&mut self, width: u32, height: u32) {
        if (width, height) != (self.width, self.height) {
            let pixels = vec![0; width as usize * height as usize];
            self.replace(width, height, pixels);
        }
    }

    /// Replaces all there is.
    pub(super) fn replace(&mut self, width: u32, height: u32, pixels: Vec<u32>) {
        (self.width, self.height, self.pixels) = (width, height, pixels);
        self.generation += 1;
        self.known_since = self.generation;
        self.damage.clear();
    }

    pub(super) fn clear(&mut self) {
        if self.pixels.iter().any(|p| *p != 0) {
            self.replace(self.width, self.height, vec![0; self.pixels.len()]);
        }
    }

    /// Draws `rect`, which fits; `row(y)` gives the pixels of screen row `y` from `rect.x` on. Only the rows between
    /// the first and the last that differ become damage.
    pub(super) fn draw<'a>(&mut self, rect: Rect, row: impl Fn(u32) -> &'a [u32]) {
        let mut changed = None;
        for y in rect.y..rect.y + rect.height {
            let start = y as usize * self.width as usize + rect.x as usize;
            let there = &mut self.pixels[start..start + rect.width as usize];
            let new = row(y);
            if there != new {
                there.copy_from_slice(new);
                changed = Some((changed.map_or(y, |(first, _)| first), y));
            }
        }
        if let Some((first, last)) = changed {
            self.damaged(Rect { y: first, height: last - first + 1, ..rect });
        }
    }

    fn damaged(&mut self, rect: Rect) {
        self.generation += 1;
        if self.damage.len() == DAMAGE_MAX
            && let Some((generation, _)) = self.damage.pop_front()
        {
            self.known_since = generation;
        }
        self.damage.push_back((self.generation, rect));
    }
}
