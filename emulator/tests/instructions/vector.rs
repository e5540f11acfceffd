//! SSE, SSE2 and SSE3; the model has no more.

use crate::Instruction;
use crate::encode::{Operand, instruction};
use crate::program::MEMORY_BYTES;
use crate::random::Random;

type Opcode = (&'static str, &'static [u8], u8);

/// Prefix and opcode after 0f, of register and register or memory.
const INTEGERS: &[Opcode] = &[
    ("punpcklbw", &[0x66], 0x60), ("punpcklwd", &[0x66], 0x61), ("punpckldq", &[0x66], 0x62), ("packsswb", &[0x66], 0x63),
    ("pcmpgtb", &[0x66], 0x64), ("pcmpgtw", &[0x66], 0x65), ("pcmpgtd", &[0x66], 0x66), ("packuswb", &[0x66], 0x67),
    ("punpckhbw", &[0x66], 0x68), ("punpckhwd", &[0x66], 0x69), ("punpckhdq", &[0x66], 0x6a), ("packssdw", &[0x66], 0x6b),
    ("punpcklqdq", &[0x66], 0x6c), ("punpckhqdq", &[0x66], 0x6d), ("movdqa", &[0x66], 0x6f), ("movdqu", &[0xf3], 0x6f),
    ("pcmpeqb", &[0x66], 0x74), ("pcmpeqw", &[0x66], 0x75), ("pcmpeqd", &[0x66], 0x76), ("movdqa, store", &[0x66], 0x7f),
    ("movdqu, store", &[0xf3], 0x7f), ("movq", &[0xf3], 0x7e), ("movq, store", &[0x66], 0xd6),
    ("psrlw", &[0x66], 0xd1), ("psrld", &[0x66], 0xd2), ("psrlq", &[0x66], 0xd3), ("paddq", &[0x66], 0xd4), ("pmullw", &[0x66], 0xd5),
    ("psubusb", &[0x66], 0xd8), ("psubusw", &[0x66], 0xd9), ("pminub", &[0x66], 0xda), ("pand", &[0x66], 0xdb),
    ("paddusb", &[0x66], 0xdc), ("paddusw", &[0x66], 0xdd), ("pmaxub", &[0x66], 0xde), ("pandn", &[0x66], 0xdf),
    ("pavgb", &[0x66], 0xe0), ("psraw", &[0x66], 0xe1), ("psrad", &[0x66], 0xe2), ("pavgw", &[0x66], 0xe3),
    ("pmulhuw", &[0x66], 0xe4), ("pmulhw", &[0x66], 0xe5), ("psubsb", &[0x66], 0xe8), ("psubsw", &[0x66], 0xe9),
    ("pminsw", &[0x66], 0xea), ("por", &[0x66], 0xeb), ("paddsb", &[0x66], 0xec), ("paddsw", &[0x66], 0xed),
    ("pmaxsw", &[0x66], 0xee), ("pxor", &[0x66], 0xef), ("psllw", &[0x66], 0xf1), ("pslld", &[0x66], 0xf2),
    ("psllq", &[0x66], 0xf3), ("pmuludq", &[0x66], 0xf4), ("pmaddwd", &[0x66], 0xf5), ("psadbw", &[0x66], 0xf6),
    ("psubb", &[0x66], 0xf8), ("psubw", &[0x66], 0xf9), ("psubd", &[0x66], 0xfa), ("psubq", &[0x66], 0xfb),
    ("paddb", &[0x66], 0xfc), ("paddw", &[0x66], 0xfd), ("paddd", &[0x66], 0xfe),
    ("movups", &[], 0x10), ("movupd", &[0x66], 0x10), ("movss", &[0xf3], 0x10), ("movsd", &[0xf2], 0x10),
    ("movups, store", &[], 0x11), ("movss, store", &[0xf3], 0x11), ("movsd, store", &[0xf2], 0x11),
    ("movlps", &[], 0x12), ("movsldup", &[0xf3], 0x12), ("movddup", &[0xf2], 0x12),
    ("unpcklps", &[], 0x14), ("unpcklpd", &[0x66], 0x14), ("unpckhps", &[], 0x15), ("unpckhpd", &[0x66], 0x15),
    ("movhps", &[], 0x16), ("movshdup", &[0xf3], 0x16), ("movaps", &[], 0x28), ("movapd", &[0x66], 0x28),
    ("andps", &[], 0x54), ("andpd", &[0x66], 0x54), ("andnps", &[], 0x55), ("andnpd", &[0x66], 0x55),
    ("orps", &[], 0x56), ("orpd", &[0x66], 0x56), ("xorps", &[], 0x57), ("xorpd", &[0x66], 0x57),
];

/// With an immediate byte.
const CHOOSING: &[Opcode] = &[
    ("pshufd", &[0x66], 0x70), ("pshufhw", &[0xf3], 0x70), ("pshuflw", &[0xf2], 0x70), ("shufps", &[], 0xc6), ("shufpd", &[0x66], 0xc6),
];

/// Shifts by an immediate: opcode and its extension.
const SHIFTS: &[(&str, u8, u8)] = &[
    ("psrlw", 0x71, 2), ("psraw", 0x71, 4), ("psllw", 0x71, 6), ("psrld", 0x72, 2), ("psrad", 0x72, 4), ("pslld", 0x72, 6),
    ("psrlq", 0x73, 2), ("psrldq", 0x73, 3), ("psllq", 0x73, 6), ("pslldq", 0x73, 7),
];

const FLOATS: &[Opcode] = &[
    ("sqrtps", &[], 0x51), ("sqrtpd", &[0x66], 0x51), ("sqrtss", &[0xf3], 0x51), ("sqrtsd", &[0xf2], 0x51),
    ("addps", &[], 0x58), ("addpd", &[0x66], 0x58), ("addss", &[0xf3], 0x58), ("addsd", &[0xf2], 0x58),
    ("mulps", &[], 0x59), ("mulpd", &[0x66], 0x59), ("mulss", &[0xf3], 0x59), ("mulsd", &[0xf2], 0x59),
    ("cvtps2pd", &[], 0x5a), ("cvtpd2ps", &[0x66], 0x5a), ("cvtss2sd", &[0xf3], 0x5a), ("cvtsd2ss", &[0xf2], 0x5a),
    ("cvtdq2ps", &[], 0x5b), ("cvtps2dq", &[0x66], 0x5b), ("cvttps2dq", &[0xf3], 0x5b),
    ("subps", &[], 0x5c), ("subpd", &[0x66], 0x5c), ("subss", &[0xf3], 0x5c), ("subsd", &[0xf2], 0x5c),
    ("minps", &[], 0x5d), ("minpd", &[0x66], 0x5d), ("minss", &[0xf3], 0x5d), ("minsd", &[0xf2], 0x5d),
    ("divps", &[], 0x5e), ("divpd", &[0x66], 0x5e), ("divss", &[0xf3], 0x5e), ("divsd", &[0xf2], 0x5e),
    ("maxps", &[], 0x5f), ("maxpd", &[0x66], 0x5f), ("maxss", &[0xf3], 0x5f), ("maxsd", &[0xf2], 0x5f),
    ("cvttpd2dq", &[0x66], 0xe6), ("cvtdq2pd", &[0xf3], 0xe6), ("cvtpd2dq", &[0xf2], 0xe6),
    ("haddps", &[0xf2], 0x7c), ("haddpd", &[0x66], 0x7c), ("hsubps", &[0xf2], 0x7d), ("hsubpd", &[0x66], 0x7d),
    ("addsubps", &[0xf2], 0xd0), ("addsubpd", &[0x66], 0xd0),
];

/// These set flags.
const COMPARISONS: &[Opcode] = &[("ucomiss", &[], 0x2e), ("ucomisd", &[0x66], 0x2e), ("comiss", &[], 0x2f), ("comisd", &[0x66], 0x2f)];

/// A register, or aligned memory.
fn operand(random: &mut Random) -> Operand {
    match random.below(3) {
        0 => Operand::Memory(16 * random.below(MEMORY_BYTES as u64 / 16) as u8),
        _ => Operand::Register(random.below(16) as u8),
    }
}

fn register(random: &mut Random) -> u8 {
    random.below(16) as u8
}

/// A general register but rsp and r15.
fn general(random: &mut Random) -> u8 {
    random.of(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

fn simple(random: &mut Random, opcodes: &[Opcode], immediate: &[u8]) -> Instruction {
    let (name, prefix, opcode) = random.of(opcodes);
    let code = instruction(prefix, false, &[0x0f, opcode], register(random), operand(random), immediate);
    Instruction::new(name, code, 0)
}

/// What computes no floats.
pub(crate) fn integers(random: &mut Random) -> Instruction {
    match random.below(10) {
        0 => {
            let (name, opcode, extension) = random.of(SHIFTS);
            let count = random.of(&[0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 255]);
            let code = instruction(&[0x66], false, &[0x0f, opcode], extension, Operand::Register(register(random)), &[count]);
            Instruction::new(format!("{name}, {count}"), code, 0)
        }
        1 => {
            let choice = random.byte();
            simple(random, CHOOSING, &[choice])
        }
        2 => between(random),
        _ => simple(random, INTEGERS, &[]),
    }
}

/// Between vector and general registers.
fn between(random: &mut Random) -> Instruction {
    let (vector, general, wide) = (Operand::Register(register(random)), general(random), random.below(2) == 1);
    let Operand::Register(number) = vector else { unreachable!("chosen so") };
    match random.below(6) {
        0 => Instruction::new("movd, movq from", instruction(&[0x66], wide, &[0x0f, 0x7e], number, Operand::Register(general), &[]), 0),
        1 => Instruction::new("movd, movq to", instruction(&[0x66], wide, &[0x0f, 0x6e], number, Operand::Register(general), &[]), 0),
        2 => Instruction::new("pmovmskb", instruction(&[0x66], false, &[0x0f, 0xd7], general, vector, &[]), 0),
        3 => {
            let prefix: &[u8] = random.of(&[&[][..], &[0x66]]);
            Instruction::new("movmskps, movmskpd", instruction(prefix, false, &[0x0f, 0x50], general, vector, &[]), 0)
        }
        4 => Instruction::new("pextrw", instruction(&[0x66], false, &[0x0f, 0xc5], general, vector, &[random.byte()]), 0),
        _ => Instruction::new("pinsrw", instruction(&[0x66], false, &[0x0f, 0xc4], number, Operand::Register(general), &[random.byte()]), 0),
    }
}

/// What computes floats.
pub(crate) fn floats(random: &mut Random) -> Instruction {
    match random.below(10) {
        0 => {
            let opcodes: &[Opcode] = &[("cmpps", &[], 0xc2), ("cmppd", &[0x66], 0xc2), ("cmpss", &[0xf3], 0xc2), ("cmpsd", &[0xf2], 0xc2)];
            let predicate = random.below(8) as u8;
            let compared = simple(random, opcodes, &[predicate]);
            Instruction::new(format!("{}, {predicate}", compared.name), compared.code, 0)
        }
        1 => {
            let compared = simple(random, COMPARISONS, &[]);
            Instruction::new(compared.name, compared.code, 0)
        }
        2 => {
            let (name, prefix): (_, &[u8]) = random.of(&[("ss", &[0xf3][..]), ("sd", &[0xf2])]);
            let wide = random.below(2) == 1;
            let (what, opcode) = random.of(&[("cvtsi2", 0x2a), ("cvtt2si ", 0x2c), ("cvt2si ", 0x2d)]);
            let code = match opcode {
                0x2a => instruction(prefix, wide, &[0x0f, opcode], register(random), Operand::Register(general(random)), &[]),
                _ => instruction(prefix, wide, &[0x0f, opcode], general(random), operand(random), &[]),
            };
            Instruction::new(format!("{what}{name} {}", if wide { 64 } else { 32 }), code, 0)
        }
        _ => simple(random, FLOATS, &[]),
    }
}
