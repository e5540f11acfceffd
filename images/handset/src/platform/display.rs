//! The display through KMS: one dumb buffer on the first connected output, dirty rectangles.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use drm::buffer::{Buffer, DrmFourcc};
use drm::control::dumbbuffer::{DumbBuffer, DumbMapping};
use drm::control::{
    ClipRect, Device as ControlDevice, Mode, ModeTypeFlags, connector, crtc, framebuffer,
};

use crate::draw::canvas::Canvas;
use crate::geometry::Rect;

/// Display devices looked at.
const CARDS_MAX: u32 = 8;

struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl ControlDevice for Card {}

pub(super) struct Display {
    card: Card,
    framebuffer: framebuffer::Handle,
    pixels: DumbMapping<'static>,
    pitch: usize,
    width: i32,
    height: i32,
}

impl Display {
    /// Takes the first connected output, in its preferred mode.
    pub(super) fn open() -> Result<Self> {
        let mut reasons = Vec::new();
        for number in 0..CARDS_MAX {
            let path = PathBuf::from(format!("/dev/dri/card{number}"));
            if path.exists() {
                match Self::open_card(&path) {
                    Ok(display) => return Ok(display),
                    Err(error) => reasons.push(format!("{}: {error:#}", path.display())),
                }
            }
        }
        Err(anyhow!("no usable display; {}", reasons.join("; ")))
    }

    fn open_card(path: &PathBuf) -> Result<Self> {
        let card = Card(OpenOptions::new().read(true).write(true).open(path)?);
        let (connector, mode, crtc) = output(&card)?;
        let (w, h) = mode.size();
        let buffer = card
            .create_dumb_buffer((u32::from(w), u32::from(h)), DrmFourcc::Xrgb8888, 32)
            .context("creating a buffer")?;
        let framebuffer = card
            .add_framebuffer(&buffer, 24, 32)
            .context("adding a framebuffer")?;
        let pitch = buffer.pitch() as usize;
        // The buffer lives as long as the process does.
        let buffer: &'static mut DumbBuffer = Box::leak(Box::new(buffer));
        let pixels = card.map_dumb_buffer(buffer).context("mapping the buffer")?;
        card.set_crtc(crtc, Some(framebuffer), (0, 0), &[connector], Some(mode))
            .context("setting the mode")?;
        Ok(Self {
            card,
            framebuffer,
            pixels,
            pitch,
            width: i32::from(w),
            height: i32::from(h),
        })
    }

    pub(super) fn size(&self) -> (i32, i32) {
        (self.width, self.height)
    }

    /// Shows the changed parts of `canvas`, which must be as large as the display.
    pub(super) fn flush(&mut self, canvas: &Canvas, changed: &[Rect]) -> io::Result<()> {
        let mut clips = Vec::with_capacity(changed.len());
        for area in changed {
            let area = area.intersect(&canvas.bounds());
            if area.is_empty() {
                continue;
            }
            for y in area.y..area.bottom() {
                let from = y as usize * canvas.w as usize + area.x as usize;
                let row = &canvas.pixels[from..from + area.w as usize];
                let at = y as usize * self.pitch + area.x as usize * 4;
                let target = &mut self.pixels[at..at + area.w as usize * 4];
                for (bytes, pixel) in target.chunks_exact_mut(4).zip(row) {
                    bytes.copy_from_slice(&pixel.to_le_bytes());
                }
            }
            clips.push(ClipRect::new(
                area.x as u16,
                area.y as u16,
                area.right() as u16,
                area.bottom() as u16,
            ));
        }
        if clips.is_empty() {
            return Ok(());
        }
        self.card.dirty_framebuffer(self.framebuffer, &clips)
    }
}

fn output(card: &Card) -> Result<(connector::Handle, Mode, crtc::Handle)> {
    let resources = card
        .resource_handles()
        .context("reading the display's resources")?;
    for &handle in resources.connectors() {
        let connector = card
            .get_connector(handle, true)
            .context("reading a connector")?;
        if connector.state() != connector::State::Connected {
            continue;
        }
        let modes = connector.modes();
        let preferred = modes
            .iter()
            .find(|mode| mode.mode_type().contains(ModeTypeFlags::PREFERRED));
        let Some(mode) = preferred.or(modes.first()) else {
            continue;
        };
        for &encoder in connector.encoders() {
            let encoder = card.get_encoder(encoder).context("reading an encoder")?;
            let possible = resources.filter_crtcs(encoder.possible_crtcs());
            if let Some(&crtc) = possible.first() {
                return Ok((handle, *mode, crtc));
            }
        }
    }
    Err(anyhow!("no connected output"))
}
