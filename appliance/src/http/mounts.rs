//! Mounts of flashes on the appliance's own host: for its own command line only.

use std::path::PathBuf;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Services;
use super::error::{ApiError, ApiResult, Body, blocking};
use super::login::Admin;
use crate::identity::Login;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMount {
    /// An absolute path of the appliance's host.
    #[schema(value_type = String)]
    directory: PathBuf,
    /// Of the log; without it the mount follows the phone.
    position: Option<u64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MountView {
    id: u64,
}

/// Mount a phone's flash, read-only, on a directory of the appliance's host. Only for the command line on that host.
#[utoipa::path(post, path = "/api/phones/{phone}/mounts", tag = "files", request_body = NewMount,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = MountView), (status = 403, body = super::ErrorBody)))]
pub(super) async fn add(
    State(services): State<Services>,
    Admin(login): Admin,
    Path(phone): Path<String>,
    Body(new): Body<NewMount>,
) -> ApiResult<MountView> {
    local(&login)?;
    let phone = services.phones.find(&phone)?;
    let mounts = services.mounts.clone();
    let id = blocking(move || mounts.add(&phone, new.position, &new.directory)).await?;
    Ok(Json(MountView { id }))
}

/// Unmount.
#[utoipa::path(delete, path = "/api/mounts/{id}", tag = "files", params(("id" = u64, Path)),
    responses((status = 204), (status = 404, body = super::ErrorBody)))]
pub(super) async fn remove(
    State(services): State<Services>,
    Admin(login): Admin,
    Path(id): Path<u64>,
) -> Result<StatusCode, ApiError> {
    local(&login)?;
    let mounts = services.mounts.clone();
    blocking(move || mounts.remove(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn local(login: &Login) -> Result<(), ApiError> {
    if login.user.as_str() == "local" {
        return Ok(());
    }
    Err(ApiError::forbidden("mounting is for the command line on the appliance's own host"))
}
