//! The x87, from and to memory, with results that are exactly defined.

use crate::Instruction;
use crate::encode::{Operand, instruction};
use crate::program::AF;
use crate::random::Random;

/// Loads, a computation, and a store that empties the stack.
pub(crate) fn any(random: &mut Random) -> Instruction {
    let mut code = Vec::new();
    // fldcw: precision and rounding, exceptions masked. mov dword [memory + 96], word
    let control: u16 = 0x7f | random.of(&[0, 0x200, 0x300]) | random.of(&[0, 0x400, 0x800, 0xc00]);
    code.extend(instruction(&[0x66], false, &[0xc7], 0, Operand::Memory(96), &control.to_le_bytes()));
    code.extend(instruction(&[], false, &[0xd9], 5, Operand::Memory(96), &[]));
    for _ in 0..2 {
        let at = 8 * random.below(8) as u8;
        // fld of single and double, fild of three lengths.
        let (opcode, extension) = random.of(&[(0xd9, 0), (0xdd, 0), (0xdd, 0), (0xdf, 0), (0xdb, 0), (0xdf, 5)]);
        code.extend(instruction(&[], false, &[opcode], extension, Operand::Memory(at), &[]));
    }
    let (name, operation): (_, &[u8]) = random.of(&[
        ("fadd", &[0xd8, 0xc1][..]),
        ("fmul", &[0xd8, 0xc9]),
        ("fsub", &[0xd8, 0xe1]),
        ("fsubr", &[0xd8, 0xe9]),
        ("fdiv", &[0xd8, 0xf1]),
        ("fdivr", &[0xd8, 0xf9]),
        ("fsqrt", &[0xd9, 0xfa]),
        ("frndint", &[0xd9, 0xfc]),
        ("fprem", &[0xd9, 0xf8]),
        ("fprem1", &[0xd9, 0xf5]),
        ("fscale", &[0xd9, 0xfd]),
        ("fchs", &[0xd9, 0xe0]),
        ("fabs", &[0xd9, 0xe1]),
        ("fxch", &[0xd9, 0xc9]),
        ("fcomi", &[0xdb, 0xf1]),
        ("fucomi", &[0xdb, 0xe9]),
        ("fcmovb", &[0xda, 0xc1]),
        ("fld1", &[0xd9, 0xe8]),
        ("fldpi", &[0xd9, 0xeb]),
        ("fxtract", &[0xd9, 0xf4]),
    ]);
    code.extend_from_slice(operation);
    let mut undefined = 0;
    if name.starts_with("fprem") {
        // The quotient's last bits, and whether it is done: fnstsw ax; and eax, C3 | C2 | C1 | C0.
        code.extend_from_slice(&[0xdf, 0xe0, 0x25, 0x00, 0x47, 0x00, 0x00]);
        undefined = AF;
    }
    // All are stored, those of ten bytes as they are.
    let stored = if matches!(name, "fld1" | "fldpi" | "fxtract") { 3 } else { 2 };
    for i in 0..stored {
        // fstp of ten bytes, of a double and of a single; fistp.
        let (opcode, extension) = random.of(&[(0xdb, 7), (0xdb, 7), (0xdb, 7), (0xdd, 3), (0xd9, 3), (0xdf, 7), (0xdd, 1), (0xdb, 3)]);
        code.extend(instruction(&[], false, &[opcode], extension, Operand::Memory(64 + 10 * i), &[]));
    }
    // fninit: what was in the registers has been looked at.
    code.extend_from_slice(&[0xdb, 0xe3]);
    Instruction::new(name, code, undefined)
}
