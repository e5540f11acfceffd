//! A display's self-description (VESA E-EDID 1.4) with one mode: the panel's own, at 60 Hz.

/// Blanking as in VESA's reduced blanking (CVT 1.2); any would do where no signal flows.
const H_BLANK: u32 = 160;
const H_FRONT: u32 = 48;
const H_SYNC: u32 = 32;
const V_BLANK: u32 = 30;
const V_FRONT: u32 = 3;
const V_SYNC: u32 = 6;
/// Sizes in a detailed timing have 12 bits.
const SIZE_MAX: u32 = 0xfff;
/// Width of a phone's panel in the hand, in millimetres.
const PANEL_WIDTH_MM: u32 = 68;

/// `None` where the panel has more pixels than a detailed timing can say.
pub(super) fn edid(width: u32, height: u32) -> Option<[u8; 128]> {
    if width > SIZE_MAX || height > SIZE_MAX {
        return None;
    }
    let clock_10khz = u16::try_from((width + H_BLANK) * (height + V_BLANK) * 60 / 10_000).ok()?;
    let height_mm = (PANEL_WIDTH_MM * height / width).min(SIZE_MAX);
    let mut edid = [0; 128];
    edid[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Manufacturer "PLX", five bits a letter.
    edid[8..10].copy_from_slice(&(16u16 << 10 | 12 << 5 | 24).to_be_bytes());
    edid[10] = 1;
    edid[17] = 36; // year of the model, from 1990
    edid[18..20].copy_from_slice(&[1, 4]);
    edid[20] = 0xa0; // digital, 8 bits a colour
    edid[21] = (PANEL_WIDTH_MM / 10) as u8;
    edid[22] = (height_mm / 10).min(255) as u8;
    edid[23] = 120; // gamma 2.2
    edid[24] = 0b0000_0110; // sRGB; the first timing is the native one
    edid[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]); // sRGB's primaries
    edid[38..54].fill(1); // no standard timings
    edid[54..72].copy_from_slice(&timing(width, height, clock_10khz, height_mm));
    edid[72..90].copy_from_slice(b"\0\0\0\xfc\0Pollux\n      ");
    edid[93] = 0x10; // two unused descriptors
    edid[111] = 0x10;
    let sum = edid.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    edid[127] = sum.wrapping_neg();
    Some(edid)
}

fn timing(width: u32, height: u32, clock_10khz: u16, height_mm: u32) -> [u8; 18] {
    let low = |value: u32| value as u8;
    let high = |a: u32, b: u32| ((a >> 8) << 4 | b >> 8) as u8;
    let clock = clock_10khz.to_le_bytes();
    [
        clock[0],
        clock[1],
        low(width),
        low(H_BLANK),
        high(width, H_BLANK),
        low(height),
        low(V_BLANK),
        high(height, V_BLANK),
        low(H_FRONT),
        low(H_SYNC),
        (V_FRONT << 4 | V_SYNC) as u8,
        0,
        low(PANEL_WIDTH_MM),
        low(height_mm),
        high(PANEL_WIDTH_MM, height_mm),
        0,
        0,
        0x1a, // digital separate sync, horizontal positive
    ]
}
