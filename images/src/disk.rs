//! The base tree as an ext4 file system in a sparse file, made without mounting and without root.
//!
//! mke2fs makes it empty, one debugfs script fills it in the tree's order and sets every field that would otherwise
//! come from the clock. `mke2fs -d` would take change times from the host's file system.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::tree::{Node, Tree};
use crate::{BuildError, Result};

/// One for all: phones are told apart by their own names, not by their disks'.
const UUID: &str = "706f6c6c-7578-4e1d-8a11-000000000001";
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,\
                        dir_nlink,extra_isize,metadata_csum";
const JOURNAL_MIB: u32 = 4;

/// Makes `disk` of `size_mib` with the contents of `tree`. File contents are read from `base_dir`, where it is unpacked.
pub(crate) fn make(
    tree: &Tree,
    base_dir: &Path,
    disk: &Path,
    size_mib: u32,
    epoch: u64,
) -> Result<()> {
    File::create(disk)
        .and_then(|file| file.set_len(u64::from(size_mib) << 20))
        .map_err(|source| BuildError::io("create", disk, source))?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args([
            "-q", "-F", "-t", "ext4", "-O", FEATURES, "-b", "4096", "-I", "256", "-i", "16384",
            "-m", "0",
        ])
        .args([
            "-U",
            UUID,
            "-L",
            "pollux",
            "-J",
            &format!("size={JOURNAL_MIB}"),
        ])
        // The guest must not spend its first minute writing empty inode tables.
        .args([
            "-E",
            &format!(
                "hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            ),
        ])
        .arg(disk)
        // An empty configuration: the host's defaults must not decide what the image looks like.
        .env("MKE2FS_CONFIG", "/dev/null");
    run(mke2fs, "mke2fs", "", epoch)?;

    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-w", "-f", "-"]).arg(disk);
    let complaints = run(debugfs, "debugfs", &script(tree, base_dir, epoch), epoch)?;
    if !complaints.is_empty() {
        return Err(BuildError::Tool {
            what: format!("debugfs: {complaints}"),
            source: None,
        });
    }
    Ok(())
}

fn script(tree: &Tree, base_dir: &Path, epoch: u64) -> String {
    let mut script = format!("set_current_time @{epoch}\n");
    script.push_str("rmdir lost+found\n");
    let add = |script: &mut String, line: std::fmt::Arguments<'_>| {
        script
            .write_fmt(line)
            .expect("writing to a string cannot fail");
        script.push('\n');
    };
    let mut folders = vec![("/".to_owned(), 0o755, 0, 0)];
    for (path, entry) in tree.iter() {
        let kind = match &entry.node {
            Node::Directory => {
                add(&mut script, format_args!("mkdir \"/{path}\""));
                // Its times change with every entry made in it: set at the end.
                folders.push((format!("/{path}"), entry.mode, entry.uid, entry.gid));
                continue;
            }
            Node::File(_) => {
                add(
                    &mut script,
                    format_args!("write \"{}\" \"/{path}\"", base_dir.join(path).display()),
                );
                0o100_000
            }
            Node::Symlink(target) => {
                add(
                    &mut script,
                    format_args!("symlink \"/{path}\" \"{target}\""),
                );
                0o120_000
            }
            Node::CharDevice { .. } => continue,
        };
        attributes(
            &mut script,
            &format!("/{path}"),
            kind | entry.mode,
            entry.uid,
            entry.gid,
            epoch,
        );
    }
    for (path, mode, uid, gid) in folders {
        attributes(&mut script, &path, 0o040_000 | mode, uid, gid, epoch);
    }
    // Counts what was written, journal and all: a trace of how the tools work, not of the contents.
    script.push_str("set_super_value kbytes_written 0\n");
    script
}

fn attributes(script: &mut String, path: &str, mode: u32, uid: u32, gid: u32, epoch: u64) {
    let mut set = |field: &str, value: String| {
        script.push_str(&format!("set_inode_field \"{path}\" {field} {value}\n"));
    };
    set("mode", format!("0{mode:o}"));
    set("uid", uid.to_string());
    set("gid", gid.to_string());
    for field in ["atime", "ctime", "mtime", "crtime"] {
        set(field, format!("@{epoch}"));
        set(&format!("{field}_extra"), "0".to_owned());
    }
}

/// Runs a tool with `input` on its standard input; returns what it complained of.
fn run(mut command: Command, name: &str, input: &str, epoch: u64) -> Result<String> {
    let tool = |source| BuildError::tool(name, source);
    let mut child = command
        .env("LC_ALL", "C")
        .env("E2FSPROGS_FAKE_TIME", epoch.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(tool)?;
    let mut stdin = child.stdin.take().expect("stdin was piped");
    let mut stderr = child.stderr.take().expect("stderr was piped");
    // Both pipes at once, or a chatty tool and we would wait for each other.
    let (written, complaints) = std::thread::scope(|scope| {
        let complaints = scope.spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let written = stdin.write_all(input.as_bytes());
        drop(stdin);
        (
            written,
            complaints.join().expect("reading a pipe does not panic"),
        )
    });
    let status = child.wait().map_err(tool)?;
    let complaints = complaints.map_err(tool)?;
    // The tools greet on standard error.
    let complaints = complaints
        .lines()
        .filter(|line| !line.starts_with(&format!("{name} 1.")))
        .collect::<Vec<_>>()
        .join("; ");
    if !status.success() {
        return Err(BuildError::Tool {
            what: format!("{name} failed ({status}): {complaints}"),
            source: None,
        });
    }
    written.map_err(tool)?;
    Ok(complaints)
}

/// Copies a file and its holes: only what holds data is read and written.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(to)?;
    let length = source.metadata()?.len();
    let mut end = 0;
    while let Some(start) = next(&source, end, Whence::SeekData)? {
        end = next(&source, start, Whence::SeekHole)?.unwrap_or(length);
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        io::copy(&mut (&mut source).take(end - start), &mut target)?;
    }
    target.set_len(length)
}

/// Where the next data or hole begins at or after `offset`; `None` past the last data.
fn next(file: &File, offset: u64, what: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, offset, what) {
        Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)?)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut file = File::create(&from).unwrap();
        for offset in [1 << 20, 5 << 20] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(b"data").unwrap();
        }
        file.set_len(9 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks());
        assert!(
            copy_sparse(&from, &to).is_err(),
            "an existing file is not overwritten"
        );
    }
}
