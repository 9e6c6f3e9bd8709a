//! How much memory a cache takes, and a limit that it keeps.
//!
//! Everything is bounded and made when the cache is, or when a lane of it is; nothing grows on the data path
//! but lists of wake-ups, to the most that were ever woken at once. Tables go with the number of frames: when frames
//! have come back after the cache was made smaller, each shard's become smaller too, up to an eighth that is left,
//! and counted.

use uaio_driver::FRAME_SIZE;

use crate::cache::{Cache, CacheError, CacheOptions};
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
        used.tables += self.around.memory_bytes() as u64;
        used.tables += self.orders.lock().memory_bytes() as u64;
        used.lanes = self.lane_bytes.load(Ordering::Relaxed) as u64;
        used
    }

    /// Limits the memory that the cache takes, in bytes, to `bytes` in all: frames, tables and lanes. It has as many
    /// of the frames that it was asked to have ([`CacheOptions::frames`], [`resize`](Self::resize)) as fit, and fewer
    /// or more as lanes come and go: [`memory`](Self::memory) stays at or below the limit, but for the time that it
    /// takes frames to come back. `None` ends it.
    ///
    /// A lane that would leave too little is refused, and so is a size that would not fit.
    ///
    /// # Errors
    ///
    /// [`CacheError::Invalid`] when the smallest cache of so many shards does not fit; nothing has changed then.
    pub fn set_memory_max(&self, bytes: Option<u64>) -> Result<(), CacheError> {
        let mut wakes = Wakes::default();
        let fits = {
            let mut max = self.memory_max.lock();
            let fits = self.fit(bytes, &mut wakes);
            if fits.is_ok() {
                *max = bytes;
            }
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
            if max.is_none() {
                return Ok(());
            }
            self.fit(*max, &mut wakes)
        };
        self.tell(wakes);
        fits
    }

    /// Refuses a size that would not fit into a limit.
    pub(crate) fn check_memory(&self, max: Option<u64>, frames: usize) -> Result<(), CacheError> {
        let Some(max) = max else { return Ok(()) };
        let used = self.memory();
        let more = (frames as u64).saturating_sub(self.slots());
        let frame_bytes = frames as u64 * FRAME_SIZE as u64;
        let bytes = frame_bytes + used.tables + used.lanes + more * TABLES_A_PAGE;
        if bytes > max {
            return Err(CacheError::Invalid(format!(
                "{frames} frames of {FRAME_SIZE} bytes take {bytes} bytes with all beside them: the memory limit is {max}"
            )));
        }
        Ok(())
    }

    /// The pages that the tables are for.
    fn slots(&self) -> u64 {
        self.shards().map(|shard| shard.lock().slots() as u64).sum()
    }

    /// Gives the cache as many of the frames that it was asked to have as fit.
    fn fit(&self, max: Option<u64>, wakes: &mut Wakes) -> Result<(), CacheError> {
        let page = FRAME_SIZE as u64;
        let shards = self.shards().count();
        let asked = self.size.lock().asked;
        // What the tables take is known when they have the size: at most so much a page more, and less when frames
        // went. So each time it fits, and better than the last.
        for _ in 0..6 {
            let used = self.memory();
            let beside = used.tables + used.lanes;
            let fits = max.map_or(u64::MAX, |max| {
                let (left, slots) = (max.saturating_sub(beside), self.slots());
                let more = left.saturating_sub(slots * page) / (page + TABLES_A_PAGE);
                (left / page).min(slots + more)
            });
            let frames = asked.min(usize::try_from(fits).unwrap_or(usize::MAX));
            if frames < shards * CacheOptions::FRAMES_MIN {
                return Err(too_few(max.unwrap_or(0), shards, beside));
            }
            let before = self.frames();
            if frames == before {
                break;
            }
            match self.resize_to(frames, wakes) {
                // Others have taken what it gave back before: it has what it has.
                Err(CacheError::NoFrames { .. }) if frames > before => break,
                done => done?,
            }
        }
        Ok(())
    }
}

/// How many frames there can be in so much memory, about, when there is nothing else.
pub(crate) fn frames_within(bytes: u64) -> u64 {
    bytes / (FRAME_SIZE as u64 + TABLES_A_PAGE)
}

/// A limit that leaves too little, with what there is `beside` the frames.
pub(crate) fn too_few(max: u64, shards: usize, beside: u64) -> CacheError {
    let least = shards * CacheOptions::FRAMES_MIN;
    let needed = beside + (least as u64) * (FRAME_SIZE as u64 + TABLES_A_PAGE);
    CacheError::Invalid(format!(
        "a memory limit of {max} bytes is too little: {least} frames and all beside them take {needed}"
    ))
}
