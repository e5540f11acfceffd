//! Usage intelligence: from what changes on a phone's flash to facts, and from facts to reports.
//!
//! Whenever a file event touches a database that an inspector knows, that database is read at that very position, so that
//! facts are a function of the log. Promises: an inspection changes nothing on the flash, and a damaged database stops nothing
//! but itself. Leaves out: the reports' queries, which are in the usage crate.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flash::Flash;
use serde::{Deserialize, Serialize};
use store::PhoneId;
use sync_protocol::PhonePath;
use tracing::warn;
use usage::inspect::{DATABASE_BYTES_MAX, Database, InspectError, inspector_of};
use usage::report::{Catalog, Period, PhoneEntry, ReportError, Table as Answer};
use usage::store::{FactStore, StoreError};

use crate::health::is_disk_full;
use crate::phones::{Phone, Phones};
use crate::records::{RecordError, Table};

/// Longest name of a person, department or carrier, in bytes.
const NAME_BYTES_MAX: usize = 100;
/// Databases of one phone whose trouble is remembered; a phone that damages more is told about by these.
const TROUBLES_MAX: usize = 16;

/// Who uses a phone, and on whose network: what reports are about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Assignment {
    /// The phone's user; its serial while nobody is named.
    pub person: String,
    pub department: String,
    pub carrier: String,
}

/// The databases of one phone that could not be read when they changed last, and why: by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Troubles {
    phone: PhoneId,
    databases: BTreeMap<String, String>,
}

/// A phone whose usage is not all in the reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Unread {
    pub phone: String,
    pub person: String,
    /// What could not be read, and why.
    pub trouble: String,
}

#[derive(Debug, thiserror::Error)]
pub enum IntelligenceError {
    #[error("{field} has {bytes} bytes; at most {NAME_BYTES_MAX} are kept")]
    NameTooLong { field: &'static str, bytes: usize },
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Report(#[from] ReportError),
}

#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}")]
    Flash { path: PhonePath, source: flash::FlashError },
}

/// Cloning shares it.
#[derive(Clone)]
pub struct Intelligence {
    inner: Arc<Inner>,
}

struct Inner {
    facts: FactStore,
    catalog: Catalog,
    phones: Phones,
    assignments: Table<Assignment>,
    kept_troubles: Table<Troubles>,
    /// The same, by phone.
    troubles: Mutex<HashMap<PhoneId, Troubles>>,
}

impl Intelligence {
    /// Takes up the facts in `dir`. Blocks.
    pub fn open(
        facts: FactStore,
        phones: Phones,
        assignments: Table<Assignment>,
        kept_troubles: Table<Troubles>,
    ) -> Result<Intelligence, RecordError> {
        let troubles = kept_troubles.list()?.into_iter().map(|troubles| (troubles.phone.clone(), troubles)).collect();
        let catalog = Catalog::built_in();
        let inner = Inner { facts, catalog, phones, assignments, kept_troubles, troubles: Mutex::new(troubles) };
        Ok(Intelligence { inner: Arc::new(inner) })
    }

    /// Inspects the databases that `changed` belongs to, as `flash` has them at `position`. Blocks; one caller for one phone. Fails
    /// only where the facts find no room: then nothing is noted, and the same is to be tried again.
    pub fn inspect(&self, flash: &Flash, position: u64, changed: &[PhonePath]) -> Result<(), InspectionError> {
        let mut databases: Vec<_> = changed.iter().filter_map(|path| inspector_of(path.as_bytes())).collect();
        databases.sort_by_key(|(_, path)| *path);
        databases.dedup();
        for (inspector, path) in databases {
            let outcome = read_database(flash, path, position).and_then(|database| match database {
                Some(database) => {
                    let facts = inspector.inspect(&database)?;
                    self.inner.facts.record(flash.phone().as_str(), &facts)?;
                    Ok(())
                }
                // It was removed: what it told stays known.
                None => Ok(()),
            });
            if let Err(error) = &outcome
                && is_disk_full(error)
            {
                return outcome;
            }
            if let Err(error) = &outcome {
                warn!(phone = %flash.phone(), position, error = %crate::chain::Chain(error), "usage is not read");
            }
            self.note(flash.phone(), path, outcome.err().map(|error| error.to_string()));
        }
        Ok(())
    }

    /// Notes why the database at `path` could not be read, or that it could.
    fn note(&self, phone: &PhoneId, path: &[u8], trouble: Option<String>) {
        let path = path.escape_ascii().to_string();
        let changed = {
            let mut troubles = self.troubles();
            let of_phone = troubles.entry(phone.clone());
            let of_phone = of_phone.or_insert_with(|| Troubles { phone: phone.clone(), databases: BTreeMap::new() });
            let before = of_phone.databases.clone();
            match trouble {
                None => drop(of_phone.databases.remove(&path)),
                Some(_) if before.len() >= TROUBLES_MAX && !before.contains_key(&path) => {}
                Some(trouble) => drop(of_phone.databases.insert(path, trouble)),
            }
            (of_phone.databases != before).then(|| of_phone.clone())
        };
        if let Some(Err(error)) = changed.map(|troubles| self.inner.kept_troubles.put(phone.as_str(), &troubles)) {
            warn!(%phone, error = %crate::chain::Chain(&error), "that usage is not read will be forgotten with a restart");
        }
    }

    /// Which of the phone's databases could not be read when they changed last, and why; if any.
    pub fn trouble(&self, phone: &PhoneId) -> Option<String> {
        let told = |troubles: &Troubles| troubles.databases.values().cloned().collect::<Vec<_>>().join("; ");
        self.troubles().get(phone).map(told).filter(|text| !text.is_empty())
    }

    /// Whose usage is not all in the reports. Blocks.
    pub fn unread(&self) -> Result<Vec<Unread>, IntelligenceError> {
        let troubled = self.inner.phones.list().into_iter().filter_map(|phone| Some((self.trouble(&phone.id)?, phone)));
        troubled.map(|(trouble, phone)| Ok(Unread { phone: phone.description.serial.clone(), person: self.entry(phone)?.person, trouble })).collect()
    }

    /// Who uses the phone. Blocks.
    pub fn assignment(&self, phone: &PhoneId) -> Result<Assignment, IntelligenceError> {
        Ok(self.inner.assignments.get(phone.as_str())?.unwrap_or_default())
    }

    /// Says who uses the phone; its facts, past ones too, are reported so. Blocks.
    pub fn assign(&self, phone: &PhoneId, assignment: &Assignment) -> Result<(), IntelligenceError> {
        let fields =
            [("person", &assignment.person), ("department", &assignment.department), ("carrier", &assignment.carrier)];
        for (field, value) in fields {
            if value.len() > NAME_BYTES_MAX {
                return Err(IntelligenceError::NameTooLong { field, bytes: value.len() });
            }
        }
        Ok(self.inner.assignments.put(phone.as_str(), assignment)?)
    }

    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// Runs a report over all phones' facts.
    pub async fn run(&self, report: &str, period: Period) -> Result<Answer, IntelligenceError> {
        let directory = self.directory().await?;
        Ok(self.inner.catalog.report(report)?.run(&self.inner.facts, &directory, period).await?)
    }

    /// The records behind a row of a report; `row` has the values of the columns that the report's `records` line names.
    pub async fn records(
        &self,
        report: &str,
        period: Period,
        table: &str,
        row: &[(String, String)],
    ) -> Result<Answer, IntelligenceError> {
        let directory = self.directory().await?;
        let report = self.inner.catalog.report(report)?;
        Ok(report.records(&self.inner.facts, &directory, period, table, row).await?)
    }

    async fn directory(&self) -> Result<Vec<PhoneEntry>, IntelligenceError> {
        let this = self.clone();
        let entries = tokio::task::spawn_blocking(move || {
            this.inner.phones.list().into_iter().map(|phone| this.entry(phone)).collect()
        });
        entries.await.unwrap_or_else(|_| Ok(Vec::new()))
    }

    fn entry(&self, phone: Phone) -> Result<PhoneEntry, IntelligenceError> {
        let assignment = self.assignment(&phone.id)?;
        let person = if assignment.person.is_empty() { phone.description.serial } else { assignment.person };
        let Assignment { department, carrier, .. } = assignment;
        Ok(PhoneEntry { phone: phone.id.to_string(), person, department, carrier })
    }

    fn troubles(&self) -> MutexGuard<'_, HashMap<PhoneId, Troubles>> {
        self.inner.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A database and what belongs to it; `None` if there is none.
fn read_database(flash: &Flash, path: &[u8], position: u64) -> Result<Option<Database>, InspectionError> {
    let main = read_file(flash, path.to_vec())?;
    let Some(main) = main else { return Ok(None) };
    let wal = read_file(flash, [path, b"-wal"].concat())?;
    let journal = read_file(flash, [path, b"-journal"].concat())?;
    Ok(Some(Database { path: path.to_vec(), position, main, wal, journal }))
}

/// A file's content; `None` if it is not there. One that is too large to be inspected is read just far enough to be refused.
fn read_file(flash: &Flash, path: Vec<u8>) -> Result<Option<Vec<u8>>, InspectionError> {
    // The path comes from one that was valid, with a suffix that is.
    let Ok(path) = PhonePath::new(path) else { return Ok(None) };
    let Some(listed) = flash.stat(&path).filter(|listed| listed.format == libc::S_IFREG) else { return Ok(None) };
    let size = usize::try_from(listed.size).unwrap_or(usize::MAX).min(DATABASE_BYTES_MAX + 1);
    let content = flash.read(&path, 0, size).map_err(|source| InspectionError::Flash { path: path.clone(), source })?;
    Ok(Some(content.into()))
}
