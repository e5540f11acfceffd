//! A machine: guest RAM, one vCPU on a thread of its own, and the devices on its bus.
//!
//! ```text
//!            boot, then runs                pause
//! Created ───────────────────▶ Running ◀───────────────▶ Paused
//!    │                            │         resume          ▲  │
//!    │ restore                    │ the guest powers off,   │  │
//!    ├────────────────────────────┼─────────────────────────┘  │
//!    │                            ▼ resets or faults           │
//!    └───────────────────────▶ Stopped ◀───────────────────────┘
//!                                        stop
//! ```
//! Paused means: the vCPU stands at an instruction boundary, no request of the guest is with anybody outside, and no device
//! thread touches guest RAM. Only then may a machine be saved. A stopped machine stays stopped.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::boot::BootEntry;
use crate::bus::{Bus, Overlap};
use crate::clock::RunTime;
use crate::devices::uart::UartInput;
use crate::layout;
use crate::memory::GuestRam;
use crate::snapshot::{DeviceBytes, MachineState};
use crate::threads::{self, Role};
use crate::vcpu::{IrqChip, Vcpu, VcpuError, VcpuExit, VcpuHandle};
use crate::virtio::{GuestAccess, MmioTransport, RestoreError, Transport, VirtioDevice};

/// How long a pause waits for answers from outside (a file server, a disk) before it gives up on them.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Stack of the vCPU's thread: translating code recurses little, but C code is less frugal than ours.
const VCPU_STACK_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cannot {operation}: the machine is {state}")]
    WrongState { operation: &'static str, state: State },
    #[error("all {} virtio slots are taken", layout::VIRTIO_SLOTS)]
    NoSlot,
    #[error(transparent)]
    Overlap(#[from] Overlap),
    #[error("cannot start the vCPU's thread")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error("the vCPU's thread has died")]
    VcpuGone,
    #[error(transparent)]
    Device(#[from] RestoreError),
    #[error("saved machine does not fit this one: {0}")]
    Unfit(String),
}

/// Where a machine stands; see the drawing above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Paused,
    Stopped(ExitReason),
}

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// [`Machine::stop`] was called.
    Stopped,
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset: it rebooted, or its kernel panicked.
    Reset,
    /// The vCPU could not go on.
    Fault(String),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            State::Created => f.write_str("not booted yet"),
            State::Running => f.write_str("running"),
            State::Paused => f.write_str("paused"),
            State::Stopped(ExitReason::Fault(reason)) => write!(f, "stopped by a fault: {reason}"),
            State::Stopped(ExitReason::PowerOff) => f.write_str("powered off"),
            State::Stopped(ExitReason::Reset) => f.write_str("stopped because it asked for a reset"),
            State::Stopped(ExitReason::Stopped) => f.write_str("stopped"),
        }
    }
}

/// Assembles a machine's devices. Slots are taken in the order of [`MachineBuilder::add`], which is also the order in which
/// the guest finds them; a saved machine fits only a machine with the same devices in the same order.
pub struct MachineBuilder {
    ram: GuestRam,
    bus: Bus,
    devices: Devices,
}

/// The devices, for saving and restoring.
struct Devices {
    board: Box<dyn Board>,
    guest: Arc<GuestAccess>,
    slots: Vec<Slot>,
}

struct Slot {
    name: &'static str,
    transport: Arc<Mutex<dyn Transport>>,
}

impl MachineBuilder {
    /// Begins with what the board has.
    pub fn new(ram: GuestRam, board: Box<dyn Board>) -> Result<Self, MachineError> {
        let guest = GuestAccess::new(ram.clone(), board.irq_chip());
        // Closed until the machine runs.
        guest.close_gate();
        let mut bus = Bus::default();
        board.populate(&mut bus)?;
        Ok(Self { ram, bus, devices: Devices { board, guest, slots: Vec::new() } })
    }

    /// Puts a virtio device into the next slot.
    pub fn add(&mut self, device: impl VirtioDevice + 'static) -> Result<(), MachineError> {
        let slot = self.devices.slots.len();
        if slot == layout::VIRTIO_SLOTS {
            return Err(MachineError::NoSlot);
        }
        let name = device.name();
        let (region, interrupt) = self.devices.board.virtio_slot(slot);
        let transport = MmioTransport::new(device, self.devices.guest.clone(), interrupt);
        let transport = Arc::new(Mutex::new(transport));
        self.bus.insert(region, transport.clone())?;
        self.devices.slots.push(Slot { name, transport });
        Ok(())
    }

    /// The slots in use, for [`crate::boot::BootSource`].
    pub fn virtio_slots(&self) -> Vec<usize> {
        (0..self.devices.slots.len()).collect()
    }

    /// Makes the vCPU, on the thread where it will live, and with it the machine. `on_exit` is called once, on that
    /// thread, if the machine stops by itself.
    pub fn build<C: Vcpu>(
        self,
        make_vcpu: impl FnOnce(GuestRam, Arc<Bus>, Arc<dyn IrqChip>) -> Result<C, VcpuError> + Send + 'static,
        on_exit: impl FnOnce(&ExitReason) + Send + 'static,
    ) -> Result<Machine, MachineError> {
        let Self { ram, bus, devices } = self;
        let shared = Arc::new(Shared::default());
        let (commands, inbox) = channel();
        let (made, wait_made) = channel();
        let (ram_there, irq_chip, shared_there) = (ram.clone(), devices.board.irq_chip(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("vcpu".into())
            .stack_size(VCPU_STACK_BYTES)
            .spawn(move || {
                let mut alarm = DeathAlarm { shared: shared_there, on_exit: Some(on_exit) };
                match make_vcpu(ram_there, Arc::new(bus), irq_chip) {
                    Ok(mut vcpu) => {
                        // The builder waits for this; it cannot have gone.
                        let _ = made.send(Ok(vcpu.handle()));
                        threads::begin(Role::Vcpu);
                        serve(&mut vcpu, &inbox, &mut alarm);
                    }
                    Err(error) => drop(made.send(Err(error))),
                }
            })
            .map_err(MachineError::Thread)?;
        let handle = match wait_made.recv() {
            Ok(Ok(handle)) => handle,
            failed => {
                let panicked = thread.join().is_err();
                tracing::debug!(panicked, "no vCPU");
                return Err(failed.map_or(MachineError::VcpuGone, |made| made.map_or_else(Into::into, |_| MachineError::VcpuGone)));
            }
        };
        devices.board.connect(handle.clone());
        devices.guest.connect(handle.clone());
        Ok(Machine { ram, devices, shared, handle, commands: Some(commands), thread: Some(thread) })
    }
}

/// A machine; dropping it stops it. All methods may be called from one thread at a time.
pub struct Machine {
    ram: GuestRam,
    devices: Devices,
    shared: Arc<Shared>,
    handle: Arc<dyn VcpuHandle>,
    /// Absent once the machine has been stopped.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    standing: Mutex<Standing>,
    changed: Condvar,
}

struct Standing {
    state: State,
    run_time: RunTime,
    /// The vCPU is inside `run`.
    running: bool,
    /// Why it was stopped, if not to go on.
    verdict: Option<ExitReason>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { state: State::Created, run_time: RunTime::default(), running: false, verdict: None }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("nothing panics while it holds the machine's state")
    }
}

enum Command {
    SetBootState(BootEntry, Sender<Result<(), VcpuError>>),
    Run,
    Save(Sender<Result<Vec<u8>, VcpuError>>),
    Restore(Vec<u8>, Sender<Result<(), VcpuError>>),
}

impl Machine {
    pub fn state(&self) -> State {
        self.shared.lock().state.clone()
    }

    /// For how long the guest has run, pauses not counted.
    pub fn run_time(&self) -> Duration {
        self.shared.lock().run_time.at(Instant::now())
    }

    /// What other threads may ask of the vCPU.
    pub fn vcpu(&self) -> Arc<dyn VcpuHandle> {
        self.handle.clone()
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Types into the serial console.
    pub fn uart_input(&self) -> UartInput {
        self.devices.board.uart_input()
    }

    /// Starts the kernel that [`crate::boot::load`] put into RAM.
    pub fn boot(&mut self, entry: BootEntry) -> Result<(), MachineError> {
        self.expect("boot", &State::Created)?;
        self.ask(|reply| Command::SetBootState(entry, reply))??;
        self.run()
    }

    /// Lets a paused machine go on.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        self.expect("resume", &State::Paused)?;
        self.run()
    }

    /// Stops the vCPU and quiets the devices. Fails if the machine does not run, or stops by itself meanwhile.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        self.expect("pause", &State::Running)?;
        self.handle.stop();
        let mut standing = self.shared.lock();
        while standing.running {
            standing = self.shared.changed.wait(standing).expect("nothing panics while it holds the machine's state");
        }
        let state = standing.state.clone();
        drop(standing);
        if state != State::Running {
            return Err(MachineError::WrongState { operation: "pause", state });
        }
        let deadline = Instant::now() + QUIESCE_TIMEOUT;
        for slot in &self.devices.slots {
            slot.lock().quiesce(deadline.saturating_duration_since(Instant::now()));
        }
        self.devices.guest.close_gate();
        self.shared.lock().state = State::Paused;
        Ok(())
    }

    /// Everything but RAM, of a paused machine.
    pub fn save(&mut self) -> Result<MachineState, MachineError> {
        self.expect("save", &State::Paused)?;
        let cpu = self.ask(Command::Save)??;
        let devices = self.devices.slots.iter();
        let devices = devices.map(|slot| DeviceBytes { name: slot.name.into(), bytes: slot.lock().save() }).collect();
        Ok(MachineState {
            run_time: self.run_time(),
            board: self.devices.board.save(),
            cpu,
            devices,
        })
    }

    /// Takes up a saved state; RAM was mapped from the same snapshot. The machine is then paused. After a failure it must
    /// be dropped.
    pub fn restore(&mut self, state: MachineState) -> Result<(), MachineError> {
        self.expect("restore", &State::Created)?;
        let names = |of: &mut dyn Iterator<Item = &str>| of.collect::<Vec<_>>().join(", ");
        let saved = names(&mut state.devices.iter().map(|d| d.name.as_str()));
        let ours = names(&mut self.devices.slots.iter().map(|s| s.name));
        if saved != ours {
            return Err(MachineError::Unfit(format!("it has the devices {saved}; this one has {ours}")));
        }
        self.ask(|reply| Command::Restore(state.cpu, reply))??;
        // The board after the CPU, whose interrupt input it drives, and before the devices, which may at once have news for it.
        self.devices.board.restore(state.board).map_err(|other| MachineError::Unfit(format!("it is of {other}")))?;
        for (slot, device) in self.devices.slots.iter().zip(&state.devices) {
            slot.lock().restore(&device.bytes)?;
        }
        let mut standing = self.shared.lock();
        standing.run_time = RunTime::from(state.run_time);
        standing.state = State::Paused;
        Ok(())
    }

    /// Ends a machine whose guest hangs: that has taken no interrupt for so much of the time in which it could.
    pub fn watch(&self, patience: Duration) {
        let mut standing = self.shared.lock();
        if standing.state == State::Running && self.handle.deaf_for() >= patience {
            standing.verdict = Some(ExitReason::Fault(format!("the guest hangs: it has taken no interrupt for {} s", patience.as_secs())));
            drop(standing);
            self.handle.stop();
        }
    }

    /// Stops the machine for good. Its RAM and its devices' outside halves live until it is dropped.
    pub fn stop(&mut self) {
        {
            let mut standing = self.shared.lock();
            if !matches!(standing.state, State::Stopped(_)) {
                standing.state = State::Stopped(ExitReason::Stopped);
            }
        }
        self.handle.stop();
        self.commands = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the vCPU's thread had panicked");
        }
    }

    fn run(&mut self) -> Result<(), MachineError> {
        {
            let mut standing = self.shared.lock();
            standing.state = State::Running;
            standing.running = true;
            standing.run_time.start(Instant::now());
        }
        self.devices.guest.open_gate();
        self.send(Command::Run)
    }

    fn expect(&self, operation: &'static str, wanted: &State) -> Result<(), MachineError> {
        let state = self.state();
        if &state == wanted { Ok(()) } else { Err(MachineError::WrongState { operation, state }) }
    }

    fn ask<R>(&self, command: impl FnOnce(Sender<R>) -> Command) -> Result<R, MachineError> {
        let (reply, answer) = channel();
        self.send(command(reply))?;
        answer.recv().map_err(|_| MachineError::VcpuGone)
    }

    fn send(&self, command: Command) -> Result<(), MachineError> {
        let commands = self.commands.as_ref().ok_or(MachineError::VcpuGone)?;
        commands.send(command).map_err(|_| MachineError::VcpuGone)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        // Device threads that still wait at the gate see their stop flags when the board goes.
        self.devices.guest.open_gate();
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, dyn Transport + 'static> {
        lock(&self.transport)
    }
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().expect("no device panics while it holds its lock")
}

/// Marks the machine as stopped when the vCPU's thread ends, however it ends, and tells so once.
struct DeathAlarm<F: FnOnce(&ExitReason)> {
    shared: Arc<Shared>,
    on_exit: Option<F>,
}

impl<F: FnOnce(&ExitReason)> DeathAlarm<F> {
    /// The vCPU left its run.
    fn left(&mut self, exit: Result<VcpuExit, VcpuError>) {
        match exit {
            Ok(VcpuExit::Stopped) => {
                let mut standing = self.shared.lock();
                standing.run_time.stop(Instant::now());
                standing.running = false;
                let verdict = standing.verdict.take();
                drop(standing);
                if let Some(reason) = verdict {
                    self.died(reason);
                }
            }
            Ok(VcpuExit::PowerOff) => self.died(ExitReason::PowerOff),
            Ok(VcpuExit::Reset) => self.died(ExitReason::Reset),
            Err(error) => self.died(ExitReason::Fault(error.to_string())),
        }
        self.shared.changed.notify_all();
    }

    fn died(&mut self, reason: ExitReason) {
        let mut standing = self.shared.lock();
        standing.run_time.stop(Instant::now());
        standing.running = false;
        let news = !matches!(standing.state, State::Stopped(_));
        if news {
            standing.state = State::Stopped(reason.clone());
        }
        drop(standing);
        if let (true, Some(on_exit)) = (news, self.on_exit.take()) {
            on_exit(&reason);
        }
    }
}

impl<F: FnOnce(&ExitReason)> Drop for DeathAlarm<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.died(ExitReason::Fault("the vCPU's thread panicked".into()));
            self.shared.changed.notify_all();
        }
    }
}

/// The vCPU's thread: does what it is told until the machine lets go of it.
fn serve(vcpu: &mut impl Vcpu, inbox: &Receiver<Command>, alarm: &mut DeathAlarm<impl FnOnce(&ExitReason)>) {
    // Whoever asked may have gone; then nobody needs the reply.
    for command in inbox {
        match command {
            Command::SetBootState(entry, reply) => drop(reply.send(vcpu.set_boot_state(entry.kernel, entry.parameters))),
            Command::Run => alarm.left(vcpu.run()),
            Command::Save(reply) => drop(reply.send(vcpu.save())),
            Command::Restore(state, reply) => drop(reply.send(vcpu.restore(&state))),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
