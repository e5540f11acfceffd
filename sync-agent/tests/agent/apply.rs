//! What the appliance asks for is done, once, and not told back as the phone's own.

use std::os::unix::fs::{MetadataExt, symlink};

use sync_protocol::event::{Content, FileChange, FileOp};
use sync_protocol::hash::Hash;
use sync_protocol::wire::applied_change::Base;
use sync_protocol::wire::{self, ChangeStatus, CommandStatus, command};

use crate::fake_appliance::{EventExt, FakeAppliance};
use crate::harness::{Phone, with_phone};

fn statuses(result: &wire::CommandResult) -> Vec<ChangeStatus> {
    result
        .changes
        .iter()
        .map(|change| change.status())
        .collect()
}

fn entry(appliance: &FakeAppliance, phone: &Phone, name: &str) -> Base {
    appliance.with(|state| Base::BaseEntry(state.tree()[&phone.path(name)].entry().hash().to_vec()))
}

#[test]
fn changes_are_made_and_not_echoed() {
    with_phone("changes_are_made_and_not_echoed", |phone| async move {
        let appliance = FakeAppliance::start().await;
        phone.write("old", "old contents");
        std::fs::create_dir(phone.path("dir")).unwrap();
        phone.write("dir/a", "a");
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        let before = appliance.root(1).await.seq;

        let large: Vec<u8> = (0..700_000u32)
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let remove = |name: &str| {
            FileChange {
                path: phone.path(name),
                op: FileOp::Remove,
            }
            .into()
        };
        let rename = FileChange {
            path: phone.path("old"),
            op: FileOp::Rename {
                to: phone.path("x/renamed"),
            },
        };
        let changes = vec![
            (
                appliance.offer(&phone.path("new\n"), b"new", 0o640),
                Base::BaseAbsent(true),
            ),
            (
                appliance.offer(&phone.path("x/y/large"), &large, 0o600),
                Base::BaseAny(true),
            ),
            (rename.into(), entry(&appliance, &phone, "old")),
            (remove("dir"), Base::BaseAny(true)),
            (remove("dir"), Base::BaseAny(true)),
        ];
        let result = appliance.apply(2, changes).await;
        use ChangeStatus::{Applied, Unchanged};
        assert_eq!(
            statuses(&result),
            [Applied, Applied, Applied, Applied, Unchanged],
            "{result:?}"
        );
        assert_eq!(
            (result.status(), result.at_seq),
            (CommandStatus::Done, before)
        );
        assert_eq!(std::fs::read(phone.path("new\n")).unwrap(), b"new");
        assert!(std::fs::read(phone.path("x/y/large")).unwrap() == large);
        assert_eq!(
            std::fs::read(phone.path("x/renamed")).unwrap(),
            b"old contents"
        );
        assert!(!phone.path("dir").as_path().exists() && !phone.path("old").as_path().exists());
        let metadata = std::fs::metadata(phone.path("new\n")).unwrap();
        assert_eq!(
            (
                metadata.mode() & 0o7777,
                metadata.mtime(),
                metadata.mtime_nsec()
            ),
            (0o640, 1_700_000_000, 123_456_789)
        );

        // No echo now, nor by a scan after a restart; but what the user does next is an event.
        assert_eq!(appliance.root(3).await.seq, before);
        agent.stop().await;
        let agent = phone.start(&appliance);
        appliance.until_scanned(before as usize).await;
        appliance.with(|state| {
            assert!(
                state.events[before as usize..]
                    .iter()
                    .all(|event| event.file_path().is_none())
            );
        });
        phone.write("new\n", "newer");
        appliance.root(4).await;
        let last = appliance.with(|state| state.events.last().unwrap().clone());
        assert_eq!(last.file_path(), Some(&phone.path("new\n")));

        // The same command again is answered, not done.
        let again = appliance
            .apply(2, vec![(remove("new\n"), Base::BaseAny(true))])
            .await;
        assert_eq!(again, result);
        assert!(phone.path("new\n").as_path().exists());
        agent.stop().await;
    });
}

#[test]
fn what_the_phone_changed_meanwhile_stands() {
    with_phone(
        "what_the_phone_changed_meanwhile_stands",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            phone.write("file", "one");
            std::fs::create_dir(phone.path("dir")).unwrap();
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let base = entry(&appliance, &phone, "file");
            let directory = entry(&appliance, &phone, "dir");
            phone.write("file", "the user's");
            phone.write("dir/new", "the user's");

            let changes = vec![
                (
                    appliance.offer(&phone.path("file"), b"the operator's", 0o644),
                    base.clone(),
                ),
                (
                    FileChange {
                        path: phone.path("dir"),
                        op: FileOp::Remove,
                    }
                    .into(),
                    directory,
                ),
                (
                    appliance.offer(&phone.path("file"), b"the operator's", 0o644),
                    Base::BaseAbsent(true),
                ),
                (
                    appliance.offer(&phone.path("file"), b"the user's", 0o644),
                    base.clone(),
                ),
            ];
            let result = appliance.apply(1, changes).await;
            use ChangeStatus::{Applied, Conflict};
            assert_eq!(
                statuses(&result),
                [Conflict, Conflict, Conflict, Applied],
                "{result:?}"
            );
            assert_eq!(result.status(), CommandStatus::Partly);
            assert_eq!(std::fs::read(phone.path("file")).unwrap(), b"the user's");
            assert!(phone.path("dir/new").as_path().exists());
            assert_eq!(Base::BaseEntry(result.changes[0].base_entry.clone()), base);
            // The phone's version was told before the conflict was.
            appliance
                .until("the events are there", |state| {
                    (state.acked >= result.at_seq).then_some(())
                })
                .await;
            let told = entry(&appliance, &phone, "file");
            assert_eq!(Base::BaseEntry(result.changes[0].phone_entry.clone()), told);
            agent.stop().await;
        },
    );
}

#[test]
fn nothing_leads_outside_the_roots() {
    with_phone("nothing_leads_outside_the_roots", |phone| async move {
        let appliance = FakeAppliance::start().await;
        let outside = phone.root().with_file_name("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "precious").unwrap();
        symlink(&outside, phone.path("link")).unwrap();
        std::fs::create_dir(phone.path(".cache")).unwrap();
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;

        let outside_path =
            sync_protocol::PhonePath::try_from(outside.join("file").as_path()).unwrap();
        let home = sync_protocol::PhonePath::try_from(phone.root().as_path()).unwrap();
        let changes = vec![
            (
                appliance.offer(&outside_path, b"x", 0o644),
                Base::BaseAny(true),
            ),
            (
                appliance.offer(&phone.path("link/file"), b"x", 0o644),
                Base::BaseAny(true),
            ),
            (
                appliance.offer(&phone.path(".cache/file"), b"x", 0o644),
                Base::BaseAny(true),
            ),
            (
                FileChange {
                    path: home,
                    op: FileOp::Remove,
                }
                .into(),
                Base::BaseAny(true),
            ),
            (
                FileChange {
                    path: phone.path("link"),
                    op: FileOp::Rename { to: outside_path },
                }
                .into(),
                Base::BaseAny(true),
            ),
        ];
        let result = appliance.apply(1, changes).await;
        assert_eq!(statuses(&result), [ChangeStatus::Refused; 5], "{result:?}");
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"precious");

        // Removing the link removes the link.
        let change = FileChange {
            path: phone.path("link"),
            op: FileOp::Remove,
        };
        let result = appliance
            .apply(2, vec![(change.into(), Base::BaseAny(true))])
            .await;
        assert_eq!(statuses(&result), [ChangeStatus::Applied]);
        assert!(
            outside.join("file").exists()
                && phone.path("link").as_path().symlink_metadata().is_err()
        );
        agent.stop().await;
    });
}

#[test]
fn kinds_replace_each_other() {
    with_phone("kinds_replace_each_other", |phone| async move {
        let appliance = FakeAppliance::start().await;
        std::fs::create_dir(phone.path("a")).unwrap();
        phone.write("a/inside", "x");
        phone.write("b", "file");
        phone.write("c", "file");
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        let put = |name: &str, content| {
            let node = sync_protocol::event::Node {
                mode: 0o755,
                uid: 1,
                gid: 2,
                mtime_ns: 5,
                content,
            };
            FileChange {
                path: phone.path(name),
                op: FileOp::Put(node),
            }
            .into()
        };
        let changes = vec![
            (
                appliance.offer(&phone.path("a"), b"now a file", 0o644),
                Base::BaseAny(true),
            ),
            (put("b", Content::Directory), Base::BaseAny(true)),
            (
                put(
                    "c",
                    Content::Symlink {
                        target: b"a".to_vec(),
                    },
                ),
                entry(&appliance, &phone, "c"),
            ),
        ];
        let result = appliance.apply(1, changes).await;
        assert_eq!(statuses(&result), [ChangeStatus::Applied; 3], "{result:?}");
        assert_eq!(std::fs::read(phone.path("a")).unwrap(), b"now a file");
        let metadata = std::fs::metadata(phone.path("b")).unwrap();
        assert_eq!(
            (metadata.is_dir(), metadata.uid(), metadata.gid()),
            (true, 1, 2)
        );
        assert_eq!(
            std::fs::read_link(phone.path("c")).unwrap(),
            std::path::Path::new("a")
        );

        let seq = appliance.root(2).await.seq;
        assert_eq!(seq, result.at_seq, "no echo");
        let listed = appliance.ask(
            3,
            command::Command::List(wire::ListRequest {
                path: sync_protocol::PhonePath::try_from(phone.root().as_path())
                    .unwrap()
                    .to_vec(),
                after: b"a".to_vec(),
            }),
        );
        let names: Vec<Vec<u8>> = listed
            .await
            .entries
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, [b"b", b"c"]);
        agent.stop().await;
    });
}

#[test]
fn leases_are_announced_and_input_needs_one() {
    with_phone(
        "leases_are_announced_and_input_needs_one",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let input = || command::Command::Input(wire::Input { frames: Vec::new() });
            let lease = |on, duration_ms| {
                command::Command::Lease(wire::Lease {
                    on,
                    operator: "Ada".into(),
                    duration_ms,
                })
            };
            assert_eq!(
                appliance.ask(1, input()).await.status(),
                CommandStatus::Refused
            );
            assert_eq!(
                appliance.ask(2, lease(true, 0)).await.status(),
                CommandStatus::Refused
            );
            assert_eq!(
                appliance.ask(3, lease(true, 60_000)).await.status(),
                CommandStatus::Done
            );
            assert!(
                std::fs::read_to_string(phone.lease_file())
                    .unwrap()
                    .contains("Ada")
            );
            // Without /dev/uinput it cannot be done, which is another matter than being refused.
            let expected = if std::path::Path::new("/dev/uinput").exists() {
                CommandStatus::Done
            } else {
                CommandStatus::Failed
            };
            assert_eq!(appliance.ask(4, input()).await.status(), expected);
            assert_eq!(
                appliance.ask(4, input()).await.text,
                "this input was given before"
            );
            assert_eq!(
                appliance.ask(5, lease(true, 1)).await.status(),
                CommandStatus::Done
            );
            appliance
                .until("the lease has ended by itself", |state| {
                    state
                        .events
                        .iter()
                        .any(|event| event.control() == Some(wire::ControlKind::LeaseOff))
                        .then_some(())
                })
                .await;
            assert!(!phone.lease_file().exists());
            agent.stop().await;
        },
    );
}

#[test]
fn chunks_that_lie_break_the_stream_and_nothing_else() {
    with_phone(
        "chunks_that_lie_break_the_stream_and_nothing_else",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let streams = appliance.with(|state| state.streams);
            let change = appliance.offer(&phone.path("file"), b"true", 0o644);
            let lie = wire::ChunkData {
                hash: Hash::of(b"true").to_vec(),
                ..sync_protocol::chunking::pack(Hash::of(b"lie"), b"lie")
            };
            let applied = wire::AppliedChange {
                change: Some(change.clone()),
                base: Some(Base::BaseAny(true)),
            };
            appliance
                .command(
                    1,
                    command::Command::Apply(wire::Apply {
                        changes: vec![applied],
                        chunks: vec![lie],
                    }),
                )
                .await;
            appliance
                .until("a new stream is open", |state| {
                    (state.streams > streams).then_some(())
                })
                .await;
            assert!(!phone.path("file").as_path().exists());
            let result = appliance
                .apply(2, vec![(change, Base::BaseAny(true))])
                .await;
            assert_eq!(statuses(&result), [ChangeStatus::Applied]);
            agent.stop().await;
        },
    );
}
