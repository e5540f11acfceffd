//! A hostile guest, and hostile peers, on the console device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use std::os::unix::net::UnixStream;
use vmm::virtio::console::{Console, PortSpec};

fuzz_target!(|script: &[u8]| {
    let (channel, peer) = UnixStream::pair().expect("a channel");
    let device = Console::new(vec![PortSpec { name: "port".into(), channel }]).expect("a console");
    play(&mut FakeDriver::started(device), &mut [peer], script);
});
