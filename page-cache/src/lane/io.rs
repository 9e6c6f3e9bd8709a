//! What a request in flight is for.

use uaio_driver::Token;

/// A device request in flight, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    /// The lane's operation it belongs to.
    pub(crate) operation: Token,
    pub(crate) kind: IoKind,
    /// First block on the device.
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
    /// How many flushes had failed when it was sent, as [`crate::stability`] counts. Set by
    /// [`Core::submit`](super::Core::submit).
    pub(crate) failures: u64,
    /// It is stable when it has ended. Set by [`Core::submit`](super::Core::submit).
    pub(crate) fua: bool,
}

impl Io {
    /// For an operation of a lane, on these blocks.
    pub(crate) fn new(operation: Token, kind: IoKind, lba: u64, blocks: u32) -> Self {
        Self { operation, kind, lba, blocks, failures: 0, fua: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoKind {
    /// Reads missing blocks into pages in Reading.
    Fill,
    /// The same before anybody wants them: see [`crate::readahead`].
    Ahead {
        /// Its first page gets the mark.
        marked: bool,
        /// Their reader has no use for them afterwards.
        once: bool,
    },
    /// Reads into frames that are not pages'.
    ReadPast,
    /// Reads into frames of the operation's own, which it keeps handles of.
    ReadOwn,
    /// Writes dirty blocks of pages in Writeback.
    Store,
    /// Changes blocks on the device under the cache.
    Bypass,
    /// Makes stable what the device has.
    Flush,
}
