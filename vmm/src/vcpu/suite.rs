//! What every vCPU must pass, whoever executes it: [`vcpu_suite`] makes a test of each check.
//!
//! The guests are a dozen instructions each, which neither take interrupts nor idle where they need not, so that also a KVM without hardware
//! below it can run them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{Vcpu, VcpuError, VcpuExit, VcpuHandle};
use crate::boot::x86_64::put_flat_memory;
use crate::bus::{Bus, MmioDevice};
use crate::layout::Region;
use crate::memory::{self, GuestRam};

const RAM_BYTES: u64 = 64 << 20;
const STOPS: usize = 500;

/// A kind of vCPU.
pub trait Subject {
    type Cpu: Vcpu;
    /// Why it cannot be tried on this host at all.
    fn unavailable() -> Option<String> {
        None
    }
    fn guest() -> &'static Guest;
    /// A CPU on this RAM, with these devices.
    fn cpu(ram: GuestRam, bus: Bus) -> Self::Cpu;
}

/// Programs in an architecture's machine code. Each finds [`Guest::data`] in the register that takes the parameters' address.
pub struct Guest {
    /// Makes RAM in which [`Vcpu::set_boot_state`] finds what it needs.
    pub ram: fn() -> GuestRam,
    pub code_at: u64,
    pub data: u64,
    pub function_at: u64,
    /// Where programs look for a device.
    pub device: Region,
    /// Counts from 1 for ever, into the two words at `data`, one after the other.
    pub count: &'static [u8],
    /// Copies what it reads at the device's begin, 8, 4, 2 bytes and 1, to the device at 8, 16, 24, 32, then powers off.
    pub copy: &'static [u8],
    pub reset: &'static [u8],
    /// Waits for an interrupt that cannot come.
    pub idle: &'static [u8],
    /// Calls the function, writes 4 bytes to the device, calls again, and powers off; what the calls gave is at `data`, 8 bytes apart.
    pub call_twice: &'static [u8],
    /// Functions that give one and two.
    pub one: &'static [u8],
    pub two: &'static [u8],
}

/// An arm64 machine's guest.
pub static ARM64: Guest = Guest {
    ram: || memory::anonymous(RAM_BYTES).unwrap(),
    code_at: 0x4000_0000,
    data: 0x4004_0000,
    function_at: 0x4002_0000,
    device: Region { base: 0x0a00_0000, size: 0x200 },
    count: &code::<5>([
        0xd2800001, // mov x1, #0
        0x91000421, // again: add x1, x1, #1
        0xf9000001, // str x1, [x0]
        0xf9000401, // str x1, [x0, #8]
        0x17fffffd, // b again
    ]),
    copy: &code::<13>([
        0xd2a14002, // mov x2, #0xa000000
        0xf9400041, // ldr x1, [x2]
        0xf9000441, // str x1, [x2, #8]
        0xb9400041, // ldr w1, [x2]
        0xb9001041, // str w1, [x2, #16]
        0x79400041, // ldrh w1, [x2]
        0x79003041, // strh w1, [x2, #24]
        0x39400041, // ldrb w1, [x2]
        0x39008041, // strb w1, [x2, #32]
        0x52800100, // mov w0, #0x8
        0x72b08000, // movk w0, #0x8400, lsl #16
        0xd4000002, // hvc #0
        0x14000000, // b .
    ]),
    reset: &code::<4>([
        0x52800120, // mov w0, #0x9
        0x72b08000, // movk w0, #0x8400, lsl #16
        0xd4000002, // hvc #0
        0x14000000, // b .
    ]),
    idle: &code::<2>([
        0xd503207f, // again: wfi
        0x17ffffff, // b again
    ]),
    call_twice: &code::<12>([
        0xaa0003f3, // mov x19, x0
        0xd2a14002, // mov x2, #0xa000000
        0xd2a8004a, // mov x10, #0x40020000
        0xd63f0140, // blr x10
        0xf9000260, // str x0, [x19]
        0xb900005f, // str wzr, [x2]
        0xd63f0140, // blr x10
        0xf9000660, // str x0, [x19, #8]
        0x52800100, // mov w0, #0x8
        0x72b08000, // movk w0, #0x8400, lsl #16
        0xd4000002, // hvc #0
        0x14000000, // b .
    ]),
    one: &code::<2>([
        0xd2800020, // mov x0, #1
        0xd65f03c0, // ret
    ]),
    two: &code::<2>([
        0xd2800040, // mov x0, #2
        0xd65f03c0, // ret
    ]),
};

/// An x86-64 machine's guest.
pub static X86_64: Guest = Guest {
    ram: || {
        let ram = memory::anonymous_x86(RAM_BYTES).unwrap();
        put_flat_memory(&ram).unwrap();
        ram
    },
    code_at: 0x10_0000,
    data: 0x14_0000,
    function_at: 0x12_0000,
    device: Region { base: 0xd000_0000, size: 0x200 },
    count: &[
        0x31, 0xc0, // xor eax, eax
        0x48, 0xff, 0xc0, // again: inc rax
        0x48, 0x89, 0x06, // mov [rsi], rax
        0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
        0xeb, 0xf4, // jmp again
    ],
    copy: &[
        0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
        0x48, 0x8b, 0x03, // mov rax, [rbx]
        0x48, 0x89, 0x43, 0x08, // mov [rbx + 8], rax
        0x8b, 0x03, // mov eax, [rbx]
        0x89, 0x43, 0x10, // mov [rbx + 16], eax
        0x66, 0x8b, 0x03, // mov ax, [rbx]
        0x66, 0x89, 0x43, 0x18, // mov [rbx + 24], ax
        0x8a, 0x03, // mov al, [rbx]
        0x88, 0x43, 0x20, // mov [rbx + 32], al
        0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
        0x66, 0xb8, 0x00, 0x34, // mov ax, SLP_EN | S5
        0x66, 0xef, // out dx, ax
        0xeb, 0xfe, // jmp .
    ],
    reset: &[
        0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
        0xb0, 0x06, // mov al, 6
        0xee, // out dx, al
        0xeb, 0xfe, // jmp .
    ],
    idle: &[
        0xf4, // again: hlt
        0xeb, 0xfd, // jmp again
    ],
    call_twice: &[
        0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
        0xbf, 0x00, 0x00, 0x12, 0x00, // mov edi, 0x120000
        0xbc, 0x00, 0x00, 0x16, 0x00, // mov esp, 0x160000
        0xff, 0xd7, // call rdi
        0x48, 0x89, 0x06, // mov [rsi], rax
        0x89, 0x03, // mov [rbx], eax
        0xff, 0xd7, // call rdi
        0x48, 0x89, 0x46, 0x08, // mov [rsi + 8], rax
        0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
        0x66, 0xb8, 0x00, 0x34, // mov ax, SLP_EN | S5
        0x66, 0xef, // out dx, ax
        0xeb, 0xfe, // jmp .
    ],
    one: &[
        0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
        0xc3, // ret
    ],
    two: &[
        0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, 2
        0xc3, // ret
    ],
};

/// Instructions of 4 bytes as they lie in memory; room for 16.
const fn code<const COUNT: usize>(words: [u32; COUNT]) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < COUNT {
        let word = words[at].to_le_bytes();
        (bytes[at * 4], bytes[at * 4 + 1], bytes[at * 4 + 2], bytes[at * 4 + 3]) = (word[0], word[1], word[2], word[3]);
        at += 1;
    }
    bytes
}

/// Makes tests of a [`Subject`].
#[macro_export]
macro_rules! vcpu_suite {
    ($subject:ty) => {
        $crate::vcpu_suite!(
            $subject:
            accesses_of_each_size_reach_devices
            a_guest_resets
            code_that_a_device_wrote_is_executed_anew
            stops_lose_and_repeat_nothing
            a_stop_before_a_run_ends_it
            an_idle_guest_hears_a_stop_and_uses_no_time
            a_saved_cpu_goes_on_in_another
            a_foreign_or_damaged_state_is_refused
            the_handle_outlives_the_cpu
        );
    };
    ($subject:ty: $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                match <$subject as $crate::vcpu::suite::Subject>::unavailable() {
                    Some(reason) => eprintln!("skipped: {reason}"),
                    None => $crate::vcpu::suite::$check::<$subject>(),
                }
            }
        )*
    };
}

fn put<S: Subject>(ram: &GuestRam, program: &[u8], at: u64) {
    ram.write_slice(program, GuestAddress(at)).expect("programs lie in RAM");
}

/// A CPU about to execute a program.
fn loaded<S: Subject>(ram: &GuestRam, bus: Bus, program: &[u8]) -> S::Cpu {
    put::<S>(ram, program, S::guest().code_at);
    let mut cpu = S::cpu(ram.clone(), bus);
    cpu.set_boot_state(S::guest().code_at, S::guest().data).expect("a fresh CPU takes a boot state");
    cpu
}

/// The two words at the guest's data.
fn words<S: Subject>(ram: &GuestRam) -> [u64; 2] {
    [0, 8].map(|at| ram.load(GuestAddress(S::guest().data + at), Ordering::SeqCst).expect("data lies in RAM"))
}

fn bus_with<S: Subject>(device: Arc<Mutex<dyn MmioDevice>>) -> Bus {
    let mut bus = Bus::default();
    bus.insert(S::guest().device, device).expect("the only one");
    bus
}

/// A device of bytes: reads give [`ANSWER`], writes are kept.
struct Recorder {
    reads: Vec<(u64, usize)>,
    written: Vec<u8>,
}

const ANSWER: [u8; 8] = [0x81, 0x72, 0x63, 0x54, 0x45, 0x36, 0x27, 0x18];

impl MmioDevice for Recorder {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.reads.push((offset, data.len()));
        data.copy_from_slice(&ANSWER[offset as usize..][..data.len()]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.written[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

/// What is wider than a register of 32 bits may come in halves, the lower one first.
pub fn accesses_of_each_size_reach_devices<S: Subject>() {
    let ram = (S::guest().ram)();
    let device = Arc::new(Mutex::new(Recorder { reads: Vec::new(), written: vec![0; 40] }));
    let mut cpu = loaded::<S>(&ram, bus_with::<S>(device.clone()), S::guest().copy);
    assert_eq!(cpu.run().expect("it runs"), VcpuExit::PowerOff);
    let device = device.lock().expect("nothing panicked");
    let (whole, halves): (&[_], &[_]) = (&[(0, 8), (0, 4), (0, 2), (0, 1)], &[(0, 4), (4, 4), (0, 4), (0, 2), (0, 1)]);
    assert!(device.reads == whole || device.reads == halves, "{:?}", device.reads);
    let mut expected = vec![0; 40];
    for (at, len) in [(8, 8), (16, 4), (24, 2), (32, 1)] {
        expected[at..at + len].copy_from_slice(&ANSWER[..len]);
    }
    assert_eq!(device.written, expected);
}

pub fn a_guest_resets<S: Subject>() {
    let mut cpu = loaded::<S>(&(S::guest().ram)(), Bus::default(), S::guest().reset);
    assert_eq!(cpu.run().expect("it runs"), VcpuExit::Reset);
}

/// Rewrites the function when the guest touches it, as a disk does that reads a page of a program.
struct Dma<S: Subject> {
    ram: GuestRam,
    cpu: Option<Arc<dyn VcpuHandle>>,
    of: std::marker::PhantomData<fn() -> S>,
}

impl<S: Subject> MmioDevice for Dma<S> {
    fn read(&mut self, _: u64, _: &mut [u8]) {}

    fn write(&mut self, _: u64, _: &[u8]) {
        let guest = S::guest();
        put::<S>(&self.ram, guest.two, guest.function_at);
        self.cpu.as_ref().expect("set before it runs").written(guest.function_at, guest.two.len() as u64);
    }
}

pub fn code_that_a_device_wrote_is_executed_anew<S: Subject + 'static>() {
    let ram = (S::guest().ram)();
    put::<S>(&ram, S::guest().one, S::guest().function_at);
    let device = Arc::new(Mutex::new(Dma::<S> { ram: ram.clone(), cpu: None, of: std::marker::PhantomData }));
    let mut cpu = loaded::<S>(&ram, bus_with::<S>(device.clone()), S::guest().call_twice);
    device.lock().expect("nothing panicked").cpu = Some(cpu.handle());
    assert_eq!(cpu.run().expect("it runs"), VcpuExit::PowerOff);
    assert_eq!(words::<S>(&ram), [1, 2]);
}

pub fn stops_lose_and_repeat_nothing<S: Subject>() {
    let ram = (S::guest().ram)();
    let mut cpu = loaded::<S>(&ram, Bus::default(), S::guest().count);
    let handle = cpu.handle();
    let (running, next) = channel();
    let mut last = 0;
    std::thread::scope(|scope| {
        // Each stop comes while the guest runs, or just before.
        scope.spawn(move || next.into_iter().for_each(|()| handle.stop()));
        for _ in 0..STOPS {
            running.send(()).expect("the stopper listens");
            assert_eq!(cpu.run().expect("it runs"), VcpuExit::Stopped);
            let [first, second] = words::<S>(&ram);
            assert!(first == second || first == second + 1, "{first} and {second}");
            assert!(first >= last);
            last = first;
        }
        drop(running);
    });
    run_until_counted::<S>(&mut cpu, &ram, last + 1000);
}

pub fn a_stop_before_a_run_ends_it<S: Subject>() {
    let ram = (S::guest().ram)();
    let mut cpu = loaded::<S>(&ram, Bus::default(), S::guest().count);
    cpu.handle().stop();
    assert_eq!(cpu.run().expect("it runs"), VcpuExit::Stopped);
    // That one was heard, and no more of it is left.
    run_until_counted::<S>(&mut cpu, &ram, 1000);
}

/// Runs a counting guest until its count reaches `goal`, and then stops it.
fn run_until_counted<S: Subject>(cpu: &mut S::Cpu, ram: &GuestRam, goal: u64) {
    let handle = cpu.handle();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while words::<S>(ram)[0] < goal && !ended.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            handle.stop();
        });
        let exit = cpu.run();
        ended.store(true, Ordering::SeqCst);
        assert_eq!(exit.expect("it runs"), VcpuExit::Stopped);
    });
    assert!(words::<S>(ram)[0] >= goal);
}

pub fn an_idle_guest_hears_a_stop_and_uses_no_time<S: Subject>() {
    let mut cpu = loaded::<S>(&(S::guest().ram)(), Bus::default(), S::guest().idle);
    let handle = cpu.handle();
    let used = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock");
    let before = used();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Not synchronisation: the span over which the guest must be idle.
            std::thread::sleep(Duration::from_millis(300));
            handle.stop();
        });
        assert_eq!(cpu.run().expect("it runs"), VcpuExit::Stopped);
    });
    let spent = Duration::from(used()) - Duration::from(before);
    assert!(spent < Duration::from_millis(100), "{spent:?}");
}

pub fn a_saved_cpu_goes_on_in_another<S: Subject>() {
    let ram = (S::guest().ram)();
    let mut first = loaded::<S>(&ram, Bus::default(), S::guest().count);
    run_until_counted::<S>(&mut first, &ram, 1000);
    let state = first.save().expect("a stopped CPU is saved");
    drop(first);
    let [count, _] = words::<S>(&ram);
    // What it counts is in a register: in memory it is lost.
    [0, 8].iter().for_each(|at| ram.store(0_u64, GuestAddress(S::guest().data + at), Ordering::SeqCst).expect("data lies in RAM"));
    let mut second = S::cpu(ram.clone(), Bus::default());
    second.restore(&state).expect("it fits");
    run_until_counted::<S>(&mut second, &ram, 1);
    assert!(words::<S>(&ram)[0] >= count);
}

pub fn a_foreign_or_damaged_state_is_refused<S: Subject>() {
    let ram = (S::guest().ram)();
    let mut cpu = loaded::<S>(&ram, Bus::default(), S::guest().count);
    let state = cpu.save().expect("a fresh CPU is saved");
    let mut other = S::cpu(ram, Bus::default());
    for at in [20, state.len() / 2, state.len() - 1] {
        let mut damaged = state.clone();
        damaged[at] ^= 1;
        assert!(matches!(other.restore(&damaged), Err(VcpuError::DamagedState(_))), "byte {at}");
    }
    assert!(matches!(other.restore(&state[..state.len() / 2]), Err(VcpuError::DamagedState(_))));
    let (_, registers) = super::saved::decode(&identity(&state), &state).expect("it is whole");
    let foreign = super::saved::encode("another", 0, registers);
    assert!(matches!(other.restore(&foreign), Err(VcpuError::ForeignState { .. })));
    other.restore(&state).expect("it fits");
}

/// What a saved CPU says it was written by: see [`super::saved`].
fn identity(state: &[u8]) -> String {
    let len = u64::from_le_bytes(std::array::from_fn(|at| state[8 + at])) as usize;
    String::from_utf8_lossy(&state[16..16 + len]).into_owned()
}

pub fn the_handle_outlives_the_cpu<S: Subject>() {
    let cpu = loaded::<S>(&(S::guest().ram)(), Bus::default(), S::guest().count);
    let handle = cpu.handle();
    drop(cpu);
    handle.set_irq(true);
    handle.written(S::guest().code_at, 4);
    handle.stop();
}
