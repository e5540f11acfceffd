//! The console's and every program's way in: JSON over HTTPS, one file per noun. The only code that knows axum.
//!
//! Every route names the role it asks for by its extractor (see [`login`]); every error is `{"error": {...}}` (see [`error`]); the whole is
//! described by `/api/openapi.json`.

mod console;
mod drive;
mod error;
mod files;
mod history;
mod live;
mod log;
mod login;
mod mounts;
mod phones;
mod proofs;
mod quarantine;
mod reports;
mod screen;
mod scrub;
mod twins;
mod users;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, patch, post, put};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa::OpenApi;

use crate::commands::Commands;
use crate::drive::Drive;
use crate::flashes::Flashes;
use crate::identity::Logins;
use crate::health::Health;
use crate::intelligence::Intelligence;
use crate::live::Live;
use crate::log::PhoneLogs;
use crate::mounts::Mounts;
use crate::phones::{Phone, Phones};
use crate::proof::Proofs;
use crate::quarantine::Quarantine;
use crate::replay::Replays;
use crate::scrub::Scrub;
use crate::sync::Links;
use crate::twin::Twins;

use error::ErrorBody;
pub(crate) use views::encode as encode_path;

/// Requests are small JSON.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Everything that a route may use.
#[derive(Clone)]
pub struct Services {
    pub logins: Arc<Logins>,
    pub phones: Phones,
    pub quarantine: Quarantine,
    pub logs: PhoneLogs,
    pub links: Links,
    pub commands: Commands,
    pub flashes: Flashes,
    pub health: Health,
    pub mounts: Mounts,
    pub proofs: Proofs,
    pub scrub: Scrub,
    pub replays: Replays,
    pub twins: Twins,
    pub drive: Drive,
    pub intelligence: Intelligence,
    pub live: Live,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub ca_pem: Arc<str>,
    pub ca_sha256: Arc<str>,
    pub sync_address: SocketAddr,
    pub started_us: u64,
    /// Where demo phones of this host have their sockets.
    pub demo: PathBuf,
}

impl Services {
    /// The RFB socket of a phone that is a running demo phone of this host.
    fn demo_socket(&self, phone: &Phone) -> Option<PathBuf> {
        let serial = &phone.description.serial;
        let plain = serial.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let socket = self.demo.join(serial).join("rfb.sock");
        (plain && !serial.is_empty() && socket.exists()).then_some(socket)
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Pollux appliance", description = "Everything that the console does. Log in by `POST /api/login`; send the token as \
        `Authorization: Bearer TOKEN`, or let the browser keep the cookie."),
    paths(
        login::log_in, login::log_out, login::who, users::change_own_password,
        users::list, users::add, users::change, users::remove,
        phones::status, phones::ca, scrub::begin, phones::list, phones::show, phones::prove, proofs::verify, proofs::show,
        quarantine::release, quarantine::quarantine, quarantine::codes, quarantine::new_code, quarantine::delete_code,
        log::page, files::list, files::content, history::diff, history::find, mounts::add, mounts::remove,
        twins::show, twins::start, twins::park, twins::stop, twins::picture, twins::console, twins::fork, twins::end_fork,
        twins::fork_picture, screen::twin, screen::fork, screen::demo,
        drive::take, drive::give_back, drive::input, drive::conflicts, drive::dismiss,
        reports::list, reports::run, reports::records, reports::assignment, reports::assign,
        live::live,
    ),
    modifiers(&Bearer),
    security(("login" = [])),
)]
struct Description;

/// Adds how a login is shown.
struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        api.components.get_or_insert_default().add_security_scheme("login", scheme);
    }
}

/// The description of the API, as JSON.
pub fn openapi() -> String {
    Description::openapi().to_pretty_json().unwrap_or_default()
}

fn router(services: Services) -> Router {
    Router::new()
        .route("/api/login", post(login::log_in))
        .route("/api/logout", post(login::log_out))
        .route("/api/me", get(login::who))
        .route("/api/me/password", post(users::change_own_password))
        .route("/api/users", get(users::list).post(users::add))
        .route("/api/users/{name}", patch(users::change).delete(users::remove))
        .route("/api/status", get(phones::status))
        .route("/api/scrub", post(scrub::begin))
        .route("/api/ca.pem", get(phones::ca))
        .route("/api/phones", get(phones::list))
        .route("/api/phones/{phone}", get(phones::show))
        .route("/api/phones/{phone}/prove", post(phones::prove))
        .route("/api/phones/{phone}/verification", get(proofs::show).post(proofs::verify))
        .route("/api/phones/{phone}/release", post(quarantine::release))
        .route("/api/phones/{phone}/quarantine", post(quarantine::quarantine))
        .route("/api/codes", get(quarantine::codes).post(quarantine::new_code))
        .route("/api/codes/{id}", delete(quarantine::delete_code))
        .route("/api/phones/{phone}/log", get(log::page))
        .route("/api/phones/{phone}/files", get(files::list))
        .route("/api/phones/{phone}/files/content", get(files::content))
        .route("/api/phones/{phone}/diff", get(history::diff))
        .route("/api/phones/{phone}/find", get(history::find))
        .route("/api/phones/{phone}/mounts", post(mounts::add))
        .route("/api/mounts/{id}", delete(mounts::remove))
        .route("/api/phones/{phone}/twin", get(twins::show))
        .route("/api/phones/{phone}/twin/start", post(twins::start))
        .route("/api/phones/{phone}/twin/park", post(twins::park))
        .route("/api/phones/{phone}/twin/stop", post(twins::stop))
        .route("/api/phones/{phone}/twin/screen.png", get(twins::picture))
        .route("/api/phones/{phone}/twin/console", get(twins::console))
        .route("/api/phones/{phone}/twin/forks", post(twins::fork))
        .route("/api/phones/{phone}/twin/forks/{number}", delete(twins::end_fork))
        .route("/api/phones/{phone}/twin/forks/{number}/screen.png", get(twins::fork_picture))
        .route("/api/phones/{phone}/twin/forks/{number}/screen", get(screen::fork))
        .route("/api/phones/{phone}/twin/screen", get(screen::twin))
        .route("/api/phones/{phone}/demo/screen", get(screen::demo))
        .route("/api/phones/{phone}/drive", put(drive::take).delete(drive::give_back))
        .route("/api/phones/{phone}/drive/input", post(drive::input))
        .route("/api/phones/{phone}/conflicts", get(drive::conflicts))
        .route("/api/phones/{phone}/conflicts/{id}", delete(drive::dismiss))
        .route("/api/phones/{phone}/assignment", get(reports::assignment).put(reports::assign))
        .route("/api/reports", get(reports::list))
        .route("/api/reports/{report}", get(reports::run))
        .route("/api/reports/{report}/records/{table}", get(reports::records))
        .route("/api/live", get(live::live))
        .route("/api/openapi.json", get(description))
        .fallback(console::file)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(services)
}

async fn description() -> impl axum::response::IntoResponse {
    ([(axum::http::header::CONTENT_TYPE, "application/json")], openapi())
}

/// Serves people and programs until the services' `stop`.
pub async fn serve(
    services: Services,
    address: SocketAddr,
    connections: mpsc::Receiver<crate::tls::Connection>,
) -> std::io::Result<()> {
    let stop = services.stop.clone();
    let service = router(services).into_make_service_with_connect_info::<Client>();
    let listener = Door { connections, address };
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Client(SocketAddr);

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Door>> for Client {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Door>) -> Client {
        Client(*stream.remote_addr())
    }
}

/// Connections after their TLS handshake, as axum wants them.
struct Door {
    connections: mpsc::Receiver<crate::tls::Connection>,
    address: SocketAddr,
}

impl axum::serve::Listener for Door {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            // The accepting task ended: we are stopping, and the graceful shutdown takes over.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}
