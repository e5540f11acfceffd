//! The Intel 8254 interval timer: channel 0 interrupts, channel 2 can be read through port 0x61; channel 1 is absent.
//!
//! Counts follow guest time instead of being counted. Left out: BCD counting, and modes 1 and 5, whose trigger inputs are
//! not wired on a PC but for channel 2's gate.

use serde::{Deserialize, Serialize};

const HZ: u64 = 1_193_182;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pit {
    /// Channels 0 and 2.
    channels: [Channel; 2],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    access: u8,
    /// As written; 0 stands for 65536.
    reload: u16,
    /// When counting began, in guest time. `None`: no count was written since the mode.
    started_ns: Option<u64>,
    /// Low byte of a count of which the high one is to come.
    low: Option<u8>,
    latched: Option<u16>,
    status: Option<u8>,
    /// The next read of a two-byte count gives the high byte.
    high_next: bool,
}

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / 1_000_000_000) as u64
}

/// The first nanosecond at which `ticks` have passed.
fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(HZ)) as u64
}

impl Channel {
    fn period(&self) -> u64 {
        if self.reload == 0 { 0x1_0000 } else { u64::from(self.reload) }
    }

    /// Modes 2 and 3 begin again by themselves.
    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn passed(&self, now_ns: u64) -> Option<u64> {
        self.started_ns.map(|start| ticks(now_ns.saturating_sub(start)))
    }

    fn count(&self, now_ns: u64) -> u16 {
        let Some(passed) = self.passed(now_ns) else { return self.reload };
        let period = self.period();
        match self.mode {
            2 => (period - passed % period) as u16,
            // Counts down by two, twice a period.
            3 => (period - (passed * 2) % period) as u16 & !1,
            _ => period.wrapping_sub(passed) as u16,
        }
    }

    fn output(&self, now_ns: u64) -> bool {
        let period = self.period();
        match (self.mode, self.passed(now_ns)) {
            (0, passed) => passed.is_some_and(|passed| passed >= period),
            (_, None) => true,
            (2, Some(passed)) => passed % period != period - 1,
            (3, Some(passed)) => passed % period < period.div_ceil(2),
            (_, Some(passed)) => passed != period,
        }
    }

    /// When the output next rises, after `now_ns`.
    fn next_rise(&self, now_ns: u64) -> Option<u64> {
        let (start, period) = (self.started_ns?, self.period());
        let passed = ticks(now_ns.saturating_sub(start));
        if self.is_periodic() {
            return Some(start.saturating_add(ns((passed / period + 1) * period)));
        }
        (passed < period).then(|| start.saturating_add(ns(period)))
    }

    fn write(&mut self, value: u8, now_ns: u64) {
        let reload = match (self.access, self.low.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low = Some(value);
                return;
            }
        };
        self.reload = reload;
        self.started_ns = Some(now_ns);
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now_ns)).to_le_bytes();
        let value = match self.access {
            1 => low,
            2 => high,
            _ => {
                self.high_next = !self.high_next;
                if self.high_next {
                    return low;
                }
                high
            }
        };
        self.latched = None;
        value
    }

    fn latch_status(&mut self, now_ns: u64) {
        let unloaded = self.started_ns.is_none();
        self.status.get_or_insert(u8::from(self.output(now_ns)) << 7 | u8::from(unloaded) << 6 | self.access << 4 | self.mode << 1);
    }
}

impl Pit {
    /// Reads port 0x40, 0x41 or 0x42.
    pub(super) fn read(&mut self, port: u64, now_ns: u64) -> u8 {
        match port {
            0x40 => self.channels[0].read(now_ns),
            0x42 => self.channels[1].read(now_ns),
            _ => 0,
        }
    }

    /// Writes port 0x40 to 0x43.
    pub(super) fn write(&mut self, port: u64, value: u8, now_ns: u64) {
        match port {
            0x40 => self.channels[0].write(value, now_ns),
            0x42 => self.channels[1].write(value, now_ns),
            0x43 => self.control(value, now_ns),
            _ => {}
        }
    }

    fn control(&mut self, value: u8, now_ns: u64) {
        let access = value >> 4 & 3;
        match value >> 6 {
            3 => {
                // Read-back: bits 1 to 3 choose channels, bits 4 and 5 (low) what is latched.
                for (index, bit) in [(0, 1 << 1), (1, 1 << 3)] {
                    let channel = &mut self.channels[index];
                    if value & bit != 0 && value & 1 << 5 == 0 {
                        channel.latched.get_or_insert(channel.count(now_ns));
                    }
                    if value & bit != 0 && value & 1 << 4 == 0 {
                        channel.latch_status(now_ns);
                    }
                }
            }
            1 => {}
            number => {
                let channel = &mut self.channels[usize::from(number / 2)];
                if access == 0 {
                    channel.latched.get_or_insert(channel.count(now_ns));
                    return;
                }
                let mode = value >> 1 & 7;
                // Bit 2 of modes 2 and 3 means nothing.
                let mode = if mode > 5 { mode & 3 } else { mode };
                *channel = Channel { mode, access, ..Channel::default() };
            }
        }
    }

    /// Channel 2's output and gate are in port 0x61: a rising gate begins its count anew.
    pub(super) fn raise_gate(&mut self, now_ns: u64) {
        if let Some(started) = &mut self.channels[1].started_ns {
            *started = now_ns;
        }
    }

    pub(super) fn speaker_output(&self, now_ns: u64) -> bool {
        self.channels[1].output(now_ns)
    }

    /// When channel 0 next interrupts after `now_ns`.
    pub(super) fn next_interrupt(&self, now_ns: u64) -> Option<u64> {
        self.channels[0].next_rise(now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(pit: &mut Pit, port: u64, control: u8, count: u16, now_ns: u64) {
        pit.write(0x43, control, now_ns);
        for byte in count.to_le_bytes() {
            pit.write(port, byte, now_ns);
        }
    }

    #[test]
    fn channel_0_interrupts_periodically() {
        let mut pit = Pit::default();
        assert_eq!(pit.next_interrupt(0), None);
        program(&mut pit, 0x40, 0x34, 11932, 1_000);
        let first = pit.next_interrupt(1_000).unwrap();
        assert!((10_000_000..10_002_000).contains(&first), "{first}");
        let second = pit.next_interrupt(first).unwrap();
        assert!((20_000_000..20_003_000).contains(&second), "{second}");
        pit.write(0x43, 0, first);
        let low = pit.read(0x40, first);
        assert_eq!(u16::from_le_bytes([low, pit.read(0x40, first)]), 11932);
    }

    #[test]
    fn one_shot_fires_once() {
        let mut pit = Pit::default();
        program(&mut pit, 0x40, 0x30, 1193, 0);
        let at = pit.next_interrupt(0).unwrap();
        assert_eq!(pit.next_interrupt(at), None);
    }

    #[test]
    fn channel_2_counts_down_to_its_output() {
        let mut pit = Pit::default();
        program(&mut pit, 0x42, 0xb0, 0xffff, 0);
        pit.raise_gate(500);
        assert!(!pit.speaker_output(1_000));
        let later = 500 + ns(0x100);
        assert_eq!((pit.read(0x42, later), pit.read(0x42, later)), (0xff, 0xfe));
        assert!(pit.speaker_output(500 + ns(0xffff)));
        pit.write(0x43, 0xe8, later);
        assert_eq!(pit.read(0x42, later), 0x30, "status: output low, both bytes, mode 0");
    }
}
