//! What changes, as it changes: server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use tokio::sync::broadcast::error::RecvError;

use super::Services;
use super::login::Anyone;

/// Shorter than the minute after which proxies close what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Server-sent events. `event: notice` carries a `Notice`: what to look at again. `event: lagged` means that notices were
/// lost: look at everything again.
#[utoipa::path(get, path = "/api/live", tag = "live",
    responses((status = 200, content_type = "text/event-stream", body = crate::live::Notice)))]
pub(super) async fn live(
    State(services): State<Services>,
    _: Anyone,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let watching = services.live.watch();
    let stop = services.stop.clone();
    let events = futures::stream::unfold(watching, move |mut watching| {
        let stop = stop.clone();
        async move {
            let next = tokio::select! {
                () = stop.cancelled() => return None,
                next = watching.recv() => next,
            };
            let event = match next {
                Ok(notice) => Event::default().event("notice").json_data(notice).ok()?,
                Err(RecvError::Lagged(_)) => Event::default().event("lagged").data("{}"),
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(event), watching))
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
