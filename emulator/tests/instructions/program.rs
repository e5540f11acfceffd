//! Programs of test cases, the same bytes for the host's CPU and for the emulated one.
//!
//! A program is an ELF file of one segment, which needs of an operating system only to write its results and to end; without one it powers
//! the machine off. Each case loads all registers from its block, runs its instructions, and stores all registers there:
//!
//! ```text
//! 0    16 general registers, of which rsp and r15, the block's address, are not loaded
//! 128  flags
//! 192  memory for the instructions
//! 320  FXSAVE image
//! ```

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use emulator::x86::UnicornX86Cpu;
use vm_memory::{Bytes, GuestAddress};
use vmm::board::Board;
use vmm::board::x86_64::X86;
use vmm::bus::Bus;
use vmm::clock::HostClock;
use vmm::devices::uart::Unheard;
use vmm::vcpu::suite::X86_64;
use vmm::vcpu::{Vcpu, VcpuExit};

/// Where the file lies in memory, for both.
const BASE: u64 = 0x100_0000;
/// Within the guest's RAM and behind the longest program.
const STACK_BYTES: usize = 4096;
const TCG_BUFFER_BYTES: usize = 16 << 20;
const HEADERS_BYTES: usize = 64 + 56;
const BLOCK_BYTES: usize = 832;
const FLAGS: usize = 128;
pub(crate) const MEMORY: usize = 192;
pub(crate) const MEMORY_BYTES: usize = 128;
const FXSAVE: usize = 320;
const MXCSR: usize = FXSAVE + 24;
const XMM: usize = FXSAVE + 160;
/// CF, PF, AF, ZF, SF, OF.
pub(crate) const STATUS: u64 = 0x8d5;
pub(crate) const AF: u64 = 0x10;
const RSP: usize = 4;
const R15: usize = 15;
/// FXSAVE has 8 registers of the x87, of 10 bytes in 16.
const ST: usize = FXSAVE + 32;

/// What a case begins and ends with.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) registers: [u64; 16],
    pub(crate) flags: u64,
    pub(crate) memory: [u8; MEMORY_BYTES],
    pub(crate) xmm: [[u8; 16]; 16],
    pub(crate) mxcsr: u32,
    /// The x87's control, status and abridged tags.
    pub(crate) x87: [u16; 3],
    pub(crate) st: [[u8; 10]; 8],
}

impl State {
    fn put(&self, block: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        self.registers.iter().enumerate().for_each(|(i, value)| put(i * 8, &value.to_le_bytes()));
        // Bit 1 is always set.
        put(FLAGS, &(self.flags & STATUS | 2).to_le_bytes());
        put(MEMORY, &self.memory);
        self.x87.iter().enumerate().for_each(|(i, word)| put(FXSAVE + i * 2, &word.to_le_bytes()));
        put(MXCSR, &self.mxcsr.to_le_bytes());
        self.st.iter().enumerate().for_each(|(i, value)| put(ST + i * 16, value));
        self.xmm.iter().enumerate().for_each(|(i, value)| put(XMM + i * 16, value));
    }

    fn get(block: &[u8]) -> Self {
        fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
            block[at..at + N].try_into().expect("within the block")
        }
        let word = |at| u16::from_le_bytes(part(block, at));
        Self {
            registers: std::array::from_fn(|i| if i == RSP || i == R15 { 0 } else { u64::from_le_bytes(part(block, i * 8)) }),
            flags: u64::from_le_bytes(part(block, FLAGS)) & STATUS,
            memory: part(block, MEMORY),
            xmm: std::array::from_fn(|i| part(block, XMM + i * 16)),
            mxcsr: u32::from_le_bytes(part(block, MXCSR)),
            x87: [word(FXSAVE), word(FXSAVE + 2), word(FXSAVE + 4) & 0xff],
            st: std::array::from_fn(|i| part(block, ST + i * 16)),
        }
    }

    /// What is not equal, in words. Of MXCSR and of the x87's status word only these bits are compared.
    pub(crate) fn differences(&self, other: &State, mxcsr: u32, x87: u16) -> Vec<String> {
        let mut out = Vec::new();
        let mut see = |name: String, ours: String, theirs: String| {
            if ours != theirs {
                out.push(format!("{name}: {ours}, host {theirs}"));
            }
        };
        let hex = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        for i in 0..16 {
            see(format!("register {i}"), format!("{:#x}", self.registers[i]), format!("{:#x}", other.registers[i]));
            see(format!("xmm{i}"), hex(&self.xmm[i]), hex(&other.xmm[i]));
        }
        see("flags".into(), format!("{:#x}", self.flags), format!("{:#x}", other.flags));
        see("mxcsr".into(), format!("{:#x}", self.mxcsr & mxcsr), format!("{:#x}", other.mxcsr & mxcsr));
        let words = |state: &State| format!("{:x?}", [state.x87[0], state.x87[1] & x87, state.x87[2]]);
        see("x87".into(), words(self), words(other));
        for i in 0..8 {
            see(format!("st{i}"), hex(&self.st[i]), hex(&other.st[i]));
        }
        for at in (0..MEMORY_BYTES).step_by(16) {
            see(format!("memory {at}"), hex(&self.memory[at..at + 16]), hex(&other.memory[at..at + 16]));
        }
        out
    }
}

/// Instructions, and what they begin with.
pub(crate) struct Case {
    pub(crate) code: Vec<u8>,
    pub(crate) before: State,
}

/// A finished program.
pub(crate) struct Program {
    file: Vec<u8>,
    entry: u64,
    blocks: usize,
    cases: usize,
}

impl Program {
    pub(crate) fn of(cases: &[Case]) -> Self {
        let code_bytes = assemble(cases, 0).len();
        let blocks = (HEADERS_BYTES + code_bytes).next_multiple_of(64);
        let code = assemble(cases, BASE + blocks as u64);
        assert_eq!(code.len(), code_bytes, "addresses have one length");
        let length = blocks + cases.len() * BLOCK_BYTES + STACK_BYTES;
        let entry = BASE + HEADERS_BYTES as u64;
        let mut file = headers(entry, length as u64);
        file.extend_from_slice(&code);
        file.resize(length, 0);
        for (case, block) in cases.iter().zip(file[blocks..].chunks_mut(BLOCK_BYTES)) {
            case.before.put(block);
        }
        Self { file, entry, blocks, cases: cases.len() }
    }

    /// Runs it as a process.
    pub(crate) fn on_host(&self) -> Vec<State> {
        // A file that is still open in a process that another thread has just begun cannot be run.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let lock = ONE_AT_A_TIME.lock().unwrap();
        let mut file = std::fs::File::options().create_new(true).write(true).mode(0o700).open(&path).unwrap();
        file.write_all(&self.file).unwrap();
        drop(file);
        let output = Command::new(&path).output().unwrap();
        drop(lock);
        assert!(output.status.success() && output.stdout.len() == self.cases * BLOCK_BYTES, "on the host: {}", output.status);
        output.stdout.chunks(BLOCK_BYTES).map(State::get).collect()
    }

    /// Runs it on the emulated CPU. `name` says what a case is.
    pub(crate) fn emulated(&self, name: impl Fn(usize) -> String) -> Vec<State> {
        let (exit, blocks) = self.emulate();
        // r15 is stored by the cases that ended.
        let done = blocks.chunks(BLOCK_BYTES).take_while(|block| block[R15 * 8..][..8] != [0; 8]).count();
        let stuck = || name(done.min(self.cases - 1));
        assert_eq!((exit, done), (VcpuExit::PowerOff, self.cases), "the emulated CPU did not come beyond {}", stuck());
        blocks.chunks(BLOCK_BYTES).map(State::get).collect()
    }

    /// How it ends on the emulated CPU.
    pub(crate) fn exit_emulated(&self) -> VcpuExit {
        self.emulate().0
    }

    fn emulate(&self) -> (VcpuExit, Vec<u8>) {
        let ram = (X86_64.ram)();
        ram.write_slice(&self.file, GuestAddress(BASE)).unwrap();
        let board = X86::new(Arc::new(HostClock), Box::new(Unheard)).unwrap();
        let (parts, chips) = (board.parts(), board.chips().unwrap());
        let mut cpu = UnicornX86Cpu::new(ram.clone(), Arc::new(Bus::default()), parts, chips, TCG_BUFFER_BYTES).unwrap();
        board.connect(cpu.handle());
        cpu.set_boot_state(self.entry, 0).unwrap();
        let exit = cpu.run().unwrap();
        let mut blocks = vec![0; self.cases * BLOCK_BYTES];
        ram.read_slice(&mut blocks, GuestAddress(BASE + self.blocks as u64)).unwrap();
        (exit, blocks)
    }
}

fn headers(entry: u64, length: u64) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64.
    for half in [2_u16, 62] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out.extend_from_slice(&1_u32.to_le_bytes());
    for word in [entry, 64, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    // PT_LOAD, all rights.
    for half in [1_u32, 7] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 4096] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(out.len(), HEADERS_BYTES);
    out
}

/// The program's code for cases whose blocks are at `blocks`.
fn assemble(cases: &[Case], blocks: u64) -> Vec<u8> {
    let results_bytes = cases.len() * BLOCK_BYTES;
    let stack = blocks + (results_bytes + STACK_BYTES) as u64;
    let mut code = vec![0x48, 0xbc]; // mov rsp, stack
    code.extend_from_slice(&stack.to_le_bytes());
    // Without an operating system: what one does to have SSE, CR4.OSFXSR and OSXMMEXCPT, and CR0.MP without EM and TS.
    #[rustfmt::skip]
    let sse = [
        0x0f, 0x20, 0xe0,                         // mov rax, cr4
        0x0d, 0x00, 0x06, 0x00, 0x00,             // or eax, 0x600
        0x0f, 0x22, 0xe0,                         // mov cr4, rax
        0x0f, 0x20, 0xc0,                         // mov rax, cr0
        0x24, 0xf3,                               // and al, ~0xc
        0x0c, 0x02,                               // or al, 2
        0x0f, 0x22, 0xc0,                         // mov cr0, rax
    ];
    // mov eax, cs; test al, 3; jnz beyond
    code.extend_from_slice(&[0x8c, 0xc8, 0xa8, 0x03, 0x75, sse.len() as u8]);
    code.extend_from_slice(&sse);
    for (i, case) in cases.iter().enumerate() {
        let block = blocks + (i * BLOCK_BYTES) as u64;
        code.extend_from_slice(&[0x49, 0xbf]); // mov r15, block
        code.extend_from_slice(&block.to_le_bytes());
        on_block(&mut code, &[0x49, 0x0f, 0xae], 1, FXSAVE); // fxrstor64
        on_block(&mut code, &[0x41, 0xff], 6, FLAGS); // push
        code.push(0x9d); // popfq
        for register in (0..R15).filter(|register| *register != RSP) {
            on_block(&mut code, &[0x49 | (register as u8 >> 3) << 2, 0x8b], register as u8 & 7, register * 8); // mov
        }
        code.extend_from_slice(&case.code);
        for register in (0..=R15).filter(|register| *register != RSP) {
            on_block(&mut code, &[0x49 | (register as u8 >> 3) << 2, 0x89], register as u8 & 7, register * 8); // mov
        }
        code.push(0x9c); // pushfq
        on_block(&mut code, &[0x41, 0x8f], 0, FLAGS); // pop
        on_block(&mut code, &[0x49, 0x0f, 0xae], 0, FXSAVE); // fxsave64
    }
    // write(1, blocks, their length), exit(0)
    let mut process = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0xbe];
    process.extend_from_slice(&blocks.to_le_bytes());
    process.push(0xba);
    process.extend_from_slice(&(results_bytes as u32).to_le_bytes());
    process.extend_from_slice(&[0x0f, 0x05, 0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    // mov eax, cs; test al, 3; jz beyond
    code.extend_from_slice(&[0x8c, 0xc8, 0xa8, 0x03, 0x74, process.len() as u8]);
    code.extend_from_slice(&process);
    // mov dx, 0x604; mov ax, SLP_EN | S5; out dx, ax; jmp .
    code.extend_from_slice(&[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xeb, 0xfe]);
    code
}

/// An instruction on the block, of which r15 is the address.
fn on_block(code: &mut Vec<u8>, opcode: &[u8], register: u8, at: usize) {
    code.extend_from_slice(opcode);
    code.push(0x87 | register << 3);
    code.extend_from_slice(&(at as u32).to_le_bytes());
}
