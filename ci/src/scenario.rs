//! Guest scenarios: one script each in `ci/scenarios`, in the shape of blktests.
//!
//! A script starts with comments: what it shows, then what it needs, one `# key: value` a line.
//!
//! | key | value | without it |
//! |---|---|---|
//! | `kernels` | the series it runs on | both |
//! | `iommu` | address widths, each a run of its own, or `none` | 48 |
//! | `memory`, `cpus` | the machine's | 2G, 2 |
//! | `drive` | options of an NVMe drive, a line for each | no drive |
//! | `device` | another PCI device, as QEMU takes it | |
//! | `append` | an argument for the kernel | |
//! | `programs` | packages whose programs it needs on its PATH | `aioctl` |
//! | `tests` | packages whose test binaries it needs in `/uaio/tests` | |
//! | `examples` | `PACKAGE/NAME` it needs on its PATH | |
//! | `peers` | crates `NAME@VERSION` whose programs it compares ours with; it must do without them | |
//! | `preload` | `yes`: the preload library in `/uaio/preload`, with its drop-in folder | no |
//! | `phases` | number of boots on the same drives, `$PHASE` counting from 1 | 1 |
//! | `timeout` | seconds for each boot | 240 |
//! | `job` | `test`, `demo` or `bench` | test |
//!
//! Then it defines `test()`, which runs in the guest with the helpers of `common.sh`, `errexit` and `pipefail`. It has
//! passed when `test` returned, its last word on the report port is PASS, and the kernel raised no alarm.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::kernels::Series;
use crate::lab::workspace_dir;
use crate::machine::{self, Machine};

/// The helpers every scenario has.
pub const COMMON: &str = include_str!("../scenarios/common.sh");

/// The program behind the helper `stamps`.
pub const STAMPS: &str = include_str!("../scenarios/stamps.py");

/// The job that runs a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// `cargo ci test`
    Test,
    /// `cargo ci demo`
    Demo,
    /// `cargo ci bench`
    Bench,
}

/// A script with what its header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The file's name.
    pub name: String,
    /// The first comment.
    pub description: String,
    /// The whole script.
    pub script: String,
    /// Who runs it.
    pub job: Job,
    /// The kernels it runs on.
    pub kernels: Vec<Series>,
    /// The IOMMU address widths it runs with.
    pub iommu: Vec<Option<u32>>,
    /// The machine, but for kernel and IOMMU.
    pub machine: Machine,
    /// Packages whose programs it needs.
    pub programs: Vec<String>,
    /// Packages whose test binaries it needs.
    pub tests: Vec<String>,
    /// Examples it needs, as `PACKAGE/NAME`.
    pub examples: Vec<String>,
    /// Crates whose programs it compares ours with.
    pub peers: Vec<String>,
    /// Whether it needs the preload library.
    pub preload: bool,
    /// Number of boots.
    pub phases: u32,
    /// Time limit of each boot.
    pub limit: Duration,
}

impl Scenario {
    /// Reads the scenario `name` out of `script`.
    ///
    /// # Errors
    ///
    /// When its header is wrong.
    pub fn parse(name: &str, script: &str) -> Result<Self> {
        let mut scenario = Self {
            name: name.to_string(),
            description: String::new(),
            script: script.to_string(),
            job: Job::Test,
            kernels: Series::ALL.into(),
            iommu: vec![Some(48)],
            machine: Machine::default(),
            programs: vec!["aioctl".into()],
            tests: Vec::new(),
            examples: Vec::new(),
            peers: Vec::new(),
            preload: false,
            phases: 1,
            limit: Duration::from_secs(240),
        };
        for line in script.lines().take_while(|line| line.starts_with('#')) {
            let line = line.trim_start_matches('#').trim();
            match line.split_once(": ") {
                Some((key, value)) if key.chars().all(|c| c.is_ascii_lowercase()) => scenario
                    .set(key, value.trim())
                    .with_context(|| format!("scenario {name}: {line}"))?,
                _ if scenario.description.is_empty() && !line.starts_with('!') => {
                    scenario.description = line.to_string();
                }
                _ => {}
            }
        }
        if !script.lines().any(|line| line.starts_with("test()")) {
            bail!("scenario {name} defines no test()");
        }
        if scenario.description.is_empty() {
            bail!("scenario {name} does not say what it shows");
        }
        Ok(scenario)
    }

    /// Takes one line of the header.
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let words = || value.split_whitespace().map(String::from).collect();
        match key {
            "kernels" => {
                self.kernels = value.split_whitespace().map(str::parse).collect::<Result<_>>()?
            }
            "iommu" => {
                self.iommu = value
                    .split_whitespace()
                    .map(|word| match word {
                        "none" => Ok(None),
                        bits => Ok(Some(bits.parse()?)),
                    })
                    .collect::<Result<_>>()?;
            }
            "memory" => self.machine.memory_mib = machine::size(value)? >> 20,
            "cpus" => self.machine.cpus = value.parse()?,
            "drive" => self.machine.drives.push(value.parse()?),
            "device" => self.machine.devices.push(value.into()),
            "append" => self.machine.kernel_args.push(value.into()),
            "programs" if value == "none" => self.programs.clear(),
            "programs" => self.programs = words(),
            "tests" => self.tests = words(),
            "examples" => self.examples = words(),
            "peers" => self.peers = words(),
            "preload" if value == "yes" => self.preload = true,
            "phases" => self.phases = value.parse()?,
            "timeout" => self.limit = Duration::from_secs(value.parse()?),
            "job" => {
                self.job = match value {
                    "test" => Job::Test,
                    "demo" => Job::Demo,
                    "bench" => Job::Bench,
                    _ => bail!("no such job"),
                }
            }
            _ => bail!("no such key"),
        }
        Ok(())
    }

    /// Every machine this scenario runs on, with the name of that run.
    pub fn variants(&self) -> Vec<(String, Machine)> {
        let mut variants = Vec::new();
        for &kernel in &self.kernels {
            for &iommu_bits in &self.iommu {
                let mut name = format!("{}@{kernel}", self.name);
                if self.iommu.len() > 1 {
                    match iommu_bits {
                        Some(bits) => name.push_str(&format!("/iommu-{bits}")),
                        None => name.push_str("/no-iommu"),
                    }
                }
                let machine = Machine { kernel, iommu_bits, ..self.machine.clone() };
                variants.push((name, machine));
            }
        }
        variants
    }
}

/// The folder of the scenarios.
pub fn dir() -> PathBuf {
    workspace_dir().join("ci/scenarios")
}

/// Reads all scenarios, by name.
///
/// # Errors
///
/// When one cannot be read or its header is wrong.
pub fn all() -> Result<Vec<Scenario>> {
    let mut scenarios = Vec::new();
    for file in fs::read_dir(dir())? {
        let path = file?.path();
        if path.is_file() && path.extension().is_none() {
            scenarios.push(read(&path)?);
        }
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

/// Reads the scenario in the file `path`.
///
/// # Errors
///
/// When it cannot be read or its header is wrong.
pub fn read(path: &Path) -> Result<Scenario> {
    let script =
        fs::read_to_string(path).with_context(|| format!("no scenario {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Scenario::parse(&name, &script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Drive;

    #[test]
    fn a_header_is_read_to_its_end_and_not_beyond() {
        let script = "#!/bin/bash\n# Shows that: it works.\n# More words.\n#\n# kernels: 7.2\n# iommu: 39 48\n\
                      # memory: 512M\n# drive: size=64M ns=2\n# drive: root-port\n# timeout: 9\n# phases: 2\n\n\
                      # memory: 1G\ntest() {\n\ttrue\n}\n";
        let scenario = Scenario::parse("x", script).unwrap();
        assert_eq!(scenario.description, "Shows that: it works.");
        assert_eq!(scenario.kernels, [Series::V7_2]);
        assert_eq!(scenario.machine.memory_mib, 512);
        assert_eq!(scenario.limit, Duration::from_secs(9));
        assert_eq!(scenario.phases, 2);
        assert_eq!(scenario.machine.drives.len(), 2);
        assert_eq!(
            scenario.machine.drives[0],
            Drive { size: 64 << 20, namespaces: 2, ..Drive::default() }
        );
        let names: Vec<String> = scenario.variants().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x@7.2/iommu-39", "x@7.2/iommu-48"]);
    }

    #[test]
    fn a_wrong_header_is_refused_with_its_line() {
        for (script, why) in [
            ("# What.\n# memory: lots\ntest() {\n", "memory: lots"),
            ("# What.\n# colour: red\ntest() {\n", "colour: red"),
            ("# What.\n# kernels: 5.10\ntest() {\n", "kernels: 5.10"),
            ("# What.\n", "no test()"),
            ("# memory: 1G\ntest() {\n", "what it shows"),
        ] {
            let error = format!("{:#}", Scenario::parse("x", script).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn every_scenario_of_the_tree_has_a_right_header() {
        assert!(!all().unwrap().is_empty());
    }
}
