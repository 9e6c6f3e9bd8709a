//! One boot of one guest: QEMU as a child process with a time limit, its console, and what came of it.

use std::fmt;
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::kernels::{Kernel, Series};
use crate::lab::{Lab, image};
use crate::machine::{Drive, Machine};
use crate::payload::Payload;
use crate::process;

/// How often QEMU and its console are looked at.
const POLL: Duration = Duration::from_millis(50);

/// What may not appear on a console, whatever the script says.
const ALARMS: &[&str] = &[
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "INFO: task ",
    "INFO: rcu_",
    "general protection fault",
    "DMAR: [DMA Read",
    "DMAR: [DMA Write",
];

/// How often a guest is booted that the emulator loses.
const BOOT_TRIES: u32 = 3;

/// The line on the report port by which a guest asks to have its power cut.
const POWER_CUT: &str = "POWERCUT";

/// Where a guest's console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Into the log.
    Log,
    /// Into the log and onto our standard output while it comes.
    Show,
    /// The terminal is the console.
    Terminal,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its script ended with this status.
    Exit(i32),
    /// It asked for its power to be cut, and it was.
    PowerCut,
    /// It went on past its time limit and was killed.
    TimedOut(Duration),
    /// QEMU ended without word from the script.
    Died(String),
    /// The kernel said something on the console that must not be.
    Alarm(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "ended with status {status}"),
            Self::PowerCut => f.write_str("its power was cut"),
            Self::TimedOut(limit) => write!(f, "killed after {} s", limit.as_secs()),
            Self::Died(why) => write!(f, "QEMU ended early: {why}"),
            Self::Alarm(line) => write!(f, "the kernel said: {line}"),
        }
    }
}

/// What a guest left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The lines its script wrote to the report port.
    pub report: Vec<String>,
    /// Everything that appeared on its console.
    pub console: PathBuf,
    /// How long it ran.
    pub took: Duration,
}

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The folder of its drives' images.
    pub drives: &'a Path,
    /// The image it brings in, from [`crate::payload::Payload::finish`].
    pub payload: &'a Path,
    /// The folder for its logs.
    pub dir: &'a Path,
    /// Where its console goes.
    pub console: Console,
    /// When it is killed.
    pub limit: Duration,
}

/// Makes the images of the machine's drives in `dir`.
///
/// # Errors
///
/// Those of the file system.
pub fn make_drives(machine: &Machine, dir: &Path) -> Result<()> {
    for (index, drive) in machine.drives.iter().enumerate() {
        for nsid in 1..=drive.namespaces {
            image::sparse(&dir.join(Drive::image_name(index, nsid)), drive.size)?;
        }
    }
    Ok(())
}

impl Boot<'_> {
    /// Boots, and waits until the guest ends or its time is over.
    ///
    /// A guest that the emulator lost before its script started is booted again.
    ///
    /// # Errors
    ///
    /// When it cannot be started. What happens inside the guest is no error: see [`End`].
    pub fn run(&self, lab: &Lab) -> Result<Outcome> {
        let kvm = kvm_works(lab)?;
        let mut tries = 1;
        loop {
            let outcome = self.run_once(lab, kvm)?;
            if kvm || tries == BOOT_TRIES || !outcome.lost_by_emulator() {
                return Ok(outcome);
            }
            eprintln!("the emulator lost the guest while it booted; booting again");
            tries += 1;
        }
    }

    fn run_once(&self, lab: &Lab, kvm: bool) -> Result<Outcome> {
        let kernel = Kernel::get(lab, self.machine.kernel)?;
        let root = image::root_disk(lab)?;
        let log = self.dir.join("console.log");
        let report = self.dir.join("report");
        File::create(&log)?;
        File::create(&report)?;

        let mut qemu = Command::new("setpriv");
        // A guest must not outlive us, however we end.
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(self.machine.qemu_args(self.drives, kvm));
        qemu.arg("-kernel").arg(&kernel.image);
        qemu.arg("-append").arg(format!(
            "console=ttyS0 {} rootwait rootfstype=ext4 rw init=/sbin/uaio-stage1 {}",
            image::root_parameter(),
            self.machine.kernel_args()
        ));
        let log_name = log.display();
        let console = match self.console {
            Console::Terminal => format!("stdio,id=console,signal=off,logfile={log_name}"),
            Console::Log | Console::Show => format!("file,id=console,path={log_name}"),
        };
        qemu.args(["-chardev", &console, "-serial", "chardev:console"]);
        let report_port = format!("file,id=report,path={}", report.display());
        qemu.args(["-chardev", &report_port, "-serial", "chardev:report"]);
        // QEMU's monitor, on a third port, for scenarios that take a drive away or hold it up. QEMU talks to
        // itself there; the name is in no file system, where it could be too long.
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let socket = format!("path=uaio-{name},abstract=on");
        qemu.args(["-chardev", &format!("socket,id=port,{socket},server=on,wait=off")]);
        qemu.args(["-device", "isa-serial,chardev=port,index=2,iobase=0x3e8,irq=5"]);
        qemu.args(["-chardev", &format!("socket,id=monitor,{socket}")]);
        qemu.args(["-mon", "chardev=monitor,mode=control"]);
        // The guest's own drive: the root, never written back, and what this boot brings.
        let controller = "nvme,id=root,serial=uaio-root,bus=pcie.0,addr=0x1e";
        qemu.args(["-device", controller]);
        for (nsid, file, snapshot) in [(1, root.as_path(), "on"), (2, self.payload, "off")] {
            qemu.arg("-drive").arg(format!(
                "if=none,id=root{nsid},format=raw,cache=unsafe,snapshot={snapshot},file={}",
                file.display()
            ));
            qemu.arg("-device").arg(format!("nvme-ns,drive=root{nsid},bus=root,nsid={nsid}"));
        }
        let said = self.dir.join("qemu.log");
        qemu.stderr(File::create(&said)?);
        if self.console != Console::Terminal {
            qemu.stdin(Stdio::null()).stdout(Stdio::null());
        }
        let started = Instant::now();
        let child =
            qemu.spawn().with_context(|| format!("cannot run {}", process::display(&qemu)))?;
        let mut run = Run {
            child,
            console: Tail::new(&log),
            report: Tail::new(&report),
            show: self.console == Console::Show,
        };
        let mut end = run.watch(started, self.limit)?;
        let took = started.elapsed();
        drop(run);
        if let End::Died(why) = &mut end {
            *why = process::tail(&fs::read_to_string(&said)?, 3);
        }
        let report = fs::read(&report)?;
        Ok(Outcome {
            end,
            report: String::from_utf8_lossy(&report)
                .lines()
                .map(|line| line.trim_end().to_string())
                .collect(),
            console: log,
            took,
        })
    }
}

impl Outcome {
    /// Whether this is a fault of QEMU's emulation and not of anything in the guest.
    ///
    /// An emulated machine on a busy host now and then loses its kernel: a timer comes late, or a processor takes a
    /// breakpoint by which the kernel patched its own code after it is gone (`Oops: int3`, mostly where its clock is
    /// declared stable). Before the script has started nothing of ours has run; later only the breakpoint is told
    /// apart for certain, as no program can bring it about.
    fn lost_by_emulator(&self) -> bool {
        match &self.end {
            End::Alarm(line) => {
                line.contains("Oops: int3") || !self.report.iter().any(|line| line == "START")
            }
            _ => false,
        }
    }
}

/// A running QEMU.
struct Run {
    child: Child,
    console: Tail,
    report: Tail,
    show: bool,
}

impl Run {
    /// Waits for the end.
    fn watch(&mut self, started: Instant, limit: Duration) -> Result<End> {
        let mut alarm = None;
        let mut exit = None;
        loop {
            let ended = self.child.try_wait()?.is_some();
            // What comes in later turns is only the kernel's farewell.
            let show = self.show && exit.is_none();
            for line in self.report.lines()? {
                if line == POWER_CUT {
                    return Ok(End::PowerCut);
                }
                if let Some(status) = line.strip_prefix("EXIT ") {
                    exit = Some(status.parse().context("exit status of the guest")?);
                }
            }
            for line in self.console.lines_with(|bytes| {
                if show {
                    let mut out = std::io::stdout();
                    // Nothing to be done when nobody reads.
                    let _ = out.write_all(bytes).and_then(|()| out.flush());
                }
            })? {
                if alarm.is_none() && ALARMS.iter().any(|text| line.contains(text)) {
                    alarm = Some(line);
                }
            }
            if ended {
                return Ok(match (alarm, exit) {
                    (Some(line), _) => End::Alarm(line),
                    (None, Some(status)) => End::Exit(status),
                    (None, None) => End::Died(String::new()),
                });
            }
            if started.elapsed() > limit {
                return Ok(alarm.map_or(End::TimedOut(limit), End::Alarm));
            }
            sleep(POLL);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Fails when it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what another process appends to a file, line by line.
struct Tail {
    path: PathBuf,
    read: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), read: 0, rest: Vec::new() }
    }

    /// The lines that have become whole since the last call.
    fn lines(&mut self) -> Result<Vec<String>> {
        self.lines_with(|_| ())
    }

    /// [`Tail::lines`], giving `see` every new byte.
    fn lines_with(&mut self, see: impl FnOnce(&[u8])) -> Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
        if new.is_empty() {
            return Ok(Vec::new());
        }
        see(&new);
        self.read += u64::try_from(new.len())?;
        self.rest.extend(new);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(|line| line.trim_end().to_string())
            .collect())
    }
}

/// Whether KVM boots a guest here, found out by doing it, once for each host kernel.
///
/// `/dev/kvm` may open and the guest die in it all the same.
///
/// # Errors
///
/// When no guest can be made.
pub fn kvm_works(lab: &Lab) -> Result<bool> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let host = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    // Made before the entry, because making entries does not nest.
    Kernel::get(lab, Series::V7_2)?;
    image::root_disk(lab)?;
    let verdict = lab.entry("accel", &format!("{host}{boot_id}"), |dir| {
        eprintln!("trying KVM");
        let run = dir.join("run");
        fs::create_dir_all(&run)?;
        let payload = Payload::new(&run)?;
        payload.write("main.sh", "true\n")?;
        let boot = Boot {
            machine: &Machine::default(),
            drives: &run,
            payload: &payload.finish(&run)?,
            dir: &run,
            console: Console::Log,
            limit: Duration::from_secs(15),
        };
        let outcome = boot.run_once(lab, true)?;
        let works = outcome.end == End::Exit(0);
        fs::write(dir.join("kvm"), if works { "yes" } else { "no" })?;
        fs::remove_dir_all(run)?;
        Ok(())
    })?;
    Ok(fs::read_to_string(verdict.join("kvm"))? == "yes")
}

/// Refuses a terminal console where there is no terminal.
///
/// # Errors
///
/// When standard input is not a terminal.
pub fn require_terminal() -> Result<()> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    bail!("a shell in the guest needs a terminal; give a command after --")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_gives_each_line_once_and_only_when_whole() {
        let path = std::env::temp_dir().join(format!("uaio-tail-test-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        let mut tail = Tail::new(&path);
        assert!(tail.lines().unwrap().is_empty());
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(tail.lines().unwrap(), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(tail.lines().unwrap(), ["two", "three"]);
        assert!(tail.lines().unwrap().is_empty());
        fs::remove_file(path).unwrap();
    }
}
