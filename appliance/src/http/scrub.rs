//! The scrub of what is stored: how far it is, what it found.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::Services;
use super::login::Admin;
use super::views::{encode, time_of_us};
use crate::scrub::{Pass, Scrub};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ScrubView {
    /// The pass that runs, if one does.
    running: Option<PassView>,
    /// The last that ended.
    last: Option<PassView>,
    /// Bytes that a pass reads.
    stored_bytes: u64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PassView {
    begun_at: String,
    ended_at: Option<String>,
    /// Read so far.
    bytes: u64,
    blobs: u64,
    /// Blobs that were not what they had been.
    damaged: usize,
    /// Of those, made again without a phone.
    mended: usize,
    /// Of those, needed at earlier positions only, and lost.
    lost: usize,
    /// Files of phones that lacked a part; each phone was asked to send them again.
    asked: usize,
    /// The first of them.
    files: Vec<DecayedView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DecayedView {
    phone: String,
    /// Percent-encoded bytes.
    path: String,
    /// Hash of the first part that was lacking, in hex.
    chunk: String,
}

impl ScrubView {
    /// Blocks for a moment.
    pub(super) fn read(scrub: &Scrub) -> Result<ScrubView, store::StoreError> {
        let (running, last) = scrub.passes();
        Ok(ScrubView { running: running.map(PassView::of), last: last.map(PassView::of), stored_bytes: scrub.stored_bytes()? })
    }
}

impl PassView {
    fn of(pass: Pass) -> PassView {
        let files = pass.files.iter().map(|file| DecayedView {
            phone: file.phone.to_string(),
            path: encode(&file.path),
            chunk: file.chunk.clone(),
        });
        PassView {
            begun_at: time_of_us(pass.begun_us),
            ended_at: pass.ended_us.map(time_of_us),
            bytes: pass.bytes,
            blobs: pass.blobs,
            damaged: pass.damaged(),
            mended: pass.mended,
            lost: pass.lost,
            asked: pass.asked,
            files: files.collect(),
        }
    }
}

/// Begin to read and verify everything that is stored, if that does not run already. How it goes is in `/api/status`.
#[utoipa::path(post, path = "/api/scrub", tag = "appliance", responses((status = 202)))]
pub(super) async fn begin(State(services): State<Services>, _: Admin) -> StatusCode {
    services.scrub.begin();
    StatusCode::ACCEPTED
}
