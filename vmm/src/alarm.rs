//! Wakes whoever has a timer when it is due: one thread that sleeps until then.
//!
//! The CPU's thread is busy in translated code and cannot watch a clock itself. While the guest is idle it waits by
//! itself and the alarm only repeats what it knows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads;

/// Calls what it was made with at a set time. Dropping it ends the thread.
pub struct Alarm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Default)]
struct Plan {
    due: Option<Instant>,
    /// Until when the thread sleeps; it needs no waking for a later time.
    asleep_until: Option<Instant>,
    end: bool,
}

impl Alarm {
    pub fn new(ring: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { plan: Mutex::default(), changed: Condvar::new() });
        let there = shared.clone();
        let thread = threads::spawn("vcpu-timer".into(), 64 << 10, move || there.watch(ring))?;
        Ok(Self { shared, thread })
    }

    /// Rings once after `delay`, and not at the time set before.
    pub fn set(&self, delay: Option<Duration>) {
        let due = delay.and_then(|delay| Instant::now().checked_add(delay));
        let mut plan = self.shared.lock();
        plan.due = due;
        if due.is_some_and(|due| plan.asleep_until.is_none_or(|until| due < until)) {
            // Not again for the same time.
            plan.asleep_until = due;
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("nothing panics while it holds the plan")
    }

    fn watch(&self, ring: impl Fn()) {
        let mut plan = self.lock();
        while !plan.end {
            let now = Instant::now();
            let poisoned = "nothing panics while it holds the plan";
            match plan.due {
                Some(due) if due <= now => {
                    plan.due = None;
                    drop(plan);
                    ring();
                    plan = self.lock();
                }
                Some(due) => {
                    plan.asleep_until = Some(due);
                    plan = self.changed.wait_timeout(plan, due - now).expect(poisoned).0;
                }
                None => {
                    plan.asleep_until = None;
                    plan = self.changed.wait(plan).expect(poisoned);
                }
            }
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.lock().end = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics only if its lock is poisoned, and then whoever did that has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn rings_at_the_earliest_time_set_last() {
        let (rang, ringing) = mpsc::channel();
        let alarm = Alarm::new(move || rang.send(Instant::now()).unwrap()).unwrap();
        let start = Instant::now();
        alarm.set(Some(Duration::from_secs(3600)));
        alarm.set(Some(Duration::from_millis(20)));
        let at = ringing.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(at - start >= Duration::from_millis(20));
        alarm.set(Some(Duration::from_millis(5)));
        alarm.set(None);
        alarm.set(Some(Duration::from_millis(10)));
        ringing.recv_timeout(Duration::from_secs(60)).unwrap();
        drop(alarm);
        assert!(ringing.recv().is_err(), "an alarm rings once");
    }
}
