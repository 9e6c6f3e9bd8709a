//! What the device has taken and may still lose.
//!
//! A write that completed lies in the device's volatile cache until a device flush covers it. When that flush
//! fails, nobody can say what of it is left: a drive may have dropped it, and Linux marks pages of a file
//! clean that it failed to write, so that the next fsync of the same file succeeds and the data is gone.
//! Trying the flush again is therefore not enough. **A device flush that has failed takes everything back
//! that no flush before it made stable**:
//!
//! | what was written since | when a flush fails |
//! |---|---|
//! | is cached still | dirty again, and so written again before the next device flush is sent |
//! | is being written | dirty again when that ends, however it ends, unless it is FUA |
//! | is not cached any more | *lost*: every flush that covers it fails, until it is written again or discarded, or an administrator accepts the loss |
//! | was to be stable (O_DSYNC, in a group) | fails |
//!
//! Why pages may be evicted although no flush covers them: to keep them would make readers wait for device
//! flushes that nobody asked for, on every device, for the sake of those that fail; and it would not
//! help who writes past the cache. What is kept instead is where they were: a few ranges for each
//! shard, grown into each other when there are more. So what is told as lost may be too much,
//! never too little.
//!
//! # One flush at a time
//!
//! The flusher sends all device flushes of a cache, for flushes and for stable writes of any lane, and the next
//! when it has heard of the last. Flushes of several queues would overlap, with their completions seen in any order:
//! that one succeeded would say nothing while another, sent before, has not been heard of, for that one may
//! fail, and have dropped data before this one came. So each would have to wait for every queue that has sent
//! one, and for whoever polls that.
//!
//! Each failure is counted twice, before and after the pages have been gone through. What notes the count before
//! it looks at a page, or sends it, and finds another one afterwards cannot tell on which side of the failure
//! the page was, and takes the worse.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{FRAME_SIZE, IoError, IoErrorKind, IoResult};

use crate::cache::Cache;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::wait::Wakes;

/// How many ranges are kept of what was lost.
const LOST_MAX: usize = 1024;

/// Names a device flush that was begun; higher for later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlushId(u64);

/// What device flushes came to; one for a cache.
pub(crate) struct Stability {
    /// Whether what the device has taken may be lost at all.
    volatile: bool,
    blocks_per_page: u64,
    /// The last flush begun. What completes is covered by later ones.
    begun: AtomicU64,
    /// What completed before this flush was begun is stable.
    stable: AtomicU64,
    /// Counted before and after each failure is dealt with.
    failures: AtomicU64,
    any_lost: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    in_flight: Option<FlushId>,
    lost: Spans,
    /// How the last flush that failed did.
    error: IoError,
}

impl Stability {
    /// For a device that has, or has not, a volatile cache.
    pub(crate) fn new(volatile: bool, block_size: usize) -> Arc<Self> {
        let inner = Inner {
            in_flight: None,
            lost: Spans::new(LOST_MAX),
            error: IoError::new(IoErrorKind::Device),
        };
        Arc::new(Self {
            volatile,
            blocks_per_page: (FRAME_SIZE / block_size) as u64,
            begun: AtomicU64::new(0),
            stable: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            any_lost: AtomicBool::new(false),
            inner: Mutex::new(inner),
        })
    }

    /// Whether what the device has taken may be lost before a flush.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// How many blocks a page has.
    pub(crate) fn blocks_per_page(&self) -> u64 {
        self.blocks_per_page
    }

    /// The last flush begun: what completes now is not covered by it.
    pub(crate) fn epoch(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether what completed in this epoch has been made stable since.
    pub(crate) fn is_stable(&self, epoch: u64) -> bool {
        epoch < self.stable.load(Ordering::Acquire)
    }

    /// The count of failures, to be compared.
    pub(crate) fn failures(&self) -> u64 {
        if self.volatile { self.failures.load(Ordering::SeqCst) } else { 0 }
    }

    /// Of something that was sent when this was the count and has ended well: whether a flush that
    /// failed meanwhile may have taken it back.
    pub(crate) fn verdict(&self, failures: u64) -> IoResult {
        if self.failures() == failures { Ok(()) } else { Err(self.inner.lock().error) }
    }

    /// A device flush is about to be sent.
    ///
    /// # Panics
    ///
    /// When nobody has heard of the last one yet.
    pub(crate) fn begin(&self) -> FlushId {
        if !self.volatile {
            return FlushId(0);
        }
        let mut inner = self.inner.lock();
        assert_eq!(inner.in_flight, None, "one device flush at a time");
        let id = FlushId(self.begun.fetch_add(1, Ordering::AcqRel) + 1);
        inner.in_flight = Some(id);
        id
    }

    /// A flush has succeeded: what completed before it was begun is stable.
    pub(crate) fn succeeded(&self, id: FlushId) {
        if !self.volatile {
            return;
        }
        self.inner.lock().in_flight = None;
        self.stable.store(id.0, Ordering::Release);
    }

    /// The flush has failed; the pages are to be gone through now, and then it
    /// [has been dealt with](Self::dealt_with).
    fn failed(&self, error: IoError) {
        let mut inner = self.inner.lock();
        inner.error = error;
        self.failures.fetch_add(1, Ordering::SeqCst);
    }

    fn dealt_with(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
        self.inner.lock().in_flight = None;
    }

    /// These blocks were lost.
    pub(crate) fn lose(&self, blocks: Range<u64>) {
        let mut inner = self.inner.lock();
        inner.lost.add(Span { start: blocks.start, end: blocks.end, epoch: 0 }, |_| false);
        self.any_lost.store(true, Ordering::Release);
    }

    /// It does not matter any more what was lost of these blocks: they were written or discarded
    /// since, or an administrator says so.
    pub(crate) fn settle(&self, blocks: Range<u64>) {
        if !self.any_lost.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.inner.lock();
        inner.lost.remove(blocks);
        self.any_lost.store(!inner.lost.spans.is_empty(), Ordering::Release);
    }

    /// The error of a flush that covers these blocks, when some of them were lost.
    pub(crate) fn check_lost(&self, blocks: Range<u64>) -> IoResult {
        if !self.any_lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let inner = self.inner.lock();
        let touches = |span: &Span| span.start < blocks.end && blocks.start < span.end;
        if inner.lost.spans.iter().any(touches) { Err(inner.error) } else { Ok(()) }
    }

    fn lost(&self) -> Vec<Range<u64>> {
        let inner = self.inner.lock();
        let mut lost: Vec<_> = inner.lost.spans.iter().map(|span| span.start..span.end).collect();
        lost.sort_unstable_by_key(|range| range.start);
        lost
    }
}

/// Some blocks that completed in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) epoch: u64,
}

/// A bounded list of spans: when it is full they grow into each other, so it holds everything that was
/// added and perhaps more. Allocates when it is made.
#[derive(Debug)]
pub(crate) struct Spans {
    spans: Vec<Span>,
    max: usize,
}

impl Spans {
    pub(crate) fn new(max: usize) -> Self {
        Self { spans: Vec::with_capacity(max), max }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.spans.capacity() * size_of::<Span>()
    }

    /// Adds a span; those that are `over` are let go first: one that the new span touches would come to life
    /// with it.
    pub(crate) fn add(&mut self, span: Span, over: impl Fn(&Span) -> bool) {
        self.spans.retain(|own| !over(own));
        let gap =
            |own: &Span| own.start.saturating_sub(span.end).max(span.start.saturating_sub(own.end));
        let touching = self.spans.iter().position(|own| gap(own) == 0);
        if touching.is_none() && self.spans.len() < self.max {
            self.spans.push(span);
            return;
        }
        let nearest = touching.map(|at| &mut self.spans[at]);
        let nearest = match nearest {
            Some(nearest) => nearest,
            None => match self.spans.iter_mut().min_by_key(|own| gap(own)) {
                Some(nearest) => nearest,
                None => return,
            },
        };
        nearest.start = nearest.start.min(span.start);
        nearest.end = nearest.end.max(span.end);
        nearest.epoch = nearest.epoch.max(span.epoch);
    }

    /// Takes blocks out. A hole that there is no room for stays.
    pub(crate) fn remove(&mut self, blocks: Range<u64>) {
        for at in (0..self.spans.len()).rev() {
            let own = self.spans[at];
            if own.start >= blocks.end || blocks.start >= own.end {
                continue;
            }
            let left = Span { end: blocks.start, ..own };
            let right = Span { start: blocks.end, ..own };
            match (left.start < left.end, right.start < right.end) {
                (false, false) => _ = self.spans.swap_remove(at),
                (true, false) => self.spans[at] = left,
                (false, true) => self.spans[at] = right,
                (true, true) if self.spans.len() < self.max => {
                    self.spans[at] = left;
                    self.spans.push(right);
                }
                (true, true) => {}
            }
        }
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Span> + '_ {
        self.spans.drain(..)
    }
}

impl Cache {
    /// The device flush has failed; see [`crate::stability`].
    pub(crate) fn flush_failed(&self, error: IoError, wakes: &mut Wakes) {
        // Those who share this flush are told now; every other handle is told by its next.
        self.errors.record(0..self.size_bytes(), error);
        let stability = &self.stability;
        if !stability.is_volatile() {
            return;
        }
        stability.failed(error);
        for (shard, room) in self.shards().zip(self.rooms()) {
            let mut shard = shard.lock();
            room.force(shard.take_back(wakes));
            shard.drain_gone(|blocks| stability.lose(blocks));
        }
        stability.dealt_with();
        self.ring_flusher();
    }

    /// Ranges of bytes, in order, that were written to the device, were not cached any more when a device
    /// flush failed that was to make them stable, and have not been written or discarded since: what is there
    /// now, nobody knows. Every flush that covers them fails. Neighbours may be among them that are sound.
    pub fn lost_ranges(&self) -> Vec<Range<u64>> {
        let block_size = self.block_size() as u64;
        let ranges = self.stability.lost().into_iter();
        ranges.map(|range| range.start * block_size..range.end * block_size).collect()
    }

    /// Says that it is known what may have been [lost](Self::lost_ranges) in the blocks that lie wholly in a
    /// range of bytes, and that flushes need not fail for it any more: for an administrator, or for who has
    /// restored it.
    pub fn accept_loss(&self, bytes: Range<u64>) {
        let block_size = self.block_size() as u64;
        let blocks = bytes.start.div_ceil(block_size)..bytes.end / block_size;
        if !blocks.is_empty() {
            self.stability.settle(blocks);
        }
    }

    /// The blocks of a range of pages.
    pub(crate) fn blocks_in(&self, pages: &Range<u64>) -> Range<u64> {
        let per_page = self.blocks_per_page();
        pages.start.saturating_mul(per_page)..pages.end.saturating_mul(per_page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: IoError = IoError::new(IoErrorKind::Media);

    #[test]
    fn what_completed_before_a_flush_was_begun_is_stable_when_that_has_succeeded() {
        let stability = Stability::new(true, 512);
        let before = stability.epoch();
        let flush = stability.begin();
        let after = stability.epoch();
        assert!(!stability.is_stable(before), "it may fail");
        stability.succeeded(flush);
        assert_eq!((stability.is_stable(before), stability.is_stable(after)), (true, false));
        let next = stability.begin();
        stability.succeeded(next);
        assert!(stability.is_stable(after));
    }

    #[test]
    fn a_failure_takes_back_what_was_sent_before_and_nothing_that_is_stable() {
        let stability = Stability::new(true, 512);
        let early = stability.epoch();
        let good = stability.begin();
        let before = stability.failures();
        stability.succeeded(good);
        assert_eq!(stability.verdict(before), Ok(()));
        let epoch = stability.epoch();
        _ = stability.begin();
        stability.failed(ERROR);
        let meanwhile = stability.failures();
        stability.dealt_with();
        assert_eq!(stability.verdict(before), Err(ERROR));
        assert_eq!(stability.verdict(meanwhile), Err(ERROR), "its page may have been looked at");
        assert_eq!((stability.is_stable(early), stability.is_stable(epoch)), (true, false));
        assert_eq!(stability.verdict(stability.failures()), Ok(()));
    }

    #[test]
    #[should_panic(expected = "one device flush at a time")]
    fn two_flushes_never_overlap() {
        let stability = Stability::new(true, 512);
        _ = stability.begin();
        _ = stability.begin();
    }

    #[test]
    fn spans_hold_what_was_added_however_many_there_are() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut spans = Spans::new(6);
            let mut held = vec![None; 200];
            for epoch in 0..60 {
                let start = random.u64(..190);
                let end = start + random.u64(1..10);
                if random.u8(..4) == 0 {
                    spans.remove(start..end);
                    held[start as usize..end as usize].fill(None);
                } else {
                    spans.add(Span { start, end, epoch }, |span| span.epoch < 10);
                    held[start as usize..end as usize].fill(Some(epoch));
                }
                assert!(spans.spans.len() <= 6);
                for (block, epoch) in (0..).zip(&held) {
                    let Some(epoch) = epoch.filter(|epoch| *epoch >= 10) else { continue };
                    let found = spans
                        .spans
                        .iter()
                        .any(|span| (span.start..span.end).contains(&block) && span.epoch >= epoch);
                    assert!(found, "seed {seed}: block {block} is missing");
                }
            }
        }
    }
}
