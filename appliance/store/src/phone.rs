//! Name of a phone, as a key and as part of file names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest phone id.
const PHONE_ID_BYTES_MAX: usize = 64;

/// Id of a phone: 1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `.`, so that it is safe
/// in a path, a URL and a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PhoneId(String);

/// The text is not a phone id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a phone id is 1 to 64 letters, digits, '-', '_' or '.', and does not begin with '.'")]
pub struct ParsePhoneIdError;

impl PhoneId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PhoneId {
    type Error = ParsePhoneIdError;

    fn try_from(text: String) -> Result<Self, ParsePhoneIdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = (1..=PHONE_ID_BYTES_MAX).contains(&text.len());
        if fits && text.bytes().all(allowed) && !text.starts_with('.') {
            Ok(PhoneId(text))
        } else {
            Err(ParsePhoneIdError)
        }
    }
}

impl FromStr for PhoneId {
    type Err = ParsePhoneIdError;

    fn from_str(text: &str) -> Result<Self, ParsePhoneIdError> {
        text.to_owned().try_into()
    }
}

impl From<PhoneId> for String {
    fn from(id: PhoneId) -> String {
        id.0
    }
}

impl fmt::Display for PhoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PhoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
