//! What goes out of the engine: entries into the ring, jobs to workers.
#![expect(unsafe_code, reason = "pushes entries with addresses")]

use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Timespec;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use uaio_driver::Token;

use super::complete::{take_back, take_events};
use super::credentials::Credentials;
use super::engine::Engine;
use super::entry;
use super::op::{HostOp, HostRequest};
use super::settled::creates;
use super::slot::Stage;
use super::word::{BELL, Kind, word};
use super::workers::{Job, Workers};

impl Engine {
    /// Whether an operation is for a worker: what io_uring has no opcode for, and what is created,
    /// which is to have exactly the mode that was settled. The kernel's own threads would put the
    /// umask of then to it. They can be anybody, though, and a worker cannot.
    pub(super) fn is_for_worker(&self, request: &HostRequest) -> bool {
        let created = match &request.op {
            HostOp::Copy(_) | HostOp::Call(_) => return true,
            HostOp::Ftruncate { .. } => {
                return !entry::opcode_of(&request.op).is_some_and(|code| self.ring.has(code));
            }
            HostOp::Open(open) => creates(open.flags),
            HostOp::Mkdir { .. } => true,
            _ => false,
        };
        created
            && request.settled.is_some()
            && self.workers.is_some()
            && request.credentials.as_ref().is_none_or(Credentials::are_of_this_thread)
    }

    pub(super) fn hand_over(&mut self, token: Token) {
        let (Some(slot), Some(workers)) = (self.slots.get_mut(token), &self.workers) else {
            return;
        };
        if slot.request.settled.is_none()
            && let Err(errno) = slot.request.settle_place()
        {
            return self.answer(token, Err(errno));
        }
        slot.stage = Stage::Working;
        let op = slot.lend();
        let credentials = slot.request.credentials.clone();
        match workers.push(Job { slot: token, op, credentials, result: Err(Errno::CANCELED) }) {
            Ok(()) => {
                self.working += 1;
                self.arm_bell();
            }
            Err(job) => {
                slot.request.op = job.op;
                self.answer(token, Err(Errno::AGAIN));
            }
        }
    }

    /// Waits for the workers' bell, if anything is with them and nobody waits for it yet.
    pub(super) fn arm_bell(&mut self) {
        let Some(workers) = &self.workers else { return };
        if self.bell_armed || self.working == 0 || self.closing || self.failed.is_some() {
            return;
        }
        let entry = entry::wait_for(workers.bell().as_raw_fd(), &raw mut *self.bell);
        let entry = entry.user_data(BELL);
        // SAFETY: the word is on the heap, and goes only after its completion came; if none does it
        // is leaked.
        self.bell_armed = unsafe { self.ring.push(&entry) };
        self.unfinished = true;
    }

    /// Takes over what workers have done.
    pub(super) fn collect(&mut self) {
        while let Some(job) = self.workers.as_ref().and_then(Workers::next_done) {
            self.working -= 1;
            if let Some(slot) = self.slots.get_mut(job.slot) {
                slot.request.op = job.op;
                let result = match (job.result, slot.stopped()) {
                    (Err(Errno::INTR), Some(errno)) => Err(errno),
                    (result, _) => result,
                };
                self.answer(job.slot, result);
            }
        }
    }

    /// Tries an epoll descriptor, which says at once if it is none or has events.
    pub(super) fn answers_at_once(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return false };
        let HostOp::EpollWait(wait) = &mut slot.request.op else { return false };
        match take_events(wait) {
            Ok(0) | Err(Errno::INTR) => false,
            result => {
                self.answer(token, result);
                true
            }
        }
    }

    /// Sets the timer of an operation that has one, or is one. It is the kernel's timer, so its clock
    /// is the kernel's; an absolute time survives being set again.
    pub(super) fn start_timer(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if let Some(timeout) = slot.request.timeout {
            slot.timer = time_from_now(timeout);
            self.send(token, Kind::Timer);
        }
    }

    /// Puts an entry into the ring, or where it waits for room.
    pub(super) fn send(&mut self, token: Token, kind: Kind) {
        if !self.backlog.is_empty() || !self.try_send(token, kind) {
            self.backlog.push_back((token, kind));
        }
    }

    pub(super) fn try_send(&mut self, token: Token, kind: Kind) -> bool {
        if self.ring.is_full() {
            return false;
        }
        let entry = match kind {
            Kind::Step => match self.step(token) {
                Some(entry) => entry,
                None => return true,
            },
            Kind::Timer => match self.slots.get(token) {
                Some(slot) => entry::timeout(&raw const slot.timer),
                None => return true,
            },
            Kind::CancelStep if self.slots.get(token).is_some_and(|slot| slot.napping) => {
                entry::nap()
            }
            Kind::CancelStep => entry::cancel(word(token, Kind::Step)),
            Kind::CancelTimer => entry::cancel(word(token, Kind::Timer)),
        };
        let entry = entry.user_data(word(token, kind));
        // SAFETY: what a step names is owned by the request, which stays in its slot until the step's
        // completion was reaped, or is memory for which its maker vouched; a timer's time is read
        // when the entry is taken, and the slots, which never move, outlive the ring's use or are
        // leaked.
        let pushed = unsafe { self.ring.push(&entry) };
        assert!(pushed, "the ring has room, as was asked above");
        true
    }

    /// The entry for the next step of an operation; none when it needs none any more.
    pub(super) fn step(&mut self, token: Token) -> Option<Entry> {
        let slot = self.slots.get_mut(token)?;
        let done = slot.done_bytes;
        let answer = match slot.stopped() {
            Some(errno) if done == 0 => Some(Err(errno)),
            Some(_) => Some(Ok(done)),
            None if slot.write_limit() == 0 && slot.is_left() => {
                Some(if done == 0 { Err(Errno::FBIG) } else { Ok(done) })
            }
            None => None,
        };
        if let Some(answer) = answer {
            self.answer(token, answer);
            return None;
        }
        if let HostOp::Sleep(time) = slot.request.op {
            slot.sleep.get_or_insert_with(|| time_from_now(time));
        }
        let away = slot.away || !self.no_signal && slot.is_stream_write();
        let entry = entry::step(slot, self.no_signal && !slot.loud);
        slot.stage = Stage::Issued(self.ring.pushed());
        let personality = slot.request.credentials.as_ref().map_or(0, Credentials::personality);
        let entry = entry.personality(personality);
        Some(if away { entry.flags(Flags::ASYNC) } else { entry })
    }

    /// An operation is over; its answer is told by the next poll.
    pub(super) fn answer(&mut self, token: Token, result: Result<u64, Errno>) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.stage = Stage::Answered(result);
            self.answered.push_back(token);
        }
    }

    pub(super) fn enter(&mut self, mut wait: Option<Duration>) {
        loop {
            while let Some((token, kind)) = self.backlog.front().copied() {
                if !self.try_send(token, kind) {
                    break;
                }
                self.backlog.pop_front();
            }
            self.arm_bell();
            if self.failed.is_some() || wait.is_none() && !self.ring.is_pending() {
                return;
            }
            let taken = self.ring.taken();
            let more = !self.backlog.is_empty();
            // What was answered on the way here, or is still to be sent, is not waited for.
            wait = wait.filter(|_| self.answered.is_empty() && !more);
            if let Err(errno) = self.ring.submit(wait) {
                return self.fail(Errno::from_raw_os_error(errno));
            }
            if !more || self.ring.taken() == taken {
                return;
            }
        }
    }

    /// The kernel takes no more entries: what it never took is answered with why.
    pub(super) fn fail(&mut self, errno: Errno) {
        self.failed = Some(errno);
        self.backlog.clear();
        let taken = self.ring.taken();
        for token in self.slots.tokens() {
            let Some(slot) = self.slots.get_mut(token) else { continue };
            let lost = match slot.stage {
                Stage::Waiting => true,
                Stage::Issued(entry) => entry >= taken,
                Stage::Working | Stage::Answered(_) => false,
            };
            if lost {
                take_back(slot);
                self.answer(token, Err(errno));
            }
        }
    }
}

fn time_from_now(timeout: Duration) -> Timespec {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    // The kernel takes 63 bits of seconds; nobody waits for longer than half of that.
    now.saturating_add(timeout).min(Duration::from_secs(1 << 62)).into()
}
