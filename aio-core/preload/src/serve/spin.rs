//! How long the reactor looks for work before it sleeps.
//!
//! To wake a thread that sleeps costs whoever submits some microseconds, and the request as much again; to look in vain
//! costs a processor that others may want, of a machine with twenty such programs all of them. So it looks for as long as
//! it paid the last times: twice as long as the last find took, and half as long after each time in vain.

use std::time::Duration;

/// The longest it looks.
const MOST: Duration = Duration::from_micros(50);
/// What is not worth looking for.
const LEAST: Duration = Duration::from_micros(2);

/// How long it pays to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spin {
    budget: Duration,
}

impl Spin {
    pub(super) fn new() -> Self {
        Self { budget: MOST }
    }

    /// Whether to go on looking, so long after the last work.
    pub(super) fn goes_on(&self, idle: Duration) -> bool {
        idle < self.budget
    }

    /// There was work, so long after the last, also if it slept by then.
    pub(super) fn found(&mut self, idle: Duration) {
        if idle <= MOST {
            self.budget = self.budget.max(2 * idle).clamp(LEAST, MOST);
        }
    }

    /// It looked, and there was nothing.
    pub(super) fn in_vain(&mut self) {
        self.budget = if self.budget / 2 < LEAST { Duration::ZERO } else { self.budget / 2 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_finds_anything_soon_looks_no_more_and_who_would_have_looks_again() {
        let mut spin = Spin::new();
        for _ in 0..10 {
            assert_eq!(spin.budget.is_zero(), !spin.goes_on(Duration::ZERO));
            spin.in_vain();
            spin.found(10 * MOST);
        }
        assert!(!spin.goes_on(Duration::ZERO));
        // Slept, and was woken at once.
        spin.found(MOST / 4);
        assert!(spin.goes_on(MOST / 4) && !spin.goes_on(MOST));
        spin.found(MOST);
        assert!(spin.goes_on(MOST / 2));
        assert!(!spin.goes_on(MOST));
    }
}
