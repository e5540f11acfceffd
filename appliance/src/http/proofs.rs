//! Whether a phone's files and its flash are the same: asking, and what came of it.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Services;
use super::error::{ApiError, ApiResult, Body};
use super::login::{Anyone, Operator};
use super::views::{encode, time_of_us};
use crate::proof::{Explanation, Finding, FindingKind, How, Side, Verdict};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HowToVerify {
    /// The phone reads everything again first; true if absent. Otherwise what it has told is compared.
    reread: Option<bool>,
    /// What differs is mended; true if absent.
    heal: Option<bool>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct VerificationView {
    /// What is being done, if a verification runs.
    running: Option<String>,
    /// What the last one that ended came to.
    verdict: Option<VerdictView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct VerdictView {
    at: String,
    /// Phone and flash are the same at `position`, or not; absent if it could not be told.
    equal: Option<bool>,
    /// Of the phone's log.
    position: u64,
    /// Root hash of both, in hex, if they are the same.
    root: Option<String>,
    /// The phone had read everything again.
    reread: bool,
    /// What was not as it should be, in the order in which it was come upon.
    findings: Vec<FindingView>,
    /// How many more; only the phone's log has them.
    unnamed: usize,
    /// Why it could not be told.
    trouble: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct FindingView {
    /// Percent-encoded bytes.
    path: String,
    /// Of the phone's log.
    position: u64,
    kind: FindingKind,
    /// What the phone had, if it had anything.
    phone: Option<Side>,
    /// What the flash had.
    flash: Option<Side>,
    /// The last event about the path, which should explain what the flash has.
    event: Option<ExplanationView>,
    /// What became of it, for people.
    outcome: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ExplanationView {
    position: u64,
    at: String,
    /// Help desk's doing, not the phone's.
    by_helpdesk: bool,
    /// For people.
    text: String,
}

impl VerdictView {
    pub(super) fn of(verdict: &Verdict) -> VerdictView {
        VerdictView {
            at: time_of_us(verdict.at_us),
            equal: verdict.equal,
            position: verdict.position,
            root: verdict.root.clone(),
            reread: verdict.reread,
            findings: verdict.findings.iter().map(FindingView::of).collect(),
            unnamed: verdict.unnamed,
            trouble: verdict.trouble.clone(),
        }
    }
}

impl FindingView {
    fn of(finding: &Finding) -> FindingView {
        let explained = |event: &Explanation| ExplanationView {
            position: event.position,
            at: time_of_us(event.at_us),
            by_helpdesk: event.by_helpdesk,
            text: event.text.clone(),
        };
        FindingView {
            path: encode(&finding.path),
            position: finding.position,
            kind: finding.kind,
            phone: finding.phone.clone(),
            flash: finding.flash.clone(),
            event: finding.event.as_ref().map(explained),
            outcome: finding.outcome.clone(),
        }
    }
}

/// Verify that the phone's files and its flash are the same, and mend what is not. The outcome appears at the same address.
#[utoipa::path(post, path = "/api/phones/{phone}/verification", tag = "phones", request_body = HowToVerify,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 202), (status = 404, body = super::ErrorBody), (status = 409, body = super::ErrorBody),
        (status = 503, body = super::ErrorBody)))]
pub(super) async fn verify(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    Body(how): Body<HowToVerify>,
) -> Result<StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?;
    services.proofs.verify(phone, How { reread: how.reread.unwrap_or(true), heal: how.heal.unwrap_or(true) })?;
    Ok(StatusCode::ACCEPTED)
}

/// Whether the phone's files and its flash are the same, as last verified.
#[utoipa::path(get, path = "/api/phones/{phone}/verification", tag = "phones",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = VerificationView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn show(
    State(services): State<Services>,
    _: Anyone,
    Path(phone): Path<String>,
) -> ApiResult<VerificationView> {
    let phone = services.phones.find(&phone)?;
    let standing = services.proofs.standing(&phone.id);
    let verdict = standing.last.as_deref().map(VerdictView::of);
    Ok(Json(VerificationView { running: standing.running, verdict }))
}
