//! The CMOS clock (MC146818): what time it is when the guest boots.
//!
//! Left out: alarm and periodic interrupts, whose line is not wired, and all memory but the century.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::clock::WallClock;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Divider on, 1024 Hz; never an update in progress.
const A_VALUE: u8 = 0x26;
/// 24 hours, BCD.
const B_VALUE: u8 = 0x02;
const B_SET: u8 = 1 << 7;
/// The battery is good.
const D_VALUE: u8 = 0x80;
const SECONDS_PER_DAY: i64 = 86_400;

/// Second, minute, hour, weekday (1 is Sunday), day, month, year of the century, century: in BCD.
type Fields = [u8; 8];
const REGISTERS: Fields = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY];

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    index: u8,
    /// Guest time minus host time in seconds: what the guest set its clock to.
    offset: i64,
    /// The clock's fields, while the guest holds it to set it.
    held: Option<Fields>,
}

/// The device; give it to the bus of ports.
pub struct Cmos {
    clock: Arc<dyn WallClock>,
    state: CmosState,
}

impl Cmos {
    pub fn new(clock: Arc<dyn WallClock>) -> Self {
        Self { clock, state: CmosState::default() }
    }

    pub fn save(&self) -> CmosState {
        self.state.clone()
    }

    pub fn restore(&mut self, state: CmosState) {
        self.state = state;
    }

    fn host_seconds(&self) -> i64 {
        i64::try_from(self.clock.unix_seconds()).unwrap_or(i64::MAX / 2)
    }

    fn fields(&self) -> Fields {
        self.state.held.unwrap_or_else(|| to_fields(self.host_seconds().saturating_add(self.state.offset)))
    }

    fn set(&mut self, value: u8) {
        match (self.state.index, &mut self.state.held) {
            (REGISTER_B, None) if value & B_SET != 0 => self.state.held = Some(self.fields()),
            (REGISTER_B, Some(fields)) if value & B_SET == 0 => {
                let seconds = from_fields(fields);
                self.state.held = None;
                if let Some(seconds) = seconds {
                    self.state.offset = seconds.saturating_sub(self.host_seconds());
                }
            }
            (index, Some(fields)) => {
                if let Some(field) = REGISTERS.iter().position(|register| *register == index) {
                    fields[field] = value;
                }
            }
            _ => {}
        }
    }
}

impl MmioDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        *byte = match (offset, self.state.index) {
            (0, index) => index,
            (_, REGISTER_A) => A_VALUE,
            (_, REGISTER_B) => B_VALUE | if self.state.held.is_some() { B_SET } else { 0 },
            (_, REGISTER_D) => D_VALUE,
            (_, index) => REGISTERS.iter().position(|register| *register == index).map_or(0, |field| self.fields()[field]),
        };
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Bit 7 masks the NMI, of which there is none.
            (0, [index]) => self.state.index = index & 0x7f,
            (_, [value]) => self.set(*value),
            _ => {}
        }
    }
}

fn bcd(number: i64) -> u8 {
    (number / 10 * 16 + number % 10) as u8
}

fn from_bcd(byte: u8) -> i64 {
    i64::from(byte >> 4) * 10 + i64::from(byte & 15)
}

/// Proleptic Gregorian date of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn to_fields(seconds: i64) -> Fields {
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let weekday = (days + 4).rem_euclid(7) + 1;
    let numbers = [second % 60, second / 60 % 60, second / 3600, weekday, day, month, year.rem_euclid(100), year.div_euclid(100).rem_euclid(100)];
    numbers.map(bcd)
}

/// Seconds since 1970, unless the fields are no date.
fn from_fields(fields: &Fields) -> Option<i64> {
    let [second, minute, hour, _, day, month, year, century] = fields.map(from_bcd);
    let valid = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    if !valid {
        return None;
    }
    let year = century * 100 + year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second)
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

    fn read(cmos: &mut Cmos, register: u8) -> u8 {
        let mut data = [0];
        cmos.write(0, &[register]);
        cmos.read(1, &mut data);
        data[0]
    }

    fn write(cmos: &mut Cmos, register: u8, value: u8) {
        cmos.write(0, &[register]);
        cmos.write(1, &[value]);
    }

    #[test]
    fn shows_wall_time_in_bcd() {
        let clock = Arc::new(FakeClock::default());
        // Thursday, 29 February 2024, 23:59:58.
        clock.0.store(1_709_251_198, Ordering::SeqCst);
        let mut cmos = Cmos::new(clock);
        assert_eq!(REGISTERS.map(|register| read(&mut cmos, register)), [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    }

    #[test]
    fn keeps_what_the_guest_sets() {
        let clock = Arc::new(FakeClock::default());
        clock.0.store(1_700_000_000, Ordering::SeqCst);
        let mut cmos = Cmos::new(clock.clone());
        write(&mut cmos, REGISTER_B, B_SET | B_VALUE);
        for (register, value) in REGISTERS.into_iter().zip([0x01, 0x02, 0x03, 0x01, 0x31, 0x12, 0x99, 0x19]) {
            write(&mut cmos, register, value);
        }
        write(&mut cmos, REGISTER_B, B_VALUE);
        clock.0.store(1_700_000_060, Ordering::SeqCst);
        assert_eq!((read(&mut cmos, 0x02), read(&mut cmos, 0x09), read(&mut cmos, CENTURY)), (0x03, 0x99, 0x19));
        let mut other = Cmos::new(clock);
        other.restore(cmos.save());
        assert_eq!(read(&mut other, 0x02), 0x03);
    }

    #[test]
    fn dates_convert_both_ways_and_nonsense_is_ignored() {
        for day in (0..60_000).step_by(7) {
            let seconds = day * SECONDS_PER_DAY + 12_345;
            assert_eq!(from_fields(&to_fields(seconds)), Some(seconds));
        }
        let mut cmos = Cmos::new(Arc::new(FakeClock::default()));
        write(&mut cmos, REGISTER_B, B_SET);
        write(&mut cmos, 0x08, 0xff);
        write(&mut cmos, REGISTER_B, 0);
        assert_eq!(cmos.save().offset, 0);
    }
}
