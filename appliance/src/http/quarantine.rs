//! Quarantine and enrolment codes: who gets in, and by whose hand.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Services;
use super::error::{ApiError, ApiResult, Body, blocking};
use super::login::Admin;
use super::phones::PhoneView;
use super::views::time_of_us;
use crate::live::Notice;
use crate::phones::{Code, now_us};

/// Longest lifetime of a code: one that is a year old is forgotten somewhere.
const CODE_HOURS_MAX: u32 = 24 * 365;
const CODE_HOURS_DEFAULT: u32 = 24;
const NOTE_BYTES_MAX: usize = 200;

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Decision {
    /// For the record, at most 200 bytes.
    reason: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CodeView {
    /// Names the code without giving it away.
    id: String,
    note: String,
    by: String,
    created_at: String,
    expires_at: String,
    state: CodeState,
    used_by: Option<String>,
    used_at: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CodeState {
    Open,
    Used,
    Expired,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CodeList {
    codes: Vec<CodeView>,
}

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewCode {
    /// Who it is for; at most 200 bytes.
    note: String,
    /// 1 to 8760; 24 if absent.
    expires_in_hours: Option<u32>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NewCodeReply {
    /// The code itself: shown here and never again.
    code: String,
    #[serde(flatten)]
    view: CodeView,
    /// SHA-256 of the appliance's CA certificate: what a phone needs beside the code to know that it talks to us.
    ca_sha256: String,
}

impl From<Code> for CodeView {
    fn from(code: Code) -> CodeView {
        let state = match &code.used {
            Some(_) => CodeState::Used,
            None if code.expires_us <= now_us() => CodeState::Expired,
            None => CodeState::Open,
        };
        CodeView {
            id: code.id,
            note: code.note,
            by: code.by.to_string(),
            created_at: time_of_us(code.created_us),
            expires_at: time_of_us(code.expires_us),
            state,
            used_by: code.used.as_ref().map(|used| used.phone.to_string()),
            used_at: code.used.as_ref().map(|used| time_of_us(used.at_us)),
        }
    }
}

/// Release a phone from quarantine: it may enrol, stream, and has a twin.
#[utoipa::path(post, path = "/api/phones/{phone}/release", tag = "quarantine", request_body = Decision,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = PhoneView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn release(
    State(services): State<Services>,
    Admin(login): Admin,
    Path(phone): Path<String>,
    Body(decision): Body<Decision>,
) -> ApiResult<PhoneView> {
    let phone = services.phones.find(&phone)?.id;
    note(&decision.reason)?;
    let quarantine = services.quarantine.clone();
    let released = blocking(move || quarantine.release(&phone, &decision.reason, &login.user)).await?;
    Ok(Json(PhoneView::read(&services, released).await?))
}

/// Put a phone into quarantine: its stream is closed, its twin stopped, and nothing but registration accepted from it.
#[utoipa::path(post, path = "/api/phones/{phone}/quarantine", tag = "quarantine", request_body = Decision,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = PhoneView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn quarantine(
    State(services): State<Services>,
    Admin(login): Admin,
    Path(phone): Path<String>,
    Body(decision): Body<Decision>,
) -> ApiResult<PhoneView> {
    let phone = services.phones.find(&phone)?.id;
    note(&decision.reason)?;
    let quarantine = services.quarantine.clone();
    let confined = blocking(move || quarantine.confine(&phone, &decision.reason, &login.user)).await?;
    Ok(Json(PhoneView::read(&services, confined).await?))
}

/// All enrolment codes, newest first.
#[utoipa::path(get, path = "/api/codes", tag = "quarantine", responses((status = 200, body = CodeList)))]
pub(super) async fn codes(State(services): State<Services>, _: Admin) -> ApiResult<CodeList> {
    let phones = services.phones.clone();
    let codes = blocking(move || phones.codes()).await?;
    Ok(Json(CodeList { codes: codes.into_iter().map(CodeView::from).collect() }))
}

/// Make an enrolment code: it lets one phone in, once.
#[utoipa::path(post, path = "/api/codes", tag = "quarantine", request_body = NewCode,
    responses((status = 200, body = NewCodeReply), (status = 400, body = super::ErrorBody)))]
pub(super) async fn new_code(
    State(services): State<Services>,
    Admin(login): Admin,
    Body(new): Body<NewCode>,
) -> ApiResult<NewCodeReply> {
    note(&new.note)?;
    let hours = new.expires_in_hours.unwrap_or(CODE_HOURS_DEFAULT);
    if !(1..=CODE_HOURS_MAX).contains(&hours) {
        return Err(ApiError::invalid(format!("expires_in_hours must lie between 1 and {CODE_HOURS_MAX}")));
    }
    let lifetime_us = u64::from(hours) * 3_600_000_000;
    let phones = services.phones.clone();
    let (text, code) = blocking(move || phones.new_code(&new.note, lifetime_us, &login.user, now_us())).await?;
    services.live.tell(Notice::Settings);
    Ok(Json(NewCodeReply { code: text, view: code.into(), ca_sha256: services.ca_sha256.to_string() }))
}

/// Delete an enrolment code.
#[utoipa::path(delete, path = "/api/codes/{id}", tag = "quarantine", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = super::ErrorBody)))]
pub(super) async fn delete_code(
    State(services): State<Services>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let phones = services.phones.clone();
    blocking(move || phones.delete_code(&id)).await?;
    services.live.tell(Notice::Settings);
    Ok(StatusCode::NO_CONTENT)
}

fn note(text: &str) -> Result<(), ApiError> {
    if text.len() <= NOTE_BYTES_MAX {
        return Ok(());
    }
    Err(ApiError::invalid(format!("the text has {} bytes; at most {NOTE_BYTES_MAX} are kept", text.len())))
}
