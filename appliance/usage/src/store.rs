//! Facts at rest: one Parquet file per phone and kind, `calls/PHONE.parquet` and `messages/PHONE.parquet`.
//!
//! A fact is identified by the database and row it came from and the time it is about. What a phone's user later
//! deletes there stays here, as the log says that it happened; what changes (a call that ends) replaces its earlier
//! self. The files can be thrown away and made again from the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::parquet::errors::ParquetError;

use crate::fact::{self, Call, Direction, Fact, Message, Network, Provenance};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("facts of phone {phone}: {operation} {path}")]
    File { phone: String, operation: &'static str, path: PathBuf, source: io::Error },
    #[error("facts in {path} are damaged; remove the file and rebuild facts from the log")]
    Damaged { path: PathBuf, source: ParquetError },
    #[error("facts cannot be laid out as columns")]
    Columns(#[from] ArrowError),
    #[error("{0:?} cannot name a phone: letters, digits, '-' and '_' only")]
    PhoneName(String),
}

/// The facts of all phones, in one directory.
#[derive(Clone, Debug)]
pub struct FactStore {
    dir: PathBuf,
}

/// The kinds of fact, each a table of the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Calls,
    Messages,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Calls, Kind::Messages];

    /// Name of the table and of its directory.
    pub fn table(self) -> &'static str {
        match self {
            Kind::Calls => "calls",
            Kind::Messages => "messages",
        }
    }

    pub fn schema(self) -> SchemaRef {
        let time = || DataType::Timestamp(TimeUnit::Microsecond, None);
        let own = match self {
            Kind::Calls => vec![
                Field::new("started", time(), false),
                Field::new("answered", time(), true),
                Field::new("ended", time(), true),
                Field::new("duration_s", DataType::Float64, false),
                // From here on: since the agent keeps a usage database. Null where it is not the source.
                Field::new("dropped", DataType::Boolean, true),
                Field::new("roaming", DataType::Boolean, true),
                Field::new("operator", DataType::Utf8, true),
                Field::new("technology", DataType::Utf8, true),
                Field::new("tower", DataType::Utf8, true),
                Field::new("signal_pct", DataType::Int64, true),
                Field::new("told_twice", DataType::Boolean, true),
            ],
            Kind::Messages => vec![Field::new("at", time(), false), Field::new("size_bytes", DataType::Int64, false)],
        };
        let common = vec![
            Field::new("phone", DataType::Utf8, false),
            Field::new("direction", DataType::Utf8, false),
            Field::new("party", DataType::Utf8, false),
            Field::new("source_path", DataType::Utf8, false),
            Field::new("source_row", DataType::Int64, false),
            Field::new("position", DataType::UInt64, false),
        ];
        Arc::new(Schema::new(common.into_iter().chain(own).collect::<Vec<_>>()))
    }
}

/// What makes two facts the same: source path, source row, time.
type Key = (String, i64, i64);

impl FactStore {
    /// Opens the store in `dir`, which is made if need be.
    pub fn open(dir: &Path) -> io::Result<FactStore> {
        for kind in Kind::ALL {
            std::fs::create_dir_all(dir.join(kind.table()))?;
        }
        Ok(FactStore { dir: dir.to_owned() })
    }

    /// The directory whose files together are the table `kind`.
    pub fn table_dir(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.table())
    }

    /// Adds what an inspection of `phone` found, durably, and returns how many facts are new or changed. Facts keep
    /// the position at which they were first seen as they are. One caller at a time for one phone; blocking.
    pub fn record(&self, phone: &str, facts: &[Fact]) -> Result<usize, StoreError> {
        let named = !phone.is_empty() && phone.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !named {
            return Err(StoreError::PhoneName(phone.into()));
        }
        let calls = facts.iter().filter_map(|f| if let Fact::Call(c) = f { Some(c.clone()) } else { None }).collect();
        let messages = facts.iter().filter_map(|f| if let Fact::Message(m) = f { Some(m.clone()) } else { None }).collect();
        Ok(self.merge::<Call>(phone, calls)? + self.merge::<Message>(phone, messages)?)
    }

    /// Forgets a phone's facts, as before rebuilding them.
    pub fn forget(&self, phone: &str) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let path = self.path(kind, phone);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error(phone, "cannot remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, kind: Kind, phone: &str) -> PathBuf {
        self.table_dir(kind).join(format!("{phone}.parquet"))
    }

    fn merge<R: Record>(&self, phone: &str, found: Vec<R>) -> Result<usize, StoreError> {
        if found.is_empty() {
            return Ok(0);
        }
        let path = self.path(R::KIND, phone);
        let mut known: BTreeMap<Key, R> = read::<R>(phone, &path)?.into_iter().map(|r| (r.key(), r)).collect();
        let mut changed = 0;
        for record in found {
            let same = known.get(&record.key()).is_some_and(|old| old.same_as_found(&record));
            if !same {
                known.insert(record.key(), record);
                changed += 1;
            }
        }
        if changed > 0 {
            R::compare(known.values_mut());
            write(phone, &path, known.into_values().collect())?;
        }
        Ok(changed)
    }
}

/// A fact that has a table.
trait Record: Sized + Clone + PartialEq {
    const KIND: Kind;
    fn time_us(&self) -> i64;
    fn common(&self) -> (Direction, &str, &Provenance);
    fn provenance_mut(&mut self) -> &mut Provenance;
    /// The columns after the common ones, in the order of the schema.
    fn columns(records: &[Self]) -> Vec<ArrayRef>;
    fn from_row(batch: &RecordBatch, row: usize, common: (Direction, String, Provenance)) -> Self;
    /// Looks at all of a phone's records together, after some have changed.
    fn compare<'a>(_all: impl Iterator<Item = &'a mut Self>)
    where
        Self: 'a,
    {
    }
    /// Gives `found` what it has by having been seen before, or with others.
    fn take_over(&self, found: &mut Self) {
        found.provenance_mut().position = self.common().2.position;
    }

    fn key(&self) -> Key {
        let from = self.common().2;
        (from.path.clone(), from.row, self.time_us())
    }

    fn same_as_found(&self, found: &Self) -> bool {
        let mut found = found.clone();
        self.take_over(&mut found);
        *self == found
    }
}

impl Record for Call {
    const KIND: Kind = Kind::Calls;

    fn time_us(&self) -> i64 {
        self.started_us
    }

    fn common(&self) -> (Direction, &str, &Provenance) {
        (self.direction, &self.party, &self.from)
    }

    fn provenance_mut(&mut self) -> &mut Provenance {
        &mut self.from
    }

    fn columns(calls: &[Call]) -> Vec<ArrayRef> {
        let network = |of: fn(&Network) -> &str| {
            Arc::new(calls.iter().map(|c| c.network.as_ref().map(of)).collect::<StringArray>()) as ArrayRef
        };
        vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values(calls.iter().map(|c| c.started_us))),
            Arc::new(TimestampMicrosecondArray::from_iter(calls.iter().map(|c| c.answered_us))),
            Arc::new(TimestampMicrosecondArray::from_iter(calls.iter().map(|c| c.ended_us))),
            Arc::new(Float64Array::from_iter_values(calls.iter().map(Call::duration_s))),
            Arc::new(calls.iter().map(|c| c.network.as_ref().map(|n| n.dropped)).collect::<BooleanArray>()),
            Arc::new(calls.iter().map(|c| c.network.as_ref().map(|n| n.roaming)).collect::<BooleanArray>()),
            network(|n| &n.operator),
            network(|n| &n.technology),
            network(|n| &n.tower),
            Arc::new(calls.iter().map(|c| c.network.as_ref().and_then(|n| n.signal_percent)).collect::<Int64Array>()),
            Arc::new(calls.iter().map(|c| Some(c.is_told_twice)).collect::<BooleanArray>()),
        ]
    }

    fn compare<'a>(all: impl Iterator<Item = &'a mut Call>) {
        fact::mark_told_twice(&mut all.collect::<Vec<_>>());
    }

    fn take_over(&self, found: &mut Call) {
        found.from.position = self.from.position;
        found.is_told_twice = self.is_told_twice;
    }

    fn from_row(batch: &RecordBatch, row: usize, (direction, party, from): (Direction, String, Provenance)) -> Call {
        let time = |column: usize| {
            let column = batch.column(column).as_primitive::<TimestampMicrosecondType>();
            column.is_valid(row).then(|| column.value(row))
        };
        let truth = |column: usize| {
            let column = batch.columns().get(column)?.as_boolean();
            column.is_valid(row).then(|| column.value(row))
        };
        let network = truth(10).map(|dropped| {
            let text = |column: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
            let signal = batch.column(15).as_primitive::<Int64Type>();
            Network {
                dropped,
                roaming: truth(11).unwrap_or_default(),
                operator: text(12),
                technology: text(13),
                tower: text(14),
                signal_percent: signal.is_valid(row).then(|| signal.value(row)),
            }
        });
        let (started_us, is_told_twice) = (time(6).unwrap_or_default(), truth(16).unwrap_or_default());
        Call { direction, party, started_us, answered_us: time(7), ended_us: time(8), network, is_told_twice, from }
    }
}

impl Record for Message {
    const KIND: Kind = Kind::Messages;

    fn time_us(&self) -> i64 {
        self.at_us
    }

    fn common(&self) -> (Direction, &str, &Provenance) {
        (self.direction, &self.party, &self.from)
    }

    fn provenance_mut(&mut self) -> &mut Provenance {
        &mut self.from
    }

    fn columns(messages: &[Message]) -> Vec<ArrayRef> {
        vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values(messages.iter().map(|m| m.at_us))),
            Arc::new(Int64Array::from_iter_values(messages.iter().map(|m| m.size_bytes))),
        ]
    }

    fn from_row(batch: &RecordBatch, row: usize, (direction, party, from): (Direction, String, Provenance)) -> Message {
        let at_us = batch.column(6).as_primitive::<TimestampMicrosecondType>().value(row);
        Message { direction, party, at_us, size_bytes: batch.column(7).as_primitive::<Int64Type>().value(row), from }
    }
}

fn file_error(phone: &str, operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { phone: phone.into(), operation, path: path.into(), source }
}

fn read<R: Record>(phone: &str, path: &Path) -> Result<Vec<R>, StoreError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(file_error(phone, "cannot open", path))?,
    };
    let damaged = |source| StoreError::Damaged { path: path.into(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?.build().map_err(damaged)?;
    let mut records = Vec::new();
    for batch in reader {
        let batch = batch?;
        if !is_of_this_or_an_earlier_version(&batch.schema(), &R::KIND.schema()) {
            let reason = ParquetError::General("its columns are of another version".into());
            return Err(damaged(reason));
        }
        records.extend((0..batch.num_rows()).map(|row| R::from_row(&batch, row, common(&batch, row))));
    }
    Ok(records)
}

/// Columns are only ever added, at the end, and are null where they were not known.
fn is_of_this_or_an_earlier_version(found: &Schema, current: &Schema) -> bool {
    let (found, current) = (found.fields(), current.fields());
    current.get(..found.len()) == Some(&found[..]) && current[found.len()..].iter().all(|added| added.is_nullable())
}

fn common(batch: &RecordBatch, row: usize) -> (Direction, String, Provenance) {
    let text = |column: usize| batch.column(column).as_string::<i32>().value(row);
    let direction = if text(1) == "in" { Direction::In } else { Direction::Out };
    let from = Provenance {
        path: text(3).into(),
        row: batch.column(4).as_primitive::<Int64Type>().value(row),
        position: batch.column(5).as_primitive::<UInt64Type>().value(row),
    };
    (direction, text(2).into(), from)
}

/// Writes beside and renames, so that a reader or a crash sees the old file or the new one.
fn write<R: Record>(phone: &str, path: &Path, records: Vec<R>) -> Result<(), StoreError> {
    let text = |of: fn(&R) -> &str| Arc::new(StringArray::from_iter_values(records.iter().map(of))) as ArrayRef;
    let mut columns = vec![
        Arc::new(StringArray::from_iter_values(records.iter().map(|_| phone))) as ArrayRef,
        text(|r| r.common().0.as_str()),
        text(|r| r.common().1),
        text(|r| &r.common().2.path),
        Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.common().2.row))),
        Arc::new(UInt64Array::from_iter_values(records.iter().map(|r| r.common().2.position))),
    ];
    columns.extend(R::columns(&records));
    let batch = RecordBatch::try_new(R::KIND.schema(), columns)?;

    let temporary = path.with_extension("parquet.new");
    let file = File::create(&temporary).map_err(file_error(phone, "cannot write", &temporary))?;
    let to_io = |e: ParquetError| file_error(phone, "cannot write", &temporary)(io::Error::other(e));
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(to_io)?;
    writer.write(&batch).map_err(to_io)?;
    let file = writer.into_inner().map_err(to_io)?;
    file.sync_all().map_err(file_error(phone, "cannot flush", &temporary))?;
    std::fs::rename(&temporary, path).map_err(file_error(phone, "cannot replace", path))
}
