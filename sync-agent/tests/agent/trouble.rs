//! Disks fill up, databases rot, appliances forget: nothing is lost silently.

use sync_protocol::wire::ControlKind;

use crate::fake_appliance::{EventExt, FakeAppliance};
use crate::harness::{assert_in_step, with_phone};

#[test]
fn a_full_journal_waits_for_the_appliance() {
    with_phone(
        "a_full_journal_waits_for_the_appliance",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            appliance.with(|state| state.holds_acks = true);
            let flags = sync_agent::config::Flags {
                journal_mib: Some(16),
                ..phone.flags(&appliance)
            };
            appliance.with(|state| state.released = true);
            let agent = phone.start_with(flags);
            // Three times what the journal may hold, and nothing that compresses.
            for index in 0..40 {
                let noise: Vec<u8> = (0..1_200_000).map(|_| rand::random()).collect();
                phone.write(format!("f{index}"), noise);
            }
            appliance
                .until("the journal is full", |state| {
                    (state.chunks.len() > 300).then_some(())
                })
                .await;
            let journal = phone.state().join("journal.db").metadata().unwrap().len();
            assert!(journal <= 17 * 1024 * 1024, "{journal}");
            appliance.with(|state| state.holds_acks = false);
            // Something has to move for the withheld acknowledgement to be sent.
            let streams = appliance.with(|state| {
                state.fuse = Some(0);
                state.streams
            });
            appliance
                .command(
                    1,
                    sync_protocol::wire::command::Command::List(Default::default()),
                )
                .await;
            appliance
                .until("a new stream", |state| {
                    (state.streams > streams).then_some(())
                })
                .await;
            assert_in_step(&phone, &appliance, 2).await;
            agent.stop().await;
        },
    );
}

#[test]
fn a_full_disk_is_survived_and_reported() {
    with_phone("a_full_disk_is_survived_and_reported", |phone| async move {
        let appliance = FakeAppliance::start().await;
        phone.mount_tmpfs(&phone.state(), "16m");
        let agent = phone.start(&appliance);
        appliance.until_scanned(0).await;
        let before = appliance.with(|state| state.events.len());
        let hog = phone.state().join("hog");
        fill(&hog);
        // More than the journal's files have room for already.
        for index in 0..6 {
            let noise: Vec<u8> = (0..1_000_000).map(|_| rand::random()).collect();
            phone.write(format!("f{index}"), noise);
        }
        // The agent is still there, and answers what needs no room.
        let listed = sync_protocol::wire::ListRequest {
            path: b"/".to_vec(),
            after: Vec::new(),
        };
        appliance
            .ask(1, sync_protocol::wire::command::Command::List(listed))
            .await;
        std::fs::remove_file(&hog).unwrap();
        std::fs::remove_file(phone.path("f0")).unwrap();
        for name in ["f1", "f2"] {
            std::fs::remove_file(phone.path(name)).unwrap();
        }
        appliance
            .until("it is reported", |state| {
                let mut after = state.events[before..].iter();
                after
                    .any(|event| event.control() == Some(ControlKind::JournalTrouble))
                    .then_some(())
            })
            .await;
        assert_in_step(&phone, &appliance, 2).await;
        agent.stop().await;
    });
}

fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for block in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}

#[test]
fn a_damaged_journal_is_put_aside_and_everything_told_again() {
    with_phone(
        "a_damaged_journal_is_put_aside_and_everything_told_again",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            phone.write("file", "contents");
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            agent.stop().await;
            let first_id = appliance.with(|state| state.journal_id.clone());

            let path = phone.state().join("journal.db");
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes[2048..end].fill(0xa5);
            std::fs::write(&path, bytes).unwrap();
            phone.write("other", "more");
            let agent = phone.start(&appliance);
            appliance
                .until("a new journal", |state| {
                    (state.journal_id != first_id).then_some(())
                })
                .await;
            appliance.until_scanned(0).await;
            assert_in_step(&phone, &appliance, 1).await;
            appliance.with(|state| {
                assert!(
                    state
                        .events
                        .iter()
                        .any(|event| event.control() == Some(ControlKind::JournalTrouble))
                );
            });
            assert!(phone.state().join("journal.damaged").exists());
            agent.stop().await;
        },
    );
}

#[test]
fn an_appliance_that_lost_its_log_is_told_everything_again() {
    with_phone(
        "an_appliance_that_lost_its_log_is_told_everything_again",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            phone.write("file", "contents");
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let first_id = appliance.with(|state| {
                state.events.clear();
                state.chunks.clear();
                state.acked = 0;
                state.fuse = Some(0);
                state.journal_id.clone()
            });
            phone.write("other", "more");
            appliance
                .until("a new journal", |state| {
                    (state.journal_id != first_id).then_some(())
                })
                .await;
            appliance.until_scanned(0).await;
            assert_in_step(&phone, &appliance, 1).await;
            agent.stop().await;
        },
    );
}
