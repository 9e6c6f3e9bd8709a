//! What a queue does when something goes wrong: late commands, aborts, resets, lies, the end.
//!
//! ```text
//!   Serving ──lie──► Deleting ──the pair is gone──► Failed
//!      │ ▲
//!      │ └───────────────── Creating ◄──it runs again──┐
//!      └──the controller was told to stop──► Lost ─────┘
//!                                              └──it ended──► Ended
//! ```
//!
//! # What is sent again
//!
//! A command that was aborted, or that a reset ended, may have been done, in part or in whole, or not
//! at all; and it is over: an aborted one has its completion, and with RDY = 0 the controller fetches
//! and writes nothing of before (Base 2.0c §3.7.2). Sending it again is safe when doing it twice is the
//! same as doing it once, and nobody can have come between:
//!
//! * reads and flushes change nothing; a flush sent again still covers what had completed before it;
//! * writes, zeroes and discards put into the same blocks what is put there already: their frames are
//!   the request's until it is answered, and whoever owns the queue submits nothing for the same blocks
//!   that must come after it before that ([`IoQueue`](crate::IoQueue), Ordering). No earlier copy is
//!   left in the controller to overwrite a later write.
//! * A namespace that another controller may write (NMIC) is different: somebody may have seen the
//!   first copy done and put something else there. What changes such a namespace is failed.
//!
//! A request is sent again `retries_max` times at most: it may be what stops the controller. A command
//! that the controller failed with a status that may pass is sent again by the same rules
//! ([`passing`](super::passing)).
//!
//! # Aborts
//!
//! An Abort names its command by an identifier that another command may have later. So the slot of a
//! command that was asked to end is kept until the Abort's own completion, also when the command has
//! completed long before; its request is answered then. A command that ends as aborted without having
//! been asked is sent again like one that was.

use std::collections::VecDeque;

use crate::block::Cancel;
use crate::error::{IoError, IoErrorKind, IoResult};
use crate::nvme::admin::{self, AdminError, Ticket};
use crate::nvme::controller::Event;
use crate::nvme::failure::{Failure, Violation};
use crate::nvme::fate::{Fate, NOT_SERVING, Quiet, Standing};
use crate::nvme::in_flight::{self, Answered};
use crate::nvme::record::Wish;
use crate::nvme::spec::{Opcode, Status, SubmissionEntry};
use crate::request::{Completion, Op, Refusal, Refused, Request};
use crate::slots::Token;

use super::{NvmeQueue, forget};

/// A request that waits to be sent: once more, or for the first time while there was no queue.
#[derive(Debug)]
struct Waiting {
    request: Request,
    tries: u8,
}

/// A command that was asked to end.
#[derive(Clone, Copy, Debug)]
struct Asked {
    slot: u16,
    /// The Abort.
    ticket: Ticket,
    /// What the command came to, when it has completed before the Abort: status, dwords 0 and 1.
    answer: Option<(Status, u64)>,
}

/// The rest of the requests that a command answers: the next one of them, and what becomes of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering {
    slot: u16,
    end: End,
}

/// What becomes of the requests of a command that is over.
#[derive(Clone, Copy, Debug)]
enum End {
    /// They are answered with this.
    Answer(IoResult),
    /// The command was aborted: they are sent again if they may be.
    Aborted(IoError),
    /// The controller failed it: they are sent again if that may help.
    Failed(Status),
}

impl Answering {
    pub(super) fn with(slot: u16, result: IoResult) -> Self {
        Self { slot, end: End::Answer(result) }
    }

    pub(super) fn failed(slot: u16, status: Status) -> Self {
        Self { slot, end: End::Failed(status) }
    }
}

/// How a queue stands with its controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The controller broke the protocol here: submission queue, then completion queue are deleted. In
    /// `epoch`; whatever ends that deletes them too.
    Deleting {
        violation: Violation,
        epoch: u32,
        submission: bool,
        ticket: Option<Ticket>,
    },
    /// The controller was told to stop. The commands in flight are over when it has.
    Lost,
    /// Nothing is in flight; completion queue, then submission queue are made anew.
    /// In `epoch`, when it was begun: a reset takes what was made away.
    Creating {
        epoch: Option<u32>,
        completion: bool,
        ticket: Option<Ticket>,
    },
    /// The pair is gone, and the queue with it, or its namespace.
    Failed(IoError),
    /// The controller has ended.
    Ended,
}

/// The part of a queue that is for trouble.
#[derive(Debug)]
pub(super) struct Trouble {
    phase: Phase,
    waiting: VecDeque<Waiting>,
    asked: Vec<Asked>,
    /// Status, dwords 0 and 1 of the last command that was answered after its Abort.
    late_answer: Option<(Status, u64)>,
    retries_max: u8,
    /// Whether somebody else may write the namespace.
    shared_namespace: bool,
    /// The queue is being dropped: it is not made anew.
    closing: bool,
}

impl Trouble {
    pub(super) fn new(depth: u16, retries_max: u8, shared_namespace: bool) -> Self {
        Self {
            phase: Phase::Serving,
            waiting: VecDeque::with_capacity(depth.into()),
            asked: Vec::with_capacity(depth.into()),
            late_answer: None,
            retries_max,
            shared_namespace,
            closing: false,
        }
    }

    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether such a request, sent so often again, may be sent once more.
    pub(super) fn may_send_again(&self, op: Op, tries: u8) -> bool {
        tries < self.retries_max && !(op.writes() && self.shared_namespace)
    }

    /// Status, dwords 0 and 1 of what [`NvmeQueue::catch_up`] has just answered, as it came.
    pub(super) fn take_late_answer(&mut self) -> Option<(Status, u64)> {
        self.late_answer.take()
    }

    /// Whether something waits, or was asked to end.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        self.waiting.len() + self.asked.len() > 0
    }
}

impl NvmeQueue {
    pub(super) fn is_serving(&self) -> bool {
        self.trouble.phase == Phase::Serving && self.fate.word() == self.serving
    }

    /// The controller broke the protocol on this queue, which is given up. What is in flight is
    /// answered when the controller has let go of the queue pair: a deletion that it acknowledges is
    /// its word that it fetches and writes nothing of it any more (Base 2.0c §5.6, §5.5), as good as
    /// RDY = 0 is for all of it. If it does not delete it, it is reset.
    #[cold]
    pub(super) fn lied(&mut self, violation: Violation) {
        self.stop_serving();
        let Standing::Running(epoch) = self.fate.standing() else { return };
        self.fate.counters.queues_failed.add(1);
        self.fate.note(Event::QueueFailed(violation));
        self.trouble.phase = Phase::Deleting { violation, epoch, submission: false, ticket: None };
    }

    fn stop_serving(&mut self) {
        self.frame_limits.close();
        self.serving = NOT_SERVING;
        if self.trouble.phase == Phase::Serving {
            self.trouble.phase = Phase::Lost;
        }
    }

    /// A poll of a queue that does not serve.
    #[cold]
    pub(super) fn poll_trouble(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        self.stop_serving();
        self.controller.turn();
        let moved = self.finish_asked(budget, out, true);
        if self.answering.is_some() || self.trouble.asked.iter().any(|it| it.answer.is_some()) {
            return moved;
        }
        // The controller forgets the Aborts with the commands.
        self.trouble.asked.clear();
        let standing = self.fate.standing();
        let over = matches!(standing, Standing::Ending | Standing::Quiet | Standing::Never);
        if over && !matches!(self.trouble.phase, Phase::Failed(_)) {
            self.trouble.phase = Phase::Ended;
        }
        let moved = moved
            + match self.trouble.phase {
                Phase::Serving => 0,
                Phase::Deleting { violation, epoch, submission, ticket } => {
                    self.delete(standing, violation, epoch, submission, ticket);
                    0
                }
                Phase::Lost => self.sort_lost(standing, budget - moved, out),
                Phase::Creating { epoch, completion, ticket } => {
                    self.create(standing, epoch, completion, ticket);
                    0
                }
                Phase::Failed(error) => self.answer_all(budget - moved, out, error, false),
                Phase::Ended => self.poll_ended(budget - moved, out),
            };
        self.committed = self.committed.min(self.in_flight.len());
        moved
    }

    /// Answers what is in flight and what waits, up to `budget`, with one error. What is `lost` is
    /// leaked: the device may still write it, whoever has it, so nobody gets it.
    fn answer_all(
        &mut self,
        budget: usize,
        out: &mut Vec<Completion>,
        error: IoError,
        lost: bool,
    ) -> usize {
        self.gathering = None;
        self.parked.clear();
        let mut moved = 0;
        for slot in 0..self.in_flight.depth() as u16 {
            if moved == budget {
                return moved;
            }
            let Some(Answered { mut completion, .. }) = self.in_flight.take(slot) else {
                continue;
            };
            if lost {
                forget(std::mem::take(&mut completion.data));
            }
            completion.result = Err(error);
            out.push(completion);
            moved += 1;
        }
        while moved < budget
            && let Some(Waiting { request, .. }) = self.trouble.waiting.pop_front()
        {
            // The device never had it, or has let go of it.
            out.push(Completion { token: request.token, result: Err(error), data: request.data });
            moved += 1;
        }
        moved
    }

    /// Answers everything with the controller's failure, once it touches memory no more.
    fn poll_ended(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let Some(failure) = self.fate.failure() else { return 0 };
        match self.fate.quiet() {
            Quiet::NotYet => 0,
            Quiet::Yes => self.answer_all(budget, out, failure.io_error(), false),
            Quiet::Never => self.answer_all(budget, out, failure.io_error(), true),
        }
    }

    /// The commands of a controller that has stopped are over: each is kept to be sent again, or
    /// answered.
    fn sort_lost(&mut self, standing: Standing, budget: usize, out: &mut Vec<Completion>) -> usize {
        if standing == Standing::Stopping {
            return 0;
        }
        self.gathering = None;
        self.parked.clear();
        let error = self.fate.reason().passing();
        let mut moved = 0;
        for slot in 0..self.in_flight.depth() as u16 {
            if moved == budget {
                return moved;
            }
            // Each on its own, also those that shared a command.
            if let Some(Answered { completion, .. }) = self.in_flight.take(slot) {
                moved += usize::from(self.keep_or_answer(slot, completion, error, out));
            }
        }
        if !self.trouble.closing {
            self.trouble.phase = Phase::Creating { epoch: None, completion: false, ticket: None };
        }
        moved
    }

    /// Keeps a request whose command is over to be sent again, or answers it; whether it was answered.
    fn keep_or_answer(
        &mut self,
        slot: u16,
        completion: Completion,
        error: IoError,
        out: &mut Vec<Completion>,
    ) -> bool {
        let record = self.in_flight.record(slot);
        let operation = record.operation().filter(|(op, ..)| {
            record.wish != Wish::Cancel && self.trouble.may_send_again(*op, record.tries)
        });
        let Completion { token, data, .. } = completion;
        if let Some((op, lba, blocks)) = operation {
            let request = Request { token, op, lba, blocks, data };
            self.trouble.waiting.push_back(Waiting { request, tries: record.tries + 1 });
            // The short way does not count what waits, which needs its slot.
            self.frame_limits.close();
            return false;
        }
        let result = match record.wish {
            Wish::Cancel => Err(IoError::new(IoErrorKind::Cancelled)),
            Wish::Nothing | Wish::Again | Wish::CacheLost => {
                self.fate.counters.given_up.add(1);
                Err(error)
            }
        };
        out.push(Completion { token, result, data });
        true
    }

    /// Makes the pair anew on a controller that runs again, a step at a time.
    fn create(
        &mut self,
        standing: Standing,
        begun: Option<u32>,
        completion: bool,
        ticket: Option<Ticket>,
    ) {
        let epoch = match standing {
            Standing::Running(epoch) if begun.is_none_or(|begun| begun == epoch) => epoch,
            // Reset since it was begun: what was made is gone.
            Standing::Running(_) | Standing::Stopping => {
                self.trouble.phase = Phase::Lost;
                return;
            }
            Standing::Reviving | Standing::Ending | Standing::Quiet | Standing::Never => return,
        };
        if self.target.namespace_use.is_gone() && ticket.is_none() && !completion {
            self.trouble.phase = Phase::Failed(IoError::new(IoErrorKind::Gone));
            return;
        }
        let creating =
            |completion, ticket| Phase::Creating { epoch: Some(epoch), completion, ticket };
        let (opcode, entry) = match completion {
            false => {
                // The controller knows of neither ring.
                self.memory.sq.reset();
                self.memory.cq.reset();
                self.sq_doorbell.reset();
                self.cq_doorbell.reset();
                let entry = admin::create_cq_entry(self.qid, &self.memory.cq, self.vector);
                (Opcode::CREATE_IO_CQ, entry)
            }
            true => (Opcode::CREATE_IO_SQ, admin::create_sq_entry(self.qid, &self.memory.sq)),
        };
        match self.step(epoch, opcode, entry, ticket) {
            Step::Waits(ticket) => self.trouble.phase = creating(completion, ticket),
            Step::Done if !completion => self.trouble.phase = creating(true, None),
            Step::Done => {
                self.trouble.phase = Phase::Serving;
                self.serving = Fate::running_word(epoch);
                self.frame_limits.open();
                self.send_waiting();
            }
            // Only a reset takes a completion queue without its submission queue away.
            Step::Refused if completion => {
                self.fate.fail(Failure::KeepsQueue { qid: self.qid });
                self.trouble.phase = Phase::Lost;
            }
            Step::Refused => {
                self.trouble.phase = Phase::Failed(IoError::new(IoErrorKind::Device));
            }
            Step::Lost => self.trouble.phase = Phase::Lost,
        }
    }

    /// Deletes the pair, a step at a time.
    fn delete(
        &mut self,
        standing: Standing,
        violation: Violation,
        epoch: u32,
        submission: bool,
        ticket: Option<Ticket>,
    ) {
        let failed = Phase::Failed(Failure::Protocol(violation).passing());
        let gone = match standing {
            Standing::Running(now) => now != epoch,
            Standing::Reviving => true,
            Standing::Stopping => return,
            Standing::Ending | Standing::Quiet | Standing::Never => return,
        };
        if gone {
            self.trouble.phase = failed;
            return;
        }
        let opcode = if submission { Opcode::DELETE_IO_CQ } else { Opcode::DELETE_IO_SQ };
        let deleting =
            |submission, ticket| Phase::Deleting { violation, epoch, submission, ticket };
        match self.step(epoch, opcode, admin::delete_entry(self.qid), ticket) {
            Step::Waits(ticket) => self.trouble.phase = deleting(submission, ticket),
            Step::Done if !submission => self.trouble.phase = deleting(true, None),
            Step::Done => self.trouble.phase = failed,
            Step::Refused => {
                self.fate.fail(Failure::KeepsQueue { qid: self.qid });
                self.trouble.phase = deleting(submission, None);
            }
            // The reset that took the command away takes the pair away too.
            Step::Lost => self.trouble.phase = deleting(submission, None),
        }
    }

    fn step(
        &self,
        epoch: u32,
        opcode: Opcode,
        entry: SubmissionEntry,
        ticket: Option<Ticket>,
    ) -> Step {
        let Some(ticket) = ticket else {
            return match self.controller.post(epoch, opcode, entry) {
                Ok(ticket) => Step::Waits(ticket),
                Err(_) => Step::Lost,
            };
        };
        match self.controller.take(ticket) {
            None => Step::Waits(Some(ticket)),
            Some(Ok(_)) => Step::Done,
            Some(Err(AdminError::Status(_))) => Step::Refused,
            Some(Err(AdminError::Failed(_) | AdminError::Lost(_))) => Step::Lost,
        }
    }

    /// Sends what waits, in the order it was submitted, as far as it is known. The controller may be
    /// told to stop at any time: what was sent then is lost with the rest, what was not goes on waiting.
    #[cold]
    pub(super) fn send_waiting(&mut self) {
        // What is not sent keeps its slot.
        self.frame_limits.close();
        while self.is_serving()
            && let Some(slot) = self.in_flight.vacant().map(|vacant| vacant.slot())
            && let Some(Waiting { request, tries }) = self.trouble.waiting.pop_front()
        {
            if let Err(Refused { request, reason }) = self.submit_now(request) {
                // It was checked when it was taken, so only room can be missing.
                debug_assert_eq!(reason, Refusal::Full);
                self.trouble.waiting.push_front(Waiting { request, tries });
                break;
            }
            self.in_flight.record_mut(slot).tries = tries;
            self.fate.counters.sent_again.add(u64::from(tries > 0));
        }
        crate::IoQueue::commit(self);
        if self.trouble.waiting.is_empty() && self.is_serving() {
            self.frame_limits.open();
        }
    }

    /// What a poll has to do beside taking completions: how many requests were answered.
    #[cold]
    pub(super) fn catch_up(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        if !self.trouble.asked.is_empty() {
            self.controller.turn();
        }
        let moved = self.finish_asked(budget, out, false);
        self.committed = self.committed.saturating_sub(moved);
        let moved = match self.in_flight.parked() {
            0 => moved,
            _ => moved + self.unpark(budget - moved, out),
        };
        // At once, before their slots are given to others.
        if self.trouble.waiting() > 0 {
            self.send_waiting();
        }
        moved
    }

    /// A command that was asked to end has completed, which is kept until its Abort has.
    pub(super) fn settle_asked(&mut self, slot: u16, status: Status, value: u64) {
        let asked = self.trouble.asked.iter_mut().find(|asked| asked.slot == slot);
        if let Some(asked) = asked {
            asked.answer = Some((status, value));
        }
    }

    /// Answers the commands whose Abort is over, or with `all` every one that has completed, up to
    /// `budget`: how many were answered.
    fn finish_asked(&mut self, budget: usize, out: &mut Vec<Completion>, all: bool) -> usize {
        let mut moved = self.poll_answering(budget, out);
        let mut index = 0;
        while self.answering.is_none()
            && moved < budget
            && let Some(&Asked { slot, ticket, answer }) = self.trouble.asked.get(index)
        {
            let over = match all {
                true => answer.is_some(),
                false => self.controller.is_over(ticket),
            };
            if !over {
                index += 1;
                continue;
            }
            self.trouble.asked.swap_remove(index);
            self.in_flight.clear_asked(slot);
            // Without one it goes on as any other, and may still end as aborted.
            if let Some((status, value)) = answer {
                self.trouble.late_answer = Some((status, value));
                moved += self.ended(slot, status, out);
                moved += self.poll_answering(budget - moved, out);
            }
        }
        moved
    }

    /// Answers the rest of the requests of a command that answers several.
    pub(super) fn poll_answering(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let mut moved = 0;
        while let Some(Answering { slot, end }) = self.answering
            && moved < budget
        {
            self.answering = None;
            if let End::Failed(status) = end {
                let (next, answered) = self.park_or_answer(slot, status, out);
                self.answering = next.map(|slot| Answering { slot, end });
                moved += usize::from(answered);
                continue;
            }
            let Some(Answered { mut completion, next }) = self.in_flight.take(slot) else { break };
            self.answering = next.map(|slot| Answering { slot, end });
            match end {
                End::Aborted(error) => {
                    let answered = self.keep_or_answer(slot, completion, error, out);
                    moved += usize::from(answered);
                    self.committed = self.committed.saturating_sub(usize::from(!answered));
                }
                End::Answer(result) => {
                    completion.result = result;
                    out.push(completion);
                    moved += 1;
                }
                End::Failed(_) => unreachable!("dealt with above"),
            }
        }
        moved
    }

    /// Takes a request while there is no queue to send it to, but one to come.
    pub(super) fn hold(&mut self, request: Request) -> Result<(), Refused> {
        // The short way does not count what waits.
        self.frame_limits.close();
        // Serving is what it thinks until it is polled.
        let waits =
            matches!(self.trouble.phase, Phase::Serving | Phase::Lost | Phase::Creating { .. });
        let reason = match self.target.geometry.check(&self.target.capabilities, &request) {
            _ if !waits || self.fate.failure().is_some() => Refusal::Failed,
            Err(reason) => reason,
            Ok(()) if !request.data.frames.iter().all(|frame| self.mark.owns(frame)) => {
                Refusal::BadFrames
            }
            Ok(()) if crate::IoQueue::in_flight(self) == self.in_flight.depth() => Refusal::Full,
            Ok(()) => {
                self.trouble.waiting.push_back(Waiting { request, tries: 0 });
                return Ok(());
            }
        };
        Err(Refused { request, reason })
    }

    /// A command ended as aborted. How many requests were answered: none when it is sent again.
    pub(super) fn aborted(
        &mut self,
        slot: u16,
        status: Status,
        out: &mut Vec<Completion>,
    ) -> usize {
        let Some(Answered { mut completion, next }) = self.in_flight.take(slot) else { return 0 };
        let error = status.to_io_error();
        self.fate.counters.aborted.add(1);
        let (kind, again) = match self.in_flight.record(slot).wish {
            Wish::Cancel => (IoErrorKind::Cancelled, false),
            Wish::Again => (IoErrorKind::TimedOut, true),
            // Nobody asked for it: a failure like another, that need not come again.
            Wish::Nothing | Wish::CacheLost => (IoErrorKind::Device, !status.do_not_retry()),
        };
        let error = IoError { kind, ..error };
        // Those that shared the command may have been sent more or less often than it.
        let end = if again { End::Aborted(error) } else { End::Answer(Err(error)) };
        self.answering = next.map(|slot| Answering { slot, end });
        if !again {
            completion.result = Err(error);
            out.push(completion);
            return 1;
        }
        let answered = self.keep_or_answer(slot, completion, error, out);
        if !answered {
            self.committed = self.committed.saturating_sub(1);
        }
        usize::from(answered)
    }

    /// Asks for the end of commands that are past their deadline; has the controller reset when that
    /// did not help in time.
    pub(super) fn see_to_late(&mut self) {
        let late = |age| self.deadlines.is_late(age);
        if !self.in_flight.commands().any(|(command, _)| late(command.age)) {
            return;
        }
        // What its owner has not committed is not the device's to answer.
        let Self { in_flight, memory, gathering, .. } = self;
        let gathered = gathering.map(|gathering| in_flight.cid(gathering.leader));
        let uncommitted =
            |cid| gathered == Some(cid) || memory.sq.uncommitted().any(|other| other == cid);
        let committed = in_flight
            .commands()
            .filter(|(command, _)| late(command.age) && !uncommitted(command.cid));
        for (command, record) in committed {
            if self.deadlines.is_overdue(command.age) {
                let waited_ms = self.deadlines.overdue().as_millis() as u64;
                self.fate.fail(Failure::TimedOut { qid: self.qid, waited_ms });
                return;
            }
            if record.wish != Wish::Nothing {
                continue;
            }
            // As many are under way as the controller takes: the next look asks for the rest.
            let Some(ticket) = self.controller.abort(self.qid, command.cid) else { continue };
            self.fate.counters.late.add(1);
            record.wish = Wish::Again;
            let slot = in_flight::slot_of(command.cid);
            self.trouble.asked.push(Asked { slot, ticket, answer: None });
        }
        for asked in &self.trouble.asked {
            self.in_flight.set_asked(asked.slot);
        }
    }

    /// [`cancel`](crate::IoQueue::cancel): by Abort.
    pub(super) fn ask_to_cancel(&mut self, token: Token) -> Cancel {
        if self.trouble.waiting.iter().any(|waiting| waiting.request.token == token) {
            return Cancel::Cannot;
        }
        if self.cancel_parked(token) {
            return Cancel::Asked;
        }
        let Some(found) = self.in_flight.find(token) else { return Cancel::NotFound };
        // One of several requests of a command cannot be ended without the others.
        let Some(cid) = found else { return Cancel::Cannot };
        if !self.is_serving() {
            return Cancel::Cannot;
        }
        let slot = in_flight::slot_of(cid);
        if self.in_flight.record(slot).wish == Wish::Nothing {
            let Some(ticket) = self.controller.abort(self.qid, cid) else { return Cancel::Cannot };
            self.trouble.asked.push(Asked { slot, ticket, answer: None });
            self.in_flight.set_asked(slot);
        }
        self.in_flight.record_mut(slot).wish = Wish::Cancel;
        Cancel::Asked
    }

    /// Gets the queue to where nothing of it is in flight that was committed, and the controller either
    /// knows of the pair or does not: the word in which it does. Bounded by the deadlines, and after
    /// them by the ladder.
    pub(super) fn settle(&mut self, uncommitted: usize) -> u32 {
        self.trouble.closing = true;
        let mut out: Vec<Completion> = Vec::with_capacity(self.in_flight.depth());
        loop {
            let between =
                matches!(self.trouble.phase, Phase::Deleting { .. } | Phase::Creating { .. });
            if !between && self.in_flight.len() <= uncommitted {
                break;
            }
            out.clear();
            if crate::IoQueue::poll(self, usize::MAX, &mut out) == 0 {
                self.look();
                self.controller.parts().clock.sleep(std::time::Duration::from_micros(20));
            }
        }
        self.trouble.waiting.clear();
        self.serving
    }
}

/// What came of one step that the controller is asked for.
enum Step {
    Waits(Option<Ticket>),
    Done,
    Refused,
    /// The controller was told to stop meanwhile.
    Lost,
}
