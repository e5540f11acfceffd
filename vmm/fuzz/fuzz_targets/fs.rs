//! A hostile guest, and a hostile server, on the file system device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use std::os::unix::net::UnixStream;
use vmm::virtio::fs::Fs;

fuzz_target!(|script: &[u8]| {
    let (channel, server) = UnixStream::pair().expect("a channel");
    let device = Fs::new("flash", channel).expect("a file system");
    play(&mut FakeDriver::started(device), &mut [server], script);
});
