//! Type: Inter, from the Debian package `fonts-inter`, read at run time from /usr/share/fonts.
//!
//! Only the font's tables are parsed at start; outlines are rasterised when a glyph is first
//! drawn and kept. Glyphs sit on quarter-pixel positions, so spacing stays even at small sizes.
//! Covers Latin, Cyrillic and Greek; there is no shaping for scripts that join or reorder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ab_glyph_rasterizer::{Point, Rasterizer, point};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::canvas::Mask;

/// The Debian package that brings the files below.
pub const PACKAGE: &str = "fonts-inter";
/// Where the package puts them.
pub const FOLDER: &str = "/usr/share/fonts/opentype/inter";
/// The only files of the package that are read.
pub const FILES: [&str; 3] = [
    "Inter-Regular.otf",
    "Inter-Medium.otf",
    "Inter-SemiBold.otf",
];

/// A cache larger than any screen's worth of text; emptied when full.
const GLYPHS_CACHED_MAX: usize = 4096;

/// Stands for characters that the font does not have.
const MISSING: char = '□';

#[derive(Debug, thiserror::Error)]
pub enum FontError {
    #[error("reading font {path}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("font {path} is not usable")]
    Parse {
        path: PathBuf,
        source: ttf_parser::FaceParsingError,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    Regular = 0,
    Medium = 1,
    SemiBold = 2,
}

/// One step of the type scale: size in dp and weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Style {
    pub size: u16,
    pub weight: Weight,
}

impl Style {
    pub const fn new(size: u16, weight: Weight) -> Self {
        Self { size, weight }
    }

    /// Distance from the top of a line to its baseline, in dp.
    pub const fn ascent(&self) -> i32 {
        self.size as i32 * 97 / 100
    }

    /// Height of a line, in dp.
    pub const fn line(&self) -> i32 {
        self.size as i32 * 132 / 100
    }
}

/// A rasterised glyph and where its mask lies from the pen position.
pub struct Glyph {
    pub left: i32,
    pub top: i32,
    pub mask: Mask,
}

#[derive(Clone, Copy)]
struct Advance {
    glyph: GlyphId,
    units: f32,
}

pub struct Fonts {
    scale: i32,
    faces: [Face<'static>; 3],
    advances: RefCell<HashMap<(Weight, char), Advance>>,
    glyphs: RefCell<HashMap<(GlyphId, Style, u8), Rc<Glyph>>>,
    kerning: RefCell<HashMap<(Weight, GlyphId, GlyphId), f32>>,
}

impl Fonts {
    /// Reads the three faces from `folder`. `scale` is pixels per dp.
    pub fn load(folder: &Path, scale: i32) -> Result<Self, FontError> {
        let face = |name: &str| -> Result<Face<'static>, FontError> {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(|source| FontError::Read {
                path: path.clone(),
                source,
            })?;
            // Faces live as long as the process does.
            let bytes: &'static [u8] = Box::leak(bytes.into_boxed_slice());
            Face::parse(bytes, 0).map_err(|source| FontError::Parse { path, source })
        };
        Ok(Self {
            scale,
            faces: [face(FILES[0])?, face(FILES[1])?, face(FILES[2])?],
            advances: RefCell::default(),
            glyphs: RefCell::default(),
            kerning: RefCell::default(),
        })
    }

    pub fn scale(&self) -> i32 {
        self.scale
    }

    fn face(&self, weight: Weight) -> &Face<'static> {
        &self.faces[weight as usize]
    }

    fn pixels_per_unit(&self, style: Style) -> f32 {
        let units = f32::from(self.face(style.weight).units_per_em());
        f32::from(style.size) * self.scale as f32 / units
    }

    fn advance(&self, weight: Weight, c: char) -> Advance {
        if let Some(found) = self.advances.borrow().get(&(weight, c)) {
            return *found;
        }
        let face = self.face(weight);
        let advance = if is_invisible(c) {
            Advance {
                glyph: face.glyph_index(' ').unwrap_or_default(),
                units: 0.0,
            }
        } else {
            // What the font lacks, such as emoji, is a plain box.
            let glyph = face
                .glyph_index(c)
                .or_else(|| face.glyph_index(MISSING))
                .unwrap_or_default();
            Advance {
                glyph,
                units: f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)),
            }
        };
        self.advances.borrow_mut().insert((weight, c), advance);
        advance
    }

    /// Pair kerning from the font's GPOS table, in font units.
    fn kern(&self, weight: Weight, left: GlyphId, right: GlyphId) -> f32 {
        if let Some(found) = self.kerning.borrow().get(&(weight, left, right)) {
            return *found;
        }
        let value = pair_adjustment(self.face(weight), left, right);
        self.kerning
            .borrow_mut()
            .insert((weight, left, right), value);
        value
    }

    /// Calls `visit(char, byte offset, glyph, pen x in pixels)` for each character, and gives
    /// the pen's end position.
    fn walk(&self, style: Style, text: &str, mut visit: impl FnMut(usize, GlyphId, f32)) -> f32 {
        let factor = self.pixels_per_unit(style);
        let mut pen = 0.0;
        let mut previous: Option<GlyphId> = None;
        for (offset, c) in text.char_indices() {
            let advance = self.advance(style.weight, c);
            if let Some(left) = previous {
                pen += self.kern(style.weight, left, advance.glyph) * factor;
            }
            visit(offset, advance.glyph, pen);
            pen += advance.units * factor;
            previous = Some(advance.glyph);
        }
        pen
    }

    /// Width of one line in dp, rounded up.
    pub fn width(&self, style: Style, text: &str) -> i32 {
        let pixels = self.walk(style, text, |_, _, _| {});
        (pixels / self.scale as f32).ceil() as i32
    }

    /// Byte offset of the character boundary nearest to `x` dp from the line's start.
    pub fn offset_at(&self, style: Style, text: &str, x: i32) -> usize {
        let target = (x * self.scale) as f32;
        let mut best = (f32::MAX, 0);
        let end = self.walk(style, text, |offset, _, pen| {
            let distance = (pen - target).abs();
            if distance < best.0 {
                best = (distance, offset);
            }
        });
        if (end - target).abs() < best.0 {
            text.len()
        } else {
            best.1
        }
    }

    /// Cuts `text` so that it fits `width` dp, ending in an ellipsis when something was cut.
    pub fn fit(&self, style: Style, text: &str, width: i32) -> String {
        if self.width(style, text) <= width {
            return text.to_owned();
        }
        let room = ((width - self.width(style, "…")).max(0) * self.scale) as f32;
        let mut cut = 0;
        self.walk(style, text, |offset, _, pen| {
            if pen <= room {
                cut = offset;
            }
        });
        format!("{}…", text[..cut].trim_end())
    }

    /// Breaks `text` into lines of at most `width` dp: at newlines, else at spaces, else anywhere.
    /// Ranges are byte offsets; together they cover the text except the newlines themselves.
    pub fn wrap(&self, style: Style, text: &str, width: i32) -> Vec<std::ops::Range<usize>> {
        let room = (width * self.scale) as f32;
        let mut lines = Vec::new();
        let mut start = 0;
        for paragraph in text.split('\n') {
            self.wrap_paragraph(style, paragraph, start, room, &mut lines);
            start += paragraph.len() + 1;
        }
        lines
    }

    fn wrap_paragraph(
        &self,
        style: Style,
        paragraph: &str,
        base: usize,
        room: f32,
        lines: &mut Vec<std::ops::Range<usize>>,
    ) {
        let mut stops: Vec<(usize, f32)> = Vec::new();
        let end = self.walk(style, paragraph, |offset, _, pen| stops.push((offset, pen)));
        stops.push((paragraph.len(), end));
        let spaces = paragraph.as_bytes();
        let (mut line, mut after_space, mut at) = (0, 0, 0);
        while at + 1 < stops.len() {
            let is_space = spaces[stops[at].0] == b' ';
            if stops[at + 1].1 - stops[line].1 > room && at > line && !is_space {
                let cut = if after_space > line { after_space } else { at };
                lines.push(base + stops[line].0..base + stops[cut].0);
                line = cut;
                continue;
            }
            if is_space {
                after_space = at + 1;
            }
            at += 1;
        }
        lines.push(base + stops[line].0..base + paragraph.len());
    }

    /// Calls `paint(pixel x, pixel y of the baseline, glyph)` for each visible glyph of a line that
    /// starts at pixel `x` with its baseline at pixel `y`.
    pub fn glyphs(
        &self,
        style: Style,
        text: &str,
        x: i32,
        y: i32,
        mut paint: impl FnMut(i32, i32, &Glyph),
    ) {
        self.walk(style, text, |_, id, pen| {
            let quarters = (pen * 4.0).round() as i32;
            let glyph = self.glyph(id, style, (quarters & 3) as u8);
            if glyph.mask.w > 0 {
                paint(x + (quarters >> 2) + glyph.left, y + glyph.top, &glyph);
            }
        });
    }

    fn glyph(&self, id: GlyphId, style: Style, quarter: u8) -> Rc<Glyph> {
        let key = (id, style, quarter);
        if let Some(found) = self.glyphs.borrow().get(&key) {
            return Rc::clone(found);
        }
        let glyph = Rc::new(rasterise(
            self.face(style.weight),
            id,
            self.pixels_per_unit(style),
            f32::from(quarter) / 4.0,
        ));
        let mut cache = self.glyphs.borrow_mut();
        if cache.len() >= GLYPHS_CACHED_MAX {
            cache.clear();
        }
        cache.insert(key, Rc::clone(&glyph));
        glyph
    }
}

/// Characters that only steer how others join: joiners, directions, variation selectors.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{fe00}'..='\u{fe0f}')
}

fn pair_adjustment(face: &Face<'_>, left: GlyphId, right: GlyphId) -> f32 {
    use ttf_parser::gpos::{PairAdjustment, PositioningSubtable};
    let Some(gpos) = face.tables().gpos else {
        return 0.0;
    };
    let Some(feature) = gpos.features.find(ttf_parser::Tag::from_bytes(b"kern")) else {
        return 0.0;
    };
    for index in feature.lookup_indices {
        let Some(lookup) = gpos.lookups.get(index) else {
            continue;
        };
        for subtable in lookup.subtables.into_iter::<PositioningSubtable<'_>>() {
            let PositioningSubtable::Pair(pair) = subtable else {
                continue;
            };
            let Some(row) = pair.coverage().get(left) else {
                continue;
            };
            match pair {
                PairAdjustment::Format1 { sets, .. } => {
                    if let Some((first, _)) = sets.get(row).and_then(|set| set.get(right)) {
                        return f32::from(first.x_advance);
                    }
                }
                PairAdjustment::Format2 {
                    classes, matrix, ..
                } => {
                    let classes = (classes.0.get(left), classes.1.get(right));
                    if let Some((first, _)) = matrix.get(classes) {
                        return f32::from(first.x_advance);
                    }
                }
            }
        }
    }
    0.0
}

fn rasterise(face: &Face<'_>, id: GlyphId, factor: f32, shift: f32) -> Glyph {
    let empty = Glyph {
        left: 0,
        top: 0,
        mask: Mask::default(),
    };
    let Some(bounds) = face.glyph_bounding_box(id) else {
        return empty;
    };
    let left = (f32::from(bounds.x_min) * factor + shift).floor();
    let top = (-f32::from(bounds.y_max) * factor).floor();
    let w = ((f32::from(bounds.x_max) * factor + shift).ceil() - left) as i32 + 1;
    let h = ((-f32::from(bounds.y_min) * factor).ceil() - top) as i32 + 1;
    if w <= 0 || h <= 0 {
        return empty;
    }
    let mut outline = Outline {
        raster: Rasterizer::new(w as usize, h as usize),
        factor,
        dx: shift - left,
        dy: -top,
        start: point(0.0, 0.0),
        last: point(0.0, 0.0),
    };
    face.outline_glyph(id, &mut outline);
    let mut alpha = vec![0; w as usize * h as usize];
    outline.raster.for_each_pixel(|index, coverage| {
        alpha[index] = (coverage.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    });
    Glyph {
        left: left as i32,
        top: top as i32,
        mask: Mask { w, h, alpha },
    }
}

/// Feeds an outline in font units (y up) to the rasteriser in pixels (y down).
struct Outline {
    raster: Rasterizer,
    factor: f32,
    dx: f32,
    dy: f32,
    start: Point,
    last: Point,
}

impl Outline {
    fn map(&self, x: f32, y: f32) -> Point {
        point(x * self.factor + self.dx, -y * self.factor + self.dy)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        self.start = self.map(x, y);
        self.last = self.start;
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let to = self.map(x, y);
        self.raster.draw_line(self.last, to);
        self.last = to;
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let (control, to) = (self.map(x1, y1), self.map(x, y));
        self.raster.draw_quad(self.last, control, to);
        self.last = to;
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let (a, b, to) = (self.map(x1, y1), self.map(x2, y2), self.map(x, y));
        self.raster.draw_cubic(self.last, a, b, to);
        self.last = to;
    }

    fn close(&mut self) {
        self.raster.draw_line(self.last, self.start);
        self.last = self.start;
    }
}
