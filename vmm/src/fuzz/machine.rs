//! What is not virtio: boards under a guest's accesses, and saved machines.

use std::sync::Arc;

use super::MemoryFile;
use crate::board::arm64::Arm64;
use crate::board::x86_64::X86;
use crate::board::{Board, BoardState};
use crate::bus::Bus;
use crate::clock::HostClock;
use crate::devices::uart::Unheard;
use crate::layout::{self, Region};
use crate::machine::{ExitReason, Machine, MachineBuilder, State};
use crate::snapshot::{self, Snapshot};
use crate::vcpu::{Vcpu, VcpuError, VcpuExit, VcpuHandle};
use crate::virtio::fake_driver::Witness;
use crate::virtio::gpu::Gpu;
use crate::virtio::hostile_driver::Script;
use crate::virtio::input::{Input, InputOrder};
use crate::virtio::rng::Rng;

const BUILD: &str = "fuzz";
/// Of a longer file, which is mostly holes, the checksum of RAM is left alone: it is right as seldom, and takes a hundred times as long
/// as all the rest.
const VERIFIED_BYTES_MAX: u64 = 4 << 20;
/// How far a guest looks into each region after a restore.
const LOOK_BYTES: u64 = 0x1000;

/// A saved arm64 board, damaged or made up, and a guest's accesses to its interrupt controller, serial port and clock.
pub fn arm64_board(input: &[u8]) {
    let board = Arm64::new(Arc::new(HostClock), Box::new(Unheard));
    let mut bus = Bus::default();
    board.populate(&mut bus).expect("the layout's regions do not overlap");
    let regions = [layout::GIC_DIST, layout::GIC_CPU, layout::UART, layout::RTC].map(|region| (&bus, region));
    accesses(board.as_ref(), &regions, |_| (), input);
}

/// The same for x86-64: memory-mapped chips, and ports.
pub fn x86_board(input: &[u8]) {
    let board = X86::new(Arc::new(HostClock), Box::new(Unheard)).expect("threads");
    let mut bus = Bus::default();
    board.populate(&mut bus).expect("the layout's regions do not overlap");
    let (parts, chips) = (board.parts(), board.chips().expect("it was made with chips"));
    let ports = Region { base: 0, size: 0x1000 };
    let regions = [(&bus, layout::x86_64::LAPIC), (&bus, layout::x86_64::IOAPIC), (parts.ports.as_ref(), ports)];
    accesses(board.as_ref(), &regions, |script| {
        match script.number(1) % 3 {
            0 => parts.clock.set(script.number(8)),
            1 => chips.set_task_priority(script.number(1) as u8),
            _ => drop(chips.acknowledge()),
        }
        parts.power.take();
    }, input);
}

/// A state's length and text, then accesses. `other` is what else the CPU does with such a board.
fn accesses(board: &dyn Board, regions: &[(&Bus, Region)], mut other: impl FnMut(&mut Script<'_>), input: &[u8]) {
    board.connect(Arc::new(Witness::default()));
    let mut script = Script(input);
    let len = script.number(2) as usize;
    if let Ok(state) = serde_json::from_slice::<BoardState>(script.take(len)) {
        // One of the other board is refused.
        let _ = board.restore(state);
    }
    while let Some(action) = script.byte() {
        let (bus, region) = regions[usize::from(action >> 4) % regions.len()];
        let address = region.base + script.number(2) % region.size;
        match action % 8 {
            0 | 1 => bus.read(address, &mut vec![0; 1 << (action >> 6)]),
            2..=4 => bus.write(address, script.take(1 << (action >> 6))),
            5 => board.irq_chip().set_level(script.number(1) as u32, action & 0x10 != 0),
            6 => drop(board.uart_input().send(script.some())),
            _ => other(&mut script),
        }
    }
    board.restore(board.save()).expect("what was saved can be restored");
}

/// A saved machine, damaged or made up, and a guest that goes on with it. It begins with zero for a file as it is; otherwise with
/// a number and so many bytes of a file's head, to be followed by states and given the checksums that they ought to have.
pub fn snapshot(input: &[u8]) {
    let mut script = Script(input);
    let file = match script.number(1) {
        0 => MemoryFile::new(script.rest()),
        _ => {
            let len = script.number(2) as usize;
            let (bytes, ram_end) = snapshot::sealed(script.take(len), script.rest());
            let file = MemoryFile::new(&bytes);
            file.file.set_len(ram_end).expect("holes take no room");
            file
        }
    };
    let Ok(snapshot) = Snapshot::open(&file.path, BUILD) else { return };
    if file.file.metadata().expect("it is open").len() <= VERIFIED_BYTES_MAX {
        // Seldom what the head says.
        let _ = snapshot.verify_ram();
    }
    let Ok(ram) = snapshot.ram(Some(&snapshot)) else { return };
    let order = InputOrder::default();
    let board = Arm64::new(Arc::new(HostClock), Box::new(Unheard));
    let mut builder = MachineBuilder::new(ram, board).expect("the layout's regions do not overlap");
    let added = builder.add(Gpu::new(36, 72).expect("a screen"));
    let added = added.and_then(|()| builder.add(Input::touch(36, 72, &order).expect("a panel"))).and_then(|()| builder.add(Rng::new()));
    added.expect("there are slots");
    let mut machine = builder.build(|_, bus, _| Ok(LookingCpu(bus)), |_| ()).expect("threads");
    if machine.restore(snapshot.state()).is_ok() {
        go_on(&mut machine);
    }
}

fn go_on(machine: &mut Machine) {
    machine.run_time();
    machine.resume().expect("a restored machine is paused");
    let paused = machine.pause();
    assert!(!matches!(machine.state(), State::Stopped(ExitReason::Fault(_))), "{paused:?}");
    machine.save().expect("a paused machine can be saved");
}

/// Looks at the registers of every device, notifies every queue, and stops.
struct LookingCpu(Arc<Bus>);

impl Vcpu for LookingCpu {
    fn set_boot_state(&mut self, _entry: u64, _parameters: u64) -> Result<(), VcpuError> {
        Ok(())
    }

    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        let slots = (0..3).map(layout::virtio_slot);
        for region in [layout::GIC_DIST, layout::GIC_CPU, layout::UART, layout::RTC].into_iter().chain(slots.clone()) {
            let end = region.base + region.size.min(LOOK_BYTES);
            (region.base..end).step_by(4).for_each(|address| self.0.read(address, &mut [0; 4]));
        }
        for (slot, queue) in slots.flat_map(|slot| [0_u32, 1].map(|queue| (slot, queue))) {
            self.0.write(slot.base + crate::virtio::fake_driver::reg::QUEUE_NOTIFY, &queue.to_le_bytes());
        }
        Ok(VcpuExit::Stopped)
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        Arc::new(Witness::default())
    }

    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _state: &[u8]) -> Result<(), VcpuError> {
        Ok(())
    }
}
