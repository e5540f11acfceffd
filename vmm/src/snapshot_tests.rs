//! Files written, read back, and damaged in every way that the format can notice.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::board::arm64::Arm64State;
use crate::layout;

const RAM_SIZE: u64 = 64 << 20;

fn state() -> MachineState {
    MachineState {
        run_time: Duration::from_millis(1234),
        board: BoardState::Arm64(Arm64State::default()),
        cpu: vec![1, 2, 3],
        devices: vec![
            DeviceBytes { name: "block".into(), bytes: vec![9; 10] },
            DeviceBytes { name: "gpu".into(), bytes: Vec::new() },
        ],
    }
}

fn ram() -> GuestRam {
    let ram = memory::anonymous(RAM_SIZE).unwrap();
    let put = |value: u64, at: u64| ram.write_obj(value, GuestAddress(layout::RAM_BASE + at)).unwrap();
    put(11, 0);
    put(12, (3 << 20) + 4096);
    put(13, (3 << 20) + 8192);
    put(14, RAM_SIZE - 8);
    ram
}

fn saved(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("saved");
    write(&File::create(&path).unwrap(), "build 1", &state(), &ram(), None).unwrap();
    path
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir);
    let snapshot = Snapshot::open(&path, "build 1").unwrap();
    assert_eq!(snapshot.state(), state());
    snapshot.verify_ram().unwrap();
    let (ours, theirs) = (ram(), snapshot.ram(None).unwrap());
    assert!(bytes(&ours) == bytes(&theirs));
    assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20, "zeros take no room");
}

#[test]
fn restored_ram_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir);
    let snapshot = Snapshot::open(&path, "build 1").unwrap();
    let (one, two) = (snapshot.ram(None).unwrap(), snapshot.ram(None).unwrap());
    one.write_obj(99u64, GuestAddress(layout::RAM_BASE)).unwrap();
    assert_eq!(two.read_obj::<u64>(GuestAddress(layout::RAM_BASE)).unwrap(), 11);
    snapshot.verify_ram().unwrap();
    // A machine may be saved in the place of the file that it was restored from.
    let new = dir.path().join("new");
    write(&File::create(&new).unwrap(), "build 1", &state(), &one, None).unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert_eq!(one.read_obj::<u64>(GuestAddress(layout::RAM_BASE + RAM_SIZE - 8)).unwrap(), 14);
    let again = Snapshot::open(&path, "build 1").unwrap().ram(None).unwrap();
    assert_eq!(again.read_obj::<u64>(GuestAddress(layout::RAM_BASE)).unwrap(), 99);
}

/// Pages that a restored machine writes: apart, side by side, and at the ends.
const WRITTEN: [u64; 6] = [0, 1, 7, 8, 4000, RAM_SIZE / PAGE - 1];

fn word(ram: &GuestRam, page: u64) -> u64 {
    ram.read_obj(GuestAddress(layout::RAM_BASE + page * PAGE)).unwrap()
}

fn put(ram: &GuestRam, page: u64, value: u64) {
    ram.write_obj(value, GuestAddress(layout::RAM_BASE + page * PAGE)).unwrap();
}

fn bytes(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; RAM_SIZE as usize];
    ram.read_slice(&mut bytes, GuestAddress(layout::RAM_BASE)).unwrap();
    bytes
}

#[test]
fn what_differs_is_all_that_is_written_and_enough() {
    let dir = tempfile::tempdir().unwrap();
    let base = Snapshot::open(&saved(&dir), "build 1").unwrap();
    let ram = base.ram(None).unwrap();
    // Reading is no difference, be it of all.
    let whole = bytes(&ram);
    WRITTEN.iter().for_each(|page| put(&ram, *page, 100 + page));
    let first = dir.path().join("first");
    write(&File::create(&first).unwrap(), "build 1", &state(), &ram, Some(&base.origin().unwrap())).unwrap();
    let first = Snapshot::open(&first, "build 1").unwrap();
    assert_eq!(first.head.runs.iter().map(|run| run.len / PAGE).collect::<Vec<_>>(), [2, 2, 1, 1]);
    first.verify_ram().unwrap();
    assert!(bytes(&first.ram(Some(&base)).unwrap()) == bytes(&ram));

    // Again from there: what differed before still does.
    let ram = first.ram(Some(&base)).unwrap();
    put(&ram, 5000, 7);
    put(&ram, 7, 0);
    let second = dir.path().join("second");
    write(&File::create(&second).unwrap(), "build 1", &state(), &ram, Some(&first.origin().unwrap())).unwrap();
    let second = Snapshot::open(&second, "build 1").unwrap();
    let again = second.ram(Some(&base)).unwrap();
    assert_eq!([0, 1, 7, 8, 4000, 5000].map(|page| word(&again, page)), [100, 101, 0, 108, 4100, 7]);
    assert!(bytes(&again) == bytes(&ram));
    // The base is what it was.
    assert!(bytes(&base.ram(None).unwrap()) == whole);
}

#[test]
fn differences_in_countless_places_become_few_runs() {
    let dir = tempfile::tempdir().unwrap();
    let base = Snapshot::open(&saved(&dir), "build 1").unwrap();
    let ram = base.ram(None).unwrap();
    (0..RAM_SIZE / PAGE).step_by(3).for_each(|page| put(&ram, page, page));
    let path = dir.path().join("scattered");
    write(&File::create(&path).unwrap(), "build 1", &state(), &ram, Some(&base.origin().unwrap())).unwrap();
    let scattered = Snapshot::open(&path, "build 1").unwrap();
    assert!(scattered.head.runs.len() <= RUNS_MAX, "{}", scattered.head.runs.len());
    assert!(bytes(&scattered.ram(Some(&base)).unwrap()) == bytes(&ram));
}

#[test]
fn differences_are_of_use_with_their_base_only() {
    let dir = tempfile::tempdir().unwrap();
    let base = Snapshot::open(&saved(&dir), "build 1").unwrap();
    let ram = base.ram(None).unwrap();
    put(&ram, 1, 1);
    let path = dir.path().join("differs");
    write(&File::create(&path).unwrap(), "build 1", &state(), &ram, Some(&base.origin().unwrap())).unwrap();
    let differs = Snapshot::open(&path, "build 1").unwrap();
    put(&ram, 9, 9);
    let other = dir.path().join("other");
    write(&File::create(&other).unwrap(), "build 1", &state(), &ram, None).unwrap();
    let other = Snapshot::open(&other, "build 1").unwrap();
    for (given, told) in [(None, "is not given"), (Some(&other), "is another"), (Some(&differs), "is another")] {
        let error = differs.ram(given).err().unwrap().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = Snapshot::open(&saved(&dir), "build 1").unwrap();
    let path = dir.path().join("differs");
    let ram = base.ram(None).unwrap();
    put(&ram, 1, 1);
    write(&File::create(&path).unwrap(), "build 1", &state(), &ram, Some(&base.origin().unwrap())).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let head_len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let (head, states) = bytes[PREFIX_BYTES..].split_at(head_len);
    let head = String::from_utf8(head.to_vec()).unwrap();
    for runs in [
        r#"[{"at":1,"len":4096}]"#,
        r#"[{"at":4096,"len":100}]"#,
        r#"[{"at":8192,"len":4096},{"at":4096,"len":4096}]"#,
        r#"[{"at":67108864,"len":4096}]"#,
        r#"[{"at":18446744073709547520,"len":8192}]"#,
        r#"[{"at":4096,"len":0}]"#,
    ] {
        let head = head.replace(r#"[{"at":4096,"len":4096}]"#, runs);
        assert!(head.contains(runs));
        let (front, length) = sealed(head.as_bytes(), &states[..13]);
        std::fs::write(&path, front).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let error = Snapshot::open(&path, "build 1").err().unwrap().to_string();
        assert!(error.contains("runs of RAM make no sense"), "{runs}: {error}");
    }
}

#[test]
fn other_builds_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir);
    let says = |result: Result<Snapshot, SnapshotError>, text: &str| {
        let error = result.err().unwrap().to_string();
        assert!(error.contains(text), "{error} does not say {text}");
    };
    says(Snapshot::open(&path, "build 2"), "was saved by build 1; this is build 2");
    says(Snapshot::open(&dir.path().join("none"), "build 1"), "cannot read snapshot");
    for foreign in [&b""[..], b"hello", &[7; 5000]] {
        std::fs::write(dir.path().join("foreign"), foreign).unwrap();
        says(Snapshot::open(&dir.path().join("foreign"), "build 1"), "is not a saved machine");
    }
}

#[test]
fn damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir);
    let head_len = {
        let bytes = std::fs::read(&path).unwrap();
        u64::from(u32::from_le_bytes(bytes[12..16].try_into().unwrap()))
    };
    let flip = |at: u64, text: &str| {
        let copy = dir.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&copy).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let result = Snapshot::open(&copy, "build 1").and_then(|s| s.verify_ram());
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "flipped {at}: {error} does not say {text}");
    };
    let prefix = PREFIX_BYTES as u64;
    flip(0, "not a saved machine");
    flip(8, "is of format");
    flip(14, "checksum of its head");
    flip(15, "cut short");
    flip(20, "checksum of its head");
    flip(prefix + 7, "checksum of its head");
    flip(prefix + head_len + 1, "checksum of CPU and devices");
    flip(prefix + head_len + 12, "checksum of CPU and devices");
    let length = std::fs::metadata(&path).unwrap().len();
    flip(length - 1, "checksum of RAM");
    flip(length - (4 << 20), "checksum of RAM");

    for cut in [length - 1, prefix + head_len, prefix + 3, 30] {
        let copy = dir.path().join("cut");
        std::fs::copy(&path, &copy).unwrap();
        OpenOptions::new().write(true).open(&copy).unwrap().set_len(cut).unwrap();
        assert!(Snapshot::open(&copy, "build 1").is_err(), "cut at {cut}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let read_only = File::open(saved(&dir)).unwrap();
    assert!(matches!(write(&read_only, "build 1", &state(), &ram(), None), Err(SnapshotError::Write(_))));
}

#[test]
fn absurd_ram_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(&dir);
    let bytes = std::fs::read(&path).unwrap();
    let head_len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let (head, states) = bytes[PREFIX_BYTES..].split_at(head_len);
    let head = String::from_utf8(head.to_vec()).unwrap();
    for size in [0, RAM_SIZE + 1, 1 << 38] {
        let head = head.replace(&format!("\"ram_size\":{RAM_SIZE}"), &format!("\"ram_size\":{size}"));
        let (front, length) = sealed(head.as_bytes(), &states[..13]);
        std::fs::write(&path, front).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let error = Snapshot::open(&path, "build 1").err().unwrap().to_string();
        assert!(error.contains(&format!("guest RAM of {size} bytes")), "{error}");
    }
}
