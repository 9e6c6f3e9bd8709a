//! `cargo ci demo`: the whole stack at work in a guest, for people to watch.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::cargo::Profile;
use crate::guest::{self, Console};
use crate::lab::kernels::Series;
use crate::lab::{Lab, image};
use crate::packages;
use crate::runner::{self, Binaries};
use crate::scenario::{self, Job};

/// Shows the whole stack at work: a drive, our driver, our cache, a file system and a verified load.
///
/// Ends with status 0 only when all of it held.
#[derive(Debug, Args)]
pub struct Options {
    /// Carry this program into the guest instead of building aioctl
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// The guest's kernel
    #[arg(long, default_value_t = Series::V7_2)]
    kernel: Series,
}

/// Runs the job.
///
/// # Errors
///
/// When it cannot be run at all.
pub fn run(options: &Options) -> Result<i32> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::GUEST)?;
    let lab = Lab::open()?;
    image::root_disk(&lab)?;
    guest::kvm_works(&lab)?;
    let demo = scenario::all()?
        .into_iter()
        .find(|scenario| scenario.job == Job::Demo)
        .context("there is no demo among the scenarios")?;
    println!("Building aioctl …");
    let needed = std::slice::from_ref(&demo);
    let binaries = Binaries::given(&options.programs).and_build(needed, Profile::Release)?;
    let (name, machine) = demo
        .variants()
        .into_iter()
        .find(|(_, machine)| machine.kernel == options.kernel)
        .context("the demo does not run on this kernel")?;
    println!("Booting a guest with kernel {}: {}", machine.kernel, demo.description);
    let verdict = runner::run(&lab, &demo, &name, &machine, &binaries, Console::Show)?;
    match verdict.failure {
        None => {
            println!("\nDone in {} s.", verdict.took.as_secs());
            Ok(0)
        }
        Some(why) => {
            eprintln!("cargo ci: the demo failed: {why} (console: {})", verdict.log.display());
            Ok(1)
        }
    }
}
