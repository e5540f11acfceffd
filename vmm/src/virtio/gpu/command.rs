//! GPU requests (virtio 1.2, 5.7.6) from bytes to typed values, and responses back to bytes.

use super::screen::Rect;
use crate::virtio::Chain;

/// Entries in one backing: one per page of the greatest resource.
pub(super) const BACKING_ENTRIES_MAX: u32 = super::RESOURCE_PIXELS_MAX / 1024;

const HEADER_BYTES: usize = 24;
/// `struct virtio_gpu_mem_entry`: address, length, padding.
const ENTRY_BYTES: usize = 16;
const FLAG_FENCE: u32 = 1;
/// The response to GET_DISPLAY_INFO always has this many places.
const DISPLAY_INFO_SCANOUTS: usize = 16;
const EDID_BYTES_MAX: usize = 1024;

const GET_DISPLAY_INFO: u32 = 0x100;
const RESOURCE_CREATE_2D: u32 = 0x101;
const RESOURCE_UNREF: u32 = 0x102;
const SET_SCANOUT: u32 = 0x103;
const RESOURCE_FLUSH: u32 = 0x104;
const TRANSFER_TO_HOST_2D: u32 = 0x105;
const RESOURCE_ATTACH_BACKING: u32 = 0x106;
const RESOURCE_DETACH_BACKING: u32 = 0x107;
const GET_EDID: u32 = 0x10a;

const OK_NODATA: u32 = 0x1100;
const OK_DISPLAY_INFO: u32 = 0x1101;
const OK_EDID: u32 = 0x1104;

/// What a driver asks of the control queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    GetDisplayInfo,
    ResourceCreate2d { id: u32, format: u32, width: u32, height: u32 },
    ResourceUnref { id: u32 },
    SetScanout { rect: Rect, scanout: u32, id: u32 },
    ResourceFlush { rect: Rect, id: u32 },
    TransferToHost2d { rect: Rect, offset: u64, id: u32 },
    ResourceAttachBacking { id: u32, entries: Vec<(u64, u32)> },
    ResourceDetachBacking { id: u32 },
    GetEdid { scanout: u32 },
    /// Shorter than it must be, or of a kind that was not offered.
    Unknown(u32),
}

/// What the device answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    Ok,
    DisplayInfo { width: u32, height: u32 },
    Edid([u8; 128]),
    Error(GpuError),
}

/// Refusals, by their numbers in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GpuError {
    #[error("not understood")]
    Unspecified = 0x1200,
    #[error("beyond the device's memory")]
    OutOfMemory = 0x1201,
    #[error("no such scanout")]
    InvalidScanout = 0x1202,
    #[error("no such resource, or it exists already")]
    InvalidResource = 0x1203,
    #[error("outside the resource, or of a format that there is not")]
    InvalidParameter = 0x1205,
}

/// `struct virtio_gpu_ctrl_hdr`.
pub(super) struct Header([u8; HEADER_BYTES]);

impl Header {
    pub(super) fn read(chain: &mut Chain) -> Option<Self> {
        chain.read_array().map(Self)
    }

    fn word(&self, at: usize) -> u32 {
        word(&self.0, at)
    }

    fn kind(&self) -> u32 {
        self.word(0)
    }

    /// The response's header: a fence comes back with its ID and context.
    fn answered(&self, kind: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        if self.word(4) & FLAG_FENCE != 0 {
            header = self.0;
            header[4..8].copy_from_slice(&FLAG_FENCE.to_le_bytes());
        }
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header
    }
}

impl Command {
    /// Parses what follows the header in the chain.
    pub(super) fn read(header: &Header, chain: &mut Chain) -> Self {
        Self::try_read(header.kind(), chain).unwrap_or(Self::Unknown(header.kind()))
    }

    fn try_read(kind: u32, chain: &mut Chain) -> Option<Self> {
        Some(match kind {
            GET_DISPLAY_INFO => Self::GetDisplayInfo,
            RESOURCE_CREATE_2D => {
                let [id, format, width, height] = words(chain)?;
                Self::ResourceCreate2d { id, format, width, height }
            }
            RESOURCE_UNREF => {
                let [id, _] = words(chain)?;
                Self::ResourceUnref { id }
            }
            SET_SCANOUT => {
                let (rect, [scanout, id]) = (rect(chain)?, words(chain)?);
                Self::SetScanout { rect, scanout, id }
            }
            RESOURCE_FLUSH => {
                let (rect, [id, _]) = (rect(chain)?, words(chain)?);
                Self::ResourceFlush { rect, id }
            }
            TRANSFER_TO_HOST_2D => {
                let (rect, offset) = (rect(chain)?, u64::from_le_bytes(chain.read_array()?));
                let [id, _] = words(chain)?;
                Self::TransferToHost2d { rect, offset, id }
            }
            RESOURCE_ATTACH_BACKING => {
                let [id, count] = words(chain)?;
                Self::ResourceAttachBacking { id, entries: backing(chain, count)? }
            }
            RESOURCE_DETACH_BACKING => {
                let [id, _] = words(chain)?;
                Self::ResourceDetachBacking { id }
            }
            GET_EDID => {
                let [scanout, _] = words(chain)?;
                Self::GetEdid { scanout }
            }
            _ => return None,
        })
    }
}

fn backing(chain: &mut Chain, count: u32) -> Option<Vec<(u64, u32)>> {
    if count > BACKING_ENTRIES_MAX || chain.readable_len() < u64::from(count) * ENTRY_BYTES as u64 {
        return None;
    }
    // At once: each read begins at the chain's first descriptor.
    let mut bytes = vec![0; count as usize * ENTRY_BYTES];
    chain.read(&mut bytes);
    let entry = |bytes: &[u8; ENTRY_BYTES]| (u64::from(word(bytes, 0)) | u64::from(word(bytes, 4)) << 32, word(bytes, 8));
    Some(bytes.as_chunks().0.iter().map(entry).collect())
}

fn rect(chain: &mut Chain) -> Option<Rect> {
    let [x, y, width, height] = words(chain)?;
    Some(Rect { x, y, width, height })
}

/// Little-endian words; all of them or none.
fn words<const N: usize>(chain: &mut Chain) -> Option<[u32; N]> {
    let mut words = [0; N];
    for word in &mut words {
        *word = u32::from_le_bytes(chain.read_array()?);
    }
    Some(words)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

impl Response {
    pub(super) fn to_bytes(&self, request: &Header) -> Vec<u8> {
        match self {
            Self::Ok => request.answered(OK_NODATA).into(),
            Self::Error(error) => request.answered(*error as u32).into(),
            Self::DisplayInfo { width, height } => {
                let mut places = [[0u32; 6]; DISPLAY_INFO_SCANOUTS];
                // x, y, width, height, enabled, flags
                places[0] = [0, 0, *width, *height, 1, 0];
                let places = places.iter().flatten().flat_map(|v| v.to_le_bytes());
                request.answered(OK_DISPLAY_INFO).into_iter().chain(places).collect()
            }
            Self::Edid(edid) => {
                let mut bytes = request.answered(OK_EDID).to_vec();
                bytes.extend((edid.len() as u32).to_le_bytes());
                bytes.extend(0u32.to_le_bytes());
                bytes.extend(edid);
                bytes.resize(HEADER_BYTES + 8 + EDID_BYTES_MAX, 0);
                bytes
            }
        }
    }
}
