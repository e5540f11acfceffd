//! What the guest prints on its serial console: the last part in memory, all of it (up to a limit) in a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm::devices::uart::UartSink;

/// Kept in memory: a boot's messages, or a panic with its trace.
const TAIL_BYTES: usize = 64 << 10;
/// Kept on disk: a guest that prints without end does not fill it.
const LOG_BYTES_MAX: usize = 4 << 20;
/// Bytes gathered before they are written when no line ends.
const LINE_BYTES: usize = 4096;
const LOG_FULL: &[u8] = b"\n[console log is full]\n";
/// How many lines tell why a guest ended.
const LAST_WORDS_LINES: usize = 30;
const PANIC: &str = "Kernel panic - not syncing";

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Console(Arc<Mutex<Printed>>);

struct Printed {
    tail: VecDeque<u8>,
    log: Option<File>,
    unwritten: Vec<u8>,
    written: usize,
}

impl Console {
    pub(crate) fn new(log: Option<File>) -> Self {
        let printed = Printed { tail: VecDeque::with_capacity(TAIL_BYTES), log, unwritten: Vec::new(), written: 0 };
        Self(Arc::new(Mutex::new(printed)))
    }

    /// The UART's end.
    pub(crate) fn sink(&self) -> Box<dyn UartSink> {
        Box::new(self.clone())
    }

    /// The last `bytes` of what was printed; bytes that are not UTF-8 are replaced.
    pub(crate) fn tail(&self, bytes: usize) -> String {
        let printed = self.lock();
        let from = printed.tail.len().saturating_sub(bytes);
        let bytes: Vec<u8> = printed.tail.iter().skip(from).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What a guest printed last before it ended: from a kernel panic's message on if there was one.
    pub(crate) fn last_words(&self) -> String {
        let tail = self.tail(TAIL_BYTES);
        let lines: Vec<&str> = tail.lines().collect();
        let start = match lines.iter().rposition(|line| line.contains(PANIC)) {
            Some(at) => at,
            None => lines.len().saturating_sub(LAST_WORDS_LINES),
        };
        lines[start..].iter().take(LAST_WORDS_LINES).copied().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn has_panicked(&self) -> bool {
        self.tail(TAIL_BYTES).contains(PANIC)
    }

    /// Writes what waits for the end of its line.
    pub(crate) fn flush(&self) {
        self.lock().write_out();
    }

    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.0.lock().expect("nobody panics while printing")
    }
}

impl UartSink for Console {
    fn put(&mut self, byte: u8) {
        let mut printed = self.lock();
        if printed.tail.len() == TAIL_BYTES {
            printed.tail.pop_front();
        }
        printed.tail.push_back(byte);
        if printed.log.is_some() {
            printed.unwritten.push(byte);
            if byte == b'\n' || printed.unwritten.len() == LINE_BYTES {
                printed.write_out();
            }
        }
    }
}

impl Printed {
    fn write_out(&mut self) {
        let bytes = std::mem::take(&mut self.unwritten);
        let Some(log) = &mut self.log else { return };
        let room = LOG_BYTES_MAX - self.written;
        let full = bytes.len() > room;
        let result = log.write_all(&bytes[..bytes.len().min(room)]).and_then(|()| if full { log.write_all(LOG_FULL) } else { Ok(()) });
        self.written += bytes.len().min(room);
        if let Err(error) = &result {
            tracing::warn!(%error, "cannot write the console log; it ends here");
        }
        if full || result.is_err() {
            self.log = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(console: &Console, text: &str) {
        let mut sink = console.sink();
        text.bytes().for_each(|byte| sink.put(byte));
    }

    #[test]
    fn tail_is_bounded_and_last_words_begin_at_the_panic() {
        let console = Console::new(None);
        for i in 0..20_000 {
            print(&console, &format!("line {i}\n"));
        }
        assert_eq!(console.tail(usize::MAX).len(), TAIL_BYTES);
        assert_eq!(console.tail(11), "line 19999\n");
        assert_eq!(console.last_words().lines().count(), LAST_WORDS_LINES);
        assert!(!console.has_panicked());
        print(&console, "[ 1.0] Kernel panic - not syncing: VFS\n[ 1.1] CPU: 0\n");
        assert_eq!(console.last_words(), "[ 1.0] Kernel panic - not syncing: VFS\n[ 1.1] CPU: 0");
        assert!(console.has_panicked());
    }

    #[test]
    fn log_is_written_by_lines_and_capped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let console = Console::new(Some(file.reopen().unwrap()));
        print(&console, "one\ntwo");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "one\n");
        console.flush();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "one\ntwo");
        let long = "x".repeat(LOG_BYTES_MAX);
        print(&console, &long);
        print(&console, &long);
        console.flush();
        let log = std::fs::read(file.path()).unwrap();
        assert_eq!(log.len(), LOG_BYTES_MAX + LOG_FULL.len());
        assert!(log.ends_with(LOG_FULL));
    }
}
