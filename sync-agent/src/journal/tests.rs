//! The journal's promises, each broken once or about to be.

use sync_protocol::event::{Content, Control, ControlKind, Node};
use sync_protocol::tree::{Entry, FileKind};

use super::*;
use crate::clock;

fn open(directory: &Path) -> Journal {
    Journal::open(directory, Limits::new(64 * 1024 * 1024))
        .unwrap()
        .0
}

fn control(text: &str) -> Draft {
    let control = Control {
        kind: ControlKind::Started,
        text: text.into(),
        path: None,
        count: 0,
    };
    Draft {
        stamp: clock::now(),
        kind: Kind::Control(control),
    }
}

fn file(path: &PhonePath, contents: &[u8]) -> (Draft, Vec<(Hash, Vec<u8>)>) {
    let pieces: Vec<_> = chunking::cut(contents).collect();
    let chunks = pieces.iter().map(|(chunk, _)| *chunk).collect();
    let content = Content::Regular {
        size: contents.len() as u64,
        chunks,
    };
    let op = FileOp::Put(Node {
        mode: 0,
        uid: 0,
        gid: 0,
        mtime_ns: 0,
        content,
    });
    let kind = Kind::File(FileChange {
        path: path.clone(),
        op,
    });
    let bytes = pieces
        .iter()
        .map(|(chunk, bytes)| (chunk.hash, bytes.to_vec()))
        .collect();
    (
        Draft {
            stamp: clock::now(),
            kind,
        },
        bytes,
    )
}

#[test]
fn seqs_go_on_after_everything_was_acknowledged_and_reopened() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    assert_eq!((journal.first_unacked(), journal.last_seq()), (1, 0));
    assert_eq!(journal.append(vec![control("a"), control("b")]).unwrap(), 2);
    journal.ack(2).unwrap();
    journal.ack(1).unwrap();
    assert_eq!(journal.first_unacked(), 3);
    assert_eq!(journal.append(vec![control("c")]).unwrap(), 3);
    assert_eq!(held(&journal), [3]);
    let id = journal.id().to_vec();
    drop(journal);
    let journal = open(directory.path());
    assert_eq!(
        (journal.first_unacked(), journal.last_seq(), journal.id()),
        (3, 3, id.as_slice())
    );
}

/// Each would cost the phone a flush of its own.
#[test]
fn acknowledged_input_is_forgotten_with_the_next_append_or_when_there_is_much() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    journal.append(vec![control("a"), control("b")]).unwrap();
    journal.ack(1).unwrap();
    assert_eq!((journal.first_unacked(), held(&journal)), (2, vec![1, 2]));
    journal.append(vec![control("c")]).unwrap();
    assert_eq!(held(&journal), [2, 3]);

    // A crash brings back what was acknowledged, and the appliance acknowledges it again.
    journal.ack(3).unwrap();
    drop(journal);
    let mut journal = open(directory.path());
    assert_eq!((journal.first_unacked(), journal.last_seq()), (2, 3));
    journal.ack(3).unwrap();
    assert_eq!(journal.first_unacked(), 4);

    let many = (0..ACKED_KEPT_MAX).map(|_| control("d")).collect();
    let last = journal.append(many).unwrap();
    journal.ack(last).unwrap();
    assert_eq!(held(&journal), [] as [u64; 0]);
}

/// Seqs of what is in the database.
fn held(journal: &Journal) -> Vec<u64> {
    let events = journal.events_after(0, usize::MAX).unwrap();
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn chunks_live_as_long_as_an_event_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    let path = PhonePath::new("/f").unwrap();
    let (put, chunks) = file(&path, b"shared");
    let hash = chunks[0].0;
    journal
        .append_files(vec![put.clone()], &chunks, &[])
        .unwrap();
    journal.append_files(vec![put], &chunks, &[]).unwrap();
    journal.ack(1).unwrap();
    assert_eq!(
        chunking::unpack(&journal.chunk(hash).unwrap()).unwrap().1,
        b"shared"
    );
    journal.ack(2).unwrap();
    assert!(matches!(
        journal.chunk(hash),
        Err(JournalError::NoSuchChunk(_))
    ));
}

/// An acknowledgement between staging a large file's chunks and appending its event took them away.
#[test]
fn staged_chunks_survive_acknowledgements_and_other_appends() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    let (put, chunks) = file(&PhonePath::new("/f").unwrap(), b"contents");
    let hash = chunks[0].0;
    journal
        .append_files(vec![put.clone()], &chunks, &[])
        .unwrap();
    journal.stage(&chunks).unwrap();
    journal.ack(1).unwrap();
    journal.append(vec![control("in between")]).unwrap();
    journal.append_files(vec![put], &[], &[]).unwrap();
    journal.ack(2).unwrap();
    assert!(journal.chunk(hash).is_ok());

    // What was staged for nothing goes with the next append of files.
    let (_, unused) = file(&PhonePath::new("/g").unwrap(), b"never appended");
    journal.stage(&unused).unwrap();
    journal.append_files(vec![control("x")], &[], &[]).unwrap();
    assert!(journal.chunk(unused[0].0).is_err());
}

#[test]
fn the_known_tree_moves_and_forgets_whole_subtrees_of_any_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    let path = |bytes: &[u8]| PhonePath::new(bytes).unwrap();
    let entry = Entry {
        kind: FileKind::Regular,
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        content: Hash([1; 32]),
    };
    let known = Known {
        entry,
        mtime_ns: -1,
        ctime_ns: i64::MIN,
        inode: u64::MAX,
    };
    let paths: [&[u8]; 5] = [
        b"/r/\xff\n",
        b"/r/\xff\n/\xfe",
        b"/r/\xff\n-",
        b"/r/b",
        b"/r/b/gone",
    ];
    let set: Vec<KnownChange> = paths
        .iter()
        .map(|bytes| KnownChange::Set(path(bytes), known))
        .collect();
    journal.append_files(Vec::new(), &[], &set).unwrap();
    let steps = [
        KnownChange::Move(path(b"/r/\xff\n"), path(b"/r/b")),
        KnownChange::Forget(path(b"/r/\xff\n-")),
    ];
    journal.append_files(Vec::new(), &[], &steps).unwrap();
    drop(journal);
    let tree = open(directory.path()).known_tree().unwrap();
    let left: Vec<_> = tree
        .subtree(&PhonePath::root())
        .map(|(path, known)| (path.clone(), *known))
        .collect();
    assert_eq!(left, [(path(b"/r/b"), known), (path(b"/r/b/\xfe"), known)]);
}

#[test]
fn results_are_remembered_up_to_a_number() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = open(directory.path());
    let result = |command_id| wire::CommandResult {
        command_id,
        text: "done".into(),
        ..Default::default()
    };
    journal.record_result(&[], &result(1)).unwrap();
    assert_eq!(journal.result(1).unwrap(), Some(result(1)));
    journal
        .record_result(&[], &result(1 + RESULTS_REMEMBERED as u64))
        .unwrap();
    assert_eq!(journal.result(1).unwrap(), None);
}

#[test]
fn a_full_journal_refuses_and_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits::new(1024 * 1024);
    let (mut journal, _) = Journal::open(directory.path(), limits).unwrap();
    let mut noise = vec![0; 300_000];
    let mut last = 0;
    let full = loop {
        noise.fill_with(rand::random);
        let (put, chunks) = file(&PhonePath::new("/f").unwrap(), &noise);
        match journal.append_files(vec![put], &chunks, &[]) {
            Ok(seq) => last = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, JournalError::Full), "{full}");
    assert_eq!(journal.last_seq(), last);
    assert!(!journal.has_room_for_files().unwrap());
    journal.ack(last).unwrap();
    assert!(journal.has_room_for_files().unwrap());
    assert_eq!(journal.append(vec![control("again")]).unwrap(), last + 1);
}
