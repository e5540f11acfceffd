//! `pollux-twin`: the process around one running twin. It builds the machine that its configuration describes, and obeys its
//! control socket; the screen is offered by RFB. It knows no phone, no store and no network of its own.
//!
//! It is two processes: a caged one, which is the twin, and its warden ([`emulator::cage`]), which waits for it. All that the
//! configuration names is opened before the cage is closed; saved machines come as descriptors over the control socket.
//!
//! When it listens it prints `ready` on its standard output, and nothing else ever; its log goes to standard error.
//! It ends when it is told to stop or gets SIGTERM or SIGINT, and leaves no socket behind. A guest that ends by itself does not end
//! it: whoever drives it may still want to see the screen and the console.

mod console;
mod control;
mod hands;
mod keymap;
mod listener;
mod rfb;
mod screen;
mod twin;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use emulator::cage::{self, Cell, Role, Side};
use emulator::config::TwinConfig;
use emulator::processor::Processor;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use vmm::threads;

use console::Console;
use control::Events;
use hands::Hands;
use listener::Listener;
use twin::{Outside, Twin};

/// Between two looks whether the guest hangs.
const WATCH: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(version, about = "Runs one twin: a virtual phone, driven over its control socket")]
struct Arguments {
    /// JSON file that describes the machine and its sockets.
    #[arg(long, required_unless_present = "probe_kvm")]
    config: Option<PathBuf>,
    /// Only tell whether this host's KVM can run guests, and if not, why.
    #[arg(long, conflicts_with = "config")]
    probe_kvm: bool,
}

fn tell_of_kvm() -> anyhow::Result<()> {
    Processor::probe_kvm().map_err(anyhow::Error::msg)?;
    println!("KVM runs guests on this host");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some(config) = arguments.config else { return tell_of_kvm() };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A log that has no room is no reason to panic, which is what telling of it comes to.
    log.log_internal_errors(false).init();
    // Everything that this process writes holds a phone's data.
    umask(Mode::from_bits_truncate(0o077));
    let config = TwinConfig::load(&config)?;
    match cage::fork_warden(config.cage, config.ram_bytes() + (config.cpu.tcg_buffer_mib << 20))? {
        Side::Caged(cell) => run(config, cell),
        Side::Warden(warden) => {
            let code = warden.watch();
            for socket in [&config.control_socket, &config.rfb_socket] {
                // Fails where another process listens, or where this one never did.
                let _ = listener::remove_stale(socket);
            }
            std::process::exit(code)
        }
    }
}

/// All that the caged process does.
fn run(config: TwinConfig, cell: Cell) -> anyhow::Result<()> {
    let log = config.console_log.as_deref().map(twin::open_log).transpose()?;
    let processor = Processor::choose(config.cpu.model).map_err(anyhow::Error::msg).context("cannot run on this host's CPU")?;
    tracing::info!(cpu = processor.describe(), "the machine's processor");
    let outside = Outside::reach(&config, &processor)?;
    let listen = |path: &Path| Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()));
    let (rfb, control) = (listen(&config.rfb_socket)?, listen(&config.control_socket)?);
    let cage_lacks = cell.close(outside.disk_bytes_max)?;
    for part in &cage_lacks {
        tracing::warn!("THE CAGE IS NOT WHOLE: {part}. A guest that breaks out of its machine finds more of this host than it should");
    }

    threads::at_begin(|role| match role {
        threads::Role::Vcpu => confine(Role::Vcpu),
        threads::Role::Device => confine(Role::Device),
    });
    let (quit, wait_quit) = sync_channel(1);
    heed_signals(quit.clone())?;
    let console = Console::new(log);
    let events = Events::default();
    let (tell, printed) = (events.clone(), console.clone());
    let on_exit = move |reason: &_| tell.exit(reason, &printed);
    let twin = Arc::new(Twin::new(config.clone(), processor, outside, cage_lacks, on_exit, console)?);
    if let Some(saved) = &config.restore {
        twin.restore().with_context(|| format!("cannot restore {}", saved.display()))?;
    }

    let hands = Arc::new(Hands::new(twin.keyboard.clone(), twin.touch.clone()));
    rfb::serve(rfb, || confine(Role::Watcher), twin.screen.clone(), hands).context("cannot serve the screen")?;
    control::serve(control, twin.clone(), events, quit).context("cannot serve the control socket")?;
    // Whoever does not wait for this may have closed the pipe.
    let _ = writeln!(std::io::stdout(), "ready");

    while let Err(none) = wait_quit.recv_timeout(WATCH) {
        anyhow::ensure!(none == RecvTimeoutError::Timeout, "nobody is left who could ask to stop");
        twin.watch();
    }
    twin.stop();
    Ok(())
}

/// Shortens the list of system calls of the calling thread.
fn confine(role: Role) {
    cage::confine_thread(role).expect("a list that was compiled from constants is accepted");
}

/// Asks to quit when SIGTERM or SIGINT arrives, which [`cage::fork_warden`] has blocked.
fn heed_signals(quit: SyncSender<()>) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    let wait = move || {
        let signal = signals.wait();
        tracing::info!(?signal, "stopping");
        // Full means that somebody has asked already.
        let _ = quit.try_send(());
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
