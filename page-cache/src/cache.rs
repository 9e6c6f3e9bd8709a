//! The cache: what all its users share.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{BlockDevice, DmaBuf, DmaPool, FRAME_SIZE, Health, IoError, IoErrorKind, Wake};

use crate::barrier::Barriers;
use crate::errors::{ErrorLog, Told, WritebackError};
use crate::index::hash;
use crate::limits::{Amount, DirtyLimits};
use crate::page::Blocks;
use crate::readahead::Streams;
use crate::room::DirtyRoom;
use crate::shard::Shard;
use crate::stability::Stability;
use crate::stats::CacheStats;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, Wanted};
use crate::wait::{Entries, Place, Waiter, WakeTarget, Wakes, Wakeup};
use crate::waited::WaitCounts;

/// Pages that follow each other lie in one shard, this many, so that a small request takes one lock.
pub(crate) const PAGES_TOGETHER: u64 = 8;

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
    /// [`Cache::set_dirty_limits`].
    pub dirty_max_percent: u8,
    /// A clock that never goes back, for the time spent waiting in [`CacheStats::waits`]; without one those are
    /// counted only. Read once a turn of a lane at most, and only when somebody waits.
    pub clock: Option<fn() -> Duration>,
}

impl CacheOptions {
    /// The fewest frames a cache works with.
    pub const FRAMES_MIN: usize = 16;

    /// A write-back cache of `frames` frames.
    pub fn frames(frames: usize) -> Self {
        Self { frames, mode: CacheMode::Writeback, shards: 0, dirty_max_percent: 50, clock: None }
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

/// A flush that waits: for everything up to `seq` in its pages to be on the device, and then for a
/// device flush.
pub(crate) struct Ticket {
    /// Higher than those of the tickets before it.
    pub(crate) id: u64,
    pub(crate) seq: u64,
    /// The pages it covers.
    pub(crate) pages: Range<u64>,
    pub(crate) waiter: Waiter,
    /// What failed to be written in its pages is to be tried again at once.
    pub(crate) retry_failed: bool,
}

impl Ticket {
    /// The pages of a flush that covers all there are.
    pub(crate) const ALL: Range<u64> = 0..u64::MAX;

    pub(crate) fn is_whole(&self) -> bool {
        self.pages == Self::ALL
    }
}

/// What the flusher is asked for.
#[derive(Default)]
pub(crate) struct Orders {
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) flushes: u64,
}

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
    /// How much memory it may take, if that is limited; held while it is made to keep to it.
    pub(crate) memory_max: Mutex<Option<u64>>,
    pub(crate) waits: WaitCounts,
    pub(crate) clock: Option<fn() -> Duration>,
}

/// How large a cache is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
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

/// Who may wait on the cache's queues.
#[derive(Default)]
struct Lanes {
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
        self.cache.barriers.leave_lane(lane);
        let mut lanes = self.cache.lanes.lock();
        lanes.taken[lane as usize] = false;
        lanes.operations -= self.entries.operations() as usize;
        drop(lanes);
        self.cache.lane_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        // There is more place now, so that nothing can be refused.
        let _kept = self.cache.keep_memory_max();
    }
}

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

/// One opener of a cache: each is told once of writeback errors that happened while it was open.
#[derive(Debug)]
pub struct Handle {
    told: Mutex<Told>,
    /// What it reads; see [`crate::readahead`].
    pub(crate) streams: Mutex<Streams>,
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
        let CacheOptions { frames, mode, shards, dirty_max_percent, clock } = options;
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
        let pool = device.pool();
        let mut taken: Vec<DmaBuf> = (0..frames).map_while(|_| pool.take()).collect();
        if taken.len() < frames {
            let free = taken.len();
            return Err(CacheError::NoFrames { wanted: frames, free });
        }
        let size = Size { frames, dirty };
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
        Ok(Arc::new(Self {
            mode,
            shards,
            barriers: Barriers::new(),
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
        }))
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

    /// A new opener, which has seen all errors so far.
    pub fn open(&self) -> Arc<Handle> {
        Arc::new(Handle { told: Mutex::new(self.errors.told()), streams: Mutex::default() })
    }

    /// Copies a range that is wholly cached into `out`, in the caller's thread, and says whether it
    /// was. On `false` the contents of `out` are undefined and nothing has been started; an operation
    /// should follow. A page that bears the mark of readahead is not a hit here: the operation finds it
    /// cached, and sets the next window off.
    ///
    /// Never blocks but for a shard's lock, never does I/O.
    pub fn try_read(&self, offset: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let in_page = (at % FRAME_SIZE as u64) as usize;
            let len = (FRAME_SIZE - in_page).min(out.len() - done);
            let page = at / FRAME_SIZE as u64;
            let Some(frame) = self.share(page, self.touched(in_page, len)) else { return false };
            frame.read(in_page, &mut out[done..done + len]);
            self.unpin(page, frame);
            done += len;
        }
        true
    }

    /// Pins the page at `offset` (a multiple of 4096) if all of it is cached: what it holds can then
    /// be looked at without a copy. Writers go on in a frame of their own meanwhile, so a pin is a
    /// snapshot. Hold it briefly: a pinned frame serves nobody else. When a quarter of the frames is
    /// pinned (of the shard that the page lies in) there is no pin to be had: copy instead.
    pub fn try_pin(&self, offset: u64) -> Option<PagePin<'_>> {
        let page = offset / FRAME_SIZE as u64;
        if !offset.is_multiple_of(FRAME_SIZE as u64) || page >= self.pages() {
            return None;
        }
        let cell = self.cell(page);
        if cell.pins.fetch_add(1, Ordering::Relaxed) < self.pins_max()
            && let Some(frame) = self.share(page, self.existing(page))
        {
            return Some(PagePin { cache: self, page, frame: Some(frame) });
        }
        cell.pins.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// A handle to the page's frame, if these blocks of it are cached.
    #[inline]
    pub(crate) fn share(&self, page: u64, want: Blocks) -> Option<DmaBuf> {
        let mut shard = self.shard(page);
        let slot = shard.find(page)?;
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
        Some(frame)
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

    /// How many pages of a shard may be pinned: a quarter.
    fn pins_max(&self) -> usize {
        self.frames() / self.shards.len() / 4
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

    #[inline]
    fn cell(&self, page: u64) -> &ShardCell {
        let group = hash(page / PAGES_TOGETHER) >> 32;
        &self.shards[group as usize & (self.shards.len() - 1)]
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

    /// Asks for everything acknowledged so far in these pages to be stable; the waiter gets the
    /// result.
    pub(crate) fn order_flush(&self, pages: Range<u64>, waiter: Waiter) {
        let mut orders = self.orders.lock();
        orders.flushes += 1;
        waiter.left_at(Place::Orders);
        let seq = self.last_seq();
        let ticket = Ticket { id: orders.flushes, seq, pages, waiter, retry_failed: true };
        orders.tickets.push(ticket);
        drop(orders);
        let flusher = self.flusher.lock().clone();
        match flusher {
            Some(flusher) => flusher.wake(),
            // Nobody would ever answer.
            None => self.fail_tickets(&mut Wakes::default(), NO_FLUSHER, |_| true),
        }
    }

    pub(crate) fn ring_flusher(&self) {
        // Under no lock: it may be a call of the kernel, and is somebody else's code.
        let flusher = self.flusher.lock().clone();
        if let Some(flusher) = flusher {
            flusher.wake();
        }
    }

    /// Names the flusher, if there is none; says whether there was none.
    pub(crate) fn add_flusher(&self, wake: Arc<dyn Wake>, wakes: &mut Wakes) -> bool {
        {
            let _one_at_a_time = self.flusher_changes.lock();
            let mut flusher = self.flusher.lock();
            if flusher.is_some() {
                return false;
            }
            *flusher = Some(Arc::clone(&wake));
        }
        self.set_flusher(Some(wake), wakes);
        true
    }

    /// Names the flusher; without one, whoever needs it fails instead of waiting for ever.
    pub(crate) fn set_flusher(&self, wake: Option<Arc<dyn Wake>>, wakes: &mut Wakes) {
        let _one_at_a_time = self.flusher_changes.lock();
        let broken = if wake.is_some() { None } else { Some(NO_FLUSHER) };
        *self.flusher.lock() = wake;
        self.rooms().for_each(|room| room.set_broken(broken, wakes));
        if let Some(error) = broken {
            self.fail_tickets(wakes, error, |_| true);
            self.shards().for_each(|shard| shard.lock().fail_frame_waiters(error, wakes));
        }
    }

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
        let mut orders = self.orders.lock();
        let more = lanes.operations.saturating_sub(orders.tickets.len());
        orders.tickets.reserve(more);
        drop(orders);
        self.stability.reserve(all);
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
            Some(Place::Orders) => {
                let mut orders = self.orders.lock();
                let is_it = |ticket: &Ticket| ticket.waiter.is(entries, slot);
                let Some(at) = orders.tickets.iter().position(is_it) else { return false };
                orders.tickets.remove(at);
                entries.arrived(slot);
                true
            }
        }
    }

    /// Fails the flushes that cover what could not be written of these pages, the oldest of it numbered
    /// `oldest`. They fail now: it was tried, and waiting longer would be for as long as the device
    /// pleases.
    pub(crate) fn fail_covering(
        &self,
        wakes: &mut Wakes,
        error: IoError,
        pages: &Range<u64>,
        oldest: u64,
    ) {
        self.fail_tickets(wakes, error, |ticket| {
            if ticket.is_whole() {
                return ticket.seq >= oldest;
            }
            // Some of the pages may be of the range, and others what is old enough.
            let common = pages.start.max(ticket.pages.start)..pages.end.min(ticket.pages.end);
            ticket.seq >= oldest
                && common.into_iter().any(|page| {
                    let shard = self.shard(page);
                    shard.find(page).is_some_and(|slot| {
                        let since = shard.page(slot).dirty_since();
                        shard.attempts(slot) > 0 && since.is_some_and(|it| it <= ticket.seq)
                    })
                })
        });
    }

    /// Gives a pin of `page` up.
    #[inline]
    pub(crate) fn unpin(&self, page: u64, frame: DmaBuf) {
        let last = frame.release();
        // Either this sees that a frame is wanted, or the one who wants it saw that this pin is gone.
        if last.is_some() || self.cell(page).wanted.is_raised() {
            self.unpin_slow(page, last);
        }
    }

    #[cold]
    fn unpin_slow(&self, page: u64, last: Option<DmaBuf>) {
        let mut wakes = Wakes::default();
        let mut shard = self.shard(page);
        if let Some(frame) = last {
            shard.put_frame(frame);
        }
        shard.hand_over(&mut wakes);
        drop(shard);
        wakes.run();
    }

    /// What every wait ends with when the device has failed for good.
    pub(crate) fn device_error(&self) -> Option<IoError> {
        match self.device.health() {
            Health::Good => None,
            Health::Failed(error) => Some(error),
        }
    }

    /// Fails the flushes that wait and are to fail.
    pub(crate) fn fail_tickets(
        &self,
        wakes: &mut Wakes,
        error: IoError,
        covers: impl Fn(&Ticket) -> bool,
    ) {
        let mut orders = self.orders.lock();
        orders.tickets.retain(|ticket| {
            let failed = covers(ticket);
            if failed {
                wakes.push(ticket.waiter.clone(), Wakeup::Ended(Err(error)));
            }
            !failed
        });
    }
}

impl Handle {
    /// The error in these pages that this handle has not been told of, if there is one; the next call says
    /// `None`.
    pub(crate) fn take_error(&self, cache: &Cache, pages: &Range<u64>) -> Option<IoError> {
        let page_size = FRAME_SIZE as u64;
        let bytes = pages.start * page_size..pages.end.saturating_mul(page_size);
        let news = cache.errors.tell(&mut self.told.lock(), &bytes);
        news.map(|news| news.error)
    }

    /// What it was told of last: the range and the count that belong to the error of the last flush which
    /// failed because of a write-back, of this handle. Several are told as one, from the first byte to the
    /// last.
    pub fn last_told(&self) -> Option<WritebackError> {
        self.told.lock().last.clone()
    }
}

/// A page that stays where it is while somebody looks at it.
pub struct PagePin<'a> {
    cache: &'a Cache,
    page: u64,
    frame: Option<DmaBuf>,
}

impl PagePin<'_> {
    /// The page's frame; read only.
    #[inline]
    pub fn frame(&self) -> &DmaBuf {
        match &self.frame {
            Some(frame) => frame,
            None => unreachable!("a pin has its frame until it is dropped"),
        }
    }
}

impl Drop for PagePin<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.cache.cell(self.page).pins.fetch_sub(1, Ordering::Relaxed);
            self.cache.unpin(self.page, frame);
        }
    }
}

/// The error of what needs a flusher when there is none.
pub(crate) const NO_FLUSHER: IoError = IoError::new(IoErrorKind::Cancelled);

/// The error of an operation that lies outside the device.
pub(crate) const OUT_OF_RANGE: IoError = IoError::new(IoErrorKind::Invalid);
