//! One suite for every backend: what `Log`, `Kv` and `Blobs` promise.

use std::sync::Arc;

use bytes::Bytes;
use store::{BlobHash, EmbeddedOptions, KvChange, PhoneId, Store, StoreError};

fn phone(name: &str) -> PhoneId {
    name.parse().expect("a valid phone id")
}

fn event(seq: u64) -> Bytes {
    Bytes::from(format!("event {seq}"))
}

fn events(seqs: std::ops::RangeInclusive<u64>) -> Vec<Bytes> {
    seqs.map(event).collect()
}

/// Runs each case on each backend.
macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod memory { $(#[test] fn $case() { super::$case(super::Store::memory()); })* }
        mod embedded {
            $(#[test] fn $case() {
                let dir = tempfile::tempdir().expect("a directory");
                super::$case(super::open(dir.path()));
            })*
        }
    };
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(
        dir,
        EmbeddedOptions {
            reserve_bytes: 1 << 20,
            ..Default::default()
        },
    )
    .expect("the store opens")
}

suite! {
    a_log_begins_empty, appended_events_are_read_back, a_repeated_batch_changes_nothing,
    an_overlapping_batch_adds_only_what_is_new, a_gap_is_refused_and_stores_nothing,
    phones_do_not_see_each_other, reading_honours_from_and_max, subscribers_wake_on_durable_events,
    limits_are_errors, large_and_empty_events_survive, concurrent_phones_append,
    records_are_put_read_and_deleted, writes_are_all_or_nothing, swaps_compare,
    prefixes_are_scanned_in_order, last_at_most_stays_in_its_prefix, buckets_are_apart,
    blobs_are_addressed_by_content, a_check_reads_everything_once, missing_blobs_are_named, concurrent_writers_of_equal_blobs,
}

fn a_log_begins_empty(store: Store) {
    assert_eq!(store.log.last_seq(&phone("p")).unwrap(), 0);
    assert_eq!(store.log.read(&phone("p"), 1, 10).unwrap(), []);
    assert_eq!(store.log.phones().unwrap(), []);
    let _ = store.log.subscribe(&phone("p")).unwrap();
    assert_eq!(
        store.log.phones().unwrap(),
        [],
        "watching a phone does not make one"
    );
}

fn appended_events_are_read_back(store: Store) {
    assert_eq!(
        store
            .log
            .append_batch(&phone("p"), 1, &events(1..=3))
            .unwrap(),
        3
    );
    assert_eq!(
        store
            .log
            .append_batch(&phone("p"), 4, &events(4..=4))
            .unwrap(),
        4
    );
    let expected: Vec<_> = (1..=4).map(|seq| (seq, event(seq))).collect();
    assert_eq!(store.log.read(&phone("p"), 1, 100).unwrap(), expected);
    assert_eq!(store.log.read(&phone("p"), 0, 100).unwrap(), expected);
}

fn a_repeated_batch_changes_nothing(store: Store) {
    store
        .log
        .append_batch(&phone("p"), 1, &events(1..=5))
        .unwrap();
    assert_eq!(
        store
            .log
            .append_batch(&phone("p"), 1, &events(1..=5))
            .unwrap(),
        5
    );
    assert_eq!(
        store
            .log
            .append_batch(&phone("p"), 2, &events(2..=3))
            .unwrap(),
        5
    );
    assert_eq!(store.log.append_batch(&phone("p"), 6, &[]).unwrap(), 5);
    assert_eq!(store.log.read(&phone("p"), 1, 100).unwrap().len(), 5);
}

fn an_overlapping_batch_adds_only_what_is_new(store: Store) {
    store
        .log
        .append_batch(&phone("p"), 1, &events(1..=5))
        .unwrap();
    assert_eq!(
        store
            .log
            .append_batch(&phone("p"), 4, &events(4..=9))
            .unwrap(),
        9
    );
    let expected: Vec<_> = (1..=9).map(|seq| (seq, event(seq))).collect();
    assert_eq!(store.log.read(&phone("p"), 1, 100).unwrap(), expected);
}

fn a_gap_is_refused_and_stores_nothing(store: Store) {
    store
        .log
        .append_batch(&phone("p"), 1, &events(1..=2))
        .unwrap();
    let error = store
        .log
        .append_batch(&phone("p"), 4, &events(4..=5))
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Gap {
                last_seq: 2,
                first_seq: 4,
                ..
            }
        ),
        "{error}"
    );
    assert!(matches!(
        store.log.append_batch(&phone("p"), 0, &events(1..=1)),
        Err(StoreError::ZeroSeq)
    ));
    let error = store
        .log
        .append_batch(&phone("p"), u64::MAX, &events(1..=1))
        .unwrap_err();
    assert!(matches!(error, StoreError::Gap { .. }));
    assert_eq!(store.log.last_seq(&phone("p")).unwrap(), 2);
}

fn phones_do_not_see_each_other(store: Store) {
    // Ids of which one is the beginning of the other, to try the keys.
    for name in ["p", "p1", "p-1", "q"] {
        store
            .log
            .append_batch(&phone(name), 1, &[Bytes::from(name)])
            .unwrap();
    }
    assert_eq!(
        store.log.read(&phone("p"), 1, 9).unwrap(),
        [(1, Bytes::from("p"))]
    );
    assert_eq!(
        store.log.read(&phone("p1"), 1, 9).unwrap(),
        [(1, Bytes::from("p1"))]
    );
    assert_eq!(
        store.log.phones().unwrap(),
        ["p", "p-1", "p1", "q"].map(phone)
    );
}

fn reading_honours_from_and_max(store: Store) {
    let large: Vec<_> = (1..=200)
        .map(|seq| Bytes::from(format!("{seq:>2000}")))
        .collect();
    store.log.append_batch(&phone("p"), 1, &large).unwrap();
    for (from, max) in [
        (1, 1),
        (2, 3),
        (57, 100),
        (199, 10),
        (200, 1),
        (201, 5),
        (7, 0),
    ] {
        let read = store.log.read(&phone("p"), from, max).unwrap();
        let expected = (from..=200)
            .take(max)
            .map(|seq| (seq, large[seq as usize - 1].clone()));
        assert_eq!(read, expected.collect::<Vec<_>>(), "from {from}, max {max}");
    }
}

fn subscribers_wake_on_durable_events(store: Store) {
    let mut seqs = store.log.subscribe(&phone("p")).unwrap();
    assert_eq!(*seqs.borrow_and_update(), 0);
    store
        .log
        .append_batch(&phone("p"), 1, &events(1..=2))
        .unwrap();
    assert!(seqs.has_changed().unwrap());
    assert_eq!(*seqs.borrow_and_update(), 2);
    store
        .log
        .append_batch(&phone("p"), 1, &events(1..=2))
        .unwrap();
    store
        .log
        .append_batch(&phone("q"), 1, &events(1..=9))
        .unwrap();
    assert!(!seqs.has_changed().unwrap());
}

fn limits_are_errors(store: Store) {
    let too_long = Bytes::from(vec![0; store::EVENT_BYTES_MAX + 1]);
    let too_many = vec![Bytes::new(); store::BATCH_EVENTS_MAX + 1];
    for batch in [vec![too_long.clone()], too_many] {
        let error = store.log.append_batch(&phone("p"), 1, &batch).unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    }
    let value = vec![0; store::VALUE_BYTES_MAX + 1];
    assert!(matches!(
        store.kv.put("b", b"k", &value),
        Err(StoreError::TooLarge { .. })
    ));
    let blob = Bytes::from(vec![0; store::BLOB_BYTES_MAX + 1]);
    assert!(matches!(
        store.blobs.put_many(&[blob]),
        Err(StoreError::TooLarge { .. })
    ));
    for id in ["", ".", "..", "a/b", "a\0", "a b", "ä", &"x".repeat(65)] {
        assert!(id.parse::<PhoneId>().is_err(), "{id:?}");
    }
}

fn large_and_empty_events_survive(store: Store) {
    let batch = [
        Bytes::new(),
        Bytes::from(vec![7; 3 << 20]),
        Bytes::new(),
        event(4),
    ];
    store.log.append_batch(&phone("p"), 1, &batch).unwrap();
    let read = store.log.read(&phone("p"), 1, 9).unwrap();
    assert!(read.iter().map(|(_, event)| event).eq(&batch));
}

fn concurrent_phones_append(store: Store) {
    let threads = (0..16).map(|number| {
        let log = store.log.clone();
        std::thread::spawn(move || {
            let phone = phone(&format!("p{number}"));
            for seq in (1..=40).step_by(2) {
                assert_eq!(
                    log.append_batch(&phone, seq, &events(seq..=seq + 1))
                        .unwrap(),
                    seq + 1
                );
            }
        })
    });
    threads
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(store.log.phones().unwrap().len(), 16);
    for phone in store.log.phones().unwrap() {
        let read = store.log.read(&phone, 1, 100).unwrap();
        assert!(read.into_iter().eq((1..=40).map(|seq| (seq, event(seq)))));
    }
}

fn records_are_put_read_and_deleted(store: Store) {
    assert_eq!(store.kv.get("b", b"k").unwrap(), None);
    store.kv.put("b", b"k", b"v").unwrap();
    store.kv.put("b", b"", b"").unwrap();
    assert_eq!(store.kv.get("b", b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(store.kv.get("b", b"").unwrap().as_deref(), Some(&b""[..]));
    store.kv.delete("b", b"k").unwrap();
    store.kv.delete("b", b"k").unwrap();
    assert_eq!(store.kv.get("b", b"k").unwrap(), None);
}

fn writes_are_all_or_nothing(store: Store) {
    let put = |key: &[u8], size| KvChange::Put(key.to_vec(), Bytes::from(vec![1; size]));
    let error = store
        .kv
        .write("b", &[put(b"a", 1), put(b"b", store::VALUE_BYTES_MAX + 1)]);
    assert!(error.is_err());
    assert_eq!(store.kv.get("b", b"a").unwrap(), None);
    store
        .kv
        .write(
            "b",
            &[put(b"a", 1), put(b"b", 2), KvChange::Delete(b"a".to_vec())],
        )
        .unwrap();
    assert_eq!(store.kv.get("b", b"a").unwrap(), None);
    assert_eq!(store.kv.get("b", b"b").unwrap().unwrap().len(), 2);
}

fn swaps_compare(store: Store) {
    let swap = |expected: Option<&[u8]>, new: Option<&[u8]>| {
        store.kv.compare_and_swap("b", b"k", expected, new).unwrap()
    };
    assert!(!swap(Some(b"1"), Some(b"2")));
    assert!(swap(None, Some(b"1")));
    assert!(!swap(None, Some(b"2")));
    assert!(swap(Some(b"1"), Some(b"2")));
    assert!(swap(Some(b"2"), None));
    assert_eq!(store.kv.get("b", b"k").unwrap(), None);
}

fn prefixes_are_scanned_in_order(store: Store) {
    for key in ["a", "b/2", "b/1", "b/10", "c", "b"] {
        store.kv.put("b", key.as_bytes(), key.as_bytes()).unwrap();
    }
    let keys = |prefix: &str| {
        let records = store.kv.scan_prefix("b", prefix.as_bytes()).unwrap();
        assert!(records.iter().all(|(key, value)| key == value));
        records
            .iter()
            .map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys("b/"), ["b/1", "b/10", "b/2"]);
    assert_eq!(keys(""), ["a", "b", "b/1", "b/10", "b/2", "c"]);
    assert_eq!(keys("d"), [""; 0]);
    assert_eq!(store.kv.scan_prefix("nowhere", b"").unwrap(), []);
}

fn last_at_most_stays_in_its_prefix(store: Store) {
    for key in ["p/3", "p/5", "q/1"] {
        store.kv.put("b", key.as_bytes(), b"").unwrap();
    }
    let last = |prefix: &str, key: &str| {
        let last = store
            .kv
            .last_at_most("b", prefix.as_bytes(), key.as_bytes())
            .unwrap();
        last.map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())
    };
    assert_eq!(last("p/", "p/4").as_deref(), Some("p/3"));
    assert_eq!(last("p/", "p/5").as_deref(), Some("p/5"));
    assert_eq!(last("p/", "p/9").as_deref(), Some("p/5"));
    assert_eq!(last("p/", "p/2"), None);
    assert_eq!(last("q/", "q/0"), None);
}

fn buckets_are_apart(store: Store) {
    store.kv.put("one", b"k", b"1").unwrap();
    assert_eq!(store.kv.get("two", b"k").unwrap(), None);
    assert_eq!(store.kv.scan_prefix("on", b"").unwrap(), []);
}

fn blobs_are_addressed_by_content(store: Store) {
    let blobs = ["one", "two", "one", ""].map(Bytes::from);
    let hashes = store.blobs.put_many(&blobs).unwrap();
    assert_eq!(hashes[0], hashes[2]);
    for (hash, blob) in hashes.iter().zip(&blobs) {
        assert_eq!(*hash, BlobHash::of(blob));
        assert_eq!(store.blobs.get(hash).unwrap(), blob);
    }
    assert_eq!(store.blobs.put(b"two").unwrap(), hashes[1]);
    let absent = BlobHash::of(b"absent");
    assert_eq!(
        store
            .blobs
            .has_many(&[hashes[0], absent, hashes[3]])
            .unwrap(),
        [true, false, true]
    );
    assert!(store.blobs.has(&hashes[1]).unwrap() && !store.blobs.has(&absent).unwrap());
}

fn a_check_reads_everything_once(store: Store) {
    let blobs: Vec<Bytes> = (0..100).map(|n| Bytes::from(vec![n; 1000])).collect();
    store.blobs.put_many(&blobs).unwrap();
    let (mut from, mut seen, mut bytes) = (Some(store::CheckMark::default()), 0, 0);
    while let Some(mark) = from {
        let checked = store.blobs.check(mark, 10_000).unwrap();
        assert_eq!(checked.damaged, []);
        (from, seen, bytes) = (
            checked.next,
            seen + checked.blobs,
            bytes + checked.bytes,
        );
    }
    assert_eq!((seen, bytes), (100, store.blobs.stored_bytes().unwrap()));
}

fn missing_blobs_are_named(store: Store) {
    let absent = BlobHash::of(b"absent");
    let error = store.blobs.get(&absent).unwrap_err();
    assert!(matches!(error, StoreError::BlobMissing(hash) if hash == absent));
    assert!(error.to_string().contains(&absent.to_string()));
    assert_eq!(absent.to_string().parse::<BlobHash>().unwrap(), absent);
}

fn concurrent_writers_of_equal_blobs(store: Store) {
    let blobs: Arc<Vec<Bytes>> =
        Arc::new((0..50).map(|n| Bytes::from(format!("blob {n}"))).collect());
    let threads = (0..8).map(|_| {
        let (store, blobs) = (store.clone(), blobs.clone());
        std::thread::spawn(move || {
            let hashes = store.blobs.put_many(&blobs).unwrap();
            assert!(
                store
                    .blobs
                    .has_many(&hashes)
                    .unwrap()
                    .into_iter()
                    .all(|has| has)
            );
            hashes
                .iter()
                .zip(&*blobs)
                .for_each(|(hash, blob)| assert_eq!(store.blobs.get(hash).unwrap(), blob));
        })
    });
    threads
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let hashes: Vec<_> = blobs.iter().map(|blob| BlobHash::of(blob)).collect();
    assert!(
        store
            .blobs
            .has_many(&hashes)
            .unwrap()
            .into_iter()
            .all(|has| has)
    );
}
