//! Gives a phone's log to a running machine: what the phone's user did, and what became of the files.

use std::sync::Arc;
use std::time::Duration;

use store::PhoneId;
use sync_protocol::event::{Event, Frame, Kind};
use sync_protocol::seat::Seat;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{PAGE_EVENTS, wall_now_us};
use super::decide::{self, Beginning, GuestClock, Moment, Rhythm};
use crate::flashes::TwinFlash;
use crate::live::{Live, Notice};
use crate::log::PhoneLogs;
use crate::twin::{Control, Gate, TwinStatus};

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
/// How long one look at the guest's clock lasts while that comes to where it is to be.
const PASS_LOOK: Duration = Duration::from_secs(10);
/// A guest that has caught up and whose wall clock is behind ours by so much has it set.
const BEHIND_US_MAX: i64 = 2_000_000;
/// Paths in one poke: keeps the line below what the machine's process takes.
const POKE_BYTES_MAX: usize = 32 * 1024;

/// One machine's feeder.
#[derive(Clone)]
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
    /// None if the machine's clock is not known: then pauses are kept in our time, and shortened.
    pub clock: Option<GuestClock>,
    pub gate: Arc<Gate>,
    /// `fed` is written here.
    pub status: watch::Sender<TwinStatus>,
    /// Told whenever the machine has caught up with the log.
    pub live: Live,
}

/// At what pace a machine is fed.
struct Pace {
    rhythm: Rhythm,
    clock: Option<GuestClock>,
    /// When the last input was given: by our clock, and the machine's.
    given: (Instant, u64),
}

/// How far a machine was fed.
#[derive(Debug, Clone)]
pub struct Fed {
    pub position: u64,
    /// The phone's boot that it was in then.
    pub boot_id: Option<String>,
    pub clock: Option<GuestClock>,
    /// The phone has booted anew: so must its twin, or it would show what the phone no longer does.
    pub phone_rebooted: bool,
}

impl Feeder {
    /// Feeds until `stop`, until the machine is gone, or until the phone boots anew.
    pub async fn run(self, stop: CancellationToken) -> Fed {
        let position = self.beginning.input.saturating_sub(1);
        let mut fed = Fed { position, boot_id: self.beginning.boot_id.clone(), clock: self.clock, phone_rebooted: false };
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
        let mut pace = Pace { rhythm: Rhythm::default(), clock: self.clock, given: (Instant::now(), self.guest_us().await.unwrap_or(0)) };
        let mut behind = true;
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
                if std::mem::take(&mut behind) {
                    self.be_in_the_present(&mut pace.clock).await;
                    fed.clock = pace.clock;
                }
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
                        () = self.await_moment(&mut pace, &event) => {}
                    }
                    self.drained().await;
                    self.touch(&mut seat, frame).await;
                    pace.rhythm.gave(moment, frame);
                    pace.given = (Instant::now(), self.guest_us().await.unwrap_or(0));
                } else if matches!(event.kind, Kind::File(_)) && position > self.beginning.files {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.quiet(&mut pace, &event) => {}
                    }
                    self.change(position, event).await;
                }
                fed.clock = pace.clock;
                fed.position = position;
                self.status.send_modify(|status| status.fed = position);
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Applies a change of a file to the twin's flash.
    async fn change(&self, position: u64, event: Event) {
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
                Ok(true) => match self.control.status().await {
                    Ok(status) => seen = status.generation,
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

    /// What the machine's clock shows, if that is known.
    async fn guest_us(&self) -> Option<u64> {
        self.control.pass(0, Duration::ZERO).await.ok().flatten()
    }

    /// Lets the guest come to the time at which its phone did what the event tells, through the pause before it if it is behind: in as much
    /// time as the guest needs for what it does meanwhile.
    async fn await_moment(&self, pace: &mut Pace, event: &Event) {
        let moment = Moment::of(event);
        let (Some(clock), Some(now_us)) = (&mut pace.clock, self.guest_us().await) else {
            return tokio::time::sleep(pace.rhythm.pause(moment, pace.given.0.elapsed())).await;
        };
        let pause = pace.rhythm.pause(moment, Duration::from_micros(now_us.saturating_sub(pace.given.1)));
        let earliest_us = now_us.saturating_add(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX));
        let passage = clock.passage(now_us, event.wall_us, earliest_us);
        let mut shown = now_us;
        while shown < passage.until_us {
            match self.control.pass(passage.until_us, PASS_LOOK).await {
                Ok(Some(guest_us)) => shown = guest_us,
                Ok(None) => break,
                Err(error) => {
                    debug!(phone = %self.phone, %error, "the twin's time does not pass");
                    break;
                }
            }
        }
        if passage.jumps {
            self.set_clock(clock, event.wall_us, shown);
        }
    }

    /// Sets the guest's wall clock if the twin has come to the end of the log in less time than the phone.
    async fn be_in_the_present(&self, clock: &mut Option<GuestClock>) {
        if let (Some(clock), Some(guest_us)) = (clock, self.guest_us().await)
            && wall_now_us().saturating_sub(clock.shows(guest_us)) > BEHIND_US_MAX
        {
            self.set_clock(clock, wall_now_us(), guest_us);
        }
    }

    fn set_clock(&self, clock: &mut GuestClock, wall_us: i64, guest_us: u64) {
        match self.gate.set_time(wall_us) {
            Ok(()) => *clock = GuestClock { wall_us, guest_us },
            Err(error) => debug!(phone = %self.phone, %error, "the twin's wall clock is not set"),
        }
    }

    /// Waits until the guest has ended what it was at. It does what its phone did, and the phone's file that replaces its own in the midst
    /// of that - the journal of a database, gone already when the guest comes to remove it - would be a failing disk to its programs.
    async fn quiet(&self, pace: &mut Pace, event: &Event) {
        let (changed, from_us) = (self.flash.changed_at(), self.guest_us().await.unwrap_or(0));
        self.await_moment(pace, event).await;
        let passed = Duration::from_micros(self.guest_us().await.unwrap_or(0).saturating_sub(from_us));
        if passed >= QUIET && self.flash.changed_at() == changed {
            return;
        }
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
