//! The link to the appliance: being admitted, then one stream that is opened again whenever it breaks.
//!
//! ```text
//! no certificate --Register--> pending --released--> admitted --Stream--> streaming
//!                                ^ asks again            ^                    | breaks, refused
//!                                                        +---- waits ---------+
//! ```
//!
//! Nothing is kept here that a break could lose: events are in the journal, results of commands too.

mod backoff;
mod commands;
mod register;
mod stream;
mod tls;

use std::error::Error;
use std::sync::Arc;

use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{StdError, http};
use tower::util::BoxCloneService;

use crate::apply::drive::DriveHandle;
use crate::config::Config;
use crate::control_points::files::FilesHandle;
use crate::control_points::mmi::MmiHandle;
use crate::identity::{Identity, IdentityError};
use crate::journal::JournalHandle;
use backoff::Backoff;

pub(crate) use register::until_admitted;
pub use stream::rules_in_force;

/// What the link moves data between.
#[derive(Clone)]
pub struct Ends {
    pub journal: JournalHandle,
    pub files: FilesHandle,
    pub mmi: MmiHandle,
    pub drive: DriveHandle,
}

/// A connection to the appliance: what a call goes into.
pub type Connection = BoxCloneService<http::Request<Body>, http::Response<Body>, CallError>;

/// Why a call did not come through.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CallError(#[from] pub StdError);

/// How the appliance is reached.
pub trait Appliance: Send {
    /// Connects as the phone that was admitted.
    fn connect(&self) -> impl Future<Output = Result<Connection, LinkError>> + Send;
    /// Asks for admission again, because it seems to hold no longer.
    fn ask_again(&mut self) -> impl Future<Output = Result<(), LinkError>> + Send;
}

/// As a phone reaches it: over TLS, with the certificate that it was given.
pub(crate) struct Admitted {
    pub(crate) config: Arc<Config>,
    pub(crate) identity: Identity,
}

impl Appliance for Admitted {
    async fn connect(&self) -> Result<Connection, LinkError> {
        let channel = tls::connect(&self.config, &self.identity, true).await?;
        Ok(BoxCloneService::new(tower::ServiceExt::map_err(channel, |error| CallError(error.into()))))
    }

    async fn ask_again(&mut self) -> Result<(), LinkError> {
        register::ask(&self.config, &mut self.identity).await.map(drop)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot reach the appliance")]
    Transport(#[from] tonic::transport::Error),
    #[error("the appliance refuses: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error("the appliance's {0} breaks the contract")]
    Contract(String),
    #[error("the appliance does not answer")]
    Silence,
    #[error("the appliance ended the stream")]
    Ended,
    #[error("the TLS configuration does not work")]
    Tls(#[from] rustls::Error),
    #[error("cannot keep chunks of a command")]
    Spool(#[source] std::io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
}

impl From<tonic::Status> for LinkError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl LinkError {
    /// The certificate is not taken any more: asking again for admission may help, and costs nothing.
    fn doubts_certificate(&self) -> bool {
        match self {
            Self::Refused(status) if status.code() == Code::Unauthenticated => true,
            _ => chain(self).any(|cause| {
                let alert = cause.downcast_ref::<rustls::Error>();
                let alert = alert.or_else(|| {
                    cause
                        .downcast_ref::<std::io::Error>()?
                        .get_ref()?
                        .downcast_ref()
                });
                matches!(alert, Some(rustls::Error::AlertReceived(_)))
            }),
        }
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| <dyn Error>::source(*error))
}

/// An error with its causes, for the trace.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Streams for as long as the agent runs. Ends only if the journal or the identity fails.
pub async fn run(config: Arc<Config>, mut appliance: impl Appliance, ends: Ends) -> LinkError {
    let mut backoff = Backoff::default();
    let mut session = commands::Session::default();
    loop {
        let error = match stream::run(&config, &appliance, &ends, &mut session, &mut backoff).await {
            Ok(never) => match never {},
            Err(error @ (LinkError::Journal(_) | LinkError::Identity(_))) => return error,
            Err(error) => error,
        };
        // Whoever drove cannot lift what is pressed any more.
        ends.drive.release();
        tracing::warn!(error = describe(&error), "the link is down");
        tokio::time::sleep(backoff.next()).await;
        if error.doubts_certificate() {
            match appliance.ask_again().await {
                Ok(()) => tracing::info!("asked for admission again"),
                Err(error) => tracing::warn!(error = describe(&error), "cannot ask for admission"),
            }
        }
    }
}
