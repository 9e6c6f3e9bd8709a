//! The retry core: where a woken operation goes.
//!
//! An operation is a state machine with one method, a *step*, that is done or has left its entry on
//! exactly one wait queue. The entry's callback puts the operation, with what it was woken with, on
//! the run queue of the lane that steps it, and rings that lane's owner.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use uaio_driver::{Token, Wake};

use crate::wait::{WakeTarget, Wakeup};

/// Operations that can go on, with what they were woken with. Many wake, one lane pops.
pub struct RunQueue {
    queue: ArrayQueue<(Token, Wakeup)>,
    owner: Arc<dyn Wake>,
}

impl RunQueue {
    /// For a lane of `operations` operations; `owner` is rung when one can go on.
    pub fn new(operations: usize, owner: Arc<dyn Wake>) -> Arc<Self> {
        Arc::new(Self { queue: ArrayQueue::new(operations.max(1)), owner })
    }

    /// The next operation, first woken first.
    pub fn pop(&self) -> Option<(Token, Wakeup)> {
        self.queue.pop()
    }

    /// Whether no operation can go on.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// An operation of the owner, which waits for nobody, goes on after those that can already. The owner
    /// does not ring itself: it looks before it sleeps.
    ///
    /// # Panics
    ///
    /// As when it is woken.
    pub(crate) fn again(&self, token: Token) {
        let pushed = self.queue.push((token, Wakeup::Retry));
        assert!(pushed.is_ok(), "an operation was woken twice");
    }

    /// Rings the owner without waking an operation.
    pub fn ring(&self) {
        self.owner.wake();
    }
}

impl WakeTarget for RunQueue {
    /// # Panics
    ///
    /// When more is woken than there are operations: an operation was on two queues.
    fn wake(&self, token: Token, wakeup: Wakeup) {
        let pushed = self.queue.push((token, wakeup));
        assert!(pushed.is_ok(), "an operation was woken twice");
        self.owner.wake();
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation that waits must be kept, one that is done must be answered"]
pub(crate) enum Step<T> {
    /// The operation is over.
    Done(T),
    /// It has left its entry on one queue, or has device requests in flight.
    Waiting,
}
