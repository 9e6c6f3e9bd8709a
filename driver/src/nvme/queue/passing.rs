//! Failures that may pass: a command that the controller failed and does not say will fail again.
//!
//! Such a request is sent again by the rules of [`trouble`](super::trouble), `retries_max` times at
//! most, after the delay that the status names (Command Retry Delay, Base 2.0c §3.3.3.2.1, in the units
//! of Identify's CRDT1 to CRDT3). It stays in its slot meanwhile, as old as it is: all of this is
//! within the deadline of the request, and a delay that goes beyond is not begun.
//!
//! A flush that failed is different. The controller may have dropped what it could not make stable,
//! and a second flush would then succeed with the data gone. So it is failed, for its owner to write
//! again what it covers, but where the status says that nothing of it was done.

use std::time::Duration;

use crate::error::{IoError, IoErrorKind};
use crate::nvme::controller::Event;
use crate::nvme::fate::Suspect;
use crate::nvme::in_flight::Answered;
use crate::nvme::record::Wish;
use crate::nvme::spec::Status;
use crate::request::{Completion, Op, Refused, Request};
use crate::slots::Token;

use super::NvmeQueue;
use super::trouble::Answering;

/// A request that waits in its slot to be sent again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    slot: u16,
    due: Duration,
}

impl NvmeQueue {
    /// The command of a slot failed. Answers its requests that are not to be sent again, up to one: how
    /// many.
    #[cold]
    pub(super) fn failed(&mut self, slot: u16, status: Status, out: &mut Vec<Completion>) -> usize {
        self.fate.counters.failed.add(1);
        self.answering = Some(Answering::failed(slot, status));
        self.poll_answering(1, out)
    }

    /// One request of a command that failed: parks it, or answers it. The next one, and whether this
    /// was answered.
    pub(super) fn park_or_answer(
        &mut self,
        slot: u16,
        status: Status,
        out: &mut Vec<Completion>,
    ) -> (Option<u16>, bool) {
        let delay = self.retry_delays[status.retry_delay()];
        if self.may_try_again(slot, status, delay) {
            // All that is on the way of a request that fails may read a clock.
            let due = self.controller.parts().clock.now() + delay;
            self.parked.push(Parked { slot, due });
            self.committed = self.committed.saturating_sub(1);
            return (self.in_flight.park(slot), false);
        }
        let (error, cid) = (status.to_io_error(), self.in_flight.cid(slot));
        let Some(Answered { mut completion, next }) = self.in_flight.take(slot) else {
            return (None, false);
        };
        completion.result = Err(error);
        self.tell_of_failure(slot, cid, error);
        out.push(completion);
        (next, true)
    }

    fn may_try_again(&self, slot: u16, status: Status, delay: Duration) -> bool {
        let record = self.in_flight.record(slot);
        let Some((op, ..)) = record.operation() else { return false };
        status.may_pass()
            && record.wish == Wish::Nothing
            && self.trouble.may_send_again(op, record.tries)
            && (op != Op::Flush || status.was_not_begun())
            && self.deadlines.has_time(self.in_flight.age(slot), delay)
    }

    /// Tells of a request that is answered with what the controller said of its command `cid`.
    fn tell_of_failure(&self, slot: u16, cid: u16, error: IoError) {
        let Some((op, lba, blocks)) = self.in_flight.record(slot).operation() else { return };
        let nsid = self.target.nsid;
        self.fate.note(Event::RequestFailed { nsid, op, lba, blocks, error });
        if error.kind == IoErrorKind::Media {
            self.fate.suspect(Suspect { qid: self.qid, cid, nsid, lba: lba.0, blocks });
        }
    }

    /// Sends the parked requests whose delay is over; answers those that were cancelled meanwhile, up
    /// to `budget`: how many.
    pub(super) fn unpark(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let now = self.controller.parts().clock.now();
        let (mut index, mut answered) = (0, 0);
        while let Some(&Parked { slot, due }) = self.parked.get(index) {
            let record = self.in_flight.record(slot);
            let cancelled = record.wish == Wish::Cancel;
            let is_due =
                if cancelled { answered < budget } else { due <= now && self.is_serving() };
            if !is_due {
                index += 1;
                continue;
            }
            self.parked.swap_remove(index);
            let age = self.in_flight.age(slot);
            let Some(Answered { mut completion, .. }) = self.in_flight.take(slot) else { continue };
            let operation = record.operation().filter(|_| !cancelled);
            let Some((op, lba, blocks)) = operation else {
                completion.result = Err(IoError::new(IoErrorKind::Cancelled));
                out.push(completion);
                answered += 1;
                continue;
            };
            let Completion { token, data, .. } = completion;
            // The slot that was just left is the first one free: it has the request again.
            if let Err(Refused { request, reason }) =
                self.submit_now(Request { token, op, lba, blocks, data })
            {
                debug_assert!(false, "{reason}: {request:?}");
                continue;
            }
            self.in_flight.record_mut(slot).tries = record.tries + 1;
            self.in_flight.set_age(slot, age);
            self.fate.counters.sent_again.add(1);
        }
        crate::IoQueue::commit(self);
        answered
    }

    /// A parked request is to end: the next poll answers it. Whether there is one of that token.
    pub(super) fn cancel_parked(&mut self, token: Token) -> bool {
        let Some(slot) = self.in_flight.find_parked(token) else { return false };
        self.in_flight.record_mut(slot).wish = Wish::Cancel;
        true
    }
}
