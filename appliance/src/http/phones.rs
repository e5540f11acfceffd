//! Phones: what they are, whether they are connected, how far their log, flash and twin have come.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use super::Services;
use super::drive::LeaseView;
use super::error::{ApiError, ApiResult, blocking};
use super::login::Anyone;
use super::scrub::ScrubView;
use super::twins::TwinView;
use super::views::time_of_us;
use crate::intelligence::Assignment;
use crate::phones::{Phone, Standing};

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PhoneList {
    phones: Vec<PhoneView>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PhoneView {
    id: String,
    serial: String,
    model: String,
    os: String,
    os_version: String,
    /// Name of the image it says it runs.
    image: String,
    architecture: String,
    agent_version: String,
    /// Who uses it.
    assignment: Assignment,
    standing: Standing,
    /// Why it stands so.
    reason: String,
    /// The user who released or confined it, if one did.
    changed_by: Option<String>,
    changed_at: String,
    registered_at: String,
    last_seen_at: Option<String>,
    /// Its agent is streaming now.
    connected: bool,
    sync: SyncView,
    /// Why its usage could not be read when it changed last, if it could not.
    usage_trouble: Option<String>,
    twin: TwinView,
    /// The drive lease in force, if any.
    lease: Option<LeaseView>,
    /// Conflicts that nobody has dismissed.
    conflicts: usize,
    /// It is a demo phone of this host: its own screen can be shown.
    demo_screen: bool,
}

/// How far everything has come, in positions of the phone's log.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SyncView {
    /// Last event of the log.
    position: u64,
    /// Last event applied to the flash.
    applied: u64,
    /// Root hash of the flash at `applied`, in hex.
    root: Option<String>,
    /// The phone's first scan is done: the flash is complete and a twin may boot on it.
    complete: bool,
    /// When phone and flash were last compared by root hash.
    proof: Option<ProofView>,
    /// Why the flash does not follow, if it does not.
    trouble: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ProofView {
    /// The hashes were equal: phone and flash are proven the same at `position`.
    equal: bool,
    position: u64,
    at: String,
    /// Hash by the phone, in hex.
    phone_root: String,
    /// Hash by the flash, in hex.
    flash_root: String,
}

impl PhoneView {
    pub(super) async fn read(services: &Services, phone: Phone) -> Result<PhoneView, ApiError> {
        let (intelligence, id) = (services.intelligence.clone(), phone.id.clone());
        let assignment = blocking(move || intelligence.assignment(&id)).await?;
        Ok(PhoneView::of(services, phone, assignment))
    }

    fn of(services: &Services, phone: Phone, assignment: Assignment) -> PhoneView {
        let id = &phone.id;
        let progress = services.replays.progress(id);
        let demo_screen = services.demo_socket(&phone).is_some();
        let description = phone.description;
        PhoneView {
            connected: services.links.is_connected(id),
            sync: SyncView {
                position: progress.position,
                applied: progress.applied,
                root: progress.root,
                complete: progress.complete,
                proof: progress.proof.map(|proof| ProofView {
                    equal: proof.phone_root == proof.flash_root,
                    position: proof.position,
                    at: time_of_us(proof.at_us),
                    phone_root: proof.phone_root,
                    flash_root: proof.flash_root,
                }),
                trouble: progress.trouble,
            },
            usage_trouble: services.intelligence.trouble(id),
            twin: TwinView::of(services, id),
            lease: services.drive.lease(id).map(LeaseView::from),
            conflicts: services.drive.conflicts_open(id),
            demo_screen,
            id: id.to_string(),
            serial: description.serial,
            model: description.model,
            os: description.os,
            os_version: description.os_version,
            image: description.image,
            architecture: description.architecture,
            agent_version: description.agent_version,
            assignment,
            standing: phone.standing,
            reason: phone.reason,
            changed_by: phone.by.map(|user| user.to_string()),
            changed_at: time_of_us(phone.changed_us),
            registered_at: time_of_us(phone.registered_us),
            last_seen_at: phone.last_seen_us.map(time_of_us),
        }
    }
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct StatusView {
    version: &'static str,
    started_at: String,
    /// SHA-256 of the CA certificate, by which phones know the appliance.
    ca_sha256: String,
    /// Where phones connect.
    sync_address: String,
    phones: HashMap<&'static str, usize>,
    twins_running: usize,
    twins_running_max: usize,
    /// Why nothing is accepted from phones, if so: their journals keep it meanwhile.
    trouble: Option<String>,
    /// How the reading and verifying of all that is stored goes.
    scrub: ScrubView,
}

/// All phones, by serial.
#[utoipa::path(get, path = "/api/phones", tag = "phones", responses((status = 200, body = PhoneList)))]
pub(super) async fn list(State(services): State<Services>, _: Anyone) -> ApiResult<PhoneList> {
    let intelligence = services.intelligence.clone();
    let phones = services.phones.list();
    let assigned = blocking(move || {
        let with = |phone: Phone| intelligence.assignment(&phone.id).map(|assignment| (phone, assignment));
        phones.into_iter().map(with).collect::<Result<Vec<_>, _>>()
    });
    let phones = assigned.await?.into_iter().map(|(phone, assignment)| PhoneView::of(&services, phone, assignment));
    Ok(Json(PhoneList { phones: phones.collect() }))
}

/// One phone.
#[utoipa::path(get, path = "/api/phones/{phone}", tag = "phones",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 200, body = PhoneView), (status = 404, body = super::ErrorBody)))]
pub(super) async fn show(
    State(services): State<Services>,
    _: Anyone,
    Path(phone): Path<String>,
) -> ApiResult<PhoneView> {
    let phone = services.phones.find(&phone)?;
    Ok(Json(PhoneView::read(&services, phone).await?))
}

/// Ask the phone for its root hash and compare it with the flash's. The outcome appears in the phone's `sync.proof`.
#[utoipa::path(post, path = "/api/phones/{phone}/prove", tag = "phones",
    params(("phone" = String, Path, description = "id or serial")),
    responses((status = 202), (status = 404, body = super::ErrorBody), (status = 503, body = super::ErrorBody)))]
pub(super) async fn prove(
    State(services): State<Services>,
    _: super::login::Operator,
    Path(phone): Path<String>,
) -> Result<axum::http::StatusCode, ApiError> {
    let phone = services.phones.find(&phone)?;
    services.commands.ask_root(&phone.id).await?;
    Ok(axum::http::StatusCode::ACCEPTED)
}

/// The appliance itself.
#[utoipa::path(get, path = "/api/status", tag = "appliance", responses((status = 200, body = StatusView)))]
pub(super) async fn status(State(services): State<Services>, _: Anyone) -> ApiResult<StatusView> {
    let phones = services.phones.list();
    let count = |standing: Standing| phones.iter().filter(|phone| phone.standing == standing).count();
    let connected = phones.iter().filter(|phone| services.links.is_connected(&phone.id)).count();
    let phones = HashMap::from([
        ("released", count(Standing::Released)),
        ("quarantined", count(Standing::Quarantined)),
        ("connected", connected),
    ]);
    let health = services.health.clone();
    let scrub = services.scrub.clone();
    let looked = blocking(move || Ok::<_, store::StoreError>((health.trouble(), ScrubView::read(&scrub)?)));
    let (trouble, scrub) = looked.await?;
    Ok(Json(StatusView {
        version: env!("CARGO_PKG_VERSION"),
        started_at: time_of_us(services.started_us),
        ca_sha256: services.ca_sha256.to_string(),
        sync_address: services.sync_address.to_string(),
        phones,
        twins_running: services.twins.running(),
        twins_running_max: services.twins.running_max(),
        trouble,
        scrub,
    }))
}

/// The CA certificate, PEM: to be imported by browsers and given to phones. Public.
#[utoipa::path(get, path = "/api/ca.pem", tag = "appliance", security(()),
    responses((status = 200, content_type = "application/x-pem-file", body = String)))]
pub(super) async fn ca(State(services): State<Services>) -> impl axum::response::IntoResponse {
    ([(axum::http::header::CONTENT_TYPE, "application/x-pem-file")], services.ca_pem.to_string())
}
