//! The people who may log in, and what each may do.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};

use crate::records::{RecordError, Table};

/// Memory of one argon2id run, in KiB, with 2 passes and 1 lane: the first choice of OWASP's password storage advice.
const ARGON_MEMORY_KIB: u32 = 19 * 1024;
const PASSWORD_CHARS_MIN: usize = 10;
/// Hashing reads the whole password, so its length must end somewhere.
const PASSWORD_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 64;
/// Users of one appliance; its listing is not paged.
const USERS_MAX: usize = 10_000;

/// What a user may do. Every role sees phones; each adds its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Watches and drives twins, reads their files.
    Helpdesk,
    /// Everything, among it users, codes and quarantine.
    Admin,
    /// Mobile activity intelligence: reports.
    Mai,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Helpdesk => "helpdesk",
            Role::Admin => "admin",
            Role::Mai => "mai",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        match text {
            "helpdesk" => Ok(Role::Helpdesk),
            "admin" => Ok(Role::Admin),
            "mai" => Ok(Role::Mai),
            other => Err(format!("{other:?} is no role; roles are helpdesk, admin and mai")),
        }
    }
}

/// A login name: lower-case letters, digits, `.`, `_`, `-`; begins with a letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserName {
    type Error = UserError;

    fn try_from(text: String) -> Result<UserName, UserError> {
        let good = text.len() <= NAME_BYTES_MAX
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if good { Ok(UserName(text)) } else { Err(UserError::Name) }
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> String {
        name.0
    }
}

impl std::fmt::Display for UserName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct User {
    pub name: UserName,
    pub role: Role,
    pub created_us: u64,
    /// PHC string of argon2id.
    password: String,
    /// Changes with password and role; logins made under an older one are void.
    pub(super) generation: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("a user name has 1 to {NAME_BYTES_MAX} lower-case letters, digits, '.', '_' or '-', and begins with a letter")]
    Name,
    #[error("a password has at least {PASSWORD_CHARS_MIN} characters (and at most {PASSWORD_BYTES_MAX} bytes)")]
    Password,
    #[error("there is a user {0} already")]
    Exists(UserName),
    #[error("there is no user {0}")]
    Unknown(String),
    #[error("{0} is the only admin; make another one first")]
    LastAdmin(UserName),
    #[error("the appliance has {USERS_MAX} users already")]
    Full,
    #[error("cannot hash the password: {0}")]
    Hash(String),
    #[error(transparent)]
    Records(#[from] RecordError),
}

/// The register of users. All methods block (disk, and hashing on purpose): call them off the async workers.
#[derive(Clone)]
pub struct Users {
    table: Table<User>,
    /// One writer at a time, so that "the last admin" cannot be removed twice.
    writing: Arc<std::sync::Mutex<()>>,
}

impl Users {
    pub fn new(table: Table<User>) -> Users {
        Users { table, writing: Arc::default() }
    }

    pub fn is_empty(&self) -> Result<bool, UserError> {
        Ok(self.table.list()?.is_empty())
    }

    pub fn list(&self) -> Result<Vec<User>, UserError> {
        Ok(self.table.list()?)
    }

    pub fn get(&self, name: &UserName) -> Result<Option<User>, UserError> {
        Ok(self.table.get(name.as_str())?)
    }

    pub fn add(&self, name: UserName, role: Role, password: &str, now_us: u64) -> Result<User, UserError> {
        let password = hash(password)?;
        let _writing = self.lock();
        if self.get(&name)?.is_some() {
            return Err(UserError::Exists(name));
        }
        if self.table.list()?.len() >= USERS_MAX {
            return Err(UserError::Full);
        }
        let user = User { name, role, created_us: now_us, password, generation: now_us };
        self.table.put(user.name.as_str(), &user)?;
        Ok(user)
    }

    /// Changes role, password or both.
    pub fn change(
        &self,
        name: &UserName,
        role: Option<Role>,
        password: Option<&str>,
    ) -> Result<User, UserError> {
        let password = password.map(hash).transpose()?;
        let _writing = self.lock();
        let mut user = self.get(name)?.ok_or_else(|| UserError::Unknown(name.to_string()))?;
        if let Some(role) = role {
            if role != Role::Admin {
                self.another_admin_than(&user)?;
            }
            user.role = role;
        }
        if let Some(password) = password {
            user.password = password;
        }
        user.generation += 1;
        self.table.put(name.as_str(), &user)?;
        Ok(user)
    }

    pub fn remove(&self, name: &UserName) -> Result<(), UserError> {
        let _writing = self.lock();
        let user = self.get(name)?.ok_or_else(|| UserError::Unknown(name.to_string()))?;
        self.another_admin_than(&user)?;
        Ok(self.table.delete(name.as_str())?)
    }

    /// The user, if the password is right. Takes as long for a name that does not exist.
    pub fn verify(&self, name: &str, password: &str) -> Result<Option<User>, UserError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(None);
        }
        let user = match UserName::try_from(name.to_owned()) {
            Ok(name) => self.get(&name)?,
            Err(_) => None,
        };
        let Some(user) = user else {
            hash("the time of one hash, so that names cannot be probed")?;
            return Ok(None);
        };
        let parsed = PasswordHash::new(&user.password).map_err(|e| UserError::Hash(e.to_string()))?;
        let right = argon()?.verify_password(password.as_bytes(), &parsed).is_ok();
        Ok(right.then_some(user))
    }

    fn another_admin_than(&self, user: &User) -> Result<(), UserError> {
        let other = self.table.list()?.iter().any(|u| u.role == Role::Admin && u.name != user.name);
        if user.role == Role::Admin && !other { Err(UserError::LastAdmin(user.name.clone())) } else { Ok(()) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn hash(password: &str) -> Result<String, UserError> {
    if password.chars().count() < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(UserError::Password);
    }
    let mut salt = [0u8; 16];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut salt);
    let salt = SaltString::encode_b64(&salt).map_err(|e| UserError::Hash(e.to_string()))?;
    let hash = argon()?.hash_password(password.as_bytes(), &salt).map_err(|e| UserError::Hash(e.to_string()))?;
    Ok(hash.to_string())
}

fn argon() -> Result<Argon2<'static>, UserError> {
    let params = Params::new(ARGON_MEMORY_KIB, 2, 1, None).map_err(|e| UserError::Hash(e.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users::new(Table::in_memory("users"))
    }

    fn name(text: &str) -> UserName {
        UserName::try_from(text.to_owned()).expect("name")
    }

    #[test]
    fn the_right_password_and_no_other() {
        let users = users();
        users.add(name("ann"), Role::Helpdesk, "correct horse", 1).expect("added");
        assert!(users.verify("ann", "correct horse").expect("verify").is_some());
        assert!(users.verify("ann", "correct horsf").expect("verify").is_none());
        assert!(users.verify("bob", "correct horse").expect("verify").is_none());
        assert!(users.verify("ann", &"x".repeat(PASSWORD_BYTES_MAX + 1)).expect("verify").is_none());
    }

    #[test]
    fn the_last_admin_stays() {
        let users = users();
        users.add(name("root"), Role::Admin, "long enough", 1).expect("added");
        assert!(matches!(users.remove(&name("root")), Err(UserError::LastAdmin(_))));
        assert!(matches!(users.change(&name("root"), Some(Role::Mai), None), Err(UserError::LastAdmin(_))));
        users.add(name("two"), Role::Admin, "long enough", 1).expect("added");
        users.remove(&name("root")).expect("removed");
    }

    #[test]
    fn names_and_passwords_have_a_form() {
        for bad in ["", "Ann", "1ann", "a b", "ä", &"a".repeat(65)] {
            assert!(UserName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(matches!(users().add(name("ann"), Role::Mai, "short", 1), Err(UserError::Password)));
    }
}
