//! A phone that is no machine of ours: QEMU, with a disk of its own and the agent inside, enrolled over QEMU's own network.
//!
//! Its keyboard and its tablet are QEMU's, and so are its CPU, its disk and its screen: what the phone shows and tells owes
//! nothing to what its twin runs on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image_builder::{Image, cache_dir};

use crate::appliance::{Appliance, PATIENCE};
use crate::hand::{Handheld, STILL};
use crate::qemu::{self, Network, Phone, Qemu, Root};

/// Between two strokes of a very fast typist.
const KEY: Duration = Duration::from_millis(10);
/// Between two looks at the screen: QEMU does not tell when it changes.
const LOOK: Duration = Duration::from_millis(100);

/// A running phone.
pub struct ForeignPhone {
    serial: String,
    phone: Phone,
    qemu: Qemu,
    /// What the screen showed last, and how often that was something else than before.
    seen: (Vec<u8>, u64),
    _disk: tempfile::TempDir,
}

impl ForeignPhone {
    /// Starts a phone that reaches `appliance` and enrols itself with `code`.
    pub fn start(appliance: &Appliance, serial: &str, code: &str) -> Result<ForeignPhone> {
        let image = Image::latest(&cache_dir(), "handset-arm64")?;
        let folder = tempfile::tempdir()?;
        let disk: PathBuf = folder.path().join("disk");
        image.copy_disk(&disk)?;
        let (host, port) = (qemu::HOST, appliance.sync_port()?);
        let cmdline = format!(
            "pollux.agent=1 pollux.appliance={host}:{port} pollux.ca={} pollux.serial={serial} pollux.model=QEMU pollux.code={code}",
            appliance.ca_sha256
        );
        let mut phone = Phone::new(&image, Root::Disk(disk), &cmdline);
        phone.network = Network::User;
        let qemu = Qemu::start(&phone)?;
        Ok(ForeignPhone { serial: serial.to_owned(), phone, qemu, seen: Default::default(), _disk: folder })
    }

    /// Takes the phone out of its network's reach, or brings it back.
    pub fn set_reach(&mut self, reached: bool) -> Result<()> {
        self.qemu.set_reach(reached)
    }

    /// The battery is pulled, put back, and the phone switched on: what it had not written to its disk is lost.
    pub fn pull_battery(self) -> Result<ForeignPhone> {
        let ForeignPhone { serial, phone, qemu, seen, _disk } = self;
        drop(qemu);
        let qemu = Qemu::start(&phone)?;
        Ok(ForeignPhone { serial, phone, qemu, seen, _disk })
    }
}

impl Handheld for ForeignPhone {
    fn serial(&self) -> &str {
        &self.serial
    }

    fn screen(&mut self) -> Result<Vec<u8>> {
        self.qemu.screenshot()
    }

    fn generation(&mut self) -> Result<u64> {
        let shown = self.screen()?;
        if shown != self.seen.0 {
            self.seen = (shown, self.seen.1 + 1);
        }
        Ok(self.seen.1)
    }

    fn drawn_since(&mut self, generation: u64) -> Result<()> {
        let start = Instant::now();
        let (mut known, mut since) = (generation, start);
        while known == generation || since.elapsed() < STILL {
            ensure!(start.elapsed() < PATIENCE, "the phone draws nothing, or without end; it printed:\n{}", self.qemu.printed());
            std::thread::park_timeout(LOOK);
            let now = self.generation()?;
            if now != known {
                (known, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn finger(&mut self, x: u32, y: u32, down: bool) -> Result<()> {
        self.qemu.touch(x, y, down)
    }

    fn key(&mut self, code: u16, down: bool) -> Result<()> {
        self.qemu.key(code, down).with_context(|| format!("key {code}"))?;
        // QEMU hands on at once what it is given, and the guest's kernel keeps 64 events: no typist fills that.
        std::thread::park_timeout(KEY);
        Ok(())
    }
}
