#![no_main]
#![allow(dead_code)]

#[path = "../../src/bin/pollux-twin/control/fuzz.rs"]
mod fuzz;
#[path = "../../src/bin/pollux-twin/control/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::control(input));
