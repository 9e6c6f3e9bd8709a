//! A lane: one owner's way through the cache, with a device queue of its own.
//!
//! A lane steps operations. An operation is started, takes its first step at once in the caller's
//! thread, and either is finished or has left its entry on one wait queue or has device requests in
//! flight. [`turn`](Lane::turn) steps what was woken, sends what has gathered with one commit, polls
//! the device and settles what it completed; finished operations are taken out with
//! [`pop_finished`](Lane::pop_finished). Nothing in here blocks.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{
    Armed, Completion, DeviceError, DmaBuf, FRAME_SIZE, IoError, IoErrorKind, IoQueue, IoResult,
    Lba, Op, QueueOptions, Request, SgList, Slots, Token, Wake,
};

use crate::buffer::Buffer;
use crate::bypass::Bypass;
use crate::cache::{Cache, Enlisted, Handle, OUT_OF_RANGE, Ticket};
use crate::commit::StableWrites;
use crate::page::{Blocks, Page, Written};
use crate::read::Read;
use crate::readahead::{Plan, Readahead};
use crate::retry::{RunQueue, Step};
use crate::wait::{Entries, Waiter, Wakes, Wakeup, Wants};
use crate::waited::{TurnClock, WaitKind};
use crate::write::Write;

/// What an operation on the cache does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Fill the buffer. `direct` leaves nothing in the cache, but sees what is there.
    Read {
        /// Bring nothing into the cache.
        direct: bool,
    },
    /// Write the buffer, in the way the cache's mode says.
    Write {
        /// Finish only when stable (O_DSYNC, FUA), whatever the mode.
        stable: bool,
        /// Go past the cache; the range must be aligned to device blocks.
        direct: bool,
    },
    /// Bring the range into the cache and finish when it is there, with the error of the first block
    /// that could not be read. What does not fit into half of the cache is left out.
    Readahead,
    /// Finish when everything that was finished before is stable.
    Flush,
    /// The same for what was finished before in the range: writes only that, by whole pages.
    FlushRange,
    /// The blocks are not needed any more; aligned to device blocks. In portions of 32 MiB, with a turn of
    /// the lane between two: when it fails, those before may have been done.
    Discard,
    /// The blocks read as zeroes afterwards; aligned to device blocks. In portions, as a discard.
    WriteZeroes {
        /// The device may free them.
        may_unmap: bool,
    },
}

/// An operation, with the memory it owns until it is finished.
#[derive(Debug)]
pub struct Operation {
    /// Comes back in [`Finished`].
    pub token: Token,
    /// What to do.
    pub kind: OpKind,
    /// First byte on the device.
    pub offset: u64,
    /// How many bytes; 0 for a flush. Reads and writes: at most [`Lane::LEN_MAX`].
    pub len: u64,
    /// Where the data goes to or comes from: at least `len` bytes.
    pub buffer: Buffer,
    /// On whose behalf: who is told of errors.
    pub handle: Arc<Handle>,
}

/// An operation that is over.
#[derive(Debug)]
#[must_use = "a finished operation is answered to whoever started it"]
pub struct Finished {
    /// The operation's token.
    pub token: Token,
    /// How it went.
    pub result: IoResult,
    /// Its memory. Of [`Buffer::Registered`] a device that could not be stopped may keep frames: then
    /// the request has failed, and they are [shared](DmaBuf::is_shared) for ever.
    pub buffer: Buffer,
}

/// What became of an operation that [`Lane::cancel`] named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation that runs on has its buffer still"]
pub enum Cancelled {
    /// It is over: the next but for those finished earlier, with [`IoErrorKind::Cancelled`] and its
    /// buffer, which nothing touches any more. Of a write, none, some or (never acknowledged) all
    /// pages have been written to the cache; what has is there like any other write's. Of a discard or a
    /// write-zeroes, a first part of whole portions of 32 MiB may have been done. A read or a
    /// fill that the device was at goes on for the cache and for others that wait for it.
    Finished,
    /// The device is changing its data in the operation's name, which cannot be taken back, or is
    /// reading into frames of the operation's own. It begins nothing more and finishes by itself when
    /// that has ended: a change well, if that was all that was left to do, otherwise with
    /// [`IoErrorKind::Cancelled`] or the device's error. It has its buffer until then. The wait is
    /// bounded by the device's own deadline.
    RunsOn,
    /// The lane has no such operation: it never had, or it has finished, perhaps without having been
    /// taken out yet.
    Unknown,
}

/// A device request in flight, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Io {
    /// The lane's operation it belongs to.
    pub(crate) operation: Token,
    pub(crate) kind: IoKind,
    /// First block on the device.
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
    /// How many flushes had failed when it was sent, as [`crate::stability`] counts. Set by
    /// [`Core::submit`].
    pub(crate) failures: u64,
    /// It is stable when it has ended. Set by [`Core::submit`].
    pub(crate) fua: bool,
}

impl Io {
    /// For an operation of a lane, on these blocks.
    pub(crate) fn new(operation: Token, kind: IoKind, lba: u64, blocks: u32) -> Self {
        Self { operation, kind, lba, blocks, failures: 0, fua: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoKind {
    /// Reads missing blocks into pages in Reading.
    Fill,
    /// The same before anybody wants them: see [`crate::readahead`].
    Ahead {
        /// Its first page gets the mark.
        marked: bool,
        /// Their reader has no use for them afterwards.
        once: bool,
    },
    /// Reads into frames that are not pages'.
    ReadPast,
    /// Reads into frames of the operation's own, which it keeps handles of.
    ReadOwn,
    /// Writes dirty blocks of pages in Writeback.
    Store,
    /// Changes blocks on the device under the cache.
    Bypass,
    /// Makes stable what the device has.
    Flush,
}

/// Blocks of one page that a command is to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) kind: IoKind,
    pub(crate) page: u64,
    pub(crate) blocks: Blocks,
    pub(crate) fua: bool,
}

impl Piece {
    pub(crate) fn new(kind: IoKind, page: u64, blocks: Blocks) -> Self {
        Self { kind, page, blocks, fua: false }
    }
}

/// A command that is being gathered: neighbouring pages, one frame each.
#[derive(Debug)]
pub(crate) struct Run {
    kind: IoKind,
    lba: u64,
    blocks: u32,
    frames: Vec<DmaBuf>,
    offset: u32,
    fua: bool,
}

/// A set of pages by their place in an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSet([u64; 5]);

impl PageSet {
    /// The first `count` pages.
    pub(crate) fn first(count: usize) -> Self {
        let mut set = Self([0; 5]);
        (0..count).for_each(|at| set.0[at / 64] |= 1 << (at % 64));
        set
    }

    pub(crate) fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    pub(crate) fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    pub(crate) fn contains(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    pub(crate) fn next_from(&self, at: usize) -> Option<usize> {
        let mut word = at / 64;
        let mut bits = *self.0.get(word)? & (u64::MAX << (at % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            bits = *self.0.get(word)?;
        }
    }
}

/// Wake-ups that a lane has place for; when more are woken at once, as by a page that a crowd waits for,
/// the list grows, and stays so.
const WAKES: usize = 64;

/// What steps need beside the operation: the cache, the device queue and what is in flight on it.
pub(crate) struct Core {
    pub(crate) cache: Arc<Cache>,
    queue: Box<dyn IoQueue>,
    ios: Slots<Io>,
    run: Arc<RunQueue>,
    enlisted: Enlisted,
    pub(crate) wakes: Wakes,
    /// Vectors of frames whose request is over, to be used again.
    spare: Vec<Vec<DmaBuf>>,
    /// Operations that wait for a request slot, in order. While there are some, a slot that comes
    /// free is theirs.
    slot_waiters: VecDeque<Token>,
    /// The operation that is stepped now was first of those and may send one command.
    slot_granted: bool,
    /// Bytes in requests that were submitted and not committed.
    gathered_bytes: usize,
    /// Requests that the device did not take: answered like the others.
    early: VecDeque<(Io, IoError, SgList)>,
    completions: Vec<Completion>,
    /// The most a read or write command may carry, in pages.
    pages_max: usize,
    clock: TurnClock,
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
    fn begin_wait(&mut self, operation: Token) -> Option<(WaitKind, Duration)> {
        let for_a_slot = self.slot_waiters.back() == Some(&operation);
        let kind = match self.enlisted.entries().kind(operation.slot) {
            None if for_a_slot => WaitKind::Slot,
            kind => kind?,
        };
        Some((kind, self.clock.now()))
    }

    /// An operation goes on that waited for this.
    fn end_wait(&mut self, (kind, since): (WaitKind, Duration)) {
        let time = self.clock.now().saturating_sub(since);
        self.cache.waits.add(kind, time);
    }

    /// Whether there is a slot for `piece`, and `spare` more: that of the command being gathered when it
    /// joins that, so that the last slot of a full queue carries as many pages as any other.
    pub(crate) fn slot_for(&self, gathering: Option<&Run>, piece: &Piece, spare: usize) -> bool {
        gathering.is_some_and(|run| self.joins(run, piece)) || self.slots_free(gathering, spare)
    }

    /// Whether the command being gathered can carry this piece, too.
    fn joins(&self, run: &Run, piece: &Piece) -> bool {
        let starts = piece.blocks.0 & 1 == 1;
        std::mem::discriminant(&run.kind) == std::mem::discriminant(&piece.kind)
            && run.fua == piece.fua
            && starts
            && run.lba + u64::from(run.blocks) == piece.page * self.cache.blocks_per_page()
            && run.frames.len() < self.pages_max
    }

    /// Adds the first run of blocks of one page to the command being gathered, or sends that and begins
    /// another. The caller has seen that there is a [slot](Self::slot_for).
    pub(crate) fn gather(
        &mut self,
        operation: Token,
        run: &mut Option<Run>,
        piece: Piece,
        frame: DmaBuf,
    ) -> usize {
        let Piece { kind, page, blocks, fua } = piece;
        let Some((first, count)) = blocks.first_run() else {
            panic!("a command for no block of page {page}")
        };
        let lba = page * self.cache.blocks_per_page() + u64::from(first);
        if let Some(open) = run
            && self.joins(open, &piece)
        {
            open.blocks += count;
            open.frames.push(frame);
            return 0;
        }
        let sent = self.send(operation, run);
        let mut frames = self.spare.pop().unwrap_or_default();
        frames.push(frame);
        let offset = first * self.cache.block_size() as u32;
        *run = Some(Run { kind, lba, blocks: count, frames, offset, fua });
        sent
    }

    /// As [`gather`](Self::gather), of blocks that the device reads into frames of `memory`, from byte
    /// `position` of it on.
    pub(crate) fn gather_own(
        &mut self,
        operation: Token,
        run: &mut Option<Run>,
        (lba, blocks): (u64, u32),
        memory: &Buffer,
        position: usize,
    ) -> usize {
        let len = blocks as usize * self.cache.block_size();
        let blocks_max = self.own_blocks_max();
        let mut sent = 0;
        if let Some(open) = run {
            let joins = open.kind == IoKind::ReadOwn
                && open.lba + u64::from(open.blocks) == lba
                && open.blocks + blocks <= blocks_max;
            if joins {
                open.blocks += blocks;
                memory.lend(position, len, &mut open.frames);
                return 0;
            }
            sent = self.send(operation, run);
        }
        let mut frames = self.spare.pop().unwrap_or_default();
        let offset = memory.lend(position, len, &mut frames);
        *run = Some(Run { kind: IoKind::ReadOwn, lba, blocks, frames, offset, fua: false });
        sent
    }

    /// The most blocks of a command that moves an operation's own frames.
    pub(crate) fn own_blocks_max(&self) -> u32 {
        (self.pages_max * FRAME_SIZE / self.cache.block_size()) as u32
    }

    /// A vector for the frames of a command.
    pub(crate) fn spare(&mut self) -> Vec<DmaBuf> {
        self.spare.pop().unwrap_or_default()
    }

    /// Sends the command that was gathered, if there is one, and says how many were sent.
    pub(crate) fn send(&mut self, operation: Token, run: &mut Option<Run>) -> usize {
        let Some(Run { kind, lba, blocks, frames, offset, fua }) = run.take() else { return 0 };
        let op = match kind {
            IoKind::Fill | IoKind::Ahead { .. } | IoKind::ReadPast | IoKind::ReadOwn => Op::Read,
            IoKind::Store => Op::Write { fua },
            IoKind::Bypass | IoKind::Flush => unreachable!("no frames are gathered for {kind:?}"),
        };
        let io = Io::new(operation, kind, lba, blocks);
        self.submit(io, op, SgList { frames, offset });
        1
    }

    /// Sends one command. A free slot is there.
    pub(crate) fn submit(&mut self, mut io: Io, op: Op, data: SgList) {
        io.failures = self.cache.stability.failures();
        io.fua = op == Op::Write { fua: true };
        let Ok(token) = self.ios.insert(io) else { panic!("a command without a free slot") };
        self.slot_granted = false;
        self.gathered_bytes += io.blocks as usize * self.cache.block_size();
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
        self.queue.commit();
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
    fn grant_slot(&mut self) -> Option<Token> {
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
    fn cannot_take_back(&self, operation: Token) -> bool {
        self.ios.tenants().any(|io| {
            io.operation == operation
                && matches!(io.kind, IoKind::Store | IoKind::Bypass | IoKind::ReadOwn)
        })
    }

    /// Asks the device to end what it does for an operation alone. What it does for pages goes on: others
    /// may wait for them, and what is written back is the cache's.
    fn cancel_own(&mut self, operation: Token) {
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

/// A flush: an order to the flusher, and the wait for it.
#[derive(Debug)]
struct Flush {
    handle: Arc<Handle>,
    /// What it covers.
    pages: Range<u64>,
    ordered: bool,
    /// It was cancelled: whoever asked is not told, so no error counts as told.
    stopped: bool,
}

impl Flush {
    fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        match (self.ordered, wakeup) {
            _ if self.stopped => Step::Done(Err(CANCELLED)),
            (false, _) => {
                self.ordered = true;
                core.cache.order_flush(self.pages.clone(), core.waiter(me, Wants::Anything));
                Step::Waiting
            }
            (true, Wakeup::Ended(result)) => {
                // A writeback that failed and has healed since is told once, here.
                let earlier = self.handle.take_error(&core.cache, &self.pages);
                let lost = core.cache.stability.check_lost(core.cache.blocks_in(&self.pages));
                Step::Done(result.and(lost).and(earlier.map_or(Ok(()), Err)))
            }
            (true, wakeup) => {
                core.give_back(0, wakeup);
                Step::Waiting
            }
        }
    }
}

/// The error of a write to a device that takes none.
const READ_ONLY: IoError = IoError::new(IoErrorKind::ReadOnly);

/// A lane does not wait for the end of a batch to commit this much: 512 KiB, which take a fast drive as long as
/// ten commits take.
const GATHERED_BYTES_MAX: usize = 512 << 10;

/// The error of an operation that was cancelled.
const CANCELLED: IoError = IoError::new(IoErrorKind::Cancelled);

struct Entry {
    user: Token,
    work: Option<Work>,
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
/// now. Nobody else does: device flushes are the flusher's, for this lane's stable writes, too. An owner that goes
/// away to compute for long drops its lane, which drains it, or leaves it to a thread that turns it.
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
        let entry = Entry { user: token, work: Some(work), abandoned: false, waits: None };
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
        let Some(work) = &mut entry.work else { unreachable!("nothing is stepped meanwhile") };
        work.stop();
        if !left {
            self.core.cancel_own(me);
        }
        let Some(entry) = self.entries.get_mut(me) else { unreachable!("it was just found") };
        let Some(work) = &mut entry.work else { unreachable!("nothing is stepped meanwhile") };
        if runs_on {
            return Cancelled::RunsOn;
        }
        if !left {
            // Woken already, and what it was handed is on its way, or the device is reading into
            // frames for it. It goes on for as long as that takes, without its buffer.
            entry.abandoned = true;
            let buffer = work.take_buffer();
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

    /// Prepares for the owner to sleep; as [`IoQueue::arm`].
    pub fn arm(&mut self) -> Armed {
        if !self.finished.is_empty() {
            return Armed::Ready;
        }
        self.core.arm()
    }

    /// As [`IoQueue::event_fd`].
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
        let Some(mut work) = entry.work.take() else { panic!("a step inside a step") };
        if let Some(wait) = entry.waits.take() {
            self.core.end_wait(wait);
        }
        let step = run(&mut work, &mut self.core);
        let Step::Done(result) = step else {
            if let Some(entry) = self.entries.get_mut(token) {
                entry.work = Some(work);
                entry.waits = self.core.begin_wait(token);
            }
            return;
        };
        let Some(Entry { user, abandoned, .. }) = self.entries.remove(token) else { return };
        if work.is_stable_write() {
            self.stable.end();
        }
        if abandoned {
            return;
        }
        self.finished.push_back(Finished { token: user, result, buffer: work.take_buffer() });
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
            if let Some(work) = &mut entry.work {
                work.stop();
            }
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
