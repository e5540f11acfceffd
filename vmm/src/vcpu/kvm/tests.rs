//! On the real `/dev/kvm`, whatever lies below it, with guests that poll.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::board::x86_64::X86;
use crate::clock::HostClock;
use crate::devices::uart::Unheard;
use crate::vcpu::suite::{self, Guest, Subject};

struct OnKvm;

impl Subject for OnKvm {
    type Cpu = KvmCpu;

    fn unavailable() -> Option<String> {
        let absent = !Path::new(Kvm::PATH).exists();
        absent.then(|| format!("this host has no {}", Kvm::PATH))
    }

    fn guest() -> &'static Guest {
        &suite::X86_64
    }

    fn cpu(ram: GuestRam, bus: Bus) -> KvmCpu {
        let machine = Kvm::open().unwrap().machine(ram).unwrap();
        let board = X86::without_chips(machine.clone(), Arc::new(HostClock), Box::new(Unheard));
        KvmCpu::new(machine, Arc::new(bus), board.parts()).unwrap()
    }
}

mod suite_on_kvm {
    crate::vcpu_suite!(super::OnKvm);
}

/// A counting guest; `None` where there is no KVM at all.
fn counting() -> Option<(GuestRam, KvmCpu)> {
    if let Some(reason) = OnKvm::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let ram = (OnKvm::guest().ram)();
    ram.write_slice(OnKvm::guest().count, GuestAddress(OnKvm::guest().code_at)).unwrap();
    let mut cpu = OnKvm::cpu(ram.clone(), Bus::default());
    cpu.set_boot_state(OnKvm::guest().code_at, OnKvm::guest().data).unwrap();
    Some((ram, cpu))
}

fn run_a_little(cpu: &mut KvmCpu, ram: &GuestRam) {
    let (handle, data) = (cpu.handle(), GuestAddress(OnKvm::guest().data));
    let count = || ram.load::<u64>(data, std::sync::atomic::Ordering::SeqCst).unwrap();
    let before = count();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while count() < before + 10 {
                std::thread::yield_now();
            }
            handle.stop();
        });
        assert_eq!(cpu.run().unwrap(), VcpuExit::Stopped);
    });
}

#[test]
fn pages_that_the_guest_wrote_are_known() {
    let Some((ram, mut cpu)) = counting() else { return };
    let machine = cpu.machine.clone();
    assert!(machine.written_pages().is_err(), "nobody asked for it");
    machine.track_writes(true).unwrap();
    assert!(machine.written_pages().unwrap().is_empty());
    run_a_little(&mut cpu, &ram);
    assert!(machine.written_pages().unwrap().contains(&OnKvm::guest().data));
    assert!(machine.written_pages().unwrap().is_empty(), "each is told once");
    run_a_little(&mut cpu, &ram);
    assert!(machine.written_pages().unwrap().contains(&OnKvm::guest().data));
}

#[test]
fn clocks_stand_still_while_it_does_and_go_on_in_another() {
    let Some((ram, mut cpu)) = counting() else { return };
    run_a_little(&mut cpu, &ram);
    let stopped = cpu.stopped.unwrap();
    assert_ne!(stopped, state::Clocks::default());
    let state = cpu.save().unwrap();
    let mut other = OnKvm::cpu(ram, Bus::default());
    other.restore(&state).unwrap();
    let restored = other.stopped.unwrap();
    assert_eq!(restored, stopped);
}

#[test]
fn a_line_of_the_board_reaches_the_kernels_controller() {
    let Some((_, cpu)) = counting() else { return };
    let is_up = || {
        let mut chip = sys::kvm_irqchip::zeroed();
        cpu.machine.vm.exchange(&sys::GET_IRQCHIP, &mut chip).unwrap();
        // A `struct kvm_pic_state`, here of the first controller, begins with the levels of its lines, `last_irr`; it lies behind 8 bytes of chip and padding.
        chip.bytes()[8] & 1 << layout::UART_LINE != 0
    };
    assert!(!is_up());
    cpu.machine.set_level(layout::UART_LINE, true);
    assert!(is_up());
    cpu.machine.set_level(layout::UART_LINE, false);
    assert!(!is_up());
}

/// Either outcome is right, on hosts with hardware virtualisation and without; what is said must not be an accident.
#[test]
fn a_probe_tells_whether_real_guests_can_run() {
    let Some((_, _)) = counting() else { return };
    match probe(&Kvm::open().unwrap()) {
        Ok(()) => eprintln!("KVM runs real guests here"),
        Err(error @ Unable::Interrupt(VcpuError::Fault { .. })) => eprintln!("{error}"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_is_not_kvm_is_refused() {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    assert!(matches!(Kvm::of(null), Err(KvmError::Call { .. })));
}
