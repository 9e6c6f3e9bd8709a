//! Looking after a cache that is in use: what is in it, and how large it may be.
//!
//! Nothing in here waits for I/O. All of it is for control paths: it takes the shards' locks one after the
//! other, and may allocate.
//!
//! **Another size.** A cache's frames are its shards', evenly. To grow, a shard is given frames of the pool
//! and longer tables, at once. To shrink, it is told how many to keep, and returns to the pool
//! whatever is more: what is free or can be evicted at once; the rest as it comes back, from a request, from a
//! pin, and from dirty pages when the flusher has written them, which a lower dirty limit makes it do.
//! Returning comes before handing over to those who wait, who get what is kept. No operation fails
//! because of it, and no data is lost.

use std::ops::Range;

use uaio_driver::{DmaBuf, FRAME_SIZE};

use crate::cache::{Cache, CacheError, CacheOptions};
use crate::limits::DirtyLimits;
use crate::page::{Notes, Page};
use crate::sync::Ordering;
use crate::wait::Wakes;

/// Pages of a range up to which each is looked up; a longer one is compared with what is cached.
const LOOKED_UP_MAX: u64 = 1 << 18;

/// What of a range is cached, in pages, as cachestat(2) counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Pages that the range touches.
    pub pages: u64,
    /// Of those, pages that are cached, dirty ones included. One that is being read for the first
    /// time is not.
    pub cached: u64,
    /// Of those, pages with data that the device does not have.
    pub dirty: u64,
    /// Of those, pages that are being written to the device.
    pub writeback: u64,
    /// Pages that are not cached and were evicted not long ago, about: a few that never were may be
    /// among them. `None` for a range of more than 1 GiB.
    pub recently_evicted: Option<u64>,
}

/// What became of a range that was to be dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Pages that are not cached any more.
    pub dropped: u64,
    /// Pages that stay, because they are dirty, or somebody uses them.
    pub kept: u64,
}

impl Cache {
    /// What of a range of bytes is cached. A moment for each shard: others go on meanwhile.
    pub fn residency(&self, bytes: Range<u64>) -> Residency {
        let pages = self.pages_touched(&bytes);
        let mut found = Residency { pages: pages.end - pages.start, ..Residency::default() };
        let mut count = |page: &Page| {
            found.cached += u64::from(page.content().is_some());
            found.dirty += u64::from(page.dirty_since().is_some());
            found.writeback += u64::from(page.written_since().is_some());
        };
        if found.pages > LOOKED_UP_MAX {
            for shard in self.shards() {
                let shard = shard.lock();
                shard.present().filter(|(key, _)| pages.contains(key)).for_each(|(_, slot)| {
                    count(shard.page(slot));
                });
            }
            return found;
        }
        let mut evicted = 0;
        for key in pages {
            let shard = self.shard(key);
            match shard.find(key) {
                Some(slot) => count(shard.page(slot)),
                None => evicted += u64::from(shard.remembers(key)),
            }
        }
        Residency { recently_evicted: Some(evicted), ..found }
    }

    /// Whether each page from `offset` on is cached, as mincore(2) tells it: all of its blocks can be
    /// read without the device.
    pub fn resident(&self, offset: u64, out: &mut [bool]) {
        let first = offset / FRAME_SIZE as u64;
        for (key, resident) in (first..).zip(out) {
            *resident = key < self.pages() && {
                let shard = self.shard(key);
                shard
                    .find(key)
                    .and_then(|slot| shard.page(slot).content())
                    .is_some_and(|content| content.valid.contains(self.existing(key)))
            };
        }
    }

    /// Lets go of the clean pages that lie wholly in a range of bytes and that nobody uses, as
    /// `POSIX_FADV_DONTNEED` and drop_caches do. What is dirty stays: flush first.
    pub fn drop_clean(&self, bytes: Range<u64>) -> Dropped {
        let page_size = FRAME_SIZE as u64;
        let end = if bytes.end >= self.size_bytes() { self.pages() } else { bytes.end / page_size };
        let pages = bytes.start.div_ceil(page_size)..end;
        let mut done = Dropped::default();
        let mut drop = |key| match self.drop_page(key, true) {
            Some(true) => done.dropped += 1,
            Some(false) => done.kept += 1,
            None => {}
        };
        if pages.end.saturating_sub(pages.start) <= LOOKED_UP_MAX {
            pages.for_each(drop);
            return done;
        }
        for shard in self.shards() {
            let keys: Vec<u64> = shard.lock().present().map(|(key, _)| key).collect();
            keys.into_iter().filter(|key| pages.contains(key)).for_each(&mut drop);
        }
        done
    }

    /// Lets go of a clean page that nobody uses; says whether it did, if it was there.
    pub(crate) fn drop_page(&self, page: u64, asked: bool) -> Option<bool> {
        let mut wakes = Wakes::default();
        let mut shard = self.shard(page);
        let slot = shard.find(page)?;
        let Page::Clean(content) = shard.page(slot) else { return Some(false) };
        // Who has the turn at it is about to use it, and those who wait behind would be woken all at once.
        if content.frame.is_shared() || shard.is_reserved(slot) {
            return Some(false);
        }
        let wasted = content.notes.contains(Notes::AHEAD) && asked;
        shard.let_go(slot, &mut wakes);
        shard.stats.readahead_wasted += u64::from(wasted);
        shard.hand_over(&mut wakes);
        Some(true)
    }

    /// Gives the cache another size, in frames: at least [`CacheOptions::FRAMES_MIN`] for each of its
    /// shards, at most what the pool has. It has grown when this returns; it shrinks as its frames
    /// come back, which [`CacheStats::frames`](crate::CacheStats::frames) tells. The part that may be
    /// dirty goes with the size. The flusher must be turned for a cache with dirty pages to shrink.
    ///
    /// # Errors
    ///
    /// [`CacheError`], with nothing changed; also for a size that would not fit into the
    /// [limit of memory](Self::set_memory_max).
    pub fn resize(&self, frames: usize) -> Result<(), CacheError> {
        let mut wakes = Wakes::default();
        let resized = {
            let max = self.memory_max.lock();
            let fits = self.check_memory(*max, frames);
            let resized = fits.and_then(|()| self.resize_to(frames, &mut wakes));
            if resized.is_ok() {
                self.size.lock().asked = frames;
            }
            resized
        };
        self.tell(wakes);
        resized
    }

    /// Whoever goes on because of another size or other limits is [told](Self::tell) by the caller, when it
    /// holds no lock any more.
    pub(crate) fn resize_to(&self, frames: usize, wakes: &mut Wakes) -> Result<(), CacheError> {
        let shards = self.shards().count();
        let least = shards * CacheOptions::FRAMES_MIN;
        if frames < least {
            return Err(CacheError::Invalid(format!(
                "{frames} frames are too few for a cache of {shards} shards: the minimum is {least}"
            )));
        }
        let mut size = self.size.lock();
        let share = |number: usize| frames / shards + usize::from(number < frames % shards);
        // No shard returns frames that it is to keep, from here on.
        let before: Vec<usize> = self.shards().map(|shard| shard.lock().target()).collect();
        let mut missing = Vec::with_capacity(shards);
        for (number, shard) in self.shards().enumerate() {
            missing.push(shard.lock().retarget(share(number)));
        }
        let wanted: usize = missing.iter().sum();
        let pool = self.device().pool();
        let mut taken: Vec<DmaBuf> = (0..wanted).map_while(|_| pool.take()).collect();
        if taken.len() < wanted {
            for (shard, target) in self.shards().zip(before) {
                shard.lock().retarget(target);
            }
            return Err(CacheError::NoFrames { wanted, free: taken.len() });
        }
        size.frames = frames;
        self.publish_size(*size);
        for (shard, missing) in self.shards().zip(missing) {
            let own = taken.split_off(taken.len() - missing);
            let mut shard = shard.lock();
            shard.grow(own);
            shard.hand_over(wakes);
        }
        self.apply_limits(&size, wakes);
        Ok(())
    }

    /// Sets how much may be dirty, in percent of the frames, 1 to 90, and half of that for the
    /// background: as [`set_dirty_limits`](Self::set_dirty_limits).
    ///
    /// # Errors
    ///
    /// [`CacheError::Invalid`], with nothing changed.
    pub fn set_dirty_max(&self, percent: u8) -> Result<(), CacheError> {
        self.set_dirty_limits(DirtyLimits {
            age_max: self.age_max(),
            ..DirtyLimits::percent(percent)
        })
    }

    /// The pages that a range of bytes touches, of those that there are.
    pub(crate) fn pages_touched(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.div_ceil(FRAME_SIZE as u64).min(self.pages());
        (bytes.start / FRAME_SIZE as u64).min(end)..end
    }

    /// Makes the dirty limits those of a size that was just set. The flusher goes on from there by the
    /// rate it sees. The caller [tells](Self::tell) who goes on.
    pub(crate) fn apply_limits(&self, size: &crate::cache::Size, wakes: &mut Wakes) {
        self.publish_size(*size);
        let shards = self.shards().count();
        let pages = self.dirty_max().min(crate::cache::ROOM_PAGES_UNTIL_KNOWN) / shards;
        let background = size.dirty.background.pages(size.frames) / shards;
        self.rooms().for_each(|room| {
            room.set_background(background);
            room.set_limit(pages, wakes);
        });
    }

    /// After another size or other limits: wakes whoever goes on, and the flusher. Call it under no lock:
    /// callbacks are calls of the kernel, and somebody else's code.
    pub(crate) fn tell(&self, mut wakes: Wakes) {
        wakes.run();
        self.ring_flusher();
    }

    fn publish_size(&self, size: crate::cache::Size) {
        self.frames.store(size.frames, Ordering::Relaxed);
        self.dirty_max.store(size.dirty_max(), Ordering::Relaxed);
        self.age_max_ms.store(size.dirty.age_max.as_millis() as u64, Ordering::Relaxed);
    }
}
