//! What goes wrong, on real machines: the error is clear, nothing acknowledged is lost, and what can go on does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use image_builder::Image;
use serde_json::{Value, json};
use tests::appliance::{Appliance, Setup, binary, wait_for};
use tests::control::Control;
use tests::demo::DemoPhone;
use tests::hand::{Handheld, same_screen};
use tests::targets::Targets;

const ALL_TIME: &str = "from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";

fn pollux(arguments: &[&OsStr]) -> Result<Output> {
    Ok(Command::new(binary("pollux")?).args(arguments).env("RUST_LOG", "error").output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_stands_in_the_way_of_starting_is_told_and_nothing_is_left_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let config = folder.path().join("pollux.toml");
    fs::write(&config, format!("[images]\nfolder = {:?}\n", folder.path().join("none").display().to_string()))?;
    let config = config.to_str().context("a temporary folder has a plain name")?;
    let cases: [(&[&str], &[&str]); 3] = [
        (&["--http", &taken, "--sync", "127.0.0.1:0"], &["cannot listen on", &taken, "for the console", "choose another port"]),
        (&["--http", "127.0.0.1:0", "--sync", &taken], &["cannot listen on", &taken, "for phones", "choose another port"]),
        (
            &["--http", "127.0.0.1:0", "--sync", "127.0.0.1:0", "--demo", "--config", config],
            &["there is no image at", "none/handset-arm64", "`pollux image build handset-arm64` builds it"],
        ),
    ];
    for (flags, told) in cases {
        let data = folder.path().join("data");
        let arguments: Vec<&OsStr> = ["serve", "--data"].map(OsStr::new).into_iter().chain([data.as_os_str()]).collect();
        let output = pollux(&[&arguments[..], &flags.iter().map(OsStr::new).collect::<Vec<_>>()].concat())?;
        let error = text(&output.stderr);
        ensure!(output.status.code() == Some(1), "{flags:?}: {}\n{error}", output.status);
        ensure!(told.iter().all(|words| error.contains(words)), "{flags:?}: {error}");
        ensure!(!data.exists(), "{flags:?} left {} behind", data.display());
    }
    Ok(())
}

/// A file system of its own, in memory, that can be filled. Gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u64) -> Result<SmallDisk> {
        let folder = tempfile::tempdir()?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(folder.path()).status()?;
        ensure!(mounted.success(), "a small disk must be mounted, which needs root");
        Ok(SmallDisk(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it with a file until `left_mib` are free.
    fn fill(&self, left_mib: usize) -> Result<()> {
        let mut hog = File::options().create(true).append(true).open(self.hog())?;
        loop {
            let output = Command::new("df").args(["--block-size=1", "--output=avail"]).arg(self.path()).output()?;
            let free: usize = text(&output.stdout).lines().last().context("df tells nothing")?.trim().parse()?;
            let Some(much) = free.checked_sub(left_mib << 20).filter(|much| *much > 0) else { return Ok(()) };
            // The appliance may have taken the last of it meanwhile.
            match hog.write_all(&vec![0; much]) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                written => written?,
            }
        }
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.hog())?)
    }

    fn hog(&self) -> PathBuf {
        self.path().join("hog")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left something open.
        if !Command::new("umount").arg("-l").arg(self.path()).status().is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}

#[test]
fn a_full_disk_is_told_and_waited_out_and_nothing_is_lost() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let (disk, elsewhere) = (SmallDisk::new(384)?, tempfile::tempdir()?);
    let setup = Setup::new()?.data_in(disk.path())?;
    // The phone has a disk of its own, which is not full.
    std::os::unix::fs::symlink(elsewhere.path(), setup.data().join("demo-phones"))?;
    let appliance = setup.start()?;
    let serial = "HS-0020";
    let mut phone = DemoPhone::start(&appliance, serial, Some(&appliance.code(serial)?))?;
    appliance.in_mirror(serial)?;
    phone.tap_all(&at, "home.notes notes.new")?;
    phone.type_text("before the disk was full")?;
    let acknowledged = appliance.proven_in_sync(serial)?["sync"]["position"].as_u64().context("a position")?;

    // First no more than the store keeps in reserve, then nothing at all.
    disk.fill(32)?;
    phone.type_text(" while it was")?;
    wait_for("a phone to be told", || Ok(appliance.trace().contains("the appliance's disk is full; try later").then_some(())))?;
    disk.fill(0)?;
    phone.type_text(" and while there was nothing left")?;
    let trouble = appliance.get("/api/status")?["trouble"].as_str().context("no trouble")?.to_owned();
    ensure!(trouble.contains("disk full") && trouble.contains("free some space"), "{trouble}");
    wait_for("the trouble to be told", || Ok(appliance.trace().contains("nothing is accepted from phones").then_some(())))?;
    let refused = appliance.post("/api/codes", json!({"note": "no room"})).err().context("a code found room")?.to_string();
    ensure!(refused.contains("503") && refused.contains("the appliance's disk is full"), "{refused}");
    // What it has, it shows.
    ensure!(appliance.phone(serial)?["sync"]["position"].as_u64() >= Some(acknowledged));
    ensure!(appliance.first_note(serial)?.starts_with("before the disk was full"));

    disk.free()?;
    wait_for("the phone to be heard again", || {
        let phone = appliance.phone(serial)?;
        Ok((phone["connected"] == true && phone["sync"]["position"].as_u64() > Some(acknowledged)).then_some(()))
    })?;
    phone.tap_all(&at, "nav.back")?;
    appliance.proven_in_sync(serial)?;
    let note = appliance.first_note(serial)?;
    ensure!(note == "before the disk was full while it was and while there was nothing left", "{note}");
    ensure!(appliance.get("/api/status")?["trouble"].is_null());
    wait_for("the end of it to be told", || Ok(appliance.trace().contains("phones are heard again").then_some(())))?;
    same_screen(&appliance, &mut phone)?;
    drop(phone);
    appliance.stop()
}

/// The reference image with a root shell on the serial line, in a folder of images.
fn images_with_shell() -> Result<tempfile::TempDir> {
    let image = Image::latest(&image_builder::cache_dir(), "handset-arm64")?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("handset-arm64");
    fs::create_dir(&copy)?;
    for piece in fs::read_dir(fs::canonicalize(image.dir())?)? {
        let piece = piece?.path();
        // A base snapshot there is of a machine without that shell.
        if let Some(name) = piece.file_name().filter(|_| piece.extension().is_none_or(|extension| extension != "snapshot")) {
            std::os::unix::fs::symlink(&piece, copy.join(name))?;
        }
    }
    let manifest = copy.join("manifest.toml");
    let (before, key) = (fs::read_to_string(&manifest)?, "kernel_cmdline = \"");
    let changed = before.replacen(key, &format!("{key}pollux.shell=1 "), 1);
    ensure!(changed != before, "no {key} in {before}");
    fs::remove_file(&manifest)?;
    fs::write(&manifest, changed)?;
    Ok(folder)
}

/// Types on a machine's serial console, where a shell listens.
fn type_line(machine: &mut Control, line: &str) -> Result<()> {
    let mut rest = format!("{line}\n");
    wait_for("the console to take a line", || {
        let taken = machine.ask(json!({"op": "type", "text": rest}))?["taken"].as_u64().context("no number of bytes")?;
        rest.drain(..usize::try_from(taken)?);
        Ok(rest.is_empty().then_some(()))
    })
}

/// Runs a command in the shell of a machine's serial console, and waits until it is done.
fn run(machine: &mut Control, command: &str) -> Result<()> {
    static COMMANDS: AtomicUsize = AtomicUsize::new(1);
    let number = COMMANDS.fetch_add(1, Ordering::Relaxed);
    let mark = format!("done {number};");
    // Written so that the echo of the command is not taken for its end.
    type_line(machine, &format!("{command} && echo 'done {number}'';'"))?;
    wait_for(&format!("the guest to do {command:?}"), || {
        let printed = machine.ask(json!({"op": "console", "bytes": 4096}))?;
        Ok(printed["tail"].as_str().is_some_and(|tail| tail.contains(&mark)).then_some(()))
    })
}

fn report(appliance: &Appliance, name: &str) -> Result<Value> {
    appliance.get(&format!("/api/reports/{name}?{ALL_TIME}"))
}

/// Names that break lines, obey nobody's encoding, and order terminals about; as a shell's `printf` makes them, and as they are.
const ODD_NAMES: [(&str, &[u8]); 3] =
    [("new\\nline", b"new\nline"), ("no\\377utf\\3008", b"no\xffutf\xc08"), ("clear\\033[2Jscreen", b"clear\x1b[2Jscreen")];

fn odd_names(appliance: &Appliance, phone: &mut DemoPhone) -> Result<()> {
    let serial = phone.serial.clone();
    phone.machine(|machine| run(machine, "mkdir /home/user/odd"))?;
    for (written, _) in ODD_NAMES {
        phone.machine(|machine| run(machine, &format!("echo {serial} >\"$(printf '/home/user/odd/{written}')\"")))?;
    }
    appliance.proven_in_sync(&serial)?;
    let listing = appliance.get(&format!("/api/phones/{serial}/files?path=/home/user/odd"))?;
    let entries = listing["entries"].as_array().context("entries")?;
    ensure!(entries.len() == ODD_NAMES.len(), "{listing}");
    for entry in entries {
        let path = entry["path"].as_str().context("a path")?;
        ensure!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
        ensure!(appliance.content(&serial, path)?.trim_end() == serial, "{path}");
    }
    // On a terminal: a line for each, and nothing that it would obey.
    let data = appliance.data().as_os_str();
    let told = |arguments: &[&str]| {
        let output = pollux(&[&arguments.iter().map(OsStr::new).collect::<Vec<_>>()[..], &[OsStr::new("--data"), data]].concat())?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        String::from_utf8(output.stdout).context("text")
    };
    let listed = told(&["files", "ls", &serial, "/home/user/odd"])?;
    ensure!(listed.lines().count() == 1 + ODD_NAMES.len(), "{listed}");
    for output in [listed, told(&["log", &serial, "--limit", "200"])?, told(&["twin", "console", &serial])?] {
        ensure!(!output.chars().any(|c| c.is_control() && c != '\n'), "{output:?}");
    }
    // And by its own name each is found.
    for (_, name) in ODD_NAMES {
        let (path, copy) = ([b"/home/user/odd/", name].concat(), appliance.data().join("copy"));
        let words = ["files", "get", &serial].map(OsStr::new);
        let rest = [OsStr::from_bytes(&path), OsStr::new("--output"), copy.as_os_str(), OsStr::new("--data"), data];
        let output = pollux(&[&words[..], &rest].concat())?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        ensure!(fs::read_to_string(&copy)?.trim_end() == serial);
    }
    Ok(())
}

fn damaged_database(appliance: &Appliance, phone: &mut DemoPhone, at: &Targets) -> Result<()> {
    let serial = phone.serial.clone();
    let calls = "/home/user/.local/share/calls/records.db";
    let rows = |answer: &Value| answer["rows"].as_array().map(Vec::len);
    phone.tap_all(at, "home.phone phone.key.0 phone.key.1 phone.key.7 phone.call call.hangup nav.home")?;
    appliance.proven_in_sync(&serial)?;
    let sound = report(appliance, "calls_by_person_and_carrier")?;
    ensure!(rows(&sound) == Some(1) && sound["unread"] == json!([]), "{sound}");

    phone.machine(|machine| run(machine, &format!("dd if=/dev/urandom of={calls} bs=4096 count=1 conv=notrunc 2>/dev/null")))?;
    appliance.phone_when(&serial, "its calls not to be read", |phone| {
        phone["usage_trouble"].as_str().is_some_and(|why| why.contains(calls) && why.contains("not a sound GNOME Calls database"))
    })?;
    // The report has what was known, and says what it lacks; the others know nothing of it but that.
    let damaged = report(appliance, "calls_by_person_and_carrier")?;
    ensure!(damaged["rows"] == sound["rows"], "{damaged}");
    ensure!(damaged["unread"][0]["trouble"].as_str().is_some_and(|why| why.contains(calls)), "{damaged}");
    report(appliance, "messages_by_person")?;
    let words = ["report", "run", "calls_by_person_and_carrier", "--data"].map(OsStr::new);
    let output = pollux(&[&words[..], &[appliance.data().as_os_str()]].concat())?;
    ensure!(output.status.success() && text(&output.stderr).contains(calls), "{}", text(&output.stderr));
    appliance.proven_in_sync(&serial)?;

    // A new one is read again; what the old one told stays known.
    phone.machine(|machine| run(machine, &format!("rm {calls}*")))?;
    appliance.phone_when(&serial, "its calls to be read", |phone| phone["usage_trouble"].is_null())?;
    let mended = report(appliance, "calls_by_person_and_carrier")?;
    ensure!(mended["rows"] == sound["rows"] && mended["unread"] == json!([]), "{mended}");
    Ok(())
}

/// 500 characters of the hardware keyboard, sent within milliseconds.
fn a_burst_of_typing(appliance: &Appliance, phone: &mut DemoPhone, at: &Targets) -> Result<()> {
    let sentence: String = "the quick brown fox jumps over the lazy dog, 1234567890 times. ".chars().cycle().take(500).collect();
    phone.tap_all(at, "home.notes notes.new")?;
    phone.type_text(&sentence)?;
    phone.tap_all(at, "nav.back nav.home")?;
    // It is saved in the midst of it, too, on a phone that is slow.
    wait_for("the whole note", || Ok((appliance.first_note(&phone.serial)? == sentence).then_some(())))?;
    appliance.proven_in_sync(&phone.serial)?;
    same_screen(appliance, phone).map(drop)
}

fn a_panic_of_the_twin(appliance: &Appliance, phone: &mut DemoPhone) -> Result<()> {
    let serial = phone.serial.clone();
    let before = appliance.phone(&serial)?;
    ensure!(before["twin"]["last_end"].is_null(), "{before}");
    let id = before["id"].as_str().context("an id")?;
    let mut machine = Control::connect(&appliance.data().join("run").join(id).join("control.sock"))?;
    run(&mut machine, "true")?;
    type_line(&mut machine, "echo c >/proc/sysrq-trigger")?;
    let after = appliance.phone_when(&serial, "its twin to run again", |phone| {
        phone["twin"]["state"] == "running" && phone["twin"]["restarts"] == 1
    })?;
    let end = &after["twin"]["last_end"];
    ensure!(end["how"] == "the guest ended by reset: the kernel panicked", "{end}");
    let words = end["last_words"].as_str().context("last words")?;
    ensure!(words.contains("Kernel panic - not syncing: sysrq triggered crash"), "{words}");
    ensure!(appliance.trace().contains("sysrq triggered crash"), "the trace does not tell");
    ensure!(after["connected"] == true, "its phone was disturbed: {after}");
    same_screen(appliance, phone).map(drop)
}

fn a_panic_of_the_phone(appliance: &Appliance, phone: &mut DemoPhone, at: &Targets) -> Result<()> {
    let serial = phone.serial.clone();
    let acknowledged = appliance.proven_in_sync(&serial)?["sync"]["position"].as_u64();
    let twin = appliance.phone(&serial)?["twin"]["pid"].clone();
    phone.machine(|machine| type_line(machine, "echo c >/proc/sysrq-trigger"))?;
    wait_for("the panic to be told", || {
        Ok(appliance.trace().contains("the demo phone's guest ended").then_some(()))
    })?;
    ensure!(appliance.trace().contains("sysrq triggered crash"), "the trace does not tell");
    phone.reconnect()?;
    appliance.phone_when(&serial, "to be back, and its twin anew", |phone| {
        phone["connected"] == true && phone["sync"]["position"].as_u64() > acknowledged
            && phone["twin"]["state"] == "running" && phone["twin"]["pid"] != twin
    })?;
    same_screen(appliance, phone)?;
    phone.tap_all(at, "home.notes notes.new")?;
    phone.type_text("after the panic")?;
    phone.tap_all(at, "nav.back nav.home")?;
    appliance.proven_in_sync(&serial)?;
    let notes = appliance.get(&format!("/api/phones/{serial}/files?path=/home/user/Notes"))?;
    ensure!(notes["entries"].as_array().map(Vec::len) == Some(2), "{notes}");
    same_screen(appliance, phone).map(drop)
}

/// Processes whose command line names `path`.
fn processes_of(path: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // One that ends meanwhile is none.
        let Ok(cmdline) = fs::read(entry?.path().join("cmdline")) else { continue };
        let cmdline = text(&cmdline).replace('\0', " ");
        if cmdline.contains(&path.display().to_string()) {
            found.push(cmdline);
        }
    }
    Ok(found)
}

#[test]
fn a_phone_in_trouble_keeps_its_twin_and_ctrl_c_ends_both() -> Result<()> {
    let at = Targets::of_the_handset()?;
    let images = images_with_shell()?;
    let appliance = Setup::new()?.images(images.path()).demo().start()?;
    let mut phone = DemoPhone::beside(&appliance)?;
    appliance.in_mirror(&phone.serial)?;
    same_screen(&appliance, &mut phone)?;

    a_burst_of_typing(&appliance, &mut phone, &at)?;
    odd_names(&appliance, &mut phone)?;
    damaged_database(&appliance, &mut phone, &at)?;
    a_panic_of_the_twin(&appliance, &mut phone)?;
    a_panic_of_the_phone(&appliance, &mut phone, &at)?;

    let mounted = tempfile::tempdir()?;
    appliance.post(&format!("/api/phones/{}/mounts", phone.serial), json!({"directory": mounted.path()}))?;
    ensure!(mounted.path().join("home/user/odd").is_dir(), "the flash is not mounted");
    let data = appliance.data().to_owned();
    ensure!(processes_of(&data)?.len() >= 3, "the appliance, its twin and its phone run");
    appliance.stop_and(|| {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        for path in [mounted.path(), &data] {
            ensure!(!mounts.contains(&path.display().to_string()), "left behind:\n{mounts}");
        }
        let left = processes_of(&data)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        ensure!(!data.join("appliance.json").exists(), "it says that it runs");
        Ok(())
    })
}
