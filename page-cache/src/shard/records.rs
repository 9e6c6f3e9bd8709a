//! The pages of a shard by slot.

use crate::page::Page;

/// A page's number; aligned like the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(2))]
pub(super) struct Key(pub(super) u64);

/// A page's place in the shard. The key and the page lie together, so that a hit takes one miss for both; there
/// are as many as frames, so they are as small as they can be.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) key: Key,
    pub(super) page: Page,
}

impl Record {
    fn vacant() -> Self {
        Self { key: Key(0), page: Page::Absent }
    }
}

const _: () = assert!(size_of::<Record>() <= 40);

/// The records of a shard, by slot.
pub(super) struct Records(Vec<Record>);

impl std::ops::Index<u32> for Records {
    type Output = Record;

    #[inline]
    fn index(&self, slot: u32) -> &Record {
        &self.0[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Records {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.0[slot as usize]
    }
}

impl Records {
    /// So many, without a page.
    pub(super) fn new(slots: usize) -> Self {
        Self((0..slots).map(|_| Record::vacant()).collect())
    }

    /// How many pages there can be.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Record> {
        self.0.get(slot as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter()
    }

    /// For so many from now on; what goes is vacant.
    pub(super) fn resize(&mut self, slots: usize) {
        self.0.reserve_exact(slots.saturating_sub(self.0.len()));
        self.0.resize_with(slots, Record::vacant);
        self.0.shrink_to_fit();
    }

    /// A page gets another slot, which is vacant.
    pub(super) fn moved(&mut self, from: u32, to: u32) {
        self.0.swap(from as usize, to as usize);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Record>()
    }
}
