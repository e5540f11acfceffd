//! What happens to files reaches the appliance.

use std::os::unix::fs::{PermissionsExt, symlink};

use sync_protocol::event::{FileOp, Kind};

use crate::fake_appliance::{EventExt, FakeAppliance};
use crate::harness::{assert_in_step, with_phone};

#[test]
fn the_first_scan_describes_everything() {
    with_phone("the_first_scan_describes_everything", |phone| async move {
        let appliance = FakeAppliance::start().await;
        phone.write("note", "hello");
        phone.write("empty", "");
        phone.write("big", vec![7; 3_000_000]);
        std::fs::create_dir_all(phone.path("a/b/c")).unwrap();
        phone.write("a/b/c/deep", "x");
        phone.write(b"new\nline \xff\xfe", "bytes");
        symlink("/nowhere/\n", phone.path("link")).unwrap();
        std::fs::create_dir(phone.path(".cache")).unwrap();
        phone.write(".cache/secret", "no");
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        assert_in_step(&phone, &appliance, 1).await;
        appliance.with(|state| {
            assert!(
                !state
                    .events
                    .iter()
                    .any(|event| event.file_path() == Some(&phone.path(".cache")))
            );
            let done = state.events.iter().position(EventExt::ends_scan).unwrap();
            assert_eq!(
                state.events[..done]
                    .iter()
                    .filter(|event| event.file_path().is_some())
                    .count(),
                10
            );
        });
        agent.stop().await;
    });
}

#[test]
fn every_kind_of_change_is_noticed() {
    with_phone("every_kind_of_change_is_noticed", |phone| async move {
        let appliance = FakeAppliance::start().await;
        phone.write("kept", "1");
        phone.write("removed", "2");
        std::fs::create_dir(phone.path("dir")).unwrap();
        for index in 0..20 {
            phone.write(format!("dir/{index}"), format!("contents {index}"));
        }
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        let before = appliance.with(|state| state.events.len());

        phone.write("kept", "changed");
        std::fs::remove_file(phone.path("removed")).unwrap();
        phone.write(b"\xff new\n", "created");
        std::fs::create_dir_all(phone.path("x/y")).unwrap();
        phone.write("x/y/z", "deep");
        std::fs::set_permissions(phone.path("x"), PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(phone.path("x/y/z"), Some(1000), Some(1000)).unwrap();
        symlink("kept", phone.path("link")).unwrap();
        std::fs::rename(phone.path("dir"), phone.path("moved")).unwrap();
        phone.write("kept.tmp", "replaced by rename");
        std::fs::rename(phone.path("kept.tmp"), phone.path("kept")).unwrap();
        assert_in_step(&phone, &appliance, 1).await;

        appliance.with(|state| {
            let events = &state.events[before..];
            let is_rename = |kind: &Kind| {
                matches!(kind, Kind::File(change) if change.path == phone.path("dir")
                && change.op == FileOp::Rename { to: phone.path("moved") })
            };
            assert!(
                events.iter().any(|event| is_rename(&event.kind)),
                "{events:#?}"
            );
            let moved = |event: &&_| {
                EventExt::file_path(*event).is_some_and(|path| path.is_within(&phone.path("moved")))
            };
            assert_eq!(
                events.iter().filter(moved).count(),
                0,
                "a moved directory is not described again"
            );
        });

        std::fs::remove_dir_all(phone.path("moved")).unwrap();
        std::fs::remove_file(phone.path("link")).unwrap();
        std::fs::create_dir(phone.path("link")).unwrap();
        phone.write("link/inside", "a directory where a link was");
        assert_in_step(&phone, &appliance, 2).await;
        std::fs::remove_dir_all(phone.root()).unwrap();
        assert_in_step_without_root(&appliance, 3).await;
        std::fs::create_dir(phone.root()).unwrap();
        phone.write("again", "here");
        assert_in_step(&phone, &appliance, 4).await;
        agent.stop().await;
    });
}

async fn assert_in_step_without_root(appliance: &FakeAppliance, command_id: u64) {
    appliance.root(command_id).await;
    appliance.with(|state| assert!(state.tree().is_empty()));
}

#[test]
fn a_burst_of_a_thousand_changes_is_followed() {
    with_phone(
        "a_burst_of_a_thousand_changes_is_followed",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            for index in 0..1000 {
                let directory = format!("d{}", index % 17);
                std::fs::create_dir_all(phone.path(&directory)).unwrap();
                phone.write(
                    format!("{directory}/f{index}"),
                    format!("{index}").repeat(index),
                );
                match index % 5 {
                    0 => std::fs::rename(
                        phone.path(format!("{directory}/f{index}")),
                        phone.path(format!("r{index}")),
                    )
                    .unwrap(),
                    1 => std::fs::remove_file(phone.path(format!("{directory}/f{index}"))).unwrap(),
                    2 if index % 34 == 2 => {
                        std::fs::rename(phone.path(&directory), phone.path(format!("old{index}")))
                            .unwrap();
                    }
                    _ => {}
                }
            }
            assert_in_step(&phone, &appliance, 1).await;
            agent.stop().await;
        },
    );
}

#[test]
fn more_changes_than_the_kernel_remembers_are_found_by_a_scan() {
    with_phone(
        "more_changes_than_the_kernel_remembers_are_found_by_a_scan",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            // The kernel's queue holds 16384 notices, and each file makes its own.
            for index in 0..20_000 {
                phone.write(format!("f{index}"), "");
            }
            assert_in_step(&phone, &appliance, 1).await;
            agent.stop().await;
        },
    );
}

#[test]
fn what_happened_while_the_agent_was_down_is_found() {
    with_phone(
        "what_happened_while_the_agent_was_down_is_found",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            phone.write("removed", "1");
            phone.write("changed", "2");
            phone.write("same", "3");
            phone.write("renamed", "4");
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            agent.stop().await;
            let before = appliance.with(|state| state.events.len());

            std::fs::remove_file(phone.path("removed")).unwrap();
            phone.write("changed", "two");
            std::fs::rename(phone.path("renamed"), phone.path("new name")).unwrap();
            std::fs::create_dir(phone.path("dir")).unwrap();
            phone.write("dir/new", "5");
            let agent = phone.start(&appliance);
            appliance.until_scanned(before).await;
            assert_in_step(&phone, &appliance, 1).await;
            appliance.with(|state| {
                let again = state.events[before..]
                    .iter()
                    .any(|event| event.file_path() == Some(&phone.path("same")));
                assert!(!again, "what has not changed is not described again");
            });
            agent.stop().await;
        },
    );
}

#[test]
fn rules_move_the_roots() {
    with_phone("rules_move_the_roots", |phone| async move {
        let appliance = FakeAppliance::start().await;
        for name in ["a", "b"] {
            std::fs::create_dir(phone.path(name)).unwrap();
            phone.write(format!("{name}/file"), name);
        }
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        let before = appliance.with(|state| state.events.len());
        let excludes = vec![phone.path("b").to_vec()];
        appliance.with(|state| {
            state.rules = Some(sync_protocol::wire::Rules {
                version: 1,
                excludes,
                ..Default::default()
            });
        });
        agent.stop().await;
        let agent = phone.start(&appliance);
        appliance.until_scanned(before).await;
        appliance.root(1).await;
        phone.write("b/file", "not captured any more");
        phone.write("a/file", "captured");
        let root = appliance.root(2).await;
        assert_eq!(root.rules_version, 1);
        assert!(root.excludes.contains(&phone.path("b").to_vec()));
        appliance.with(|state| {
            let events: Vec<_> = state.events[before..]
                .iter()
                .filter_map(|event| event.file_path())
                .collect();
            assert_eq!(events, [&phone.path("a/file")]);
        });
        agent.stop().await;
    });
}
