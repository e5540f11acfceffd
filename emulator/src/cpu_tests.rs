//! The CPU on small programs of its own: what Linux only shows by hanging.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::memory;

use super::*;
use crate::lull::Limits;

const RAM_BYTES: u64 = 64 << 20;
const CODE: u64 = layout::RAM_BASE;
/// Vectors that power the machine off, having put ESR, ELR and FAR into x1 to x3.
const VECTORS: u64 = layout::RAM_BASE + 0x1_0000;
const FUNCTION: u64 = layout::RAM_BASE + 0x2_0000;
const TABLES: u64 = layout::RAM_BASE + 0x3_0000;

const SVC: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd4024681, // svc #0x1234
    0x14000000, // b .
];
const UNMAPPED_LOAD: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd2a60005, // mov x5, #0x30000000
    0xf94004a6, // ldr x6, [x5, #8]
    0x14000000, // b .
];
const REPORT: &[u32] = &[
    0xd5385201, // mrs x1, esr_el1
    0xd5384022, // mrs x2, elr_el1
    0xd5386003, // mrs x3, far_el1
    0x52800100, // mov w0, #0x8
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];
/// x10: vectors, x11: ticks between interrupts, x12: interrupts wanted.
const TIMER_IDLE: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd2800002, // mov x2, #0
    0xd51be20b, // msr cntp_tval_el0, x11
    0xd2800020, // mov x0, #1
    0xd51be220, // msr cntp_ctl_el0, x0
    0xd50342ff, // msr daifclr, #2
    0xd503207f, // wait: wfi
    0xeb0c005f, // cmp x2, x12
    0x54ffffc1, // b.ne wait
    0x52800100, // mov w0, #0x8
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];
/// The same, but busy in one block, and it ends with a reset.
const TIMER_BUSY: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd2800002, // mov x2, #0
    0xd51be20b, // msr cntp_tval_el0, x11
    0xd2800020, // mov x0, #1
    0xd51be220, // msr cntp_ctl_el0, x0
    0xd50342ff, // msr daifclr, #2
    0xeb0c005f, // spin: cmp x2, x12
    0x54ffffe1, // b.ne spin
    0x52800120, // mov w0, #0x9
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];
const TIMER_IRQ: &[u32] = &[
    0xd53be223, // mrs x3, cntp_ctl_el0
    0x36100063, // tbz w3, #2, spurious
    0x91000442, // add x2, x2, #1
    0xd51be20b, // msr cntp_tval_el0, x11
    0xd69f03e0, // spurious: eret
];
/// x10: TTBR0, x11: TCR, x12: MAIR, x13: SCTLR, x14: the function, x15: the same by its other address,
/// w16: an instruction.
const CALL_ALIAS_CALL: &[u32] = &[
    0xd518200a, // msr ttbr0_el1, x10
    0xd518204b, // msr tcr_el1, x11
    0xd518a20c, // msr mair_el1, x12
    0xd5033fdf, // isb
    0xd518100d, // msr sctlr_el1, x13
    0xd5033fdf, // isb
    0xd63f01c0, // blr x14
    0xaa0003e2, // mov x2, x0
    0xb90001f0, // str w16, [x15]
    0xd5033b9f, // dsb ish
    0xd5033fdf, // isb
    0xd63f01c0, // blr x14
    0xaa0003e3, // mov x3, x0
    0x52800100, // mov w0, #0x8
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];
const MOV_X0_1: u32 = 0xd2800020;
const MOV_X0_2: u32 = 0xd2800040;
const RET: u32 = 0xd65f03c0;

/// What a kernel does all the time, x12 times over; ends with a power-off.
const KERNEL_WORK: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd2800002, // mov x2, #0
    0xd4000021, // again: svc #1
    0xd53b4221, // mrs x1, daif
    0xd50342df, // msr daifset, #2
    0xd50342ff, // msr daifclr, #2
    0xd51b4221, // msr daif, x1
    0xd5184102, // msr sp_el0, x2
    0xd518d082, // msr tpidr_el1, x2
    0xd5088722, // tlbi vae1, x2
    0x91000442, // add x2, x2, #1
    0xeb0c005f, // cmp x2, x12
    0x54fffec1, // b.ne again
    0x52800100, // mov w0, #0x8
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];
const RETURN: &[u32] = &[
    0xd5384023, // mrs x3, elr_el1
    0xd5384004, // mrs x4, spsr_el1
    0xd5184023, // msr elr_el1, x3
    0xd5184004, // msr spsr_el1, x4
    0xd69f03e0, // eret
];
/// Waits until the timer's interrupt is pending but masked. What unmasks it follows.
const PEND: &[u32] = &[
    0xd518c00a, // msr vbar_el1, x10
    0xd51be21f, // msr cntp_tval_el0, xzr
    0xd2800020, // mov x0, #1
    0xd51be220, // msr cntp_ctl_el0, x0
    0xd538c101, // pending: mrs x1, isr_el1
    0x363fffe1, // tbz w1, #7, pending
];
const UNMASK_BY_DAIFCLR: &[u32] = &[
    0xd50342ff, // msr daifclr, #2
];
const UNMASK_BY_DAIF: &[u32] = &[
    0xd51b423f, // msr daif, xzr
];
const UNMASK_BY_ERET: &[u32] = &[
    0x100000a3, // adr x3, behind
    0xd5184023, // msr elr_el1, x3
    0xd28000a4, // mov x4, #5
    0xd5184004, // msr spsr_el1, x4
    0xd69f03e0, // eret; behind:
];
const RESET: &[u32] = &[
    0x52800120, // mov w0, #0x9
    0x72b08000, // movk w0, #0x8400, lsl #16
    0xd4000002, // hvc #0
];

/// A distributor of one line: the timer's.
#[derive(Default)]
struct Line(Mutex<Option<Arc<dyn VcpuHandle>>>);

impl IrqChip for Line {
    fn set_level(&self, intid: u32, asserted: bool) {
        assert_eq!(intid, layout::TIMER_INTID);
        if let Some(cpu) = &*self.0.lock().unwrap() {
            cpu.set_irq(asserted);
        }
    }
}

struct Board {
    ram: GuestRam,
    cpu: UnicornCpu,
}

fn board_with(ram: GuestRam, bus: Bus) -> Board {
    let line = Arc::new(Line::default());
    let config = CpuConfig { model: CpuModel::CortexA53, tcg_buffer_bytes: 4 << 20 };
    let cpu = UnicornCpu::new(ram.clone(), Arc::new(bus), line.clone(), config).unwrap();
    *line.0.lock().unwrap() = Some(cpu.handle());
    Board { ram, cpu }
}

fn board() -> Board {
    board_with(memory::anonymous(RAM_BYTES).unwrap(), Bus::default())
}

impl Board {
    fn put(&self, address: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.ram.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    /// Puts the program and the reporting vectors (synchronous, from EL1 with its own stack), and sets registers.
    fn load(&mut self, program: &[u32], registers: &[(Register, u64)]) {
        self.put(CODE, program);
        self.put(VECTORS + 0x200, REPORT);
        self.cpu.set_boot_state(CODE, 0).unwrap();
        self.cpu.engine.set_register(Register::X10, VECTORS).unwrap();
        for (register, value) in registers {
            self.cpu.engine.set_register(*register, *value).unwrap();
        }
    }

    fn register(&self, register: Register) -> u64 {
        self.cpu.engine.register(register)
    }
}

#[test]
fn a_system_call_is_delivered_to_el1() {
    let mut board = board();
    board.load(SVC, &[]);
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
    assert_eq!(board.register(Register::X1), 0x5600_1234);
    assert_eq!(board.register(Register::X2), CODE + 8);
}

/// What `scripts/bench machine` says of it: 400,000 system calls took 0.77 CPU seconds without patches 0011 and 0012, and take 0.61.
#[test]
fn a_kernels_work_stays_in_translated_code() {
    const ROUNDS: u64 = 10_000;
    let mut board = board();
    board.load(KERNEL_WORK, &[(Register::X12, ROUNDS)]);
    board.put(VECTORS + 0x200, RETURN);
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
    assert_eq!(board.register(Register::X2), ROUNDS);
    // Each block once, when it is translated, and once more for its place in the cache of jumps.
    let turns = board.cpu.engine.turns();
    assert!(turns < 100, "{turns} turns of the main loop");
}

#[test]
fn a_pending_interrupt_comes_as_soon_as_it_is_unmasked() {
    for unmask in [UNMASK_BY_DAIFCLR, UNMASK_BY_DAIF, UNMASK_BY_ERET] {
        let mut board = board();
        board.load(&[PEND, unmask, RESET].concat(), &[]);
        board.put(VECTORS + 0x280, REPORT);
        assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff, "not in the instruction behind {unmask:x?}");
    }
}

#[test]
fn an_access_to_nothing_is_an_external_abort() {
    let mut board = board();
    board.load(UNMAPPED_LOAD, &[]);
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
    let esr = board.register(Register::X1);
    assert_eq!((esr >> 26, esr & 0x3f), (0x25, 0x10), "data abort from the same level, synchronous external");
    assert_eq!(board.register(Register::X2), CODE + 8);
    assert_eq!(board.register(Register::X3), 0x3000_0008);
}

#[test]
fn the_timer_interrupts_an_idle_guest_and_a_busy_one() {
    for (program, exit) in [(TIMER_IDLE, VcpuExit::PowerOff), (TIMER_BUSY, VcpuExit::Reset)] {
        let mut board = board();
        let ticks = layout::COUNTER_HZ / 1000;
        board.load(program, &[(Register::X11, ticks), (Register::X12, 20)]);
        board.put(VECTORS + 0x280, TIMER_IRQ);
        let start = Instant::now();
        assert_eq!(board.cpu.run().unwrap(), exit);
        assert_eq!(board.register(Register::X2), 20);
        assert!(start.elapsed() >= Duration::from_millis(20), "20 interrupts, a millisecond apart");
    }
}

#[test]
fn a_guest_that_takes_no_interrupt_is_deaf() {
    const SPIN: &[u32] = &[0x14000000]; // b . , with interrupts masked
    let mut board = board();
    board.load(SPIN, &[]);
    let handle = board.cpu.handle();
    let watch = std::thread::spawn(move || {
        while handle.guest_time().is_none() {
            std::thread::yield_now();
        }
        let quiet = handle.deaf_for();
        handle.set_irq(true);
        while handle.deaf_for() < Duration::from_millis(30) {
            std::thread::yield_now();
        }
        handle.set_irq(false);
        let heard = handle.deaf_for();
        handle.stop();
        (quiet, heard)
    });
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::Stopped);
    assert_eq!(watch.join().unwrap(), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn idle_time_passes_at_once_from_timer_to_timer() {
    let mut board = board();
    // The timer's register is of 32 bits, one of them for the sign.
    const EACH: Duration = Duration::from_secs(30);
    board.load(TIMER_IDLE, &[(Register::X11, layout::COUNTER_HZ * EACH.as_secs()), (Register::X12, 3)]);
    board.put(VECTORS + 0x280, TIMER_IRQ);
    let handle = board.cpu.handle();
    assert_eq!(handle.guest_time(), None, "it has not run yet");
    let watch = std::thread::spawn(move || {
        while handle.guest_time().is_none() {
            std::thread::yield_now();
        }
        // What is outside is waited for.
        handle.errand(true);
        let waited = handle.pass_idle(EACH, Duration::from_millis(30)).unwrap();
        handle.errand(false);
        let passed = handle.pass_idle(2 * EACH + EACH / 2, Duration::from_secs(60)).unwrap();
        handle.pass_idle(3 * EACH, Duration::from_secs(60));
        (waited, passed)
    });
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
    let (waited, passed) = watch.join().unwrap();
    assert!(waited < EACH, "{waited:?}");
    assert!((2 * EACH + EACH / 2..3 * EACH).contains(&passed), "{passed:?}");
    assert_eq!(board.register(Register::X2), 3);
}

/// Fails without the engine's patch 0013.
#[test]
fn an_idle_guest_forgets_what_it_had_translated_and_goes_on() {
    const BLOCKS: usize = 4000;
    const NEXT: u32 = 0x14000001; // b .+4
    const KEPT: usize = 100 << 10;
    let run = |forgetful: bool| {
        let mut board = board();
        let program = [&[NEXT; BLOCKS], TIMER_IDLE].concat();
        board.load(&program, &[(Register::X11, layout::COUNTER_HZ / 1000), (Register::X12, 20)]);
        board.put(VECTORS + 0x280, TIMER_IRQ);
        if forgetful {
            board.cpu.engine.around().lull.limit(Limits { length: Duration::ZERO, work: 1, code_bytes: KEPT });
        }
        assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
        assert_eq!(board.register(Register::X2), 20);
        board.cpu.engine.code_bytes()
    };
    let (all, kept) = (run(false), run(true));
    assert!(all > 2 * KEPT && kept < KEPT, "{all} bytes, {kept} bytes");
}

#[test]
fn code_written_through_another_mapping_is_translated_anew() {
    let mut board = board();
    board.put(FUNCTION, &[MOV_X0_1, RET]);
    // Two GiB-sized blocks, both of RAM: where it is, and a GiB above. 39-bit addresses, so one level.
    let block = layout::RAM_BASE | 1 << 10 | 3 << 8 | 1;
    for gib in [1, 2] {
        board.ram.write_obj(block, GuestAddress(TABLES + gib * 8)).unwrap();
    }
    let tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
    board.load(
        CALL_ALIAS_CALL,
        &[
            (Register::X10, TABLES),
            (Register::X11, tcr),
            (Register::X12, 0xff),
            (Register::X13, 0x30d0_1805),
            (Register::X14, FUNCTION),
            (Register::X15, FUNCTION + (1 << 30)),
            (Register::X16, u64::from(MOV_X0_2)),
        ],
    );
    assert_eq!(board.cpu.run().unwrap(), VcpuExit::PowerOff);
    assert_eq!((board.register(Register::X2), board.register(Register::X3)), (1, 2));
}

#[test]
fn a_state_of_another_model_is_refused() {
    let mut a53 = board();
    let config = CpuConfig { model: CpuModel::CortexA72, tcg_buffer_bytes: 4 << 20 };
    let mut a72 = UnicornCpu::new(a53.ram.clone(), Arc::default(), Arc::new(Line::default()), config).unwrap();
    let state = a53.cpu.save().unwrap();
    let error = a72.restore(&state).unwrap_err();
    assert!(matches!(error, VcpuError::ForeignState { .. }), "{error}");
}

#[test]
fn translated_code_is_in_huge_pages_where_the_host_has_them() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        eprintln!("not tested: this kernel has no transparent huge pages");
        return;
    }
    let _board = board();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    // Nothing else is writable and executable; other tests' buffers may be half made.
    let is_huge_code = |flags: &str| ["wr", "ex", "hg"].iter().all(|wanted| flags.split(' ').any(|flag| flag == *wanted));
    assert!(flags.clone().any(is_huge_code), "{:?}", flags.collect::<Vec<_>>());
}

#[test]
fn a_translation_buffer_that_cannot_be_is_refused() {
    for tcg_buffer_bytes in [0, 4096, 2 << 30] {
        let config = CpuConfig { model: CpuModel::CortexA53, tcg_buffer_bytes };
        let ram = memory::anonymous(RAM_BYTES).unwrap();
        let made = UnicornCpu::new(ram, Arc::default(), Arc::new(Line::default()), config);
        assert!(matches!(made, Err(VcpuError::Engine(_))));
    }
}
