//! The cache: what all its users share.
//!
//! | file | one idea |
//! |---|---|
//! | this | shards, and what is asked of all of them together |
//! | `options` | how a cache is to be made |
//! | `enlist` | who may wait on its queues |
//! | `orders` | flushes and stable writes that wait for the flusher |
//! | `handle` | who opened it, and is told of errors |
//! | `pin` | a page that is looked at where it lies |

mod enlist;
mod handle;
mod options;
mod orders;
mod pin;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{BlockDevice, DmaBuf, DmaPool, FRAME_SIZE, Health, IoError, IoErrorKind, Wake};

use crate::around::Around;
use crate::barrier::Barriers;
use crate::errors::{ErrorLog, WritebackError};
use crate::index::hash;
use crate::limits::{Amount, DirtyLimits};
use crate::page::Blocks;
use crate::room::DirtyRoom;
use crate::shard::Shard;
use crate::stability::Stability;
use crate::stats::CacheStats;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, Wanted};
use crate::wait::Wakes;
use crate::waited::WaitCounts;

pub(crate) use enlist::Enlisted;
use enlist::Lanes;
pub use handle::Handle;
pub use options::{CacheError, CacheMode, CacheOptions};
pub(crate) use orders::Ticket;
use orders::{NO_FLUSHER, Orders};
pub use pin::PagePin;

/// Pages that follow each other lie in one shard, this many: a request takes few locks, and frames that follow each
/// other in memory, for those are the shard's. What a disk makes of that: 512 MiB from a virtio disk into pieces of 4 KiB
/// took 790 ms, of 32 KiB 345, of 128 KiB 285, of 2 MiB 256.
pub(crate) const PAGES_TOGETHER: u64 = 32;

/// A page cache over one block device.
///
/// Shared between threads. Whoever does I/O through it does so on a [`Lane`](crate::Lane), which
/// owns a queue of the device; one [`Flusher`](crate::Flusher) writes dirty pages back and must be
/// turned for as long as the cache is used.
pub struct Cache {
    device: Arc<dyn BlockDevice>,
    /// That of the device.
    pool: DmaPool,
    mode: CacheMode,
    shards: Box<[ShardCell]>,
    pub(crate) barriers: Barriers,
    pub(crate) around: Around,
    pub(crate) errors: ErrorLog,
    pub(crate) stability: Arc<Stability>,
    pub(crate) orders: Mutex<Orders>,
    /// Taken inside any other lock, so nothing is locked under it.
    flusher: Mutex<Option<Arc<dyn Wake>>>,
    /// Held while a flusher comes or goes, with all that follows from it.
    flusher_changes: Mutex<()>,
    lanes: Mutex<Lanes>,
    seq: AtomicU64,
    pub(crate) device_flushes: AtomicU64,
    block_size: usize,
    blocks: u64,
    /// The device takes no writes.
    pub(crate) read_only: bool,
    /// What was asked for last; held while it is changed.
    pub(crate) size: Mutex<Size>,
    pub(crate) frames: AtomicUsize,
    /// The most pages that may be dirty, whatever the write rate.
    pub(crate) dirty_max: AtomicUsize,
    pub(crate) age_max_ms: AtomicU64,
    /// Memory of the lanes and of the flusher.
    pub(crate) lane_bytes: AtomicUsize,
    /// How much memory it may take, if that is limited; held while the number of frames changes, and taken before
    /// `size`.
    pub(crate) memory_max: Mutex<Option<u64>>,
    pub(crate) waits: WaitCounts,
    pub(crate) clock: Option<fn() -> Duration>,
}

/// How large a cache is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Frames that it was asked to have.
    pub(crate) asked: usize,
    /// Frames that it is to have: fewer, if a limit of memory says so.
    pub(crate) frames: usize,
    pub(crate) dirty: DirtyLimits,
}

impl Size {
    /// The most pages that may be dirty.
    pub(crate) fn dirty_max(&self) -> usize {
        let most = Amount::Percent(DirtyLimits::HARD_MAX_PERCENT).pages(self.frames);
        self.dirty.hard.pages(self.frames).min(most)
    }
}

/// The dirty limit in pages until the write rate is known: what a slow drive writes in two seconds.
pub(crate) const ROOM_PAGES_UNTIL_KNOWN: usize = (128 << 20) / FRAME_SIZE;

/// A shard on cache lines of its own.
#[repr(align(128))]
struct ShardCell {
    lock: Mutex<Shard>,
    /// Room for its dirty pages. Each shard has its part of the limit, so that there are always
    /// frames in it that can be evicted.
    room: DirtyRoom,
    /// Whether somebody waits for a frame of it; see `Shard::wait_frame`.
    wanted: Arc<Wanted>,
    /// Pins that callers hold.
    pins: AtomicUsize,
}

impl Cache {
    /// A cache that takes its frames from the device's pool, for good.
    ///
    /// # Errors
    ///
    /// [`CacheError`], with nothing taken.
    pub fn new(
        device: Arc<dyn BlockDevice>,
        options: CacheOptions,
    ) -> Result<Arc<Self>, CacheError> {
        let CacheOptions { frames, mode, shards, dirty_max_percent, memory_max, clock } = options;
        if frames < CacheOptions::FRAMES_MIN {
            return Err(CacheError::Invalid(format!(
                "a cache of {frames} frames is too small: the minimum is {} frames of 4096 bytes",
                CacheOptions::FRAMES_MIN
            )));
        }
        let dirty = DirtyLimits::percent(dirty_max_percent);
        dirty.check(frames)?;
        let shards = match shards {
            // 8 MiB a shard, so that the spread of the hash evens out inside each.
            0 => (frames / 2048).clamp(1, 64).next_power_of_two(),
            count if count.is_power_of_two() && count * CacheOptions::FRAMES_MIN <= frames => count,
            count => {
                return Err(CacheError::Invalid(format!(
                    "{count} shards are not possible: take a power of two up to {}",
                    frames / CacheOptions::FRAMES_MIN
                )));
            }
        };
        let asked = frames;
        // About what fits; exactly, when there are tables to look at.
        let fitting = |bytes| usize::try_from(crate::memory::frames_within(bytes)).unwrap_or(asked);
        let frames = memory_max.map_or(asked, |bytes| asked.min(fitting(bytes)));
        if frames < shards * CacheOptions::FRAMES_MIN {
            return Err(crate::memory::too_few(memory_max.unwrap_or(0), shards, 0));
        }
        let pool = device.pool();
        let mut taken: Vec<DmaBuf> = (0..frames).map_while(|_| pool.take()).collect();
        if taken.len() < frames {
            let free = taken.len();
            return Err(CacheError::NoFrames { wanted: frames, free });
        }
        let size = Size { asked, frames, dirty };
        let geometry = device.geometry();
        let volatile = device.capabilities().volatile_cache;
        let stability = Stability::new(volatile, geometry.block_size as usize);
        let dirty_max = size.dirty_max();
        let room_pages = dirty_max.min(ROOM_PAGES_UNTIL_KNOWN) / shards;
        let shards = (0..shards)
            .rev()
            .map(|left| {
                let own = taken.split_off(taken.len() - taken.len() / (left + 1));
                let wanted = Arc::new(Wanted::default());
                // By its place among the shards: the first made is number 0.
                let number = (shards - 1 - left) as u32;
                let lock = Mutex::new(Shard::new(
                    number,
                    own,
                    Arc::clone(&wanted),
                    Arc::clone(&stability),
                ));
                let room = DirtyRoom::new(number, room_pages.max(1));
                // Until there is a flusher nobody makes room.
                room.set_broken(Some(NO_FLUSHER), &mut Wakes::default());
                room.set_background(dirty.background.pages(frames) / shards);
                ShardCell { lock, room, wanted, pins: AtomicUsize::new(0) }
            })
            .collect();
        let cache = Arc::new(Self {
            mode,
            shards,
            barriers: Barriers::new(),
            around: Around::new(asked),
            errors: ErrorLog::default(),
            stability,
            orders: Mutex::default(),
            flusher: Mutex::default(),
            flusher_changes: Mutex::default(),
            lanes: Mutex::default(),
            seq: AtomicU64::new(0),
            device_flushes: AtomicU64::new(0),
            block_size: geometry.block_size as usize,
            blocks: geometry.blocks,
            read_only: device.capabilities().read_only,
            size: Mutex::new(size),
            frames: AtomicUsize::new(frames),
            dirty_max: AtomicUsize::new(dirty_max),
            age_max_ms: AtomicU64::new(dirty.age_max.as_millis() as u64),
            lane_bytes: AtomicUsize::new(0),
            memory_max: Mutex::default(),
            waits: WaitCounts::default(),
            clock,
            pool: device.pool().clone(),
            device,
        });
        cache.set_memory_max(memory_max)?;
        Ok(cache)
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What an acknowledged write means.
    pub fn mode(&self) -> CacheMode {
        self.mode
    }

    /// Capacity in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blocks * self.block_size as u64
    }

    /// Copies a range that is wholly cached into `out`, in the caller's thread, and says whether it
    /// was. On `false` the contents of `out` are undefined and nothing has been started; an operation
    /// should follow. A page that bears the mark of readahead is not a hit here: the operation finds it
    /// cached, and sets the next window off.
    ///
    /// Never blocks but for a shard's lock, never does I/O.
    pub fn try_read(&self, offset: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        // Pages that came in together lie in slots that follow each other.
        let mut likely = u32::MAX;
        while done < out.len() {
            let at = offset + done as u64;
            let in_page = (at % FRAME_SIZE as u64) as usize;
            let len = (FRAME_SIZE - in_page).min(out.len() - done);
            let page = at / FRAME_SIZE as u64;
            let want = self.touched(in_page, len);
            let Some((frame, slot)) = self.share(page, want, likely) else { return false };
            likely = slot.wrapping_add(1);
            frame.read(in_page, &mut out[done..done + len]);
            self.unpin(page, frame);
            done += len;
        }
        true
    }

    /// A handle to the page's frame, if these blocks of it are cached, and its slot, which is likely to be
    /// this one.
    #[inline]
    pub(crate) fn share(&self, page: u64, want: Blocks, likely: u32) -> Option<(DmaBuf, u32)> {
        let mut shard = self.shard(page);
        let slot = shard.find_at(page, likely)?;
        // What is cached is seldom in the processor's cache too. The record, the frame, its reference
        // count and the policy's note of the page are four misses; asked for before the record is looked
        // at and before the first atomic operation they are served side by side, after it one by one.
        self.pool.prefetch(shard.likely_frame(slot));
        let content = shard.page(slot).readable()?;
        if !content.valid.contains(want) || content.notes.need_operation() {
            return None;
        }
        shard.used(slot);
        let frame = shard.page(slot).readable()?.frame.share();
        shard.stats.hits += 1;
        Some((frame, slot))
    }

    /// What it has done and holds. Takes each shard's lock in turn.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats { frames_wanted: self.frames() as u64, ..CacheStats::default() };
        for shard in self.shards() {
            let shard = shard.lock();
            let own = &shard.stats;
            stats.hits += own.hits;
            stats.misses += own.misses;
            stats.merged += own.merged;
            stats.evicted += own.evicted;
            stats.frame_waits += own.frame_waits;
            stats.readahead += own.readahead;
            stats.readahead_used += own.readahead_used;
            stats.readahead_wasted += own.readahead_wasted;
            stats.written_back += own.written_back;
            stats.writeback_errors += own.writeback_errors;
            let count = shard.count();
            stats.frames += count.total as u64;
            stats.cached += count.cached as u64;
            stats.dirty_bytes += (shard.dirty_len() * FRAME_SIZE) as u64;
            stats.writeback_bytes += (shard.writeback_len() * FRAME_SIZE) as u64;
            stats.failed += shard.failed_len() as u64;
        }
        for room in self.rooms().map(DirtyRoom::usage) {
            stats.room_waits += room.waits;
            stats.dirty_limit_bytes += (room.limit * FRAME_SIZE) as u64;
        }
        stats.waits = self.waits.get();
        stats.device_flushes = self.device_flushes.load(Ordering::Relaxed);
        stats.flushes = self.orders.lock().flushes;
        stats
    }

    /// Writebacks that have failed since the cache was made, by range.
    pub fn writeback_errors(&self) -> Vec<WritebackError> {
        self.errors.ranges()
    }

    /// The ranges of bytes that the device does not have yet, in order, neighbours joined: what
    /// would be lost if the cache went now.
    pub fn dirty_ranges(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for shard in self.shards() {
            let shard = shard.lock();
            // A page under writeback may still fail: it counts until the device has it.
            for slot in shard.dirty().chain(shard.writing()) {
                let start = shard.key(slot) * FRAME_SIZE as u64;
                for (first, count) in shard.page(slot).unwritten().runs() {
                    let from = start + u64::from(first) * self.block_size as u64;
                    runs.push(from..from + u64::from(count) * self.block_size as u64);
                }
            }
        }
        runs.sort_unstable_by_key(|run| run.start);
        runs.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        runs
    }

    /// Panics when a frame was lost or a waiter stands where nothing wakes it.
    ///
    /// # Panics
    ///
    /// As said; for tests.
    pub fn assert_sound(&self) {
        self.shards().for_each(|shard| shard.lock().assert_sound());
    }

    /// Frames that are neither free nor hold a page: with requests and pins. For tests.
    pub fn frames_lent(&self) -> usize {
        self.shards().map(|shard| shard.lock().count().lent).sum()
    }

    /// How many frames it is to have.
    pub(crate) fn frames(&self) -> usize {
        self.frames.load(Ordering::Relaxed)
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &Mutex<Shard>> + Clone {
        self.shards.iter().map(|cell| &cell.lock)
    }

    pub(crate) fn rooms(&self) -> impl Iterator<Item = &DirtyRoom> + Clone {
        self.shards.iter().map(|cell| &cell.room)
    }

    /// Room for the dirty pages of the shard that `page` lies in.
    pub(crate) fn room(&self, page: u64) -> &DirtyRoom {
        &self.cell(page).room
    }

    /// Whether two pages lie in one shard, because they are of one group.
    pub(crate) fn lie_together(one: u64, other: u64) -> bool {
        one / PAGES_TOGETHER == other / PAGES_TOGETHER
    }

    #[inline]
    fn cell(&self, page: u64) -> &ShardCell {
        let (group, mask) = (page / PAGES_TOGETHER, self.shards.len() as u64 - 1);
        // As many groups in a row as there are shards lie in a shard each, in an order that hangs on where
        // the row begins: what follows each other is spread evenly, and no distance meets one shard always.
        let order = hash(group & !mask) >> 32;
        &self.shards[((group ^ order) & mask) as usize]
    }

    #[inline]
    pub(crate) fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        self.cell(page).lock.lock()
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn blocks_per_page(&self) -> u64 {
        (FRAME_SIZE / self.block_size) as u64
    }

    pub(crate) fn pages(&self) -> u64 {
        self.blocks.div_ceil(self.blocks_per_page())
    }

    pub(crate) fn dirty_max(&self) -> usize {
        self.dirty_max.load(Ordering::Relaxed)
    }

    /// The blocks of a page that the device has: all but on the last page of an odd size.
    pub(crate) fn existing(&self, page: u64) -> Blocks {
        let first = page * self.blocks_per_page();
        Blocks::range(0, (self.blocks - first).min(self.blocks_per_page()) as u32)
    }

    /// The blocks that `len` bytes from `offset` in a page touch.
    #[inline]
    pub(crate) fn touched(&self, offset: usize, len: usize) -> Blocks {
        let first = offset / self.block_size;
        let end = (offset + len).div_ceil(self.block_size);
        Blocks::range(first as u32, (end - first) as u32)
    }

    /// The next sequence number. Call it under the shard lock of the page it is for, so that a
    /// flush that reads a later number finds the page when it takes that lock.
    pub(crate) fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The last sequence number given out.
    pub(crate) fn last_seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    /// What every wait ends with when the device has failed for good.
    pub(crate) fn device_error(&self) -> Option<IoError> {
        match self.device.health() {
            Health::Good => None,
            Health::Failed(error) => Some(error),
        }
    }
}

/// The error of an operation that lies outside the device.
pub(crate) const OUT_OF_RANGE: IoError = IoError::new(IoErrorKind::Invalid);
