//! What becomes of what was found, and how it is told in the log.

use std::collections::BTreeMap;

use store::PhoneId;
use sync_protocol::event::{Content, Control, ControlKind, Event, FileChange, FileOp, Kind, Node, Origin};
use sync_protocol::limits::TEXT_BYTES_MAX;
use sync_protocol::tree::{Entry, FileKind};
use sync_protocol::wire::{self, applied_change::Base};
use sync_protocol::PhonePath;

use super::{Explanation, Finding, FindingKind, ProofError, ProofsParts, Side, Verdict};
use crate::log::{LogError, PhoneLogs, describe_change};

/// How far back an event that explains a path is looked for.
const EXPLAINED_EVENTS_MAX: u64 = 100_000;
/// How far back reports of decay are looked for that nobody has acted on yet: that verification was interrupted, or only looked.
const REPORTS_EVENTS_MAX: u64 = 100_000;
/// Reports acted on in one verification.
const REPORTS_MAX: usize = 256;
/// Events of the log read at a time.
const PAGE_EVENTS: usize = 256;

pub(super) fn side(entry: &Entry) -> Side {
    let kind = match entry.kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "link",
    };
    let Entry { mode, uid, gid, size, .. } = *entry;
    Side { kind: kind.to_owned(), mode, uid, gid, size, hash: entry.content.to_string() }
}

fn control(kind: ControlKind, mut text: String, path: Option<PhonePath>, position: u64) -> Kind {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    Kind::Control(Control { kind, text, path, count: position })
}

pub(super) fn proven(verdict: &Verdict) -> Kind {
    let how = if verdict.reread { "everything was read again" } else { "by what the phone had told" };
    let text = format!("equal at position {}; {how}", verdict.position);
    control(ControlKind::Proven, text, None, verdict.position)
}

pub(super) fn diverged(finding: &Finding, path: &PhonePath) -> Kind {
    let shown = |side: &Option<Side>| side.as_ref().map_or_else(|| "nothing".to_owned(), Side::in_words);
    let text = format!("the phone has {}, the flash {}; {}", shown(&finding.phone), shown(&finding.flash), finding.outcome);
    control(ControlKind::Diverged, text, Some(path.clone()), finding.position)
}

impl Side {
    pub(crate) fn in_words(&self) -> String {
        let Side { kind, mode, uid, gid, size, hash } = self;
        let hash: String = hash.chars().take(12).collect();
        match kind.as_str() {
            "directory" => format!("a directory (mode {mode:o}, owner {uid}:{gid}, hash {hash})"),
            _ => format!("a {kind} of {size} bytes (mode {mode:o}, owner {uid}:{gid}, hash {hash})"),
        }
    }
}

/// The last event up to `position` that decided what is at `path`. Blocks.
pub(super) fn explain(
    logs: &PhoneLogs,
    phone: &PhoneId,
    path: &PhonePath,
    position: u64,
) -> Result<Option<Explanation>, LogError> {
    let decides = |event: &Event| matches!(&event.kind, Kind::File(change) if touches(change, path));
    let (found, _) = logs.search_back(phone, position, EXPLAINED_EVENTS_MAX, decides)?;
    Ok(found.and_then(|(position, event)| match &event.kind {
        Kind::File(change) => Some(Explanation {
            position,
            at_us: u64::try_from(event.wall_us).unwrap_or(0),
            by_helpdesk: event.origin == Origin::Helpdesk,
            text: describe_change(change),
        }),
        _ => None,
    }))
}

/// Whether a change decides what is at `path`.
fn touches(change: &FileChange, path: &PhonePath) -> bool {
    let around = path.is_within(&change.path);
    match &change.op {
        // A directory put on a directory keeps what is in it.
        FileOp::Put(Node { content: Content::Directory, .. }) => *path == change.path,
        FileOp::Put(_) | FileOp::Remove => around,
        FileOp::Rename { to } => around || path.is_within(to),
    }
}

/// A phone's report of its own decay, with what the log says since.
struct Decay {
    position: u64,
    seq: u64,
    text: String,
    /// The phone told what could still be read.
    told: bool,
}

/// What the phone reported between `begun` and `until` of its own files, and what is done about it: decayed ones are put back as they
/// were, also earlier ones that are as decayed as they were reported. Blocks.
pub(super) fn reports(
    parts: &ProofsParts,
    phone: &crate::phones::Phone,
    begun: u64,
    until: u64,
    heals: bool,
) -> Result<Vec<Finding>, ProofError> {
    let mut findings = Vec::new();
    let mut decays: BTreeMap<PhonePath, Decay> = BTreeMap::new();
    let mut position = begun.min(until.saturating_sub(REPORTS_EVENTS_MAX));
    while position < until {
        let events = parts.logs.read(&phone.id, position + 1, PAGE_EVENTS)?;
        let Some((last, _)) = events.last() else { break };
        position = *last;
        for (at, event) in events.into_iter().filter(|(at, _)| *at <= until) {
            take(at, event, begun, &mut decays, &mut findings);
        }
    }
    for (path, decay) in decays {
        if heals {
            findings.push(put_back(parts, phone, &path, &decay, until)?);
        } else if decay.position > begun {
            findings.push(finding(&path, decay.position, FindingKind::PhoneDecay, format!("{}; nothing is done about it", decay.text)));
        }
    }
    Ok(findings)
}

fn take(at: u64, event: Event, begun: u64, decays: &mut BTreeMap<PhonePath, Decay>, findings: &mut Vec<Finding>) {
    match event.kind {
        Kind::Control(Control { kind: ControlKind::FoundChanged, path: Some(path), .. }) if at > begun => {
            if findings.len() < REPORTS_MAX {
                let outcome = "the phone told what it is now".to_owned();
                findings.push(finding(&path, at, FindingKind::MissedEdit, outcome));
            }
        }
        Kind::Control(Control { kind: ControlKind::FoundRotten, path: Some(path), text, .. }) => {
            if decays.len() < REPORTS_MAX {
                decays.insert(path, Decay { position: at, seq: event.seq, text, told: false });
            }
        }
        Kind::Control(Control { kind: ControlKind::Healed, path: Some(path), .. }) => drop(decays.remove(&path)),
        Kind::File(change) => decays.retain(|path, decay| {
            let is_report = event.origin == Origin::Phone && event.seq == decay.seq + 1 && change.path == *path;
            decay.told |= is_report;
            is_report || !touches(&change, path)
        }),
        _ => {}
    }
}

fn finding(path: &PhonePath, position: u64, kind: FindingKind, outcome: String) -> Finding {
    Finding { path: path.to_vec(), position, kind, phone: None, flash: None, event: None, outcome }
}

/// Gives the phone the version back that it had told before the path decayed.
fn put_back(
    parts: &ProofsParts,
    phone: &crate::phones::Phone,
    path: &PhonePath,
    decay: &Decay,
    until: u64,
) -> Result<Finding, ProofError> {
    let before = parts.flashes.copy(phone, decay.position.saturating_sub(1))?;
    let now = parts.flashes.copy(phone, until)?.entry(path);
    let told = |outcome: String| finding(path, decay.position, FindingKind::PhoneDecay, format!("{}; {outcome}", decay.text));
    let Some(node) = before.node(path) else { return Ok(told("no version of before is known".to_owned())) };
    if let Some(chunk) = parts.flashes.missing_chunk(&node)? {
        return Ok(told(format!("the version of before has decayed here, too (chunk {chunk})")));
    }
    let put = FileChange { path: path.clone(), op: FileOp::Put(node) };
    let outcome = format!("the version of position {} was put back", decay.position.saturating_sub(1));
    let healed = control(ControlKind::Healed, outcome.clone(), Some(path.clone()), decay.position);
    let base = now.map_or(Base::BaseAbsent(true), |entry| Base::BaseEntry(entry.hash().to_vec()));
    let change = |change: FileChange, base| wire::AppliedChange { change: Some(change.into()), base: Some(base) };
    let (ours, changes) = if decay.told {
        (vec![healed, Kind::File(put.clone())], vec![change(put, base)])
    } else {
        // The phone takes it for what it should be, so that only what is not there is written.
        let remove = FileChange { path: path.clone(), op: FileOp::Remove };
        (vec![healed], vec![change(remove, base), change(put, Base::BaseAbsent(true))])
    };
    parts.commands.apply(&phone.id, ours, changes)?;
    Ok(told(outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PhonePath {
        PhonePath::new(text).expect("path")
    }

    fn change(at: &str, op: FileOp) -> FileChange {
        FileChange { path: path(at), op }
    }

    fn put(content: Content) -> FileOp {
        FileOp::Put(Node { mode: 0o644, uid: 0, gid: 0, mtime_ns: 0, content })
    }

    fn file() -> FileOp {
        put(Content::Regular { size: 0, chunks: Vec::new() })
    }

    #[test]
    fn what_decides_a_path_is_told_from_what_is_beside_it() {
        let at = path("/a/b/c");
        for decisive in [
            change("/a/b/c", file()),
            change("/a/b/c", put(Content::Directory)),
            change("/a", FileOp::Remove),
            change("/a/b", file()),
            change("/a/b", FileOp::Rename { to: path("/x") }),
            change("/x", FileOp::Rename { to: path("/a/b") }),
        ] {
            assert!(touches(&decisive, &at), "{decisive:?}");
        }
        for other in [
            change("/a/b", put(Content::Directory)),
            change("/a/b/c/d", file()),
            change("/a/b/cc", FileOp::Remove),
            change("/x", FileOp::Rename { to: path("/a/b/d") }),
        ] {
            assert!(!touches(&other, &at), "{other:?}");
        }
    }

    fn event(seq: u64, origin: Origin, kind: Kind) -> Event {
        Event { seq, wall_us: 0, mono_us: 0, origin, kind }
    }

    fn rotten(seq: u64) -> Event {
        event(seq, Origin::Phone, control(ControlKind::FoundRotten, "others".into(), Some(path("/f")), 0))
    }

    #[test]
    fn decay_is_due_until_it_is_healed_or_the_path_is_changed() {
        let told = event(6, Origin::Phone, Kind::File(change("/f", file())));
        let edited = event(7, Origin::Phone, Kind::File(change("/f", file())));
        let ours = event(6, Origin::Helpdesk, Kind::File(change("/f", file())));
        let healed = event(9, Origin::Helpdesk, control(ControlKind::Healed, String::new(), Some(path("/f")), 0));
        let due = |events: Vec<Event>| {
            let (mut decays, mut findings) = (BTreeMap::new(), Vec::new());
            for (at, event) in (1..).zip(events) {
                take(at, event, 0, &mut decays, &mut findings);
            }
            decays.values().next().map(|decay: &Decay| decay.told)
        };
        assert_eq!(due(vec![rotten(5)]), Some(false));
        assert_eq!(due(vec![rotten(5), told.clone()]), Some(true));
        assert_eq!(due(vec![rotten(5), told.clone(), edited]), None);
        assert_eq!(due(vec![rotten(5), ours]), None);
        assert_eq!(due(vec![rotten(5), told.clone(), healed.clone()]), None);
        assert_eq!(due(vec![rotten(5), told, healed, rotten(8)]), Some(false));
    }
}
