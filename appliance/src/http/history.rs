//! Looking back: what changed on a phone between two positions, and where something is, or was.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use flash::Listed;
use serde::{Deserialize, Serialize};
use sync_protocol::PhonePath;

use super::Services;
use super::error::{ApiError, ApiResult, Query, blocking};
use super::login::Operator;
use super::views::{bytes_parameter, encode, number_parameter, time_of_ns, time_parameter};
use crate::flashes::{FileKind, FlashesError, kind_of};
use crate::search::{self, Match, Wanted};

const CHANGES_DEFAULT: usize = 1000;
const CHANGES_MAX: usize = 10_000;
const MATCHES_DEFAULT: usize = 100;
const MATCHES_MAX: usize = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffQuery {
    /// A position of the log; 0 is before anything happened.
    from: u64,
    /// Another, earlier or later.
    to: u64,
    /// 1 to 10000 changes; 1000 if absent.
    limit: Option<usize>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Diff {
    from: u64,
    to: u64,
    changes: Vec<ChangeView>,
    /// There are more changes than were asked for.
    more: bool,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ChangeView {
    /// Percent-encoded bytes.
    path: String,
    change: ChangeKind,
    /// Where it was, if it was moved here; percent-encoded bytes.
    moved_from: Option<String>,
    before: Option<StateView>,
    after: Option<StateView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ChangeKind {
    Added,
    Removed,
    Changed,
    Moved,
}

/// A file at one of the two positions.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct StateView {
    kind: FileKind,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified_at: String,
}

impl StateView {
    fn of(listed: Listed) -> StateView {
        let attributes = listed.attributes;
        StateView {
            kind: kind_of(&listed),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            size: listed.size,
            modified_at: time_of_ns(i128::from(attributes.mtime_ns)),
        }
    }
}

impl ChangeView {
    fn of(change: flash::Change) -> ChangeView {
        let kind = match (&change.moved_from, &change.before, &change.after) {
            (Some(_), ..) => ChangeKind::Moved,
            (None, None, _) => ChangeKind::Added,
            (None, _, None) => ChangeKind::Removed,
            _ => ChangeKind::Changed,
        };
        ChangeView {
            path: encode(change.path.as_bytes()),
            change: kind,
            moved_from: change.moved_from.map(|path| encode(path.as_bytes())),
            before: change.before.map(StateView::of),
            after: change.after.map(StateView::of),
        }
    }
}

/// What changed on a phone between two positions of its log: of files added, removed, changed, moved. Times alone do not count.
#[utoipa::path(get, path = "/api/phones/{phone}/diff", tag = "files",
    params(("phone" = String, Path, description = "id or serial"), DiffQuery),
    responses((status = 200, body = Diff), (status = 404, body = super::ErrorBody)))]
pub(super) async fn diff(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    Query(query): Query<DiffQuery>,
) -> ApiResult<Diff> {
    let phone = services.phones.find(&phone)?;
    let DiffQuery { from, to, limit } = query;
    let limit = limit.unwrap_or(CHANGES_DEFAULT).clamp(1, CHANGES_MAX);
    let flashes = services.flashes.clone();
    let (changes, more) = blocking(move || flashes.changes(&phone, from, to, limit)).await?;
    Ok(Json(Diff { from, to, changes: changes.into_iter().map(ChangeView::of).collect(), more }))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct FoundView {
    /// The position whose files were searched.
    position: u64,
    matches: Vec<MatchView>,
    /// Files whose names were compared in this step.
    looked_at: u64,
    bytes_read: u64,
    /// Files that fit by name and were not read: too large, or damaged.
    unread: u64,
    /// Ask again with this as `after` to go on; absent: all was searched.
    next: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct MatchView {
    /// Percent-encoded bytes.
    path: String,
    kind: FileKind,
    size: u64,
    modified_at: String,
    /// Where in the file the text is first, if one was searched for.
    offset: Option<u64>,
    /// What is around it, for people.
    excerpt: Option<String>,
}

impl MatchView {
    fn of(found: Match) -> MatchView {
        MatchView {
            path: encode(found.path.as_bytes()),
            kind: found.kind,
            size: found.size,
            modified_at: time_of_ns(i128::from(found.mtime_ns)),
            offset: found.excerpt.as_ref().map(|excerpt| excerpt.offset),
            excerpt: found.excerpt.map(|excerpt| String::from_utf8_lossy(&excerpt.bytes).into_owned()),
        }
    }
}

/// One step of a search of a phone's files, by name and by contents, now or as of a position or a time.
#[utoipa::path(get, path = "/api/phones/{phone}/find", tag = "files",
    params(("phone" = String, Path, description = "id or serial"),
        ("pattern" = String, Query, description = "percent-encoded bytes; `*` stands for anything, `?` for one byte; of whole paths if it has a /"),
        ("contents" = Option<String>, Query, description = "percent-encoded bytes that are in the file"),
        ("beneath" = Option<String>, Query, description = "only here; percent-encoded path, / if absent"),
        ("position" = Option<u64>, Query, description = "of the log; the latest if absent"),
        ("at" = Option<String>, Query, description = "RFC 3339: as of then, by the phone's clock, instead of a position"),
        ("after" = Option<String>, Query, description = "`next` of the step before"),
        ("limit" = Option<usize>, Query, description = "1 to 1000 matches; 100 if absent")),
    responses((status = 200, body = FoundView), (status = 400, body = super::ErrorBody), (status = 404, body = super::ErrorBody)))]
pub(super) async fn find(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<FoundView> {
    let phone = services.phones.find(&phone)?;
    let query = query.unwrap_or_default();
    let path = |name| -> Result<Option<PhonePath>, ApiError> {
        let bytes = bytes_parameter(&query, name)?;
        Ok(bytes.map(PhonePath::new).transpose().map_err(FlashesError::from)?)
    };
    let pattern = bytes_parameter(&query, "pattern")?.ok_or_else(|| ApiError::invalid("which pattern?"))?;
    let beneath = path("beneath")?.unwrap_or_else(PhonePath::root);
    let wanted = Wanted::new(&pattern, bytes_parameter(&query, "contents")?, beneath)?;
    let after = path("after")?;
    let (position, at) = (number_parameter(&query, "position")?, time_parameter(&query, "at")?);
    let limit = number_parameter(&query, "limit")?.map_or(MATCHES_DEFAULT, |limit| usize::try_from(limit).unwrap_or(MATCHES_MAX));
    let (flashes, logs) = (services.flashes.clone(), services.logs.clone());
    let step = blocking(move || {
        let position = match at {
            Some(at_us) => Some(logs.position_at(&phone.id, at_us)?),
            None => position,
        };
        let limit = limit.clamp(1, MATCHES_MAX);
        Ok::<_, ApiError>(search::step(&flashes, &phone, position, &wanted, after, limit)?)
    });
    let step = step.await?;
    Ok(Json(FoundView {
        position: step.position,
        matches: step.matches.into_iter().map(MatchView::of).collect(),
        looked_at: step.looked_at,
        bytes_read: step.bytes_read,
        unread: step.unread,
        next: step.next.map(|path| encode(path.as_bytes())),
    }))
}
