//! `cargo ci trace`: miss ratios of the eviction policies, on a trace or on generated patterns.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::{self, Profile};
use crate::lab::target_dir;
use crate::packages;

/// Compares the eviction policies: a table of miss ratios, and a plot over the size of the cache.
///
/// Runs the cache's own policy code, without a cache. The plot is target/trace/miss-ratio.svg, or
/// patterns.svg without a trace.
#[derive(Debug, Args)]
pub struct Options {
    /// Block trace: comma-separated, plain or .gz, with columns size (bytes) and lbn (512-byte blocks);
    /// without one, generated patterns
    file: Option<PathBuf>,
}

/// Runs the job.
///
/// # Errors
///
/// When the trace cannot be read, or nothing can be built.
pub fn run(options: &Options) -> Result<i32> {
    packages::ensure(packages::BUILD)?;
    let built = cargo::example("uaio-page-cache", "miss_ratio", Profile::Release)?;
    let program = built.first().context("cargo built no example")?;
    let folder = target_dir().join("trace");
    fs::create_dir_all(&folder)?;
    let name = if options.file.is_some() { "miss-ratio.svg" } else { "patterns.svg" };
    let mut command = Command::new(&program.path);
    command.arg(folder.join(name)).args(&options.file);
    let status = command.status().context("cannot run the comparison")?;
    Ok(status.code().unwrap_or(1))
}
