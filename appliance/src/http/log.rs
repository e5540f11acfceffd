//! A phone's log, page by page: what happened, in order.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::PhonePath;
use sync_protocol::event::{Content, Event, FileOp, Kind, Origin};
use sync_protocol::stack::{CallState, Direction, Stack, technology_name};

use super::Services;
use super::error::{ApiResult, Query, blocking};
use super::login::Operator;
use super::views::{bytes_parameter, encode, time_of_us, time_parameter};
use crate::flashes::FlashesError;
use crate::log::{LogError, PhoneLogs};

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;
/// Events searched for one page; where the search ends the next goes on.
const SEARCHED_MAX: u64 = 50_000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Events after this position, oldest first. Without it: the last `limit` events, still oldest first.
    after: Option<u64>,
    /// 1 to 1000; 100 if absent.
    limit: Option<usize>,
    /// Only events of this kind. With this or one of the following and without `after`, the search begins at the log's start.
    kind: Option<EventKind>,
    /// Only what is about this path, or a path beneath it; percent-encoded bytes.
    path: Option<String>,
    /// RFC 3339: only from then on, by the phone's clock.
    from: Option<String>,
    /// RFC 3339: only up to then, by the phone's clock.
    to: Option<String>,
}

impl LogQuery {
    fn is_search(&self) -> bool {
        self.kind.is_some() || self.path.is_some() || self.from.is_some() || self.to.is_some()
    }
}

/// What a search of the log is for.
struct Search {
    kind: Option<EventKind>,
    path: Option<PhonePath>,
    from_us: Option<i64>,
    to_us: Option<i64>,
}

impl Search {
    /// Up to `limit` events after `after`. Blocks.
    fn run(&self, logs: &PhoneLogs, phone: &PhoneId, after: Option<u64>, limit: usize) -> Result<LogPage, LogError> {
        let last = logs.last(phone)?;
        let from = self.from_us.map_or(Ok(0), |from_us| logs.position_at(phone, from_us.saturating_sub(1)))?;
        let end = self.to_us.map_or(Ok(last), |to_us| logs.position_at(phone, to_us))?;
        let begun = after.unwrap_or(0).max(from);
        let mut position = begun;
        let mut events = Vec::new();
        while position < end && position - begun < SEARCHED_MAX {
            for (at, event) in logs.read(phone, position + 1, PAGE_MAX)?.into_iter().take_while(|(at, _)| *at <= end) {
                position = at;
                if self.fits(&event) {
                    events.push(view((at, event)));
                    if events.len() == limit {
                        return Ok(LogPage { events, last, next: (position < end).then_some(position) });
                    }
                }
            }
        }
        Ok(LogPage { events, last, next: (position < end).then_some(position) })
    }

    fn fits(&self, event: &Event) -> bool {
        let about = |path: &PhonePath| match &event.kind {
            Kind::File(change) => {
                let to = if let FileOp::Rename { to } = &change.op { Some(to) } else { None };
                change.path.is_within(path) || to.is_some_and(|to| to.is_within(path))
            }
            Kind::Control(control) => control.path.as_ref().is_some_and(|of| of.is_within(path)),
            _ => false,
        };
        self.path.as_ref().is_none_or(about) && self.kind.is_none_or(|kind| kind == describe(&event.kind).0)
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LogPage {
    events: Vec<LogEvent>,
    /// Position of the log's last event: there is more if it is beyond the last one here.
    last: u64,
    /// Of a search: ask again with this as `after` to go on; absent: all was searched.
    next: Option<u64>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct LogEvent {
    position: u64,
    /// The phone's own number of it; equal to `position` for events of ours.
    seq: u64,
    /// The phone's wall clock.
    at: String,
    /// Microseconds since the phone's boot.
    mono_us: u64,
    origin: EventOrigin,
    kind: EventKind,
    /// For people.
    summary: String,
    /// For programs: what the kind holds.
    #[schema(value_type = Object)]
    detail: serde_json::Value,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EventOrigin {
    Phone,
    Helpdesk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum EventKind {
    /// Keys, touches, pointer.
    Mmi,
    File,
    /// The agent about itself.
    Control,
    /// What the phone's modems did: network, calls, messages.
    Stack,
    /// What the appliance asked of the phone.
    Command,
    /// What became of it.
    Outcome,
}

/// A phone's log.
#[utoipa::path(get, path = "/api/phones/{phone}/log", tag = "log",
    params(("phone" = String, Path, description = "id or serial"), LogQuery),
    responses((status = 200, body = LogPage), (status = 404, body = super::ErrorBody)))]
pub(super) async fn page(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    Query(query): Query<LogQuery>,
    RawQuery(raw): RawQuery,
) -> ApiResult<LogPage> {
    let phone = services.phones.find(&phone)?.id;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let logs = services.logs.clone();
    if query.is_search() {
        let raw = raw.unwrap_or_default();
        // Paths are bytes, which only the raw query has.
        let path = bytes_parameter(&raw, "path")?.map(PhonePath::new).transpose().map_err(FlashesError::from)?;
        let (from_us, to_us) = (time_parameter(&raw, "from")?, time_parameter(&raw, "to")?);
        let search = Search { kind: query.kind, path, from_us, to_us };
        return Ok(Json(blocking(move || search.run(&logs, &phone, query.after, limit)).await?));
    }
    let page = blocking(move || {
        let last = logs.last(&phone)?;
        let after = query.after.unwrap_or_else(|| last.saturating_sub(limit as u64));
        let events = logs.read(&phone, after.saturating_add(1), limit)?;
        Ok::<_, LogError>(LogPage { events: events.into_iter().map(view).collect(), last, next: None })
    });
    Ok(Json(page.await?))
}

fn view((position, event): (u64, Event)) -> LogEvent {
    let (kind, summary, detail) = describe(&event.kind);
    LogEvent {
        position,
        seq: event.seq,
        at: time_of_us(u64::try_from(event.wall_us).unwrap_or(0)),
        mono_us: event.mono_us,
        origin: if event.origin == Origin::Helpdesk { EventOrigin::Helpdesk } else { EventOrigin::Phone },
        kind,
        summary,
        detail,
    }
}

fn describe(kind: &Kind) -> (EventKind, String, serde_json::Value) {
    use serde_json::json;
    match kind {
        Kind::Mmi(frame) => {
            let device = format!("{:?}", frame.device).to_lowercase();
            let events: Vec<_> = frame.events.iter().map(|e| json!([e.r#type, e.code, e.value])).collect();
            let summary = super::super::input::describe(frame);
            (EventKind::Mmi, summary, json!({"device": device, "events": events}))
        }
        Kind::File(change) => {
            let path = encode(change.path.as_bytes());
            let op = match &change.op {
                FileOp::Put(node) => {
                    let (what, size) = match &node.content {
                        Content::Regular { size, .. } => ("file", *size),
                        Content::Directory => ("directory", 0),
                        Content::Symlink { target } => ("link", target.len() as u64),
                    };
                    json!({"op": "put", "kind": what, "size": size, "mode": node.mode, "uid": node.uid, "gid": node.gid})
                }
                FileOp::Remove => json!({"op": "remove"}),
                FileOp::Rename { to } => json!({"op": "rename", "to": encode(to.as_bytes())}),
            };
            (EventKind::File, crate::log::describe_change(change), json!({"path": path, "change": op}))
        }
        Kind::Control(control) => {
            let name = control.kind.as_str_name().trim_start_matches("CONTROL_KIND_").to_lowercase();
            let mut summary = name.replace('_', " ");
            for part in [control.path.as_ref().map(ToString::to_string), Some(control.text.clone())] {
                if let Some(part) = part.filter(|part| !part.is_empty()) {
                    summary = format!("{summary}: {part}");
                }
            }
            (EventKind::Control, summary, json!({"control": name, "text": control.text, "count": control.count}))
        }
        Kind::Stack(stack) => {
            let (summary, detail) = describe_stack(stack);
            (EventKind::Stack, summary, detail)
        }
        Kind::Issued(command) => {
            let summary = crate::commands::describe(command);
            (EventKind::Command, summary, json!({"command_id": command.id}))
        }
        Kind::Outcome(result) => {
            let status = result.status().as_str_name().trim_start_matches("COMMAND_STATUS_").to_lowercase();
            let summary = match result.text.as_str() {
                "" => format!("command {}: {status}", result.command_id),
                text => format!("command {}: {status}: {text}", result.command_id),
            };
            (EventKind::Outcome, summary, json!({"command_id": result.command_id, "status": status}))
        }
    }
}

fn describe_stack(stack: &Stack) -> (String, serde_json::Value) {
    use serde_json::json;
    let name = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    let way = |direction: Direction| if direction == Direction::In { "from" } else { "to" };
    let party = |party: &str| if party.is_empty() { "a withheld number".to_owned() } else { party.to_owned() };
    match stack {
        Stack::Radio(radio) => {
            let registration = name(radio.registration.as_str_name(), "REGISTRATION_");
            let technology = technology_name(radio.technologies);
            let network = [radio.operator_name.as_str(), technology].join(" ");
            let summary = match network.trim() {
                "" => format!("network: {registration}"),
                network => format!("network: {registration}, {network}, signal {} %", radio.signal_percent),
            };
            let tower = json!({"lac": radio.tower.lac, "tac": radio.tower.tac, "cell": radio.tower.cell});
            let detail = json!({"stack": "radio", "registration": registration, "mcc": radio.mcc(), "mnc": radio.mnc(),
                "operator": radio.operator_name, "technology": technology, "signal_percent": radio.signal_percent, "tower": tower});
            (summary, detail)
        }
        Stack::Call(call) => {
            let state = name(call.state.as_str_name(), "CALL_STATE_");
            let end = (call.state == CallState::Ended).then(|| name(call.end.as_str_name(), "CALL_END_").replace('_', " "));
            let how = match &end {
                _ if call.dropped => ": dropped".to_owned(),
                Some(end) if end != "unspecified" => format!(": {end}"),
                _ => String::new(),
            };
            let summary = format!("call {} {}: {state}{how}", way(call.direction), party(&call.party));
            let detail = json!({"stack": "call", "call": call.call, "direction": way(call.direction), "party": call.party,
                "state": state, "end": end, "dropped": call.dropped});
            (summary, detail)
        }
        Stack::Message(message) => {
            let summary = format!("message {} {} ({} bytes)", way(message.direction), party(&message.party), message.size_bytes);
            let detail = json!({"stack": "message", "direction": way(message.direction), "party": message.party,
                "size_bytes": message.size_bytes, "network_time": message.network_time});
            (summary, detail)
        }
    }
}
