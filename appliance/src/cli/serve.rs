//! `pollux serve`: the appliance until Ctrl-C or SIGTERM, with a demo phone beside it if asked for.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use image_builder::Image;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::DataArguments;
use crate::app::Appliance;
use crate::config::{Config, Overrides};
use crate::demo::{DemoConfig, DemoPhone};
use crate::identity::UserName;
use crate::phones::now_us;
use crate::twin::process::Cage;

/// The demo phone that `--demo` starts.
const DEMO_SERIAL: &str = "DEMO-1";
const DEMO_IMAGE: &str = "handset-arm64";
/// How long its enrolment code is good: it is used within seconds.
const DEMO_CODE_US: u64 = 3_600_000_000;

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
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
    /// What to do where this host does not permit all of the cage around a machine's process.
    #[arg(long, value_enum, env = "POLLUX_CAGE")]
    cage: Option<Cage>,
    /// Start a demo phone, enrolled, beside the appliance.
    #[arg(long)]
    demo: bool,
}

pub(super) fn run(arguments: ServeArguments) -> anyhow::Result<()> {
    let overrides = Overrides {
        sync_listen: arguments.sync,
        http_listen: arguments.http,
        twin_binary: arguments.twin_binary,
        names: arguments.names,
        cage: arguments.cage,
    };
    let config = Config::load(&arguments.data.data, arguments.config.as_deref(), overrides)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    runtime.block_on(serve(config, arguments.demo))
}

async fn serve(config: Config, demo: bool) -> anyhow::Result<()> {
    // Before anything is started: who asks for a demo phone must not be left with half of it.
    let image = demo.then(|| Image::open(config.images.join(DEMO_IMAGE))).transpose().context("no demo phone")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let appliance = Appliance::start(config.clone()).await?;
    println!("Console: https://{}/", appliance.http_address);
    println!("Phones:  {}, CA SHA-256 {}", appliance.sync_address, appliance.ca_sha256);
    match &appliance.first_login {
        Some(login) => println!("Login:   {} / {}   (shown once; change it in the console)", login.user, login.password),
        None => println!("Login:   as before; if it is lost, 'pollux user passwd NAME --data {}' sets another", config.data.display()),
    }
    let stop = CancellationToken::new();
    let phone = match image {
        Some(image) => Some(tokio::spawn(keep_demo(demo_config(&config, &appliance)?, image, stop.clone()))),
        None => None,
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("Stopping ...");
    stop.cancel();
    if let Some(phone) = phone {
        phone.await.context("the demo phone failed")?;
    }
    appliance.shutdown().await;
    Ok(())
}

fn demo_config(config: &Config, appliance: &Appliance) -> anyhow::Result<DemoConfig> {
    let admin = UserName::try_from(String::from("local"))?;
    let phones = &appliance.services.phones;
    // One that enrolled before keeps its certificate on its disk, and does not use the code; but its disk may be new.
    let (code, _) = phones.new_code("demo phone", DEMO_CODE_US, &admin, now_us())?;
    let mut address = appliance.sync_address;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Ok(DemoConfig {
        data: config.data.clone(),
        serial: DEMO_SERIAL.into(),
        model: "Reference-Handset".into(),
        code: Some(code),
        appliance: address,
        ca_sha256: appliance.ca_sha256.clone(),
        twin_binary: config.twins.binary.clone().unwrap_or_else(crate::twin::binary_beside_us),
        cage: config.twins.cage,
        fresh: false,
    })
}

/// Runs the demo phone until `stop`, through every restart of its own.
async fn keep_demo(demo: DemoConfig, image: Image, stop: CancellationToken) {
    loop {
        let mut phone = match DemoPhone::start(&demo, &image).await {
            Ok(phone) => phone,
            Err(error) => {
                warn!(%error, "no demo phone");
                return;
            }
        };
        let how = tokio::select! {
            () = stop.cancelled() => None,
            how = phone.ended() => Some(how),
        };
        phone.end().await;
        match how.as_deref() {
            None => return,
            Some("reset") => {}
            Some(how) => {
                warn!(how, "the demo phone ended");
                return;
            }
        }
    }
}
