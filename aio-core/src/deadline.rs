//! Deadlines of what is in progress.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use uaio_driver::{Slots, Token};

/// When each request in progress is to end. Holds tokens only; those of requests that are over stay
/// until they come up or make no room for others, so a request that is done in time costs nothing here.
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Duration, Token)>>,
    len_max: usize,
}

impl Deadlines {
    /// For `requests` requests at once. Room for twice as many is made at the first deadline: then
    /// cleaning up leaves at least as many places as it looked at, so each costs a constant time.
    pub(crate) fn new(requests: usize) -> Self {
        Self { heap: BinaryHeap::new(), len_max: 2 * requests.max(1) }
    }

    /// For more requests at once.
    pub(crate) fn grow(&mut self, requests: usize) {
        self.len_max = self.len_max.max(2 * requests);
    }

    pub(crate) fn push<T>(&mut self, deadline: Duration, token: Token, requests: &Slots<T>) {
        if self.heap.capacity() < self.len_max {
            self.heap.reserve_exact(self.len_max - self.heap.len());
        }
        if self.heap.len() >= self.len_max {
            self.heap.retain(|Reverse((_, token))| requests.get(*token).is_some());
        }
        self.heap.push(Reverse((deadline, token)));
    }

    /// One whose time is up. It may be over already.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Token> {
        let Reverse((deadline, _)) = self.heap.peek()?;
        if *deadline > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, token))| token)
    }

    /// When the next is due, or earlier than that.
    pub(crate) fn next(&self) -> Duration {
        self.heap.peek().map_or(Duration::MAX, |Reverse((deadline, _))| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_those_of_finished_requests_do_not_pile_up() {
        let mut requests = Slots::new(4);
        let mut deadlines = Deadlines::new(4);
        let second = Duration::from_secs(1);
        for round in 0..10_000 {
            let token = requests.insert(()).unwrap();
            deadlines.push(second * (10_000 - round), token, &requests);
            requests.remove(token);
        }
        assert!(deadlines.heap.len() <= 8);
        let live: Vec<_> = (0..4).map(|_| requests.insert(()).unwrap()).collect();
        for (at, token) in live.iter().enumerate() {
            deadlines.push(second / (1 + at as u32), *token, &requests);
        }
        let due: Vec<_> = std::iter::from_fn(|| deadlines.pop_due(second))
            .filter(|token| requests.get(*token).is_some())
            .collect();
        assert_eq!(due, live.into_iter().rev().collect::<Vec<_>>());
        assert_eq!(deadlines.pop_due(second), None);
    }
}
