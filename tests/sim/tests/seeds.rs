//! Some seeds on every run of the tests; those that found something, again; and that a seed is one run and no other.

use std::process::Command;

/// Steps of a run among the tests: short, so that there are many.
const STEPS: &str = "30";
const SEEDS: &str = "1000";

/// What the simulator prints; panics with it if a seed fails.
fn sim(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output().expect("the simulator runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{errors}");
    out
}

#[test]
fn nothing_acknowledged_is_lost_and_flash_and_phone_end_the_same() {
    println!("{}", sim(&["--seeds", SEEDS, "--steps", STEPS]));
}

#[test]
fn a_seed_is_one_run() {
    let trace = |from: &str| sim(&["--from", from]).lines().next().expect("a line").to_owned();
    let first = trace("5");
    assert_eq!(first, trace("5"));
    assert_ne!(first.split_once(": "), trace("6").split_once(": "));
    // In the middle of others as alone.
    let among = sim(&["--from", "3", "--seeds", "5", "--traces"]);
    assert!(among.lines().any(|line| line == first), "{first} is not in {among}");
}

/// Each of these failed once; what it found is beside it.
#[test]
fn what_was_found_stays_mended() {
    let found = [
        ("15", "a change of ours made after one of the phone's that the log has later"),
        ("14", "a chunk of ours that had decayed, behind which all commands waited"),
        ("41", "a reading again that found no room in the journal, and was taken for done"),
        ("45", "a refused rename, of which the flash kept what it had been renamed to"),
        ("74", "a journal begun anew, which did not tell of what had been removed"),
        ("76", "a directory removed by us, of whose files the phone had told later"),
        ("113", "a change of ours that the phone refused, after it had moved it elsewhere in the log"),
        ("304", "a change that was made and could not be recorded, and was gone again before it was looked for"),
    ];
    for (seed, what) in found {
        println!("{what}: {}", sim(&["--from", seed]));
    }
}
