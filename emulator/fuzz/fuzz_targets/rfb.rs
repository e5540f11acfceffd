#![no_main]
#![allow(dead_code)]

#[path = "../../src/bin/pollux-twin/hands.rs"]
mod hands;
#[path = "../../src/bin/pollux-twin/keymap.rs"]
mod keymap;
#[path = "../../src/bin/pollux-twin/listener.rs"]
mod listener;
#[path = "../../src/bin/pollux-twin/rfb/mod.rs"]
mod rfb;
#[path = "../../src/bin/pollux-twin/screen.rs"]
mod screen;

libfuzzer_sys::fuzz_target!(|input: &[u8]| rfb::fuzz::rfb(input));
