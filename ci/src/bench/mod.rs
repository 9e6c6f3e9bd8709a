//! What is measured, and how a round's figures become a ratio.
//!
//! A bench is a program that runs ours and its peer in turns and says, a line each:
//!
//! | line | meaning |
//! |---|---|
//! | `ROUND row ours peer` | the figures of one round |
//! | `MISSING row reason…` | the peer of this row cannot be had |
//!
//! On the host it is an example of a crate and says so on its standard output; in a guest it is a scenario of the job
//! `bench` and says so on the report port. Names, units and targets of the rows are here.

pub mod preload;
pub mod registry;

use std::fmt::Write;

use serde_json::json;

use crate::statistics::Spread;
use registry::{Row, Unit};

/// What came of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// The bench and the row.
    pub name: String,
    /// The row's unit.
    pub unit: Unit,
    /// What the ratio is to reach.
    pub target: f64,
    /// The figures, or why there are none.
    pub result: Result<Ratio, String>,
}

/// Ours against the peer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// How many times better ours is, round by round.
    pub ratio: Spread,
    /// Ours.
    pub ours: Spread,
    /// The peer's.
    pub peer: Spread,
    /// How many rounds there were.
    pub rounds: usize,
}

impl Figures {
    /// Collects what `lines` say about `row` of the bench `bench`.
    pub fn collect(bench: &str, row: &Row, lines: &[String]) -> Self {
        let name =
            if row.name.is_empty() { bench.to_string() } else { format!("{bench}/{}", row.name) };
        Self { name, unit: row.unit, target: row.target, result: Self::ratio(row, lines) }
    }

    fn ratio(row: &Row, lines: &[String]) -> Result<Ratio, String> {
        let wanted = row.key();
        let (mut ratios, mut ours, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for line in lines {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("MISSING"), Some(name)) if name == wanted => {
                    return Err(words.collect::<Vec<_>>().join(" "));
                }
                (Some("ROUND"), Some(name)) if name == wanted => {
                    let mut number = || words.next().and_then(|word| word.parse::<f64>().ok());
                    let (Some(our), Some(peer)) = (number(), number()) else {
                        return Err(format!("not a round: {line}"));
                    };
                    ratios.push(row.unit.ratio(our, peer));
                    ours.push(our);
                    peers.push(peer);
                }
                _ => {}
            }
        }
        let wanted_rounds = row.unit.rounds_min();
        if ratios.len() < wanted_rounds {
            return Err(format!("{} rounds, of {wanted_rounds} at least", ratios.len()));
        }
        let spread = |figures: &[f64]| Spread::of(figures).ok_or("a figure is no number");
        Ok(Ratio {
            ratio: spread(&ratios)?,
            ours: spread(&ours)?,
            peer: spread(&peers)?,
            rounds: ratios.len(),
        })
    }

    /// The line for programs.
    pub fn json(&self) -> String {
        let value = match &self.result {
            Ok(found) => json!({
                "bench": self.name, "ratio": rounded(found.ratio.median), "target": self.target,
                "ours": rounded(found.ours.median), "peer": rounded(found.peer.median),
                "unit": self.unit.to_string(), "rounds": found.rounds,
                "ratio_min": rounded(found.ratio.min), "ratio_max": rounded(found.ratio.max),
            }),
            Err(reason) => json!({
                "bench": self.name, "ratio": null, "target": self.target, "ours": null, "peer": null,
                "unit": self.unit.to_string(), "reason": reason,
            }),
        };
        value.to_string()
    }
}

/// The table for people.
pub fn table(rows: &[Figures]) -> String {
    let mut out = String::new();
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(5);
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{:<width$}  {:>22}  {:>22}  {:>6}  {:>13}  {:>6}",
        "bench", "ours (min to max)", "peer (min to max)", "ratio", "min to max", "target"
    );
    for row in rows {
        let _ = match &row.result {
            Ok(found) => writeln!(
                out,
                "{:<width$}  {:>22}  {:>22}  {:>6.2}  {:>13}  {:>6.2}  {} {}",
                row.name,
                wide(found.ours),
                wide(found.peer),
                found.ratio.median,
                format!("{:.2} to {:.2}", found.ratio.min, found.ratio.max),
                row.target,
                row.unit,
                if found.ratio.median < row.target { "below" } else { "reached" },
            ),
            Err(reason) => writeln!(out, "{:<width$}  no figures: {reason}", row.name),
        };
    }
    out
}

/// A spread in one column.
fn wide(spread: Spread) -> String {
    format!("{:.0} ({:.0} to {:.0})", spread.median, spread.min, spread.max)
}

/// Three digits behind the point are more than any of this can tell.
fn rounded(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row { name: "depth-1", target: 1.5, unit: Unit::Iops };

    fn rounds(count: usize, line: &str) -> Vec<String> {
        vec![line.to_string(); count]
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_other_rows_are_left_out() {
        let mut lines = rounds(8, "ROUND depth-1 300 100");
        lines.push("ROUND depth-1 100 100".into());
        lines.push("ROUND depth-32 1 100".into());
        let found = Figures::collect("nvme", &ROW, &lines);
        assert_eq!(found.name, "nvme/depth-1");
        let ratio = found.result.unwrap();
        assert_eq!(ratio.rounds, 9);
        assert_eq!(ratio.ratio, Spread { median: 3.0, min: 1.0, max: 3.0 });
    }

    #[test]
    fn less_is_better_in_units_of_time() {
        let row = Row { unit: Unit::Nanoseconds, ..ROW };
        let found = Figures::collect("x", &row, &rounds(9, "ROUND depth-1 50 100"));
        assert_eq!(found.result.unwrap().ratio.median, 2.0);
    }

    #[test]
    fn a_missing_peer_is_null_with_its_reason() {
        let lines = ["MISSING depth-1 no such crate".to_string()];
        let found = Figures::collect("x", &ROW, &lines);
        let json: serde_json::Value = serde_json::from_str(&found.json()).unwrap();
        assert!(json["ratio"].is_null());
        assert_eq!(json["reason"], "no such crate");
        assert_eq!(json["bench"], "x/depth-1");
    }

    #[test]
    fn too_few_rounds_and_broken_rounds_give_no_ratio() {
        for (lines, why) in [
            (rounds(8, "ROUND depth-1 1 1"), "8 rounds"),
            (rounds(9, "ROUND depth-1 1"), "not a round"),
            (rounds(9, "ROUND depth-1 1 0"), "no number"),
        ] {
            let reason = Figures::collect("x", &ROW, &lines).result.unwrap_err();
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn the_json_line_has_its_target_and_medians() {
        let found = Figures::collect("x", &ROW, &rounds(9, "ROUND depth-1 3 2"));
        let json: serde_json::Value = serde_json::from_str(&found.json()).unwrap();
        assert_eq!(json["ratio"], 1.5);
        assert_eq!(json["target"], 1.5);
        assert_eq!(json["ours"], 3.0);
        assert_eq!(json["peer"], 2.0);
        assert_eq!(json["unit"], "IOPS");
    }
}
