//! A hostile guest on the block device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use vmm::virtio::block::Block;

fuzz_target!(|script: &[u8]| {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(1 << 20).expect("1 MiB of disk");
    let device = Block::new(file, false).expect("a disk");
    play(&mut FakeDriver::started(device), &mut [], script);
});
