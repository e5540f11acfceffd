//! The pair of Intel 8259A interrupt controllers, the second behind input 2 of the first.
//!
//! Left out: polling, special mask and special fully nested mode, buffered mode, and priority rotation, none of which an
//! x86-64 kernel uses.

use serde::{Deserialize, Serialize};

/// Input of the first controller to which the second's output goes.
const CASCADE: u8 = 2;
/// What a controller answers when its interrupt has gone before it was acknowledged.
const SPURIOUS: u8 = 7;

const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW4_AUTO_EOI: u8 = 1 << 1;
const OCW3: u8 = 1 << 3;
const OCW2_EOI: u8 = 1 << 5;
const OCW2_SPECIFIC: u8 = 1 << 6;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PicPair {
    first: Pic,
    second: Pic,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pic {
    lines: u8,
    requested: u8,
    in_service: u8,
    masked: u8,
    /// ELCR: inputs that are level-triggered.
    level: u8,
    vector_base: u8,
    auto_eoi: bool,
    read_in_service: bool,
    setup: Setup,
}

impl Default for Pic {
    /// As firmware leaves it: everything is masked.
    fn default() -> Self {
        Self {
            lines: 0,
            requested: 0,
            in_service: 0,
            masked: 0xff,
            level: 0,
            vector_base: 0,
            auto_eoi: false,
            read_in_service: false,
            setup: Setup::Done,
        }
    }
}

/// Which initialisation word comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Setup {
    #[default]
    Done,
    Icw2 { needs_icw4: bool },
    Icw3 { needs_icw4: bool },
    Icw4,
}

impl PicPair {
    /// Sets input `line`, 0 to 15.
    pub(super) fn set_line(&mut self, line: u8, asserted: bool) {
        if line < 8 { self.first.set_line(line, asserted) } else { self.second.set_line(line - 8, asserted) }
        self.cascade();
    }

    /// The output, to the CPU.
    pub(super) fn output(&self) -> bool {
        self.first.best().is_some()
    }

    /// The CPU takes the interrupt: its vector.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.acknowledge() {
            CASCADE => {
                let line = self.second.acknowledge();
                self.second.vector_base | line
            }
            line => self.first.vector_base | line,
        };
        self.cascade();
        vector
    }

    /// Reads port `0x20`, `0x21`, `0xa0` or `0xa1`.
    pub(super) fn read(&self, port: u64) -> u8 {
        let pic = if port & 0x80 == 0 { &self.first } else { &self.second };
        match (port & 1, pic.read_in_service) {
            (1, _) => pic.masked,
            (_, true) => pic.in_service,
            (_, false) => pic.requested,
        }
    }

    pub(super) fn write(&mut self, port: u64, value: u8) {
        let pic = if port & 0x80 == 0 { &mut self.first } else { &mut self.second };
        if port & 1 == 0 { pic.command(value) } else { pic.data(value) }
        self.cascade();
    }

    /// Edge or level control, ports `0x4d0` and `0x4d1`.
    pub(super) fn level_mask(&mut self, second: bool) -> &mut u8 {
        if second { &mut self.second.level } else { &mut self.first.level }
    }

    fn cascade(&mut self) {
        self.first.set_line(CASCADE, self.second.best().is_some());
    }
}

impl Pic {
    fn set_line(&mut self, line: u8, asserted: bool) {
        let bit = 1 << line;
        if !asserted {
            self.lines &= !bit;
            // An edge that has gone before it was acknowledged is no request any more either.
            self.requested &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.requested |= bit;
        }
    }

    /// The input that is to be served now.
    fn best(&self) -> Option<u8> {
        let line = (self.requested & !self.masked).trailing_zeros() as u8;
        let serving = self.in_service.trailing_zeros() as u8;
        (line < serving.min(8)).then_some(line)
    }

    fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.best() else { return SPURIOUS };
        let bit = 1 << line;
        if self.level & bit == 0 && line != CASCADE {
            self.requested &= !bit;
        }
        if !self.auto_eoi {
            self.in_service |= bit;
        }
        line
    }

    fn command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            // Inputs keep their levels; a high one counts as an edge only when it rises again.
            *self = Self { lines: self.lines, level: self.level, masked: 0, ..Self::default() };
            self.setup = Setup::Icw2 { needs_icw4: value & ICW1_NEEDS_ICW4 != 0 };
        } else if value & OCW3 != 0 {
            if value & 2 != 0 {
                self.read_in_service = value & 1 != 0;
            }
        } else if value & OCW2_EOI != 0 {
            let bit = if value & OCW2_SPECIFIC != 0 { 1 << (value & 7) } else { self.in_service & self.in_service.wrapping_neg() };
            self.in_service &= !bit;
            self.requested |= self.lines & self.level & bit;
        }
    }

    fn data(&mut self, value: u8) {
        self.setup = match self.setup {
            Setup::Done => {
                self.masked = value;
                Setup::Done
            }
            Setup::Icw2 { needs_icw4 } => {
                self.vector_base = value & 0xf8;
                Setup::Icw3 { needs_icw4 }
            }
            Setup::Icw3 { needs_icw4: true } => Setup::Icw4,
            Setup::Icw3 { needs_icw4: false } => Setup::Done,
            Setup::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                Setup::Done
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux sets it up: vectors 0x30 to 0x3f, explicit end of interrupt.
    fn pair() -> PicPair {
        let mut pair = PicPair::default();
        for (port, base) in [(0x20, 0x30), (0xa0, 0x38)] {
            pair.write(port, 0x11);
            pair.write(port + 1, base);
            pair.write(port + 1, if base == 0x30 { 4 } else { 2 });
            pair.write(port + 1, 1);
        }
        pair
    }

    #[test]
    fn serves_by_priority_and_through_the_cascade() {
        let mut pair = pair();
        pair.set_line(4, true);
        pair.set_line(9, true);
        assert!(pair.output());
        assert_eq!(pair.acknowledge(), 0x39, "the cascade is input 2");
        assert!(!pair.output(), "4 waits while 2 is in service");
        pair.write(0xa0, 0x20);
        pair.write(0x20, 0x20);
        assert_eq!(pair.acknowledge(), 0x34);
        pair.write(0x20, 0x64);
        assert!(!pair.output(), "edges are served once");
    }

    #[test]
    fn masks_and_spurious_interrupts() {
        let mut pair = pair();
        pair.write(0x21, 0x10);
        assert_eq!(pair.read(0x21), 0x10);
        pair.set_line(4, true);
        assert!(!pair.output());
        assert_eq!(pair.read(0x20), 0x10, "requested all the same");
        assert_eq!(pair.acknowledge(), 0x37);
        pair.write(0x21, 0);
        assert!(pair.output());
        pair.set_line(4, false);
        assert!(!pair.output());
    }

    #[test]
    fn a_level_asks_again_until_it_falls() {
        let mut pair = pair();
        *pair.level_mask(false) = 1 << 5;
        pair.set_line(5, true);
        assert_eq!(pair.acknowledge(), 0x35);
        pair.write(0x20, 0x20);
        assert_eq!(pair.acknowledge(), 0x35);
        pair.set_line(5, false);
        pair.write(0x20, 0x20);
        assert!(!pair.output());
    }
}
