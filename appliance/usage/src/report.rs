//! Reports: one `.sql` file each, run by DataFusion over the facts.
//!
//! A report opens with a header of comment lines, then is one query:
//! ```text
//! -- title: Calls by person and carrier
//! -- about: One sentence for the reader.
//! -- chart: bar minutes by person, carrier     kind, measures, and what labels them
//! -- records: calls by person, carrier         a row's records: those of the table that agree in these columns
//! ```
//! It sees the tables `calls` and `messages` (the columns of [`Kind::schema`] less `told_twice`, and, from the directory of phones,
//! `person`, `department`, `carrier`) and the parameters `$from` and `$to` (the period asked for, `$to` excluded) and
//! `$prior` (the start of the period of equal length before). It can only read.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{ParquetReadOptions, SQLOptions, SessionConfig, SessionContext};
use serde::Serialize;
use serde_json::Value;

use crate::store::{FactStore, Kind};

/// The most rows an answer has; more could not be read, and would not fit a page.
pub const ROWS_MAX: usize = 10_000;
/// Memory one run may use; a query that wants more fails with a clear error.
pub const MEMORY_BYTES_MAX: usize = 512 << 20;

const BUILT_IN: [(&str, &str); 3] = [
    ("calls_by_person_and_carrier", include_str!("../reports/calls_by_person_and_carrier.sql")),
    ("messages_by_person", include_str!("../reports/messages_by_person.sql")),
    ("overall_activity", include_str!("../reports/overall_activity.sql")),
];

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("there is no report {0:?}")]
    Unknown(String),
    #[error("report {name}, header line {line:?}: {reason}")]
    Header { name: String, line: String, reason: &'static str },
    #[error("the period ends before it begins")]
    Period,
    #[error("report {name} has no records behind a row of {table}")]
    NoRecords { name: String, table: String },
    #[error("report {name} cannot be run: {}", source.strip_backtrace())]
    Query { name: String, source: Box<DataFusionError> },
    #[error("records of {table} need a value for {column}")]
    MissingKey { table: String, column: String },
}

/// What the appliance knows of a phone's user, joined to its facts.
#[derive(Clone, Debug, Default)]
pub struct PhoneEntry {
    /// As given to [`FactStore::record`].
    pub phone: String,
    pub person: String,
    pub department: String,
    pub carrier: String,
}

/// The period of a report in microseconds since the epoch (UTC), `to_us` excluded.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    pub from_us: i64,
    pub to_us: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chart {
    /// Only `bar` so far.
    pub kind: String,
    /// Columns drawn as numbers.
    pub measures: Vec<String>,
    /// Columns that label a bar.
    pub by: Vec<String>,
}

/// Which records are behind a row: those of `table` that agree with the row in the columns `by`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Records {
    pub table: String,
    pub by: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub name: String,
    pub title: String,
    pub about: String,
    pub chart: Option<Chart>,
    pub records: Vec<Records>,
    #[serde(skip)]
    sql: String,
}

/// An answer: columns, and rows of as many JSON values. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
    /// Whether rows beyond [`ROWS_MAX`] were left out.
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: ColumnType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    Text,
    Number,
    Time,
    Boolean,
}

/// The reports that there are.
pub struct Catalog(Vec<Report>);

impl Catalog {
    /// The reports that come with Pollux.
    pub fn built_in() -> Catalog {
        let parsed = BUILT_IN.iter().map(|(name, text)| Report::parse(name, text).expect("built-in reports are well formed, as a test shows"));
        Catalog(parsed.collect())
    }

    pub fn reports(&self) -> &[Report] {
        &self.0
    }

    pub fn report(&self, name: &str) -> Result<&Report, ReportError> {
        self.0.iter().find(|r| r.name == name).ok_or_else(|| ReportError::Unknown(name.into()))
    }
}

impl Report {
    /// Parses a report file; `name` is its file name without `.sql`.
    pub fn parse(name: &str, text: &str) -> Result<Report, ReportError> {
        let mut report =
            Report { name: name.into(), title: name.into(), about: String::new(), chart: None, records: Vec::new(), sql: text.into() };
        for line in text.lines().map_while(|line| line.strip_prefix("--")) {
            let wrong = |reason| ReportError::Header { name: name.into(), line: line.trim().into(), reason };
            let Some((key, value)) = line.split_once(':') else { return Err(wrong("expected `key: value`")) };
            let value = value.trim();
            match key.trim() {
                "title" => report.title = value.into(),
                "about" => report.about = value.into(),
                "chart" => report.chart = Some(parse_chart(value).map_err(wrong)?),
                "records" => report.records.push(parse_records(value).map_err(wrong)?),
                _ => return Err(wrong("known keys are title, about, chart and records")),
            }
        }
        Ok(report)
    }

    /// Runs the report.
    pub async fn run(&self, facts: &FactStore, phones: &[PhoneEntry], period: Period) -> Result<Table, ReportError> {
        let parameters = period.parameters()?;
        self.query(facts, phones, &self.sql, parameters).await
    }

    /// The records behind one row: all columns of the facts in `table` that agree with `row` (column name and value)
    /// in what the header's `records` line names.
    pub async fn records(
        &self,
        facts: &FactStore,
        phones: &[PhoneEntry],
        period: Period,
        table: &str,
        row: &[(String, String)],
    ) -> Result<Table, ReportError> {
        let no_records = || ReportError::NoRecords { name: self.name.clone(), table: table.into() };
        let records = self.records.iter().find(|r| r.table == table).ok_or_else(no_records)?;
        let mut parameters = period.parameters()?;
        let mut conditions = String::new();
        for column in &records.by {
            let missing = || ReportError::MissingKey { table: table.into(), column: column.clone() };
            let (_, value) = row.iter().find(|(name, _)| name == column).ok_or_else(missing)?;
            parameters.push((format!("row_{column}"), ScalarValue::Utf8(Some(value.clone()))));
            conditions += &format!(" AND {column} = $row_{column}");
        }
        let time = if table == Kind::Calls.table() { "started" } else { "at" };
        let sql = format!("SELECT * FROM {table} WHERE {time} >= $from AND {time} < $to{conditions} ORDER BY {time}, source_row");
        self.query(facts, phones, &sql, parameters).await
    }

    async fn query(
        &self,
        facts: &FactStore,
        phones: &[PhoneEntry],
        sql: &str,
        parameters: Vec<(String, ScalarValue)>,
    ) -> Result<Table, ReportError> {
        let answer = async {
            let context = context(facts, phones).await?;
            let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
            let frame = context.sql_with_options(sql, read_only).await?;
            let frame = frame.with_param_values(ParamValues::from(parameters))?.limit(0, Some(ROWS_MAX + 1))?;
            let schema = frame.schema().as_arrow().clone();
            table(&schema, &frame.collect().await?)
        };
        answer.await.map_err(|source: DataFusionError| ReportError::Query { name: self.name.clone(), source: Box::new(source) })
    }
}

impl Period {
    fn parameters(self) -> Result<Vec<(String, ScalarValue)>, ReportError> {
        let length = self.to_us.checked_sub(self.from_us).filter(|l| *l >= 0).ok_or(ReportError::Period)?;
        let prior = self.from_us.saturating_sub(length);
        let time = |us| ScalarValue::TimestampMicrosecond(Some(us), None);
        Ok(vec![("from".into(), time(self.from_us)), ("to".into(), time(self.to_us)), ("prior".into(), time(prior))])
    }
}

fn parse_chart(value: &str) -> Result<Chart, &'static str> {
    let shape = "expected `bar MEASURE, ... by LABEL, ...`";
    let (kind, rest) = value.split_once(' ').ok_or(shape)?;
    if kind != "bar" {
        return Err("the only chart is `bar`");
    }
    let (measures, by) = rest.split_once(" by ").ok_or(shape)?;
    Ok(Chart { kind: kind.into(), measures: identifiers(measures)?, by: identifiers(by)? })
}

fn parse_records(value: &str) -> Result<Records, &'static str> {
    let (table, by) = value.split_once(" by ").ok_or("expected `TABLE by COLUMN, ...`")?;
    if !Kind::ALL.iter().any(|kind| kind.table() == table.trim()) {
        return Err("the tables are calls and messages");
    }
    Ok(Records { table: table.trim().into(), by: identifiers(by)? })
}

/// Names that go into SQL as they are, so nothing else may be in them.
fn identifiers(list: &str) -> Result<Vec<String>, &'static str> {
    let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    let sound = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    names.iter().all(sound).then_some(names).ok_or("column names are lower-case letters and underscores")
}

/// A session that sees the facts of all phones, and nothing else.
async fn context(facts: &FactStore, phones: &[PhoneEntry]) -> Result<SessionContext, DataFusionError> {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY_BYTES_MAX, 1.0).build_arc()?;
    let context = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
    context.register_table("phones", Arc::new(directory(phones)?))?;
    for kind in Kind::ALL {
        let (name, schema) = (kind.table(), kind.schema());
        let options = ParquetReadOptions::default().schema(&schema);
        let dir = facts.table_dir(kind);
        context.register_parquet(format!("{name}_facts"), dir.to_string_lossy(), options).await?;
        // A call that two databases told of is counted once.
        let (but, once) = match kind {
            Kind::Calls => ("EXCEPT (told_twice)", "WHERE f.told_twice IS NOT TRUE"),
            Kind::Messages => ("", ""),
        };
        let joined = format!(
            "CREATE VIEW {name} AS SELECT f.* {but}, coalesce(p.person, '') AS person, coalesce(p.department, '') AS department, \
             coalesce(p.carrier, '') AS carrier FROM {name}_facts f LEFT JOIN phones p ON f.phone = p.phone {once}"
        );
        context.sql(&joined).await?.collect().await?;
    }
    Ok(context)
}

fn directory(phones: &[PhoneEntry]) -> Result<MemTable, DataFusionError> {
    let names = ["phone", "person", "department", "carrier"];
    let schema = Arc::new(Schema::new(names.map(|name| Field::new(name, DataType::Utf8, false)).to_vec()));
    let of = |field: fn(&PhoneEntry) -> &str| Arc::new(StringArray::from_iter_values(phones.iter().map(field))) as ArrayRef;
    let columns = vec![of(|p| &p.phone), of(|p| &p.person), of(|p| &p.department), of(|p| &p.carrier)];
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    MemTable::try_new(schema, vec![vec![batch]])
}

fn table(schema: &Schema, batches: &[RecordBatch]) -> Result<Table, DataFusionError> {
    let columns = schema.fields().iter().map(|f| Column { name: f.name().clone(), kind: column_type(f.data_type()) }).collect();
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter().map(|column| Ok(json(ScalarValue::try_from_array(column, row)?)));
            rows.push(values.collect::<Result<Vec<Value>, DataFusionError>>()?);
        }
    }
    let truncated = rows.len() > ROWS_MAX;
    rows.truncate(ROWS_MAX);
    Ok(Table { columns, rows, truncated })
}

fn column_type(data_type: &DataType) -> ColumnType {
    match data_type {
        t if t.is_numeric() => ColumnType::Number,
        DataType::Timestamp(..) => ColumnType::Time,
        DataType::Boolean => ColumnType::Boolean,
        _ => ColumnType::Text,
    }
}

fn json(value: ScalarValue) -> Value {
    match value {
        value if value.is_null() => Value::Null,
        ScalarValue::Boolean(Some(b)) => b.into(),
        ScalarValue::Int64(Some(n)) => n.into(),
        ScalarValue::UInt64(Some(n)) => n.into(),
        ScalarValue::Int32(Some(n)) => n.into(),
        ScalarValue::Float64(Some(n)) => n.into(),
        ScalarValue::TimestampMicrosecond(Some(us), _) => rfc3339(us).into(),
        other => other.to_string().into(),
    }
}

/// A time a machine and a person can both read; empty for years beyond 9999, which no phone means.
fn rfc3339(us: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000);
    time.ok().and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}
