//! Tables for people: aligned columns, units in the headers, no frames.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table of rows. A header that ends in `>` is a column of numbers, aligned to the right.
pub(crate) fn rows(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.iter().map(|header| header.trim_end_matches('>')));
    for row in rows {
        table.add_row(row.into_iter().map(printable));
    }
    for (column, header) in table.column_iter_mut().zip(headers) {
        column.set_padding((0, 2));
        if header.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table)
}

/// A table of one thing: a name and a value a line.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in pairs {
        table.add_row([name.to_string(), printable(value)]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table)
}

fn printable(text: String) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_string() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_right() {
        let text = rows(
            &["PATH", "SIZE MiB>", "BACKEND"],
            [
                vec!["/dev/ublkb0".into(), "1024".into(), "ram:1G".into()],
                vec!["/dev/ublkb10".into(), "1".into(), "file:/a\nb".into()],
            ],
        );
        assert_eq!(
            text,
            "PATH          SIZE MiB  BACKEND\n\
             /dev/ublkb0       1024  ram:1G\n\
             /dev/ublkb10         1  file:/a?b\n"
        );
    }

    #[test]
    fn pairs_line_up() {
        assert_eq!(pairs([("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
