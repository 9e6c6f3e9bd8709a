//! Errors: what a completion says, and what opening a device says.

use std::fmt;

/// Why an I/O failed, as small as it can be and still be acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoErrorKind {
    /// The medium did not give or take the data; its blocks are bad until rewritten.
    Media,
    /// The device failed the command for another reason of its own, perhaps a passing one.
    Device,
    /// The device did not answer in time and the command was ended.
    TimedOut,
    /// The device is gone or given up; nothing sent to it will succeed.
    Gone,
    /// The command was cancelled ([`IoQueue::cancel`](crate::IoQueue::cancel)). What it was to change
    /// may have changed in part, in whole or not at all.
    Cancelled,
    /// The device does not do this operation.
    Unsupported,
    /// The device has no room left (thin volumes, sparse files on a full file system).
    NoSpace,
    /// The device, or its namespace, may not be written.
    ReadOnly,
    /// The command was malformed: a defect of the caller that the device found.
    Invalid,
    /// A call of the host failed; [`IoError::status`] is its errno, which says all there is to say.
    Host,
}

/// The error of one completion. `Copy` and 4 bytes of payload: the data plane never allocates.
///
/// Ordering, ownership: the frames of a failed request come back like those of a good one; what a
/// failed read left in them is undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoError {
    /// What to do about it.
    pub kind: IoErrorKind,
    /// The device's own word for it beside the translation: an NVMe status field (SCT and SC, with
    /// DNR in bit 14), or a positive errno of the host. 0 when the device said nothing.
    pub status: u16,
    /// Trying the same again will not help (NVMe's Do Not Retry, a device that is gone).
    pub do_not_retry: bool,
}

/// What a completion says.
pub type IoResult = Result<(), IoError>;

impl IoError {
    /// An error that the device did not put in words of its own.
    pub const fn new(kind: IoErrorKind) -> Self {
        Self { kind, status: 0, do_not_retry: matches!(kind, IoErrorKind::Gone) }
    }

    /// From a positive errno of the host (`io_uring` gives the negative of it).
    pub const fn from_errno(errno: i32) -> Self {
        let kind = match errno {
            libc::EIO => IoErrorKind::Device,
            libc::ENODATA | libc::EILSEQ => IoErrorKind::Media,
            libc::ETIMEDOUT => IoErrorKind::TimedOut,
            libc::ENODEV | libc::ENXIO => IoErrorKind::Gone,
            libc::ECANCELED => IoErrorKind::Cancelled,
            libc::EOPNOTSUPP | libc::ENOSYS => IoErrorKind::Unsupported,
            libc::ENOSPC | libc::EDQUOT => IoErrorKind::NoSpace,
            libc::EROFS | libc::EPERM | libc::EBADF => IoErrorKind::ReadOnly,
            libc::EINVAL => IoErrorKind::Invalid,
            _ => IoErrorKind::Device,
        };
        // errno fits 16 bits on every Linux architecture (include/uapi/asm-generic/errno.h).
        Self { status: errno as u16, ..Self::new(kind) }
    }

    /// A call of the host that failed with this positive errno, which
    /// [`errno`](IoError::errno) gives back as it is. Only a cancelled one is told by its kind.
    pub const fn host(errno: i32) -> Self {
        let kind =
            if errno == libc::ECANCELED { IoErrorKind::Cancelled } else { IoErrorKind::Host };
        // errno fits 16 bits on every Linux architecture (include/uapi/asm-generic/errno.h).
        Self { status: errno as u16, ..Self::new(kind) }
    }

    /// The positive errno that says this to a program. A medium error is EIO, what read(2) and
    /// write(2) document and databases look for, rather than the ENODATA of the block layer's own
    /// table (`blk_errors` in block/blk-core.c); [`status`](IoError::status) tells them apart.
    pub const fn errno(self) -> i32 {
        match self.kind {
            IoErrorKind::Media | IoErrorKind::Device => libc::EIO,
            IoErrorKind::TimedOut => libc::ETIMEDOUT,
            IoErrorKind::Gone => libc::ENODEV,
            IoErrorKind::Cancelled => libc::ECANCELED,
            IoErrorKind::Unsupported => libc::EOPNOTSUPP,
            IoErrorKind::NoSpace => libc::ENOSPC,
            IoErrorKind::ReadOnly => libc::EROFS,
            IoErrorKind::Invalid => libc::EINVAL,
            IoErrorKind::Host => self.status as i32,
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.kind {
            IoErrorKind::Media => "unrecovered media error",
            IoErrorKind::Device => "the device failed the command",
            IoErrorKind::TimedOut => "the device did not answer in time",
            IoErrorKind::Gone => "the device is gone",
            IoErrorKind::Cancelled => "cancelled",
            IoErrorKind::Unsupported => "the device does not support this operation",
            IoErrorKind::NoSpace => "no space left on the device",
            IoErrorKind::ReadOnly => "the device is read-only",
            IoErrorKind::Invalid => "invalid command",
            IoErrorKind::Host => {
                let errno = i32::from(self.status);
                return std::io::Error::from_raw_os_error(errno).fmt(f);
            }
        };
        f.write_str(text)?;
        if self.status != 0 {
            write!(f, " (status {:#x})", self.status)?;
        }
        Ok(())
    }
}

impl std::error::Error for IoError {}

/// Why a device could not be opened, set up, given another queue, or closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// All queues the device has are open.
    #[error("all {max} queues of the device are in use")]
    NoMoreQueues {
        /// How many there are.
        max: u16,
    },
    /// An option is outside what the device can do; the text says which, and the range.
    #[error("{0}")]
    Invalid(String),
    /// The device has been closed or has failed for good.
    #[error("{device}: {reason}")]
    Failed {
        /// The device's name.
        device: String,
        /// What happened to it.
        reason: String,
    },
    /// A bounded wait ended without what it waited for.
    #[error("{what} did not happen within {waited_ms} ms")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long, in milliseconds.
        waited_ms: u64,
    },
    /// The device answered something it may not answer.
    #[error("{device} broke the protocol: {what}")]
    Protocol {
        /// The device's name.
        device: String,
        /// What it did.
        what: String,
    },
    /// There is no memory of the wanted kind.
    #[error("cannot get {bytes} bytes of DMA memory: {source}")]
    NoMemory {
        /// How much was asked for.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused something; `what` says what was tried.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_keeps_its_meaning_and_its_number() {
        let error = IoError::from_errno(libc::ENOSPC);
        assert_eq!((error.kind, error.status), (IoErrorKind::NoSpace, libc::ENOSPC as u16));
        assert_eq!(error.errno(), libc::ENOSPC);
        assert_eq!(IoError::from_errno(libc::EIO).errno(), libc::EIO);
        assert!(IoError::from_errno(libc::ENODEV).do_not_retry);
        assert_eq!(error.to_string(), "no space left on the device (status 0x1c)");
    }

    #[test]
    fn every_errno_of_the_host_stays_what_it_was() {
        for errno in 1..134 {
            assert_eq!(IoError::host(errno).errno(), errno);
        }
        assert_eq!(IoError::host(libc::ECANCELED).kind, IoErrorKind::Cancelled);
        let text = IoError::host(libc::ECONNREFUSED).to_string();
        assert_eq!(text, "Connection refused (os error 111)");
    }
}
