//! A volume: one cache, with the lane and the flusher through which a reactor serves it.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{DeviceError, IoError};
use uaio_page_cache::{Advice, Cache, PagePin};

use crate::cached::Cached;
use crate::registered::RegisteredBuffer;
use crate::station::Station;

/// How a volume is to be served.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Commands in progress at once, at least 1, at most 2^20; those beyond wait in the inbox.
    pub operations: usize,
    /// Commands that can wait in the inbox, at most 2^20; those beyond are refused.
    pub inbox: usize,
    /// Requests in flight on the device at once, at most what the device can.
    pub depth: u16,
    /// Write the cache's dirty pages back. A cache has one flusher: when several reactors serve one
    /// cache, all but one say `false`.
    pub writeback: bool,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self { operations: 256, inbox: 1024, depth: 128, writeback: true }
    }
}

/// How a handle is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Reads and writes leave nothing in the cache, but agree with what is there; they are in whole
    /// blocks (O_DIRECT).
    pub direct: bool,
    /// Writes are stable when their event is there (O_DSYNC).
    pub dsync: bool,
}

/// Something that handles are opened on: a cache that a [`Reactor`](crate::Reactor) serves.
#[derive(Clone)]
pub struct Volume {
    inner: Arc<VolumeInner>,
}

struct VolumeInner {
    cache: Arc<Cache>,
    block_size: u32,
    read_only: bool,
    station: Arc<Station<Cached>>,
}

impl Volume {
    pub(crate) fn new(cache: Arc<Cache>, station: Arc<Station<Cached>>) -> Self {
        let block_size = cache.device().geometry().block_size;
        let read_only = cache.device().capabilities().read_only;
        Self { inner: Arc::new(VolumeInner { cache, block_size, read_only, station }) }
    }

    /// Opens it. Each handle is told once, by a sync, of writebacks that failed while it was open.
    pub fn open(&self, options: OpenOptions) -> Handle {
        let opener = self.inner.cache.open();
        Handle { inner: Arc::new(HandleInner { volume: self.clone(), opener, options }) }
    }

    /// Capacity in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.inner.cache.size_bytes()
    }

    /// Size of a block in bytes: what direct handles are aligned to.
    pub fn block_size(&self) -> u32 {
        self.inner.block_size
    }

    /// Takes memory of the device for `len_bytes` bytes, at least 1 and in whole blocks, zeroed: for
    /// commands without a copy. Its frames, of 4096 bytes each, are those of the pool that are not the
    /// cache's; make the pool larger than the cache by as many. For start and control paths: it allocates
    /// and takes the pool's lock. What has come back in an event is to be used again.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] for another length, [`DeviceError::NoMemory`] when the pool has not so
    /// many frames free.
    pub fn registered_buffer(&self, len_bytes: usize) -> Result<RegisteredBuffer, DeviceError> {
        RegisteredBuffer::new(self.inner.cache.device().pool(), self.inner.block_size, len_bytes)
    }

    /// Whether it may not be written.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.inner.cache
    }

    pub(crate) fn station(&self) -> &Arc<Station<Cached>> {
        &self.inner.station
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Volume").field(&self.inner.cache.device().name()).finish()
    }
}

/// An open volume: what commands name. Cloning it is another name for the same opener.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<HandleInner>,
}

struct HandleInner {
    volume: Volume,
    opener: Arc<uaio_page_cache::Handle>,
    options: OpenOptions,
}

impl Handle {
    /// The volume it is open on.
    pub fn volume(&self) -> &Volume {
        &self.inner.volume
    }

    /// How it was opened.
    pub fn options(&self) -> OpenOptions {
        self.inner.options
    }

    /// Pins the page at `offset`, a multiple of 4096, if all of it is cached: it can then be looked
    /// at without a copy. See [`Cache::try_pin`].
    #[inline]
    pub fn try_pin(&self, offset: u64) -> Option<PagePin<'_>> {
        self.volume().cache().try_pin(offset)
    }

    /// Says how this handle and its clones will read the bytes of a range (`posix_fadvise(2)`). For
    /// `POSIX_FADV_WILLNEED` there is [`Iocb::readahead`](crate::Iocb::readahead).
    pub fn advise(&self, bytes: Range<u64>, advice: Advice) {
        self.opener().advise(bytes, advice);
    }

    /// Whether it is another name for the same opener.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.inner.options.direct
    }

    pub(crate) fn is_stable(&self) -> bool {
        self.inner.options.dsync
    }

    pub(crate) fn opener(&self) -> &Arc<uaio_page_cache::Handle> {
        &self.inner.opener
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(self.volume()).field(&self.options()).finish()
    }
}

impl Volume {
    /// What is told of a close that failed.
    pub(crate) fn close_error(&self, error: IoError) -> CloseError {
        let cache = self.cache();
        let device = cache.device().name().to_owned();
        CloseError { device, error, dirty: cache.dirty_ranges() }
    }
}

/// Why a volume could not be closed in order: data that was acknowledged is only in the cache.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {} of acknowledged data are not stable: {error}", BytesIn(.dirty))]
pub struct CloseError {
    /// The device's name.
    pub device: String,
    /// What the last attempt to write them said.
    pub error: IoError,
    /// The bytes of the device that it does not have. Empty when it has all of them and only the
    /// flush of its own cache failed.
    pub dirty: Vec<Range<u64>>,
}

struct BytesIn<'a>(&'a [Range<u64>]);

impl std::fmt::Display for BytesIn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: u64 = self.0.iter().map(|range| range.end - range.start).sum();
        write!(f, "{bytes} bytes")
    }
}
