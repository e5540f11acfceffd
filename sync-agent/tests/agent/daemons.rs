//! The real ModemManager on a bus of its own, with a simulated modem.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_stream::StreamExt;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

const SERVICE: &str = "org.freedesktop.ModemManager1";
const ROOT: &str = "/org/freedesktop/ModemManager1";
const MODEM: &str = "org.freedesktop.ModemManager1.Modem";

type Interfaces =
    std::collections::HashMap<String, std::collections::HashMap<String, OwnedVariant>>;

/// Whether the daemons are installed; says by name what cannot be tested without.
pub(crate) fn are_there(test: &str) -> bool {
    let missing = ["/usr/bin/dbus-daemon", "/usr/sbin/ModemManager"]
        .into_iter()
        .find(|program| !Path::new(program).exists());
    if let Some(program) = missing {
        eprintln!("skipped: {test} needs {program}");
    }
    missing.is_none()
}

/// A private bus, which ends with this.
pub(crate) struct Bus {
    daemon: Child,
    pub(crate) address: String,
}

impl Bus {
    /// The address that a bus in `directory` will have.
    pub(crate) fn address_in(directory: &Path) -> String {
        format!("unix:path={}", directory.join("bus").display())
    }

    pub(crate) fn start(directory: &Path) -> Self {
        let address = Self::address_in(directory);
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .arg(format!("--address={address}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It prints its address when it listens.
        let mut line = String::new();
        let output = daemon.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:"), "{line}");
        Self { daemon, address }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The daemon, which ends with this.
pub(crate) struct ModemManager {
    daemon: Child,
    connection: Connection,
}

impl ModemManager {
    pub(crate) async fn start(bus: &Bus, log: PathBuf) -> Self {
        let connection = zbus::connection::Builder::address(bus.address.as_str())
            .build()
            .await
            .unwrap();
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .member("NameOwnerChanged")
            .arg(0, SERVICE)
            .build()
            .unwrap();
        let mut owners = MessageStream::for_match_rule(rule, &connection, None)
            .await
            .unwrap();
        let daemon = Command::new("ModemManager")
            .args([
                "--test-session",
                "--test-enable",
                "--test-no-udev",
                "--test-no-qrtr",
            ])
            .args(["--test-no-suspend-resume", "--no-auto-scan", "--debug"])
            .env("DBUS_SESSION_BUS_ADDRESS", &bus.address)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        owners.next().await.unwrap().unwrap();
        Self { daemon, connection }
    }

    /// Makes the modem at the abstract socket `name` known, waits until it is there, and gives its path.
    pub(crate) async fn plug_in(&self, name: &str) -> String {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SERVICE)
            .member("InterfacesAdded")
            .build()
            .unwrap();
        let mut added = MessageStream::for_match_rule(rule, &self.connection, None)
            .await
            .unwrap();
        let profile = (name.rsplit(':').next().unwrap(), "generic", vec![name]);
        self.call(
            ROOT,
            "org.freedesktop.ModemManager1.Test",
            "SetProfile",
            &profile,
        )
        .await;
        let message = added.next().await.unwrap().unwrap();
        let (path, _): (OwnedObjectPath, Interfaces) = message.body().deserialize().unwrap();
        path.as_str().to_owned()
    }

    /// Switches the modem on; it registers with its network.
    pub(crate) async fn enable(&self, modem: &str) {
        self.call(modem, MODEM, "Enable", &true).await;
    }

    pub(crate) async fn disable(&self, modem: &str) {
        self.call(modem, MODEM, "Enable", &false).await;
    }

    /// Dials, and gives the call's path.
    pub(crate) async fn dial(&self, modem: &str, number: &str) -> String {
        let interface = "org.freedesktop.ModemManager1.Modem.Voice";
        let properties = std::collections::HashMap::from([("number", zbus::Variant::from(number))]);
        let call = self.call(modem, interface, "CreateCall", &properties).await;
        let call: OwnedObjectPath = call.body().deserialize().unwrap();
        self.on_call(call.as_str(), "Start").await;
        call.as_str().to_owned()
    }

    /// `Accept`, `Hangup`, ...
    pub(crate) async fn on_call(&self, call: &str, method: &str) {
        self.call(call, "org.freedesktop.ModemManager1.Call", method, &())
            .await;
    }

    /// The path of the modem's only call.
    pub(crate) async fn only_call(&self, modem: &str) -> String {
        let interface = "org.freedesktop.ModemManager1.Modem.Voice";
        let calls = self.call(modem, interface, "ListCalls", &()).await;
        let calls: Vec<OwnedObjectPath> = calls.body().deserialize().unwrap();
        assert_eq!(calls.len(), 1);
        calls[0].as_str().to_owned()
    }

    /// Writes a short message and sends it.
    pub(crate) async fn send(&self, modem: &str, number: &str, text: &str) {
        let interface = "org.freedesktop.ModemManager1.Modem.Messaging";
        let properties = std::collections::HashMap::from([
            ("number", zbus::Variant::from(number)),
            ("text", zbus::Variant::from(text)),
        ]);
        let message = self.call(modem, interface, "Create", &properties).await;
        let message: OwnedObjectPath = message.body().deserialize().unwrap();
        let interface = "org.freedesktop.ModemManager1.Sms";
        self.call(message.as_str(), interface, "Send", &()).await;
    }

    async fn call<B: serde::Serialize + zbus::DynamicType>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Message {
        self.connection
            .call_method(Some(SERVICE), path, Some(interface), method, body)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }
}

impl Drop for ModemManager {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
