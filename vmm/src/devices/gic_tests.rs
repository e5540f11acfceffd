//! The controller as a guest sees it: through its registers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SPI: u32 = 40;
const TIMER: u32 = 30;

#[derive(Default)]
struct FakeCpu {
    irq: AtomicBool,
}

impl VcpuHandle for FakeCpu {
    fn set_irq(&self, asserted: bool) {
        self.irq.store(asserted, Ordering::SeqCst);
    }
    fn stop(&self) {}
    fn written(&self, _: u64, _: u64) {}
}

struct Guest {
    gic: Arc<Gic>,
    cpu: Arc<FakeCpu>,
}

impl Guest {
    /// A controller set up as Linux sets it up: everything at priority 0xa0, mask 0xf0, Group 0 enabled.
    fn new() -> Self {
        let gic = Gic::new();
        let cpu = Arc::new(FakeCpu::default());
        gic.connect(cpu.clone());
        let guest = Self { gic, cpu };
        for register in 0..INTID_COUNT as u64 / 4 {
            guest.dist_write(0x400 + register * 4, 0xa0a0_a0a0);
            guest.dist_write(0x800 + register * 4, 0x0101_0101);
        }
        guest.dist_write(0, 1);
        guest.cpu_write(GICC_PMR, 0xf0);
        guest.cpu_write(GICC_CTLR, 1);
        guest
    }

    fn dist_read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.gic.distributor().read(offset, &mut data);
        u32::from_le_bytes(data)
    }
    fn dist_write(&self, offset: u64, value: u32) {
        self.gic.distributor().write(offset, &value.to_le_bytes());
    }
    fn cpu_read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.gic.cpu_interface().read(offset, &mut data);
        u32::from_le_bytes(data)
    }
    fn cpu_write(&self, offset: u64, value: u32) {
        self.gic.cpu_interface().write(offset, &value.to_le_bytes());
    }
    fn enable(&self, intid: u32) {
        self.dist_write(0x100 + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }
    fn set_edge(&self, intid: u32) {
        let offset = 0xc00 + u64::from(intid / 16) * 4;
        self.dist_write(offset, self.dist_read(offset) | 2 << (intid % 16 * 2));
    }
    fn set_priority(&self, intid: u32, priority: u8) {
        self.gic.distributor().write(0x400 + u64::from(intid), &[priority]);
    }
    fn irq(&self) -> bool {
        self.cpu.irq.load(Ordering::SeqCst)
    }
    fn ack(&self) -> u32 {
        self.cpu_read(GICC_IAR)
    }
    fn eoi(&self, intid: u32) {
        self.cpu_write(GICC_EOIR, intid);
    }
}

#[test]
fn identifies_as_gicv2_with_its_lines() {
    let guest = Guest::new();
    assert_eq!(guest.dist_read(GICD_TYPER) & 0x1f, 2);
    assert_eq!(guest.dist_read(0xfe8) >> 4 & 0xf, 2);
    assert_eq!(guest.cpu_read(GICC_IIDR) >> 16 & 0xf, 2);
}

#[test]
fn level_interrupt_stays_pending_until_the_line_falls() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.gic.set_level(SPI, true);
    assert!(guest.irq());
    assert_eq!(guest.ack(), SPI);
    assert!(!guest.irq(), "an active interrupt is not signalled again");
    guest.eoi(SPI);
    assert!(guest.irq(), "its line is still high");
    assert_eq!(guest.ack(), SPI);
    guest.gic.set_level(SPI, false);
    guest.eoi(SPI);
    assert!(!guest.irq());
    assert_eq!(guest.ack(), SPURIOUS);
}

#[test]
fn level_that_falls_before_acknowledge_is_gone() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.gic.set_level(SPI, true);
    guest.gic.set_level(SPI, false);
    assert!(!guest.irq());
    assert_eq!(guest.ack(), SPURIOUS);
}

#[test]
fn edge_interrupt_is_remembered_and_taken_once() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.set_edge(SPI);
    guest.gic.set_level(SPI, true);
    guest.gic.set_level(SPI, false);
    assert_eq!(guest.ack(), SPI);
    guest.gic.set_level(SPI, true);
    guest.eoi(SPI);
    assert_eq!(guest.ack(), SPI, "an edge during handling counts");
    guest.eoi(SPI);
    assert_eq!(guest.ack(), SPURIOUS, "a high line alone does not");
}

#[test]
fn disabled_untargeted_or_masked_interrupts_are_held_back() {
    let guest = Guest::new();
    guest.gic.set_level(SPI, true);
    assert!(!guest.irq());
    guest.enable(SPI);
    assert!(guest.irq());
    guest.gic.distributor().write(0x800 + u64::from(SPI), &[0]);
    assert!(!guest.irq(), "no target");
    guest.gic.distributor().write(0x800 + u64::from(SPI), &[1]);
    guest.cpu_write(GICC_PMR, 0xa0);
    assert!(!guest.irq(), "a priority equal to the mask is masked");
    guest.cpu_write(GICC_PMR, 0xf0);
    assert!(guest.irq());
    guest.dist_write(0, 0);
    assert!(!guest.irq(), "distributor off");
    assert_eq!(guest.dist_read(0x204), 1 << (SPI % 32), "but it is still pending");
}

#[test]
fn private_targets_are_fixed() {
    let guest = Guest::new();
    guest.dist_write(0x800, 0);
    assert_eq!(guest.dist_read(0x800), 0x0101_0101);
    guest.enable(TIMER);
    guest.gic.set_level(TIMER, true);
    assert_eq!(guest.ack(), TIMER);
}

#[test]
fn sgi_by_target_list_and_to_self() {
    let guest = Guest::new();
    guest.dist_write(GICD_SGIR, 1 << 16 | 3);
    assert_eq!(guest.ack(), 3);
    guest.eoi(3);
    guest.dist_write(GICD_SGIR, 2 << 24 | 5);
    assert_eq!(guest.ack(), 5);
    guest.eoi(5);
    guest.dist_write(GICD_SGIR, 1 << 24 | 6);
    assert_eq!(guest.ack(), SPURIOUS, "there is no other CPU");
    guest.dist_write(0xf20, 1 << 8);
    assert_eq!(guest.dist_read(0xf10), 1 << 8);
    assert_eq!(guest.ack(), 1);
}

#[test]
fn higher_priority_goes_first_and_preempts() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.enable(SPI + 1);
    guest.set_priority(SPI + 1, 0x40);
    guest.gic.set_level(SPI, true);
    assert_eq!(guest.ack(), SPI);
    assert_eq!(guest.cpu_read(GICC_RPR), 0xa0);
    guest.gic.set_level(SPI + 1, true);
    assert!(guest.irq(), "0x40 preempts 0xa0");
    assert_eq!(guest.ack(), SPI + 1);
    assert_eq!(guest.cpu_read(GICC_RPR), 0x40);
    guest.gic.set_level(SPI + 1, false);
    guest.eoi(SPI + 1);
    assert_eq!(guest.cpu_read(GICC_RPR), 0xa0);
    guest.gic.set_level(SPI, false);
    guest.eoi(SPI);
    assert_eq!(guest.cpu_read(GICC_RPR), 0xff);
}

#[test]
fn equal_priority_does_not_preempt_and_lower_number_wins() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.enable(SPI + 1);
    guest.gic.set_level(SPI + 1, true);
    guest.gic.set_level(SPI, true);
    assert_eq!(guest.ack(), SPI);
    assert!(!guest.irq());
    assert_eq!(guest.ack(), SPURIOUS);
    assert_eq!(guest.cpu_read(GICC_HPPIR), SPI + 1);
}

#[test]
fn binary_point_joins_priorities_into_one_group() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.enable(SPI + 1);
    guest.cpu_write(GICC_BPR, 5);
    guest.set_priority(SPI, 0x9f);
    guest.set_priority(SPI + 1, 0x90);
    guest.gic.set_level(SPI, true);
    assert_eq!(guest.ack(), SPI);
    guest.gic.set_level(SPI + 1, true);
    assert!(!guest.irq(), "same group priority");
}

#[test]
fn priority_drop_and_deactivation_are_split_in_eoi_mode() {
    let guest = Guest::new();
    guest.cpu_write(GICC_CTLR, 1 | CTLR_EOI_MODE);
    guest.enable(SPI);
    guest.enable(SPI + 1);
    guest.gic.set_level(SPI, true);
    guest.gic.set_level(SPI + 1, true);
    assert_eq!(guest.ack(), SPI);
    guest.eoi(SPI);
    assert_eq!(guest.dist_read(0x304), 1 << (SPI % 32), "still active");
    assert_eq!(guest.ack(), SPI + 1, "but others may come");
    guest.eoi(SPI + 1);
    guest.cpu_write(GICC_DIR, SPI);
    assert_eq!(guest.dist_read(0x304), 1 << ((SPI + 1) % 32));
    assert_eq!(guest.ack(), SPI);
}

#[test]
fn group1_is_acknowledged_through_its_own_view() {
    let guest = Guest::new();
    guest.dist_write(0, 3);
    guest.cpu_write(GICC_CTLR, 3);
    guest.enable(SPI);
    guest.dist_write(0x084, 1 << (SPI % 32));
    guest.gic.set_level(SPI, true);
    assert_eq!(guest.ack(), WRONG_GROUP);
    assert_eq!(guest.cpu_read(GICC_AIAR), SPI);
    guest.cpu_write(GICC_AEOIR, SPI);
    guest.cpu_write(GICC_CTLR, 3 | CTLR_ACK_GROUP1);
    assert_eq!(guest.ack(), SPI);
}

#[test]
fn software_sets_and_clears_pending() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.dist_write(0x204, 1 << (SPI % 32));
    assert!(guest.irq());
    guest.dist_write(0x284, 1 << (SPI % 32));
    assert!(!guest.irq());
    guest.dist_write(0x204, 1 << (SPI % 32));
    assert_eq!(guest.ack(), SPI);
    guest.eoi(SPI);
    assert!(!guest.irq(), "a level interrupt made pending by software is taken once");
}

#[test]
fn odd_accesses_are_harmless() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.gic.set_level(SPI, true);
    let mut byte = [7];
    guest.gic.cpu_interface().read(GICC_IAR, &mut byte);
    assert_eq!(byte, [0]);
    assert!(guest.irq(), "a byte read of IAR acknowledges nothing");
    let mut eight = [7; 8];
    guest.gic.distributor().read(0x3, &mut eight);
    guest.gic.distributor().write(0x1, &[1; 8]);
    guest.gic.distributor().write(0xfffc, &[1; 4]);
    guest.eoi(1019);
    guest.eoi(SPURIOUS);
    assert_eq!(guest.ack(), SPI);
    for offset in (0..0x1_0000).step_by(4) {
        guest.dist_read(offset);
        guest.dist_write(offset, 0xffff_ffff);
        guest.cpu_read(offset);
        guest.cpu_write(offset, 0xffff_ffff);
    }
}

#[test]
fn saved_state_restores_pending_work() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.gic.set_level(SPI, true);
    let json = serde_json::to_string(&guest.gic.save()).unwrap();
    let other = Guest::new();
    assert!(!other.irq());
    other.gic.restore(serde_json::from_str(&json).unwrap());
    assert!(other.irq());
    assert_eq!(other.ack(), SPI);
}

#[test]
fn lines_out_of_range_are_ignored() {
    let guest = Guest::new();
    guest.gic.set_level(3, true);
    guest.gic.set_level(INTID_COUNT, true);
    guest.gic.set_level(u32::MAX, true);
    assert!(!guest.irq());
}

#[test]
fn a_damaged_state_is_taken_as_if_a_guest_had_written_it() {
    let guest = Guest::new();
    guest.enable(SPI);
    guest.gic.set_level(SPI, true);
    let json = serde_json::to_string(&guest.gic.save()).unwrap();
    let json = json.replacen("\"binary_point\":0", "\"binary_point\":255", 1).replacen("\"aliased_binary_point\":1", "\"aliased_binary_point\":0", 1);
    let other = Guest::new();
    other.gic.restore(serde_json::from_str(&json).unwrap());
    assert_eq!((other.cpu_read(GICC_BPR), other.cpu_read(GICC_ABPR)), (7, 1));
}
