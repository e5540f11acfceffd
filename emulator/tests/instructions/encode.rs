//! Encoding of instructions (Intel SDM volume 2, chapter 2), all with a REX prefix, so that registers 4 to 7 of a byte are low ones.

use crate::program::MEMORY;

/// The second operand.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    Register(u8),
    /// So far into the case's memory.
    Memory(u8),
}

/// Of an operand, in bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Width {
    W8,
    W16,
    W32,
    W64,
}

impl Width {
    pub(crate) const ALL: [Width; 4] = [Width::W8, Width::W16, Width::W32, Width::W64];
    /// Those that most instructions have that have none for bytes.
    pub(crate) const WIDE: [Width; 3] = [Width::W16, Width::W32, Width::W64];

    pub(crate) fn bits(self) -> u64 {
        match self {
            Width::W8 => 8,
            Width::W16 => 16,
            Width::W32 => 32,
            Width::W64 => 64,
        }
    }
}

/// An instruction of an integer width: `opcode` is that for bytes, of which the last byte is one more for the other widths, unless there
/// is none for bytes.
pub(crate) fn integer(width: Width, opcode: &[u8], has_bytes: bool, register: u8, operand: Operand, immediate: &[u8]) -> Vec<u8> {
    let mut opcode = opcode.to_vec();
    if has_bytes && width != Width::W8 {
        *opcode.last_mut().expect("an opcode") += 1;
    }
    let prefix: &[u8] = if width == Width::W16 { &[0x66] } else { &[] };
    instruction(prefix, width == Width::W64, &opcode, register, operand, immediate)
}

/// Prefixes, REX, opcode, ModRM, immediate.
pub(crate) fn instruction(prefix: &[u8], wide: bool, opcode: &[u8], register: u8, operand: Operand, immediate: &[u8]) -> Vec<u8> {
    let mut out = prefix.to_vec();
    let base = match operand {
        Operand::Register(number) => number,
        // r15 is the block's address.
        Operand::Memory(_) => 15,
    };
    out.push(0x40 | u8::from(wide) << 3 | (register >> 3) << 2 | base >> 3);
    out.extend_from_slice(opcode);
    match operand {
        Operand::Register(number) => out.push(0xc0 | (register & 7) << 3 | number & 7),
        Operand::Memory(at) => {
            out.push(0x87 | (register & 7) << 3);
            out.extend_from_slice(&(MEMORY as u32 + u32::from(at)).to_le_bytes());
        }
    }
    out.extend_from_slice(immediate);
    out
}
