//! Deadlines that cost the data path nothing.

use std::time::Duration;

/// Deadlines without a clock on the data path: the queue looks at the clock every so many polls, and a
/// tick passes when at least `interval` has since the last one. A command is late when it has seen more
/// than `ticks` of them ([`commands`](super::in_flight::InFlight::commands)): so it had at least the
/// timeout, and at most a quarter more and a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    interval: Duration,
    ticks: u32,
    /// Ticks after which an Abort should have shown.
    overdue_ticks: u32,
    /// When the last tick was.
    ticked: Duration,
    overdue: Duration,
}

impl Deadlines {
    /// For commands that may take `timeout`, and `abort_timeout` more when they are aborted.
    pub(super) fn new(timeout: Duration, abort_timeout: Duration, now: Duration) -> Self {
        let overdue = timeout.saturating_add(abort_timeout);
        // Ages are 16 bits.
        let interval = (timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let interval = interval.max(overdue / (1 << 15));
        let overdue_ticks = ticks(overdue, interval);
        Self { interval, ticks: ticks(timeout, interval), overdue_ticks, ticked: now, overdue }
    }

    /// Whether a tick passes now. A queue that nobody polled for an hour is one tick older.
    pub(super) fn tick(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.ticked) >= self.interval;
        if passed {
            self.ticked = now;
        }
        passed
    }

    /// Whether a command of this age is late.
    pub(super) fn is_late(&self, age: u32) -> bool {
        age > self.ticks
    }

    /// Whether a command of this age should have been ended by its Abort.
    pub(super) fn is_overdue(&self, age: u32) -> bool {
        age > self.overdue_ticks
    }

    /// Whether a request of this age may wait for `delay` and not be late.
    pub(super) fn has_time(&self, age: u32, delay: Duration) -> bool {
        let ticks = self.ticks.saturating_sub(age);
        age <= self.ticks && delay <= self.interval.saturating_mul(ticks)
    }

    /// How long a command may take, its Abort included.
    pub(super) fn overdue(&self) -> Duration {
        self.overdue
    }
}

/// How many ticks cover `timeout`.
fn ticks(timeout: Duration, interval: Duration) -> u32 {
    let ticks = timeout.as_millis().div_ceil(interval.as_millis());
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_cover_the_timeout_and_not_much_more() {
        for timeout_ms in [1, 7, 8, 100, 1000, 7999, 8000, 8001, 30_000, 3_600_000] {
            let timeout = Duration::from_millis(timeout_ms);
            let deadlines = Deadlines::new(timeout, Duration::ZERO, Duration::ZERO);
            let covered = deadlines.interval * deadlines.ticks;
            assert!(covered >= timeout, "{timeout:?}: {deadlines:?}");
            // At most one interval more, and never less than a millisecond each.
            assert!(covered <= timeout + deadlines.interval, "{timeout:?}: {deadlines:?}");
        }
    }

    #[test]
    fn ticks_are_at_least_an_interval_apart() {
        let mut deadlines = Deadlines::new(Duration::from_secs(8), Duration::ZERO, Duration::ZERO);
        let ms = Duration::from_millis;
        let at = [(999, false), (1000, true), (1999, false), (9000, true), (9001, false)];
        for (now, passed) in at {
            assert_eq!(deadlines.tick(ms(now)), passed, "{now}");
        }
        assert!(!deadlines.is_late(8) && deadlines.is_late(9));
    }
}
