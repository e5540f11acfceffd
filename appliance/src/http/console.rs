//! The console's files, built into this binary.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::error::ApiError;

/// `console/dist` if the console was built, else the page that `build.rs` made in its stead.
#[derive(RustEmbed)]
#[folder = "$POLLUX_CONSOLE_DIST"]
struct Files;

/// Pages may load nothing from elsewhere; `wasm-unsafe-eval` and `blob:` are for the screen viewer and map workers.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; \
    script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A file of the console, or its start page for addresses that the console's own router knows.
pub(super) async fn file(uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path.starts_with("api/") {
        return ApiError::not_found(format!("there is no {}", uri.path()))
            .advise("see /api/openapi.json for what there is")
            .into_response();
    }
    let (name, found) = match Files::get(path) {
        Some(found) => (path, found),
        // A missing asset is missing; anything else is a page.
        None if path.starts_with("assets/") => return StatusCode::NOT_FOUND.into_response(),
        None => match Files::get("index.html") {
            Some(found) => ("index.html", found),
            None => return StatusCode::NOT_FOUND.into_response(),
        },
    };
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    // Vite puts a hash of the content into the names of assets.
    let caching = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let headers = [
        (header::CONTENT_TYPE, kind.as_ref().to_owned()),
        (header::CACHE_CONTROL, caching.to_owned()),
        (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, found.data).into_response()
}
