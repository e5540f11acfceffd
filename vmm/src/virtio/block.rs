//! Block device (virtio 1.2, 5.2) over a raw disk file: read, write, flush, identify.
//!
//! File I/O happens on the vCPU thread, a bounded piece at a time. A flush is an fdatasync: what the guest flushed
//! survives the host. It leaves out discard, write-zeroes, and requests in flight: there are none when the vCPU
//! stands.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::{Activation, Chain, DeviceState, RestoreError, VirtQueue, VirtioDevice, read_config_bytes};

const DEVICE_ID: u32 = 2;
const QUEUE_SIZE: u16 = 256;
const SECTOR_BYTES: u64 = 512;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;

/// Data buffers in one request; with header and status the chain fits the ring without indirect descriptors.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of one request, so that no request holds the vCPU for long. Linux stays at 1.25 MiB.
const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Bytes copied at a time between file and RAM.
const PIECE_BYTES: usize = 128 << 10;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// What GET_ID answers, padded with zeros: the guest sees it as the disk's serial number.
const ID: &[u8; 20] = b"pollux-disk\0\0\0\0\0\0\0\0\0";

pub struct Block {
    file: File,
    read_only: bool,
    sectors: u64,
    queue: Option<VirtQueue>,
    piece: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    sectors: u64,
}

/// A request, parsed.
enum Request {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    Identify,
    Unsupported(u32),
    OutOfBounds,
}

impl Block {
    /// A disk as large as `file` is now, in whole sectors.
    pub fn new(file: File, read_only: bool) -> std::io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR_BYTES;
        Ok(Self { file, read_only, sectors, queue: None, piece: vec![0; PIECE_BYTES] })
    }

    fn parse(&self, header: [u8; 16], readable: u64, writable: u64) -> Request {
        let (kind, sector) = header.split_at(8);
        let kind = u32::from_le_bytes(kind[..4].try_into().expect("4 of 8 bytes"));
        let sector = u64::from_le_bytes(sector.try_into().expect("the last 8 of 16 bytes"));
        let range = |len: u64| {
            let end = sector.checked_mul(SECTOR_BYTES)?.checked_add(len)?;
            let fits = len.is_multiple_of(SECTOR_BYTES) && len <= REQUEST_BYTES_MAX;
            (fits && end <= self.sectors * SECTOR_BYTES).then_some(end - len)
        };
        match kind {
            T_IN => range(writable).map_or(Request::OutOfBounds, |offset| Request::Read { offset, len: writable }),
            T_OUT => range(readable).map_or(Request::OutOfBounds, |offset| Request::Write { offset, len: readable }),
            T_FLUSH => Request::Flush,
            T_GET_ID => Request::Identify,
            other => Request::Unsupported(other),
        }
    }

    fn execute(&mut self, request: Request, chain: &mut Chain) -> u8 {
        let result = match request {
            Request::Read { offset, len } => self.read(offset, len, chain),
            Request::Write { .. } if self.read_only => return S_IOERR,
            Request::Write { offset, len } => self.write(offset, len, chain),
            Request::Flush => self.file.sync_data(),
            Request::Identify => {
                let len = ID.len().min(chain.writable_len() as usize - 1);
                chain.write(&ID[..len]);
                Ok(())
            }
            Request::Unsupported(kind) => {
                tracing::debug!(kind, "unsupported block request");
                return S_UNSUPP;
            }
            Request::OutOfBounds => return S_IOERR,
        };
        match result {
            Ok(()) => S_OK,
            Err(error) => {
                if self.queue.as_ref().is_some_and(VirtQueue::may_log) {
                    tracing::warn!(%error, "disk file");
                }
                S_IOERR
            }
        }
    }

    fn read(&mut self, offset: u64, len: u64, chain: &mut Chain) -> std::io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = &mut self.piece[..(len - done).min(PIECE_BYTES as u64) as usize];
            self.file.read_exact_at(piece, offset + done)?;
            done += chain.write(piece) as u64;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, len: u64, chain: &mut Chain) -> std::io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = &mut self.piece[..(len - done).min(PIECE_BYTES as u64) as usize];
            let got = chain.read(piece);
            self.file.write_all_at(&piece[..got], offset + done)?;
            done += got as u64;
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "block"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.read_only { F_RO } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 24];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        config[20..].copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.queue = activation.queues.into_iter().next();
    }

    fn notify(&mut self, _index: usize) {
        let Some(queue) = self.queue.clone() else { return };
        for mut chain in queue.drain() {
            let (Some(header), Some(status_at)) = (chain.read_array(), chain.writable_len().checked_sub(1)) else {
                return queue.fail("a block request lacks its header or its status byte");
            };
            let request = self.parse(header, chain.readable_len(), status_at);
            let status = self.execute(request, &mut chain);
            chain.write_at(status_at, &[status]);
            queue.complete(chain);
        }
    }

    fn reset(&mut self) {
        self.queue = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::of(&Saved { sectors: self.sectors })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let saved: Saved = state.fields("block")?;
        if saved.sectors != self.sectors {
            let reason = format!("its disk has {} sectors, this one {}", saved.sectors, self.sectors);
            return Err(RestoreError::damaged("block", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Transport;
    use crate::virtio::fake_driver::{F_NEXT, F_WRITE, FakeDriver, Part};

    const SECTORS: u64 = 100;

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        let pattern: Vec<u8> = (0..SECTORS * SECTOR_BYTES).map(|i| (i / 7) as u8).collect();
        file.write_all_at(&pattern, 0).unwrap();
        file
    }

    fn started(file: &File, read_only: bool) -> FakeDriver<Block> {
        FakeDriver::started(Block::new(file.try_clone().unwrap(), read_only).unwrap())
    }

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    fn request(driver: &mut FakeDriver<Block>, kind: u32, sector: u64, rest: &[Part<'_>]) -> (u8, Vec<u8>) {
        let header = header(kind, sector);
        let mut parts = vec![Part::Out(&header)];
        parts.extend(rest.iter().map(|p| match p {
            Part::Out(bytes) => Part::Out(bytes),
            Part::In(len) => Part::In(*len),
        }));
        parts.push(Part::In(1));
        let mut data = driver.transact(0, &parts);
        (data.pop().unwrap(), data)
    }

    #[test]
    fn tells_its_size() {
        let mut driver = started(&disk(), false);
        assert_eq!(driver.config(0, 8), SECTORS.to_le_bytes());
        assert_eq!(driver.config(20, 4), 512u32.to_le_bytes());
        assert_eq!(driver.config(24, 8), [0; 8]);
    }

    #[test]
    fn reads_and_writes_sectors() {
        let file = disk();
        let mut driver = started(&file, false);
        let (status, data) = request(&mut driver, T_IN, 3, &[Part::In(700), Part::In(324)]);
        let mut expected = vec![0; 1024];
        file.read_exact_at(&mut expected, 3 * 512).unwrap();
        assert_eq!((status, data), (S_OK, expected));

        let (status, _) = request(&mut driver, T_OUT, 99, &[Part::Out(&[7; 500]), Part::Out(&[8; 12])]);
        assert_eq!(status, S_OK);
        assert_eq!(request(&mut driver, T_FLUSH, 0, &[]).0, S_OK);
        let mut last = [0; 512];
        file.read_exact_at(&mut last, 99 * 512).unwrap();
        assert_eq!((last[499], last[500]), (7, 8));
    }

    #[test]
    fn reads_more_than_one_piece() {
        let file = tempfile::tempfile().unwrap();
        let pattern: Vec<u8> = (0..3 * PIECE_BYTES + 512).map(|i| (i / 511) as u8).collect();
        file.write_all_at(&pattern, 0).unwrap();
        let mut driver = started(&file, true);
        let (status, data) = request(&mut driver, T_IN, 0, &[Part::In(pattern.len() as u32)]);
        assert_eq!(status, S_OK);
        assert!(data == pattern);
    }

    #[test]
    fn identifies_the_disk() {
        let mut driver = started(&disk(), false);
        let (status, data) = request(&mut driver, T_GET_ID, 0, &[Part::In(20)]);
        assert_eq!((status, data.as_slice()), (S_OK, &ID[..]));
    }

    #[test]
    fn what_does_not_fit_the_disk_fails_alone() {
        let file = disk();
        let mut driver = started(&file, false);
        for (sector, len) in [(99, 1024), (100, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)] {
            assert_eq!(request(&mut driver, T_OUT, sector, &[Part::Out(&vec![1; len])]).0, S_IOERR);
            let header = header(T_IN, sector);
            driver.send(0, &[Part::Out(&header), Part::In(len as u32), Part::In(1)]);
            let data = driver.used(0).unwrap().data;
            assert_eq!(data.last(), Some(&S_IOERR));
        }
        assert_eq!(request(&mut driver, 77, 0, &[]).0, S_UNSUPP);
        assert_eq!(file.metadata().unwrap().len(), SECTORS * SECTOR_BYTES);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn a_read_only_disk_stays_as_it_is() {
        let file = disk();
        let mut driver = started(&file, true);
        assert_ne!(driver.device_features() & F_RO, 0);
        assert_eq!(request(&mut driver, T_OUT, 0, &[Part::Out(&[0xee; 512])]).0, S_IOERR);
        let mut first = [0; 1];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [0]);
    }

    #[test]
    fn a_shrunk_file_is_an_error_of_the_disk() {
        let file = disk();
        let mut driver = started(&file, false);
        file.set_len(512).unwrap();
        driver.send(0, &[Part::Out(&header(T_IN, 0)), Part::In(1024), Part::In(1)]);
        assert_eq!(driver.used(0).unwrap().data.last(), Some(&S_IOERR));
    }

    #[test]
    fn a_giant_request_fails_alone() {
        let file = disk();
        file.set_len(2 * REQUEST_BYTES_MAX).unwrap();
        let mut driver = started(&file, false);
        for (len, status) in [(REQUEST_BYTES_MAX, S_OK), (REQUEST_BYTES_MAX + SECTOR_BYTES, S_IOERR)] {
            driver.send(0, &[Part::Out(&header(T_IN, 0)), Part::In(len as u32), Part::In(1)]);
            assert_eq!(driver.used(0).unwrap().data.last(), Some(&status));
        }
    }

    /// Each read brings the sector of the next one, and the index by which it is available.
    #[test]
    fn reads_that_make_the_next_request_do_not_go_on_for_ever() {
        let file = tempfile::tempfile().unwrap();
        let sectors = 4 * u64::from(QUEUE_SIZE);
        file.set_len(sectors * SECTOR_BYTES).unwrap();
        for sector in 0..sectors {
            let (next, available) = ((sector + 1).to_le_bytes(), (sector as u16 + 2).to_le_bytes());
            file.write_all_at(&[&next[..], &available].concat(), sector * SECTOR_BYTES).unwrap();
        }
        let mut driver = started(&file, true);
        let (request, index) = (driver.allocate(SECTOR_BYTES), driver.available_ring(0) + 2);
        let buffers = [(request + 8, 8), (index, 2), (request + 16, SECTOR_BYTES as u32 - 10), (request + 16, 1)];
        driver.raw_descriptor(0, 0, request, 16, F_NEXT, 1);
        for (at, (address, len)) in (1..).zip(buffers) {
            driver.raw_descriptor(0, at, address, len, F_WRITE | if at < 4 { F_NEXT } else { 0 }, at + 1);
        }
        driver.offer(0, 0);
        driver.kick(0);
        assert!(driver.needs_reset());
        assert_eq!(driver.used_index(0), driver.queue_size(0));
    }

    #[test]
    fn truncated_requests_need_a_reset() {
        for parts in [&[Part::Out(&[0; 15]), Part::In(1)][..], &[Part::Out(&[0; 16])][..], &[Part::In(513)][..]] {
            let mut driver = started(&disk(), false);
            driver.send(0, parts);
            assert!(driver.needs_reset());
        }
    }

    #[test]
    fn moves_only_to_a_disk_of_the_same_size() {
        let file = disk();
        let driver = started(&file, false);
        let state = driver.transport.save();
        let mut there = driver.moved_to(Block::new(file.try_clone().unwrap(), false).unwrap());
        assert_eq!(request(&mut there, T_IN, 0, &[Part::In(512)]).0, S_OK);
        file.set_len(512).unwrap();
        assert!(started(&file, false).transport.restore(&state).is_err());
    }
}
