//! The whole line on real machines: a phone's life, its twin, help desk's hand, and the reports.

mod console;
mod foreign;
mod life;
mod trouble;
