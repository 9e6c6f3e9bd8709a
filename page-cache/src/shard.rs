//! A shard: pages, their wait queues, the frames they lie in and the policy that evicts them, all
//! under one lock.
//!
//! Frames belong to a shard for good. So whoever needs one finds the free ones, the evictable pages
//! and the queue of those who wait under the lock it holds anyway, and handing a frame over needs no
//! other. Keys are spread by hash, so the shards fill evenly.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{DmaBuf, FrameSet, IoError};

use crate::evict::{Lap, Links, List, Pages, Policy};
use crate::index::{Index, hash};
use crate::page::{Blocks, Busy, Notes, Page};
use crate::stability::{Span, Spans, Stability};
use crate::stats::ShardStats;
use crate::sync::Wanted;
use crate::wait::{
    Entries, FOR_A_FRAME, Place, WaitQueue, WaitTable, Waiter, Wakes, Wakeup, Wants,
};

/// A page's number; aligned like the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(2))]
struct Key(u64);

/// A page's place in the shard. The key and the page lie together, so that a hit takes one miss for both; there
/// are as many as frames, so they are as small as they can be.
#[derive(Debug)]
struct Record {
    key: Key,
    page: Page,
}

impl Record {
    fn vacant() -> Self {
        Self { key: Key(0), page: Page::Absent }
    }
}

const _: () = assert!(size_of::<Record>() <= 40);

/// At most this many pages are evicted at once: two runs of [`PAGES_TOGETHER`](crate::cache::PAGES_TOGETHER).
const EVICT_MAX: usize = 16;
/// And at most one in so many of those that can be.
const EVICT_PART: usize = 64;

/// What became of a page's writebacks, in a byte: how many have failed since it was last clean, and
/// whether the last one did and has not been tried again since.
#[derive(Clone, Copy, Debug, Default)]
struct Trouble(u8);

impl Trouble {
    const FAILED: u8 = 0x80;

    fn failed(self) -> bool {
        self.0 & Self::FAILED != 0
    }

    fn set_failed(&mut self, failed: bool) {
        self.0 = self.attempts() | if failed { Self::FAILED } else { 0 };
    }

    fn attempts(self) -> u8 {
        self.0 & !Self::FAILED
    }

    /// One more; what is more than fits makes no difference.
    fn count(&mut self) {
        let more = (self.attempts() + 1).min(0x7f);
        self.0 = self.0 & Self::FAILED | more;
    }

    /// It is clean: says how many had failed.
    fn forget(&mut self) -> u8 {
        std::mem::take(self).attempts()
    }
}

/// Which of a shard's lists a page is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// None: absent, or on its way in.
    Outside,
    /// The policy's: it can be evicted, if nobody pins it.
    Evictable,
    /// The dirty ones, by this sequence number.
    Dirty(u64),
    /// Those under writeback.
    Writeback,
}

impl Standing {
    fn of(page: &Page) -> Self {
        match page {
            Page::Clean(_) => Self::Evictable,
            Page::Writeback { .. } => Self::Writeback,
            Page::Absent | Page::Reading { .. } | Page::Writing(_) | Page::Dirty(_) => {
                page.dirty_since().map_or(Self::Outside, Self::Dirty)
            }
        }
    }
}

/// Those who wait for the pages of one hash: who looks, and who waits for a turn, so that neither has to
/// be passed over to find the other.
#[derive(Clone, Copy)]
struct PageQueues {
    looking: WaitQueue,
    in_turn: WaitQueue,
}

impl PageQueues {
    const EMPTY: Self = Self { looking: WaitQueue::EMPTY, in_turn: WaitQueue::EMPTY };
}

/// The records of a shard, by slot.
struct Records {
    records: Vec<Record>,
    /// A bit for each slot: its page is quiet, and whose turn it is has been told. Until he has looked
    /// nobody else changes the page, and it is not evicted.
    reserved: Vec<u64>,
    /// A page that whoever asks for a victim has in hand.
    keep: Option<u32>,
}

impl std::ops::Index<u32> for Records {
    type Output = Record;

    #[inline]
    fn index(&self, slot: u32) -> &Record {
        &self.records[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Records {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.records[slot as usize]
    }
}

impl Records {
    fn is_reserved(&self, slot: u32) -> bool {
        self.reserved[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    fn reserve(&mut self, slot: u32, reserved: bool) {
        let (word, bit) = (&mut self.reserved[slot as usize / 64], slot % 64);
        *word = *word & !(1 << bit) | u64::from(reserved) << bit;
    }
}

impl Pages for Records {
    fn usable(&self, slot: u32) -> bool {
        // Pins are taken under the shard's lock, so a frame that is not shared stays so.
        matches!(&self[slot].page, Page::Clean(content) if !content.frame.is_shared())
            && Some(slot) != self.keep
            && !self.is_reserved(slot)
    }

    fn key(&self, slot: u32) -> u64 {
        self[slot].key.0
    }
}

/// Pages, waiters, frames and policy under one lock.
pub(crate) struct Shard {
    index: Index,
    records: Records,
    /// The links of all lists: a slot is in one of them at most, which follows from its page's
    /// state (see [`Standing`]).
    links: Links,
    /// Slots without a page.
    vacant: List,
    free: FrameSet,
    /// The lowest of the frames that it began with, which follow each other in memory.
    first_frame: u32,
    /// Frames that are neither free nor a page's: with a request, with an operation, or pinned by a
    /// reader after their page went.
    lent: usize,
    total: usize,
    /// How many frames it is to have: what is more goes back to the pool as it becomes free.
    target: usize,
    frame_waiters: WaitQueue,
    /// Those who wait for pages, by a hash of the slot; a power of two of them.
    page_waiters: Box<[PageQueues]>,
    /// How many, so that what wakes nobody looks at no queue.
    page_waiters_len: usize,
    /// Whether `frame_waiters` has any, for those who drop a pin without the lock.
    wanted: Arc<Wanted>,
    entries: WaitTable,
    /// Pages with dirty blocks that are not under writeback, by the sequence number of the oldest.
    dirty: List,
    /// Pages under writeback, in the order it was started.
    writeback: List,
    /// How many of those are dirty again.
    dirty_again: usize,
    /// Chooses among the clean pages, which are those in its lists.
    policy: Lap,
    clean: usize,
    /// By slot, like the records; beside them because a hit does not look at it.
    troubles: Vec<Trouble>,
    failed: usize,
    /// Pages whose writebacks have failed and not succeeded since.
    troubled: usize,
    /// How the last of them failed.
    trouble_error: Option<IoError>,
    /// Frames that a device keeps which could not be stopped: lent for good.
    kept: usize,
    stability: Arc<Stability>,
    /// Blocks that the device has taken and may lose, and that are not cached any more.
    gone: Spans,
    pub(crate) stats: ShardStats,
}

/// How many spans of blocks a shard notes that are neither cached nor stable.
const GONE_MAX: usize = 32;

/// How a transition changed what the page counts for.
#[must_use = "room that is not released is lost"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Pages that ceased to count against the dirty limit.
    pub(crate) room: usize,
}

impl Shard {
    /// The shard of this number, of these frames.
    pub(crate) fn new(
        number: u32,
        frames: Vec<DmaBuf>,
        wanted: Arc<Wanted>,
        stability: Arc<Stability>,
    ) -> Self {
        let total = frames.len();
        let records = (0..total).map(|_| Record::vacant()).collect();
        // Few operations wait at a time; two that share a queue cost a look at each other's key.
        let queues = (total / 64).next_power_of_two().clamp(8, 1024);
        let first_frame = frames.iter().map(DmaBuf::index).min().unwrap_or(0);
        let mut free = FrameSet::default();
        free.extend(frames);
        let (mut links, mut vacant) = (Links::new(total), List::EMPTY);
        (0..total as u32).for_each(|slot| vacant.push_back(&mut links, slot));
        Self {
            index: Index::new(total),
            records: Records { records, reserved: vec![0; total.div_ceil(64)], keep: None },
            links,
            vacant,
            free,
            first_frame,
            lent: 0,
            total,
            target: total,
            frame_waiters: WaitQueue::EMPTY,
            page_waiters: vec![PageQueues::EMPTY; queues].into(),
            page_waiters_len: 0,
            wanted,
            entries: WaitTable::new(Place::Shard(number)),
            dirty: List::EMPTY,
            writeback: List::EMPTY,
            dirty_again: 0,
            policy: Lap::new(total),
            clean: 0,
            troubles: vec![Trouble::default(); total],
            failed: 0,
            troubled: 0,
            trouble_error: None,
            kept: 0,
            gone: Spans::new(if stability.is_volatile() { GONE_MAX } else { 0 }),
            stability,
            stats: ShardStats::default(),
        }
    }

    /// Where lanes whose operations may wait here join and leave.
    pub(crate) fn waiters(&mut self) -> &mut WaitTable {
        &mut self.entries
    }

    /// Takes the entry of an operation off the queue it was left on here; `false` when it has been
    /// woken meanwhile.
    pub(crate) fn cancel_wait(&mut self, entries: &Entries, slot: u32) -> bool {
        let Some((key, wants)) = self.entries.waits_for(entries, slot) else { return false };
        let queue = if key == FOR_A_FRAME {
            &mut self.frame_waiters
        } else {
            self.page_waiters_len -= 1;
            let mask = self.page_waiters.len() - 1;
            let queues = &mut self.page_waiters[key as usize & mask];
            if wants == Wants::Turn { &mut queues.in_turn } else { &mut queues.looking }
        };
        self.entries.remove(queue, entries, slot);
        self.settle_wanted();
        true
    }

    /// The slot of a page that is there.
    #[inline]
    pub(crate) fn find(&self, key: u64) -> Option<u32> {
        self.index.find(hash(key), |slot| self.records[slot].key == Key(key))
    }

    /// The pages that there are: key and slot.
    pub(crate) fn present(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.index.iter().map(|slot| (self.key(slot), slot))
    }

    /// Whether the page of this key was evicted not long ago.
    pub(crate) fn remembers(&self, key: u64) -> bool {
        self.policy.remembers(key)
    }

    /// Bytes of memory beside the frames.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
            + self.records.records.capacity() * size_of::<Record>()
            + self.links.memory_bytes()
            + self.policy.memory_bytes()
            + self.troubles.capacity() * size_of::<Trouble>()
            + self.records.reserved.capacity() * size_of::<u64>()
            + self.page_waiters.len() * size_of::<PageQueues>()
            + self.gone.memory_bytes()
            + self.free.memory_bytes()
    }

    pub(crate) fn page(&self, slot: u32) -> &Page {
        &self.records[slot].page
    }

    pub(crate) fn key(&self, slot: u32) -> u64 {
        self.records[slot].key.0
    }

    /// The number of the frame that the page in a slot has, unless it was given another one while it was
    /// written back: good enough to fetch it while the record is still on its way.
    #[inline]
    pub(crate) fn likely_frame(&self, slot: u32) -> u32 {
        self.first_frame.wrapping_add(slot)
    }

    /// Tells the policy of a use.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32) {
        self.policy.hit(&mut self.links, slot);
    }

    /// What readahead noted on a page that can be read now.
    pub(crate) fn notes(&mut self, slot: u32) -> Option<&mut Notes> {
        self.records[slot].page.notes_mut()
    }

    /// A reader uses the page: the policy is told, unless this is only what it was read ahead for.
    #[inline]
    pub(crate) fn used(&mut self, slot: u32) {
        let page = &mut self.records[slot].page;
        match page.notes_mut() {
            Some(notes) if *notes != Notes::NONE => {
                let was_ahead = notes.contains(Notes::AHEAD);
                *notes = Notes::NONE;
                if was_ahead {
                    self.stats.readahead_used += 1;
                    return;
                }
            }
            _ => {}
        }
        self.touch(slot);
    }

    /// How many wait for pages.
    pub(crate) fn page_waiters_len(&self) -> usize {
        self.page_waiters_len
    }

    /// A slot for the page of `key`, which is not there: absent. There are as many slots as frames, and a
    /// page comes in with a frame in hand, so there is a vacant one.
    ///
    /// It is the one of the same place as the frame among the shard's, if that is vacant, as it nearly
    /// always is: so the frame of a slot can be [guessed](Shard::likely_frame).
    pub(crate) fn add(&mut self, key: u64, frame: &DmaBuf) -> u32 {
        debug_assert!(self.find(key).is_none(), "page {key} is there");
        let own = frame.index().wrapping_sub(self.first_frame);
        let slot = match self.records.records.get(own as usize) {
            Some(Record { page: Page::Absent, .. }) => {
                self.vacant.remove(&mut self.links, own);
                own
            }
            _ => match self.vacant.pop_front(&mut self.links) {
                Some(slot) => slot,
                None => panic!("more pages than frames: {:?}", self.count()),
            },
        };
        self.records[slot].key = Key(key);
        self.index.insert(hash(key), slot);
        self.policy.admit(slot, key);
        slot
    }

    /// Changes a page's state: the one place where pages enter and leave the lists, and where those
    /// who wait for a page are shown what has become of it. A page that becomes absent leaves the shard.
    pub(crate) fn transition<T>(
        &mut self,
        slot: u32,
        wakes: &mut Wakes,
        change: impl FnOnce(Page) -> (Page, T),
    ) -> (T, Released) {
        let record = &mut self.records[slot];
        let mut before = std::mem::replace(&mut record.page, Page::Absent);
        before.prune_unstable(|epoch| self.stability.is_stable(epoch));
        let kind = std::mem::discriminant(&before);
        let had_room = before.holds_room();
        let stood = Standing::of(&before);
        let was_again = stood == Standing::Writeback && before.dirty_since().is_some();
        let (after, value) = change(before);
        let ended = std::mem::discriminant(&after) != kind;
        let released = Released { room: usize::from(had_room && !after.holds_room()) };
        let stands = Standing::of(&after);
        let is_again = stands == Standing::Writeback && after.dirty_since().is_some();
        let gone = matches!(after, Page::Absent);
        record.page = after;
        self.dirty_again = self.dirty_again + usize::from(is_again) - usize::from(was_again);
        if stands != stood {
            self.unlink(slot, stood);
            self.link(slot, stands);
        }
        if !self.records[slot].page.holds_room() {
            let trouble = &mut self.troubles[slot as usize];
            self.failed -= usize::from(trouble.failed());
            let attempts = trouble.forget();
            self.troubled -= usize::from(attempts > 0);
        }
        if ended {
            self.wake_page(slot, wakes);
        }
        if gone {
            self.leave(slot);
        }
        (value, released)
    }

    /// Makes a page forget blocks; see [`Page::forget`].
    pub(crate) fn forget(
        &mut self,
        slot: u32,
        wakes: &mut Wakes,
        blocks: Blocks,
        keep_dirty: bool,
    ) -> (Released, Result<(), Busy>) {
        let forget = |page: Page| match page.forget(blocks, keep_dirty) {
            Ok((page, frame)) => (page, Ok(frame)),
            Err((page, busy)) => (page, Err(busy)),
        };
        let (result, released) = self.transition(slot, wakes, forget);
        let result = result.map(|frame| {
            if let Some(frame) = frame {
                self.detached(frame);
            }
        });
        (released, result)
    }

    /// Lets go of a clean page that nobody uses.
    pub(crate) fn let_go(&mut self, slot: u32, wakes: &mut Wakes) {
        self.note_gone(slot, self.page(slot).unstable(|epoch| self.stability.is_stable(epoch)));
        let (released, result) = self.forget(slot, wakes, Blocks(u8::MAX), false);
        debug_assert!(result.is_ok() && released.room == 0, "a clean page can be forgotten");
    }

    /// The same of those among `blocks` of a page that the device may lose: the cache is about to forget
    /// them, and nobody knows whether something else is there now.
    pub(crate) fn note_forgotten(&mut self, slot: u32, blocks: Blocks) {
        let unstable = self.page(slot).unstable(|epoch| self.stability.is_stable(epoch));
        self.note_gone(slot, unstable.and(blocks));
    }

    /// What was neither cached nor stable of these blocks is stable now.
    pub(crate) fn settle_gone(&mut self, blocks: Range<u64>) {
        self.gone.remove(blocks);
    }

    /// Notes that these blocks of a page are with the device only, which may lose them.
    fn note_gone(&mut self, slot: u32, blocks: Blocks) {
        if blocks.is_empty() {
            return;
        }
        let first = self.key(slot) * self.stability.blocks_per_page();
        let now = self.stability.epoch();
        let epoch = self.page(slot).taken_in().map_or(now, |epoch| epoch.min(now));
        for (at, count) in blocks.runs() {
            let start = first + u64::from(at);
            self.note_span(Span { start, end: start + u64::from(count), epoch });
        }
    }

    /// The same of blocks of pages of this shard that were written past the cache.
    pub(crate) fn note_unstable(&mut self, blocks: Range<u64>) {
        let epoch = self.stability.epoch();
        self.note_span(Span { start: blocks.start, end: blocks.end, epoch });
    }

    fn note_span(&mut self, span: Span) {
        let Self { gone, stability, .. } = self;
        gone.add(span, |span| stability.is_stable(span.epoch));
    }

    /// A device flush has failed: what it may have lost is dirty again. How many pages are dirty that
    /// were not.
    pub(crate) fn take_back(&mut self, wakes: &mut Wakes) -> usize {
        let mut room = 0;
        for slot in 0..self.records.records.len() as u32 {
            let stability = Arc::clone(&self.stability);
            let is_stable = |epoch| stability.is_stable(epoch);
            if self.page(slot).unstable(is_stable).is_empty() {
                continue;
            }
            let had_room = self.page(slot).holds_room();
            let ((), _) = self.transition(slot, wakes, |page| (page.take_back(is_stable), ()));
            room += usize::from(!had_room && self.page(slot).holds_room());
        }
        room
    }

    /// Gives what is neither cached nor stable, and forgets it.
    pub(crate) fn drain_gone(&mut self, mut each: impl FnMut(Range<u64>)) {
        for span in self.gone.drain() {
            if !self.stability.is_stable(span.epoch) {
                each(span.start..span.end);
            }
        }
    }

    /// Shows those who wait for a page its new state: all who only look, and, when it is quiet, the first
    /// who waits for its turn. Of a page that has gone there are no turns: all look for it again.
    fn wake_page(&mut self, slot: u32, wakes: &mut Wakes) {
        let page = &self.records[slot].page;
        if !page.is_quiet() || matches!(page, Page::Absent) {
            // Whose turn it was has begun, or there is nothing left to have one of.
            self.records.reserve(slot, false);
        }
        if self.page_waiters_len == 0 {
            return;
        }
        let page = &self.records[slot].page;
        let mask = self.page_waiters.len() - 1;
        let queues = &mut self.page_waiters[slot as usize & mask];
        let key = u64::from(slot);
        let answer = |wants| wakeup_of(wants, page);
        let mut woken = self.entries.wake(&mut queues.looking, key, usize::MAX, wakes, answer);
        if matches!(page, Page::Absent) {
            let again = |_| Some(Wakeup::Retry);
            woken += self.entries.wake(&mut queues.in_turn, key, usize::MAX, wakes, again);
        }
        self.page_waiters_len -= woken;
        self.hand_turn(slot, wakes);
    }

    /// Hands the turn at a quiet page to the first who waits for it, unless somebody has it.
    fn hand_turn(&mut self, slot: u32, wakes: &mut Wakes) {
        if !self.records[slot].page.is_quiet() || self.records.is_reserved(slot) {
            return;
        }
        let mask = self.page_waiters.len() - 1;
        let queue = &mut self.page_waiters[slot as usize & mask].in_turn;
        let turn = |_| Some(Wakeup::Turn);
        if self.entries.wake(queue, u64::from(slot), 1, wakes, turn) == 1 {
            self.page_waiters_len -= 1;
            self.records.reserve(slot, true);
        }
    }

    /// Whether a page is reserved for somebody: whoever else wants to change it waits for a turn.
    pub(crate) fn is_reserved(&self, slot: u32) -> bool {
        self.records.is_reserved(slot)
    }

    /// Whoever is busy with a page has the next turn at it, too.
    pub(crate) fn reserve(&mut self, slot: u32) {
        self.records.reserve(slot, true);
    }

    /// A turn at a page was not used: it goes to the next. Of a page that has left meanwhile, or that
    /// somebody is busy with, there is nothing to hand on: those who waited were woken, or will be.
    pub(crate) fn return_turn(&mut self, key: u64, wakes: &mut Wakes) {
        let Some(slot) = self.find(key) else { return };
        if self.records[slot].page.is_quiet() {
            self.records.reserve(slot, false);
            self.hand_turn(slot, wakes);
            // It may be evicted again.
            self.hand_over(wakes);
        }
    }

    fn link(&mut self, slot: u32, stands: Standing) {
        match stands {
            Standing::Outside => {}
            Standing::Evictable => {
                self.policy.link(&mut self.links, slot);
                self.clean += 1;
            }
            Standing::Dirty(since) => self.insert_dirty(slot, since),
            Standing::Writeback => self.writeback.push_back(&mut self.links, slot),
        }
    }

    fn unlink(&mut self, slot: u32, stood: Standing) {
        match stood {
            Standing::Outside => {}
            Standing::Evictable => {
                self.policy.unlink(&mut self.links, slot);
                self.clean -= 1;
            }
            Standing::Dirty(_) => self.dirty.remove(&mut self.links, slot),
            Standing::Writeback => self.writeback.remove(&mut self.links, slot),
        }
    }

    /// Mostly at the end: numbers are given out under this lock. A page written again during its
    /// writeback belongs near the end, one whose writeback failed near the front, so its place is
    /// sought from both.
    fn insert_dirty(&mut self, slot: u32, since: u64) {
        let before = self.dirty_before(since);
        self.dirty.insert_after(&mut self.links, before, slot);
    }

    /// The dirty page after which one of this number belongs.
    fn dirty_before(&self, since: u64) -> Option<u32> {
        let mut back = self.dirty.iter_back(&self.links);
        let mut front = self.dirty.iter(&self.links);
        let mut before = None;
        loop {
            let last = back.next()?;
            if self.dirty_since(last) <= since {
                return Some(last);
            }
            match front.next() {
                // Strictly: of many that are taken back, which have the same number, each goes first.
                Some(other) if self.dirty_since(other) < since => before = Some(other),
                _ => return before,
            }
        }
    }

    fn dirty_since(&self, slot: u32) -> u64 {
        self.page(slot).dirty_since().unwrap_or(u64::MAX)
    }

    fn leave(&mut self, slot: u32) {
        let key = self.key(slot);
        if self.index.remove(hash(key), slot) {
            self.vacant.push_front(&mut self.links, slot);
        }
    }

    /// Leaves `waiter` on the page's queue, or of those who wait for a turn at it.
    pub(crate) fn wait_page(&mut self, slot: u32, waiter: Waiter) {
        let mask = self.page_waiters.len() - 1;
        let queues = &mut self.page_waiters[slot as usize & mask];
        let turn = waiter.wants() == Wants::Turn;
        let queue = if turn { &mut queues.in_turn } else { &mut queues.looking };
        self.entries.enqueue(queue, &waiter, u64::from(slot));
        self.page_waiters_len += 1;
    }

    /// Takes a frame: a free one, or that of an evicted page other than `keep`, which the caller
    /// has in hand. Newcomers queue behind those who wait.
    pub(crate) fn take_frame(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if !self.frame_waiters.is_empty() {
            return None;
        }
        self.any_frame(keep)
    }

    /// As [`take_frame`](Shard::take_frame), for readahead: only while more than an eighth of the
    /// frames is free or can be had.
    pub(crate) fn take_spare_frame(&mut self) -> Option<DmaBuf> {
        if self.free.len() + self.clean <= self.total / 8 { None } else { self.take_frame(None) }
    }

    fn any_frame(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if self.free.is_empty() {
            self.evict_some(keep);
        }
        let frame = self.free.pop()?;
        self.lent += 1;
        Some(frame)
    }

    /// Evicts a few pages, so that those who read or write a range get frames that lie side by side: the
    /// oldest pages came in together, and one at a time their frames would come out in the order of the
    /// policy's lists, not of memory. One when there are few, so that little is given up early.
    fn evict_some(&mut self, keep: Option<u32>) {
        for _ in 0..(self.clean / EVICT_PART).clamp(1, EVICT_MAX) {
            let Some(frame) = self.evict(keep) else { break };
            self.free.push(frame);
        }
    }

    fn evict(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if self.clean == 0 {
            return None;
        }
        self.records.keep = keep;
        let slot = self.policy.victim(&mut self.links, &self.records)?;
        self.note_gone(slot, self.page(slot).unstable(|epoch| self.stability.is_stable(epoch)));
        let Page::Clean(content) = std::mem::replace(&mut self.records[slot].page, Page::Absent)
        else {
            unreachable!("only clean pages are usable as victims")
        };
        self.clean -= 1;
        self.stats.evicted += 1;
        self.stats.readahead_wasted += u64::from(content.notes.contains(Notes::AHEAD));
        self.leave(slot);
        let frame = content.frame.release();
        debug_assert!(frame.is_some(), "a victim was pinned");
        frame
    }

    /// Leaves `waiter` on the queue for a frame, or takes one after all. Only after
    /// [`take_frame`](Shard::take_frame) gave none, under the same lock.
    ///
    /// What stood in the way may have been a pin that was dropped, without this lock, after we
    /// looked. So: say that a frame is wanted, then look again; see [`Wanted`].
    pub(crate) fn wait_frame(&mut self, keep: Option<u32>, waiter: Waiter) -> Option<DmaBuf> {
        self.wanted.raise();
        if let Some(frame) = self.take_frame(keep) {
            self.settle_wanted();
            return Some(frame);
        }
        self.stats.frame_waits += 1;
        self.entries.enqueue(&mut self.frame_waiters, &waiter, FOR_A_FRAME);
        None
    }

    /// Ends the waits for a frame when none can come: every frame holds data that cannot be written.
    pub(crate) fn fail_frame_waiters(&mut self, error: IoError, wakes: &mut Wakes) {
        if !self.free.is_empty() || self.clean > 0 || self.lent > self.kept {
            return;
        }
        let answer = |_| Some(Wakeup::Ended(Err(error)));
        self.entries.wake(&mut self.frame_waiters, FOR_A_FRAME, usize::MAX, wakes, answer);
        self.settle_wanted();
    }

    /// Whoever drops a pin need not look here when nobody waits for a frame and none is too many.
    fn settle_wanted(&self) {
        let wanted = self.total > self.target || !self.frame_waiters.is_empty();
        self.wanted.set(wanted);
    }

    /// A frame that was lent is now a page's.
    pub(crate) fn installed(&mut self) {
        self.lent -= 1;
    }

    /// A frame that was lent stays with a device that could not be stopped.
    pub(crate) fn kept_by_device(&mut self) {
        self.kept += 1;
    }

    /// A page's frame has gone from it. If the page's was the last handle the frame is free;
    /// otherwise it is lent until its last holder puts it back.
    pub(crate) fn detached(&mut self, frame: DmaBuf) {
        self.lent += 1;
        if let Some(frame) = frame.release() {
            self.put_frame(frame);
        }
    }

    /// A lent frame comes back, by its last handle.
    pub(crate) fn put_frame(&mut self, frame: DmaBuf) {
        self.lent -= 1;
        self.free.push(frame);
    }

    /// How many pages its tables are for: the most frames that it ever had.
    pub(crate) fn slots(&self) -> usize {
        self.records.records.len()
    }

    /// How many frames it is to have.
    pub(crate) fn target(&self) -> usize {
        self.target
    }

    /// Sets how many frames it is to have, and says how many it has to be [given](Shard::grow). What
    /// is too many goes with the next [`hand_over`](Shard::hand_over).
    pub(crate) fn retarget(&mut self, target: usize) -> usize {
        self.target = target;
        target.saturating_sub(self.total)
    }

    /// More frames, and tables for them.
    pub(crate) fn grow(&mut self, frames: Vec<DmaBuf>) {
        self.total += frames.len();
        self.free.extend(frames);
        let slots = self.records.records.len();
        if self.total <= slots {
            return;
        }
        self.records.records.reserve_exact(self.total - slots);
        self.records.records.resize_with(self.total, Record::vacant);
        self.troubles.reserve_exact(self.total - slots);
        self.troubles.resize(self.total, Trouble::default());
        self.records.reserved.resize(self.total.div_ceil(64), 0);
        self.links.resize(self.total);
        self.policy.resize(self.total);
        let mut index = Index::new(self.total);
        for slot in self.index.iter() {
            index.insert(hash(self.key(slot)), slot);
        }
        self.index = index;
        for slot in slots as u32..self.total as u32 {
            self.vacant.push_back(&mut self.links, slot);
        }
    }

    /// Returns frames to the pool for as long as there are more than there are to be, and some to be
    /// had. Says whether more are to go.
    fn shrink(&mut self) -> bool {
        while self.total > self.target {
            let Some(frame) = self.free.pop().or_else(|| self.evict(None)) else { return true };
            drop(frame);
            self.total -= 1;
        }
        false
    }

    /// Hands what is free or can be evicted to those who wait, in order, when there are not too many
    /// frames. Call it, under the same lock, after whatever may have freed a frame: a frame put back,
    /// a page clean, a pin gone.
    pub(crate) fn hand_over(&mut self, wakes: &mut Wakes) {
        if self.total > self.target {
            // A pin may be what stands in the way; see `wait_frame`.
            self.wanted.raise();
            if self.shrink() {
                return;
            }
        }
        while !self.frame_waiters.is_empty() {
            let Some(frame) = self.any_frame(None) else { return };
            let Some(waiter) = self.entries.pop(&mut self.frame_waiters) else {
                unreachable!("the queue was not empty under this lock")
            };
            wakes.push(waiter, Wakeup::Frame(frame));
        }
        self.settle_wanted();
    }

    /// Pages with dirty blocks that are not under writeback, oldest first.
    pub(crate) fn dirty(&self) -> impl Iterator<Item = u32> + '_ {
        self.dirty.iter(&self.links)
    }

    /// Pages under writeback, dirty again or not.
    pub(crate) fn writing(&self) -> impl Iterator<Item = u32> + '_ {
        self.writeback.iter(&self.links)
    }

    /// Number of pages with dirty blocks, those written again during their writeback included.
    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len() + self.dirty_again
    }

    /// Number of pages under writeback.
    pub(crate) fn writeback_len(&self) -> usize {
        self.writeback.len()
    }

    /// The sequence number of the oldest write that is not on the device yet: dirty, or in flight.
    pub(crate) fn oldest_unwritten(&self) -> Option<u64> {
        let dirty = self.dirty.head().map(|slot| self.dirty_since(slot));
        let written = self
            .writeback
            .iter(&self.links)
            .filter_map(|slot| self.page(slot).written_since())
            .min();
        dirty.into_iter().chain(written).min()
    }

    /// The oldest sequence number of a page's data that is not on the device yet: dirty, or in flight.
    pub(crate) fn unwritten_since(&self, slot: u32) -> Option<u64> {
        let page = self.page(slot);
        page.dirty_since().into_iter().chain(page.written_since()).min()
    }

    /// Writing the page has failed.
    pub(crate) fn failed(&mut self, slot: u32, error: IoError) {
        self.trouble_error = Some(error);
        let trouble = &mut self.troubles[slot as usize];
        if !trouble.failed() {
            trouble.set_failed(true);
            self.troubled += usize::from(trouble.attempts() == 0);
            trouble.count();
            self.failed += 1;
        }
    }

    /// Failed pages are to be tried again, those that have failed as often as `due` says.
    pub(crate) fn retry_failed(&mut self, due: impl Fn(u8) -> bool) {
        if self.failed == 0 {
            return;
        }
        for trouble in self.troubles.iter_mut().filter(|it| it.failed() && due(it.attempts())) {
            trouble.set_failed(false);
            self.failed -= 1;
        }
    }

    /// Failed pages of these are to be tried again.
    pub(crate) fn retry_failed_of(&mut self, pages: &Range<u64>) {
        if self.failed == 0 {
            return;
        }
        for (slot, trouble) in (0..).zip(self.troubles.iter_mut()) {
            let key = self.records[slot].key.0;
            if trouble.failed() && pages.contains(&key) {
                trouble.set_failed(false);
                self.failed -= 1;
            }
        }
    }

    /// How many writebacks of the page have failed since it was last clean.
    pub(crate) fn attempts(&self, slot: u32) -> u8 {
        self.troubles[slot as usize].attempts()
    }

    pub(crate) fn is_failed(&self, slot: u32) -> bool {
        self.troubles[slot as usize].failed()
    }

    /// Number of pages whose writebacks have failed and not succeeded since, when there are some, and how
    /// the last of them failed.
    pub(crate) fn trouble(&self) -> Option<(usize, IoError)> {
        self.trouble_error.filter(|_| self.troubled > 0).map(|error| (self.troubled, error))
    }

    /// Number of pages whose last writeback failed.
    pub(crate) fn failed_len(&self) -> usize {
        self.failed
    }

    /// Where every frame is; `free + cached + lent` is always `total`.
    pub(crate) fn count(&self) -> FrameCount {
        let cached =
            self.records.records.iter().filter(|record| record.page.content().is_some()).count();
        FrameCount { free: self.free.len(), cached, lent: self.lent, total: self.total }
    }

    /// Panics when a frame was lost or a waiter is where nothing will wake it. For tests.
    pub(crate) fn assert_sound(&self) {
        let count = self.count();
        assert_eq!(count.free + count.cached + count.lent, count.total, "{count:?}");
        let mut waiting = 0;
        for queues in &self.page_waiters {
            let looking = self.entries.waiting(&queues.looking);
            for (slot, wants) in looking.into_iter().chain(self.entries.waiting(&queues.in_turn)) {
                let page = &self.records[slot as u32].page;
                // What is quiet and reserved has somebody on his way to it.
                let comes = match wants {
                    Wants::Turn => !page.is_quiet() || self.is_reserved(slot as u32),
                    _ => wakeup_of(wants, page).is_none(),
                };
                assert!(comes, "somebody waits for {page:?}");
                waiting += 1;
            }
        }
        assert_eq!(waiting, self.page_waiters_len, "waiters were miscounted");
        let reserved =
            (0..self.records.records.len() as u32).filter(|slot| self.is_reserved(*slot));
        for slot in reserved {
            let page = &self.records[slot].page;
            assert!(page.is_quiet() && !matches!(page, Page::Absent), "reserved: {page:?}");
        }
    }
}

/// The wake functions of those who wait for a page: what one is woken with when it has come to this state,
/// or `None` when it stays.
fn wakeup_of(wants: Wants, page: &Page) -> Option<Wakeup> {
    let quiet = page.is_quiet();
    match (wants, page.readable()) {
        (_, None) => quiet.then_some(Wakeup::Retry),
        (Wants::Read, Some(content)) => Some(Wakeup::Filled(content.frame.share(), content.valid)),
        (Wants::Look, Some(_)) => Some(Wakeup::Retry),
        (Wants::Quiet, Some(_)) => quiet.then_some(Wakeup::Retry),
        (Wants::Turn | Wants::Anything, Some(_)) => None,
    }
}

/// Where the frames of a shard are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameCount {
    pub(crate) free: usize,
    pub(crate) cached: usize,
    pub(crate) lent: usize,
    pub(crate) total: usize,
}

#[cfg(test)]
mod tests {
    use uaio_driver::block::PollsAnyway;
    use uaio_driver::{DmaPool, IoErrorKind, PoolOptions, Token};

    use super::*;
    use crate::retry::RunQueue;

    /// Puts a page in as a read does; the frame is in hand.
    fn install(shard: &mut Shard, key: u64, frame: DmaBuf, wakes: &mut Wakes) {
        let slot = shard.add(key, &frame);
        let begin = |page: Page| match page.begin_read() {
            Ok(reading) => (reading, ()),
            Err((page, _)) => panic!("a read begins on {page:?}"),
        };
        let ((), _) = shard.transition(slot, wakes, begin);
        let end = |page: Page| page.end_read(Some(frame), Blocks::range(0, 8), true, 512);
        let (left, _) = shard.transition(slot, wakes, end);
        assert!(left.is_none());
        shard.installed();
    }

    #[test]
    fn the_frame_of_a_slot_is_guessed_right_whatever_was_evicted() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let pool = DmaPool::new(PoolOptions::frames(200)).unwrap();
            let mut frames: Vec<DmaBuf> = std::iter::from_fn(|| pool.take()).collect();
            let frames = frames.split_off(100);
            let stability = Stability::new(false, 512);
            let mut shard = Shard::new(0, frames, Arc::new(Wanted::default()), stability);
            let mut wakes = Wakes::default();
            for _ in 0..1000 {
                let key = rng.u64(..300);
                if let Some(slot) = shard.find(key) {
                    shard.used(slot);
                    if rng.u8(..) < 50 {
                        let (_, done) = shard.forget(slot, &mut wakes, Blocks::range(0, 8), false);
                        assert!(done.is_ok());
                    }
                } else if let Some(frame) = shard.take_frame(None) {
                    install(&mut shard, key, frame, &mut wakes);
                }
                shard.assert_sound();
            }
            let mut present = 0;
            for (_, slot) in shard.present() {
                let content = shard.page(slot).readable().unwrap();
                assert_eq!(shard.likely_frame(slot), content.frame.index(), "seed {seed}");
                present += 1;
            }
            assert!(present > 50, "seed {seed}: {present} pages");
        }
    }

    #[test]
    fn frames_that_a_device_keeps_do_not_make_anybody_wait_for_ever() {
        let pool = DmaPool::new(PoolOptions::frames(2)).unwrap();
        let frames = vec![pool.take().unwrap(), pool.take().unwrap()];
        let stability = Stability::new(false, 512);
        let mut shard = Shard::new(0, frames, Arc::new(Wanted::default()), stability);
        let run = RunQueue::new(1, Arc::new(PollsAnyway));
        let entries = Entries::new(0, 1, run.clone());
        shard.waiters().join(&entries);
        let lent = [shard.take_frame(None).unwrap(), shard.take_frame(None).unwrap()];
        let waiter =
            Waiter::new(&entries, Token { slot: 0, generation: 0 }, crate::wait::Wants::Anything);
        assert!(shard.wait_frame(None, waiter).is_none());
        let mut wakes = Wakes::default();
        let gone = IoError::new(IoErrorKind::Gone);
        shard.fail_frame_waiters(gone, &mut wakes);
        wakes.run();
        assert!(run.pop().is_none(), "they may come back");
        let [kept, other] = lent;
        drop(kept);
        shard.kept_by_device();
        shard.fail_frame_waiters(gone, &mut wakes);
        wakes.run();
        assert!(run.pop().is_none(), "one may come back");
        drop(other);
        shard.kept_by_device();
        shard.fail_frame_waiters(gone, &mut wakes);
        wakes.run();
        assert!(matches!(run.pop(), Some((_, Wakeup::Ended(Err(error)))) if error == gone));
    }
}
