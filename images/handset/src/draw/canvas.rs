//! A frame of XRGB8888 pixels with the few blending operations the renderer needs.
//!
//! Every operation is clipped to a rectangle; nothing outside the canvas is touched.

use crate::geometry::{Rect, rect};

/// 0xAARRGGBB, not premultiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Color(pub u32);

impl Color {
    /// An opaque colour from 0xRRGGBB.
    pub const fn rgb(value: u32) -> Self {
        Self(0xff00_0000 | value)
    }

    pub const fn with_alpha(self, alpha: u8) -> Self {
        Self((self.0 & 0x00ff_ffff) | ((alpha as u32) << 24))
    }

    pub const fn alpha(self) -> u32 {
        self.0 >> 24
    }

    /// Mixes `self` towards `other`; `amount` 0 is `self`, 255 is `other`.
    pub fn mix(self, other: Color, amount: u32) -> Color {
        Color(0xff00_0000 | blend(self.0, other.0, amount + (amount >> 7)))
    }
}

/// Coverage of a shape, 0..=255 per pixel, row by row.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    pub w: i32,
    pub h: i32,
    pub alpha: Vec<u8>,
}

/// Premultiplied ARGB picture.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub w: i32,
    pub h: i32,
    pub argb: Vec<u32>,
}

pub struct Canvas {
    pub w: i32,
    pub h: i32,
    pub pixels: Vec<u32>,
}

/// `weight` 0..=256: how much of `src` replaces `dst`.
#[inline(always)]
fn blend(dst: u32, src: u32, weight: u32) -> u32 {
    let inverse = 256 - weight;
    let rb = ((src & 0x00ff_00ff) * weight + (dst & 0x00ff_00ff) * inverse) >> 8;
    let g = ((src & 0x0000_ff00) * weight + (dst & 0x0000_ff00) * inverse) >> 8;
    (rb & 0x00ff_00ff) | (g & 0x0000_ff00)
}

impl Canvas {
    pub fn new(w: i32, h: i32) -> Self {
        let count = usize::try_from(i64::from(w.max(0)) * i64::from(h.max(0))).unwrap_or(0);
        Self {
            w,
            h,
            pixels: vec![0; count],
        }
    }

    pub fn bounds(&self) -> Rect {
        rect(0, 0, self.w, self.h)
    }

    /// One row's pixels from `x0` to `x1`, which must lie on the canvas.
    #[inline(always)]
    fn row(&mut self, y: i32, x0: i32, x1: i32) -> &mut [u32] {
        let base = y as usize * self.w as usize;
        &mut self.pixels[base + x0 as usize..base + x1 as usize]
    }

    pub fn fill(&mut self, area: Rect, color: Color, clip: &Rect) {
        let area = area.intersect(clip).intersect(&self.bounds());
        if area.is_empty() {
            return;
        }
        let alpha = color.alpha();
        for y in area.y..area.bottom() {
            let row = self.row(y, area.x, area.right());
            if alpha == 255 {
                row.fill(color.0 & 0x00ff_ffff);
            } else {
                let weight = alpha + (alpha >> 7);
                for pixel in row {
                    *pixel = blend(*pixel, color.0, weight);
                }
            }
        }
    }

    /// Paints `color` through `mask` placed at (`x`, `y`).
    pub fn mask(&mut self, x: i32, y: i32, mask: &Mask, color: Color, clip: &Rect) {
        self.mask_part(x, y, mask, rect(0, 0, mask.w, mask.h), color, clip);
    }

    /// Like [`Canvas::mask`] for one part of the mask, whose corner lands on (`x`, `y`).
    pub fn mask_part(
        &mut self,
        x: i32,
        y: i32,
        mask: &Mask,
        part: Rect,
        color: Color,
        clip: &Rect,
    ) {
        let area = rect(x, y, part.w, part.h)
            .intersect(clip)
            .intersect(&self.bounds());
        if area.is_empty() {
            return;
        }
        let opacity = color.alpha() + (color.alpha() >> 7);
        let solid = color.0 & 0x00ff_ffff;
        for py in area.y..area.bottom() {
            let start =
                (part.y + py - y) as usize * mask.w as usize + (part.x + area.x - x) as usize;
            let coverage = &mask.alpha[start..start + area.w as usize];
            let row = self.row(py, area.x, area.right());
            for (pixel, &cover) in row.iter_mut().zip(coverage) {
                if cover == 0 {
                    continue;
                }
                let cover = u32::from(cover);
                let weight = ((cover + (cover >> 7)) * opacity) >> 8;
                *pixel = if weight == 256 {
                    solid
                } else {
                    blend(*pixel, color.0, weight)
                };
            }
        }
    }

    /// Composites a premultiplied picture with its corner at (`x`, `y`).
    pub fn picture(&mut self, x: i32, y: i32, picture: &Picture, clip: &Rect) {
        let area = rect(x, y, picture.w, picture.h)
            .intersect(clip)
            .intersect(&self.bounds());
        if area.is_empty() {
            return;
        }
        for py in area.y..area.bottom() {
            let start = (py - y) as usize * picture.w as usize + (area.x - x) as usize;
            let source = &picture.argb[start..start + area.w as usize];
            let row = self.row(py, area.x, area.right());
            for (pixel, &src) in row.iter_mut().zip(source) {
                let alpha = src >> 24;
                if alpha == 255 {
                    *pixel = src & 0x00ff_ffff;
                } else if alpha != 0 {
                    let inverse = 256 - (alpha + (alpha >> 7));
                    let rb = ((*pixel & 0x00ff_00ff) * inverse) >> 8;
                    let g = ((*pixel & 0x0000_ff00) * inverse) >> 8;
                    *pixel = (src & 0x00ff_ffff) + ((rb & 0x00ff_00ff) | (g & 0x0000_ff00));
                }
            }
        }
    }

    /// Copies the same area of a full-size opaque background.
    pub fn copy(&mut self, background: &[u32], clip: &Rect) {
        let area = clip.intersect(&self.bounds());
        if area.is_empty() || background.len() != self.pixels.len() {
            return;
        }
        for y in area.y..area.bottom() {
            let base = y as usize * self.w as usize;
            let span = base + area.x as usize..base + area.right() as usize;
            self.pixels[span.clone()].copy_from_slice(&background[span]);
        }
    }
}
