//! The machine's states, with a vCPU that executes nothing but does what the trait promises.

use std::collections::VecDeque;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::board::arm64::Arm64;
use crate::clock::HostClock;
use crate::devices::uart::Unheard;
use crate::memory;
use crate::virtio::rng::Rng;

/// Runs until told to stop, or until the test gives it another exit.
#[derive(Default)]
struct Script {
    exits: Mutex<VecDeque<Result<VcpuExit, VcpuError>>>,
    irq: Mutex<bool>,
    deaf_for: Mutex<Duration>,
    news: Condvar,
}

impl Script {
    fn exit(&self, exit: Result<VcpuExit, VcpuError>) {
        self.exits.lock().unwrap().push_back(exit);
        self.news.notify_all();
    }
}

impl VcpuHandle for Script {
    fn set_irq(&self, asserted: bool) {
        *self.irq.lock().unwrap() = asserted;
    }
    fn stop(&self) {
        self.exit(Ok(VcpuExit::Stopped));
    }
    fn written(&self, _: u64, _: u64) {}
    fn deaf_for(&self) -> Duration {
        *self.deaf_for.lock().unwrap()
    }
}

struct FakeVcpu {
    script: Arc<Script>,
    state: Vec<u8>,
}

impl Vcpu for FakeVcpu {
    fn set_boot_state(&mut self, entry: u64, _parameters: u64) -> Result<(), VcpuError> {
        self.state = entry.to_le_bytes().to_vec();
        Ok(())
    }
    fn run(&mut self) -> Result<VcpuExit, VcpuError> {
        let mut exits = self.script.exits.lock().unwrap();
        loop {
            if let Some(exit) = exits.pop_front() {
                drop(exits);
                assert!(!matches!(&exit, Err(VcpuError::Engine(e)) if e == "panic"), "as the test asked");
                return exit;
            }
            exits = self.script.news.wait(exits).unwrap();
        }
    }
    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.script.clone()
    }
    fn save(&mut self) -> Result<Vec<u8>, VcpuError> {
        Ok(self.state.clone())
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), VcpuError> {
        if state.is_empty() {
            return Err(VcpuError::DamagedState("empty".into()));
        }
        self.state = state.to_vec();
        Ok(())
    }
}

const ENTRY: BootEntry = BootEntry { kernel: 0x4020_0000, parameters: 0x4000_0000 };

fn machine(devices: usize) -> (Machine, Arc<Script>, Receiver<ExitReason>) {
    let mut builder = MachineBuilder::new(memory::anonymous(64 << 20).unwrap(), Arm64::new(Arc::new(HostClock), Box::new(Unheard))).unwrap();
    for _ in 0..devices {
        builder.add(Rng::new()).unwrap();
    }
    let script = Arc::new(Script::default());
    let there = script.clone();
    let (tell, told) = channel();
    let make = move |_: GuestRam, _: Arc<Bus>, _: Arc<dyn IrqChip>| Ok(FakeVcpu { script: there, state: Vec::new() });
    let machine = builder.build(make, move |reason| tell.send(reason.clone()).unwrap()).unwrap();
    (machine, script, told)
}

#[test]
fn goes_through_its_states() {
    let (mut machine, _script, told) = machine(1);
    assert_eq!(machine.state(), State::Created);
    machine.boot(ENTRY).unwrap();
    assert_eq!(machine.state(), State::Running);
    machine.pause().unwrap();
    assert_eq!(machine.state(), State::Paused);
    let run_time = machine.run_time();
    assert_eq!(machine.run_time(), run_time, "time stands still");
    machine.resume().unwrap();
    machine.pause().unwrap();
    machine.stop();
    assert_eq!(machine.state(), State::Stopped(ExitReason::Stopped));
    machine.stop();
    drop(machine);
    assert!(told.recv().is_err(), "what we stopped ourselves is no news");
}

#[test]
fn ends_a_machine_whose_guest_hangs() {
    let patience = Duration::from_secs(20);
    let (mut machine, script, told) = machine(1);
    *script.deaf_for.lock().unwrap() = Duration::from_secs(21);
    machine.watch(patience);
    machine.boot(ENTRY).unwrap();
    machine.pause().unwrap();
    machine.watch(patience);
    machine.resume().unwrap();
    *script.deaf_for.lock().unwrap() = Duration::from_secs(19);
    machine.watch(patience);
    assert_eq!(machine.state(), State::Running, "neither a machine that stands still hangs, nor one that is only slow");
    *script.deaf_for.lock().unwrap() = patience;
    machine.watch(patience);
    let reason = ExitReason::Fault("the guest hangs: it has taken no interrupt for 20 s".into());
    assert_eq!(told.recv().unwrap(), reason);
    assert_eq!(machine.state(), State::Stopped(reason));
}

#[test]
fn refuses_what_its_state_does_not_allow() {
    let (mut machine, _script, _told) = machine(1);
    let text = machine.pause().unwrap_err().to_string();
    assert_eq!(text, "cannot pause: the machine is not booted yet");
    assert!(machine.resume().is_err());
    assert!(machine.save().is_err());
    machine.boot(ENTRY).unwrap();
    assert!(machine.boot(ENTRY).is_err());
    assert!(machine.save().is_err(), "a running machine cannot be saved");
    machine.stop();
    assert!(machine.resume().is_err());
}

#[test]
fn tells_why_the_guest_ended() {
    let cases = [
        (Ok(VcpuExit::PowerOff), ExitReason::PowerOff),
        (Ok(VcpuExit::Reset), ExitReason::Reset),
        (Err(VcpuError::Fault { pc: 16, reason: "bad".into() }), ExitReason::Fault("the guest's CPU cannot go on at 0x10: bad".into())),
        (Err(VcpuError::Engine("panic".into())), ExitReason::Fault("the vCPU's thread panicked".into())),
    ];
    for (exit, reason) in cases {
        let (mut machine, script, told) = machine(1);
        machine.boot(ENTRY).unwrap();
        script.exit(exit);
        assert_eq!(told.recv().unwrap(), reason);
        assert_eq!(machine.state(), State::Stopped(reason));
        assert!(machine.pause().is_err());
    }
}

#[test]
fn a_pause_that_meets_the_guests_end_reports_it() {
    let (mut machine, script, _told) = machine(1);
    script.exit(Ok(VcpuExit::PowerOff));
    machine.boot(ENTRY).unwrap();
    // Whichever comes first, the machine ends as powered off and the pause fails.
    let error = machine.pause().unwrap_err();
    assert!(matches!(error, MachineError::WrongState { operation: "pause", state: State::Stopped(ExitReason::PowerOff) }));
}

#[test]
fn a_vcpu_that_cannot_be_made_is_an_error() {
    let builder = MachineBuilder::new(memory::anonymous(64 << 20).unwrap(), Arm64::new(Arc::new(HostClock), Box::new(Unheard))).unwrap();
    let make = |_: GuestRam, _: Arc<Bus>, _: Arc<dyn IrqChip>| Err::<FakeVcpu, _>(VcpuError::Engine("none".into()));
    assert!(matches!(builder.build(make, |_| {}), Err(MachineError::Vcpu(VcpuError::Engine(_)))));
}

#[test]
fn takes_no_more_devices_than_slots() {
    let mut builder = MachineBuilder::new(memory::anonymous(64 << 20).unwrap(), Arm64::new(Arc::new(HostClock), Box::new(Unheard))).unwrap();
    for _ in 0..layout::VIRTIO_SLOTS {
        builder.add(Rng::new()).unwrap();
    }
    assert!(matches!(builder.add(Rng::new()), Err(MachineError::NoSlot)));
    assert_eq!(builder.virtio_slots(), (0..16).collect::<Vec<_>>());
}

#[test]
fn saved_state_goes_into_a_like_machine_only() {
    let (mut first, _script, _told) = machine(2);
    first.boot(ENTRY).unwrap();
    first.uart_input().send(b"hi");
    first.pause().unwrap();
    let state = first.save().unwrap();
    assert_eq!(state.cpu, ENTRY.kernel.to_le_bytes());

    let (mut second, _script, _told) = machine(2);
    second.restore(state.clone()).unwrap();
    assert_eq!(second.state(), State::Paused);
    assert_eq!(second.save().unwrap(), state);
    assert!(second.run_time() >= first.run_time());
    second.resume().unwrap();

    let (mut other, _script, _told) = machine(1);
    let text = other.restore(state.clone()).unwrap_err().to_string();
    assert!(text.contains("rng, rng"), "{text}");

    let (mut third, _script, _told) = machine(2);
    assert!(third.restore(MachineState { cpu: Vec::new(), ..state }).is_err());
}

#[test]
fn ram_is_the_builders() {
    let (machine, _script, _told) = machine(0);
    machine.ram().write_obj(7u32, GuestAddress(layout::RAM_BASE)).unwrap();
    assert_eq!(machine.ram().read_obj::<u32>(GuestAddress(layout::RAM_BASE)).unwrap(), 7);
}
