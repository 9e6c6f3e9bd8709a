//! `--detach`: the server is another process, started by execution and not by fork alone.
//!
//! The program runs itself again before anything of VFIO, io_uring or ublk is opened, because none of
//! that survives a fork. The child says on its stdout, one line, that the device can be opened, or
//! why not; then it lets go of everything it inherited. If nobody reads that line any more, the
//! child stops: a server that nobody was told of would be a nuisance.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::DeviceId;
use crate::exit::{Exit, Failure};
use crate::record::RunDir;

/// How much longer the parent waits than the child has: the child's own report is the better one.
const GRACE: Duration = Duration::from_secs(15);

/// The longest line of a child.
const LINE_MAX_BYTES: u64 = 64 << 10;

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) id: u32,
    pub(crate) path: String,
    pub(crate) pid: u32,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    Started(Vec<Started>),
    Failed(Failure),
}

/// The parent: runs the server and waits until it serves, or says why not.
pub(crate) fn spawn(run: &RunDir, deadline: Duration) -> Result<Vec<Started>, Failure> {
    // /proc/self/exe is this very program, even when the file has been replaced or removed.
    let mut child = Command::new("/proc/self/exe")
        .args(server_arguments(std::env::args_os()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Failure::os("start the server", error))?;
    let waited = deadline + GRACE;
    match first_line(&mut child, waited) {
        Some(line) => match serde_json::from_str(&line) {
            Ok(Report::Started(started)) => Ok(started),
            Ok(Report::Failed(failure)) => {
                let _ = child.wait();
                Err(failure)
            }
            Err(_) => Err(died(run, &mut child)),
        },
        None => Err(late(&child, waited)),
    }
}

/// The arguments of the server: ours, and that it is the server.
fn server_arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    own.skip(1).chain([OsString::from("--detached-server")]).collect()
}

/// The child's line, empty if it ended without one; `None` when the time is over.
fn first_line(child: &mut Child, waited: Duration) -> Option<String> {
    let stdout = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    // A read of a pipe cannot be given a deadline, but a thread can be left behind: the process is
    // about to end.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout.take(LINE_MAX_BYTES)).read_line(&mut line);
        let _ = sender.send(line);
    });
    receiver.recv_timeout(waited).ok()
}

/// A child that ended without its line could not take back its log either.
fn died(run: &RunDir, child: &mut Child) -> Failure {
    let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    let _ = std::fs::remove_file(run.log_of_start(child.id()));
    Failure::new(
        Exit::Failure,
        format!("the server died before it served: {how}"),
        "try again without --detach to see more",
    )
}

fn late(child: &Child, waited: Duration) -> Failure {
    // The child is not killed: it may hold a device half made, which only it can unmake.
    if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    Failure::new(
        Exit::TimedOut,
        format!("the server, process {}, does not serve after {} s", child.id(), waited.as_secs()),
        "it was told to stop; see `aioctl list` and try again",
    )
}

/// The child's side.
pub(crate) struct Detached {
    run: RunDir,
}

impl Detached {
    /// Leaves the session and the directory of whoever started us, and writes the log to a file.
    /// Call it first, with all paths made absolute. A failure has been told to the parent.
    pub(crate) fn settle(run: &RunDir) -> Result<Self, Failure> {
        let detached = Self { run: run.clone() };
        match detached.leave() {
            Ok(()) => Ok(detached),
            Err(failure) => {
                detached.failed(&failure);
                Err(failure)
            }
        }
    }

    fn leave(&self) -> Result<(), Failure> {
        rustix::process::setsid().map_err(|error| Failure::os("leave the session", error))?;
        // Execution through /proc/self/exe has named the process `exe`; only a name.
        let _ = rustix::thread::set_name(c"aioctl");
        rustix::process::chdir("/").map_err(|error| Failure::os("chdir to /", error))?;
        self.run.create()?;
        let path = self.run.log_of_start(std::process::id());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Failure::os(format!("create {}", path.display()), error))?;
        rustix::stdio::dup2_stderr(&log).map_err(|error| Failure::os("redirect stderr", error))
    }

    /// Tells the parent that the devices can be opened, then lets its pipe go.
    ///
    /// # Errors
    ///
    /// When the parent is not there any more.
    pub(crate) fn started(&self, started: &[Started]) -> Result<(), Failure> {
        let log = self.run.log_of_start(std::process::id());
        // The log has its name from the first device, now that there is one. Only its name: losing
        // that is no reason to stop.
        if let [first, ..] = started {
            let _ = std::fs::rename(log, self.run.log(DeviceId(first.id)));
        }
        say(&Report::Started(started.to_vec()))
            .and_then(|()| let_go_of_stdout())
            .map_err(|error| Failure::os("tell the parent", error))
    }

    /// Tells the parent why there is no device. If the parent has gone, nobody wants to know.
    pub(crate) fn failed(&self, failure: &Failure) {
        let _ = say(&Report::Failed(failure.clone()));
        let _ = std::fs::remove_file(self.run.log_of_start(std::process::id()));
    }
}

fn say(report: &Report) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(report).map_err(std::io::Error::other)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// The parent reads until the end: stdout becomes /dev/null.
fn let_go_of_stdout() -> std::io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gets_the_arguments_and_its_mark() {
        let own = ["aioctl", "add", "ram:1G", "--detach"].map(OsString::from);
        let server = server_arguments(own.into_iter());
        assert_eq!(server, ["add", "ram:1G", "--detach", "--detached-server"]);
    }

    #[test]
    fn a_child_that_dies_without_a_word_is_reported_with_how_and_its_log_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDir::new(directory.path());
        let mut child = Command::new("sh")
            .args(["-c", "exit 9"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        assert_eq!(first_line(&mut child, Duration::from_secs(20)), Some(String::new()));
        let logs = [child.id(), child.id() + 1].map(|pid| run.log_of_start(pid));
        logs.iter().for_each(|log| std::fs::write(log, "a line\n").expect("a file"));
        let failure = died(&run, &mut child);
        assert_eq!(logs.map(|log| log.exists()), [false, true]);
        assert_eq!(failure.what, "the server died before it served: exit status: 9");
    }

    #[test]
    fn a_child_that_says_nothing_is_told_to_stop_after_the_deadline() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = Command::new("sh")
            .args(["-c", "exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        assert_eq!(first_line(&mut child, Duration::from_millis(50)), None);
        assert_eq!(late(&child, Duration::from_millis(50)).exit, Exit::TimedOut);
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(15));
    }
}
