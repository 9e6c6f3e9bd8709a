//! Tables that grow and shrink with the number of frames.
//!
//! Both take as long as there are pages in the shard, under its lock, and allocate: once for each size that somebody
//! asks for. Whoever returns frames that are too many makes the tables smaller. Pages that lie in slots
//! which go then are given others, and keep their places in all lists and queues; who knows a page by its slot and
//! lets the lock go in between, as a writer does who copies, looks for it again.

use uaio_driver::DmaBuf;

use crate::evict::{List, Policy};
use crate::index::{Index, hash};
use crate::page::Page;

use super::{Shard, Standing};

/// Tables for up to so much more than the frames are left as they are, a part of them: it is little (64 bytes of
/// 4096 for an eighth are a part in 512 of the frames), and lanes that come and go under a limit of memory change
/// the number of frames by less.
const SLACK_PART: usize = 8;

/// Pages that were given other slots: from where to where, by the former.
pub(super) struct Moved(Vec<(u32, u32)>);

impl Moved {
    /// The slot that a page has now.
    pub(super) fn slot(&self, slot: u32) -> u32 {
        match self.0.binary_search_by_key(&slot, |(from, _)| *from) {
            Ok(at) => self.0[at].1,
            Err(_) => slot,
        }
    }
}

impl Shard {
    /// More frames, and tables for them.
    pub(crate) fn grow(&mut self, frames: Vec<DmaBuf>) {
        self.frames.extend(frames);
        let (old, slots) = (self.slots(), self.frames.total());
        if slots <= old {
            return;
        }
        self.links.resize(slots);
        for slot in old as u32..slots as u32 {
            self.vacant.push_back(&mut self.links, slot);
        }
        self.resize_tables(slots, &Moved(Vec::new()));
    }

    /// Makes the tables smaller, when they are for many more pages than there are frames.
    pub(super) fn shrink_tables(&mut self) {
        let (old, slots) = (self.slots(), self.frames.total());
        if old - slots <= old / SLACK_PART {
            return;
        }
        let mut moved = Vec::new();
        let (mut vacant, mut above) = (List::EMPTY, Vec::new());
        while let Some(slot) = self.vacant.pop_front(&mut self.links) {
            if (slot as usize) < slots {
                vacant.push_back(&mut self.links, slot);
            } else {
                above.push(slot);
            }
        }
        above.sort_unstable();
        for from in slots as u32..old as u32 {
            if above.binary_search(&from).is_ok() {
                continue;
            }
            // There are no more pages than frames.
            let Some(to) = vacant.pop_front(&mut self.links) else {
                panic!("more pages than frames: {:?}", self.count())
            };
            self.move_page(from, to);
            moved.push((from, to));
        }
        self.vacant = vacant;
        self.links.resize(slots);
        self.resize_tables(slots, &Moved(moved));
    }

    /// Gives a page another slot, a vacant one that is in no list.
    fn move_page(&mut self, from: u32, to: u32) {
        match Standing::of(&self.records[from].page) {
            // The policy has those that are in its lists, and a mark of every page.
            Standing::Outside | Standing::Evictable => {}
            Standing::Dirty(_) => self.unwritten.dirty.replace(&mut self.links, from, to),
            Standing::Writeback => self.unwritten.writeback.replace(&mut self.links, from, to),
        }
        self.policy.moved(&mut self.links, from, to);
        self.troubles.moved(from, to);
        self.records.moved(from, to);
        debug_assert!(matches!(self.records[from].page, Page::Absent));
    }

    /// Everything by slot but for the links. What goes is vacant.
    fn resize_tables(&mut self, slots: usize, moved: &Moved) {
        let mut index = Index::new(slots);
        for slot in self.index.iter().map(|slot| moved.slot(slot)) {
            index.insert(hash(self.key(slot)), slot);
        }
        self.index = index;
        self.records.resize(slots);
        self.troubles.resize(slots);
        self.policy.resize(slots);
        self.turns.resize(&self.entries, slots, moved);
    }
}
