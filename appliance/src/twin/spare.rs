//! Spares: of each base snapshot that is in use, one machine that has begun with it and waits, paused, for a twin to need it.
//!
//! A process, its cage, and a restored machine are most of what a start costs, and nothing in them is any phone's: who the twin is, its
//! guest hears at the gate. Promises: at most one spare of a base; a twin is never worse off for one that fails; none is left when the
//! appliance stops. Spares are no running machines: they count for none, and use no processor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use image_builder::Image;
use tokio::sync::oneshot;
use tracing::warn;

use super::base::Version;
use super::launch::{self, Ready};
use super::process::{Folder, Saved};
use super::{Inner, TwinError, lock};

#[derive(Default)]
pub(super) struct Spares {
    waiting: Mutex<HashMap<Version, Ask>>,
    /// Numbers are not used again: the folder of one that ends may still be there.
    last_number: AtomicU64,
}

/// Asks a spare's task for the spare.
type Ask = oneshot::Sender<oneshot::Sender<Ready>>;

impl Spares {
    /// The spare of `base`, if there is one; waits for one that is about to be there.
    pub(super) async fn take(&self, base: &Path) -> Option<Ready> {
        let ask = lock(&self.waiting).remove(&Version::of(base)?)?;
        let (give, given) = oneshot::channel();
        ask.send(give).ok()?;
        given.await.ok()
    }
}

impl Inner {
    /// Sees to it that there is a spare of the base of `image`, if there is such a base, and no spare of any that it had before.
    pub(super) fn prepare_spare(self: &Arc<Self>, image: Image) {
        let Some(base) = self.bases.find(&image) else { return };
        let Some(version) = Version::of(&base.path) else { return };
        let (ask, asked) = oneshot::channel();
        {
            let mut waiting = lock(&self.spares.waiting);
            waiting.retain(|other, _| other.path() != base.path || *other == version);
            if waiting.contains_key(&version) {
                return;
            }
            waiting.insert(version.clone(), ask);
        }
        self.tasks.spawn(self.clone().keep_spare(image, base, version, asked));
    }

    async fn keep_spare(self: Arc<Self>, image: Image, base: Saved, version: Version, asked: oneshot::Receiver<oneshot::Sender<Ready>>) {
        // No phone's name begins with a dot.
        let path = self.runtime.join(format!(".spare-{}", self.spares.last_number.fetch_add(1, Ordering::Relaxed)));
        let config = launch::config(&image, Some(base.clone()), self.config.cage);
        let making = async { self.ready(Folder::make(&path)?, &config, false).await };
        let made = tokio::select! {
            made = making => made,
            () = self.stop.cancelled() => Err(TwinError::Stopping),
        };
        let forget = || lock(&self.spares.waiting).remove(&version);
        let mut ready = match made {
            Ok(ready) => ready,
            Err(error) => {
                if !matches!(error, TwinError::Stopping) {
                    warn!(base = %base.path.display(), %error, "no machine waits for the next twin, which takes longer to start");
                }
                forget();
                // It may not be there.
                let _ = std::fs::remove_dir_all(&path);
                return;
            }
        };
        self.bases.found_whole(&base.path);
        tokio::select! {
            taker = asked => match taker {
                // One that has gone meanwhile gives it back.
                Ok(taker) => if let Err(ready) = taker.send(ready) {
                    ready.end().await;
                },
                // Its base is no longer its image's.
                Err(_) => ready.end().await,
            },
            how = ready.ended() => {
                warn!(how, "a machine that waited for a twin ended");
                forget();
                ready.end().await;
            }
            () = self.stop.cancelled() => ready.end().await,
        }
    }
}
