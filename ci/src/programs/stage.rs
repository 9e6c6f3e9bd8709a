//! Runs a program's script on each of its sides, with what it needs around it, until nothing of it is left.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid,
};

use super::seen::Seen;
use super::{Program, all};
use crate::lab::apt::Apt;
use crate::lab::kernels::Kernel;
use crate::lab::{Lab, image};
use crate::{packages, process};

/// The helpers every script has.
const COMMON: &str = include_str!("../../programs/common.sh");

/// How often a script is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How a program gets its AIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As Debian made it.
    Without,
    /// With the library loaded before all others.
    Preload,
    /// With the folder before all others that holds the library under libaio's name.
    DropIn,
}

impl Side {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Preload => "preload",
            Self::DropIn => "drop-in",
        }
    }
}

/// What programs run with.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    /// Where packages were unpacked.
    tree: PathBuf,
    /// `libuaio_preload.so`.
    library: PathBuf,
    /// The folder with `libaio.so.1`.
    drop_in: PathBuf,
    root: bool,
}

impl Stage {
    /// Gets everything that programs need, but for kernels.
    ///
    /// # Errors
    ///
    /// When packages cannot be had.
    pub fn set(lab: &Lab, library: &Path, drop_in: &Path) -> Result<Self> {
        packages::ensure(packages::PROGRAMS)?;
        Ok(Self {
            lab: lab.clone(),
            tree: tree(lab, &all()?)?,
            library: library.to_path_buf(),
            drop_in: drop_in.to_path_buf(),
            root: process::output(Command::new("id").arg("-u"))?.trim() == "0",
        })
    }

    /// Runs the test of `program` on each of its sides, and says how it went.
    ///
    /// # Errors
    ///
    /// When it cannot be run at all; what goes wrong in it is in the verdict.
    pub fn test(&self, program: &Program) -> Result<Verdict> {
        let started = Instant::now();
        let mut verdict = Verdict { failure: None, requests: 0, took: Duration::ZERO };
        if let (Some(why), false) = (&program.root, self.root) {
            verdict.failure = Some(format!("needs root: {why}"));
            return Ok(verdict);
        }
        for side in program.sides() {
            let run = self.start(program, side)?;
            let seen = run.ends(program.limit)?;
            let judged = seen.and_then(|seen| {
                if side == Side::Preload {
                    verdict.requests = seen.libaio + seen.posix;
                }
                program.interface.map_or(Ok(()), |interface| seen.judge(interface, side))
            });
            let log =
                self.lab.log_dir()?.join(format!("program-{}-{}.log", program.name, side.name()));
            fs::copy(run.dir.join("log"), &log)?;
            fs::remove_dir_all(&run.dir)?;
            if let Err(why) = judged {
                let said = fs::read(&log)?;
                let said = String::from_utf8_lossy(&said);
                let tail =
                    said.find("FAIL: ").map_or(process::tail(&said, 5), |at| said[at..].into());
                verdict.failure =
                    Some(format!("{}: {why}; {}\n{tail}", side.name(), log.display()));
                break;
            }
        }
        verdict.took = started.elapsed();
        Ok(verdict)
    }

    /// Takes the figures of `program` for `rounds` rounds, without and with the library in turns.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn measure(&self, program: &Program, rounds: usize) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        let sides = [Side::Without, Side::Preload];
        // Both sides keep their folder, and with it what they have to prepare only once.
        let runs = [self.prepare(program, sides[0])?, self.prepare(program, sides[1])?];
        // The first round only warms up.
        for round in 0..=rounds {
            let mut found = [0.0, 0.0];
            let mut unit = String::new();
            for turn in 0..2 {
                let side = (round + turn) % 2;
                let run = self.spawn(program, &runs[side], sides[side], "measure")?;
                run.ends(program.limit)?.map_err(|why| {
                    anyhow::anyhow!(
                        "{} {}: {why}; {}",
                        program.name,
                        sides[side].name(),
                        run.dir.display()
                    )
                })?;
                let text = fs::read_to_string(run.dir.join("figures")).unwrap_or_default();
                let last = text.lines().last().and_then(|line| line.split_once(' '));
                let (value, what) = last.with_context(|| format!("{}: no figure", program.name))?;
                found[side] = value.parse().with_context(|| format!("{}: {text}", program.name))?;
                unit = what.to_string();
            }
            if round > 0 {
                figures.push(Figure { without: found[0], with: found[1], unit });
            }
        }
        for dir in runs {
            fs::remove_dir_all(dir)?;
        }
        Ok(figures)
    }

    fn start(&self, program: &Program, side: Side) -> Result<Run> {
        let dir = self.prepare(program, side)?;
        fs::create_dir(dir.join("trace"))?;
        self.spawn(program, &dir, side, "test")
    }

    /// An empty folder for a run.
    fn prepare(&self, program: &Program, side: Side) -> Result<PathBuf> {
        let dir = self.lab.run_dir(&format!("{}-{}", program.name, side.name()))?;
        fs::create_dir(dir.join("work"))?;
        fs::write(dir.join("script"), format!("{COMMON}\n{}", program.script))?;
        Ok(dir)
    }

    /// Starts a function of the script, as the leader of a process group.
    fn spawn(&self, program: &Program, dir: &Path, side: Side, function: &str) -> Result<Run> {
        let log = File::create(dir.join("log"))?;
        let trace = if function == "test" { dir.join("trace") } else { PathBuf::new() };
        let library = if side == Side::Preload { self.library.as_path() } else { Path::new("") };
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(format!("source '{}'; {function}", dir.join("script").display()));
        bash.env("LIBRARY", library).env("TRACE", trace).env("TREE", &self.tree);
        bash.env("PRELOAD_LIBRARY", &self.library);
        bash.env(
            "DROP_IN",
            if side == Side::DropIn { self.drop_in.as_path() } else { Path::new("") },
        );
        for (name, at) in [("WORK", "work"), ("STATS", "stats"), ("FIGURES", "figures")] {
            bash.env(name, dir.join(at));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = ["usr/sbin", "usr/bin", "sbin", "bin"].map(|at| self.tree.join(at));
        let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let path = programs.into_iter().chain(std::env::split_paths(&path)).chain(usual);
        bash.env("PATH", std::env::join_paths(path)?);
        let arch = "lib/x86_64-linux-gnu";
        let libraries = [self.tree.join("usr").join(arch), self.tree.join(arch)];
        bash.env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
        if let Some(series) = program.guest {
            bash.env("KERNEL", Kernel::get(&self.lab, series)?.image);
            bash.env("ROOT", image::root_disk(&self.lab)?);
            bash.env("ROOT_PARAMETER", image::root_parameter());
        }
        bash.current_dir(dir.join("work")).stdin(Stdio::null());
        bash.stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = bash.spawn().context("cannot run bash")?;
        Ok(Run { child, dir: dir.to_path_buf() })
    }
}

/// A script at work.
struct Run {
    child: Child,
    dir: PathBuf,
}

impl Run {
    /// Waits for the end, of everything it has started too, and collects what was seen; or why it failed.
    fn ends(&self, limit: Duration) -> Result<std::result::Result<Seen, String>> {
        let group = Pid::from_child(&self.child);
        let deadline = Instant::now() + limit;
        let status = loop {
            // The script stays a zombie until its group is gone, so that the group's number stays its own.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match waitid(WaitId::Pid(group), options)? {
                Some(status) => break Some(status.exit_status()),
                None if Instant::now() > deadline => break None,
                None => sleep(POLL),
            }
        };
        // A group that has nobody but the zombie is no failure.
        kill_process_group(group, Signal::KILL)?;
        waitpid(Some(group), WaitOptions::empty())?;
        Ok(match status {
            None => Err(format!("killed after {} s", limit.as_secs())),
            Some(Some(0)) => Ok(Seen::collect(&self.dir)?),
            Some(status) => Err(format!("ended with status {}", status.unwrap_or(-1))),
        })
    }
}

/// How a test went.
#[derive(Debug)]
pub struct Verdict {
    /// Why it failed; none when it passed.
    pub failure: Option<String>,
    /// How many requests the library served.
    pub requests: u64,
    /// How long it took.
    pub took: Duration,
}

/// The figures of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Without the library.
    pub without: f64,
    /// With it.
    pub with: f64,
    /// What is counted; seconds are better when there are less.
    pub unit: String,
}

impl Figure {
    /// How many times better it is with the library.
    pub fn gain(&self) -> f64 {
        if matches!(self.unit.as_str(), "s" | "us") {
            self.without / self.with
        } else {
            self.with / self.without
        }
    }
}

/// The folder with the packages of `programs` that are not installed, and those that they need, unpacked.
///
/// They come from the machine's own release, so that they run here, and nothing is installed: a package of a server
/// starts it.
fn tree(lab: &Lab, programs: &[Program]) -> Result<PathBuf> {
    let mut wanted: Vec<&str> =
        programs.iter().flat_map(|program| &program.packages).map(String::as_str).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let missing = packages::missing(&wanted)?;
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("/etc/os-release names no Debian release")?.trim_matches('"');
    lab.entry("programs", &format!("{suite} {missing:?}"), |dir| {
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!("fetching {}", missing.join(" "));
        let apt = Apt::open(dir.join("apt"), &[suite, &format!("{suite}-security")])?;
        apt.unpack(&apt.not_installed(&missing)?, dir)?;
        fs::remove_dir_all(dir.join("apt"))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_seconds_and_more_of_everything_else_are_a_gain() {
        let figure = |unit: &str| Figure { without: 2.0, with: 4.0, unit: unit.into() };
        assert_eq!(figure("IOPS").gain(), 2.0);
        assert_eq!(figure("s").gain(), 0.5);
    }
}
