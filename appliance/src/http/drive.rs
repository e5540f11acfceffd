//! Drive: the lease by which one operator leads, input through the API, and conflicts.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Services;
use super::error::{ApiError, ApiResult, Body, blocking};
use super::login::Operator;
use super::views::{encode, time_of, time_of_us};
use crate::drive::{Conflict, Lease};
use crate::input::InputRequest;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LeaseView {
    operator: String,
    since: String,
    /// It ends then unless it is renewed.
    expires_at: String,
}

impl From<Lease> for LeaseView {
    fn from(lease: Lease) -> LeaseView {
        LeaseView {
            operator: lease.operator.to_string(),
            since: time_of(lease.since),
            expires_at: time_of(lease.expires),
        }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ConflictList {
    conflicts: Vec<ConflictView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ConflictView {
    id: u64,
    at: String,
    /// Percent-encoded bytes.
    path: String,
    /// Position in the log of help-desk's version, which did not reach the phone. `files/content?path=..&position=..` gives it.
    our_position: u64,
    /// What the phone said; the phone's version stands.
    text: String,
    dismissed: bool,
}

impl From<Conflict> for ConflictView {
    fn from(conflict: Conflict) -> ConflictView {
        ConflictView {
            id: conflict.id,
            at: time_of_us(conflict.at_us),
            path: encode(&conflict.path),
            our_position: conflict.our_position,
            text: conflict.text,
            dismissed: conflict.dismissed,
        }
    }
}

/// Take the lead, or keep it: makes or renews the lease of the asking user.
#[utoipa::path(put, path = "/api/phones/{phone}/drive", tag = "drive",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = LeaseView), (status = 409, body = super::ErrorBody)))]
pub(super) async fn take(
    State(services): State<Services>,
    Operator(login): Operator,
    Path(phone): Path<String>,
) -> ApiResult<LeaseView> {
    let phone = services.phones.find(&phone)?.id;
    let lease = services.drive.take(&phone, &login.user).await?;
    Ok(Json(lease.into()))
}

/// Give the lead back to the phone.
#[utoipa::path(delete, path = "/api/phones/{phone}/drive", tag = "drive",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 204), (status = 409, body = super::ErrorBody)))]
pub(super) async fn give_back(
    State(services): State<Services>,
    Operator(login): Operator,
    Path(phone): Path<String>,
) -> Result<StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    services.drive.give_back(&phone, &login.user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Operate the twin, and through it the phone; needs the lease.
#[utoipa::path(post, path = "/api/phones/{phone}/drive/input", tag = "drive", request_body = InputRequest,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 204), (status = 400, body = super::ErrorBody), (status = 409, body = super::ErrorBody)))]
pub(super) async fn input(
    State(services): State<Services>,
    Operator(login): Operator,
    Path(phone): Path<String>,
    Body(request): Body<InputRequest>,
) -> Result<StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    let frames = request.frames().map_err(ApiError::invalid)?;
    services.drive.input(&phone, &login.user, frames).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Paths that phone and help-desk changed differently, newest first.
#[utoipa::path(get, path = "/api/phones/{phone}/conflicts", tag = "drive",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = ConflictList), (status = 404, body = super::ErrorBody)))]
pub(super) async fn conflicts(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> ApiResult<ConflictList> {
    let phone = services.phones.find(&phone)?.id;
    let drive = services.drive.clone();
    let conflicts = blocking(move || drive.conflicts(&phone)).await?;
    Ok(Json(ConflictList { conflicts: conflicts.into_iter().map(ConflictView::from).collect() }))
}

#[derive(Debug, Deserialize)]
pub(super) struct ConflictPath {
    phone: String,
    id: u64,
}

/// Dismiss a conflict: somebody has looked at it.
#[utoipa::path(delete, path = "/api/phones/{phone}/conflicts/{id}", tag = "drive",
    params(("phone" = String, Path, description = "id or serial"), ("id" = u64, Path)),
    responses((status = 204), (status = 404, body = super::ErrorBody)))]
pub(super) async fn dismiss(
    State(services): State<Services>,
    _: Operator,
    Path(ConflictPath { phone, id }): Path<ConflictPath>,
) -> Result<StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    let drive = services.drive.clone();
    blocking(move || drive.dismiss(&phone, id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
