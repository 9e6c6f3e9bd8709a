//! `cargo ci check`: everything that can be said about the tree without running it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::lab::workspace_dir;
use crate::{cargo, licences, packages, process, space, tidy};

/// Names the advisory database, for machines that have one.
const ADVISORY_DB: &str = "UAIO_ADVISORY_DB";

/// Checks formatting, lints, documentation, licences and house rules; warnings are errors.
///
/// Advisories are looked up where UAIO_ADVISORY_DB names a clone of the advisory database and cargo-deny or cargo-audit
/// is installed.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these: format, lints, docs, licences, advisories, rules
    only: Vec<String>,
}

/// One of the checks: its name, and what finds fault.
type Check = (&'static str, fn() -> Result<Said>);

/// What a check that found no fault has to say.
enum Said {
    Clean,
    Skipped(&'static str),
}

/// In the order in which people want to know.
const CHECKS: &[Check] = &[
    ("format", format),
    ("rules", rules),
    ("licences", licences),
    ("advisories", advisories),
    ("lints", lints),
    ("docs", docs),
];

/// Runs the job.
///
/// # Errors
///
/// When the checks cannot be run at all, or one that is asked for does not exist.
pub fn run(options: &Options) -> Result<i32> {
    if let Some(wrong) =
        options.only.iter().find(|only| !CHECKS.iter().any(|(name, _)| name == only))
    {
        bail!("no check {wrong}");
    }
    space::ensure()?;
    packages::ensure(packages::BUILD)?;
    let mut failed = 0;
    for (name, check) in CHECKS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let started = Instant::now();
        match check() {
            Ok(Said::Clean) => println!("{name}: ok in {} s", started.elapsed().as_secs()),
            Ok(Said::Skipped(why)) => println!("{name}: skipped: {why}"),
            Err(error) => {
                failed += 1;
                println!("{name}: FAILED\n{error:#}");
            }
        }
    }
    if failed > 0 {
        println!("{failed} checks failed");
    }
    Ok(i32::from(failed > 0))
}

fn format() -> Result<Said> {
    clean(cargo::command().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<Said> {
    clean(cargo::command().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny=warnings",
    ]))
}

/// The documentation as users see it, and then with private items, where links to them are right.
fn docs() -> Result<Said> {
    let doc = |flags: &str| {
        let mut cargo = cargo::command();
        cargo.env("RUSTDOCFLAGS", flags);
        cargo.args(["doc", "--quiet", "--workspace", "--no-deps"]);
        cargo
    };
    clean(&mut doc("--deny=warnings"))?;
    let private = "--deny=warnings --allow=rustdoc::private_intra_doc_links";
    clean(doc(private).arg("--document-private-items"))
}

fn licences() -> Result<Said> {
    let metadata = process::output(cargo::command().args(["metadata", "--format-version=1"]))?;
    refuse(licences::not_allowed(&metadata)?)
}

fn rules() -> Result<Said> {
    refuse(tidy::violations(&workspace_dir())?)
}

fn advisories() -> Result<Said> {
    let Some(db) = std::env::var_os(ADVISORY_DB) else {
        return Ok(Said::Skipped("no advisory database (UAIO_ADVISORY_DB)"));
    };
    let has = |tool: &str| process::quiet(Command::new(tool).arg("--version")).is_ok();
    if has("cargo-audit") {
        clean(cargo::command().args(["audit", "--no-fetch", "--db"]).arg(db))
    } else if has("cargo-deny") {
        // It finds the database below its own home.
        clean(cargo::command().env("CARGO_DENY_HOME", db).args([
            "deny",
            "--offline",
            "check",
            "advisories",
        ]))
    } else {
        bail!("{ADVISORY_DB} is set, and neither cargo-audit nor cargo-deny is installed")
    }
}

/// Succeeds when `command` does.
fn clean(command: &mut Command) -> Result<Said> {
    process::quiet(command).map(|()| Said::Clean)
}

/// Fails when there are faults.
fn refuse(faults: Vec<String>) -> Result<Said> {
    if faults.is_empty() {
        return Ok(Said::Clean);
    }
    bail!("{}", faults.join("\n"))
}
