//! A hostile guest, and a hostile network, on the network device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use std::os::unix::net::UnixStream;
use vmm::virtio::net::Net;

fuzz_target!(|script: &[u8]| {
    let (channel, peer) = UnixStream::pair().expect("a channel");
    let device = Net::new([2, 0, 0, 0, 0, 1], channel).expect("a network");
    play(&mut FakeDriver::started(device), &mut [peer], script);
});
