//! A hostile guest on the touch panel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::fake_driver::FakeDriver;
use vmm::virtio::hostile_driver::play;

use vmm::virtio::input::{Input, InputOrder};

fuzz_target!(|script: &[u8]| {
    let device = Input::touch(36, 72, &InputOrder::default()).expect("a panel");
    play(&mut FakeDriver::started(device), &mut [], script);
});
