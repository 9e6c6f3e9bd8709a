//! The inbox: requests that wait to be started.

use std::collections::VecDeque;
use std::time::Duration;

use crate::iocb::Priority;
use crate::request::Request;
use crate::ticket::Ticket;

/// One in so many is taken from the lowest class that waits.
const LOWEST_EVERY: u32 = 16;

/// Requests by class; first in, first out in each. Room for all is made at start; what goes on with
/// a chain comes on top of that, and is bounded by the slots of its context.
pub(crate) struct Inbox {
    classes: [VecDeque<Request>; 3],
    len_max: usize,
    len: usize,
    taken: u32,
    /// The earliest deadline of any, or earlier than that.
    due: Duration,
}

impl Inbox {
    pub(crate) fn new(len_max: usize) -> Self {
        let classes = [Priority::RealTime, Priority::BestEffort, Priority::Idle].map(|class| {
            let usual = class == Priority::BestEffort;
            VecDeque::with_capacity(if usual { len_max } else { 0 })
        });
        Self { classes, len_max, len: 0, taken: 0, due: Duration::MAX }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts a request behind those of its class, or gives it back when there is no room.
    pub(crate) fn push(&mut self, request: Request, beyond: bool) -> Result<(), Request> {
        if self.len >= self.len_max && !beyond {
            return Err(request);
        }
        self.len += 1;
        self.due = request.deadline.map_or(self.due, |deadline| self.due.min(deadline));
        self.classes[request.iocb.priority as usize].push_back(request);
        Ok(())
    }

    /// The next to be started.
    pub(crate) fn pop(&mut self) -> Option<Request> {
        self.taken = self.taken.wrapping_add(1);
        let mut classes = self.classes.iter_mut();
        let request = if self.taken.is_multiple_of(LOWEST_EVERY) {
            classes.rev().find_map(VecDeque::pop_front)
        } else {
            classes.find_map(VecDeque::pop_front)
        };
        self.len -= usize::from(request.is_some());
        request
    }

    /// Takes out one that `which` says yes to, if there is one.
    pub(crate) fn pop_if(&mut self, which: &dyn Fn(&Request) -> bool) -> Option<Request> {
        let found = self.classes.iter_mut().find_map(|class| {
            let at = class.iter().position(which)?;
            class.remove(at)
        });
        self.len -= usize::from(found.is_some());
        found
    }

    /// Takes one submission out, if it waits here.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<Request> {
        self.pop_if(&|request| request.ticket() == ticket)
    }

    /// Takes out one whose time is up, if there is one.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Request> {
        if now < self.due {
            return None;
        }
        let is_due = |request: &Request| request.deadline.is_some_and(|deadline| deadline <= now);
        let found = self.pop_if(&is_due);
        if found.is_none() {
            let deadlines = self.classes.iter().flatten().filter_map(|request| request.deadline);
            self.due = deadlines.min().unwrap_or(Duration::MAX);
        }
        found
    }

    /// When to look again for one whose time is up.
    pub(crate) fn next_due(&self) -> Duration {
        self.due
    }
}
