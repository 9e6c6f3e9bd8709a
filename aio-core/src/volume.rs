//! A volume: one cache, with the lane and the flusher through which a reactor serves it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;
use uaio_driver::{Armed, Doorbell, IoError, IoErrorKind, IoResult, Slots, Token, Wake};
use uaio_page_cache::{Buffer, Cache, Finished, Flusher, Lane, OpKind, Operation, PagePin};

use crate::reactor::Shared;
use crate::request::Request;

/// How a volume is to be served.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Commands in progress at once, at least 1; those beyond wait in the inbox.
    pub operations: usize,
    /// Commands that can wait in the inbox; those beyond are refused.
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

impl Volume {
    pub(crate) fn new(inner: Arc<VolumeInner>) -> Self {
        Self { inner }
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

    /// Whether it may not be written.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.inner.cache
    }

    pub(crate) fn inner(&self) -> &VolumeInner {
        &self.inner
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

/// What the handles of a volume, its contexts and its reactor share.
pub(crate) struct VolumeInner {
    cache: Arc<Cache>,
    block_size: u32,
    read_only: bool,
    shared: Arc<Shared>,
    /// Commands that found the core busy or full. First in, first out.
    inbox: ArrayQueue<Request>,
    /// Newcomers are refused, and who closes it steps it.
    closed: AtomicBool,
    /// Nobody steps it any more.
    gone: AtomicBool,
    /// Taken by who turns the reactor, and tried by who submits. `None` once closed.
    ///
    /// Lock order: core, then whatever the cache locks, then an event queue.
    core: Mutex<Option<Core>>,
}

/// What is stepped under the core's lock. The lane goes before the flusher, which it may wait for.
pub(crate) struct Core {
    lane: Lane,
    flusher: Option<Writeback>,
    requests: Slots<Request>,
    /// How the last flush went, when the volume is being closed.
    last_flush: Option<IoResult>,
}

/// The flusher and when it is to be turned: when rung, while it has something in flight, and once
/// its time has come. It looks at every shard, so it is not turned for every completion of the lane.
pub(crate) struct Writeback {
    flusher: Flusher,
    rung: Arc<FlusherBell>,
    busy: bool,
    next: Duration,
}

/// How the flusher is rung.
#[derive(Debug)]
pub(crate) struct FlusherBell {
    rung: AtomicBool,
    bell: Arc<Doorbell>,
}

impl FlusherBell {
    pub(crate) fn new(bell: Arc<Doorbell>) -> Arc<Self> {
        Arc::new(Self { rung: AtomicBool::new(true), bell })
    }
}

impl Wake for FlusherBell {
    fn wake(&self) {
        // Release: pairs with the swap in `turn`, so that the flusher sees what it was rung for.
        self.rung.store(true, Ordering::Release);
        self.bell.wake();
    }
}

/// The token of the flush of [`VolumeInner::close`]; no request has it, for there are fewer slots.
const LAST_FLUSH: Token = Token { slot: u32::MAX, generation: 0 };

/// What a turn came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turned {
    /// Something went on.
    pub(crate) busy: bool,
    /// When to turn again at the latest.
    pub(crate) next: Duration,
}

impl VolumeInner {
    pub(crate) fn new(
        shared: Arc<Shared>,
        lane: Lane,
        flusher: Option<(Flusher, Arc<FlusherBell>)>,
        options: VolumeOptions,
    ) -> Arc<Self> {
        let cache = Arc::clone(lane.cache());
        let flusher = flusher.map(|(flusher, rung)| Writeback {
            flusher,
            rung,
            busy: true,
            next: Duration::ZERO,
        });
        let requests = Slots::new(options.operations);
        Arc::new(Self {
            block_size: cache.device().geometry().block_size,
            read_only: cache.device().capabilities().read_only,
            cache,
            shared,
            inbox: ArrayQueue::new(options.inbox.max(1)),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            core: Mutex::new(Some(Core { lane, flusher, requests, last_flush: None })),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes a request in: its first step is done here, in the caller's thread, unless somebody
    /// steps the volume already or it is full; then it goes to the inbox. Never blocks. With
    /// `commit` the device sees it now.
    ///
    /// # Errors
    ///
    /// The request, when the inbox is full or the volume closed.
    pub(crate) fn take_in(&self, request: Request, commit: bool) -> Result<(), Request> {
        let mut request = Some(request);
        // Newcomers queue behind those who wait.
        if self.inbox.is_empty()
            && let Some(mut core) = self.core.try_lock()
            && let Some(core) = core.as_mut()
            && let Some(first) = request.take()
        {
            match core.start(first) {
                Ok(()) => {
                    core.finish();
                    if commit {
                        self.commit_core(core);
                    }
                    return Ok(());
                }
                Err(back) => request = Some(back),
            }
        }
        let Some(request) = request else { return Ok(()) };
        if self.closed.load(Ordering::Acquire) {
            return Err(request);
        }
        self.inbox.push(request)?;
        // Pairs with the fence in `close`: it finds the request, or we see that it looked already.
        fence(Ordering::SeqCst);
        if self.gone.load(Ordering::Relaxed) {
            self.fail_inbox();
        }
        self.shared.bell().wake();
        Ok(())
    }

    /// Makes the device see what was taken in without it.
    pub(crate) fn commit(&self) {
        // If somebody else has the lock: whoever turns commits at the end of the turn, and whoever
        // submits after the step.
        if let Some(mut core) = self.core.try_lock()
            && let Some(core) = core.as_mut()
        {
            self.commit_core(core);
        }
    }

    fn commit_core(&self, core: &mut Core) {
        core.lane.commit();
        // Who turns is asleep on what was armed before: arm again for what was sent since, or wake
        // it. If it only is about to sleep, it takes this lock once more and does so itself.
        let bell = self.shared.bell();
        if bell.is_sleeping() && core.lane.arm() != Armed::Yes {
            bell.wake();
        }
    }

    /// Steps everything once. Does not block but for a submitter's first step.
    pub(crate) fn turn(&self, now: Duration) -> Turned {
        if !self.closed.load(Ordering::Acquire)
            && let Some(core) = self.core.lock().as_mut()
        {
            return core.turn(&self.inbox, now);
        }
        Turned { busy: false, next: Duration::MAX }
    }

    /// Whether who turns may sleep.
    pub(crate) fn arm(&self) -> Armed {
        if self.closed.load(Ordering::Acquire) {
            return Armed::Yes;
        }
        let mut core = self.core.lock();
        let Some(core) = core.as_mut() else { return Armed::Yes };
        if !self.inbox.is_empty() && core.requests.free() > 0 {
            return Armed::Ready;
        }
        let lane = core.lane.arm();
        let flusher = core.flusher.as_mut().map_or(Armed::Yes, Writeback::arm);
        match (lane, flusher) {
            (Armed::Ready, _) | (_, Armed::Ready) => Armed::Ready,
            (Armed::MustPoll, _) | (_, Armed::MustPoll) => Armed::MustPoll,
            (Armed::Yes, Armed::Yes) => Armed::Yes,
        }
    }

    /// Finishes everything that was taken in, makes all of the cache stable, and lets go of the
    /// device's queues. Takes as long as the device does, bounded by its deadlines.
    pub(crate) fn close(&self) -> Result<(), CloseError> {
        self.closed.store(true, Ordering::Release);
        let clock = self.shared.clock();
        let mut guard = self.core.lock();
        let Some(core) = guard.as_mut() else { return Ok(()) };
        let drive = |core: &mut Core, done: &dyn Fn(&Core) -> bool| {
            while !done(core) {
                if !core.turn(&self.inbox, clock.now()).busy {
                    clock.sleep(Duration::from_micros(50));
                }
            }
        };
        drive(core, &|core| self.inbox.is_empty() && core.requests.is_empty());
        let mut result = Ok(());
        if core.flusher.is_some() {
            core.start_last_flush(self.cache.open());
            drive(core, &|core| core.last_flush.is_some());
            result = core.last_flush.take().unwrap_or(Ok(()));
        }
        *guard = None;
        drop(guard);
        self.gone.store(true, Ordering::Relaxed);
        // Pairs with the fence in `take_in`.
        fence(Ordering::SeqCst);
        self.fail_inbox();
        result.map_err(|error| CloseError {
            device: self.cache.device().name().to_owned(),
            error,
            dirty: self.cache.dirty_ranges(),
        })
    }

    /// Answers what came to the inbox of a closed volume.
    fn fail_inbox(&self) {
        while let Some(request) = self.inbox.pop() {
            request.complete(Err(IoError::new(IoErrorKind::Gone)));
        }
    }
}

impl Core {
    /// Starts a request, or gives it back when as many as there may be are in progress.
    fn start(&mut self, request: Request) -> Result<(), Request> {
        let token = self.requests.insert(request)?;
        self.next_piece(token);
        Ok(())
    }

    fn next_piece(&mut self, token: Token) {
        let Some(request) = self.requests.get_mut(token) else { return };
        let operation = request.next_operation(token);
        // The lane holds as many operations as there are requests, and each has one at a time.
        let started = self.lane.start(operation);
        assert!(started.is_ok(), "the lane is full with {} requests", self.requests.len());
    }

    /// Answers what is finished, and goes on with what is not.
    fn finish(&mut self) -> bool {
        let mut any = false;
        while let Some(Finished { token, result, buffer }) = self.lane.pop_finished() {
            any = true;
            if token == LAST_FLUSH {
                self.last_flush = Some(result);
                continue;
            }
            let Some(request) = self.requests.get_mut(token) else {
                panic!("the lane finished what was not started: {token:?}")
            };
            if request.piece_done(result, buffer) {
                self.next_piece(token);
            } else if let Some(request) = self.requests.remove(token) {
                request.complete(result);
            }
        }
        any
    }

    fn turn(&mut self, inbox: &ArrayQueue<Request>, now: Duration) -> Turned {
        let mut busy = self.lane.turn();
        busy |= self.finish();
        while self.requests.free() > 0
            && let Some(request) = inbox.pop()
        {
            busy = true;
            let started = self.start(request);
            debug_assert!(started.is_ok(), "a free place was seen");
        }
        busy |= self.finish();
        self.lane.commit();
        let mut next = Duration::MAX;
        if let Some(writeback) = &mut self.flusher {
            busy |= writeback.turn(now);
            next = writeback.next;
        }
        Turned { busy, next }
    }

    fn start_last_flush(&mut self, handle: Arc<uaio_page_cache::Handle>) {
        let flush = Operation {
            token: LAST_FLUSH,
            kind: OpKind::Flush,
            offset: 0,
            len: 0,
            buffer: Buffer::None,
            handle,
        };
        let started = self.lane.start(flush);
        assert!(started.is_ok(), "the lane was drained");
    }
}

impl Writeback {
    fn turn(&mut self, now: Duration) -> bool {
        // Acquire: pairs with the store in `FlusherBell::wake`.
        let rung = self.rung.rung.swap(false, Ordering::Acquire);
        if !(rung || self.busy || self.flusher.in_flight() > 0 || now >= self.next) {
            return false;
        }
        let turn = self.flusher.turn(now);
        (self.busy, self.next) = (turn.busy, turn.next);
        turn.busy
    }

    fn arm(&mut self) -> Armed {
        if self.busy || self.rung.rung.load(Ordering::Acquire) {
            return Armed::Ready;
        }
        self.flusher.arm()
    }
}
