//! Wait queues: entries that carry what waking means.
//!
//! Whoever cannot go on leaves a [`Waiter`] on exactly one queue. Waking it is a callback, not a
//! thread made runnable: the waker does not know whether an operation goes back on its reactor's run
//! queue, a thread is unparked, or a future's `Waker` is called. The entry is an explicit value of
//! the operation, never hidden state of a thread.
//!
//! A queue lies under the same lock as the state it waits for, so check-then-enqueue is atomic.
//! Waking takes entries out under the lock, into a list of wakes, and calls them after it is dropped: every
//! entry is woken exactly once and no callback runs under a lock.
//!
//! *Page state wakes everybody. Scarce things are handed over, not advertised*: a frame or room goes
//! to the first waiter inside its [`Wakeup`], so a newcomer cannot take it in between.

use std::sync::Arc;

use uaio_driver::{DmaBuf, IoError, Token};

use crate::page::Blocks;

/// What a waiter is woken with.
#[derive(Debug)]
pub enum Wakeup {
    /// What was waited for has changed: look again.
    Retry,
    /// A reader's page is there: its frame, pinned in the reader's name, and which blocks are good.
    Filled(DmaBuf, Blocks),
    /// A frame, taken from the shard's pool in this waiter's name. Whoever does not need it any more
    /// puts it back, and it goes to the next.
    Frame(DmaBuf),
    /// Room for one more dirty page, taken in this waiter's name.
    Room,
    /// What was waited for has ended.
    Ended(Result<(), IoError>),
}

/// How a waiter is told; the wake callback of a wait queue entry.
///
/// Runs in the waker's thread, under no lock, possibly from inside a completion: it must not block
/// and not call back into the cache.
pub trait WakeTarget: Send + Sync {
    /// Tells the waiter that `token` names, exactly once for each time it enqueued.
    fn wake(&self, token: Token, wakeup: Wakeup);
}

/// An entry of a wait queue.
#[derive(Clone)]
pub struct Waiter {
    /// Whom to tell.
    pub target: Arc<dyn WakeTarget>,
    /// Which of its operations.
    pub token: Token,
    /// It waits to read the page and takes a pin of it.
    pub reads: bool,
}

/// Waiters taken out of their queues, to be called when no lock is held.
#[must_use = "waiters that are not woken hang for ever"]
#[derive(Default)]
pub(crate) struct Wakes {
    woken: Vec<(Waiter, Wakeup)>,
}

impl Wakes {
    /// With room for `capacity` waiters before it allocates.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { woken: Vec::with_capacity(capacity) }
    }

    pub(crate) fn push(&mut self, waiter: Waiter, wakeup: Wakeup) {
        self.woken.push((waiter, wakeup));
    }

    /// Calls every callback. No lock may be held.
    pub(crate) fn run(&mut self) {
        for (waiter, wakeup) in self.woken.drain(..) {
            waiter.target.wake(waiter.token, wakeup);
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.run();
    }
}

const NONE: u32 = u32::MAX;

/// First in, first out; the entries lie in a [`WaitTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitQueue {
    head: u32,
    tail: u32,
}

impl WaitQueue {
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE };

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

/// The entries of all wait queues under one lock. A queue itself is two words, so every page can
/// have one of its own.
///
/// An operation waits on one queue at a time, so there are never more entries than operations:
/// [`reserve`](WaitTable::reserve) makes room for them when they are made, and enqueueing does not
/// allocate.
#[derive(Default)]
pub(crate) struct WaitTable {
    entries: Vec<(Option<Waiter>, u32)>,
    free: Vec<u32>,
}

impl WaitTable {
    /// Makes room for `operations` more waiters.
    pub(crate) fn reserve(&mut self, operations: usize) {
        let first = self.entries.len() as u32;
        self.entries.extend((0..operations).map(|_| (None, NONE)));
        self.free.extend((first..first + operations as u32).rev());
    }

    pub(crate) fn enqueue(&mut self, queue: &mut WaitQueue, waiter: Waiter) {
        if self.free.is_empty() {
            self.reserve(16);
        }
        let Some(entry) = self.free.pop() else { unreachable!("room was just made") };
        self.entries[entry as usize] = (Some(waiter), NONE);
        match queue.tail {
            NONE => queue.head = entry,
            tail => self.entries[tail as usize].1 = entry,
        }
        queue.tail = entry;
    }

    pub(crate) fn pop(&mut self, queue: &mut WaitQueue) -> Option<Waiter> {
        if queue.is_empty() {
            return None;
        }
        let entry = queue.head;
        let (waiter, next) = std::mem::replace(&mut self.entries[entry as usize], (None, NONE));
        queue.head = next;
        if next == NONE {
            queue.tail = NONE;
        }
        self.free.push(entry);
        waiter
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<u32>>);

    impl WakeTarget for Log {
        fn wake(&self, token: Token, _: Wakeup) {
            self.0.lock().unwrap().push(token.slot);
        }
    }

    fn waiter(log: &Arc<Log>, slot: u32) -> Waiter {
        Waiter { target: log.clone(), token: Token { slot, generation: 0 }, reads: false }
    }

    #[test]
    fn waiters_leave_in_the_order_they_came() {
        let log = Arc::new(Log::default());
        let mut table = WaitTable::default();
        let (mut left, mut right) = (WaitQueue::EMPTY, WaitQueue::EMPTY);
        for slot in 0..40 {
            let queue = if slot % 2 == 0 { &mut left } else { &mut right };
            table.enqueue(queue, waiter(&log, slot));
        }
        let mut wakes = Wakes::default();
        for queue in [&mut left, &mut right] {
            while let Some(waiter) = table.pop(queue) {
                wakes.push(waiter, Wakeup::Retry);
            }
            assert!(queue.is_empty());
        }
        assert!(log.0.lock().unwrap().is_empty(), "a callback ran before the lock was dropped");
        wakes.run();
        let order: Vec<u32> = (0..40).step_by(2).chain((1..40).step_by(2)).collect();
        assert_eq!(*log.0.lock().unwrap(), order);
    }

    #[test]
    fn a_dropped_list_of_wakes_still_wakes() {
        let log = Arc::new(Log::default());
        let mut wakes = Wakes::default();
        wakes.push(waiter(&log, 1), Wakeup::Retry);
        drop(wakes);
        assert_eq!(*log.0.lock().unwrap(), [1]);
    }
}
