//! A real appliance in a process of its own, and its API as the console uses it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::blocking::{Client, RequestBuilder};
use serde_json::{Value, json};

/// One appliance at a time: each has two emulated machines, and this host may have two processors.
static TURN: Mutex<()> = Mutex::new(());

/// How long anything may take before a test gives up: an emulated phone on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Between two looks at something that nobody announces.
const LOOK: Duration = Duration::from_millis(100);

/// Looks until `found` finds something; says `what` was awaited when it never does.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(thing) = found().with_context(|| format!("while waiting for {what}"))? {
            return Ok(thing);
        }
        ensure!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what} in vain");
        std::thread::park_timeout(LOOK);
    }
}

/// A binary of the workspace, built by the same call of cargo as the tests.
pub fn binary(name: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    // Benches lie beside it, tests in a folder below.
    let mut places = ours.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let path = places.find(|path| path.is_file());
    path.with_context(|| format!("{name} is not built: run scripts/test, or cargo build --workspace"))
}

/// A process that ends with its handle.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to the file `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Process> {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Process { child, log })
    }

    pub fn ensure_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the process ended with {status}:\n{}", self.printed());
        }
        Ok(())
    }

    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// As Ctrl-C does; waits for the end.
    pub fn interrupt(&mut self) -> Result<()> {
        let id = self.child.id().to_string();
        ensure!(Command::new("kill").args(["-INT", &id]).status()?.success(), "cannot interrupt {id}");
        wait_for("the process to end", || Ok(self.child.try_wait()?)).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.child.id().to_string();
        // Politely first, so that it can end what it has started itself; it may be gone already.
        let asked = Command::new("kill").args(["-TERM", &id]).stderr(Stdio::null()).status();
        let start = Instant::now();
        while asked.is_ok() && start.elapsed() < Duration::from_secs(20) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an appliance is started with.
pub struct Setup {
    data: tempfile::TempDir,
    images: PathBuf,
    running_max: Option<usize>,
    demo: bool,
    http: String,
    sync: String,
    _turn: MutexGuard<'static, ()>,
}

impl Setup {
    /// Data of its own, the images of the cache, any ports, and no demo phone.
    pub fn new() -> Result<Setup> {
        // A test that failed has poisoned it; the next one is none the worse.
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let images = image_builder::cache_dir().join("images");
        let any = || "127.0.0.1:0".to_owned();
        Ok(Setup { data: tempfile::tempdir()?, images, running_max: None, demo: false, http: any(), sync: any(), _turn })
    }

    /// Its data folder is in `parent`, which must outlive it.
    pub fn data_in(self, parent: &Path) -> Result<Setup> {
        Ok(Setup { data: tempfile::tempdir_in(parent)?, ..self })
    }

    pub fn images(self, folder: &Path) -> Setup {
        Setup { images: folder.to_owned(), ..self }
    }

    /// So many twins may run.
    pub fn running_max(self, max: usize) -> Setup {
        Setup { running_max: Some(max), ..self }
    }

    /// With the demo phone `DEMO-1` beside it.
    pub fn demo(self) -> Setup {
        Setup { demo: true, ..self }
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }
}

/// A running appliance with data of its own.
pub struct Appliance {
    process: Process,
    setup: Setup,
    console: String,
    sync: String,
    pub ca_sha256: String,
    pub ca_pem: String,
    client: Client,
    token: String,
}

impl Appliance {
    pub fn start() -> Result<Appliance> {
        Setup::new()?.start()
    }
}

impl Setup {
    pub fn start(self) -> Result<Appliance> {
        let data = self.data.path();
        let endpoint = data.join("appliance.json");
        // One that was killed leaves it behind.
        if endpoint.exists() {
            std::fs::remove_file(&endpoint)?;
        }
        let config = data.join("pollux.toml");
        let twins = self.running_max.map_or_else(String::new, |max| format!("[twins]\nrunning_max = {max}\n"));
        std::fs::write(&config, format!("[images]\nfolder = {:?}\n{twins}", self.images.display().to_string()))?;
        let mut command = Command::new(binary("pollux")?);
        command.arg("serve").arg("--data").arg(data).arg("--config").arg(&config);
        command.args(["--http", &self.http, "--sync", &self.sync]).args(self.demo.then_some("--demo"));
        let mut process = Process::start(command, data.join("trace"))?;
        let told = wait_for("the appliance to run", || {
            process.ensure_alive()?;
            Ok(std::fs::read(&endpoint).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok()))
        })?;
        let text = |key: &str| told[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {told}"));
        // A second installation is refused, and the first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca_pem = text("ca_pem")?;
        let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes())?;
        let client = Client::builder().add_root_certificate(ca).timeout(PATIENCE).build()?;
        let token = std::fs::read_to_string(data.join("cli.token"))?.trim().to_owned();
        let (console, sync, ca_sha256) = (text("console")?, text("sync")?, text("ca_sha256")?);
        Ok(Appliance { process, setup: self, console, sync, ca_sha256, ca_pem, client, token })
    }
}

impl Appliance {
    pub fn data(&self) -> &Path {
        self.setup.data.path()
    }

    pub fn console(&self) -> String {
        format!("https://{}", self.console)
    }

    /// Where phones connect.
    pub fn sync(&self) -> &str {
        &self.sync
    }

    /// The port of [`Appliance::sync`].
    pub fn sync_port(&self) -> Result<u16> {
        let (_, port) = self.sync.rsplit_once(':').with_context(|| format!("no port in {}", self.sync))?;
        Ok(port.parse()?)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it traced so far.
    pub fn trace(&self) -> String {
        self.process.printed()
    }

    /// The password of `admin` that it made and printed at its first start.
    pub fn first_password(&self) -> Result<String> {
        let printed = self.trace();
        let line = printed.lines().find_map(|line| line.strip_prefix("Login:")).context("no login was printed")?;
        let password = line.split_once('/').and_then(|(_, rest)| rest.split_whitespace().next());
        password.map(str::to_owned).with_context(|| format!("no password in {line:?}"))
    }

    /// kill -9; [`Down::start`] starts it again.
    pub fn kill(mut self) -> Result<Down> {
        self.process.kill()?;
        Ok(Down(Setup { http: self.console, sync: self.sync, ..self.setup }))
    }

    /// Ctrl-C; everything it has started must be gone.
    pub fn stop(self) -> Result<()> {
        self.stop_and(|| Ok(()))
    }

    /// Ctrl-C, and a look at what it leaves before its data folder goes.
    pub fn stop_and(mut self, look: impl FnOnce() -> Result<()>) -> Result<()> {
        self.process.interrupt()?;
        look()
    }

    fn send(&self, request: RequestBuilder) -> Result<reqwest::blocking::Response> {
        let reply = request.bearer_auth(&self.token).send()?;
        if !reply.status().is_success() {
            bail!("{} {}: {}", reply.status(), reply.url().path().to_owned(), reply.text()?);
        }
        Ok(reply)
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(self.send(self.client.get(format!("{}{path}", self.console())))?.json()?)
    }

    pub fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.send(self.client.get(format!("{}{path}", self.console())))?.bytes()?.to_vec())
    }

    pub fn post(&self, path: &str, body: Value) -> Result<Value> {
        let reply = self.send(self.client.post(format!("{}{path}", self.console())).json(&body))?;
        let text = reply.text()?;
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    pub fn put(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.send(self.client.put(format!("{}{path}", self.console())).json(&body))?.json()?)
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        self.send(self.client.delete(format!("{}{path}", self.console()))).map(drop)
    }

    /// A one-time code that enrols a phone.
    pub fn code(&self, note: &str) -> Result<String> {
        let made = self.post("/api/codes", json!({"note": note}))?;
        made["code"].as_str().map(str::to_owned).with_context(|| format!("no code in {made}"))
    }

    pub fn phone(&self, serial: &str) -> Result<Value> {
        self.get(&format!("/api/phones/{serial}"))
    }

    /// The phone, once it has told of itself.
    pub fn registered(&self, serial: &str) -> Result<Value> {
        wait_for(&format!("{serial} to register"), || Ok(self.phone(serial).ok()))
    }

    /// The phone, once `is` holds of it.
    pub fn phone_when(&self, serial: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(&format!("{serial}: {what}"), || {
            let phone = self.phone(serial)?;
            ensure!(phone["sync"]["trouble"].is_null(), "the flash does not follow: {phone}");
            Ok(is(&phone).then_some(phone))
        })
        .with_context(|| self.trace())
    }

    /// Waits until the phone streams and its twin runs and follows.
    pub fn in_mirror(&self, serial: &str) -> Result<Value> {
        self.registered(serial)?;
        self.phone_when(serial, "to be mirrored", |phone| {
            phone["connected"] == true && phone["sync"]["complete"] == true && phone["twin"]["state"] == "running"
        })
    }

    pub fn release(&self, serial: &str) -> Result<()> {
        self.post(&format!("/api/phones/{serial}/release"), json!({"reason": "test"})).map(drop)
    }

    /// The twin's screen as PNG.
    pub fn twin_screen(&self, serial: &str) -> Result<Vec<u8>> {
        self.bytes(&format!("/api/phones/{serial}/twin/screen.png"))
    }

    /// A text file on the phone's flash.
    pub fn content(&self, serial: &str, path: &str) -> Result<String> {
        let bytes = self.bytes(&format!("/api/phones/{serial}/files/content?path={path}"))?;
        Ok(String::from_utf8(bytes)?)
    }

    /// The text of the first of the notes on the phone's flash.
    pub fn first_note(&self, serial: &str) -> Result<String> {
        let notes = self.get(&format!("/api/phones/{serial}/files?path=/home/user/Notes"))?;
        let path = notes["entries"][0]["path"].as_str().with_context(|| format!("no note in {notes}"))?;
        self.content(serial, path)
    }

    /// Waits until phone and flash are proven equal by root hash, at the end of the log.
    pub fn proven_in_sync(&self, serial: &str) -> Result<Value> {
        wait_for(&format!("{serial} to be proven in sync"), || {
            let path = format!("/api/phones/{serial}");
            let before = self.get(&path)?["sync"]["position"].as_u64();
            self.post(&format!("{path}/prove"), json!({}))?;
            let phone = self.get(&path)?;
            let proof = &phone["sync"]["proof"];
            Ok((proof["equal"] == true && proof["position"].as_u64() >= before).then(|| phone.clone()))
        })
        .with_context(|| self.trace())
    }
}

/// An appliance that was killed.
pub struct Down(Setup);

impl Down {
    pub fn data(&self) -> &Path {
        self.0.data()
    }

    pub fn start(self) -> Result<Appliance> {
        self.0.start()
    }
}
