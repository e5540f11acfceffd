//! The configuration of a `pollux-twin` process: one JSON file, written by whoever starts it.
//!
//! ```json
//! { "image": {"kernel": "/…/kernel", "initramfs": "/…/initramfs.cpio", "cmdline": "console=ttyAMA0"},
//!   "ram_mib": 256,
//!   "display": {"width": 360, "height": 720},
//!   "cpu": {"model": "cortex-a53", "tcg_buffer_mib": 32},
//!   "disks": [{"path": "/…/disk.ext4", "read_only": false}],
//!   "flash": {"tag": "flash", "socket": "/…/flash.sock"},
//!   "net": {"mac": "02:00:00:00:00:01", "socket": "/…/net.sock"},
//!   "ports": [{"name": "org.pollux.gate", "socket": "/…/gate.sock"}],
//!   "console_log": "/…/console.log",
//!   "control_socket": "/…/control.sock",
//!   "rfb_socket": "/…/rfb.sock",
//!   "restore": null,
//!   "base": null,
//!   "base_on_stdin": false,
//!   "verify": false,
//!   "cage": "whole" }
//! ```
//! The CPU's model decides which machine it is: arm64 (`cortex-a53`, `cortex-a57`, `cortex-a72`, emulated) or x86-64: `qemu64`
//! is emulated, `host` is the host's own by KVM, and `x86-64` is the latter where KVM runs guests and else the former, which is slow.
//! `image`, `control_socket` and `rfb_socket` must be there; the rest has the defaults that [`TwinConfig`] names. An unknown key is
//! an error. The process listens on `control_socket` and `rfb_socket`, opens all files and connects to all other sockets when it
//! starts. With `restore`, the machine begins as saved in that file, paused - with `base`, if it was saved as what differs from it;
//! with `verify`, only after all RAM in that file was compared with its digest. With `base_on_stdin`, the base snapshot, which is `base` or,
//! without one, `restore`, is not opened but already open as standard input, so that it can be a file in memory. `cage` is `whole`, or `partial` where the host does
//! not permit all of it ([`crate::cage`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cage::Strictness;
use crate::cpu::CpuModel;
use crate::processor::Model;

/// A Unix socket's path is cut at this length by the kernel's `sockaddr_un`.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The file lists a handful of paths.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Screens of phones and tablets; a larger figure is a mistake that would cost memory.
const DISPLAY_SIDE: std::ops::RangeInclusive<u32> = 64..=4096;
const RAM_MIB: std::ops::RangeInclusive<u64> = 64..=8192;
const TCG_BUFFER_MIB: std::ops::RangeInclusive<u64> = 1..=1024;
/// So that disks and the fixed devices fit the machine's slots.
const DISKS_MAX: usize = 4;
const PORTS_MAX: usize = 8;
const TAG_BYTES_MAX: usize = 36;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {path}: {source}")]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("configuration: {0}")]
    Invalid(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwinConfig {
    pub image: ImageConfig,
    #[serde(default = "default_ram_mib")]
    pub ram_mib: u64,
    #[serde(default)]
    pub display: DisplayConfig,
    #[serde(default)]
    pub cpu: CpuConfig,
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// The virtio-fs device and who serves it.
    #[serde(default)]
    pub flash: Option<FlashConfig>,
    #[serde(default)]
    pub net: Option<NetConfig>,
    /// Console ports, each joined to a listening socket.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Where the serial console is written, up to a limit.
    #[serde(default)]
    pub console_log: Option<PathBuf>,
    pub control_socket: PathBuf,
    pub rfb_socket: PathBuf,
    /// A saved machine to begin with.
    #[serde(default)]
    pub restore: Option<PathBuf>,
    #[serde(default)]
    pub base: Option<PathBuf>,
    #[serde(default)]
    pub base_on_stdin: bool,
    #[serde(default)]
    pub verify: bool,
    #[serde(default)]
    pub cage: Strictness,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    pub kernel: PathBuf,
    #[serde(default)]
    pub initramfs: Option<PathBuf>,
    #[serde(default)]
    pub cmdline: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisplayConfig {
    pub width: u32,
    pub height: u32,
}

impl Default for DisplayConfig {
    fn default() -> Self {
        Self { width: 360, height: 720 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    pub model: Model,
    /// Room for translated code; KVM needs none.
    pub tcg_buffer_mib: u64,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { model: Model::Arm64(CpuModel::CortexA53), tcg_buffer_mib: 32 }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    pub path: PathBuf,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashConfig {
    pub tag: String,
    pub socket: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    pub mac: Mac,
    pub socket: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    pub name: String,
    pub socket: PathBuf,
}

/// A unicast Ethernet address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("MAC address {text:?}: give six hexadecimal bytes with colons, unicast");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).map_err(|_| bad()) } else { Err(bad()) })
            .collect::<Result<_, _>>()?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| bad())?;
        if bytes[0] & 1 != 0 { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

fn default_ram_mib() -> u64 {
    256
}

impl TwinConfig {
    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.into(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(ConfigError::Invalid(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display())));
        }
        let text = std::fs::read(path).map_err(failed)?;
        let config: Self = serde_json::from_slice(&text).map_err(|source| ConfigError::Parse { path: path.into(), source })?;
        config.check()?;
        Ok(config)
    }

    pub fn ram_bytes(&self) -> u64 {
        self.ram_mib << 20
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if !RAM_MIB.contains(&self.ram_mib) || !self.ram_mib.is_multiple_of(2) {
            return invalid(format!("ram_mib is {}; give an even number from {} to {}", self.ram_mib, RAM_MIB.start(), RAM_MIB.end()));
        }
        for side in [self.display.width, self.display.height] {
            if !DISPLAY_SIDE.contains(&side) {
                return invalid(format!("a display side of {side}; give {} to {}", DISPLAY_SIDE.start(), DISPLAY_SIDE.end()));
            }
        }
        if !TCG_BUFFER_MIB.contains(&self.cpu.tcg_buffer_mib) {
            let (least, most) = TCG_BUFFER_MIB.into_inner();
            return invalid(format!("tcg_buffer_mib is {}; give {least} to {most}", self.cpu.tcg_buffer_mib));
        }
        if self.disks.len() > DISKS_MAX || self.ports.len() > PORTS_MAX {
            return invalid(format!("at most {DISKS_MAX} disks and {PORTS_MAX} ports"));
        }
        let mut names = HashSet::new();
        for port in &self.ports {
            let fits = (1..=TAG_BYTES_MAX).contains(&port.name.len()) && !port.name.contains(['/', '\0']);
            if !fits || !names.insert(&port.name) {
                return invalid(format!("port name {:?} is empty, too long, odd or there twice", port.name));
            }
        }
        if let Some(flash) = self.flash.as_ref().filter(|f| !(1..=TAG_BYTES_MAX).contains(&f.tag.len())) {
            return invalid(format!("flash tag {:?}: give 1 to {TAG_BYTES_MAX} bytes", flash.tag));
        }
        self.check_sockets()
    }

    fn check_sockets(&self) -> Result<(), ConfigError> {
        let listening = [&self.control_socket, &self.rfb_socket];
        let outgoing = self.flash.iter().map(|f| &f.socket).chain(self.net.iter().map(|n| &n.socket));
        let outgoing = outgoing.chain(self.ports.iter().map(|p| &p.socket));
        let mut seen = HashSet::new();
        for socket in listening.into_iter().chain(outgoing) {
            let length = socket.as_os_str().len();
            if !(1..=SOCKET_PATH_BYTES_MAX).contains(&length) {
                let text = format!("socket path {} has {length} bytes; give 1 to {SOCKET_PATH_BYTES_MAX}", socket.display());
                return Err(ConfigError::Invalid(text));
            }
            if !seen.insert(socket) {
                return Err(ConfigError::Invalid(format!("socket {} is there twice", socket.display())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn minimal() -> Value {
        json!({"image": {"kernel": "/k"}, "control_socket": "/run/c", "rfb_socket": "/run/r"})
    }

    fn parse(value: &Value) -> Result<TwinConfig, String> {
        let config: TwinConfig = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let config = parse(&minimal()).unwrap();
        assert_eq!((config.ram_bytes(), config.display.width, config.display.height), (256 << 20, 360, 720));
        assert_eq!((config.cpu.model, config.cpu.tcg_buffer_mib), (Model::Arm64(CpuModel::CortexA53), 32));
        assert!(config.flash.is_none() && config.net.is_none() && config.restore.is_none() && !config.verify);
        assert_eq!(config.cage, Strictness::Whole);
    }

    #[test]
    fn the_documented_form_is_accepted() {
        let all = json!({
            "image": {"kernel": "/k", "initramfs": "/i", "cmdline": "console=ttyAMA0"},
            "ram_mib": 512, "display": {"width": 720, "height": 1440}, "cpu": {"model": "cortex-a72", "tcg_buffer_mib": 8},
            "disks": [{"path": "/d", "read_only": false}], "flash": {"tag": "flash", "socket": "/f"},
            "net": {"mac": "02:00:00:00:00:fE", "socket": "/n"}, "ports": [{"name": "org.pollux.gate", "socket": "/g"}],
            "console_log": "/l", "control_socket": "/c", "rfb_socket": "/r", "restore": null, "base": null, "verify": true,
            "cage": "partial"
        });
        let config = parse(&all).unwrap();
        assert!(config.verify);
        assert_eq!(config.net.unwrap().mac, Mac([2, 0, 0, 0, 0, 0xfe]));
        assert_eq!(config.cage, Strictness::Partial);
        let mut nulls = all;
        for key in ["flash", "net", "console_log"] {
            nulls[key] = Value::Null;
        }
        parse(&nulls).unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        let long = "/".repeat(108);
        for (key, value, text) in [
            ("memory", json!(1), "unknown field `memory`"),
            ("ram_mib", json!(63), "ram_mib is 63"),
            ("ram_mib", json!(65), "ram_mib is 65"),
            ("display", json!({"width": 0, "height": 720}), "display side of 0"),
            ("cpu", json!({"model": "z80"}), "CPU model \"z80\"; there are cortex-a53, cortex-a57, cortex-a72, x86-64, qemu64, host"),
            ("cpu", json!({"tcg_buffer_mib": 0}), "tcg_buffer_mib is 0"),
            ("net", json!({"mac": "02:00", "socket": "/n"}), "MAC address"),
            ("net", json!({"mac": "01:00:00:00:00:00", "socket": "/n"}), "unicast"),
            ("flash", json!({"tag": "", "socket": "/f"}), "flash tag"),
            ("ports", json!([{"name": "a", "socket": "/p"}, {"name": "a", "socket": "/q"}]), "port name"),
            ("ports", json!([{"name": "a/b", "socket": "/p"}]), "port name"),
            ("ports", json!([{"name": "a", "socket": "/run/c"}]), "there twice"),
            ("control_socket", json!(long), "108 bytes"),
            ("disks", json!([{"path": 5}]), "invalid type"),
            ("cage", json!("none"), "unknown variant `none`"),
        ] {
            let mut config = minimal();
            config[key] = value;
            let error = parse(&config).unwrap_err();
            assert!(error.contains(text), "{key}: {error} does not say {text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = TwinConfig::load(Path::new("/no/such/twin.json")).unwrap_err().to_string();
        assert_eq!(error, "cannot read configuration /no/such/twin.json");
    }
}
