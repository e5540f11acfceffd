//! The screen by the Remote Framebuffer protocol (RFC 6143): any VNC client may watch and use the twin.
//!
//! Each watcher has two threads: one reads what it sends, one writes updates when it has asked and something changed. What
//! waits for a slow watcher is one update at most, made when the watcher is ready for it; one that does not read for
//! [`WRITE_TIMEOUT`], or breaks the protocol, is dropped.

mod encode;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod protocol;

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use vmm::log_limit::LogLimit;
use vmm::virtio::gpu::Screen;
use vmm::virtio::input::InputError;

use crate::hands::Hands;
use crate::listener::Listener;
use crate::screen::Picture;
use encode::Encoder;
use protocol::{ClientMessage, ENCODING_DESKTOP_SIZE, ENCODING_RAW, ENCODING_ZRLE, PixelFormat, ProtocolError, Rect};

/// Watchers of one twin: help-desk, its manager, recordings.
const WATCHERS_MAX: usize = 16;
/// A client that says nothing while it introduces itself is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Rectangles kept for a watcher, which may look at a part of the screen only; beyond, one that contains them.
const DAMAGE_MAX: usize = 32;
/// How long the feed looks away from its stop condition.
const FEED_TIMEOUT: Duration = Duration::from_secs(1);
const NAME: &str = "Pollux twin";

/// Starts to serve.
pub(crate) fn serve(listener: Listener, begin: impl FnOnce() + Send + 'static, screen: Screen, hands: Arc<Hands>) -> io::Result<()> {
    let gallery = Arc::new(Gallery { screen, hands, state: Mutex::default(), changed: Condvar::new() });
    let feeding = gallery.clone();
    std::thread::Builder::new().name("rfb-feed".into()).stack_size(128 << 10).spawn(move || feeding.feed())?;
    listener.serve("rfb", WATCHERS_MAX, begin, move |stream, number| {
        if let Err(error) = watch(&gallery, stream, number) {
            tracing::debug!(watcher = number, error = &error as &dyn std::error::Error, "watcher left");
        }
    })
}

/// Where all watchers meet.
struct Gallery {
    screen: Screen,
    hands: Arc<Hands>,
    state: Mutex<State>,
    /// The screen changed, or a watcher asked for something or left.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    generation: u64,
    watchers: HashMap<u64, Wanted>,
}

/// What a watcher has asked for and its writer has not yet taken up.
#[derive(Default)]
struct Wanted {
    format: Option<PixelFormat>,
    encodings: Option<Vec<i32>>,
    /// Whether changes only; and where.
    update: Option<(bool, Rect)>,
    /// To be told that its hands are too fast.
    bell: bool,
}

/// What a writer does next.
enum Request {
    /// Whether changes only; and where.
    Update(bool, Rect),
    Bell,
}

impl Gallery {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no watcher panics while it holds the lock")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("no watcher panics while it holds the lock")
    }

    /// Tells watchers of each change of the screen, as long as there are any.
    fn feed(&self) {
        loop {
            let mut state = self.lock();
            while state.watchers.is_empty() {
                state = self.wait(state);
            }
            let known = state.generation;
            drop(state);
            let generation = self.screen.wait_beyond(known, FEED_TIMEOUT);
            if generation != known {
                self.lock().generation = generation;
                self.changed.notify_all();
            }
        }
    }

    /// Changes what a watcher wants.
    fn want(&self, number: u64, change: impl FnOnce(&mut Wanted)) {
        if let Some(wanted) = self.lock().watchers.get_mut(&number) {
            change(wanted);
        }
        self.changed.notify_all();
    }
}

/// Serves one watcher until it leaves.
fn watch(gallery: &Arc<Gallery>, mut stream: UnixStream, number: u64) -> Result<(), ProtocolError> {
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let size = handshake(gallery, &mut reader, &mut stream)?;
    stream.set_read_timeout(None)?;

    gallery.lock().watchers.insert(number, Wanted::default());
    gallery.changed.notify_all();
    let (to_writer, writing) = (gallery.clone(), stream.try_clone()?);
    let writer = std::thread::Builder::new().name(format!("rfb-{number}-out")).stack_size(256 << 10).spawn(move || {
        if let Err(error) = Writer::new(to_writer, writing, number, size).run() {
            tracing::debug!(watcher = number, %error, "watcher does not read");
        }
    });
    let result = writer.map_err(ProtocolError::from).and_then(|writer| {
        let result = listen(gallery, &mut reader, number);
        gallery.lock().watchers.remove(&number);
        gallery.changed.notify_all();
        // The writer may be stuck in a write.
        let _ = stream.shutdown(Shutdown::Both);
        if writer.join().is_err() {
            tracing::error!(watcher = number, "a watcher's writer had panicked");
        }
        result
    });
    gallery.lock().watchers.remove(&number);
    gallery.hands.leave(number);
    result
}

/// Introduces each other; returns the screen size that the client was told.
fn handshake(gallery: &Gallery, from: &mut BufReader<UnixStream>, to: &mut UnixStream) -> Result<(u32, u32), ProtocolError> {
    to.write_all(protocol::VERSION)?;
    protocol::read_version(from)?;
    to.write_all(&[1, protocol::SECURITY_NONE])?;
    protocol::read_security(from)?;
    to.write_all(&[0; 4])?;
    protocol::read_client_init(from)?;
    let (width, height) = gallery.screen.look(|frame| (frame.width(), frame.height()));
    to.write_all(&protocol::server_init(width, height, NAME))?;
    Ok((width, height))
}

/// Takes up what a watcher sends, until it leaves or sends nonsense.
fn listen(gallery: &Gallery, from: &mut BufReader<UnixStream>, number: u64) -> Result<(), ProtocolError> {
    loop {
        hear(gallery, number, protocol::read_message(from)?);
    }
}

fn hear(gallery: &Gallery, number: u64, message: ClientMessage) {
    match message {
        ClientMessage::SetPixelFormat(format) => gallery.want(number, |w| w.format = Some(format)),
        ClientMessage::SetEncodings(list) => gallery.want(number, |w| w.encodings = Some(list)),
        // An unanswered request for everything is not weakened by a later one for changes.
        ClientMessage::UpdateRequest { incremental, area } => gallery.want(number, |w| match w.update {
            Some((false, _)) if incremental => {}
            _ => w.update = Some((incremental, area)),
        }),
        ClientMessage::Key { down, keysym } => answer(gallery, number, gallery.hands.key(number, down, keysym)),
        ClientMessage::Pointer { buttons, x, y } => {
            let size = gallery.screen.look(|frame| (frame.width(), frame.height()));
            answer(gallery, number, gallery.hands.pointer(number, buttons, (x, y), size));
        }
        ClientMessage::CutText => {}
    }
}

/// Tells a watcher that what its hands did was lost, as a keyboard's controller does: by a beep. A guest that has no driver yet gets
/// nothing, and nobody is told: so it is on any phone that is still starting.
fn answer(gallery: &Gallery, number: u64, taken: Result<(), InputError>) {
    static LOG_LIMIT: LogLimit = LogLimit::new();
    match taken {
        Ok(()) => {}
        Err(error @ InputError::Full(_)) => {
            if LOG_LIMIT.allows() {
                tracing::info!(watcher = number, %error, "input from a watcher is lost");
            }
            gallery.want(number, |w| w.bell = true);
        }
        Err(error) => tracing::debug!(watcher = number, %error, "input from a watcher is lost"),
    }
}

/// Writes a watcher's updates.
struct Writer<S> {
    gallery: Arc<Gallery>,
    stream: S,
    number: u64,
    encoder: Encoder,
    encoding: i32,
    takes_resize: bool,
    /// The screen's size as the watcher knows it.
    size: (u32, u32),
    /// The generation up to which `damage` is complete.
    seen: u64,
    /// What changed and was not yet sent.
    damage: Vec<Rect>,
}

impl Writer<UnixStream> {
    fn run(&mut self) -> io::Result<()> {
        let result = self.write_updates();
        if result.is_err() {
            // Also ends the reader.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        result
    }

    fn write_updates(&mut self) -> io::Result<()> {
        while let Some(request) = self.next_request() {
            self.serve(request)?;
        }
        Ok(())
    }

    /// Waits for a request that can be answered; `None` when the watcher has left.
    fn next_request(&mut self) -> Option<Request> {
        let gallery = self.gallery.clone();
        let mut state = gallery.lock();
        loop {
            let State { generation, watchers } = &mut *state;
            if let Some(request) = self.due(watchers.get_mut(&self.number)?, *generation) {
                return Some(request);
            }
            state = gallery.wait(state);
        }
    }
}

impl<S: Write> Writer<S> {
    fn new(gallery: Arc<Gallery>, stream: S, number: u64, size: (u32, u32)) -> Self {
        let encoder = Encoder::new();
        Self { gallery, stream, number, encoder, encoding: ENCODING_RAW, takes_resize: false, size, seen: 0, damage: Vec::new() }
    }

    /// What can be answered now, of what the watcher wants while the screen is at `generation`.
    fn due(&mut self, wanted: &mut Wanted, generation: u64) -> Option<Request> {
        if std::mem::take(&mut wanted.bell) {
            return Some(Request::Bell);
        }
        let has_news = |area| generation > self.seen || self.damage.iter().any(|r| r.intersect(area).is_some());
        let (incremental, area) = wanted.update.take_if(|(incremental, area)| !*incremental || has_news(*area))?;
        self.adopt(wanted.format.take(), wanted.encodings.take());
        Some(Request::Update(incremental, area))
    }

    fn serve(&mut self, request: Request) -> io::Result<()> {
        let (incremental, area) = match request {
            Request::Update(incremental, area) => (incremental, area),
            Request::Bell => return self.stream.write_all(&[protocol::BELL]),
        };
        let (picture, news, generation) = self.gallery.screen.look(|frame| {
            (Picture::of(frame), frame.damage_since(self.seen), frame.generation())
        });
        self.seen = generation;
        let screen = Rect { x: 0, y: 0, width: picture.width, height: picture.height };
        if (picture.width, picture.height) != self.size {
            return self.resize(screen);
        }
        self.note(news);
        let Some(area) = area.intersect(screen) else { return Ok(()) };
        let rects: Vec<Rect> = if incremental { self.damage_in(area) } else { vec![area] };
        if rects.is_empty() {
            // What changed was elsewhere: the request stands, unless the watcher has made another.
            self.gallery.want(self.number, |w| w.update = w.update.or(Some((true, area))));
            return Ok(());
        }
        self.damage.retain(|r| r.intersect(area) != Some(*r));
        self.send(&picture, &rects)
    }

    /// Adds to the damage what has changed, wherever the watcher looks.
    fn note(&mut self, news: Vec<vmm::virtio::gpu::Rect>) {
        self.damage.extend(news.into_iter().map(|r| Rect { x: r.x, y: r.y, width: r.width, height: r.height }));
        self.damage = bounded(std::mem::take(&mut self.damage));
    }

    /// The damage within an area, in few rectangles.
    fn damage_in(&self, area: Rect) -> Vec<Rect> {
        self.damage.iter().filter_map(|r| r.intersect(area)).collect()
    }

    fn send(&mut self, picture: &Picture, rects: &[Rect]) -> io::Result<()> {
        let mut update = protocol::update_head(rects.len() as u16).to_vec();
        for rect in rects {
            self.encoder.rectangle(picture, *rect, self.encoding, &mut update);
        }
        self.stream.write_all(&update)
    }

    /// Tells the watcher that the screen has another size; all of it is then news.
    fn resize(&mut self, screen: Rect) -> io::Result<()> {
        if !self.takes_resize {
            return Err(io::Error::other("the screen's size has changed and the client cannot follow"));
        }
        self.size = (screen.width, screen.height);
        self.damage = vec![screen];
        let head = protocol::rectangle_head(screen, ENCODING_DESKTOP_SIZE);
        self.stream.write_all(&[&protocol::update_head(1)[..], &head].concat())
    }

    fn adopt(&mut self, format: Option<PixelFormat>, encodings: Option<Vec<i32>>) {
        if let Some(format) = format {
            self.encoder.set_format(format);
        }
        if let Some(encodings) = encodings {
            let known = encodings.iter().find(|e| [ENCODING_RAW, ENCODING_ZRLE].contains(e));
            self.encoding = known.copied().unwrap_or(ENCODING_RAW);
            self.takes_resize = encodings.contains(&ENCODING_DESKTOP_SIZE);
        }
    }
}

/// As it is, or one rectangle around all if there are too many.
fn bounded(rects: Vec<Rect>) -> Vec<Rect> {
    match rects.first() {
        Some(first) if rects.len() > DAMAGE_MAX => vec![rects.iter().fold(*first, |all, r| all.union(*r))],
        _ => rects,
    }
}

#[cfg(test)]
mod tests;
