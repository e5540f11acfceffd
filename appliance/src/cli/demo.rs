//! `pollux demo`: a demo phone until it ends, its script does, or Ctrl-C.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::DataArguments;
use super::client::{Client, Endpoint};
use crate::config::cache_folder;
use crate::demo::script::{self, Step};
use crate::demo::{DemoConfig, DemoPhone};
use crate::twin::process::Cage;

#[derive(Debug, Args)]
pub(super) struct DemoArguments {
    #[command(flatten)]
    data: DataArguments,
    /// The phone's serial number.
    #[arg(long, default_value = "DEMO-1")]
    serial: String,
    /// The phone's model, as it tells the appliance.
    #[arg(long, default_value = "Reference-Handset")]
    model: String,
    /// Enrolment code. Without one the phone waits in quarantine until an administrator releases it.
    #[arg(long, conflicts_with = "enrol")]
    code: Option<String>,
    /// Make an enrolment code for the phone, and use it.
    #[arg(long)]
    enrol: bool,
    /// Image that the phone runs.
    #[arg(long, default_value = "handset-arm64")]
    image: String,
    /// Folder of built images.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Begin with a new disk: a phone that nobody has used.
    #[arg(long)]
    fresh: bool,
    /// What the phone's user does; see `pollux demo --help-script`.
    #[arg(long)]
    script: Option<PathBuf>,
    /// End when the script does.
    #[arg(long, requires = "script")]
    once: bool,
    /// The `pollux-twin` binary.
    #[arg(long)]
    twin_binary: Option<PathBuf>,
    /// What to do where this host does not permit all of the cage around the phone's process.
    #[arg(long, value_enum, default_value = "whole", env = "POLLUX_CAGE")]
    cage: Cage,
    /// Explain the language of scripts.
    #[arg(long)]
    help_script: bool,
}

const SCRIPT_HELP: &str = "\
A script is what the phone's user does, a step a line:
  tap X Y                     touch the screen there
  long-press X Y
  swipe X1 Y1 X2 Y2 [MS]
  key NAME                    enter, backspace, esc, power, a, ...
  type TEXT                   on the phone's keyboard
  wait-screen                 until the screen stands still
  wait MS
  screenshot FILE             PNG
  # comment";

pub(super) async fn run(arguments: DemoArguments) -> anyhow::Result<()> {
    if arguments.help_script {
        println!("{SCRIPT_HELP}");
        return Ok(());
    }
    let steps = arguments.script.as_deref().map(read_script).transpose()?;
    let data = &arguments.data.data;
    let endpoint = Endpoint::read(data)?;
    let images = arguments.images.unwrap_or_else(|| cache_folder().join("images"));
    let image = image_builder::Image::open(images.join(&arguments.image))?;
    let code = if arguments.enrol { Some(new_code(data, &arguments.serial).await?) } else { arguments.code };
    let config = DemoConfig {
        data: data.clone(),
        serial: arguments.serial,
        model: arguments.model,
        code,
        appliance: endpoint.sync,
        ca_sha256: endpoint.ca_sha256,
        twin_binary: arguments.twin_binary.unwrap_or_else(crate::twin::binary_beside_us),
        cage: arguments.cage,
        fresh: arguments.fresh,
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let live = async {
        loop {
            let mut phone = DemoPhone::start(&config, &image).await?;
            println!("Demo phone {} boots ...", config.serial);
            let outcome = use_phone(&mut phone, steps.as_deref(), arguments.once).await;
            phone.end().await;
            match outcome? {
                Outcome::Reset => println!("Demo phone {} restarts.", config.serial),
                Outcome::Done => return anyhow::Ok(()),
            }
        }
    };
    tokio::select! {
        result = live => result,
        // Dropping the phone kills it.
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

enum Outcome {
    Reset,
    Done,
}

async fn use_phone(phone: &mut DemoPhone, steps: Option<&[(usize, Step)]>, once: bool) -> anyhow::Result<Outcome> {
    phone.ready().await?;
    println!("Demo phone is ready.");
    if let Some(steps) = steps {
        let progress = |line: usize, step: &Step| println!("  line {line}: {step:?}");
        phone.play(steps, &progress).await?;
        println!("The script is done.");
        if once {
            return Ok(Outcome::Done);
        }
    }
    match phone.ended().await.as_str() {
        "reset" => Ok(Outcome::Reset),
        "power_off" => {
            println!("Demo phone was switched off.");
            Ok(Outcome::Done)
        }
        other => anyhow::bail!("the demo phone ended: {other}"),
    }
}

async fn new_code(data: &Path, serial: &str) -> anyhow::Result<String> {
    let client = Client::connect(data)?;
    let reply = client.post("/api/codes", serde_json::json!({"note": format!("demo phone {serial}")})).await?;
    reply["code"].as_str().map(str::to_owned).context("the appliance made no code")
}

fn read_script(path: &Path) -> anyhow::Result<Vec<(usize, Step)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    script::parse(&text).with_context(|| format!("{} is no script", path.display()))
}
