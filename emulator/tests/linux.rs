//! The unmodified Debian kernel on the whole machine.

mod guest;

use guest::{Console, Guest, PROMPT, config};

#[test]
fn boots_to_a_shell_and_runs_commands() {
    let mut console = Console::boot(&Guest::prepare(), config());
    console.wait_for(PROMPT);
    assert_eq!(console.command("echo $((6 * 7))"), "42");
    assert!(console.command("cat /proc/version").starts_with("Linux version 6."));
}
