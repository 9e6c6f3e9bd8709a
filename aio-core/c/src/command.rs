//! An iocb of C becomes a command, and its event goes back.

use std::os::fd::IntoRawFd;
use std::time::Duration;

use uaio_core::host::{
    Accept, Descriptor, HostOp, Memory, Position, SocketAddress, TRANSFER_MAX_BYTES, Vectored,
};
use uaio_core::{BUFFERS_MAX, Buffers, Event, Handle, Host, Iocb, Notify, Priority, ops};

use crate::Errno;
use crate::host;
use crate::layout::{EVENT_MORE, F_LINK, F_NOTIFY, F_RESFD, F_VOLUME, UaioEvent, UaioIocb, opcode};
use crate::names::{between, on_names};
use crate::notice::notice;
use crate::state::State;
use crate::user::{self, Span};

/// The most events that one epoll_wait(2) brings: memory of ours that they go through.
const EPOLL_EVENTS_MAX: usize = 4096;

/// What is kept of a command until its event is taken out.
#[derive(Debug)]
pub(crate) struct Flight {
    iocb: *mut UaioIocb,
    data: u64,
    /// Where the bytes of a read of a volume go.
    into: Vec<Span>,
    later: Later,
    /// The next iocb of the same submission begins when this is done.
    linked: bool,
}

/// What is written to the caller's memory when the event is taken out, beside the bytes of a read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Later {
    Nothing,
    /// Where the answer of a statx(2) goes.
    Status(*mut libc::statx),
    /// Where those of an epoll_wait(2) go.
    Events(*mut libc::epoll_event),
}

impl Flight {
    pub(crate) fn iocb(&self) -> *mut UaioIocb {
        self.iocb
    }

    /// One of nothing but its iocb.
    #[cfg(test)]
    pub(crate) fn of(iocb: *mut UaioIocb) -> Self {
        Self { iocb, data: 0, into: Vec::new(), later: Later::Nothing, linked: false }
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.linked
    }

    /// The event as C has it; the bytes of a read go to the caller's memory, and a connection is the
    /// caller's from here on.
    pub(crate) fn event(&self, event: Event) -> UaioEvent {
        if let (Ok(len), Buffers::One(bytes)) = (event.result, &event.buffers) {
            let mut rest = &bytes[..len.min(bytes.len())];
            for span in &self.into {
                let (now, later) = rest.split_at(rest.len().min(span.len()));
                span.put(now);
                rest = later;
            }
        }
        let more = if event.more { EVENT_MORE } else { 0 };
        let mut res = match event.result {
            Ok(number) => number as i64,
            Err(error) => -i64::from(error.errno()),
        };
        if let (Ok(number), Buffers::Host(reply)) = (event.result, event.buffers) {
            let op = reply.into_op();
            let delivered = match (self.later, &op) {
                (Later::Status(to), HostOp::Statx(statx)) => {
                    user::deliver(to, std::slice::from_ref(&statx.status))
                }
                (Later::Events(to), HostOp::EpollWait(wait)) => {
                    user::deliver(to, &wait.events[..number.min(wait.events.len())])
                }
                _ => Ok(()),
            };
            if let Err(errno) = delivered {
                res = -i64::from(errno.0);
            }
            let _ = op.into_descriptor().map(IntoRawFd::into_raw_fd);
        }
        UaioEvent { data: self.data, obj: self.iocb, res, res2: more }
    }
}

/// Where a command goes.
pub(crate) enum Target<'a> {
    Volume(&'a Handle),
    Host(&'a Host),
}

/// Reads an iocb of the caller's, checks it, and makes a command of it.
pub(crate) fn command<'a>(
    address: *mut UaioIocb,
    state: &'a State,
    volume: impl FnOnce(i32) -> Option<&'a Handle>,
) -> Result<(Iocb, Flight), Errno> {
    let iocb = user::read(address, 0)?;
    let told = iocb.flags & (F_RESFD | F_NOTIFY);
    if iocb.flags & !(F_VOLUME | F_RESFD | F_NOTIFY | F_LINK) != 0
        || told == F_RESFD | F_NOTIFY
        || iocb.reserved != 0
    {
        return Err(Errno::INVAL);
    }
    let target = if iocb.flags & F_VOLUME != 0 {
        Target::Volume(volume(iocb.fd).ok_or(Errno::BADF)?)
    } else {
        Target::Host(state.host())
    };
    let linked = iocb.flags & F_LINK != 0;
    let mut flight =
        Flight { iocb: address, data: iocb.data, into: Vec::new(), later: Later::Nothing, linked };
    let command = match target {
        Target::Volume(handle) => on_volume(&iocb, handle, &mut flight.into)?,
        Target::Host(host) => Iocb::host(host, on_host(&iocb, &mut flight.later)?),
    };
    let mut command = command.with_priority(priority(iocb.priority)?);
    if iocb.timeout_ms != 0 {
        command = command.with_timeout(Duration::from_millis(iocb.timeout_ms.into()));
    }
    command = match told {
        F_RESFD => command.with_notify(Notify::Descriptor(state.eventfd(iocb.resfd)?)),
        F_NOTIFY => command.with_notify(notice(state, iocb.notify)?),
        _ => command,
    };
    Ok((command, flight))
}

fn priority(priority: i16) -> Result<Priority, Errno> {
    match priority {
        0 | 2 => Ok(Priority::BestEffort),
        1 => Ok(Priority::RealTime),
        3 => Ok(Priority::Idle),
        _ => Err(Errno::INVAL),
    }
}

/// The memory that an iocb names, one span a buffer.
fn spans(iocb: &UaioIocb) -> Result<Vec<Span>, Errno> {
    let size = |bytes: u64| {
        // As `import_iovec`: a length beyond what ssize_t holds is not possible.
        if i64::try_from(bytes).is_ok() { Ok(bytes as usize) } else { Err(Errno::INVAL) }
    };
    match iocb.opcode {
        opcode::PREAD | opcode::PWRITE => {
            Ok(vec![Span::of(iocb.buf.cast::<u8>(), size(iocb.nbytes)?)?])
        }
        _ => {
            let count = size(iocb.nbytes)?;
            if count > BUFFERS_MAX {
                return Err(Errno::INVAL);
            }
            let list = iocb.buf.cast::<libc::iovec>();
            let span = |at| {
                let piece = user::read(list.cast_const(), at)?;
                Span::of(piece.iov_base.cast::<u8>(), size(piece.iov_len as u64)?)
            };
            (0..count).map(span).collect()
        }
    }
}

/// Cuts the spans after `most` bytes, and says how many there are then.
fn cut(spans: &mut [Span], most: usize) -> usize {
    let mut left = most;
    for span in spans.iter_mut() {
        *span = span.head(left);
        left -= span.len();
    }
    most - left
}

fn memory(bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| Errno::NOMEM)?;
    Ok(memory)
}

fn on_volume(iocb: &UaioIocb, handle: &Handle, into: &mut Vec<Span>) -> Result<Iocb, Errno> {
    let transfers =
        matches!(iocb.opcode, opcode::PREAD | opcode::PWRITE | opcode::PREADV | opcode::PWRITEV);
    let ranged = matches!(
        iocb.opcode,
        opcode::DISCARD | opcode::WRITE_ZEROES | opcode::SYNC_RANGE | opcode::READAHEAD
    );
    if iocb.op_flags != 0 {
        return Err(Errno::INVAL);
    }
    let offset = u64::try_from(iocb.offset);
    let offset = if transfers || ranged { offset.map_err(|_| Errno::INVAL)? } else { 0 };
    match iocb.opcode {
        opcode::FSYNC => return Ok(Iocb::fsync(handle)),
        opcode::FDSYNC => return Ok(Iocb::fdatasync(handle)),
        opcode::DISCARD => return Ok(Iocb::discard(handle, offset, iocb.nbytes)),
        opcode::WRITE_ZEROES => return Ok(Iocb::write_zeroes(handle, offset, iocb.nbytes)),
        opcode::SYNC_RANGE => return Ok(Iocb::sync_range(handle, offset, iocb.nbytes)),
        opcode::READAHEAD => return Ok(Iocb::readahead(handle, offset, iocb.nbytes)),
        opcode::POLL | opcode::POLL_MULTISHOT | opcode::EPOLL_WAIT | opcode::NOOP => {
            return Err(Errno::OPNOTSUPP);
        }
        _ if !transfers => return Err(Errno::INVAL),
        _ => {}
    }
    let mut spans = spans(iocb)?;
    let asked: u64 = spans.iter().map(|span| span.len() as u64).sum();
    let block_size = u64::from(handle.volume().block_size());
    if offset.checked_add(asked).is_none_or(|end| end > i64::MAX as u64)
        || (handle.options().direct && !(offset | asked).is_multiple_of(block_size))
    {
        return Err(Errno::INVAL);
    }
    // What is linked asks for all of it, whatever is cut off below; it is less than 2^63.
    let asked = asked as usize;
    // No memory for what is past the end; of a write that begins there enough to be told so.
    let room = handle.volume().size_bytes().saturating_sub(offset).max(block_size);
    let len =
        cut(&mut spans, room.min(TRANSFER_MAX_BYTES as u64 / block_size * block_size) as usize);
    let mut bytes = memory(len)?;
    if matches!(iocb.opcode, opcode::PREAD | opcode::PREADV) {
        bytes.resize(len, 0);
        *into = spans;
        return Ok(Iocb::pread(handle, offset, bytes).with_asked(asked));
    }
    spans.iter().for_each(|span| span.append_to(&mut bytes));
    Ok(Iocb::pwrite(handle, offset, bytes).with_asked(asked))
}

fn on_host(iocb: &UaioIocb, later: &mut Later) -> Result<HostOp, Errno> {
    if iocb.opcode == opcode::NOOP {
        return Ok(HostOp::Nop);
    }
    if let Some(op) = on_names(iocb, later)? {
        return Ok(op);
    }
    user::is_open(iocb.fd)?;
    let fd: Descriptor = host::descriptor(iocb.fd);
    let at = || -> Result<Position, Errno> {
        let at = u64::try_from(iocb.offset).map_err(|_| Errno::INVAL)?;
        // What has no positions is read and written where it is, as io_submit has it.
        Ok(if host::has_positions(iocb.fd) { Position::At(at) } else { Position::Current })
    };
    let one = || -> Result<Memory, Errno> {
        let span = Span::of(iocb.buf.cast::<u8>(), usize_of(iocb.nbytes)?)?;
        Ok(host::memory(iocb.buf, span.len()))
    };
    let many = || -> Result<Vectored, Errno> {
        let count = usize_of(iocb.nbytes)?;
        if count > BUFFERS_MAX {
            return Err(Errno::INVAL);
        }
        let list = Span::of(iocb.buf.cast::<libc::iovec>(), count)?;
        let vectored = host::vectored(iocb.buf, count as u32);
        // Only the next of a chain asks how much it was to be.
        let linked = iocb.flags & F_LINK != 0;
        Ok(if linked { vectored.with_len(user::total(list, count)?) } else { vectored })
    };
    // As the flags of the system call are: bits, whatever the sign.
    let flags = iocb.op_flags.cast_signed();
    let moves =
        matches!(iocb.opcode, opcode::PREAD | opcode::PWRITE | opcode::PREADV | opcode::PWRITEV);
    // "Poll if possible": nobody does, and io_submit leaves it out, too (`aio_prep_rw` in fs/aio.c).
    let flags = if moves { flags & !libc::RWF_HIPRI } else { flags };
    let takes_flags = !matches!(
        iocb.opcode,
        opcode::FSYNC
            | opcode::FDSYNC
            | opcode::POLL
            | opcode::POLL_MULTISHOT
            | opcode::EPOLL_WAIT
            | opcode::READAHEAD
            | opcode::CONNECT
            | opcode::CLOSE
            | opcode::FTRUNCATE
    );
    if !takes_flags && flags != 0 {
        return Err(Errno::INVAL);
    }
    let range = || -> Result<(u64, u32), Errno> {
        let offset = u64::try_from(iocb.offset).map_err(|_| Errno::INVAL)?;
        Ok((offset, u32::try_from(iocb.nbytes).map_err(|_| Errno::INVAL)?))
    };
    Ok(match iocb.opcode {
        opcode::PREAD => HostOp::Read { fd, memory: one()?, at: at()?, flags },
        opcode::PWRITE => HostOp::Write { fd, memory: one()?, at: at()?, flags },
        opcode::PREADV => HostOp::ReadV { fd, memory: many()?, at: at()?, flags },
        opcode::PWRITEV => HostOp::WriteV { fd, memory: many()?, at: at()?, flags },
        opcode::FSYNC => HostOp::Fsync { fd, data_only: false },
        opcode::FDSYNC => HostOp::Fsync { fd, data_only: true },
        opcode::POLL | opcode::POLL_MULTISHOT => {
            let events = u32::try_from(iocb.nbytes).map_err(|_| Errno::INVAL)?;
            HostOp::Poll { fd, events, multishot: iocb.opcode == opcode::POLL_MULTISHOT }
        }
        opcode::EPOLL_WAIT => {
            // As do_epoll_wait in fs/eventpoll.c: none, or more than an int has bytes for, is EINVAL.
            let most = i32::MAX as usize / size_of::<libc::epoll_event>();
            let count = usize_of(iocb.nbytes)?;
            if !(1..=most).contains(&count) {
                return Err(Errno::INVAL);
            }
            let to = iocb.buf.cast::<libc::epoll_event>();
            Span::of(to.cast_const(), count)?;
            *later = Later::Events(to);
            ops::epoll_wait(&fd, count.min(EPOLL_EVENTS_MAX))
        }
        opcode::SYNC_RANGE => {
            let (offset, len) = range()?;
            HostOp::SyncFileRange { fd, offset, len, flags: iocb.op_flags }
        }
        opcode::READAHEAD => {
            let (offset, len) = range()?;
            HostOp::Readahead { fd, offset, len }
        }
        opcode::ACCEPT => {
            let address = SocketAddress::empty();
            HostOp::Accept(Box::new(Accept { fd, flags, address, accepted: None }))
        }
        opcode::CONNECT => {
            let mut bytes = Vec::new();
            let span = Span::of(iocb.buf.cast::<u8>(), usize_of(iocb.nbytes)?)?;
            if span.len() > size_of::<libc::sockaddr_storage>() {
                return Err(Errno::INVAL);
            }
            span.append_to(&mut bytes);
            let address = SocketAddress::from_bytes(&bytes).ok_or(Errno::INVAL)?;
            HostOp::Connect { fd, address: Box::new(address) }
        }
        opcode::SEND => HostOp::Send { fd, memory: one()?, flags },
        opcode::RECV => HostOp::Recv { fd, memory: one()?, flags },
        opcode::SENDMSG => HostOp::SendMsg { fd, message: host::message(iocb.buf)?, flags },
        opcode::RECVMSG => HostOp::RecvMsg { fd, message: host::message(iocb.buf)?, flags },
        opcode::SHUTDOWN => HostOp::Shutdown { fd, how: flags },
        opcode::CLOSE => HostOp::CloseForeign(host::given_up(iocb.fd)),
        opcode::FALLOCATE => {
            let offset = u64::try_from(iocb.offset).map_err(|_| Errno::INVAL)?;
            HostOp::Fallocate { fd, mode: flags, offset, len: usize_of(iocb.nbytes)? as u64 }
        }
        opcode::FTRUNCATE => HostOp::Ftruncate { fd, len: usize_of(iocb.nbytes)? as u64 },
        opcode::FADVISE => {
            let (offset, len) = range()?;
            HostOp::Fadvise { fd, offset, len, advice: flags }
        }
        opcode::SPLICE => HostOp::Splice(between(iocb)?),
        opcode::COPY => HostOp::Copy(between(iocb)?),
        opcode::DISCARD | opcode::WRITE_ZEROES => return Err(Errno::OPNOTSUPP),
        _ => return Err(Errno::INVAL),
    })
}

/// A length, which is not beyond what ssize_t holds.
pub(crate) fn usize_of(bytes: u64) -> Result<usize, Errno> {
    if i64::try_from(bytes).is_ok() { Ok(bytes as usize) } else { Err(Errno::INVAL) }
}
