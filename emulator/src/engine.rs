//! The binding to the engine: the only unsafe code of this crate.
//!
//! An [`Engine`] is one arm64 CPU. What lies around it - devices, firmware, timer interrupt - is an [`Around`], called
//! by the engine in the middle of [`Engine::run`], on the same thread, by shared reference. Other threads have only
//! [`Kick`].

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};

use unicorn_engine_sys as sys;
use vm_memory::{GuestMemory, GuestMemoryRegion, GuestRegionMmap};
use vmm::layout::Region;
use vmm::memory::GuestRam;

use sys::RegisterARM64 as Register;

/// What surrounds the CPU. Called on the CPU's thread, while it runs. A panic in here ends the process: the engine's
/// frames cannot be unwound.
pub(crate) trait Around {
    /// Somebody kicked: take up what was left for the CPU.
    fn attend(&self, cpu: &Running<'_>);
    /// The guest waits for an interrupt; return when there may be one.
    fn idle(&self, cpu: &Running<'_>);
    /// The guest calls the firmware by HVC or SMC with `x0` to `x3`; the result is its new `x0`.
    fn firmware(&self, cpu: &Running<'_>, args: [u64; 4]) -> u64;
    /// The guest wrote a register of its physical timer.
    fn timer(&self, timer: Timer);
    /// Access to device registers; addresses are guest physical, data little-endian.
    fn read(&self, address: u64, data: &mut [u8]);
    fn write(&self, address: u64, data: &[u8]);
}

/// The physical timer's registers: CNTP_CTL_EL0 and CNTP_CVAL_EL0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) control: u32,
    pub(crate) compare: u64,
}

/// A system register by its encoding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemRegister {
    pub(crate) op0: u32,
    pub(crate) op1: u32,
    pub(crate) crn: u32,
    pub(crate) crm: u32,
    pub(crate) op2: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("{operation}: {error}")]
pub(crate) struct EngineError {
    operation: &'static str,
    error: sys::uc_error,
}

pub(crate) fn check(operation: &'static str, error: sys::uc_error) -> Result<(), EngineError> {
    if error == sys::uc_error::OK { Ok(()) } else { Err(EngineError { operation, error }) }
}

/// One CPU and the RAM it runs on.
pub(crate) struct Engine<A: Around> {
    uc: *mut sys::uc_engine,
    /// What the callbacks get; made by `Box::into_raw`, freed on drop.
    around: *mut Surroundings<A>,
    kick: Arc<Kick>,
    /// The engine holds plain pointers into it.
    _ram: GuestRam,
}

struct Surroundings<A> {
    around: A,
    mmio: Region,
}

impl<A: Around> Engine<A> {
    /// Makes a CPU of a model (`Arm64CpuModel`) with all of `ram`, and `around` answering for the addresses of `mmio`.
    pub(crate) fn new(model: sys::Arm64CpuModel, tcg_buffer_bytes: u32, ram: GuestRam, mmio: Region, around: A) -> Result<Self, EngineError> {
        let mut uc = ptr::null_mut();
        // SAFETY: `uc` is where the new engine's address goes.
        check("open the engine", unsafe { sys::uc_open(sys::Arch::ARM64, sys::Mode::ARM, &mut uc) })?;
        let around = Box::into_raw(Box::new(Surroundings { around, mmio }));
        // From here on, dropping `engine` closes and frees.
        let engine = Self { uc, around, kick: Kick::new(uc, sys::uc_machine_kick), _ram: ram.clone() };
        engine.control("choose the CPU model", sys::ControlType::CPU_MODEL, model as u32)?;
        engine.control("set the translation buffer", sys::ControlType::TCG_BUFFER_SIZE, tcg_buffer_bytes)?;
        engine.control("leave out exit addresses", sys::ControlType::UC_USE_EXITS, 1)?;
        for region in ram.iter() {
            engine.map_ram(region)?;
        }
        let opaque = around.cast::<c_void>();
        // SAFETY: the callbacks take `opaque` for what it is, a `Surroundings<A>` that lives as long as the engine.
        check("map devices", unsafe {
            sys::uc_mmio_map(uc, mmio.base, mmio.size, Some(on_read::<A>), opaque, Some(on_write::<A>), opaque)
        })?;
        let machine = sys::uc_machine {
            attend: Some(on_attend::<A>),
            idle: Some(on_idle::<A>),
            firmware: Some(on_firmware::<A>),
            timer: Some(on_timer::<A>),
            opaque,
        };
        // SAFETY: as above; the structure is copied.
        check("attach the machine", unsafe { sys::uc_machine_attach(uc, &machine) })?;
        Ok(engine)
    }

    /// Writes one of the engine's options, which take an `int`.
    fn control(&self, operation: &'static str, option: sys::ControlType, value: u32) -> Result<(), EngineError> {
        const ONE_ARGUMENT: c_uint = 1 << 26;
        const WRITE: c_uint = 1 << 30;
        let control = sys::ControlType(option.0 | ONE_ARGUMENT | WRITE);
        // SAFETY: the engine is open, and reads one int for a control so encoded.
        check(operation, unsafe { sys::uc_ctl(self.uc, control, value) })
    }

    fn map_ram(&self, region: &GuestRegionMmap<()>) -> Result<(), EngineError> {
        let all = sys::Prot::ALL.0;
        // SAFETY: the mapping is as long as the region says and lives as long as the engine, which owns `_ram`.
        // The guest's accesses race with those of devices as on real hardware; all go through plain pointers.
        check("map RAM", unsafe {
            sys::uc_mem_map_ptr(self.uc, region.start_addr().0, region.len(), all, region.as_ptr().cast())
        })
    }

    pub(crate) fn around(&self) -> &A {
        // SAFETY: the box lives until `self` is dropped, and only shared references to it are ever made.
        unsafe { &(*self.around).around }
    }

    pub(crate) fn kick(&self) -> Arc<Kick> {
        self.kick.clone()
    }

    /// Runs from the current PC until [`Running::stop`].
    pub(crate) fn run(&mut self) -> Result<(), EngineError> {
        let pc = self.pc();
        // SAFETY: the engine is open and not running (`&mut self`); its callbacks only share `around`.
        check("run the guest", unsafe { sys::uc_emu_start(self.uc, pc, 0, 0, 0) })
    }

    pub(crate) fn pc(&self) -> u64 {
        self.register(Register::PC)
    }

    pub(crate) fn register(&self, register: Register) -> u64 {
        let mut value = 0_u64;
        // SAFETY: none of the registers that this crate names is wider than 64 bits.
        let error = unsafe { sys::uc_reg_read(self.uc, register as i32, (&raw mut value).cast()) };
        debug_assert_eq!(error, sys::uc_error::OK);
        value
    }

    pub(crate) fn set_register(&mut self, register: Register, value: u64) -> Result<(), EngineError> {
        // SAFETY: none of the registers that this crate names is wider than 64 bits; the engine does not run.
        check("write a register", unsafe { sys::uc_reg_write(self.uc, register as i32, (&raw const value).cast()) })
    }

    pub(crate) fn set_system_register(&mut self, register: SystemRegister, value: u64) -> Result<(), EngineError> {
        let SystemRegister { op0, op1, crn, crm, op2 } = register;
        let value = sys::RegisterARM64CP { crn, crm, op0, op1, op2, val: value };
        // SAFETY: CP_REG takes a pointer to this structure; the engine does not run.
        check("write a system register", unsafe {
            sys::uc_reg_write(self.uc, Register::CP_REG as i32, (&raw const value).cast())
        })
    }

    /// The generic timer's counter reads (CLOCK_MONOTONIC - origin) / 16 ns.
    pub(crate) fn set_clock(&mut self, origin_ns: i64) {
        // SAFETY: the engine is open and does not run.
        unsafe { sys::uc_machine_set_clock(self.uc, origin_ns) }
    }

    pub(crate) fn timer(&self) -> Timer {
        let mut timer = Timer::default();
        // SAFETY: the engine is open; both places are ours.
        unsafe { sys::uc_machine_timer(self.uc, &mut timer.control, &mut timer.compare) };
        timer
    }

    /// How much translated code there is.
    #[cfg(test)]
    pub(crate) fn code_bytes(&self) -> usize {
        // SAFETY: the engine is open.
        unsafe { sys::uc_machine_code_bytes(self.uc) }
    }

    /// Times that the CPU has left translated code for the engine's main loop.
    #[cfg(test)]
    pub(crate) fn turns(&self) -> u64 {
        // SAFETY: the engine is open.
        unsafe { sys::uc_machine_turns(self.uc) }
    }

    /// The CPU's registers, readable only by the same build with the same model.
    pub(crate) fn save(&self) -> Vec<u8> {
        let mut state = vec![0; self.state_bytes()];
        // SAFETY: the buffer is as long as the engine asks for.
        unsafe { sys::uc_machine_save(self.uc, state.as_mut_ptr().cast()) };
        state
    }

    /// Takes up saved registers; gives `false`, and does nothing, if there are not as many as there must be.
    pub(crate) fn restore(&mut self, state: &[u8]) -> bool {
        if state.len() != self.state_bytes() {
            return false;
        }
        // SAFETY: the buffer is as long as the engine reads; it holds plain numbers, any of which the CPU can stand;
        // the engine does not run.
        unsafe { sys::uc_machine_restore(self.uc, state.as_ptr().cast()) };
        true
    }

    fn state_bytes(&self) -> usize {
        // SAFETY: the engine is open.
        unsafe { sys::uc_machine_state_size(self.uc) }
    }
}

impl<A: Around> Drop for Engine<A> {
    fn drop(&mut self) {
        self.kick.release();
        // SAFETY: nobody else has the address any more: `Running`s end with a run, and `Kick` has just let go of it.
        // After closing, no callback comes, so that nothing refers to the surroundings.
        unsafe {
            sys::uc_close(self.uc);
            drop(Box::from_raw(self.around));
        }
    }
}

/// The engine as a callback sees it: between two blocks of guest code.
pub(crate) struct Running<'a>(*mut sys::uc_engine, PhantomData<&'a ()>);

impl Running<'_> {
    /// Level of the CPU's IRQ input.
    pub(crate) fn set_irq(&self, asserted: bool) {
        // SAFETY: we are in a callback that comes between blocks, on the CPU's thread.
        unsafe { sys::uc_machine_set_irq(self.0, asserted) }
    }

    /// Drops code translated from this guest physical range.
    pub(crate) fn invalidate(&self, address: u64, len: u64) {
        // SAFETY: as above; addresses that are not RAM are skipped.
        unsafe { sys::uc_machine_invalidate(self.0, address, len) }
    }

    /// See [`Engine::set_clock`].
    pub(crate) fn set_clock(&self, origin_ns: i64) {
        // SAFETY: as above; the engine reads it when the guest next reads its counter.
        unsafe { sys::uc_machine_set_clock(self.0, origin_ns) }
    }

    /// How much translated code there is.
    pub(crate) fn code_bytes(&self) -> usize {
        // SAFETY: as above.
        unsafe { sys::uc_machine_code_bytes(self.0) }
    }

    /// Drops all translated code, whose memory the host has back. Only in [`Around::attend`].
    pub(crate) fn forget(&self) {
        // SAFETY: as above; a CPU that attends is within no translated code.
        unsafe { sys::uc_machine_forget(self.0) }
    }

    /// Ends the run before the next block.
    pub(crate) fn stop(&self) {
        // SAFETY: as above; the engine only sets flags.
        unsafe { sys::uc_emu_stop(self.0) };
    }
}

/// Makes a CPU call [`Around::attend`] soon. For any thread; does nothing once the CPU is gone.
pub(crate) struct Kick {
    uc: Mutex<*mut sys::uc_engine>,
    kick: unsafe extern "C" fn(*mut sys::uc_engine),
}

// SAFETY: the pointer is used only for `kick`, which any thread may call while the engine is open; the lock keeps it open
// meanwhile, because dropping the engine takes the pointer away first.
unsafe impl Send for Kick {}
// SAFETY: as above.
unsafe impl Sync for Kick {}

impl Kick {
    /// `kick` is the engine's function that any thread may call while `uc` is open.
    pub(crate) fn new(uc: *mut sys::uc_engine, kick: unsafe extern "C" fn(*mut sys::uc_engine)) -> Arc<Self> {
        Arc::new(Self { uc: Mutex::new(uc), kick })
    }

    /// One whose engine is closed.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Arc<Self> {
        Self::new(ptr::null_mut(), sys::uc_machine_kick)
    }

    /// The engine is about to be closed.
    pub(crate) fn release(&self) {
        *self.lock() = ptr::null_mut();
    }

    pub(crate) fn send(&self) {
        let uc = self.lock();
        if !uc.is_null() {
            // SAFETY: not null, so the engine is open, and stays so while we hold the lock.
            unsafe { (self.kick)(*uc) }
        }
    }

    fn lock(&self) -> MutexGuard<'_, *mut sys::uc_engine> {
        self.uc.lock().expect("nothing panics while it holds this lock")
    }
}

/// What `opaque` stands for.
///
/// # Safety
/// `opaque` must be the pointer that [`Engine::new`] gave to the engine, and the engine open.
unsafe fn surroundings<'a, A>(opaque: *mut c_void) -> &'a Surroundings<A> {
    // SAFETY: the caller's promise; only shared references to it are ever made.
    unsafe { &*opaque.cast::<Surroundings<A>>() }
}

// SAFETY, for all callbacks: the engine calls them with the pointer given to it in `Engine::new`, while it is open.

unsafe extern "C" fn on_attend<A: Around>(uc: *mut sys::uc_engine, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.attend(&Running(uc, PhantomData));
}

unsafe extern "C" fn on_idle<A: Around>(uc: *mut sys::uc_engine, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.idle(&Running(uc, PhantomData));
}

unsafe extern "C" fn on_firmware<A: Around>(uc: *mut sys::uc_engine, args: *const u64, opaque: *mut c_void) -> u64 {
    // SAFETY: see above; `args` are the registers from x0 on, of which there are more than four.
    let (surroundings, args) = unsafe { (surroundings::<A>(opaque), *args.cast::<[u64; 4]>()) };
    surroundings.around.firmware(&Running(uc, PhantomData), args)
}

unsafe extern "C" fn on_timer<A: Around>(_: *mut sys::uc_engine, control: u32, compare: u64, opaque: *mut c_void) {
    // SAFETY: see above.
    unsafe { surroundings::<A>(opaque) }.around.timer(Timer { control, compare });
}

unsafe extern "C" fn on_read<A: Around>(_: *mut sys::uc_engine, offset: u64, size: c_uint, opaque: *mut c_void) -> u64 {
    // SAFETY: see above.
    let surroundings = unsafe { surroundings::<A>(opaque) };
    let mut data = [0; 8];
    surroundings.around.read(surroundings.mmio.base + offset, &mut data[..size.min(8) as usize]);
    u64::from_le_bytes(data)
}

unsafe extern "C" fn on_write<A: Around>(_: *mut sys::uc_engine, offset: u64, size: c_uint, value: u64, opaque: *mut c_void) {
    // SAFETY: see above.
    let surroundings = unsafe { surroundings::<A>(opaque) };
    surroundings.around.write(surroundings.mmio.base + offset, &value.to_le_bytes()[..size.min(8) as usize]);
}
