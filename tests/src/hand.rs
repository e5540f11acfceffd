//! A phone in somebody's hand: what its user sees of it and does with it, whatever machine it is.

use std::time::Duration;

use anyhow::{Context, Result};
use tiny_skia::Pixmap;

use crate::appliance::{Appliance, wait_for};
use crate::targets::Targets;

/// How long a finger rests on the glass, or on a key.
const TAP: Duration = Duration::from_millis(60);

/// A screen that has not changed for so long stands still.
pub const STILL: Duration = Duration::from_millis(700);

/// A phone with a touch panel and a hardware keyboard.
pub trait Handheld {
    fn serial(&self) -> &str;

    /// The phone's own screen as PNG.
    fn screen(&mut self) -> Result<Vec<u8>>;

    /// A number that rises with each change of the screen.
    fn generation(&mut self) -> Result<u64>;

    /// Waits until the screen has changed since `generation`, and then for [`STILL`] no more.
    fn drawn_since(&mut self, generation: u64) -> Result<()>;

    /// A finger touches the glass at a pixel of the screen, or leaves it there.
    fn finger(&mut self, x: u32, y: u32, down: bool) -> Result<()>;

    /// A key of the keyboard, by its Linux key code, goes down or up.
    fn key(&mut self, code: u16, down: bool) -> Result<()>;

    /// Puts a finger down and lifts it, and waits until the phone has drawn something.
    fn tap(&mut self, x: u32, y: u32) -> Result<()> {
        let before = self.generation()?;
        self.finger(x, y, true)?;
        // A finger has its own pace; no panel reports a touch that ends as it begins.
        std::thread::park_timeout(TAP);
        self.finger(x, y, false)?;
        self.drawn_since(before)
    }

    /// Taps targets one after the other, by name.
    fn tap_all(&mut self, at: &Targets, names: &str) -> Result<()> {
        for name in names.split_ascii_whitespace() {
            let (x, y) = at.at(name)?;
            self.tap(x, y).with_context(|| format!("tapping {name}"))?;
        }
        Ok(())
    }

    /// Presses one key as a finger does, and waits for nothing.
    fn press_key(&mut self, code: u16) -> Result<()> {
        self.key(code, true)?;
        std::thread::park_timeout(TAP);
        self.key(code, false)
    }

    /// Types lower-case letters, digits, space, and what else `key_code` knows, all at once, and waits until the phone has drawn it.
    fn type_text(&mut self, text: &str) -> Result<()> {
        let before = self.generation()?;
        for letter in text.chars() {
            let code = key_code(letter).with_context(|| format!("no key for {letter:?}"))?;
            self.key(code, true)?;
            self.key(code, false)?;
        }
        self.drawn_since(before)
    }
}

/// Linux key codes of a US keyboard [input-event-codes.h].
fn key_code(letter: char) -> Option<u16> {
    const ROWS: [(&str, u16); 4] = [("1234567890-=", 2), ("qwertyuiop", 16), ("asdfghjkl;'", 30), ("zxcvbnm,./", 44)];
    match letter {
        ' ' => return Some(57),
        '\n' => return Some(28),
        _ => {}
    }
    ROWS.iter().find_map(|(row, first)| row.find(letter).map(|at| first + at as u16))
}

/// Waits until phone and twin show the same, pixel for pixel, and returns that picture. Pictures that never become equal are kept
/// in a folder whose name is printed.
pub fn same_screen(appliance: &Appliance, phone: &mut impl Handheld) -> Result<Pixmap> {
    let mut last = None;
    let same = wait_for("the twin's screen to equal the phone's", || {
        let own = phone.screen()?;
        // A twin that boots anew, as its phone did, has no screen for a moment; one without end is told by the wait's.
        let Ok(twin) = appliance.twin_screen(phone.serial()) else { return Ok(None) };
        let picture = Pixmap::decode_png(&own)?;
        let equal = picture == Pixmap::decode_png(&twin)?;
        last = Some((own, twin));
        Ok(equal.then_some(picture))
    });
    if let (Err(_), Some((own, twin))) = (&same, &last) {
        let folder = tempfile::Builder::new().prefix("screens-").tempdir()?.keep();
        std::fs::write(folder.join("phone.png"), own)?;
        std::fs::write(folder.join("twin.png"), twin)?;
        eprintln!("the two screens are in {}", folder.display());
    }
    same
}
