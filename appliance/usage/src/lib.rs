//! Usage intelligence (MAI): what phones were used for, from their own records.
//!
//! ```text
//! twin's flash ── inspect ──▶ facts ── store (Parquet) ──▶ report (.sql on DataFusion) ──▶ table, chart
//!                                                              └── records: the facts behind a row
//! ```
//! Inspectors read copies of the databases a phone keeps and never change them. Every [`fact::Fact`] says where it
//! came from, so each row of a report leads back to its records. This crate knows neither the log nor the network:
//! the appliance hands it file contents and the directory of phones.

pub mod fact;
pub mod inspect;
pub mod report;
pub mod store;
