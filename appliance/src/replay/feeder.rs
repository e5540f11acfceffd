//! Gives a phone's log to a running machine: what the phone's user did, and what became of the files.

use std::time::Duration;

use store::PhoneId;
use sync_protocol::event::{Event, Frame, Kind};
use sync_protocol::seat::Seat;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::PAGE_EVENTS;
use super::decide::{self, Beginning, Moment, Rhythm};
use crate::flashes::TwinFlash;
use crate::live::{Live, Notice};
use crate::log::PhoneLogs;
use crate::twin::{Control, TwinStatus};

/// How long a guest may take to draw its first picture.
const FIRST_PICTURE_MAX: Duration = Duration::from_secs(120);
/// How long one look for that picture lasts.
const FIRST_PICTURE_LOOK: Duration = Duration::from_secs(10);
/// A screen that has not changed for so long is drawn.
const STILL: Duration = Duration::from_millis(600);
/// A guest whose input is not drained by then is given more all the same: it may be waiting for just that.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How often we look whether it is: nothing tells us.
const DRAIN_LOOK: Duration = Duration::from_millis(2);
/// A guest that has changed no file for so long has ended what it was at: the gaps within one transaction of a database are shorter.
const QUIET: Duration = Duration::from_millis(150);
/// One that does not come to an end by then writes all the time; its phone's files are put under its hands.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Paths in one poke: keeps the line below what the machine's process takes.
const POKE_BYTES_MAX: usize = 32 * 1024;

/// One machine's feeder.
pub struct Feeder {
    pub phone: PhoneId,
    pub logs: PhoneLogs,
    pub flash: TwinFlash,
    pub control: Control,
    pub width: u16,
    pub height: u16,
    pub beginning: Beginning,
    /// The generation of what was on the screen before the guest's programs were let in; none if it goes on from where it was parked, and
    /// need not be waited for.
    pub blank: Option<u64>,
    /// `fed` is written here.
    pub status: watch::Sender<TwinStatus>,
    /// Told whenever the machine has caught up with the log.
    pub live: Live,
}

/// How far a machine was fed.
#[derive(Debug, Clone)]
pub struct Fed {
    pub position: u64,
    /// The phone's boot that it was in then.
    pub boot_id: Option<String>,
    /// The phone has booted anew: so must its twin, or it would show what the phone no longer does.
    pub phone_rebooted: bool,
}

impl Feeder {
    /// Feeds until `stop`, until the machine is gone, or until the phone boots anew.
    pub async fn run(self, stop: CancellationToken) -> Fed {
        let position = self.beginning.input.saturating_sub(1);
        let mut fed = Fed { position, boot_id: self.beginning.boot_id.clone(), phone_rebooted: false };
        if let Some(blank) = self.blank {
            tokio::select! {
                () = stop.cancelled() => return fed,
                drawn = self.await_first_picture(blank) => if !drawn {
                    warn!(phone = %self.phone, "the twin's guest draws nothing; it is fed all the same");
                },
            }
        }
        self.feed(&mut fed, &stop).await;
        fed
    }

    /// Stops between two events only, so that what was fed is known.
    async fn feed(&self, fed: &mut Fed, stop: &CancellationToken) {
        let mut grown = match self.logs.watch(&self.phone) {
            Ok(grown) => grown,
            Err(error) => {
                warn!(phone = %self.phone, %error, "the twin cannot follow the log");
                return;
            }
        };
        let (mut rhythm, mut given) = (Rhythm::default(), Instant::now());
        // The machine's panel counts the pixels of its screen.
        let mut seat = Seat::new((u32::from(self.width).saturating_sub(1), u32::from(self.height).saturating_sub(1)));
        loop {
            let (logs, phone, next) = (self.logs.clone(), self.phone.clone(), fed.position + 1);
            let page = tokio::task::spawn_blocking(move || logs.read(&phone, next, PAGE_EVENTS)).await;
            let page = match page {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => {
                    warn!(phone = %self.phone, %error, "the twin cannot follow the log");
                    return;
                }
                Err(_) => return,
            };
            if page.is_empty() {
                self.live.tell(Notice::Twin { phone: self.phone.clone() });
                let more = async { grown.changed().await.is_ok() };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.control.gone() => return,
                    more = more => if !more { return },
                }
                continue;
            }
            for (position, event) in page {
                if let Some(boot_id) = decide::boot_of(&event) {
                    fed.phone_rebooted = fed.boot_id.as_ref().is_some_and(|known| *known != boot_id);
                    if fed.phone_rebooted {
                        return;
                    }
                    fed.boot_id = Some(boot_id);
                }
                if let Kind::Mmi(frame) = &event.kind {
                    let moment = Moment::of(&event);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(rhythm.pause(moment, given.elapsed())) => {}
                    }
                    self.drained().await;
                    self.touch(&mut seat, frame).await;
                    rhythm.gave(moment, frame);
                    given = Instant::now();
                } else {
                    self.change(position, event).await;
                }
                fed.position = position;
                self.status.send_modify(|status| status.fed = position);
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Applies a change of a file to the twin's flash; the flash began with those up to `beginning.files`.
    async fn change(&self, position: u64, event: Event) {
        if !matches!(event.kind, Kind::File(_)) || position <= self.beginning.files {
            return;
        }
        self.quiet().await;
        let flash = self.flash.clone();
        match tokio::task::spawn_blocking(move || flash.apply(position, &event)).await {
            Ok(Ok(paths)) => self.poke(paths).await,
            Ok(Err(error)) => warn!(phone = %self.phone, position, %error, "the twin's flash does not follow"),
            Err(error) => warn!(phone = %self.phone, position, %error, "the twin's flash does not follow"),
        }
    }

    /// Gives the machine's own two devices what any device of the phone's has told.
    async fn touch(&self, seat: &mut Seat, frame: &Frame) {
        match seat.take(frame) {
            Ok(Some(frame)) => {
                if let Err(error) = self.control.input(&frame).await {
                    debug!(phone = %self.phone, %error, "input is lost on the twin");
                }
            }
            Ok(None) => {}
            Err(error) => debug!(phone = %self.phone, %error, "input is lost on the twin"),
        }
    }

    async fn poke(&self, paths: Vec<String>) {
        let mut some = Vec::new();
        let mut bytes = 0;
        for path in paths {
            bytes += path.len();
            some.push(path);
            if bytes > POKE_BYTES_MAX {
                self.poke_some(&std::mem::take(&mut some)).await;
                bytes = 0;
            }
        }
        if !some.is_empty() {
            self.poke_some(&some).await;
        }
    }

    async fn poke_some(&self, paths: &[String]) {
        // A guest that does not listen sees the change when it opens the file.
        if let Err(error) = self.control.poke(paths).await {
            debug!(phone = %self.phone, %error, "the twin's guest was not poked");
        }
    }

    /// Waits until the guest has drawn something newer than `blank` and then stands still: its programs run, and read their input. What
    /// is given earlier is lost, as a touch is on a phone that is still starting.
    async fn await_first_picture(&self, blank: u64) -> bool {
        let give_up = Instant::now() + FIRST_PICTURE_MAX;
        let mut seen = blank;
        while Instant::now() < give_up {
            let look = if seen == blank { FIRST_PICTURE_LOOK } else { STILL };
            match self.control.screen_wait(seen, look).await {
                Ok(false) if seen > blank => return true,
                Ok(false) => {}
                Ok(true) => match self.control.generation().await {
                    Ok(generation) => seen = generation,
                    Err(_) => return false,
                },
                Err(error) => {
                    debug!(phone = %self.phone, %error, "cannot wait for the twin's screen");
                    return false;
                }
            }
        }
        false
    }

    /// Waits until the guest has ended what it was at. It does what its phone did, and the phone's file that replaces its own in the midst
    /// of that - the journal of a database, gone already when the guest comes to remove it - would be a failing disk to its programs.
    async fn quiet(&self) {
        let give_up = Instant::now() + QUIET_MAX;
        loop {
            let left = self.flash.quiet_in(QUIET).min(give_up.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Waits until the guest has taken the input it was given before.
    async fn drained(&self) {
        let give_up = Instant::now() + DRAIN_MAX;
        while let Ok(false) = self.control.input_drained().await {
            if Instant::now() >= give_up {
                return;
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }
}
