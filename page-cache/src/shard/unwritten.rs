//! Pages whose data the device does not have yet, in the order in which they are to be written.

use crate::evict::List;

use super::Shard;

/// The lists of a shard's unwritten pages.
pub(super) struct Unwritten {
    /// Pages with dirty blocks that are not under writeback, by the sequence number of the oldest.
    pub(super) dirty: List,
    /// Pages under writeback, in the order it was started.
    pub(super) writeback: List,
    /// How many of those are dirty again.
    pub(super) again: usize,
}

impl Unwritten {
    pub(super) const NONE: Self = Self { dirty: List::EMPTY, writeback: List::EMPTY, again: 0 };
}

impl Shard {
    /// Pages with dirty blocks that are not under writeback, oldest first.
    pub(crate) fn dirty(&self) -> impl Iterator<Item = u32> + '_ {
        self.unwritten.dirty.iter(&self.links)
    }

    /// Pages under writeback, dirty again or not.
    pub(crate) fn writing(&self) -> impl Iterator<Item = u32> + '_ {
        self.unwritten.writeback.iter(&self.links)
    }

    /// Number of pages with dirty blocks, those written again during their writeback included.
    pub(crate) fn dirty_len(&self) -> usize {
        self.unwritten.dirty.len() + self.unwritten.again
    }

    /// Number of pages under writeback.
    pub(crate) fn writeback_len(&self) -> usize {
        self.unwritten.writeback.len()
    }

    /// The sequence number of the oldest write that is not on the device yet: dirty, or in flight.
    pub(crate) fn oldest_unwritten(&self) -> Option<u64> {
        let dirty = self.unwritten.dirty.head().map(|slot| self.dirty_since(slot));
        let written = self
            .unwritten
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

    /// Mostly at the end: numbers are given out under this lock. A page written again during its
    /// writeback belongs near the end, one whose writeback failed near the front, so its place is
    /// sought from both.
    pub(super) fn insert_dirty(&mut self, slot: u32, since: u64) {
        let before = self.dirty_before(since);
        self.unwritten.dirty.insert_after(&mut self.links, before, slot);
    }

    /// The dirty page after which one of this number belongs.
    fn dirty_before(&self, since: u64) -> Option<u32> {
        let mut back = self.unwritten.dirty.iter_back(&self.links);
        let mut front = self.unwritten.dirty.iter(&self.links);
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
}
