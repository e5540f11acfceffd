//! The command line of Pollux: reads arguments, calls the library, says what went wrong.

fn main() -> std::process::ExitCode {
    pollux::cli::main()
}
