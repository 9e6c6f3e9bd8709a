//! Which page goes when a frame is needed.
//!
//! A policy sees slots of one shard, under its lock: a hit costs a store, never another lock. The
//! cache uses [`S3Fifo`]; [`Lru`] is there to compare with.

use crate::list::List;

/// Chooses victims among the pages of one shard. Called under the shard's lock.
pub trait Policy: Send {
    /// A page came in, in `slot`; `key` names it also after it has left.
    fn insert(&mut self, slot: u32, key: u64);

    /// The page in `slot` was used again.
    fn hit(&mut self, slot: u32);

    /// The page in `slot` has left other than as a victim.
    fn remove(&mut self, slot: u32);

    /// The page that goes, of those that `usable` allows; it has left the policy's lists. `None`
    /// when no page is usable. Calls `usable` at most a few times for each page.
    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32>;
}

/// S3-FIFO (Yang et al., *FIFO queues are all you need for cache eviction*, SOSP '23): a small
/// queue takes what is new, and only what is used again while there reaches the main queue, so a
/// scan passes through a tenth of the cache. Pages that left the small queue are remembered, without
/// their frame, for as long as the main queue is; one that comes back goes to the main queue at once.
#[derive(Debug)]
pub struct S3Fifo {
    small: List,
    main: List,
    /// Uses since the page came or was last passed over, up to 3.
    uses: Vec<u8>,
    keys: Vec<u64>,
    small_target: usize,
    ghosts: Ghosts,
}

impl S3Fifo {
    /// For a shard of `slots` pages.
    pub fn new(slots: usize) -> Self {
        Self {
            small: List::new(slots),
            main: List::new(slots),
            uses: vec![0; slots],
            keys: vec![0; slots],
            small_target: (slots / 10).max(1),
            ghosts: Ghosts::new(slots),
        }
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, slot: u32, key: u64) {
        self.uses[slot as usize] = 0;
        self.keys[slot as usize] = key;
        if self.ghosts.take(key) {
            self.main.push_back(slot);
        } else {
            self.small.push_back(slot);
        }
    }

    fn hit(&mut self, slot: u32) {
        let uses = &mut self.uses[slot as usize];
        // A page in use is at 3 already, and a line that is not written need not be owned.
        if *uses < 3 {
            *uses += 1;
        }
    }

    fn remove(&mut self, slot: u32) {
        self.small.remove(slot);
        self.main.remove(slot);
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        // Every page of the main queue is passed over at most once for each of its uses and once
        // more; past that nothing there is usable. Each page of the small queue leaves it.
        let mut main_left = 4 * (self.small.len() + self.main.len());
        loop {
            let main_done = self.main.len() == 0 || main_left == 0;
            if main_done && self.small.len() == 0 {
                // What came over from the small queue last has not been looked at.
                let slot = self.main.iter().find(|slot| usable(*slot))?;
                self.main.remove(slot);
                return Some(slot);
            }
            let from_small = main_done || self.small.len() >= self.small_target;
            let queue = if from_small { &mut self.small } else { &mut self.main };
            main_left -= usize::from(!from_small);
            let Some(slot) = queue.pop_front() else { continue };
            let uses = &mut self.uses[slot as usize];
            match (from_small, *uses) {
                (true, 2..) => {
                    *uses = 0;
                    self.main.push_back(slot);
                }
                (true, _) if usable(slot) => {
                    self.ghosts.put(self.keys[slot as usize]);
                    return Some(slot);
                }
                // Not usable now, dirty perhaps: out of the way of the small queue, or a small queue
                // full of dirty pages would be walked for every frame.
                (true, _) => self.main.push_back(slot),
                (false, 1..) => {
                    *uses -= 1;
                    self.main.push_back(slot);
                }
                (false, 0) if usable(slot) => return Some(slot),
                (false, 0) => self.main.push_back(slot),
            }
        }
    }
}

/// Keys of pages that have left, first in, first out, `capacity` of them at most: a table of
/// fingerprints, each with the time it was put in, counted in puts. 8 bytes an entry.
#[derive(Debug)]
struct Ghosts {
    table: Vec<(u32, u32)>,
    clock: u32,
    capacity: u32,
}

impl Ghosts {
    fn new(capacity: usize) -> Self {
        // Twice as many places as entries, so that few are overwritten before their time.
        let places = (capacity * 2).next_power_of_two();
        Self { table: vec![(0, 0); places], clock: capacity as u32 + 1, capacity: capacity as u32 }
    }

    fn place(&self, key: u64) -> (usize, u32) {
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let fingerprint = (hash as u32) | 1;
        ((hash >> 32) as usize & (self.table.len() - 1), fingerprint)
    }

    fn put(&mut self, key: u64) {
        let (place, fingerprint) = self.place(key);
        self.clock = self.clock.wrapping_add(1);
        self.table[place] = (fingerprint, self.clock);
    }

    fn take(&mut self, key: u64) -> bool {
        let (place, fingerprint) = self.place(key);
        let (found, since) = self.table[place];
        let there = found == fingerprint && self.clock.wrapping_sub(since) < self.capacity;
        if there {
            self.table[place] = (0, 0);
        }
        there
    }
}

/// Least recently used, to compare with.
#[derive(Debug)]
pub struct Lru {
    list: List,
}

impl Lru {
    /// For a shard of `slots` pages.
    pub fn new(slots: usize) -> Self {
        Self { list: List::new(slots) }
    }
}

impl Policy for Lru {
    fn insert(&mut self, slot: u32, _key: u64) {
        self.list.push_back(slot);
    }

    fn hit(&mut self, slot: u32) {
        self.list.remove(slot);
        self.list.push_back(slot);
    }

    fn remove(&mut self, slot: u32) {
        self.list.remove(slot);
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let slot = self.list.iter().find(|slot| usable(*slot))?;
        self.list.remove(slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Misses of a policy with `slots` pages on a stream of keys.
    fn misses(mut policy: impl Policy, slots: usize, keys: impl Iterator<Item = u64>) -> usize {
        let mut cached = HashMap::new();
        let mut held = vec![0; slots];
        let mut vacant: Vec<u32> = (0..slots as u32).collect();
        let mut misses = 0;
        for key in keys {
            if let Some(slot) = cached.get(&key) {
                policy.hit(*slot);
                continue;
            }
            misses += 1;
            let slot = vacant.pop().unwrap_or_else(|| {
                let slot = policy.victim(&mut |_| true).expect("every page is usable");
                cached.remove(&held[slot as usize]);
                slot
            });
            cached.insert(key, slot);
            held[slot as usize] = key;
            policy.insert(slot, key);
        }
        misses
    }

    /// A working set of 80 pages in a cache of 100, with a scan of 300 others now and then.
    fn scanned() -> impl Iterator<Item = u64> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut next = 1000;
        (0..200).flat_map(move |round| {
            let mut keys: Vec<u64> = (0..400).map(|_| random.u64(..80)).collect();
            if round % 4 == 3 {
                keys.extend(next..next + 300);
                next += 300;
            }
            keys
        })
    }

    #[test]
    fn a_scan_does_not_take_the_working_set_with_it() {
        let scans = 50 * 300;
        let s3 = misses(S3Fifo::new(100), 100, scanned()) - scans;
        let lru = misses(Lru::new(100), 100, scanned()) - scans;
        assert!(lru > 50 * 75, "LRU was expected to lose its set to every scan: {lru}");
        assert!(s3 * 4 < lru, "S3-FIFO lost {s3} of the set, LRU {lru}");
    }

    #[test]
    fn only_usable_pages_go_and_all_of_them_do() {
        for mut policy in [
            Box::new(S3Fifo::new(20)) as Box<dyn Policy>,
            Box::new(Lru::new(20)) as Box<dyn Policy>,
        ] {
            for slot in 0..20 {
                policy.insert(slot, u64::from(slot));
                (0..slot % 5).for_each(|_| policy.hit(slot));
            }
            policy.remove(3);
            let mut gone = Vec::new();
            while let Some(slot) = policy.victim(&mut |slot| slot % 2 == 1) {
                gone.push(slot);
            }
            gone.sort_unstable();
            assert_eq!(gone, [1, 5, 7, 9, 11, 13, 15, 17, 19]);
            assert_eq!(policy.victim(&mut |_| false), None);
        }
    }
}
