//! What the device has taken and may lose, of a shard's pages: see [`crate::stability`].

use std::ops::Range;
use std::sync::Arc;

use crate::page::Blocks;
use crate::stability::Span;
use crate::wait::Wakes;

use super::Shard;

/// How many spans of blocks a shard notes that are neither cached nor stable.
pub(super) const GONE_MAX: usize = 32;

impl Shard {
    /// Notes those among `blocks` of a page that the device may lose: the cache is about to forget
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
    pub(super) fn note_gone(&mut self, slot: u32, blocks: Blocks) {
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
        for slot in 0..self.records.len() as u32 {
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
}
