//! Where a page is: from its number to its slot, in one cache line.
//!
//! Open addressing by chunks of a cache line: fifteen entries and a count. An entry is the slot, in as many
//! low bits as the slots need, and bits of the key's hash above, so that a search reads one line and
//! then, almost always, only the record that it was for. A key that finds its chunk full goes to the
//! next, and is counted in each that it passed over: a search goes on only from a chunk that somebody was counted in,
//! and taking a key out leaves no mark behind.

use uaio_driver::prefetch;

/// Entries in a chunk; with the count it is one cache line.
const WAYS: usize = 15;
/// Chunks are filled up to here on the average: 12.6 of 15, 5 bytes a page. Above, few are passed
/// over by others.
const FILL_PERCENT: usize = 84;
/// No slot; nobody has this many.
const EMPTY: u32 = u32::MAX;

#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Chunk {
    entries: [u32; WAYS],
    /// How many keys belong here or before, and lie behind.
    passed: u32,
}

const _: () = assert!(size_of::<Chunk>() == 64);

const EMPTY_CHUNK: Chunk = Chunk { entries: [EMPTY; WAYS], passed: 0 };

/// Slots by the hash of their key. Who asks says which slots hold the key.
#[derive(Debug)]
pub(crate) struct Index {
    chunks: Box<[Chunk]>,
    len: usize,
    /// The bits of an entry that are the slot.
    slot_mask: u32,
}

/// Spreads a page number over 64 bits (the multiplier of Fibonacci hashing).
#[inline]
pub(crate) fn hash(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl Index {
    /// For slots below `slots`.
    pub(crate) fn new(slots: usize) -> Self {
        let chunks = (slots * 100).div_ceil(WAYS * FILL_PERCENT) + 1;
        // One more than the slots, so that no entry is all ones.
        let slot_mask = ((slots + 1).next_power_of_two() - 1) as u32;
        Self { chunks: vec![EMPTY_CHUNK; chunks].into(), len: 0, slot_mask }
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.chunks)
    }

    /// Every slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let entries = self.chunks.iter().flat_map(|chunk| chunk.entries);
        entries.filter(|entry| *entry != EMPTY).map(|entry| entry & self.slot_mask)
    }

    /// The chunk that a key belongs to, from the upper half of its hash.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        // The shard was chosen by other bits: of the hash of a group of pages.
        ((u64::from((hash as u32).wrapping_mul(0x9e37_79b1)) * self.chunks.len() as u64) >> 32)
            as usize
    }

    #[inline]
    fn tag(&self, hash: u64) -> u32 {
        (hash >> 32) as u32 & !self.slot_mask
    }

    #[inline]
    fn after(&self, chunk: usize) -> usize {
        if chunk + 1 == self.chunks.len() { 0 } else { chunk + 1 }
    }

    /// A key of this hash is looked for soon.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(&raw const self.chunks[self.home(hash)]);
    }

    /// The slot of the key of this hash that `is_it` says yes to.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = self.tag(hash);
        let mut at = self.home(hash);
        loop {
            let chunk = &self.chunks[at];
            let mut matches = 0u32;
            for (way, entry) in chunk.entries.iter().enumerate() {
                matches |= u32::from(entry & !self.slot_mask == tag) << way;
            }
            while matches != 0 {
                let entry = chunk.entries[matches.trailing_zeros() as usize];
                let slot = entry & self.slot_mask;
                if entry != EMPTY && is_it(slot) {
                    return Some(slot);
                }
                matches &= matches - 1;
            }
            if chunk.passed == 0 {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Puts a slot in, whose key is not there.
    ///
    /// # Panics
    ///
    /// When there are more than it was made for.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32) {
        assert!(self.len < self.chunks.len() * WAYS && slot < self.slot_mask, "the index is full");
        let entry = self.tag(hash) | slot;
        let mut at = self.home(hash);
        loop {
            let next = self.after(at);
            let chunk = &mut self.chunks[at];
            if let Some(way) = chunk.entries.iter_mut().find(|entry| **entry == EMPTY) {
                *way = entry;
                self.len += 1;
                return;
            }
            chunk.passed += 1;
            at = next;
        }
    }

    /// Takes a slot out; says whether it was there.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let entry = self.tag(hash) | slot;
        let home = self.home(hash);
        let mut at = home;
        let way = loop {
            let chunk = &self.chunks[at];
            if let Some(way) = chunk.entries.iter().position(|other| *other == entry) {
                break way;
            }
            if chunk.passed == 0 {
                return false;
            }
            at = self.after(at);
        };
        self.chunks[at].entries[way] = EMPTY;
        let mut passed = home;
        while passed != at {
            self.chunks[passed].passed -= 1;
            passed = self.after(passed);
        }
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn behaves_like_a_map_up_to_its_last_slot() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for slots in [1, 16, 17, 300, 1023, 1024] {
            let mut index = Index::new(slots);
            let mut keys = vec![None; slots];
            let mut oracle = HashMap::new();
            for _ in 0..slots * 20 {
                let key = random.u64(..slots as u64 * 2);
                let find = |index: &Index, keys: &[Option<u64>], key| {
                    index.find(hash(key), |slot| keys[slot as usize] == Some(key))
                };
                assert_eq!(find(&index, &keys, key), oracle.get(&key).copied());
                // Full most of the time.
                if let Some(slot) = oracle.get(&key).copied() {
                    if random.u8(..4) == 0 {
                        assert!(index.remove(hash(key), slot));
                        assert!(!index.remove(hash(key), slot));
                        keys[slot as usize] = None;
                        oracle.remove(&key);
                    }
                } else if let Some(slot) = keys.iter().position(Option::is_none) {
                    index.insert(hash(key), slot as u32);
                    keys[slot] = Some(key);
                    oracle.insert(key, slot as u32);
                }
                assert_eq!(index.len, oracle.len());
            }
            let mut all: Vec<u32> = index.iter().collect();
            all.sort_unstable();
            let mut slots: Vec<u32> = oracle.values().copied().collect();
            slots.sort_unstable();
            assert_eq!(all, slots);
        }
    }

    #[test]
    fn a_search_in_a_full_index_looks_at_little_more_than_one_line() {
        let slots = 100_000;
        let mut index = Index::new(slots);
        (0..slots as u64).for_each(|key| index.insert(hash(key * 3), key as u32));
        let passed: u64 = index.chunks.iter().map(|chunk| u64::from(chunk.passed)).sum();
        assert!(passed < slots as u64 / 10, "{passed} of {slots} keys lie behind a full chunk");
        assert!(index.memory_bytes() < slots * 53 / 10, "{}", index.memory_bytes());
    }
}
