//! Who may wait on the queues of a cache: its lanes, each with the entries of its operations.

use std::sync::Arc;

use crate::sync::Ordering;
use crate::wait::{Entries, Place, WakeTarget, Wakes};

use super::{Cache, CacheError};

/// Who may wait on the cache's queues.
#[derive(Default)]
pub(super) struct Lanes {
    /// By number, whether there is such a lane.
    taken: Vec<bool>,
    /// How many operations all of them have.
    operations: usize,
}

/// The entries of a lane that is registered with the cache's wait queues, for as long as it is.
pub(crate) struct Enlisted {
    cache: Arc<Cache>,
    entries: Arc<Entries>,
    /// What the lane takes.
    bytes: usize,
}

impl Enlisted {
    /// The lane takes so many bytes more. Fails when the cache cannot make place for them.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), CacheError> {
        self.bytes += bytes;
        self.cache.lane_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.cache.keep_memory_max()
    }

    pub(crate) fn entries(&self) -> &Arc<Entries> {
        &self.entries
    }
}

impl Drop for Enlisted {
    /// Whatever entry is still on a queue is taken off.
    fn drop(&mut self) {
        let mut wakes = Wakes::default();
        for slot in 0..self.entries.operations() {
            // A wake-up that is on its way finds nobody and needs nobody: only a lane that was drained, or
            // the flusher, which has taken its own, comes here.
            self.cache.cancel_wait(&self.entries, slot, &mut wakes);
        }
        let lane = self.entries.lane();
        self.cache.shards().for_each(|shard| shard.lock().waiters().leave(lane));
        self.cache.rooms().for_each(|room| room.leave(lane));
        let mut lanes = self.cache.lanes.lock();
        lanes.taken[lane as usize] = false;
        lanes.operations -= self.entries.operations() as usize;
        self.cache.barriers.leave_lane(lane, lanes.operations);
        self.cache.orders.lock().shrink(lanes.operations);
        drop(lanes);
        self.cache.lane_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        // There is more place now, so that nothing can be refused.
        let _kept = self.cache.keep_memory_max();
    }
}

impl Cache {
    /// Registers a lane of `operations` operations with every queue that they may wait on.
    pub(crate) fn enlist(
        self: &Arc<Self>,
        operations: usize,
        target: Arc<dyn WakeTarget>,
    ) -> Enlisted {
        let mut lanes = self.lanes.lock();
        let number = lanes.taken.iter().position(|taken| !taken).unwrap_or(lanes.taken.len());
        let all = lanes.taken.len().max(number + 1);
        lanes.taken.resize(all, false);
        lanes.taken[number] = true;
        lanes.operations += operations;
        let entries = Entries::new(number as u32, operations, target);
        self.shards().for_each(|shard| shard.lock().waiters().join(&entries));
        self.rooms().for_each(|room| room.join(&entries));
        self.barriers.join(&entries, lanes.operations);
        self.orders.lock().reserve(lanes.operations);
        Enlisted { cache: Arc::clone(self), entries, bytes: 0 }
    }

    /// Takes the entry of an operation off whatever queue it is on. `false` when it is on none: it
    /// waits for nothing, or has been taken out by a waker, and its wake-up will arrive.
    pub(crate) fn cancel_wait(&self, entries: &Arc<Entries>, slot: u32, wakes: &mut Wakes) -> bool {
        match entries.place(slot) {
            None => false,
            Some(Place::Shard(number)) => {
                self.shards[number as usize].lock.lock().cancel_wait(entries, slot)
            }
            Some(Place::Room(number)) => {
                self.shards[number as usize].room.cancel_wait(entries, slot)
            }
            Some(Place::Barriers) => self.barriers.cancel_wait(entries, slot, wakes),
            Some(Place::Orders) => self.orders.lock().cancel(entries, slot),
        }
    }
}
