//! The chips as a guest and a CPU see them: by their registers and their output.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// Tells each change of the interrupt input.
struct Input(Sender<bool>);

impl VcpuHandle for Input {
    fn set_irq(&self, asserted: bool) {
        self.0.send(asserted).unwrap();
    }
    fn stop(&self) {}
    fn written(&self, _: u64, _: u64) {}
}

struct Board {
    chips: Arc<Chips>,
    clock: Arc<GuestClock>,
    bus: Bus,
    ports: Bus,
    input: Receiver<bool>,
}

fn board() -> Board {
    let clock = Arc::new(GuestClock::default());
    let chips = Chips::new(clock.clone()).unwrap();
    let (mut bus, mut ports) = (Bus::default(), Bus::default());
    chips.populate(&mut bus).unwrap();
    chips.populate_ports(&mut ports).unwrap();
    let (sender, input) = channel();
    chips.connect(Arc::new(Input(sender)));
    assert!(!input.recv().unwrap());
    Board { chips, clock, bus, ports, input }
}

impl Board {
    fn lapic(&self, offset: u64, value: u32) {
        self.bus.write(layout::LAPIC.base + offset, &value.to_le_bytes());
    }

    fn ioapic(&self, register: u32, value: u32) {
        self.bus.write(layout::IOAPIC.base, &register.to_le_bytes());
        self.bus.write(layout::IOAPIC.base + 0x10, &value.to_le_bytes());
    }

    fn port(&self, port: u64, value: u8) {
        self.ports.write(port, &[value]);
    }
}

#[test]
fn a_devices_level_goes_through_both_apics() {
    let board = board();
    board.lapic(0xf0, 0x1ff);
    board.ioapic(0x10 + 2 * 10, 0x8041);
    board.chips.set_level(10, true);
    assert!(board.input.recv().unwrap());
    assert_eq!(board.chips.acknowledge(), Some(0x41));
    assert!(!board.input.recv().unwrap(), "in service");
    board.lapic(0xb0, 0);
    assert!(board.input.recv().unwrap(), "it is high still");
    assert_eq!(board.chips.acknowledge(), Some(0x41));
    board.chips.set_level(10, false);
    board.lapic(0xb0, 0);
    assert_eq!(board.chips.acknowledge(), None);
}

#[test]
fn the_8259s_interrupts_pass_unless_the_apic_masks_them() {
    let board = board();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1)] {
        board.port(port, value);
    }
    board.chips.set_level(4, true);
    assert!(board.input.recv().unwrap());
    board.lapic(0x350, 1 << 16);
    assert!(!board.input.recv().unwrap());
    board.lapic(0x350, 7 << 8);
    assert!(board.input.recv().unwrap());
    assert_eq!(board.chips.acknowledge(), Some(0x34));
}

#[test]
fn timers_fire_while_the_clock_runs_only() {
    let board = board();
    board.lapic(0xf0, 0x1ff);
    board.lapic(0x320, 0xec);
    board.lapic(0x380, 1_000_000);
    assert!(board.input.try_recv().is_err());
    board.clock.start();
    board.chips.started();
    assert!(board.input.recv().unwrap());
    assert!(board.clock.now_ns() >= 2_000_000, "a million ticks of two nanoseconds");
    assert_eq!(board.chips.acknowledge(), Some(0xec));
    assert!(!board.input.recv().unwrap());
    board.lapic(0xb0, 0);

    // The 8254, by the 8259 pair: a period of a millisecond.
    board.clock.stop();
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        board.port(port, value);
    }
    board.clock.start();
    board.chips.started();
    for _ in 0..3 {
        assert!(board.input.recv().unwrap());
        assert_eq!(board.chips.acknowledge(), Some(0x30));
        assert!(!board.input.recv().unwrap());
        board.port(0x20, 0x20);
    }
}

#[test]
fn port_61_shows_channel_2() {
    let board = board();
    board.port(0x61, 0);
    for (port, value) in [(0x43, 0xb0), (0x42, 0xff), (0x42, 0xff)] {
        board.port(port, value);
    }
    let speaker = || {
        let mut data = [0];
        board.ports.read(0x61, &mut data);
        data[0] & (SPEAKER_OUTPUT | SPEAKER_GATE)
    };
    board.port(0x61, SPEAKER_GATE);
    assert_eq!(speaker(), SPEAKER_GATE);
    board.clock.set(60_000_000);
    assert_eq!(speaker(), SPEAKER_GATE | SPEAKER_OUTPUT);
}

#[test]
fn a_saved_state_drives_its_output() {
    let board = board();
    board.lapic(0xf0, 0x1ff);
    board.ioapic(0x10 + 2 * 11, 0x8051);
    board.chips.set_level(11, true);
    let json = serde_json::to_string(&board.chips.save()).unwrap();
    let other = self::board();
    other.chips.restore(serde_json::from_str(&json).unwrap());
    assert!(other.input.recv().unwrap());
    assert_eq!(other.chips.acknowledge(), Some(0x51));
}

#[test]
fn odd_accesses_are_harmless() {
    let board = board();
    let before = board.chips.save();
    board.chips.set_level(24, true);
    board.chips.set_level(u32::MAX, true);
    board.bus.write(layout::LAPIC.base + 0xf1, &[1; 8]);
    board.bus.write(layout::IOAPIC.base + 0x10, &[1]);
    board.ports.write(0x40, &[1; 4]);
    for address in [layout::LAPIC.base + 0x371, layout::LAPIC.base + 0xffc] {
        let mut data = [7; 4];
        board.bus.read(address, &mut data);
    }
    assert_eq!(board.chips.save(), before);
}

#[test]
fn timers_of_nanoseconds_are_looked_at_seldom() {
    const LOOKED_NS: u64 = 1_000_000;
    let wait = |board: &Board, now_ns: u64| {
        let mut inner = board.chips.lock();
        inner.looked_ns = LOOKED_NS;
        inner.wait(now_ns).map(|wait| wait.as_nanos() as u64)
    };
    let apic = board();
    apic.lapic(0xf0, 0x1ff);
    apic.lapic(0x320, 0x2_0041);
    apic.lapic(0x380, 1);
    assert_eq!(wait(&apic, LOOKED_NS + 1), Some(LOOK_GAP_NS - 1));
    apic.lapic(0x380, 5_000_000);
    assert_eq!(wait(&apic, 0), Some(10_000_000), "it divides by two; what is due later is in time");
    let pit = board();
    pit.port(0x43, 0x34);
    pit.port(0x40, 1);
    pit.port(0x40, 0);
    assert_eq!(wait(&pit, LOOKED_NS + 1), Some(LOOK_GAP_NS - 1));
}

#[test]
fn a_damaged_state_has_no_timer_without_a_period() {
    let board = board();
    let json = serde_json::to_string(&board.chips.save()).unwrap().replacen("\"expired\":true", "\"expired\":false", 1);
    board.chips.restore(serde_json::from_str(&json).unwrap());
    board.lapic(0x320, 0x2_0041);
    let mut count = [7; 4];
    board.bus.read(layout::LAPIC.base + 0x390, &mut count);
    assert_eq!(count, [0; 4]);
}
