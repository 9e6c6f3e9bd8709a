//! What a drive remembers: durable sectors, and the versions of sectors in its volatile cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fastrand::Rng;

/// What is written as one or not at all: whatever the block size, a crash tears between these.
pub(super) const SECTOR_SIZE: usize = 512;

/// The cache destages the oldest version of a sector that has more than this many, so that a test
/// which never flushes does not grow for ever. A drive may destage whatever it likes whenever it likes.
const VERSIONS_MAX: usize = 8;

/// A place in the order in which writes completed; 0 is before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Sequence(pub(super) u64);

/// What a write leaves on the sectors from `sector` on.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub(super) sector: u64,
    pub(super) content: Content,
}

/// The bytes of an extent, without carrying the zeroes about.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(Arc<[u8]>),
    Zeroes { sectors: u64 },
}

impl Extent {
    pub(super) fn sectors(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => (bytes.len() / SECTOR_SIZE) as u64,
            Content::Zeroes { sectors } => *sectors,
        }
    }

    /// The bytes of the extent's `index`-th sector.
    fn sector_bytes(&self, index: u64) -> &[u8] {
        const ZEROES: [u8; SECTOR_SIZE] = [0; SECTOR_SIZE];
        match &self.content {
            Content::Bytes(bytes) => &bytes[index as usize * SECTOR_SIZE..][..SECTOR_SIZE],
            Content::Zeroes { .. } => &ZEROES,
        }
    }
}

/// One version of one sector: a part of an extent that other sectors share.
#[derive(Clone, Debug)]
struct Version {
    completed: Sequence,
    extent: Arc<Extent>,
    index: u64,
}

impl Version {
    fn bytes(&self) -> &[u8] {
        self.extent.sector_bytes(self.index)
    }
}

/// The medium behind its cache.
///
/// # Invariants
///
/// The versions of a sector are in the order in which they completed, none is covered by a flush
/// that has ended, and no sector in `cached` has none.
#[derive(Debug)]
pub(super) struct Medium {
    durable: Vec<u8>,
    cached: BTreeMap<u64, Vec<Version>>,
    completed: Sequence,
}

impl Medium {
    pub(super) fn new(durable: Vec<u8>) -> Self {
        Self { durable, cached: BTreeMap::new(), completed: Sequence(0) }
    }

    /// The last write that completed: what a flush submitted now covers.
    pub(super) fn completed(&self) -> Sequence {
        self.completed
    }

    /// A write completed into the cache.
    pub(super) fn write_volatile(&mut self, extent: Extent) {
        self.completed.0 += 1;
        let extent = Arc::new(extent);
        for index in 0..extent.sectors() {
            let version = Version { completed: self.completed, extent: Arc::clone(&extent), index };
            let versions = self.cached.entry(extent.sector + index).or_default();
            versions.push(version);
            if versions.len() > VERSIONS_MAX {
                let oldest = versions.remove(0);
                destage(&mut self.durable, extent.sector + index, oldest.bytes());
            }
        }
    }

    /// A write completed onto stable media. Older versions in the cache must never land on top.
    pub(super) fn write_durable(&mut self, extent: &Extent) {
        self.completed.0 += 1;
        for index in 0..extent.sectors() {
            self.cached.remove(&(extent.sector + index));
            destage(&mut self.durable, extent.sector + index, extent.sector_bytes(index));
        }
    }

    /// A flush that covers the writes up to `covered` has ended.
    pub(super) fn flush(&mut self, covered: Sequence) {
        let durable = &mut self.durable;
        self.cached.retain(|sector, versions| {
            let older = versions.partition_point(|version| version.completed <= covered);
            if let Some(newest) = versions[..older].last() {
                destage(durable, *sector, newest.bytes());
            }
            versions.drain(..older);
            !versions.is_empty()
        });
    }

    /// An arbitrary part of what is in the cache is lost.
    pub(super) fn lose(&mut self, random: &mut Rng) {
        let mut lottery = Lottery::draw(random);
        self.cached.retain(|_, versions| {
            versions.retain(|version| lottery.survives(version.completed.0));
            !versions.is_empty()
        });
    }

    /// Copies one sector out, as a read sees it.
    pub(super) fn read_sector(&self, sector: u64, out: &mut [u8]) {
        match self.cached.get(&sector).and_then(|versions| versions.last()) {
            Some(newest) => out.copy_from_slice(newest.bytes()),
            None => {
                out.copy_from_slice(&self.durable[sector as usize * SECTOR_SIZE..][..SECTOR_SIZE])
            }
        }
    }

    /// The bytes that no power failure can take.
    pub(super) fn durable_image(&self) -> Vec<u8> {
        self.durable.clone()
    }

    /// The bytes as reads see them.
    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (sector, versions) in &self.cached {
            if let Some(newest) = versions.last() {
                destage(&mut image, *sector, newest.bytes());
            }
        }
        image
    }

    /// The bytes after a power failure: each sector is the durable one, or any version that was in
    /// the cache, or any of the writes that were under way.
    pub(super) fn crash_image(&self, under_way: &[Extent], random: &mut Rng) -> Vec<u8> {
        let mut lottery = Lottery::draw(random);
        let mut image = self.durable.clone();
        for (sector, versions) in &self.cached {
            for version in versions {
                if lottery.survives(version.completed.0) {
                    destage(&mut image, *sector, version.bytes());
                }
            }
        }
        // What is under way has no order among itself; what completed earlier lies below it.
        let mut order: Vec<usize> = (0..under_way.len()).collect();
        lottery.random.shuffle(&mut order);
        for at in order {
            let extent = &under_way[at];
            // Numbers from the end: no completed write has one of these.
            let number = u64::MAX - at as u64;
            for index in 0..extent.sectors() {
                if lottery.survives(number) {
                    destage(&mut image, extent.sector + index, extent.sector_bytes(index));
                }
            }
        }
        image
    }
}

fn destage(durable: &mut [u8], sector: u64, bytes: &[u8]) {
    durable[sector as usize * SECTOR_SIZE..][..SECTOR_SIZE].copy_from_slice(bytes);
}

/// Decides what survives. Independent coins for every sector hardly ever draw the outcomes that
/// matter most (everything lost, everything kept, one whole write kept and another lost), so the
/// odds are drawn first, and whether whole writes or single sectors share a fate.
struct Lottery<'a> {
    random: &'a mut Rng,
    odds: u8,
    fates: Option<HashMap<u64, bool>>,
}

impl<'a> Lottery<'a> {
    fn draw(random: &'a mut Rng) -> Self {
        let odds = [0, 10, 50, 90, 100][random.usize(..5)];
        let fates = random.bool().then(HashMap::new);
        Self { random, odds, fates }
    }

    /// Whether a sector of write `number` survives.
    fn survives(&mut self, number: u64) -> bool {
        let (random, odds) = (&mut *self.random, self.odds);
        let mut draw = || random.u8(..100) < odds;
        match &mut self.fates {
            Some(fates) => *fates.entry(number).or_insert_with(draw),
            None => draw(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sector: u64, sectors: usize, value: u8) -> Extent {
        Extent { sector, content: Content::Bytes(vec![value; sectors * SECTOR_SIZE].into()) }
    }

    fn values(image: &[u8]) -> Vec<u8> {
        image.chunks(SECTOR_SIZE).map(|sector| sector[0]).collect()
    }

    #[test]
    fn a_flush_takes_what_it_covers_and_leaves_the_rest_in_the_cache() {
        let mut medium = Medium::new(vec![0; 3 * SECTOR_SIZE]);
        medium.write_volatile(write(0, 2, 1));
        let covered = medium.completed();
        medium.write_volatile(write(1, 2, 2));
        medium.flush(covered);
        assert_eq!(values(&medium.durable_image()), [1, 1, 0]);
        assert_eq!(values(&medium.image()), [1, 2, 2]);
    }

    #[test]
    fn an_older_version_in_the_cache_never_lands_on_a_fua_write() {
        let mut medium = Medium::new(vec![0; SECTOR_SIZE]);
        medium.write_volatile(write(0, 1, 1));
        let covered = medium.completed();
        medium.write_durable(&write(0, 1, 2));
        medium.flush(covered);
        assert_eq!(values(&medium.durable_image()), [2]);
        assert_eq!(values(&medium.image()), [2]);
    }

    #[test]
    fn what_is_lost_of_the_cache_was_never_flushed_and_nothing_takes_it_back() {
        let mut seen = Vec::new();
        for seed in 0..100 {
            let mut medium = Medium::new(vec![0; 2 * SECTOR_SIZE]);
            medium.write_volatile(write(0, 2, 1));
            medium.flush(medium.completed());
            medium.write_volatile(write(0, 2, 2));
            medium.lose(&mut Rng::with_seed(seed));
            let image = medium.image();
            medium.flush(medium.completed());
            assert_eq!(medium.durable_image(), image);
            seen.push(values(&image));
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [[1, 1], [1, 2], [2, 1], [2, 2]]);
    }

    #[test]
    fn every_mixture_of_old_and_new_sectors_comes_up() {
        let mut medium = Medium::new(vec![0; 2 * SECTOR_SIZE]);
        medium.write_volatile(write(0, 2, 1));
        let under_way = [write(0, 2, 2)];
        let mut random = Rng::with_seed(1);
        let mut seen: Vec<_> =
            (0..500).map(|_| values(&medium.crash_image(&under_way, &mut random))).collect();
        seen.sort();
        seen.dedup();
        let every: Vec<_> = (0..3).flat_map(|a| (0..3).map(move |b| vec![a, b])).collect();
        assert_eq!(seen, every);
    }

    #[test]
    fn a_cache_that_is_never_flushed_stays_bounded() {
        let mut medium = Medium::new(vec![0; SECTOR_SIZE]);
        (0..100).for_each(|value| medium.write_volatile(write(0, 1, value)));
        assert_eq!(medium.cached[&0].len(), VERSIONS_MAX);
        assert_eq!(values(&medium.image()), [99]);
        assert_eq!(values(&medium.durable_image()), [99 - VERSIONS_MAX as u8]);
    }
}
