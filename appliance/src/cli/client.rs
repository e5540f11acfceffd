//! A client of the HTTP API, as the command line uses it: finds the running appliance through its data folder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;

/// Where and how to reach a running appliance.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Endpoint {
    pub(super) console: SocketAddr,
    pub(super) sync: SocketAddr,
    pub(super) ca_sha256: String,
    ca_pem: String,
}

impl Endpoint {
    pub(super) fn read(data: &Path) -> anyhow::Result<Endpoint> {
        let path = data.join("appliance.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("no appliance seems to run on {}: cannot read {}; start it with `pollux serve`", data.display(), path.display())
        })?;
        let endpoint: Endpoint =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Endpoint { console: reachable(endpoint.console), sync: reachable(endpoint.sync), ..endpoint })
    }
}

/// One that listens on every address is reached on this host.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(ip, address.port())
}

/// A client with the rights of the appliance's own command line.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    pub(super) fn connect(data: &Path) -> anyhow::Result<Client> {
        let endpoint = Endpoint::read(data)?;
        let path = data.join("cli.token");
        let token = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; run this as the appliance's user", path.display()))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(endpoint.ca_pem.as_bytes()).context("the CA certificate is damaged")?)?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder().use_preconfigured_tls(tls).no_proxy().build()?;
        Ok(Client { http, base: format!("https://{}", endpoint.console), token: token.trim().to_owned() })
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.send(reqwest::Method::GET, path, None).await?.json().await?)
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        json(self.send(reqwest::Method::POST, path, Some(body)).await?).await
    }

    pub(super) async fn put(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        json(self.send(reqwest::Method::PUT, path, Some(body)).await?).await
    }

    pub(super) async fn patch(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        json(self.send(reqwest::Method::PATCH, path, Some(body)).await?).await
    }

    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(reqwest::Method::DELETE, path, None).await.map(drop)
    }

    /// The response itself, for what is no JSON.
    pub(super) async fn download(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        self.send(reqwest::Method::GET, path, None).await
    }

    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<reqwest::Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| {
            anyhow!(error).context(format!("cannot reach the appliance at {}; does it run?", self.base))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        let text = |key: &str| body["error"][key].as_str().map(str::to_owned);
        match (text("message"), text("advice")) {
            (Some(message), Some(advice)) => bail!("{message} ({advice})"),
            (Some(message), None) => bail!("{message}"),
            _ => bail!("the appliance answered {status}"),
        }
    }
}

async fn json(response: reqwest::Response) -> anyhow::Result<Value> {
    let bytes = response.bytes().await?;
    if bytes.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&bytes)?) }
}
