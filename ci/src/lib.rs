//! `cargo ci JOB`: checks, tests, demonstrates and measures uaio.
//!
//! One entry point for people and for machines. What needs ublk, VFIO or an NVMe drive runs in a QEMU guest made of
//! Debian packages (see [`lab`]), so that a fresh Debian machine with Rust and no special hardware runs all of it.
//!
//! ```text
//! jobs::{check, test, programs, stress, demo, bench, trace, preload, guest}
//!   └─ scenario   scripts in ci/scenarios, what machine each needs, whether it passed
//!        └─ guest     one boot: QEMU, console, time limit
//!             ├─ machine   QEMU's arguments
//!             ├─ payload   what is carried in
//!             └─ lab       kernels and root disk, made once under target/lab
//! ```

#![forbid(unsafe_code)]

pub mod bench;
pub mod cargo;
pub mod guest;
pub mod jobs;
pub mod lab;
pub mod licences;
pub mod machine;
pub mod packages;
pub mod payload;
pub mod process;
pub mod programs;
pub mod runner;
pub mod scenario;
pub mod space;
pub mod statistics;
pub mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Checks, tests, demonstrates and measures uaio.
#[derive(Debug, Parser)]
#[command(name = "cargo ci", bin_name = "cargo ci", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Job {
    /// Check formatting, lints, documentation, licences and house rules
    Check(jobs::check::Options),
    /// Run the host's tests and the scenarios in guests
    Test(jobs::test::Options),
    /// Run programs of Debian's packages with the preload library
    Programs(jobs::programs::Options),
    /// Run the cache's threads under ThreadSanitizer
    Stress(jobs::stress::Options),
    /// Show the whole stack at work in a guest
    Demo(jobs::demo::Options),
    /// Measure, each figure against a peer
    Bench(jobs::bench::Options),
    /// Run the fuzz targets for longer than the tests do
    Fuzz(jobs::fuzz::Options),
    /// Compare the eviction policies on a block trace, or on generated patterns
    Trace(jobs::trace::Options),
    /// Build the library that stands before libaio and POSIX AIO
    Preload(jobs::preload::Options),
    /// Boot a guest and run a command or a shell in it
    Guest(Box<jobs::guest::Options>),
}

/// Runs the job that the command line names.
pub fn main() -> ExitCode {
    let done = match Cli::parse().job {
        Job::Check(options) => jobs::check::run(&options),
        Job::Bench(options) => jobs::bench::run(&options),
        Job::Demo(options) => jobs::demo::run(&options),
        Job::Programs(options) => jobs::programs::run(&options),
        Job::Stress(options) => jobs::stress::run(&options),
        Job::Test(options) => jobs::test::run(&options),
        Job::Fuzz(options) => jobs::fuzz::run(&options),
        Job::Trace(options) => jobs::trace::run(&options),
        Job::Preload(options) => jobs::preload::run(&options),
        Job::Guest(options) => jobs::guest::run(*options),
    };
    match done {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("cargo ci: {error:#}");
            ExitCode::FAILURE
        }
    }
}
