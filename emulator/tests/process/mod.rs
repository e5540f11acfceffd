//! `pollux-twin` as the appliance uses it: a process with a configuration and a control socket, and the reference phones to run
//! in it.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use image_builder::{Architecture, GuestBinaries, Image, Options};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// Long enough for a host under load; a hanging twin fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// A screen that has not changed for so long has settled: the handset draws a reaction in a fraction of it.
const SETTLED_MS: u64 = 1500;
/// Where the handset has what is tapped here, at 360 x 720.
pub(crate) const NOTES: (u16, u16) = (303, 626);
pub(crate) const BACK: (u16, u16) = (40, 701);

/// The reference phones.
pub(crate) const ARM64: &str = "handset-arm64";
pub(crate) const AMD64: &str = "handset-amd64";

/// A phone's image: as built, or built now.
pub(crate) fn image(name: &str) -> Image {
    let cache_dir = image_builder::cache_dir();
    Image::latest(&cache_dir, name).unwrap_or_else(|_| {
        let guest = Some(GuestBinaries::in_cache(&cache_dir));
        let options = Options { cache_dir, guest, lock: None };
        image_builder::build(name, &options, &|line| println!("{line}")).expect("scripts/setup prepares what images need")
    })
}

/// A running `pollux-twin` and one client of its control socket.
pub(crate) struct Twin {
    pub(crate) process: Child,
    control: BufReader<UnixStream>,
    folder: PathBuf,
    requests: u64,
    events: Vec<Value>,
}

impl Twin {
    /// Starts the process in `folder` with a phone that has neither disk nor flash; `change` adjusts its configuration.
    pub(crate) fn start(folder: &Path, image: &Image, change: impl FnOnce(&mut Value)) -> Self {
        Self::start_with(folder, image, change, |_| ())
    }

    /// The same; `adjust` changes how the process is started.
    pub(crate) fn start_with(folder: &Path, image: &Image, change: impl FnOnce(&mut Value), adjust: impl FnOnce(&mut Command)) -> Self {
        let model = match image.manifest().architecture {
            Architecture::Amd64 => "x86-64",
            Architecture::Arm64 => "cortex-a53",
        };
        let mut config = json!({
            "cpu": {"model": model},
            "image": {"kernel": image.kernel(), "initramfs": image.initramfs(), "cmdline": image.manifest().kernel_cmdline},
            "ram_mib": 256,
            "console_log": folder.join("console.log"),
            "control_socket": folder.join("control.sock"),
            "rfb_socket": folder.join("rfb.sock"),
            "cage": std::env::var("POLLUX_CAGE").unwrap_or("whole".into()),
        });
        change(&mut config);
        std::fs::write(folder.join("twin.json"), config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-twin"));
        command.arg("--config").arg(folder.join("twin.json")).stdout(Stdio::piped());
        adjust(&mut command);
        let mut process = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let control = UnixStream::connect(folder.join("control.sock")).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { process, control: BufReader::new(control), folder: folder.into(), requests: 0, events: Vec::new() }
    }

    pub(crate) fn read(&mut self) -> Value {
        let mut line = String::new();
        self.control.read_line(&mut line).expect("an answer in time");
        serde_json::from_str(&line).expect("a line of JSON")
    }

    /// Asks, and returns the whole reply.
    pub(crate) fn ask(&mut self, mut request: Value) -> Value {
        self.requests += 1;
        request["id"] = self.requests.into();
        self.control.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
        loop {
            let message = self.read();
            if message.get("event").is_none() {
                assert_eq!(message["id"], self.requests);
                return message;
            }
            self.events.push(message);
        }
    }

    /// Asks for what must succeed.
    pub(crate) fn get(&mut self, request: Value) -> Value {
        let reply = self.ask(request.clone());
        assert!(reply.get("ok").is_some(), "{request}: {reply}; console:\n{}", self.console());
        reply["ok"].clone()
    }

    /// Writes the paused machine to a file, which is passed with the request.
    pub(crate) fn save(&mut self, path: &Path) {
        let file = File::create(path).unwrap();
        self.requests += 1;
        let request = format!("{}\n", json!({"id": self.requests, "op": "save"}));
        let passed = [file.as_raw_fd()];
        let with_it = [ControlMessage::ScmRights(&passed)];
        let bytes = [IoSlice::new(request.as_bytes())];
        let sent = sendmsg::<()>(self.control.get_ref().as_raw_fd(), &bytes, &with_it, MsgFlags::empty(), None).unwrap();
        assert_eq!(sent, request.len());
        assert_eq!(self.read(), json!({"id": self.requests, "ok": {"differs": false}}));
    }

    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.folder.join("console.log")).unwrap_or_default()
    }

    pub(crate) fn generation(&mut self) -> u64 {
        self.get(json!({"op": "status"}))["generation"].as_u64().unwrap()
    }

    pub(crate) fn sha256(&mut self) -> String {
        self.get(json!({"op": "screen"}))["sha256"].as_str().unwrap().into()
    }

    /// Waits until the screen goes beyond a generation, and then until it stays as it is.
    pub(crate) fn changed_screen(&mut self, beyond: u64) -> String {
        let wait = |after: u64, ms: u64| json!({"op": "screen_wait", "after_generation": after, "timeout_ms": ms});
        let mut seen = self.get(wait(beyond, 60_000));
        assert_eq!(seen["changed"], true, "the screen does not change; console:\n{}", self.console());
        while seen["changed"] == true {
            seen = self.get(wait(seen["generation"].as_u64().unwrap(), SETTLED_MS));
        }
        self.sha256()
    }

    /// A finger down and up.
    pub(crate) fn tap(&mut self, (x, y): (u16, u16), tracking_id: u32) {
        let down = json!([[3, 0x2f, 0], [3, 0x39, tracking_id], [3, 0x35, x], [3, 0x36, y], [1, 0x14a, 1], [3, 0, x], [3, 1, y]]);
        let up = json!([[3, 0x2f, 0], [3, 0x39, -1], [1, 0x14a, 0]]);
        for events in [down, up] {
            self.get(json!({"op": "input", "device": "touch", "events": events}));
        }
    }

    /// Waits until both processes have ended.
    pub(crate) fn gone(&mut self) -> ExitStatus {
        let mut rest = String::new();
        match self.control.read_to_string(&mut rest) {
            // It had not accepted us yet.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            read => drop(read.expect("it closes its socket in time")),
        }
        self.process.wait().unwrap()
    }

    /// Waits for the process to end, and sees that it leaves no socket.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let status = self.gone();
        for socket in ["control.sock", "rfb.sock"] {
            assert!(!self.folder.join(socket).exists(), "{socket} is left behind");
        }
        status
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // Fails if it has ended, as it should have.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Adds to the kernel's command line.
pub(crate) fn add_to_cmdline(config: &mut Value, words: &str) {
    let cmdline = config["image"]["cmdline"].as_str().unwrap();
    config["image"]["cmdline"] = json!(format!("{cmdline} {words}"));
}
