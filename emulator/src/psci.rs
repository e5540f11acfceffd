//! Arm Power State Coordination Interface (DEN 0022) for one CPU: version, features, system off and reset.

/// Calls have bit 31 set; bit 30 chooses the 64-bit convention, which none of these needs.
const VERSION: u32 = 0x8400_0000;
const AFFINITY_INFO_32: u32 = 0x8400_0004;
const AFFINITY_INFO_64: u32 = 0xc400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;

const VERSION_1_0: u64 = 0x1_0000;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
/// No trusted OS, so nothing to migrate.
const MIGRATION_NOT_REQUIRED: u64 = 2;
const AFFINITY_ON: u64 = 0;

/// What a call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Goes back to the caller with this in `x0`.
    Return(u64),
    SystemOff,
    SystemReset,
}

/// Decodes a call by its `x0` and `x1`.
pub(crate) fn decode(function: u64, argument: u64) -> Call {
    match function as u32 {
        VERSION => Call::Return(VERSION_1_0),
        FEATURES => match argument as u32 {
            VERSION | AFFINITY_INFO_32 | AFFINITY_INFO_64 | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET | FEATURES => Call::Return(0),
            _ => Call::Return(NOT_SUPPORTED as u64),
        },
        MIGRATE_INFO_TYPE => Call::Return(MIGRATION_NOT_REQUIRED),
        AFFINITY_INFO_32 | AFFINITY_INFO_64 if argument == 0 => Call::Return(AFFINITY_ON),
        AFFINITY_INFO_32 | AFFINITY_INFO_64 => Call::Return(INVALID_PARAMETERS as u64),
        SYSTEM_OFF => Call::SystemOff,
        SYSTEM_RESET => Call::SystemReset,
        _ => Call::Return(NOT_SUPPORTED as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_calls_are_refused_and_known_ones_announced() {
        assert_eq!(decode(0xdead_beef, 0), Call::Return(u64::MAX));
        assert_eq!(decode(u64::from(FEATURES), u64::from(SYSTEM_OFF)), Call::Return(0));
        assert_eq!(decode(u64::from(FEATURES), 0x8400_0001), Call::Return(u64::MAX));
        assert_eq!(decode(0xffff_ffff_8400_0009, 0), Call::SystemReset);
    }
}
