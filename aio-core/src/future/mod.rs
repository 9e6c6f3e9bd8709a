//! The same commands as futures, on any executor.
//!
//! ```text
//!   poll ──► cached? ── yes ─► ready, in the task's thread, without a slot
//!             │ no
//!             ▼
//!        a place (and with it an event slot), first come first served
//!             │ submit, with the place as its notice
//!             ▼
//!        event ──► its place ──► the task is woken, and finds it there
//! ```
//!
//! # Cancellation
//!
//! Dropping a future cancels its command ([`Context::cancel`]). The future owned the memory, and the
//! command owns it until its event: dropping frees nothing that is in use. Whether a write that was
//! dropped has happened is not known, in part or in whole; cancel by ticket where that matters.
//!
//! A future that is forgotten (`std::mem::forget`) is sound, too, and keeps its place, and with that one
//! of the context's slots, for ever.
//!
//! # Why there is no future that borrows its memory
//!
//! A future can be forgotten (`std::mem::forget`) while its command goes on, and a borrow ends with its
//! lifetime, not with a destructor; so a future that lends the caller's memory to a device cannot be
//! sound. [`Reactor::scope`](crate::Reactor::scope) lends memory instead: it is a call that does not return before everything
//! is done.

mod stream;
mod table;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, Waker};

use crate::buffers::Buffers;
use crate::call::CallError;
use crate::context::Context;
use crate::iocb::Iocb;
use crate::notify::Notify;
use crate::refusal::{Refusal, Refused};
use crate::ticket::Ticket;
use crate::volume::Handle;

pub use stream::EventStream;
use table::{Place, Table};

/// A context whose commands are futures.
///
/// It needs a reactor with a thread ([`Reactor::run`](crate::Reactor::run)); it knows no executor and
/// works with all. A command begins when its future is polled first. As many are in progress as the
/// context has event slots; those beyond wait for a place, in order. Cloning it is another name for
/// the same.
///
/// # Dropping
///
/// With the last name and the last future the context goes, which waits for what is in progress; see
/// [`Context`].
///
/// # Example
///
/// ```
/// # use std::sync::Arc;
/// # use uaio_core::{AsyncContext, ContextOptions, OpenOptions, Reactor, VolumeOptions};
/// # use uaio_driver::{DmaPool, PoolOptions, SystemClock, ram::RamDevice};
/// # use uaio_page_cache::{Cache, CacheOptions};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = DmaPool::new(PoolOptions::frames(512))?;
/// # let device = Arc::new(RamDevice::new(16 << 20, 512, pool)?);
/// # let cache = Cache::new(device, CacheOptions::frames(256))?;
/// # let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
/// # let volume = reactor.attach(cache, VolumeOptions::default())?;
/// # let handle = volume.open(OpenOptions::default());
/// let aio = AsyncContext::new(reactor.context(ContextOptions::events(64))?);
/// std::thread::scope(|threads| {
///     threads.spawn(|| reactor.run());
///     let result = smol::block_on(async {
///         let (written, buffer) = aio.pwrite(&handle, 10, b"hello".to_vec()).await;
///         assert_eq!(written?, 5);
///         aio.fsync(&handle).await?;
///         let (read, buffer) = aio.pread(&handle, 10, buffer).await;
///         assert_eq!((read?, &buffer[..]), (5, &b"hello"[..]));
///         Ok(())
///     });
///     reactor.stop();
///     result
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncContext {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    table: Arc<Table>,
}

/// How a command went, with its memory.
#[derive(Debug)]
#[must_use = "it carries the memory of its command"]
pub struct Finished {
    /// The word that was put on the iocb.
    pub user_data: u64,
    /// How many bytes were moved, or why none was.
    pub result: Result<usize, CallError>,
    /// The iocb's memory.
    pub buffers: Buffers,
}

impl AsyncContext {
    /// Makes the commands of this context futures.
    pub fn new(context: Context) -> Self {
        let table = Table::new(Arc::clone(context.queue()));
        Self { inner: Arc::new(Inner { context, table }) }
    }

    /// Has a command done. Whoever waits is told by the future, so a [notice](Iocb::with_notify) of its
    /// own is not given. A future has one answer, so a [chain](Iocb::then) and a multishot poll are
    /// refused with [`Refusal::Invalid`]: await one after the other, or take the events as a
    /// [stream](Context::events).
    pub fn run(&self, iocb: Iocb) -> Running {
        Running {
            inner: Arc::clone(&self.inner),
            user_data: iocb.user_data,
            stage: Stage::New(iocb),
        }
    }

    /// Fills `buffer` from byte `offset` on; see [`Iocb::pread`].
    pub fn pread(
        &self,
        handle: &Handle,
        offset: u64,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<u8>)> + Send + use<> {
        self.bytes(Iocb::pread(handle, offset, buffer))
    }

    /// Writes `buffer` from byte `offset` on; see [`Iocb::pwrite`].
    pub fn pwrite(
        &self,
        handle: &Handle,
        offset: u64,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<u8>)> + Send + use<> {
        self.bytes(Iocb::pwrite(handle, offset, buffer))
    }

    /// Fills `buffers`, one after the other, from byte `offset` on; see [`Iocb::preadv`].
    pub fn preadv(
        &self,
        handle: &Handle,
        offset: u64,
        buffers: Vec<Vec<u8>>,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<Vec<u8>>)> + Send + use<> {
        self.pieces(Iocb::preadv(handle, offset, buffers))
    }

    /// Writes `buffers`, one after the other, from byte `offset` on; see [`Iocb::pwritev`].
    pub fn pwritev(
        &self,
        handle: &Handle,
        offset: u64,
        buffers: Vec<Vec<u8>>,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<Vec<u8>>)> + Send + use<> {
        self.pieces(Iocb::pwritev(handle, offset, buffers))
    }

    /// Makes stable every write on the volume whose future was ready before this is polled first; see
    /// [`Iocb::fsync`].
    pub fn fsync(
        &self,
        handle: &Handle,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        self.done(Iocb::fsync(handle))
    }

    /// As [`fsync`](AsyncContext::fsync).
    pub fn fdatasync(
        &self,
        handle: &Handle,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        self.done(Iocb::fdatasync(handle))
    }

    /// The same for the writes of a range; see [`Iocb::sync_range`].
    pub fn sync_range(
        &self,
        handle: &Handle,
        offset: u64,
        len_bytes: u64,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        self.done(Iocb::sync_range(handle, offset, len_bytes))
    }

    /// Says that a range is not needed any more; see [`Iocb::discard`].
    pub fn discard(
        &self,
        handle: &Handle,
        offset: u64,
        len_bytes: u64,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        self.done(Iocb::discard(handle, offset, len_bytes))
    }

    /// Makes a range zeroes; see [`Iocb::write_zeroes`].
    pub fn write_zeroes(
        &self,
        handle: &Handle,
        offset: u64,
        len_bytes: u64,
    ) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        self.done(Iocb::write_zeroes(handle, offset, len_bytes))
    }

    fn bytes(
        &self,
        iocb: Iocb,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<u8>)> + Send + use<> {
        let running = self.run(iocb);
        async {
            let Finished { result, buffers, .. } = running.await;
            (result, buffers.into_bytes())
        }
    }

    fn pieces(
        &self,
        iocb: Iocb,
    ) -> impl Future<Output = (Result<usize, CallError>, Vec<Vec<u8>>)> + Send + use<> {
        let running = self.run(iocb);
        async {
            let Finished { result, buffers, .. } = running.await;
            (result, buffers.into_pieces())
        }
    }

    fn done(&self, iocb: Iocb) -> impl Future<Output = Result<(), CallError>> + Send + use<> {
        let running = self.run(iocb);
        async { running.await.result.map(|_| ()) }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.context.fmt(f)
    }
}

/// A command as a future: begins when it is polled first, is cancelled when it is dropped.
#[derive(Debug)]
#[must_use = "nothing is done before it is polled"]
pub struct Running {
    inner: Arc<Inner>,
    user_data: u64,
    stage: Stage,
}

/// Where a future is.
enum Stage {
    /// It has not been polled.
    New(Iocb),
    /// It is in the line for a place.
    Waiting(Iocb, u64),
    /// It has a place and is to be submitted, perhaps once more.
    Placed(Iocb, Arc<Place>),
    /// Its command is in progress.
    Submitted(Ticket, Arc<Place>),
    /// It has been ready.
    Over,
}

impl Future for Running {
    type Output = Finished;

    /// # Panics
    ///
    /// When it is polled after it was ready.
    fn poll(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Finished> {
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Over);
            self.stage = match stage {
                Stage::New(mut iocb) => match self.inner.context.try_now(&mut iocb) {
                    Ok(None) => match self.begin(iocb, None, task) {
                        Some(stage) => stage,
                        None => return Poll::Pending,
                    },
                    Ok(Some(result)) => {
                        return self.ready(result.map_err(CallError::Io), iocb.into_buffers());
                    }
                    Err(reason) => return self.ready(Err(reason.into()), iocb.into_buffers()),
                },
                Stage::Waiting(iocb, waiter) => match self.begin(iocb, Some(waiter), task) {
                    Some(stage) => stage,
                    None => return Poll::Pending,
                },
                Stage::Placed(mut iocb, place) => {
                    iocb.user_data = place.index();
                    iocb.notify = Notify::Waker(Waker::from(Arc::clone(&place)));
                    match self.inner.context.submit(iocb) {
                        Ok(ticket) => Stage::Submitted(ticket, place),
                        Err(Refused { iocb, reason: Refusal::Busy }) => {
                            // Others are ahead, in a line that tells nobody when it moves. Other
                            // tasks first, then once more.
                            self.stage = Stage::Placed(iocb, place);
                            task.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                        Err(Refused { iocb, reason }) => {
                            self.inner.table.give_back(&place);
                            return self.ready(Err(reason.into()), iocb.into_buffers());
                        }
                    }
                }
                Stage::Submitted(ticket, place) => {
                    match self.inner.table.event(&place, task.waker()) {
                        Some(event) => {
                            let result = event.result.map_err(CallError::Io);
                            return self.ready(result, event.buffers);
                        }
                        None => {
                            self.stage = Stage::Submitted(ticket, place);
                            return Poll::Pending;
                        }
                    }
                }
                Stage::Over => panic!("polled after it was ready"),
            };
        }
    }
}

impl Running {
    fn ready(&self, result: Result<usize, CallError>, buffers: Buffers) -> Poll<Finished> {
        Poll::Ready(Finished { user_data: self.user_data, result, buffers })
    }

    /// Takes a place, or leaves the future in the line.
    fn begin(&mut self, iocb: Iocb, waiter: Option<u64>, task: &Task<'_>) -> Option<Stage> {
        let mut waiter = waiter;
        match self.inner.table.take(&mut waiter, task.waker()) {
            Some(place) => Some(Stage::Placed(iocb, place)),
            None => {
                self.stage = waiter.map_or(Stage::Over, |waiter| Stage::Waiting(iocb, waiter));
                None
            }
        }
    }
}

impl Drop for Running {
    /// Cancels what is in progress. May wait for one turn of the reactor, and for no device.
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::New(_) | Stage::Over => {}
            Stage::Waiting(_, waiter) => self.inner.table.leave(waiter),
            Stage::Placed(_, place) => self.inner.table.give_back(&place),
            Stage::Submitted(ticket, place) => {
                if self.inner.table.abandon(&place) {
                    // Its event comes in any case, and says nothing that anybody wants to know.
                    let _ = self.inner.context.cancel(ticket);
                    self.inner.table.sort();
                }
            }
        }
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::New(_) => "New",
            Self::Waiting(..) => "Waiting",
            Self::Placed(..) => "Placed",
            Self::Submitted(..) => "Submitted",
            Self::Over => "Over",
        })
    }
}
