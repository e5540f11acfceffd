//! Arm PrimeCell PL011 UART: the guest's serial console.
//!
//! Transmission is instantaneous: each byte goes to the sink at once, and baud rate and line format mean nothing.
//! Reception is a 16-byte FIFO that [`UartInput`] fills. Left out: DMA, modem lines, break and errors.
//! Registers as in the PL011 manual (DDI 0183G).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{put_register, register_write};
use crate::bus::MmioDevice;
use crate::vcpu::IrqChip;

/// Depth of the receive FIFO of this revision (r1p3), as its identification says.
const RX_FIFO_BYTES: usize = 16;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const IDS: u64 = 0xfe0;
const ID_BYTES: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FR_RX_EMPTY: u32 = 1 << 4;
const FR_RX_FULL: u32 = 1 << 6;
const FR_TX_EMPTY: u32 = 1 << 7;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RX_TIMEOUT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7ff;
const CR_LOOPBACK: u32 = 1 << 7;
/// Reset value: transmitter and receiver enabled, the UART itself not.
const CR_RESET: u32 = 0x300;
const IFLS_RESET: u32 = 0x12;

/// Takes what the guest prints. Called on the vCPU's thread: it must not block, and bounds what it keeps.
pub trait UartSink: Send {
    fn put(&mut self, byte: u8);
}

/// Takes what nobody wants to hear.
pub struct Unheard;

impl UartSink for Unheard {
    fn put(&mut self, _: u8) {}
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    received: VecDeque<u8>,
    raw_interrupts: u32,
    mask: u32,
    control: u32,
    line_control: u32,
    fifo_levels: u32,
    integer_baud: u32,
    fractional_baud: u32,
    low_power: u32,
}

impl Default for UartState {
    fn default() -> Self {
        Self {
            received: VecDeque::new(),
            raw_interrupts: 0,
            mask: 0,
            control: CR_RESET,
            line_control: 0,
            fifo_levels: IFLS_RESET,
            integer_baud: 0,
            fractional_baud: 0,
            low_power: 0,
        }
    }
}

/// The device; give it to the bus. [`Uart::input`] is its outside half.
pub struct Uart {
    shared: Arc<Mutex<Shared>>,
    sink: Box<dyn UartSink>,
}

struct Shared {
    state: UartState,
    irq_chip: Arc<dyn IrqChip>,
    intid: u32,
}

/// Types into the guest's serial console, from any thread.
#[derive(Clone)]
pub struct UartInput(Arc<dyn Receiver>);

/// The receiving side of a serial port.
pub(crate) trait Receiver: Send + Sync {
    /// Puts bytes into the receive FIFO and says how many fitted.
    fn receive(&self, bytes: &[u8]) -> usize;
}

impl UartInput {
    pub(crate) fn new(receiver: Arc<dyn Receiver>) -> Self {
        Self(receiver)
    }

    /// Puts bytes into the receive FIFO and says how many fitted.
    pub fn send(&self, bytes: &[u8]) -> usize {
        self.0.receive(bytes)
    }
}

impl Receiver for Mutex<Shared> {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut shared = lock(self);
        let room = RX_FIFO_BYTES.saturating_sub(shared.state.received.len());
        let taken = room.min(bytes.len());
        for byte in &bytes[..taken] {
            shared.state.receive(*byte);
        }
        shared.update();
        taken
    }
}

impl Uart {
    pub fn new(irq_chip: Arc<dyn IrqChip>, intid: u32, sink: Box<dyn UartSink>) -> Self {
        let shared = Shared { state: UartState::default(), irq_chip, intid };
        Self { shared: Arc::new(Mutex::new(shared)), sink }
    }

    pub fn input(&self) -> UartInput {
        UartInput::new(self.shared.clone())
    }

    pub fn save(&self) -> UartState {
        lock(&self.shared).state.clone()
    }

    pub fn restore(&mut self, mut state: UartState) {
        state.received.truncate(RX_FIFO_BYTES);
        let mut shared = lock(&self.shared);
        shared.state = state;
        shared.update();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("the UART does not panic while it holds its lock")
}

impl MmioDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut shared = lock(&self.shared);
        let value = shared.state.read(offset & !3);
        shared.update();
        put_register(value, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = register_write(offset, data) else { return };
        let mut shared = lock(&self.shared);
        if offset == DR {
            if shared.state.control & CR_LOOPBACK != 0 {
                shared.state.receive(value as u8);
            } else {
                self.sink.put(value as u8);
            }
            shared.state.raw_interrupts |= INT_TX;
        } else {
            shared.state.write(offset, value);
        }
        shared.update();
    }
}

impl Shared {
    fn update(&self) {
        self.irq_chip.set_level(self.intid, self.state.raw_interrupts & self.state.mask != 0);
    }
}

impl UartState {
    /// A byte comes in; one that finds the FIFO full is lost.
    fn receive(&mut self, byte: u8) {
        if self.received.len() < RX_FIFO_BYTES {
            self.received.push_back(byte);
            self.raw_interrupts |= INT_RX | INT_RX_TIMEOUT;
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            DR => {
                let byte = self.received.pop_front().unwrap_or(0);
                if self.received.is_empty() {
                    self.raw_interrupts &= !(INT_RX | INT_RX_TIMEOUT);
                }
                u32::from(byte)
            }
            FR => {
                let empty = if self.received.is_empty() { FR_RX_EMPTY } else { 0 };
                let full = if self.received.len() >= RX_FIFO_BYTES { FR_RX_FULL } else { 0 };
                FR_TX_EMPTY | empty | full
            }
            ILPR => self.low_power,
            IBRD => self.integer_baud,
            FBRD => self.fractional_baud,
            LCR_H => self.line_control,
            CR => self.control,
            IFLS => self.fifo_levels,
            IMSC => self.mask,
            RIS => self.raw_interrupts,
            MIS => self.raw_interrupts & self.mask,
            IDS..0x1000 => u32::from(ID_BYTES[(offset - IDS) as usize / 4]),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            ILPR => self.low_power = value & 0xff,
            IBRD => self.integer_baud = value & 0xffff,
            FBRD => self.fractional_baud = value & 0x3f,
            LCR_H => self.line_control = value & 0xff,
            CR => self.control = value & 0xffff,
            IFLS => self.fifo_levels = value & 0x3f,
            IMSC => self.mask = value & INT_ALL,
            ICR => self.raw_interrupts &= !value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl IrqChip for Line {
        fn set_level(&self, intid: u32, asserted: bool) {
            assert_eq!(intid, 33);
            self.0.store(asserted, Ordering::SeqCst);
        }
    }

    struct Printed(Sender<u8>);

    impl UartSink for Printed {
        fn put(&mut self, byte: u8) {
            self.0.send(byte).unwrap();
        }
    }

    fn uart() -> (Uart, Arc<Line>, Receiver<u8>) {
        let line = Arc::new(Line::default());
        let (to, from) = channel();
        (Uart::new(line.clone(), 33, Box::new(Printed(to))), line, from)
    }

    fn read(uart: &mut Uart, offset: u64) -> u32 {
        let mut data = [0; 4];
        uart.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(uart: &mut Uart, offset: u64, value: u32) {
        uart.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn prints_bytes_of_any_access_width() {
        let (mut uart, line, printed) = uart();
        uart.write(DR, b"a");
        uart.write(DR, b"b\0");
        write(&mut uart, DR, u32::from(b'c'));
        assert_eq!(printed.try_iter().collect::<Vec<_>>(), b"abc");
        assert!(!line.0.load(Ordering::SeqCst), "masked");
        write(&mut uart, IMSC, INT_TX);
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut uart, MIS), INT_TX);
        write(&mut uart, ICR, INT_TX);
        assert!(!line.0.load(Ordering::SeqCst));
    }

    #[test]
    fn receives_up_to_its_fifo_and_interrupts() {
        let (mut uart, line, _printed) = uart();
        write(&mut uart, IMSC, INT_RX);
        assert_eq!(uart.input().send(b"0123456789abcdefXYZ"), 16);
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut uart, FR) & FR_RX_FULL, FR_RX_FULL);
        let bytes: Vec<_> = (0..16).map(|_| read(&mut uart, DR) as u8).collect();
        assert_eq!(bytes, b"0123456789abcdef");
        assert!(!line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut uart, FR) & FR_RX_EMPTY, FR_RX_EMPTY);
        assert_eq!(read(&mut uart, DR), 0);
    }

    #[test]
    fn has_primecell_ids_and_survives_odd_accesses() {
        let (mut uart, _line, printed) = uart();
        let ids: Vec<_> = (0..8).map(|i| read(&mut uart, IDS + i * 4) as u8).collect();
        assert_eq!(ids, ID_BYTES);
        let before = uart.save();
        uart.write(DR + 1, b"x");
        uart.write(CR, &[1; 8]);
        let mut eight = [1; 8];
        uart.read(0xffc, &mut eight);
        assert_eq!(uart.save(), before);
        assert_eq!(printed.try_iter().count(), 0);
    }

    #[test]
    fn saved_input_is_still_there() {
        let (mut uart, _line, _printed) = self::uart();
        write(&mut uart, IMSC, INT_RX);
        uart.input().send(b"hi");
        let json = serde_json::to_string(&uart.save()).unwrap();
        let (mut other, line, _printed) = self::uart();
        other.restore(serde_json::from_str(&json).unwrap());
        assert!(line.0.load(Ordering::SeqCst));
        assert_eq!(read(&mut other, DR), u32::from(b'h'));
    }
}
