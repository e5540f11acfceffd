//! The loop: waits, feeds the shell, draws, flushes.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::devices::Devices;
use super::display::Display;
use super::watch::{PokePort, Watch};
use crate::draw::font::Fonts;
use crate::draw::render::Renderer;
use crate::store::{Sources, Store};
use crate::ui::Event;
use crate::ui::clock::Clock;
use crate::ui::shell::Shell;

/// Screens are laid out for this width in dp; twice as many pixels mean scale 2.
const WIDTH_DP: i32 = 360;
/// A pause in typing after which text is saved.
const SAVE_PAUSE: Duration = Duration::from_millis(300);
/// How long to wait for a host that does not listen on the poke port.
const POKE_RETRY: Duration = Duration::from_secs(1);

/// Runs the handset until the process is ended.
pub fn run(home: &Path, fonts: &Path) -> Result<()> {
    let mut display = Display::open()?;
    let (w, h) = display.size();
    let scale = ((w + WIDTH_DP / 3) / WIDTH_DP).max(1);
    let fonts = Rc::new(Fonts::load(fonts, scale)?);
    let size = (w / scale, h / scale);
    let store = Store::new(home, sources());
    let mut shell = Shell::new(size, store, Rc::clone(&fonts), clock_now());
    let mut renderer = Renderer::new(fonts, w, h);
    let mut devices = Devices::new(size);
    let mut watch = Watch::new().context("starting inotify")?;
    let minute = TimerFd::new(
        ClockId::CLOCK_REALTIME,
        TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
    )
    .context("making a timer")?;
    let mut poke = PokePort::open();
    let mut poke_from: Option<Instant> = None;
    let mut save_at: Option<Instant> = None;
    let mut events = Vec::new();
    let mut announced = false;
    loop {
        let changed = renderer.show(shell.scene());
        if let Err(error) = display.flush(&renderer.canvas, &changed) {
            eprintln!("handset: showing the screen: {error}");
        }
        if !announced {
            announced = true;
            eprintln!("handset: showing {w}x{h} at scale {scale}");
        }
        if watch.devices() {
            devices.discover();
        }
        watch.folders(home, &watched(&shell));
        arm(&minute)?;
        if shell.unsaved() {
            save_at.get_or_insert_with(|| Instant::now() + SAVE_PAUSE);
        } else {
            save_at = None;
        }
        let listening = poke.is_some() && poke_from.is_none_or(|from| Instant::now() >= from);
        let mut fds = vec![
            PollFd::new(watch.fd(), PollFlags::POLLIN),
            PollFd::new(minute.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(devices.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        if let Some(port) = poke.as_ref().filter(|_| listening) {
            fds.push(PollFd::new(port.fd(), PollFlags::POLLIN));
        }
        let deadline = [save_at, poke_from.filter(|_| !listening)]
            .into_iter()
            .flatten()
            .min();
        match poll(&mut fds, timeout(deadline)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        drop(fds);

        devices.read(&mut events);
        if !events.is_empty() {
            save_at = None;
        }
        let seen = watch.read();
        if seen.devices {
            devices.discover();
        }
        let mut files = seen.files;
        if let Some(port) = poke.as_mut().filter(|_| listening) {
            match port.read() {
                Ok(changed) => {
                    files |= changed;
                    poke_from = None;
                }
                Err(_) => poke_from = Some(Instant::now() + POKE_RETRY),
            }
        }
        if files {
            events.push(Event::Changed);
        }
        events.push(Event::Clock(clock_now()));
        for event in events.drain(..) {
            shell.handle(event);
        }
        if save_at.is_some_and(|at| Instant::now() >= at) {
            shell.save();
            // When saving failed, try again at the next pause, not at once.
            save_at = Some(Instant::now() + 10 * SAVE_PAUSE).filter(|_| shell.unsaved());
        }
    }
}

fn watched(shell: &Shell) -> Vec<PathBuf> {
    let mut folders = shell.store().watched();
    folders.extend(shell.watched());
    folders
}

fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let wait = deadline
        .saturating_duration_since(Instant::now())
        .as_millis()
        + 1;
    PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
}

/// Sets the timer to the next minute; it also fires when the clock is set.
fn arm(timer: &TimerFd) -> Result<()> {
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    loop {
        let next = (now_us() / 60_000_000 + 1) * 60;
        match timer.set(Expiration::OneShot(TimeSpec::new(next, 0)), flags) {
            // The clock was set meanwhile: compute the minute anew.
            Err(nix::Error::ECANCELED) => {}
            other => return other.context("setting the timer"),
        }
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn clock_now() -> Clock {
    Clock {
        unix_minute: now_us() / 60_000_000,
        offset_minutes: 0,
    }
}

fn sources() -> Sources {
    let random = || {
        use std::io::Read;
        let mut bytes = [0; 16];
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        if read.is_err() {
            // Unique still, if not unpredictable, which is all that a message id needs.
            bytes[..8].copy_from_slice(&now_us().to_le_bytes());
        }
        bytes
    };
    Sources {
        now_us: Box::new(now_us),
        random: Box::new(random),
    }
}
