//! Who waits for something that is put down without a lock, and why no wake-up is lost.
//!
//! | who waits | who puts down |
//! |---|---|
//! | 1. leaves its entry, under the lock, and counts it | 1. puts it down |
//! | 2. fence | 2. fence |
//! | 3. looks again, and sleeps when it is not there | 3. the count is not 0: lock, find and wake |
//!
//! Each side writes, fences, and then reads what the other wrote. The fences are sequentially
//! consistent and so have an order: if the waiter's comes first, the other side sees the count; if the
//! other's comes first, the waiter finds what was put down. That is the argument above
//! `waitqueue_active` in Linux; it is what makes an event without waiters cost no lock.
//!
//! `tests/ring_loom.rs` runs this file's own code, with the ring, under loom.

use super::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError, fence};

/// Entries of those who wait.
pub(crate) struct Waiters<E> {
    /// How many entries there are; changed under the lock.
    count: AtomicUsize,
    entries: Mutex<Vec<E>>,
}

impl<E> Waiters<E> {
    /// Nobody; room for `threads` before it allocates.
    pub(crate) fn new(threads: usize) -> Self {
        let entries = Mutex::new(Vec::with_capacity(threads));
        Self { count: AtomicUsize::new(0), entries }
    }

    /// Changes the entries: leaves one, brings one up to date, takes one away. Whoever left one looks
    /// again after this for what it waits for, and only then sleeps.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Vec<E>) -> R) -> R {
        let mut entries = self.lock();
        let result = change(&mut entries);
        // Relaxed: the fences order it.
        self.count.store(entries.len(), Ordering::Relaxed);
        drop(entries);
        // Pairs with the fence in `find`.
        fence(Ordering::SeqCst);
        result
    }

    /// Something has been put down: `find` looks, under the lock, for somebody to be told. Does
    /// nothing when nobody waits.
    pub(crate) fn find<R>(&self, find: impl FnOnce(&mut Vec<E>) -> Option<R>) -> Option<R> {
        // Pairs with the fence in `change`.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut entries = self.lock();
        let found = find(&mut entries);
        self.count.store(entries.len(), Ordering::Relaxed);
        found
    }

    /// Looks at the entries.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&[E]) -> R) -> R {
        look(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        // The entries are consistent between any two statements that can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
