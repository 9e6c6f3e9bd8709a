//! The frames of a shard: which are free, and who waits for one, in order.

use std::sync::Arc;

use uaio_driver::{DmaBuf, FrameSet, IoError};

use crate::sync::Wanted;
use crate::wait::{Entries, FOR_A_FRAME, WaitQueue, WaitTable, Waiter, Wakes, Wakeup};

use crate::page::Page;

use super::Shard;

/// At most this many pages are evicted at once: a run of [`PAGES_TOGETHER`](crate::cache::PAGES_TOGETHER).
const EVICT_MAX: usize = 32;
/// And at most one in so many of those that can be.
const EVICT_PART: usize = 64;

/// The frames of a shard, but for those that pages have.
pub(super) struct Frames {
    free: FrameSet,
    /// The lowest of the frames that it began with, which follow each other in memory.
    first: u32,
    /// Frames that are neither free nor a page's: with a request, with an operation, or pinned by a
    /// reader after their page went.
    lent: usize,
    /// Of those, frames that a device keeps which could not be stopped: lent for good.
    kept: usize,
    /// Frames of pages that such a device keeps, too.
    kept_of_pages: Vec<u32>,
    total: usize,
    /// How many there are to be: what is more goes back to the pool as it becomes free.
    target: usize,
    waiters: WaitQueue,
    /// Whether anybody waits, for those who drop a pin without the lock.
    wanted: Arc<Wanted>,
}

/// Where the frames of a shard are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameCount {
    pub(crate) free: usize,
    pub(crate) cached: usize,
    pub(crate) lent: usize,
    pub(crate) total: usize,
}

impl Frames {
    /// These, all of them free.
    pub(super) fn new(frames: Vec<DmaBuf>, wanted: Arc<Wanted>) -> Self {
        let total = frames.len();
        let first = frames.iter().map(DmaBuf::index).min().unwrap_or(0);
        let mut free = FrameSet::default();
        free.extend(frames);
        Self {
            free,
            first,
            lent: 0,
            kept: 0,
            kept_of_pages: Vec::new(),
            total,
            target: total,
            waiters: WaitQueue::EMPTY,
            wanted,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.free.memory_bytes()
    }

    /// How many there are, whatever they hold.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// A frame's place among those that it began with, which is the slot that a page in it has, if it can.
    pub(super) fn own_slot(&self, frame: &DmaBuf) -> u32 {
        frame.index().wrapping_sub(self.first)
    }

    /// The frame whose own slot this is.
    pub(super) fn frame_of(&self, slot: u32) -> u32 {
        self.first.wrapping_add(slot)
    }

    /// More of them.
    pub(super) fn extend(&mut self, frames: Vec<DmaBuf>) {
        self.total += frames.len();
        self.free.extend(frames);
    }

    /// Where they are, when pages have `cached` of them.
    pub(super) fn count(&self, cached: usize) -> FrameCount {
        FrameCount { free: self.free.len(), cached, lent: self.lent, total: self.total }
    }

    /// Takes the entry of an operation, which waits for a frame, off the queue.
    pub(super) fn cancel(&mut self, entries: &WaitTable, lane: &Entries, operation: u32) {
        entries.remove(&mut self.waiters, lane, operation);
        self.settle_wanted();
    }

    /// Whoever drops a pin need not look here when nobody waits for a frame and none is too many.
    pub(super) fn settle_wanted(&self) {
        let wanted = self.total > self.target || !self.waiters.is_empty();
        self.wanted.set(wanted);
    }
}

impl Shard {
    /// Takes a frame: a free one, or that of an evicted page other than `keep`, which the caller
    /// has in hand. Newcomers queue behind those who wait.
    pub(crate) fn take_frame(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if !self.frames.waiters.is_empty() {
            return None;
        }
        self.any_frame(keep)
    }

    /// As [`take_frame`](Shard::take_frame), for readahead: only while more than an eighth of the
    /// frames is free or can be had.
    pub(crate) fn take_spare_frame(&mut self) -> Option<DmaBuf> {
        if self.frames.free.len() + self.clean <= self.frames.total / 8 {
            None
        } else {
            self.take_frame(None)
        }
    }

    /// As [`take_frame`](Shard::take_frame), for a guess: only a frame that is free, while more than an eighth is.
    pub(crate) fn take_frame_to_guess(&mut self) -> Option<DmaBuf> {
        if self.has_room_to_guess() { self.take_frame(None) } else { None }
    }

    /// Whether so many frames are free that a guess may have some.
    pub(crate) fn has_room_to_guess(&self) -> bool {
        self.frames.free.len() > self.frames.total / 8
    }

    fn any_frame(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if self.frames.free.is_empty() {
            self.evict_some(keep);
        }
        let frame = self.frames.free.pop()?;
        self.frames.lent += 1;
        Some(frame)
    }

    /// Evicts a few pages, so that those who read or write a range get frames that lie side by side: the
    /// oldest pages came in together, and one at a time their frames would come out in the order of the
    /// policy's lists, not of memory. One when there are few, so that little is given up early.
    fn evict_some(&mut self, keep: Option<u32>) {
        for _ in 0..(self.clean / EVICT_PART).clamp(1, EVICT_MAX) {
            let Some(frame) = self.evict(keep) else { break };
            self.frames.free.push(frame);
        }
    }

    /// Leaves `waiter` on the queue for a frame, or takes one after all. Only after
    /// [`take_frame`](Shard::take_frame) gave none, under the same lock.
    ///
    /// What stood in the way may have been a pin that was dropped, without this lock, after we
    /// looked. So: say that a frame is wanted, then look again; see [`Wanted`].
    pub(crate) fn wait_frame(&mut self, keep: Option<u32>, waiter: Waiter) -> Option<DmaBuf> {
        self.frames.wanted.raise();
        if let Some(frame) = self.take_frame(keep) {
            self.frames.settle_wanted();
            return Some(frame);
        }
        self.stats.frame_waits += 1;
        self.entries.enqueue(&mut self.frames.waiters, &waiter, FOR_A_FRAME);
        None
    }

    /// Ends the waits for a frame when none can come: every frame holds data that cannot be written.
    pub(crate) fn fail_frame_waiters(&mut self, error: IoError, wakes: &mut Wakes) {
        if !self.frames.free.is_empty() || self.clean > 0 || self.frames.lent > self.frames.kept {
            return;
        }
        let answer = |_| Some(Wakeup::Ended(Err(error)));
        self.entries.wake(&mut self.frames.waiters, FOR_A_FRAME, usize::MAX, wakes, answer);
        self.frames.settle_wanted();
    }

    /// A frame that was lent is now a page's.
    pub(crate) fn installed(&mut self) {
        self.frames.lent -= 1;
    }

    /// A frame that was lent stays with a device that could not be stopped.
    pub(crate) fn kept_by_device(&mut self) {
        self.frames.kept += 1;
    }

    /// The frame that a page was written from stays with such a device. As long as it is the page's, too, it holds
    /// what cannot be written any more, and can be read; it is lent for good from when the page goes from it.
    /// Allocates: a device that fails so does it once.
    pub(crate) fn store_kept_by_device(&mut self, slot: u32) {
        match self.page(slot) {
            Page::Writeback { moved: true, .. } => self.frames.kept += 1,
            Page::Writeback { content, moved: false, .. } => {
                let index = content.frame.index();
                self.frames.kept_of_pages.push(index);
            }
            page @ (Page::Absent
            | Page::Reading { .. }
            | Page::Clean(_)
            | Page::Writing(_)
            | Page::Dirty(_)) => panic!("a page was written from in {page:?}"),
        }
    }

    /// A page's frame has gone from it. If the page's was the last handle the frame is free;
    /// otherwise it is lent until its last holder puts it back.
    pub(crate) fn detached(&mut self, frame: DmaBuf) {
        self.frames.lent += 1;
        let index = frame.index();
        if let Some(frame) = frame.release() {
            self.put_frame(frame);
        } else if let Some(at) = self.frames.kept_of_pages.iter().position(|kept| *kept == index) {
            self.frames.kept_of_pages.swap_remove(at);
            self.frames.kept += 1;
        }
    }

    /// A lent frame comes back, by its last handle.
    pub(crate) fn put_frame(&mut self, frame: DmaBuf) {
        self.frames.lent -= 1;
        self.frames.free.push(frame);
    }

    /// How many frames it is to have.
    pub(crate) fn target(&self) -> usize {
        self.frames.target
    }

    /// Sets how many frames it is to have, and says how many it has to be [given](Shard::grow). What
    /// is too many goes with the next [`hand_over`](Shard::hand_over).
    pub(crate) fn retarget(&mut self, target: usize) -> usize {
        self.frames.target = target;
        target.saturating_sub(self.frames.total)
    }

    /// Returns frames to the pool for as long as there are more than there are to be, and some to be
    /// had. Says whether more are to go.
    fn shrink(&mut self) -> bool {
        let before = self.frames.total;
        while self.frames.total > self.frames.target {
            let Some(frame) = self.frames.free.pop().or_else(|| self.evict(None)) else { break };
            drop(frame);
            self.frames.total -= 1;
        }
        if self.frames.total < before {
            self.shrink_tables();
        }
        self.frames.total > self.frames.target
    }

    /// Hands what is free or can be evicted to those who wait, in order, when there are not too many
    /// frames. Call it, under the same lock, after whatever may have freed a frame: a frame put back,
    /// a page clean, a pin gone.
    pub(crate) fn hand_over(&mut self, wakes: &mut Wakes) {
        if self.frames.total > self.frames.target {
            // A pin may be what stands in the way; see `wait_frame`.
            self.frames.wanted.raise();
            if self.shrink() {
                return;
            }
        }
        while !self.frames.waiters.is_empty() {
            let Some(frame) = self.any_frame(None) else { return };
            let Some(waiter) = self.entries.pop(&mut self.frames.waiters) else {
                unreachable!("the queue was not empty under this lock")
            };
            wakes.push(waiter, Wakeup::Frame(frame));
        }
        self.frames.settle_wanted();
    }
}
