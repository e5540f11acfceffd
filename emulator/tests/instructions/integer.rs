//! Instructions on general registers and flags.

use crate::Instruction;
use crate::encode::{Operand, Width, instruction, integer};
use crate::program::{AF, MEMORY_BYTES, STATUS};
use crate::random::Random;

const CF: u64 = 1;
const PF: u64 = 4;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Any register but rsp and r15.
fn register(random: &mut Random) -> u8 {
    random.of(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

/// One that is not `rax`, `rcx` or `rdx`.
fn other_register(random: &mut Random) -> u8 {
    random.of(&[3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
}

fn memory(random: &mut Random) -> Operand {
    Operand::Memory(random.below(MEMORY_BYTES as u64 - 16) as u8)
}

fn operand(random: &mut Random) -> Operand {
    match random.below(3) {
        0 => memory(random),
        _ => Operand::Register(register(random)),
    }
}

fn immediate(random: &mut Random, width: Width) -> Vec<u8> {
    random.integer().to_le_bytes()[..(width.bits() / 8).min(4) as usize].to_vec()
}

/// Any of them.
pub(crate) fn any(random: &mut Random) -> Instruction {
    let kinds = [
        arithmetic, arithmetic, with_immediate, one_operand, shift, shift, double_shift, bits, scan, multiply, divide, moves, extend, conditional,
        exchange, widen, flags, address, strings, stack, jump,
    ];
    random.of(&kinds)(random)
}

fn arithmetic(random: &mut Random) -> Instruction {
    let (kind, width) = (random.below(9) as usize, random.of(&Width::ALL));
    let name = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test"][kind];
    let undefined = if matches!(kind, 1 | 4 | 6 | 8) { AF } else { 0 };
    let opcode = if kind == 8 { 0x84 } else { (kind as u8) << 3 | random.of(&[0, 2]) };
    let code = integer(width, &[opcode], true, register(random), operand(random), &[]);
    Instruction::new(format!("{name} {width:?}"), code, undefined)
}

fn with_immediate(random: &mut Random) -> Instruction {
    let (kind, width) = (random.below(8) as u8, random.of(&Width::ALL));
    let name = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"][usize::from(kind)];
    let undefined = if matches!(kind, 1 | 4 | 6) { AF } else { 0 };
    let target = operand(random);
    let code = match random.below(2) {
        0 if width != Width::W8 => integer(width, &[0x83], false, kind, target, &[random.byte()]),
        _ => integer(width, &[0x80], true, kind, target, &immediate(random, width)),
    };
    Instruction::new(format!("{name} {width:?}, immediate"), code, undefined)
}

fn one_operand(random: &mut Random) -> Instruction {
    let (kind, width) = (random.below(4) as usize, random.of(&Width::ALL));
    let (name, opcode, extension) = [("inc", 0xfe, 0), ("dec", 0xfe, 1), ("not", 0xf6, 2), ("neg", 0xf6, 3)][kind];
    Instruction::new(format!("{name} {width:?}"), integer(width, &[opcode], true, extension, operand(random), &[]), 0)
}

fn shift(random: &mut Random) -> Instruction {
    let (kind, width) = (random.below(8) as u8, random.of(&Width::ALL));
    let name = ["rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar"][usize::from(kind)];
    let (opcode, count): (u8, Option<u8>) = match random.below(3) {
        0 => (0xc0, Some(random.byte())),
        1 => (0xd0, Some(1)),
        _ => (0xd2, None),
    };
    let mask = if width == Width::W64 { 63 } else { 31 };
    let masked = count.map(|count| u64::from(count & mask));
    // The overflow is defined for shifts by one only, the carry for those by no more than the width.
    let mut undefined = if masked == Some(1) { 0 } else { OF };
    if kind >= 4 {
        undefined |= AF;
        if kind != 7 && masked.is_none_or(|count| count >= width.bits()) && width.bits() < 32 {
            undefined |= CF;
        }
    }
    let immediate = if opcode == 0xc0 { count.as_slice() } else { &[] };
    let code = integer(width, &[opcode], true, kind, operand(random), immediate);
    let how = count.map_or("cl".to_owned(), |count| (count & mask).to_string());
    Instruction::new(format!("{name} {width:?}, {how}"), code, undefined)
}

fn double_shift(random: &mut Random) -> Instruction {
    let width = random.of(&[Width::W32, Width::W64]);
    let (name, opcode) = random.of(&[("shld", 0xa4), ("shrd", 0xac)]);
    let (opcode, immediate) = match random.below(2) {
        0 => (opcode, vec![random.byte()]),
        _ => (opcode + 1, vec![]),
    };
    let code = integer(width, &[0x0f, opcode], false, register(random), operand(random), &immediate);
    Instruction::new(format!("{name} {width:?}"), code, OF | AF)
}

fn bits(random: &mut Random) -> Instruction {
    let (kind, width) = (random.below(4) as u8, random.of(&Width::WIDE));
    let name = ["bt", "bts", "btr", "btc"][usize::from(kind)];
    let code = match random.below(2) {
        // With a register as index, memory would be addressed far away.
        0 => integer(width, &[0x0f, 0xa3 | kind << 3], false, register(random), Operand::Register(register(random)), &[]),
        _ => integer(width, &[0x0f, 0xba], false, 4 | kind, operand(random), &[random.byte()]),
    };
    Instruction::new(format!("{name} {width:?}"), code, OF | SF | AF | PF)
}

/// Of what is not zero, where the result would be undefined.
fn scan(random: &mut Random) -> Instruction {
    let (width, from) = (random.of(&Width::WIDE), register(random));
    let (name, opcode) = random.of(&[("bsf", 0xbc), ("bsr", 0xbd)]);
    let bit = 1 << random.below(7);
    let mut code = integer(width, &[0x83], false, 1, Operand::Register(from), &[bit]);
    code.extend(integer(width, &[0x0f, opcode], false, register(random), Operand::Register(from), &[]));
    Instruction::new(format!("{name} {width:?}"), code, STATUS & !ZF)
}

fn multiply(random: &mut Random) -> Instruction {
    let undefined = SF | ZF | AF | PF;
    match random.below(3) {
        0 => {
            let (width, (name, extension)) = (random.of(&Width::ALL), random.of(&[("mul", 4), ("imul", 5)]));
            Instruction::new(format!("{name} {width:?}"), integer(width, &[0xf6], true, extension, operand(random), &[]), undefined)
        }
        1 => {
            let width = random.of(&Width::WIDE);
            let code = integer(width, &[0x0f, 0xaf], false, register(random), operand(random), &[]);
            Instruction::new(format!("imul {width:?}, two"), code, undefined)
        }
        _ => {
            let width = random.of(&Width::WIDE);
            let code = match random.below(2) {
                0 => integer(width, &[0x6b], false, register(random), operand(random), &[random.byte()]),
                _ => integer(width, &[0x69], false, register(random), operand(random), &immediate(random, width)),
            };
            Instruction::new(format!("imul {width:?}, three"), code, undefined)
        }
    }
}

/// By what is not zero, of what gives no overflow.
fn divide(random: &mut Random) -> Instruction {
    let by = other_register(random);
    let (width, signed) = random.of(&[(Width::W16, false), (Width::W32, false), (Width::W64, false), (Width::W64, true)]);
    let mut code = integer(width, &[0x83], false, 1, Operand::Register(by), &[1]);
    // xor edx, edx
    code.extend(integer(Width::W32, &[0x31], false, RDX, Operand::Register(RDX), &[]));
    if signed {
        // shr rax, 1
        code.extend(integer(width, &[0xd0], true, 5, Operand::Register(RAX), &[]));
    }
    code.extend(integer(width, &[0xf6], true, if signed { 7 } else { 6 }, Operand::Register(by), &[]));
    Instruction::new(format!("{} {width:?}", if signed { "idiv" } else { "div" }), code, STATUS)
}

fn moves(random: &mut Random) -> Instruction {
    let width = random.of(&Width::ALL);
    let code = match random.below(3) {
        0 => integer(width, &[0x88], true, register(random), operand(random), &[]),
        1 => integer(width, &[0x8a], true, register(random), operand(random), &[]),
        _ => integer(width, &[0xc6], true, 0, operand(random), &immediate(random, width)),
    };
    Instruction::new(format!("mov {width:?}"), code, 0)
}

fn extend(random: &mut Random) -> Instruction {
    let width = random.of(&Width::WIDE);
    let (name, opcode): (_, &[u8]) = random.of(&[
        ("movzx byte", &[0x0f, 0xb6][..]),
        ("movzx word", &[0x0f, 0xb7]),
        ("movsx byte", &[0x0f, 0xbe]),
        ("movsx word", &[0x0f, 0xbf]),
        ("movsxd", &[0x63]),
    ]);
    Instruction::new(format!("{name} {width:?}"), integer(width, opcode, false, register(random), operand(random), &[]), 0)
}

fn conditional(random: &mut Random) -> Instruction {
    let condition = random.below(16) as u8;
    if random.below(2) == 0 {
        return Instruction::new(format!("set{condition:x}"), integer(Width::W8, &[0x0f, 0x90 | condition], false, 0, operand(random), &[]), 0);
    }
    let width = random.of(&Width::WIDE);
    let code = integer(width, &[0x0f, 0x40 | condition], false, register(random), operand(random), &[]);
    Instruction::new(format!("cmov{condition:x} {width:?}"), code, 0)
}

fn exchange(random: &mut Random) -> Instruction {
    let width = random.of(&Width::ALL);
    match random.below(5) {
        0 => Instruction::new(format!("xchg {width:?}"), integer(width, &[0x86], true, register(random), operand(random), &[]), 0),
        1 => Instruction::new(format!("xadd {width:?}"), integer(width, &[0x0f, 0xc0], true, register(random), operand(random), &[]), 0),
        2 => {
            let target = operand(random);
            // Half of them find what they look for: mov target, rax.
            let found = random.below(2) == 1;
            let mut code = if found { integer(width, &[0x88], true, RAX, target, &[]) } else { vec![] };
            code.extend(integer(width, &[0x0f, 0xb0], true, register(random), target, &[]));
            Instruction::new(format!("cmpxchg {width:?}"), code, 0)
        }
        3 => {
            let wide = random.below(2) == 1;
            let at = 16 * random.below(MEMORY_BYTES as u64 / 16) as u8;
            let code = instruction(&[], wide, &[0x0f, 0xc7], 1, Operand::Memory(at), &[]);
            Instruction::new(if wide { "cmpxchg16b" } else { "cmpxchg8b" }, code, 0)
        }
        _ => {
            let (wide, number) = (random.below(2) as u8, register(random));
            Instruction::new("bswap", vec![0x40 | wide << 3 | number >> 3, 0x0f, 0xc8 | number & 7], 0)
        }
    }
}

fn widen(random: &mut Random) -> Instruction {
    let (name, code): (_, &[u8]) = random.of(&[
        ("cbw", &[0x66, 0x98][..]),
        ("cwde", &[0x98]),
        ("cdqe", &[0x48, 0x98]),
        ("cwd", &[0x66, 0x99]),
        ("cdq", &[0x99]),
        ("cqo", &[0x48, 0x99]),
    ]);
    Instruction::new(name, code.to_vec(), 0)
}

fn flags(random: &mut Random) -> Instruction {
    let (name, code) = random.of(&[("lahf", 0x9f), ("sahf", 0x9e), ("clc", 0xf8), ("stc", 0xf9), ("cmc", 0xf5)]);
    Instruction::new(name, vec![code], 0)
}

/// `lea` of base, index, scale and displacement.
fn address(random: &mut Random) -> Instruction {
    let (width, to, base, index) = (random.of(&Width::WIDE), register(random), register(random), register(random));
    let prefix: &[u8] = if width == Width::W16 { &[0x66] } else { &[] };
    let mut code = prefix.to_vec();
    code.push(0x40 | u8::from(width == Width::W64) << 3 | (to >> 3) << 2 | (index >> 3) << 1 | base >> 3);
    code.extend_from_slice(&[0x8d, 0x84 | (to & 7) << 3, (random.below(4) as u8) << 6 | (index & 7) << 3 | base & 7]);
    code.extend_from_slice(&(random.integer() as u32).to_le_bytes());
    Instruction::new(format!("lea {width:?}"), code, 0)
}

/// Within the case's memory, up or down, with and without repetition. Those that compare end at what is not equal, or equal.
fn strings(random: &mut Random) -> Instruction {
    let width = random.of(&Width::ALL);
    let (name, opcode) = random.of(&[("movs", 0xa4), ("cmps", 0xa6), ("stos", 0xaa), ("lods", 0xac), ("scas", 0xae)]);
    let count = random.below(6) as u8;
    let down = random.below(2) == 1;
    let mut code = Vec::new();
    for pointer in [RSI, RDI] {
        let at = 48 + random.below(24) as u8;
        // lea pointer, [memory]
        code.extend(instruction(&[], true, &[0x8d], pointer, Operand::Memory(at), &[]));
    }
    // mov ecx, count
    code.extend(integer(Width::W32, &[0xc7], false, 0, Operand::Register(RCX), &u32::from(count).to_le_bytes()));
    if down {
        code.push(0xfd); // std
    }
    let repeat = random.of(&[None, Some(0xf3), Some(0xf2)]);
    code.extend(repeat);
    if width == Width::W16 {
        code.push(0x66);
    }
    code.push(0x40 | u8::from(width == Width::W64) << 3);
    code.push(opcode | u8::from(width != Width::W8));
    code.push(0xfc); // cld
    let repeated = repeat.map_or("", |prefix| if prefix == 0xf3 { "repe " } else { "repne " });
    Instruction::new(format!("{repeated}{name} {width:?} of {count}{}", if down { " down" } else { "" }), code, 0)
}

/// `push` and `pop`, `pushfq` and `popfq`.
fn stack(random: &mut Random) -> Instruction {
    let (from, to) = (register(random), register(random));
    let mut code = vec![0x40 | from >> 3, 0x50 | from & 7];
    if random.below(3) == 0 {
        // Of the flags, only those that programs may change freely.
        code.extend_from_slice(&[0x48, 0x81, 0x24, 0x24]); // and qword [rsp], status
        code.extend_from_slice(&(STATUS as u32).to_le_bytes());
        code.push(0x9d);
        return Instruction::new("popfq", code, 0);
    }
    code.extend_from_slice(&[0x40 | to >> 3, 0x58 | to & 7]);
    Instruction::new("push, pop", code, 0)
}

/// Over an instruction, or not; once or in a loop.
fn jump(random: &mut Random) -> Instruction {
    let over = integer(Width::W64, &[0xf6], true, 2, Operand::Register(other_register(random)), &[]);
    let condition = random.below(16) as u8;
    if random.below(4) == 0 {
        // mov ecx, n; again: not register; loop again
        let mut code = integer(Width::W32, &[0xc7], false, 0, Operand::Register(RCX), &(1 + random.below(40) as u32).to_le_bytes());
        let length = over.len() as u8;
        code.extend(over);
        code.extend_from_slice(&[0xe2, (length + 2).wrapping_neg()]);
        return Instruction::new("loop", code, 0);
    }
    let mut code = vec![0x70 | condition, over.len() as u8];
    code.extend(over);
    Instruction::new(format!("j{condition:x}"), code, 0)
}
