//! Letting phones in and shutting them out again, with everything that follows from it.
//!
//! Promises: when [`Quarantine::confine`] returns, the phone's stream is being closed and its twin stopped, and nothing but a
//! registration is accepted from it; what it sent before stays.

use crate::drive::Drive;
use crate::identity::UserName;
use crate::live::{Live, Notice};
use crate::phones::{Phone, PhoneError, PhoneId, Phones, Standing, now_us};
use crate::replay::Replays;
use crate::sync::{Closing, Links};
use crate::twin::Twins;

#[derive(Clone)]
pub struct Quarantine {
    pub phones: Phones,
    pub links: Links,
    pub replays: Replays,
    pub twins: Twins,
    pub drive: Drive,
    pub live: Live,
}

impl Quarantine {
    /// Lets a phone in. Blocks.
    pub fn release(&self, phone: &PhoneId, reason: &str, by: &UserName) -> Result<Phone, PhoneError> {
        let released = self.phones.set_standing(phone, Standing::Released, &or(reason, "released"), by, now_us())?;
        self.admitted(phone);
        Ok(released)
    }

    /// Puts a phone into quarantine. Blocks.
    pub fn confine(&self, phone: &PhoneId, reason: &str, by: &UserName) -> Result<Phone, PhoneError> {
        let confined =
            self.phones.set_standing(phone, Standing::Quarantined, &or(reason, "put into quarantine"), by, now_us())?;
        // The register first: a stream that opens from now on is refused.
        self.links.close(phone, Closing::Quarantined);
        self.drive.revoke(phone);
        self.twins.stop_soon(phone);
        self.live.tell(Notice::Phone { phone: phone.clone() });
        Ok(confined)
    }

    /// A phone was let in, by an administrator or by a code: its flash begins to follow its log.
    pub fn admitted(&self, phone: &PhoneId) {
        self.replays.follow(phone);
        self.twins.start_by_itself(phone);
        self.live.tell(Notice::Phone { phone: phone.clone() });
    }
}

fn or(reason: &str, otherwise: &str) -> String {
    if reason.is_empty() { otherwise.to_owned() } else { reason.to_owned() }
}
