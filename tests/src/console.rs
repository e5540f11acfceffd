//! What a guest prints on its serial line, gathered as it comes, to be waited for.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

/// A guest that prints without end must not fill our memory.
const CONSOLE_BYTES_MAX: usize = 4 << 20;

pub(crate) struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// What was printed, and whether that is all.
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Console {
    /// Reads `line` on a thread that ends with it.
    pub(crate) fn read(line: impl Read + Send + 'static) -> Console {
        let shared = Arc::new(Shared::default());
        let gathering = Arc::clone(&shared);
        std::thread::spawn(move || gathering.gather(line));
        Console(shared)
    }

    /// Waits until the guest has printed `text`; returns all that it has printed.
    pub(crate) fn wait(&self, text: &str, timeout: Duration) -> Result<String> {
        let found = |state: &(Vec<u8>, bool)| String::from_utf8_lossy(&state.0).contains(text);
        let state = self.0.wait_while(timeout, |state| !found(state) && !state.1);
        let printed = String::from_utf8_lossy(&state.0).into_owned();
        ensure!(found(&state), "the phone never printed {text:?}; it printed:\n{printed}");
        Ok(printed)
    }

    /// All that the guest has printed so far.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().0).into_owned()
    }

    /// Waits for the end of the line.
    pub(crate) fn wait_closed(&self, timeout: Duration) -> Result<()> {
        let state = self.0.wait_while(timeout, |state| !state.1);
        ensure!(state.1, "the machine still runs after {timeout:?}");
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, timeout: Duration, waits: impl Fn(&(Vec<u8>, bool)) -> bool) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.more.wait_timeout_while(self.lock(), timeout, |state| waits(state)).unwrap_or_else(PoisonError::into_inner).0
    }

    fn gather(&self, mut line: impl Read) {
        let mut buffer = [0; 4096];
        loop {
            let read = line.read(&mut buffer).unwrap_or(0);
            let mut state = self.lock();
            let room = CONSOLE_BYTES_MAX.saturating_sub(state.0.len());
            state.0.extend(&buffer[..read.min(room)]);
            state.1 = read == 0;
            self.more.notify_all();
            if read == 0 {
                return;
            }
        }
    }
}
