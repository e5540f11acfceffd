//! What a scripted user of a demo phone does, line by line.
//!
//! ```text
//! # a comment
//! tap 180 640            long-press 180 300       swipe 180 600 180 200 250
//! key enter              type Hello, world
//! wait-screen            wait until the screen has stood still for a moment
//! wait 500               do nothing, in milliseconds
//! screenshot home.png    relative to the folder that the demo was started in
//! ```

use std::path::PathBuf;
use std::time::Duration;

use crate::input::{Action, InputError, Point};

/// A script is written by a person.
const LINES_MAX: usize = 10_000;
/// Longest pause: a longer one is a mistake.
const WAIT_MS_MAX: u64 = 600_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Do(Action),
    /// Until nothing has changed for so long.
    WaitScreen,
    Wait(Duration),
    Screenshot(PathBuf),
}

#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ScriptError {
    line: usize,
    reason: String,
}

/// Reads a whole script, so that a mistake at its end is found before it begins. Gives each step with its line.
pub fn parse(text: &str) -> Result<Vec<(usize, Step)>, ScriptError> {
    let mut steps = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        let failed = |reason: String| ScriptError { line, reason };
        if index >= LINES_MAX {
            return Err(failed(format!("a script has at most {LINES_MAX} lines")));
        }
        let text = text.trim_end_matches('\r');
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            continue;
        }
        let step = step(text.trim_start()).map_err(failed)?;
        if let Step::Do(action) = &step {
            action.frames().map_err(|error: InputError| failed(error.to_string()))?;
        }
        steps.push((line, step));
    }
    Ok(steps)
}

fn step(text: &str) -> Result<Step, String> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match word {
        // Text is taken as it is, with its spaces.
        "type" if rest.is_empty() => Err("type what?".into()),
        "type" => Ok(Step::Do(Action::Text(rest.to_owned()))),
        "key" => Ok(Step::Do(Action::Key(rest.trim().to_owned()))),
        "tap" => Ok(Step::Do(Action::Tap(point(&numbers(rest, 2..=2)?)))),
        "long-press" => Ok(Step::Do(Action::LongPress(point(&numbers(rest, 2..=2)?)))),
        "swipe" => {
            let given = numbers(rest, 4..=5)?;
            let ms = given.get(4).map(|&ms| u32::from(ms));
            Ok(Step::Do(Action::Swipe { from: point(&given[..2]), to: point(&given[2..4]), ms }))
        }
        "wait-screen" if rest.trim().is_empty() => Ok(Step::WaitScreen),
        "wait" => match rest.trim().parse::<u64>() {
            Ok(ms) if ms <= WAIT_MS_MAX => Ok(Step::Wait(Duration::from_millis(ms))),
            _ => Err(format!("wait takes milliseconds, at most {WAIT_MS_MAX}")),
        },
        "screenshot" if !rest.trim().is_empty() => Ok(Step::Screenshot(PathBuf::from(rest.trim()))),
        "screenshot" => Err("screenshot into which file?".into()),
        _ => Err(format!(
            "{text:?} is no step; steps are tap, long-press, swipe, key, type, wait-screen, wait, screenshot"
        )),
    }
}

fn numbers(text: &str, count: std::ops::RangeInclusive<usize>) -> Result<Vec<u16>, String> {
    let parsed: Result<Vec<u16>, _> = text.split_whitespace().map(str::parse).collect();
    match parsed {
        Ok(numbers) if count.contains(&numbers.len()) => Ok(numbers),
        _ => Err(format!("{} to {} whole numbers are wanted, not {text:?}", count.start(), count.end())),
    }
}

fn point(numbers: &[u16]) -> Point {
    Point { x: numbers[0], y: numbers[1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_read() {
        let text = "# hello\n\n tap 1 2\nlong-press 3 4\nswipe 1 2 3 4\nswipe 1 2 3 4 50\r\nkey enter\ntype  a b \nwait-screen\n\
            wait 5\nscreenshot a b.png\n";
        let steps = parse(text).expect("parsed");
        assert_eq!(steps.len(), 9);
        assert_eq!(steps[0], (3, Step::Do(Action::Tap(Point { x: 1, y: 2 }))));
        assert_eq!(steps[5].1, Step::Do(Action::Text(" a b ".into())));
        assert_eq!(steps[8], (11, Step::Screenshot("a b.png".into())));
    }

    #[test]
    fn mistakes_are_named_by_their_line() {
        for (text, reason) in [
            ("tap 1", "whole numbers"),
            ("tap 1 -2", "whole numbers"),
            ("swipe 1 2 3", "whole numbers"),
            ("jump", "is no step"),
            ("key nonsense", "no key"),
            ("type \u{e9}", "no key for"),
            ("wait 1s", "milliseconds"),
            ("screenshot", "which file"),
        ] {
            let message = parse(&format!("wait 1\n{text}")).expect_err(text).to_string();
            assert!(message.starts_with("line 2: ") && message.contains(reason), "{message}");
        }
    }
}
