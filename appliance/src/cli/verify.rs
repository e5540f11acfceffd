//! `pollux verify`: proves that a phone and its flash are the same, or names what differs.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::HowArguments;
use super::client::Client;
use super::commands::{list, segment, show, text};
use super::table::plain;

/// How often we look how it goes.
const LOOK: std::time::Duration = std::time::Duration::from_millis(300);

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    phone: String,
    /// Compare what the phone has told, without having it read its files again.
    #[arg(long)]
    quick: bool,
    /// Only tell what differs: mend nothing.
    #[arg(long)]
    no_heal: bool,
    #[command(flatten)]
    how: HowArguments,
}

pub(super) async fn run(arguments: VerifyArguments) -> anyhow::Result<()> {
    let client = Client::connect(&arguments.how.data.data)?;
    let path = format!("/api/phones/{}/verification", segment(&arguments.phone));
    client.post(&path, json!({"reread": !arguments.quick, "heal": !arguments.no_heal})).await?;
    let mut told = Value::Null;
    let verdict = loop {
        let standing = client.get(&path).await?;
        if standing["running"].is_null() {
            break standing["verdict"].clone();
        }
        if standing["running"] != told {
            told = standing["running"].clone();
            eprintln!("{} ...", plain(&text(&told)));
        }
        tokio::time::sleep(LOOK).await;
    };
    if arguments.how.json {
        show(&verdict)?;
    } else {
        list(&verdict["findings"]).iter().for_each(tell);
        if let Some(unnamed @ 1..) = verdict["unnamed"].as_u64() {
            println!("and {unnamed} paths more; `pollux log {} --kind control` has them", arguments.phone);
        }
    }
    let position = &verdict["position"];
    match (verdict["equal"].as_bool(), arguments.how.json) {
        (Some(true), true) => Ok(()),
        (Some(true), false) => {
            let how = if arguments.quick { "by what the phone has told" } else { "the phone has read everything again" };
            println!("{} is proven equal at position {position} ({how}; root {})", arguments.phone, text(&verdict["root"]));
            Ok(())
        }
        (Some(false), _) => bail!("{} differs from its flash at position {position}", arguments.phone),
        (None, _) => bail!("it could not be told whether they are equal: {}", plain(&text(&verdict["trouble"]))),
    }
}

fn tell(finding: &Value) {
    let field = |value: &Value| plain(&text(value));
    println!("{}  {} at position {}", field(&finding["path"]), field(&finding["kind"]).replace('_', " "), finding["position"]);
    if finding["kind"] == "divergence" {
        for (who, side) in [("phone", &finding["phone"]), ("flash", &finding["flash"])] {
            let shown = match side.is_null() {
                true => "nothing".to_owned(),
                false => format!(
                    "{} of {} bytes, mode {:o}, owner {}:{}, {}",
                    field(&side["kind"]), side["size"], side["mode"].as_u64().unwrap_or(0), side["uid"], side["gid"], field(&side["hash"])
                ),
            };
            println!("    {who}: {shown}");
        }
        match &finding["event"] {
            Value::Null => println!("    no event explains what the flash has"),
            event => println!("    last event: {} at {}: {}", event["position"], field(&event["at"]), field(&event["text"])),
        }
    }
    println!("    {}", field(&finding["outcome"]));
}
