//! The flusher: dirty pages go to the device, and flushes end.
//!
//! One flusher serves a cache. It has a device queue of its own, so it never waits for what the
//! lanes hold, and never needs a free frame: page and request share one. It is turned by its owner,
//! a thread or a test, and reads no clock of its own.
//!
//! **What it writes**: first what a flush waits for and what is too old; then, in each shard that is above
//! its background limit ([`crate::limits`]), the oldest. Pages are sent in order of block number,
//! neighbours joined into one command. The order of the two matters: a writer who fills the limit all
//! the time would otherwise take the slots that a flush waits for.
//!
//! **Flush**: a flush covers the writes numbered up to its own. When all of those are on the device
//! a device flush is sent, and everybody whose writes were complete *before it was sent* shares it;
//! who comes later takes the next. What is dirtied later has a higher number and is not waited for,
//! so a flush ends under a writer that never stops. A stable write that needs a flush shares it
//! (see the crate page): no lane sends one of its own. A **flush of a range** is the same for the pages that
//! the range touches: what is dirty elsewhere is neither written nor waited for, and a page elsewhere
//! that cannot be written does not fail it.
//!
//! **The dirty limit** is what the device takes in [`FLUSH_TARGET`], by the rate seen while the
//! flusher was busy, so that a flush takes about that long at most.
//!
//! **Errors**: data that could not be written stays dirty and is tried again, with pauses that grow for each
//! page by itself, and at once when somebody flushes: first as before, because most errors pass, then in
//! ever smaller commands, so that a bad block costs only itself and its neighbours are not sent one by
//! one for it. Each flush that covers it fails while it stays so. When the device is gone, or what fails
//! holds half of a shard's room and has for [`GIVE_UP`], or will not heal as the device says, writers that
//! find no room there get the error instead of waiting, until data goes out again.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{
    Armed, DeviceError, FRAME_SIZE, IoError, IoErrorKind, IoResult, Op, SgList, Token, Wake,
};

use crate::cache::Cache;
use crate::covered::{self, Covered};
use crate::lane::{Core, Io, IoKind, Piece, Run};
use crate::page::{Blocks, Page};
use crate::room::Usage;
use crate::shard::Shard;
use crate::stability::FlushId;
use crate::sync::{Mutex, Ordering};
use crate::wait::{Wakeup, Wants};

/// How old a dirty page may get before it is written without anybody asking, unless something else is
/// set.
pub const AGE_MAX: Duration = Duration::from_secs(5);
/// How long a flush should take at most: the dirty limit is what the device writes in this time.
pub const FLUSH_TARGET: Duration = Duration::from_secs(2);
/// How often the flusher looks at the age of pages.
const TICK: Duration = Duration::from_secs(1);
/// Pauses between attempts to write a page that has failed so often, and more often than the last.
const BACKOFF: [Duration; 7] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(30),
];
/// The most pages in a command for pages that have failed twice.
const PIECE_PAGES: u64 = 16;
/// How long what fails may hold half of a shard's room before those who wait for room are told.
pub const GIVE_UP: Duration = Duration::from_secs(10);
/// Pages looked at in one turn.
const BATCH_PAGES: usize = 2048;
/// The dirty limit never goes below this, in pages: 1 MiB.
const LIMIT_MIN_PAGES: usize = 256;
/// How soon the flusher looks again while a flush of a range waits: it leaves its entry on one page, and
/// flushes of several ranges may wait for different ones that lanes are busy with.
const RANGE_LOOK: Duration = Duration::from_millis(5);
/// The operation that the flusher's own waits and requests name.
const ME: Token = Token { slot: 0, generation: 0 };

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Something went on: turn again before sleeping.
    pub busy: bool,
    /// When to turn again at the latest, on the clock of [`Flusher::turn`].
    pub next: Duration,
}

/// Writes dirty pages back; see the module page.
pub struct Flusher {
    core: Core,
    wake: Arc<dyn Wake>,
    batch: Vec<u64>,
    /// The device flush in flight.
    flush: Option<FlushId>,
    /// What those who wait for a flush wait for.
    covered: Covered,
    /// The page whose queue the entry is on, because a flush waits for it.
    waits_for: Option<u64>,
    /// A page that it is the flusher's turn to write.
    turn: Option<u64>,
    /// When pages are tried again that have failed so often, by [`BACKOFF`], while there are failed ones.
    retry_at: [Option<Duration>; BACKOFF.len()],
    /// By shard, since when what fails holds half of its room.
    choked: Vec<Option<Duration>>,
    broken: bool,
    /// Of the command being gathered.
    size: CommandSize,
    /// Where the next batch begins that does not fit into the slots: what was left of the last.
    hand: u64,
    /// The shard whose pages are looked at first.
    first_shard: usize,
    ages: Ages,
    pace: Pace,
    /// Everything is to be written, as if somebody flushed.
    all: bool,
}

/// How large a command for a page may be, by how often writing the page has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandSize {
    /// As the device allows.
    Most,
    /// [`PIECE_PAGES`].
    Piece,
    /// The page by itself.
    Page,
    /// A block of it.
    Block,
}

impl CommandSize {
    fn after(attempts: u8) -> Self {
        match attempts {
            0 | 1 => Self::Most,
            2 => Self::Piece,
            3 => Self::Page,
            _ => Self::Block,
        }
    }

    /// Whether a command begins at a page, whatever lies before it.
    fn begins_at(self, page: u64) -> bool {
        match self {
            Self::Most => false,
            Self::Piece => page.is_multiple_of(PIECE_PAGES),
            Self::Page | Self::Block => true,
        }
    }
}

fn is_gone(error: &IoError) -> bool {
    error.kind == IoErrorKind::Gone
}

impl Flusher {
    /// The flusher of a cache, with a device queue of at most `depth` requests, at least 2. `wake`
    /// is rung, from any thread, when it has something to do.
    ///
    /// # Errors
    ///
    /// When the cache has one already, or the device has no queue left, or queues of one request only: the flusher keeps one for the
    /// device flush, which others wait for, and would never write.
    pub fn new(cache: Arc<Cache>, depth: u16, wake: Arc<dyn Wake>) -> Result<Self, DeviceError> {
        let mut core = Core::new(cache, 1, depth.max(2), Arc::clone(&wake))?;
        let cache = Arc::clone(&core.cache);
        if core.slots() < 2 {
            return Err(DeviceError::Invalid(format!(
                "the queues of {} hold one request, and writing back takes two",
                cache.device().name()
            )));
        }
        if !cache.add_flusher(Arc::clone(&wake), &mut core.wakes) {
            return Err(DeviceError::Invalid(format!(
                "the cache of {} has a flusher already",
                cache.device().name()
            )));
        }
        Ok(Self {
            core,
            wake,
            batch: Vec::with_capacity(BATCH_PAGES),
            flush: None,
            covered: Covered::default(),
            waits_for: None,
            turn: None,
            retry_at: [None; BACKOFF.len()],
            choked: vec![None; cache.shards().count()],
            broken: false,
            size: CommandSize::Most,
            hand: 0,
            first_shard: 0,
            ages: Ages::default(),
            pace: Pace::default(),
            all: false,
        })
    }

    /// Does what there is to do now, without blocking. `now` never goes back.
    pub fn turn(&mut self, now: Duration) -> Turn {
        let mut busy = false;
        busy |= self.take_woken();
        self.pace.tick(now, self.core.in_flight() > 0);
        if self.core.poll() > 0 {
            busy = true;
            while let Some((io, result, data)) = self.core.next_completion() {
                self.settle(io, result, data);
            }
            self.adjust();
        }
        self.judge(now);
        self.ages.sample(now, self.core.cache.last_seq(), self.core.cache.age_max());
        busy |= self.write_some(now);
        busy |= self.flush_ready();
        self.core.commit();
        self.core.wakes.run();
        let next = now + TICK;
        let retry = self.retry_at.iter().flatten().min().copied();
        let next = next.min(retry.unwrap_or(next).max(now));
        let ranges = self.core.cache.orders.lock().tickets.iter().any(|it| !it.is_whole());
        let next = if ranges { next.min(now + RANGE_LOOK) } else { next };
        Turn { busy, next }
    }

    /// Everything is to be written as soon as possible, until [`Cache::dirty_ranges`] is empty.
    pub fn write_all(&mut self, all: bool) {
        self.all = all;
    }

    /// Device requests in flight: while there are some it is to be turned, or armed.
    pub fn in_flight(&self) -> usize {
        self.core.in_flight()
    }

    /// Whether it may sleep; as [`uaio_driver::IoQueue::arm`].
    pub fn arm(&mut self) -> Armed {
        self.core.arm()
    }

    /// As [`uaio_driver::IoQueue::event_fd`].
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.core.event_fd()
    }

    /// The cache it serves.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.core.cache
    }

    /// What rings it.
    pub fn wake(&self) -> &Arc<dyn Wake> {
        &self.wake
    }

    /// Takes in what its entry was woken with.
    fn take_woken(&mut self) -> bool {
        let Some((_, wakeup)) = self.core.pop_woken() else { return false };
        let page = self.waits_for.take();
        match wakeup {
            Wakeup::Turn => self.turn = page,
            other => self.core.give_back(0, other),
        }
        true
    }

    /// Writes the page that it is its turn to write, if it still is to be written.
    fn use_turn(&mut self, cache: &Cache, sent: &mut usize) {
        let Some(page) = self.turn else { return };
        if !self.core.slots_free(None, 1) {
            // One comes free by itself.
            return;
        }
        let is_failed = {
            let shard = cache.shard(page);
            shard.find(page).is_some_and(|slot| shard.is_failed(slot))
        };
        let mut run = None;
        if !is_failed {
            self.store(cache, page, &mut run, sent);
            *sent += self.core.send(ME, &mut run);
        }
        if let Some(page) = self.turn.take() {
            self.core.give_back(page, Wakeup::Turn);
        }
    }

    fn any_failed(&self) -> bool {
        self.core.cache.shards().any(|shard| shard.lock().failed_len() > 0)
    }

    fn settle(&mut self, io: Io, result: IoResult, data: SgList) {
        match io.kind {
            IoKind::Store => self.settle_store(io, result, data),
            IoKind::Flush => {
                self.core.recycle(data.frames);
                self.settle_flush(result);
            }
            IoKind::Fill
            | IoKind::Ahead { .. }
            | IoKind::ReadPast
            | IoKind::ReadOwn
            | IoKind::Bypass => panic!("the flusher sends no {:?}", io.kind),
        }
    }

    /// The device flush has ended: whom it covers is told.
    fn settle_flush(&mut self, result: IoResult) {
        let Some(flush) = self.flush.take() else { panic!("nobody sent this flush") };
        let cache = Arc::clone(&self.core.cache);
        match result {
            Ok(()) => cache.stability.succeeded(flush),
            Err(error) => cache.flush_failed(error, &mut self.core.wakes),
        }
        cache.orders.lock().ended(result, &mut self.core.wakes);
    }

    fn settle_store(&mut self, io: Io, result: IoResult, data: SgList) {
        let mut oldest_failed = u64::MAX;
        self.core.end_store(&io, result, data.frames, false, |_, _, oldest| {
            oldest_failed = oldest_failed.min(oldest);
        });
        let cache = &self.core.cache;
        let block_size = cache.block_size();
        match result {
            // What fails at once says nothing about how fast the device writes.
            Ok(()) => self.pace.wrote(io.blocks as usize * block_size),
            Err(error) => {
                let start = io.lba * block_size as u64;
                let end = start + u64::from(io.blocks) * block_size as u64;
                cache.errors.record(start..end, error);
                let pages = self.core.page_range(&io);
                cache.fail_covering(&mut self.core.wakes, error, &pages, oldest_failed);
            }
        }
    }

    /// Decides whether room will come back: not from a device that is gone, nor in a shard where what
    /// fails holds half of it or more, and has for long, or will not heal. With less, a writer that waits
    /// gets the room of pages that can be written: a bad block costs only itself.
    fn judge(&mut self, now: Duration) {
        let cache = Arc::clone(&self.core.cache);
        let trouble = |shard: &Mutex<Shard>| shard.lock().trouble();
        let last = cache.shards().filter_map(trouble).max_by_key(|(_, error)| is_gone(error));
        let device = cache.device_error();
        if last.is_none() && device.is_none() && !self.broken {
            self.choked.fill(None);
            return;
        }
        // A device that has gone may have kept frames that it was reading into: nothing need have been written.
        let gone = device.or(last.map(|(_, error)| error)).filter(is_gone);
        self.broken = false;
        for ((shard, room), choked) in cache.shards().zip(cache.rooms()).zip(&mut self.choked) {
            let mut shard = shard.lock();
            let limit = room.usage().limit.min(shard.target());
            let failed = shard.trouble().filter(|(pages, _)| 2 * pages >= limit);
            *choked = failed.map(|_| choked.unwrap_or(now));
            let long = choked.is_some_and(|since| now.saturating_sub(since) >= GIVE_UP);
            let failed = failed.map(|(_, error)| error).filter(|error| long || error.do_not_retry);
            let error = gone.or(failed);
            room.set_broken(error, &mut self.core.wakes);
            if let Some(error) = error {
                shard.fail_frame_waiters(error, &mut self.core.wakes);
                self.broken = true;
            }
        }
    }

    /// What has failed and has waited long enough is to be tried again.
    fn retry_failed(&mut self, now: Duration) {
        let cache = &self.core.cache;
        if !self.any_failed() {
            self.retry_at = [None; BACKOFF.len()];
            return;
        }
        let last = BACKOFF.len() - 1;
        for (level, (at, backoff)) in self.retry_at.iter_mut().zip(BACKOFF).enumerate() {
            if *at.get_or_insert(now + backoff) <= now {
                let due = |attempts: u8| usize::from(attempts).saturating_sub(1).min(last) == level;
                cache.shards().for_each(|shard| shard.lock().retry_failed(due));
                *at = None;
            }
        }
    }

    /// Sets the dirty limit by the rate seen.
    fn adjust(&mut self) {
        let cache = &self.core.cache;
        if let Some(bytes_per_s) = self.pace.rate() {
            let pages = (bytes_per_s * FLUSH_TARGET.as_secs_f64()) as usize / FRAME_SIZE;
            let most = cache.dirty_max();
            let limit = pages.clamp(LIMIT_MIN_PAGES.min(most), most);
            let shards = cache.rooms().count();
            cache.rooms().for_each(|room| room.set_limit(limit / shards, &mut self.core.wakes));
        }
    }

    /// Sends what should be written now; says whether anything was sent.
    fn write_some(&mut self, now: Duration) -> bool {
        let cache = Arc::clone(&self.core.cache);
        let mut flush_seq = None;
        let mut retry_failed = false;
        for ticket in cache.orders.lock().tickets.iter_mut().filter(|ticket| ticket.is_whole()) {
            flush_seq = flush_seq.max(Some(ticket.seq));
            retry_failed |= std::mem::take(&mut ticket.retry_failed);
        }
        if retry_failed {
            cache.shards().for_each(|shard| shard.lock().retry_failed(|_| true));
        }
        self.retry_failed(now);
        let mut upto = flush_seq.unwrap_or(0).max(self.ages.expired(now, cache.age_max()));
        if self.all {
            upto = u64::MAX;
        }
        // First what is asked for, of all shards; what is over half of the limit gets what is left.
        let mut sent = 0;
        self.use_turn(&cache, &mut sent);
        let mut slots_left = self.write_batch(&cache, &mut sent, |since, _| since <= upto);
        slots_left = slots_left && self.write_ranges(&cache, &mut sent);
        slots_left = slots_left && self.write_retried(&cache, &mut sent);
        if slots_left {
            let over_background = |room: &Usage, ahead| room.used > room.background + ahead;
            self.write_batch(&cache, &mut sent, |_, (room, ahead)| over_background(room, ahead));
        }
        sent > 0
    }

    /// Sends the oldest dirty pages of each shard for as long as `wanted` says so, of a page's
    /// number, its shard's room, and how many pages of the shard are on their way before it. Says
    /// whether there are slots left.
    fn write_batch(
        &mut self,
        cache: &Cache,
        sent: &mut usize,
        wanted: impl Fn(u64, (&Usage, usize)) -> bool,
    ) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        // Each shard has its part of the batch, and another is the first each time: none waits until
        // those before it have nothing more to write.
        let shards = cache.shards().count();
        let most = BATCH_PAGES / shards;
        self.first_shard = (self.first_shard + 1) % shards;
        let all = cache.shards().zip(cache.rooms());
        for (shard, room) in all.clone().skip(self.first_shard).chain(all.take(self.first_shard)) {
            let room = room.usage();
            let shard = shard.lock();
            let mut ahead = shard.writeback_len();
            let end = batch.len() + most;
            for slot in shard.dirty() {
                let page = shard.page(slot);
                let since = page.dirty_since().unwrap_or(u64::MAX);
                if batch.len() == end || !wanted(since, (&room, ahead)) {
                    break;
                }
                if matches!(page, Page::Dirty(_)) && !shard.is_failed(slot) {
                    batch.push(shard.key(slot));
                    ahead += 1;
                }
            }
        }
        self.store_all(cache, batch, sent)
    }

    /// Sends what has failed and is to be tried again, whatever its age. Says whether there are slots
    /// left.
    fn write_retried(&mut self, cache: &Cache, sent: &mut usize) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        for shard in cache.shards() {
            let shard = shard.lock();
            let troubled = shard.trouble().map_or(0, |(pages, _)| pages);
            if troubled == shard.failed_len() {
                continue;
            }
            let retried = |slot: &u32| {
                let tried = shard.attempts(*slot) > 0 && !shard.is_failed(*slot);
                tried && matches!(shard.page(*slot), Page::Dirty(_))
            };
            let left = BATCH_PAGES - batch.len();
            batch.extend(shard.dirty().filter(retried).take(left).map(|slot| shard.key(slot)));
        }
        self.store_all(cache, batch, sent)
    }

    /// Sends what flushes of ranges cover, and nothing else. Says whether there are slots left.
    fn write_ranges(&mut self, cache: &Cache, sent: &mut usize) -> bool {
        covered::retry_failed(cache);
        self.covered.take(cache);
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        self.covered.batch(cache, &mut batch, BATCH_PAGES);
        self.store_all(cache, batch, sent)
    }

    /// Puts the pages of a batch under writeback in their order; says whether there are slots left.
    fn store_all(&mut self, cache: &Cache, mut batch: Vec<u64>, sent: &mut usize) -> bool {
        batch.sort_unstable();
        let mut run = None;
        // When not all fits into the slots, the next begins where this ended: otherwise what lies far
        // behind would wait for as long as something is dirtied before it.
        let first = batch.partition_point(|page| *page < self.hand);
        let from_hand = batch[first..].iter().chain(&batch[..first]);
        let left = from_hand.copied().find(|page| !self.store(cache, *page, &mut run, sent));
        self.hand = left.unwrap_or(0);
        let slots_left = left.is_none();
        *sent += self.core.send(ME, &mut run);
        self.batch = batch;
        slots_left
    }

    /// Puts one page under writeback; `false` when there is no slot left for a command.
    fn store(&mut self, cache: &Cache, page: u64, run: &mut Option<Run>, sent: &mut usize) -> bool {
        let mut shard = cache.shard(page);
        let Some(slot) = shard.find(page) else { return true };
        let Page::Dirty(content) = shard.page(slot) else { return true };
        if shard.is_reserved(slot) && self.turn != Some(page) {
            // A flush that waits for it queues for a turn.
            return true;
        }
        if cache.barriers.covers(page) {
            // About to be discarded; whoever does that rings when it is decided.
            return true;
        }
        let attempts = shard.attempts(slot);
        let Some((first, count)) = content.round().first_run() else { return true };
        // One command carries one run; the rest of a page with gaps goes next time.
        let size = CommandSize::after(attempts);
        let blocks = Blocks::range(first, if size == CommandSize::Block { 1 } else { count });
        let piece = Piece::new(IoKind::Store, page, blocks);
        if run.is_some() && (size.begins_at(page) || size != self.size) {
            drop(shard);
            *sent += self.core.send(ME, run);
            return self.store(cache, page, run, sent);
        }
        self.size = size;
        // One slot is kept for the device flush.
        if !self.core.slot_for(run.as_ref(), &piece, 1) {
            return false;
        }
        let begin = |page: Page| match page.begin_writeback(blocks) {
            Ok(begun) => begun,
            Err((page, _)) => panic!("a writeback begins on {page:?}"),
        };
        let (frame, _released) = shard.transition(slot, &mut self.core.wakes, begin);
        drop(shard);
        self.turn = self.turn.filter(|of| *of != page);
        *sent += self.core.gather(ME, run, piece, frame);
        true
    }

    /// Sends a device flush for those whose writes are complete; says whether it did.
    fn flush_ready(&mut self) -> bool {
        if self.flush.is_some() {
            return false;
        }
        let cache = Arc::clone(&self.core.cache);
        self.covered.take(&cache);
        self.covered.judge(&cache);
        let sends = cache.orders.lock().cover(|ticket| self.covered.is_ready(ticket));
        if !self.covered.are_all_ready() {
            // Also when something is sent: those who are ready may be a stream without end.
            self.wait_for_page(&cache);
        }
        if sends {
            self.flush = Some(cache.stability.begin());
            cache.device_flushes.fetch_add(1, Ordering::Relaxed);
            let io = Io::new(ME, IoKind::Flush, 0, 0);
            self.core.submit(io, Op::Flush, SgList::empty());
        }
        sends
    }

    /// Leaves the entry on one page that a flush waits for and that somebody is busy with, so that
    /// the flusher turns again when that has ended.
    fn wait_for_page(&mut self, cache: &Cache) {
        if self.waits_for.is_some() || self.turn.is_some() {
            return;
        }
        for shard in cache.shards() {
            let mut shard = shard.lock();
            let covered = |slot: u32, since: Option<u64>| {
                since.is_some_and(|since| self.covered.covers(shard.key(slot), since))
            };
            let found = shard.dirty().chain(shard.writing()).find_map(|slot| {
                let page = shard.page(slot);
                let busy = !page.is_quiet() || shard.is_reserved(slot);
                // What it is to write itself it queues for: a stream of stable writers would leave it no
                // moment. What is in flight it only looks at.
                if busy && covered(slot, page.dirty_since()) {
                    Some((slot, Wants::Turn))
                } else {
                    covered(slot, page.written_since()).then_some((slot, Wants::Quiet))
                }
            });
            if let Some((slot, wants)) = found {
                self.waits_for = Some(shard.key(slot));
                shard.wait_page(slot, self.core.waiter(ME, wants));
                return;
            }
        }
    }
}

impl Drop for Flusher {
    /// Waits for what it has in flight, bounded by the device's own deadlines; what is dirty stays
    /// so, and flushes that wait fail.
    fn drop(&mut self) {
        while self.core.in_flight() > 0 {
            self.core.commit();
            if self.core.poll() == 0 {
                std::thread::yield_now();
            }
            while let Some((io, result, data)) = self.core.next_completion() {
                self.settle(io, result, data);
            }
        }
        // What its entry was woken with, perhaps by itself just now, goes to the next who waits.
        self.core.wakes.run();
        if self.waits_for.is_some() && !self.core.leave_queue(ME) {
            while !self.take_woken() {
                crate::sync::yield_now();
            }
        }
        if let Some(page) = self.turn.take() {
            self.core.give_back(page, Wakeup::Turn);
        }
        let cache = Arc::clone(&self.core.cache);
        cache.set_flusher(None, &mut self.core.wakes);
        self.core.wakes.run();
    }
}

/// Which sequence numbers are how old: the data path reads no clock, so the flusher notes the
/// number now and then: a bounded number of times in the longest that a page may be dirty.
#[derive(Debug, Default)]
struct Ages {
    samples: VecDeque<(Duration, u64)>,
    expired: u64,
}

impl Ages {
    /// Notes in the longest age: pages are written that much too late at most, and however long it is,
    /// there are no more than these and those of the age before.
    const NOTES: u32 = 32;

    fn sample(&mut self, now: Duration, seq: u64, age_max: Duration) {
        let apart = (TICK / 2).max(age_max / Self::NOTES);
        if self.samples.back().is_none_or(|(last, _)| now >= *last + apart) {
            self.samples.push_back((now, seq));
        }
    }

    /// The highest number whose writes are all older than `age_max`.
    fn expired(&mut self, now: Duration, age_max: Duration) -> u64 {
        while let Some((then, seq)) = self.samples.front().copied() {
            if now < then.saturating_add(age_max) {
                break;
            }
            self.expired = seq;
            self.samples.pop_front();
        }
        self.expired
    }
}

/// The rate at which the device takes writes while it has some.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Duration>,
    busy: Duration,
    bytes: usize,
    rate: Option<f64>,
}

impl Pace {
    /// A new rate is taken after this much time with writes in flight.
    const WINDOW: Duration = Duration::from_millis(200);
    /// And at least this many bytes, so that a trickle is not taken for the device's rate.
    const BYTES_MIN: usize = 4 << 20;

    fn tick(&mut self, now: Duration, in_flight: bool) {
        if let Some(last) = self.last.filter(|_| in_flight) {
            self.busy += now.saturating_sub(last);
        }
        self.last = Some(now);
    }

    fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Bytes a second, once a window is full.
    fn rate(&mut self) -> Option<f64> {
        if self.busy < Self::WINDOW || self.bytes < Self::BYTES_MIN {
            return None;
        }
        let seen = self.bytes as f64 / self.busy.as_secs_f64();
        let rate = self.rate.map_or(seen, |rate| rate * 0.75 + seen * 0.25);
        (self.busy, self.bytes, self.rate) = (Duration::ZERO, 0, Some(rate));
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_noted_a_bounded_number_of_times() {
        let mut ages = Ages::default();
        let age_max = Duration::from_secs(10 * 365 * 24 * 3600);
        let mut now = Duration::ZERO;
        for seq in 0..100_000 {
            ages.sample(now, seq, age_max);
            ages.expired(now, age_max);
            now += Duration::from_secs(3600);
            assert!(ages.samples.len() <= 34, "{}", ages.samples.len());
        }
        // Of what is older than that the last note is known.
        let hours = (now - age_max).as_secs() / 3600;
        let known = ages.expired(now, age_max);
        assert!(known <= hours && known + 10 * 365 * 24 / 32 >= hours, "{known} of {hours}");
    }
}
