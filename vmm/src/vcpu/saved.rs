//! The saved CPU: `"PLXCPU1\0"`, length and text of the writer's identity, the guest's clock, length of the registers,
//! registers, checksum; numbers little-endian.

use super::VcpuError;

const MAGIC: &[u8; 8] = b"PLXCPU1\0";
/// An identity is a version, a hash and a model.
const IDENTITY_BYTES_MAX: usize = 256;

/// Writes a saved CPU. `elapsed_ns` is the guest's clock.
pub fn encode(identity: &str, elapsed_ns: u64, registers: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(registers.len() + identity.len() + 40);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(identity.len() as u64).to_le_bytes());
    bytes.extend_from_slice(identity.as_bytes());
    bytes.extend_from_slice(&elapsed_ns.to_le_bytes());
    bytes.extend_from_slice(&(registers.len() as u64).to_le_bytes());
    bytes.extend_from_slice(registers);
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads a saved CPU that `identity` wrote: the guest's clock, and the registers.
pub fn decode<'a>(identity: &str, state: &'a [u8]) -> Result<(u64, &'a [u8]), VcpuError> {
    let damaged = |what: &str| VcpuError::DamagedState(what.into());
    let (body, sum) = state.split_last_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
    let mut rest = body.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as one"))?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(damaged("its checksum does not fit"));
    }
    let number = |rest: &mut &'a [u8]| -> Result<u64, VcpuError> {
        let (bytes, after) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is too short"))?;
        *rest = after;
        Ok(u64::from_le_bytes(*bytes))
    };
    let len = usize::try_from(number(&mut rest)?).ok().filter(|len| *len <= IDENTITY_BYTES_MAX.min(rest.len()));
    let (found, mut rest) = rest.split_at(len.ok_or_else(|| damaged("its writer's name is too long"))?);
    if found != identity.as_bytes() {
        return Err(VcpuError::ForeignState { found: String::from_utf8_lossy(found).into_owned(), expected: identity.into() });
    }
    let elapsed_ns = number(&mut rest)?;
    let len = number(&mut rest)?;
    if len != rest.len() as u64 {
        return Err(damaged("it has not as many registers as it says"));
    }
    Ok((elapsed_ns, rest))
}

/// FNV-1a: finds accidents, not attacks; saved machines are private files.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_and_damage_is_found() {
        let bytes = encode("engine/a53", 77, &[1, 2, 3]);
        assert_eq!(decode("engine/a53", &bytes).unwrap(), (77, &[1, 2, 3][..]));
        assert!(matches!(decode("other", &bytes), Err(VcpuError::ForeignState { .. })));
        for at in 0..bytes.len() {
            assert!(decode("engine/a53", &bytes[..at]).is_err());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode("engine/a53", &flipped).is_err(), "byte {at}");
        }
    }
}
