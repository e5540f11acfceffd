//! The twin's machine as this process builds and drives it: what the control socket asks for happens here.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use emulator::config::TwinConfig;
use emulator::processor::{BootSource, Processor};
use vmm::boot::{BootEntry, BootError};
use vmm::machine::{ExitReason, Machine, MachineError, State};
use vmm::memory::{GuestRam, MemoryError};
use vmm::snapshot::{self, MachineState, Origin, Snapshot, SnapshotError};
use vmm::vcpu::VcpuHandle;
use vmm::virtio::block::Block;
use vmm::virtio::console::{Console as ConsoleDevice, PortSpec, Ports};
use vmm::virtio::fs::Fs;
use vmm::virtio::gpu::{Gpu, Screen};
use vmm::virtio::input::{Event, Input, InputError, InputOrder, InputSender};
use vmm::virtio::net::Net;
use vmm::virtio::rng::Rng;

use crate::console::Console;

/// The console port on which the guest hears which of its files changed underneath it.
const POKE_PORT: &str = "org.pollux.poke";
/// Pokes that wait for a guest that does not read its port.
const POKES_WAITING_MAX: usize = 64;

/// A guest that takes no interrupt for so long will never again. Of its own time, so that a busy host is no hang.
const DEAF_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TwinError {
    #[error("cannot {operation}: the machine is {state}")]
    WrongState { operation: &'static str, state: State },
    #[error("cannot start the machine again after a start that failed: start another pollux-twin")]
    Spent,
    #[error("cannot open {what} {path}: {source}")]
    Open { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot connect {what} to {path}: {source}")]
    Connect { what: String, path: PathBuf, source: std::io::Error },
    #[error("cannot make {what}: {reason}")]
    Device { what: &'static str, reason: String },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the guest does not read its port {POKE_PORT}")]
    PokeUnread,
    #[error("port {POKE_PORT} is joined to a socket by the configuration; poke the guest there")]
    PokeElsewhere,
    #[error("no randomness from the host: {0}")]
    Randomness(std::io::Error),
    #[error("pass an open file with the request")]
    NoFile,
}

/// One machine and what this process keeps of it. Shared by all who drive or watch it.
pub(crate) struct Twin {
    config: TwinConfig,
    pub(crate) processor: Processor,
    pub(crate) screen: Screen,
    pub(crate) keyboard: InputSender,
    pub(crate) touch: InputSender,
    pub(crate) console: Console,
    /// What is missing of the cage.
    pub(crate) cage_lacks: Vec<String>,
    on_exit: Arc<dyn Fn(&ExitReason) + Send + Sync>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Made with the twin, because their outside halves are there from the beginning; gone once a machine was built.
    panel: Option<Panel>,
    /// Gone likewise.
    outside: Option<Outside>,
    machine: Option<Machine>,
    /// Of a restored machine.
    origin: Option<Origin>,
    ports: Option<Ports>,
    pokes: Option<SyncSender<String>>,
}

struct Panel {
    gpu: Gpu,
    keyboard: Input,
    touch: Input,
}

/// What a machine needs from outside this process, opened before the cage is closed.
pub(crate) struct Outside {
    beginning: Beginning,
    channels: Channels,
    /// The longest of the disks' files, in bytes.
    pub(crate) disk_bytes_max: u64,
}

struct Channels {
    disks: Vec<Block>,
    flash: Option<Fs>,
    net: Option<Net>,
    ports: Vec<PortSpec>,
    /// This end of the poke port, unless the configuration joins it to a socket.
    pokes: Option<UnixStream>,
}

/// What is in RAM when the machine begins.
enum Beginning {
    Kernel(GuestRam, BootEntry),
    Saved { ram: GuestRam, state: MachineState, origin: Origin },
}

impl Outside {
    /// Opens what the configuration names, and connects to its sockets.
    pub(crate) fn reach(config: &TwinConfig, processor: &Processor) -> Result<Self, TwinError> {
        let beginning = match &config.restore {
            Some(saved) => open_saved(saved, config)?,
            None => load_kernel(config, processor)?,
        };
        let mut disk_bytes_max = 0;
        let disks = config.disks.iter().map(|disk| {
            let opened = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path);
            let measured = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
            let (file, bytes) = measured.map_err(|source| TwinError::Open { what: "disk", path: disk.path.clone(), source })?;
            disk_bytes_max = disk_bytes_max.max(bytes);
            Block::new(file, disk.read_only).map_err(|e| failed("a disk", e))
        });
        let disks = disks.collect::<Result<_, _>>()?;
        let flash = config.flash.as_ref().map(|flash| {
            Fs::new(&flash.tag, connect("the flash", &flash.socket)?).map_err(|e| failed("the flash", e))
        });
        let net = config.net.as_ref().map(|net| {
            Net::new(net.mac.0, connect("the network", &net.socket)?).map_err(|e| failed("the network card", e))
        });
        let mut ports = Vec::new();
        for port in &config.ports {
            let channel = connect(&format!("port {}", port.name), &port.socket)?;
            ports.push(PortSpec { name: port.name.clone(), channel });
        }
        let pokes = if ports.iter().any(|p| p.name == POKE_PORT) {
            None
        } else {
            let (ours, theirs) = UnixStream::pair().map_err(|e| failed("the poke port", e))?;
            ports.push(PortSpec { name: POKE_PORT.into(), channel: theirs });
            Some(ours)
        };
        let channels = Channels { disks, flash: flash.transpose()?, net: net.transpose()?, ports, pokes };
        Ok(Self { beginning, channels, disk_bytes_max })
    }
}

fn load_kernel(config: &TwinConfig, processor: &Processor) -> Result<Beginning, TwinError> {
    let ram = processor.ram(config.ram_bytes())?;
    let slots: Vec<usize> = (0..slot_count(config)).collect();
    let entry = processor.load(&ram, &BootSource {
        kernel: &config.image.kernel,
        initramfs: config.image.initramfs.as_deref(),
        cmdline: &config.image.cmdline,
        virtio_slots: &slots,
        rng_seed: random()?,
    })?;
    Ok(Beginning::Kernel(ram, entry))
}

/// `base` is what the machine was saved as the difference from. With `verify`, reads all of its RAM first to see that it is whole.
fn open_saved(path: &Path, config: &TwinConfig) -> Result<Beginning, SnapshotError> {
    let build = Twin::build();
    let open_base = |path: &Path| {
        if !config.base_on_stdin {
            return Snapshot::open(path, &build);
        }
        let open = std::io::stdin().as_fd().try_clone_to_owned();
        let file = open.map_err(|source| SnapshotError::Io { operation: "read", path: path.into(), source })?;
        Snapshot::of(file.into(), path, &build)
    };
    let (snapshot, base) = match &config.base {
        Some(base) => (Snapshot::open(path, &build)?, Some(open_base(base)?)),
        None => (open_base(path)?, None),
    };
    if config.verify {
        snapshot.verify_ram()?;
    }
    Ok(Beginning::Saved { ram: snapshot.ram(base.as_ref())?, state: snapshot.state(), origin: snapshot.origin()? })
}

fn slot_count(config: &TwinConfig) -> usize {
    let fixed = ["gpu", "keyboard", "touch", "rng", "console"].len();
    fixed + config.disks.len() + usize::from(config.flash.is_some()) + usize::from(config.net.is_some())
}

impl Twin {
    /// `on_exit` is called once if the machine stops by itself, on the machine's thread; it must not call back.
    pub(crate) fn new(
        config: TwinConfig,
        processor: Processor,
        outside: Outside,
        cage_lacks: Vec<String>,
        on_exit: impl Fn(&ExitReason) + Send + Sync + 'static,
        console: Console,
    ) -> Result<Self, TwinError> {
        let (width, height) = (config.display.width, config.display.height);
        let gpu = Gpu::new(width, height).map_err(|e| failed("the screen", e))?;
        let order = InputOrder::default();
        let keyboard = Input::keyboard(&order).map_err(|e| failed("the keyboard", e))?;
        let touch = Input::touch(width, height, &order).map_err(|e| failed("the touch panel", e))?;
        Ok(Self {
            config,
            processor,
            screen: gpu.screen(),
            keyboard: keyboard.sender(),
            touch: touch.sender(),
            console,
            cage_lacks,
            on_exit: Arc::new(on_exit),
            inner: Mutex::new(Inner {
                panel: Some(Panel { gpu, keyboard, touch }),
                outside: Some(outside),
                machine: None,
                origin: None,
                ports: None,
                pokes: None,
            }),
        })
    }

    /// Who can restore what this build saves.
    pub(crate) fn build() -> String {
        format!("pollux-twin {} with {}", env!("CARGO_PKG_VERSION"), unicorn_engine_sys::BUILD_ID)
    }

    pub(crate) fn boot(&self) -> Result<(), TwinError> {
        let mut inner = self.lock();
        inner.expect("boot", &State::Created)?;
        let Some(Outside { beginning: Beginning::Kernel(ram, entry), channels, .. }) = inner.outside.take() else {
            return Err(TwinError::Spent);
        };
        let machine = self.build_machine(&mut inner, ram, channels)?;
        Ok(inner.machine.insert(machine).boot(entry)?)
    }

    /// Takes up the saved machine that the configuration names, which is then paused.
    pub(crate) fn restore(&self) -> Result<(), TwinError> {
        let mut inner = self.lock();
        inner.expect("restore", &State::Created)?;
        let Some(Outside { beginning: Beginning::Saved { ram, state, origin }, channels, .. }) = inner.outside.take() else {
            return Err(TwinError::Spent);
        };
        let mut machine = self.build_machine(&mut inner, ram, channels)?;
        machine.restore(state)?;
        inner.machine = Some(machine);
        inner.origin = Some(origin);
        Ok(())
    }

    pub(crate) fn pause(&self) -> Result<(), TwinError> {
        Ok(self.lock().machine("pause")?.pause()?)
    }

    pub(crate) fn resume(&self) -> Result<(), TwinError> {
        Ok(self.lock().machine("resume")?.resume()?)
    }

    /// Writes the paused machine to an open file; if `whole` is not asked for, only what differs from its base, if it has one. Says whether
    /// it has.
    pub(crate) fn save(&self, file: &File, whole: bool) -> Result<bool, TwinError> {
        let mut inner = self.lock();
        let state = inner.machine("save")?.save()?;
        let ram = inner.machine("save")?.ram().clone();
        let origin = inner.origin.as_ref().filter(|_| !whole);
        snapshot::write(file, &Self::build(), &state, &ram, origin)?;
        Ok(origin.is_some())
    }

    /// Looks whether the guest hangs, and ends a machine whose guest does.
    pub(crate) fn watch(&self) {
        if let Some(machine) = &self.lock().machine {
            machine.watch(DEAF_MAX);
        }
    }

    /// Ends the machine; the guest notices nothing.
    pub(crate) fn stop(&self) {
        if let Some(machine) = &mut self.lock().machine {
            machine.stop();
        }
        self.console.flush();
    }

    pub(crate) fn state(&self) -> (State, Duration) {
        let inner = self.lock();
        inner.machine.as_ref().map_or((State::Created, Duration::ZERO), |m| (m.state(), m.run_time()))
    }

    pub(crate) fn send_keyboard(&self, frame: &[Event]) -> Result<(), TwinError> {
        Ok(self.keyboard.send(frame)?)
    }

    pub(crate) fn send_touch(&self, frame: &[Event]) -> Result<(), TwinError> {
        Ok(self.touch.send(frame)?)
    }

    /// Tells the guest, in one line on its port.
    pub(crate) fn poke(&self, line: String) -> Result<(), TwinError> {
        let mut inner = self.lock();
        inner.machine("poke")?;
        let pokes = inner.pokes.as_ref().ok_or(TwinError::PokeElsewhere)?;
        pokes.try_send(line).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => TwinError::PokeUnread,
        })
    }

    /// The guest's ports, once there is a guest.
    pub(crate) fn ports(&self) -> Result<Ports, TwinError> {
        self.lock().ports.clone().ok_or(TwinError::WrongState { operation: "wait for a port", state: State::Created })
    }

    /// What other threads may ask of the vCPU, once there is one.
    pub(crate) fn vcpu(&self) -> Result<Arc<dyn VcpuHandle>, TwinError> {
        Ok(self.lock().machine("ask for the time")?.vcpu())
    }

    /// Types on the serial console; says how many bytes found room.
    pub(crate) fn type_on_console(&self, text: &str) -> Result<usize, TwinError> {
        Ok(self.lock().machine("type on the console")?.uart_input().send(text.as_bytes()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the machine")
    }

    /// Devices in the order in which the guest finds them.
    fn build_machine(&self, inner: &mut Inner, ram: GuestRam, channels: Channels) -> Result<Machine, TwinError> {
        let panel = inner.panel.take().ok_or(TwinError::Spent)?;
        let tcg_buffer_bytes = (self.config.cpu.tcg_buffer_mib << 20) as usize;
        let (mut builder, make_cpu) = self.processor.machine(ram, self.console.sink(), tcg_buffer_bytes)?;
        builder.add(panel.gpu)?;
        builder.add(panel.keyboard)?;
        builder.add(panel.touch)?;
        builder.add(Rng::new())?;
        let console = ConsoleDevice::new(channels.ports).map_err(|e| failed("the console ports", e))?;
        inner.ports = Some(console.ports());
        builder.add(console)?;
        channels.disks.into_iter().try_for_each(|disk| builder.add(disk))?;
        channels.flash.into_iter().try_for_each(|flash| builder.add(flash))?;
        channels.net.into_iter().try_for_each(|net| builder.add(net))?;
        assert_eq!(builder.virtio_slots().len(), slot_count(&self.config), "the kernel is told of what is there");
        inner.pokes = channels.pokes.map(poke_writer).transpose().map_err(|e| failed("the poke port", e))?;
        let on_exit = self.on_exit.clone();
        Ok(builder.build(make_cpu, move |reason| on_exit(reason))?)
    }
}

impl Inner {
    fn expect(&self, operation: &'static str, wanted: &State) -> Result<(), TwinError> {
        let state = self.machine.as_ref().map_or(State::Created, Machine::state);
        if &state == wanted { Ok(()) } else { Err(TwinError::WrongState { operation, state }) }
    }

    fn machine(&mut self, operation: &'static str) -> Result<&mut Machine, TwinError> {
        self.machine.as_mut().ok_or(TwinError::WrongState { operation, state: State::Created })
    }
}

fn failed(what: &'static str, reason: impl ToString) -> TwinError {
    TwinError::Device { what, reason: reason.to_string() }
}

fn connect(what: &str, path: &Path) -> Result<UnixStream, TwinError> {
    UnixStream::connect(path).map_err(|source| TwinError::Connect { what: what.into(), path: path.into(), source })
}

/// A thread that writes lines to the guest's port, so that a guest that does not read holds up nobody. It ends with the machine,
/// whose end of the socket closes, or with the sender.
fn poke_writer(mut port: UnixStream) -> std::io::Result<SyncSender<String>> {
    let (sender, lines) = sync_channel::<String>(POKES_WAITING_MAX);
    std::thread::Builder::new().name("poke".into()).stack_size(64 << 10).spawn(move || {
        for line in lines {
            if let Err(error) = port.write_all(line.as_bytes()) {
                tracing::debug!(%error, "the guest's poke port is gone");
                return;
            }
        }
    })?;
    Ok(sender)
}

/// Opens the console log, emptying what an earlier process wrote.
pub(crate) fn open_log(path: &Path) -> Result<File, TwinError> {
    let opened = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
    opened.map_err(|source| TwinError::Open { what: "console log", path: path.into(), source })
}

fn random() -> Result<[u8; 64], TwinError> {
    use std::io::Read;
    let mut bytes = [0; 64];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).map_err(TwinError::Randomness)?;
    Ok(bytes)
}
