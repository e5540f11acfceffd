//! Forks: copies of twins, to try things on. The fork of a running twin has its memory and files as they were at that moment, both
//! copy-on-write. A fork at a position of the log needs no running twin: it begins with the phone's files as of then. What happens on a fork
//! stays there, and no log is given to it.
//!
//! Promises: the twin goes on; a fork counts as a running machine, and ends when it is told to, when its guest does, or with the
//! appliance; nothing of it is kept.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Mutex;

use store::PhoneId;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::gate::Identity;
use super::keeper::{Copied, Request};
use super::launch::{self, Launched};
use super::process::{Folder, MachineConfig};
use super::{Running, TwinError, Twins, lock};
use crate::flashes::TwinFlash;
use crate::live::Notice;
use crate::phones::{Phone, now_us};
use crate::replay::{wall_now_us, wall_us};

/// Of one twin at a time.
const FORKS_MAX: usize = 4;

#[derive(Default)]
pub(super) struct Forks(Mutex<HashMap<PhoneId, OfOne>>);

/// Of one twin.
#[derive(Default)]
struct OfOne {
    /// Numbers are not used again: one that ends may still be about to clear its folder away.
    last_number: u32,
    running: BTreeMap<u32, Fork>,
}

/// A fork that runs.
#[derive(Debug, Clone)]
pub struct Fork {
    pub number: u32,
    pub at_us: u64,
    /// The last event of the log that it knows of.
    pub position: u64,
    pub running: Running,
    end: CancellationToken,
}

/// A fork's machine, which runs as far as its gate.
struct Begun {
    launched: Launched,
    config: MachineConfig,
    flash: TwinFlash,
    position: u64,
    /// What its clock is to show.
    wall_us: i64,
}

impl Fork {
    /// Has it end; it is gone soon.
    pub fn end(&self) {
        self.end.cancel();
    }
}

impl Forks {
    fn list(&self, phone: &PhoneId) -> Vec<Fork> {
        lock(&self.0).get(phone).map(|forks| forks.running.values().cloned().collect()).unwrap_or_default()
    }

    fn next_number(&self, phone: &PhoneId) -> Result<u32, TwinError> {
        let mut all = lock(&self.0);
        let forks = all.entry(phone.clone()).or_default();
        if forks.running.len() >= FORKS_MAX {
            return Err(TwinError::TooManyForks(FORKS_MAX));
        }
        forks.last_number += 1;
        Ok(forks.last_number)
    }

    fn add(&self, phone: &PhoneId, fork: Fork) {
        lock(&self.0).entry(phone.clone()).or_default().running.insert(fork.number, fork);
    }

    fn remove(&self, phone: &PhoneId, number: u32) {
        if let Some(forks) = lock(&self.0).get_mut(phone) {
            forks.running.remove(&number);
        }
    }
}

impl Twins {
    /// Forks the running twin, which stands still for as long as it takes to write what it differs from its base snapshot; or, with a position of
    /// the log, has a machine begin with the phone's files as of then.
    pub async fn fork(&self, phone: &PhoneId, position: Option<u64>) -> Result<Fork, TwinError> {
        let phone = self.inner.released(phone)?;
        let slots = self.inner.slots.clone();
        let slot = slots.try_acquire_owned().map_err(|_| TwinError::TooMany(self.running_max()))?;
        let number = self.inner.forks.next_number(&phone.id)?;
        // No phone's name begins with a dot.
        let folder = Folder::make(&self.inner.runtime.join(format!(".{}.{number}", phone.id)))?;
        let path = folder.path().to_owned();
        let begun = match position {
            None => self.copied(&phone, folder).await,
            Some(position) => self.begun_at(&phone, folder, position).await,
        };
        let forked = async { self.let_in(&phone.id, number, begun?, slot).await };
        let forked = forked.await;
        if forked.is_err() {
            // Its process, if it got that far, is gone with its handle.
            let _ = std::fs::remove_dir_all(path);
        }
        forked
    }

    /// A copy of the running twin.
    async fn copied(&self, phone: &Phone, folder: Folder) -> Result<Begun, TwinError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.keeper(&phone.id).requests;
        requests.send(Request::Copy(folder.path().to_owned(), reply)).await.map_err(|_| TwinError::Stopping)?;
        let Copied { saved, layer, position, files } = answer.await.map_err(|_| TwinError::Stopping)??;
        let (inner, whose) = (self.inner.clone(), phone.clone());
        let prepared = tokio::task::spawn_blocking(move || -> Result<_, TwinError> {
            let image = inner.flashes.image_of(&whose)?;
            Ok((inner.flashes.twin(&whose, files, Some(&layer), None)?, image))
        });
        let (flash, image) = prepared.await.map_err(|_| TwinError::Stopping)??;
        let config = launch::config(&image, Some(saved), self.inner.config.cage);
        let launched = self.inner.launch(folder, &image, &config, &flash, true).await?;
        Ok(Begun { launched, config, flash, position, wall_us: wall_now_us() })
    }

    /// A machine with the phone's files as of `position`, whose clock shows what the phone's did.
    async fn begun_at(&self, phone: &Phone, folder: Folder, position: u64) -> Result<Begun, TwinError> {
        let (inner, whose) = (self.inner.clone(), phone.clone());
        let prepared = tokio::task::spawn_blocking(move || -> Result<_, TwinError> {
            inner.flashes.check_reached(&whose.id, position)?;
            let image = inner.flashes.image_of(&whose)?;
            let flash = inner.flashes.twin(&whose, position, None, None)?;
            Ok((flash, inner.bases.find(&image), image, wall_us(&inner.logs, &whose.id, position)?))
        });
        let (flash, base, image, wall_us) = prepared.await.map_err(|_| TwinError::Stopping)??;
        let path = folder.path().to_owned();
        let mut config = launch::config(&image, base, self.inner.config.cage);
        let launched = match self.inner.launch(folder, &image, &config, &flash, false).await {
            Err(TwinError::Base(error)) => {
                warn!(phone = %phone.id, %error, "the base snapshot is of no use; the fork boots");
                config.restore = None;
                self.inner.launch(Folder::make(&path)?, &image, &config, &flash, false).await
            }
            launched => launched,
        }?;
        Ok(Begun { launched, config, flash, position, wall_us })
    }

    /// Tells its guest who it is, and keeps it.
    async fn let_in(&self, phone: &PhoneId, number: u32, begun: Begun, slot: OwnedSemaphorePermit) -> Result<Fork, TwinError> {
        let Begun { launched, config, flash, position, wall_us } = begun;
        let (running, _) = launched.running(&config, &flash).await?;
        launched.tell(|gate| gate.open(&Identity::of_fork(phone, number), wall_us))?;
        let end = self.inner.stop.child_token();
        let fork = Fork { number, at_us: now_us(), position, running, end };
        self.inner.forks.add(phone, fork.clone());
        info!(%phone, number, position, "twin forked");
        self.inner.tasks.spawn(self.clone().keep_fork(phone.clone(), fork.clone(), launched, slot));
        self.inner.live.tell(Notice::Twin { phone: phone.clone() });
        Ok(fork)
    }

    /// Those that run, by number.
    pub fn forks(&self, phone: &PhoneId) -> Vec<Fork> {
        self.inner.forks.list(phone)
    }

    pub fn a_fork(&self, phone: &PhoneId, number: u32) -> Result<Fork, TwinError> {
        self.forks(phone).into_iter().find(|fork| fork.number == number).ok_or(TwinError::NoFork(number))
    }

    pub fn end_fork(&self, phone: &PhoneId, number: u32) -> Result<(), TwinError> {
        self.a_fork(phone, number).map(|fork| fork.end())
    }

    async fn keep_fork(self, phone: PhoneId, fork: Fork, launched: Launched, _slot: OwnedSemaphorePermit) {
        let Launched { mut machine, mut events, server, gate: _gate } = launched;
        let exit = async {
            while let Ok(event) = events.recv().await {
                if event.event == "exit" {
                    return event.reason;
                }
            }
            std::future::pending().await
        };
        let how = tokio::select! {
            () = fork.end.cancelled() => "it was told to".to_owned(),
            how = machine.ended() => how,
            how = exit => format!("its guest ended by {how}"),
        };
        self.inner.forks.remove(&phone, fork.number);
        machine.end().await;
        if let Ok(Err(error)) = server.await {
            warn!(%phone, number = fork.number, %error, "the fork's flash server failed");
        }
        info!(%phone, number = fork.number, how, "fork ended");
        self.inner.live.tell(Notice::Twin { phone });
    }
}
