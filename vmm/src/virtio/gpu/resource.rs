//! A 2D resource: pixels on the host, and the guest pages that they are transferred from.

use vm_memory::{Bytes, GuestAddress};

use super::command::GpuError;
use super::screen::Rect;
use crate::memory::GuestRam;
use crate::virtio::queue::Span;

const PIXEL_BYTES: u64 = 4;

/// Byte order of a pixel in guest memory (virtio 1.2, 5.7.6.8, `virtio_gpu_formats`): where red and blue are. Alpha is
/// ignored: nothing lies behind the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Bgrx,
    Xrgb,
    Rgbx,
    Xbgr,
}

impl Order {
    fn of(format: u32) -> Option<Self> {
        Some(match format {
            1 | 2 => Self::Bgrx,
            3 | 4 => Self::Xrgb,
            67 | 134 => Self::Rgbx,
            68 | 121 => Self::Xbgr,
            _ => return None,
        })
    }

    /// 0x00RRGGBB of four bytes in memory.
    fn pixel(self, bytes: [u8; 4]) -> u32 {
        let [a, b, c, d] = bytes;
        let bytes = match self {
            Self::Bgrx => [a, b, c, 0],
            Self::Xrgb => [d, c, b, 0],
            Self::Rgbx => [c, b, a, 0],
            Self::Xbgr => [b, c, d, 0],
        };
        u32::from_le_bytes(bytes)
    }
}

pub(super) struct Resource {
    pub(super) format: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixels: Vec<u32>,
    order: Order,
    backing: Backing,
}

/// Guest memory, piece by piece.
#[derive(Default)]
struct Backing {
    spans: Vec<Span>,
    /// Where each span ends in the whole.
    ends: Vec<u64>,
}

impl Resource {
    /// The caller has checked the size against its limits.
    pub(super) fn new(format: u32, width: u32, height: u32) -> Result<Self, GpuError> {
        let order = Order::of(format).ok_or(GpuError::InvalidParameter)?;
        let pixels = vec![0; width as usize * height as usize];
        Ok(Self { format, width, height, pixels, order, backing: Backing::default() })
    }

    pub(super) fn attach(&mut self, ram: &GuestRam, entries: &[(u64, u32)]) -> Result<(), GpuError> {
        let mut backing = Backing::default();
        let mut end = 0;
        for &(address, len) in entries {
            let span = Span { address, len };
            if len == 0 || !span.lies_in(ram.as_ref()) {
                return Err(GpuError::InvalidParameter);
            }
            end += u64::from(len);
            backing.spans.push(span);
            backing.ends.push(end);
        }
        self.backing = backing;
        Ok(())
    }

    pub(super) fn detach(&mut self) {
        self.backing = Backing::default();
    }

    pub(super) fn backing_entries(&self) -> Vec<(u64, u32)> {
        self.backing.spans.iter().map(|s| (s.address, s.len)).collect()
    }

    /// Copies `rect` from the backing, where its first pixel lies at `offset` and rows are as wide as the resource.
    pub(super) fn transfer(&mut self, ram: &GuestRam, rect: Rect, offset: u64) -> Result<(), GpuError> {
        if !rect.fits(self.width, self.height) {
            return Err(GpuError::InvalidParameter);
        }
        let stride = u64::from(self.width) * PIXEL_BYTES;
        let last_row = offset.checked_add(stride * u64::from(rect.height - 1));
        let end = last_row.and_then(|row| row.checked_add(u64::from(rect.width) * PIXEL_BYTES));
        if end.is_none_or(|end| end > self.backing.len()) {
            return Err(GpuError::InvalidParameter);
        }
        let mut row = vec![0; rect.width as usize * PIXEL_BYTES as usize];
        for y in 0..rect.height {
            self.backing.read(ram, offset + stride * u64::from(y), &mut row);
            let start = (rect.y + y) as usize * self.width as usize + rect.x as usize;
            let there = &mut self.pixels[start..start + rect.width as usize];
            let (new, _) = row.as_chunks::<4>();
            match self.order {
                // The usual case, kept apart so that it is one pass without branches.
                Order::Bgrx => there.iter_mut().zip(new).for_each(|(t, n)| *t = Order::Bgrx.pixel(*n)),
                order => there.iter_mut().zip(new).for_each(|(t, n)| *t = order.pixel(*n)),
            }
        }
        Ok(())
    }

    /// Pixels of row `y` from `x` on, `width` of them; they exist.
    pub(super) fn row(&self, x: u32, y: u32, width: u32) -> &[u32] {
        let start = y as usize * self.width as usize + x as usize;
        &self.pixels[start..start + width as usize]
    }
}

impl Backing {
    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Reads from `offset` on; the caller has checked that so much is there, and all spans lie in RAM.
    fn read(&self, ram: &GuestRam, offset: u64, bytes: &mut [u8]) {
        let mut at = self.ends.partition_point(|end| *end <= offset);
        let mut skip = u64::from(self.spans[at].len) - (self.ends[at] - offset);
        let mut done = 0;
        while done < bytes.len() {
            let span = self.spans[at];
            let piece = (bytes.len() - done).min((u64::from(span.len) - skip) as usize);
            ram.read_slice(&mut bytes[done..done + piece], GuestAddress(span.address + skip))
                .expect("the span was checked to lie in RAM");
            done += piece;
            at += 1;
            skip = 0;
        }
    }
}
