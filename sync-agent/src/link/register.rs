//! Being admitted: with a code at once, without one when an administrator says so.

use std::time::Duration;

use sync_protocol::PROTOCOL_VERSION;
use sync_protocol::wire::register_reply::Outcome;
use sync_protocol::wire::sync_client::SyncClient;
use sync_protocol::wire::{Pending, RegisterRequest};

use super::backoff::Backoff;
use super::{LinkError, describe, tls};
use crate::config::Config;
use crate::identity::Identity;

const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// What the appliance may ask us to wait.
const RETRY_SHORTEST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// Asks until the phone is admitted. Refusals are asked again, too: an administrator may change their mind.
pub(crate) async fn until_admitted(
    config: &Config,
    identity: &mut Identity,
) -> Result<(), LinkError> {
    let mut backoff = Backoff::default();
    while identity.admission().is_none() {
        let wait = match ask(config, identity).await {
            Ok(None) => break,
            Ok(Some(wait)) => {
                tracing::info!(wait_ms = wait.as_millis() as u64, "waiting to be admitted");
                wait
            }
            Err(error @ LinkError::Identity(crate::identity::IdentityError::File { .. })) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(error = describe(&error), "not admitted");
                backoff.next()
            }
        };
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// Asks once. None: admitted; else when to ask again.
pub(super) async fn ask(
    config: &Config,
    identity: &mut Identity,
) -> Result<Option<Duration>, LinkError> {
    let channel = tls::connect(config, identity, false).await?;
    let request = RegisterRequest {
        protocol_version: PROTOCOL_VERSION,
        csr_der: identity.request()?,
        enrolment_code: config.code.clone(),
        device: Some(config.device.clone()),
    };
    let mut client = SyncClient::new(channel);
    let reply = tokio::time::timeout(REGISTER_TIMEOUT, client.register(request));
    let reply = reply.await.map_err(|_| LinkError::Silence)??.into_inner();
    match reply
        .outcome
        .ok_or_else(|| LinkError::Contract("answer to Register".into()))?
    {
        Outcome::Admitted(admitted) => {
            identity.admit(admitted, &config.ca_fingerprint)?;
            Ok(None)
        }
        Outcome::Pending(Pending { retry_after_ms }) => Ok(Some(
            Duration::from_millis(retry_after_ms.into()).clamp(RETRY_SHORTEST, RETRY_LONGEST),
        )),
    }
}
