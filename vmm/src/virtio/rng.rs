//! Entropy device (virtio 1.2, 5.4): fills what the driver offers with the host's random bytes. It has no state, so a
//! restored guest that asks gets fresh entropy.

use rand::RngCore;

use super::{Activation, VirtQueue, VirtioDevice};

const DEVICE_ID: u32 = 4;
const QUEUE_SIZE: u16 = 8;
/// Most bytes given for one request; Linux asks for 64 at a time, and a driver must accept less than it asked for.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

#[derive(Default)]
pub struct Rng {
    queue: Option<VirtQueue>,
}

impl Rng {
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) {
        self.queue = activation.queues.into_iter().next();
    }

    fn notify(&mut self, _index: usize) {
        let Some(queue) = &self.queue else { return };
        for mut chain in queue.drain() {
            let mut bytes = vec![0; chain.writable_len().min(REQUEST_BYTES_MAX) as usize];
            rand::rng().fill_bytes(&mut bytes);
            chain.write(&bytes);
            queue.complete(chain);
        }
    }

    fn reset(&mut self) {
        self.queue = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake_driver::{FakeDriver, Part};

    #[test]
    fn a_giant_request_gets_what_one_may_have() {
        let mut driver = FakeDriver::started(Rng::new());
        assert_eq!(driver.transact(0, &[Part::In(8 << 20)]).len() as u64, REQUEST_BYTES_MAX);
    }
}
