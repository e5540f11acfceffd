//! Twins: start, park, resume, stop, and a picture of their screen.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use store::PhoneId;

use super::Services;
use super::error::{ApiError, ApiResult, Body};
use super::login::{Anyone, Operator};
use super::views::time_of_us;
use crate::phones::Standing;
use crate::twin::control::Screen;
use crate::twin::{Fork, TwinState};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TwinView {
    state: TwinState,
    since: Option<String>,
    /// Why it is as it is, for people; empty when all is well.
    detail: String,
    /// Last event of the phone's log that reached the twin.
    position: u64,
    /// How often it was started again after a crash.
    restarts: u32,
    /// Its process on the appliance.
    pid: Option<u32>,
    /// What its machine runs on while it does, and if that is slow, why.
    cpu: Option<String>,
    /// How its machine ended last, if it ever did by itself since the appliance started.
    last_end: Option<EndView>,
    /// Its copies that run.
    forks: Vec<ForkView>,
}

/// A copy of a running twin, to try things on.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ForkView {
    number: u32,
    /// When it was made.
    at: String,
    /// Last event of the phone's log that its twin had been given then.
    position: u64,
}

impl From<Fork> for ForkView {
    fn from(fork: Fork) -> ForkView {
        ForkView { number: fork.number, at: time_of_us(fork.at_us), position: fork.position }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct EndView {
    at: String,
    how: String,
    /// The last lines of its guest's serial console.
    last_words: String,
}

impl TwinView {
    pub(super) fn of(services: &Services, phone: &PhoneId) -> TwinView {
        let status = services.twins.status(phone);
        TwinView {
            state: status.state,
            since: (status.since_us > 0).then(|| time_of_us(status.since_us)),
            detail: status.detail,
            position: services.replays.progress(phone).fed,
            restarts: status.restarts,
            pid: status.pid,
            cpu: status.running.map(|running| running.cpu),
            last_end: status.last_end.map(|end| EndView {
                at: time_of_us(end.at_us),
                how: end.how,
                last_words: end.last_words,
            }),
            forks: services.twins.forks(phone).into_iter().map(ForkView::from).collect(),
        }
    }
}

/// A phone's twin.
#[utoipa::path(get, path = "/api/phones/{phone}/twin", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = TwinView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn show(State(services): State<Services>, _: Anyone, Path(phone): Path<String>) -> ApiResult<TwinView> {
    let phone = services.phones.find(&phone)?.id;
    Ok(Json(TwinView::of(&services, &phone)))
}

/// Start the twin, or resume it where it was parked.
#[utoipa::path(post, path = "/api/phones/{phone}/twin/start", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = TwinView), (status = 409, body = super::ErrorBody), (status = 503, body = super::ErrorBody)))]
pub(super) async fn start(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> ApiResult<TwinView> {
    let phone = services.phones.find(&phone)?;
    if phone.standing != Standing::Released {
        return Err(ApiError::conflict("the phone is in quarantine: no twin runs for it").advise("release it first"));
    }
    services.twins.start(&phone.id).await?;
    Ok(Json(TwinView::of(&services, &phone.id)))
}

/// Park the twin: its machine is saved and its process ends.
#[utoipa::path(post, path = "/api/phones/{phone}/twin/park", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = TwinView), (status = 409, body = super::ErrorBody)))]
pub(super) async fn park(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> ApiResult<TwinView> {
    let phone = services.phones.find(&phone)?.id;
    services.twins.park(&phone).await?;
    Ok(Json(TwinView::of(&services, &phone)))
}

/// Stop the twin: its process ends and its machine is forgotten; the next start boots anew.
#[utoipa::path(post, path = "/api/phones/{phone}/twin/stop", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = TwinView), (status = 409, body = super::ErrorBody)))]
pub(super) async fn stop(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> ApiResult<TwinView> {
    let phone = services.phones.find(&phone)?.id;
    services.twins.stop(&phone).await?;
    Ok(Json(TwinView::of(&services, &phone)))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForkWanted {
    /// Of the log: the fork begins with the phone's files as of then. Absent: it is a copy of the running twin.
    position: Option<u64>,
}

/// Fork the twin: a machine on which anything may be tried, a copy of the running twin or one that begins at a position of the log. The twin goes
/// on, and nothing of the fork is kept.
#[utoipa::path(post, path = "/api/phones/{phone}/twin/forks", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    request_body = ForkWanted,
    responses((status = 200, body = ForkView), (status = 404, body = super::ErrorBody), (status = 409, body = super::ErrorBody),
        (status = 503, body = super::ErrorBody)))]
pub(super) async fn fork(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    Body(wanted): Body<ForkWanted>,
) -> ApiResult<ForkView> {
    let phone = services.phones.find(&phone)?.id;
    Ok(Json(services.twins.fork(&phone, wanted.position).await?.into()))
}

/// End a fork.
#[utoipa::path(delete, path = "/api/phones/{phone}/twin/forks/{number}", tag = "twins",
    params(("phone" = String, Path, description = "id or serial"), ("number" = u32, Path, description = "of the fork")),
    responses((status = 204), (status = 404, body = super::ErrorBody)))]
pub(super) async fn end_fork(
    State(services): State<Services>,
    _: Operator,
    Path((phone, number)): Path<(String, u32)>,
) -> Result<StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    services.twins.end_fork(&phone, number)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A fork's screen as it is now.
#[utoipa::path(get, path = "/api/phones/{phone}/twin/forks/{number}/screen.png", tag = "twins",
    params(("phone" = String, Path, description = "id or serial"), ("number" = u32, Path, description = "of the fork")),
    responses((status = 200, content_type = "image/png", body = Vec<u8>), (status = 404, body = super::ErrorBody)))]
pub(super) async fn fork_picture(
    State(services): State<Services>,
    _: Operator,
    Path((phone, number)): Path<(String, u32)>,
) -> Result<impl IntoResponse, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    Ok(png(services.twins.a_fork(&phone, number)?.running.control.screen_png().await?))
}

/// The twin's screen as it is now.
#[utoipa::path(get, path = "/api/phones/{phone}/twin/screen.png", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, content_type = "image/png", body = Vec<u8>), (status = 503, body = super::ErrorBody)))]
pub(super) async fn picture(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    Ok(png(services.twins.control(&phone)?.screen_png().await?))
}

fn png(screen: Screen) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], screen.png)
}

/// The last output of the twin's serial console.
#[utoipa::path(get, path = "/api/phones/{phone}/twin/console", tag = "twins",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, content_type = "text/plain", body = String), (status = 503, body = super::ErrorBody)))]
pub(super) async fn console(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
) -> Result<String, ApiError> {
    let phone = services.phones.find(&phone)?.id;
    Ok(services.twins.console(&phone).await?)
}
