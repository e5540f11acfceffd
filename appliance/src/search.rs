//! Search of one phone's files, by name and by what is in them, as of any position of its log.
//!
//! A search goes on in steps, each bounded in time and in bytes read; where one ends the next goes on. So nobody waits for a
//! whole fleet, progress is told by itself, and who goes away leaves nothing running.

use std::time::{Duration, Instant};

use flash::{Flash, Listed};
use memchr::memmem;
use sync_protocol::PhonePath;

use crate::flashes::{FileKind, Flashes, FlashesError, kind_of};
use crate::phones::Phone;

/// Longest pattern and longest text: a line that a person types.
const PATTERN_BYTES_MAX: usize = 256;
/// After this one step ends.
const STEP_TIME: Duration = Duration::from_secs(2);
/// After reading so much one step ends.
const STEP_BYTES: u64 = 64 << 20;
/// Files taken from the tree at a time.
const PAGE_FILES: usize = 512;
/// Read of a file at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Larger files are not read; they are counted.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Shown of what is around a text that was found.
const EXCERPT_BYTES: usize = 80;

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("{what}: {bytes} bytes, more than {PATTERN_BYTES_MAX}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("the {0} to search for is empty")]
    Empty(&'static str),
    #[error(transparent)]
    Flash(#[from] FlashesError),
}

/// What a file must be like.
#[derive(Debug, Clone)]
pub struct Wanted {
    pattern: Pattern,
    /// Somewhere in it, byte for byte.
    contents: Option<Vec<u8>>,
    beneath: PhonePath,
}

impl Wanted {
    /// `pattern` as shells know it: `*` stands for anything, `?` for one byte. One with a slash is of whole paths, others of names.
    pub fn new(pattern: &[u8], contents: Option<Vec<u8>>, beneath: PhonePath) -> Result<Wanted, SearchError> {
        for (what, text) in [("pattern", Some(pattern)), ("text", contents.as_deref())] {
            match text.map(<[u8]>::len) {
                Some(0) => return Err(SearchError::Empty(what)),
                Some(bytes) if bytes > PATTERN_BYTES_MAX => return Err(SearchError::TooLong { what, bytes }),
                _ => {}
            }
        }
        Ok(Wanted { pattern: Pattern(pattern.to_vec()), contents, beneath })
    }
}

#[derive(Debug)]
pub struct Match {
    pub path: PhonePath,
    pub kind: FileKind,
    pub size: u64,
    pub mtime_ns: i64,
    /// What is around the first place of the text, if one was searched for.
    pub excerpt: Option<Excerpt>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Of the text, in the file.
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// What one step found.
#[derive(Debug)]
pub struct Step {
    /// Of the phone's log, which the files are of.
    pub position: u64,
    pub matches: Vec<Match>,
    /// Files whose names were compared.
    pub looked_at: u64,
    pub bytes_read: u64,
    /// Files that fit by name and were not read: too large, or damaged.
    pub unread: u64,
    /// The search goes on after this path; none: it is over.
    pub next: Option<PhonePath>,
}

/// Searches on from `after`, or from the start, for up to `max` matches. Blocks.
pub fn step(
    flashes: &Flashes,
    phone: &Phone,
    position: Option<u64>,
    wanted: &Wanted,
    after: Option<PhonePath>,
    max: usize,
) -> Result<Step, SearchError> {
    let flash = flashes.still(phone, position)?;
    let mut step =
        Step { position: flash.position(), matches: Vec::new(), looked_at: 0, bytes_read: 0, unread: 0, next: None };
    let begun = Instant::now();
    // What is beneath a directory follows it; the first step looks at it itself as well.
    let mut at = after.clone().or_else(|| before(&wanted.beneath));
    loop {
        let files = flash.files_after(at.as_ref(), PAGE_FILES);
        if files.is_empty() {
            return Ok(step);
        }
        for (path, listed) in files {
            if !path.is_within(&wanted.beneath) {
                if path > wanted.beneath {
                    return Ok(step);
                }
                at = Some(path);
                continue;
            }
            step.look(&flash, &path, listed, wanted);
            at = Some(path);
            if step.matches.len() >= max || step.bytes_read >= STEP_BYTES || begun.elapsed() >= STEP_TIME {
                step.next = at;
                return Ok(step);
            }
        }
    }
}

/// A path just before which `path` comes; none: it is the first.
fn before(path: &PhonePath) -> Option<PhonePath> {
    path.parent().filter(|parent| parent.name().is_some())
}

impl Step {
    fn look(&mut self, flash: &Flash, path: &PhonePath, listed: Listed, wanted: &Wanted) {
        self.looked_at += 1;
        if !wanted.pattern.fits(path) {
            return;
        }
        let kind = kind_of(&listed);
        let excerpt = match &wanted.contents {
            None => None,
            Some(_) if kind != FileKind::File => return,
            Some(_) if listed.size > FILE_BYTES_MAX => {
                self.unread += 1;
                return;
            }
            Some(text) => match self.find(flash, path, listed.size, text) {
                Some(excerpt) => Some(excerpt),
                None => return,
            },
        };
        let (size, mtime_ns) = (listed.size, listed.attributes.mtime_ns);
        self.matches.push(Match { path: path.clone(), kind, size, mtime_ns, excerpt });
    }

    fn find(&mut self, flash: &Flash, path: &PhonePath, size: u64, text: &[u8]) -> Option<Excerpt> {
        let finder = memmem::Finder::new(text);
        let mut offset = 0;
        while offset < size {
            // Pieces overlap, so that a text across their border is found.
            let Ok(piece) = flash.read(path, offset, PIECE_BYTES + text.len() - 1) else {
                self.unread += 1;
                return None;
            };
            self.bytes_read += piece.len() as u64;
            if let Some(at) = finder.find(&piece) {
                let begin = at.saturating_sub((EXCERPT_BYTES.saturating_sub(text.len())) / 2);
                let end = (begin + EXCERPT_BYTES.max(text.len())).min(piece.len());
                return Some(Excerpt { offset: offset + at as u64, bytes: piece[begin..end].to_vec() });
            }
            offset += PIECE_BYTES as u64;
        }
        None
    }
}

#[derive(Debug, Clone)]
struct Pattern(Vec<u8>);

impl Pattern {
    fn fits(&self, path: &PhonePath) -> bool {
        match self.0.contains(&b'/') {
            true => fits(&self.0, path.as_bytes()),
            false => path.name().is_some_and(|name| fits(&self.0, name)),
        }
    }
}

/// Whether all of `text` is as `pattern` says. Takes no longer than their lengths multiplied: of several stars only the last is tried
/// again.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut in_text) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_text));
                at += 1;
            }
            Some(b'?') => (at, in_text) = (at + 1, in_text + 1),
            Some(byte) if *byte == text[in_text] => (at, in_text) = (at + 1, in_text + 1),
            _ => match &mut star {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, in_text) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_shells_know_them() {
        for (pattern, text) in [
            ("*", ""),
            ("*.db", "records.db"),
            ("r*d*", "records.db"),
            ("record?.db", "records.db"),
            ("**s*.db**", "records.db"),
            ("*a*b*c", "xxaxbxabc"),
        ] {
            assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("?", ""), ("*.db", "records.dbx"), ("r?d", "rd"), ("a*a", "a"), ("*a*b*c", "xxaxbxab")] {
            assert!(!fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        let path = PhonePath::new("/home/user/a.db").expect("path");
        assert!(Pattern(b"a.*".to_vec()).fits(&path) && Pattern(b"/home/*".to_vec()).fits(&path));
        assert!(!Pattern(b"home".to_vec()).fits(&path) && !Pattern(b"/home".to_vec()).fits(&path));
    }

    #[test]
    fn a_pattern_made_to_take_long_does_not() {
        let pattern = b"*a".repeat(PATTERN_BYTES_MAX / 2);
        assert!(!fits(&pattern, &b"a".repeat(100)));
        assert!(fits(&pattern, &b"a".repeat(4000)));
    }

    #[test]
    fn what_is_too_long_or_empty_is_refused() {
        let wanted = |pattern: &[u8], text: Option<&[u8]>| Wanted::new(pattern, text.map(<[u8]>::to_vec), PhonePath::root());
        assert!(wanted(b"*", Some(b"x")).is_ok());
        assert!(wanted(b"", None).is_err() && wanted(b"*", Some(b"")).is_err());
        assert!(wanted(&[b'a'; PATTERN_BYTES_MAX + 1], None).is_err());
        assert!(wanted(b"*", Some(&[b'a'; PATTERN_BYTES_MAX + 1])).is_err());
    }
}
