//! Logging in and out, and who is asking: the extractors that every other route names its role by.

use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{Client, Services};
use super::error::{ApiError, ApiResult, Body, blocking};
use crate::identity::{Login, Role};

const COOKIE: &str = "pollux_login";

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginRequest {
    user: String,
    password: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LoginReply {
    user: String,
    role: Role,
    /// RFC 3339, UTC.
    expires_at: String,
    /// For programs, as `Authorization: Bearer TOKEN`. Browsers are given a cookie beside it and need not keep it.
    token: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Me {
    user: String,
    role: Role,
    /// RFC 3339, UTC.
    expires_at: String,
}

/// Log in.
#[utoipa::path(post, path = "/api/login", tag = "login", request_body = LoginRequest, security(()), responses(
    (status = 200, body = LoginReply), (status = 401, body = super::ErrorBody), (status = 429, body = super::ErrorBody)))]
pub(super) async fn log_in(
    State(services): State<Services>,
    ConnectInfo(from): ConnectInfo<Client>,
    Body(request): Body<LoginRequest>,
) -> Result<Response, ApiError> {
    let (token, login) = services.logins.log_in(&request.user, &request.password, from.0.ip()).await?;
    let seconds = login.expires.duration_since(std::time::SystemTime::now()).unwrap_or_default().as_secs();
    let cookie = format!("{COOKIE}={token}; Path=/; Max-Age={seconds}; HttpOnly; Secure; SameSite=Strict");
    let me = me(login);
    let reply = LoginReply { user: me.user, role: me.role, expires_at: me.expires_at, token };
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(reply)).into_response())
}

/// Log out.
#[utoipa::path(post, path = "/api/logout", tag = "login", responses((status = 204)))]
pub(super) async fn log_out(State(services): State<Services>, headers: HeaderMap) -> Response {
    if let Some(token) = token_of(&headers) {
        services.logins.log_out(&token);
    }
    let cookie = format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Strict");
    (axum::http::StatusCode::NO_CONTENT, AppendHeaders([(header::SET_COOKIE, cookie)])).into_response()
}

/// Who am I?
#[utoipa::path(get, path = "/api/me", tag = "login", responses((status = 200, body = Me), (status = 401, body = super::ErrorBody)))]
pub(super) async fn who(Anyone(login): Anyone) -> ApiResult<Me> {
    Ok(Json(me(login)))
}

fn me(login: Login) -> Me {
    Me { user: login.user.to_string(), role: login.role, expires_at: super::views::time_of(login.expires) }
}

/// A logged-in user of any role.
pub(super) struct Anyone(pub(super) Login);
/// A help-desk operator or an administrator.
pub(super) struct Operator(pub(super) Login);
/// An administrator.
pub(super) struct Admin(pub(super) Login);
/// Who may see usage reports: an intelligence manager or an administrator.
pub(super) struct Analyst;

impl FromRequestParts<Services> for Anyone {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, ApiError> {
        same_origin(parts)?;
        let token = token_of(&parts.headers).ok_or_else(ApiError::unauthenticated)?;
        let logins = services.logins.clone();
        let login = blocking(move || logins.check(&token)).await?;
        login.map(Anyone).ok_or_else(ApiError::unauthenticated)
    }
}

impl FromRequestParts<Services> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, ApiError> {
        require(parts, services, &[Role::Helpdesk, Role::Admin]).await.map(Operator)
    }
}

impl FromRequestParts<Services> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, ApiError> {
        require(parts, services, &[Role::Admin]).await.map(Admin)
    }
}

impl FromRequestParts<Services> for Analyst {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, ApiError> {
        require(parts, services, &[Role::Mai, Role::Admin]).await.map(|_| Analyst)
    }
}

async fn require(parts: &mut Parts, services: &Services, roles: &[Role]) -> Result<Login, ApiError> {
    let Anyone(login) = Anyone::from_request_parts(parts, services).await?;
    if roles.contains(&login.role) {
        return Ok(login);
    }
    let wanted = roles.iter().map(Role::to_string).collect::<Vec<_>>().join(" or ");
    Err(ApiError::forbidden(format!("this needs the role {wanted}; yours is {}", login.role)))
}

/// Browsers say which page asks. Another site's page may not act, nor open a WebSocket, with our cookie.
fn same_origin(parts: &Parts) -> Result<(), ApiError> {
    let upgrade = parts.headers.contains_key(header::UPGRADE);
    if matches!(parts.method, Method::GET | Method::HEAD) && !upgrade {
        return Ok(());
    }
    let Some(origin) = parts.headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let host = parts.headers.get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    if origin.as_bytes().strip_prefix(b"https://") == Some(host) {
        return Ok(());
    }
    Err(ApiError::forbidden("the request comes from another site's page"))
}

fn token_of(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        return value.to_str().ok()?.strip_prefix("Bearer ").map(str::to_owned);
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, token)| token.to_owned())
}
