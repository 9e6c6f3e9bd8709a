//! What can go wrong with a controller or one of its queues, in words. What is done about it is in
//! `fate.rs`, `controller/recovery.rs` and `queue/trouble.rs`.

use std::fmt;

use crate::error::{IoError, IoErrorKind};

/// What a controller did that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// It completed a command that is not in flight: an identifier never given, or given back already.
    UnknownCommand {
        /// The completion queue it came in.
        qid: u16,
        /// The Command Identifier.
        cid: u16,
    },
    /// It put a completion into one queue that names another submission queue.
    WrongQueue {
        /// The completion queue it came in.
        qid: u16,
        /// The SQ Identifier it names.
        sqid: u16,
    },
    /// It said to have fetched commands that were not committed, or fewer than before.
    BadHead {
        /// The completion queue it came in.
        qid: u16,
        /// The SQ Head Pointer.
        sqhd: u16,
    },
    /// It completed more commands than it said to have fetched.
    Unfetched {
        /// The completion queue it came in.
        qid: u16,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownCommand { qid, cid } => {
                write!(f, "queue {qid} completed command {cid:#06x}, which is not in flight")
            }
            Self::WrongQueue { qid, sqid } => {
                write!(f, "queue {qid} has a completion of submission queue {sqid}")
            }
            Self::BadHead { qid, sqhd } => {
                write!(
                    f,
                    "queue {qid} has a submission head of {sqhd}, outside of what is committed"
                )
            }
            Self::Unfetched { qid } => {
                write!(f, "queue {qid} completed commands that it did not fetch")
            }
        }
    }
}

/// What went wrong with a controller: why it was reset, or why it serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// A command was not answered in time.
    TimedOut {
        /// The queue it was sent to; 0 is the admin queue.
        qid: u16,
        /// For how long at least, in milliseconds.
        waited_ms: u64,
    },
    /// CSTS.CFS: the controller says that it cannot go on.
    Fatal,
    /// Its registers read as all ones: it is gone from the bus.
    Removed,
    /// It broke the protocol.
    Protocol(Violation),
    /// It would not delete a queue, so it still may use the queue's memory.
    KeepsQueue {
        /// The queue.
        qid: u16,
    },
    /// It did not come back from a reset.
    NotBack {
        /// How long it was waited for, in milliseconds.
        waited_ms: u64,
    },
    /// It came back from a reset as another one: other identity, other blocks, fewer queues.
    Changed,
    /// The kernel wants it back: the drive is being unplugged or bound to another driver.
    AskedBack,
    /// It was shut down, by [`close`](crate::BlockDevice::close).
    Closed,
}

impl Failure {
    /// What requests in flight are answered with.
    pub const fn io_error(self) -> IoError {
        let kind = match self {
            Self::TimedOut { .. } => IoErrorKind::TimedOut,
            Self::Fatal | Self::Protocol(_) | Self::KeepsQueue { .. } | Self::NotBack { .. } => {
                IoErrorKind::Device
            }
            Self::Removed | Self::Changed | Self::AskedBack | Self::Closed => IoErrorKind::Gone,
        };
        // Whatever the reason, this controller will not take them again.
        IoError { do_not_retry: true, ..IoError::new(kind) }
    }

    /// What a request is answered with that a reset ended and that is not sent again: the controller
    /// may take it later.
    pub(super) const fn passing(self) -> IoError {
        IoError { do_not_retry: false, ..self.io_error() }
    }

    /// Whether a reset may help.
    pub(super) const fn may_pass(self) -> bool {
        match self {
            Self::TimedOut { .. }
            | Self::Fatal
            | Self::Protocol(_)
            | Self::KeepsQueue { .. }
            | Self::NotBack { .. } => true,
            Self::Removed | Self::Changed | Self::AskedBack | Self::Closed => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { qid, waited_ms } => {
                write!(f, "queue {qid} did not answer a command within {waited_ms} ms")
            }
            Self::Fatal => f.write_str("the controller reports a fatal status (CSTS.CFS)"),
            Self::Removed => f.write_str("the controller is gone from the bus"),
            Self::Protocol(violation) => {
                write!(f, "the controller broke the protocol: {violation}")
            }
            Self::KeepsQueue { qid } => write!(f, "the controller would not delete queue {qid}"),
            Self::NotBack { waited_ms } => {
                write!(f, "the controller did not come back from a reset within {waited_ms} ms")
            }
            Self::Changed => f.write_str("the controller came back from a reset as another one"),
            Self::AskedBack => f.write_str("the kernel wants the drive back (unplugged, unbound)"),
            Self::Closed => f.write_str("the controller is shut down"),
        }
    }
}
