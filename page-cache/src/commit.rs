//! Group commit: stable writes that end together share one device flush.
//!
//! A stable write (O_DSYNC, FUA) is issued at once and waits for nothing but its own commands; then it
//! **joins** those who wait for a device flush (`cache/orders.rs`), which the flusher sends: one for all
//! who have joined, of whatever lane. Who joins later takes the next, because a flush covers only writes that
//! completed before it was submitted: so the slower the flush, the larger the group that shares the next one.
//!
//! Why not by the lane itself, with a round trip to the flusher saved: that a device flush succeeded counts for
//! nobody while one that was sent before on another queue is not heard of ([`crate::stability`]), so each lane
//! would hold up all flushes of the cache until it is polled. A stable write that is alone goes nowhere:
//!
//! - A device without a volatile cache needs no flush.
//! - A stable write that is alone on its lane takes FUA, if it is one command: one round trip and not two. On a
//!   file that is `RWF_DSYNC`, the same journal commit as a flush.
//! - Beside others it is a plain write and a share of a flush. On a file every `RWF_DSYNC` commits the
//!   journal and flushes the drive's cache by itself, one after the other; on a drive FUA writes go
//!   past its cache, each in its own time. At depth 2 the two come out alike; from there on the group
//!   wins, because its flushes are bounded by time and not by the number of writes.

use uaio_driver::Capabilities;

/// How a write becomes stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It need not be, or it is as soon as the device has it.
    Plain,
    /// The commands are FUA.
    Fua,
    /// A device flush after its commands, shared.
    Flush,
}

/// Chooses the way of a lane's stable writes.
#[derive(Debug)]
pub(crate) struct StableWrites {
    volatile: bool,
    fua: bool,
    /// How many are in progress.
    count: usize,
}

impl StableWrites {
    /// Of a lane on a device.
    pub(crate) fn new(device: Capabilities) -> Self {
        Self { volatile: device.volatile_cache, fua: device.fua, count: 0 }
    }

    /// A stable write of so many commands at least begins: how it becomes so. [`end`](Self::end) it.
    pub(crate) fn begin(&mut self, commands: u64) -> Way {
        self.count += 1;
        match (self.volatile, self.fua && self.count == 1 && commands == 1) {
            (false, _) => Way::Plain,
            (true, true) => Way::Fua,
            (true, false) => Way::Flush,
        }
    }

    /// A stable write is over.
    pub(crate) fn end(&mut self) {
        self.count -= 1;
    }
}
