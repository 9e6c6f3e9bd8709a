//! What a thread watches that waits for submissions: so many of a list, of several contexts.
//!
//! Who ends a submission gives its ticket's slot back before it tells those who wait, so by then the slot
//! may be another submission's, whom the same thread waits for. A watch knows tickets, therefore, not
//! slots. `tests/watch_loom.rs` runs this file's own code under loom.

use super::sync::{Arc, AtomicIsize, Ordering};
use super::ticket::Ticket;

/// Submissions of one context that somebody waits for, perhaps with those of others.
pub(crate) struct Watch {
    /// By slot. Of one that was counted the generation is 0, which no live one has.
    tickets: Vec<(u32, u32)>,
    /// How many of all contexts have to be over yet; less than 0 when more are.
    left: Arc<AtomicIsize>,
}

impl Watch {
    /// Watches these tickets, each once.
    pub(crate) fn new(tickets: &[Ticket], left: Arc<AtomicIsize>) -> Self {
        Self { tickets: Self::distinct(tickets), left }
    }

    /// How many there are; of one that is named twice there is one.
    pub(crate) fn count(tickets: &[Ticket]) -> usize {
        Self::distinct(tickets).len()
    }

    fn distinct(tickets: &[Ticket]) -> Vec<(u32, u32)> {
        let mut tickets: Vec<_> =
            tickets.iter().map(|ticket| (ticket.slot, ticket.generation)).collect();
        tickets.sort_unstable();
        tickets.dedup();
        tickets
    }

    /// A submission is over: counts it, if it is one of these and has not been.
    pub(crate) fn over(&mut self, ticket: Ticket) {
        // Of those that were live together only one has the slot.
        let found = self.tickets.binary_search_by_key(&ticket.slot, |(slot, _)| *slot);
        if let Ok(at) = found
            && self.tickets[at].1 == ticket.generation
        {
            self.tickets[at].1 = 0;
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether as many as have to be are over.
    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) <= 0
    }
}
