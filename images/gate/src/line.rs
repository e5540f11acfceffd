//! What may stand in the gate's line, read before any of it has an effect.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A seed of the longest kind and four names.
pub(crate) const LINE_BYTES_MAX: usize = 2048;
/// As much as the kernel's pool holds, twice over.
pub(crate) const SEED_BYTES_MAX: usize = 64;
const HOST_BYTES_MAX: usize = 63;
const MACHINE_DIGITS: usize = 32;
const SERIAL_BYTES_MAX: usize = 128;
const HOST: &str = "hostname";

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) seed: Vec<u8>,
    /// Since 1970.
    pub(crate) time: Option<Duration>,
    /// Names of files, and what is in them.
    pub(crate) names: Vec<(&'static str, String)>,
}

impl Line {
    pub(crate) fn parse(text: &str) -> Result<Line> {
        let mut words = text.split_ascii_whitespace();
        ensure!(
            words.next() == Some("go"),
            "the gate's line does not begin with \"go\""
        );
        let mut line = Line::default();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("the gate's line has the word {word:?}"))?;
            match key {
                "seed" => line.seed = seed(value)?,
                "time" => {
                    line.time = Some(time(value).with_context(|| format!("{value:?} is no time"))?)
                }
                "host" => line.name(
                    HOST,
                    value,
                    (1..=HOST_BYTES_MAX).contains(&value.len()) && value.bytes().all(is_of_host),
                )?,
                "machine" => line.name(
                    "machine-id",
                    value,
                    value.len() == MACHINE_DIGITS && value.bytes().all(is_hex),
                )?,
                "serial" => line.name(
                    "serial",
                    value,
                    (1..=SERIAL_BYTES_MAX).contains(&value.len()),
                )?,
                "mac" => line.name(
                    "mac",
                    value,
                    value.len() == 17 && value.bytes().all(|b| b == b':' || is_hex(b)),
                )?,
                _ => {}
            }
        }
        Ok(line)
    }

    pub(crate) fn host(&self) -> Option<&str> {
        self.names
            .iter()
            .find(|(name, _)| *name == HOST)
            .map(|(_, text)| text.as_str())
    }

    fn name(&mut self, file: &'static str, value: &str, fits: bool) -> Result<()> {
        ensure!(fits, "{value:?} is no {file}");
        self.names.push((file, value.to_owned()));
        Ok(())
    }
}

fn seed(value: &str) -> Result<Vec<u8>> {
    match hex::decode(value) {
        // Without the seed in the message: whoever reads the console must not learn it.
        Ok(seed) if (1..=SEED_BYTES_MAX).contains(&seed.len()) => Ok(seed),
        _ => bail!("the seed is not 1 to {SEED_BYTES_MAX} bytes in hex"),
    }
}

/// Seconds, and up to nine digits of a fraction.
fn time(value: &str) -> Option<Duration> {
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, "0"));
    let digits = u32::try_from(fraction.len())
        .ok()
        .filter(|digits| (1..=9).contains(digits))?;
    let nanoseconds = fraction.parse::<u32>().ok()? * 10u32.pow(9 - digits);
    // The kernel's seconds are signed.
    let seconds = seconds.parse::<u32>().ok()?;
    Some(Duration::new(seconds.into(), nanoseconds))
}

fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_is_read() {
        let machine = "0123456789abcdef0123456789abcdef";
        let line = format!(
            "go seed=00ff time=1900000000.05 host=twin-1 machine={machine} serial=HS-0001 mac=02:00:00:00:00:0f later=1"
        );
        let line = Line::parse(&line).unwrap();
        assert_eq!(
            (line.seed.as_slice(), line.time),
            (
                &[0, 255][..],
                Some(Duration::new(1_900_000_000, 50_000_000))
            )
        );
        assert_eq!(line.host(), Some("twin-1"));
        let files: Vec<&str> = line.names.iter().map(|(name, _)| *name).collect();
        assert_eq!(files, ["hostname", "machine-id", "serial", "mac"]);
        assert_eq!(Line::parse("go").unwrap(), Line::default());
        assert_eq!(
            Line::parse("go time=7").unwrap().time,
            Some(Duration::from_secs(7))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, told) in [
            ("", "does not begin"),
            ("stop", "does not begin"),
            ("go fast", "\"fast\""),
            ("go seed=xy", "not 1 to 64 bytes"),
            ("go time=now", "no time"),
            ("go time=1.0000000000", "no time"),
            ("go time=-1", "no time"),
            ("go host=../etc", "no hostname"),
            ("go host=", "no hostname"),
            ("go machine=12", "no machine-id"),
            ("go mac=no", "no mac"),
        ] {
            let error = Line::parse(line).unwrap_err().to_string();
            assert!(error.contains(told), "{line:?}: {error}");
        }
        let long = format!("go seed={}", "00".repeat(SEED_BYTES_MAX + 1));
        assert!(Line::parse(&long).is_err());
    }
}
