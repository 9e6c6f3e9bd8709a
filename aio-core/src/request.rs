//! An iocb on its way: one piece after the other, then one event, then what is linked to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{FRAME_SIZE, IoError, IoErrorKind, Token};
use uaio_page_cache::{Buffer, Lane, OpKind, Operation};

use crate::buffers::Buffers;
use crate::event::Event;
use crate::iocb::{Command, Iocb, Links, Plan, VolumeWork, Work};
use crate::listio::List;
use crate::queue::{Answer, EventQueue};
use crate::reactor::Serve;
use crate::registered::RegisteredBuffer;
use crate::ticket::{Ending, Ticket};

/// A command that has its event slot and is not finished.
///
/// A long transfer goes piece by piece, each at most [`Lane::LEN_MAX`] bytes and up to a page
/// boundary: one is in flight at a time, so what a command holds is bounded, and bytes are done in
/// order, so a short result says exactly which.
pub(crate) struct Request {
    pub(crate) iocb: Iocb,
    queue: Arc<EventQueue>,
    ticket: Ticket,
    list: Option<Arc<List>>,
    /// When it is to end, on the reactor's clock.
    pub(crate) deadline: Option<Duration>,
    /// Bytes that the user asked for; none when any success is all that there can be.
    asked: Option<usize>,
    /// Bytes to move: those, cut at the end of the volume.
    len: usize,
    done: usize,
    /// The piece that is in flight.
    piece: usize,
}

impl Request {
    pub(crate) fn new(
        iocb: Iocb,
        queue: &Arc<EventQueue>,
        ticket: Ticket,
        list: Option<Arc<List>>,
    ) -> Self {
        let queue = Arc::clone(queue);
        Self { iocb, queue, ticket, list, deadline: None, asked: None, len: 0, done: 0, piece: 0 }
    }

    pub(crate) fn into_iocb(self) -> Iocb {
        self.iocb
    }

    /// Who does it.
    pub(crate) fn station(&self) -> Arc<dyn Serve> {
        match &self.iocb.work {
            Work::Volume(work) => Arc::clone(work.handle.volume().station()) as Arc<dyn Serve>,
            Work::Host(work) => Arc::clone(work.host.station()) as Arc<dyn Serve>,
        }
    }

    /// Has it done, after what it was linked to.
    pub(crate) fn go_on(self) {
        self.station().go_on(self);
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    pub(crate) fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    /// Why it is to end, if it is.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.queue.tickets().ending(self.ticket)
    }

    /// Answers it, and what is linked to it, for as long as the answers are known at once, and gives
    /// the one that its station must go on with. `first`
    /// is what the caller has found out about it: that it is so long and not all cached. `now` is
    /// read only when something has a timeout.
    pub(crate) fn begin(
        mut self,
        mut first: Option<Plan>,
        now: impl Fn() -> Duration,
    ) -> Option<Self> {
        loop {
            let planned = match &mut self.iocb.work {
                Work::Volume(work) => {
                    self.asked = work.asked();
                    first.take().map_or_else(|| work.plan_and_try(), Ok)
                }
                Work::Host(work) => {
                    self.asked = work.asked;
                    Ok(work
                        .settle()
                        .map_err(|errno| IoError::host(errno.raw_os_error()))
                        .map_or_else(|error| Plan::Answer(Err(error)), |()| Plan::Go(0)))
                }
            };
            let result = match planned {
                _ if self.ending().is_some() => Err(IoError::new(IoErrorKind::Cancelled)),
                Ok(Plan::Go(len)) => {
                    self.len = len;
                    self.deadline = self.iocb.timeout.map(|timeout| now().saturating_add(timeout));
                    return Some(self);
                }
                Ok(Plan::Answer(result)) => result,
                // It was possible when it was submitted.
                Err(_) => Err(IoError::new(IoErrorKind::Invalid)),
            };
            self = self.answer(result)?;
        }
    }

    /// The operation for the next piece, with the memory of all of them.
    pub(crate) fn next_operation(&mut self, token: Token) -> Operation {
        let Self { done, len, piece, iocb: Iocb { work: Work::Volume(work), .. }, .. } = self
        else {
            panic!("an operation of the host came to a volume")
        };
        let VolumeWork { handle, command, offset, range_bytes, buffers, .. } = work;
        let offset = *offset + *done as u64;
        let kind = match command {
            Command::Read => OpKind::Read { direct: handle.is_direct() },
            Command::Write => {
                OpKind::Write { stable: handle.is_stable(), direct: handle.is_direct() }
            }
            Command::Fsync | Command::Fdatasync => OpKind::Flush,
            Command::SyncRange => OpKind::FlushRange,
            Command::Readahead => OpKind::Readahead,
            Command::Discard => OpKind::Discard,
            Command::WriteZeroes => OpKind::WriteZeroes { may_unmap: true },
        };
        *piece = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } => {
                let in_page = (offset % FRAME_SIZE as u64) as usize;
                (*len - *done).min(Lane::LEN_MAX as usize - in_page)
            }
            // No memory is held for it, so it goes whole.
            _ => *len - *done,
        };
        let buffer = match std::mem::take(buffers) {
            Buffers::None | Buffers::Host(_) => Buffer::None,
            Buffers::One(bytes) => Buffer::Part { bytes, from: *done },
            Buffers::Many(pieces) => Buffer::Pieces { pieces, from: *done },
            Buffers::Registered(buffer) => {
                Buffer::Registered { frames: buffer.into_frames(), from: *done }
            }
        };
        let (offset, len) = match kind {
            // Nothing is moved, so it has no piece; it may reach past the end.
            OpKind::FlushRange => {
                let size = handle.volume().size_bytes();
                let offset = offset.min(size);
                (offset, (size - offset).min(*range_bytes))
            }
            _ => (offset, *piece as u64),
        };
        let handle = Arc::clone(handle.opener());
        Operation { token, kind, offset, len, buffer, handle }
    }

    /// Takes in how a piece went, and its memory. Says whether another is to follow.
    pub(crate) fn piece_done(&mut self, result: Result<(), IoError>, buffer: Buffer) -> bool {
        let Work::Volume(work) = &mut self.iocb.work else {
            panic!("an operation of the host came to a volume")
        };
        work.buffers = match buffer {
            Buffer::Part { bytes, .. } => Buffers::One(bytes),
            Buffer::Pieces { pieces, .. } => Buffers::Many(pieces),
            Buffer::Registered { frames, .. } => {
                let Some(len) = self.asked else { unreachable!("what moves bytes was asked to") };
                Buffers::Registered(RegisteredBuffer::from_frames(frames, len))
            }
            _ => Buffers::None,
        };
        if result.is_ok() {
            self.done += self.piece;
        }
        result.is_ok() && self.done < self.len && self.ending().is_none()
    }

    /// The result of it all, given that of its last piece. What was moved is told, whatever ended it.
    pub(crate) fn result(&self, last: Result<(), IoError>) -> Result<usize, IoError> {
        match last {
            Err(error) if self.done == 0 => Err(error),
            _ => Ok(self.done),
        }
    }

    /// Answers it. Gives what is linked to it, to be begun; if it did not do all it was asked to,
    /// that is answered too. Called under no lock.
    pub(crate) fn answer(mut self, mut result: Result<usize, IoError>) -> Option<Self> {
        let ending = self.ending();
        if let (Err(error), Some(ending)) = (&mut result, ending)
            && error.kind == IoErrorKind::Cancelled
        {
            *error = IoError::new(ending.kind());
        }
        let mut links = self.iocb.links.take().map_or_else(VecDeque::new, |links| links.0);
        let all = result.is_ok_and(|done| self.asked.is_none_or(|asked| asked == done));
        if all
            && ending.is_none()
            && let Some(mut next) = links.pop_front()
        {
            next.links = (!links.is_empty()).then(|| Box::new(Links(links)));
            let next = Self::new(next, &self.queue, self.ticket, self.list.clone());
            self.event(result, false);
            return Some(next);
        }
        let Self { queue, ticket, list, .. } = &self;
        let (queue, ticket, list) = (Arc::clone(queue), *ticket, list.clone());
        self.event(result, links.is_empty());
        while let Some(iocb) = links.pop_front() {
            let one = Self::new(iocb, &queue, ticket, list.clone());
            one.event(Err(IoError::new(IoErrorKind::Cancelled)), links.is_empty());
        }
        None
    }

    /// One of several events of it, of which it is not the last.
    pub(crate) fn one_of_several(&self, result: Result<usize, IoError>) -> Event {
        let buffers = Buffers::None;
        Event { user_data: self.iocb.user_data, result, buffers, more: true }
    }

    fn event(self, result: Result<usize, IoError>, last: bool) {
        let Iocb { work, user_data, notify, .. } = self.iocb;
        let event = Event { user_data, result, buffers: work.into_buffers(), more: false };
        let last_of = last.then_some(self.ticket);
        self.queue.answer(Answer { event, last_of, notify, list: self.list });
    }
}
