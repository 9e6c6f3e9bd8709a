//! Pages that have left, remembered without their frames.

use uaio_driver::prefetch;

/// Fingerprints in a bucket: one cache line.
const WAYS: usize = 32;

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Bucket([u16; WAYS]);

impl Bucket {
    /// The newest way that holds a fingerprint. Nearly always none does, so all are compared at once.
    #[inline]
    fn way_of(&self, fingerprint: u16) -> Option<usize> {
        let ways = self.0.iter().enumerate();
        let held =
            ways.fold(0u32, |held, (way, other)| held | u32::from(*other == fingerprint) << way);
        (held != 0).then(|| held.trailing_zeros() as usize)
    }
}

/// Keys of pages that have left, about `capacity` of them, 2 bytes each.
///
/// A key belongs to one bucket, which keeps the fingerprints of the last 32 put into it, newest
/// first. Keys are spread evenly, so a fingerprint's place in its bucket tells how many have been put
/// into the whole table since: the age costs no memory. Two keys in 2000 are taken for one
/// that is not there; a page is then treated as if it had been here before, and no harm is done.
#[derive(Debug)]
pub(crate) struct Ghosts {
    buckets: Vec<Bucket>,
}

impl Ghosts {
    /// Remembers about `capacity` keys.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { buckets: vec![Bucket([0; WAYS]); capacity.div_ceil(WAYS).max(1)] }
    }

    /// Remembers about this many from now on, and forgets all.
    pub(crate) fn resize(&mut self, capacity: usize) {
        *self = Self::new(capacity);
    }

    /// The bucket, and a fingerprint that is not 0.
    fn place(&self, key: u64) -> (usize, u16) {
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let bucket = ((hash >> 32) * self.buckets.len() as u64) >> 32;
        (bucket as usize, (hash as u16).max(1))
    }

    /// A key is asked for soon.
    pub(crate) fn prefetch(&self, key: u64) {
        prefetch(&raw const self.buckets[self.place(key).0]);
    }

    pub(crate) fn put(&mut self, key: u64) {
        let (bucket, fingerprint) = self.place(key);
        let ways = &mut self.buckets[bucket].0;
        ways.copy_within(..WAYS - 1, 1);
        ways[0] = fingerprint;
    }

    /// How many keys have been put in since `key` was, about, if it is remembered.
    pub(crate) fn age(&self, key: u64) -> Option<u64> {
        let (bucket, fingerprint) = self.place(key);
        let way = self.buckets[bucket].way_of(fingerprint)?;
        Some((way * self.buckets.len()) as u64)
    }

    /// As [`age`](Ghosts::age), and forgets it.
    pub(crate) fn take(&mut self, key: u64) -> Option<u64> {
        let (bucket, fingerprint) = self.place(key);
        let way = self.buckets[bucket].way_of(fingerprint)?;
        let ways = &mut self.buckets[bucket].0;
        ways.copy_within(way + 1.., way);
        ways[WAYS - 1] = 0;
        Some((way * self.buckets.len()) as u64)
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_about_as_many_as_it_says_with_about_their_age_and_each_once() {
        let capacity = 32 * 256;
        let mut ghosts = Ghosts::new(capacity);
        (0..4 * capacity as u64).for_each(|key| ghosts.put(key));
        let last = 4 * capacity as u64;
        let mut found = 0;
        let mut wrong = 0.0;
        for back in 1..=last {
            if let Some(age) = ghosts.age(last - back) {
                found += 1;
                wrong += (age as f64 - back as f64).abs();
            }
        }
        assert!((capacity * 9 / 10..=capacity * 11 / 10).contains(&found), "{found} of {capacity}");
        // The 16th of a bucket comes after 15 of 256 buckets, give or take 4.
        assert!(wrong / (found as f64) < capacity as f64 / 4.0, "{wrong}");
        assert!(ghosts.take(last - 1).is_some());
        assert_eq!(ghosts.take(last - 1), None);
    }

    #[test]
    fn what_was_never_put_is_almost_never_found() {
        let mut ghosts = Ghosts::new(4096);
        (0..4096).for_each(|key| ghosts.put(key));
        let found = (1_000_000..1_100_000).filter(|key| ghosts.age(*key).is_some()).count();
        assert!(found < 200, "{found} of 100000");
    }
}
