//! Why an iocb was not taken.

use rustix::io::Errno;

use crate::iocb::Iocb;

/// Why an iocb was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The context has as many commands and events as it holds: get events, then submit again
    /// (EAGAIN).
    #[error("the context has no event slot free")]
    NoSlot,
    /// More is waiting for the volume than its inbox holds: submit again later (EAGAIN).
    #[error("the volume's inbox is full")]
    Busy,
    /// A direct handle and an offset or length that is not in whole blocks, more than
    /// [`BUFFERS_MAX`](crate::BUFFERS_MAX) buffers, a registered buffer on a cached handle, of another
    /// pool or of which a device has kept frames, an end past what a file offset can say, or a handle of another
    /// reactor (EINVAL).
    #[error("the command is not possible")]
    Invalid,
    /// The volume has been closed (ENODEV).
    #[error("the volume is closed")]
    Closed,
    /// What a linked operation of the host needs of the thread that submits it, its working directory or
    /// umask, could not be had (EMFILE, ENFILE, ENOENT …).
    #[error("the working directory or umask of the submitter cannot be had: {0}")]
    Submitter(Errno),
}

impl Refusal {
    /// The positive errno that says this to a program.
    pub fn errno(self) -> i32 {
        let errno = match self {
            Self::NoSlot | Self::Busy => Errno::AGAIN,
            Self::Invalid => Errno::INVAL,
            Self::Closed => Errno::NODEV,
            Self::Submitter(errno) => errno,
        };
        errno.raw_os_error()
    }
}

/// An iocb that was not taken, as it was, with the reason.
#[derive(Debug)]
#[must_use = "the command inside was not submitted and will have no event"]
pub struct Refused {
    /// The iocb. The contents of a read's buffers may have changed.
    pub iocb: Iocb,
    /// Why.
    pub reason: Refusal,
}
