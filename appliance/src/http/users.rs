//! Users: administrators make, change and remove them; everybody changes their own password.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Client, Services};
use super::error::{ApiError, ApiResult, Body, blocking};
use super::login::{Admin, Anyone};
use super::views::time_of_us;
use crate::identity::{Role, User, UserName};
use crate::live::Notice;
use crate::phones::now_us;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct UserView {
    name: String,
    role: Role,
    created_at: String,
}

impl From<User> for UserView {
    fn from(user: User) -> UserView {
        UserView { name: user.name.to_string(), role: user.role, created_at: time_of_us(user.created_us) }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct UserList {
    users: Vec<UserView>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    name: String,
    role: Role,
    /// At least 10 characters.
    password: String,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserChange {
    role: Option<Role>,
    /// At least 10 characters.
    password: Option<String>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordChange {
    old: String,
    /// At least 10 characters.
    new: String,
}

/// All users.
#[utoipa::path(get, path = "/api/users", tag = "users", responses((status = 200, body = UserList)))]
pub(super) async fn list(State(services): State<Services>, _: Admin) -> ApiResult<UserList> {
    let logins = services.logins.clone();
    let users = blocking(move || logins.users().list()).await?;
    Ok(Json(UserList { users: users.into_iter().map(UserView::from).collect() }))
}

/// Make a user.
#[utoipa::path(post, path = "/api/users", tag = "users", request_body = NewUser,
    responses((status = 200, body = UserView), (status = 409, body = super::ErrorBody)))]
pub(super) async fn add(State(services): State<Services>, _: Admin, Body(new): Body<NewUser>) -> ApiResult<UserView> {
    let name = UserName::try_from(new.name)?;
    if name.as_str() == "local" {
        return Err(ApiError::conflict("the name local stands for the appliance's own command line"));
    }
    let logins = services.logins.clone();
    let user = blocking(move || logins.users().add(name, new.role, &new.password, now_us())).await?;
    services.live.tell(Notice::Settings);
    Ok(Json(user.into()))
}

/// Change a user's role, password or both. Their logins end.
#[utoipa::path(patch, path = "/api/users/{name}", tag = "users", request_body = UserChange,
    params(("name" = String, Path)), responses((status = 200, body = UserView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn change(
    State(services): State<Services>,
    _: Admin,
    Path(name): Path<String>,
    Body(change): Body<UserChange>,
) -> ApiResult<UserView> {
    let name = UserName::try_from(name)?;
    let logins = services.logins.clone();
    let user =
        blocking(move || logins.users().change(&name, change.role, change.password.as_deref())).await?;
    services.live.tell(Notice::Settings);
    Ok(Json(user.into()))
}

/// Remove a user. Their logins end.
#[utoipa::path(delete, path = "/api/users/{name}", tag = "users", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = super::ErrorBody), (status = 409, body = super::ErrorBody)))]
pub(super) async fn remove(
    State(services): State<Services>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = UserName::try_from(name)?;
    let logins = services.logins.clone();
    blocking(move || logins.users().remove(&name)).await?;
    services.live.tell(Notice::Settings);
    Ok(StatusCode::NO_CONTENT)
}

/// Change my own password. All my logins end.
#[utoipa::path(post, path = "/api/me/password", tag = "login", request_body = PasswordChange,
    responses((status = 204), (status = 401, body = super::ErrorBody)))]
pub(super) async fn change_own_password(
    State(services): State<Services>,
    ConnectInfo(from): ConnectInfo<Client>,
    Anyone(login): Anyone,
    Body(change): Body<PasswordChange>,
) -> Result<StatusCode, ApiError> {
    // Through the throttled door, so that a stolen login cannot guess the password.
    services.logins.log_in(login.user.as_str(), &change.old, from.0.ip()).await?;
    let logins = services.logins.clone();
    blocking(move || logins.users().change(&login.user, None, Some(&change.new))).await?;
    Ok(StatusCode::NO_CONTENT)
}
