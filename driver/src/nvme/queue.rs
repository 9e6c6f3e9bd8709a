//! A queue pair: the data path.
//!
//! A command is built in its place in the ring, word by word, and only the words that differ between
//! commands: nothing is cleared and nothing is copied. One doorbell a commit, one a poll that found
//! something. No lock, no allocation, no clock, no system call and no call through a pointer for a
//! request; the two doorbells of a batch go through the one to the registers.

pub(super) mod raw;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::block::{Armed, Capabilities, Geometry, IoQueue};
use crate::dma::{DmaPool, DmaRegion, FRAME_SIZE};
use crate::error::IoResult;
use crate::request::{Completion, Lba, Op, Refusal, Refused, Request, SgList};
use crate::slots::Token;

use super::controller::NvmeController;
use super::deadlines::Deadlines;
use super::discard::{DsmLimits, Gathering};
use super::failure::{Failure, Fate, Quiet, Violation};
use super::in_flight::{Answered, InFlight};
use super::limits::TransferLimits;
use super::namespace::NamespaceUse;
use super::prp;
use super::registers::Doorbell;
use super::ring::{BadFetch, CompletionRing, Drain, SubmissionRing};
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
    /// Keeps the namespace from being closed.
    #[expect(dead_code, reason = "it counts by living")]
    pub(super) namespace_use: NamespaceUse,
}

/// A queue pair of an NVMe controller, on one namespace.
#[derive(Debug)]
pub(super) struct NvmeQueue {
    memory: QueueMemory,
    in_flight: InFlight,
    limits: TransferLimits,
    target: QueueTarget,
    pool: DmaPool,
    /// The namespace in the upper half, where the first word of a command has it.
    nsid_high: u64,
    pool_iova: u64,
    lists_iova: u64,
    fate: Arc<Fate>,
    sq_doorbell: Doorbell,
    cq_doorbell: Doorbell,
    /// The discards since the last commit.
    gathering: Option<Gathering>,
    /// The rest of the requests that a completed command answers, and how.
    answering: Option<(u16, IoResult)>,
    /// How many requests were taken since the last commit.
    uncommitted: usize,
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
    ) -> Self {
        let parts = controller.parts();
        Self {
            in_flight: InFlight::new(depth),
            limits: TransferLimits::new(target.geometry, target.capabilities),
            nsid_high: u64::from(target.nsid) << 32,
            pool_iova: parts.pool.iova().0,
            lists_iova: memory.lists.iova().0,
            pool: parts.pool.clone(),
            fate: Arc::clone(parts.fate),
            sq_doorbell: Doorbell::submission(parts.function, parts.cap, qid),
            cq_doorbell: Doorbell::completion(parts.function, parts.cap, qid),
            gathering: None,
            answering: None,
            uncommitted: 0,
            polls: 0,
            armed_polls: 0,
            deadlines: Deadlines::new(parts.command_timeout, parts.clock.now()),
            vector,
            qid,
            memory,
            target,
            controller,
        }
    }

    /// PRP1 and PRP2 of a read or a write; `None` when a frame is not of the pool.
    #[inline]
    fn describe(&self, slot: u16, data: &SgList) -> Option<(u64, u64)> {
        // One frame is what most requests have, and needs no loop.
        if let [only] = &*data.frames {
            let prp1 = prp::describe_one(only, data.offset, self.pool_iova);
            return self.pool.owns(only).then_some((prp1, 0));
        }
        self.describe_many(slot, data)
    }

    #[inline(never)]
    fn describe_many(&self, slot: u16, data: &SgList) -> Option<(u64, u64)> {
        if !data.frames.iter().all(|frame| self.pool.owns(frame)) {
            return None;
        }
        Some(prp::describe(&data.frames, data.offset, self.pool_iova, || {
            let start = usize::from(slot) * LIST_WORDS;
            let list = &self.memory.lists.words()[start..start + LIST_WORDS];
            (list, self.list_iova(slot))
        }))
    }

    /// Submits what is not a read or a write, or is not right: the rules are those of the geometry.
    #[inline(never)]
    fn submit_other(&mut self, request: Request) -> Result<(), Refused> {
        let checked = match self.fate.is_running() {
            true => self.target.geometry.check(&self.target.capabilities, &request),
            false => Err(Refusal::Failed),
        };
        if let Err(reason) = checked {
            return Err(Refused { request, reason });
        }
        let Some((slot, cid)) = self.in_flight.free_slot() else {
            return Err(Refused { request, reason: Refusal::Full });
        };
        self.uncommitted += 1;
        let Request { token, op, lba, blocks, data } = request;
        match op {
            Op::Discard => {
                self.gather(slot, token, lba, blocks);
                return Ok(());
            }
            // Its dwords 10 to 12 are reserved and stay zero.
            Op::Flush => self.write_entry(Opcode::FLUSH, cid, 0, 0, 0, 0),
            Op::WriteZeroes { may_unmap } => {
                let deallocate = may_unmap && self.target.deallocates_to_zeroes;
                let flags = if deallocate { CDW12_DEAC } else { 0 };
                // 0's based, and checked to be at most 65536.
                self.write_entry(Opcode::WRITE_ZEROES, cid, 0, 0, lba.0, flags | (blocks - 1));
            }
            Op::Read | Op::Write { .. } => {
                unreachable!("{op:?} at {lba:?} is right by one rule and wrong by the other")
            }
        }
        self.in_flight.put(slot, token, data);
        Ok(())
    }

    /// Writes a command into the next entry of the ring: the five words that commands of this queue
    /// differ in. Dwords 2 to 5 and 13 to 15 are zero from the start.
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
        let head = self.nsid_high | u64::from(cid) << 16 | u64::from(opcode.0);
        // Relaxed: pairs with nothing by itself; the doorbell's write in `commit` is what the device
        // sees first, and `Registers` orders every store before it.
        let entry = self.memory.sq.entry();
        entry[0].store(head.to_le(), Ordering::Relaxed);
        entry[3].store(prp1.to_le(), Ordering::Relaxed);
        entry[4].store(prp2.to_le(), Ordering::Relaxed);
        entry[5].store(cdw10_11.to_le(), Ordering::Relaxed);
        entry[6].store(u64::from(cdw12).to_le(), Ordering::Relaxed);
        self.memory.sq.advance();
    }

    #[inline]
    fn list_iova(&self, slot: u16) -> u64 {
        self.lists_iova + u64::from(slot) * FRAME_SIZE as u64
    }

    /// Adds a discard to the command that is being gathered, or to a new one.
    fn gather(&mut self, slot: u16, token: Token, lba: Lba, blocks: u32) {
        let limits = self.target.dsm;
        if self.gathering.is_some_and(|gathering| !gathering.has_room(limits, blocks)) {
            self.finish_gathering();
        }
        let mut gathering = match self.gathering {
            Some(mut gathering) => {
                self.in_flight.put_behind(gathering.last, slot, token);
                gathering.last = slot;
                gathering
            }
            None => {
                self.in_flight.put(slot, token, SgList::empty());
                Gathering::new(slot)
            }
        };
        let start = usize::from(gathering.leader) * LIST_WORDS;
        let page = &self.memory.lists.words()[start..start + LIST_WORDS];
        gathering.add(page, lba, blocks);
        self.gathering = Some(gathering);
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

    /// Checks what has completed and answers it, up to `budget` requests.
    #[inline]
    fn reap(&mut self, budget: usize, out: &mut Vec<Completion>) -> (usize, Result<(), Violation>) {
        let Self { memory: QueueMemory { sq, cq, .. }, in_flight, answering, .. } = self;
        let qid = self.qid;
        let mut checked = Ok(());
        let count = cq.drain(budget, |cqe| {
            if let Err(bad) = sq.fetched(cqe) {
                checked = Err(match bad {
                    BadFetch::Queue => Violation::WrongQueue { qid, sqid: cqe.sqid() },
                    BadFetch::Head => Violation::BadHead { qid, sqhd: cqe.sqhd() },
                });
                return Drain::Refuse;
            }
            let Some(Answered { token, data, next }) = in_flight.complete(cqe.cid()) else {
                checked = Err(Violation::UnknownCommand { qid, cid: cqe.cid() });
                return Drain::Refuse;
            };
            // Success is SCT and SC 0; the other bits of the field do not make an error.
            if cqe.status().0 & 0x7ff == 0 && next.is_none() {
                out.push(Completion { token, result: Ok(()), data });
                return Drain::Next;
            }
            let status = cqe.status();
            let completion = Completion { token, result: status.to_result(), data };
            *answering = push_seldom(out, completion, next);
            if next.is_some() { Drain::Stop } else { Drain::Next }
        });
        (count, checked)
    }

    /// Answers the rest of the requests of a command that answers several.
    fn poll_answering(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let mut moved = 0;
        while let Some((slot, result)) = self.answering
            && moved < budget
        {
            let Some(Answered { token, data, next }) = self.in_flight.take(slot) else { break };
            out.push(Completion { token, result, data });
            moved += 1;
            self.answering = next.map(|next| (next, result));
        }
        moved
    }

    /// Answers everything in flight with the controller's failure, once it touches memory no more.
    #[cold]
    fn poll_failed(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let mut moved = self.poll_answering(budget, out);
        let Some(failure) = self.fate.failure() else { return moved };
        let lost = match self.fate.quiet() {
            Quiet::NotYet => return moved,
            Quiet::Yes => false,
            Quiet::Never => true,
        };
        self.gathering = None;
        let result = Err(failure.io_error());
        for slot in 0..self.in_flight.depth() as u16 {
            if moved == budget {
                break;
            }
            let Some(Answered { token, mut data, .. }) = self.in_flight.take(slot) else {
                continue;
            };
            if lost {
                // The device may still write them, whoever has them: nobody gets them.
                std::mem::take(&mut data).frames.into_iter().for_each(std::mem::forget);
            }
            out.push(Completion { token, result, data });
            moved += 1;
        }
        moved
    }

    /// Looks at the clock, and once an interval at the controller's status and at the deadlines.
    #[cold]
    fn look(&mut self) {
        let now = self.controller.parts().clock.now();
        if now.saturating_sub(self.deadlines.scanned) < self.deadlines.interval {
            return;
        }
        self.deadlines.scanned = now;
        if let Some(failure) = self.fate.examine() {
            return self.fate.fail(failure);
        }
        // What its owner has not committed is not the device's to answer.
        if self.uncommitted == 0 && self.in_flight.scan(self.deadlines.scans) {
            let waited_ms = self.deadlines.timeout.as_millis() as u64;
            self.fate.fail(Failure::TimedOut { qid: self.qid, waited_ms });
        }
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

/// A failure, or the first of several that one command answers: apart from the common path, which then
/// has nothing to decide. What is left to answer, and how.
#[cold]
#[inline(never)]
fn push_seldom(
    out: &mut Vec<Completion>,
    completion: Completion,
    next: Option<u16>,
) -> Option<(u16, IoResult)> {
    let answering = next.map(|next| (next, completion.result));
    out.push(completion);
    answering
}

impl IoQueue for NvmeQueue {
    #[inline]
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let command = match self.limits.admit(&request) {
            Some(command) if self.fate.is_running() => command,
            _ => return self.submit_other(request),
        };
        let Some((slot, cid)) = self.in_flight.free_slot() else {
            return Err(Refused { request, reason: Refusal::Full });
        };
        let Some((prp1, prp2)) = self.describe(slot, &request.data) else {
            return Err(Refused { request, reason: Refusal::BadFrames });
        };
        self.uncommitted += 1;
        let (opcode, flags) = command;
        // The number of blocks is 0's based.
        let cdw12 = flags | (request.blocks - 1);
        self.write_entry(opcode, cid, prp1, prp2, request.lba.0, cdw12);
        self.in_flight.put(slot, request.token, request.data);
        Ok(())
    }

    #[inline]
    fn commit(&mut self) {
        if self.gathering.is_some() {
            self.finish_gathering();
        }
        if let Some(tail) = self.memory.sq.commit() {
            self.uncommitted = 0;
            self.sq_doorbell.ring(tail);
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        if !self.fate.is_running() {
            return self.poll_failed(budget, out);
        }
        let mut moved = 0;
        let mut consumed = 0;
        loop {
            if self.answering.is_some() {
                moved += self.poll_answering(budget - moved, out);
            }
            let (count, checked) = self.reap(budget - moved, out);
            moved += count;
            consumed += count;
            if let Err(violation) = checked {
                self.fate.fail(Failure::Protocol(violation));
                return moved;
            }
            if self.answering.is_none() || moved == budget {
                break;
            }
        }
        if consumed > 0 {
            self.cq_doorbell.ring(self.memory.cq.head());
            if usize::from(self.memory.sq.unfetched()) > self.in_flight.len() {
                self.fate.fail(Failure::Protocol(Violation::Unfetched { qid: self.qid }));
            }
        }
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS_PER_LOOK) {
            self.poll_seldom();
        }
        moved
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn depth(&self) -> usize {
        self.in_flight.depth()
    }

    fn arm(&mut self) -> Armed {
        self.look();
        if self.answering.is_some() || self.memory.cq.peek().is_some() {
            return Armed::Ready;
        }
        if self.in_flight.len() == 0 {
            return Armed::Yes;
        }
        if !self.fate.is_running() {
            // It answers when the controller is quiet, which nobody tells.
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
        let uncommitted = std::mem::take(&mut self.uncommitted);
        let mut out = Vec::with_capacity(self.in_flight.depth());
        // Bounded by the deadlines, and after them by CAP.TO.
        while self.in_flight.len() > uncommitted {
            out.clear();
            if self.poll(usize::MAX, &mut out) == 0 {
                self.look();
                self.controller.parts().clock.sleep(Duration::from_micros(20));
            }
        }
        if self.controller.delete_queue(self.qid) {
            return;
        }
        // The controller would not delete it and would not stop: it may use all of this for ever.
        self.memory.sq.leak();
        self.memory.cq.leak();
        self.memory.lists.leak();
        for slot in 0..self.in_flight.depth() as u16 {
            if let Some(answered) = self.in_flight.take(slot) {
                answered.data.frames.into_iter().for_each(std::mem::forget);
            }
        }
    }
}
