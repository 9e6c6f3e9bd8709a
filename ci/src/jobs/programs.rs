//! `cargo ci programs`: unmodified programs of Debian's packages, without and with the preload library.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::preload;
use crate::lab::Lab;
use crate::programs::stage::{Figure, Stage, Verdict};
use crate::programs::{self, Program};
use crate::statistics::Spread;
use crate::{packages, space};

/// Runs programs of Debian's packages that speak libaio or POSIX AIO, unmodified, without and with the preload library.
///
/// Each checks what it reads. With the library, its counter has to move and no io_submit may reach the kernel. The last
/// line is `N passed, N failed`. With --rounds it prints what each program gains instead.
#[derive(Debug, Args)]
pub struct Options {
    /// Only programs whose name contains one of these
    names: Vec<String>,
    /// List the programs and what they show
    #[arg(long)]
    list: bool,
    /// Measure instead, without and with the library in turns, this many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// This library instead of the one that is built
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
}

/// Runs the job.
///
/// # Errors
///
/// When the programs cannot be run at all.
pub fn run(options: &Options) -> Result<i32> {
    let mut programs = programs::all()?;
    if options.list {
        for program in programs {
            println!("{:<18} {}", program.name, program.description);
        }
        return Ok(0);
    }
    let is_asked = |program: &Program| options.names.iter().any(|name| program.name.contains(name));
    if !options.names.is_empty() {
        programs.retain(is_asked);
    }
    if programs.is_empty() {
        bail!("no such program; see cargo ci programs --list");
    }
    space::ensure()?;
    packages::ensure(packages::BUILD)?;
    // What is measured is what users get.
    let debug = options.rounds.is_none();
    let stage = stage(options.library.clone(), debug)?;
    match options.rounds {
        Some(rounds) => gains(&stage, &programs, rounds),
        None => {
            let (passed, failed) = tests(&stage, &programs)?;
            println!("{passed} passed, {failed} failed");
            Ok(i32::from(failed > 0))
        }
    }
}

/// Builds the library, for `debug` the one that checks itself, or takes `library`, and gets what programs need.
///
/// # Errors
///
/// When it cannot be built, or packages cannot be had.
pub fn stage(library: Option<PathBuf>, debug: bool) -> Result<Stage> {
    let library = match library {
        Some(library) => library.canonicalize()?,
        None => preload::build(debug)?,
    };
    let drop_in = library.with_file_name("libaio");
    Stage::set(&Lab::open()?, &library, &drop_in)
}

/// Tests `programs` one after the other, and returns how many passed and failed.
///
/// # Errors
///
/// When one cannot be run at all.
pub fn tests(stage: &Stage, programs: &[Program]) -> Result<(u64, u64)> {
    let (mut passed, mut failed) = (0, 0);
    for program in programs {
        let Verdict { failure, requests, took } = stage.test(program)?;
        let (name, seconds) = (&program.name, took.as_secs_f32());
        match failure {
            None => {
                passed += 1;
                println!("program {name}: passed in {seconds:.0} s, {requests} requests");
            }
            Some(why) => {
                failed += 1;
                println!("program {name}: FAILED in {seconds:.0} s: {why}");
            }
        }
    }
    Ok((passed, failed))
}

/// Prints what each program that has a figure gains.
fn gains(stage: &Stage, programs: &[Program], rounds: usize) -> Result<i32> {
    println!(
        "{:<18} {:>22} {:>22} {:>6} {:>14}",
        "program", "without", "with", "gain", "min to max"
    );
    for program in programs.iter().filter(|program| program.measures()) {
        let figures = stage.measure(program, rounds)?;
        let spread =
            |of: fn(&Figure) -> f64| Spread::of(&figures.iter().map(of).collect::<Vec<_>>());
        let (Some(without), Some(with), Some(gain)) =
            (spread(|f| f.without), spread(|f| f.with), spread(Figure::gain))
        else {
            bail!("{}: a figure is no number", program.name);
        };
        println!(
            "{:<18} {:>22.1} {:>22.1} {:>6.2} {:>14} {}",
            program.name,
            without.median,
            with.median,
            gain.median,
            format!("{:.2} to {:.2}", gain.min, gain.max),
            figures[0].unit,
        );
    }
    Ok(0)
}
