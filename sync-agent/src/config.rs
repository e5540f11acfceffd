//! What the agent is told: flags and environment, a TOML file, and the kernel's command line, in this order of
//! precedence, become one validated [`Config`] before anything starts.
//!
//! On the reference image everything comes from `/proc/cmdline` (`pollux.appliance`, `pollux.ca`, `pollux.code`,
//! `pollux.serial`, `pollux.model`) and from `/usr/share/pollux/sync.toml`, the `[sync]` part of the image's manifest.

use std::io;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;
use sync_protocol::limits::CLAIM_BYTES_MAX;
use sync_protocol::path::PhonePath;
use sync_protocol::scope::{Scope, ScopeError};
use sync_protocol::wire::DeviceInfo;

use crate::control_points::stack::usage::JOURNAL_FILE_NAME;
use crate::journal::Limits;

/// Everything the agent needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host and port.
    pub appliance: String,
    /// SHA-256 of the DER of the appliance's CA certificate.
    pub ca_fingerprint: [u8; 32],
    /// One-time enrolment code; empty asks to be admitted.
    pub code: String,
    pub device: DeviceInfo,
    pub state: PathBuf,
    /// Roots and excludes in force until the appliance says otherwise.
    pub scope: Scope,
    pub journal: Limits,
    /// Where input devices appear.
    pub input_devices: PathBuf,
    /// Where the usage database is kept; always among the roots.
    pub usage: PathBuf,
    /// D-Bus address of the bus that ModemManager is on; none: the system's.
    pub bus: Option<String>,
    /// Told to the phone's shell while an operator drives.
    pub lease_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is wrong: {source}")]
    Toml {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("no {0} given: {1}")]
    Missing(&'static str, &'static str),
    #[error(
        "the CA's fingerprint is the SHA-256 of its certificate as 64 hexadecimal digits, not \"{0}\""
    )]
    Fingerprint(String),
    #[error("the appliance is HOST:PORT, not \"{0}\"")]
    Appliance(String),
    #[error("{what} is longer than {CLAIM_BYTES_MAX} bytes")]
    TooLong { what: &'static str },
    #[error("a journal of {0} MiB is too small; at least 16 are needed")]
    JournalSize(u64),
    #[error("roots and excludes")]
    Scope(#[from] ScopeError),
}

/// The agent of Pollux: keeps a phone and its twin on the appliance the same.
#[derive(Debug, Default, Parser)]
#[command(name = "pollux-agent", version)]
pub struct Flags {
    /// Where the appliance listens for phones: HOST:PORT.
    #[arg(long, env = "POLLUX_APPLIANCE")]
    pub appliance: Option<String>,
    /// SHA-256 of the appliance's CA certificate (DER), hexadecimal.
    #[arg(long, env = "POLLUX_CA")]
    pub ca: Option<String>,
    /// One-time enrolment code; without one the phone waits until an administrator admits it.
    #[arg(long, env = "POLLUX_CODE")]
    pub code: Option<String>,
    /// The phone's serial number.
    #[arg(long, env = "POLLUX_SERIAL")]
    pub serial: Option<String>,
    /// The phone's model.
    #[arg(long, env = "POLLUX_MODEL")]
    pub model: Option<String>,
    /// Capture files beneath this directory; can be repeated.
    #[arg(long = "root", env = "POLLUX_ROOTS", value_delimiter = ':')]
    pub roots: Vec<PathBuf>,
    /// Leave out what is beneath this path; can be repeated.
    #[arg(long = "exclude", env = "POLLUX_EXCLUDES", value_delimiter = ':')]
    pub excludes: Vec<PathBuf>,
    /// Keys, certificate and journal are kept here.
    #[arg(long, env = "POLLUX_STATE")]
    pub state: Option<PathBuf>,
    /// The database of calls, messages and cells is kept in this directory.
    #[arg(long, env = "POLLUX_USAGE")]
    pub usage: Option<PathBuf>,
    /// D-Bus address of the bus that ModemManager is on; the system's if absent.
    #[arg(long, env = "POLLUX_BUS")]
    pub bus: Option<String>,
    /// Largest size of the journal in MiB.
    #[arg(long, env = "POLLUX_JOURNAL_MIB")]
    pub journal_mib: Option<u64>,
    /// A TOML file with the same names as these flags.
    #[arg(long, env = "POLLUX_CONFIG")]
    pub config: Option<PathBuf>,
    /// The kernel's command line, read for what is not given otherwise.
    #[arg(long, default_value = "/proc/cmdline")]
    pub cmdline: PathBuf,
    /// The image's roots and excludes.
    #[arg(long, default_value = "/usr/share/pollux/sync.toml")]
    pub image_sync: PathBuf,
}

/// A configuration file. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    appliance: Option<String>,
    ca: Option<String>,
    code: Option<String>,
    serial: Option<String>,
    model: Option<String>,
    #[serde(default)]
    roots: Vec<PathBuf>,
    #[serde(default)]
    excludes: Vec<PathBuf>,
    state: Option<PathBuf>,
    usage: Option<PathBuf>,
    bus: Option<String>,
    journal_mib: Option<u64>,
}

/// What an image's manifest says about synchronisation; its other parts are not the agent's.
#[derive(Debug, Default, Deserialize)]
struct ImageFile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sync: ImageSync,
}

#[derive(Debug, Default, Deserialize)]
struct ImageSync {
    #[serde(default)]
    roots: Vec<PathBuf>,
    #[serde(default)]
    exclude: Vec<ImageExclude>,
}

#[derive(Debug, Deserialize)]
struct ImageExclude {
    path: PathBuf,
}

const DEFAULT_ROOT: &str = "/home/user";
const DEFAULT_STATE: &str = "/var/lib/pollux-agent";
const DEFAULT_USAGE: &str = "/var/lib/pollux-usage";
const DEFAULT_JOURNAL_MIB: u64 = 512;
const SMALLEST_JOURNAL_MIB: u64 = 16;

impl Config {
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file: ConfigFile = match &flags.config {
            Some(path) => read_toml(path)?,
            None => ConfigFile::default(),
        };
        let image: ImageFile = if flags.image_sync.exists() {
            read_toml(&flags.image_sync)?
        } else {
            ImageFile::default()
        };
        // A phone that is none of ours need not have it.
        let cmdline = std::fs::read_to_string(&flags.cmdline).unwrap_or_default();
        let kernel = |key: &str| cmdline_value(&cmdline, key);

        let appliance = flags
            .appliance
            .or(file.appliance)
            .or_else(|| kernel("pollux.appliance"));
        let appliance = appliance.ok_or(ConfigError::Missing(
            "appliance",
            "use --appliance HOST:PORT",
        ))?;
        let ca = flags.ca.or(file.ca).or_else(|| kernel("pollux.ca"));
        let ca = ca.ok_or(ConfigError::Missing(
            "CA",
            "use --ca with the fingerprint the appliance shows",
        ))?;
        let serial = flags
            .serial
            .or(file.serial)
            .or_else(|| kernel("pollux.serial"));
        let model = flags
            .model
            .or(file.model)
            .or_else(|| kernel("pollux.model"));
        let code = flags
            .code
            .or(file.code)
            .or_else(|| kernel("pollux.code"))
            .unwrap_or_default();
        let image_name = kernel("pollux.image").unwrap_or(image.name);
        let journal_mib = flags
            .journal_mib
            .or(file.journal_mib)
            .unwrap_or(DEFAULT_JOURNAL_MIB);
        if journal_mib < SMALLEST_JOURNAL_MIB {
            return Err(ConfigError::JournalSize(journal_mib));
        }
        let state = flags
            .state
            .or(file.state)
            .unwrap_or_else(|| DEFAULT_STATE.into());
        let usage = flags
            .usage
            .or(file.usage)
            .unwrap_or_else(|| DEFAULT_USAGE.into());
        let image_excludes = image.sync.exclude.into_iter().map(|exclude| exclude.path);
        let excludes = flags
            .excludes
            .into_iter()
            .chain(file.excludes)
            .chain(image_excludes)
            .chain([state.clone(), usage.join(JOURNAL_FILE_NAME)]);
        let roots = [
            flags.roots,
            file.roots,
            image.sync.roots,
            vec![DEFAULT_ROOT.into()],
        ];
        let roots = roots
            .into_iter()
            .find(|roots| !roots.is_empty())
            .unwrap_or_default();
        let roots = roots.into_iter().chain([usage.clone()]);
        Ok(Self {
            appliance: check_appliance(appliance)?,
            ca_fingerprint: parse_fingerprint(&ca)?,
            code: check_length("the enrolment code", code)?,
            device: device_info(
                check_length("the serial number", serial.unwrap_or_default())?,
                check_length("the model", model.unwrap_or_default())?,
                check_length("the image's name", image_name)?,
            ),
            scope: Scope::new(paths(roots)?, paths(excludes)?)?,
            state,
            journal: Limits::new(journal_mib * 1024 * 1024),
            input_devices: "/dev/input".into(),
            usage,
            bus: flags.bus.or(file.bus),
            lease_file: "/run/pollux/lease".into(),
        })
    }
}

fn paths(paths: impl IntoIterator<Item = PathBuf>) -> Result<Vec<PhonePath>, ScopeError> {
    Ok(paths
        .into_iter()
        .map(|path| PhonePath::try_from(path.as_path()))
        .collect::<Result<_, _>>()?)
}

fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

fn cmdline_value(cmdline: &str, key: &str) -> Option<String> {
    let mut words = cmdline.split_ascii_whitespace();
    words
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
}

fn check_appliance(appliance: String) -> Result<String, ConfigError> {
    match appliance.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(appliance)
        }
        _ => Err(ConfigError::Appliance(appliance)),
    }
}

fn parse_fingerprint(text: &str) -> Result<[u8; 32], ConfigError> {
    let digits = text.replace(':', "");
    let bytes = hex::decode(digits)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| ConfigError::Fingerprint(text.to_owned()))
}

fn check_length(what: &'static str, text: String) -> Result<String, ConfigError> {
    if text.len() > CLAIM_BYTES_MAX {
        Err(ConfigError::TooLong { what })
    } else {
        Ok(text)
    }
}

fn device_info(serial: String, model: String, image: String) -> DeviceInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |key: &str| {
        let value = release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value
            .unwrap_or_default()
            .trim_matches('"')
            .chars()
            .take(CLAIM_BYTES_MAX / 4)
            .collect()
    };
    DeviceInfo {
        serial,
        model,
        os: field("ID"),
        os_version: field("VERSION_ID"),
        image,
        architecture: std::env::consts::ARCH.into(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cmdline: &str, toml: &str, sync: &str, flags: Flags) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Config::load(Flags {
            cmdline: write("cmdline", cmdline),
            config: Some(write("agent.toml", toml)),
            image_sync: write("sync.toml", sync),
            ..flags
        })
    }

    #[test]
    fn the_kernel_command_line_is_enough() {
        let ca = "ab".repeat(32);
        let cmdline = format!(
            "quiet pollux.agent=1 pollux.appliance=10.0.2.2:7443 pollux.ca={ca} pollux.serial=S1\n"
        );
        let sync = "name = \"handset-arm64\"\n[sync]\nroots = [\"/home/user\", \"/etc/pollux-settings\"]\n\
                    exclude = [{ path = \"/home/user/.cache\", reason = \"derived\" }]";
        let config = load(&cmdline, "", sync, Flags::default()).unwrap();
        assert_eq!(
            (config.appliance.as_str(), config.code.as_str()),
            ("10.0.2.2:7443", "")
        );
        assert_eq!(
            (config.device.serial.as_str(), config.device.image.as_str()),
            ("S1", "handset-arm64")
        );
        let usage = |name: &str| PhonePath::new(format!("/var/lib/pollux-usage/{name}")).unwrap();
        assert_eq!(config.scope.roots().len(), 3);
        assert!(config.scope.contains(&usage("usage.db")));
        assert!(!config.scope.contains(&usage("usage.db-journal")));
        assert!(
            !config
                .scope
                .contains(&PhonePath::new("/home/user/.cache/x").unwrap())
        );
        assert_eq!(config.ca_fingerprint, [0xab; 32]);
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_the_kernel() {
        let ca = "ab".repeat(32);
        let cmdline = format!("pollux.appliance=k:1 pollux.ca={ca} pollux.serial=k pollux.model=k");
        let flags = Flags {
            appliance: Some("f:1".into()),
            ..Flags::default()
        };
        let config = load(&cmdline, "appliance = \"t:1\"\nserial = \"t\"", "", flags).unwrap();
        assert_eq!(
            (config.appliance.as_str(), config.device.serial.as_str()),
            ("f:1", "t")
        );
        assert_eq!(config.device.model, "k");
    }

    #[test]
    fn mistakes_are_named() {
        let ca = "ab".repeat(32);
        let error = |cmdline: &str, toml: &str| {
            load(cmdline, toml, "", Flags::default())
                .unwrap_err()
                .to_string()
        };
        assert!(error("", "").contains("--appliance"));
        assert!(error("pollux.appliance=h:1", "").contains("--ca"));
        assert!(error("pollux.appliance=h:1 pollux.ca=12", "").contains("64 hexadecimal"));
        assert!(error(&format!("pollux.appliance=h pollux.ca={ca}"), "").contains("HOST:PORT"));
        assert!(error("", "aplliance = \"x\"").contains("aplliance"));
        assert!(
            error(
                &format!("pollux.appliance=h:1 pollux.ca={ca}"),
                "journal_mib = 1"
            )
            .contains("16")
        );
    }
}
