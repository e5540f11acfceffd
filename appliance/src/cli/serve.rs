//! `pollux serve`: the appliance until Ctrl-C or SIGTERM.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::ServeArguments;
use crate::app::Appliance;
use crate::config::{Config, Overrides};

pub(super) fn run(arguments: ServeArguments) -> anyhow::Result<()> {
    let overrides = Overrides {
        sync_listen: arguments.sync,
        http_listen: arguments.http,
        twin_binary: arguments.twin_binary,
        names: arguments.names,
    };
    let config = Config::load(&arguments.data.data, arguments.config.as_deref(), overrides)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let appliance = Appliance::start(config).await?;
    println!("Console: https://{}/", appliance.http_address);
    println!("Phones:  {}, CA SHA-256 {}", appliance.sync_address, appliance.ca_sha256);
    if let Some(login) = &appliance.first_login {
        println!("Login:   {} / {}   (shown once; change it in the console)", login.user, login.password);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("Stopping ...");
    appliance.shutdown().await;
    Ok(())
}
