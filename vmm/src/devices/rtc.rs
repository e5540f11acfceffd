//! Arm PrimeCell PL031 real-time clock: what time it is when the guest boots.
//!
//! It leaves out the alarm: its interrupt is not wired, and the device tree says so by naming none, so that Linux offers
//! no wake-up alarm. Registers as in the PL031 manual (DDI 0224C).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{put_register, register_write};
use crate::bus::MmioDevice;
use crate::clock::WallClock;

const RTCDR: u64 = 0x00;
const RTCMR: u64 = 0x04;
const RTCLR: u64 = 0x08;
const RTCCR: u64 = 0x0c;
const RTCIMSC: u64 = 0x10;
const IDS: u64 = 0xfe0;
const ID_BYTES: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Guest time minus host time, in seconds modulo 2^32: what the guest set its clock to.
    offset: u32,
    loaded: u32,
    matched: u32,
    mask: u32,
}

pub struct Rtc {
    clock: Arc<dyn WallClock>,
    state: RtcState,
}

impl Rtc {
    pub fn new(clock: Arc<dyn WallClock>) -> Self {
        Self { clock, state: RtcState::default() }
    }

    pub fn save(&self) -> RtcState {
        self.state.clone()
    }

    pub fn restore(&mut self, state: RtcState) {
        self.state = state;
    }

    /// The low 32 bits of the time of day, as the PL031 holds it.
    fn host_seconds(&self) -> u32 {
        self.clock.unix_seconds() as u32
    }
}

impl MmioDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            RTCDR => self.host_seconds().wrapping_add(self.state.offset),
            RTCMR => self.state.matched,
            RTCLR => self.state.loaded,
            RTCCR => 1,
            RTCIMSC => self.state.mask,
            at @ IDS..0x1000 => u32::from(ID_BYTES[(at - IDS) as usize / 4]),
            _ => 0,
        };
        put_register(value, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = register_write(offset, data) else { return };
        match offset {
            RTCMR => self.state.matched = value,
            RTCLR => {
                self.state.loaded = value;
                self.state.offset = value.wrapping_sub(self.host_seconds());
            }
            RTCIMSC => self.state.mask = value & 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct FakeClock(AtomicU64);

    impl WallClock for FakeClock {
        fn unix_seconds(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn read(rtc: &mut Rtc, offset: u64) -> u32 {
        let mut data = [0; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn shows_wall_time_and_keeps_what_the_guest_sets() {
        let clock = Arc::new(FakeClock::default());
        clock.0.store(1_700_000_000, Ordering::SeqCst);
        let mut rtc = Rtc::new(clock.clone());
        assert_eq!(read(&mut rtc, RTCDR), 1_700_000_000);
        rtc.write(RTCLR, &1_000u32.to_le_bytes());
        clock.0.store(1_700_000_007, Ordering::SeqCst);
        assert_eq!(read(&mut rtc, RTCDR), 1_007);
        let mut other = Rtc::new(clock);
        other.restore(rtc.save());
        assert_eq!(read(&mut other, RTCDR), 1_007);
    }

    #[test]
    fn has_primecell_ids_and_survives_odd_accesses() {
        let mut rtc = Rtc::new(Arc::new(FakeClock::default()));
        let ids: Vec<_> = (0..8).map(|i| read(&mut rtc, IDS + i * 4) as u8).collect();
        assert_eq!(ids, ID_BYTES);
        let mut eight = [1; 8];
        rtc.read(0xffd, &mut eight);
        rtc.write(RTCLR + 1, &[1; 2]);
        rtc.write(RTCLR, &[1; 8]);
        assert_eq!(rtc.save(), RtcState::default());
    }
}
