//! The command line: `serve` and `demo` run here; everything else asks a running appliance over its HTTP API.

mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

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
    Serve(ServeArguments),
    /// Print the description of the HTTP API.
    Openapi,
}

#[derive(Debug, Args)]
struct DataArguments {
    /// Where the appliance keeps its data.
    #[arg(long, env = "POLLUX_DATA", default_value = "/var/lib/pollux")]
    data: PathBuf,
}

#[derive(Debug, Args)]
struct ServeArguments {
    #[command(flatten)]
    data: DataArguments,
    /// Configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address for the console and the HTTP API.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Address for phones.
    #[arg(long)]
    sync: Option<SocketAddr>,
    /// The `pollux-twin` binary.
    #[arg(long)]
    twin_binary: Option<PathBuf>,
    /// A further name or address by which phones and browsers reach the appliance.
    #[arg(long = "name")]
    names: Vec<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sled=warn,h2=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let result = match arguments.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Openapi => {
            println!("{}", crate::http::openapi());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pollux: {error:#}");
            ExitCode::FAILURE
        }
    }
}
