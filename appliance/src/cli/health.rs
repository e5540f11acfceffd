//! `pollux health`: how the appliance itself is.

use clap::Args;
use serde_json::{Value, json};

use super::HowArguments;
use super::client::Client;
use super::commands::{list, show, text};
use super::table::plain;

#[derive(Debug, Args)]
pub(super) struct HealthArguments {
    /// Begin to read and verify everything that is stored now.
    #[arg(long)]
    scrub: bool,
    #[command(flatten)]
    how: HowArguments,
}

pub(super) async fn run(arguments: HealthArguments) -> anyhow::Result<()> {
    let client = Client::connect(&arguments.how.data.data)?;
    if arguments.scrub {
        client.post("/api/scrub", json!({})).await?;
    }
    let status = client.get("/api/status").await?;
    if arguments.how.json {
        return show(&status);
    }
    println!("runs since {}, version {}", text(&status["started_at"]), text(&status["version"]));
    match &status["trouble"] {
        Value::Null => println!("phones are heard"),
        trouble => println!("nothing is accepted from phones: {}", plain(&text(trouble))),
    }
    let scrub = &status["scrub"];
    match &scrub["running"] {
        Value::Null => println!("the store is not being scrubbed"),
        running => println!("scrubbing: {} of {} bytes, {} damaged", running["bytes"], scrub["stored_bytes"], running["damaged"]),
    }
    let last = &scrub["last"];
    if last.is_null() {
        println!("no scrub has ended yet");
        return Ok(());
    }
    println!(
        "last scrub ended {}: {} blobs, {} bytes, {} damaged, {} of them mended here, {} lost",
        text(&last["ended_at"]), last["blobs"], last["bytes"], last["damaged"], last["mended"], last["lost"]
    );
    for file in list(&last["files"]) {
        println!("  asked phone {} again for {}", text(&file["phone"]), plain(&text(&file["path"])));
    }
    Ok(())
}
