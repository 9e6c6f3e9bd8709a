//! Operations: what a lane is asked, and what it answers.

use std::sync::Arc;

use uaio_driver::{IoResult, Token};

use crate::buffer::Buffer;
use crate::cache::Handle;

/// What an operation on the cache does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Fill the buffer. `direct` leaves nothing in the cache, but sees what is there.
    Read {
        /// Bring nothing into the cache.
        direct: bool,
    },
    /// Write the buffer, in the way the cache's mode says.
    Write {
        /// Finish only when stable (O_DSYNC, FUA), whatever the mode.
        stable: bool,
        /// Go past the cache; the range must be aligned to device blocks.
        direct: bool,
    },
    /// Bring the range into the cache and finish when it is there, with the error of the first block
    /// that could not be read. What does not fit into half of the cache is left out.
    Readahead,
    /// Finish when everything that was finished before is stable.
    Flush,
    /// The same for what was finished before in the range: writes only that, by whole pages.
    FlushRange,
    /// The blocks are not needed any more; aligned to device blocks. In portions of 32 MiB, with a turn of
    /// the lane between two: when it fails, those before may have been done.
    Discard,
    /// The blocks read as zeroes afterwards; aligned to device blocks. In portions, as a discard.
    WriteZeroes {
        /// The device may free them.
        may_unmap: bool,
    },
}

/// An operation, with the memory it owns until it is finished.
#[derive(Debug)]
pub struct Operation {
    /// Comes back in [`Finished`].
    pub token: Token,
    /// What to do.
    pub kind: OpKind,
    /// First byte on the device.
    pub offset: u64,
    /// How many bytes; 0 for a flush. Reads and writes: at most [`Lane::LEN_MAX`](crate::Lane::LEN_MAX).
    pub len: u64,
    /// Where the data goes to or comes from: at least `len` bytes.
    pub buffer: Buffer,
    /// On whose behalf: who is told of errors.
    pub handle: Arc<Handle>,
}

/// An operation that is over.
#[derive(Debug)]
#[must_use = "a finished operation is answered to whoever started it"]
pub struct Finished {
    /// The operation's token.
    pub token: Token,
    /// How it went.
    pub result: IoResult,
    /// Its memory. Of [`Buffer::Registered`] a device that could not be stopped may keep frames: then
    /// the request has failed, and they are [shared](uaio_driver::DmaBuf::is_shared) for ever.
    pub buffer: Buffer,
}

/// What became of an operation that [`Lane::cancel`](crate::Lane::cancel) named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation that runs on has its buffer still"]
pub enum Cancelled {
    /// It is over: the next but for those finished earlier, with [`IoErrorKind::Cancelled`](uaio_driver::IoErrorKind::Cancelled) and its
    /// buffer, which nothing touches any more. Of a write, none, some or (never acknowledged) all
    /// pages have been written to the cache; what has is there like any other write's. Of a discard or a
    /// write-zeroes, a first part of whole portions of 32 MiB may have been done. A read or a
    /// fill that the device was at goes on for the cache and for others that wait for it.
    Finished,
    /// The device is changing its data in the operation's name, which cannot be taken back, or is
    /// reading into frames of the operation's own. It begins nothing more and finishes by itself when
    /// that has ended: a change well, if that was all that was left to do, otherwise with
    /// [`IoErrorKind::Cancelled`](uaio_driver::IoErrorKind::Cancelled) or the device's error. It has its buffer until then. The wait is
    /// bounded by the device's own deadline.
    RunsOn,
    /// The lane has no such operation: it never had, or it has finished, perhaps without having been
    /// taken out yet.
    Unknown,
}
