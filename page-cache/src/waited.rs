//! How often and how long operations waited, by what they waited for.
//!
//! The data path reads no clock, and the cache has none: whoever makes it may give it one
//! ([`CacheOptions::clock`](crate::CacheOptions::clock)). It is read when an operation leaves its entry on a
//! queue, and when it is stepped after that, once a turn of its lane for all of them; a hit, or a miss that waits
//! for its own command alone, never reads it. What is counted is thus what the operation sees: until it
//! goes on, with the time on its lane's run queue. An integral over the ticks of somebody who looks now and
//! then would cost no clock at all, but most waits are over long before a tick, and the flusher, whose
//! ticks there are, is rung by those who wait: it would look just when there is somebody.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// What an operation waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitKind {
    Page,
    Frame,
    Room,
    Slot,
    Range,
    Flush,
}

/// Waits that are over: how many, and how long all of them took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// How many.
    pub count: u64,
    /// How long together; zero when the cache has no clock.
    pub time: Duration,
}

/// Waits of operations that are over, by what was waited for. Those of the flusher are its own affair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waits {
    /// For a page that another was reading, writing to or writing back.
    pub page: Waited,
    /// For a frame.
    pub frame: Waited,
    /// For room below the dirty limit.
    pub room: Waited,
    /// For a place in the lane's device queue.
    pub slot: Waited,
    /// For a range under a discard or write-zeroes.
    pub range: Waited,
    /// For the flusher, by a flush or by a stable write that shares a device flush.
    pub flush: Waited,
}

/// Counts of one kind.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    time_ns: AtomicU64,
}

/// Counts of a cache. Only touched where somebody has waited, so that they are shared costs nothing.
#[derive(Debug, Default)]
pub(crate) struct WaitCounts([Counter; 6]);

impl WaitCounts {
    pub(crate) fn add(&self, kind: WaitKind, time: Duration) {
        let Counter { count, time_ns } = &self.0[kind as usize];
        count.fetch_add(1, Ordering::Relaxed);
        time_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Waits {
        let of = |kind: WaitKind| {
            let Counter { count, time_ns } = &self.0[kind as usize];
            let time = Duration::from_nanos(time_ns.load(Ordering::Relaxed));
            Waited { count: count.load(Ordering::Relaxed), time }
        };
        Waits {
            page: of(WaitKind::Page),
            frame: of(WaitKind::Frame),
            room: of(WaitKind::Room),
            slot: of(WaitKind::Slot),
            range: of(WaitKind::Range),
            flush: of(WaitKind::Flush),
        }
    }
}

/// What time it is, asked at most once a turn.
#[derive(Debug)]
pub(crate) struct TurnClock {
    clock: Option<fn() -> Duration>,
    now: Option<Duration>,
}

impl TurnClock {
    pub(crate) fn new(clock: Option<fn() -> Duration>) -> Self {
        Self { clock, now: None }
    }

    /// A turn begins, or an operation is started between two.
    pub(crate) fn reset(&mut self) {
        self.now = None;
    }

    pub(crate) fn now(&mut self) -> Duration {
        let clock = self.clock;
        *self.now.get_or_insert_with(|| clock.map_or(Duration::ZERO, |clock| clock()))
    }
}
