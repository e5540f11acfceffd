//! A phone without hardware: a shell and its canvas, driven by the names of touch targets.
//!
//! Tests, `handset --render` and `handset --targets` use it. Every step goes through the same events
//! and the same incremental drawing as on the phone.

use std::path::Path;
use std::rc::Rc;

use crate::draw::font::Fonts;
use crate::draw::render::Renderer;
use crate::geometry::Rect;
use crate::store::{Sources, Store};
use crate::ui::builder::Target;
use crate::ui::clock::Clock;
use crate::ui::shell::Shell;
use crate::ui::{Event, Key};

/// Monday, 23 November 2026, 09:41 UTC.
pub const MOMENT_S: i64 = 1_795_426_860;

pub struct BenchPhone {
    pub shell: Shell,
    pub renderer: Renderer,
    /// What the last step changed on the screen, in pixels.
    pub changed: Vec<Rect>,
}

impl BenchPhone {
    /// A phone with `home` as its user's folder and a display of `w` by `h` pixels. Its clock stands
    /// at [`MOMENT_S`].
    pub fn new(home: &Path, fonts: Rc<Fonts>, w: i32, h: i32) -> Self {
        let sources = Sources {
            now_us: Box::new(|| MOMENT_S * 1_000_000 + 250_000),
            random: Box::new(|| [7; 16]),
        };
        let clock = Clock {
            unix_minute: MOMENT_S / 60,
            offset_minutes: 0,
        };
        let scale = fonts.scale();
        let store = Store::new(home, sources);
        let shell = Shell::new((w / scale, h / scale), store, Rc::clone(&fonts), clock);
        let mut phone = Self {
            shell,
            renderer: Renderer::new(fonts, w, h),
            changed: Vec::new(),
        };
        phone.draw();
        phone
    }

    pub fn send(&mut self, event: Event) {
        self.shell.handle(event);
        self.draw();
    }

    fn draw(&mut self) {
        self.changed = self.renderer.show(self.shell.scene());
    }

    pub fn find(&self, name: &str) -> Option<&Target> {
        self.shell
            .targets()
            .iter()
            .rev()
            .find(|target| target.name == name)
    }

    /// Touches and lifts at the middle of a target; says whether there is such a target.
    pub fn tap(&mut self, name: &str) -> bool {
        let Some(target) = self.find(name) else {
            return false;
        };
        let (x, y) = target.area.center();
        self.send(Event::Down { x, y });
        self.send(Event::Up);
        true
    }

    /// Touches, moves in steps, and lifts.
    pub fn drag(&mut self, from: (i32, i32), to: (i32, i32)) {
        const STEPS: i32 = 8;
        self.send(Event::Down {
            x: from.0,
            y: from.1,
        });
        for step in 1..=STEPS {
            let x = from.0 + (to.0 - from.0) * step / STEPS;
            let y = from.1 + (to.1 - from.1) * step / STEPS;
            self.send(Event::Move { x, y });
        }
        self.send(Event::Up);
    }

    /// Types on a hardware keyboard.
    pub fn type_text(&mut self, text: &str) {
        for c in text.chars() {
            self.send(Event::Key(match c {
                '\n' => Key::Enter,
                '\t' => Key::Tab,
                c => Key::Char(c),
            }));
        }
    }

    /// The screen as a PNG file's bytes.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        let canvas = &self.renderer.canvas;
        let mut pixmap =
            tiny_skia::Pixmap::new(canvas.w as u32, canvas.h as u32).ok_or("an empty screen")?;
        for (to, from) in pixmap.pixels_mut().iter_mut().zip(&canvas.pixels) {
            let [_, r, g, b] = from.to_be_bytes();
            *to = tiny_skia::ColorU8::from_rgba(r, g, b, 255).premultiply();
        }
        pixmap.encode_png().map_err(|error| error.to_string())
    }
}
