//! What the flushes that wait cover, taken down for one look at the pages.
//!
//! Whoever orders a flush takes the lock of the orders, so nobody may hold it while they look at what is
//! dirty, which may be a million pages. The flusher takes down which flushes wait and what they cover, lets
//! go of the lock, looks at the pages once for all of them together, and takes the lock again for those that
//! are over. Who comes meanwhile is not taken down, and so not told: what they wait for may have been looked at
//! before it was written.
//!
//! The ends of the ranges cut the device into segments; what a page means to all flushes is found by its
//! segment, in the logarithm of their number.

use std::ops::Range;

use crate::cache::{Cache, Ticket};
use crate::page::Page;
use crate::shard::Shard;

/// A flush that waits.
#[derive(Debug)]
struct Order {
    id: u64,
    seq: u64,
    pages: Range<u64>,
    whole: bool,
    ready: bool,
}

/// Pages from one end of a range to the next.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    /// The highest number of the flushes of ranges that cover it; 0 if none does, which no page has.
    seq: u64,
}

/// The flushes that waited when they were [taken down](Self::take).
#[derive(Debug, Default)]
pub(crate) struct Covered {
    /// In the order in which they came, which is that of their ids.
    orders: Vec<Order>,
    /// In order, without gaps; nobody covers what is behind the last start.
    segments: Vec<Segment>,
    /// By segment, the oldest number in it that is not on the device, of those that flushes wait for.
    found: Vec<u64>,
    /// The highest number of a flush of everything, or 0.
    whole: u64,
}

impl Covered {
    /// What a flush that waits takes, of its memory.
    pub(crate) const BYTES_A_TICKET: usize =
        size_of::<Order>() + 2 * (size_of::<Segment>() + size_of::<u64>());

    /// Takes down which flushes wait. Allocates only when there may be more than ever before.
    pub(crate) fn take(&mut self, cache: &Cache) {
        self.orders.clear();
        {
            let orders = cache.orders.lock();
            self.orders.reserve(orders.tickets.capacity());
            self.orders.extend(orders.tickets.iter().map(Order::of));
        }
        self.cut();
    }

    /// Makes the segments of the orders.
    fn cut(&mut self) {
        let Self { orders, segments, found, whole } = self;
        *whole = orders.iter().filter(|it| it.whole).map(|it| it.seq).max().unwrap_or(0);
        let ranges = || orders.iter().filter(|it| !it.whole);
        segments.clear();
        segments.reserve(2 * orders.capacity());
        found.clear();
        found.reserve(2 * orders.capacity());
        let segment = |start| Segment { start, seq: 0 };
        segments.extend(ranges().flat_map(|it| [it.pages.start, it.pages.end]).map(segment));
        segments.sort_unstable_by_key(|it| it.start);
        segments.dedup_by_key(|it| it.start);
        for order in ranges() {
            let within = within(segments, &order.pages);
            for segment in &mut segments[within] {
                segment.seq = segment.seq.max(order.seq);
            }
        }
    }

    /// Whether a flush waits for a page that holds data from `since` on.
    pub(crate) fn covers(&self, page: u64, since: u64) -> bool {
        since <= self.whole || self.segment(page).is_some_and(|at| since <= self.segments[at].seq)
    }

    /// The segment that a page is in.
    fn segment(&self, page: u64) -> Option<usize> {
        self.segments.partition_point(|it| it.start <= page).checked_sub(1)
    }

    /// Shows `look` each page that flushes of ranges wait for, once, under its shard's lock, with its segment
    /// and since when it holds data that is not on the device, until it says `false`. Pages are looked up
    /// where those are fewer than what is not written; otherwise the lists of that are gone through. Says how
    /// many pages were looked at.
    fn each(&self, cache: &Cache, mut look: impl FnMut(&Shard, u32, usize, u64) -> bool) -> usize {
        let ranges = self.segments.iter().zip(self.segments.iter().skip(1)).enumerate();
        let covered = ranges.filter(|(_, (it, _))| it.seq > 0);
        let covered = covered.map(|(at, (it, next))| (at, it.start..next.start));
        let pages: u64 = covered.clone().map(|(_, pages)| pages.end - pages.start).sum();
        if pages == 0 {
            return 0;
        }
        // Whether to go on.
        let mut look_at = |shard: &Shard, slot: u32, at: usize| {
            let since = shard.unwritten_since(slot).filter(|since| *since <= self.segments[at].seq);
            since.is_none_or(|since| look(shard, slot, at, since))
        };
        let unwritten = |shard: &Shard| (shard.dirty_len() + shard.writeback_len()) as u64;
        let mut looked = 0;
        if pages <= cache.shards().map(|shard| unwritten(&shard.lock())).sum::<u64>() {
            for (at, page) in covered.flat_map(|(at, pages)| pages.map(move |page| (at, page))) {
                looked += 1;
                let shard = cache.shard(page);
                if shard.find(page).is_some_and(|slot| !look_at(&shard, slot, at)) {
                    break;
                }
            }
            return looked;
        }
        for shard in cache.shards() {
            let shard = shard.lock();
            for slot in shard.dirty().chain(shard.writing()) {
                looked += 1;
                let at = self.segment(shard.key(slot));
                if at.is_some_and(|at| !look_at(&shard, slot, at)) {
                    return looked;
                }
            }
        }
        looked
    }

    /// Puts pages that flushes of ranges wait for, and that can be written now, into a batch, up to so many.
    pub(crate) fn batch(&self, cache: &Cache, batch: &mut Vec<u64>, most: usize) {
        self.each(cache, |shard, slot, _, _| {
            if matches!(shard.page(slot), Page::Dirty(_)) && !shard.is_failed(slot) {
                batch.push(shard.key(slot));
            }
            batch.len() < most
        });
    }

    /// Finds out which flushes have nothing to wait for any more. Says how many pages were looked at.
    pub(crate) fn judge(&mut self, cache: &Cache) -> usize {
        if self.orders.is_empty() {
            return 0;
        }
        // After they were taken down, and under no lock of the orders: what was numbered up to a flush's number
        // before that is found in its shard.
        let oldest = cache.shards().filter_map(|shard| shard.lock().oldest_unwritten()).min();
        for order in &mut self.orders {
            order.ready = oldest.is_none_or(|oldest| order.seq < oldest);
        }
        if self.orders.iter().all(|it| it.ready || it.whole) {
            return 0;
        }
        let mut orders = std::mem::take(&mut self.orders);
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        found.resize(self.segments.len(), u64::MAX);
        let looked = self.each(cache, |_, _, at, since| {
            found[at] = found[at].min(since);
            true
        });
        for order in orders.iter_mut().filter(|it| !it.ready && !it.whole) {
            let within = within(&self.segments, &order.pages);
            order.ready = found[within].iter().all(|since| order.seq < *since);
        }
        (self.orders, self.found) = (orders, found);
        looked
    }

    /// Whether none of those that were taken down has anything to wait for.
    pub(crate) fn are_all_ready(&self) -> bool {
        self.orders.iter().all(|order| order.ready)
    }

    /// Whether a flush was taken down and has nothing to wait for.
    pub(crate) fn is_ready(&self, ticket: &Ticket) -> bool {
        let at = self.orders.binary_search_by_key(&ticket.id, |it| it.id);
        at.is_ok_and(|at| self.orders[at].ready)
    }
}

impl Order {
    fn of(ticket: &Ticket) -> Self {
        let (id, seq, pages) = (ticket.id, ticket.seq, ticket.pages.clone());
        Self { id, seq, pages, whole: ticket.is_whole(), ready: false }
    }
}

/// The segments of a range that begins and ends where segments do.
fn within(segments: &[Segment], pages: &Range<u64>) -> Range<usize> {
    let at = |page| segments.partition_point(|it| it.start < page);
    at(pages.start)..at(pages.end)
}

/// For each flush of a range that has come since the last time, what failed in it is to be tried again.
pub(crate) fn retry_failed(cache: &Cache) {
    let next = || {
        let mut orders = cache.orders.lock();
        let new = orders.tickets.iter_mut().find(|it| !it.is_whole() && it.retry_failed)?;
        new.retry_failed = false;
        Some(new.pages.clone())
    };
    while let Some(pages) = next() {
        cache.shards().for_each(|shard| shard.lock().retry_failed_of(&pages));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uaio_driver::block::PollsAnyway;
    use uaio_driver::ram::RamDevice;
    use uaio_driver::{DmaPool, PoolOptions, Token};

    use super::*;
    use crate::{Buffer, CacheOptions, Flusher, Lane, OpKind, Operation};

    const PAGE: u64 = 4096;

    #[test]
    fn a_page_is_covered_exactly_when_a_flush_covers_it() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let orders = (0..random.u64(..12))
                .map(|id| {
                    let start = random.u64(..60);
                    let pages = start..start + random.u64(1..20);
                    let whole = random.u8(..8) == 0;
                    Order { id, seq: random.u64(..30), pages, whole, ready: false }
                })
                .collect();
            let mut covered = Covered { orders, ..Covered::default() };
            covered.cut();
            for page in 0..90 {
                for since in 1..32 {
                    let is_it =
                        |it: &Order| (it.whole || it.pages.contains(&page)) && since <= it.seq;
                    let expected = covered.orders.iter().any(is_it);
                    assert_eq!(
                        covered.covers(page, since),
                        expected,
                        "seed {seed}: {page} {since}"
                    );
                }
            }
        }
    }

    #[test]
    fn many_flushes_of_ranges_look_at_each_page_once_and_each_is_judged_for_itself() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let pool = DmaPool::new(PoolOptions::frames(600)).unwrap();
            let device = Arc::new(RamDevice::new(4096 * PAGE, 512, pool).unwrap());
            let options = CacheOptions { shards: 4, ..CacheOptions::frames(512) };
            let cache = Cache::new(device, options).unwrap();
            let _flusher = Flusher::new(Arc::clone(&cache), 8, Arc::new(PollsAnyway)).unwrap();
            let mut lane = Lane::new(Arc::clone(&cache), 400, 8, Arc::new(PollsAnyway)).unwrap();
            let handle = cache.open();
            let mut start = |id: u64, kind, offset, len, buffer| {
                let (token, handle) = (Token::from_u64(id), Arc::clone(&handle));
                let started = Operation { token, kind, offset, len, buffer, handle };
                assert!(lane.start(started).is_ok());
                while lane.pop_finished().is_some() {}
            };
            // Writes and flushes of ranges of all lengths, one among the other.
            for id in 0..300 {
                let page = random.u64(..4000);
                if id % 3 == 0 {
                    let len = 1 << random.u32(..if seed % 2 == 0 { 3 } else { 11 });
                    let len = len.min(4096 - page);
                    start(id, OpKind::FlushRange, page * PAGE, len * PAGE, Buffer::None);
                } else {
                    let write = OpKind::Write { stable: false, direct: false };
                    start(id, write, page * PAGE, PAGE, Buffer::Bytes(vec![1; PAGE as usize]));
                }
            }
            let dirty: usize = cache.shards().map(|shard| shard.lock().dirty_len()).sum();
            assert!(dirty > 150, "{dirty}");
            let mut covered = Covered::default();
            covered.take(&cache);
            let looked = covered.judge(&cache);
            assert!((1..=dirty).contains(&looked), "seed {seed}: {looked} of {dirty}");
            let tickets: Vec<_> = {
                let orders = cache.orders.lock();
                let of = |it: &Ticket| (it.seq, it.pages.clone(), covered.is_ready(it));
                orders.tickets.iter().map(of).collect()
            };
            assert_eq!(tickets.len(), 100);
            for (seq, pages, ready) in tickets {
                let unwritten = |page| {
                    let shard = cache.shard(page);
                    let since = shard.find(page).and_then(|slot| shard.unwritten_since(slot));
                    since.is_some_and(|since| since <= seq)
                };
                assert_eq!(ready, !pages.clone().any(unwritten), "seed {seed}: {pages:?}");
            }
            let mut batch = Vec::new();
            covered.batch(&cache, &mut batch, usize::MAX);
            batch.sort_unstable();
            let expected = |page: &u64| {
                let shard = cache.shard(*page);
                let since = shard.find(*page).and_then(|slot| shard.unwritten_since(slot));
                since.is_some_and(|since| covered.covers(*page, since))
            };
            assert_eq!(batch, (0..4096).filter(expected).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
