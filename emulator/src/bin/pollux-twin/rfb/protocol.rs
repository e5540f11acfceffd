//! The Remote Framebuffer protocol's messages (RFC 6143), version 3.8 with security type None, as a server sees them.
//! Parsing only: no state, no sockets.

use std::io::{self, Read};

pub(super) const VERSION: &[u8; 12] = b"RFB 003.008\n";
pub(super) const SECURITY_NONE: u8 = 1;
/// All of the message Bell (7.6.3).
pub(super) const BELL: u8 = 2;

pub(super) const ENCODING_RAW: i32 = 0;
pub(super) const ENCODING_ZRLE: i32 = 16;
/// Pseudo-encoding: the client can be told that the screen has another size.
pub(super) const ENCODING_DESKTOP_SIZE: i32 = -223;

/// Clients list a dozen or two.
const ENCODINGS_MAX: u16 = 256;
/// Text that a client pastes is read and dropped, but not without end.
const CUT_TEXT_BYTES_MAX: u32 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("connection")]
    Io(#[from] io::Error),
    #[error("client speaks {0:?}; this server speaks RFB 003.008")]
    Version(String),
    #[error("client chose security type {0}; only None (1) is offered")]
    Security(u8),
    #[error("client asked for a pixel format that is not offered: {0}")]
    PixelFormat(&'static str),
    #[error("client sent message type {0}, which this server does not know")]
    Message(u8),
    #[error("client sent {count} {what}, more than {most}")]
    TooMuch { what: &'static str, count: u32, most: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Rect {
    /// The common part, if there is one.
    pub(super) fn intersect(self, other: Rect) -> Option<Rect> {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = (self.x.saturating_add(self.width)).min(other.x.saturating_add(other.width));
        let bottom = (self.y.saturating_add(self.height)).min(other.y.saturating_add(other.height));
        (right > x && bottom > y).then(|| Rect { x, y, width: right - x, height: bottom - y })
    }

    /// The smallest rectangle around both.
    pub(super) fn union(self, other: Rect) -> Rect {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x.saturating_add(self.width)).max(other.x.saturating_add(other.width));
        let bottom = (self.y.saturating_add(self.height)).max(other.y.saturating_add(other.height));
        Rect { x, y, width: right - x, height: bottom - y }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    SetPixelFormat(PixelFormat),
    SetEncodings(Vec<i32>),
    UpdateRequest { incremental: bool, area: Rect },
    Key { down: bool, keysym: u32 },
    Pointer { buttons: u8, x: u16, y: u16 },
    CutText,
}

/// How a client wants its pixels (RFC 6143, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelFormat {
    pub(super) bits_per_pixel: u8,
    pub(super) depth: u8,
    pub(super) big_endian: bool,
    /// For red, green and blue.
    pub(super) max: [u16; 3],
    pub(super) shift: [u8; 3],
}

impl PixelFormat {
    /// The format of our own frames: 0x00RRGGBB, little-endian.
    pub(super) const OURS: Self =
        Self { bits_per_pixel: 32, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0] };

    fn parse(bytes: &[u8; 16]) -> Result<Self, ProtocolError> {
        let refuse = |why| Err(ProtocolError::PixelFormat(why));
        let [bits_per_pixel, depth, big_endian, true_colour, ..] = *bytes;
        let max = std::array::from_fn(|i| u16::from_be_bytes([bytes[4 + 2 * i], bytes[5 + 2 * i]]));
        let shift = [bytes[10], bytes[11], bytes[12]];
        if !matches!(bits_per_pixel, 8 | 16 | 32) {
            return refuse("8, 16 or 32 bits a pixel");
        }
        if true_colour == 0 {
            return refuse("true colour only");
        }
        for (max, shift) in max.iter().zip(shift) {
            let wide = u32::from(*max).checked_shl(u32::from(shift)).map(|v| v >> shift == u32::from(*max));
            let fits = wide == Some(true) && (u64::from(*max) << shift) >> bits_per_pixel == 0;
            if !fits || !(u32::from(*max) + 1).is_power_of_two() {
                return refuse("its colours do not fit its pixels");
            }
        }
        Ok(Self { bits_per_pixel, depth, big_endian: big_endian != 0, max, shift })
    }

    pub(super) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[self.bits_per_pixel, self.depth, u8::from(self.big_endian), 1]);
        for (i, max) in self.max.iter().enumerate() {
            bytes[4 + 2 * i..6 + 2 * i].copy_from_slice(&max.to_be_bytes());
        }
        bytes[10..13].copy_from_slice(&self.shift);
        bytes
    }
}

/// Reads the client's version and refuses all but 3.8.
pub(super) fn read_version(from: &mut impl Read) -> Result<(), ProtocolError> {
    let version: [u8; 12] = read(from)?;
    if &version == VERSION { Ok(()) } else { Err(ProtocolError::Version(String::from_utf8_lossy(&version).into_owned())) }
}

pub(super) fn read_security(from: &mut impl Read) -> Result<(), ProtocolError> {
    match read(from)? {
        [SECURITY_NONE] => Ok(()),
        [other] => Err(ProtocolError::Security(other)),
    }
}

/// Reads ClientInit. Whether the client wants the screen for itself makes no difference: it is always shared.
pub(super) fn read_client_init(from: &mut impl Read) -> Result<(), ProtocolError> {
    let [_shared] = read(from)?;
    Ok(())
}

/// ServerInit (7.3.2).
pub(super) fn server_init(width: u32, height: u32, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(side(width).to_be_bytes());
    bytes.extend(side(height).to_be_bytes());
    bytes.extend(PixelFormat::OURS.bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes
}

/// Reads one message; blocks until it is there.
pub(super) fn read_message(from: &mut impl Read) -> Result<ClientMessage, ProtocolError> {
    let [kind] = read(from)?;
    match kind {
        0 => {
            let [_, _, _, format @ ..]: [u8; 19] = read(from)?;
            Ok(ClientMessage::SetPixelFormat(PixelFormat::parse(&format)?))
        }
        2 => {
            let [_, high, low] = read(from)?;
            let count = u16::from_be_bytes([high, low]);
            if count > ENCODINGS_MAX {
                return Err(ProtocolError::TooMuch { what: "encodings", count: count.into(), most: ENCODINGS_MAX.into() });
            }
            let encodings = (0..count).map(|_| Ok(i32::from_be_bytes(read(from)?)));
            Ok(ClientMessage::SetEncodings(encodings.collect::<io::Result<_>>()?))
        }
        3 => {
            let bytes: [u8; 9] = read(from)?;
            let word = |at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let area = Rect { x: word(1), y: word(3), width: word(5), height: word(7) };
            Ok(ClientMessage::UpdateRequest { incremental: bytes[0] != 0, area })
        }
        4 => {
            let [down, _, _, keysym @ ..]: [u8; 7] = read(from)?;
            Ok(ClientMessage::Key { down: down != 0, keysym: u32::from_be_bytes(keysym) })
        }
        5 => {
            let [buttons, x0, x1, y0, y1] = read(from)?;
            Ok(ClientMessage::Pointer { buttons, x: u16::from_be_bytes([x0, x1]), y: u16::from_be_bytes([y0, y1]) })
        }
        6 => {
            let [_, _, _, length @ ..]: [u8; 7] = read(from)?;
            let count = u32::from_be_bytes(length);
            if count > CUT_TEXT_BYTES_MAX {
                return Err(ProtocolError::TooMuch { what: "bytes of text", count, most: CUT_TEXT_BYTES_MAX });
            }
            let copied = io::copy(&mut from.take(count.into()), &mut io::sink())?;
            if copied < count.into() { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(ClientMessage::CutText) }
        }
        other => Err(ProtocolError::Message(other)),
    }
}

/// The head of a FramebufferUpdate of `count` rectangles.
pub(super) fn update_head(count: u16) -> [u8; 4] {
    let [high, low] = count.to_be_bytes();
    [0, 0, high, low]
}

/// The head of a rectangle.
pub(super) fn rectangle_head(rect: Rect, encoding: i32) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (i, value) in [rect.x, rect.y, rect.width, rect.height].into_iter().enumerate() {
        bytes[2 * i..2 * i + 2].copy_from_slice(&side(value).to_be_bytes());
    }
    bytes[8..].copy_from_slice(&encoding.to_be_bytes());
    bytes
}

/// Screens have sides of a few thousand pixels; the configuration says so.
fn side(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn read<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<ClientMessage, ProtocolError> {
        read_message(&mut &bytes[..])
    }

    #[test]
    fn messages_as_clients_send_them() {
        // As noVNC and TigerVNC send them.
        let set_format = [0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
        assert_eq!(parse(&set_format).unwrap(), ClientMessage::SetPixelFormat(PixelFormat::OURS));
        assert_eq!(&PixelFormat::OURS.bytes()[..], &set_format[4..]);
        let encodings = [2, 0, 0, 3, 0, 0, 0, 16, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21];
        assert_eq!(parse(&encodings).unwrap(), ClientMessage::SetEncodings(vec![ENCODING_ZRLE, ENCODING_RAW, ENCODING_DESKTOP_SIZE]));
        let area = Rect { x: 1, y: 2, width: 360, height: 720 };
        assert_eq!(
            parse(&[3, 1, 0, 1, 0, 2, 1, 104, 2, 208]).unwrap(),
            ClientMessage::UpdateRequest { incremental: true, area }
        );
        assert_eq!(parse(&[4, 1, 0, 0, 0, 0, 0xff, 0x0d]).unwrap(), ClientMessage::Key { down: true, keysym: 0xff0d });
        assert_eq!(parse(&[5, 1, 0, 10, 1, 0]).unwrap(), ClientMessage::Pointer { buttons: 1, x: 10, y: 256 });
        assert_eq!(parse(&[6, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).unwrap(), ClientMessage::CutText);
    }

    #[test]
    fn malformed_messages_are_refused() {
        let says = |bytes: &[u8], text: &str| {
            let error = parse(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error} does not say {text}");
        };
        says(&[9], "message type 9");
        says(&[], "connection");
        says(&[3, 1, 0], "connection");
        says(&[2, 0, 0xff, 0xff], "65535 encodings");
        says(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], "bytes of text");
        says(&[6, 0, 0, 0, 0, 0, 0, 2, b'h'], "connection");
        let format = |bpp: u8, colour: u8, max: u8, shift: u8| [0, 0, 0, 0, bpp, 24, 0, colour, 0, max, 0, 255, 0, 255, shift, 8, 0, 0, 0, 0];
        says(&format(24, 1, 255, 16), "8, 16 or 32");
        says(&format(32, 0, 255, 16), "true colour");
        says(&format(32, 1, 255, 25), "do not fit");
        says(&format(32, 1, 255, 255), "do not fit");
        says(&format(16, 1, 255, 16), "do not fit");
        says(&format(32, 1, 100, 16), "do not fit");
    }

    #[test]
    fn handshake_is_3_8_without_security() {
        assert!(read_version(&mut &VERSION[..]).is_ok());
        assert!(matches!(read_version(&mut &b"RFB 003.003\n"[..]), Err(ProtocolError::Version(_))));
        assert!(matches!(read_version(&mut &b"GET / HTTP/1"[..]), Err(ProtocolError::Version(_))));
        assert!(read_security(&mut &[1][..]).is_ok());
        assert!(matches!(read_security(&mut &[2][..]), Err(ProtocolError::Security(2))));
        let init = server_init(360, 720, "twin");
        assert_eq!(&init[..4], [1, 104, 2, 208]);
        assert_eq!(&init[20..], b"\0\0\0\x04twin");
    }

    #[test]
    fn rectangles_intersect() {
        let rect = |x, y, width, height| Rect { x, y, width, height };
        assert_eq!(rect(0, 0, 10, 10).intersect(rect(5, 6, 10, 10)), Some(rect(5, 6, 5, 4)));
        assert_eq!(rect(0, 0, 10, 10).intersect(rect(10, 0, 1, 1)), None);
        assert_eq!(rect(0, 0, 0, 10).intersect(rect(0, 0, 5, 5)), None);
    }
}
