//! How a cache is to be made, and why it could not be.

use std::time::Duration;

/// What an acknowledged write means. *Stable* is on media that survives power loss.
///
/// | | `Writeback` | `Writethrough` | `None` |
/// |---|---|---|---|
/// | write | in the cache | on the device (its cache, if it has one) | on the device (its cache) |
/// | write that is to be stable | stable | stable | stable |
/// | flush | all acknowledged earlier is stable | same | same |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Writes are acknowledged from the cache and written later.
    #[default]
    Writeback,
    /// Writes are acknowledged when the device has them; reads are cached.
    Writethrough,
    /// Nothing stays in the cache.
    None,
}

/// How a cache is to be made.
#[derive(Clone, Copy, Debug)]
pub struct CacheOptions {
    /// How many frames of the device's pool it takes; at least [`CacheOptions::FRAMES_MIN`].
    pub frames: usize,
    /// What an acknowledged write means.
    pub mode: CacheMode,
    /// Shards, a power of two; 0 for as many as suit the number of frames.
    pub shards: usize,
    /// Room for dirty pages, as part of all frames in percent, 1 to 90. Below this the limit is set
    /// by the write rate seen, so that a flush takes about two seconds. More can be said with
    /// [`Cache::set_dirty_limits`](crate::Cache::set_dirty_limits).
    pub dirty_max_percent: u8,
    /// The most memory it may take in all, in bytes: frames, tables and lanes. It has fewer frames then, if so many
    /// do not fit; see [`Cache::set_memory_max`](crate::Cache::set_memory_max).
    pub memory_max: Option<u64>,
    /// A clock that never goes back, for the time spent waiting in [`CacheStats::waits`](crate::CacheStats::waits); without one those are
    /// counted only. Read once a turn of a lane at most, and only when somebody waits.
    pub clock: Option<fn() -> Duration>,
}

impl CacheOptions {
    /// The fewest frames a cache works with.
    pub const FRAMES_MIN: usize = 16;

    /// A write-back cache of `frames` frames.
    pub fn frames(frames: usize) -> Self {
        Self {
            frames,
            mode: CacheMode::Writeback,
            shards: 0,
            dirty_max_percent: 50,
            memory_max: None,
            clock: None,
        }
    }
}

/// Why a cache could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// An option is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The device's pool has fewer free frames than were asked for.
    #[error("the cache needs {wanted} frames of 4096 bytes and the pool has {free} free")]
    NoFrames {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        free: usize,
    },
}
