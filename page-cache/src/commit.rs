//! Group commit: stable writes that end together share one device flush.
//!
//! A stable write (O_DSYNC, FUA) is issued at once and waits for nothing but its own commands; then it
//! **joins** the lane's group. When no flush of the lane is in flight one is sent for all who have
//! joined. Who joins later takes the next, because a flush covers only writes that completed before
//! it was submitted: so the slower the flush, the larger the group that shares the next one.
//!
//! The other way is FUA, where each write is stable when it completes. `Group::begin` chooses:
//!
//! - A device without a volatile cache needs neither.
//! - A stable write that is alone takes FUA, if it is one command: one round trip and not two. On a file
//!   that is `RWF_DSYNC`, the same journal commit as a flush.
//! - Beside others it is a plain write and a share of a flush. On a file every `RWF_DSYNC` commits the
//!   journal and flushes the drive's cache by itself, one after the other; on a drive FUA writes go
//!   past its cache, each in its own time. At depth 2 the two come out alike; from there on the group
//!   wins, because its flushes are bounded by time and not by the number of writes.

use uaio_driver::{Capabilities, Token};

use crate::stability::FlushId;

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

/// The stable writes of a lane.
#[derive(Debug)]
pub(crate) struct Group {
    volatile: bool,
    fua: bool,
    /// Stable writes in progress.
    writes: usize,
    /// Those that are on the device and wait for a flush to be sent.
    joined: Vec<Token>,
    /// Those that the flush in flight covers.
    covered: Vec<Token>,
    flush: Sent,
}

/// The flush that was sent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// There is none that is not dealt with.
    None,
    /// It is with the device.
    InFlight(FlushId),
    /// It has succeeded and is not [confirmed](crate::stability) yet.
    Unconfirmed(FlushId),
}

impl Group {
    /// For a lane of so many operations on a device.
    pub(crate) fn new(device: Capabilities, operations: usize) -> Self {
        Self {
            volatile: device.volatile_cache,
            fua: device.fua,
            writes: 0,
            joined: Vec::with_capacity(operations),
            covered: Vec::with_capacity(operations),
            flush: Sent::None,
        }
    }

    /// A stable write of so many commands at least begins: how it becomes so. [`end`](Self::end) it.
    pub(crate) fn begin(&mut self, commands: u64) -> Way {
        self.writes += 1;
        match (self.volatile, self.fua && self.writes == 1 && commands == 1) {
            (false, _) => Way::Plain,
            (true, true) => Way::Fua,
            (true, false) => Way::Flush,
        }
    }

    /// A stable write is over.
    pub(crate) fn end(&mut self) {
        self.writes -= 1;
    }

    /// The commands of a write have completed: it waits for a flush.
    pub(crate) fn join(&mut self, write: Token) {
        self.joined.push(write);
    }

    /// Whether a flush is to be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.flush == Sent::None && !self.joined.is_empty()
    }

    /// Whether a write waits for a flush.
    pub(crate) fn holds(&self, write: Token) -> bool {
        self.joined.contains(&write) || self.covered.contains(&write)
    }

    /// A flush is sent now: it covers those who have joined.
    pub(crate) fn sent(&mut self, flush: FlushId) {
        debug_assert!(self.is_due() && self.covered.is_empty(), "one flush at a time");
        self.flush = Sent::InFlight(flush);
        std::mem::swap(&mut self.joined, &mut self.covered);
    }

    /// The flush that is with the device.
    pub(crate) fn in_flight(&self) -> Option<FlushId> {
        match self.flush {
            Sent::InFlight(flush) => Some(flush),
            Sent::None | Sent::Unconfirmed(_) => None,
        }
    }

    /// The flush that was sent has succeeded, and is not confirmed yet.
    pub(crate) fn succeeded(&mut self, flush: FlushId) {
        self.flush = Sent::Unconfirmed(flush);
    }

    /// The flush that waits to be confirmed.
    pub(crate) fn unconfirmed(&self) -> Option<FlushId> {
        match self.flush {
            Sent::Unconfirmed(flush) => Some(flush),
            Sent::None | Sent::InFlight(_) => None,
        }
    }

    /// The flush that was sent has come to its end; [`pop`](Self::pop) those whom it covered.
    pub(crate) fn completed(&mut self) {
        self.flush = Sent::None;
        self.covered.reverse();
    }

    /// Nobody waits any more: those who wait for no flush that is with the device.
    pub(crate) fn abandon(&mut self) -> Option<Token> {
        if self.in_flight().is_some() {
            return None;
        }
        self.flush = Sent::None;
        self.joined.pop().or_else(|| self.covered.pop())
    }

    /// The next write that the flush which has completed covered, first joined first.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        self.covered.pop()
    }
}
