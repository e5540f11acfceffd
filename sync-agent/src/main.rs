//! pollux-agent: runs on the phone until it is told to stop.

use anyhow::Context;
use clap::Parser;
use sync_agent::agent;
use sync_agent::config::{Config, Flags};
use tokio::signal::unix::{SignalKind, signal};

// Control points have their own threads; the link needs one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("POLLUX_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let config = Config::load(Flags::parse())?;
    tracing::info!(appliance = config.appliance, state = %config.state.display(), "pollux-agent starts");
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    agent::run(config, stop).await.context("pollux-agent ends")
}
