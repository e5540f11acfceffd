//! Which paths are captured and compared: the same decision on phone and appliance, or tree hashes could not be equal.

use crate::limits::SCOPE_PATHS_MAX;
use crate::path::{PathError, PhonePath};

/// Subtrees to capture, less subtrees to leave out. Roots are sorted, without repetitions, and none is within another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    roots: Vec<PhonePath>,
    excludes: Vec<PhonePath>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    #[error("{0} roots or excludes, more than {SCOPE_PATHS_MAX}")]
    TooMany(usize),
    #[error("a root or exclude is no path")]
    Path(#[from] PathError),
}

impl Scope {
    pub fn new(
        roots: impl IntoIterator<Item = PhonePath>,
        excludes: impl IntoIterator<Item = PhonePath>,
    ) -> Result<Self, ScopeError> {
        let scope = Self {
            roots: outermost(roots),
            excludes: outermost(excludes),
        };
        match scope.roots.len().max(scope.excludes.len()) {
            count if count > SCOPE_PATHS_MAX => Err(ScopeError::TooMany(count)),
            _ => Ok(scope),
        }
    }

    /// Reads paths as they come on the wire.
    pub fn from_bytes(roots: &[Vec<u8>], excludes: &[Vec<u8>]) -> Result<Self, ScopeError> {
        let paths = |list: &[Vec<u8>]| {
            list.iter()
                .cloned()
                .map(PhonePath::new)
                .collect::<Result<Vec<_>, _>>()
        };
        Self::new(paths(roots)?, paths(excludes)?)
    }

    pub fn roots(&self) -> &[PhonePath] {
        &self.roots
    }

    pub fn excludes(&self) -> &[PhonePath] {
        &self.excludes
    }

    /// Whether `path` is captured.
    pub fn contains(&self, path: &PhonePath) -> bool {
        self.roots.iter().any(|root| path.is_within(root)) && !self.is_excluded(path)
    }

    /// Whether `path` is left out by an exclude, wherever it lies.
    pub fn is_excluded(&self, path: &PhonePath) -> bool {
        self.excludes.iter().any(|exclude| path.is_within(exclude))
    }
}

fn outermost(paths: impl IntoIterator<Item = PhonePath>) -> Vec<PhonePath> {
    let mut sorted: Vec<_> = paths.into_iter().collect();
    sorted.sort();
    let mut kept: Vec<PhonePath> = Vec::new();
    for path in sorted {
        // Sorted paths walk depth-first: what is within another follows it.
        if !kept.last().is_some_and(|outer| path.is_within(outer)) {
            kept.push(path);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_less_excludes() {
        let path = |text: &str| PhonePath::new(text).unwrap();
        let scope = Scope::new(
            [
                path("/home/user"),
                path("/home/user-b"),
                path("/home/user/x"),
                path("/etc/s"),
            ],
            [path("/home/user/.cache")],
        )
        .unwrap();
        assert_eq!(
            scope.roots(),
            [path("/etc/s"), path("/home/user"), path("/home/user-b")]
        );
        assert!(scope.contains(&path("/home/user")) && scope.contains(&path("/home/user/.cached")));
        for out in [
            "/home",
            "/home/user/.cache",
            "/home/user/.cache/a",
            "/home/username",
        ] {
            assert!(!scope.contains(&path(out)), "{out}");
        }
    }
}
