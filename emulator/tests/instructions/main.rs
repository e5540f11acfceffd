//! x86-64 instructions on the emulated CPU against the host's: random ones, with operands at which instructions go wrong, and sequences of
//! them. Registers, defined flags and memory must come out the same.
//!
//! It leaves out what an operating system would see of them (exceptions, page faults), approximations (`rcpps`, the x87's transcendental
//! functions), the x87's status word but for remainders, and what the emulated model does not have, SSSE3 and all later.
#![cfg(target_arch = "x86_64")]

mod encode;
mod integer;
mod program;
mod random;
mod vector;
mod x87;

use program::{Case, MEMORY, MEMORY_BYTES, Program, STATUS, State};
use random::Random;
use vmm::vcpu::VcpuExit;

/// One instruction, or a few that belong together.
pub(crate) struct Instruction {
    name: String,
    code: Vec<u8>,
    /// Flags that the architecture leaves undefined after it.
    undefined: u64,
}

impl Instruction {
    fn new(name: impl Into<String>, code: Vec<u8>, undefined: u64) -> Self {
        Self { name: name.into(), code, undefined }
    }

    /// Its code, and what makes the undefined flags zero.
    fn settled(&self) -> Vec<u8> {
        let mut code = self.code.clone();
        if self.undefined != 0 {
            code.extend_from_slice(&[0x9c, 0x48, 0x81, 0x24, 0x24]); // pushfq; and qword [rsp], defined
            code.extend_from_slice(&(!(self.undefined as u32)).to_le_bytes());
            code.push(0x9d); // popfq
        }
        code
    }
}

/// What of the state is compared, and how it may begin.
#[derive(Clone, Copy)]
struct Scope {
    /// Bits of MXCSR that are compared.
    mxcsr: u32,
    /// Bits of MXCSR that are random.
    mxcsr_random: u32,
    /// Bits of the x87's status word that are compared.
    x87_status: u16,
}

/// Exceptions masked, none noted.
const MXCSR: u32 = 0x1f80;

fn state(random: &mut Random, scope: Scope) -> State {
    let mut registers = std::array::from_fn(|_| random.integer());
    (registers[4], registers[15]) = (0, 0);
    let mut memory = [0; MEMORY_BYTES];
    memory.chunks_mut(16).for_each(|chunk| chunk.copy_from_slice(&random.vector()));
    State {
        registers,
        flags: random.next() & STATUS,
        memory,
        xmm: std::array::from_fn(|_| random.vector()),
        mxcsr: MXCSR | random.next() as u32 & scope.mxcsr_random,
        x87: [0x37f, 0, 0],
        st: [[0; 10]; 8],
    }
}

/// Runs `rounds` programs of single instructions and of sequences of them, and tells what differs.
fn compare(seed: u64, rounds: usize, scope: Scope, make: impl Fn(&mut Random) -> Instruction) {
    const CASES: usize = 400;
    const SEQUENCE_MAX: u64 = 8;
    let mut random = Random(seed);
    let mut wrong = std::collections::BTreeMap::<String, (usize, String)>::new();
    for _ in 0..rounds {
        let (mut names, mut cases) = (Vec::new(), Vec::new());
        for i in 0..CASES {
            let length = if i % 2 == 0 { 1 } else { 1 + random.below(SEQUENCE_MAX) };
            let instructions: Vec<Instruction> = (0..length).map(|_| make(&mut random)).collect();
            names.push(instructions.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join("; "));
            let code = instructions.iter().flat_map(Instruction::settled).collect();
            cases.push(Case { code, before: state(&mut random, scope) });
        }
        let program = Program::of(&cases);
        for ((ours, theirs), (name, case)) in program.emulated(|case| format!("{}: {:02x?}", names[case], cases[case].code)).iter().zip(program.on_host()).zip(names.iter().zip(&cases)) {
            let differences = ours.differences(&theirs, scope.mxcsr, scope.x87_status);
            if !differences.is_empty() {
                let code: String = case.code.iter().map(|byte| format!("{byte:02x}")).collect();
                let entry = wrong.entry(name.clone()).or_insert_with(|| (0, format!("{code}\n    {}", differences.join("\n    "))));
                entry.0 += 1;
            }
        }
    }
    // The single ones say most.
    let mut told: Vec<_> = wrong.iter().collect();
    told.sort_by_key(|(name, _)| (name.matches(';').count(), name.len()));
    let told: String = told.iter().take(40).map(|(name, (times, example))| format!("{name}: {times} times, such as {example}\n")).collect();
    assert!(wrong.is_empty(), "{} kinds differ:\n{told}", wrong.len());
}

const NO_FLOATS: Scope = Scope { mxcsr: u32::MAX, mxcsr_random: 0, x87_status: u16::MAX };

#[test]
fn integers() {
    compare(1, 25, NO_FLOATS, integer::any);
}

#[test]
fn vectors_of_integers() {
    compare(2, 15, NO_FLOATS, vector::integers);
}

#[test]
fn vectors_of_floats() {
    /// That there was a denormal operand is not noted.
    const DENORMAL: u32 = 2;
    // Rounding, and denormals taken and given as zero.
    let scope = Scope { mxcsr: !DENORMAL, mxcsr_random: 0xe040, x87_status: u16::MAX };
    compare(3, 25, scope, vector::floats);
}

#[test]
fn the_x87() {
    compare(4, 10, Scope { x87_status: 0, ..NO_FLOATS }, x87::any);
}

/// The model has SSE3 at most. What it does not offer, programs that ask it do not use; others are told.
#[test]
fn what_the_model_lacks_is_refused() {
    let code: [(&str, &[u8]); 9] = [
        ("pshufb", &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
        ("pmulld", &[0x66, 0x0f, 0x38, 0x40, 0xc1]),
        ("pcmpistrm", &[0x66, 0x0f, 0x3a, 0x62, 0xc1, 0x00]),
        ("pcmpestri", &[0x66, 0x0f, 0x3a, 0x61, 0xc1, 0x00]),
        ("aesenc", &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
        ("crc32", &[0xf2, 0x0f, 0x38, 0xf1, 0xc1]),
        ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]),
        ("andn", &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]),
        ("vaddps", &[0xc5, 0xf0, 0x58, 0xc2]),
    ];
    for (name, code) in code {
        let case = Case { code: code.to_vec(), before: state(&mut Random(0), NO_FLOATS) };
        // Nobody handles the exception, so that the CPU shuts down.
        assert_eq!(Program::of(&[case]).exit_emulated(), VcpuExit::Reset, "{name}");
    }
}

/// Interrupt 0x13 beyond the end of the table: the error code is its number times 8, and bit 1 for that table.
#[test]
fn an_interrupt_without_a_gate_is_told_by_its_number() {
    /// Of a table that ends with gate 13, that of the general protection fault.
    const TABLE: u64 = 0x30_0000;
    const GATE: u32 = TABLE as u32 + 13 * 16;
    #[rustfmt::skip]
    let mut code = vec![
        0x48, 0x8d, 0x05, 0x2f, 0x00, 0x00, 0x00,       // lea rax, [handler]
        0xbf,                                           // mov edi, GATE
    ];
    code.extend_from_slice(&GATE.to_le_bytes());
    #[rustfmt::skip]
    code.extend_from_slice(&[
        0x66, 0x89, 0x07,                               // mov [rdi], ax
        0xc7, 0x47, 0x02, 0x10, 0x00, 0x00, 0x8e,       // mov dword [rdi + 2], segment 0x10, interrupt gate
        0x48, 0xc1, 0xe8, 0x10,                         // shr rax, 16
        0x66, 0x89, 0x47, 0x06,                         // mov [rdi + 6], ax
        0x48, 0xc1, 0xe8, 0x10,                         // shr rax, 16
        0x89, 0x47, 0x08,                               // mov [rdi + 8], eax
        0xc7, 0x47, 0x0c, 0x00, 0x00, 0x00, 0x00,       // mov dword [rdi + 12], 0
        0x41, 0x0f, 0x01, 0x9f,                         // lidt [memory]
    ]);
    code.extend_from_slice(&(MEMORY as u32).to_le_bytes());
    code.extend_from_slice(&[0xcd, 0x13]); // int 0x13
    assert_eq!(code.len(), 7 + 0x2f);
    // handler: pop rbx; mov rsp, [rsp + 24]
    code.extend_from_slice(&[0x5b, 0x48, 0x8b, 0x64, 0x24, 0x18]);
    let mut before = state(&mut Random(0), NO_FLOATS);
    before.memory[..2].copy_from_slice(&(14 * 16 - 1_u16).to_le_bytes());
    before.memory[2..10].copy_from_slice(&TABLE.to_le_bytes());
    let after = Program::of(&[Case { code, before }]).emulated(|_| "the handler".into());
    assert_eq!(after[0].registers[3], 0x13 * 8 + 2);
}
