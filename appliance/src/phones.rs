//! The register of phones: which there are, what they are, and whether they may take part.
//!
//! ```text
//!            register without code            register with a good code
//!  (unknown) ────────────────────▶ Quarantined ◀─────────┐  │
//!                                     │    ▲             │  ▼
//!                             release │    │ quarantine  │ Released
//!                                     ▼    │             │
//!                                   Released ────────────┘
//! ```
//!
//! Promises: a phone's id follows from its key, so nobody else can become it; only a released phone is given a
//! certificate or let into the stream; an enrolment code works once. Leaves out: enforcement, which is in [`crate::sync`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
pub use store::PhoneId;

use crate::identity::{KeyFingerprint, UserName, readable_secret, sha256_hex};
use crate::records::{RecordError, Table};

/// Phones that wait in quarantine without anybody having let them in; beyond, new ones are refused, so that a stranger
/// with a key generator cannot fill the disk.
pub const QUARANTINED_MAX: usize = 1000;
/// Codes that are neither used nor expired.
pub const CODES_MAX: usize = 10_000;
/// Longest text a phone may say about itself.
pub const DESCRIPTION_BYTES_MAX: usize = 200;
/// Groups of four characters in an enrolment code: 60 bits.
const CODE_GROUPS: usize = 3;

/// What a phone says about itself when it registers. Nothing here is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub serial: String,
    pub model: String,
    pub os: String,
    pub os_version: String,
    pub image: String,
    pub architecture: String,
    pub agent_version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Reaches nothing but registration.
    Quarantined,
    Released,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phone {
    pub id: PhoneId,
    pub key: KeyFingerprint,
    pub description: Description,
    pub standing: Standing,
    /// Why it is in quarantine, or how it left it.
    pub reason: String,
    /// The user who released or quarantined it; `None`: nobody, a code or its own registration did.
    pub by: Option<UserName>,
    pub registered_us: u64,
    pub changed_us: u64,
    pub last_seen_us: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Code {
    /// First characters of the hash: names the code without giving it away.
    pub id: String,
    hash: String,
    pub note: String,
    pub by: UserName,
    pub created_us: u64,
    pub expires_us: u64,
    pub used: Option<CodeUse>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CodeUse {
    pub phone: PhoneId,
    pub at_us: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PhoneError {
    #[error("there is no phone {0}")]
    Unknown(String),
    #[error("several phones have the serial {0}; name one by its id")]
    Ambiguous(String),
    #[error("the enrolment code is wrong; ask an administrator for a new one")]
    CodeWrong,
    #[error("the enrolment code was used already, by another phone; ask an administrator for a new one")]
    CodeUsed,
    #[error("the enrolment code has expired; ask an administrator for a new one")]
    CodeExpired,
    #[error("there is no enrolment code {0}")]
    CodeUnknown(String),
    #[error("{CODES_MAX} enrolment codes are open; delete some first")]
    CodesFull,
    #[error("quarantine holds {QUARANTINED_MAX} phones already; release or forget some, or enrol with a code")]
    QuarantineFull,
    #[error("the phone's {field} has {bytes} bytes; at most {DESCRIPTION_BYTES_MAX} are accepted")]
    DescriptionTooLong { field: &'static str, bytes: usize },
    #[error("the phone gives no serial")]
    NoSerial,
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// What became of a registration.
#[derive(Debug)]
pub enum Admission {
    Admitted(Phone),
    Pending(Phone),
}

/// The register. Reading is from memory; changing blocks until durable.
#[derive(Clone)]
pub struct Phones {
    table: Table<Phone>,
    codes: Table<Code>,
    state: Arc<Mutex<HashMap<PhoneId, Phone>>>,
    /// Held while a change is decided and written, so that a code is not used twice.
    changing: Arc<Mutex<()>>,
}

impl Phones {
    /// Reads the register. Blocks.
    pub fn open(table: Table<Phone>, codes: Table<Code>) -> Result<Phones, PhoneError> {
        let state = table.list()?.into_iter().map(|phone| (phone.id.clone(), phone)).collect();
        Ok(Phones { table, codes, state: Arc::new(Mutex::new(state)), changing: Arc::default() })
    }

    /// Every phone, by serial.
    pub fn list(&self) -> Vec<Phone> {
        let mut phones: Vec<Phone> = self.state().values().cloned().collect();
        phones.sort_by(|a, b| (&a.description.serial, &a.id).cmp(&(&b.description.serial, &b.id)));
        phones
    }

    pub fn get(&self, id: &PhoneId) -> Option<Phone> {
        self.state().get(id).cloned()
    }

    /// The phone with this id or, failing that, with this serial. A phone that was set up anew registers again under its serial: the
    /// latest that was released counts, so that a stranger who claims the serial changes nothing.
    pub fn find(&self, id_or_serial: &str) -> Result<Phone, PhoneError> {
        let state = self.state();
        if let Some(phone) = id_or_serial.parse().ok().and_then(|id: PhoneId| state.get(&id)) {
            return Ok(phone.clone());
        }
        let by_serial = || state.values().filter(|phone| phone.description.serial == id_or_serial);
        let released = by_serial().filter(|phone| phone.standing == Standing::Released);
        if let Some(phone) = released.max_by_key(|phone| phone.registered_us) {
            return Ok(phone.clone());
        }
        match (by_serial().next(), by_serial().count()) {
            (Some(phone), 1) => Ok(phone.clone()),
            (Some(_), _) => Err(PhoneError::Ambiguous(id_or_serial.to_owned())),
            (None, _) => Err(PhoneError::Unknown(id_or_serial.to_owned())),
        }
    }

    /// A phone with the key `key` asks to be admitted. Asking again is harmless.
    pub fn register(
        &self,
        key: KeyFingerprint,
        description: Description,
        code: Option<&str>,
        now_us: u64,
    ) -> Result<Admission, PhoneError> {
        description.check()?;
        let _changing = self.changing();
        let id = id_of(&key);
        let known = self.get(&id);
        let code = code.filter(|code| !code.is_empty()).map(|code| self.usable_code(code, &id, now_us));
        let mut phone = match known {
            Some(phone) => Phone { description, last_seen_us: Some(now_us), ..phone },
            None => {
                if !matches!(code, Some(Ok(_))) && self.quarantined() >= QUARANTINED_MAX {
                    return Err(PhoneError::QuarantineFull);
                }
                Phone {
                    id: id.clone(),
                    key,
                    description,
                    standing: Standing::Quarantined,
                    reason: "registered without an enrolment code".into(),
                    by: None,
                    registered_us: now_us,
                    changed_us: now_us,
                    last_seen_us: Some(now_us),
                }
            }
        };
        if let Some(code) = code {
            let code = code?;
            // Only a phone that nobody has put back into quarantine may be let in by a code; a used one lets nobody
            // in again.
            if code.used.is_none() && phone.standing == Standing::Quarantined {
                if phone.by.is_some() {
                    return self.keep(phone).map(Admission::Pending);
                }
                phone.standing = Standing::Released;
                phone.reason = format!("enrolled with code {}", code.id);
                phone.changed_us = now_us;
                // The code first: at worst a crash in between costs a code, never admits twice.
                let used = Some(CodeUse { phone: id, at_us: now_us });
                self.codes.put(&code.hash, &Code { used, ..code.clone() })?;
            }
        }
        let phone = self.keep(phone)?;
        Ok(match phone.standing {
            Standing::Released => Admission::Admitted(phone),
            Standing::Quarantined => Admission::Pending(phone),
        })
    }

    /// Lets a phone in, or puts it back into quarantine.
    pub fn set_standing(
        &self,
        id: &PhoneId,
        standing: Standing,
        reason: &str,
        by: &UserName,
        now_us: u64,
    ) -> Result<Phone, PhoneError> {
        let _changing = self.changing();
        let phone = self.get(id).ok_or_else(|| PhoneError::Unknown(id.to_string()))?;
        self.keep(Phone {
            standing,
            reason: reason.to_owned(),
            by: Some(by.clone()),
            changed_us: now_us,
            ..phone
        })
    }

    /// Notes that the phone was heard of. Blocks.
    pub fn seen(&self, id: &PhoneId, now_us: u64) -> Result<(), PhoneError> {
        let _changing = self.changing();
        let phone = self.get(id).ok_or_else(|| PhoneError::Unknown(id.to_string()))?;
        self.keep(Phone { last_seen_us: Some(now_us), ..phone }).map(drop)
    }

    /// A new enrolment code; its text is given here and never again.
    pub fn new_code(
        &self,
        note: &str,
        lifetime_us: u64,
        by: &UserName,
        now_us: u64,
    ) -> Result<(String, Code), PhoneError> {
        let _changing = self.changing();
        let open = self.codes.list()?.iter().filter(|c| c.used.is_none() && c.expires_us > now_us).count();
        if open >= CODES_MAX {
            return Err(PhoneError::CodesFull);
        }
        let text = readable_secret(CODE_GROUPS);
        let hash = code_hash(&text);
        let code = Code {
            id: hash[..12].to_owned(),
            hash: hash.clone(),
            note: note.to_owned(),
            by: by.clone(),
            created_us: now_us,
            expires_us: now_us.saturating_add(lifetime_us),
            used: None,
        };
        self.codes.put(&hash, &code)?;
        Ok((text, code))
    }

    pub fn codes(&self) -> Result<Vec<Code>, PhoneError> {
        let mut codes = self.codes.list()?;
        codes.sort_by_key(|code| std::cmp::Reverse(code.created_us));
        Ok(codes)
    }

    pub fn delete_code(&self, id: &str) -> Result<(), PhoneError> {
        let _changing = self.changing();
        let codes = self.codes.list()?;
        let code = codes.iter().find(|code| code.id == id);
        let code = code.ok_or_else(|| PhoneError::CodeUnknown(id.to_owned()))?;
        Ok(self.codes.delete(&code.hash)?)
    }

    fn usable_code(&self, text: &str, phone: &PhoneId, now_us: u64) -> Result<Code, PhoneError> {
        let code = self.codes.get(&code_hash(text))?.ok_or(PhoneError::CodeWrong)?;
        match &code.used {
            // The same phone asks again because it did not hear our answer.
            Some(used) if used.phone == *phone => Ok(code),
            Some(_) => Err(PhoneError::CodeUsed),
            None if code.expires_us <= now_us => Err(PhoneError::CodeExpired),
            None => Ok(code),
        }
    }

    fn keep(&self, phone: Phone) -> Result<Phone, PhoneError> {
        self.table.put(phone.id.as_str(), &phone)?;
        self.state().insert(phone.id.clone(), phone.clone());
        Ok(phone)
    }

    fn quarantined(&self) -> usize {
        self.state().values().filter(|phone| phone.standing == Standing::Quarantined).count()
    }

    fn state(&self) -> MutexGuard<'_, HashMap<PhoneId, Phone>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Description {
    fn check(&self) -> Result<(), PhoneError> {
        let fields = [
            ("serial", &self.serial),
            ("model", &self.model),
            ("os", &self.os),
            ("os version", &self.os_version),
            ("image", &self.image),
            ("architecture", &self.architecture),
            ("agent version", &self.agent_version),
        ];
        match fields.iter().find(|(_, text)| text.len() > DESCRIPTION_BYTES_MAX) {
            Some((field, text)) => Err(PhoneError::DescriptionTooLong { field, bytes: text.len() }),
            None if self.serial.is_empty() => Err(PhoneError::NoSerial),
            None => Ok(()),
        }
    }
}

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn id_of(key: &KeyFingerprint) -> PhoneId {
    let text = format!("p-{}", &key.0[..16.min(key.0.len())]);
    text.parse().expect("'p-' and hexadecimal digits are a phone id")
}

/// People type codes: case and dashes do not matter.
fn code_hash(text: &str) -> String {
    let plain: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    sha256_hex(plain.to_ascii_uppercase().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phones() -> Phones {
        Phones::open(Table::in_memory("phones"), Table::in_memory("codes")).expect("opened")
    }

    fn key(n: u8) -> KeyFingerprint {
        KeyFingerprint(hex::encode([n; 32]))
    }

    fn description(serial: &str) -> Description {
        let text = String::from;
        Description {
            serial: text(serial),
            model: text("handset"),
            os: text("debian"),
            os_version: text("12"),
            image: text("handset-arm64"),
            architecture: text("arm64"),
            agent_version: text("0.1.0"),
        }
    }

    fn admin() -> UserName {
        UserName::try_from(String::from("admin")).expect("name")
    }

    #[test]
    fn a_code_lets_one_phone_in_however_often_it_asks() {
        let phones = phones();
        let (code, _) = phones.new_code("for ann", 1000, &admin(), 1).expect("code");
        let lower = code.to_lowercase().replace('-', " ");
        for _ in 0..2 {
            let admission = phones.register(key(1), description("A"), Some(&lower), 2).expect("registered");
            assert!(matches!(admission, Admission::Admitted(_)));
        }
        let second = phones.register(key(2), description("B"), Some(&code), 3);
        assert!(matches!(second, Err(PhoneError::CodeUsed)));
    }

    #[test]
    fn wrong_and_expired_codes_are_refused_and_leave_nothing() {
        let phones = phones();
        let (code, _) = phones.new_code("", 10, &admin(), 1).expect("code");
        assert!(matches!(
            phones.register(key(1), description("A"), Some(&code), 11),
            Err(PhoneError::CodeExpired)
        ));
        assert!(matches!(
            phones.register(key(1), description("A"), Some("AAAA-AAAA-AAAA"), 2),
            Err(PhoneError::CodeWrong)
        ));
        assert!(phones.list().is_empty());
    }

    #[test]
    fn a_phone_put_into_quarantine_stays_there_until_somebody_releases_it() {
        let phones = phones();
        let (code, _) = phones.new_code("", 1000, &admin(), 1).expect("code");
        let (other, _) = phones.new_code("", 1000, &admin(), 1).expect("code");
        let Admission::Admitted(phone) =
            phones.register(key(1), description("A"), Some(&code), 2).expect("registered")
        else {
            panic!("not admitted")
        };
        phones.set_standing(&phone.id, Standing::Quarantined, "lost", &admin(), 3).expect("quarantined");
        for code in [Some(code.as_str()), Some(other.as_str()), None] {
            let again = phones.register(key(1), description("A"), code, 4).expect("registered");
            assert!(matches!(again, Admission::Pending(_)), "{code:?}");
        }
        phones.set_standing(&phone.id, Standing::Released, "found", &admin(), 5).expect("released");
        assert!(matches!(
            phones.register(key(1), description("A"), None, 6),
            Ok(Admission::Admitted(_))
        ));
    }

    #[test]
    fn quarantine_is_bounded() {
        let phones = phones();
        for n in 0..QUARANTINED_MAX {
            let key = KeyFingerprint(sha256_hex(&n.to_le_bytes()));
            phones.register(key, description("S"), None, 1).expect("registered");
        }
        assert!(matches!(
            phones.register(key(7), description("S"), None, 1),
            Err(PhoneError::QuarantineFull)
        ));
        assert!(matches!(phones.find("S"), Err(PhoneError::Ambiguous(_))));
    }

    #[test]
    fn what_a_phone_says_is_bounded() {
        let long = description(&"x".repeat(DESCRIPTION_BYTES_MAX + 1));
        assert!(matches!(
            phones().register(key(1), long, None, 1),
            Err(PhoneError::DescriptionTooLong { field: "serial", .. })
        ));
        assert!(matches!(phones().register(key(1), description(""), None, 1), Err(PhoneError::NoSerial)));
    }
}
