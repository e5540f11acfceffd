//! Files of a phone's flash, at any position of its log.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Services;
use super::error::{ApiError, ApiResult, blocking};
use super::login::Operator;
use super::views::{bytes_parameter, encode, number_parameter, time_of_ns};
use crate::flashes::{FileEntry, FileKind};

/// What is read from the flash at a time while a file is downloaded.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read ahead of the client.
const PIECES_AHEAD: usize = 4;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct FileListing {
    /// Percent-encoded bytes.
    path: String,
    /// The position the listing is of.
    position: u64,
    entries: Vec<FileView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct FileView {
    /// For people: bytes that are no UTF-8 are replaced.
    name: String,
    /// For programs: the absolute path, percent-encoded; may be put into `path=` as it is.
    path: String,
    kind: FileKind,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified_at: String,
    /// A link's target, percent-encoded.
    target: Option<String>,
}

impl FileView {
    fn of(directory: &[u8], entry: FileEntry) -> FileView {
        let mut path = directory.to_vec();
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        FileView {
            name: String::from_utf8_lossy(&entry.name).into_owned(),
            path: encode(&path),
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            modified_at: time_of_ns(i128::from(entry.mtime_ns)),
            target: entry.target.map(|target| encode(&target)),
        }
    }
}

/// A directory's entries.
#[utoipa::path(get, path = "/api/phones/{phone}/files", tag = "files",
    params(("phone" = String, Path, description = "id or serial"),
        ("path" = Option<String>, Query, description = "absolute path, percent-encoded bytes; / if absent"),
        ("position" = Option<u64>, Query, description = "of the log; the latest if absent")),
    responses((status = 200, body = FileListing), (status = 404, body = super::ErrorBody)))]
pub(super) async fn list(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    RawQuery(query): RawQuery,
) -> ApiResult<FileListing> {
    let wanted = Wanted::of(&services, &phone, query.as_deref().unwrap_or_default())?;
    let flashes = services.flashes.clone();
    let path = wanted.path.clone();
    let (position, entries) = blocking(move || flashes.list(&wanted.phone, &wanted.path, wanted.position)).await?;
    let entries = entries.into_iter().map(|entry| FileView::of(&path, entry)).collect();
    Ok(Json(FileListing { path: encode(&path), position, entries }))
}

/// A file's content, as a download.
#[utoipa::path(get, path = "/api/phones/{phone}/files/content", tag = "files",
    params(("phone" = String, Path, description = "id or serial"),
        ("path" = String, Query, description = "absolute path, percent-encoded bytes"),
        ("position" = Option<u64>, Query, description = "of the log; the latest if absent")),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 404, body = super::ErrorBody)))]
pub(super) async fn content(
    State(services): State<Services>,
    _: Operator,
    Path(phone): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let wanted = Wanted::of(&services, &phone, query.as_deref().unwrap_or_default())?;
    let name = wanted.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
    let flashes = services.flashes.clone();
    let file = blocking(move || flashes.open(&wanted.phone, &wanted.path, wanted.position)).await?;
    let size = file.size();
    let (pieces, received) = tokio::sync::mpsc::channel::<std::io::Result<bytes::Bytes>>(PIECES_AHEAD);
    // Ends when the file does, or with the next piece after the client has gone.
    services.tasks.spawn_blocking(move || {
        let mut offset = 0;
        while offset < size {
            let piece = file.read(offset, PIECE_BYTES).map_err(std::io::Error::other);
            let bytes = piece.as_ref().map_or(0, bytes::Bytes::len);
            if pieces.blocking_send(piece).is_err() || bytes == 0 {
                return;
            }
            offset += bytes as u64;
        }
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(received));
    // A phone's file is never shown as a page of ours, whatever it contains.
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename*=UTF-8''{}", encode(&name))),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    Ok((headers, body).into_response())
}

struct Wanted {
    phone: crate::phones::Phone,
    path: Vec<u8>,
    position: Option<u64>,
}

impl Wanted {
    fn of(services: &Services, phone: &str, query: &str) -> Result<Wanted, ApiError> {
        let phone = services.phones.find(phone)?;
        let path = bytes_parameter(query, "path")?.unwrap_or_else(|| b"/".to_vec());
        Ok(Wanted { phone, path, position: number_parameter(query, "position")? })
    }
}
