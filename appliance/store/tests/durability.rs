//! What the embedded backend adds to the suite: it survives reopening, SIGKILL, bit rot, a full disk
//! and a second opener.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use store::{BlobHash, EmbeddedOptions, PhoneId, Store, StoreError};

const DIR_VARIABLE: &str = "STORE_DURABILITY_DIR";
const ROUNDS: usize = 6;
const PHONES: usize = 4;

fn open(dir: &Path) -> Store {
    let options = EmbeddedOptions {
        reserve_bytes: 1 << 20,
        ..Default::default()
    };
    Store::open(dir, options).expect("the store opens")
}

fn phone(number: usize) -> PhoneId {
    format!("phone-{number}").parse().expect("a valid id")
}

/// An event that refers to a blob, as a file event does; some span several log records.
fn event(phone: usize, seq: u64) -> (Bytes, Bytes) {
    let blob = Bytes::from(format!("blob {phone} {seq}").repeat(1 + seq as usize % 300));
    let filling = "x".repeat((seq as usize * 7919) % 3000);
    (
        Bytes::from(format!("{} {filling}", BlobHash::of(&blob))),
        blob,
    )
}

/// Not a test by itself: `acknowledged_survives_sigkill` runs it as a child that appends until killed.
#[test]
#[ignore = "runs only as the child of acknowledged_survives_sigkill"]
fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else {
        return;
    };
    let store = open(Path::new(&dir));
    let threads = (0..PHONES).map(|number| {
        let store = store.clone();
        std::thread::spawn(move || {
            let id = phone(number);
            let mut next = store.log.last_seq(&id).unwrap() + 1;
            loop {
                let (events, blobs): (Vec<_>, Vec<_>) = (next..next + 1 + next % 40)
                    .map(|seq| event(number, seq))
                    .unzip();
                store.blobs.put_many(&blobs).unwrap();
                let last = store.log.append_batch(&id, next, &events).unwrap();
                store
                    .kv
                    .put("last", id.as_str().as_bytes(), &last.to_be_bytes())
                    .unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acked {number} {last}")
                    .and_then(|()| out.flush())
                    .unwrap();
                next = last + 1;
            }
        })
    });
    threads
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = [0u64; PHONES];
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_appends_until_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let kill_after = rand::rng().random_range(1..60);
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            // The first line follows the test runner's own words on the same line.
            let Some((_, ack)) = line.split_once("acked ") else {
                continue;
            };
            let (number, seq) = ack.split_once(' ').unwrap();
            acked[number.parse::<usize>().unwrap()] = seq.parse().unwrap();
            seen += 1;
            if seen == kill_after {
                // Somewhere within the next batches, not always right after an acknowledgement.
                std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..5000)));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(
            seen >= kill_after,
            "round {round}: the child ended by itself after {seen} lines"
        );
        check(&open(dir.path()), round, acked);
    }
}

fn check(store: &Store, round: usize, acked: [u64; PHONES]) {
    for (number, acked) in acked.into_iter().enumerate() {
        let last = store.log.last_seq(&phone(number)).unwrap();
        assert!(
            last >= acked,
            "round {round}, phone {number}: acked {acked}, stored {last}"
        );
        let events = store.log.read(&phone(number), 1, usize::MAX).unwrap();
        assert_eq!(
            events.len() as u64,
            last,
            "round {round}, phone {number}: no gap"
        );
        for (expected_seq, (seq, stored)) in (1..).zip(events) {
            let (expected, blob) = event(number, expected_seq);
            assert_eq!((seq, stored), (expected_seq, expected));
            assert_eq!(store.blobs.get(&BlobHash::of(&blob)).unwrap(), blob);
        }
        let kv = store
            .kv
            .get("last", phone(number).as_str().as_bytes())
            .unwrap();
        let kv = kv.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
        assert!(
            kv >= acked,
            "round {round}, phone {number}: record {kv}, acked {acked}"
        );
    }
}

#[test]
fn reopening_keeps_everything_and_one_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let hash = store.blobs.put(b"blob").unwrap();
    store
        .log
        .append_batch(&phone(0), 1, &[event(0, 1).0])
        .unwrap();
    store.kv.put("b", b"k", b"v").unwrap();
    let error = Store::open(dir.path(), EmbeddedOptions::default())
        .err()
        .unwrap();
    assert!(
        matches!(&error, StoreError::Locked(locked) if locked == dir.path()),
        "{error}"
    );
    drop(store);
    let store = open(dir.path());
    assert_eq!(&store.blobs.get(&hash).unwrap()[..], b"blob");
    assert_eq!(
        store.log.read(&phone(0), 1, 9).unwrap(),
        [(1, event(0, 1).0)]
    );
    assert_eq!(store.kv.get("b", b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(*store.log.subscribe(&phone(0)).unwrap().borrow(), 1);
}

#[test]
fn bit_rot_is_named_and_healed_by_putting_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let hash = store.blobs.put(b"precious").unwrap();
    let path = dir.path().join("blobs/pack-000001");
    let mut pack = std::fs::read(&path).unwrap();
    *pack.last_mut().unwrap() ^= 1;
    std::fs::write(path, pack).unwrap();
    let error = store.blobs.get(&hash).unwrap_err();
    assert!(matches!(error, StoreError::BlobDamaged(damaged) if damaged == hash));
    assert!(error.to_string().contains(&hash.to_string()));
    assert!(!store.blobs.has(&hash).unwrap());
    store.blobs.put(b"precious").unwrap();
    assert!(store.blobs.has(&hash).unwrap());
    assert_eq!(&store.blobs.get(&hash).unwrap()[..], b"precious");
}

#[test]
fn a_full_disk_is_an_error_that_acknowledges_nothing_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    // No disk has this much room, so the store sees a full one.
    let full = EmbeddedOptions {
        reserve_bytes: u64::MAX / 2,
        ..Default::default()
    };
    let store = Store::open(dir.path(), full).unwrap();
    let full = |error: StoreError| matches!(error, StoreError::DiskFull { .. });
    assert!(full(
        store
            .log
            .append_batch(&phone(0), 1, &[event(0, 1).0])
            .unwrap_err()
    ));
    assert!(full(store.kv.put("b", b"k", b"v").unwrap_err()));
    assert!(full(store.blobs.put(b"blob").unwrap_err()));
    assert_eq!(store.log.last_seq(&phone(0)).unwrap(), 0);
    drop(store);
    let store = open(dir.path());
    assert_eq!(
        store
            .log
            .append_batch(&phone(0), 1, &[event(0, 1).0])
            .unwrap(),
        1
    );
    assert!(!store.blobs.has(&BlobHash::of(b"blob")).unwrap());
}
