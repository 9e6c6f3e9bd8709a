//! Whether a reactor has a thread that turns it, for those who would leave it something to do.
//!
//! | who leaves something | the thread, when it stops |
//! |---|---|
//! | 1. takes the lock of what it is in | 1. says that it turns no more |
//! | 2. a thread turns: leaves it there; none: does it | 2. takes that lock, and does what was left |
//! | 3. drops the lock | |
//!
//! The lock orders the two: if the thread takes it later, it finds what was left; if earlier, who comes
//! after it sees that nobody turns. `tests/runner_loom.rs` runs this file's own code under loom.

use super::sync::{AtomicBool, Ordering};

/// Whether a thread turns the reactor until it is stopped.
pub(crate) struct Runner(AtomicBool);

impl Runner {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Ask it under the lock of what is to be left. Relaxed: that lock orders it.
    pub(crate) fn turns(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The calling thread turns until the answer is dropped, also by a panic. What was left by then is
    /// to be done after that.
    pub(crate) fn begin(&self) -> Running<'_> {
        self.0.store(true, Ordering::Relaxed);
        Running(self)
    }
}

/// A thread turns.
#[must_use = "it turns until this is dropped"]
pub(crate) struct Running<'a>(&'a Runner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}
