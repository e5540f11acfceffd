//! The agent's parts put together, started in order and stopped in the reverse one.

use std::sync::Arc;

use sync_protocol::event::{Control, ControlKind, Kind};

use crate::apply::drive::DriveHandle;
use crate::apply::uinput::Uinput;
use crate::clock;
use crate::config::Config;
use crate::control_points::files::{FilesError, FilesThread, Request};
use crate::control_points::mmi::{self, MmiThread};
use crate::control_points::stack::StackThread;
use crate::identity::{Identity, IdentityError};
use crate::journal::{Draft, Journal, JournalError, JournalThread, Origination};
use crate::link::{self, LinkError};

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the journal in the state directory")]
    Journal(#[source] JournalFailure),
    #[error("the files control point")]
    Files(#[source] FilesFailure),
    #[error("the input control point")]
    Mmi(#[source] std::io::Error),
    #[error("the stack control point")]
    Stack(#[source] std::io::Error),
    #[error("the link to the appliance")]
    Link(#[source] LinkFailure),
}

/// Failures of parts that callers cannot tell apart, only show.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct JournalFailure(JournalError);
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FilesFailure(FilesError);
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LinkFailure(LinkError);

impl From<JournalError> for AgentError {
    fn from(error: JournalError) -> Self {
        Self::Journal(JournalFailure(error))
    }
}

/// Runs until `stop` resolves, or until something fails that a restart may mend.
///
/// Nothing is captured before the phone was first admitted; from then on everything is, connected or not.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let config = Arc::new(config);
    let mut identity = Identity::open(&config.state, &config.ca_fingerprint)?;
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => return Ok(()),
        result = link::until_admitted(&config, &mut identity) => {
            result.map_err(|error| AgentError::Link(LinkFailure(error)))?;
        }
    }
    let phone_id = identity
        .admission()
        .map(|admission| admission.phone_id.clone())
        .unwrap_or_default();
    tracing::info!(phone_id, "admitted");

    let (mut journal, origination) = Journal::open(&config.state, config.journal)?;
    let (scope, mmi_off) = link::rules_in_force(&mut journal, &config.scope)?;
    report_start(&mut journal, &origination);
    let (journal, journal_thread) = JournalThread::start(journal);
    // Before files are read: the usage database is one.
    let stack_thread = StackThread::start(journal.clone(), &config.usage, config.bus.clone())
        .map_err(AgentError::Stack)?;
    let reason = if origination == Origination::Resumed {
        "start"
    } else {
        "enrolment"
    };
    let (files, files_thread) = FilesThread::start(journal.clone(), scope, reason)
        .map_err(|error| AgentError::Files(FilesFailure(error)))?;
    let (mmi, mmi_thread) = MmiThread::start(journal.clone(), &config.input_devices, mmi_off)
        .map_err(AgentError::Mmi)?;
    let panel = mmi::own_panel(&config.input_devices).unwrap_or(PANEL_WITHOUT_MODEL);
    let sink = Uinput::new(panel).map_err(|error| format!("no input devices can be made: {error}"));
    if let Err(why) = &sink {
        tracing::warn!(why, "the phone cannot be driven");
    }
    let (drive, drive_task) = DriveHandle::start(sink, config.lease_file.clone(), files.clone());

    let ends = link::Ends {
        journal,
        files: files.clone(),
        mmi: mmi.clone(),
        drive,
    };
    let result = tokio::select! {
        () = &mut stop => Ok(()),
        error = link::run(config.clone(), link::Admitted { config, identity }, ends) => Err(AgentError::Link(LinkFailure(error))),
    };
    // The link is dropped by now, and with it the handles that kept these alive.
    if drive_task.await.is_err() {
        tracing::error!("the drive task panicked");
    }
    stack_thread.join();
    mmi.stop();
    files.send(Request::Stop);
    mmi_thread.join();
    files_thread.join();
    journal_thread.join();
    result
}

/// Axes of the remote panel on a phone without a panel of its own.
const PANEL_WITHOUT_MODEL: (u32, u32) = (32_767, 32_767);

/// Journals that the agent started, and how it found its journal.
pub fn report_start(journal: &mut Journal, origination: &Origination) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let control = |kind, text| Draft {
        stamp: clock::now(),
        kind: Kind::Control(Control {
            kind,
            text,
            path: None,
            count: 0,
        }),
    };
    let started = format!(
        "pollux-agent {}, boot {}",
        env!("CARGO_PKG_VERSION"),
        boot_id.trim()
    );
    let mut drafts = vec![control(ControlKind::Started, started)];
    if let Origination::Replaced(why) = origination {
        tracing::error!(why, "the journal was damaged and is begun anew");
        drafts.push(control(
            ControlKind::JournalTrouble,
            format!("begun anew: {why}"),
        ));
    }
    // On a full disk there is no telling; the files control point will.
    if let Err(error) = journal.append(drafts) {
        tracing::warn!(%error, "cannot write the journal");
    }
}
