//! `cargo ci stress`: the cache's threads under ThreadSanitizer.
//!
//! The stable toolchain ships the sanitizer's run time; what it lacks is the permission to say so
//! and a standard library built for it. The first is asked for below. The second means that what the
//! standard library itself orders (the fence in the last drop of an `Arc`, a thread's own bookkeeping)
//! is not seen: those reports are suppressed by name, and nothing of ours is.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::lab::{Lab, workspace_dir};

/// The sanitizer comes with the toolchain for this target; naming it keeps build scripts as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";

/// Functions of the standard library whose ordering the sanitizer cannot see.
const SUPPRESSED: &str = "\
race:std::thread
race:std::sys::thread
race:alloc::sync::Arc
race:test::
";

/// Runs the cache's threads under ThreadSanitizer; a race fails it.
///
/// Builds everything a second time, for some minutes; the run itself takes half a minute.
#[derive(Debug, Args)]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs the job.
///
/// # Errors
///
/// When it cannot be built, a test fails, or there is a race.
pub fn run(options: &Options) -> Result<i32> {
    let suppressions = Lab::open()?.log_dir()?.join("tsan.supp");
    std::fs::write(&suppressions, SUPPRESSED)?;
    let tsan = format!("halt_on_error=1 suppressions={}", suppressions.display());
    let status = Command::new("cargo")
        .args(["test", "--quiet", "--package=uaio-page-cache", "--test=threads"])
        .args(["--target", TARGET, "--target-dir=target/tsan"])
        .args(["--", "--test-threads=1"])
        .args(&options.filter)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS)
        .env("TSAN_OPTIONS", tsan)
        .env("UAIO_TSAN", "1")
        .current_dir(workspace_dir())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the stress test failed, or met a race; what it said is above");
    }
    Ok(0)
}
