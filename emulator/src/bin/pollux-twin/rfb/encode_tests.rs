//! Encodings undone as a client undoes them (RFC 6143, 7.7).

use flate2::{Decompress, FlushDecompress};

use super::super::protocol::ENCODING_RAW;
use super::*;

fn frame(width: u32, height: u32, pixel: impl Fn(u32, u32) -> u32) -> Picture {
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| pixel(x, y)).collect();
    Picture { width, height, pixels }
}

fn whole(frame: &Picture) -> Rect {
    Rect { x: 0, y: 0, width: frame.width, height: frame.height }
}

/// A client's half of ZRLE for 3-byte little-endian pixels.
struct Decoder {
    zlib: Decompress,
}

impl Decoder {
    fn decode(&mut self, bytes: &[u8]) -> (Rect, Vec<u32>) {
        let word = |at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let rect = Rect { x: word(0), y: word(2), width: word(4), height: word(6) };
        assert_eq!(bytes[8..12], ENCODING_ZRLE.to_be_bytes());
        let length = u32::from_be_bytes(bytes[12..16].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 16 + length);
        let mut data = Vec::with_capacity(16 << 20);
        self.zlib.decompress_vec(&bytes[16..], &mut data, FlushDecompress::Sync).unwrap();
        let mut pixels = vec![u32::MAX; (rect.width * rect.height) as usize];
        let mut data = &data[..];
        for y in (0..rect.height).step_by(64) {
            for x in (0..rect.width).step_by(64) {
                let (width, height) = (64.min(rect.width - x), 64.min(rect.height - y));
                let tile = read_tile(&mut data, width as usize, height as usize);
                for (i, pixel) in tile.into_iter().enumerate() {
                    let (dx, dy) = (i as u32 % width, i as u32 / width);
                    pixels[((y + dy) * rect.width + x + dx) as usize] = pixel;
                }
            }
        }
        assert!(data.is_empty());
        (rect, pixels)
    }
}

fn take<'a>(data: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, rest) = data.split_at(count);
    *data = rest;
    head
}

fn read_pixel(data: &mut &[u8]) -> u32 {
    let bytes = take(data, 3);
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

fn read_tile(data: &mut &[u8], width: usize, height: usize) -> Vec<u32> {
    let mut pixels = Vec::new();
    match take(data, 1)[0] {
        0 => pixels.extend((0..width * height).map(|_| read_pixel(data))),
        1 => pixels.resize(width * height, read_pixel(data)),
        128 => {
            while pixels.len() < width * height {
                let pixel = read_pixel(data);
                let mut run = 1;
                loop {
                    let more = take(data, 1)[0];
                    run += usize::from(more);
                    if more < 255 {
                        break;
                    }
                }
                pixels.extend(std::iter::repeat_n(pixel, run));
            }
        }
        size @ 2..=16 => {
            let palette: Vec<_> = (0..size).map(|_| read_pixel(data)).collect();
            let bits = [1, 2, 4][[2, 4, 16].iter().position(|most| size <= *most).unwrap()];
            for _ in 0..height {
                let row = take(data, (width * bits).div_ceil(8));
                pixels.extend((0..width).map(|x| {
                    let byte = row[x * bits / 8];
                    palette[usize::from(byte >> (8 - bits - x * bits % 8)) & ((1 << bits) - 1)]
                }));
            }
        }
        other => panic!("subencoding {other}"),
    }
    assert_eq!(pixels.len(), width * height);
    pixels
}

#[test]
fn zrle_gives_back_every_kind_of_tile() {
    let noise = |x: u32, y: u32| (x * 7919 + y * 104_729).wrapping_mul(2_654_435_761) >> 8;
    let frames = [
        frame(1, 1, |_, _| 0x123456),
        frame(64, 64, |_, _| 0xabcdef),
        frame(65, 130, |x, _| x % 2 * 0xffffff),
        frame(67, 3, |x, y| (x + y) % 3),
        frame(100, 70, |x, y| (x * y) % 15),
        frame(200, 100, noise),
        frame(200, 100, |x, y| noise(x / 50, y)),
        frame(64, 64, |_, y| y),
        frame(360, 720, |x, y| if y < 300 { 0x202030 } else { noise(x / 3, y / 3) }),
    ];
    let mut encoder = Encoder::new();
    let mut decoder = Decoder { zlib: Decompress::new(true) };
    for frame in frames {
        let mut out = Vec::new();
        encoder.rectangle(&frame, whole(&frame), ENCODING_ZRLE, &mut out);
        let (rect, pixels) = decoder.decode(&out);
        assert_eq!(rect, whole(&frame));
        assert!(pixels == frame.pixels, "{} x {}", frame.width, frame.height);
    }
}

#[test]
fn parts_of_a_frame_are_cut_out() {
    let frame = frame(100, 100, |x, y| x << 8 | y);
    let rect = Rect { x: 10, y: 20, width: 70, height: 66 };
    let (mut zrle, mut raw) = (Vec::new(), Vec::new());
    let mut encoder = Encoder::new();
    encoder.rectangle(&frame, rect, ENCODING_ZRLE, &mut zrle);
    encoder.rectangle(&frame, rect, ENCODING_RAW, &mut raw);
    let (told, pixels) = Decoder { zlib: Decompress::new(true) }.decode(&zrle);
    assert_eq!(told, rect);
    let raw: Vec<_> = raw[12..].chunks(4).map(|p| u32::from_le_bytes(p.try_into().unwrap())).collect();
    assert_eq!(raw, pixels);
    assert_eq!((raw[0], raw[70]), (10 << 8 | 20, 10 << 8 | 21));
}

#[test]
fn raw_follows_the_clients_pixel_format() {
    let frame = frame(1, 1, |_, _| 0xff8010);
    let raw = |format| {
        let mut encoder = Encoder::new();
        encoder.set_format(format);
        let mut out = Vec::new();
        encoder.rectangle(&frame, whole(&frame), ENCODING_RAW, &mut out);
        out.split_off(12)
    };
    let rgb565 = PixelFormat { bits_per_pixel: 16, depth: 16, big_endian: false, max: [31, 63, 31], shift: [11, 5, 0] };
    assert_eq!(raw(rgb565), (31u16 << 11 | 32 << 5 | 2).to_le_bytes());
    assert_eq!(raw(PixelFormat { big_endian: true, ..rgb565 }), (31u16 << 11 | 32 << 5 | 2).to_be_bytes());
    let rgb332 = PixelFormat { bits_per_pixel: 8, depth: 8, big_endian: false, max: [7, 7, 3], shift: [5, 2, 0] };
    assert_eq!(raw(rgb332), [7 << 5 | 4 << 2]);
    assert_eq!(raw(PixelFormat { big_endian: true, ..PixelFormat::OURS }), [0, 0xff, 0x80, 0x10]);
}

#[test]
fn compact_pixels_keep_the_bytes_in_use() {
    let ours = PixelFormat::OURS;
    let high = PixelFormat { shift: [24, 16, 8], ..ours };
    assert_eq!(compact_pixel(&ours), (3, 0));
    assert_eq!(compact_pixel(&PixelFormat { big_endian: true, ..ours }), (3, 1));
    assert_eq!(compact_pixel(&high), (3, 1));
    assert_eq!(compact_pixel(&PixelFormat { big_endian: true, ..high }), (3, 0));
    assert_eq!(compact_pixel(&PixelFormat { depth: 32, ..ours }), (4, 0));
    assert_eq!(compact_pixel(&PixelFormat { bits_per_pixel: 16, ..ours }), (2, 0));
}

#[test]
fn flat_screens_are_small() {
    let frame = frame(360, 720, |x, y| if (x / 60 + y / 60) % 2 == 0 { 0x101820 } else { 0xf0f0f0 });
    let mut out = Vec::new();
    Encoder::new().rectangle(&frame, whole(&frame), ENCODING_ZRLE, &mut out);
    assert!(out.len() < 4000, "{} bytes", out.len());
}
