//! What the reactor answers to a thread that waits for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::futex;

/// What came of a cancel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cancelled {
    /// Requests that ended with ECANCELED.
    pub(crate) cancelled: u32,
    /// Requests that are in progress and cannot be stopped.
    pub(crate) in_progress: u32,
    /// Requests that were found, and ended otherwise.
    pub(crate) done: u32,
}

/// The place where a thread waits for the answer.
#[derive(Debug, Default)]
pub(super) struct Reply {
    is_there: AtomicU32,
    cancelled: AtomicU32,
    in_progress: AtomicU32,
    done: AtomicU32,
}

impl Reply {
    pub(super) fn answer(&self, answer: Cancelled) {
        // Relaxed: `is_there` publishes them.
        self.cancelled.store(answer.cancelled, Ordering::Relaxed);
        self.in_progress.store(answer.in_progress, Ordering::Relaxed);
        self.done.store(answer.done, Ordering::Relaxed);
        self.is_there.store(1, Ordering::Release);
        futex::wake(&self.is_there);
    }

    /// Waits for as long as it takes: the reactor answers within its own bound.
    pub(super) fn wait(&self) -> Cancelled {
        while self.is_there.load(Ordering::Acquire) == 0 {
            futex::wait(&self.is_there, 0, Duration::from_secs(1));
        }
        Cancelled {
            cancelled: self.cancelled.load(Ordering::Relaxed),
            in_progress: self.in_progress.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
        }
    }
}
