//! Whether KVM can run a real guest here.
//!
//! Some hosts answer on `/dev/kvm` without hardware virtualisation below: their KVM interprets the guest, and gives up at its first
//! interrupt or exception. So a small guest tries just that.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{Kvm, KvmCpu, KvmError};
use crate::board::x86_64::X86;
use crate::boot::x86_64::put_flat_memory;
use crate::clock::HostClock;
use crate::devices::uart::Unheard;
use crate::memory::{self, MemoryError};
use crate::vcpu::{Vcpu, VcpuError, VcpuExit};

const RAM_BYTES: u64 = 64 << 20;
const CODE: u64 = 0x10_0000;
/// Of the interrupt descriptor table: length less one, address.
const TABLE_POINTER: u64 = 0x11_0000;
const TABLE: u64 = 0x11_1000;
const HANDLER: u64 = 0x11_3000;
const STACK: u32 = 0x12_0000;
const VECTOR: u64 = 0x20;
/// A guest of a dozen instructions that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why KVM cannot run real guests.
#[derive(Debug, thiserror::Error)]
pub enum Unable {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("no memory for a trial guest")]
    Memory(#[from] MemoryError),
    #[error("KVM answers but cannot run a guest that takes an interrupt, so there is no hardware virtualisation below it: {0}")]
    Interrupt(VcpuError),
    #[error("KVM answers but a guest that takes an interrupt ended otherwise than it should: {0:?}")]
    Strange(VcpuExit),
    #[error("a trial guest cannot be made: {0}")]
    Trial(String),
}

/// Runs a guest that takes an interrupt and returns from it.
pub fn probe(kvm: &Kvm) -> Result<(), Unable> {
    let ram = memory::anonymous_x86(RAM_BYTES)?;
    let trial = |error: &dyn std::fmt::Display| Unable::Trial(error.to_string());
    put_flat_memory(&ram).map_err(|error| trial(&error))?;
    let put = |bytes: &[u8], at| ram.write_slice(bytes, GuestAddress(at)).map_err(|error| trial(&error));
    put(&code(), CODE)?;
    put(&[&0x0fff_u16.to_le_bytes()[..], &TABLE.to_le_bytes()].concat(), TABLE_POINTER)?;
    put(&gate(HANDLER), TABLE + VECTOR * 16)?;
    // iretq
    put(&[0x48, 0xcf], HANDLER)?;

    let machine = kvm.machine(ram)?;
    let board = X86::without_chips(machine.clone(), Arc::new(HostClock), Box::new(Unheard));
    let mut cpu = KvmCpu::new(machine, Arc::default(), board.parts()).map_err(|error| trial(&error))?;
    cpu.set_boot_state(CODE, TABLE_POINTER).map_err(|error| trial(&error))?;
    let handle = cpu.handle();
    let (ended, end) = channel::<()>();
    let exit = std::thread::scope(|scope| {
        scope.spawn(move || {
            // It hears that the sender is gone.
            if end.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                handle.stop();
            }
        });
        let exit = cpu.run();
        drop(ended);
        exit
    });
    match exit.map_err(Unable::Interrupt)? {
        VcpuExit::PowerOff => Ok(()),
        other => Err(Unable::Strange(other)),
    }
}

/// Takes the table at rsi, interrupts itself, and powers off.
fn code() -> Vec<u8> {
    let stack = STACK.to_le_bytes();
    [
        &[0xbc][..], &stack,               // mov esp, STACK
        &[0x0f, 0x01, 0x1e],               // lidt [rsi]
        &[0xcd, VECTOR as u8],             // int VECTOR
        &[0x66, 0xba, 0x04, 0x06],         // mov dx, 0x604
        &[0x66, 0xb8, 0x00, 0x34],         // mov ax, SLP_EN | S5
        &[0x66, 0xef],                     // out dx, ax
        &[0xeb, 0xfe],                     // jmp .
    ]
    .concat()
}

/// An interrupt gate to code of segment 0x10.
fn gate(handler: u64) -> [u8; 16] {
    let at = handler.to_le_bytes();
    [at[0], at[1], 0x10, 0, 0, 0x8e, at[2], at[3], at[4], at[5], at[6], at[7], 0, 0, 0, 0]
}
