//! When this host cannot hold all twins that run: what it is short of, and which twin to do without. Pure decisions but for the reading.

use std::time::Duration;

use store::PhoneId;

/// Memory that is left to the host and to twins that grow: a running twin has at most this much of its own.
const AVAILABLE_KIB_MIN: u64 = 512 << 10;
/// A host whose tasks waited for a processor in so much of the last minute, in percent, is short of processors (Linux,
/// accounting/psi.rst).
const CPU_WAITED_MAX: f64 = 80.0;
/// A twin that somebody used so recently is in use.
const UNUSED_MIN: Duration = Duration::from_secs(300);

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shortage {
    Memory { available_mib: u64 },
    Cpu { waited: f64 },
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Shortage::Memory { available_mib } => write!(f, "the host's memory runs short ({available_mib} MiB are left)"),
            Shortage::Cpu { waited } => write!(f, "the host's processors run short (tasks wait {waited:.0} % of the time)"),
        }
    }
}

/// What the host is short of now. What it does not tell, it is not short of.
pub(super) fn now() -> Option<Shortage> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    told(&read("/proc/meminfo"), &read("/proc/pressure/cpu"))
}

fn told(meminfo: &str, cpu_pressure: &str) -> Option<Shortage> {
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib = available.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    if let Some(kib) = available_kib.filter(|kib| *kib < AVAILABLE_KIB_MIN) {
        return Some(Shortage::Memory { available_mib: kib >> 10 });
    }
    let some = cpu_pressure.lines().find_map(|line| line.strip_prefix("some "));
    let waited = some.and_then(|some| some.split(' ').find_map(|word| word.strip_prefix("avg60="))?.parse().ok());
    waited.filter(|waited| *waited > CPU_WAITED_MAX).map(|waited| Shortage::Cpu { waited })
}

/// A twin that runs, and how it is used.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) phone: PhoneId,
    /// Somebody watches it, or drives its phone.
    pub(super) in_use: bool,
    pub(super) unused_for: Duration,
}

/// The twin to do without: the one that was not used for longest. Nobody's hands are pushed away; and unless somebody `asks` for the room,
/// a twin that was used of late is left alone too.
pub(super) fn least_used(candidates: Vec<Candidate>, asks: bool) -> Option<Candidate> {
    let may_go = |candidate: &Candidate| !candidate.in_use && (asks || candidate.unused_for >= UNUSED_MIN);
    candidates.into_iter().filter(may_go).max_by_key(|candidate| candidate.unused_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_are_read_from_what_linux_tells() {
        let meminfo = |kib: u64| format!("MemTotal:       24684084 kB\nMemFree:  100 kB\nMemAvailable:   {kib} kB\n");
        let cpu = |avg60: f64| format!("some avg10=1.00 avg60={avg60:.2} avg300=9.99 total=44\nfull avg10=99.00 avg60=99.00 avg300=0 total=0\n");
        assert_eq!(told(&meminfo(20_000_000), &cpu(12.0)), None);
        assert_eq!(told(&meminfo(400 << 10), &cpu(12.0)), Some(Shortage::Memory { available_mib: 400 }));
        assert_eq!(told(&meminfo(20_000_000), &cpu(92.22)), Some(Shortage::Cpu { waited: 92.22 }));
        assert_eq!(told("", ""), None);
        assert_eq!(told("MemAvailable: many", "some avg60=x"), None);
        assert_eq!(Shortage::Memory { available_mib: 400 }.to_string(), "the host's memory runs short (400 MiB are left)");
    }

    #[test]
    fn the_least_used_goes_and_nobody_in_use() {
        let candidate = |name: &str, in_use, minutes: u64| Candidate {
            phone: PhoneId::try_from(name.to_owned()).expect("id"),
            in_use,
            unused_for: Duration::from_secs(60 * minutes),
        };
        let all = vec![candidate("watched", true, 90), candidate("old", false, 30), candidate("new", false, 1)];
        let name = |found: Option<Candidate>| found.map(|candidate| candidate.phone.as_str().to_owned());
        assert_eq!(name(least_used(all.clone(), false)).as_deref(), Some("old"));
        assert_eq!(name(least_used(all[2..].to_vec(), false)), None);
        assert_eq!(name(least_used(all[2..].to_vec(), true)).as_deref(), Some("new"));
        assert_eq!(name(least_used(all[..1].to_vec(), true)), None);
    }
}
