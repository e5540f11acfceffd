//! A 16550A serial port: the guest's console.
//!
//! As with [`crate::devices::uart`], transmission is instantaneous, and line format and speed mean nothing. Left out: modem
//! lines but in loopback, break and errors.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::devices::uart::{Receiver, UartInput, UartSink};
use crate::vcpu::IrqChip;

const RX_FIFO_BYTES: usize = 16;

const IER_RECEIVED: u8 = 1 << 0;
const IER_EMPTY: u8 = 1 << 1;
const IIR_NONE: u8 = 1;
const IIR_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVED: u8 = 1 << 1;
const LCR_DIVISOR: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;
const LSR_RECEIVED: u8 = 1 << 0;
/// Holding register and shift register empty.
const LSR_EMPTY: u8 = 3 << 5;
/// Clear to send, data set ready, carrier.
const MSR_READY: u8 = 0xb0;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart16550State {
    received: VecDeque<u8>,
    interrupt_enable: u8,
    /// The transmitter became empty and nobody has read so yet.
    emptied: bool,
    fifo_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
}

/// The device; give it to the bus of ports.
pub struct Uart16550 {
    shared: Arc<Mutex<Shared>>,
    sink: Box<dyn UartSink>,
}

struct Shared {
    state: Uart16550State,
    irq_chip: Arc<dyn IrqChip>,
    line: u32,
}

impl Uart16550 {
    pub fn new(irq_chip: Arc<dyn IrqChip>, line: u32, sink: Box<dyn UartSink>) -> Self {
        Self { shared: Arc::new(Mutex::new(Shared { state: Uart16550State::default(), irq_chip, line })), sink }
    }

    pub fn input(&self) -> UartInput {
        UartInput::new(self.shared.clone())
    }

    pub fn save(&self) -> Uart16550State {
        lock(&self.shared).state.clone()
    }

    pub fn restore(&mut self, mut state: Uart16550State) {
        state.received.truncate(RX_FIFO_BYTES);
        let mut shared = lock(&self.shared);
        shared.state = state;
        shared.update();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("the UART does not panic while it holds its lock")
}

impl Receiver for Mutex<Shared> {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut shared = lock(self);
        let taken = bytes.len().min(RX_FIFO_BYTES.saturating_sub(shared.state.received.len()));
        shared.state.received.extend(&bytes[..taken]);
        shared.update();
        taken
    }
}

impl Shared {
    fn update(&self) {
        self.irq_chip.set_level(self.line, self.state.pending() != IIR_NONE);
    }
}

impl MmioDevice for Uart16550 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut shared = lock(&self.shared);
        if let [byte] = data {
            *byte = shared.state.read(offset);
            shared.update();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        let mut shared = lock(&self.shared);
        let state = &mut shared.state;
        match (offset, state.line_control & LCR_DIVISOR != 0) {
            (0 | 1, true) => state.divisor[offset as usize] = value,
            (0, false) => {
                if state.modem_control & MCR_LOOPBACK == 0 {
                    self.sink.put(value);
                } else if state.received.len() < RX_FIFO_BYTES {
                    state.received.push_back(value);
                }
                // A pulse, for controllers that hear edges only.
                state.emptied = false;
                shared.update();
                shared.state.emptied = true;
            }
            (1, false) => {
                state.emptied |= value & !state.interrupt_enable & IER_EMPTY != 0;
                state.interrupt_enable = value & 0xf;
            }
            (2, _) => {
                state.fifo_enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVED != 0 {
                    state.received.clear();
                }
            }
            (3, _) => state.line_control = value,
            (4, _) => state.modem_control = value & 0x1f,
            (7, _) => state.scratch = value,
            _ => {}
        }
        shared.update();
    }
}

impl Uart16550State {
    /// The interrupt identification of what is pending.
    fn pending(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_EMPTY != 0 && self.emptied {
            IIR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        match (offset, self.line_control & LCR_DIVISOR != 0) {
            (0 | 1, true) => self.divisor[offset as usize],
            (0, false) => self.received.pop_front().unwrap_or(0),
            (1, false) => self.interrupt_enable,
            (2, _) => {
                let pending = self.pending();
                if pending == IIR_EMPTY {
                    self.emptied = false;
                }
                pending | if self.fifo_enabled { 0xc0 } else { 0 }
            }
            (3, _) => self.line_control,
            (4, _) => self.modem_control,
            (5, _) => LSR_EMPTY | if self.received.is_empty() { 0 } else { LSR_RECEIVED },
            // In loopback the outputs RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
            (6, _) if self.modem_control & MCR_LOOPBACK != 0 => {
                let out = self.modem_control;
                (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4
            }
            (6, _) => MSR_READY,
            (7, _) => self.scratch,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Line(Mutex<Vec<bool>>);

    impl IrqChip for Line {
        fn set_level(&self, line: u32, asserted: bool) {
            assert_eq!(line, 4);
            self.0.lock().unwrap().push(asserted);
        }
    }

    impl Line {
        fn level(&self) -> bool {
            *self.0.lock().unwrap().last().unwrap()
        }
    }

    struct Printed(Sender<u8>);

    impl UartSink for Printed {
        fn put(&mut self, byte: u8) {
            self.0.send(byte).unwrap();
        }
    }

    fn uart() -> (Uart16550, Arc<Line>, Receiver<u8>) {
        let line = Arc::new(Line(Mutex::default()));
        let (to, from) = channel();
        (Uart16550::new(line.clone(), 4, Box::new(Printed(to))), line, from)
    }

    fn read(uart: &mut Uart16550, offset: u64) -> u8 {
        let mut data = [0];
        uart.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn prints_and_tells_by_edges_that_it_has() {
        let (mut uart, line, printed) = uart();
        uart.write(1, &[IER_EMPTY]);
        assert!(line.level(), "empty already");
        assert_eq!(read(&mut uart, 2), IIR_EMPTY);
        assert!(!line.level());
        assert_eq!(read(&mut uart, 2), IIR_NONE);
        line.0.lock().unwrap().clear();
        uart.write(0, b"a");
        uart.write(0, b"b");
        let levels = line.0.lock().unwrap().clone();
        assert!(levels.windows(2).filter(|pair| *pair == [false, true]).count() == 2, "{levels:?}");
        assert_eq!(printed.try_iter().collect::<Vec<_>>(), b"ab");
        assert_eq!(read(&mut uart, 5), LSR_EMPTY);
    }

    #[test]
    fn receives_up_to_its_fifo_and_interrupts() {
        let (mut uart, line, _printed) = uart();
        uart.write(1, &[IER_RECEIVED]);
        assert_eq!(uart.input().send(b"0123456789abcdefXYZ"), 16);
        assert!(line.level());
        assert_eq!((read(&mut uart, 2), read(&mut uart, 5)), (IIR_RECEIVED, LSR_EMPTY | LSR_RECEIVED));
        let bytes: Vec<_> = (0..16).map(|_| read(&mut uart, 0)).collect();
        assert_eq!(bytes, b"0123456789abcdef");
        assert!(!line.level());
        uart.input().send(b"x");
        uart.write(2, &[FCR_ENABLE | FCR_CLEAR_RECEIVED]);
        assert_eq!((read(&mut uart, 5), read(&mut uart, 2)), (LSR_EMPTY, 0xc0 | IIR_NONE));
    }

    #[test]
    fn is_recognised_by_its_registers() {
        let (mut uart, _line, printed) = uart();
        uart.write(7, &[0x5a]);
        assert_eq!(read(&mut uart, 7), 0x5a);
        uart.write(4, &[MCR_LOOPBACK | 0xa]);
        assert_eq!(read(&mut uart, 6) & 0xf0, 0x90, "as Linux probes it");
        uart.write(0, b"l");
        assert_eq!((read(&mut uart, 0), printed.try_iter().count()), (b'l', 0));
        uart.write(3, &[LCR_DIVISOR]);
        uart.write(0, &[12]);
        assert_eq!(read(&mut uart, 0), 12);
        uart.write(3, &[3]);
        assert_eq!(read(&mut uart, 0), 0);
    }

    #[test]
    fn saved_input_is_still_there() {
        let (mut uart, _line, _printed) = self::uart();
        uart.write(1, &[IER_RECEIVED]);
        uart.input().send(b"hi");
        let json = serde_json::to_string(&uart.save()).unwrap();
        let (mut other, line, _printed) = self::uart();
        other.restore(serde_json::from_str(&json).unwrap());
        assert!(line.level());
        assert_eq!(read(&mut other, 0), b'h');
    }
}
