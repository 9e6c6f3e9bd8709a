//! Writeback errors that nobody was waiting for, kept until everybody was told.

use std::ops::Range;

use uaio_driver::IoError;

use crate::sync::Mutex;

/// How many ranges are remembered one by one; of more, those that lie nearest to each other are joined.
const RANGES_MAX: usize = 256;

/// A failed writeback: which bytes, how often, and what the device said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritebackError {
    /// The bytes of the device.
    pub bytes: Range<u64>,
    /// What the device said last.
    pub error: IoError,
    /// How often writing this range has failed.
    pub count: u64,
}

impl WritebackError {
    fn join(&mut self, bytes: &Range<u64>, error: IoError, count: u64) {
        self.bytes = self.bytes.start.min(bytes.start)..self.bytes.end.max(bytes.end);
        self.error = error;
        self.count += count;
    }
}

/// Errors of a cache. Each handle is told once of what happened while it was open.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ranges: Vec<Entry>,
    /// Number of errors so far.
    total: u64,
}

#[derive(Debug)]
struct Entry {
    error: WritebackError,
    /// Number of the last error of it.
    number: u64,
}

/// What a handle has been told of.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// All errors up to this number.
    upto: u64,
    /// And later ones of these numbers, by flushes of ranges.
    also: Vec<u64>,
    /// What it was told last.
    pub(crate) last: Option<WritebackError>,
}

impl ErrorLog {
    /// Records that writing these bytes failed.
    pub(crate) fn record(&self, bytes: Range<u64>, error: IoError) {
        let mut inner = self.inner.lock();
        inner.total += 1;
        let number = inner.total;
        let gap = |own: &Entry| {
            let own = &own.error.bytes;
            own.start.saturating_sub(bytes.end).max(bytes.start.saturating_sub(own.end))
        };
        let full = inner.ranges.len() == RANGES_MAX;
        let mut known = inner.ranges.iter().position(|known| known.error.bytes == bytes);
        if known.is_none() && full {
            known = (0..RANGES_MAX).min_by_key(|at| gap(&inner.ranges[*at]));
        }
        match known {
            Some(at) => {
                inner.ranges[at].error.join(&bytes, error, 1);
                inner.ranges[at].number = number;
            }
            None => {
                let error = WritebackError { bytes, error, count: 1 };
                inner.ranges.push(Entry { error, number });
            }
        }
    }

    /// What a handle opened now has been told of: all so far.
    pub(crate) fn told(&self) -> Told {
        Told { upto: self.inner.lock().total, ..Told::default() }
    }

    /// What happened to these bytes that the handle has not been told of, as one: it has been now. Of
    /// what happened elsewhere it is told another time.
    pub(crate) fn tell(&self, told: &mut Told, bytes: &Range<u64>) -> Option<WritebackError> {
        let inner = self.inner.lock();
        let mut news: Option<WritebackError> = None;
        let mut left = false;
        for Entry { error, number } in &inner.ranges {
            if *number <= told.upto || told.also.contains(number) {
                continue;
            }
            if error.bytes.end <= bytes.start || bytes.end <= error.bytes.start {
                left = true;
                continue;
            }
            told.also.push(*number);
            match &mut news {
                Some(news) => news.join(&error.bytes, error.error, error.count),
                None => news = Some(error.clone()),
            }
        }
        if left {
            told.also.retain(|number| inner.ranges.iter().any(|known| known.number == *number));
        } else {
            told.upto = inner.total;
            told.also.clear();
        }
        if news.is_some() {
            told.last.clone_from(&news);
        }
        news
    }

    /// The ranges that failed, oldest first.
    pub(crate) fn ranges(&self) -> Vec<WritebackError> {
        self.inner.lock().ranges.iter().map(|known| known.error.clone()).collect()
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
        let (mut early, mut second) = (log.told(), log.told());
        log.record(0..4096, error);
        log.record(0..4096, error);
        let mut late = log.told();
        let all = 0..u64::MAX;
        for told in [&mut early, &mut second] {
            let news = log.tell(told, &all);
            assert_eq!(news, Some(WritebackError { bytes: 0..4096, error, count: 2 }));
            assert_eq!(log.tell(told, &all), None);
            assert_eq!(told.last, news);
        }
        assert_eq!(log.tell(&mut late, &all), None);
        assert_eq!(log.ranges(), [WritebackError { bytes: 0..4096, error, count: 2 }]);
    }

    #[test]
    fn a_range_is_told_of_what_happened_in_it_and_the_rest_is_told_another_time() {
        let log = ErrorLog::default();
        let error = IoError::new(IoErrorKind::Media);
        let mut told = log.told();
        log.record(0..4096, error);
        log.record(8192..12288, error);
        assert_eq!(log.tell(&mut told, &(4096..8192)), None);
        assert_eq!(log.tell(&mut told, &(8192..9000)).unwrap().bytes, 8192..12288);
        assert_eq!(log.tell(&mut told, &(8192..9000)), None);
        log.record(8192..12288, error);
        assert_eq!(log.tell(&mut told, &(8192..9000)).unwrap().count, 2, "again");
        assert_eq!(log.tell(&mut told, &(0..u64::MAX)).unwrap().bytes, 0..4096);
        assert_eq!(log.tell(&mut told, &(0..u64::MAX)), None);
    }

    #[test]
    fn errors_are_told_however_many_there_were_before() {
        let log = ErrorLog::default();
        let error = IoError::new(IoErrorKind::Media);
        for at in 0..1000 {
            log.record(at * 8192..at * 8192 + 4096, error);
        }
        assert_eq!(log.ranges().len(), RANGES_MAX);
        assert_eq!(log.ranges().iter().map(|known| known.count).sum::<u64>(), 1000);
        let mut told = log.told();
        log.record(9_000_000..9_004_096, error);
        let news = log.tell(&mut told, &(9_000_000..9_000_001)).unwrap();
        assert!(news.bytes.contains(&9_000_000), "{news:?}");
    }
}
