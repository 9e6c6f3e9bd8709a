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

pub mod seen;
pub mod stage;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::kernels::Series;
use crate::lab::workspace_dir;
use stage::Side;

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
}
