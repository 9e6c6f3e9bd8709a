//! io_submit(2): iocbs become operations.
//!
//! What the kernel says at submission is said here, in its order (`io_submit_one` in fs/aio.c): EFAULT, EINVAL, EAGAIN,
//! EBADF, and what is wrong with the request. What it finds out later is in the event.
#![expect(
    unsafe_code,
    reason = "operations carry the program's addresses, which the kernel checks"
)]

use std::sync::Arc;

use rustix::fs::OFlags;
use uaio_core::host::{HostOp, Memory, Position, Vectored};

use super::context::Context;
use super::inline;
use super::layout::{FLAG_IOPRIO, FLAG_RESFD, IoEvent, Iocb, opcode};
use crate::number;
use crate::own::OwnFd;
use crate::serve::{self, Counters, Operation, Order, Service, Way};
use crate::user::{self, List, Prober};

/// `UIO_MAXIOV`.
const VECTORS_MAX: u64 = 1024;
/// `MAX_RW_COUNT`.
const TRANSFER_MAX: u64 = 0x7fff_f000;
/// Flags of preadv2(2) that some kernel knows (`RWF_SUPPORTED`, up to `RWF_NOSIGNAL`).
const FLAGS_KNOWN: i32 = 0x1ff;
/// The bits of a priority that are its class.
const CLASS_SHIFT: u16 = 13;
const CLASS_RT: u16 = 1;
const CLASS_IDLE: u16 = 3;

/// Submits `nr` iocbs, whose addresses are at `list`: how many were, or why the first was not.
pub(super) fn submit(
    service: &Service,
    context: &Arc<Context>,
    nr: i64,
    list: usize,
) -> Result<usize, i32> {
    if nr < 0 {
        return Err(libc::EINVAL);
    }
    // As there: more than the ring holds are not looked at.
    let nr = (nr as usize).min(context.capacity() as usize);
    let mut submission = Submission {
        service,
        context,
        pointers: Prober::reading(),
        blocks: Prober::reading(),
        last: None,
    };
    let (mut taken, mut error) = (0, None);
    let operations = (0..nr).map_while(|at| {
        let operation = submission.operation(list.wrapping_add(at * size_of::<usize>()));
        match operation {
            Ok(operation) => {
                taken += 1;
                Some(operation)
            }
            Err(errno) => {
                error = Some(errno);
                None
            }
        }
    });
    service.submit(operations.flatten());
    match (taken, error) {
        (0, Some(errno)) => Err(errno),
        _ => Ok(taken),
    }
}

/// What is known in the course of one call.
struct Submission<'a> {
    service: &'a Service,
    context: &'a Arc<Context>,
    pointers: Prober,
    blocks: Prober,
    /// The descriptor that was looked at last, and how it was opened: mostly the next is the same.
    last: Option<(i32, OFlags)>,
}

impl Submission<'_> {
    /// The request whose iocb's address is at `pointer`; none if it is answered already.
    fn operation(&mut self, pointer: usize) -> Result<Option<Operation>, i32> {
        let block: usize = user::read(&mut self.pointers, pointer).map_err(|_| libc::EFAULT)?;
        let iocb: Iocb = user::read(&mut self.blocks, block).map_err(|_| libc::EFAULT)?;
        if iocb.reserved2 != 0 || i64::try_from(iocb.nbytes).is_err() {
            return Err(libc::EINVAL);
        }
        if !self.context.claim() {
            return Err(libc::EAGAIN);
        }
        let made = self.claimed(block, &iocb);
        if made.is_err() {
            self.context.disclaim();
        }
        made
    }

    fn claimed(&mut self, block: usize, iocb: &Iocb) -> Result<Option<Operation>, i32> {
        let flags = self.flags_of(iocb.fildes)?;
        let notice = self.notice(iocb)?;
        self.put_key(block, iocb)?;
        let (op, list) = self.op(iocb, flags)?;
        let appends = matches!(iocb.opcode, opcode::PWRITE | opcode::PWRITEV)
            && (flags.contains(OFlags::APPEND) || iocb.rw_flags & libc::RWF_APPEND != 0);
        let order = if appends { Order::InTurn(Way::Out) } else { Order::Free };
        let priority = priority(iocb)?;
        if self.is_answered(block, iocb, &op, flags) {
            return Ok(None);
        }
        let landing = super::Landing {
            context: Arc::clone(self.context),
            obj: block as u64,
            data: iocb.data,
            is_poll: iocb.opcode == opcode::POLL,
            notice,
        };
        let landing = serve::Landing::Event(landing);
        Ok(Some(Operation { fd: iocb.fildes, op, priority, order, landing, list }))
    }

    /// How the descriptor was opened; EBADF if it was not, or only for its name.
    fn flags_of(&mut self, fd: i32) -> Result<OFlags, i32> {
        if let Some((last, flags)) = self.last
            && last == fd
        {
            return Ok(flags);
        }
        let flags = number::flags(fd)?;
        if flags.contains(OFlags::PATH) {
            return Err(libc::EBADF);
        }
        self.last = Some((fd, flags));
        Ok(flags)
    }

    /// Whether it is a read that could be answered at once, and was.
    fn is_answered(&self, block: usize, iocb: &Iocb, op: &HostOp, opened: OFlags) -> bool {
        let plain = iocb.flags == 0 && !opened.contains(OFlags::DIRECT);
        let HostOp::Read { memory, at: Position::At(offset), flags: 0, .. } = op else {
            return false;
        };
        // A vector of one has its address elsewhere; it is as rare as it is no loss.
        if !plain || iocb.opcode != opcode::PREAD {
            return false;
        }
        let read =
            inline::read(&self.context.luck, iocb.fildes, iocb.buf as usize, memory.len(), *offset);
        if read.is_err() {
            return false;
        }
        let (obj, res) = (block as u64, memory.len() as i64);
        self.context.publish(IoEvent { data: iocb.data, obj, res, res2: 0 });
        self.context.wake();
        Counters::count(&self.service.counters.libaio);
        Counters::count(&self.service.counters.inline);
        true
    }

    fn notice(&self, iocb: &Iocb) -> Result<Option<Arc<OwnFd>>, i32> {
        match iocb.flags & FLAG_RESFD {
            0 => Ok(None),
            _ => self.context.notice(self.service, iocb.resfd).map(Some),
        }
    }

    /// The kernel puts a zero there, for io_cancel(2) to find.
    fn put_key(&self, block: usize, iocb: &Iocb) -> Result<(), i32> {
        if iocb.key == 0 {
            return Ok(());
        }
        let (at, flags) = (block + std::mem::offset_of!(Iocb, key), iocb.rw_flags);
        const { assert!(std::mem::offset_of!(Iocb, rw_flags) == 12, "the other half of the word") };
        let word = u64::from(flags.cast_unsigned()) << 32;
        user::write(&mut Prober::writing(), at, word).map_err(|_| libc::EFAULT)
    }

    /// What the kernel is to do.
    fn op(&self, iocb: &Iocb, opened: OFlags) -> Result<(HostOp, Option<List>), i32> {
        let fd = number::foreign(iocb.fildes);
        let plain = iocb.offset == 0 && iocb.nbytes == 0 && iocb.rw_flags == 0;
        let writes = matches!(iocb.opcode, opcode::PWRITE | opcode::PWRITEV);
        let vectored = matches!(iocb.opcode, opcode::PREADV | opcode::PWRITEV);
        match iocb.opcode {
            opcode::PREAD | opcode::PWRITE | opcode::PREADV | opcode::PWRITEV => {}
            opcode::FSYNC | opcode::FDSYNC if plain && iocb.buf == 0 => {
                let data_only = iocb.opcode == opcode::FDSYNC;
                return Ok((HostOp::Fsync { fd, data_only }, None));
            }
            opcode::POLL if plain => {
                let events = u16::try_from(iocb.buf).map_err(|_| libc::EINVAL)?;
                return Ok((HostOp::Poll { fd, events: events.into(), multishot: false }, None));
            }
            opcode::NOOP => return Ok((HostOp::Nop, None)),
            _ => return Err(libc::EINVAL),
        }
        let flags = transfer_flags(iocb)?;
        let mode = opened & OFlags::RWMODE;
        if mode == (if writes { OFlags::RDONLY } else { OFlags::WRONLY }) {
            return Err(libc::EBADF);
        }
        let offset = u64::try_from(iocb.offset).map_err(|_| libc::EINVAL)?;
        // `rw_verify_area`: the end is to be one, too. The length of a list it does not look at before the transfer.
        if !vectored && iocb.nbytes.min(TRANSFER_MAX) > i64::MAX as u64 - offset {
            return Err(libc::EINVAL);
        }
        let at = Position::At(offset);
        if !vectored {
            let memory = memory(iocb.buf, iocb.nbytes)?;
            return Ok((transfer(writes, fd, memory, at, flags), None));
        }
        let mut list = vectors(iocb.buf, iocb.nbytes)?;
        if let [only] = &*list.0 {
            let memory = memory(only.iov_base.expose_provenance() as u64, only.iov_len as u64)?;
            return Ok((transfer(writes, fd, memory, at, flags), None));
        }
        let count = list.0.len() as u32;
        // SAFETY: the list is kept with the operation, and what it names is the program's to give until the event.
        let memory = unsafe { Vectored::raw(list.0.as_mut_ptr(), count) };
        let op = match writes {
            true => HostOp::WriteV { fd, memory, at, flags },
            false => HostOp::ReadV { fd, memory, at, flags },
        };
        Ok((op, Some(list)))
    }
}

fn transfer(
    writes: bool,
    fd: uaio_core::host::Descriptor,
    memory: Memory,
    at: Position,
    flags: i32,
) -> HostOp {
    match writes {
        true => HostOp::Write { fd, memory, at, flags },
        false => HostOp::Read { fd, memory, at, flags },
    }
}

/// Memory of the program's, which the kernel checks when it gets there; EFAULT at once of what is no program's.
fn memory(buf: u64, nbytes: u64) -> Result<Memory, i32> {
    let len = nbytes.min(TRANSFER_MAX) as usize;
    let address = usize::try_from(buf).map_err(|_| libc::EFAULT)?;
    if !user::is_of_program(address, len) {
        return Err(libc::EFAULT);
    }
    let address = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the program gives these bytes until the event, as io_submit(2) has it.
    Ok(unsafe { Memory::raw(address, len) })
}

/// A copy of the list of a vectored transfer: the program may use its own again when io_submit has returned.
fn vectors(buf: u64, count: u64) -> Result<List, i32> {
    if count > VECTORS_MAX {
        return Err(libc::EINVAL);
    }
    let at = usize::try_from(buf).map_err(|_| libc::EFAULT)?;
    let mut prober = Prober::reading();
    let list = (0..count as usize)
        .map(|index| {
            let vector: libc::iovec =
                user::read(&mut prober, at.wrapping_add(index * size_of::<libc::iovec>()))
                    .map_err(|_| libc::EFAULT)?;
            if isize::try_from(vector.iov_len).is_err() {
                return Err(libc::EINVAL);
            }
            let address = vector.iov_base.expose_provenance();
            let len = vector.iov_len.min(TRANSFER_MAX as usize);
            if user::is_of_program(address, len) { Ok(vector) } else { Err(libc::EFAULT) }
        })
        .collect::<Result<_, _>>()?;
    Ok(List(list))
}

/// Flags of preadv2(2). Nobody polls for the completion of a kernel AIO, so HIPRI means nothing there, nor here.
fn transfer_flags(iocb: &Iocb) -> Result<i32, i32> {
    if iocb.rw_flags & !FLAGS_KNOWN != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    Ok(iocb.rw_flags & !libc::RWF_HIPRI)
}

/// The priority of an iocb: EINVAL of one that there is not, EPERM of one that is not allowed (`ioprio_check_cap`).
fn priority(iocb: &Iocb) -> Result<u16, i32> {
    let transfer =
        !matches!(iocb.opcode, opcode::FSYNC | opcode::FDSYNC | opcode::POLL | opcode::NOOP);
    if iocb.flags & FLAG_IOPRIO == 0 || !transfer {
        return Ok(0);
    }
    let priority = iocb.reqprio.cast_unsigned();
    let (class, level) = (priority >> CLASS_SHIFT, priority & 7);
    match class {
        0 if level != 0 => Err(libc::EINVAL),
        CLASS_RT if !may_be_real_time() => Err(libc::EPERM),
        0..=CLASS_IDLE => Ok(priority),
        _ => Err(libc::EINVAL),
    }
}

/// Whether this thread has CAP_SYS_ADMIN or CAP_SYS_NICE.
fn may_be_real_time() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const SYS_NICE: u64 = 1 << 23;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.unwrap_or_default() & (SYS_ADMIN | SYS_NICE) != 0
}
