//! The body of the fuzz target `rfb`: what a client may send, and what it is then sent in the format that it asked for. Run by libFuzzer
//! from `emulator/fuzz`, and among the tests for a short time.

use super::encode::Encoder;
use super::protocol::{self, ClientMessage, ENCODING_RAW, ENCODING_ZRLE, PixelFormat, ProtocolError, Rect};
use crate::screen::Picture;

/// Not a multiple of what encoders work by.
const WIDTH: u32 = 70;
const HEIGHT: u32 = 66;
/// Updates for one input: the first ones are like the others.
const UPDATES_MAX: usize = 4;

/// The first byte says how colourful the screen is; then what a client sends, from its version on.
pub(crate) fn rfb(input: &[u8]) {
    let Some((&colours, mut sent)) = input.split_first() else { return };
    // Ended by what it makes of the end.
    let _ = serve(&picture(colours), &mut sent);
}

fn serve(picture: &Picture, from: &mut &[u8]) -> Result<(), ProtocolError> {
    protocol::read_version(from)?;
    protocol::read_security(from)?;
    protocol::read_client_init(from)?;
    let (mut encoder, mut format, mut encoding, mut updates) = (Encoder::new(), PixelFormat::OURS, ENCODING_RAW, 0);
    let screen = Rect { x: 0, y: 0, width: WIDTH, height: HEIGHT };
    loop {
        match protocol::read_message(from)? {
            ClientMessage::SetPixelFormat(wanted) => {
                format = wanted;
                encoder.set_format(format);
            }
            ClientMessage::SetEncodings(list) => encoding = list.first().copied().unwrap_or(ENCODING_RAW),
            ClientMessage::UpdateRequest { area, .. } if updates < UPDATES_MAX => {
                let Some(rect) = area.intersect(screen) else { continue };
                updates += 1;
                let mut update = Vec::new();
                encoder.rectangle(picture, rect, encoding, &mut update);
                let pixels = (rect.width * rect.height * u32::from(format.bits_per_pixel / 8)) as usize;
                let expected = if encoding == ENCODING_ZRLE { 16..=16 + 2 * pixels + 1000 } else { 12 + pixels..=12 + pixels };
                assert!(expected.contains(&update.len()), "{} bytes of {rect:?} in {format:?}", update.len());
            }
            _ => {}
        }
    }
}

fn picture(colours: u8) -> Picture {
    let pixel = |i: u32| ((i.wrapping_mul(0x9e37_79b9) >> 8) % (u32::from(colours) * 257 + 1)).wrapping_mul(0x01_0101);
    Picture { width: WIDTH, height: HEIGHT, pixels: (0..WIDTH * HEIGHT).map(pixel).collect() }
}

#[cfg(test)]
#[path = "../../../../../vmm/src/fuzz/short_run.rs"]
mod short_run;

#[test]
fn a_short_run() {
    short_run::run(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/rfb").as_ref(), rfb);
}
