//! The home screen's background: a dawn gradient behind three soft ridges, computed in integers.

use super::canvas::Color;

const SKY: [Color; 3] = [Color::rgb(0x2b3f8f), Color::rgb(0x6d6fc0), Color::rgb(0xf0b6a4)];
const RIDGES: [(Color, Color); 3] = [
    (Color::rgb(0xa988bd), Color::rgb(0x7d6fb4)),
    (Color::rgb(0x6a62a8), Color::rgb(0x4a4f93)),
    (Color::rgb(0x39427f), Color::rgb(0x1f2a58)),
];

/// Opaque pixels for a display of `w` by `h` pixels.
pub(super) fn paint(w: i32, h: i32) -> Vec<u32> {
    let mut pixels = vec![0u32; (w * h) as usize];
    for y in 0..h {
        let color = sky(y, h);
        let row = (y * w) as usize;
        for x in 0..w {
            pixels[row + x as usize] = dithered(color, x, y);
        }
    }
    for (index, ridge) in RIDGES.iter().enumerate() {
        for x in 0..w {
            let edge = ridge_edge(index as i32, x, w, h);
            let top = (edge >> 8).clamp(0, h);
            for y in top..h {
                let depth = ((y - top) * 255 / (h - top).max(1)) as u32;
                let fill = ridge.0.mix(ridge.1, depth);
                let at = (y * w + x) as usize;
                pixels[at] = if y == top {
                    // The fraction of the pixel below the edge.
                    let cover = 255 - (edge & 255) as u32;
                    Color(0xff00_0000 | pixels[at]).mix(fill, cover).0 & 0x00ff_ffff
                } else {
                    dithered(split(fill), x, y)
                };
            }
        }
    }
    pixels
}

/// Red, green and blue in 8.8 fixed point.
fn split(color: Color) -> [u32; 3] {
    [(color.0 >> 16 & 255) << 8, (color.0 >> 8 & 255) << 8, (color.0 & 255) << 8]
}

fn sky(y: i32, h: i32) -> [u32; 3] {
    let horizon = (h * 3 / 4).max(2);
    let half = (horizon / 2).max(1);
    let (from, to, at) =
        if y < half { (SKY[0], SKY[1], y) } else { (SKY[1], SKY[2], (y - half).min(half)) };
    let (from, to) = (split(from), split(to));
    let part = (at * 256 / half) as u32;
    std::array::from_fn(|i| (from[i] * (256 - part) + to[i] * part) >> 8)
}

/// Ordered dithering hides the steps of a slow gradient.
fn dithered(color: [u32; 3], x: i32, y: i32) -> u32 {
    const BAYER: [u32; 16] = [0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5];
    let add = BAYER[((y & 3) * 4 + (x & 3)) as usize] * 16;
    let channel = |value: u32| ((value + add) >> 8).min(255);
    channel(color[0]) << 16 | channel(color[1]) << 8 | channel(color[2])
}

/// Height of a ridge's edge at column `x`, in 1/256 pixel from the top.
fn ridge_edge(index: i32, x: i32, w: i32, h: i32) -> i32 {
    let base = h * (60 + 11 * index) / 100;
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
