//! What a client is told when something fails: always `{"error": {"code", "message", "advice"}}`.
//!
//! A client gets a safe message; the chain of causes goes to the trace.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;

use crate::chain::Chain;
use crate::identity::{LoginError, UserError};
use crate::commands::CommandError;
use crate::drive::DriveError;
use crate::flashes::FlashesError;
use crate::mounts::MountError;
use crate::phones::PhoneError;
use crate::proof::ProofError;
use crate::search::SearchError;
use crate::twin::{ControlError, TwinError};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ErrorDetail {
    /// For programs; one of `unauthenticated`, `forbidden`, `not_found`, `invalid`, `conflict`, `throttled`, `unavailable`,
    /// `internal`.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// For people: what failed.
    pub message: String,
    /// For people: what they can do about it.
    pub advice: Option<String>,
}

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    detail: ErrorDetail,
    retry_after_s: Option<u64>,
}

pub(super) type ApiResult<T> = Result<Json<T>, ApiError>;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> ApiError {
        let detail = ErrorDetail { code, message: message.to_string(), advice: None };
        ApiError { status, detail, retry_after_s: None }
    }

    pub(super) fn unauthenticated() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", "you are not logged in, or your login has expired")
            .advise("log in")
    }

    pub(super) fn forbidden(message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
            .advise("ask an administrator to do it, or to change your role")
    }

    pub(super) fn not_found(message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn invalid(message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(super) fn conflict(message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "conflict", message)
    }

    pub(super) fn unavailable(message: impl ToString) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// Our own fault, or the host's: the client learns only that much. But of a full disk: an administrator can do something about it.
    pub(super) fn internal(cause: &(dyn std::error::Error + 'static)) -> ApiError {
        error!(cause = %Chain(cause), "request failed");
        if crate::health::is_disk_full(cause) {
            return ApiError::unavailable("the appliance's disk is full").advise("free some space on it, then try again");
        }
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the appliance could not do this")
            .advise("see the appliance's trace for the cause")
    }

    pub(super) fn advise(mut self, advice: impl ToString) -> ApiError {
        self.detail.advice = Some(advice.to_string());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.detail })).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<LoginError> for ApiError {
    fn from(error: LoginError) -> ApiError {
        match error {
            LoginError::Wrong => ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", error)
                .advise("check both; an administrator can set a new password"),
            LoginError::Throttled(wait) => ApiError {
                retry_after_s: Some(wait.as_secs() + 1),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "throttled", error)
            },
            LoginError::Users(error) => error.into(),
            LoginError::Interrupted => ApiError::unavailable(error),
        }
    }
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> ApiError {
        match &error {
            UserError::Name | UserError::Password => ApiError::invalid(error),
            UserError::Exists(_) | UserError::LastAdmin(_) | UserError::Full => ApiError::conflict(error),
            UserError::Unknown(_) => ApiError::not_found(error),
            UserError::Hash(_) | UserError::Records(_) => ApiError::internal(&error),
        }
    }
}

impl From<PhoneError> for ApiError {
    fn from(error: PhoneError) -> ApiError {
        match &error {
            PhoneError::Unknown(_) | PhoneError::CodeUnknown(_) => ApiError::not_found(error),
            PhoneError::Ambiguous(_) | PhoneError::CodesFull => ApiError::conflict(error),
            PhoneError::Records(_) => ApiError::internal(&error),
            _ => ApiError::invalid(error),
        }
    }
}

impl From<crate::log::LogError> for ApiError {
    fn from(error: crate::log::LogError) -> ApiError {
        ApiError::internal(&error)
    }
}

impl From<crate::input::InputError> for ApiError {
    fn from(error: crate::input::InputError) -> ApiError {
        ApiError::invalid(error)
    }
}

impl From<FlashesError> for ApiError {
    fn from(error: FlashesError) -> ApiError {
        match &error {
            FlashesError::NoSuchPath { .. } | FlashesError::Ahead { .. } => ApiError::not_found(error),
            FlashesError::NoDirectory(_) | FlashesError::NoFile(_) | FlashesError::Path(_) => ApiError::invalid(error),
            FlashesError::Image(_) | FlashesError::ImageName(_) | FlashesError::Parked(_) => {
                ApiError::unavailable(error)
            },
            _ => ApiError::internal(&error),
        }
    }
}

impl From<store::StoreError> for ApiError {
    fn from(error: store::StoreError) -> ApiError {
        ApiError::internal(&error)
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> ApiError {
        match error {
            SearchError::Flash(error) => error.into(),
            SearchError::TooLong { .. } | SearchError::Empty(_) => ApiError::invalid(error),
        }
    }
}

impl From<MountError> for ApiError {
    fn from(error: MountError) -> ApiError {
        match error {
            MountError::TooMany => ApiError::conflict(error),
            MountError::Directory(_) => ApiError::invalid(error),
            MountError::Unknown(_) => ApiError::not_found(error),
            MountError::Mount(_) => ApiError::unavailable(Chain(&error)).advise("mounting needs root and /dev/fuse"),
            MountError::Flash(error) => error.into(),
        }
    }
}

impl From<TwinError> for ApiError {
    fn from(error: TwinError) -> ApiError {
        match error {
            TwinError::NotRunning => ApiError::unavailable(error).advise("start the twin first"),
            TwinError::TooMany(_) | TwinError::TooManyForks(_) | TwinError::Incomplete | TwinError::NothingToPark => ApiError::conflict(error),
            TwinError::NotReleased => ApiError::conflict(error).advise("release the phone first"),
            TwinError::NoFork(_) => ApiError::not_found(error),
            TwinError::Flash(error) => error.into(),
            TwinError::Log(error) => error.into(),
            TwinError::Base(_) | TwinError::Process(_) | TwinError::Control(_) | TwinError::Stopping => ApiError::unavailable(error),
        }
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> ApiError {
        match &error {
            CommandError::Send(_) => {
                ApiError::unavailable(error).advise("try again when the phone is connected")
            }
            CommandError::OutboxFull(_) => ApiError::conflict(error),
            _ => ApiError::internal(&error),
        }
    }
}

impl From<ProofError> for ApiError {
    fn from(error: ProofError) -> ApiError {
        match error {
            ProofError::Running | ProofError::TooMany => ApiError::conflict(error).advise("wait for its outcome"),
            ProofError::Command(error) => error.into(),
            ProofError::Log(error) => error.into(),
            ProofError::Flash(error) => error.into(),
            ProofError::Records(_) | ProofError::Store(_) | ProofError::Interrupted => ApiError::internal(&error),
            _ => ApiError::unavailable(error),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> ApiError {
        ApiError::unavailable(error)
    }
}

impl From<DriveError> for ApiError {
    fn from(error: DriveError) -> ApiError {
        match error {
            DriveError::Held(_) => ApiError::conflict(error).advise("ask them to give the lead back, or wait until the lease ends"),
            DriveError::NotYours => ApiError::conflict(error).advise("take the lead first"),
            DriveError::Congested => ApiError::unavailable(error),
            DriveError::NoConflict(_) => ApiError::not_found(error),
            DriveError::Twin(error) => error.into(),
            DriveError::Command(error) => error.into(),
            DriveError::Flash(error) => error.into(),
            DriveError::Records(_) | DriveError::Log(_) | DriveError::Interrupted => ApiError::internal(&error),
        }
    }
}

impl From<axum::extract::rejection::JsonRejection> for ApiError {
    fn from(rejection: axum::extract::rejection::JsonRejection) -> ApiError {
        ApiError::invalid(rejection.body_text())
    }
}

impl From<axum::extract::rejection::QueryRejection> for ApiError {
    fn from(rejection: axum::extract::rejection::QueryRejection) -> ApiError {
        ApiError::invalid(rejection.body_text())
    }
}

/// Runs `work` on a thread that may block. A panic in it is ours to answer for, not the client's to see.
pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// [`axum::Json`] whose rejection is an [`ApiError`].
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> axum::extract::FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, ApiError> {
        let Json(body) = Json::<T>::from_request(request, state).await?;
        Ok(Body(body))
    }
}

/// [`axum::extract::Query`] whose rejection is an [`ApiError`].
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> axum::extract::FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let axum::extract::Query(query) = axum::extract::Query::<T>::from_request_parts(parts, state).await?;
        Ok(Query(query))
    }
}
