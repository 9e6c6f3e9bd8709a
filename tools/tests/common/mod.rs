//! Running the built program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a command may take that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place with a run directory of its own.
pub(crate) struct Place {
    root: tempfile::TempDir,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Everything below the place, with sizes: to see that nothing has changed.
    pub(crate) fn contents(&self) -> Vec<(PathBuf, u64)> {
        fn walk(directory: &Path, found: &mut Vec<(PathBuf, u64)>) {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let entry = entry.expect("an entry");
                let is = entry.metadata().expect("attributes");
                found.push((entry.path(), is.len()));
                if is.is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.root.path(), &mut found);
        found.sort();
        found
    }

    pub(crate) fn aioctl(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Outcome {
        self.aioctl_into(args, Stdio::piped())
    }

    /// With a stdout of the caller's.
    pub(crate) fn aioctl_into(
        &self,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        stdout: impl Into<Stdio>,
    ) -> Outcome {
        let mut child = Command::new(env!("CARGO_BIN_EXE_aioctl"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .expect("aioctl runs");
        let start = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("aioctl has not ended after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let Output { status, stdout, stderr } = child.wait_with_output().expect("its output");
        Outcome {
            code: status.code().expect("it ended by itself"),
            stdout: String::from_utf8(stdout).expect("UTF-8"),
            stderr: String::from_utf8(stderr).expect("UTF-8"),
        }
    }
}

impl Outcome {
    /// Fails unless it is the refusal that was wanted: this code, one line that says this, nothing on
    /// stdout.
    #[track_caller]
    pub(crate) fn is_refusal(&self, code: i32, said: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("aioctl: ") && self.stderr.contains(said), "{self:?}");
        assert_eq!(self.stderr.matches('\n').count(), 1, "more than one line: {self:?}");
        assert!(self.stderr.ends_with('\n'), "{self:?}");
    }
}
