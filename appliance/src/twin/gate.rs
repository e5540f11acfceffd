//! The gate: where a twin's guest waits, before it touches its flash, to be told who it is.
//!
//! Every twin passes it, whether it boots or begins with a saved machine, and each time is told a seed that nobody else is, the
//! time, and its names; the guest heeds them before it runs any other program. It goes on listening: for a new seed, for the time, and in a fork
//! for who that is.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use sha2::{Digest, Sha256};
use store::PhoneId;

/// The console port on which the guest listens.
pub(super) const PORT: &str = "org.pollux.gate";
/// What the guest's kernel mixes into its random numbers.
const SEED_BYTES: usize = 64;
/// What begins each line.
const GO: &str = "go";

/// The outer end of a guest's gate.
#[derive(Debug)]
pub struct Gate(UnixStream);

impl Gate {
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Gate> {
        // What a guest is told is a line now and then: that needs no events.
        stream.into_std().map(Gate)
    }

    /// Lets the guest pass as `identity`, its clock at `wall_us` since 1970.
    pub(super) fn open(&self, identity: &Identity, wall_us: i64) -> io::Result<()> {
        self.write(&identity.line(&rand::random(), time(wall_us)))
    }

    /// Tells a guest that goes on from where it was saved a seed that no other one is told that does so.
    pub(super) fn reseed(&self) -> io::Result<()> {
        self.write(&format!("{GO} seed={}\n", hex::encode(rand::random::<[u8; SEED_BYTES]>())))
    }

    /// Sets the guest's clock, to microseconds since 1970.
    pub fn set_time(&self, wall_us: i64) -> io::Result<()> {
        self.write(&format!("{GO} time={}\n", seconds(time(wall_us))))
    }

    /// A line is short, so that it has room whole or not at all: a guest that does not listen is told no more.
    fn write(&self, line: &str) -> io::Result<()> {
        match (&self.0).write(line.as_bytes())? {
            written if written == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn time(wall_us: i64) -> Duration {
    Duration::from_micros(u64::try_from(wall_us).unwrap_or(0))
}

/// As the guest reads it.
fn seconds(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

/// What tells one twin from all others: a function of its phone, so that a twin keeps it when it starts anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// As in `/etc/machine-id`: 32 digits in hex.
    machine_id: String,
    host_name: String,
    serial: String,
    /// Locally administered, unicast.
    mac: String,
}

impl Identity {
    pub(super) fn of(phone: &PhoneId, serial: &str) -> Identity {
        Identity::named(phone.as_str(), serial)
    }

    fn named(name: &str, serial: &str) -> Identity {
        let digest = Sha256::new().chain_update("pollux twin identity\0").chain_update(name).finalize();
        let (machine, rest) = digest.split_at(16);
        let [a, b, c, d, e, ..] = rest else { unreachable!("SHA-256 has 32 bytes") };
        // Of the serial, whose bytes are the phone's own choice, only what can stand in a line of words.
        let serial = serial.chars().filter(char::is_ascii_graphic).collect();
        Identity {
            host_name: format!("twin-{}", hex::encode(&machine[..6])),
            machine_id: hex::encode(machine),
            serial,
            mac: format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}"),
        }
    }

    /// Of a fork of that phone's twin: another machine, whose name tells what it is.
    pub(super) fn of_fork(phone: &PhoneId, number: u32) -> Identity {
        let Identity { host_name, machine_id, mac, .. } = Identity::named(&format!("{phone}\0fork {number}"), "");
        Identity { host_name: format!("fork-{number}-of-{}", host_name), serial: String::new(), machine_id, mac }
    }

    /// The line that opens the gate at `now`, since 1970.
    fn line(&self, seed: &[u8; SEED_BYTES], now: Duration) -> String {
        let Identity { machine_id, host_name, serial, mac } = self;
        let (seed, now) = (hex::encode(seed), seconds(now));
        let serial = if serial.is_empty() { String::new() } else { format!(" serial={serial}") };
        format!("{GO} seed={seed} time={now} host={host_name} machine={machine_id} mac={mac}{serial}\n")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn identity(serial: &str) -> Identity {
        Identity::of(&PhoneId::try_from(serial.to_owned()).expect("id"), serial)
    }

    #[test]
    fn a_thousand_twins_are_a_thousand_individuals() {
        let all: Vec<Identity> = (0..1000).map(|i| identity(&format!("HS-{i:04}"))).collect();
        let different = |name: fn(&Identity) -> &String| all.iter().map(name).collect::<HashSet<_>>().len();
        assert_eq!(different(|i| &i.machine_id), 1000);
        assert_eq!(different(|i| &i.host_name), 1000);
        assert_eq!(different(|i| &i.serial), 1000);
        assert_eq!(different(|i| &i.mac), 1000);
        assert_eq!(identity("HS-0007"), all[7]);
    }

    #[test]
    fn the_line_is_what_the_guest_reads() {
        let identity = Identity { serial: "S1".into(), ..identity("HS-0001") };
        let line = identity.line(&[0xab; SEED_BYTES], Duration::new(1_900_000_000, 7));
        let words: Vec<&str> = line.strip_suffix('\n').expect("a whole line").split(' ').collect();
        assert_eq!(words[..3], ["go", &format!("seed={}", "ab".repeat(SEED_BYTES)), "time=1900000000.000000007"]);
        assert_eq!(words[6], "serial=S1");
        let odd = Identity::of(&PhoneId::try_from("x".to_owned()).expect("id"), "a b\nc=ü");
        assert_eq!(odd.serial, "abc=");
        assert!(!Identity { serial: String::new(), ..odd }.line(&[0; SEED_BYTES], Duration::ZERO).contains("serial"));
    }
}
