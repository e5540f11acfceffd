//! The appliance: all of it but its sockets, over a store on a disk that may lose its power.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pollux::app::{StartError, assemble};
use pollux::config::{Config, StoreBackend};
use pollux::http::Services;
use pollux::sync::SyncService;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use store::{Blobs, EmbeddedOptions, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::disk::{Disk, Image};
use crate::net::Line;
use crate::os::now_ms;

pub(crate) struct Server {
    folder: PathBuf,
    random: SmallRng,
    starts: u32,
    running: Option<Running>,
    image: Image,
    pub(crate) starts_at_ms: u64,
}

struct Running {
    disk: Arc<Disk>,
    services: Services,
    sync: SyncService,
}

impl Server {
    pub(crate) fn new(folder: &Path, seed: u64) -> Server {
        let random = SmallRng::seed_from_u64(seed);
        std::fs::create_dir_all(folder).expect("a folder");
        Server { folder: folder.to_owned(), random, starts: 0, running: None, image: Image::new(), starts_at_ms: 0 }
    }

    pub(crate) fn disk(&self) -> Option<&Arc<Disk>> {
        self.running.as_ref().map(|running| &running.disk)
    }

    pub(crate) fn services(&self) -> Option<&Services> {
        self.running.as_ref().map(|running| &running.services)
    }

    pub(crate) fn blobs(&self) -> Option<Arc<dyn Blobs>> {
        self.running.as_ref().map(|running| running.sync.blobs.clone())
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.disk().is_some_and(|disk| disk.is_dead())
    }

    pub(crate) fn start(&mut self, lines: &[Line]) -> Result<(), StartError> {
        self.starts += 1;
        let folder = self.folder.join(format!("store-{:04}", self.starts));
        let disk = Disk::new(&folder, &self.image, self.random.random());
        match self.put_together(&folder) {
            Ok((services, sync)) => {
                let is_dead = {
                    let disk = disk.clone();
                    Arc::new(move || disk.is_dead())
                };
                lines.iter().for_each(|line| line.serve(sync.clone(), is_dead.clone()));
                self.running = Some(Running { disk, services, sync });
                Ok(())
            }
            Err(error) => {
                self.image = disk.crash();
                disk.remove();
                Err(error)
            }
        }
    }

    fn put_together(&self, folder: &Path) -> Result<(Services, SyncService), StartError> {
        let mut config = Config::new(&self.folder);
        config.store = StoreBackend::Sled;
        config.images = self.folder.join("no-images");
        config.twins.autostart = false;
        let options = EmbeddedOptions { cache_bytes: 1 << 20, ..EmbeddedOptions::default() };
        let store = Store::open(folder, options)?;
        assemble(&config, store, &CancellationToken::new(), &TaskTracker::new())
    }

    /// Ends the appliance at once, if it has not crashed by itself, and leaves it off for `off_ms`.
    pub(crate) async fn crash(&mut self, lines: &[Line], off_ms: u64) {
        let Some(Running { disk, services, sync }) = self.running.take() else { return };
        self.image = disk.crash();
        lines.iter().for_each(Line::appliance_gone);
        // What it still does reaches nobody.
        services.stop.cancel();
        services.tasks.close();
        let tasks = services.tasks.clone();
        drop((services, sync));
        tasks.wait().await;
        disk.remove();
        self.starts_at_ms = now_ms() + off_ms;
    }
}
