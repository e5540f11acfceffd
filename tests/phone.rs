//! The built image as a phone: it starts, from a disk and from a shared folder, and shows its home screen.
//!
//! Needs the image (`image-builder build handset-arm64`) and QEMU; the shared folder also needs root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use image_builder::{Image, cache_dir};
use tests::qemu::{Network, Phone, Qemu, Root};

/// Generous: the host may be busy with other tests.
const START: Duration = Duration::from_secs(60);
const PROMPT: &str = "handset:~# ";

fn image() -> Result<Image> {
    Ok(Image::latest(&cache_dir(), "handset-arm64")?)
}

/// Runs `command` in the phone's shell and returns all that was printed so far once it is done.
fn shell(phone: &mut Qemu, command: &str) -> Result<String> {
    // Written so that the echo of the command is not taken for its end.
    phone.type_serial(&format!("{command}; echo done''done\n"))?;
    phone.wait_console("donedone", START)
}

#[test]
fn starts_from_its_disk_to_the_handset() -> Result<()> {
    let image = image()?;
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image.copy_disk(&disk)?;
    let mut phone = Phone::new(&image, Root::Disk(disk), "pollux.shell=1");
    phone.network = Network::User;
    let mut phone = Qemu::start(&phone)?;
    phone.wait_console(PROMPT, START)?;
    let printed = shell(
        &mut phone,
        "until [ -s /run/resolv.conf ] && pidof handset; do usleep 100000; done; stat -c 'home of %u:%g' /home/user; ip addr; ps",
    )?;
    ensure!(printed.contains("home of 1000:1000"), "{printed}");
    ensure!(
        printed.contains("inet 10.0.2."),
        "no address by DHCP:\n{printed}"
    );
    ensure!(
        !printed.contains("pollux-agent"),
        "an agent runs that was not asked for:\n{printed}"
    );
    ensure!(phone.screenshot()?.starts_with(b"\x89PNG"), "no screen");
    phone.type_serial("poweroff\n")?;
    phone.wait_end(START)
}

#[test]
fn starting_leaves_the_flash_as_it_was() -> Result<()> {
    let image = image()?;
    let folder = tempfile::tempdir()?;
    let flash = folder.path().join("flash");
    ensure!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(image.base_dir())
            .arg(&flash)
            .status()?
            .success(),
        "cannot copy the base tree"
    );
    let before = contents(&flash)?;
    let mut phone = Qemu::start(&Phone::new(
        &image,
        Root::Folder(flash.clone()),
        "pollux.shell=1",
    ))?;
    phone.wait_console(PROMPT, START)?;
    let printed = shell(
        &mut phone,
        "until pidof handset; do usleep 100000; done; mount",
    )?;
    ensure!(printed.contains("flash on / type virtiofs"), "{printed}");
    phone.type_serial("poweroff\n")?;
    phone.wait_end(START)?;

    let after = contents(&flash)?;
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, state)| before.get(*path) != Some(state))
        .map(|(path, _)| path)
        .collect();
    ensure!(changed.is_empty(), "starting changed {changed:?}");
    ensure!(before.len() == after.len(), "starting removed files");
    Ok(())
}

/// Path, mode, owner, size and time of everything below `root`, but not the handset's own files.
fn contents(root: &Path) -> Result<BTreeMap<String, (u32, u32, u64, i64)>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(root)?.display().to_string();
            if name.starts_with("home/user") {
                continue;
            }
            let metadata = path.symlink_metadata()?;
            found.insert(
                name,
                (
                    metadata.mode(),
                    metadata.uid(),
                    metadata.size(),
                    metadata.mtime(),
                ),
            );
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(found)
}

#[test]
fn waits_at_the_gate_and_takes_the_time_from_it() -> Result<()> {
    let image = image()?;
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    image.copy_disk(&disk)?;
    let gate = folder.path().join("gate");
    let listener = UnixListener::bind(&gate)?;
    let mut phone = Phone::new(&image, Root::Disk(disk), "pollux.shell=1 pollux.gate=1");
    phone.ports = vec![("org.pollux.gate".to_owned(), gate)];
    let mut phone = Qemu::start(&phone)?;
    let (mut gate, _) = listener.accept()?;
    gate.write_all(b"go time=1900000000\n")?;
    phone.wait_console(PROMPT, START)?;
    let printed = shell(&mut phone, "date +%Y-%m-%d")?;
    ensure!(printed.contains("2030-03-17"), "{printed}");
    Ok(())
}
