//! Virtio devices (virtio 1.2) on the memory-mapped transport.
//!
//! Every device has the same shape: a struct that implements [`VirtioDevice`] and is driven by [`MmioTransport`] on
//! the vCPU thread; state that it shares, under one lock, with at most one thread of its own, which serves its
//! outside half (a [`worker`]); and, where somebody outside talks to it, a handle that can be cloned and sent.
//!
//! Guests cannot panic, hang or grow the host. What they may try, what bounds it, and what happens beyond:
//!
//! | attempt | limit | beyond it |
//! |---|---|---|
//! | descriptor loops, endless chains | `queue::CHAIN_DESCRIPTORS_MAX`, 4 GiB in a chain | the queue breaks until the device is reset |
//! | queue floods | each device's `QUEUE_SIZE`; on device threads `TURN_CHAINS_MAX` | the queue breaks; others have their turn |
//! | a device's answers that are its next requests | [`VirtQueue::drain`]: as many chains as the queue has entries | the queue breaks |
//! | giant requests | `block::REQUEST_BYTES_MAX`, `rng::REQUEST_BYTES_MAX` | an error; less is given |
//! | file requests | `fs::MESSAGE_BYTES_MAX`, `PENDING_MAX`, `OUTWARD_BYTES_HIGH` | the queue breaks; requests stay in it |
//! | network floods | `net::FRAME_BYTES_MAX`, `OUTWARD_BYTES_MAX` | frames are dropped |
//! | console floods | `console::OUTWARD_BYTES_MAX`, `CONTROL_PENDING_MAX`; serial port: the sink's own | the queue breaks; buffers stay in it |
//! | absurd screens | `gpu::SCREEN_SIDE_MAX`, `RESOURCE_PIXELS_MAX` | refused |
//! | graphics memory | `gpu::RESOURCES_MAX`, `PIXELS_MAX`, `ENTRIES_MAX`, `screen::DAMAGE_MAX` | refused; damage becomes the whole screen |
//! | input that is not taken | `input::WAITING_EVENTS_MAX`, `LIFTING_EVENTS_MAX`, `FRAME_EVENTS_MAX` | the sender gets an error |
//! | interrupt storms | a line is level-triggered and so one bit; timers of x86-64: `chips::LOOK_GAP_NS` | they are the guest's own time |
//! | log floods | [`crate::log_limit`]: `BURST_LINES_MAX`, `LINE_EVERY` | lines are left out, once said |
//! | saved machines | `snapshot::HEAD_BYTES_MAX`, `STATE_BYTES_MAX`, [`crate::memory::check_size`] | refused |
//!
//! `fuzz` tries them.
//!
//! To assemble: make one [`GuestAccess`], one `MmioTransport` per device, put these on the bus, make the vCPU, and
//! [`GuestAccess::connect`] its handle. To pause: stop the vCPU, [`Transport::quiesce`] each,
//! [`GuestAccess::close_gate`]. To save: pause, then [`Transport::save`] each. To restore: [`Transport::restore`]
//! each before the vCPU runs.

pub mod block;
pub mod console;
#[cfg(any(test, feature = "testing"))]
pub mod fake_driver;
pub mod fs;
pub mod gpu;
mod guest;
#[cfg(any(test, feature = "testing"))]
pub mod hostile_driver;
pub mod input;
mod interrupt;
mod mmio;
pub mod net;
mod queue;
pub mod rng;
mod worker;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use guest::GuestAccess;
pub use interrupt::Interrupt;
pub use mmio::{MmioTransport, Transport};
pub use queue::{Chain, VirtQueue};

/// What a device must do for the transport. All methods are called on the vCPU thread, or while the vCPU is stopped;
/// none blocks.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2, 5).
    fn device_id(&self) -> u32;

    /// A word for messages.
    fn name(&self) -> &'static str;

    /// The greatest size of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Feature bits of the device's own kind; the transport adds those of the ring.
    fn features(&self) -> u64 {
        0
    }

    /// Reads the configuration space; what lies beyond it reads as zero. [`read_config_bytes`] does that.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space, where a device has writable fields.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready. Called once before notifications, and again after each reset.
    fn activate(&mut self, activation: Activation);

    /// The driver made buffers available in queue `index`, which exists. Only between activation and reset.
    fn notify(&mut self, index: usize);

    /// Forgets the driver: drops queues and all that belongs to requests.
    fn reset(&mut self);

    /// The vCPU has stopped: wait, at most so long, until no request is with somebody outside.
    fn quiesce(&mut self, _timeout: Duration) {}

    /// Does at once what the device's thread would do if it woke now: so that an input of a fuzzer means the same each time.
    #[cfg(any(test, feature = "testing"))]
    fn wake(&self) {}

    /// What the device knows beyond its queues. The machine is paused.
    fn save(&self) -> DeviceState {
        DeviceState::default()
    }

    /// Takes up what `save` returned, after activation if the saved device was active.
    fn restore(&mut self, _state: DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    pub queues: Vec<VirtQueue>,
    /// The features that the driver accepted.
    pub features: u64,
    pub interrupt: Interrupt,
    pub guest: std::sync::Arc<GuestAccess>,
}

/// A device in a snapshot: what is small as JSON, what is large (pixels) as bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceState {
    pub fields: serde_json::Value,
    pub blob: Vec<u8>,
}

impl DeviceState {
    /// For a device that keeps all in `fields`.
    fn of(fields: &impl Serialize) -> Self {
        let fields = serde_json::to_value(fields).expect("device state is plain data with string keys");
        Self { fields, blob: Vec::new() }
    }

    fn fields<T: DeserializeOwned>(&self, device: &'static str) -> Result<T, RestoreError> {
        T::deserialize(&self.fields).map_err(|e| RestoreError::damaged(device, e))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("saved state is of {found}, this is {expected}")]
    OtherDevice { found: String, expected: String },
    #[error("saved state of virtio {device} is damaged: {reason}")]
    Damaged { device: &'static str, reason: String },
}

impl RestoreError {
    /// For a device's own complaints.
    fn damaged(device: &'static str, reason: impl ToString) -> Self {
        Self::Damaged { device, reason: reason.to_string() }
    }
}

/// Reads from a configuration space that is laid out in `config`.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    let len = data.len().min(config.len() - start);
    data[..len].copy_from_slice(&config[start..start + len]);
}
