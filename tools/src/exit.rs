//! How a command ends: one exit code for each kind of failure, and the one line that goes with it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uaio_driver::DeviceError;

/// Every code `aioctl` exits with. Scripts may rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub(crate) enum Exit {
    Success = 0,
    Failure = 1,
    Usage = 2,
    NotFound = 3,
    InUse = 4,
    Permission = 5,
    Unsupported = 6,
    TimedOut = 7,
    Unsaved = 8,
}

impl Exit {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::NotFound,
        Self::InUse,
        Self::Permission,
        Self::Unsupported,
        Self::TimedOut,
        Self::Unsaved,
    ];

    /// What it means, as the manual says it.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "done",
            Self::Failure => "failed: an I/O error, or anything without a code of its own",
            Self::Usage => "the command line is wrong; nothing was tried",
            Self::NotFound => "no such device, address, namespace or file",
            Self::InUse => "mounted, open, held or served by somebody; the message says by whom",
            Self::Permission => "not permitted; most commands need root",
            Self::Unsupported => {
                "the kernel or the machine lacks something: ublk, an IOMMU, VFIO, memory"
            }
            Self::TimedOut => {
                "not done by its deadline; the message says how far it came; try again"
            }
            Self::Unsaved => {
                "stopping would lose data that cannot be written; the message says where"
            }
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed: what is wrong, and what to do about it.
///
/// Shown as `aioctl: what is wrong; what to do`, always on one line. Travels over the control socket
/// as it is, so that the client exits with the code the server found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The code to exit with.
    pub(crate) exit: Exit,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do about it; may be empty when there is nothing to say.
    pub(crate) hint: String,
}

impl Failure {
    /// A failure with both halves of its line.
    pub(crate) fn new(exit: Exit, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, what: what.into(), hint: hint.into() }
    }

    /// What the kernel said to `what`, with the exit code that the errno has.
    pub(crate) fn os(what: impl fmt::Display, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let (exit, hint) = match error.kind() {
            std::io::ErrorKind::NotFound => (Exit::NotFound, "check the path"),
            std::io::ErrorKind::PermissionDenied => (Exit::Permission, "try again as root"),
            std::io::ErrorKind::ResourceBusy => {
                (Exit::InUse, "see who holds it with lsof or fuser")
            }
            std::io::ErrorKind::TimedOut => (Exit::TimedOut, "try again"),
            // Only what went wrong in a device or a driver is found in the kernel's log.
            _ if matches!(error.raw_os_error(), Some(EIO | ENXIO | ENODEV)) => {
                (Exit::Failure, "see the kernel's log")
            }
            _ => (Exit::Failure, ""),
        };
        Self::new(exit, format!("{what}: {}", brief(error)), hint)
    }

    /// What taking a drive said: what the machine does not have is no mistake on the command line.
    pub(crate) fn drive(what: impl fmt::Display, error: &DeviceError) -> Self {
        match error {
            DeviceError::Invalid(text) => {
                let (what, hint) =
                    text.split_once("; ").unwrap_or((text, "see `aioctl nvme list`"));
                Self::new(Exit::Unsupported, what, hint)
            }
            _ => Self::device(what, error),
        }
    }

    /// What opening, setting up or closing a device said; `what` may be empty where the device says
    /// itself what it was about.
    pub(crate) fn device(what: impl fmt::Display, error: &DeviceError) -> Self {
        let (exit, hint) = match error {
            DeviceError::Invalid(_) => (Exit::Usage, "correct the options; nothing was changed"),
            DeviceError::NoMoreQueues { .. } => (Exit::Unsupported, "take fewer queues (--queues)"),
            DeviceError::TimedOut { .. } => (Exit::TimedOut, "try again"),
            DeviceError::NoMemory { .. } => {
                (Exit::Failure, "take a smaller cache, fewer queues or less depth")
            }
            DeviceError::Os { source, .. } => return Self::from_os(what, error, source),
            _ => (Exit::Failure, "see the kernel's log"),
        };
        Self::new(exit, about(what, error), hint)
    }

    fn from_os(what: impl fmt::Display, error: &DeviceError, source: &std::io::Error) -> Self {
        let copy = match source.raw_os_error() {
            Some(errno) => std::io::Error::from_raw_os_error(errno),
            None => source.kind().into(),
        };
        Self { what: about(what, error), ..Self::os("", copy) }
    }
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const ENXIO: i32 = rustix::io::Errno::NXIO.raw_os_error();
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

fn about(what: impl fmt::Display, error: impl fmt::Display) -> String {
    let what = what.to_string();
    let separator = if what.is_empty() { "" } else { ": " };
    format!("{what}{separator}{}", brief(error))
}

/// An error in the kernel's own words, without Rust's `(os error N)`.
fn brief(error: impl fmt::Display) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, rest)) => {
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{words}{}", rest.strip_prefix(')').unwrap_or(rest))
        }
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, hint, .. } = self;
        let line = if hint.is_empty() { what.clone() } else { format!("{what}; {hint}") };
        // One line whatever a path, a kernel or a device put into it.
        let line = line.trim_end();
        f.write_str(&line.replace(|c: char| c.is_control(), " "))
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_ones_in_the_manual() {
        let numbers: Vec<u8> = Exit::ALL.iter().map(|&exit| exit as u8).collect();
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn the_readme_lists_the_codes_as_the_manual_does() {
        let readme = include_str!("../../README.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |\n", exit as u8, exit.meaning());
            assert!(readme.contains(&row), "README.md lacks: {row}");
        }
    }

    #[test]
    fn an_error_is_one_line_whatever_is_in_it() {
        let failure = Failure::new(Exit::Failure, "bad name: a\nb\u{1b}[31m", "rename it");
        assert_eq!(failure.to_string(), "bad name: a b [31m; rename it");
    }

    #[test]
    fn an_errno_chooses_the_exit_code() {
        let failure = Failure::os("open /x", rustix::io::Errno::ACCESS);
        assert_eq!(
            (failure.exit, failure.what.as_str()),
            (Exit::Permission, "open /x: Permission denied")
        );
        assert_eq!(Failure::os("x", rustix::io::Errno::BUSY).exit, Exit::InUse);
        let failure = Failure::os("x", rustix::io::Errno::IO);
        assert_eq!((failure.exit, failure.hint.as_str()), (Exit::Failure, "see the kernel's log"));
        // A full disk is nothing that the kernel logs.
        let failure = Failure::os("write x", rustix::io::Errno::NOSPC);
        assert_eq!((failure.exit, failure.hint.as_str()), (Exit::Failure, ""));
        assert_eq!(failure.to_string(), "write x: No space left on device");
        let source = std::io::Error::from(rustix::io::Errno::BUSY);
        let error = DeviceError::Os { what: "open /dev/vfio/3".into(), source };
        let failure = Failure::device("nvme:0000:00:04.0", &error);
        let said = "nvme:0000:00:04.0: open /dev/vfio/3: Device or resource busy";
        assert_eq!((failure.exit, failure.what.as_str()), (Exit::InUse, said));
        assert_eq!(Failure::device("", &error).what, &said["nvme:0000:00:04.0: ".len()..]);
    }
}
