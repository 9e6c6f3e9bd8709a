//! Why a server could not start, or stopped.

use std::io;

use libublk::UblkError;

use crate::error::DeviceError;

/// Why a device is not served, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The kernel has no ublk driver loaded.
    #[error("/dev/ublk-control does not exist: load the driver with `modprobe ublk_drv`")]
    NoDriver,
    /// The caller may not use ublk.
    #[error("no permission to use /dev/ublk-control: run as root or with CAP_SYS_ADMIN")]
    NoPermission,
    /// The kernel's ublk driver lacks something that serving needs.
    #[error("the kernel's ublk driver lacks {feature}, which is in Linux {since} and later")]
    KernelTooOld {
        /// The flag that is missing.
        feature: &'static str,
        /// The first release that has it.
        since: &'static str,
    },
    /// An option is outside what the kernel or the device can do; the text says which, and the range.
    #[error("{0}")]
    Invalid(String),
    /// The driver has given all its numbers away.
    #[error("the ublk driver takes no more devices")]
    TooManyDevices,
    /// The device's pool cannot hold the requests of all queues.
    #[error("the server needs {wanted} free frames of the device's pool and got {got}")]
    NoFrames {
        /// How many it wants.
        wanted: usize,
        /// How many there were.
        got: usize,
    },
    /// The device refused something.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel refused something; `what` says what was tried.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did something on a queue that leaves a request without an answer.
    #[error("queue {queue}: the kernel broke the protocol on tag {tag} (errno {errno})")]
    Protocol {
        /// The queue.
        queue: u16,
        /// The tag, as the kernel named it.
        tag: u64,
        /// The kernel's positive errno, or 0.
        errno: i32,
    },
    /// A queue's thread has panicked: a defect.
    #[error("the thread of queue {queue} has panicked")]
    Panicked {
        /// The queue.
        queue: u16,
    },
    /// A step took longer than the caller was ready to wait. It goes on; ask again.
    #[error("timed out after {waited_ms} ms: {step}")]
    TimedOut {
        /// What is being waited for.
        step: String,
        /// How long, in milliseconds.
        waited_ms: u64,
    },
    /// The server failed earlier, for this reason.
    #[error("{0}")]
    Ended(String),
    /// There is no ublk device of this number.
    #[error("there is no ublk device {0}")]
    NoSuchDevice(u32),
}

impl ServerError {
    /// A refusal that came through libublk.
    pub(super) fn kernel(what: &'static str, error: UblkError) -> Self {
        let errno = match error {
            UblkError::IOError(source) => return Self::of_io(what, source),
            UblkError::UringIOError(negative) | UblkError::OtherError(negative) => -negative,
            UblkError::InvalidVal => libc::EINVAL,
            other => return Self::Kernel { what, source: io::Error::other(other.to_string()) },
        };
        Self::of_io(what, io::Error::from_raw_os_error(errno))
    }

    /// A refusal of the kernel; one for lack of permission has a variant of its own.
    pub(super) fn of_io(what: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NoPermission,
            _ => Self::Kernel { what, source },
        }
    }
}
