//! A queue pair: the data path.
//!
//! A command is built in its place in the ring, word by word, and only the words that differ between
//! commands: nothing is cleared and nothing is copied. One doorbell a commit, one a poll that found
//! something. No lock, no allocation, no clock, no system call and no call through a pointer for a
//! request; the two doorbells of a batch go through the one to the registers.

mod passing;
pub(super) mod raw;
mod trouble;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::block::{Armed, Cancel, Capabilities, Geometry, IoQueue};
use crate::dma::{DmaPool, DmaRegion, FRAME_SIZE, PoolMark};
use crate::error::{IoError, IoErrorKind};
use crate::request::{Completion, Lba, Op, Refusal, Refused, Request, SgList};
use crate::sink::Sink;
use crate::slots::Token;

use super::controller::NvmeController;
use super::deadlines::Deadlines;
use super::discard::{DsmLimits, Gathering};
use super::failure::Violation;
use super::fate::Fate;
use super::in_flight::{Answered, InFlight, Named};
use super::limits::{FrameLimits, TransferLimits};
use super::namespace::NamespaceUse;
use super::prp;
use super::record::{Record, Wish};
use super::registers::Doorbell;
use super::ring::{BadFetch, CompletionRing, Cqe, SubmissionRing};
use super::sgl;
use passing::Parked;
use trouble::{Answering, Trouble};

use super::spec::Status;
use super::spec::command::{CDW11_DSM_AD, CDW12_DEAC, Opcode};

/// Every how many polls with something in flight a look at the clock is due. The clock is read by a
/// busy poller every few microseconds, which costs a thousandth of its time, and by one that polls a
/// thousand times a second four times a second.
const POLLS_PER_LOOK: u32 = 256;

/// After how many polls in a row without an `arm` in between an interrupt that was allowed is not
/// allowed any more: the owner polls. Allowing it and not costs a system call each, so an owner that
/// sleeps after every few completions keeps it.
const POLLS_UNTIL_DISARMED: u32 = 1024;

const LIST_WORDS: usize = FRAME_SIZE / 8;

/// The memory of a queue pair.
#[derive(Debug)]
pub(super) struct QueueMemory {
    pub(super) sq: SubmissionRing,
    pub(super) cq: CompletionRing,
    /// One page a slot, for its PRP list or its ranges to discard.
    pub(super) lists: DmaRegion,
}

/// What a queue takes from its namespace.
#[derive(Debug)]
pub(super) struct QueueTarget {
    pub(super) nsid: u32,
    pub(super) geometry: Geometry,
    pub(super) capabilities: Capabilities,
    pub(super) dsm: DsmLimits,
    /// Whether Write Zeroes may deallocate and the blocks still read as zeroes.
    pub(super) deallocates_to_zeroes: bool,
    /// Whether another controller may write the namespace too (NMIC).
    pub(super) shared: bool,
    /// Keeps the namespace from being closed, and says when it is gone.
    pub(super) namespace_use: NamespaceUse,
}

/// A queue pair of an NVMe controller, on one namespace.
#[derive(Debug)]
pub(super) struct NvmeQueue {
    memory: QueueMemory,
    in_flight: InFlight,
    frame_limits: FrameLimits,
    limits: TransferLimits,
    target: QueueTarget,
    #[expect(dead_code, reason = "the mark means something while the pool lives")]
    pool: DmaPool,
    /// The pool's mark, and where the device finds it.
    mark: PoolMark,
    pool_iova: u64,
    lists_iova: u64,
    /// Whether the controller takes scatter/gather lists.
    scatter_gather: bool,
    fate: Arc<Fate>,
    /// The controller's state in which this queue serves, as one word.
    serving: u32,
    trouble: Trouble,
    /// Requests that wait in their slots to be sent again. Emptied, and the slots left as they are, when
    /// the queue does not serve any more.
    parked: Vec<Parked>,
    /// How long, by the Command Retry Delay of a status.
    retry_delays: [Duration; 4],
    /// How often the volatile cache may have been lost, as far as who owns the queue was told.
    cache_losses: u32,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    /// The discards since the last commit.
    gathering: Option<Gathering>,
    /// The rest of the requests that a completed command answers, and how.
    answering: Option<Answering>,
    /// How many of those in flight were there at the last commit.
    committed: usize,
    polls: u32,
    /// Polls until the interrupt is not allowed any more; 0 when it is not.
    armed_polls: u32,
    deadlines: Deadlines,
    vector: Option<u16>,
    qid: u16,
    controller: Arc<NvmeController>,
}

impl NvmeQueue {
    /// A queue over rings that the controller knows of.
    pub(super) fn new(
        controller: Arc<NvmeController>,
        qid: u16,
        vector: Option<u16>,
        depth: u16,
        memory: QueueMemory,
        target: QueueTarget,
        serving: u32,
    ) -> Self {
        let parts = controller.parts();
        Self {
            in_flight: InFlight::new(depth),
            limits: TransferLimits::new(target.geometry, target.capabilities),
            frame_limits: FrameLimits::new(target.geometry, target.capabilities, target.nsid),
            mark: parts.pool.mark(),
            pool_iova: parts.pool.iova().0,
            lists_iova: memory.lists.iova().0,
            scatter_gather: parts.options.scatter_gather && controller.identify().scatter_gather,
            pool: parts.pool.clone(),
            fate: Arc::clone(parts.fate),
            serving,
            cache_losses: parts.fate.cache_losses(),
            trouble: Trouble::new(depth, parts.options.retries_max, target.shared),
            parked: Vec::with_capacity(depth.into()),
            retry_delays: parts.retry_delays,
            sq_doorbell: Doorbell::submission(parts.function, parts.cap, qid, parts.shadow),
            cq_doorbell: Doorbell::completion(parts.function, parts.cap, qid, parts.shadow),
            gathering: None,
            answering: None,
            committed: 0,
            polls: 0,
            armed_polls: 0,
            deadlines: Deadlines::new(
                parts.options.command_timeout,
                parts.options.abort_timeout,
                parts.clock.now(),
            ),
            vector,
            qid,
            memory,
            target,
            controller,
        }
    }

    /// Submits what is not a read or a write inside of one frame, or is not right.
    #[inline(never)]
    fn submit_other(&mut self, request: Request) -> Result<(), Refused> {
        // Behind what waits, which has its slots.
        if !self.is_serving() || self.trouble.waiting() > 0 {
            return self.hold(request);
        }
        self.submit_now(request)
    }

    /// Submits to a controller that serves.
    fn submit_now(&mut self, request: Request) -> Result<(), Refused> {
        let refused = |request, reason| Err(Refused { request, reason });
        if let Some((opcode, flags)) = self.limits.admit(&request) {
            return self.submit_transfer(request, opcode, flags);
        }
        // The rules are those of the geometry.
        let checked = self.target.geometry.check(&self.target.capabilities, &request);
        if let Err(reason) = checked {
            return refused(request, reason);
        }
        let Request { token, op, lba, blocks, data } = request;
        if op == Op::Discard {
            return self.gather(token, lba, blocks).ok_or(Refused {
                request: Request { token, op, lba, blocks, data },
                reason: Refusal::Full,
            });
        }
        let Some(vacant) = self.in_flight.vacant() else {
            return refused(Request { token, op, lba, blocks, data }, Refusal::Full);
        };
        let cid = vacant.cid();
        let (opcode, cdw12) = match op {
            // Its dwords 10 to 12 are reserved and stay zero.
            Op::Flush => (Opcode::FLUSH, 0),
            Op::WriteZeroes { may_unmap } => {
                let deallocate = may_unmap && self.target.deallocates_to_zeroes;
                let flags = if deallocate { CDW12_DEAC } else { 0 };
                // 0's based, and checked to be at most 65536.
                (Opcode::WRITE_ZEROES, flags | (blocks - 1))
            }
            Op::Discard | Op::Read | Op::Write { .. } => {
                unreachable!("{op:?} at {lba:?} is right by one rule and wrong by the other")
            }
        };
        let lba = if op == Op::Flush { 0 } else { lba.0 };
        let slot = vacant.slot();
        vacant.fill(token, data, Record::new(opcode, lba, cdw12));
        if op == Op::Flush && self.fate.cache_losses() != self.cache_losses {
            // What it covers may be lost: it fails, however it ends.
            self.in_flight.doom(slot);
        }
        self.write_entry(opcode, cid, 0, 0, lba, cdw12);
        Ok(())
    }

    /// Submits a read or a write that is right, of any length.
    fn submit_transfer(
        &mut self,
        request: Request,
        opcode: Opcode,
        flags: u32,
    ) -> Result<(), Refused> {
        if !request.data.frames.iter().all(|frame| self.mark.owns(frame)) {
            return Err(Refused { request, reason: Refusal::BadFrames });
        }
        let Some(vacant) = self.in_flight.vacant() else {
            return Err(Refused { request, reason: Refusal::Full });
        };
        let (slot, cid) = (vacant.slot(), vacant.cid());
        let SgList { frames, offset } = &request.data;
        let list_iova = self.lists_iova + u64::from(slot) * FRAME_SIZE as u64;
        let start = usize::from(slot) * LIST_WORDS;
        let page = || (&self.memory.lists.words()[start..start + LIST_WORDS], list_iova);
        let len_bytes = request.blocks * self.target.geometry.block_size;
        let list = match self.scatter_gather {
            true => sgl::describe(frames, *offset, len_bytes, self.pool_iova, page),
            false => None,
        };
        let (psdt, (low, high)) = match list {
            Some(words) => (sgl::PSDT_SGL, words),
            None => (0, prp::describe(frames, *offset, self.pool_iova, page)),
        };
        // The number of blocks is 0's based.
        let cdw12 = flags | (request.blocks - 1);
        let record = Record::new(opcode, request.lba.0, cdw12);
        let lba = request.lba.0;
        vacant.fill(request.token, request.data, record);
        let head = u64::from(self.target.nsid) << 32 | u64::from(cid) << 16 | u64::from(opcode.0);
        build(&mut self.memory.sq, [head | psdt, low, high, lba, cdw12.into()]);
        Ok(())
    }

    /// Writes a command into the next entry of the ring.
    #[inline]
    fn write_entry(
        &mut self,
        opcode: Opcode,
        cid: u16,
        prp1: u64,
        prp2: u64,
        cdw10_11: u64,
        cdw12: u32,
    ) {
        let head = u64::from(self.target.nsid) << 32 | u64::from(cid) << 16 | u64::from(opcode.0);
        build(&mut self.memory.sq, [head, prp1, prp2, cdw10_11, cdw12.into()]);
    }

    #[inline]
    fn list_iova(&self, slot: u16) -> u64 {
        self.lists_iova + u64::from(slot) * FRAME_SIZE as u64
    }

    /// Adds a discard to the command that is being gathered, or to a new one; `None` when the queue is
    /// full.
    fn gather(&mut self, token: Token, lba: Lba, blocks: u32) -> Option<()> {
        let limits = self.target.dsm;
        if self.gathering.is_some_and(|gathering| !gathering.has_room(limits, blocks)) {
            self.finish_gathering();
        }
        // Its own range, so that it can be asked for on its own.
        let record = Record::new(Opcode::DATASET_MANAGEMENT, lba.0, blocks);
        let mut gathering = match self.gathering {
            Some(mut gathering) => {
                gathering.last = self.in_flight.follow(gathering.last, token, record)?;
                gathering
            }
            None => {
                let vacant = self.in_flight.vacant()?;
                let slot = vacant.slot();
                vacant.fill(token, SgList::empty(), record);
                Gathering::new(slot)
            }
        };
        let start = usize::from(gathering.leader) * LIST_WORDS;
        let page = &self.memory.lists.words()[start..start + LIST_WORDS];
        gathering.add(page, lba, blocks);
        self.gathering = Some(gathering);
        Some(())
    }

    /// Builds the command of the gathered discards in the ring.
    fn finish_gathering(&mut self) {
        let Some(gathering) = self.gathering.take() else { return };
        let cid = self.in_flight.cid(gathering.leader);
        let ranges = u64::from(gathering.ranges - 1);
        let cdw10_11 = u64::from(CDW11_DSM_AD) << 32 | ranges;
        let list = self.list_iova(gathering.leader);
        self.write_entry(Opcode::DATASET_MANAGEMENT, cid, list, 0, cdw10_11, 0);
    }

    /// Answers what the controller has completed, up to `budget` requests: how many were answered, and
    /// whether the controller keeps to the protocol.
    #[inline]
    fn reap(&mut self, budget: usize, out: &mut Vec<Completion>) -> (usize, Result<(), Violation>) {
        let most = budget.min(self.in_flight.len());
        let mut moved = 0;
        let mut last = None;
        let mut checked = Ok(());
        while moved < most {
            if self.answering.is_some() {
                moved += self.poll_answering(most - moved, out);
                continue;
            }
            let Self { memory: QueueMemory { cq, .. }, in_flight, .. } = self;
            let mut sink = Sink::new(out, most - moved);
            moved += cq.drain(most - moved, |cqe| {
                let Some(place) = sink.place() else { return false };
                let taken = in_flight.complete(cqe.cid(), |completion| place.fill(completion));
                last = if taken { Some(cqe) } else { last };
                taken
            });
            drop(sink);
            if moved == most {
                break;
            }
            let Some(cqe) = self.memory.cq.peek() else { break };
            match self.reap_seldom(cqe, out) {
                // Whoever looks at what is there before he polls must find what is taken next.
                Ok(0) => {
                    last = Some(cqe);
                    break;
                }
                Ok(answered) => (moved, last) = (moved + answered, Some(cqe)),
                Err(violation) => {
                    checked = Err(violation);
                    break;
                }
            }
        }
        if let Some(cqe) = last
            && checked.is_ok()
        {
            checked = self.check_fetched(cqe);
        }
        (moved, checked)
    }

    /// Takes a completion that is new but not ordinary: of a command that failed, of one that answers
    /// several requests, or wrong. Answers its first request, if it is not to be sent again: how many
    /// were answered.
    #[cold]
    fn reap_seldom(&mut self, cqe: Cqe, out: &mut Vec<Completion>) -> Result<usize, Violation> {
        let qid = self.qid;
        if cqe.sqid() != qid {
            return Err(Violation::WrongQueue { qid, sqid: cqe.sqid() });
        }
        let slot = match self.in_flight.named(cqe.cid()) {
            Named::InFlight(slot) => slot,
            Named::Asked(slot) => {
                let value = self.memory.cq.value();
                self.memory.cq.advance();
                self.settle_asked(slot, cqe.status(), value);
                return Ok(0);
            }
            Named::Nothing => return Err(Violation::UnknownCommand { qid, cid: cqe.cid() }),
        };
        self.memory.cq.advance();
        Ok(self.ended(slot, cqe.status(), out))
    }

    /// The command of a slot is over with a status. Answers its first request, if it is not to be sent
    /// again: how many were answered.
    fn ended(&mut self, slot: u16, status: Status, out: &mut Vec<Completion>) -> usize {
        if status.code() == Status::ABORT_REQUESTED {
            return self.aborted(slot, status, out);
        }
        if status.to_result().is_err() {
            return self.failed(slot, status, out);
        }
        let Some(Answered { mut completion, next }) = self.in_flight.take(slot) else { return 0 };
        if self.in_flight.record(slot).wish == Wish::CacheLost {
            completion.result = Err(IoError::new(IoErrorKind::Device));
            self.cache_losses = self.fate.cache_losses();
        }
        self.answering = next.map(|slot| Answering::with(slot, completion.result));
        out.push(completion);
        1
    }

    /// Checks what the last completion of a batch says was fetched.
    #[inline]
    fn check_fetched(&mut self, cqe: Cqe) -> Result<(), Violation> {
        let qid = self.qid;
        self.memory.sq.fetched(cqe).map_err(|bad| match bad {
            BadFetch::Queue => Violation::WrongQueue { qid, sqid: cqe.sqid() },
            BadFetch::Head => Violation::BadHead { qid, sqhd: cqe.sqhd() },
        })?;
        // What it has not fetched has an entry of the ring, and so has been submitted and not answered;
        // but for what it says too late.
        let most = self.in_flight.len() + usize::from(self.memory.sq.lag_max());
        if usize::from(self.memory.sq.unfetched()) > most {
            return Err(Violation::Unfetched { qid });
        }
        Ok(())
    }

    /// Looks at the clock, and once a tick at the controller's status and at the deadlines.
    #[cold]
    fn look(&mut self) {
        let now = self.controller.parts().clock.now();
        if !self.deadlines.tick(now) {
            return;
        }
        if self.is_serving() {
            if let Some(failure) = self.fate.examine() {
                return self.fate.fail(failure);
            }
            // Commands grow no older while the controller need not answer.
            if !self.fate.is_paused(now) {
                self.in_flight.grow_older();
                self.see_to_late();
            }
        }
        self.controller.turn();
    }

    /// How many requests were taken since the last commit.
    fn uncommitted(&self) -> usize {
        self.in_flight.len() - self.committed
    }

    /// Whether a poll has more to do than to take completions.
    #[inline]
    fn is_busy(&self) -> bool {
        self.trouble.is_busy() || self.in_flight.parked() > 0
    }

    /// The parts of a poll that are not for every one.
    #[cold]
    fn poll_seldom(&mut self) {
        self.look();
        if self.armed_polls > 0 {
            self.armed_polls = self.armed_polls.saturating_sub(POLLS_PER_LOOK);
            if self.armed_polls == 0
                && let Some(vector) = self.vector
            {
                self.controller.parts().function.set_interrupt(vector, false);
            }
        }
    }
}

/// Writes the words that commands of a queue differ in into the next entry of the ring: dwords 0 and
/// 1, PRP1, PRP2, dwords 10 and 11, dwords 12 and 13. The others are zero from the start.
#[inline]
fn build(sq: &mut SubmissionRing, [head, prp1, prp2, cdw10_11, cdw12_13]: [u64; 5]) {
    // Relaxed: pairs with nothing by itself; the doorbell's write in `commit` is what the device
    // sees first, and `Registers` orders every store before it.
    let entry = sq.entry();
    entry[0].store(head.to_le(), Ordering::Relaxed);
    entry[3].store(prp1.to_le(), Ordering::Relaxed);
    entry[4].store(prp2.to_le(), Ordering::Relaxed);
    entry[5].store(cdw10_11.to_le(), Ordering::Relaxed);
    entry[6].store(cdw12_13.to_le(), Ordering::Relaxed);
    sq.advance();
}

/// Leaks frames that a device may use for ever.
fn forget(data: SgList) {
    data.frames.into_iter().for_each(std::mem::forget);
}

impl IoQueue for NvmeQueue {
    #[inline]
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        // A read or a write inside of a frame, which is what most requests are. Everything else,
        // also what is to be refused, goes the longer way.
        let Some((head, cdw12)) = self.frame_limits.admit(&request) else {
            return self.submit_other(request);
        };
        let [frame] = &*request.data.frames else { return self.submit_other(request) };
        if !self.mark.owns(frame) {
            return self.submit_other(request);
        }
        let prp1 = prp::describe_one(frame, 0, self.pool_iova);
        let Some(vacant) = self.in_flight.vacant() else { return self.submit_other(request) };
        let head = head | u64::from(vacant.cid()) << 16;
        let lba = request.lba.0;
        let record = Record::new(Opcode(head as u8), lba, cdw12);
        vacant.fill(request.token, request.data, record);
        build(&mut self.memory.sq, [head, prp1, 0, lba, cdw12.into()]);
        Ok(())
    }

    #[inline]
    fn commit(&mut self) {
        if self.gathering.is_some() {
            self.finish_gathering();
        }
        let Some(tail) = self.memory.sq.commit() else { return };
        self.committed = self.in_flight.len();
        if self.fate.word() == self.serving {
            self.sq_doorbell.ring(tail);
        } else {
            // What becomes of them is seen to when it is polled.
            self.frame_limits.close();
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        if self.fate.word() != self.serving {
            return self.poll_trouble(budget, out);
        }
        let (moved, checked) = self.reap(budget, out);
        // What was not committed was not there to be completed.
        let left = self.committed.checked_sub(moved);
        self.committed = left.unwrap_or(0);
        let checked = checked.and(left.map(drop).ok_or(Violation::Unfetched { qid: self.qid }));
        if let Err(violation) = checked {
            self.lied(violation);
            return moved;
        }
        let moved = match self.is_busy() {
            true => moved + self.catch_up(budget - moved, out),
            false => moved,
        };
        if let Some(head) = self.memory.cq.due() {
            self.cq_doorbell.ring(head);
        }
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS_PER_LOOK) {
            self.poll_seldom();
        }
        moved
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.commit();
        self.ask_to_cancel(token)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len() + self.in_flight.parked() + self.trouble.waiting()
    }

    fn depth(&self) -> usize {
        self.in_flight.depth()
    }

    fn arm(&mut self) -> Armed {
        self.look();
        if self.answering.is_some() {
            return Armed::Ready;
        }
        match self.memory.cq.peek() {
            // A poll takes none of these: it is of nothing.
            Some(cqe) if self.in_flight.len() == 0 && self.is_serving() => {
                self.lied(Violation::UnknownCommand { qid: self.qid, cid: cqe.cid() });
            }
            Some(_) if self.in_flight.len() > 0 => return Armed::Ready,
            Some(_) | None => {}
        }
        if IoQueue::in_flight(self) == 0 {
            return Armed::Yes;
        }
        if self.is_busy() {
            // A poll goes on with it.
            return Armed::MustPoll;
        }
        if !self.is_serving() {
            // It goes on when the controller is quiet or runs again, which nobody tells.
            return Armed::MustPoll;
        }
        let controller = Arc::clone(&self.controller);
        let function = controller.parts().function;
        let Some(vector) = self.vector else { return Armed::MustPoll };
        let Some(fd) = function.event_fd(vector) else { return Armed::MustPoll };
        if self.armed_polls == 0 && !function.set_interrupt(vector, true) {
            return Armed::MustPoll;
        }
        self.armed_polls = POLLS_UNTIL_DISARMED;
        // A controller need not interrupt again for a ring in which it thinks that others wait.
        if let Some(head) = self.memory.cq.tell() {
            self.cq_doorbell.ring(head);
        }
        // What fired before this is forgotten; then the ring is looked at once more; what fires after
        // that is kept in the descriptor. So no completion can slip in between.
        let mut count = [0; 8];
        let _ = rustix::io::read(fd, &mut count);
        if self.memory.cq.peek().is_some() { Armed::Ready } else { Armed::Yes }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.controller.parts().function.event_fd(self.vector?)
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        // What was not committed never reached the device: not in the ring behind the doorbell, and
        // the queue is deleted before the ring's memory is used again.
        let uncommitted = self.uncommitted();
        // Which does not keep what did reach it from being late.
        self.committed = self.in_flight.len();
        let serving = self.settle(uncommitted);
        if self.controller.delete_queue(self.qid, serving) {
            return;
        }
        // The controller would not delete it and would not stop: it may use all of this for ever.
        self.memory.sq.leak();
        self.memory.cq.leak();
        self.memory.lists.leak();
        for slot in 0..self.in_flight.depth() as u16 {
            if let Some(answered) = self.in_flight.take(slot) {
                forget(answered.completion.data);
            }
        }
    }
}
