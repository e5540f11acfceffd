//! Phones that are not there: each enrols, tells that it has started and has no files of its own, and keeps its connection.

use anyhow::{Context, Result, ensure};
use sync_protocol::event::{Control as Told, ControlKind, Event, Kind, Origin};
use tests::appliance::Appliance;
use tests::control::Control;
use tests::fake_phone::{FakePhone, Stream};
use tokio::runtime::Runtime;

/// The first event that is left for the caller to tell.
pub(crate) const NEXT_SEQ: u64 = 3;

/// Enrols `serial`, which booted at `wall_us` since 1970, and waits until its twin runs.
pub(crate) fn enrol(runtime: &Runtime, appliance: &Appliance, serial: &str, wall_us: i64) -> Result<Stream> {
    let mut phone = FakePhone::new(appliance.sync(), &appliance.ca_pem, serial);
    phone.image = "handset-arm64".into();
    let code = appliance.code("bench")?;
    let stream = runtime.block_on(async {
        ensure!(phone.register(&code).await?, "an enrolment code does not admit");
        let mut stream = phone.stream(1, 1).await.0;
        stream.send_events(vec![told(1, wall_us, ControlKind::Started), told(2, wall_us, ControlKind::ScanDone)]).await;
        stream.acked().await;
        Ok(stream)
    })?;
    appliance.in_mirror(serial)?;
    Ok(stream)
}

fn told(seq: u64, wall_us: i64, kind: ControlKind) -> Event {
    let told = Told { kind, text: "bench, boot 0123456789".into(), path: None, count: 0 };
    Event { seq, wall_us, mono_us: seq, origin: Origin::Phone, kind: Kind::Control(told) }
}

/// The control socket of its running twin.
pub(crate) fn machine(appliance: &Appliance, serial: &str) -> Result<Control> {
    let phone = appliance.phone(serial)?;
    let id = phone["id"].as_str().context("a phone without an id")?;
    Control::connect(&appliance.data().join("run").join(id).join("control.sock"))
}
