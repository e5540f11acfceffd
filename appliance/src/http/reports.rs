//! Usage reports, the records behind their rows, and who uses which phone.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde::Serialize;
use usage::report::{Period, Report, ReportError, Table};

use super::Services;
use super::error::{ApiError, ApiResult, Body, blocking};
use super::login::{Admin, Analyst, Anyone};
use super::views::bytes_parameter;
use crate::intelligence::{Assignment, IntelligenceError, Unread};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReportList {
    /// Name, title, what it is about, its chart, and which records are behind its rows.
    #[schema(value_type = Vec<Object>)]
    reports: Vec<Report>,
}

/// A report's answer, and what it lacks.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReportAnswer {
    /// Columns (name, type) and rows.
    #[schema(value_type = Object)]
    #[serde(flatten)]
    table: Table,
    /// Phones with a database that could not be read when it changed last: what it told before is in the report, the rest is not.
    unread: Vec<Unread>,
}

impl From<IntelligenceError> for ApiError {
    fn from(error: IntelligenceError) -> ApiError {
        match &error {
            IntelligenceError::NameTooLong { .. } => ApiError::invalid(error),
            IntelligenceError::Records(_) => ApiError::internal(&error),
            IntelligenceError::Report(report) => match report {
                ReportError::Unknown(_) | ReportError::NoRecords { .. } => ApiError::not_found(error),
                ReportError::Query { .. } => ApiError::internal(&error),
                _ => ApiError::invalid(error),
            },
        }
    }
}

/// The reports that there are.
#[utoipa::path(get, path = "/api/reports", tag = "reports", responses((status = 200, body = ReportList)))]
pub(super) async fn list(State(services): State<Services>, _: Analyst) -> Json<ReportList> {
    Json(ReportList { reports: services.intelligence.catalog().reports().to_vec() })
}

/// Run a report: columns (name, type), rows, and whose usage is not all in it.
#[utoipa::path(get, path = "/api/reports/{report}", tag = "reports",
    params(("report" = String, Path), ("from" = String, Query, description = "RFC 3339; the period's start"),
        ("to" = String, Query, description = "RFC 3339; its end, itself excluded")),
    responses((status = 200, body = ReportAnswer), (status = 400, body = super::ErrorBody), (status = 404, body = super::ErrorBody)))]
pub(super) async fn run(
    State(services): State<Services>,
    _: Analyst,
    Path(report): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<ReportAnswer> {
    let period = period(query.as_deref().unwrap_or_default())?;
    let table = services.intelligence.run(&report, period).await?;
    let intelligence = services.intelligence.clone();
    let unread = blocking(move || intelligence.unread()).await?;
    Ok(Json(ReportAnswer { table, unread }))
}

/// The records behind a row: those of `table` that agree with it in the columns that the report names, given as further parameters.
#[utoipa::path(get, path = "/api/reports/{report}/records/{table}", tag = "reports",
    params(("report" = String, Path), ("table" = String, Path, description = "calls or messages"),
        ("from" = String, Query), ("to" = String, Query)),
    responses((status = 200, body = Object), (status = 400, body = super::ErrorBody), (status = 404, body = super::ErrorBody)))]
pub(super) async fn records(
    State(services): State<Services>,
    _: Analyst,
    Path((report, table)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> ApiResult<Table> {
    let query = query.unwrap_or_default();
    let period = period(&query)?;
    let wanted = services.intelligence.catalog().report(&report).map_err(IntelligenceError::from)?;
    let mut row = Vec::new();
    for column in wanted.records.iter().filter(|records| records.table == table).flat_map(|records| &records.by) {
        if let Some(value) = parameter(&query, column)? {
            row.push((column.clone(), value));
        }
    }
    Ok(Json(services.intelligence.records(&report, period, &table, &row).await?))
}

/// Who uses a phone.
#[utoipa::path(get, path = "/api/phones/{phone}/assignment", tag = "phones",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = Assignment), (status = 404, body = super::ErrorBody)))]
pub(super) async fn assignment(
    State(services): State<Services>,
    _: Anyone,
    Path(phone): Path<String>,
) -> ApiResult<Assignment> {
    let phone = services.phones.find(&phone)?.id;
    let intelligence = services.intelligence.clone();
    Ok(Json(blocking(move || intelligence.assignment(&phone)).await?))
}

/// Say who uses a phone; its facts, past ones too, are reported so.
#[utoipa::path(put, path = "/api/phones/{phone}/assignment", tag = "phones", request_body = Assignment,
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = Assignment), (status = 400, body = super::ErrorBody), (status = 404, body = super::ErrorBody)))]
pub(super) async fn assign(
    State(services): State<Services>,
    _: Admin,
    Path(phone): Path<String>,
    Body(assignment): Body<Assignment>,
) -> ApiResult<Assignment> {
    let phone = services.phones.find(&phone)?.id;
    let intelligence = services.intelligence.clone();
    let notice = crate::live::Notice::Phone { phone: phone.clone() };
    let kept = blocking(move || intelligence.assign(&phone, &assignment).map(|()| assignment)).await?;
    services.live.tell(notice);
    Ok(Json(kept))
}

fn period(query: &str) -> Result<Period, ApiError> {
    Ok(Period { from_us: time(query, "from")?, to_us: time(query, "to")? })
}

/// A parameter's time in microseconds since the epoch.
fn time(query: &str, name: &str) -> Result<i64, ApiError> {
    use time::format_description::well_known::Rfc3339;
    let wrong = || ApiError::invalid(format!("{name} must be a time such as 2026-11-01T00:00:00Z"));
    let text = parameter(query, name)?.ok_or_else(wrong)?;
    let time = time::OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| wrong())?;
    i64::try_from(time.unix_timestamp_nanos() / 1000).map_err(|_| wrong())
}

fn parameter(query: &str, name: &str) -> Result<Option<String>, ApiError> {
    let bytes = bytes_parameter(query, name)?;
    let text = bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| ApiError::invalid(format!("{name} is not UTF-8"))));
    text.transpose()
}
