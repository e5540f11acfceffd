//! Lists of JSON objects as aligned text.

use serde_json::Value;

/// Rows of `items` under `columns`; a column `a.b` is the field `b` of the object `a`.
pub(super) fn render(columns: &[&str], items: &[Value]) -> String {
    let cells = items.iter().map(|item| columns.iter().map(|column| cell(item, column)).collect::<Vec<_>>());
    let header = columns.iter().map(|column| column.replace('.', " ").to_uppercase()).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(cells).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(item: &Value, column: &str) -> String {
    let value = column.split('.').fold(item, |value, key| &value[key]);
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Number(number) if column == "mode" => number.as_u64().map(|mode| format!("{mode:04o}")).unwrap_or_default(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// Text from a phone on one line: names of files may hold anything, and a terminal obeys control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_align_and_control_characters_do_nothing() {
        let items = [json!({"a": "x\u{1b}[2J", "b": {"c": 5}, "mode": 420}), json!({"a": null, "b": {"c": true}})];
        let expected = "A      B C  MODE\nx\u{fffd}[2J  5    0644\n-      yes  -\n";
        assert_eq!(render(&["a", "b.c", "mode"], &items), expected);
    }
}
