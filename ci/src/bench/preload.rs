//! Unmodified programs with the preload library, without it, and on io_uring themselves, in turns on the same file.
//!
//! fio does the loads that its engines can do: `libaio` and `posixaio`, with the library and without, and `io_uring`.
//! What it can not (its libaio engine calls fsync(2) by itself) an example of the library's package does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{self, Profile};
use crate::lab::target_dir;
use crate::process;

/// Measured rounds; one more warms up.
const ROUNDS: usize = 11;

/// What all loads of fio have in common.
const FIO: &[&str] = &[
    "--name=load",
    "--thread",
    "--randrepeat=0",
    "--disk_util=0",
    "--invalidate=1",
    "--clat_percentiles=0",
    "--slat_percentiles=1",
    "--output-format=json",
];

/// Cold reads, each block at most once.
const READS: &[&str] = &["--rw=randread", "--bs=4k", "--iodepth=32", "--size=256M", "--runtime=2"];

/// Stable writes over what has been written.
const OSYNC: &[&str] =
    &["--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=64M", "--runtime=2", "--sync=1"];

/// Who does the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doer {
    /// fio, with these arguments beside its engine.
    Fio(&'static [&'static str], &'static [&'static str]),
    /// The example `fsyncs` of the library's package.
    Fsyncs,
}

/// A load, and the rows that it gives figures for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    doer: Doer,
    /// Operations a second against the other library.
    other: &'static str,
    /// Operations a second against io_uring.
    io_uring: &'static str,
    /// The time in submit that 99 of 100 do not exceed, against the other library.
    submit: Option<&'static str>,
}

/// What a program does by libaio.
const LIBAIO: &[Load] = &[
    Load {
        doer: Doer::Fio(READS, &[]),
        other: "buffered-32",
        io_uring: "buffered-32-io_uring",
        submit: Some("submit-p99"),
    },
    Load {
        doer: Doer::Fio(READS, &["--direct=1"]),
        other: "direct-32",
        io_uring: "direct-32-io_uring",
        submit: None,
    },
    Load {
        doer: Doer::Fio(OSYNC, &[]),
        other: "osync-16",
        io_uring: "osync-16-io_uring",
        submit: None,
    },
    Load { doer: Doer::Fsyncs, other: "fsync-16", io_uring: "fsync-16-io_uring", submit: None },
];

/// What a program does by POSIX AIO.
const POSIX: &[Load] = &[
    Load {
        doer: Doer::Fio(READS, &[]),
        other: "buffered-32",
        io_uring: "buffered-32-io_uring",
        submit: None,
    },
    Load {
        doer: Doer::Fio(READS, &["--direct=1"]),
        other: "direct-32",
        io_uring: "direct-32-io_uring",
        submit: None,
    },
];

/// The interface of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// libaio, against the kernel's AIO.
    Libaio,
    /// POSIX AIO, against the C library's.
    Posix,
}

/// A turn: the engine, and whether it has the library.
type Turn = (&'static str, bool);

/// Measures what programs of `interface` gain by `library`, as lines `ROUND row ours peer`.
///
/// # Errors
///
/// When a load cannot be run.
pub fn rounds(interface: Interface, library: &Path) -> Result<Vec<String>> {
    let (engine, loads) = match interface {
        Interface::Libaio => ("libaio", LIBAIO),
        Interface::Posix => ("posixaio", POSIX),
    };
    let turns: [Turn; 3] = [(engine, true), (engine, false), ("io_uring", false)];
    let file = test_file()?;
    let mut lines = Vec::new();
    for load in loads {
        let example = match load.doer {
            Doer::Fio(..) => None,
            Doer::Fsyncs => cargo::example("uaio-preload", "fsyncs", Profile::Release)?.pop(),
        };
        for round in 0..=ROUNDS {
            let mut said = [Said::default(); 3];
            for turn in 0..turns.len() {
                // Who goes first changes.
                let turn = (turn + round) % turns.len();
                let (engine, with) = turns[turn];
                let mut command = match (load.doer, &example) {
                    (Doer::Fio(first, more), _) => {
                        let mut fio = Command::new("fio");
                        fio.args(FIO).args(first).args(more).arg(format!("--ioengine={engine}"));
                        fio.arg(format!("--filename={}", file.display()));
                        fio
                    }
                    (Doer::Fsyncs, example) => {
                        let example = example.as_ref().context("no example was built")?;
                        let mut command = Command::new(&example.path);
                        command.arg(engine).arg(&file);
                        command
                    }
                };
                if with {
                    command.env("LD_PRELOAD", library);
                }
                let text = process::output(&mut command)?;
                said[turn] = Said::read(load.doer, &text)
                    .with_context(|| format!("{}: {text}", process::display(&command)))?;
            }
            // The first round only warms up.
            if round == 0 {
                continue;
            }
            let [ours, other, io_uring] = said;
            lines.push(format!("ROUND {} {:.0} {:.0}", load.other, ours.rate, other.rate));
            lines.push(format!("ROUND {} {:.0} {:.0}", load.io_uring, ours.rate, io_uring.rate));
            if let Some(row) = load.submit {
                lines.push(format!(
                    "ROUND {row} {:.0} {:.0}",
                    ours.submit_p99_ns, other.submit_p99_ns
                ));
            }
        }
    }
    fs::remove_file(file)?;
    Ok(lines)
}

/// A file of 256 MiB on the disk that the target folder lies on, all of it written.
fn test_file() -> Result<PathBuf> {
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("preload-{}", std::process::id()));
    let mut fio = Command::new("fio");
    fio.args(["--name=fill", "--rw=write", "--bs=1M", "--size=256M", "--end_fsync=1"]);
    process::quiet(fio.arg(format!("--filename={}", file.display())))?;
    Ok(file)
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Said {
    /// Operations a second.
    rate: f64,
    /// The time in submit that 99 of 100 do not exceed.
    submit_p99_ns: f64,
}

impl Said {
    /// Reads the JSON of fio, or the number of an example.
    fn read(doer: Doer, text: &str) -> Option<Self> {
        if doer == Doer::Fsyncs {
            return Some(Self { rate: text.trim().parse().ok()?, submit_p99_ns: 0.0 });
        }
        // What the library has to say may stand before.
        let json: Value = serde_json::from_str(&text[text.find('{')?..]).ok()?;
        let job = &json["jobs"][0];
        let side =
            if job["read"]["total_ios"].as_u64()? > 0 { &job["read"] } else { &job["write"] };
        let submit_p99_ns = side["slat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or_default();
        Some(Self { rate: side["iops"].as_f64()?, submit_p99_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::registry::{self, Source};

    #[test]
    fn the_side_that_did_something_is_read() {
        let text = r#"note
            {"jobs": [{"read": {"total_ios": 0, "iops": 0.0}, "write": {"total_ios": 7, "iops": 12.5,
             "slat_ns": {"percentile": {"50.000000": 1, "99.000000": 900}}}}]}"#;
        let fio = Doer::Fio(&[], &[]);
        assert_eq!(Said::read(fio, text), Some(Said { rate: 12.5, submit_p99_ns: 900.0 }));
        assert_eq!(Said::read(fio, "fio: no such engine"), None);
        assert_eq!(Said::read(Doer::Fsyncs, "310.5\n").unwrap().rate, 310.5);
    }

    #[test]
    fn every_row_is_measured_and_every_figure_has_its_row() {
        for bench in registry::ALL {
            let Source::Preload { interface } = bench.source else { continue };
            let loads = if interface == Interface::Libaio { LIBAIO } else { POSIX };
            let mut measured: Vec<&str> = loads
                .iter()
                .flat_map(|load| [Some(load.other), Some(load.io_uring), load.submit])
                .flatten()
                .collect();
            let mut rows: Vec<&str> = bench.rows.iter().map(|row| row.name).collect();
            measured.sort_unstable();
            rows.sort_unstable();
            assert_eq!(measured, rows);
        }
    }
}
