//! The unmodified Debian kernel on the whole machine.

mod guest;

use std::fs::File;

use emulator::cpu::{CpuConfig, CpuModel, ENGINE_BUILD};
use guest::{Console, Guest, PATIENCE, PROMPT, config};
use vmm::machine::ExitReason;
use vmm::snapshot::{self, Snapshot};

#[test]
fn boots_to_a_shell_and_powers_off() {
    let mut console = Console::boot(&Guest::prepare(), config());
    console.wait_for(PROMPT);
    assert_eq!(console.command("echo $((6 * 7))"), "42");
    assert!(console.command("cat /proc/version").starts_with("Linux version 6."));
    // Signals, faults and copy-on-write of user space.
    assert!(console.command("sh -c 'kill -SEGV $$'; echo $?").ends_with("139"));
    console.type_line("poweroff -f");
    assert_eq!(console.exit.recv_timeout(PATIENCE).unwrap(), ExitReason::PowerOff);
}

#[test]
fn boots_on_every_cpu_model_and_a_small_translation_buffer() {
    let guest = Guest::prepare();
    // The second so small that it is emptied many times over.
    for (model, tcg_buffer_bytes) in [(CpuModel::CortexA57, 32 << 20), (CpuModel::CortexA72, 4 << 20)] {
        let mut console = Console::boot(&guest, CpuConfig { model, tcg_buffer_bytes });
        console.wait_for(PROMPT);
        let sum = "dd if=/dev/zero bs=1k count=64 2>/dev/null | sha256sum";
        assert!(console.command(sum).starts_with("de2f256064a0af797747c2b97505dc0b9f3df0de4f489eac731c23ae9ca9cc31"));
    }
}

#[test]
fn a_kernel_panic_is_a_reset() {
    let mut console = Console::boot(&Guest::prepare(), config());
    console.wait_for(PROMPT);
    console.type_line("echo c > /proc/sysrq-trigger");
    assert_eq!(console.exit.recv_timeout(PATIENCE).unwrap(), ExitReason::Reset);
    console.wait_for("Kernel panic");
}

#[test]
fn a_saved_machine_goes_on_in_others() {
    let mut console = Console::boot(&Guest::prepare(), config());
    console.wait_for(PROMPT);
    console.command("echo before > /tmp/note");
    let uptime = |console: &mut Console| console.command("cut -d. -f1 /proc/uptime").parse::<u64>().unwrap();
    let before = uptime(&mut console);
    console.machine.pause().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved");
    let state = console.machine.save().unwrap();
    snapshot::write(&File::create(&file).unwrap(), ENGINE_BUILD, &state, console.machine.ram(), None).unwrap();
    console.machine.resume().unwrap();
    assert_eq!(console.command("cat /tmp/note"), "before");

    for _ in 0..2 {
        let snapshot = Snapshot::open(&file, ENGINE_BUILD).unwrap();
        let mut restored = Console::new(snapshot.ram(None).unwrap(), config());
        restored.machine.restore(snapshot.state()).unwrap();
        restored.machine.resume().unwrap();
        assert_eq!(restored.command("cat /tmp/note; echo after > /tmp/note"), "before");
        assert_eq!(restored.command("sleep 1; cat /tmp/note"), "after");
        let after = uptime(&mut restored);
        assert!((before..before + 60).contains(&after), "uptime {before} s, then {after} s");
    }
    assert_eq!(console.command("cat /tmp/note"), "before");
}

mod x86 {
    //! The same on the x86-64 machine.

    use super::*;

    /// Quiet: what the kernel says meanwhile would come between question and answer.
    const CMDLINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1";

    #[test]
    fn boots_to_a_shell_and_powers_off() {
        let mut console = Console::boot_x86(&Guest::of("amd64"), CMDLINE, 32 << 20);
        console.wait_for(PROMPT);
        assert_eq!(console.command("echo $((6 * 7)) $(uname -m)"), "42 x86_64");
        // Signals, faults and copy-on-write of user space.
        assert!(console.command("sh -c 'kill -SEGV $$'; echo $?").ends_with("139"));
        // Both APICs, and the clock.
        let interrupts = console.command("cat /proc/interrupts");
        assert!(interrupts.contains("IO-APIC"), "{interrupts}");
        assert!(console.command("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").starts_with("tsc"));
        let year: i32 = console.command("date +%Y").parse().unwrap();
        assert!(year >= 2025, "{year}");
        console.type_line("poweroff -f");
        assert_eq!(console.exit.recv_timeout(PATIENCE).unwrap(), ExitReason::PowerOff);
    }

    #[test]
    fn boots_with_a_small_translation_buffer_and_resets() {
        let mut console = Console::boot_x86(&Guest::of("amd64"), CMDLINE, 4 << 20);
        console.wait_for(PROMPT);
        let sum = "dd if=/dev/zero bs=1k count=64 2>/dev/null | sha256sum";
        assert!(console.command(sum).starts_with("de2f256064a0af797747c2b97505dc0b9f3df0de4f489eac731c23ae9ca9cc31"));
        console.type_line("echo c > /proc/sysrq-trigger");
        assert_eq!(console.exit.recv_timeout(PATIENCE).unwrap(), ExitReason::Reset);
        console.wait_for("Kernel panic");
    }

    #[test]
    fn a_saved_machine_goes_on_in_others() {
        let mut console = Console::boot_x86(&Guest::of("amd64"), CMDLINE, 32 << 20);
        console.wait_for(PROMPT);
        console.command("echo before > /tmp/note");
        console.machine.pause().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("saved");
        let state = console.machine.save().unwrap();
        snapshot::write(&File::create(&file).unwrap(), ENGINE_BUILD, &state, console.machine.ram(), None).unwrap();
        console.machine.resume().unwrap();
        assert_eq!(console.command("cat /tmp/note"), "before");

        for _ in 0..2 {
            let snapshot = Snapshot::open(&file, ENGINE_BUILD).unwrap();
            let mut restored = Console::new_x86(snapshot.ram(None).unwrap(), 32 << 20);
            restored.machine.restore(snapshot.state()).unwrap();
            restored.machine.resume().unwrap();
            assert_eq!(restored.command("cat /tmp/note; echo after > /tmp/note"), "before");
            assert_eq!(restored.command("sleep 1; cat /tmp/note"), "after");
        }
        let error = Console::new(vmm::memory::anonymous(64 << 20).unwrap(), config()).machine.restore(state).unwrap_err();
        assert!(error.to_string().contains("another engine build"), "{error}");
    }
}
