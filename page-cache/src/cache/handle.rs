//! Those who opened a cache, and who is told of what.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{FRAME_SIZE, IoError};

use crate::errors::{Told, WritebackError};
use crate::readahead::Streams;
use crate::sync::Mutex;

use super::Cache;

/// One opener of a cache: each is told once of writeback errors that happened while it was open.
#[derive(Debug)]
pub struct Handle {
    told: Mutex<Told>,
    /// What it reads; see [`crate::readahead`].
    pub(crate) streams: Mutex<Streams>,
}

impl Cache {
    /// A new opener, which has seen all errors so far.
    pub fn open(&self) -> Arc<Handle> {
        Arc::new(Handle { told: Mutex::new(self.errors.told()), streams: Mutex::default() })
    }
}

impl Handle {
    /// The error in these pages that this handle has not been told of, if there is one; the next call says
    /// `None`.
    pub(crate) fn take_error(&self, cache: &Cache, pages: &Range<u64>) -> Option<IoError> {
        let page_size = FRAME_SIZE as u64;
        let bytes = pages.start * page_size..pages.end.saturating_mul(page_size);
        let news = cache.errors.tell(&mut self.told.lock(), &bytes);
        news.map(|news| news.error)
    }

    /// What it was told of last: the range and the count that belong to the error of the last flush which
    /// failed because of a write-back, of this handle. Several are told as one, from the first byte to the
    /// last.
    pub fn last_told(&self) -> Option<WritebackError> {
        self.told.lock().last.clone()
    }
}
