//! Who turns the reactor: one thread at a time, and never nobody while somebody waits.
//!
//! Whoever waits takes a [`Place`]. If nobody turns, the place holds the baton at once and its owner
//! turns the reactor until it has what it waits for. Otherwise the owner parks. Whoever leaves with
//! the baton hands it to the first in line, under the lock, and then unparks that thread: between the
//! two nobody can slip in, and the baton cannot lie unclaimed beside a parked thread. A thread that
//! was handed the baton while it was leaving for a reason of its own (its event came, its time was
//! up) hands it on in turn.
//!
//! `tests/baton_loom.rs` runs this file's own code under loom, through every interleaving.

use std::collections::VecDeque;

use super::sync::{Mutex, MutexGuard, PoisonError, Thread, current};

/// The right to turn one reactor.
pub(crate) struct Baton {
    line: Mutex<Line>,
}

struct Line {
    held: bool,
    next_id: u64,
    /// Those who wait for the baton, parked or about to be.
    waiting: VecDeque<(u64, Thread)>,
}

/// A place in the line for the baton, or the baton itself. Dropping it hands the baton on.
#[must_use = "a place that is dropped at once turns nothing"]
pub(crate) struct Place<'a> {
    baton: &'a Baton,
    id: u64,
    holds: bool,
}

impl Baton {
    /// Held by nobody. Room for `threads` to wait before the line allocates.
    pub(crate) fn new(threads: usize) -> Self {
        let waiting = VecDeque::with_capacity(threads);
        Self { line: Mutex::new(Line { held: false, next_id: 0, waiting }) }
    }

    /// The baton, if nobody holds it, or a place behind those who wait. Does not block.
    pub(crate) fn join(&self) -> Place<'_> {
        let mut line = self.lock();
        let id = line.next_id;
        line.next_id += 1;
        let holds = !std::mem::replace(&mut line.held, true);
        if !holds {
            line.waiting.push_back((id, current()));
        }
        Place { baton: self, id, holds }
    }

    /// The baton, if nobody holds it. Does not block.
    pub(crate) fn try_hold(&self) -> Option<Place<'_>> {
        if std::mem::replace(&mut self.lock().held, true) {
            return None;
        }
        // Whoever holds it has no entry, so needs no name.
        Some(Place { baton: self, id: u64::MAX, holds: true })
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // The line is consistent between any two statements that can panic.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Whether the baton is here. If not, its owner may park: it is unparked when the baton comes.
    pub(crate) fn holds(&mut self) -> bool {
        if !self.holds {
            // A place leaves the line only by being handed the baton.
            let line = self.baton.lock();
            self.holds = line.waiting.iter().all(|(id, _)| *id != self.id);
        }
        self.holds
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.baton.lock();
        if !self.holds
            && let Some(at) = line.waiting.iter().position(|(id, _)| *id == self.id)
        {
            line.waiting.remove(at);
            return;
        }
        let Some((_, next)) = line.waiting.pop_front() else {
            line.held = false;
            return;
        };
        drop(line);
        next.unpark();
    }
}

impl std::fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("holds", &self.holds).finish_non_exhaustive()
    }
}
