//! What an appliance is told before it starts: one TOML file and a few flags become one validated [`Config`].
//!
//! Promises: an unknown key is an error that names it, no value is out of its range, and nothing is touched on
//! disk. Leaves out: whether the addresses are free and the folders writable, which only starting can tell.
//!
//! ```toml
//! names = ["appliance.example.org", "10.0.0.5"]   # what phones and browsers call us; goes into the certificate
//! [sync]
//! listen = "0.0.0.0:7443"
//! [http]
//! listen = "127.0.0.1:8443"
//! [twins]
//! binary = "/usr/lib/pollux/pollux-twin"
//! autostart = true
//! running_max = 8
//! cage = "whole"                                  # "partial" where the host does not permit all of it
//! [images]
//! folder = "/var/cache/pollux/images"
//! [store]
//! backend = "sled"
//! [scrub]
//! share_percent = 10                              # of the disk's time, for reading what is stored; 0: never
//! every_hours = 168
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::twin::process::Cage;

/// Names and addresses in the server certificate; more would make it too large for some TLS stacks.
const NAMES_MAX: usize = 32;
/// Twins one host may be asked to run; each costs a process, an emulated CPU and the guest's memory.
const TWINS_RUNNING_MAX: usize = 1024;

/// Everything the appliance must know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the appliance keeps what must survive it.
    pub data: PathBuf,
    /// DNS names and addresses by which phones and browsers reach it.
    pub names: Vec<String>,
    pub sync_listen: SocketAddr,
    pub http_listen: SocketAddr,
    pub store: StoreBackend,
    pub twins: TwinsConfig,
    /// Folder that holds built images, one folder each.
    pub images: PathBuf,
    /// How long an operator stays logged in.
    pub login_lifetime: Duration,
    /// How long a drive lease lasts unless it is renewed.
    pub lease_lifetime: Duration,
    pub scrub: ScrubConfig,
}

#[derive(Debug, Clone, Copy)]
pub struct ScrubConfig {
    /// Of the disk's time, that may go into reading what is stored: 0 to 100.
    pub share_percent: u32,
    /// From the end of one pass to the next.
    pub every: Duration,
}

#[derive(Debug, Clone)]
pub struct TwinsConfig {
    /// The `pollux-twin` binary; `None` means: the one beside the running executable.
    pub binary: Option<PathBuf>,
    /// Start the twin of every released phone without being asked.
    pub autostart: bool,
    /// Twins that may run at once; a further one is refused with advice to park another.
    pub running_max: usize,
    /// How often a twin that crashed is started again within ten minutes before it is left parked.
    pub restarts_max: u32,
    pub cage: Cage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreBackend {
    /// On disk under the data folder.
    Sled,
    /// Gone when the appliance ends; for tests.
    Memory,
}

/// What the command line may set over the file.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    pub sync_listen: Option<SocketAddr>,
    pub http_listen: Option<SocketAddr>,
    pub twin_binary: Option<PathBuf>,
    pub names: Vec<String>,
    pub cage: Option<Cage>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("configuration: {key} = {value}: {advice}")]
    Value { key: &'static str, value: String, advice: String },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    names: Vec<String>,
    sync: ListenSection,
    http: HttpSection,
    twins: TwinsSection,
    images: ImagesSection,
    store: StoreSection,
    drive: DriveSection,
    scrub: ScrubSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScrubSection {
    share_percent: Option<u32>,
    every_hours: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenSection {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpSection {
    listen: Option<SocketAddr>,
    login_hours: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TwinsSection {
    binary: Option<PathBuf>,
    autostart: Option<bool>,
    running_max: Option<usize>,
    restarts_max: Option<u32>,
    cage: Option<Cage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ImagesSection {
    folder: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoreSection {
    backend: Option<StoreBackend>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DriveSection {
    lease_seconds: Option<u32>,
}

impl Config {
    /// Defaults for the data folder `data`: both ports on this host only, sled, autostarted twins.
    pub fn new(data: impl Into<PathBuf>) -> Config {
        Config {
            data: data.into(),
            names: default_names(),
            sync_listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 8443)),
            store: StoreBackend::Sled,
            twins: TwinsConfig { binary: None, autostart: true, running_max: 8, restarts_max: 3, cage: Cage::Whole },
            images: image_folder_default(),
            login_lifetime: Duration::from_secs(12 * 3600),
            lease_lifetime: Duration::from_secs(60),
            scrub: ScrubConfig { share_percent: 10, every: Duration::from_secs(168 * 3600) },
        }
    }

    /// Reads `file` if there is one, puts `overrides` over it, and checks the result.
    pub fn load(data: &Path, file: Option<&Path>, overrides: Overrides) -> Result<Config, ConfigError> {
        let parsed = match file {
            None => FileConfig::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                parse(path, &text)?
            }
        };
        merge(data, parsed, overrides)
    }

    /// Folder of sockets of running twins.
    pub fn runtime(&self) -> PathBuf {
        self.data.join("run")
    }

    /// Folder that demo phones of this appliance put themselves into.
    pub fn demo(&self) -> PathBuf {
        self.data.join("demo")
    }
}

/// `$POLLUX_CACHE/images`, or the user's cache folder.
pub fn image_folder_default() -> PathBuf {
    cache_folder().join("images")
}

/// `$POLLUX_CACHE`, or `~/.cache/pollux`.
pub fn cache_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("POLLUX_CACHE") {
        return PathBuf::from(folder);
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/var/cache"), PathBuf::from);
    home.join(".cache").join("pollux")
}

fn default_names() -> Vec<String> {
    // Phones ask for `sync_protocol::APPLIANCE_SERVER_NAME` whatever address they reach us at; `app` adds that name.
    ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec()
}

fn parse(path: &Path, text: &str) -> Result<FileConfig, ConfigError> {
    toml::from_str(text).map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string() })
}

fn merge(data: &Path, file: FileConfig, overrides: Overrides) -> Result<Config, ConfigError> {
    let mut config = Config::new(data);
    for name in file.names.into_iter().chain(overrides.names) {
        check_name(&name)?;
        if !config.names.contains(&name) {
            config.names.push(name);
        }
    }
    if config.names.len() > NAMES_MAX {
        return Err(value("names", config.names.len(), format!("at most {NAMES_MAX} names fit a certificate")));
    }
    if let Some(listen) = overrides.sync_listen.or(file.sync.listen) {
        config.sync_listen = listen;
    }
    if let Some(listen) = overrides.http_listen.or(file.http.listen) {
        config.http_listen = listen;
    }
    if config.sync_listen == config.http_listen && config.http_listen.port() != 0 {
        return Err(value("http.listen", config.http_listen, "phones (sync.listen) and console need a port each".into()));
    }
    if let Some(hours) = file.http.login_hours {
        config.login_lifetime = Duration::from_secs(3600 * ranged("http.login_hours", hours, 1, 24 * 31)? as u64);
    }
    if let Some(seconds) = file.drive.lease_seconds {
        config.lease_lifetime = Duration::from_secs(ranged("drive.lease_seconds", seconds, 5, 3600)? as u64);
    }
    if let Some(share) = file.scrub.share_percent {
        config.scrub.share_percent = ranged("scrub.share_percent", share, 0, 100)?;
    }
    if let Some(hours) = file.scrub.every_hours {
        let hours = ranged("scrub.every_hours", hours, 1, 24 * 366)?;
        config.scrub.every = Duration::from_secs(3600 * u64::from(hours));
    }
    if let Some(max) = file.twins.running_max {
        config.twins.running_max =
            ranged("twins.running_max", max as u32, 0, TWINS_RUNNING_MAX as u32)? as usize;
    }
    if let Some(max) = file.twins.restarts_max {
        config.twins.restarts_max = ranged("twins.restarts_max", max, 0, 100)?;
    }
    config.twins.binary = overrides.twin_binary.or(file.twins.binary);
    config.twins.cage = overrides.cage.or(file.twins.cage).unwrap_or(config.twins.cage);
    config.twins.autostart = file.twins.autostart.unwrap_or(config.twins.autostart);
    config.images = file.images.folder.unwrap_or(config.images);
    config.store = file.store.backend.unwrap_or(config.store);
    Ok(config)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let good = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    if good { Ok(()) } else { Err(value("names", name, "must be a DNS name or an IP address".into())) }
}

fn ranged(key: &'static str, given: u32, low: u32, high: u32) -> Result<u32, ConfigError> {
    if (low..=high).contains(&given) {
        Ok(given)
    } else {
        Err(value(key, given, format!("must lie between {low} and {high}")))
    }
}

fn value(key: &'static str, value: impl std::fmt::Display, advice: String) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        merge(Path::new("/d"), parse(Path::new("pollux.toml"), text)?, Overrides::default())
    }

    #[test]
    fn an_unknown_key_is_named() {
        let message = load("[http]\nlistne = \"127.0.0.1:1\"").expect_err("must fail").to_string();
        assert!(message.contains("listne"), "{message}");
        assert!(message.contains("pollux.toml"), "{message}");
    }

    #[test]
    fn values_out_of_range_are_named_with_advice() {
        let message = load("[drive]\nlease_seconds = 1").expect_err("must fail").to_string();
        assert!(message.contains("drive.lease_seconds = 1"), "{message}");
        let message = load("names = [\"a b\"]").expect_err("must fail").to_string();
        assert!(message.contains("DNS name"), "{message}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse(Path::new("f"), "[http]\nlisten = \"127.0.0.1:1\"").expect("valid");
        let listen: SocketAddr = "127.0.0.1:2".parse().expect("address");
        let config = merge(Path::new("/d"), file, Overrides { http_listen: Some(listen), ..Overrides::default() });
        assert_eq!(config.expect("valid").http_listen, listen);
    }

    #[test]
    fn a_lesser_cage_must_be_asked_for() {
        assert_eq!(load("").expect("valid").twins.cage, Cage::Whole);
        assert_eq!(load("[twins]\ncage = \"partial\"").expect("valid").twins.cage, Cage::Partial);
        assert!(load("[twins]\ncage = \"none\"").is_err());
    }

    #[test]
    fn the_same_port_twice_is_refused() {
        let text = "[http]\nlisten = \"127.0.0.1:5\"\n[sync]\nlisten = \"127.0.0.1:5\"";
        assert!(load(text).is_err());
    }
}
