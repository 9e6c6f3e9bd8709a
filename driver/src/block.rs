//! The contract between a device and whoever uses it.
//!
//! [`BlockDevice`] is the control plane: shared, may block, may allocate. [`IoQueue`] is the data
//! plane: `&mut self`, one owner at a time, never blocks, never allocates. Every implementation
//! passes [`crate::conformance`].

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::dma::{DmaPool, FRAME_SIZE};
use crate::error::{DeviceError, IoError};
use crate::request::{Completion, Op, Refusal, Refused, Request, SgList};
use crate::slots::Token;

/// The size and the limits of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of a logical block in bytes: a power of two from 512 to 4096.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// What one read or write may carry, in bytes: a multiple of 4096, at least 4096.
    pub transfer_max_bytes: u32,
    /// What one discard may cover, in blocks; 0 when the device does not discard.
    pub discard_max_blocks: u32,
    /// What one write-zeroes may cover, in blocks; 0 when the device does not write zeroes.
    pub write_zeroes_max_blocks: u32,
}

impl Geometry {
    /// Capacity in bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.blocks * self.block_size as u64
    }

    /// Checks a request against the geometry and the capabilities; the rules that hold for every
    /// device, so that each implementation begins `submit` with this line.
    pub fn check(&self, capabilities: &Capabilities, request: &Request) -> Result<(), Refusal> {
        let max_blocks = match request.op {
            Op::Flush => {
                let empty = request.blocks == 0 && request.data.frames.is_empty();
                return if empty { Ok(()) } else { Err(Refusal::BadLength) };
            }
            Op::Read | Op::Write { .. } => self.transfer_max_bytes / self.block_size,
            Op::Discard => self.discard_max_blocks,
            Op::WriteZeroes { .. } => self.write_zeroes_max_blocks,
        };
        if request.op.writes() && capabilities.read_only {
            return Err(Refusal::ReadOnly);
        }
        if max_blocks == 0 {
            return Err(Refusal::Unsupported);
        }
        if request.blocks == 0 || request.blocks > max_blocks {
            return Err(Refusal::BadLength);
        }
        match request.lba.0.checked_add(u64::from(request.blocks)) {
            Some(end) if end <= self.blocks => {}
            _ => return Err(Refusal::OutOfRange),
        }
        let SgList { frames, offset } = &request.data;
        if !request.op.has_data() {
            return if frames.is_empty() { Ok(()) } else { Err(Refusal::BadFrames) };
        }
        let len_bytes = request.blocks as usize * self.block_size as usize;
        if *offset as usize >= FRAME_SIZE
            || offset % self.block_size != 0
            || frames.len() != SgList::frames_for(*offset, len_bytes)
        {
            return Err(Refusal::BadFrames);
        }
        Ok(())
    }
}

/// What a device does, and what its acknowledgements mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A completed write may be lost at power failure until a flush, or unless it had FUA. A file
    /// always counts as having a volatile cache.
    pub volatile_cache: bool,
    /// FUA is native: it costs less than a write and a flush. Where it is not, a FUA write is still
    /// taken, and the queue flushes after it before it completes it.
    pub fua: bool,
    /// The device may not be written.
    pub read_only: bool,
    /// How many queues can be open at once.
    pub queues_max: u16,
    /// How many requests a queue can hold at most.
    pub depth_max: u16,
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Good,
    /// It has failed for good with this error; every request gets it.
    Failed(IoError),
}

/// How a queue's owner is told, from any thread, that the queue has work for it.
///
/// A device that is polled never calls it. A queue whose requests wait for each other across queues
/// (a cache's) calls it when a request of *this* queue can go on. May be called at any time, often,
/// and from inside anything: it must not block, nor call back into a queue.
pub trait Wake: Send + Sync {
    /// Makes the owner call `poll` soon.
    fn wake(&self);
}

/// A [`Wake`] for owners that poll anyway.
#[derive(Clone, Copy, Debug)]
pub struct PollsAnyway;

impl Wake for PollsAnyway {
    fn wake(&self) {}
}

/// How a queue is to be opened.
#[derive(Clone)]
pub struct QueueOptions {
    /// How many requests it can hold: 1 to [`Capabilities::depth_max`].
    pub depth: u16,
    /// How its owner is told of work that came from elsewhere.
    pub wake: Arc<dyn Wake>,
}

impl QueueOptions {
    /// A queue of `depth` requests whose owner polls.
    pub fn polled(depth: u16) -> Self {
        Self { depth, wake: Arc::new(PollsAnyway) }
    }
}

impl fmt::Debug for QueueOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueOptions").field("depth", &self.depth).finish_non_exhaustive()
    }
}

/// Whether a queue's owner may go to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "sleeping on a queue that is not armed may be for ever"]
pub enum Armed {
    /// It may: whatever comes makes [`IoQueue::event_fd`] readable or calls the queue's [`Wake`].
    ///
    /// Deadlines are looked at by `poll` and `arm`, and nothing else tells of them: with something in
    /// flight, an owner that wants them kept sleeps a second at most.
    Yes,
    /// Something is there already: poll again.
    Ready,
    /// Something is in flight and the device cannot tell: keep polling.
    MustPoll,
}

/// What came of asking for a request to be cancelled; see [`IoQueue::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// The device was asked, or will be by the queue itself. The request's answer says whether it took:
    /// [`Cancelled`](crate::IoErrorKind::Cancelled), or what it would have been without.
    Asked,
    /// The request goes on as if nothing had been asked: the device cannot stop it, or cannot stop one
    /// more now.
    Cannot,
    /// No request with this token is in flight: it was answered, or never submitted.
    NotFound,
}

/// A block device: its control plane.
///
/// Shared between threads. Its methods may block and allocate; none is called on a data path.
///
/// # Teardown
///
/// Queues are dropped first (each drains itself), then [`close`](BlockDevice::close) is called, then
/// the memory goes. A device whose queues are still open cannot be closed. Never drop the last
/// reference to a device inside the handling of a completion.
pub trait BlockDevice: Send + Sync {
    /// What the device is called in messages, such as `nvme:0000:00:04.0/1`.
    fn name(&self) -> &str;

    /// Its size and limits. Constant while a queue is open.
    fn geometry(&self) -> Geometry;

    /// What it does and what its acknowledgements mean.
    fn capabilities(&self) -> Capabilities;

    /// The pool that the frames of its requests must be of.
    fn pool(&self) -> &DmaPool;

    /// How it is.
    fn health(&self) -> Health;

    /// Opens one more queue. The queue keeps what it needs of the device alive.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoMoreQueues`], [`DeviceError::Invalid`] for a depth out of range, or what the
    /// device said.
    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError>;

    /// Shuts the device down in order: what it can make stable by itself is stable afterwards.
    /// Takes effect once; a second call is a success that does nothing. Bounded in time.
    ///
    /// # Errors
    ///
    /// When queues are still open, or the device did not shut down; the error says which.
    fn close(&self) -> Result<(), DeviceError>;
}

/// A queue of a block device: its data plane.
///
/// # Submit/complete split
///
/// [`submit`](IoQueue::submit) takes a request or hands it back whole. [`commit`](IoQueue::commit)
/// makes everything submitted since the last one visible to the device at once.
/// [`poll`](IoQueue::poll) moves completions out and never calls back into user code, so nothing
/// re-enters a queue. Every request taken is answered exactly once, also when the device fails.
///
/// # Ordering
///
/// Requests in flight are independent: the device may do them in any order, and completions come in
/// any order. A flush covers the writes that had *completed* when it was submitted. A later request
/// that must see an earlier one is submitted after the earlier one's completion.
///
/// # Threads
///
/// One owner at a time; the queue may be moved to another thread between calls.
///
/// # Cancellation
///
/// [`cancel`](IoQueue::cancel) is a request to a request: best effort, and never an answer by itself.
/// What is cancelled is still answered, once, by `poll`, with its frames; the device has let go of
/// them then as after any other completion.
///
/// # Dropping
///
/// Dropping a queue stops submission and drains it: it waits, bounded, until the device has let go
/// of every frame. If the device will not, the frames are leaked, and the device's health says so.
pub trait IoQueue: Send {
    /// Takes a request. Does not block, does not allocate, does not enter the kernel.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the request as it was.
    fn submit(&mut self, request: Request) -> Result<(), Refused>;

    /// Makes everything submitted since the last commit visible to the device: one doorbell, one
    /// system call. Nothing to commit is fine and costs nothing.
    fn commit(&mut self);

    /// Moves at most `budget` completions to the end of `out` and says how many. Does not block.
    /// Does not allocate when `out` has room for `budget` more.
    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize;

    /// Asks for the request in flight that `token` names to end early. Best effort: it is answered
    /// exactly once all the same, by `poll`, with `Cancelled` when the cancel took and with its own
    /// result when it came too late. A write, discard or zeroes that was cancelled may have been done
    /// in part, in whole or not at all. Commits what was submitted, so that a request is cancelled
    /// where it is and not held back here.
    ///
    /// Does not block and does not allocate; looks through the requests in flight, and may enter the
    /// kernel or write a doorbell. When several requests in flight have the token, one of them is
    /// meant. A queue that does not say otherwise cannot.
    fn cancel(&mut self, token: Token) -> Cancel {
        let _ = token;
        Cancel::Cannot
    }

    /// How many requests were taken and not yet moved out by `poll`.
    fn in_flight(&self) -> usize;

    /// How many requests it holds at most.
    fn depth(&self) -> usize;

    /// Prepares for the owner to sleep; see [`Armed`]. Call it after `commit`, look at what it says,
    /// and only then sleep on [`event_fd`](IoQueue::event_fd) and on whatever the [`Wake`] rings.
    fn arm(&mut self) -> Armed;

    /// What becomes readable when an armed queue has completions; `None` when it only can be polled
    /// or only calls its [`Wake`]. The owner may read it empty. Lives as long as the queue.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;
}
