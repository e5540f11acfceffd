//! `pollux mount`: a phone's flash as a directory of this host, until Ctrl-C.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::DataArguments;
use super::client::Client;

#[derive(Debug, Args)]
pub(super) struct MountArguments {
    /// PHONE or PHONE@POSITION; without a position the mount follows the phone.
    phone: String,
    /// An empty directory.
    directory: PathBuf,
    #[command(flatten)]
    data: DataArguments,
}

pub(super) async fn run(arguments: MountArguments) -> anyhow::Result<()> {
    let (phone, position) = match arguments.phone.rsplit_once('@') {
        Some((phone, position)) => {
            (phone, Some(position.parse::<u64>().with_context(|| format!("{position:?} is no position"))?))
        }
        None => (arguments.phone.as_str(), None),
    };
    let shown = arguments.directory.display();
    let directory = arguments.directory.canonicalize().with_context(|| format!("there is no directory {shown}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let client = Client::connect(&arguments.data.data)?;
    let path = format!("/api/phones/{}/mounts", super::commands::segment(phone));
    let reply = client.post(&path, json!({"directory": directory, "position": position})).await?;
    println!("{phone} is mounted on {shown} until Ctrl-C.");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    client.delete(&format!("/api/mounts/{}", reply["id"])).await
}
