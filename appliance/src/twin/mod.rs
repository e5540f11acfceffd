//! Twins: which run, which are parked, and how to make them do either.
//!
//! One [`keeper`] task per phone owns that phone's machine, its flash server and the feeding of the log into it; everybody else
//! asks the keeper. Promises: at most `running_max` machines run; no process is left after shutdown; a machine that dies
//! takes nothing with it and is started again a few times. Leaves out: what is fed ([`crate::replay`]).

mod base;
pub mod control;
mod decide;
mod fork;
mod gate;
mod keeper;
mod launch;
pub mod process;
mod shortage;
mod spare;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::PhoneId;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use base::Bases;
use shortage::Candidate;
pub use control::{Control, ControlError};
pub use decide::TwinState;
pub use fork::Fork;
use fork::Forks;
pub use gate::Gate;
pub use keeper::binary_beside_us;
use keeper::{Keeper, Request};
pub use process::ProcessError;
use spare::Spares;

use crate::config::TwinsConfig;
use crate::flashes::{Flashes, FlashesError, TwinFlash};
use crate::live::Live;
use crate::log::{LogError, PhoneLogs};
use crate::phones::{Phone, Phones, Standing};
use crate::records::Table;
use crate::replay::KeptOrigins;

/// Requests that wait for one keeper.
const REQUESTS_MAX: usize = 16;
/// Between two looks at the host's means.
const MEANS_LOOK: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    #[error("the twin does not run")]
    NotRunning,
    #[error("the phone is not released, so nothing of it runs")]
    NotReleased,
    #[error("{0} twins run already, as many as may; park one first, or raise twins.running_max")]
    TooMany(usize),
    #[error("the phone's first scan of its files has not been received yet; the twin starts by itself when it has")]
    Incomplete,
    #[error("{0} forks of this twin run already, as many as may; end one first")]
    TooManyForks(usize),
    #[error("this twin has no fork {0}")]
    NoFork(u32),
    #[error("the twin does not run, so it cannot be parked")]
    NothingToPark,
    #[error("no machine can begin with the image's base snapshot: {0}")]
    Base(ProcessError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Flash(#[from] FlashesError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the appliance is stopping")]
    Stopping,
}

/// How a twin is.
#[derive(Debug, Clone)]
pub struct TwinStatus {
    pub state: TwinState,
    pub since_us: u64,
    pub detail: String,
    pub restarts: u32,
    pub pid: Option<u32>,
    /// Last position of the log that reached it.
    pub fed: u64,
    /// How its machine ended last, if it ever did by itself.
    pub last_end: Option<End>,
    pub running: Option<Running>,
}

/// How a machine ended by itself.
#[derive(Debug, Clone)]
pub struct End {
    pub at_us: u64,
    /// One line for people.
    pub how: String,
    /// What its guest printed last on the serial console; empty if nobody could tell.
    pub last_words: String,
}

/// What others may use of a running machine.
#[derive(Debug, Clone)]
pub struct Running {
    pub control: Control,
    /// What its machine runs on, and if that is slow, why; for people.
    pub cpu: String,
    pub rfb: PathBuf,
    pub flash: TwinFlash,
    pub width: u16,
    pub height: u16,
}

impl Default for TwinStatus {
    fn default() -> TwinStatus {
        TwinStatus {
            state: TwinState::Stopped,
            since_us: 0,
            detail: String::new(),
            restarts: 0,
            pid: None,
            fed: 0,
            last_end: None,
            running: None,
        }
    }
}

/// The manager: hands requests to keepers, and knows what they say.
#[derive(Clone)]
pub struct Twins {
    inner: Arc<Inner>,
}

struct Inner {
    config: TwinsConfig,
    /// Folders of running machines.
    runtime: PathBuf,
    /// Folders of parked machines.
    parked: PathBuf,
    bases: Bases,
    spares: Spares,
    forks: Forks,
    slots: Arc<Semaphore>,
    phones: Phones,
    flashes: Flashes,
    logs: PhoneLogs,
    leads: crate::drive::Leads,
    origins: Table<KeptOrigins>,
    live: Live,
    tasks: TaskTracker,
    stop: CancellationToken,
    keepers: Mutex<HashMap<PhoneId, Handle>>,
}

#[derive(Clone)]
struct Handle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<TwinStatus>,
    usage: Arc<Mutex<Usage>>,
}

/// How a twin is used by people.
#[derive(Debug)]
struct Usage {
    users: usize,
    /// When it was last begun or ended to be used.
    at: Instant,
}

/// Whoever uses a twin; it is not parked for want of room while this lives.
pub struct InUse(Arc<Mutex<Usage>>);

impl InUse {
    fn begin(usage: &Arc<Mutex<Usage>>) -> InUse {
        lock(usage).users += 1;
        InUse(usage.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = lock(&self.0);
        usage.users -= 1;
        usage.at = Instant::now();
    }
}

/// What the manager is made of.
pub struct TwinsParts {
    pub config: TwinsConfig,
    pub runtime: PathBuf,
    pub parked: PathBuf,
    pub phones: Phones,
    pub flashes: Flashes,
    pub logs: PhoneLogs,
    /// Where guests' changes go that were made while an operator drives.
    pub leads: crate::drive::Leads,
    pub origins: Table<KeptOrigins>,
    pub live: Live,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Inner {
    /// The phone, if it may have a machine.
    fn released(&self, phone: &PhoneId) -> Result<Phone, TwinError> {
        let phone = self.phones.find(phone.as_str()).map_err(|_| TwinError::NotReleased)?;
        if phone.standing == Standing::Released { Ok(phone) } else { Err(TwinError::NotReleased) }
    }

    /// The program of machines' processes.
    fn binary(&self) -> PathBuf {
        self.config.binary.clone().unwrap_or_else(binary_beside_us)
    }
}

impl Twins {
    pub fn new(parts: TwinsParts) -> Twins {
        let TwinsParts { config, runtime, parked, phones, flashes, logs, leads, origins, live, tasks, stop } = parts;
        let slots = Arc::new(Semaphore::new(config.running_max));
        let (keepers, bases, spares, forks) = (Mutex::default(), Bases::default(), Spares::default(), Forks::default());
        let inner =
            Inner { config, runtime, parked, bases, spares, forks, slots, phones, flashes, logs, leads, origins, live, tasks, stop, keepers };
        Twins { inner: Arc::new(inner) }
    }

    pub fn running_max(&self) -> usize {
        self.inner.config.running_max
    }

    /// How many machines run.
    pub fn running(&self) -> usize {
        self.running_max() - self.inner.slots.available_permits()
    }

    pub fn status(&self, phone: &PhoneId) -> TwinStatus {
        self.keepers().get(phone).map(|keeper| keeper.status.borrow().clone()).unwrap_or_default()
    }

    /// Follows a twin's status.
    pub fn watch(&self, phone: &PhoneId) -> watch::Receiver<TwinStatus> {
        self.keeper(phone).status
    }

    /// The running machine.
    pub fn machine(&self, phone: &PhoneId) -> Result<Running, TwinError> {
        self.status(phone).running.ok_or(TwinError::NotRunning)
    }

    pub fn control(&self, phone: &PhoneId) -> Result<Control, TwinError> {
        Ok(self.machine(phone)?.control)
    }

    /// The last output of the machine's serial console.
    pub async fn console(&self, phone: &PhoneId) -> Result<String, TwinError> {
        Ok(self.control(phone)?.console_tail().await?)
    }

    /// Starts the twin, or resumes it where it was parked. Nothing happens if it runs. If as many run as may, the least used of those that
    /// nobody uses is parked.
    pub async fn start(&self, phone: &PhoneId) -> Result<(), TwinError> {
        let _used = self.in_use(phone);
        match self.ask(phone, Request::Start).await {
            Err(TwinError::TooMany(max)) => {
                let least = shortage::least_used(self.candidates(), true).ok_or(TwinError::TooMany(max))?;
                self.park_for_room(&least, &format!("{max} twins run, as many as may, and another was asked for")).await;
                self.ask(phone, Request::Start).await
            }
            started => started,
        }
    }

    /// Saves the machine and ends its process.
    pub async fn park(&self, phone: &PhoneId) -> Result<(), TwinError> {
        self.ask(phone, |reply| Request::Park(reply, String::new())).await
    }

    /// Says that somebody uses the twin, for as long as what this gives lives.
    pub fn in_use(&self, phone: &PhoneId) -> InUse {
        InUse::begin(&self.keeper(phone).usage)
    }

    /// Has a machine wait for the first twin that is asked for, of each image that a released phone has.
    pub async fn prepare(self) {
        let prepare = move || {
            let released = self.inner.phones.list().into_iter().filter(|phone| phone.standing == Standing::Released);
            let of_images: HashMap<String, Phone> = released.map(|phone| (phone.description.image.clone(), phone)).collect();
            // A phone whose image is not here has no twin.
            let images = of_images.values().filter_map(|phone| self.inner.flashes.image_of(phone).ok());
            images.for_each(|image| self.inner.prepare_spare(image));
        };
        if let Err(error) = tokio::task::spawn_blocking(prepare).await {
            warn!(%error, "no machine waits for the first twin");
        }
    }

    /// Parks the least used twin, one at a time, whenever the host runs short of memory or processors. Ends with the appliance.
    pub async fn keep_within_means(self) {
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(MEANS_LOOK) => {}
            }
            let short = tokio::task::spawn_blocking(shortage::now).await.unwrap_or_default();
            if let Some(short) = short
                && let Some(least) = shortage::least_used(self.candidates(), false)
            {
                self.park_for_room(&least, &short.to_string()).await;
            }
        }
    }

    async fn park_for_room(&self, least: &Candidate, why: &str) {
        let minutes = least.unused_for.as_secs() / 60;
        let why = format!("parked because {why}; nobody had used it for {minutes} min");
        warn!(phone = %least.phone, why, "the least used twin is parked");
        if let Err(error) = self.ask(&least.phone, |reply| Request::Park(reply, why)).await {
            warn!(phone = %least.phone, %error, "it cannot be parked");
        }
    }

    /// The twins that run.
    fn candidates(&self) -> Vec<Candidate> {
        let running = |handle: &Handle| handle.status.borrow().state == TwinState::Running;
        let keepers = self.keepers();
        let running = keepers.iter().filter(|(_, handle)| running(handle));
        let candidates = running.map(|(phone, handle)| {
            let usage = lock(&handle.usage);
            Candidate { phone: phone.clone(), in_use: usage.users > 0, unused_for: usage.at.elapsed() }
        });
        candidates.collect()
    }

    /// Ends the machine and forgets it.
    pub async fn stop(&self, phone: &PhoneId) -> Result<(), TwinError> {
        self.ask(phone, Request::Stop).await
    }

    /// Like [`Twins::start`] for a twin that nobody has stopped or parked on purpose, without waiting for it.
    pub fn start_by_itself(&self, phone: &PhoneId) {
        if self.inner.config.autostart {
            self.tell(phone, Request::StartByItself);
        }
    }

    /// Like [`Twins::stop`], without waiting for it; its forks end too.
    pub fn stop_soon(&self, phone: &PhoneId) {
        self.forks(phone).iter().for_each(Fork::end);
        if self.keepers().contains_key(phone) {
            self.tell(phone, |reply| Request::Stop(reply));
        }
    }

    fn tell(&self, phone: &PhoneId, request: impl FnOnce(oneshot::Sender<Result<(), TwinError>>) -> Request) {
        let (reply, _) = oneshot::channel();
        // A full queue holds requests enough that settle the twin's state; a closed one means that we are stopping.
        let _ = self.keeper(phone).requests.try_send(request(reply));
    }

    async fn ask(
        &self,
        phone: &PhoneId,
        request: impl FnOnce(oneshot::Sender<Result<(), TwinError>>) -> Request,
    ) -> Result<(), TwinError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.keeper(phone).requests;
        requests.send(request(reply)).await.map_err(|_| TwinError::Stopping)?;
        answer.await.map_err(|_| TwinError::Stopping)?
    }

    /// The phone's keeper, made when first asked for.
    fn keeper(&self, phone: &PhoneId) -> Handle {
        let mut keepers = self.keepers();
        if let Some(handle) = keepers.get(phone) {
            return handle.clone();
        }
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let (status, watched) = watch::channel(TwinStatus::default());
        let keeper = Keeper::new(phone.clone(), self.inner.clone(), status);
        self.inner.tasks.spawn(keeper.run(waiting));
        let usage = Arc::new(Mutex::new(Usage { users: 0, at: Instant::now() }));
        let handle = Handle { requests, status: watched, usage };
        keepers.insert(phone.clone(), handle.clone());
        handle
    }

    fn keepers(&self) -> MutexGuard<'_, HashMap<PhoneId, Handle>> {
        lock(&self.inner.keepers)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
