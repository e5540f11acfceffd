//! The whole appliance: the only place that knows every part, and wires them.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::commands::Commands;
use crate::config::{Config, StoreBackend};
use crate::drive::{Drive, DriveParts, Leads};
use crate::flashes::Flashes;
use crate::health::Health;
use crate::http::Services;
use crate::identity::{self, Authority, AuthorityError, Logins, Role, UserError, UserName, Users};
use crate::intelligence::Intelligence;
use crate::live::Live;
use crate::log::PhoneLogs;
use crate::mounts::Mounts;
use crate::phones::{PhoneError, Phones, Standing, now_us};
use crate::proof::{Proofs, ProofsParts};
use crate::quarantine::Quarantine;
use crate::records::Table;
use crate::replay::{Replays, ReplaysParts};
use crate::scrub::{Scrub, ScrubParts};
use crate::sync::{self, Links, SyncService};
use crate::tls::{self, BindError};
use crate::twin::{Twins, TwinsParts};

/// Where the running appliance says how to reach it, inside the data folder.
const ENDPOINT_FILE: &str = "appliance.json";
/// The command line's token, inside the data folder.
const TOKEN_FILE: &str = "cli.token";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{action} {path}: {source}{}", advice(source))]
    Folder { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another appliance runs on {0}; end it first, or choose another data folder")]
    Running(PathBuf),
    #[error("cannot open the store: {0}")]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Users(#[from] UserError),
    #[error(transparent)]
    Phones(#[from] PhoneError),
    #[error(transparent)]
    Records(#[from] crate::records::RecordError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("starting was interrupted")]
    Interrupted,
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a data folder that this user may write to"
        }
        _ => "",
    }
}

/// A login that was made because there was none.
#[derive(Debug, Clone)]
pub struct FirstLogin {
    pub user: String,
    pub password: String,
}

/// A running appliance. Dropping it stops it without waiting; [`Appliance::shutdown`] waits.
pub struct Appliance {
    pub http_address: SocketAddr,
    pub sync_address: SocketAddr,
    /// Only on the first start.
    pub first_login: Option<FirstLogin>,
    pub ca_pem: String,
    pub ca_sha256: String,
    /// The command line's admin token.
    pub local_token: String,
    /// For tests and commands that run inside the appliance's process.
    pub services: Services,
    tasks: TaskTracker,
    stop: CancellationToken,
    endpoint: PathBuf,
    _lock: Flock<OwnedFd>,
}

/// What is on disk, opened.
struct Opened {
    lock: Flock<OwnedFd>,
    stored: Stored,
    first_login: Option<FirstLogin>,
    local_token: String,
}

/// What is kept in the store and beside it.
struct Stored {
    store: Store,
    authority: Arc<Authority>,
    phones: Phones,
    users: Users,
    intelligence: Intelligence,
}

impl Appliance {
    /// Starts everything, or says what stands in the way and leaves nothing running.
    pub async fn start(config: Config) -> Result<Appliance, StartError> {
        let http = tls::bind("the console", config.http_listen).await?;
        let sync = tls::bind("phones", config.sync_listen).await?;
        let address = |listener: &tokio::net::TcpListener| {
            listener.local_addr().map_err(|source| StartError::Folder {
                action: "ask for the address of a socket in",
                path: config.data.clone(),
                source,
            })
        };
        let (http_address, sync_address) = (address(&http)?, address(&sync)?);
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening));
        let opened = opened.await.map_err(|_| StartError::Interrupted)??;

        let mut names = config.names.clone();
        names.push(sync_protocol::APPLIANCE_SERVER_NAME.to_owned());
        let server = opened.stored.authority.issue_server(&names)?;
        let (console_tls, sync_tls) = (server.console_tls()?, server.sync_tls()?);

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let Opened { lock, stored, first_login, local_token } = opened;
        let parts = Parts { config: &config, stored: &stored, local_token: &local_token, sync_address, stop: &stop, tasks: &tasks };
        let (services, sync_service) = parts.wire()?;

        let connections = tls::accept(http, console_tls, stop.clone(), &tasks);
        let serving = crate::http::serve(services.clone(), http_address, connections);
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                error!(%error, "the console's server ended");
            }
        });
        let connections = tls::accept(sync, sync_tls, stop.clone(), &tasks);
        tasks.spawn(async move {
            if let Err(error) = sync::serve(sync_service, connections).await {
                error!(%error, "the phones' server ended");
            }
        });
        let endpoint = config.data.join(ENDPOINT_FILE);
        write_endpoint(&endpoint, http_address, sync_address, &stored.authority)?;
        info!(console = %http_address, phones = %sync_address, data = %config.data.display(), "the appliance runs");
        Ok(Appliance {
            http_address,
            sync_address,
            first_login,
            ca_pem: services.ca_pem.to_string(),
            ca_sha256: services.ca_sha256.to_string(),
            local_token,
            services,
            tasks,
            stop,
            endpoint,
            _lock: lock,
        })
    }

    /// Stops everything and waits until it has: twins, streams, connections, tasks.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let mounts = self.services.mounts.clone();
        self.tasks.spawn_blocking(move || mounts.remove_all());
        self.tasks.close();
        self.tasks.wait().await;
        // Whoever finds it believes that we run.
        if let Err(error) = fs::remove_file(&self.endpoint) {
            error!(%error, path = %self.endpoint.display(), "cannot remove");
        }
        info!("the appliance has stopped");
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The appliance over a store that is open, without its sockets: what a simulator runs. Its tasks run until `stop`. Blocks.
pub fn assemble(
    config: &Config,
    store: Store,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(Services, SyncService), StartError> {
    let (stored, local_token) = (Stored::open(config, store)?, local_token(&config.data.join(TOKEN_FILE))?);
    let sync_address = config.sync_listen;
    Parts { config, stored: &stored, local_token: &local_token, sync_address, stop, tasks }.wire()
}

struct Parts<'a> {
    config: &'a Config,
    stored: &'a Stored,
    local_token: &'a str,
    sync_address: SocketAddr,
    stop: &'a CancellationToken,
    tasks: &'a TaskTracker,
}

impl Parts<'_> {
    /// The wiring: what each part is given of the others. Released phones are followed from here on.
    fn wire(&self) -> Result<(Services, SyncService), StartError> {
        let Parts { config, stored, .. } = self;
        let (stop, tasks) = (self.stop.clone(), self.tasks.clone());
        let store = &stored.store;
        let phones = stored.phones.clone();
        let live = Live::default();
        let origins = Table::new(store.kv.clone(), "origins");
        let leads = Leads::default();
        let logs = PhoneLogs::new(store.log.clone(), store.kv.clone(), live.clone());
        let links = Links::new(live.clone());
        let (commands, answers) = Commands::new(logs.clone(), links.clone(), store);
        let flashes = Flashes::new(store, &config.images);
        let health = Health::new(store);
        tasks.spawn(health.clone().watch(stop.clone()));
        let twins = Twins::new(TwinsParts {
            config: config.twins.clone(),
            runtime: config.runtime(),
            parked: config.data.join("parked"),
            phones: phones.clone(),
            flashes: flashes.clone(),
            logs: logs.clone(),
            leads: leads.clone(),
            origins: origins.clone(),
            live: live.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        tasks.spawn(twins.clone().prepare());
        tasks.spawn(twins.clone().keep_within_means());
        let replays = Replays::new(ReplaysParts {
            logs: logs.clone(),
            flashes: flashes.clone(),
            twins: twins.clone(),
            intelligence: stored.intelligence.clone(),
            origins,
            phones: phones.clone(),
            live: live.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let proofs = Proofs::open(ProofsParts {
            phones: phones.clone(),
            logs: logs.clone(),
            flashes: flashes.clone(),
            commands: commands.clone(),
            verdicts: Table::new(store.kv.clone(), "verdicts"),
            live: live.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        })?;
        let drive = Drive::open(DriveParts {
            commands: commands.clone(),
            answers,
            phones: phones.clone(),
            logs: logs.clone(),
            proofs: proofs.clone(),
            links: links.clone(),
            twins: twins.clone(),
            flashes: flashes.clone(),
            leads,
            conflicts: Table::new(store.kv.clone(), "conflicts"),
            live: live.clone(),
            lifetime: config.lease_lifetime,
            tasks: tasks.clone(),
            stop: stop.clone(),
        })?;
        let scrub = Scrub::open(ScrubParts {
            store: store.clone(),
            phones: phones.clone(),
            flashes: flashes.clone(),
            logs: logs.clone(),
            commands: commands.clone(),
            kv: store.kv.clone(),
            config: config.scrub,
            stop: stop.clone(),
        })?;
        tasks.spawn(scrub.clone().run());
        let quarantine = Quarantine {
            phones: phones.clone(),
            links: links.clone(),
            replays: replays.clone(),
            twins: twins.clone(),
            drive: drive.clone(),
            live: live.clone(),
        };
        let sync = SyncService {
            authority: stored.authority.clone(),
            phones: phones.clone(),
            logs: logs.clone(),
            blobs: store.blobs.clone(),
            links: links.clone(),
            commands: commands.clone(),
            replays: replays.clone(),
            proofs: proofs.clone(),
            quarantine: quarantine.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let logins = Logins::new(stored.users.clone(), config.login_lifetime, self.local_token);
        let services = Services {
            logins: Arc::new(logins),
            phones,
            quarantine,
            logs,
            links,
            commands,
            mounts: Mounts::new(flashes.clone()),
            proofs,
            scrub,
            flashes,
            health,
            replays,
            twins,
            drive,
            intelligence: stored.intelligence.clone(),
            live,
            tasks,
            stop,
            ca_pem: stored.authority.certificate_pem().into(),
            ca_sha256: stored.authority.fingerprint().into(),
            sync_address: self.sync_address,
            started_us: now_us(),
            demo: config.demo(),
        };
        for phone in services.phones.list() {
            if phone.standing == Standing::Released {
                services.quarantine.admitted(&phone.id);
            }
        }
        Ok((services, sync))
    }
}

/// Opens what is on disk. Blocks.
fn open(config: &Config) -> Result<Opened, StartError> {
    let folder = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| StartError::Folder { action, path, source }
    };
    let data = &config.data;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(folder("cannot make the data folder", data))?;
    let lock = lock(data)?;
    let store = match config.store {
        StoreBackend::Memory => Store::memory(),
        StoreBackend::Sled => Store::open(&data.join("store"), store::EmbeddedOptions::default())?,
    };
    let stored = Stored::open(config, store)?;
    let first_login = first_login(&stored.users)?;
    let local_token = local_token(&data.join(TOKEN_FILE))?;
    Ok(Opened { lock, stored, first_login, local_token })
}

impl Stored {
    fn open(config: &Config, store: Store) -> Result<Stored, StartError> {
        let authority = Arc::new(Authority::open(&config.data.join("identity"))?);
        let phones = Phones::open(Table::new(store.kv.clone(), "phones"), Table::new(store.kv.clone(), "codes"))?;
        let path = config.data.join("facts");
        let failed = |source| StartError::Folder { action: "cannot keep facts in", path: path.clone(), source };
        let facts = usage::store::FactStore::open(&path).map_err(failed)?;
        let (assignments, troubles) = (Table::new(store.kv.clone(), "assignments"), Table::new(store.kv.clone(), "usage-troubles"));
        let intelligence = Intelligence::open(facts, phones.clone(), assignments, troubles)?;
        let users = Users::new(Table::new(store.kv.clone(), "users"));
        Ok(Stored { store, authority, phones, users, intelligence })
    }
}

/// Keeps a second appliance off the same data.
fn lock(data: &Path) -> Result<Flock<OwnedFd>, StartError> {
    let path = data.join("lock");
    let failed = |source| StartError::Folder { action: "cannot make", path: path.clone(), source };
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    Flock::lock(OwnedFd::from(file), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StartError::Running(data.to_owned()),
        other => failed(other.into()),
    })
}

fn first_login(users: &Users) -> Result<Option<FirstLogin>, StartError> {
    if !users.is_empty()? {
        return Ok(None);
    }
    let name = UserName::try_from(String::from("admin"))?;
    let password = identity::readable_secret(4);
    let user = users.add(name, Role::Admin, &password, now_us())?;
    Ok(Some(FirstLogin { user: user.name.to_string(), password }))
}

/// The command line's token: made once, readable by the owner of the data folder only.
fn local_token(path: &Path) -> Result<String, StartError> {
    match fs::read_to_string(path) {
        Ok(token) if token.trim().len() == 64 => return Ok(token.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(StartError::Folder { action: "cannot read", path: path.to_owned(), source }),
    }
    let token = identity::token();
    identity::write_private(path, token.as_bytes())?;
    Ok(token)
}

fn write_endpoint(
    path: &Path,
    http: SocketAddr,
    sync: SocketAddr,
    authority: &Authority,
) -> Result<(), StartError> {
    let endpoint = serde_json::json!({
        "console": http, "sync": sync, "ca_sha256": authority.fingerprint(), "ca_pem": authority.certificate_pem(),
        "pid": std::process::id(),
    });
    Ok(identity::write_private(path, endpoint.to_string().as_bytes())?)
}
