//! A table for people out of the JSON for programs: the field names carry the units, so one way of
//! showing does for all that a drive can answer.

use serde_json::Value;

use crate::table;

/// The table of a JSON text. Values are shown as pairs, lists of values in one line, lists of things
/// as tables of their own below.
pub(super) fn table(json: &str) -> String {
    let mut out = String::new();
    match serde_json::from_str(json) {
        Ok(value) => render("", &value, &mut out),
        // It was made from JSON a moment ago.
        Err(_) => out.push_str(json),
    }
    out
}

fn render(title: &str, value: &Value, out: &mut String) {
    let mut pairs = Vec::new();
    let mut below = Vec::new();
    collect(title, value, &mut pairs, &mut below);
    if !pairs.is_empty() {
        let pairs = pairs.iter().map(|(name, text)| (name.as_str(), text.clone()));
        out.push_str(&table::pairs(pairs));
    }
    for (title, list) in below {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&rows(&title, list));
    }
}

fn collect<'a>(
    name: &str,
    value: &'a Value,
    pairs: &mut Vec<(String, String)>,
    below: &mut Vec<(String, &'a [Value])>,
) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let field = words(field);
                let name = if name.is_empty() { field } else { format!("{name}: {field}") };
                collect(&name, value, pairs, below);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            below.push((name.to_owned(), list));
        }
        Value::Array(list) if list.is_empty() && name.is_empty() => {}
        value => pairs.push((name.to_owned(), text(value))),
    }
}

fn rows(title: &str, list: &[Value]) -> String {
    let fields: Vec<&String> = match list.iter().find_map(Value::as_object) {
        Some(first) => first.keys().collect(),
        None => return String::new(),
    };
    let cell = |row: &Value, field: &str| text(row.get(field).unwrap_or(&Value::Null));
    let headers: Vec<String> = fields
        .iter()
        .map(|field| {
            let number = list.iter().all(|row| {
                row.get(field.as_str()).is_none_or(|value| value.is_number() || value.is_null())
            });
            let header = words(field).to_uppercase();
            if number { header + ">" } else { header }
        })
        .collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let rows = list.iter().map(|row| fields.iter().map(|field| cell(row, field)).collect());
    let table = table::rows(&headers, rows);
    if title.is_empty() { table } else { format!("{title}:\n{table}") }
}

fn words(field: &str) -> String {
    field.replace('_', " ")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let pairs =
                fields.iter().map(|(name, value)| format!("{}={}", words(name), text(value)));
            pairs.collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pairs_and_lists_of_things_are_tables() {
        let json = r#"{"size_bytes": 4096, "name": null, "on": true, "sensors_kelvin": [300, 0],
                       "inner": {"a_b": "x"}, "zones": [{"start_lba": 0, "state": "empty"},
                       {"start_lba": 16, "state": "full"}]}"#;
        assert_eq!(
            table(json),
            "size bytes      4096\n\
             name            -\n\
             on              yes\n\
             sensors kelvin  300 0\n\
             inner: a b      x\n\
             \n\
             zones:\n\
             START LBA  STATE\n        0  empty\n       16  full\n"
        );
        assert_eq!(table("[]"), "");
        assert_eq!(table(r#"[{"a": 1}]"#), "A\n1\n");
    }
}
