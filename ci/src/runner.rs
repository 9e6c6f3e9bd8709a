//! Runs one variant of a scenario: what it needs is built, its guest booted once or more, and the verdict drawn.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cargo::{self, Built, Profile};
use crate::guest::{self, Boot, Console, End, Outcome};
use crate::jobs::preload;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::payload::Payload;
use crate::process;
use crate::scenario::{self, Scenario};

/// What the guest runs: the helpers, the scenario, and its `test` with every failing command a failure of it.
const MAIN: &str = "source /uaio/common.sh\nsource /uaio/scenario.sh\nrun_scenario\n";

/// Binaries for guests, built once however many scenarios need them.
#[derive(Debug, Default)]
pub struct Binaries {
    programs: BTreeMap<String, Vec<Built>>,
    examples: BTreeMap<String, Vec<Built>>,
    tests: BTreeMap<String, Vec<Built>>,
    peers: BTreeMap<String, Vec<Built>>,
    preload: Option<PathBuf>,
}

impl Binaries {
    /// Builds what `scenarios` need.
    ///
    /// # Errors
    ///
    /// When cargo fails.
    pub fn build(scenarios: &[Scenario], profile: Profile) -> Result<Self> {
        Self::default().and_build(scenarios, profile)
    }

    /// Programs that were built elsewhere, to be carried in instead of those of `aioctl`.
    pub fn given(paths: &[PathBuf]) -> Self {
        let mut binaries = Self::default();
        if !paths.is_empty() {
            let built = paths.iter().map(|path| Built {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                path: path.clone(),
            });
            binaries.programs.insert("aioctl".into(), built.collect());
        }
        binaries
    }

    /// Builds what `scenarios` need beside what is there.
    ///
    /// # Errors
    ///
    /// When cargo fails.
    pub fn and_build(self, scenarios: &[Scenario], profile: Profile) -> Result<Self> {
        let mut binaries = self;
        for scenario in scenarios {
            for package in &scenario.programs {
                if !binaries.programs.contains_key(package) {
                    let built = cargo::programs(package, profile)?;
                    binaries.programs.insert(package.clone(), built);
                }
            }
            for example in &scenario.examples {
                if !binaries.examples.contains_key(example) {
                    let (package, name) = example
                        .split_once('/')
                        .with_context(|| format!("not PACKAGE/NAME: {example}"))?;
                    let built = cargo::example(package, name, profile)?;
                    binaries.examples.insert(example.clone(), built);
                }
            }
            if scenario.preload && binaries.preload.is_none() {
                binaries.preload = Some(preload::build(true)?);
            }
            for peer in &scenario.peers {
                // The scenario says what it cannot do without.
                let programs = cargo::peer(peer).unwrap_or_else(|error| {
                    eprintln!("no peer {peer}: {error:#}");
                    Vec::new()
                });
                binaries.peers.insert(peer.clone(), programs);
            }
            for package in &scenario.tests {
                if !binaries.tests.contains_key(package) {
                    let built = cargo::tests(package, profile)?;
                    binaries.tests.insert(package.clone(), built);
                }
            }
        }
        Ok(binaries)
    }
}

/// What came of a variant.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Why it failed; none when it passed.
    pub failure: Option<String>,
    /// The lines its script wrote to the report port, of all phases.
    pub report: Vec<String>,
    /// The consoles of all phases, one after the other.
    pub log: PathBuf,
    /// How long its guests ran.
    pub took: Duration,
}

impl Verdict {
    /// The end of the console, for people.
    pub fn console_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        process::tail(&text, lines)
    }
}

/// Runs the variant `name` of `scenario` on `machine`.
///
/// # Errors
///
/// When no guest can be made; what goes wrong inside it is in the verdict.
pub fn run(
    lab: &Lab,
    scenario: &Scenario,
    name: &str,
    machine: &Machine,
    binaries: &Binaries,
    console: Console,
) -> Result<Verdict> {
    let file_name = name.replace('/', "-");
    let dir = lab.run_dir(&file_name)?;
    guest::make_drives(machine, &dir)?;
    let mut verdict = Verdict {
        failure: None,
        report: Vec::new(),
        log: lab.log_dir()?.join(format!("{file_name}.log")),
        took: Duration::ZERO,
    };
    let mut log = Vec::new();
    for phase in 1..=scenario.phases {
        let mut payload = Payload::new(&dir)?;
        fill(&mut payload, scenario, binaries)?;
        payload.set("KERNEL", machine.kernel.to_string());
        payload.set("PHASE", phase.to_string());
        for (name, value) in kept(&verdict.report) {
            payload.set(name, value);
        }
        let boot = Boot {
            machine,
            drives: &dir,
            payload: &payload.finish(&dir)?,
            dir: &dir,
            console,
            limit: scenario.limit,
        };
        let outcome = boot.run(lab)?;
        log.extend(fs::read(&outcome.console)?);
        verdict.took += outcome.took;
        let failure = failure(&outcome, phase < scenario.phases);
        verdict.report.extend(outcome.report);
        if failure.is_some() {
            verdict.failure = failure;
            break;
        }
    }
    fs::write(&verdict.log, log)?;
    fs::remove_dir_all(&dir)?;
    Ok(verdict)
}

/// Puts into `payload` what `scenario` needs.
fn fill(payload: &mut Payload, scenario: &Scenario, binaries: &Binaries) -> Result<()> {
    payload.write("common.sh", scenario::COMMON)?;
    payload.write("stamps.py", scenario::STAMPS)?;
    payload.write("scenario.sh", &scenario.script)?;
    payload.write("main.sh", MAIN)?;
    payload.set("SCENARIO", &scenario.name);
    if let (true, Some(library)) = (scenario.preload, &binaries.preload) {
        payload.program(library, "preload", "libuaio_preload.so")?;
        payload.copy(&library.with_file_name("libaio"), "preload")?;
    }
    for (wanted, there, into) in [
        (&scenario.programs, &binaries.programs, "bin"),
        (&scenario.examples, &binaries.examples, "bin"),
        (&scenario.peers, &binaries.peers, "bin"),
        (&scenario.tests, &binaries.tests, "tests"),
    ] {
        for built in wanted.iter().filter_map(|name| there.get(name)).flatten() {
            payload.program(&built.path, into, &built.name)?;
        }
    }
    Ok(())
}

/// The variables that earlier phases keep for later ones: lines `KEEP NAME VALUE`.
fn kept(report: &[String]) -> Vec<(&str, &str)> {
    report.iter().filter_map(|line| line.strip_prefix("KEEP ")?.split_once(' ')).collect()
}

/// Why the phase failed, if it did. `more` says that another phase follows, so that its power may be cut.
fn failure(outcome: &Outcome, more: bool) -> Option<String> {
    let said = |prefix: &str| {
        outcome.report.iter().find_map(|line| line.strip_prefix(prefix)).map(String::from)
    };
    match &outcome.end {
        End::PowerCut if more => None,
        End::Exit(0) if outcome.report.iter().any(|line| line == "PASS") => None,
        End::Exit(0) => Some("ended without a word".into()),
        end => Some(said("FAIL ").unwrap_or_else(|| end.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End, report: &[&str]) -> Outcome {
        Outcome {
            end,
            report: report.iter().map(|line| line.to_string()).collect(),
            console: PathBuf::new(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_pass_and_status_zero_together_pass() {
        let passed = |end, report: &[&str]| failure(&outcome(end, report), false).is_none();
        assert!(passed(End::Exit(0), &["START", "PASS", "EXIT 0"]));
        assert!(!passed(End::Exit(0), &["START", "EXIT 0"]));
        assert!(!passed(End::Exit(1), &["START", "PASS", "EXIT 1"]));
        assert!(!passed(End::Alarm("BUG: x".into()), &["PASS", "EXIT 0"]));
        assert!(!passed(End::TimedOut(Duration::ZERO), &["PASS"]));
        assert!(!passed(End::PowerCut, &["POWERCUT"]));
    }

    #[test]
    fn a_power_cut_passes_while_another_phase_follows() {
        assert_eq!(failure(&outcome(End::PowerCut, &["POWERCUT"]), true), None);
    }

    #[test]
    fn the_scripts_own_words_are_the_reason() {
        let failed = outcome(End::Exit(1), &["FAIL sums differ", "EXIT 1"]);
        assert_eq!(failure(&failed, false).as_deref(), Some("sums differ"));
    }

    #[test]
    fn later_phases_get_what_earlier_ones_kept() {
        let report = ["START", "KEEP SUM a b", "KEEP"].map(String::from);
        assert_eq!(kept(&report), [("SUM", "a b")]);
    }
}
