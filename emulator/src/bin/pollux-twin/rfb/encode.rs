//! Pixels to bytes: Raw and ZRLE (RFC 6143, 7.7.1 and 7.7.6) in any true-colour format.

use flate2::{Compress, Compression, FlushCompress};

use super::protocol::{ENCODING_ZRLE, PixelFormat, Rect, rectangle_head};
use crate::screen::Picture;

const TILE: u32 = 64;
/// Above so many colours a tile is not sent as a packed palette (RFC 6143, 7.7.6).
const PALETTE_MAX: usize = 16;

/// One client's encoder: its pixel format, and its compressed stream, which runs through the whole connection.
pub(super) struct Encoder {
    format: PixelFormat,
    /// Contribution of each red, green and blue value to a pixel.
    lookup: [[u32; 256]; 3],
    zlib: Compress,
    tiles: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        // A light level: screens compress well at any, and the guest needs the CPU more.
        let zlib = Compress::new(Compression::new(2), true);
        let mut encoder = Self { format: PixelFormat::OURS, lookup: [[0; 256]; 3], zlib, tiles: Vec::new() };
        encoder.set_format(PixelFormat::OURS);
        encoder
    }

    pub(super) fn set_format(&mut self, format: PixelFormat) {
        self.format = format;
        for (i, table) in self.lookup.iter_mut().enumerate() {
            let max = u32::from(format.max[i]);
            for (value, entry) in table.iter_mut().enumerate() {
                *entry = (value as u32 * max + 127) / 255 << format.shift[i];
            }
        }
    }

    /// Appends one rectangle, head included. It lies within the frame.
    pub(super) fn rectangle(&mut self, frame: &Picture, rect: Rect, encoding: i32, out: &mut Vec<u8>) {
        out.extend(rectangle_head(rect, encoding));
        match encoding {
            ENCODING_ZRLE => self.zrle(frame, rect, out),
            _ => self.raw(frame, rect, out),
        }
    }

    fn raw(&self, frame: &Picture, rect: Rect, out: &mut Vec<u8>) {
        let width = usize::from(self.format.bits_per_pixel / 8);
        out.reserve(rect.width as usize * rect.height as usize * width);
        for row in rows(frame, rect) {
            row.iter().for_each(|pixel| put_pixel(&self.format, self.convert(*pixel), width, out));
        }
    }

    fn zrle(&mut self, frame: &Picture, rect: Rect, out: &mut Vec<u8>) {
        let mut tiles = std::mem::take(&mut self.tiles);
        tiles.clear();
        let mut pixels = Vec::with_capacity((TILE * TILE) as usize);
        for y in (rect.y..rect.y + rect.height).step_by(TILE as usize) {
            for x in (rect.x..rect.x + rect.width).step_by(TILE as usize) {
                let width = TILE.min(rect.x + rect.width - x);
                let height = TILE.min(rect.y + rect.height - y);
                pixels.clear();
                for row in rows(frame, Rect { x, y, width, height }) {
                    pixels.extend(row.iter().map(|p| self.convert(*p)));
                }
                self.tile(&pixels, width as usize, &mut tiles);
            }
        }
        let head = out.len();
        out.extend([0; 4]);
        self.compress(&tiles, out);
        let length = (out.len() - head - 4) as u32;
        out[head..head + 4].copy_from_slice(&length.to_be_bytes());
        self.tiles = tiles;
    }

    /// One tile: solid, packed palette, run-length or raw, whichever is smaller before compression.
    fn tile(&self, pixels: &[u32], width: usize, out: &mut Vec<u8>) {
        let (compact, offset) = compact_pixel(&self.format);
        let put = |pixel, out: &mut Vec<u8>| {
            let start = out.len();
            put_pixel(&self.format, pixel, usize::from(self.format.bits_per_pixel / 8), out);
            if offset > 0 {
                out.drain(start..start + offset);
            }
            out.truncate(start + compact);
        };
        if let Some(palette) = palette(pixels) {
            out.push(palette.len() as u8);
            palette.iter().for_each(|pixel| put(*pixel, out));
            pack(pixels, width, &palette, out);
            return;
        }
        let runs = pixels.chunk_by(|a, b| a == b);
        let run_bytes: usize = runs.clone().map(|run| compact + 1 + (run.len() - 1) / 255).sum();
        if run_bytes < pixels.len() * compact {
            out.push(128);
            for run in runs {
                put(run[0], out);
                let more = run.len() - 1;
                out.extend(std::iter::repeat_n(255, more / 255));
                out.push((more % 255) as u8);
            }
        } else {
            out.push(0);
            pixels.iter().for_each(|pixel| put(*pixel, out));
        }
    }

    /// Appends `bytes` to the connection's zlib stream, flushed so that the client can decode them at once.
    fn compress(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let before = self.zlib.total_in();
        loop {
            out.reserve(bytes.len() / 4 + 64);
            let consumed = (self.zlib.total_in() - before) as usize;
            self.zlib
                .compress_vec(&bytes[consumed..], out, FlushCompress::Sync)
                .expect("compressing fails only on a finished stream, and this one is never finished");
            let consumed = (self.zlib.total_in() - before) as usize;
            // Room left over means that all of the flush came out (zlib.h, deflate).
            if consumed == bytes.len() && out.len() < out.capacity() {
                return;
            }
        }
    }

    fn convert(&self, pixel: u32) -> u32 {
        let [_, r, g, b] = pixel.to_be_bytes();
        self.lookup[0][usize::from(r)] | self.lookup[1][usize::from(g)] | self.lookup[2][usize::from(b)]
    }
}

fn rows(frame: &Picture, rect: Rect) -> impl Iterator<Item = &[u32]> {
    let (stride, x, width) = (frame.width as usize, rect.x as usize, rect.width as usize);
    (rect.y as usize..(rect.y + rect.height) as usize).map(move |y| &frame.pixels[y * stride + x..y * stride + x + width])
}

fn put_pixel(format: &PixelFormat, pixel: u32, width: usize, out: &mut Vec<u8>) {
    if format.big_endian {
        out.extend(&pixel.to_be_bytes()[4 - width..]);
    } else {
        out.extend(&pixel.to_le_bytes()[..width]);
    }
}

/// CPIXEL (7.7.5): how many bytes of a pixel are sent, and from which on. A 32-bit pixel whose colours leave its highest or lowest byte
/// unused is sent as three.
fn compact_pixel(format: &PixelFormat) -> (usize, usize) {
    let used = (0..3).fold(0, |used, i| used | u32::from(format.max[i]) << format.shift[i]);
    let whole = usize::from(format.bits_per_pixel / 8);
    if format.bits_per_pixel != 32 || format.depth > 24 {
        (whole, 0)
    } else if used >> 24 == 0 {
        (3, usize::from(format.big_endian))
    } else if used & 0xff == 0 {
        (3, usize::from(!format.big_endian))
    } else {
        (whole, 0)
    }
}

/// The colours of a tile, if they are few.
fn palette(pixels: &[u32]) -> Option<Vec<u32>> {
    let mut palette: Vec<u32> = Vec::with_capacity(PALETTE_MAX);
    let mut last = None;
    for pixel in pixels {
        if last != Some(pixel) && !palette.contains(pixel) {
            if palette.len() == PALETTE_MAX {
                return None;
            }
            palette.push(*pixel);
        }
        last = Some(pixel);
    }
    Some(palette)
}

/// Indices into the palette, packed to bytes row by row; a solid tile needs none.
fn pack(pixels: &[u32], width: usize, palette: &[u32], out: &mut Vec<u8>) {
    let bits = match palette.len() {
        0 | 1 => return,
        2 => 1,
        3 | 4 => 2,
        _ => 4,
    };
    for row in pixels.chunks(width) {
        for group in row.chunks(8 / bits) {
            let byte = group.iter().enumerate().fold(0, |byte, (i, pixel)| {
                let index = palette.iter().position(|p| p == pixel).unwrap_or(0);
                byte | index << (8 - bits * (i + 1))
            });
            out.push(byte as u8);
        }
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
