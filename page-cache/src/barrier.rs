//! Ranges that bypass the cache, for as long as they do.
//!
//! A discard or a write-zeroes changes the device under the cache. It enters its range here, waits
//! until no page in it is being read, written or written back, goes to the device, makes the pages
//! forget what they hold, and leaves. Meanwhile nobody may bring a page of the range in, write to
//! one, or write one back; what is there can still be read, as it was.
//!
//! Dirty pages are only forgotten when the device has done it. Forgetting them first would lose data
//! that was acknowledged if the device then failed, and would let a flush that covers them succeed
//! before what replaces them is on the device.
//!
//! Why nothing slips through: an operation looks here while it holds its page's shard lock, and the
//! range is entered before the pages are walked. If it looks before the walk reaches its page, the
//! walk finds the page busy and waits. If it looks after, the range has been entered: it waits.

use std::ops::Range;
use std::sync::Arc;

use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::wait::{Entries, Place, WaitQueue, WaitTable, Waiter, Wakes, Wakeup};

/// The ranges under bypass, in pages.
pub(crate) struct Barriers {
    /// How many there are, so that the data path pays one load when there are none.
    active: AtomicUsize,
    inner: Mutex<Inner>,
}

struct Inner {
    ranges: Vec<Barrier>,
    entries: WaitTable,
    next_id: u64,
}

struct Barrier {
    id: u64,
    pages: Range<u64>,
    waiters: WaitQueue,
}

/// An entered range; to be left.
#[derive(Debug)]
#[must_use = "a range that is not left blocks its pages for ever"]
pub(crate) struct BarrierId(u64);

impl Barriers {
    /// No range is under bypass.
    pub(crate) fn new() -> Self {
        let entries = WaitTable::new(Place::Barriers);
        let inner = Inner { ranges: Vec::new(), entries, next_id: 0 };
        Self { active: AtomicUsize::new(0), inner: Mutex::new(inner) }
    }

    /// The operations of a lane may wait here from now on; `operations` is how many all lanes have.
    pub(crate) fn join(&self, entries: &Arc<Entries>, operations: usize) {
        let mut inner = self.inner.lock();
        inner.entries.join(entries);
        let more = operations.saturating_sub(inner.ranges.len());
        inner.ranges.reserve(more);
    }

    /// A lane has gone.
    pub(crate) fn leave_lane(&self, lane: u32) {
        self.inner.lock().entries.leave(lane);
    }

    /// Takes the entry of an operation off the range it waits for; `false` when that has been left
    /// meanwhile.
    pub(crate) fn cancel_wait(&self, entries: &Entries, slot: u32) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(id) = inner.entries.waits_for(entries, slot) else { return false };
        let Some(range) = inner.ranges.iter_mut().find(|range| range.id == id) else {
            unreachable!("a range that is left wakes all who wait for it")
        };
        inner.entries.remove(&mut range.waiters, entries, slot);
        true
    }

    /// Enters a range, or queues the waiter on one that overlaps it.
    pub(crate) fn enter(
        &self,
        pages: Range<u64>,
        waiter: impl FnOnce() -> Waiter,
    ) -> Option<BarrierId> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let overlaps = |other: &Range<u64>| other.start < pages.end && pages.start < other.end;
        if let Some(other) = inner.ranges.iter_mut().find(|other| overlaps(&other.pages)) {
            inner.entries.enqueue(&mut other.waiters, &waiter(), other.id);
            return None;
        }
        let id = inner.next_id;
        inner.next_id += 1;
        inner.ranges.push(Barrier { id, pages, waiters: WaitQueue::EMPTY });
        // Relaxed: who looks does so under the page's shard lock, which the walk takes after this.
        self.active.fetch_add(1, Ordering::Relaxed);
        Some(BarrierId(id))
    }

    /// Whether a page is in a range; call it under the page's shard lock.
    #[inline]
    pub(crate) fn covers(&self, page: u64) -> bool {
        self.active.load(Ordering::Relaxed) != 0
            && self.inner.lock().ranges.iter().any(|range| range.pages.contains(&page))
    }

    /// Queues the waiter on the range that covers a page. `false` when it has been left meanwhile:
    /// look again.
    pub(crate) fn wait(&self, page: u64, waiter: Waiter) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        match inner.ranges.iter_mut().find(|range| range.pages.contains(&page)) {
            Some(range) => {
                inner.entries.enqueue(&mut range.waiters, &waiter, range.id);
                true
            }
            None => false,
        }
    }

    /// Leaves a range; everybody who waits for it looks again.
    pub(crate) fn leave(&self, id: BarrierId, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(at) = inner.ranges.iter().position(|range| range.id == id.0) {
            let mut range = inner.ranges.swap_remove(at);
            self.active.fetch_sub(1, Ordering::Relaxed);
            while let Some(waiter) = inner.entries.pop(&mut range.waiters) {
                wakes.push(waiter, Wakeup::Retry);
            }
        }
    }
}
