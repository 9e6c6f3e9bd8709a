//! Writeback errors that nobody was waiting for, kept until everybody was told.

use std::ops::Range;

use uaio_driver::IoError;

use crate::sync::Mutex;

/// How many ranges are remembered one by one; later ones are counted only.
const RANGES_MAX: usize = 64;

/// A failed writeback: which bytes, how often, and what the device said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritebackError {
    /// The bytes of the device, by the page.
    pub bytes: Range<u64>,
    /// What the device said last.
    pub error: IoError,
    /// How often writing this range has failed.
    pub count: u64,
}

/// Errors of a cache. Each handle is told once of what happened while it was open.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ranges: Vec<WritebackError>,
    /// Number of errors so far: what a handle has seen is a count of these.
    total: u64,
    last: Option<IoError>,
}

impl ErrorLog {
    /// Records that writing these bytes failed.
    pub(crate) fn record(&self, bytes: Range<u64>, error: IoError) {
        let mut inner = self.inner.lock();
        inner.total += 1;
        inner.last = Some(error);
        if let Some(known) = inner.ranges.iter_mut().find(|known| known.bytes == bytes) {
            known.count += 1;
            known.error = error;
        } else if inner.ranges.len() < RANGES_MAX {
            inner.ranges.push(WritebackError { bytes, error, count: 1 });
        }
    }

    /// How many errors there were so far; a handle opened now has seen these.
    pub(crate) fn total(&self) -> u64 {
        self.inner.lock().total
    }

    /// The last error after the first `seen`, and how many there are now.
    pub(crate) fn since(&self, seen: u64) -> (Option<IoError>, u64) {
        let inner = self.inner.lock();
        let error = if inner.total > seen { inner.last } else { None };
        (error, inner.total)
    }

    /// The ranges that failed, oldest first.
    pub(crate) fn ranges(&self) -> Vec<WritebackError> {
        self.inner.lock().ranges.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uaio_driver::IoErrorKind;

    #[test]
    fn each_handle_is_told_once_of_what_happened_while_it_was_open() {
        let log = ErrorLog::default();
        let error = IoError::new(IoErrorKind::Media);
        let (mut early, mut second) = (log.total(), log.total());
        log.record(0..4096, error);
        log.record(0..4096, error);
        let late = log.total();
        for seen in [&mut early, &mut second] {
            let (told, now) = log.since(*seen);
            assert_eq!(told, Some(error));
            *seen = now;
            assert_eq!(log.since(*seen).0, None);
        }
        assert_eq!(log.since(late).0, None);
        assert_eq!(log.ranges(), [WritebackError { bytes: 0..4096, error, count: 2 }]);
    }
}
