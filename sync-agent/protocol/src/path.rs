//! Paths on a phone: bytes, absolute, with nothing in them that could lead elsewhere.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

/// An absolute path without empty, `.` or `..` components. Any bytes but NUL. Orders by components, each compared as
/// bytes: a sorted list is a depth-first walk, with siblings sorted by name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PhonePath(Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    #[error("a path has {0} bytes, more than {PATH_BYTES_MAX}")]
    TooLong(usize),
    #[error("the path \"{0}\" is not absolute")]
    NotAbsolute(String),
    #[error("the path \"{0}\" contains a NUL byte")]
    Nul(String),
    #[error("the path \"{path}\" has the component \"{component}\"")]
    Component { path: String, component: String },
}

impl PhonePath {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        let shown = || bytes.escape_ascii().to_string();
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong(bytes.len()));
        }
        let Some((b'/', rest)) = bytes.split_first() else {
            return Err(PathError::NotAbsolute(shown()));
        };
        if bytes.contains(&0) {
            return Err(PathError::Nul(shown()));
        }
        if !rest.is_empty() {
            for component in rest.split(|byte| *byte == b'/') {
                if !is_name(component) {
                    let component = component.escape_ascii().to_string();
                    return Err(PathError::Component {
                        path: shown(),
                        component,
                    });
                }
            }
        }
        Ok(Self(bytes))
    }

    pub fn root() -> Self {
        Self(b"/".to_vec())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.0.clone()
    }

    /// The names from the root down; none for `/`.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0[1..]
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
    }

    /// The last name; none for `/`.
    pub fn name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// None for `/`.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        match (slash, self.0.len()) {
            (0, 1) => None,
            (0, _) => Some(Self::root()),
            _ => Some(Self(self.0[..slash].to_vec())),
        }
    }

    /// The child called `name`; an error if it is no name or the path grows too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut bytes = self.0.clone();
        if bytes.len() > 1 {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        if !is_name(name) {
            let component = name.escape_ascii().to_string();
            return Err(PathError::Component {
                path: bytes.escape_ascii().to_string(),
                component,
            });
        }
        Self::new(bytes)
    }

    /// Whether this is `ancestor` or beneath it, by whole components.
    pub fn is_within(&self, ancestor: &PhonePath) -> bool {
        match self.0.strip_prefix(ancestor.0.as_slice()) {
            Some(rest) => rest.is_empty() || rest[0] == b'/' || ancestor.0.len() == 1,
            None => false,
        }
    }

    /// This path moved from beneath `from` to beneath `to`; none if it is not within `from`.
    pub fn moved(&self, from: &PhonePath, to: &PhonePath) -> Option<Result<Self, PathError>> {
        if !self.is_within(from) {
            return None;
        }
        let mut bytes = to.0.clone();
        for name in self.0[from.0.len()..]
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if bytes.len() > 1 {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name);
        }
        Some(Self::new(bytes))
    }
}

/// Whether `bytes` can be the name of a file.
pub fn is_name(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"." | b"..")
        && bytes.len() <= NAME_BYTES_MAX
        && !bytes.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Escapes what is not printable ASCII, so that it is safe in messages and logs.
impl fmt::Display for PhonePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for PhonePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Ord for PhonePath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for PhonePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<Path> for PhonePath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl TryFrom<&Path> for PhonePath {
    type Error = PathError;

    fn try_from(path: &Path) -> Result<Self, PathError> {
        Self::new(path.as_os_str().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PhonePath {
        PhonePath::new(text).unwrap()
    }

    #[test]
    fn strange_bytes_are_fine_but_not_paths_that_lead_elsewhere() {
        for good in [&b"/"[..], b"/a", b"/a\nb/\xff\xfe", b"/..a/.b/c..", b"/ "] {
            assert_eq!(PhonePath::new(good).unwrap().as_bytes(), good);
        }
        for bad in [
            &b""[..],
            b"a",
            b"/a/",
            b"//",
            b"/a//b",
            b"/.",
            b"/a/../b",
            b"/..",
            b"/a\0b",
            &[b'/'; 4097],
        ] {
            assert!(PhonePath::new(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(PhonePath::new(format!("/{}", "n".repeat(256))).is_err());
    }

    #[test]
    fn parts() {
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(path("/")));
        assert_eq!(path("/").parent(), None);
        assert_eq!(path("/a/b").name(), Some(&b"b"[..]));
        assert_eq!(path("/").name(), None);
        assert_eq!(path("/").join(b"a"), Ok(path("/a")));
        assert!(path("/a").join(b"..").is_err() && path("/a").join(b"b/c").is_err());
    }

    #[test]
    fn order_is_a_walk() {
        let mut paths = [
            path("/a-b"),
            path("/a/c"),
            path("/b"),
            path("/a"),
            path("/"),
        ];
        paths.sort();
        assert_eq!(
            paths,
            [
                path("/"),
                path("/a"),
                path("/a/c"),
                path("/a-b"),
                path("/b")
            ]
        );
    }

    #[test]
    fn within_goes_by_components() {
        assert!(path("/a/b").is_within(&path("/a")) && path("/a").is_within(&path("/a")));
        assert!(path("/a").is_within(&path("/")) && !path("/ab").is_within(&path("/a")));
        assert_eq!(
            path("/a/b/c").moved(&path("/a/b"), &path("/x")),
            Some(Ok(path("/x/c")))
        );
        assert_eq!(
            path("/a/b").moved(&path("/a/b"), &path("/x")),
            Some(Ok(path("/x")))
        );
        assert_eq!(path("/ab").moved(&path("/a"), &path("/x")), None);
    }
}
