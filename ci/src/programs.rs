//! Programs of Debian's packages that speak libaio or POSIX AIO, unmodified, without and with the preload library.
//!
//! One script each in `ci/programs`. It starts with comments: what it shows, then what it needs, one `# key: value` a
//! line.
//!
//! | key | value | without it |
//! |---|---|---|
//! | `packages` | those that hold the program and what the script calls; unpacked for the machine's own release under the lab, never installed: a server's package starts it | none |
//! | `interface` | `libaio` or `posix`: the counter of the library that has to move | the script judges by itself, and runs only with the library |
//! | `drop-in` | `yes`: a third time with the folder that stands in for libaio instead of the preload | no |
//! | `root` | what it needs root for | nothing |
//! | `guest` | the kernel that `$KERNEL` names, with `$ROOT` and `$ROOT_PARAMETER` for its root disk | none |
//! | `timeout` | seconds for each side | 120 |
//!
//! Then it defines `test()`, which runs with the helpers of `common.sh`, and may define `measure()`, which ends with a
//! figure. The test has passed when it returns on each side, and when strace saw Linux
//! AIO without the library, and with it io_uring alone, and the library's counter has moved.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::lab::apt::Apt;
use crate::lab::kernels::{Kernel, Series};
use crate::lab::{Lab, image, workspace_dir};
use crate::{packages, process};

/// The helpers every script has.
const COMMON: &str = include_str!("../programs/common.sh");

/// How often a script is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What says in the library's words that it does not serve.
const FELL_THROUGH: &str = "; using the AIO of the C library and the kernel";

/// The interface by which a program asks for its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// Linux AIO, through libaio or by system calls.
    Libaio,
    /// `aio_read` and the rest of the C library.
    Posix,
}

impl Interface {
    /// What the library's counter of it is called.
    pub fn counter(self) -> &'static str {
        match self {
            Self::Libaio => "libaio",
            Self::Posix => "posix",
        }
    }
}

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
    fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Preload => "preload",
            Self::DropIn => "drop-in",
        }
    }
}

/// A script with what its header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file's name.
    pub name: String,
    /// The first comment.
    pub description: String,
    /// The whole script.
    script: String,
    /// The packages it needs.
    packages: Vec<String>,
    /// The interface that has to be used.
    interface: Option<Interface>,
    /// Whether it runs with the drop-in folder too.
    drop_in: bool,
    /// What it needs root for.
    root: Option<String>,
    /// The kernel it boots.
    guest: Option<Series>,
    /// Time limit of each side.
    limit: Duration,
}

impl Program {
    /// Reads the program `name` out of `script`.
    ///
    /// # Errors
    ///
    /// When its header is wrong.
    pub fn parse(name: &str, script: &str) -> Result<Self> {
        let mut program = Self {
            name: name.to_string(),
            description: String::new(),
            script: script.to_string(),
            packages: Vec::new(),
            interface: None,
            drop_in: false,
            root: None,
            guest: None,
            limit: Duration::from_secs(120),
        };
        for line in script.lines().map_while(|line| line.strip_prefix("# ")) {
            match line.split_once(": ").unwrap_or(("", line)) {
                ("packages", value) => {
                    program.packages = value.split_whitespace().map(String::from).collect();
                }
                ("interface", "libaio") => program.interface = Some(Interface::Libaio),
                ("interface", "posix") => program.interface = Some(Interface::Posix),
                ("drop-in", "yes") => program.drop_in = true,
                ("root", why) => program.root = Some(why.to_string()),
                ("guest", series) => program.guest = Some(series.parse()?),
                ("timeout", seconds) => {
                    let seconds =
                        seconds.parse().with_context(|| format!("program {name}: {line}"))?;
                    program.limit = Duration::from_secs(seconds);
                }
                _ if program.description.is_empty() => program.description = line.to_string(),
                _ => bail!("program {name}: {line}: no such key or value"),
            }
        }
        if program.description.is_empty() {
            bail!("program {name} does not say what it shows");
        }
        if !script.lines().any(|line| line.starts_with("test()")) {
            bail!("program {name} defines no test()");
        }
        Ok(program)
    }

    /// Whether it has a figure.
    pub fn measures(&self) -> bool {
        self.script.lines().any(|line| line.starts_with("measure()"))
    }

    /// The sides its test has.
    fn sides(&self) -> Vec<Side> {
        let mut sides = vec![Side::Preload];
        if self.interface.is_some() {
            sides.insert(0, Side::Without);
        }
        if self.drop_in {
            sides.push(Side::DropIn);
        }
        sides
    }
}

/// Every program, by name.
///
/// # Errors
///
/// When a script cannot be read or is wrong.
pub fn all() -> Result<Vec<Program>> {
    let dir = workspace_dir().join("ci/programs");
    let mut programs = Vec::new();
    for file in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = file?.path();
        if path.extension().is_some() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        programs.push(Program::parse(&name, &fs::read_to_string(&path)?)?);
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
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
    child: std::process::Child,
    dir: PathBuf,
}

impl Run {
    /// Waits for the end, of everything it has started too, and collects what was seen; or why it failed.
    fn ends(&self, limit: Duration) -> Result<std::result::Result<Seen, String>> {
        let group = Pid::from_child(&self.child);
        let deadline = Instant::now() + limit;
        let status = loop {
            // The script stays a zombie until its group is gone, so that the group's number stays its own.
            let options = rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOHANG
                | rustix::process::WaitIdOptions::NOWAIT;
            match rustix::process::waitid(rustix::process::WaitId::Pid(group), options)? {
                Some(status) => break Some(status.exit_status()),
                None if Instant::now() > deadline => break None,
                None => sleep(POLL),
            }
        };
        // A group that has nobody but the zombie is no failure.
        kill_process_group(group, Signal::KILL)?;
        rustix::process::waitpid(Some(group), rustix::process::WaitOptions::empty())?;
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

/// What was seen of the processes of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// Calls of io_setup(2) and io_submit(2) that reached the kernel.
    kernel_aio: usize,
    /// Calls of io_uring_setup(2).
    rings: usize,
    /// Requests that the library served.
    libaio: u64,
    posix: u64,
    /// Whether the library said that it serves nothing.
    fell_through: bool,
}

impl Seen {
    /// Reads what strace and the library wrote into the folder of a run.
    fn collect(dir: &Path) -> Result<Self> {
        let mut seen = Self::default();
        for trace in fs::read_dir(dir.join("trace")).into_iter().flatten() {
            seen.calls(&fs::read_to_string(trace?.path())?);
        }
        if let Ok(stats) = fs::read_to_string(dir.join("stats")) {
            seen.stats(&stats)?;
        }
        let log = fs::read(dir.join("log"))?;
        seen.fell_through = String::from_utf8_lossy(&log).contains(FELL_THROUGH);
        Ok(seen)
    }

    /// Counts the calls in what strace wrote.
    ///
    /// A call with a context that nobody has made is passed on to the kernel, and comes back as EINVAL.
    fn calls(&mut self, trace: &str) {
        for line in trace.lines() {
            let Some((call, returned)) = line.rsplit_once(" = ") else { continue };
            let call = call.split_once(' ').map_or("", |(_, call)| call.trim_start());
            let is = |name: &str| {
                call.strip_prefix("<... ")
                    .unwrap_or(call)
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('(') || rest.starts_with(" resumed>"))
            };
            let refused = returned.starts_with("-1 EINVAL");
            self.kernel_aio += usize::from(!refused && (is("io_submit") || is("io_setup")));
            self.rings += usize::from(!refused && is("io_uring_setup"));
        }
    }

    /// Adds the lines that the library's processes left.
    fn stats(&mut self, lines: &str) -> Result<()> {
        for line in lines.lines() {
            let said: serde_json::Value = serde_json::from_str(line)
                .with_context(|| format!("the library's line: {line}"))?;
            let count = |name: &str| {
                said[name]
                    .as_u64()
                    .with_context(|| format!("the library's line has no {name}: {line}"))
            };
            self.libaio += count(Interface::Libaio.counter())?;
            self.posix += count(Interface::Posix.counter())?;
        }
        Ok(())
    }

    /// Whether the program went the way that `side` is for; if not, why.
    ///
    /// Without the library the kernel must have seen Linux AIO, or the test could not tell anything.
    fn judge(&self, interface: Interface, side: Side) -> std::result::Result<(), String> {
        let served = match interface {
            Interface::Libaio => self.libaio,
            Interface::Posix => self.posix,
        };
        match (side, interface) {
            (Side::Without, Interface::Libaio) if self.kernel_aio == 0 => {
                Err("strace saw no Linux AIO where there must be".into())
            }
            (Side::Without, _) if self.libaio + self.posix > 0 => {
                Err("the library served where it is not".into())
            }
            (Side::Without, _) => Ok(()),
            _ if self.fell_through => Err("the library said that it cannot serve".into()),
            _ if served == 0 => {
                Err(format!("the library's counter of {} did not move", interface.counter()))
            }
            _ if self.kernel_aio > 0 => {
                Err(format!("{} calls of Linux AIO reached the kernel", self.kernel_aio))
            }
            _ if self.rings == 0 => Err("strace saw no io_uring where there must be".into()),
            _ => Ok(()),
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

    const SCRIPT: &str =
        "# shows: something\n# packages: a b\n# interface: posix\n# timeout: 5\n\ntest() {\n";

    #[test]
    fn a_header_says_what_is_needed_and_a_wrong_one_is_refused() {
        let script = SCRIPT.replace("# shows: ", "# shows ");
        let program = Program::parse("x", &script).unwrap();
        assert_eq!(program.description, "shows something");
        assert_eq!(program.packages, ["a", "b"]);
        assert_eq!(program.interface, Some(Interface::Posix));
        assert_eq!(program.limit, Duration::from_secs(5));
        assert_eq!(program.sides(), [Side::Without, Side::Preload]);
        for wrong in [
            script.replace("posix", "epoll"),
            script.replace("timeout: 5", "timeout: soon"),
            script.replace("test()", "check()"),
            "test() {\n".to_string(),
        ] {
            assert!(Program::parse("x", &wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_script_is_right_and_all_but_those_that_judge_themselves_name_an_interface() {
        let programs = all().unwrap();
        assert!(programs.iter().any(|program| program.interface == Some(Interface::Libaio)));
        assert!(programs.iter().any(|program| program.interface == Some(Interface::Posix)));
    }

    #[test]
    fn calls_and_lines_are_counted() {
        let mut seen = Seen::default();
        seen.calls(
            "12 io_setup(32, [0x7f]) = 0\n12 io_submit(0x7f, 1, [{x}]) = 1\n12 io_uring_setup(8, {}) = 3\n\
             13 io_submit(0x7f, 1, <unfinished ...>\n13 <... io_submit resumed>) = 1\n13 io_submit(0x99, 1, [{x}]) = -1 EINVAL (Invalid argument)\n\
             13 +++ exited with 0 +++\n",
        );
        seen.stats("{\"pid\":1,\"libaio\":3,\"posix\":0}\n{\"pid\":2,\"libaio\":4,\"posix\":1}\n")
            .unwrap();
        let wanted = Seen { kernel_aio: 3, rings: 1, libaio: 7, posix: 1, fell_through: false };
        assert_eq!(seen, wanted);
        assert!(seen.stats("{\"pid\":1,\"libaio\":3}").is_err());
    }

    #[test]
    fn each_side_has_to_go_its_way() {
        let kernel = Seen { kernel_aio: 5, ..Seen::default() };
        let ours = Seen { libaio: 5, rings: 1, ..Seen::default() };
        let (libaio, posix) = (Interface::Libaio, Interface::Posix);
        assert_eq!(kernel.judge(libaio, Side::Without), Ok(()));
        assert_eq!(Seen::default().judge(posix, Side::Without), Ok(()));
        assert_eq!(ours.judge(libaio, Side::Preload), Ok(()));
        assert_eq!(ours.judge(libaio, Side::DropIn), Ok(()));
        for (seen, interface, side) in [
            (Seen::default(), libaio, Side::Without),
            (ours, posix, Side::Without),
            (kernel, libaio, Side::Preload),
            (ours, posix, Side::Preload),
            (Seen { kernel_aio: 1, ..ours }, libaio, Side::Preload),
            (Seen { rings: 0, ..ours }, libaio, Side::DropIn),
            (Seen { fell_through: true, ..ours }, libaio, Side::Preload),
        ] {
            assert!(seen.judge(interface, side).is_err(), "{seen:?} {interface:?} {side:?}");
        }
    }

    #[test]
    fn less_seconds_and_more_of_everything_else_are_a_gain() {
        let figure = |unit: &str| Figure { without: 2.0, with: 4.0, unit: unit.into() };
        assert_eq!(figure("IOPS").gain(), 2.0);
        assert_eq!(figure("s").gain(), 0.5);
    }
}
