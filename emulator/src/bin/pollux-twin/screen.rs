//! What the guest shows, as a picture: its digest, and as PNG.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use sha2::{Digest, Sha256};
use vmm::virtio::gpu::Frame;

/// A copy of the screen: rows from the top, each pixel 0x00RRGGBB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Vec<u32>,
}

impl Picture {
    pub(crate) fn of(frame: &Frame) -> Self {
        Self { width: frame.width(), height: frame.height(), pixels: frame.pixels().to_vec() }
    }

    /// Hexadecimal SHA-256 of width and height (u32 little-endian each) and of all pixels as R, G, B bytes. Two screens that
    /// look the same have the same digest, whatever the unused byte of their pixels holds.
    pub(crate) fn sha256(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(self.width.to_le_bytes());
        digest.update(self.height.to_le_bytes());
        let mut row = Vec::with_capacity(self.width as usize * 3);
        for pixels in self.rows() {
            row.clear();
            row.extend(pixels.iter().flat_map(rgb));
            digest.update(&row);
        }
        digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The picture as a PNG file (RGB, 8 bits each, no filters).
    pub(crate) fn png(&self) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(self.width.to_be_bytes());
        header.extend(self.height.to_be_bytes());
        header.extend([8, 2, 0, 0, 0]);
        let mut data = ZlibEncoder::new(Vec::new(), Compression::new(4));
        let mut row = Vec::with_capacity(self.width as usize * 3 + 1);
        for pixels in self.rows() {
            row.clear();
            row.push(0);
            row.extend(pixels.iter().flat_map(rgb));
            data.write_all(&row).expect("writing to memory does not fail");
        }
        let data = data.finish().expect("writing to memory does not fail");
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        put_chunk(&mut file, b"IHDR", &header);
        put_chunk(&mut file, b"IDAT", &data);
        put_chunk(&mut file, b"IEND", &[]);
        file
    }

    fn rows(&self) -> impl Iterator<Item = &[u32]> {
        self.pixels.chunks(self.width.max(1) as usize)
    }
}

fn rgb(pixel: &u32) -> [u8; 3] {
    let [_, r, g, b] = pixel.to_be_bytes();
    [r, g, b]
}

fn put_chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    let length = u32::try_from(data.len()).expect("a screen is far smaller than 4 GiB");
    file.extend(length.to_be_bytes());
    file.extend(kind);
    file.extend(data);
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(data);
    file.extend(crc.sum().to_be_bytes());
}

/// Base64 (RFC 4648, with padding), for pictures in JSON.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let symbol = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i <= group.len() { symbol } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn frame() -> Picture {
        Picture { width: 3, height: 2, pixels: vec![0xff_0000, 0x00ff00, 0x0000ff, 0x123456, 0, 0xffffff] }
    }

    #[test]
    fn digest_sees_pixels_and_shape_only() {
        let same = Picture { pixels: frame().pixels.iter().map(|p| p | 0xff00_0000).collect(), ..frame() };
        assert_eq!(same.sha256(), frame().sha256());
        assert_ne!(Picture { width: 2, height: 3, ..frame() }.sha256(), frame().sha256());
        let mut other = frame();
        other.pixels[4] = 1;
        assert_ne!(other.sha256(), frame().sha256());
        // printf '\x01\0\0\0\x01\0\0\0\x12\x34\x56' | sha256sum
        let one = Picture { width: 1, height: 1, pixels: vec![0x123456] };
        assert_eq!(one.sha256(), "1e8ad69a02bceb0567359dead949e2fcf6f452a770360a23fab81fabf5129172");
    }

    #[test]
    fn png_holds_the_pixels() {
        let png = frame().png();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&png[12..16], b"IHDR");
        assert_eq!(&png[16..26], [0, 0, 0, 3, 0, 0, 0, 2, 8, 2]);
        assert_eq!(&png[29..33], 0x1216_f14d_u32.to_be_bytes(), "CRC of IHDR");
        let length = u32::from_be_bytes(png[33..37].try_into().unwrap()) as usize;
        let mut data = Vec::new();
        flate2::read::ZlibDecoder::new(&png[41..41 + length]).read_to_end(&mut data).unwrap();
        assert_eq!(data, [0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0x12, 0x34, 0x56, 0, 0, 0, 255, 255, 255]);
        assert!(png.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
    }

    #[test]
    fn base64_as_in_rfc_4648() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
