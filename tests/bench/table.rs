//! What a bench prints: an aligned table, or one JSON object a line (DESIGN.md, "Benchmarks").

use std::fmt::Write as _;

use serde_json::json;

/// Which way a unit is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Seconds, bytes.
    Less,
    /// Events a second.
    More,
}

/// One figure of ours, beside a peer's if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    better: Better,
    ours: f64,
    peer: Option<(String, f64)>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, better: Better, ours: f64) -> Row {
        Row { name: name.into(), unit, better, ours, peer: None }
    }

    /// Adds the peer's figure, taken in the same call.
    pub(crate) fn beside(self, name: impl Into<String>, figure: f64) -> Row {
        Row { peer: Some((name.into(), figure)), ..self }
    }

    /// How many times better than the peer we are: above 1 is ahead, whatever the unit.
    fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        Some(match self.better {
            Better::Less => peer / self.ours,
            Better::More => self.ours / peer,
        })
    }
}

/// All rows of one bench, what it could not run, and what a reader must know to judge them.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    bench: &'static str,
    rows: Vec<Row>,
    missing: Vec<(String, String)>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(bench: &'static str) -> Table {
        Table { bench, rows: Vec::new(), missing: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// A row, or a peer, that could not be run, and why.
    pub(crate) fn missing(&mut self, what: impl Into<String>, why: impl std::fmt::Display) {
        self.missing.push((what.into(), why.to_string()));
    }

    /// The geometric mean of the ratios of those rows that have a peer.
    pub(crate) fn mean_ratio(&self) -> Option<f64> {
        let logs: Vec<f64> = self.rows.iter().filter_map(Row::ratio).map(f64::ln).collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }

    /// A line for the table's foot.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// One JSON object a line.
    pub(crate) fn json(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let line = json!({
                "bench": self.bench, "row": row.name, "unit": row.unit, "ours": rounded(row.ours),
                "peer": row.peer.as_ref().map(|(_, figure)| rounded(*figure)), "peer_name": row.peer.as_ref().map(|(name, _)| name),
                "ratio": row.ratio().map(rounded),
            });
            let _ = writeln!(text, "{line}");
        }
        text
    }

    pub(crate) fn text(&self) -> String {
        let mut cells = vec![["row", "unit", "ours", "peer", "ratio"].map(str::to_owned)];
        for row in &self.rows {
            let peer = row.peer.as_ref().map(|(name, figure)| format!("{} ({name})", rounded(*figure)));
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}"));
            let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
            cells.push([row.name.clone(), row.unit.to_owned(), rounded(row.ours).to_string(), or_dash(peer), or_dash(ratio)]);
        }
        let widths: [usize; 5] = std::array::from_fn(|column| cells.iter().map(|row| row[column].len()).max().unwrap_or(0));
        let mut text = format!("{}\n", self.bench);
        for row in &cells {
            let [name, unit, ours, peer, ratio] = row;
            let [w0, w1, w2, w3, w4] = widths;
            let _ = writeln!(text, "  {name:w0$}  {unit:w1$}  {ours:>w2$}  {peer:>w3$}  {ratio:>w4$}");
        }
        for line in self.foot() {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    /// What was not run, and the notes.
    pub(crate) fn foot(&self) -> impl Iterator<Item = String> + '_ {
        let missing = self.missing.iter().map(|(what, why)| format!("not run: {what}: {why}"));
        missing.chain(self.notes.iter().cloned())
    }
}

/// To four significant digits: no more is measured.
fn rounded(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return figure;
    }
    let digits = 3 - figure.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits.abs());
    if digits >= 0 { (figure * scale).round() / scale } else { (figure / scale).round() * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_ahead_whatever_the_unit() {
        let mut table = Table::new("b");
        table.row(Row::new("time", "s", Better::Less, 2.0).beside("peer 1", 3.0));
        table.row(Row::new("rate", "1/s", Better::More, 20004.4).beside("peer 1", 10000.0));
        table.row(Row::new("alone", "ms", Better::Less, 0.123456));
        // Of 1.5 and 2.
        assert!(table.mean_ratio().is_some_and(|mean| (mean - 3f64.sqrt()).abs() < 1e-3));
        let rows: Vec<serde_json::Value> = table.json().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0], json!({"bench": "b", "row": "time", "unit": "s", "ours": 2.0, "peer": 3.0, "peer_name": "peer 1", "ratio": 1.5}));
        assert_eq!((&rows[1]["ours"], &rows[1]["ratio"]), (&json!(20000.0), &json!(2.0)));
        assert_eq!(rows[2], json!({"bench": "b", "row": "alone", "unit": "ms", "ours": 0.1235, "peer": null, "peer_name": null, "ratio": null}));
    }

    #[test]
    fn what_was_not_run_is_named() {
        let mut table = Table::new("b");
        table.missing("QEMU", "not installed");
        assert!(table.text().contains("not run: QEMU: not installed") && !table.is_complete());
    }
}
