use super::*;
use crate::layout::RAM_BASE;
use crate::virtio::fake_driver::{F_INDIRECT, F_NEXT, F_WRITE, FakeDriver, Part, RAM_BYTES, descriptor_bytes, reg};
use crate::virtio::rng::Rng;

fn started() -> FakeDriver<Rng> {
    FakeDriver::started(Rng::new())
}

#[test]
fn identifies_itself() {
    let mut driver = FakeDriver::new(Rng::new());
    assert_eq!(driver.read32(0), 0x7472_6976);
    assert_eq!(driver.read32(4), 2);
    assert_eq!(driver.read32(8), 4);
    assert_eq!(driver.read32(0xb0), u32::MAX, "there is no shared memory region");
    let mut odd = [9; 2];
    driver.transport.read(0, &mut odd);
    assert_eq!(odd, [0; 2], "registers answer to aligned words only");
}

#[test]
fn serves_requests_and_reports_what_it_wrote() {
    let mut driver = started();
    let data = driver.transact(0, &[Part::In(16), Part::In(16)]);
    assert_eq!(data.len(), 32);
    assert_ne!(data, [0; 32]);
    let reported: u64 = driver.reported_writes().iter().map(|w| w.1).sum();
    assert_eq!(reported, 32);
    assert_eq!(driver.late_reports(), 0);
    driver.send(0, &[Part::In(1)]);
    assert!(driver.interrupt_level());
    driver.write32(reg::INTERRUPT_ACK, 1);
    assert!(!driver.interrupt_level());
}

#[test]
fn works_without_event_index_too() {
    let mut driver = FakeDriver::new(Rng::new());
    driver.start(1 << 32);
    for _ in 0..100 {
        assert_eq!(driver.transact(0, &[Part::In(8)]).len(), 8);
    }
}

#[test]
fn refuses_features_that_were_not_offered_or_lack_version_1() {
    for features in [1 << 32 | 1 << 17, 1 << 29] {
        let mut driver = FakeDriver::new(Rng::new());
        driver.write32(reg::STATUS, 3);
        driver.accept(features);
        driver.write32(reg::STATUS, 11);
        assert_eq!(driver.read32(reg::STATUS), 3);
        driver.write32(reg::STATUS, 15);
        assert_eq!(driver.read32(reg::STATUS), 3, "no DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn refuses_queues_that_do_not_fit() {
    let good = [8, RAM_BASE, RAM_BASE + 0x1000, RAM_BASE + 0x2000];
    let end = RAM_BASE + RAM_BYTES;
    let fits_exactly = [8, end - 128, RAM_BASE, RAM_BASE + 0x1000];
    let cases = [
        (good, true),
        (fits_exactly, true),
        ([0, good[1], good[2], good[3]], false),
        ([3, good[1], good[2], good[3]], false),
        ([16, good[1], good[2], good[3]], false),
        ([0x1_0008, good[1], good[2], good[3]], false),
        ([8, good[1] + 8, good[2], good[3]], false),
        ([8, good[1], good[2] + 1, good[3]], false),
        ([8, good[1], good[2], good[3] + 2], false),
        ([8, 0, good[2], good[3]], false),
        ([8, end - 112, good[2], good[3]], false),
        ([8, good[1], u64::MAX - 1, good[3]], false),
        ([8, good[1], good[2], end - 4], false),
    ];
    for ([size, descriptors, available, used], accepted) in cases {
        let mut driver = FakeDriver::new(Rng::new());
        driver.write32(reg::STATUS, 3);
        driver.accept(1 << 32);
        driver.write32(reg::STATUS, 11);
        driver.write32(reg::QUEUE_NUM, size as u32);
        driver.write64(reg::QUEUE_DESC, descriptors);
        driver.write64(reg::QUEUE_DRIVER, available);
        driver.write64(reg::QUEUE_DEVICE, used);
        driver.write32(reg::QUEUE_READY, 1);
        assert_eq!(driver.read32(reg::QUEUE_READY) == 1, accepted, "size {size} at {descriptors:#x}");
        assert_eq!(driver.needs_reset(), !accepted);
        driver.write32(reg::STATUS, 15);
        driver.kick(0);
    }
}

/// A broken queue says so, stays silent, and works again after a reset.
fn assert_breaks(mut driver: FakeDriver<Rng>) {
    driver.kick(0);
    assert!(driver.needs_reset());
    assert_eq!(driver.read32(reg::INTERRUPT_STATUS), 2);
    assert!(driver.interrupt_level());
    assert_eq!(driver.used(0), None);
    driver.kick(0);
    driver.start(u64::MAX);
    assert!(!driver.needs_reset());
    assert_eq!(driver.transact(0, &[Part::In(8)]).len(), 8);
}

#[test]
fn malformed_chains_break_the_queue() {
    let end = RAM_BASE + RAM_BYTES;
    let cases: &[&[(u64, u32, u16, u16)]] = &[
        &[(RAM_BASE, 8, F_WRITE | F_NEXT, 0)],
        &[(RAM_BASE, 8, F_WRITE | F_NEXT, 1), (RAM_BASE, 8, F_WRITE | F_NEXT, 0)],
        &[(RAM_BASE, 8, F_WRITE | F_NEXT, 99)],
        &[(0, 8, F_WRITE, 0)],
        &[(end - 4, 8, F_WRITE, 0)],
        &[(u64::MAX - 3, 8, F_WRITE, 0)],
        &[(RAM_BASE, u32::MAX, F_WRITE, 0)],
        &[(RAM_BASE, 8, F_WRITE | F_NEXT, 1), (RAM_BASE, 8, 0, 0)],
        &[(RAM_BASE, 0, F_INDIRECT, 0)],
        &[(RAM_BASE, 17, F_INDIRECT, 0)],
        &[(end, 16, F_INDIRECT, 0)],
        &[(RAM_BASE, u32::MAX & !15, F_INDIRECT, 0)],
    ];
    for descriptors in cases {
        let mut driver = started();
        for (index, &(address, len, flags, next)) in descriptors.iter().enumerate() {
            driver.raw_descriptor(0, index as u16, address, len, flags, next);
        }
        driver.offer(0, 0);
        assert_breaks(driver);
    }
}

#[test]
fn a_chain_longer_than_4_gib_breaks_the_queue() {
    let mut driver = started();
    let table = driver.allocate(16 * 128);
    for index in 0..128 {
        let flags = F_WRITE | if index < 127 { F_NEXT } else { 0 };
        driver.write_ram(table + 16 * index, &descriptor_bytes(RAM_BASE, RAM_BYTES as u32, flags, index as u16 + 1));
    }
    driver.raw_descriptor(0, 0, table, 16 * 128, F_INDIRECT, 0);
    driver.offer(0, 0);
    assert_breaks(driver);
}

#[test]
fn too_many_descriptors_break_the_queue() {
    let mut driver = started();
    let count = 2000u64;
    let table = driver.allocate(16 * count);
    for index in 0..count {
        let flags = F_WRITE | if index + 1 < count { F_NEXT } else { 0 };
        driver.write_ram(table + 16 * index, &descriptor_bytes(RAM_BASE, 1, flags, index as u16 + 1));
    }
    driver.raw_descriptor(0, 0, table, 16 * count as u32, F_INDIRECT, 0);
    driver.offer(0, 0);
    assert_breaks(driver);
}

#[test]
fn empty_descriptors_count_as_well() {
    for (count, breaks) in [(1024, false), (1025, true), (65535, true)] {
        let mut driver = started();
        let table = driver.allocate(16 * count);
        for index in 0..count {
            let (len, next) = if index + 1 < count { (0, F_NEXT) } else { (8, 0) };
            driver.write_ram(table + 16 * index, &descriptor_bytes(RAM_BASE, len, F_WRITE | next, index as u16 + 1));
        }
        driver.raw_descriptor(0, 0, table, 16 * count as u32, F_INDIRECT, 0);
        driver.offer(0, 0);
        driver.kick(0);
        assert_eq!(driver.needs_reset(), breaks, "{count}");
    }
}

/// Counts what is logged, but for what is for developers.
struct Lines(Arc<std::sync::atomic::AtomicU32>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_guest_that_breaks_its_queues_again_and_again_does_not_fill_the_log() {
    let lines = Arc::new(std::sync::atomic::AtomicU32::new(0));
    tracing::subscriber::with_default(Lines(lines.clone()), || {
        let mut driver = started();
        for _ in 0..1000 {
            driver.offer(0, 777);
            driver.kick(0);
            assert!(driver.needs_reset());
            driver.start(u64::MAX);
        }
    });
    // And one that says that it goes on.
    assert_eq!(lines.load(std::sync::atomic::Ordering::SeqCst), crate::log_limit::BURST_LINES_MAX + 1);
}

#[test]
fn indirect_tables_within_indirect_tables_break_the_queue() {
    let mut driver = started();
    let table = driver.allocate(16);
    driver.write_ram(table, &descriptor_bytes(table, 16, F_INDIRECT, 0));
    driver.raw_descriptor(0, 0, table, 16, F_INDIRECT, 0);
    driver.offer(0, 0);
    assert_breaks(driver);
}

#[test]
fn absurd_ring_contents_break_the_queue() {
    let mut driver = started();
    driver.set_available_index(0, 5000);
    assert_breaks(driver);
    let mut driver = started();
    driver.offer(0, 777);
    assert_breaks(driver);
}

#[test]
fn no_register_write_panics() {
    for status in [0, 3, 11, 15] {
        let mut driver = started();
        for offset in (0..0x200).step_by(4) {
            for value in [0, 1, 7, 0x8000, u32::MAX] {
                if offset != reg::STATUS {
                    driver.write32(offset, value);
                }
                let _ = driver.read32(offset);
            }
            driver.write32(reg::STATUS, status);
        }
        for (offset, len) in [(0x1ff, 8), (0x100, 8), (3, 2), (0x1fc, 1), (u64::MAX, 4)] {
            driver.transport.write(offset, &vec![0xff; len]);
            driver.transport.read(offset, &mut vec![0; len]);
        }
    }
}

#[test]
fn a_saved_transport_goes_on_where_it_stood() {
    let mut driver = started();
    for _ in 0..70 {
        driver.transact(0, &[Part::In(8)]);
    }
    let head = driver.add(0, &[Part::In(4)]);
    let mut there = driver.moved_to(Rng::new());
    assert_eq!(there.wait_used(0).head, head, "what was available, but not notified, is served");
    for _ in 0..70 {
        assert_eq!(there.transact(0, &[Part::In(8)]).len(), 8);
    }
}

#[test]
fn a_driver_that_asked_for_what_there_is_not_is_restored_and_asks_again() {
    let mut driver = FakeDriver::new(Rng::new());
    driver.write32(reg::STATUS, 3);
    driver.accept(u64::MAX);
    let mut there = driver.moved_to(Rng::new());
    there.write32(reg::STATUS, 11);
    assert_eq!(there.read32(reg::STATUS), 3);
    there.start(u64::MAX);
    assert_eq!(there.transact(0, &[Part::In(8)]).len(), 8);
}

#[test]
fn damaged_state_is_refused() {
    let driver = started();
    let good = driver.transport.save();
    let json = String::from_utf8(good[4..].to_vec()).unwrap();
    let features = driver.features();
    for foreign in [format!("{}", features | 1), format!("{features},\"more\":[{{")] {
        let json = json.replacen(&format!("\"features\":{features}"), &format!("\"features\":{foreign}"), 1);
        let state = [&(json.len() as u32).to_le_bytes(), json.as_bytes()].concat();
        assert!(matches!(
            FakeDriver::new(Rng::new()).transport.restore(&state),
            Err(RestoreError::Damaged { .. })
        ));
    }
    for state in [&good[..0], &good[..3], &good[..good.len() - 1], &[0; 4], &[0xff; 64]] {
        assert!(matches!(
            FakeDriver::new(Rng::new()).transport.restore(state),
            Err(RestoreError::Damaged { .. })
        ));
    }
}
