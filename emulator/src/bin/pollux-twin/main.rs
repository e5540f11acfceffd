//! `pollux-twin`: the process around one running twin. It builds the machine that its configuration describes, and obeys its
//! control socket; the screen is offered by RFB. It knows no phone, no store and no network of its own.
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
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use emulator::config::TwinConfig;
use emulator::processor::Processor;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};

use console::Console;
use control::Events;
use hands::Hands;
use twin::Twin;

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Everything that this process writes holds a phone's data.
    umask(Mode::from_bits_truncate(0o077));
    let (quit, wait_quit) = sync_channel(1);
    // Before other threads start, so that they inherit the blocked signals.
    heed_signals(quit.clone())?;

    let config = TwinConfig::load(&config)?;
    let log = config.console_log.as_deref().map(twin::open_log).transpose()?;
    let console = Console::new(log);
    let events = Events::default();
    let (tell, printed) = (events.clone(), console.clone());
    let on_exit = move |reason: &_| tell.exit(reason, &printed);
    let processor = Processor::choose(config.cpu.model).map_err(anyhow::Error::msg).context("cannot run on this host's CPU")?;
    tracing::info!(cpu = processor.describe(), "the machine's processor");
    let twin = Arc::new(Twin::new(config.clone(), processor, on_exit, console)?);
    if let Some(saved) = &config.restore {
        twin.restore(saved, config.base.as_deref(), config.verify).with_context(|| format!("cannot restore {}", saved.display()))?;
    }

    let hands = Arc::new(Hands::new(twin.keyboard.clone(), twin.touch.clone()));
    let listening = |path: &PathBuf| format!("cannot listen at {}", path.display());
    let rfb = rfb::serve(&config.rfb_socket, twin.screen.clone(), hands).with_context(|| listening(&config.rfb_socket))?;
    let control = control::serve(&config.control_socket, twin.clone(), events, quit);
    let control = control.with_context(|| listening(&config.control_socket))?;
    // Whoever does not wait for this may have closed the pipe.
    let _ = writeln!(std::io::stdout(), "ready");

    while let Err(none) = wait_quit.recv_timeout(WATCH) {
        anyhow::ensure!(none == RecvTimeoutError::Timeout, "nobody is left who could ask to stop");
        twin.watch();
    }
    twin.stop();
    drop((control, rfb));
    Ok(())
}

/// Asks to quit when SIGTERM or SIGINT arrives.
fn heed_signals(quit: SyncSender<()>) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    let wait = move || {
        let signal = signals.wait();
        tracing::info!(?signal, "stopping");
        // Full means that somebody has asked already.
        let _ = quit.try_send(());
    };
    std::thread::Builder::new().name("signals".into()).stack_size(64 << 10).spawn(wait).context("cannot start a thread")?;
    Ok(())
}
