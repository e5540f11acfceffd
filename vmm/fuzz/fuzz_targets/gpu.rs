//! A hostile guest on the GPU.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use vmm::virtio::gpu::Gpu;

fuzz_target!(|script: &[u8]| {
    let device = Gpu::new(36, 72).expect("a screen");
    play(&mut FakeDriver::started(device), &mut [], script);
});
