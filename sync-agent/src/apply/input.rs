//! Input on the appliance's behalf: what goes to the agent's own two devices, so that the phone behaves as its twin did
//! under the operator's hand. What is pressed is lifted when the lease or the stream ends: nothing stays stuck.

use std::io;

use sync_protocol::event::Frame;
use sync_protocol::seat::{Seat, SeatError};

/// Names of the agent's devices begin with this; it captures nothing from them.
pub(crate) const REMOTE_PREFIX: &str = "Pollux Remote";

/// Where frames go: uinput on a phone.
pub trait InputSink: Send {
    /// Largest values of the panel's axes.
    fn panel(&self) -> (u32, u32);
    /// Feeds one frame, of the keyboard or the panel; the sink ends it with a SYN_REPORT.
    fn emit(&mut self, frame: &Frame) -> io::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error(transparent)]
    Seat(#[from] SeatError),
    #[error("cannot write to the input device")]
    Write(#[from] io::Error),
}

pub(crate) struct Injector<S> {
    sink: S,
    seat: Seat,
}

impl<S: InputSink> Injector<S> {
    pub(crate) fn new(sink: S) -> Self {
        let seat = Seat::new(sink.panel());
        Self { sink, seat }
    }

    pub(crate) fn feed(&mut self, frame: &Frame) -> Result<(), InputError> {
        if let Some(frame) = self.seat.take(frame)? {
            self.sink.emit(&frame)?;
        }
        Ok(())
    }

    /// Lifts everything that is pressed.
    pub(crate) fn release(&mut self) -> Result<(), InputError> {
        for frame in self.seat.lift() {
            self.sink.emit(&frame)?;
        }
        Ok(())
    }
}
