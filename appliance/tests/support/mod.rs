//! An appliance on free ports with data of its own, a browser-like client, and what fake phones send.

#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

pub(crate) mod agent;

use std::sync::Arc;
use std::time::Duration;

use pollux::app::Appliance;
use pollux::config::{Config, StoreBackend};
use serde_json::{Value, json};
use sync_protocol::event::{Control, ControlKind, Event, Kind, Origin};
pub(crate) use tests::fake_phone::{FakePhone, PATIENCE, Stream};

pub(crate) fn config(data: &std::path::Path, store: StoreBackend) -> Config {
    let mut config = Config::new(data);
    config.http_listen = "127.0.0.1:0".parse().expect("address");
    config.sync_listen = "127.0.0.1:0".parse().expect("address");
    config.store = store;
    config.images = data.join("no-images");
    config
}

/// A running appliance; its data goes with it.
pub(crate) struct Setup {
    pub appliance: Appliance,
    pub data: tempfile::TempDir,
}

pub(crate) async fn start() -> Setup {
    let data = tempfile::tempdir().expect("folder");
    let appliance = Appliance::start(config(data.path(), StoreBackend::Memory)).await.expect("started");
    Setup { appliance, data }
}

/// A client of the HTTP API, with or without a token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn anonymous(appliance: &Appliance) -> Client {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(appliance.ca_pem.as_bytes()).expect("CA");
        roots.add(ca).expect("CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().build().expect("client");
        Client { http, base: format!("https://{}", appliance.http_address), token: None }
    }

    pub(crate) fn admin(appliance: &Appliance) -> Client {
        Client { token: Some(appliance.local_token.clone()), ..Client::anonymous(appliance) }
    }

    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("method");
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Status and JSON of an answer; `Null` if it is none.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answer");
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, reply) = self.call("POST", path, Some(body)).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {reply}");
        reply
    }

    pub(crate) async fn new_code(&self) -> String {
        self.post("/api/codes", json!({})).await["code"].as_str().expect("code").to_owned()
    }

    /// The phone once `is` holds of it.
    pub(crate) async fn phone_when(&self, phone: &str, is: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/phones/{phone}");
        let looking = async {
            loop {
                let view = self.get(&path).await;
                if is(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(view) => view,
            Err(_) => panic!("{phone} never became so: {}", self.get(&path).await),
        }
    }
}

/// A phone that the appliance does not know.
pub(crate) fn stranger(appliance: &Appliance, serial: &str) -> FakePhone {
    FakePhone::new(&appliance.sync_address.to_string(), &appliance.ca_pem, serial)
}

pub(crate) async fn enrolled(appliance: &Appliance, serial: &str) -> FakePhone {
    let mut phone = stranger(appliance, serial);
    let code = Client::admin(appliance).new_code().await;
    assert!(phone.register(&code).await.expect("registered"));
    phone
}

pub(crate) fn event(seq: u64, kind: Kind) -> Event {
    Event { seq, wall_us: 1_700_000_000_000_000, mono_us: seq * 1000, origin: Origin::Phone, kind }
}

pub(crate) fn control(seq: u64, kind: ControlKind, text: &str) -> Event {
    event(seq, Kind::Control(Control { kind, text: text.into(), path: None, count: seq }))
}

pub(crate) fn controls(seqs: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    seqs.map(|seq| control(seq, ControlKind::Started, "agent, boot 0123456789")).collect()
}

/// Runs the command line against a running appliance; gives what it printed, or how it failed.
pub(crate) async fn pollux(arguments: &[&str], data: &std::path::Path) -> Result<String, String> {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pollux"));
    command.args(arguments).arg("--data").arg(data).env("RUST_LOG", "error");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stdout) + &text(&output.stderr)),
    }
}
