//! What makes a machine one of its architecture: interrupt controller, serial port, clock, and where devices lie.
//!
//! A [`crate::machine::Machine`] is a board, a vCPU for that board, RAM, and virtio devices in the board's slots.

pub mod arm64;
pub mod x86_64;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::{Bus, Overlap};
use crate::devices::uart::UartInput;
use crate::layout::Region;
use crate::vcpu::{IrqChip, VcpuHandle};

/// The devices of a machine that are not virtio.
pub trait Board: Send {
    /// Where the interrupts of virtio devices go.
    fn irq_chip(&self) -> Arc<dyn IrqChip>;
    /// Puts the board's own devices on the bus.
    fn populate(&self, bus: &mut Bus) -> Result<(), Overlap>;
    /// Registers and interrupt of a virtio-mmio slot, below [`crate::layout::VIRTIO_SLOTS`].
    fn virtio_slot(&self, slot: usize) -> (Region, u32);
    /// Joins the interrupt controller to the vCPU, once and before that runs.
    fn connect(&self, vcpu: Arc<dyn VcpuHandle>);
    /// Types into the serial console.
    fn uart_input(&self) -> UartInput;
    /// The devices' state, while the machine is paused.
    fn save(&self) -> BoardState;
    /// Takes up what [`Board::save`] of a like board returned, after the vCPU's state and before the virtio devices'.
    /// Gives what the state is of, if that is another board.
    fn restore(&self, state: BoardState) -> Result<(), &'static str>;
}

/// A saved board.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoardState {
    Arm64(arm64::Arm64State),
    X86(Box<x86_64::X86State>),
}
