//! The icon set: vector shapes on a 24-unit grid, rasterised with anti-aliasing when first needed.
//!
//! A shape is one drawing command per entry: `F` fills, `S` strokes with round ends, followed by a
//! path of absolute `M`, `L`, `C`, `Q`, `Z`, or `O cx cy r` (circle), `R x y w h r` (rounded box).

use tiny_skia::{FillRule, LineCap, LineJoin, Path, PathBuilder, Stroke, Transform};

use super::canvas::{Color, Mask, Picture};

const GRID: f32 = 24.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Icon {
    Back,
    Chevron,
    Phone,
    HangUp,
    Message,
    Person,
    Contacts,
    Gear,
    Wifi,
    Mail,
    Folder,
    File,
    Note,
    Plus,
    Send,
    Backspace,
    Shift,
    ShiftOn,
    Enter,
    Check,
    Trash,
    Edit,
    Mic,
    Speaker,
    Keypad,
    Recents,
    CallOut,
    CallIn,
    CallMissed,
    Signal,
    Battery,
    Eye,
    EyeOff,
    Info,
    Warning,
    Lock,
    Globe,
    Clock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppIcon {
    Phone,
    Messages,
    Contacts,
    Notes,
    Files,
    Mail,
    Wifi,
    Settings,
}

const HANDSET: &[&str] = &[
    "S3.4 M6.4 7 C7.2 12.4 11.6 16.8 17 17.6",
    "S4.6 M6 5.7 L7.3 8.1",
    "S4.6 M15.9 16.7 L18.3 18",
];

impl Icon {
    fn shapes(self) -> &'static [&'static str] {
        match self {
            Icon::Back => &["S2 M14.5 5.5 L8 12 L14.5 18.5"],
            Icon::Chevron => &["S2 M9.5 5.5 L16 12 L9.5 18.5"],
            Icon::Phone | Icon::HangUp => HANDSET,
            Icon::Message => &[
                "F M6.5 4 L17.5 4 C19.4 4 21 5.6 21 7.5 L21 13.5 C21 15.4 19.4 17 17.5 17 L11.5 17 L7.2 20.6 C6.7 21 6 20.7 6 20 L6 17 C4.3 16.7 3 15.2 3 13.5 L3 7.5 C3 5.6 4.6 4 6.5 4 Z",
            ],
            Icon::Person => &[
                "F O 12 8 4.2",
                "F M3.8 20.5 C3.8 16.6 7.4 14 12 14 C16.6 14 20.2 16.6 20.2 20.5 Z",
            ],
            Icon::Contacts => &[
                "S1.9 R 4.2 3.2 15.6 17.6 3",
                "F O 12 9.4 2.5",
                "F M7.4 17.2 C7.4 14.6 9.4 13.1 12 13.1 C14.6 13.1 16.6 14.6 16.6 17.2 Z",
            ],
            Icon::Gear => &[
                "S2.6 O 12 12 5.1",
                "S3 M12 3.4 L12 5",
                "S3 M12 19 L12 20.6",
                "S3 M3.4 12 L5 12",
                "S3 M19 12 L20.6 12",
                "S3 M5.92 5.92 L7.05 7.05",
                "S3 M16.95 16.95 L18.08 18.08",
                "S3 M5.92 18.08 L7.05 16.95",
                "S3 M16.95 7.05 L18.08 5.92",
            ],
            Icon::Wifi => &[
                "S2.3 M2.8 9.6 C8 4.6 16 4.6 21.2 9.6",
                "S2.3 M6.4 13.4 C9.6 10.4 14.4 10.4 17.6 13.4",
                "F O 12 17.6 2.2",
            ],
            Icon::Mail => &["S2 R 3 5 18 14 3", "S2 M3.8 7.4 L12 13 L20.2 7.4"],
            Icon::Folder => &[
                "F M5.5 4.5 L9.3 4.5 C10 4.5 10.6 4.8 11 5.3 L12.2 6.8 L18.5 6.8 C20.2 6.8 21.5 8.1 21.5 9.8 L21.5 16.5 C21.5 18.2 20.2 19.5 18.5 19.5 L5.5 19.5 C3.8 19.5 2.5 18.2 2.5 16.5 L2.5 7.5 C2.5 5.8 3.8 4.5 5.5 4.5 Z",
            ],
            Icon::File => &[
                "S1.9 M13.5 3.5 L7.5 3.5 C6.1 3.5 5 4.6 5 6 L5 18 C5 19.4 6.1 20.5 7.5 20.5 L16.5 20.5 C17.9 20.5 19 19.4 19 18 L19 9 Z",
                "S1.9 M13.5 3.8 L13.5 9 L18.7 9",
            ],
            Icon::Note => &[
                "S1.9 R 4.5 3.5 15 17 3",
                "S1.9 M8.3 8.6 L15.7 8.6",
                "S1.9 M8.3 12.2 L15.7 12.2",
                "S1.9 M8.3 15.8 L12.6 15.8",
            ],
            Icon::Plus => &["S2.2 M12 5 L12 19", "S2.2 M5 12 L19 12"],
            Icon::Send => &[
                "F M3.6 4.1 C3.3 3.2 4.2 2.4 5 2.9 L21 11.2 C21.7 11.5 21.7 12.5 21 12.8 L5 21.1 C4.2 21.6 3.3 20.8 3.6 19.9 L5.6 13.4 L13 12 L5.6 10.6 Z",
            ],
            Icon::Backspace => &[
                "S1.9 M9 5 L18.5 5 C19.9 5 21 6.1 21 7.5 L21 16.5 C21 17.9 19.9 19 18.5 19 L9 19 L3 12 Z",
                "S1.9 M11.4 9.4 L16.4 14.6",
                "S1.9 M16.4 9.4 L11.4 14.6",
            ],
            Icon::Shift => &["S1.9 M12 4 L4.5 12 L8.5 12 L8.5 19 L15.5 19 L15.5 12 L19.5 12 Z"],
            Icon::ShiftOn => &[
                "F M12 4 L4.5 12 L8.5 12 L8.5 19 L15.5 19 L15.5 12 L19.5 12 Z",
                "S1.9 M12 4 L4.5 12 L8.5 12 L8.5 19 L15.5 19 L15.5 12 L19.5 12 Z",
            ],
            Icon::Enter => &[
                "S2 M19 6 L19 12.5 L6 12.5",
                "S2 M9.5 8.5 L5.5 12.5 L9.5 16.5",
            ],
            Icon::Check => &["S2.3 M5 12.8 L10 17.5 L19.3 7"],
            Icon::Trash => &[
                "S1.9 M4.5 7 L19.5 7",
                "S1.9 M9.2 6.6 L9.8 4 L14.2 4 L14.8 6.6",
                "S1.9 M6.5 7.2 L7.4 18.6 C7.5 19.7 8.3 20.4 9.4 20.4 L14.6 20.4 C15.7 20.4 16.5 19.7 16.6 18.6 L17.5 7.2",
            ],
            Icon::Edit => &[
                "S1.9 M4.5 19.5 L5.4 15.4 L15.6 5.2 C16.5 4.3 17.9 4.3 18.8 5.2 C19.7 6.1 19.7 7.5 18.8 8.4 L8.6 18.6 Z",
                "S1.9 M13.8 7 L17 10.2",
            ],
            Icon::Mic => &[
                "F R 8.7 3 6.6 11.4 3.3",
                "S1.9 M5.6 11.4 C5.6 15.2 8.4 17.8 12 17.8 C15.6 17.8 18.4 15.2 18.4 11.4",
                "S1.9 M12 18 L12 21",
            ],
            Icon::Speaker => &[
                "F M4 9.4 L7.4 9.4 L12 5.4 L12 18.6 L7.4 14.6 L4 14.6 Z",
                "S1.6 M4 9.4 L7.4 9.4 L12 5.4 L12 18.6 L7.4 14.6 L4 14.6 Z",
                "S1.9 M15.4 9 C16.9 10.6 16.9 13.4 15.4 15",
                "S1.9 M18.2 6.4 C21.2 9.4 21.2 14.6 18.2 17.6",
            ],
            Icon::Keypad => &[
                "F O 6 5.5 1.8",
                "F O 12 5.5 1.8",
                "F O 18 5.5 1.8",
                "F O 6 12 1.8",
                "F O 12 12 1.8",
                "F O 18 12 1.8",
                "F O 6 18.5 1.8",
                "F O 12 18.5 1.8",
                "F O 18 18.5 1.8",
            ],
            Icon::Recents | Icon::Clock => &["S2 O 12 12 8.4", "S2 M12 7.4 L12 12.3 L15.4 14.2"],
            Icon::CallOut => &["S2.2 M6.5 17.5 L17 7", "S2.2 M9 6.5 L17.5 6.5 L17.5 15"],
            Icon::CallIn => &["S2.2 M17.5 6.5 L7 17", "S2.2 M15 17.5 L6.5 17.5 L6.5 9"],
            Icon::CallMissed => &["S2.2 M4 7.5 L12 15 L19.5 7.5", "S2.2 M4 13 L4 7 L10 7"],
            Icon::Signal => &[
                "F R 3 15 3.4 5 1",
                "F R 8 11.5 3.4 8.5 1",
                "F R 13 8 3.4 12 1",
                "F R 18 4.5 3.4 15.5 1",
            ],
            Icon::Battery => &[
                "S1.7 R 2 7 17.4 10.4 3.2",
                "F R 4.1 9.1 13.2 6.2 1.5",
                "F R 20.6 10.2 1.9 4 0.9",
            ],
            Icon::Eye => &[
                "S1.9 M2.8 12 C6.6 5 17.4 5 21.2 12 C17.4 19 6.6 19 2.8 12 Z",
                "F O 12 12 3",
            ],
            Icon::EyeOff => &[
                "S1.9 M2.8 12 C6.6 5 17.4 5 21.2 12 C17.4 19 6.6 19 2.8 12 Z",
                "F O 12 12 3",
                "S2.2 M4.5 19.5 L19.5 4.5",
            ],
            Icon::Info => &["S1.9 O 12 12 8.6", "F O 12 8 1.3", "S2.1 M12 11.6 L12 16.2"],
            Icon::Warning => &[
                "S1.9 M12 4 L21 19.5 L3 19.5 Z",
                "S2.1 M12 10 L12 13.8",
                "F O 12 16.6 1.2",
            ],
            Icon::Lock => &[
                "F R 5 10.5 14 10 2.6",
                "S2.1 M8 10.5 L8 8 C8 2.8 16 2.8 16 8 L16 10.5",
            ],
            Icon::Globe => &[
                "S1.7 O 12 12 8.6",
                "S1.7 M3.6 12 L20.4 12",
                "S1.7 M12 3.5 C7.2 8 7.2 16 12 20.5 C16.8 16 16.8 8 12 3.5 Z",
            ],
        }
    }

    /// Coverage of the icon in a square of `side` pixels.
    pub fn mask(self, side: i32) -> Mask {
        let turn = match self {
            Icon::HangUp => Transform::from_rotate_at(135.0, GRID / 2.0, GRID / 2.0),
            _ => Transform::identity(),
        };
        let scale = side as f32 / GRID;
        shapes_mask(self.shapes(), side, turn.post_scale(scale, scale))
    }
}

impl AppIcon {
    fn look(self) -> (Icon, Color, Color) {
        let rgb = Color::rgb;
        match self {
            AppIcon::Phone => (Icon::Phone, rgb(0x3fcf7f), rgb(0x119150)),
            AppIcon::Messages => (Icon::Message, rgb(0x5b8cff), rgb(0x2750dd)),
            AppIcon::Contacts => (Icon::Person, rgb(0xffa45c), rgb(0xe0632a)),
            AppIcon::Notes => (Icon::Note, rgb(0xffcf4a), rgb(0xf09a0e)),
            AppIcon::Files => (Icon::Folder, rgb(0x4fc3e8), rgb(0x1585b8)),
            AppIcon::Mail => (Icon::Mail, rgb(0xf46a86), rgb(0xc42f5c)),
            AppIcon::Wifi => (Icon::Wifi, rgb(0x9d7bf2), rgb(0x6239c8)),
            AppIcon::Settings => (Icon::Gear, rgb(0x8d99b4), rgb(0x4d5873)),
        }
    }

    /// The icon as a picture of `side` pixels: a glyph on a rounded square.
    pub fn picture(self, side: i32) -> Picture {
        let (icon, top, bottom) = self.look();
        let s = side as f32;
        let tile = box_path(0.0, 0.0, s, s, s * 0.27);
        let tile = tile
            .map(|path| path_mask(&path, side, Transform::identity()))
            .unwrap_or_default();
        let glyph_side = side * 60 / 100;
        let glyph = icon.mask(glyph_side);
        let offset = (side - glyph_side) / 2;
        let mut argb = vec![0u32; (side * side) as usize];
        for y in 0..side {
            let fill = top.mix(bottom, (y * 255 / side) as u32);
            for x in 0..side {
                let at = (y * side + x) as usize;
                let (gx, gy) = (x - offset, y - offset);
                let inside = gx >= 0 && gy >= 0 && gx < glyph_side && gy < glyph_side;
                let white = if inside {
                    glyph.alpha[(gy * glyph_side + gx) as usize]
                } else {
                    0
                };
                let color = fill.mix(Color::rgb(0xffffff), u32::from(white));
                let alpha = u32::from(tile.alpha.get(at).copied().unwrap_or(0));
                let part = |shift: u32| ((color.0 >> shift & 255) * alpha / 255) << shift;
                argb[at] = alpha << 24 | part(16) | part(8) | part(0);
            }
        }
        Picture {
            w: side,
            h: side,
            argb,
        }
    }
}

/// Coverage of a filled circle of `radius` pixels in a square of twice that.
pub fn disc(radius: i32) -> Mask {
    let r = radius as f32;
    match PathBuilder::from_circle(r, r, r) {
        Some(path) => path_mask(&path, radius * 2, Transform::identity()),
        None => Mask::default(),
    }
}

fn shapes_mask(shapes: &[&str], side: i32, transform: Transform) -> Mask {
    let Some(mut mask) = tiny_skia::Mask::new(side.max(1) as u32, side.max(1) as u32) else {
        return Mask::default();
    };
    for shape in shapes {
        if let Some(path) = parse(shape) {
            mask.fill_path(&path, FillRule::Winding, true, transform);
        }
    }
    Mask {
        w: side,
        h: side,
        alpha: mask.data().to_vec(),
    }
}

fn path_mask(path: &Path, side: i32, transform: Transform) -> Mask {
    let Some(mut mask) = tiny_skia::Mask::new(side.max(1) as u32, side.max(1) as u32) else {
        return Mask::default();
    };
    mask.fill_path(path, FillRule::Winding, true, transform);
    Mask {
        w: side,
        h: side,
        alpha: mask.data().to_vec(),
    }
}

fn box_path(x: f32, y: f32, w: f32, h: f32, r: f32) -> Option<Path> {
    const K: f32 = 0.552_285;
    let (k, right, bottom) = (r * (1.0 - K), x + w, y + h);
    let mut b = PathBuilder::new();
    b.move_to(x + r, y);
    b.line_to(right - r, y);
    b.cubic_to(right - k, y, right, y + k, right, y + r);
    b.line_to(right, bottom - r);
    b.cubic_to(right, bottom - k, right - k, bottom, right - r, bottom);
    b.line_to(x + r, bottom);
    b.cubic_to(x + k, bottom, x, bottom - k, x, bottom - r);
    b.line_to(x, y + r);
    b.cubic_to(x, y + k, x + k, y, x + r, y);
    b.close();
    b.finish()
}

/// One shape command as an outline to fill; `None` if the table above had an error in it.
fn parse(shape: &str) -> Option<Path> {
    let (paint, rest) = shape.split_once(' ')?;
    let path = parse_path(rest)?;
    let Some(width) = paint.strip_prefix('S') else {
        return Some(path);
    };
    let stroke = Stroke {
        width: width.parse().ok()?,
        line_cap: LineCap::Round,
        line_join: LineJoin::Round,
        ..Stroke::default()
    };
    path.stroke(&stroke, 4.0)
}

fn parse_path(text: &str) -> Option<Path> {
    let mut b = PathBuilder::new();
    let mut words = text.split_ascii_whitespace().peekable();
    while let Some(word) = words.next() {
        let (command, first) = word.split_at(1);
        let mut values = Vec::new();
        if !first.is_empty() {
            values.push(first.parse::<f32>().ok()?);
        }
        while let Some(value) = words.peek().and_then(|w| w.parse::<f32>().ok()) {
            values.push(value);
            words.next();
        }
        match (command, values.as_slice()) {
            ("M", [x, y]) => b.move_to(*x, *y),
            ("L", [x, y]) => b.line_to(*x, *y),
            ("Q", [x1, y1, x, y]) => b.quad_to(*x1, *y1, *x, *y),
            ("C", [x1, y1, x2, y2, x, y]) => b.cubic_to(*x1, *y1, *x2, *y2, *x, *y),
            ("O", [x, y, r]) => b.push_circle(*x, *y, *r),
            ("R", [x, y, w, h, r]) => b.push_path(&box_path(*x, *y, *w, *h, *r)?),
            ("Z", []) => b.close(),
            _ => return None,
        }
    }
    b.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_icon_has_well_formed_shapes() {
        use Icon::*;
        let all = [
            Back, Chevron, Phone, HangUp, Message, Person, Contacts, Gear, Wifi, Mail, Folder,
            File, Note, Plus, Send, Backspace, Shift, ShiftOn, Enter, Check, Trash, Edit, Mic,
            Speaker, Keypad, Recents, CallOut, CallIn, CallMissed, Signal, Battery, Eye, EyeOff,
            Info, Warning, Lock, Globe, Clock,
        ];
        for icon in all {
            for shape in icon.shapes() {
                assert!(parse(shape).is_some(), "{icon:?}: {shape}");
            }
            assert!(
                icon.mask(24).alpha.iter().any(|&a| a > 200),
                "{icon:?} is empty"
            );
        }
    }
}
