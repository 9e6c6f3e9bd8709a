//! How much memory a cache takes, and a limit that it keeps.
//!
//! Everything is bounded and made when the cache is, or when a lane of it is; nothing grows on the data path
//! but lists of wake-ups, to the most that were ever woken at once. Tables go with the number of frames: when frames
//! have come back after the cache was made smaller, each shard's become smaller too, up to an eighth that is left,
//! and counted.

use uaio_driver::FRAME_SIZE;

use crate::cache::{Cache, CacheError, CacheOptions, Ticket};
use crate::covered::Covered;
use crate::sync::Ordering;
use crate::wait::Wakes;

/// Memory that a cache takes, in bytes. What the device's queues and its pool's own tables take is theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Frames, whatever they hold.
    pub frames: u64,
    /// Index, records, lists, wait queues, and what is remembered of pages that have left.
    pub tables: u64,
    /// Operations, their entries, run queues and requests: of all lanes and of the flusher.
    pub lanes: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.frames + self.tables + self.lanes
    }
}

/// What a page costs in the tables, at most.
const TABLES_A_PAGE: u64 = 64;

impl Cache {
    /// The memory it takes now.
    pub fn memory(&self) -> MemoryUse {
        let mut used = MemoryUse::default();
        for shard in self.shards() {
            let shard = shard.lock();
            used.frames += (shard.count().total * FRAME_SIZE) as u64;
            used.tables += shard.memory_bytes() as u64;
        }
        used.tables += self.barriers.memory_bytes() as u64;
        let tickets = self.orders.lock().tickets.capacity();
        used.tables += (tickets * (size_of::<Ticket>() + Covered::BYTES_A_TICKET)) as u64;
        used.lanes = self.lane_bytes.load(Ordering::Relaxed) as u64;
        used
    }

    /// Gives the cache as many frames as fit into `bytes` with all that it needs beside them, and as many
    /// fewer or more as lanes come and go: [`memory`](Self::memory) stays at or below that, but for the time
    /// that it takes frames to come back. `None` ends it, as does [`resize`](Self::resize).
    ///
    /// A lane that would leave too little is refused.
    ///
    /// # Errors
    ///
    /// [`CacheError::Invalid`] when the smallest cache of so many shards does not fit; then there is no limit.
    pub fn set_memory_max(&self, bytes: Option<u64>) -> Result<(), CacheError> {
        let mut wakes = Wakes::default();
        let fits = {
            let mut max = self.memory_max.lock();
            let fits = bytes.map_or(Ok(()), |bytes| self.fit(bytes, &mut wakes));
            *max = bytes.filter(|_| fits.is_ok());
            fits
        };
        self.tell(wakes);
        fits
    }

    /// The limit that was set last.
    pub fn memory_max(&self) -> Option<u64> {
        *self.memory_max.lock()
    }

    /// A lane has come or gone.
    pub(crate) fn keep_memory_max(&self) -> Result<(), CacheError> {
        let mut wakes = Wakes::default();
        let fits = {
            let max = self.memory_max.lock();
            let Some(bytes) = *max else { return Ok(()) };
            self.fit(bytes, &mut wakes)
        };
        self.tell(wakes);
        fits
    }

    fn fit(&self, bytes: u64, wakes: &mut Wakes) -> Result<(), CacheError> {
        let page = FRAME_SIZE as u64;
        let least = self.shards().count() * CacheOptions::FRAMES_MIN;
        // What the tables take is known when they have the size: at most so much a page more, and less when frames
        // went. So each time it fits, and better than the last.
        let mut last = None;
        for _ in 0..6 {
            let used = self.memory();
            let left = bytes.saturating_sub(used.tables + used.lanes);
            let slots: u64 = self.shards().map(|shard| shard.lock().slots() as u64).sum();
            let more = left.saturating_sub(slots * page) / (page + TABLES_A_PAGE);
            let frames = (left / page).min(slots + more);
            let total = used.frames / page;
            let most = total + self.device().pool().free_frames() as u64;
            let frames = frames.min(most) as usize;
            if frames < least {
                return Err(CacheError::Invalid(format!(
                    "{bytes} bytes are too few: {} are needed beside {least} frames of {page}",
                    used.tables + used.lanes
                )));
            }
            if last.replace(frames) == Some(frames) {
                break;
            }
            self.resize_to(frames, wakes)?;
        }
        Ok(())
    }
}
