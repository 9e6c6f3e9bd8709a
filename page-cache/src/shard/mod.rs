//! A shard: pages, their wait queues, the frames they lie in and the policy that evicts them, all
//! under one lock.
//!
//! Frames belong to a shard for good. So whoever needs one finds the free ones, the evictable pages
//! and the queue of those who wait under the lock it holds anyway, and handing a frame over needs no
//! other. Keys are spread by hash, so the shards fill evenly.
//!
//! | file | one idea |
//! |---|---|
//! | this | pages: found, added, changed, evicted |
//! | `records` | pages by slot |
//! | `resize` | tables that go with the number of frames |
//! | `frames` | which frames are free, and who waits for one |
//! | `turns` | who waits for a page, and whose turn it is |
//! | `unwritten` | what the device does not have yet, in order |
//! | `trouble` | what could not be written |
//! | `unstable` | what the device has and may lose |

mod frames;
mod records;
mod resize;
#[cfg(test)]
mod tests;
mod trouble;
mod turns;
mod unstable;
mod unwritten;

use std::sync::Arc;

use uaio_driver::DmaBuf;

use crate::evict::{Lap, Links, List, Pages, Policy};
use crate::index::{Index, hash};
use crate::page::{Blocks, Busy, Notes, Page};
use crate::stability::{Spans, Stability};
use crate::stats::ShardStats;
use crate::sync::Wanted;
use crate::wait::{Entries, FOR_A_FRAME, Place, WaitTable, Wakes};

pub(crate) use frames::FrameCount;
use frames::Frames;
use records::{Key, Record, Records};
use trouble::Troubles;
use turns::Turns;
use unstable::GONE_MAX;
use unwritten::Unwritten;

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

/// Pages, waiters, frames and policy under one lock.
pub(crate) struct Shard {
    index: Index,
    records: Records,
    /// The links of all lists: a slot is in one of them at most, which follows from its page's
    /// state (see [`Standing`]).
    links: Links,
    /// Slots without a page.
    vacant: List,
    frames: Frames,
    turns: Turns,
    /// Whoever waits, for a page or for a frame.
    entries: WaitTable,
    unwritten: Unwritten,
    troubles: Troubles,
    /// Chooses among the clean pages, which are those in its lists.
    policy: Lap,
    clean: usize,
    stability: Arc<Stability>,
    /// Blocks that the device has taken and may lose, and that are not cached any more.
    gone: Spans,
    pub(crate) stats: ShardStats,
}

/// The clean pages of a shard, for whoever chooses one that goes.
struct Victims<'a> {
    records: &'a Records,
    turns: &'a Turns,
    /// A page that whoever asks has in hand.
    keep: Option<u32>,
}

impl Pages for Victims<'_> {
    fn usable(&self, slot: u32) -> bool {
        // Pins are taken under the shard's lock, so a frame that is not shared stays so.
        matches!(&self.records[slot].page, Page::Clean(content) if !content.frame.is_shared())
            && Some(slot) != self.keep
            && !self.turns.is_reserved(slot)
    }

    fn key(&self, slot: u32) -> u64 {
        self.records[slot].key.0
    }
}

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
        let slots = frames.len();
        let (mut links, mut vacant) = (Links::new(slots), List::EMPTY);
        (0..slots as u32).for_each(|slot| vacant.push_back(&mut links, slot));
        Self {
            index: Index::new(slots),
            records: Records::new(slots),
            links,
            vacant,
            frames: Frames::new(frames, wanted),
            turns: Turns::new(slots),
            entries: WaitTable::new(Place::Shard(number)),
            unwritten: Unwritten::NONE,
            troubles: Troubles::new(slots),
            policy: Lap::new(slots),
            clean: 0,
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
        if key == FOR_A_FRAME {
            self.frames.cancel(&self.entries, entries, slot);
        } else {
            self.turns.cancel(&self.entries, (key as u32, wants), (entries, slot));
        }
        true
    }

    /// The slot of a page that is there.
    #[inline]
    pub(crate) fn find(&self, key: u64) -> Option<u32> {
        self.index.find(hash(key), |slot| self.records[slot].key == Key(key))
    }

    /// A page that is hardly there is looked for soon, and comes in.
    #[inline]
    pub(crate) fn prefetch(&self, key: u64) {
        self.index.prefetch(hash(key));
        self.policy.prefetch(key);
    }

    /// As [`find`](Shard::find), when the page is likely to lie in this slot: then its record alone is
    /// looked at.
    #[inline]
    pub(crate) fn find_at(&self, key: u64, likely: u32) -> Option<u32> {
        match self.records.get(likely) {
            Some(record) if record.key == Key(key) && !matches!(record.page, Page::Absent) => {
                Some(likely)
            }
            Some(_) | None => self.find(key),
        }
    }

    /// The slot that a page with this frame is likely to have.
    #[inline]
    pub(crate) fn likely_slot(&self, frame: &DmaBuf) -> u32 {
        self.frames.own_slot(frame)
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
            + self.records.memory_bytes()
            + self.links.memory_bytes()
            + self.frames.memory_bytes()
            + self.turns.memory_bytes()
            + self.troubles.memory_bytes()
            + self.policy.memory_bytes()
            + self.gone.memory_bytes()
    }

    /// How many pages its tables are for: no fewer than there are frames, and not many more.
    pub(crate) fn slots(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn page(&self, slot: u32) -> &Page {
        &self.records[slot].page
    }

    pub(crate) fn key(&self, slot: u32) -> u64 {
        self.records[slot].key.0
    }

    /// The number of the frame that the page in a slot has, unless it was given another one while it was
    /// written back, or the shard has become smaller since: good enough to fetch it while the record is still on
    /// its way.
    #[inline]
    pub(crate) fn likely_frame(&self, slot: u32) -> u32 {
        self.frames.frame_of(slot)
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

    /// A slot for the page of `key`, which is not there: absent. There are as many slots as frames, and a
    /// page comes in with a frame in hand, so there is a vacant one.
    ///
    /// It is the one of the same place as the frame among the shard's, if that is vacant, as it nearly
    /// always is: so the frame of a slot can be [guessed](Shard::likely_frame).
    pub(crate) fn add(&mut self, key: u64, frame: &DmaBuf) -> u32 {
        debug_assert!(self.find(key).is_none(), "page {key} is there");
        let own = self.frames.own_slot(frame);
        let slot = match self.records.get(own) {
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
        let again = &mut self.unwritten.again;
        *again = *again + usize::from(is_again) - usize::from(was_again);
        if stands != stood {
            self.unlink(slot, stood);
            self.link(slot, stands);
        }
        if !self.records[slot].page.holds_room() {
            self.troubles.forget(slot);
        }
        if ended {
            let page = &self.records[slot].page;
            self.turns.wake(&self.entries, slot, page, wakes);
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

    fn link(&mut self, slot: u32, stands: Standing) {
        match stands {
            Standing::Outside => {}
            Standing::Evictable => {
                self.policy.link(&mut self.links, slot);
                self.clean += 1;
            }
            Standing::Dirty(since) => self.insert_dirty(slot, since),
            Standing::Writeback => self.unwritten.writeback.push_back(&mut self.links, slot),
        }
    }

    fn unlink(&mut self, slot: u32, stood: Standing) {
        match stood {
            Standing::Outside => {}
            Standing::Evictable => {
                self.policy.unlink(&mut self.links, slot);
                self.clean -= 1;
            }
            Standing::Dirty(_) => self.unwritten.dirty.remove(&mut self.links, slot),
            Standing::Writeback => self.unwritten.writeback.remove(&mut self.links, slot),
        }
    }

    fn leave(&mut self, slot: u32) {
        let key = self.key(slot);
        if self.index.remove(hash(key), slot) {
            self.vacant.push_front(&mut self.links, slot);
        }
    }

    fn evict(&mut self, keep: Option<u32>) -> Option<DmaBuf> {
        if self.clean == 0 {
            return None;
        }
        let victims = Victims { records: &self.records, turns: &self.turns, keep };
        let slot = self.policy.victim(&mut self.links, &victims)?;
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

    /// Where every frame is; `free + cached + lent` is always `total`.
    pub(crate) fn count(&self) -> FrameCount {
        let cached = self.records.iter().filter(|record| record.page.content().is_some()).count();
        self.frames.count(cached)
    }

    /// Panics when a frame was lost or a waiter is where nothing will wake it. For tests.
    pub(crate) fn assert_sound(&self) {
        let count = self.count();
        assert_eq!(count.free + count.cached + count.lent, count.total, "{count:?}");
        self.turns.assert_sound(&self.entries, &self.records);
    }
}
