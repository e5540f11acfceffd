//! Who is who: the appliance's certificate authority, its users, and their logins.
//!
//! Promises: passwords are kept as argon2id hashes only, login tokens as SHA-256 only; a user that is removed or changes
//! role loses every login at once; guessing is slowed per user and per address. Leaves out: who may do what, which each
//! route of [`crate::http`] states by the role it asks for.

mod authority;
mod logins;
mod throttle;
mod users;

pub use authority::{Authority, AuthorityError, KeyFingerprint, Peer, PhoneRequest, ServerIdentity};
pub(crate) use authority::{sha256_hex, write_private};
pub use logins::{Login, LoginError, Logins};
pub use users::{Role, User, UserError, UserName, Users};

use rand::RngCore;

/// Letters and digits that cannot be mistaken for one another, so that people can read codes aloud.
const READABLE: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";

/// A secret of `groups` groups of four readable characters (20 bits each), such as `K7QF-2MXA`.
pub(crate) fn readable_secret(groups: usize) -> String {
    let mut random = vec![0u8; groups * 4];
    rand::rng().fill_bytes(&mut random);
    let characters: Vec<char> = random.iter().map(|b| char::from(READABLE[usize::from(b % 32)])).collect();
    characters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// 256 random bits in hex.
pub(crate) fn token() -> String {
    let mut random = [0u8; 32];
    rand::rng().fill_bytes(&mut random);
    hex::encode(random)
}
