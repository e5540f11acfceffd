//! Becoming a phone of an appliance, or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::{TcpListener, TcpStream};

use crate::fake_appliance::{FakeAppliance, PATIENCE, Shows};
use crate::harness::{Phone, run};

#[test]
fn a_code_admits_at_once() {
    run(async {
        let appliance = FakeAppliance::start().await;
        appliance.with(|state| state.codes.insert("1234".into(), None));
        let phone = Phone::new();
        let agent = phone.start_with(sync_agent::config::Flags {
            code: Some("1234".into()),
            ..phone.flags(&appliance)
        });
        appliance
            .until("a stream is open", |state| {
                (state.streams == 1).then_some(())
            })
            .await;
        agent.stop().await;
        assert_eq!(appliance.with(|state| state.registrations), 1);
        assert!(phone.is_admitted(&appliance));

        // Once admitted, the code is not needed again.
        let agent = phone.start_with(phone.flags(&appliance));
        appliance
            .until("a stream is open", |state| {
                (state.streams == 2).then_some(())
            })
            .await;
        agent.stop().await;
        assert_eq!(appliance.with(|state| state.registrations), 1);
    });
}

#[test]
fn wrong_and_used_codes_are_refused_until_there_is_a_right_one() {
    run(async {
        let appliance = FakeAppliance::start().await;
        appliance.with(|state| state.codes.insert("used".into(), Some(vec![1])));
        for (code, refusal) in [("used", "used code"), ("wrong", "wrong code")] {
            let phone = Phone::new();
            let flags = sync_agent::config::Flags {
                code: Some(code.into()),
                ..phone.flags(&appliance)
            };
            let agent = phone.start_with(flags);
            let refusals = |state: &mut crate::fake_appliance::State| {
                (state
                    .refusals
                    .iter()
                    .filter(|message| *message == refusal)
                    .count()
                    >= 2)
                    .then_some(())
            };
            appliance.until("it is refused twice", refusals).await;
            assert!(!phone.is_admitted(&appliance));
            appliance.with(|state| state.codes.insert(code.into(), None));
            let streams = appliance.with(|state| state.streams);
            appliance
                .until("it is admitted", |state| {
                    (state.streams > streams).then_some(())
                })
                .await;
            agent.stop().await;
        }
    });
}

#[test]
fn without_a_code_a_phone_waits_and_nothing_is_captured() {
    run(async {
        let appliance = FakeAppliance::start().await;
        let phone = Phone::new();
        let agent = phone.start_with(phone.flags(&appliance));
        appliance
            .until("it has asked thrice", |state| {
                (state.registrations >= 3).then_some(())
            })
            .await;
        assert_eq!(appliance.with(|state| state.streams), 0);
        assert!(!phone.state().join("journal.db").exists());
        appliance.with(|state| state.released = true);
        appliance
            .until("a stream is open", |state| {
                (state.streams == 1).then_some(())
            })
            .await;
        agent.stop().await;
    });
}

#[test]
fn another_ca_is_not_spoken_to() {
    run(async {
        let (trusted, other) = (FakeAppliance::start().await, FakeAppliance::start().await);
        other.with(|state| state.released = true);
        assert_never_registers(&other, &trusted.ca_fingerprint).await;
    });
}

#[test]
fn a_phone_cannot_pose_as_the_appliance() {
    run(async {
        let posing = FakeAppliance::showing(Shows::Phone).await;
        posing.with(|state| state.released = true);
        assert_never_registers(&posing, &posing.ca_fingerprint).await;
    });
}

/// Starts an agent that trusts `ca`, and sees that it connects but says nothing.
async fn assert_never_registers(appliance: &FakeAppliance, ca: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let (counter, target) = (connections.clone(), appliance.address);
    let (enough, twice) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut enough = Some(enough);
        while let Ok((mut phone, _)) = listener.accept().await {
            // The third connection: the first two have failed.
            if counter.fetch_add(1, Ordering::SeqCst) == 2 {
                enough.take().map(|enough| enough.send(()));
            }
            tokio::spawn(async move {
                let mut line = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut phone, &mut line).await;
            });
        }
    });
    let phone = Phone::new();
    let agent = phone.start_with(sync_agent::config::Flags {
        appliance: Some(address.to_string()),
        ca: Some(ca.into()),
        code: Some("secret".into()),
        ..phone.flags(appliance)
    });
    tokio::time::timeout(PATIENCE, twice)
        .await
        .unwrap()
        .unwrap();
    agent.stop().await;
    assert_eq!(appliance.with(|state| state.registrations), 0);
}
