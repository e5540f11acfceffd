//! GPU device (virtio 1.2, 5.7), 2D only: one scanout, shown outside as a [`Screen`].
//!
//! All work is done on the vCPU thread as commands come; a flush copies what differs to the screen. The cursor queue is
//! served, but no cursor is drawn: a phone has none. It leaves out 3D, blobs and display changes at run time.

mod command;
mod edid;
mod resource;
mod screen;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::guest::GuestAccess;
use super::{Activation, DeviceState, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};
use command::{BACKING_ENTRIES_MAX, Command, GpuError, Header, Response};
use resource::Resource;
pub use screen::{Frame, Rect, Screen};

const DEVICE_ID: u32 = 16;
const QUEUE_SIZES: [u16; 2] = [64, 16];
const CONTROL_QUEUE: usize = 0;
const F_EDID: u64 = 1 << 1;
const SCANOUT: u32 = 0;

/// Pixels of a side of the screen, whoever chooses it: what clients of remote screens take.
const SCREEN_SIDE_MAX: u32 = 4096;
/// Resources at a time: a handful per program that draws.
const RESOURCES_MAX: usize = 256;
/// Pixels of one resource: a 4K panel.
const RESOURCE_PIXELS_MAX: u32 = 1 << 23;
/// Pixels of all resources, 128 MiB on the host.
const PIXELS_MAX: u64 = 1 << 25;
/// Backing entries of all resources, 6 MiB on the host.
const ENTRIES_MAX: usize = 16 * BACKING_ENTRIES_MAX as usize;

pub struct Gpu {
    width: u32,
    height: u32,
    screen: Screen,
    driver: Option<Driver>,
}

/// What belongs to one driver's time with the device.
struct Driver {
    queues: Vec<VirtQueue>,
    guest: Arc<GuestAccess>,
    resources: BTreeMap<u32, Resource>,
    /// The resource that is shown, and which part.
    scanout: Option<Scanout>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Scanout {
    id: u32,
    rect: Rect,
}

/// The blob holds the resources' pixels, in the same order, and then the screen's, little-endian.
#[derive(Serialize, Deserialize)]
struct Saved {
    resources: Vec<SavedResource>,
    scanout: Option<Scanout>,
    screen: (u32, u32),
}

#[derive(Serialize, Deserialize)]
struct SavedResource {
    id: u32,
    format: u32,
    width: u32,
    height: u32,
    backing: Vec<(u64, u32)>,
}

#[derive(Debug, thiserror::Error)]
#[error("a screen of {width} x {height} pixels: each side must have 1 to {SCREEN_SIDE_MAX}, and all {RESOURCE_PIXELS_MAX} at most")]
pub struct ScreenSizeError {
    width: u32,
    height: u32,
}

impl Gpu {
    /// A panel of so many pixels, black.
    pub fn new(width: u32, height: u32) -> Result<Self, ScreenSizeError> {
        if !is_screen(width, height) {
            return Err(ScreenSizeError { width, height });
        }
        Ok(Self { width, height, screen: Screen::new(width, height), driver: None })
    }

    pub fn screen(&self) -> Screen {
        self.screen.clone()
    }

    fn execute(&mut self, command: Command) -> Result<Response, GpuError> {
        let (width, height) = (self.width, self.height);
        let driver = self.driver.as_mut().ok_or(GpuError::Unspecified)?;
        match command {
            Command::GetDisplayInfo => return Ok(Response::DisplayInfo { width, height }),
            Command::GetEdid { scanout: SCANOUT } => {
                return edid::edid(width, height).map(Response::Edid).ok_or(GpuError::Unspecified);
            }
            Command::GetEdid { .. } => return Err(GpuError::InvalidScanout),
            Command::ResourceCreate2d { id, format, width, height } => driver.create(id, format, width, height)?,
            Command::ResourceUnref { id } => {
                driver.resources.remove(&id).ok_or(GpuError::InvalidResource)?;
                if driver.scanout.is_some_and(|s| s.id == id) {
                    driver.scanout = None;
                    self.screen.change(Frame::clear);
                }
            }
            Command::SetScanout { scanout, .. } if scanout != SCANOUT => return Err(GpuError::InvalidScanout),
            Command::SetScanout { id: 0, .. } => {
                driver.scanout = None;
                self.screen.change(Frame::clear);
            }
            Command::SetScanout { rect, id, .. } => driver.set_scanout(&self.screen, Scanout { id, rect })?,
            Command::ResourceFlush { rect, id } => driver.flush(&self.screen, rect, id)?,
            Command::TransferToHost2d { rect, offset, id } => {
                let resource = driver.resources.get_mut(&id).ok_or(GpuError::InvalidResource)?;
                resource.transfer(driver.guest.ram(), rect, offset)?;
            }
            Command::ResourceAttachBacking { id, entries } => driver.attach(id, &entries)?,
            Command::ResourceDetachBacking { id } => {
                driver.resources.get_mut(&id).ok_or(GpuError::InvalidResource)?.detach();
            }
            Command::Unknown(_) => return Err(GpuError::Unspecified),
        }
        Ok(Response::Ok)
    }

    fn serve_control(&mut self, queue: &VirtQueue) {
        for mut chain in queue.drain() {
            let Some(header) = Header::read(&mut chain) else {
                return queue.fail("a GPU request lacks its header");
            };
            let command = Command::read(&header, &mut chain);
            let response = self.execute(command).unwrap_or_else(|error| {
                tracing::debug!(%error, "GPU request refused");
                Response::Error(error)
            });
            chain.write(&response.to_bytes(&header));
            queue.complete(chain);
        }
    }
}

impl Driver {
    fn create(&mut self, id: u32, format: u32, width: u32, height: u32) -> Result<(), GpuError> {
        if id == 0 || self.resources.contains_key(&id) {
            return Err(GpuError::InvalidResource);
        }
        let pixels = u64::from(width) * u64::from(height);
        let used: u64 = self.resources.values().map(|r| r.pixels.len() as u64).sum();
        if pixels == 0 {
            return Err(GpuError::InvalidParameter);
        }
        if self.resources.len() >= RESOURCES_MAX
            || pixels > u64::from(RESOURCE_PIXELS_MAX)
            || used + pixels > PIXELS_MAX
        {
            return Err(GpuError::OutOfMemory);
        }
        self.resources.insert(id, Resource::new(format, width, height)?);
        Ok(())
    }

    fn attach(&mut self, id: u32, entries: &[(u64, u32)]) -> Result<(), GpuError> {
        let used: usize = self.resources.values().map(|r| r.backing_entries().len()).sum();
        if used + entries.len() > ENTRIES_MAX {
            return Err(GpuError::OutOfMemory);
        }
        self.resources.get_mut(&id).ok_or(GpuError::InvalidResource)?.attach(self.guest.ram(), entries)
    }

    fn set_scanout(&mut self, screen: &Screen, scanout: Scanout) -> Result<(), GpuError> {
        let resource = self.resources.get(&scanout.id).ok_or(GpuError::InvalidResource)?;
        if !scanout.rect.fits(resource.width, resource.height) || !is_screen(scanout.rect.width, scanout.rect.height) {
            return Err(GpuError::InvalidParameter);
        }
        self.scanout = Some(scanout);
        screen.change(|frame| frame.resize(scanout.rect.width, scanout.rect.height));
        self.flush(screen, scanout.rect, scanout.id)
    }

    /// Shows `rect` of a resource, as far as it is on the screen.
    fn flush(&self, screen: &Screen, rect: Rect, id: u32) -> Result<(), GpuError> {
        let resource = self.resources.get(&id).ok_or(GpuError::InvalidResource)?;
        if !rect.fits(resource.width, resource.height) {
            return Err(GpuError::InvalidParameter);
        }
        let Some(shown) = self.scanout.filter(|s| s.id == id).map(|s| s.rect) else { return Ok(()) };
        if let Some(seen) = rect.intersection(&shown) {
            let on_screen = Rect { x: seen.x - shown.x, y: seen.y - shown.y, ..seen };
            screen.change(|frame| frame.draw(on_screen, |y| resource.row(seen.x, y + shown.y, seen.width)));
        }
        Ok(())
    }
}

impl VirtioDevice for Gpu {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "gpu"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.into()
    }

    fn features(&self) -> u64 {
        if edid::edid(self.width, self.height).is_some() { F_EDID } else { 0 }
    }

    /// events_read, events_clear, num_scanouts, num_capsets.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        config[8] = 1;
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let Activation { queues, guest, .. } = activation;
        self.driver = Some(Driver { queues, guest, resources: BTreeMap::new(), scanout: None });
    }

    fn notify(&mut self, index: usize) {
        let Some(queue) = self.driver.as_ref().and_then(|d| d.queues.get(index)).cloned() else { return };
        if index == CONTROL_QUEUE {
            return self.serve_control(&queue);
        }
        for chain in queue.drain() {
            queue.complete(chain);
        }
    }

    fn reset(&mut self) {
        self.driver = None;
        self.screen.change(Frame::clear);
    }

    fn save(&self) -> DeviceState {
        let resources = || self.driver.iter().flat_map(|d| &d.resources);
        let saved = |(id, r): (&u32, &Resource)| SavedResource {
            id: *id,
            format: r.format,
            width: r.width,
            height: r.height,
            backing: r.backing_entries(),
        };
        let fields = |frame: &Frame| Saved {
            resources: resources().map(saved).collect(),
            scanout: self.driver.as_ref().and_then(|d| d.scanout),
            screen: (frame.width(), frame.height()),
        };
        self.screen.look(|frame| {
            let pixels = resources().flat_map(|(_, r)| &r.pixels).chain(frame.pixels());
            let blob = pixels.flat_map(|p| p.to_le_bytes()).collect();
            DeviceState { blob, ..DeviceState::of(&fields(frame)) }
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let damaged = |reason: &str| RestoreError::damaged("gpu", reason);
        let saved: Saved = state.fields("gpu")?;
        let mut pixels = state.blob.as_slice();
        let (width, height) = saved.screen;
        if !is_screen(width, height) {
            return Err(damaged("the screen is of an impossible size"));
        }
        if let Some(driver) = &mut self.driver {
            for resource in &saved.resources {
                driver.restore(resource, &mut pixels).ok_or_else(|| damaged("a resource is"))?;
            }
            let shows = |s: &Scanout| {
                driver.resources.get(&s.id).is_some_and(|r| s.rect.fits(r.width, r.height))
            };
            if !saved.scanout.iter().all(shows) {
                return Err(damaged("the scanout shows nothing"));
            }
            if saved.scanout.is_some_and(|s| (s.rect.width, s.rect.height) != saved.screen) {
                return Err(damaged("the scanout is not as large as the screen"));
            }
            driver.scanout = saved.scanout;
        }
        let count = u64::from(width) * u64::from(height);
        let pixels = take_pixels(&mut pixels, count).filter(|_| pixels.is_empty());
        let pixels = pixels.ok_or_else(|| damaged("the screen is"))?;
        self.screen.change(|frame| frame.replace(width, height, pixels));
        Ok(())
    }
}

impl Driver {
    fn restore(&mut self, saved: &SavedResource, pixels: &mut &[u8]) -> Option<()> {
        self.create(saved.id, saved.format, saved.width, saved.height).ok()?;
        self.attach(saved.id, &saved.backing).ok()?;
        let resource = self.resources.get_mut(&saved.id)?;
        resource.pixels = take_pixels(pixels, resource.pixels.len() as u64)?;
        Some(())
    }
}

fn is_screen(width: u32, height: u32) -> bool {
    let side = 1..=SCREEN_SIDE_MAX;
    side.contains(&width) && side.contains(&height) && width * height <= RESOURCE_PIXELS_MAX
}

fn take_pixels(bytes: &mut &[u8], count: u64) -> Option<Vec<u32>> {
    let (pixels, rest) = bytes.split_at_checked(usize::try_from(count.checked_mul(4)?).ok()?)?;
    *bytes = rest;
    Some(pixels.as_chunks::<4>().0.iter().map(|p| u32::from_le_bytes(*p)).collect())
}

#[cfg(test)]
mod tests;
