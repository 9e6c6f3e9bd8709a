//! What a page holds: a frame, and of each block of it whether it is valid, dirty, stable and of this round.
//!
//! # Rounds
//!
//! One command carries one run of blocks, so a page with gaps is written in several, one after the other.
//! Those are a *round*: each block that was dirty when it began is written once in it, and what is written
//! to a block that has had its turn waits for the next round, with a number of its own. Without it a block
//! that somebody writes all the time would be sent again and again in place of its neighbours, and a
//! flush that waits for those would never end.

use uaio_driver::{DmaBuf, FRAME_SIZE};

use super::Blocks;

/// What readahead noted on a page, as a bit mask; see [`crate::readahead`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes(u8);

impl Notes {
    pub(crate) const NONE: Self = Self(0);
    /// Read ahead, and nobody has used it yet.
    pub(crate) const AHEAD: Self = Self(1);
    /// Its reader has no use for it after its last byte.
    pub(crate) const ONCE: Self = Self(2);
    /// Who reaches it sets off the next window.
    pub(crate) const MARK: Self = Self(4);

    pub(crate) fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a reader has to go through an operation, which does what the notes say.
    pub(crate) fn need_operation(self) -> bool {
        self.0 & (Self::ONCE.0 | Self::MARK.0) != 0
    }
}

/// The sequence number of a write, in the 7 bytes that last for two centuries at ten million writes a
/// second: there is one in every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seq([u8; 7]);

impl Seq {
    pub(super) const FIRST: Self = Self([0; 7]);
    pub(super) const LAST: Self = Self([0xff; 7]);

    pub(crate) fn new(number: u64) -> Self {
        let mut bytes = [0; 7];
        bytes.copy_from_slice(&number.to_le_bytes()[..7]);
        Self(bytes)
    }

    pub(crate) fn get(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..7].copy_from_slice(&self.0);
        u64::from_le_bytes(bytes)
    }
}

/// How much higher than another a sequence number is, at most what fits: a number that is taken for
/// lower than it is makes a flush wait for a write that it need not cover, never the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(2))]
pub(crate) struct Later(u32);

impl Later {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn between(oldest: Seq, seq: u64) -> Self {
        Self(u32::try_from(seq.saturating_sub(oldest.get())).unwrap_or(u32::MAX))
    }

    pub(super) fn after(self, oldest: Seq) -> Seq {
        Seq::new(oldest.get() + u64::from(self.0))
    }
}

/// What a page that is there holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) frame: DmaBuf,
    /// Blocks whose newest data is in the frame.
    pub(crate) valid: Blocks,
    /// Blocks that are newer than the device's; always valid too.
    pub(crate) dirty: Blocks,
    /// Blocks that are not of this round of writebacks any more, or not yet. Those of them that are dirty
    /// wait for the next.
    pub(super) done: Blocks,
    /// Blocks that the device has taken and may lose. Of a clean page perhaps not any more: `seq` tells.
    pub(super) unstable: Blocks,
    pub(crate) notes: Notes,
    /// Sequence number of the oldest write in this round, those that are being written included. Of a
    /// clean page the [epoch](crate::stability::Stability::epoch) in which its last writeback ended.
    pub(super) seq: Seq,
    /// By how much the number of the oldest write for the next round is higher.
    pub(super) later: Later,
}

impl Content {
    pub(crate) fn empty(frame: DmaBuf) -> Self {
        Self {
            frame,
            valid: Blocks::NONE,
            dirty: Blocks::NONE,
            done: Blocks::NONE,
            unstable: Blocks::NONE,
            notes: Notes::NONE,
            seq: Seq::FIRST,
            later: Later::NONE,
        }
    }

    /// The blocks that are to be written in this round still.
    pub(crate) fn round(&self) -> Blocks {
        self.dirty.without(self.done)
    }

    pub(super) fn dirtied(&mut self, blocks: Blocks, seq: u64) {
        if self.done.is_empty() {
            if self.dirty.is_empty() {
                self.seq = Seq::new(seq);
            }
        } else {
            if self.dirty.and(self.done).is_empty() {
                self.later = Later::between(self.seq, seq);
            }
            // A round is of what was dirty when it began.
            self.done = self.done.with(blocks.without(self.dirty));
        }
        self.valid = self.valid.with(blocks);
        self.dirty = self.dirty.with(blocks);
    }

    /// Copies `blocks` of another frame into this one.
    pub(crate) fn copy_blocks(&self, from: &DmaBuf, blocks: Blocks, block_size: usize) {
        for (first, count) in blocks.runs() {
            let at = first as usize * block_size;
            self.frame.copy_from(at, from, at, count as usize * block_size);
        }
    }

    /// The same content in another frame, and the old frame.
    pub(super) fn moved_to(mut self, frame: DmaBuf) -> (Self, DmaBuf) {
        // The whole frame: cheaper to copy than to look at the runs of valid blocks.
        frame.copy_from(0, &self.frame, 0, FRAME_SIZE);
        let old = std::mem::replace(&mut self.frame, frame);
        (self, old)
    }
}
