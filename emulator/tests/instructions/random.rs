//! Reproducible randomness, with a liking for the values at which instructions go wrong.

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// An integer, often at a border of some width.
    pub(crate) fn integer(&mut self) -> u64 {
        let near = self.of(&[0, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, 1 << 63, u64::MAX]);
        match self.below(4) {
            0 => near,
            1 => near.wrapping_add(self.below(3)).wrapping_sub(1),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    pub(crate) fn single(&mut self) -> u32 {
        // Zero, least, greatest denormal, least normal, one, two to the 31st, greatest, infinity, quiet and signalling not-a-number.
        let special = [0, 1, 0x7f_ffff, 0x80_0000, 0x3f80_0000, 0x4f00_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_1234, 0x7f81_2345];
        let value = match self.below(4) {
            0 => self.of(&special),
            1 => self.next() as u32,
            // Of ordinary size.
            _ => (self.next() as u32 & 0x7f_ffff) | (96 + self.below(64) as u32) << 23,
        };
        value ^ (self.next() as u32 & 1) << 31
    }

    pub(crate) fn double(&mut self) -> u64 {
        let special = [0, 1, (1 << 52) - 1, 1 << 52, 0x3ff << 52, 0x41e << 52, 0x43e << 52, (0x7ff << 52) - 1, 0x7ff << 52, 0x7ff8_0000_0000_1234, 0x7ff0_0000_1234_5678];
        let value = match self.below(4) {
            0 => self.of(&special),
            1 => self.next(),
            _ => (self.next() & ((1 << 52) - 1)) | (991 + self.below(64)) << 52,
        };
        value ^ (self.next() & 1) << 63
    }

    /// Sixteen bytes: integers, singles or doubles.
    pub(crate) fn vector(&mut self) -> [u8; 16] {
        let kind = self.below(3);
        let mut half = || match kind {
            0 => self.integer(),
            1 => u64::from(self.single()) | u64::from(self.single()) << 32,
            _ => self.double(),
        };
        let (low, high) = (half(), half());
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }
}
