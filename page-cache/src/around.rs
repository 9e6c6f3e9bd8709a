//! Reading around: reads at random that come close to each other bring in what lies between them.
//!
//! A program that warms up (a database after its start, a scan in the order of an index) reads all of a
//! region, a page at a time and in no order that a stream could tell. Each of its reads is one command;
//! most disks do several pages in nearly the time of one. So the cache notes where in each *extent* of
//! 256 KiB reads missed, and when they have missed in eight different places the pages that are
//! absent from it are read ahead. InnoDB's random read-ahead is the model (13 of 64 pages
//! there, MySQL reference manual, `innodb_random_read_ahead`).
//!
//! It is a guess, so it takes only what nobody else wants: **frames that are free**, as long as an
//! eighth of their shard is. A cache that is full reads nothing around, and so the guesses of its whole
//! life cost at most one filling of it. [`Advice::Random`](crate::Advice::Random) turns it off for a
//! handle.
//!
//! Extents are found by number in a table of fixed size, where one takes another's place.

use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of an extent: as many as two bits of a word are.
pub(crate) const EXTENT_PAGES: u64 = 64;
/// Pages that share a place, a bit of half a word.
const PLACE_PAGES: u64 = 2;
/// In so many places reads must have missed.
const ENOUGH: u32 = 8;
/// Extents in the table: for twice as many pages as the cache has, but no fewer and no more than these.
const EXTENTS_MIN: usize = 64;
const EXTENTS_MAX: usize = 1 << 16;

/// Where reads at random have missed lately.
///
/// Words of the standard library also where a model checker looks on, and no order between them: what is
/// lost when two threads note something at once is part of a guess.
pub(crate) struct Around {
    /// The upper half says of which extent, the lower has a bit for each place.
    extents: Box<[AtomicU64]>,
}

impl Around {
    pub(crate) fn new(frames: usize) -> Self {
        let count = (2 * frames / EXTENT_PAGES as usize).next_power_of_two();
        let count = count.clamp(EXTENTS_MIN, EXTENTS_MAX);
        Self { extents: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.extents)
    }

    /// Takes down a read at random of this page. Says that there were enough in its extent: then it begins
    /// anew, and the first page of the extent is what it gives.
    pub(crate) fn note(&self, page: u64) -> Option<u64> {
        let (known, name) = self.extent(page);
        let word = known.load(Ordering::Relaxed);
        let places = if word >> 32 == name { word as u32 } else { 0 };
        let places = places | 1 << (page % EXTENT_PAGES / PLACE_PAGES);
        let enough = places.count_ones() >= ENOUGH;
        let places = if enough { 0 } else { places };
        known.store(name << 32 | u64::from(places), Ordering::Relaxed);
        enough.then_some(page - page % EXTENT_PAGES)
    }

    /// Not all of the extent of this page could be asked for: the next read that misses in it is enough.
    pub(crate) fn again(&self, page: u64) {
        let (known, name) = self.extent(page);
        known.store(name << 32 | u64::from(u32::MAX), Ordering::Relaxed);
    }

    /// The extent of a page: its word, and its name there.
    fn extent(&self, page: u64) -> (&AtomicU64, u64) {
        let number = page / EXTENT_PAGES;
        let name = (number / self.extents.len() as u64) & u64::from(u32::MAX);
        (&self.extents[number as usize & (self.extents.len() - 1)], name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_is_told_of_when_reads_missed_in_eight_places_of_it() {
        let around = Around::new(1024);
        for time in 0..3 {
            // Pages that share a place, and one that is read again, count once.
            for page in [640, 641, 640, 644, 650, 660, 670, 672, 680, 681] {
                assert_eq!(around.note(page), None, "time {time}, page {page}");
            }
            assert_eq!(around.note(703), Some(640), "time {time}");
        }
        around.again(700);
        assert_eq!(around.note(641), Some(640));
        assert_eq!(around.note(641), None);
    }

    #[test]
    fn extents_that_share_a_word_take_each_others_place() {
        let around = Around::new(0);
        let other = EXTENTS_MIN as u64 * EXTENT_PAGES;
        for page in 0..7 {
            assert_eq!(around.note(2 * page), None);
        }
        assert_eq!(around.note(other), None);
        for page in 0..7 {
            assert_eq!(around.note(2 * page), None);
        }
        assert_eq!(around.note(20), Some(0));
        assert_eq!(around.memory_bytes(), 8 * EXTENTS_MIN);
    }
}
