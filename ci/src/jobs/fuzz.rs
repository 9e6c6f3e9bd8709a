//! `cargo ci fuzz`: seeded programs against oracles, for as long as one likes.
//!
//! A target is a test that draws everything from a seed, so it runs on stable Rust, in every `cargo test`
//! for a moment, and here for longer. A failure names its seed, or the file that its input is in.
//! What a target keeps from one run to the next lies under `target/fuzz`.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::lab::workspace_dir;

/// A test that runs until `UAIO_FUZZ_S` seconds are over.
struct Target {
    name: &'static str,
    package: &'static str,
    test: &'static str,
    what: &'static str,
}

const TARGETS: &[Target] = &[
    Target {
        name: "nvme",
        package: "uaio-driver",
        test: "nvme_fuzz",
        what: "the NVMe driver between requests from above and a controller's answers from below",
    },
    Target {
        name: "cache",
        package: "uaio-page-cache",
        test: "fuzz",
        what: "the cache under schedules of operations, faults and cancels, against a map of bytes",
    },
];

/// Runs the fuzz targets, one after the other.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the targets whose name contains this
    filter: Option<String>,
    /// How long each runs, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// List the targets and what they are
    #[arg(long)]
    list: bool,
}

/// Runs the job.
///
/// # Errors
///
/// When no target has the name, or one fails; its output has the seed.
pub fn run(options: &Options) -> Result<i32> {
    let filter = options.filter.as_deref().unwrap_or("");
    let chosen: Vec<_> = TARGETS.iter().filter(|target| target.name.contains(filter)).collect();
    if chosen.is_empty() {
        bail!("no fuzz target is named like {filter}; see cargo ci fuzz --list");
    }
    for Target { name, package, test, what } in chosen {
        println!("{name}: {what}");
        if options.list {
            continue;
        }
        let status = Command::new("cargo")
            .args(["test", "--quiet", "--package", package, "--test", test, "--", "--nocapture"])
            .env("UAIO_FUZZ_S", options.seconds.to_string())
            .env("UAIO_FUZZ_CORPUS", workspace_dir().join("target/fuzz").join(name))
            .current_dir(workspace_dir())
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!(
                "fuzz target {name} failed; UAIO_SEED=n replays the seed that it names, \
                 UAIO_FUZZ_INPUT=file the input"
            );
        }
    }
    Ok(0)
}
