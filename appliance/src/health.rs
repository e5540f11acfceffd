//! Whether what phones send can be kept. A full disk stops every phone at once, so it is told where everybody looks: in the trace
//! when it begins and ends, and in the appliance's status while it lasts.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use flash::FlashError;
use store::{Store, StoreError};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// How often the watch looks at the disk: soon enough for people.
const LOOK: Duration = Duration::from_secs(5);

/// Cloning shares it.
#[derive(Clone)]
pub struct Health {
    store: Store,
}

impl Health {
    pub fn new(store: &Store) -> Health {
        Health { store: store.clone() }
    }

    /// Why nothing is accepted from phones, if so. Blocks on the file system for a moment.
    pub fn trouble(&self) -> Option<String> {
        self.store.check_writable().err().map(|error| match error {
            StoreError::DiskFull { .. } => format!("{error}; free some space, and phones go on by themselves"),
            StoreError::Failed(_) => format!("{error}; restart the appliance"),
            _ => error.to_string(),
        })
    }

    /// Tells the trace when trouble begins and when it ends, until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        let mut was_well = true;
        loop {
            let this = self.clone();
            if let Ok(trouble) = tokio::task::spawn_blocking(move || this.trouble()).await {
                match &trouble {
                    Some(trouble) if was_well => error!(trouble, "nothing is accepted from phones"),
                    None if !was_well => info!("phones are heard again"),
                    _ => {}
                }
                was_well = trouble.is_none();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// Whether an error comes of a disk that has no room: then the same may work later.
pub fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        let stored = match error.downcast_ref::<FlashError>() {
            Some(FlashError::Store(stored)) => Some(stored),
            _ => error.downcast_ref::<StoreError>(),
        };
        let file = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(stored, Some(StoreError::DiskFull { .. }))
            || matches!(file, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flashes::FlashesError;
    use crate::records::RecordError;

    fn full() -> StoreError {
        StoreError::DiskFull { dir: "/data".into(), free_bytes: 1, needed_bytes: 2 }
    }

    #[test]
    fn a_full_disk_is_seen_through_what_wraps_it() {
        let record = RecordError::Store { action: "write", bucket: "b", key: "k".into(), source: full() };
        let phone = "p".parse().expect("an id");
        let flash = FlashesError::Flash { phone, source: FlashError::Store(full()) };
        let file = io::Error::from(ErrorKind::StorageFull);
        assert!(is_disk_full(&record) && is_disk_full(&flash) && is_disk_full(&file));
        assert!(!is_disk_full(&StoreError::Failed("flush".into())) && !is_disk_full(&StoreError::ZeroSeq));
    }

    #[test]
    fn a_store_in_memory_is_well() {
        assert_eq!(Health::new(&Store::memory()).trouble(), None);
    }
}
