//! What the cache counts.

use crate::waited::Waits;

/// Counters of one shard, kept under its lock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShardStats {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) merged: u64,
    pub(crate) evicted: u64,
    pub(crate) frame_waits: u64,
    pub(crate) written_back: u64,
    pub(crate) writeback_errors: u64,
    pub(crate) readahead: u64,
    pub(crate) readahead_used: u64,
    pub(crate) readahead_wasted: u64,
}

/// What a cache has done and holds, at one moment. Counts are of pages unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Pages read that were there.
    pub hits: u64,
    /// Pages read from the device for somebody who wanted them.
    pub misses: u64,
    /// Times somebody waited for a page that another was already reading or writing.
    pub merged: u64,
    /// Pages read from the device before somebody wanted them.
    pub readahead: u64,
    /// Of those, pages that were wanted afterwards.
    pub readahead_used: u64,
    /// Of those, pages that were evicted before anybody wanted them.
    pub readahead_wasted: u64,
    /// Pages that gave their frame to another.
    pub evicted: u64,
    /// Times somebody had to wait for a frame.
    pub frame_waits: u64,
    /// Times a writer had to wait for room below the dirty limit.
    pub room_waits: u64,
    /// Waits of operations, by what they waited for, and their time.
    pub waits: Waits,
    /// Pages written back.
    pub written_back: u64,
    /// Pages whose writeback failed.
    pub writeback_errors: u64,
    /// Device flushes sent.
    pub device_flushes: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Frames in all. More than are wanted while the cache shrinks.
    pub frames: u64,
    /// Frames that it is to have.
    pub frames_wanted: u64,
    /// Frames that hold a page.
    pub cached: u64,
    /// Bytes the device does not have yet, counted by the page.
    pub dirty_bytes: u64,
    /// Bytes being written to the device, counted by the page.
    pub writeback_bytes: u64,
    /// The dirty limit in bytes: above it writers wait.
    pub dirty_limit_bytes: u64,
    /// Pages that are dirty because writing them failed.
    pub failed: u64,
}

impl CacheStats {
    /// Part of the pages read that were there, 0 to 1; 0 when none was read.
    pub fn hit_rate(&self) -> f64 {
        let reads = self.hits + self.misses;
        if reads == 0 { 0.0 } else { self.hits as f64 / reads as f64 }
    }
}
