//! X11 keysyms, which RFB clients send, to Linux key codes of a US keyboard, which the guest's keyboard has.
//!
//! A client sends the symbol that its user's layout made, not the key. So a symbol says here which key makes it and whether
//! with Shift; what a US keyboard cannot type is left out.

/// How a symbol is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) code: u16,
    /// Shift must be down (`Some(true)`), up (`Some(false)`), or does not matter.
    pub(crate) shift: Option<bool>,
}

pub(crate) const KEY_LEFTSHIFT: u16 = 42;
pub(crate) const KEY_RIGHTSHIFT: u16 = 54;

/// Characters without and with Shift, by key code: Linux input-event-codes.h, US layout.
const ROWS: [(u16, &str, &str); 4] = [
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

/// The key for a keysym, if the guest's keyboard has one.
pub(crate) fn key(keysym: u32) -> Option<Key> {
    match keysym {
        0x20 => Some(Key { code: 57, shift: None }),
        0x21..=0x7e => printable(char::from_u32(keysym)?),
        _ => special(keysym).map(|code| Key { code, shift: None }),
    }
}

fn printable(symbol: char) -> Option<Key> {
    ROWS.iter().find_map(|(first, plain, shifted)| {
        let at = |row: &str, shift| row.chars().position(|c| c == symbol).map(|i| Key { code: first + i as u16, shift: Some(shift) });
        at(plain, false).or_else(|| at(shifted, true))
    })
}

/// Keys that type no character (keysymdef.h, XF86keysym.h).
fn special(keysym: u32) -> Option<u16> {
    Some(match keysym {
        0xff08 => 14,
        0xff09 | 0xfe20 => 15,
        0xff0d => 28,
        0xff1b => 1,
        0xff50 => 102,
        0xff51 => 105,
        0xff52 => 103,
        0xff53 => 106,
        0xff54 => 108,
        0xff55 => 104,
        0xff56 => 109,
        0xff57 => 107,
        0xff63 => 110,
        0xff67 => 139,
        0xffff => 111,
        0xff8d => 96,
        0xffaa => 55,
        0xffab => 78,
        0xffad => 74,
        0xffae => 83,
        0xffaf => 98,
        0xffb0 => 82,
        0xffb1..=0xffb3 => 79 + (keysym - 0xffb1) as u16,
        0xffb4..=0xffb6 => 75 + (keysym - 0xffb4) as u16,
        0xffb7..=0xffb9 => 71 + (keysym - 0xffb7) as u16,
        0xffbe..=0xffc7 => 59 + (keysym - 0xffbe) as u16,
        0xffc8 => 87,
        0xffc9 => 88,
        0xffe1 => KEY_LEFTSHIFT,
        0xffe2 => KEY_RIGHTSHIFT,
        0xffe3 => 29,
        0xffe4 => 97,
        0xffe5 => 58,
        0xffe9 | 0xffe7 => 56,
        0xffea | 0xffe8 | 0xfe03 => 100,
        0xffeb => 125,
        0xffec => 126,
        // Phone keys: volume down, mute, volume up, power, home page, back.
        0x1008_ff11 => 114,
        0x1008_ff12 => 113,
        0x1008_ff13 => 115,
        0x1008_ff2a => 116,
        0x1008_ff18 => 172,
        0x1008_ff26 => 158,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_ascii_character_has_its_own_key() {
        let mut seen = std::collections::HashSet::new();
        for symbol in 0x21..=0x7e {
            let key = key(symbol).unwrap();
            assert!(seen.insert((key.code, key.shift)), "{symbol:#x}");
        }
        assert_eq!(key(0x20), Some(Key { code: 57, shift: None }));
    }

    #[test]
    fn known_keys() {
        let code = |keysym| key(keysym).unwrap().code;
        assert_eq!(key(u32::from('a')), Some(Key { code: 30, shift: Some(false) }));
        assert_eq!(key(u32::from('Z')), Some(Key { code: 44, shift: Some(true) }));
        assert_eq!(key(u32::from('@')), Some(Key { code: 3, shift: Some(true) }));
        assert_eq!(key(u32::from('`')), Some(Key { code: 41, shift: Some(false) }));
        assert_eq!(key(u32::from('/')), Some(Key { code: 53, shift: Some(false) }));
        assert_eq!((code(0xff0d), code(0xff08), code(0xff1b)), (28, 14, 1));
        assert_eq!((code(0xffbe), code(0xffc7), code(0xffc9)), (59, 68, 88));
        assert_eq!((code(0xffb0), code(0xffb5), code(0xffb9)), (82, 76, 73));
        assert_eq!(key(0xe4), None, "a US keyboard has no ä");
        assert_eq!(key(u32::MAX), None);
    }
}
