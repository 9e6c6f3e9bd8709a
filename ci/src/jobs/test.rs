//! `cargo ci test`: the host's tests, then the scenarios in guests with programs of Debian's packages beside them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::bench::registry::{self, Source};
use crate::cargo::{self, Profile};
use crate::guest::Console;
use crate::jobs;
use crate::lab::{Lab, image};
use crate::machine::Machine;
use crate::runner::{self, Binaries, Verdict};
use crate::scenario::{self, Job, Scenario};
use crate::{guest, packages, programs, space};

/// The benches whose budget has been reached, and must not be left again.
const GUARDED: &[&str] = &["nvme-cpu"];

/// How much of the console of a failed scenario is shown.
const TAIL_LINES: usize = 25;

/// Runs all tests: those of the host, the budgets of instructions, then the scenarios in guests and the programs of
/// Debian's packages.
///
/// The last line is `N passed, N failed`, all of them together.
#[derive(Debug, Args)]
pub struct Options {
    /// Only tests, programs and scenarios whose name contains this (a scenario's is NAME@KERNEL)
    filter: Option<String>,
    /// Only the host's tests
    #[arg(long, conflicts_with = "guest")]
    host: bool,
    /// Only the scenarios
    #[arg(long)]
    guest: bool,
    /// List the scenarios and what they show
    #[arg(long)]
    list: bool,
    /// Show the guests' consoles while they run
    #[arg(long)]
    show: bool,
    /// Carry this program into the guests instead of building aioctl
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// Guests at a time; an emulated machine waits often enough that two share two cores well
    #[arg(long, short, default_value_t = 2)]
    jobs: usize,
}

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the job.
///
/// # Errors
///
/// When the tests cannot be run at all.
pub fn run(options: &Options) -> Result<i32> {
    let mut scenarios = scenario::all()?;
    scenarios.retain(|scenario| scenario.job == Job::Test);
    if options.list {
        for scenario in scenarios {
            println!("{:<18} {}", scenario.name, scenario.description);
        }
        return Ok(0);
    }
    let filter = options.filter.as_deref().unwrap_or_default();
    space::ensure()?;
    packages::ensure(packages::BUILD)?;
    let (host, guest) = (!options.guest, !options.host);
    let mut count = Count::default();
    if host && guest && filter.is_empty() {
        count = everything(&scenarios, options)?;
    } else {
        if host {
            count.add(host_tests(filter)?);
            count.add(budgets(filter)?);
            count.add(program_tests(filter)?);
        }
        if guest {
            count.add(guest_scenarios(&scenarios, filter, options)?);
        }
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(i32::from(count.failed > 0 || count.passed == 0))
}

/// Runs all there is, at the same time where one part waits for what another does not need.
fn everything(scenarios: &[Scenario], options: &Options) -> Result<Count> {
    // All packages first: two installations at a time get into each other's way.
    for packages in [packages::COUNT, packages::GUEST, packages::PROGRAMS] {
        packages::ensure(packages)?;
    }
    thread::scope(|scope| {
        // What guests are made of is mostly waited for: it is fetched.
        let lab = scope.spawn(|| image::root_disk(&Lab::open()?));
        let mut count = host_tests("")?;
        count.add(budgets("")?);
        lab.join().expect("it does not panic")?;
        // Programs wait for the disk for much of their time, and emulated machines for theirs.
        let programs = scope.spawn(|| program_tests(""));
        count.add(guest_scenarios(scenarios, "", options)?);
        count.add(programs.join().expect("it does not panic")?);
        Ok(count)
    })
}

/// What `cargo test` is asked for: everything; the cache's own code under a model checker, which is built on
/// other locks; and the C face under valgrind.
const HOST_TESTS: &[&[&str]] = &[
    &["--workspace", "--no-fail-fast"],
    &["--package=uaio-page-cache", "--features=loom", "--lib", "interleavings"],
    &["--package=uaio-c", "--test=c_face", "under_valgrind", "--", "--ignored"],
];

/// Runs the tests of the host and counts.
fn host_tests(filter: &str) -> Result<Count> {
    packages::ensure(packages::COUNT)?;
    let log_path = Lab::open()?.log_dir()?.join("host.log");
    let mut log = File::create(&log_path)?;
    let started = Instant::now();
    let mut count = Count::default();
    for args in HOST_TESTS {
        count.add(cargo_test(args, filter, &mut log)?);
    }
    println!(
        "host tests: {} passed, {} failed in {} s; log {}",
        count.passed,
        count.failed,
        started.elapsed().as_secs(),
        log_path.display()
    );
    Ok(count)
}

/// How often submission races against cancellation here; by hand it is less.
const RACES: &str = "1000000";

/// Runs `cargo test` and counts.
fn cargo_test(args: &[&str], filter: &str, log: &mut File) -> Result<Count> {
    let mut cargo = cargo::command();
    cargo.args(["test", "--quiet"]).args(args);
    if std::env::var_os("UAIO_RACES").is_none() {
        cargo.env("UAIO_RACES", RACES);
    }
    if !filter.is_empty() {
        cargo.args((!args.contains(&"--")).then_some("--")).arg(filter);
    }
    let (reader, writer) = std::io::pipe()?;
    cargo.stdin(Stdio::null());
    cargo.stdout(writer.try_clone()?).stderr(writer);
    let mut child = cargo.spawn().context("cannot run cargo test")?;
    // The command holds the writing ends of the pipe, which would never close.
    drop(cargo);
    let mut count = Count::default();
    let mut failing = false;
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        if let Some(more) = result_line(&line) {
            count.add(more);
            failing = false;
        }
        failing |= line.starts_with("failures:") || line.starts_with("error");
        if failing {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        // It did not compile, or a test took its whole process down.
        count.failed = 1;
    }
    Ok(count)
}

/// Counts the instructions of the benches that have a budget, whose counts do not depend on what else the machine does,
/// so that a data path that grows beyond it is a failed test.
fn budgets(filter: &str) -> Result<Count> {
    let mut count = Count::default();
    let guarded = registry::ALL.iter().filter(|bench| GUARDED.contains(&bench.name));
    for bench in guarded.filter(|bench| bench.name.contains(filter)) {
        let Source::Callgrind { budget, .. } = bench.source else { continue };
        packages::ensure(packages::COUNT)?;
        let counted = jobs::bench::count_instructions(bench)?;
        let over = counted > f64::from(budget);
        let verdict = if over { "more than" } else { "within" };
        println!("{}: {counted:.1} instructions, {verdict} the budget of {budget}", bench.name);
        count.add(Count { passed: u64::from(!over), failed: u64::from(over) });
    }
    Ok(count)
}

/// Reads `test result: ok. 3 passed; 0 failed; …`.
fn result_line(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let rest = rest.split_once(". ")?.1;
    let number =
        |what: &str| rest.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

/// Runs the programs that match `filter`, without and with the preload library.
fn program_tests(filter: &str) -> Result<Count> {
    let mut programs = programs::all()?;
    programs.retain(|program| program.name.contains(filter));
    if programs.is_empty() {
        return Ok(Count::default());
    }
    let stage = jobs::programs::stage(None, true)?;
    let (passed, failed) = jobs::programs::tests(&stage, &programs)?;
    Ok(Count { passed, failed })
}

/// Runs the scenarios that match `filter`, on each machine they name.
fn guest_scenarios(scenarios: &[Scenario], filter: &str, options: &Options) -> Result<Count> {
    let mut runs: Vec<(&Scenario, String, Machine)> = Vec::new();
    for scenario in scenarios {
        for (name, machine) in scenario.variants() {
            if name.contains(filter) {
                runs.push((scenario, name, machine));
            }
        }
    }
    if runs.is_empty() {
        return Ok(Count::default());
    }
    packages::ensure(packages::GUEST)?;
    let lab = Lab::open()?;
    image::root_disk(&lab)?;
    guest::kvm_works(&lab)?;
    let mut needed: Vec<Scenario> = runs.iter().map(|run| run.0.clone()).collect();
    needed.dedup();
    let binaries = Binaries::given(&options.programs).and_build(&needed, Profile::Checked)?;
    let console = if options.show { Console::Show } else { Console::Log };
    let total = runs.len();
    let next = Mutex::new(runs.into_iter().enumerate());
    let count = Mutex::new(Count::default());
    let work = || -> Result<()> {
        loop {
            let run = next.lock().expect("no holder panics").next();
            let Some((index, (scenario, name, machine))) = run else {
                return Ok(());
            };
            let verdict = runner::run(&lab, scenario, &name, &machine, &binaries, console)?;
            let mut count = count.lock().expect("no holder panics");
            tell(&format!("[{}/{total}] {name}", index + 1), &verdict);
            count.add(Count {
                passed: u64::from(verdict.failure.is_none()),
                failed: u64::from(verdict.failure.is_some()),
            });
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().expect("workers do not panic")?;
        }
        anyhow::Ok(())
    })?;
    let count = *count.lock().expect("no holder panics");
    Ok(count)
}

/// Prints the line of one scenario, and what there is to see when it failed.
fn tell(name: &str, verdict: &Verdict) {
    let seconds = verdict.took.as_secs_f32();
    match &verdict.failure {
        None => println!("{name}: passed in {seconds:.0} s"),
        Some(why) => {
            println!("{name}: FAILED in {seconds:.0} s: {why}");
            for line in verdict.console_tail(TAIL_LINES).lines() {
                println!("    | {line}");
            }
            println!("    whole console: {}", verdict.log.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_cargo_test_are_read_and_added() {
        let mut sum = Count::default();
        for line in [
            "test result: ok. 18 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "running 3 tests",
        ] {
            sum.add(result_line(line).unwrap_or_default());
        }
        assert_eq!(sum, Count { passed: 21, failed: 4 });
    }
}
