//! How much of a cache may be dirty, and for how long.
//!
//! Three limits, changeable while the cache is used ([`Cache::set_dirty_limits`]):
//!
//! | limit | above it | default |
//! |---|---|---|
//! | `background` | the flusher writes the oldest pages | a quarter of the frames: half of the next |
//! | `hard` | writers wait, and are let go in order | half of the frames: the other half is there for reads |
//! | `age_max` | a page is written, however few there are | 5 s: what a power failure costs at most, as ext4's commits |
//!
//! A limit in bytes holds for as long as the cache has room for it: one that is made smaller than that keeps
//! the part for reads that every cache does, a tenth of its frames.
//!
//! Whatever was asked for, the hard limit in force is never more than what the device writes in
//! [`FLUSH_TARGET`](crate::writeback::FLUSH_TARGET), by the rate seen, and the background limit never
//! more than half of that. So a flush takes about that long at most, and so does the longest **stall of a
//! writer**: one that finds the limit reached is let go, in order, as soon as pages written before it
//! are on the device, and all of them together take no longer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use uaio_driver::FRAME_SIZE;

use crate::cache::{Cache, CacheError};
use crate::wait::Wakes;

/// A part of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many percent of the frames; the part goes with the size.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

impl Amount {
    /// In pages of a cache of `frames` frames; at least one.
    pub(crate) fn pages(self, frames: usize) -> usize {
        let pages = match self {
            Self::Percent(percent) => frames * usize::from(percent) / 100,
            Self::Bytes(bytes) => usize::try_from(bytes / FRAME_SIZE as u64).unwrap_or(usize::MAX),
        };
        pages.max(1)
    }
}

/// How much may be dirty, and for how long; see the module page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLimits {
    /// Above it the oldest pages are written back.
    pub background: Amount,
    /// Above it writers wait: 1 to 90 percent, or at least one page and at most 90 percent in bytes.
    pub hard: Amount,
    /// How old a dirty page may get before it is written without anybody asking: at least 100 ms.
    pub age_max: Duration,
}

impl DirtyLimits {
    const AGE_MIN: Duration = Duration::from_millis(100);
    pub(crate) const HARD_MAX_PERCENT: u8 = 90;

    /// A hard limit of so many percent, half of it for the background, and the usual age.
    pub fn percent(hard: u8) -> Self {
        Self {
            background: Amount::Percent(hard.div_ceil(2)),
            hard: Amount::Percent(hard),
            age_max: crate::writeback::AGE_MAX,
        }
    }

    /// Refuses what is not possible for a cache of `frames` frames.
    pub(crate) fn check(&self, frames: usize) -> Result<(), CacheError> {
        let most = Amount::Percent(Self::HARD_MAX_PERCENT).pages(frames);
        let invalid = |what: String| Err(CacheError::Invalid(what));
        match self.hard {
            Amount::Percent(percent) if !(1..=Self::HARD_MAX_PERCENT).contains(&percent) => {
                return invalid(format!(
                    "a dirty limit of {percent} % is not possible: take 1 to 90"
                ));
            }
            Amount::Bytes(bytes) if bytes < FRAME_SIZE as u64 || self.hard.pages(frames) > most => {
                return invalid(format!(
                    "a dirty limit of {bytes} bytes is not possible: take {FRAME_SIZE} to {}",
                    most * FRAME_SIZE
                ));
            }
            Amount::Percent(_) | Amount::Bytes(_) => {}
        }
        if self.background.pages(frames) > self.hard.pages(frames) {
            return invalid("the background limit is above the hard limit".to_owned());
        }
        if self.age_max < Self::AGE_MIN {
            return invalid(format!(
                "dirty pages cannot be written after {} ms already: take {} at least",
                self.age_max.as_millis(),
                Self::AGE_MIN.as_millis()
            ));
        }
        Ok(())
    }
}

impl Cache {
    /// Sets how much may be dirty, and for how long. What is above it is written back, and writers
    /// wait meanwhile. Takes each shard's lock in turn; does no I/O.
    ///
    /// # Errors
    ///
    /// [`CacheError::Invalid`], with nothing changed.
    pub fn set_dirty_limits(&self, limits: DirtyLimits) -> Result<(), CacheError> {
        let mut wakes = Wakes::default();
        {
            let mut size = self.size.lock();
            limits.check(size.frames)?;
            size.dirty = limits;
            self.apply_limits(&size, &mut wakes);
        }
        self.tell(wakes);
        Ok(())
    }

    /// What [`set_dirty_limits`](Self::set_dirty_limits) set last.
    pub fn dirty_limits(&self) -> DirtyLimits {
        self.size.lock().dirty
    }

    pub(crate) fn age_max(&self) -> Duration {
        Duration::from_millis(self.age_max_ms.load(Ordering::Relaxed))
    }
}
