//! The body of the fuzz target `rfb`: what a client may send, and what it is then sent in the format that it asked for; and watchers of a
//! guest that draws, and takes only some of what their hands do. Run by libFuzzer from `emulator/fuzz`, and among the tests for a
//! short time.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};

use vmm::virtio::fake_driver::{FakeDriver, Part};
use vmm::virtio::gpu::{Gpu, Screen};
use vmm::virtio::input::{Event, InputError};

use super::encode::Encoder;
use super::protocol::{self, ClientMessage, ENCODING_RAW, ENCODING_ZRLE, PixelFormat, ProtocolError, Rect};
use super::{Gallery, State, Wanted, Writer, hear};
use crate::hands::{Device, Hands};
use crate::screen::Picture;

/// Not a multiple of what encoders work by.
const WIDTH: u32 = 70;
const HEIGHT: u32 = 66;
/// Updates for one input: the first ones are like the others.
const UPDATES_MAX: usize = 4;
/// A first byte from here on is for watchers.
const WATCHERS: u8 = 0x80;
/// What guest and hands do in one input.
const DEEDS_MAX: usize = 200;

/// The first byte says how colourful the screen is; then what a client sends, from its version on. Or it says that there are watchers, whom
/// this comes from.
pub(crate) fn rfb(input: &[u8]) {
    let Some((&first, mut sent)) = input.split_first() else { return };
    if first >= WATCHERS {
        return watched(sent);
    }
    // Ended by what it makes of the end.
    let _ = serve(&picture(first), &mut sent);
}

/// Two watchers past their handshakes. A byte that begins no message says what else happens.
fn watched(mut from: &[u8]) {
    let mut guest = Guest::new();
    let (keyboard, touch) = (Taker::default(), Taker::default());
    let hands = Arc::new(Hands::new(keyboard.clone(), touch.clone()));
    let state = Mutex::new(State { watchers: [(1, Wanted::default()), (2, Wanted::default())].into(), ..State::default() });
    let gallery = Arc::new(Gallery { screen: guest.screen.clone(), hands: hands.clone(), state, changed: Condvar::new() });
    let mut writers = [1, 2].map(|number| Writer::new(gallery.clone(), Vec::new(), number, (WIDTH, HEIGHT)));
    let mut number = 1;
    for _ in 0..DEEDS_MAX {
        match from {
            [0x80, x, y, width, height, colour, rest @ ..] => {
                guest.draw([*x, *y, *width, *height].map(u32::from), *colour);
                from = rest;
            }
            [0x81, width, height, rest @ ..] => {
                guest.resize(u32::from(*width), u32::from(*height));
                from = rest;
            }
            [0x82, keys, touches, rest @ ..] => {
                keyboard.has_room(*keys);
                touch.has_room(*touches);
                from = rest;
            }
            [0x83, rest @ ..] => {
                number = 3 - number;
                from = rest;
            }
            [0x84, rest @ ..] => {
                hands.leave(number);
                from = rest;
            }
            _ => match protocol::read_message(&mut from) {
                Ok(message) => hear(&gallery, number, message),
                Err(_) => break,
            },
        }
        writers.iter_mut().for_each(answer);
    }
    hands.leave(1);
    hands.leave(2);
    keyboard.assert_lifted();
    touch.assert_lifted();
}

/// Writes what the watcher can be told now.
fn answer(writer: &mut Writer<Vec<u8>>) {
    let gallery = writer.gallery.clone();
    loop {
        let request = {
            let mut state = gallery.lock();
            state.generation = gallery.screen.look(|frame| frame.generation());
            let State { generation, watchers } = &mut *state;
            watchers.get_mut(&writer.number).and_then(|wanted| writer.due(wanted, *generation))
        };
        let Some(request) = request else { return };
        if writer.serve(request).is_err() {
            // It cannot follow a new size.
            gallery.lock().watchers.remove(&writer.number);
        }
        let told = std::mem::take(&mut writer.stream);
        assert!(told.first().is_none_or(|kind| [0, protocol::BELL].contains(kind)));
    }
}

/// Draws by the GPU's driver.
struct Guest {
    driver: FakeDriver<Gpu>,
    screen: Screen,
    pixels: u64,
}

impl Guest {
    fn new() -> Self {
        let gpu = Gpu::new(WIDTH, HEIGHT).expect("a screen");
        let screen = gpu.screen();
        let mut driver = FakeDriver::started(gpu);
        let pixels = driver.allocate(u64::from(WIDTH * HEIGHT * 4));
        let mut guest = Self { driver, screen, pixels };
        // RESOURCE_CREATE_2D, RESOURCE_ATTACH_BACKING (virtio 1.2, 5.7.6.8).
        guest.command(0x101, &[1, 2, WIDTH, HEIGHT]);
        guest.command(0x106, &[1, 1, pixels as u32, (pixels >> 32) as u32, WIDTH * HEIGHT * 4, 0]);
        guest.resize(WIDTH, HEIGHT);
        guest
    }

    /// SET_SCANOUT. A size that there is not is refused.
    fn resize(&mut self, width: u32, height: u32) {
        self.command(0x103, &[0, 0, width, height, 0, 1]);
    }

    /// TRANSFER_TO_HOST_2D and RESOURCE_FLUSH.
    fn draw(&mut self, [x, y, width, height]: [u32; 4], colour: u8) {
        let (x, y) = (x % WIDTH, y % HEIGHT);
        let (width, height) = (1 + width % (WIDTH - x), 1 + height % (HEIGHT - y));
        let at = |y: u32| u64::from((y * WIDTH + x) * 4);
        for row in y..y + height {
            let pixels: Vec<u8> = (0..width * 4).map(|i| colour.wrapping_mul((i * row / 8) as u8)).collect();
            self.driver.write_ram(self.pixels + at(row), &pixels);
        }
        self.command(0x105, &[x, y, width, height, at(y) as u32, 0, 1, 0]);
        self.command(0x104, &[x, y, width, height, 1, 0]);
    }

    fn command(&mut self, kind: u32, words: &[u32]) {
        let bytes: Vec<u8> = [&[kind, 0, 0, 0, 0, 0], words].concat().into_iter().flat_map(u32::to_le_bytes).collect();
        self.driver.transact(0, &[Part::Out(&bytes), Part::In(24)]);
    }
}

/// An input device that takes so many frames more; as the real one does, those that only lift it always takes.
#[derive(Clone, Default)]
struct Taker(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    room: u8,
    pressed: HashSet<u16>,
}

impl Taker {
    fn has_room(&self, room: u8) {
        self.0.lock().expect("one thread").room = room;
    }

    fn assert_lifted(&self) {
        let pressed = &self.0.lock().expect("one thread").pressed;
        assert!(pressed.is_empty(), "{pressed:?} stay pressed");
    }
}

impl Device for Taker {
    fn send(&self, frame: &[Event]) -> Result<(), InputError> {
        const EV_KEY: u16 = 1;
        let mut taken = self.0.lock().expect("one thread");
        let keys = || frame.iter().filter(|event| event.0 == EV_KEY);
        if keys().all(|event| event.2 > 0) {
            taken.room = taken.room.checked_sub(1).ok_or(InputError::Full("it"))?;
        }
        for &(_, code, value) in keys() {
            if value > 0 { taken.pressed.insert(code) } else { taken.pressed.remove(&code) };
        }
        Ok(())
    }

    fn send_position(&self, frame: &[Event]) -> Result<(), InputError> {
        self.send(frame)
    }
}

fn serve(picture: &Picture, from: &mut &[u8]) -> Result<(), ProtocolError> {
    protocol::read_version(from)?;
    protocol::read_security(from)?;
    protocol::read_client_init(from)?;
    let (mut encoder, mut format, mut encoding, mut updates) = (Encoder::new(), PixelFormat::OURS, ENCODING_RAW, 0);
    let screen = Rect { x: 0, y: 0, width: WIDTH, height: HEIGHT };
    loop {
        match protocol::read_message(from)? {
            ClientMessage::SetPixelFormat(wanted) => {
                format = wanted;
                encoder.set_format(format);
            }
            ClientMessage::SetEncodings(list) => encoding = list.first().copied().unwrap_or(ENCODING_RAW),
            ClientMessage::UpdateRequest { area, .. } if updates < UPDATES_MAX => {
                let Some(rect) = area.intersect(screen) else { continue };
                updates += 1;
                let mut update = Vec::new();
                encoder.rectangle(picture, rect, encoding, &mut update);
                let pixels = (rect.width * rect.height * u32::from(format.bits_per_pixel / 8)) as usize;
                let expected = if encoding == ENCODING_ZRLE { 16..=16 + 2 * pixels + 1000 } else { 12 + pixels..=12 + pixels };
                assert!(expected.contains(&update.len()), "{} bytes of {rect:?} in {format:?}", update.len());
            }
            _ => {}
        }
    }
}

fn picture(colours: u8) -> Picture {
    let pixel = |i: u32| ((i.wrapping_mul(0x9e37_79b9) >> 8) % (u32::from(colours) * 257 + 1)).wrapping_mul(0x01_0101);
    Picture { width: WIDTH, height: HEIGHT, pixels: (0..WIDTH * HEIGHT).map(pixel).collect() }
}

#[cfg(test)]
#[path = "../../../../../vmm/src/fuzz/short_run.rs"]
mod short_run;

#[test]
fn a_short_run() {
    short_run::run(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/rfb").as_ref(), rfb);
}
