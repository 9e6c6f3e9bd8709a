//! Deadlines that cost the data path nothing.

use std::time::Duration;

/// Deadlines without a clock on the data path: a request is late when it was seen in flight by more
/// than `scans` scans, which are at least `interval` apart. So it had at least the timeout, and at
/// most a quarter more and a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) interval: Duration,
    pub(super) scans: u16,
    /// When the last scan was.
    pub(super) scanned: Duration,
    pub(super) timeout: Duration,
}

impl Deadlines {
    pub(super) fn new(timeout: Duration, now: Duration) -> Self {
        let interval = (timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let scans = timeout.as_millis().div_ceil(interval.as_millis());
        Self { interval, scans: u16::try_from(scans).unwrap_or(u16::MAX), scanned: now, timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_cover_the_timeout_and_not_much_more() {
        for timeout_ms in [1, 7, 8, 100, 1000, 7999, 8000, 8001, 30_000, 3_600_000] {
            let timeout = Duration::from_millis(timeout_ms);
            let deadlines = Deadlines::new(timeout, Duration::ZERO);
            let covered = deadlines.interval * u32::from(deadlines.scans);
            assert!(covered >= timeout, "{timeout:?}: {deadlines:?}");
            // At most one interval more, and never less than a millisecond each.
            assert!(covered <= timeout + deadlines.interval, "{timeout:?}: {deadlines:?}");
        }
    }
}
