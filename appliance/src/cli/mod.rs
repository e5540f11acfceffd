//! The command line: `serve`, `demo` and `image` run here; everything else asks a running appliance over its HTTP API.

mod client;
mod commands;
mod demo;
mod health;
mod history;
mod images;
mod mount;
mod serve;
mod table;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use client::Client;

/// An appliance that keeps a living twin of every phone.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the appliance.
    Serve(serve::ServeArguments),
    /// Run a demo phone that enrols with a running appliance.
    Demo(demo::DemoArguments),
    /// Phones: list, show, release, quarantine.
    Phones(Asking<commands::PhonesCommand>),
    /// Enrolment codes.
    Code(Asking<commands::CodeCommand>),
    /// Twins: start, park, stop, look at.
    Twin(Asking<commands::TwinCommand>),
    /// Files of a phone's flash.
    Files(Asking<commands::FilesCommand>),
    /// A phone's log.
    Log(history::LogArguments),
    /// What changed on a phone between two positions of its log.
    Diff(history::DiffArguments),
    /// Search the files of all phones, by name and contents, now or as of a time.
    Find(history::FindArguments),
    /// How the appliance itself is: trouble, and the scrub of what is stored.
    Health(health::HealthArguments),
    /// Usage reports.
    Report(Asking<commands::ReportCommand>),
    /// Prove that a phone's files and its flash are the same, or name what differs, and mend it.
    Verify(verify::VerifyArguments),
    /// Mount a phone's flash on a directory of the appliance's host, read-only.
    Mount(mount::MountArguments),
    /// Users.
    User(Asking<commands::UserCommand>),
    /// Phone images.
    #[command(subcommand)]
    Image(images::ImageCommand),
    /// Print the description of the HTTP API.
    Openapi,
}

#[derive(Debug, Args)]
struct DataArguments {
    /// Where the appliance keeps its data.
    #[arg(long, env = "POLLUX_DATA", default_value = "/var/lib/pollux", global = true)]
    data: PathBuf,
}

#[derive(Debug, Args)]
struct HowArguments {
    #[command(flatten)]
    data: DataArguments,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Args)]
struct Asking<C: Subcommand> {
    #[command(subcommand)]
    command: C,
    #[command(flatten)]
    how: HowArguments,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sled=warn,h2=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollux: {}", crate::chain::Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Image(command) => images::run(command),
        Command::Openapi => {
            println!("{}", crate::http::openapi());
            Ok(())
        }
        asking => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.context("cannot start")?.block_on(ask(asking))
        }
    }
}

async fn ask(command: Command) -> anyhow::Result<()> {
    let connect = |how: &HowArguments| Client::connect(&how.data.data);
    match command {
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Mount(arguments) => mount::run(arguments).await,
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Phones(Asking { command, how }) => commands::phones(&connect(&how)?, command, how.json).await,
        Command::Code(Asking { command, how }) => commands::code(&connect(&how)?, command, how.json).await,
        Command::Twin(Asking { command, how }) => commands::twin(&connect(&how)?, command, how.json).await,
        Command::Files(Asking { command, how }) => commands::files(&connect(&how)?, command, how.json).await,
        Command::Health(arguments) => health::run(arguments).await,
        Command::Log(arguments) => history::log(arguments).await,
        Command::Diff(arguments) => history::diff(arguments).await,
        Command::Find(arguments) => history::find(arguments).await,
        Command::Report(Asking { command, how }) => commands::report(&connect(&how)?, command, how.json).await,
        Command::User(Asking { command, how }) => commands::user(&connect(&how)?, command, how.json).await,
        Command::Serve(_) | Command::Image(_) | Command::Openapi => unreachable!("run elsewhere"),
    }
}
