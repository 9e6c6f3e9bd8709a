//! An operation in flight: what is known of it, and what each thing that happens makes of it.

use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::Timespec;
use rustix::io::Errno;
use uaio_driver::Token;

use super::memory::Descriptor;
use super::op::{HostOp, HostRequest, Position};
use super::settled::has_extent;

/// How often an operation that was interrupted, and not by us, is issued anew. A thread that ends
/// takes what it issued along, and somebody else has to issue it again.
const RETRIES_MAX: u8 = 100;

/// Why an operation is to end before its time. The first reason stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody cancelled it.
    Cancelled,
    /// Its time was up.
    TimedOut,
}

/// Who has the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// We: its entry is still to be put into the ring.
    Waiting,
    /// The kernel, or the ring since this entry.
    Issued(u64),
    /// A worker; the operation is with it.
    Working,
    /// Nobody any more: its answer is to be told.
    Answered(Result<u64, Errno>),
}

/// What is to be done next with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Issue it, or the rest of it.
    Issue,
    /// The descriptor is ready: take the events of an epoll descriptor.
    TakeEvents,
    /// Tell an answer; there are more to come.
    Tell(u64),
    /// Tell its last answer.
    Finish(Result<u64, Errno>),
}

/// An operation in its slot.
///
/// # Invariants
///
/// While it is [`Issued`](Stage::Issued), `request` stays in its slot and is not changed: the kernel
/// has addresses of what it owns, and of `timer`.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The word of whoever started it.
    pub(super) token: Token,
    pub(super) request: HostRequest,
    pub(super) stage: Stage,
    pub(super) stop: Option<Stop>,
    /// Bytes moved by earlier steps.
    pub(super) done_bytes: u64,
    /// Bytes that this step is to move.
    pub(super) asked_bytes: u64,
    /// When its time is up, on the kernel's monotonic clock.
    pub(super) timer: Timespec,
    /// When a sleep ends, on the same clock.
    pub(super) sleep: Option<Timespec>,
    retries: u8,
    /// To be issued where it can wait: on a thread of the kernel's.
    pub(super) away: bool,
    /// A write that the kernel would not do with `RWF_NOSIGNAL`.
    pub(super) loud: bool,
    /// The descriptor that the kernel is closing, or -1.
    pub(super) closing: RawFd,
    /// Cancels sent again.
    pub(super) cancels: u8,
    /// A cancel, or the timer before the next, is on its way.
    pub(super) cancelling: bool,
    /// It is the timer.
    pub(super) napping: bool,
    /// The descriptor of an operation that a worker has.
    lent: Option<Descriptor>,
}

impl InFlight {
    pub(super) fn new(token: Token, request: HostRequest) -> Self {
        // Opening and closing may wait for a medium, and cannot be told not to.
        let blocks =
            matches!(request.op, HostOp::Open(_) | HostOp::Close { .. } | HostOp::CloseForeign(_));
        let away = request.away || blocks || request.may_signal_issuer();
        // A write that the kernel refuses to do quietly would be issued again.
        let loud = request.once;
        Self {
            token,
            request,
            stage: Stage::Waiting,
            stop: None,
            done_bytes: 0,
            asked_bytes: 0,
            timer: Timespec::new(),
            sleep: None,
            retries: 0,
            away,
            loud,
            closing: -1,
            cancels: 0,
            cancelling: false,
            napping: false,
            lent: None,
        }
    }

    /// How many bytes a transfer has in all, if what is left after a part can be told.
    fn transfer_len(&self) -> Option<u64> {
        if self.request.once {
            return None;
        }
        let (len, at) = match &self.request.op {
            HostOp::Read { memory, at, .. } | HostOp::Write { memory, at, .. } => {
                (memory.len(), *at)
            }
            HostOp::ReadV { memory, at, .. } | HostOp::WriteV { memory, at, .. }
                if memory.is_owned() =>
            {
                (memory.len(), *at)
            }
            _ => return None,
        };
        matches!(at, Position::At(_)).then_some(len as u64)
    }

    /// How many bytes of a write its submitter's RLIMIT_FSIZE lets through.
    pub(super) fn write_limit(&self) -> usize {
        let (HostOp::Write { at, .. } | HostOp::WriteV { at, .. }) = &self.request.op else {
            return usize::MAX;
        };
        match (self.request.settled, at) {
            (Some(settled), Position::At(at))
                if settled.file_size_max != u64::MAX && !settled.appends =>
            {
                let at = at.saturating_add(self.done_bytes);
                settled.file_size_max.saturating_sub(at) as usize
            }
            _ => usize::MAX,
        }
    }

    /// The answer of an operation that was stopped before anything was done.
    pub(super) fn stopped(&self) -> Option<Errno> {
        self.stop.map(|stop| match stop {
            Stop::Cancelled => Errno::CANCELED,
            Stop::TimedOut => Errno::TIMEDOUT,
        })
    }

    /// What the kernel's result makes of it. `more`: further results of the same entry follow.
    pub(super) fn advance(&mut self, result: i32, more: bool) -> Next {
        match u32::try_from(result) {
            Ok(value) => self.succeeded(u64::from(value), more),
            // A kernel that makes up numbers gets an errno of the same kind.
            Err(_) => self.failed(result.checked_neg().unwrap_or(libc::EIO)),
        }
    }

    fn succeeded(&mut self, value: u64, more: bool) -> Next {
        if matches!(self.request.op, HostOp::EpollWait(_)) {
            return Next::TakeEvents;
        }
        if matches!(self.request.op, HostOp::Poll { multishot: true, .. }) {
            return match (more, self.stopped()) {
                (true, _) => Next::Tell(value),
                // The kernel ended it by itself, as it may.
                (false, None) => Next::Tell(value),
                (false, Some(errno)) => Next::Finish(Err(errno)),
            };
        }
        let Some(len) = self.transfer_len() else { return Next::Finish(Ok(value)) };
        // More than asked is a mistake of the kernel's, and less than nothing left.
        self.done_bytes += value.min(self.asked_bytes);
        let ended = value == 0 || self.done_bytes >= len || self.stop.is_some();
        // Last: it asks the kernel, and only of what was short.
        if ended || !self.descriptor().is_some_and(|fd| has_extent(fd.as_raw_fd())) {
            Next::Finish(Ok(self.done_bytes))
        } else {
            Next::Issue
        }
    }

    fn failed(&mut self, errno: i32) -> Next {
        if matches!(self.request.op, HostOp::Sleep(_)) && errno == libc::ETIME {
            return Next::Finish(Ok(0));
        }
        // Kernels up to 6.1 say EFAULT of what a thread that ended had issued. Memory of ours is
        // never a bad address.
        let interrupted = matches!(errno, libc::ECANCELED | libc::EINTR)
            || errno == libc::EFAULT && self.request.op.owns_memory();
        // An interrupted close has closed.
        let interrupted = interrupted && self.may_begin_anew(errno);
        if self.request.once && self.stop.is_none() {
            return self.finish(Errno::from_raw_os_error(errno));
        }
        if let (true, Some(stopped)) = (interrupted, self.stopped()) {
            return self.finish(stopped);
        }
        if interrupted && self.retries < RETRIES_MAX {
            self.retries += 1;
            // A connection that is being made is waited for only by one who may wait.
            self.away |= matches!(self.request.op, HostOp::Connect { .. });
            return Next::Issue;
        }
        self.finish(Errno::from_raw_os_error(errno))
    }

    /// What was moved is the answer, if anything was; an error after it is found again by whoever
    /// goes on from there.
    fn finish(&self, errno: Errno) -> Next {
        Next::Finish(if self.done_bytes > 0 { Ok(self.done_bytes) } else { Err(errno) })
    }

    /// Whether an interrupted operation is as it was before. A close may have closed.
    fn may_begin_anew(&self, errno: i32) -> bool {
        let closes = matches!(self.request.op, HostOp::Close { .. } | HostOp::CloseForeign(_));
        !(errno == libc::EINTR && closes)
    }

    /// The descriptor it is on, also while a worker has it.
    pub(super) fn descriptor(&self) -> Option<&Descriptor> {
        self.lent.as_ref().or_else(|| self.request.op.descriptor())
    }

    /// Notes the descriptor of an operation that goes to a worker.
    pub(super) fn lend(&mut self) -> HostOp {
        self.lent = self.request.op.descriptor().cloned();
        std::mem::replace(&mut self.request.op, HostOp::Nop)
    }

    /// Whether a transfer has bytes left.
    pub(super) fn is_left(&self) -> bool {
        self.transfer_len().is_some_and(|len| len > self.done_bytes)
    }

    /// Whether it is a write that may be to a pipe or a socket.
    pub(super) fn is_stream_write(&self) -> bool {
        matches!(
            self.request.op,
            HostOp::Write { at: Position::Current, .. }
                | HostOp::WriteV { at: Position::Current, .. }
        )
    }

    /// Whether its caller gave a write flags.
    pub(super) fn has_flags(&self) -> bool {
        match self.request.op {
            HostOp::Write { flags, .. } | HostOp::WriteV { flags, .. } => flags != 0,
            _ => false,
        }
    }

    /// Whether it may wait for somebody else, so that a cancel must not be lost.
    pub(super) fn may_wait_for_ever(&self) -> bool {
        self.transfer_len().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::op::Between;
    use crate::host::{Descriptor, Memory, Vectored};

    fn fd() -> Descriptor {
        Descriptor::new(std::io::pipe().unwrap().0)
    }

    /// A file, which has an extent.
    fn file() -> Descriptor {
        let path = std::env::temp_dir().join(format!("uaio-slot-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        // Another test may have taken the name away.
        let _ = std::fs::remove_file(path);
        Descriptor::new(file)
    }

    fn read(at: Position, len: usize) -> HostOp {
        HostOp::Read { fd: file(), memory: Memory::from(vec![0; len]), at, flags: 0 }
    }

    fn issued(op: HostOp, asked_bytes: u64) -> InFlight {
        let token = Token { slot: 0, generation: 0 };
        let mut slot = InFlight::new(token, op.into());
        slot.stage = Stage::Issued(0);
        slot.asked_bytes = asked_bytes;
        slot
    }

    #[test]
    fn a_slot_stays_small() {
        assert!(size_of::<HostOp>() <= 80, "{}", size_of::<HostOp>());
        assert!(size_of::<InFlight>() <= 256, "{}", size_of::<InFlight>());
    }

    #[test]
    fn a_short_transfer_at_an_offset_is_gone_on_with_and_one_without_is_not() {
        let mut slot = issued(read(Position::At(0), 100), 100);
        assert_eq!(slot.advance(60, false), Next::Issue);
        slot.asked_bytes = 40;
        assert_eq!(slot.advance(0, false), Next::Finish(Ok(60)));
        let mut slot = issued(read(Position::At(0), 100), 100);
        assert_eq!(slot.advance(60, false), Next::Issue);
        assert_eq!(slot.advance(-libc::EIO, false), Next::Finish(Ok(60)));
        let mut slot = issued(read(Position::Current, 100), 100);
        assert_eq!(slot.advance(60, false), Next::Finish(Ok(60)));
        let memory = Vectored::new(vec![vec![0; 3], vec![0; 4]]);
        let op = HostOp::WriteV { fd: file(), memory, at: Position::At(0), flags: 0 };
        let mut slot = issued(op, 7);
        assert_eq!(slot.advance(5, false), Next::Issue);
        // What is no file gives what there is.
        let (memory, at) = (vec![0; 100].into(), Position::At(0));
        let mut slot = issued(HostOp::Read { fd: fd(), memory, at, flags: 0 }, 100);
        assert_eq!(slot.advance(8, false), Next::Finish(Ok(8)));
    }

    #[test]
    fn a_cancelled_operation_says_cancelled_or_what_it_had_done_by_then() {
        for (stop, errno) in [(Stop::Cancelled, Errno::CANCELED), (Stop::TimedOut, Errno::TIMEDOUT)]
        {
            for interrupted in [libc::ECANCELED, libc::EINTR] {
                let mut slot = issued(read(Position::At(0), 100), 100);
                slot.stop = Some(stop);
                assert_eq!(slot.advance(-interrupted, false), Next::Finish(Err(errno)));
                slot.done_bytes = 10;
                assert_eq!(slot.advance(-interrupted, false), Next::Finish(Ok(10)));
            }
            // It was done already: the cancel came too late, or in the middle.
            let mut slot = issued(read(Position::At(0), 100), 100);
            slot.stop = Some(stop);
            assert_eq!(slot.advance(30, false), Next::Finish(Ok(30)));
            let mut slot = issued(read(Position::At(0), 100), 100);
            slot.stop = Some(stop);
            assert_eq!(slot.advance(-libc::EIO, false), Next::Finish(Err(Errno::IO)));
        }
    }

    #[test]
    fn what_a_thread_that_ended_took_along_is_issued_anew_and_not_for_ever() {
        let mut slot = issued(read(Position::Current, 1), 1);
        for _ in 0..RETRIES_MAX {
            assert_eq!(slot.advance(-libc::ECANCELED, false), Next::Issue);
        }
        assert_eq!(slot.advance(-libc::ECANCELED, false), Next::Finish(Err(Errno::CANCELED)));
        let mut close = issued(HostOp::Close { fd: None }, 0);
        assert_eq!(close.advance(-libc::EINTR, false), Next::Finish(Err(Errno::INTR)));
    }

    #[test]
    fn every_operation_passes_every_errno_on_and_no_result_panics() {
        let between = || {
            let (from, to) = (fd(), fd());
            Box::new(Between { from, from_offset: None, to, to_offset: None, len: 1, flags: 0 })
        };
        let ops: [fn() -> HostOp; 6] = [
            || HostOp::Nop,
            || read(Position::At(5), 10),
            || HostOp::Fsync { fd: fd(), data_only: true },
            || HostOp::Poll { fd: fd(), events: 1, multishot: true },
            || HostOp::Sleep(Duration::ZERO),
            || HostOp::Close { fd: None },
        ];
        for op in ops {
            for errno in [libc::EAGAIN, libc::EBADF, libc::ENOSPC, libc::EPIPE] {
                let error = Errno::from_raw_os_error(errno);
                assert_eq!(issued(op(), 10).advance(-errno, false), Next::Finish(Err(error)));
            }
            for result in [i32::MIN, i32::MAX, -1, 0, 11] {
                let _ = issued(op(), 10).advance(result, true);
            }
        }
        assert_eq!(issued(read(Position::At(5), 10), 10).advance(11, false), Next::Finish(Ok(10)));
        let mut splice = issued(HostOp::Splice(between()), 0);
        assert_eq!(splice.advance(1, false), Next::Finish(Ok(1)));
    }
}
