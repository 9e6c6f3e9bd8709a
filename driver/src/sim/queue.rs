//! A queue of a simulated device.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Shared;
use super::machine::{QueueId, Submitted};
use crate::block::{Armed, Cancel, IoQueue};
use crate::request::{Completion, Refusal, Refused, Request};
use crate::slots::Token;

#[derive(Debug)]
pub(super) struct SimQueue {
    shared: Arc<Shared>,
    id: QueueId,
    /// Submitted and not committed; after a crash, also what was committed into the void.
    waiting: Vec<Submitted>,
    in_flight: usize,
    depth: usize,
}

impl SimQueue {
    pub(super) fn new(shared: Arc<Shared>, id: QueueId, depth: usize) -> Self {
        Self { shared, id, waiting: Vec::with_capacity(depth), in_flight: 0, depth }
    }
}

impl IoQueue for SimQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let fits = self.shared.geometry.check(&self.shared.capabilities, &request);
        let reason = match fits {
            Err(reason) => reason,
            Ok(()) if !request.data.frames.iter().all(|frame| self.shared.pool.owns(frame)) => {
                Refusal::BadFrames
            }
            Ok(()) if self.in_flight == self.depth => Refusal::Full,
            Ok(()) => {
                let covers = self.shared.lock().medium.completed();
                self.waiting.push(Submitted { request, covers });
                self.in_flight += 1;
                return Ok(());
            }
        };
        Err(Refused { request, reason })
    }

    fn commit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut machine = self.shared.lock();
        let lost: Vec<_> = self
            .waiting
            .drain(..)
            .filter_map(|submitted| machine.arrive(self.id, submitted))
            .collect();
        self.waiting.extend(lost);
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let moved = self.shared.lock().poll(self.id, budget, out);
        self.in_flight -= moved;
        moved
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.commit();
        if self.waiting.iter().any(|submitted| submitted.request.token == token) {
            return Cancel::Cannot;
        }
        self.shared.lock().cancel(self.id, token)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn arm(&mut self) -> Armed {
        // Time passes by polling: asleep, nothing would ever come.
        if self.in_flight > 0 { Armed::MustPoll } else { Armed::Yes }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimQueue {
    fn drop(&mut self) {
        self.shared.lock().drain(self.id);
    }
}
