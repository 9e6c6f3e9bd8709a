//! Room below the dirty limit: scarce, so it is handed over.
//!
//! A page takes room before a writer touches it and gives it back when the device has its data. A
//! writer that finds none queues, and is let go in the order it came.

use std::sync::Arc;

use uaio_driver::IoError;

use crate::sync::Mutex;
use crate::wait::{Entries, Place, WaitQueue, WaitTable, Waiter, Wakes, Wakeup};

/// Room for the dirty pages of a shard. Its lock is taken inside a shard's, never the other way round.
pub(crate) struct DirtyRoom {
    inner: Mutex<Inner>,
}

struct Inner {
    limit: usize,
    /// Above it the flusher writes: never more than half of the limit.
    background: usize,
    background_max: usize,
    used: usize,
    waiters: WaitQueue,
    entries: WaitTable,
    /// Room does not come back: writers get this error instead of waiting.
    broken: Option<IoError>,
    waits: u64,
}

/// Why there is no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The waiter was queued; it will be woken with room or an error.
    Queued,
    /// There is none, and nobody was to be queued.
    NotNow,
    /// There will be none: the data that holds it cannot be written.
    Broken(IoError),
}

impl DirtyRoom {
    /// The room of this number, for `limit` dirty pages.
    pub(crate) fn new(number: u32, limit: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                limit,
                background: limit / 2,
                background_max: usize::MAX,
                used: 0,
                waiters: WaitQueue::EMPTY,
                entries: WaitTable::new(Place::Room(number)),
                broken: None,
                waits: 0,
            }),
        }
    }

    /// The operations of a lane may wait here from now on.
    pub(crate) fn join(&self, entries: &Arc<Entries>) {
        self.inner.lock().entries.join(entries);
    }

    /// A lane has gone.
    pub(crate) fn leave(&self, lane: u32) {
        self.inner.lock().entries.leave(lane);
    }

    /// Takes the entry of an operation off the queue; `false` when it has been woken meanwhile.
    pub(crate) fn cancel_wait(&self, entries: &Entries, slot: u32) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let waits = inner.entries.waits_for(entries, slot).is_some();
        if waits {
            inner.entries.remove(&mut inner.waiters, entries, slot);
        }
        waits
    }

    /// Takes room for one page, or queues the waiter, if there is one, behind those who wait. Says
    /// whether this was the page that came above the background limit: the flusher starts there.
    pub(crate) fn take(&self, waiter: impl FnOnce() -> Option<Waiter>) -> Result<bool, NoRoom> {
        let mut inner = self.inner.lock();
        if inner.used < inner.limit && inner.waiters.is_empty() {
            inner.used += 1;
            return Ok(inner.used == inner.background + 1);
        }
        if let Some(error) = inner.broken {
            return Err(NoRoom::Broken(error));
        }
        let Some(waiter) = waiter() else { return Err(NoRoom::NotNow) };
        let inner = &mut *inner;
        inner.waits += 1;
        inner.entries.enqueue(&mut inner.waiters, &waiter, 0);
        Err(NoRoom::Queued)
    }

    /// Gives room for `pages` pages back and hands it on.
    pub(crate) fn release(&self, pages: usize, wakes: &mut Wakes) {
        if pages == 0 {
            return;
        }
        let mut inner = self.inner.lock();
        inner.used -= pages;
        inner.hand_over(wakes);
    }

    /// Takes room for pages that became dirty without a writer, whether there is any or not.
    pub(crate) fn force(&self, pages: usize) {
        self.inner.lock().used += pages;
    }

    /// Sets the limit, at least one page; those who fit now are let go.
    pub(crate) fn set_limit(&self, limit: usize, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        inner.limit = limit.max(1);
        inner.background = inner.background_max.min(inner.limit / 2);
        inner.hand_over(wakes);
    }

    /// Sets from where on the flusher writes, if that is not above half of the limit.
    pub(crate) fn set_background(&self, pages: usize) {
        let mut inner = self.inner.lock();
        inner.background_max = pages;
        inner.background = pages.min(inner.limit / 2);
    }

    /// Says that room will not come back, or that it does again. Whoever waits gets the error.
    pub(crate) fn set_broken(&self, broken: Option<IoError>, wakes: &mut Wakes) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.broken = broken;
        if let Some(error) = broken {
            let answer = |_| Some(Wakeup::Ended(Err(error)));
            inner.entries.wake(&mut inner.waiters, 0, usize::MAX, wakes, answer);
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let inner = self.inner.lock();
        Usage {
            used: inner.used,
            limit: inner.limit,
            background: inner.background,
            waits: inner.waits,
        }
    }
}

impl Inner {
    fn hand_over(&mut self, wakes: &mut Wakes) {
        let free = self.limit.saturating_sub(self.used);
        self.used += self.entries.wake(&mut self.waiters, 0, free, wakes, |_| Some(Wakeup::Room));
    }
}

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Pages that hold room.
    pub(crate) used: usize,
    /// How many may.
    pub(crate) limit: usize,
    /// Above how many the flusher writes.
    pub(crate) background: usize,
    /// How often somebody had to wait.
    pub(crate) waits: u64,
}

#[cfg(test)]
mod tests {
    use uaio_driver::{IoErrorKind, Token};

    use super::*;
    use crate::retry::RunQueue;

    fn lane() -> (Arc<RunQueue>, Arc<Entries>) {
        let run = RunQueue::new(8, Arc::new(uaio_driver::block::PollsAnyway));
        (run.clone(), Entries::new(0, 8, run))
    }

    fn waiter(lane: &Arc<Entries>, slot: u32) -> Option<Waiter> {
        Some(Waiter::new(lane, Token { slot, generation: 0 }, crate::wait::Wants::Anything))
    }

    #[test]
    fn newcomers_queue_behind_those_who_wait_and_are_let_go_in_order() {
        let (run, lane) = lane();
        let room = DirtyRoom::new(0, 2);
        room.join(&lane);
        let mut wakes = Wakes::default();
        assert!(room.take(|| unreachable!()).is_ok());
        assert!(room.take(|| unreachable!()).is_ok());
        for slot in 0..3 {
            assert_eq!(room.take(|| waiter(&lane, slot)), Err(NoRoom::Queued));
        }
        assert_eq!(room.take(|| None), Err(NoRoom::NotNow));
        room.release(1, &mut wakes);
        // The room is the first waiter's before it even runs: a newcomer does not get it.
        assert_eq!(room.take(|| waiter(&lane, 3)), Err(NoRoom::Queued));
        room.release(1, &mut wakes);
        wakes.run();
        let order: Vec<_> = std::iter::from_fn(|| run.pop()).map(|(token, _)| token.slot).collect();
        assert_eq!(order, [0, 1]);
        assert_eq!(room.usage().used, 2);
        room.set_limit(4, &mut wakes);
        wakes.run();
        let order: Vec<_> = std::iter::from_fn(|| run.pop()).map(|(token, _)| token.slot).collect();
        assert_eq!(order, [2, 3]);
    }

    #[test]
    fn writers_get_an_error_when_room_will_not_come_back() {
        let (run, lane) = lane();
        let room = DirtyRoom::new(0, 1);
        room.join(&lane);
        let mut wakes = Wakes::default();
        let gone = IoError::new(IoErrorKind::Gone);
        assert!(room.take(|| unreachable!()).is_ok());
        assert_eq!(room.take(|| waiter(&lane, 7)), Err(NoRoom::Queued));
        room.set_broken(Some(gone), &mut wakes);
        wakes.run();
        assert!(matches!(run.pop(), Some((_, Wakeup::Ended(Err(error)))) if error == gone));
        assert_eq!(room.take(|| unreachable!()), Err(NoRoom::Broken(gone)));
        room.set_broken(None, &mut wakes);
        room.release(1, &mut wakes);
        assert!(room.take(|| unreachable!()).is_ok());
    }
}
