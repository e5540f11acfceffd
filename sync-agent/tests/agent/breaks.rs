//! The link breaks, lies, and cuts messages short; the appliance has every event once and in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sync_protocol::wire::appliance_message::Message;
use sync_protocol::wire::{Ack, ApplianceMessage, Command, NeedChunks, Welcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fake_appliance::{FakeAppliance, Poison};
use crate::harness::{assert_in_step, with_phone};

#[test]
fn a_break_at_any_message_loses_and_repeats_nothing() {
    with_phone(
        "a_break_at_any_message_loses_and_repeats_nothing",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let mut commands = 0;
            for fuse in 0..12 {
                appliance.with(|state| state.fuse = Some(fuse));
                for index in 0..8 {
                    phone.write(
                        format!("f{fuse}-{index}"),
                        format!("{fuse} {index}").repeat(5000 * index + 1),
                    );
                }
                std::fs::rename(
                    phone.path(format!("f{fuse}-3")),
                    phone.path(format!("r{fuse}")),
                )
                .unwrap();
                // Questions and answers are messages, too, so the fuse blows in the end.
                while appliance.with(|state| state.fuse.is_some()) {
                    commands += 1;
                    assert_in_step(&phone, &appliance, commands).await;
                }
                commands += 1;
                assert_in_step(&phone, &appliance, commands).await;
            }
            agent.stop().await;
        },
    );
}

#[test]
fn messages_that_break_the_contract_cost_a_stream_only() {
    with_phone(
        "messages_that_break_the_contract_cost_a_stream_only",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            let agent = phone.start(&appliance);
            appliance.until_scanned(0).await;
            let message = |message| ApplianceMessage {
                message: Some(message),
            };
            let poisons = [
                Poison::InsteadOfWelcome(ApplianceMessage { message: None }),
                Poison::InsteadOfWelcome(message(Message::Ack(Ack { seq: 1 }))),
                Poison::AfterWelcome(ApplianceMessage { message: None }),
                Poison::AfterWelcome(message(Message::Ack(Ack { seq: u64::MAX }))),
                Poison::AfterWelcome(message(Message::NeedChunks(NeedChunks {
                    hashes: vec![vec![1; 31]],
                }))),
                Poison::AfterWelcome(message(Message::NeedChunks(NeedChunks {
                    hashes: vec![vec![1; 32]; 4097],
                }))),
                Poison::AfterWelcome(message(Message::Welcome(Welcome::default()))),
            ];
            for (index, poison) in poisons.into_iter().enumerate() {
                let streams = appliance.with(|state| {
                    state.poison = Some(poison);
                    state.fuse = Some(0);
                    state.streams
                });
                phone.write("file", format!("{index}"));
                // One stream breaks by the fuse, one by the poison; the third is sound.
                appliance
                    .until("it has recovered", |state| {
                        (state.streams >= streams + 2).then_some(())
                    })
                    .await;
                assert_in_step(&phone, &appliance, index as u64 + 1).await;
            }
            // A command that is none is refused, no more.
            let line = Command {
                id: 99,
                command: None,
            };
            appliance.with(|state| {
                state.poison = Some(Poison::AfterWelcome(message(Message::Command(line))));
                state.fuse = Some(0);
            });
            phone.write("file", "last");
            let refused = appliance
                .until("the refusal", |state| state.results.get(&99).cloned())
                .await;
            assert_eq!(refused.text, "the command is empty or unknown");
            agent.stop().await;
        },
    );
}

#[test]
fn bytes_that_are_cut_or_changed_on_the_way_cost_a_connection_only() {
    with_phone(
        "bytes_that_are_cut_or_changed_on_the_way_cost_a_connection_only",
        |phone| async move {
            let appliance = FakeAppliance::start().await;
            appliance.with(|state| state.released = true);
            let faults = Arc::new(AtomicU64::new(0));
            let address = faulty_line(appliance.address, faults.clone()).await;
            let flags = sync_agent::config::Flags {
                appliance: Some(address.to_string()),
                ..phone.flags(&appliance)
            };
            phone.write("first", vec![3; 200_000]);
            let agent = phone.start_with(flags);
            appliance.until_scanned(0).await;
            assert_in_step(&phone, &appliance, 1).await;
            assert!(faults.load(Ordering::SeqCst) >= 3);
            agent.stop().await;
        },
    );
}

/// Bytes towards the phone after which its first connections go wrong: in the handshake, in the answer to Register, and
/// in the stream. More would only make it wait longer and longer.
const FAULTS: [usize; 5] = [150, 900, 1500, 2100, 2600];

/// A line whose first connections are cut, or have a byte changed, after ever more bytes towards the phone.
async fn faulty_line(target: std::net::SocketAddr, faults: Arc<AtomicU64>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut phone, _) = listener.accept().await.unwrap();
            let mut line = TcpStream::connect(target).await.unwrap();
            let Some(mut left) = FAULTS.get(connection).copied() else {
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut phone, &mut line).await;
                });
                continue;
            };
            faults.fetch_add(1, Ordering::SeqCst);
            let (mut from_phone, mut to_phone) = phone.into_split();
            let (mut from_appliance, mut to_appliance) = line.into_split();
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_phone, &mut to_appliance).await;
            });
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = from_appliance.read(&mut buffer).await {
                    let is_fault = length >= left;
                    if is_fault && connection % 2 == 0 {
                        let _ = to_phone.write_all(&buffer[..left]).await;
                        return;
                    }
                    if is_fault {
                        buffer[left - 1] ^= 0x40;
                        left = usize::MAX;
                    }
                    left = left.saturating_sub(length);
                    if to_phone.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
