//! Time as an argument.
//!
//! Below the outermost binary nothing reads a clock by itself, so that a test can run a controller
//! that never gets ready in no time at all, and a whole stack can be replayed from one seed.

use std::fmt;
use std::time::{Duration, Instant};

/// A monotonic clock and a way to let it advance. Shared by reference between threads.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since an arbitrary fixed point; never goes back.
    fn now(&self) -> Duration;

    /// Waits for about `duration`. Only control paths (bring-up, reset, teardown) call it; the data
    /// path never does.
    fn sleep(&self, duration: Duration);
}

/// The machine's monotonic clock (`CLOCK_MONOTONIC`) and `nanosleep`.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts at zero now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
