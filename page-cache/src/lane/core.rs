//! What the steps of operations need beside the operation: the cache, the device queue, and what is in flight on it.
//!
//! The core owns the slots of requests and hands them to operations in order, submits and completes, and holds the
//! lane's entries and the list of whom it wakes. It knows of operations no more than their tokens: the lane steps
//! them, and so does the [flusher](crate::Flusher), which has a core and no lane.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{
    Armed, Completion, DeviceError, DmaBuf, FRAME_SIZE, IoError, IoErrorKind, IoQueue, IoResult,
    Lba, Op, QueueOptions, Request, SgList, Slots, Token, Wake,
};

use crate::cache::{Cache, Enlisted};
use crate::page::{Blocks, Page, Written};
use crate::retry::RunQueue;
use crate::wait::{Entries, Waiter, Wakes, Wakeup, Wants};
use crate::waited::{TurnClock, WaitKind};

use super::Lane;
use super::gather::Run;
use super::io::{Io, IoKind};

/// A lane does not wait for the end of a batch to commit this much: 512 KiB, which take a fast drive as long as
/// ten commits take.
const GATHERED_BYTES_MAX: usize = 512 << 10;

/// Wake-ups that a lane has place for; when more are woken at once, as by a page that a crowd waits for,
/// the list grows, and stays so.
const WAKES: usize = 64;

/// What steps need beside the operation: the cache, the device queue and what is in flight on it.
pub(crate) struct Core {
    pub(crate) cache: Arc<Cache>,
    queue: Box<dyn IoQueue>,
    ios: Slots<Io>,
    run: Arc<RunQueue>,
    pub(super) enlisted: Enlisted,
    pub(crate) wakes: Wakes,
    /// Vectors of frames whose request is over, to be used again.
    pub(super) spare: Vec<Vec<DmaBuf>>,
    /// Operations that wait for a request slot, in order. While there are some, a slot that comes
    /// free is theirs.
    slot_waiters: VecDeque<Token>,
    /// The operation that is stepped now was first of those and may send one command.
    pub(super) slot_granted: bool,
    /// Bytes in requests that were submitted and not committed.
    gathered_bytes: usize,
    /// Something was submitted since the last commit.
    untold: bool,
    /// Requests that the device did not take: answered like the others.
    early: VecDeque<(Io, IoError, SgList)>,
    completions: Vec<Completion>,
    /// The most a read or write command may carry, in pages.
    pub(super) pages_max: usize,
    pub(super) clock: TurnClock,
}

impl Core {
    pub(crate) fn new(
        cache: Arc<Cache>,
        operations: usize,
        depth: u16,
        wake: Arc<dyn Wake>,
    ) -> Result<Self, DeviceError> {
        let depth = depth.min(cache.device().capabilities().depth_max);
        let options = QueueOptions { depth, wake: Arc::clone(&wake) };
        let queue = cache.device().open_queue(options)?;
        let depth = queue.depth();
        let transfer_max = cache.device().geometry().transfer_max_bytes as usize;
        let pages_max = (transfer_max / FRAME_SIZE).min(Lane::PAGES_MAX);
        let run = RunQueue::new(operations, wake);
        let mut enlisted = cache.enlist(operations, run.clone());
        // Each operation has an entry, and a place on the run queue and on the queue for slots; each request
        // its slot, its frames and its completion, or itself when it is refused.
        let of_operation =
            Entries::BYTES + size_of::<(usize, Token, Wakeup)>() + size_of::<Token>();
        let of_request = size_of::<(usize, Io)>()
            + (pages_max + 1) * size_of::<DmaBuf>()
            + size_of::<Vec<DmaBuf>>()
            + size_of::<Completion>()
            + size_of::<(Io, IoError, SgList)>();
        let bytes = operations * of_operation + (depth + 1) * of_request + Wakes::BYTES * WAKES;
        enlisted.charge(bytes).map_err(|error| DeviceError::Invalid(error.to_string()))?;
        Ok(Self {
            run,
            enlisted,
            ios: Slots::new(depth),
            wakes: Wakes::with_capacity(WAKES),
            // One more: a command that does not begin where a frame does.
            spare: (0..=depth).map(|_| Vec::with_capacity(pages_max + 1)).collect(),
            slot_waiters: VecDeque::with_capacity(operations),
            slot_granted: false,
            gathered_bytes: 0,
            untold: false,
            clock: TurnClock::new(cache.clock),
            early: VecDeque::with_capacity(depth),
            completions: Vec::with_capacity(depth),
            pages_max,
            queue,
            cache,
        })
    }

    /// An entry for a wait queue, for this lane's operation.
    pub(crate) fn waiter(&self, operation: Token, wants: Wants) -> Waiter {
        Waiter::new(self.enlisted.entries(), operation, wants)
    }

    /// Whether a new command could be sent beside one that is being gathered.
    pub(crate) fn slot_free(&self, gathering: Option<&Run>) -> bool {
        self.slots_free(gathering, 0)
    }

    /// Whether a new command could be sent beside one that is being gathered, and `spare` more.
    /// While somebody waits for a slot there is none for anybody else.
    pub(crate) fn slots_free(&self, gathering: Option<&Run>, spare: usize) -> bool {
        let may = self.slot_waiters.is_empty() || (self.slot_granted && gathering.is_none());
        may && self.ios.free() > usize::from(gathering.is_some()) + spare
    }

    /// How many commands there can be in flight.
    pub(crate) fn slots(&self) -> usize {
        self.ios.capacity()
    }

    pub(crate) fn wait_slot(&mut self, operation: Token) {
        self.slot_waiters.push_back(operation);
    }

    /// What an operation waits for, after a step that left it waiting, and since when; `None` when it
    /// waits for its own commands.
    pub(super) fn begin_wait(&mut self, operation: Token) -> Option<(WaitKind, Duration)> {
        let for_a_slot = self.slot_waiters.back() == Some(&operation);
        let kind = match self.enlisted.entries().kind(operation.slot) {
            None if for_a_slot => WaitKind::Slot,
            kind => kind?,
        };
        Some((kind, self.clock.now()))
    }

    /// An operation goes on that waited for this.
    pub(super) fn end_wait(&mut self, (kind, since): (WaitKind, Duration)) {
        let time = self.clock.now().saturating_sub(since);
        self.cache.waits.add(kind, time);
    }

    /// Sends one command. A free slot is there.
    pub(crate) fn submit(&mut self, mut io: Io, op: Op, data: SgList) {
        io.failures = self.cache.stability.failures();
        io.fua = op == Op::Write { fua: true };
        let Ok(token) = self.ios.insert(io) else { panic!("a command without a free slot") };
        self.slot_granted = false;
        self.gathered_bytes += io.blocks as usize * self.cache.block_size();
        self.untold = true;
        let request = Request { token, op, lba: Lba(io.lba), blocks: io.blocks, data };
        if let Err(refused) = self.queue.submit(request) {
            self.ios.remove(token);
            // There was a slot and the geometry was kept, so the device has failed.
            let error = self.cache.device_error();
            let error = error.unwrap_or(IoError::new(IoErrorKind::Device));
            self.early.push_back((io, error, refused.request.data));
        }
    }

    /// The frames of a request are dealt with; the vector is kept for the next.
    pub(crate) fn recycle(&mut self, frames: Vec<DmaBuf>) {
        debug_assert!(frames.is_empty(), "frames were left in a request");
        if self.spare.len() < self.ios.capacity() {
            self.spare.push(frames);
        }
    }

    /// The pages that a request covers, each with its frame. A device that could not be stopped keeps
    /// the frames it may still write: then there are none.
    pub(crate) fn pages_of<'a>(
        &self,
        io: &Io,
        frames: &'a mut Vec<DmaBuf>,
    ) -> impl Iterator<Item = (u64, Option<DmaBuf>)> + use<'a> {
        let frames = frames.drain(..).map(Some).chain(std::iter::repeat_with(|| None));
        self.page_range(io).zip(frames)
    }

    /// The pages that a request touches.
    pub(crate) fn page_range(&self, io: &Io) -> Range<u64> {
        let per_page = self.cache.blocks_per_page();
        io.lba / per_page..(io.lba + u64::from(io.blocks)).div_ceil(per_page)
    }

    /// The blocks of `page` that a request covers.
    pub(crate) fn blocks_of(&self, io: &Io, page: u64) -> Blocks {
        let per_page = self.cache.blocks_per_page();
        let start = page * per_page;
        let from = io.lba.max(start);
        let to = (io.lba + u64::from(io.blocks)).min(start + per_page);
        Blocks::range((from - start) as u32, (to - from) as u32)
    }

    /// The pages of a request whose device write has ended go on; `failed` gets each that did not.
    /// With `past` nothing stays in the cache of what the device has.
    pub(crate) fn end_store(
        &mut self,
        io: &Io,
        result: IoResult,
        mut frames: Vec<DmaBuf>,
        past: bool,
        mut failed: impl FnMut(&Cache, u64, u64),
    ) {
        let cache = Arc::clone(&self.cache);
        if result.is_ok() && !self.may_be_lost(io) {
            // Whatever was lost there before, this is newer.
            cache.stability.settle(io.lba..io.lba + u64::from(io.blocks));
        }
        for (page, frame) in self.pages_of(io, &mut frames) {
            let mut shard = cache.shard(page);
            let Some(slot) = shard.find(page) else { panic!("page {page} left while written") };
            let oldest = shard.page(slot).written_since().unwrap_or(0);
            // Under the lock: who goes through the pages after a flush that failed comes before or after.
            let written = match result {
                Err(_) => Written::No,
                Ok(()) if self.may_be_lost(io) => Written::No,
                Ok(()) if !cache.stability.is_volatile() => Written::Stable(0),
                Ok(()) if io.fua => Written::Stable(cache.stability.epoch()),
                Ok(()) => Written::Volatile(cache.stability.epoch()),
            };
            if let Written::Stable(_) = written {
                let first = page * cache.blocks_per_page();
                for (at, count) in self.blocks_of(io, page).runs() {
                    shard.settle_gone(first + u64::from(at)..first + u64::from(at + count));
                }
            }
            if frame.is_none() {
                shard.store_kept_by_device(slot);
            }
            let end = |page: Page| (page.end_writeback(written), ());
            let ((), released) = shard.transition(slot, &mut self.wakes, end);
            cache.room(page).release(released.room, &mut self.wakes);
            if let Some(frame) = frame.and_then(DmaBuf::release) {
                shard.put_frame(frame);
            }
            // Not when somebody has just been handed the turn: all who wait behind it would be woken, to
            // queue up anew. The last of those who write past the cache lets go of it.
            if past && matches!(shard.page(slot), Page::Clean(_)) && !shard.is_reserved(slot) {
                shard.let_go(slot, &mut self.wakes);
            }
            match result {
                Ok(()) => shard.stats.written_back += 1,
                Err(error) => {
                    shard.stats.writeback_errors += 1;
                    shard.failed(slot, error);
                    failed(&cache, page, oldest);
                }
            }
            shard.hand_over(&mut self.wakes);
        }
        self.recycle(frames);
    }

    /// Whether a flush has failed since a write was sent, and may have taken it back though it ended
    /// well.
    pub(crate) fn may_be_lost(&self, io: &Io) -> bool {
        !io.fua && self.cache.stability.failures() != io.failures
    }

    /// One committed batch of completions, with what each is for.
    pub(crate) fn next_completion(&mut self) -> Option<(Io, IoResult, SgList)> {
        if let Some((io, error, data)) = self.early.pop_front() {
            return Some((io, Err(error), data));
        }
        let Completion { token, result, data } = self.completions.pop()?;
        let Some(io) = self.ios.remove(token) else {
            panic!("the device queue completed a request twice: {token:?}")
        };
        Some((io, result, data))
    }

    pub(crate) fn commit(&mut self) {
        self.gathered_bytes = 0;
        self.untold = false;
        self.queue.commit();
    }

    /// Whether anything was submitted since the last commit.
    pub(super) fn is_untold(&self) -> bool {
        self.untold
    }

    /// Sends what has gathered, when it is much: the device is to work while the rest of a batch is copied.
    pub(crate) fn commit_if_much(&mut self) {
        if self.gathered_bytes >= GATHERED_BYTES_MAX {
            self.commit();
        }
    }

    /// Moves completions in, to be taken with [`next_completion`](Core::next_completion).
    pub(crate) fn poll(&mut self) -> usize {
        let budget = self.ios.capacity();
        self.queue.poll(budget, &mut self.completions) + self.early.len()
    }

    /// Leaves the entry of an operation, whose data the device has taken, with those who wait for the next device
    /// flush.
    pub(crate) fn join_flush(&self, operation: Token) {
        self.cache.order_device_flush(self.waiter(operation, Wants::Anything));
    }

    /// The operation that has waited longest for a slot, when there is one free: it is that
    /// operation's for the step that it takes now.
    pub(super) fn grant_slot(&mut self) -> Option<Token> {
        let next = if self.ios.free() == 0 { None } else { self.slot_waiters.pop_front() };
        self.slot_granted = next.is_some();
        next
    }

    /// Takes an operation off whatever queue it is on, so that it will not be woken; `false` when it
    /// is on none. See [`crate::wait`], "Removal".
    pub(crate) fn leave_queue(&mut self, operation: Token) -> bool {
        if let Some(at) = self.slot_waiters.iter().position(|waiter| *waiter == operation) {
            self.slot_waiters.remove(at);
            return true;
        }
        self.cache.cancel_wait(self.enlisted.entries(), operation.slot, &mut self.wakes)
    }

    /// Whether the device is changing data in the name of an operation, or is at its own frames.
    pub(super) fn cannot_take_back(&self, operation: Token) -> bool {
        self.ios.tenants().any(|io| {
            io.operation == operation
                && matches!(io.kind, IoKind::Store | IoKind::Bypass | IoKind::ReadOwn)
        })
    }

    /// Asks the device to end what it does for an operation alone. What it does for pages goes on: others
    /// may wait for them, and what is written back is the cache's.
    pub(super) fn cancel_own(&mut self, operation: Token) {
        for token in self.ios.tokens() {
            let own = self.ios.get(token).is_some_and(|io| {
                io.operation == operation
                    && matches!(io.kind, IoKind::Bypass | IoKind::ReadOwn | IoKind::ReadPast)
            });
            if own {
                // Its answer says whether that was in time.
                let _ = self.queue.cancel(token);
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.ios.len() + self.early.len()
    }

    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.event_fd()
    }

    /// Steps an operation again, which is on no queue, after what else there is to do in this turn.
    pub(crate) fn again(&self, operation: Token) {
        self.run.again(operation);
    }

    pub(crate) fn pop_woken(&self) -> Option<(Token, Wakeup)> {
        let (token, wakeup) = self.run.pop()?;
        self.enlisted.entries().arrived(token.slot);
        Some((token, wakeup))
    }

    /// Gives back what an operation was handed for `page` and does not need: it goes to the next.
    pub(crate) fn give_back(&mut self, page: u64, wakeup: Wakeup) {
        match wakeup {
            Wakeup::Retry | Wakeup::Ended(_) => {}
            Wakeup::Filled(frame, _) => self.cache.unpin(page, frame),
            Wakeup::Frame(frame) => {
                let mut shard = self.cache.shard(page);
                shard.put_frame(frame);
                shard.hand_over(&mut self.wakes);
            }
            Wakeup::Room => self.cache.room(page).release(1, &mut self.wakes),
            Wakeup::Turn => self.cache.shard(page).return_turn(page, &mut self.wakes),
            Wakeup::Entered(range) => self.cache.barriers.leave(range, &mut self.wakes),
            Wakeup::Pass(pass) => self.cache.barriers.give_back(pass, &mut self.wakes),
        }
    }

    /// Prepares for the owner to sleep.
    pub(crate) fn arm(&mut self) -> Armed {
        if !self.run.is_empty() || !self.early.is_empty() || !self.slot_waiters.is_empty() {
            // Whoever waits for a slot has one as soon as something in flight completes.
            if self.run.is_empty() && self.early.is_empty() && self.ios.free() == 0 {
                return self.queue.arm();
            }
            return Armed::Ready;
        }
        if self.ios.is_empty() { Armed::Yes } else { self.queue.arm() }
    }
}
