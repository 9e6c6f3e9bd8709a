//! Lap, what the cache uses: S3-FIFO that lets a page back in only if it was not away for long.
//!
//! S3-FIFO remembers as many pages as its main queue holds, and one that comes back while it is
//! remembered goes to the main queue at once. That length is a guess, and either way it may be wrong:
//! too short, and a page that is wanted time and again is never recognised; too long, and pages of a
//! loop larger than the cache push one another, and everything else, out of the main queue.
//!
//! What the main queue can do for a page is known, though: it keeps it for one *lap*, the time in
//! which the queue's hand goes round once. A page that was away for longer than a lap would be
//! gone again before it is next used, and puts out one that would have been. So Lap remembers for
//! long, twice as many pages as the cache has frames, measures the lap, and lets a page back into the
//! main queue only if it was away for at most a *quarter* of a lap: it can then be expected to
//! be used several times in each, which is what it takes to stay. Time is counted in pages evicted
//! from the small queue, so it stands still when nothing is evicted.
//!
//! This steers itself. When more of what comes back is let in than the main queue has place for,
//! the lap grows shorter and the queue more exacting; when it has settled, the lap is long and what
//! is new has its chance. The idea that a page is to be compared with what the cache would otherwise keep is
//! that of LIRS (Jiang and Zhang, SIGMETRICS '02), at the price of a FIFO.

use std::collections::VecDeque;

use super::fifos::{Fifos, Walk};
use super::ghosts::Ghosts;
use super::list::Links;
use super::{Pages, Policy};

/// Pages remembered for each frame. Twice: a page that is to be used about once each time as
/// many pages have come in as the cache holds must be recognised, late by half or by one.
const GHOSTS_PER_SLOT: usize = 2;
/// A page may come back to the main queue after this part of a lap.
const LAP_PARTS: u64 = 4;
/// Pages of the main queue that are timed at once.
const TIMED_MAX: usize = 16;

/// See the module page.
#[derive(Debug)]
pub struct Lap {
    fifos: Fifos,
    watch: Watch,
}

/// Ghosts, and how long a lap of the main queue takes.
#[derive(Debug)]
struct Watch {
    ghosts: Ghosts,
    /// Pages evicted from the small queue.
    now: u64,
    /// Pages in the main queue that are being timed, in their order there, each with when it was
    /// put there.
    timed: VecDeque<(u32, u64)>,
    /// Pages put into the main queue since the last that is timed.
    pushed: usize,
    /// How long the last laps took, smoothed; `None` before the first.
    lap: Option<u64>,
}

impl Watch {
    /// The longest that a page may have been away to be let into the main queue.
    fn away_max(&self) -> u64 {
        let Some(lap) = self.lap else { return u64::MAX };
        // A lap that is under way and longer than the last ones counts as soon as it is.
        let under_way = self.timed.front().map_or(0, |(_, since)| self.now - since);
        lap.max(under_way) / LAP_PARTS
    }
}

impl Walk for Watch {
    fn main_pushed(&mut self, slot: u32, len: usize) {
        self.pushed += 1;
        if self.timed.len() < TIMED_MAX && self.pushed > len / TIMED_MAX {
            self.timed.push_back((slot, self.now));
            self.pushed = 0;
        }
    }

    fn main_popped(&mut self, slot: u32) {
        let Some((timed, since)) = self.timed.front().copied() else { return };
        if timed != slot {
            return;
        }
        self.timed.pop_front();
        let took = self.now - since;
        self.lap = Some(self.lap.map_or(took, |lap| (lap * 3 + took) / 4));
    }

    fn main_left(&mut self, slot: u32) {
        self.timed.retain(|(timed, _)| *timed != slot);
    }

    fn small_evicted(&mut self, key: u64) {
        self.now += 1;
        self.ghosts.put(key);
    }
}

impl Policy for Lap {
    fn new(slots: usize) -> Self {
        Self {
            fifos: Fifos::new(slots),
            watch: Watch {
                ghosts: Ghosts::new(GHOSTS_PER_SLOT * slots),
                now: 0,
                timed: VecDeque::with_capacity(TIMED_MAX),
                pushed: 0,
                lap: None,
            },
        }
    }

    fn resize(&mut self, slots: usize) {
        self.fifos.resize(slots);
        self.watch.ghosts.resize(GHOSTS_PER_SLOT * slots);
    }

    fn moved(&mut self, links: &mut Links, from: u32, to: u32) {
        self.fifos.moved(links, from, to);
        for (timed, _) in &mut self.watch.timed {
            if *timed == from {
                *timed = to;
            }
        }
    }

    fn admit(&mut self, slot: u32, key: u64) {
        let away = self.watch.ghosts.take(key);
        let back = away.is_some_and(|away| away <= self.watch.away_max());
        self.fifos.admit(slot, back);
    }

    #[inline]
    fn hit(&mut self, _links: &mut Links, slot: u32) {
        self.fifos.hit(slot);
    }

    fn link(&mut self, links: &mut Links, slot: u32) {
        self.fifos.link(links, slot, &mut self.watch);
    }

    fn unlink(&mut self, links: &mut Links, slot: u32) {
        self.fifos.unlink(links, slot, &mut self.watch);
    }

    fn victim(&mut self, links: &mut Links, pages: &impl Pages) -> Option<u32> {
        self.fifos.victim(links, pages, &mut self.watch)
    }

    fn prefetch(&self, key: u64) {
        self.watch.ghosts.prefetch(key);
    }

    fn remembers(&self, key: u64) -> bool {
        self.watch.ghosts.age(key).is_some()
    }

    fn memory_bytes(&self) -> usize {
        self.fifos.memory_bytes() + self.watch.ghosts.memory_bytes()
    }
}
