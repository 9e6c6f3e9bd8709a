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
//!
//! # Order
//!
//! Ranges that overlap are entered in the order in which they came: a wide one waits for those before it
//! and not for a stream of small ones after it. When a range is left, those who wait for pages of it are
//! woken with a *pass*, and what overlaps it is not entered before each has looked: so a page under one
//! discard after the other can still be read and written.

use std::ops::Range;
use std::sync::Arc;

use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::wait::{Entries, Place, WaitQueue, WaitTable, Waiter, Wakes, Wakeup};

/// The ranges under bypass, in pages.
pub(crate) struct Barriers {
    /// How many are entered, so that the data path pays one load when there are none.
    active: AtomicUsize,
    inner: Mutex<Inner>,
}

struct Inner {
    /// In the order in which they came: one that is not entered yet waits for those before it that it
    /// overlaps.
    ranges: Vec<Barrier>,
    entries: WaitTable,
    next_id: u64,
}

struct Barrier {
    id: u64,
    pages: Range<u64>,
    standing: Standing,
    /// Who waits for a page of it.
    waiters: WaitQueue,
}

/// How far a range is.
enum Standing {
    /// It waits for others; its owner is woken when it is entered.
    Queued(Waiter),
    Entered,
    /// It was left, and so many who waited for its pages have not looked yet.
    Left {
        passes: usize,
    },
}

/// A range that was entered, to be left; or a pass of one that was left, to be given back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a range that is not left blocks its pages for ever"]
pub struct RangeId(u64);

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
        // An operation has a range at most; and each may have one that was left and not yet looked at.
        let more = (2 * operations).saturating_sub(inner.ranges.len());
        inner.ranges.reserve(more);
    }

    /// A lane has gone; all of those that are left have so many operations.
    pub(crate) fn leave_lane(&self, lane: u32, operations: usize) {
        let mut inner = self.inner.lock();
        inner.entries.leave(lane);
        inner.ranges.shrink_to(2 * operations);
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.inner.lock().ranges.capacity() * size_of::<Barrier>()
    }

    /// Takes the entry of an operation off the range it waits for, or its own range out of those that
    /// wait to be entered; `false` when it has been woken meanwhile.
    pub(crate) fn cancel_wait(&self, entries: &Arc<Entries>, slot: u32, wakes: &mut Wakes) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some((id, _)) = inner.entries.waits_for(entries, slot) {
            let Some(range) = inner.ranges.iter_mut().find(|range| range.id == id) else {
                unreachable!("a range that is left wakes all who wait for it")
            };
            inner.entries.remove(&mut range.waiters, entries, slot);
            return true;
        }
        let own = |range: &Barrier| matches!(&range.standing, Standing::Queued(waiter) if waiter.is(entries, slot));
        let Some(at) = inner.ranges.iter().position(own) else { return false };
        entries.arrived(slot);
        let gone = inner.ranges.remove(at);
        self.enter_waiting(inner, &gone.pages, wakes);
        true
    }

    /// Enters a range, or queues it, with the waiter, behind those that overlap it.
    pub(crate) fn enter(
        &self,
        pages: Range<u64>,
        waiter: impl FnOnce() -> Waiter,
    ) -> Option<RangeId> {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let free = !inner.ranges.iter().any(|other| overlap(&other.pages, &pages));
        let standing = if free {
            // Relaxed: who looks does so under the page's shard lock, which the walk takes after this.
            self.active.fetch_add(1, Ordering::Relaxed);
            Standing::Entered
        } else {
            let waiter = waiter();
            waiter.left_at(Place::Barriers);
            Standing::Queued(waiter)
        };
        inner.ranges.push(Barrier { id, pages, standing, waiters: WaitQueue::EMPTY });
        free.then_some(RangeId(id))
    }

    /// Whether a page is in a range that was entered; call it under the page's shard lock.
    #[inline]
    pub(crate) fn covers(&self, page: u64) -> bool {
        self.active.load(Ordering::Relaxed) != 0
            && self.inner.lock().ranges.iter().any(|range| range.bars(page))
    }

    /// Queues the waiter on the range that covers a page. `false` when it has been left meanwhile:
    /// look again.
    pub(crate) fn wait(&self, page: u64, waiter: Waiter) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        match inner.ranges.iter_mut().find(|range| range.bars(page)) {
            Some(range) => {
                inner.entries.enqueue(&mut range.waiters, &waiter, range.id);
                true
            }
            None => false,
        }
    }

    /// Leaves a range; everybody who waits for a page of it looks again, with a pass.
    pub(crate) fn leave(&self, id: RangeId, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(range) = inner.ranges.iter_mut().find(|range| range.id == id.0) else {
            unreachable!("{id:?} is left once")
        };
        self.active.fetch_sub(1, Ordering::Relaxed);
        let pass = |_| Some(Wakeup::Pass(RangeId(id.0)));
        let passes = inner.entries.wake(&mut range.waiters, id.0, usize::MAX, wakes, pass);
        range.standing = Standing::Left { passes };
        self.settle(inner, id.0, wakes);
    }

    /// Gives a pass back.
    pub(crate) fn give_back(&self, pass: RangeId, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let found = inner.ranges.iter_mut().find(|range| range.id == pass.0);
        let Some(Barrier { standing: Standing::Left { passes }, .. }) = found else {
            unreachable!("a pass of {pass:?}, which was not left")
        };
        *passes -= 1;
        self.settle(inner, pass.0, wakes);
    }

    /// Takes a range out that was left and at which all have looked.
    fn settle(&self, inner: &mut Inner, id: u64, wakes: &mut Wakes) {
        let over = |range: &Barrier| {
            range.id == id && matches!(range.standing, Standing::Left { passes: 0 })
        };
        if let Some(at) = inner.ranges.iter().position(over) {
            let gone = inner.ranges.remove(at);
            self.enter_waiting(inner, &gone.pages, wakes);
        }
    }

    /// Enters those that waited for a range that has gone, and for no other.
    fn enter_waiting(&self, inner: &mut Inner, gone: &Range<u64>, wakes: &mut Wakes) {
        for at in 0..inner.ranges.len() {
            let (before, rest) = inner.ranges.split_at_mut(at);
            let range = &mut rest[0];
            let Standing::Queued(waiter) = &range.standing else { continue };
            if !overlap(&range.pages, gone)
                || before.iter().any(|other| overlap(&other.pages, &range.pages))
            {
                continue;
            }
            wakes.push(waiter.clone(), Wakeup::Entered(RangeId(range.id)));
            range.standing = Standing::Entered;
            self.active.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Barrier {
    fn bars(&self, page: u64) -> bool {
        matches!(self.standing, Standing::Entered) && self.pages.contains(&page)
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
