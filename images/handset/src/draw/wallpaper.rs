//! The home screen's background: a dawn gradient behind three soft ridges, computed in integers.

use super::canvas::Color;

const SKY: [Color; 3] = [
    Color::rgb(0x2b3f8f),
    Color::rgb(0x6d6fc0),
    Color::rgb(0xf0b6a4),
];
const RIDGES: [(Color, Color); 3] = [
    (Color::rgb(0xa988bd), Color::rgb(0x7d6fb4)),
    (Color::rgb(0x6a62a8), Color::rgb(0x4a4f93)),
    (Color::rgb(0x39427f), Color::rgb(0x1f2a58)),
];

/// Opaque pixels for a display of `w` by `h` pixels.
///
/// Colours depend on the row alone and ridge edges on the column alone, so a pixel costs little
/// more than choosing among a row's few colours.
pub(super) fn paint(w: i32, h: i32) -> Vec<u32> {
    let edges: Vec<[i32; 3]> = (0..w)
        .map(|x| std::array::from_fn(|ridge| ridge_edge(ridge as i32, x, w, h)))
        .collect();
    let mut pixels = Vec::with_capacity((w * h) as usize);
    for y in 0..h {
        // The sky and the ridges in front of it, each in the four columns of the dither pattern.
        let row: [[u32; 4]; 4] = std::array::from_fn(|layer| {
            let color = if layer == 0 {
                sky(y, h)
            } else {
                ridge_color(layer - 1, y, h)
            };
            std::array::from_fn(|x| dithered(color, x as i32, y))
        });
        let top = y << 8;
        for (x, edges) in edges.iter().enumerate() {
            let mut pixel = row[0][x & 3];
            for (ridge, &edge) in edges.iter().enumerate() {
                let below = top + 256 - edge;
                if below >= 256 {
                    pixel = row[ridge + 1][x & 3];
                } else if below > 0 {
                    // The edge crosses this pixel.
                    let front = Color(0xff00_0000 | row[ridge + 1][x & 3]);
                    pixel = Color(0xff00_0000 | pixel).mix(front, below as u32).0 & 0x00ff_ffff;
                }
            }
            pixels.push(pixel);
        }
    }
    pixels
}

/// Red, green and blue in 8.8 fixed point.
fn split(color: Color) -> [u32; 3] {
    [
        (color.0 >> 16 & 255) << 8,
        (color.0 >> 8 & 255) << 8,
        (color.0 & 255) << 8,
    ]
}

/// Blends in 8.8 fixed point; `part` 0 is `from`, 256 is `to`.
fn between(from: Color, to: Color, part: i32) -> [u32; 3] {
    let (from, to, part) = (split(from), split(to), part.clamp(0, 256) as u32);
    std::array::from_fn(|i| (from[i] * (256 - part) + to[i] * part) >> 8)
}

/// A ridge's colour grows darker from about where its edge lies to the bottom.
fn ridge_color(ridge: usize, y: i32, h: i32) -> [u32; 3] {
    let top = ridge_base(ridge as i32, h);
    let (light, dark) = RIDGES[ridge];
    between(light, dark, (y - top) * 256 / (h - top).max(1))
}

fn sky(y: i32, h: i32) -> [u32; 3] {
    let horizon = (h * 3 / 4).max(2);
    let half = (horizon / 2).max(1);
    let (from, to, at) = if y < half {
        (SKY[0], SKY[1], y)
    } else {
        (SKY[1], SKY[2], (y - half).min(half))
    };
    between(from, to, at * 256 / half)
}

/// Ordered dithering hides the steps of a slow gradient.
fn dithered(color: [u32; 3], x: i32, y: i32) -> u32 {
    const BAYER: [u32; 16] = [0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5];
    let add = BAYER[((y & 3) * 4 + (x & 3)) as usize] * 16;
    let channel = |value: u32| ((value + add) >> 8).min(255);
    channel(color[0]) << 16 | channel(color[1]) << 8 | channel(color[2])
}

fn ridge_base(ridge: i32, h: i32) -> i32 {
    h * (60 + 11 * ridge) / 100
}

/// Height of a ridge's edge at column `x`, in 1/256 pixel from the top.
fn ridge_edge(index: i32, x: i32, w: i32, h: i32) -> i32 {
    let base = ridge_base(index, h);
    let turn = x * 1024 / w.max(1);
    let slow = sine(turn * (2 + index) / 3 + index * 300 + 120);
    let fast = sine(turn * (5 + index) / 3 + index * 170);
    base * 256 + slow * (h * 5 / 100) + fast * (h * 18 / 1000)
}

/// A sine by Bhaskara's approximation: 1024 steps a turn, -256..=256.
fn sine(turn: i32) -> i32 {
    let phase = turn.rem_euclid(1024);
    let half = phase % 512;
    let product = half * (512 - half);
    let value = 256 * 16 * product / (5 * 512 * 512 - 4 * product);
    if phase < 512 { value } else { -value }
}
