//! How things look in JSON: times as RFC 3339 in UTC, byte strings percent-encoded, hashes in hex.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::ApiError;

pub(super) fn time_of(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

/// From microseconds since 1970.
pub(super) fn time_of_us(us: u64) -> String {
    time_of_ns(i128::from(us) * 1000)
}

/// From nanoseconds since 1970; empty beyond the year 9999.
pub(super) fn time_of_ns(ns: i128) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(ns).ok().and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_default()
}

/// A phone's path or name for programs: every byte that is not plain ASCII text is `%XX`, so that any name, with newlines or
/// bytes that are no UTF-8, survives JSON and may be put into a `path=` parameter as it is.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The value of `name` in a raw query, percent-decoded to bytes.
pub(super) fn bytes_parameter(query: &str, name: &str) -> Result<Option<Vec<u8>>, ApiError> {
    let pair = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
    pair.map(|(_, value)| decode(value)).transpose()
}

/// A number in a raw query.
pub(super) fn number_parameter(query: &str, name: &str) -> Result<Option<u64>, ApiError> {
    let text = bytes_parameter(query, name)?;
    let number = |text: Vec<u8>| std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    text.map(|text| number(text).ok_or_else(|| ApiError::invalid(format!("{name} must be a number")))).transpose()
}

/// A time in a raw query, RFC 3339, as microseconds since 1970.
pub(super) fn time_parameter(query: &str, name: &str) -> Result<Option<i64>, ApiError> {
    let text = bytes_parameter(query, name)?;
    let time = |text: Vec<u8>| {
        let time = OffsetDateTime::parse(std::str::from_utf8(&text).ok()?, &Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos() / 1000).ok()
    };
    let wrong = || ApiError::invalid(format!("{name} must be a time like 2026-11-27T09:30:00Z"));
    text.map(|text| time(text).ok_or_else(wrong)).transpose()
}

fn decode(text: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digits = [*high, *low];
                let mut byte = [0u8];
                let digits = hex::decode_to_slice(digits, &mut byte).ok().map(|()| byte[0]);
                digits.ok_or_else(|| ApiError::invalid("a % in the query is not followed by two hexadecimal digits"))?
            }
            (b'%', _) => return Err(ApiError::invalid("the query ends within a percent-encoded byte")),
            (b'+', _) => b' ',
            (other, _) => *other,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives() {
        let all: Vec<u8> = (0..=255).collect();
        let query = format!("x=1&path={}&y=2", encode(&all));
        assert_eq!(bytes_parameter(&query, "path").expect("decoded"), Some(all));
        assert_eq!(bytes_parameter("x=1", "path").expect("decoded"), None);
        for bad in ["path=%", "path=%4", "path=%zz", "path=%+1"] {
            assert!(bytes_parameter(bad, "path").is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time_of_us(1_700_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time_of_ns(i128::MAX), "");
    }
}
