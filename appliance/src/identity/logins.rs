//! Logins: a token in a cookie or a header, good for a while, for one user.
//!
//! Logins live in memory: when the appliance restarts, people log in again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::throttle::Throttle;
use super::users::{Role, User, UserError, UserName, Users};
use super::{sha256_hex, token};

/// Logins at once; beyond, the one that expires first ends.
const LOGINS_MAX: usize = 10_000;
/// Passwords hashed at once: each takes one core and 19 MiB for tens of milliseconds.
const HASHES_AT_ONCE: usize = 2;

/// What a valid token stands for.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: UserName,
    pub role: Role,
    pub expires: std::time::SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("the user name or the password is wrong")]
    Wrong,
    #[error("too many failed attempts; try again in {} s", .0.as_secs() + 1)]
    Throttled(Duration),
    #[error(transparent)]
    Users(#[from] UserError),
    #[error("the login was interrupted")]
    Interrupted,
}

pub struct Logins {
    users: Users,
    lifetime: Duration,
    /// Who holds this token acts as an admin: for the command line on the appliance itself.
    local_token_hash: String,
    state: Mutex<State>,
    hashing: tokio::sync::Semaphore,
}

#[derive(Default)]
struct State {
    throttle: Throttle,
    by_token_hash: HashMap<String, Entry>,
}

struct Entry {
    user: UserName,
    generation: u64,
    ends: Instant,
    expires: std::time::SystemTime,
}

impl Logins {
    pub fn new(users: Users, lifetime: Duration, local_token: &str) -> Logins {
        Logins {
            users,
            lifetime,
            local_token_hash: sha256_hex(local_token.as_bytes()),
            state: Mutex::default(),
            hashing: tokio::sync::Semaphore::new(HASHES_AT_ONCE),
        }
    }

    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Checks a password; gives the new token and what it stands for.
    pub async fn log_in(
        &self,
        name: &str,
        password: &str,
        from: IpAddr,
    ) -> Result<(String, Login), LoginError> {
        let subjects = [format!("user {name}"), format!("address {from}")];
        // One attempt of a subject at a time is not enforced: the few that run at once are bounded by `hashing`.
        let waits = subjects.iter().filter_map(|s| self.state().throttle.wait(s, Instant::now())).max();
        if let Some(wait) = waits {
            return Err(LoginError::Throttled(wait));
        }
        let permit = self.hashing.acquire().await.map_err(|_| LoginError::Interrupted)?;
        let users = self.users.clone();
        let (name, password) = (name.to_owned(), password.to_owned());
        let verified = tokio::task::spawn_blocking(move || users.verify(&name, &password))
            .await
            .map_err(|_| LoginError::Interrupted)??;
        drop(permit);
        let mut state = self.state();
        match verified {
            None => {
                for subject in &subjects {
                    state.throttle.failed(subject, Instant::now());
                }
                Err(LoginError::Wrong)
            }
            Some(user) => {
                for subject in &subjects {
                    state.throttle.succeeded(subject);
                }
                Ok(state.begin(&user, self.lifetime))
            }
        }
    }

    /// What `token` stands for, if it is good. Reads the user's record.
    pub fn check(&self, token: &str) -> Result<Option<Login>, LoginError> {
        let hash = sha256_hex(token.as_bytes());
        if hash == self.local_token_hash {
            let user = UserName::try_from("local".to_owned())?;
            let expires = std::time::SystemTime::now() + self.lifetime;
            return Ok(Some(Login { user, role: Role::Admin, expires }));
        }
        let (name, generation, expires) = {
            let mut state = self.state();
            match state.by_token_hash.get(&hash) {
                None => return Ok(None),
                Some(entry) if entry.ends <= Instant::now() => {
                    state.by_token_hash.remove(&hash);
                    return Ok(None);
                }
                Some(entry) => (entry.user.clone(), entry.generation, entry.expires),
            }
        };
        match self.users.get(&name)? {
            Some(user) if user.generation == generation => {
                Ok(Some(Login { user: name, role: user.role, expires }))
            }
            _ => {
                self.state().by_token_hash.remove(&hash);
                Ok(None)
            }
        }
    }

    pub fn log_out(&self, token: &str) {
        self.state().by_token_hash.remove(&sha256_hex(token.as_bytes()));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, user: &User, lifetime: Duration) -> (String, Login) {
        let now = Instant::now();
        self.by_token_hash.retain(|_, entry| entry.ends > now);
        if self.by_token_hash.len() >= LOGINS_MAX {
            let first = self.by_token_hash.iter().min_by_key(|(_, e)| e.ends).map(|(hash, _)| hash.clone());
            if let Some(first) = first {
                self.by_token_hash.remove(&first);
            }
        }
        let token = token();
        let expires = std::time::SystemTime::now() + lifetime;
        let entry =
            Entry { user: user.name.clone(), generation: user.generation, ends: now + lifetime, expires };
        self.by_token_hash.insert(sha256_hex(token.as_bytes()), entry);
        (token, Login { user: user.name.clone(), role: user.role, expires })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Table;

    fn logins(lifetime: Duration) -> Logins {
        let users = Users::new(Table::in_memory("users"));
        let name = UserName::try_from("ann".to_owned()).expect("name");
        users.add(name, Role::Helpdesk, "correct horse", 1).expect("added");
        Logins::new(users, lifetime, "local-token")
    }

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_token_ends_with_its_time_its_logout_and_its_users_change() {
        let logins_short = logins(Duration::ZERO);
        let (token, _) = logins_short.log_in("ann", "correct horse", HOME).await.expect("login");
        assert!(logins_short.check(&token).expect("check").is_none());

        let logins = logins(Duration::from_secs(60));
        let (token, _) = logins.log_in("ann", "correct horse", HOME).await.expect("login");
        assert_eq!(logins.check(&token).expect("check").expect("valid").role, Role::Helpdesk);
        logins.log_out(&token);
        assert!(logins.check(&token).expect("check").is_none());

        let (token, login) = logins.log_in("ann", "correct horse", HOME).await.expect("login");
        logins.users().change(&login.user, Some(Role::Mai), None).expect("changed");
        assert!(logins.check(&token).expect("check").is_none());
    }

    #[tokio::test]
    async fn guessing_is_throttled_even_with_the_right_password_at_last() {
        let logins = logins(Duration::from_secs(60));
        for _ in 0..5 {
            assert!(matches!(logins.log_in("ann", "wrong password", HOME).await, Err(LoginError::Wrong)));
        }
        assert!(matches!(logins.log_in("ann", "correct horse", HOME).await, Err(LoginError::Throttled(_))));
    }

    #[tokio::test]
    async fn the_local_token_is_an_admin() {
        let logins = logins(Duration::from_secs(60));
        assert_eq!(logins.check("local-token").expect("check").expect("valid").role, Role::Admin);
        assert!(logins.check("other").expect("check").is_none());
    }
}
