//! What comes back to the engine: completions of the ring, and answers from them.
#![expect(unsafe_code, reason = "owns descriptors the kernel gave")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use uaio_driver::Token;

use super::engine::Engine;
use super::op::{EpollWait, HostDone, HostOp};
use super::settled::last_errno;
use super::slot::{InFlight, Next, Stage, Stop};
use super::word::{BELL, Kind, from_word};

/// `IORING_CQE_F_MORE` (include/uapi/linux/io_uring.h).
const CQE_MORE: u32 = 1 << 1;
/// Completions that are taken out of the ring at once.
const BATCH: usize = 32;

impl Engine {
    pub(super) fn reap(&mut self, budget: usize, out: &mut Vec<HostDone>) -> usize {
        let mut batch = [(0, 0, 0); BATCH];
        let mut moved = 0;
        if self.failed.is_some() {
            self.collect();
        }
        while moved < budget {
            let count = self.ring.reap(&mut batch[..BATCH.min(budget - moved)]);
            for (word, result, flags) in &batch[..count] {
                moved += usize::from(self.completed(*word, *result, flags & CQE_MORE != 0, out));
            }
            moved += self.tell_answered(budget - moved, out);
            if count == 0 {
                break;
            }
        }
        moved
    }

    /// Takes one completion in, and says whether it was an answer.
    pub(super) fn completed(
        &mut self,
        word: u64,
        result: i32,
        more: bool,
        out: &mut Vec<HostDone>,
    ) -> bool {
        if word == BELL {
            self.bell_armed = false;
            self.collect();
            self.arm_bell();
            return false;
        }
        let (token, kind) = from_word(word);
        // One for nothing in flight is the late end of a timer, or the kernel's mistake.
        let Some(slot) = self.slots.get_mut(token) else { return false };
        match kind {
            Kind::Step => {}
            Kind::Timer => {
                match -result {
                    libc::ETIME => drop(self.stop(token, Stop::TimedOut)),
                    // A thread that ended took it along.
                    libc::ECANCELED => self.send(token, Kind::Timer),
                    _ => {}
                }
                self.unfinished = true;
                return false;
            }
            Kind::CancelStep => {
                self.cancel_again(token, result);
                return false;
            }
            Kind::CancelTimer => return false,
        }
        if !matches!(slot.stage, Stage::Issued(_)) {
            return false;
        }
        if result == -libc::ECANCELED {
            // Whatever it is answered with: it was not begun.
            take_back(slot);
        }
        if result == -libc::EOPNOTSUPP && self.no_signal && !slot.loud && slot.is_stream_write() {
            // An older kernel: such writes go to its own threads, which take no signals. Or it is
            // another flag, of the caller's, that it does not know.
            self.no_signal = slot.has_flags();
            (slot.loud, slot.away) = (true, true);
            self.issue(token);
            return false;
        }
        let next = match slot.advance(result, more) {
            Next::TakeEvents => {
                let HostOp::EpollWait(wait) = &mut slot.request.op else { return false };
                match (take_events(wait), slot.stopped()) {
                    (Ok(0) | Err(Errno::INTR), None) => Next::Issue,
                    (Ok(0) | Err(Errno::INTR), Some(errno)) => Next::Finish(Err(errno)),
                    (result, _) => Next::Finish(result),
                }
            }
            next => next,
        };
        match next {
            Next::Issue | Next::TakeEvents => {
                self.issue(token);
                false
            }
            Next::Tell(value) => {
                out.push(HostDone { token: slot.token, result: Ok(value), op: None });
                if !more {
                    self.issue(token);
                }
                true
            }
            Next::Finish(result) => self.finish(token, result, out),
        }
    }

    /// Issues the next step from within `poll`.
    pub(super) fn issue(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            take_back(slot);
            slot.stage = Stage::Waiting;
            match self.failed {
                Some(errno) => self.answer(token, Err(errno)),
                None => self.send(token, Kind::Step),
            }
            self.unfinished = true;
        }
    }

    pub(super) fn tell_answered(&mut self, budget: usize, out: &mut Vec<HostDone>) -> usize {
        let mut moved = 0;
        while moved < budget
            && let Some(token) = self.answered.pop_front()
        {
            if let Some(Stage::Answered(result)) = self.slots.get(token).map(|slot| slot.stage) {
                moved += usize::from(self.finish(token, result, out));
            }
        }
        moved
    }

    /// Tells the last answer of an operation and gives its memory back.
    pub(super) fn finish(
        &mut self,
        token: Token,
        mut result: Result<u64, Errno>,
        out: &mut Vec<HostDone>,
    ) -> bool {
        let Some(mut slot) = self.slots.remove(token) else { return false };
        if slot.request.timeout.is_some() {
            self.send(token, Kind::CancelTimer);
            self.unfinished = true;
        }
        let by_ring = matches!(slot.stage, Stage::Issued(_));
        match (&mut slot.request.op, result) {
            (HostOp::Accept(accept), Ok(fd)) => accept.accepted = Some(own(fd)),
            (HostOp::Open(open), Ok(fd)) if by_ring => open.opened = Some(own(fd)),
            (HostOp::RecvMsg { message, .. }, Ok(_)) => message.received(),
            (HostOp::EpollWait(_), Err(Errno::TIMEDOUT)) => result = Ok(0),
            _ => {}
        }
        if let Err(errno) = result
            && let Some((settled, signal)) = slot.request.signal_of(errno.raw_os_error())
        {
            settled.signal(signal);
        }
        out.push(HostDone { token: slot.token, result, op: Some(slot.request.op) });
        true
    }
}

/// Takes ownership of a descriptor that the kernel has just made for us.
fn own(fd: u64) -> OwnedFd {
    // SAFETY: it is the result of an accept or open that succeeded, told once.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Gives a descriptor back to a close that did not happen, or is to be issued anew.
pub(super) fn take_back(slot: &mut InFlight) {
    if let HostOp::Close { fd } = &mut slot.request.op
        && slot.closing >= 0
    {
        // SAFETY: the step took it out of its owner, and the kernel did not close it.
        *fd = Some(unsafe { OwnedFd::from_raw_fd(slot.closing) });
        slot.closing = -1;
    }
}

/// The events that there are now. Does not wait.
pub(super) fn take_events(wait: &mut EpollWait) -> Result<u64, Errno> {
    let room = i32::try_from(wait.events.len()).unwrap_or(i32::MAX);
    let fd = wait.fd.as_raw_fd();
    // SAFETY: there is room for as many events as are said.
    let count = unsafe { libc::epoll_wait(fd, wait.events.as_mut_ptr(), room, 0) };
    if count < 0 { Err(last_errno()) } else { Ok(count as u64) }
}
