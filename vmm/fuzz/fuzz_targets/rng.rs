//! A hostile guest on the entropy device: what remains is the transport and its queues.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use vmm::virtio::rng::Rng;

fuzz_target!(|script: &[u8]| {
    play(&mut FakeDriver::started(Rng::new()), &mut [], script);
});
