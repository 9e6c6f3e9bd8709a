//! A lane: one owner's way through the cache, with a device queue of its own.
//!
//! A lane steps operations. An operation is started, takes its first step at once in the caller's
//! thread, and either is finished or has left its entry on one wait queue or has device requests in
//! flight. [`turn`](Lane::turn) steps what was woken, sends what has gathered with one commit, polls
//! the device and settles what it completed; finished operations are taken out with
//! [`pop_finished`](Lane::pop_finished). Nothing in here blocks.
//!
//! | file | one idea |
//! |---|---|
//! | `operation` | what a lane is asked, and what it answers |
//! | `core` | the device queue, its slots, and what is in flight |
//! | `gather` | neighbouring pages become one command |
//! | `io` | what a request in flight is for |
//! | `flush` | a flush, as its lane steps it |
//! | `page_set` | pages of one operation |

mod core;
mod flush;
mod gather;
mod io;
mod operation;
mod page_set;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{
    Armed, DeviceError, FRAME_SIZE, IoError, IoErrorKind, IoResult, Op, SgList, Slots, Token, Wake,
};

use crate::buffer::Buffer;
use crate::bypass::Bypass;
use crate::cache::{Cache, OUT_OF_RANGE, Ticket};
use crate::commit::StableWrites;
use crate::read::Read;
use crate::readahead::{Plan, Readahead};
use crate::retry::Step;
use crate::wait::Wakeup;
use crate::waited::WaitKind;
use crate::write::Write;

pub(crate) use self::core::Core;
use self::flush::Flush;
pub(crate) use self::gather::{Piece, Run};
pub(crate) use self::io::{Io, IoKind};
pub use self::operation::{Cancelled, Finished, OpKind, Operation};
pub(crate) use self::page_set::PageSet;

/// What an operation is doing.
#[derive(Debug)]
enum Work {
    Read(Read),
    Write(Write),
    Readahead(Readahead),
    Bypass(Bypass),
    Flush(Flush),
}

impl Work {
    /// From now on the operation begins nothing; once what it waits for has come, it is over.
    fn stop(&mut self) {
        match self {
            Self::Read(read) => read.stop(CANCELLED),
            Self::Write(write) => write.stop(CANCELLED),
            Self::Readahead(ahead) => ahead.stop(CANCELLED),
            Self::Bypass(bypass) => bypass.stop(CANCELLED),
            Self::Flush(flush) => flush.stopped = true,
        }
    }

    /// The operation's memory, which it does not touch from now on.
    fn take_buffer(&mut self) -> Buffer {
        match self {
            Self::Read(read) => read.take_buffer(),
            Self::Write(write) => write.take_buffer(),
            Self::Bypass(bypass) => bypass.take_buffer(),
            Self::Readahead(_) | Self::Flush(_) => Buffer::None,
        }
    }

    /// Whether it is a write that is to be stable when it is over.
    fn is_stable_write(&self) -> bool {
        match self {
            Self::Write(write) => write.is_stable(),
            Self::Bypass(bypass) => bypass.is_stable(),
            Self::Read(_) | Self::Readahead(_) | Self::Flush(_) => false,
        }
    }
}

/// The error of a write to a device that takes none.
const READ_ONLY: IoError = IoError::new(IoErrorKind::ReadOnly);

/// The error of an operation that was cancelled.
const CANCELLED: IoError = IoError::new(IoErrorKind::Cancelled);

struct Entry {
    user: Token,
    work: Work,
    /// It was cancelled and answered; it is here until its wake-up or its requests have arrived.
    abandoned: bool,
    /// What it waits for on a queue, and since when.
    waits: Option<(WaitKind, Duration)>,
}

/// One owner's way through a cache; see the module page.
///
/// # Obligation
///
/// While anything is in flight, the owner [turns](Lane::turn) the lane, or sleeps on what it [armed](Lane::arm)
/// and turns it when that rings. Others may depend on it: who waits for a page that this lane reads or writes just
/// now, that it is this lane's turn at, or that a discard or direct write of it covers; a flush may be among them. For
/// a device flush nobody waits on a lane: those are the flusher's, for this lane's stable writes, too. An owner that
/// goes away to compute for long drops its lane, which drains it, or leaves it to a thread that turns it.
pub struct Lane {
    core: Core,
    stable: StableWrites,
    entries: Slots<Entry>,
    finished: VecDeque<Finished>,
}

impl Lane {
    /// The most bytes one read or write may cover.
    pub const LEN_MAX: u64 = 1 << 20;
    /// The most pages [`LEN_MAX`](Self::LEN_MAX) bytes touch.
    pub(crate) const PAGES_MAX: usize = (Self::LEN_MAX as usize / FRAME_SIZE) + 1;

    /// A lane for `operations` operations at once, with a device queue of at most `depth` requests.
    /// `wake` is rung, from any thread, when one of them can go on.
    ///
    /// # Errors
    ///
    /// When the device has no queue left; [`DeviceError::Invalid`] when the cache cannot keep its
    /// [memory limit](Cache::set_memory_max) with this lane.
    pub fn new(
        cache: Arc<Cache>,
        operations: usize,
        depth: u16,
        wake: Arc<dyn Wake>,
    ) -> Result<Self, DeviceError> {
        let mut core = Core::new(cache, operations, depth, wake)?;
        let of_operation = size_of::<(usize, Entry)>() + 2 * size_of::<Finished>();
        core.enlisted
            .charge(operations * of_operation)
            .map_err(|error| DeviceError::Invalid(error.to_string()))?;
        Ok(Self {
            stable: StableWrites::new(core.cache.device().capabilities()),
            core,
            entries: Slots::new(operations),
            // Twice: what was cancelled is finished, and may be an entry still.
            finished: VecDeque::with_capacity(operations * 2),
        })
    }

    /// The cache it goes through.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.core.cache
    }

    /// Starts an operation and takes its first step. Call [`turn`](Self::turn) soon after: it sends
    /// what the step gathered.
    ///
    /// # Errors
    ///
    /// The operation, as it was, when as many are in flight as the lane holds.
    pub fn start(&mut self, operation: Operation) -> Result<(), Operation> {
        if self.entries.free() == 0 {
            return Err(operation);
        }
        self.core.clock.reset();
        let Operation { token, kind, offset, len, buffer, handle } = operation;
        let cache = &self.core.cache;
        let end = offset.checked_add(len);
        let aligned = (offset | len).is_multiple_of(cache.block_size() as u64);
        let has_data = matches!(kind, OpKind::Read { .. } | OpKind::Write { .. });
        let bypasses = matches!(
            kind,
            OpKind::Write { direct: true, .. } | OpKind::Discard | OpKind::WriteZeroes { .. }
        );
        let too_long = has_data && (len > Self::LEN_MAX || len > buffer.len() as u64);
        let foreign = match &buffer {
            Buffer::Registered { frames, from } => {
                let pool = cache.device().pool();
                !from.is_multiple_of(cache.block_size())
                    || !aligned
                    || frames.iter().any(|frame| !pool.owns(frame))
            }
            _ => false,
        };
        let outside = end.is_none_or(|end| end > cache.size_bytes());
        let writes =
            matches!(kind, OpKind::Write { .. } | OpKind::Discard | OpKind::WriteZeroes { .. });
        if writes && cache.read_only {
            // Acknowledged from the cache it could never be written.
            self.finished.push_back(Finished { token, result: Err(READ_ONLY), buffer });
            return Ok(());
        }
        if outside || too_long || foreign || (bypasses && !aligned) {
            self.finished.push_back(Finished { token, result: Err(OUT_OF_RANGE), buffer });
            return Ok(());
        }
        if len == 0 && kind != OpKind::Flush {
            self.finished.push_back(Finished { token, result: Ok(()), buffer });
            return Ok(());
        }
        let none = cache.mode() == crate::CacheMode::None;
        let mut plan = Plan::default();
        let work = match kind {
            OpKind::Read { direct } => {
                let past = direct || none;
                if !past {
                    plan = handle.plan(cache, offset, len);
                }
                let read = Read::new(cache, offset, len as usize, buffer, past);
                Work::Read(if plan.once { read.once() } else { read })
            }
            OpKind::Write { stable, direct } => {
                let way = stable.then(|| {
                    let transfer_max = cache.device().geometry().transfer_max_bytes;
                    self.stable.begin(len.div_ceil(u64::from(transfer_max)))
                });
                if direct && buffer.is_registered() {
                    Work::Bypass(Bypass::write(cache, offset, len, buffer, way))
                } else {
                    let past = direct || none;
                    Work::Write(Write::new(cache, offset, len as usize, buffer, way, past))
                }
            }
            OpKind::Readahead => Work::Readahead(Readahead::new(cache, offset, len)),
            OpKind::Flush | OpKind::FlushRange => {
                let handle = Arc::clone(&handle);
                let pages = match kind {
                    OpKind::Flush => Ticket::ALL,
                    _ => cache.pages_touched(&(offset..offset + len)),
                };
                Work::Flush(Flush { handle, pages, ordered: false, stopped: false })
            }
            OpKind::Discard => Work::Bypass(Bypass::new(cache, offset, len, Op::Discard)),
            OpKind::WriteZeroes { may_unmap } => {
                Work::Bypass(Bypass::new(cache, offset, len, Op::WriteZeroes { may_unmap }))
            }
        };
        let entry = Entry { user: token, work, abandoned: false, waits: None };
        let Ok(me) = self.entries.insert(entry) else { unreachable!("a free entry was seen") };
        self.step(me, Wakeup::Retry);
        // After the step: what the operation itself wants is asked for first.
        self.core.follow(&handle, plan);
        self.core.commit_if_much();
        self.core.wakes.run();
        Ok(())
    }

    /// Steps what was woken, commits, polls the device and settles what it completed. Says whether
    /// anything went on.
    pub fn turn(&mut self) -> bool {
        self.core.clock.reset();
        let mut busy = self.run_woken();
        self.core.commit();
        if self.core.poll() > 0 {
            busy = true;
            while let Some((io, result, data)) = self.core.next_completion() {
                self.settle(io, result, data);
                // Who waited for a page that came with this command has it before the next is looked at:
                // he may be about to set readahead off.
                self.core.wakes.run();
                self.run_woken();
            }
            while let Some(token) = self.core.grant_slot() {
                self.step(token, Wakeup::Retry);
                self.core.slot_granted = false;
            }
        }
        self.core.wakes.run();
        // What completions and callbacks let go is sent in this turn, not the next.
        busy |= self.run_woken();
        self.core.commit();
        busy
    }

    /// Takes an operation back, named by the token it was started with. Of several with the same
    /// token it is any one.
    ///
    /// Does not block: the operation is taken off its wait queue, or what it was just woken with is
    /// given back when it arrives and goes to the next. Looks at every operation of the lane.
    pub fn cancel(&mut self, token: Token) -> Cancelled {
        self.core.clock.reset();
        let named = |entry: &Entry| entry.user == token && !entry.abandoned;
        let Some(me) = self.entries.find(named) else { return Cancelled::Unknown };
        let left = self.core.leave_queue(me);
        let runs_on = self.core.cannot_take_back(me);
        let Some(entry) = self.entries.get_mut(me) else { unreachable!("it was just found") };
        entry.work.stop();
        if !left {
            self.core.cancel_own(me);
        }
        let Some(entry) = self.entries.get_mut(me) else { unreachable!("it was just found") };
        if runs_on {
            return Cancelled::RunsOn;
        }
        if !left {
            // Woken already, and what it was handed is on its way, or the device is reading into
            // frames for it. It goes on for as long as that takes, without its buffer.
            entry.abandoned = true;
            let buffer = entry.work.take_buffer();
            self.finished.push_back(Finished { token, result: Err(CANCELLED), buffer });
            return Cancelled::Finished;
        }
        self.step(me, Wakeup::Retry);
        debug_assert!(self.entries.get(me).is_none(), "a cancelled operation went on");
        self.core.wakes.run();
        Cancelled::Finished
    }

    /// The next finished operation.
    pub fn pop_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Operations started and not yet taken out, and those that were cancelled while something was
    /// on its way to them, until it has come: for as long as there are some the lane is to be turned.
    ///
    /// What is being read ahead is no operation, and others may wait for its pages: turn the lane, or
    /// sleep on what [`arm`](Self::arm) armed, when there are none, too.
    pub fn in_flight(&self) -> usize {
        self.entries.len() + self.finished.len()
    }

    /// How many operations it holds at once.
    pub fn depth(&self) -> usize {
        self.entries.capacity()
    }

    /// Makes what was submitted visible to the device.
    pub fn commit(&mut self) {
        self.core.commit();
    }

    /// Whether anything was submitted that a commit would make visible.
    pub fn is_untold(&self) -> bool {
        self.core.is_untold()
    }

    /// Prepares for the owner to sleep; as [`IoQueue::arm`](uaio_driver::IoQueue::arm).
    pub fn arm(&mut self) -> Armed {
        if !self.finished.is_empty() {
            return Armed::Ready;
        }
        self.core.arm()
    }

    /// As [`IoQueue::event_fd`](uaio_driver::IoQueue::event_fd).
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.core.event_fd()
    }

    fn run_woken(&mut self) -> bool {
        let mut busy = false;
        // At most as many as there are operations: one that wakes itself waits for the next turn.
        for _ in 0..self.entries.capacity() {
            let Some((token, wakeup)) = self.core.pop_woken() else { break };
            busy = true;
            self.step(token, wakeup);
        }
        self.core.wakes.run();
        busy
    }

    fn step(&mut self, token: Token, wakeup: Wakeup) {
        self.with(token, |work, core| match work {
            Work::Read(read) => read.step(token, core, wakeup),
            Work::Write(write) => write.step(token, core, wakeup),
            Work::Readahead(ahead) => ahead.step(token, core, wakeup),
            Work::Bypass(bypass) => bypass.step(token, core, wakeup),
            Work::Flush(flush) => flush.step(token, core, wakeup),
        });
    }

    fn settle(&mut self, io: Io, result: IoResult, data: SgList) {
        if matches!(io.kind, IoKind::Ahead { .. }) {
            return self.core.settle_ahead(&io, result, data);
        }
        self.with(io.operation, |work, core| match work {
            Work::Read(read) => read.settle(io.operation, core, io, result, data),
            Work::Write(write) => write.settle(io.operation, core, io, result, data),
            Work::Readahead(ahead) => ahead.settle(io.operation, core, io, result, data),
            Work::Bypass(bypass) => bypass.settle(io.operation, core, io, result, data),
            Work::Flush(_) => panic!("a flush has no device request of its own"),
        });
    }

    /// Runs one step of an operation, and answers it when that was the last.
    fn with(&mut self, token: Token, run: impl FnOnce(&mut Work, &mut Core) -> Step<IoResult>) {
        let Some(entry) = self.entries.get_mut(token) else {
            panic!("an operation was woken or completed after its end: {token:?}")
        };
        if let Some(wait) = entry.waits.take() {
            self.core.end_wait(wait);
        }
        // Where it lies: it is some hundred bytes long.
        let Step::Done(result) = run(&mut entry.work, &mut self.core) else {
            entry.waits = self.core.begin_wait(token);
            return;
        };
        if entry.work.is_stable_write() {
            self.stable.end();
        }
        if !entry.abandoned {
            let (token, buffer) = (entry.user, entry.work.take_buffer());
            self.finished.push_back(Finished { token, result, buffer });
        }
        self.entries.discard(token);
    }
}

impl Drop for Lane {
    /// Cancels what waits, and drains what the device has, bounded by the device's own deadlines. It waits
    /// for nobody else: neither for the flusher nor for another lane, which may be the same thread's.
    fn drop(&mut self) {
        for token in self.entries.tokens() {
            let left = self.core.leave_queue(token);
            let Some(entry) = self.entries.get_mut(token) else { continue };
            entry.abandoned = true;
            entry.work.stop();
            // What was woken already is stepped when that arrives: it may have been handed something.
            if left {
                self.step(token, Wakeup::Retry);
            }
        }
        while !self.entries.is_empty() || self.core.in_flight() > 0 {
            if !self.turn() {
                std::thread::yield_now();
            }
            self.finished.clear();
        }
    }
}
