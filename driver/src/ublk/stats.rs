//! What a queue has done: counts and latencies that anyone may read at any time.
//!
//! One thread writes (the queue's), any number read. The writer adds with a plain load and store, so
//! a request costs no locked instruction; a reader sees each counter at some recent moment, and two
//! counters perhaps not at the same one.
//!
//! `hdrhistogram` is the field's crate for the latencies, but its histograms need `&mut`, and its
//! concurrent form waits for every writer to record once more: an idle queue would hold up the
//! reader. So the buckets are atomics, laid out as HDR's are (linear inside each power of two).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::request::Op;

/// Buckets in each power of two: a latency is known to 1/32, 3 %.
const LINEAR_BITS: u32 = 5;
const LINEAR: usize = 1 << LINEAR_BITS;
/// Latencies from 2^36 ns (69 s) on share the last bucket.
const LATENCY_BITS: u32 = 36;
const BUCKETS: usize = LINEAR * (LATENCY_BITS - LINEAR_BITS + 1) as usize;

/// An operation as statistics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Reads.
    Read,
    /// Writes, with FUA or without.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Writes of zeroes.
    WriteZeroes,
}

impl OpKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes];

    fn of(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write { .. } => Self::Write,
            Op::Flush => Self::Flush,
            Op::Discard => Self::Discard,
            Op::WriteZeroes { .. } => Self::WriteZeroes,
        }
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        })
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    #[inline]
    fn add(&self, amount: u64) {
        // Relaxed, and not one atomic addition: there is one writer, and nothing hangs on the order.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct OpCounters {
    done: Counter,
    bytes: Counter,
    errors: Counter,
    buckets: Box<[Counter]>,
}

/// The counters of one queue.
#[derive(Debug)]
pub(super) struct QueueStats {
    ops: [OpCounters; OpKind::ALL.len()],
    refused: Counter,
    unexpected: Counter,
    in_flight: AtomicU64,
}

impl QueueStats {
    pub(super) fn new() -> Self {
        let ops = OpKind::ALL.map(|_| OpCounters {
            done: Counter::default(),
            bytes: Counter::default(),
            errors: Counter::default(),
            buckets: (0..BUCKETS).map(|_| Counter::default()).collect(),
        });
        Self {
            ops,
            refused: Counter::default(),
            unexpected: Counter::default(),
            in_flight: AtomicU64::new(0),
        }
    }

    /// One request of the block layer has been answered.
    #[inline]
    pub(super) fn done(&self, op: Op, len_bytes: u64, ok: bool, elapsed: Duration) {
        let counters = &self.ops[OpKind::of(op) as usize];
        counters.done.add(1);
        if ok {
            counters.bytes.add(len_bytes);
        } else {
            counters.errors.add(1);
        }
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        counters.buckets[bucket_of(elapsed_ns)].add(1);
    }

    /// A descriptor was malformed.
    pub(super) fn refused(&self) {
        self.refused.add(1);
    }

    /// The device completed something that nobody had asked for.
    pub(super) fn unexpected(&self) {
        self.unexpected.add(1);
    }

    pub(super) fn set_in_flight(&self, held: u32) {
        self.in_flight.store(u64::from(held), Ordering::Relaxed);
    }

    /// Adds this queue's counters to `total`.
    pub(super) fn add_to(&self, total: &mut ServerStats) {
        total.in_flight += self.in_flight.load(Ordering::Relaxed);
        total.refused += self.refused.get();
        total.unexpected += self.unexpected.get();
        for (counters, sum) in self.ops.iter().zip(&mut total.ops) {
            sum.done += counters.done.get();
            sum.bytes += counters.bytes.get();
            sum.errors += counters.errors.get();
            for (bucket, sum) in counters.buckets.iter().zip(&mut sum.latency.buckets) {
                *sum += bucket.get();
            }
        }
    }
}

/// What a server has done since it started, all queues together.
#[derive(Clone, Debug)]
pub struct ServerStats {
    /// Requests of the block layer that are with the server now.
    pub in_flight: u64,
    /// Malformed descriptors, answered with an error: 0 unless the kernel is broken.
    pub refused: u64,
    /// Completions that no request waited for: 0 unless the device is broken.
    pub unexpected: u64,
    ops: [OpStats; OpKind::ALL.len()],
}

impl ServerStats {
    pub(super) fn new() -> Self {
        let ops = OpKind::ALL.map(|kind| OpStats {
            kind,
            done: 0,
            bytes: 0,
            errors: 0,
            latency: Latency { buckets: vec![0; BUCKETS] },
        });
        Self { in_flight: 0, refused: 0, unexpected: 0, ops }
    }

    /// The part of one operation.
    pub fn op(&self, kind: OpKind) -> &OpStats {
        &self.ops[kind as usize]
    }

    /// Every operation's part, in the order of [`OpKind::ALL`].
    pub fn ops(&self) -> impl Iterator<Item = &OpStats> {
        self.ops.iter()
    }
}

/// What a server has done of one operation.
#[derive(Clone, Debug)]
pub struct OpStats {
    /// Which operation.
    pub kind: OpKind,
    /// Requests answered, well or not.
    pub done: u64,
    /// Bytes read, written, discarded or zeroed by requests that went well.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// From taking a request from the kernel to handing its result back.
    pub latency: Latency,
}

/// A distribution of latencies, each known to 3 %.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: Vec<u64>,
}

impl Latency {
    /// How many latencies it holds.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The latency that `percent` of all (0.0 to 100.0) do not exceed; `None` when there is none.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        let count = self.count();
        let wanted = ((percent.clamp(0.0, 100.0) / 100.0 * count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|&in_bucket| {
            seen += in_bucket;
            count > 0 && seen >= wanted
        })?;
        Some(Duration::from_nanos(bucket_top_ns(bucket)))
    }
}

/// The bucket of a latency: 32 to each power of two from 2^5 on, one to each nanosecond below.
#[inline]
fn bucket_of(elapsed_ns: u64) -> usize {
    let elapsed_ns = elapsed_ns.min((1 << LATENCY_BITS) - 1);
    // The power of two, counted from the first that has its own 32 buckets.
    let power = (elapsed_ns | (LINEAR as u64 - 1)).ilog2() - (LINEAR_BITS - 1);
    if power == 0 {
        return elapsed_ns as usize;
    }
    let within = (elapsed_ns >> (power - 1)) as usize - LINEAR;
    power as usize * LINEAR + within
}

/// The largest latency of a bucket.
fn bucket_top_ns(bucket: usize) -> u64 {
    let (power, within) = (bucket / LINEAR, (bucket % LINEAR) as u64);
    match power {
        0 => within,
        _ => ((LINEAR as u64 + within + 1) << (power - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_latency_to_three_percent() {
        let mut last = 0;
        for elapsed_ns in (0..4096).chain((12..36).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit])) {
            let bucket = bucket_of(elapsed_ns);
            assert!(bucket >= last, "{elapsed_ns}: buckets go up with the latency");
            last = bucket;
            let top = bucket_top_ns(bucket);
            assert!(top >= elapsed_ns, "{elapsed_ns} in {bucket}, which ends at {top}");
            assert!(top - elapsed_ns <= elapsed_ns / 32, "{elapsed_ns} in {bucket}, top {top}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_top_ns(BUCKETS - 1), (1 << LATENCY_BITS) - 1);
    }

    #[test]
    fn percentiles_come_from_all_queues_together() {
        let queues = [QueueStats::new(), QueueStats::new()];
        for micros in 1..=100 {
            let queue = &queues[micros as usize % 2];
            queue.done(Op::Read, 4096, micros != 100, Duration::from_micros(micros));
        }
        queues[0].done(Op::Flush, 0, true, Duration::ZERO);
        let mut total = ServerStats::new();
        assert_eq!(total.op(OpKind::Read).latency.percentile(50.0), None);
        queues.iter().for_each(|queue| queue.add_to(&mut total));
        let reads = total.op(OpKind::Read);
        assert_eq!((reads.done, reads.errors, reads.bytes), (100, 1, 99 * 4096));
        for (percent, micros) in [(0.0, 1), (50.0, 50), (99.0, 99), (100.0, 100)] {
            let got = reads.latency.percentile(percent).unwrap().as_nanos() as f64;
            let want = f64::from(micros) * 1000.0;
            assert!(got >= want && got <= want * 1.04, "{percent} %: {got} ns, {want} ns");
        }
        assert_eq!(total.op(OpKind::Flush).latency.percentile(99.9), Some(Duration::ZERO));
        assert_eq!(total.ops().map(|op| op.done).sum::<u64>(), 101);
    }
}
