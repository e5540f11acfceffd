#![no_main]
#![allow(dead_code)]

#[path = "../../src/bin/pollux-twin/rfb/encode.rs"]
mod encode;
#[path = "../../src/bin/pollux-twin/rfb/fuzz.rs"]
mod fuzz;
#[path = "../../src/bin/pollux-twin/rfb/protocol.rs"]
mod protocol;
#[path = "../../src/bin/pollux-twin/screen.rs"]
mod screen;

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::rfb(input));
