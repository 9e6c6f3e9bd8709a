//! `cargo ci bench`: figures, each against a peer measured in the same run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::bench::registry::{self, Bench, Source};
use crate::bench::{self, Figures, table};
use crate::cargo::{self, Profile};
use crate::guest::{self, Console};
use crate::lab::{Lab, image};
use crate::runner::{self, Binaries};
use crate::{jobs, packages, process, scenario};

/// How many rounds the shorter of the two counted runs makes.
const COUNTED_ROUNDS: u64 = 200;

/// Measures, each figure against a peer in the same run, in turns.
///
/// Prints a table, and then a line of JSON for each row. The status is not 0 when a ratio could not be had.
#[derive(Debug, Args)]
pub struct Options {
    /// Which; all without one
    names: Vec<String>,
    /// List the benches
    #[arg(long)]
    list: bool,
    /// Show the guest's console while it works
    #[arg(long)]
    show: bool,
    /// Carry this program into the guest instead of building aioctl
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
}

/// Runs the job.
///
/// # Errors
///
/// When a bench is named that does not exist, or nothing can be built.
pub fn run(options: &Options) -> Result<i32> {
    if options.list {
        for bench in registry::ALL {
            println!("{:<12} {}", bench.name, bench.what);
        }
        return Ok(0);
    }
    let is_bench = |name: &&String| !registry::ALL.iter().any(|bench| bench.name == **name);
    if let Some(wrong) = options.names.iter().find(is_bench) {
        bail!("no bench {wrong}; see cargo ci bench --list");
    }
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::BENCH)?;
    let mut rows = Vec::new();
    for bench in registry::ALL {
        if !options.names.is_empty() && !options.names.iter().any(|name| name == bench.name) {
            continue;
        }
        eprintln!("{}: {}", bench.name, bench.what);
        // One that cannot be run does not keep the others from running.
        let lines = measure(bench, options);
        for row in bench.rows {
            rows.push(match &lines {
                Ok(lines) => Figures::collect(bench.name, row, lines),
                Err(error) => {
                    let reason = format!("MISSING {} {error:#}", row.key());
                    let reason = reason.lines().take(3).collect::<Vec<_>>().join(" ");
                    Figures::collect(bench.name, row, &[reason])
                }
            });
        }
    }
    print!("{}", table(&rows));
    for row in &rows {
        println!("{}", row.json());
    }
    Ok(i32::from(rows.iter().any(|row| row.result.is_err())))
}

/// Runs a bench, and returns what it said.
fn measure(bench: &Bench, options: &Options) -> Result<Vec<String>> {
    match bench.source {
        Source::Host { package, example } => {
            let program = built(package, example)?;
            let said = process::output(&mut program_command(&program))?;
            Ok(said.lines().map(String::from).collect())
        }
        Source::Callgrind { budget, .. } => {
            Ok(vec![format!("ROUND - {} {budget}", count_instructions(bench)?)])
        }
        Source::Preload { interface } => {
            bench::preload::rounds(interface, &jobs::preload::build(false)?)
        }
        Source::Guest { scenario } => in_guest(scenario, options),
    }
}

/// The instructions a request of a bench that is counted.
///
/// # Errors
///
/// When it cannot be built or run, or is not such a bench.
pub fn count_instructions(bench: &Bench) -> Result<f64> {
    let Source::Callgrind {
        package, example, counted, not_counted, device, round_requests, ..
    } = bench.source
    else {
        bail!("{} is not counted", bench.name);
    };
    let program = built(package, example)?;
    let shorter = count(&program, COUNTED_ROUNDS, counted, (not_counted, device))?;
    let longer = count(&program, 2 * COUNTED_ROUNDS, counted, (not_counted, device))?;
    // The difference leaves out what is done once.
    let requests = COUNTED_ROUNDS * u64::from(round_requests);
    let each = longer.saturating_sub(shorter) as f64 / requests as f64;
    if each == 0.0 {
        bail!("nothing was counted in {counted}");
    }
    Ok(each)
}

/// Builds an example as users get it.
fn built(package: &str, example: &str) -> Result<cargo::Built> {
    let built = cargo::example(package, example, Profile::Release)?;
    built.into_iter().next().context("no example was built")
}

/// Runs the program from the workspace, where relative paths are ours.
fn program_command(program: &cargo::Built) -> Command {
    let mut command = Command::new(&program.path);
    command.current_dir(crate::lab::workspace_dir());
    command
}

/// The instructions spent inside functions of the name `counted` while `program` makes `rounds` rounds, except those of
/// functions of the names `not_counted` themselves, and those of a `device` with what they call.
fn count(
    program: &cargo::Built,
    rounds: u64,
    counted: &str,
    (not_counted, device): (&[&str], &[&str]),
) -> Result<u64> {
    let lab = Lab::open()?;
    let dir = lab.run_dir("callgrind")?;
    let out = dir.join("out");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .args(["--collect-atstart=no", &format!("--toggle-collect=*{counted}*")])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&program.path)
        .arg(rounds.to_string());
    process::quiet(&mut valgrind)?;
    let cost = self_cost(&fs::read_to_string(&out)?, not_counted, device);
    fs::remove_dir_all(dir)?;
    Ok(cost)
}

/// Sums the self costs in a callgrind profile, but for functions whose name contains one of `not_counted`, and for
/// those of a `device`, which go with all that they call.
fn self_cost(profile: &str, not_counted: &[&str], device: &[&str]) -> u64 {
    let is_one_of = |names: &[&str], name: &str| names.iter().any(|part| name.contains(part));
    let (mut sum, mut of_device) = (0_u64, 0_u64);
    let (mut counts, mut in_device) = (true, false);
    // What is called, while the line with what the call cost is still to come.
    let (mut callee_counts, mut calls) = (true, false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            in_device = is_one_of(device, name);
            counts = !in_device && !is_one_of(not_counted, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee_counts = !is_one_of(device, name) && !is_one_of(not_counted, name);
        } else if line.starts_with("calls=") {
            calls = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit()) {
            let of_a_call = std::mem::take(&mut calls);
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse().ok());
            let cost: u64 = cost.unwrap_or(0);
            match (of_a_call, in_device) {
                (false, _) if counts => sum += cost,
                (true, true) if callee_counts => of_device += cost,
                _ => {}
            }
        }
    }
    sum.saturating_sub(of_device)
}

/// Runs a bench that is a scenario, and returns what it reported.
fn in_guest(name: &str, options: &Options) -> Result<Vec<String>> {
    packages::ensure(packages::GUEST)?;
    let lab = Lab::open()?;
    image::root_disk(&lab)?;
    guest::kvm_works(&lab)?;
    let scenario = scenario::read(&scenario::dir().join(name))?;
    let needed = std::slice::from_ref(&scenario);
    let binaries = Binaries::given(&options.programs).and_build(needed, Profile::Release)?;
    let (run, machine) = scenario.variants().into_iter().next().context("no kernel")?;
    let console = if options.show { Console::Show } else { Console::Log };
    let verdict = runner::run(&lab, &scenario, &run, &machine, &binaries, console)?;
    match verdict.failure {
        None => Ok(verdict.report),
        Some(why) => bail!("{why}; console: {}", verdict.log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Job;

    #[test]
    fn own_costs_are_summed_without_calls_and_without_what_is_not_counted() {
        let profile = "events: Ir\n\nfl=a.rs\nfn=<ours::Queue as x>::poll\n10 7\n11 100\n\
                       cfn=model::f\ncalls=1 20\n12 9000\n13 1\n\nfn=model::f\n20 9000\n\nfn=memcpy\n3 5\n";
        assert_eq!(self_cost(profile, &["model::"], &[]), 113);
        assert_eq!(self_cost(profile, &["nothing", "memcpy"], &[]), 9108);
    }

    #[test]
    fn what_a_device_calls_is_the_devices() {
        let profile = "events: Ir\n\nfn=ours::poll\n1 10\ncfn=ram::poll\ncalls=1 2\n2 500\ncfn=memcpy\n\
                       calls=1 3\n3 40\n\nfn=ram::poll\n1 100\ncfn=memcpy\ncalls=1 3\n2 380\ncfn=ram::next\n\
                       calls=1 3\n2 20\n\nfn=ram::next\n1 20\n\nfn=memcpy\n3 420\n";
        assert_eq!(self_cost(profile, &[], &["ram::"]), 10 + 40);
        assert_eq!(self_cost(profile, &["ram::"], &[]), 10 + 420);
    }

    #[test]
    fn every_guest_bench_has_its_scenario_and_every_such_scenario_its_bench() {
        let mut named: Vec<&str> = registry::ALL
            .iter()
            .filter_map(|bench| match bench.source {
                Source::Guest { scenario } => Some(scenario),
                _ => None,
            })
            .collect();
        named.sort_unstable();
        let scenarios = scenario::all().unwrap();
        let there: Vec<&str> = scenarios
            .iter()
            .filter(|scenario| scenario.job == Job::Bench)
            .map(|scenario| scenario.name.as_str())
            .collect();
        assert_eq!(named, there);
    }
}
