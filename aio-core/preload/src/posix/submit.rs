//! Requests on their way in: what the standard lets be refused at once is refused here, the rest is the kernel's word.
#![expect(unsafe_code, reason = "memory and descriptors of the program's, by address and number")]

use std::os::fd::RawFd;
use std::sync::Arc;

use uaio_core::host::{HostOp, Memory, Position};

use super::control::{Control, Fields};
use super::landing::{Group, Landing, Rest};
use super::notice::Notice;
use crate::serve::{self, Operation, Order, Way};
use crate::{number, real};

/// `AIO_PRIO_DELTA_MAX` of `<limits.h>`.
const PRIORITY_DELTA_MAX: i32 = 20;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    Sync { data_only: bool },
}

/// A request that was taken down.
pub(super) enum Request {
    /// For the reactor.
    Queued(Operation),
    /// To be done here.
    Here(Here, Landing),
}

/// A transfer of what says at once that it would have to wait, and which the kernel knows no other way to ask.
pub(super) struct Here {
    fields: Fields,
    /// At an offset, and without one where there is none.
    place: libc::c_long,
    current: libc::c_long,
}

impl Here {
    /// Does it.
    pub(super) fn act(&self) -> Result<usize, i32> {
        let Fields { fildes, buf, nbytes, offset, .. } = self.fields;
        let buf = buf.expose_provenance();
        let call =
            |number| real::raw(number, [fildes as usize, buf, nbytes, offset as usize, 0, 0]);
        match call(self.place) {
            // An eventfd says that it can be sought in. Of these two calls none looks at the offset.
            Err(libc::ESPIPE) => call(self.current),
            result => result,
        }
    }
}

/// Takes a block down as a request; the errno if it is refused, and then nothing was changed.
pub(super) fn request(
    control: Control,
    action: Action,
    group: Option<&Arc<Group>>,
) -> Result<Request, i32> {
    let fields = control.fields();
    let notice = Notice::new(&fields.sigevent)?;
    let fd = fields.fildes;
    let flags = flags_of(fd)?;
    let access = flags & libc::O_ACCMODE;
    let group = group.cloned();
    let mut landing = Landing { control, notice, group, rest: None };
    let (op, priority, order) = match action {
        Action::Sync { data_only } => {
            // What has no places has nothing to be synced, as the kernel says at once: it waits for nobody.
            let order = if matches!(seeks(fd)?, Seeks::No | Seeks::Device) {
                Order::Free
            } else {
                Order::AfterAll
            };
            (HostOp::Fsync { fd: number::foreign(fd), data_only }, 0, order)
        }
        Action::Read if access == libc::O_WRONLY => return Err(libc::EBADF),
        Action::Write if access == libc::O_RDONLY => return Err(libc::EBADF),
        Action::Read | Action::Write => {
            if isize::try_from(fields.nbytes).is_err() {
                return Err(libc::EINVAL);
            }
            let priority = priority(fields.reqprio)?;
            let seeks = seeks(fd)?;
            let waits = flags & libc::O_NONBLOCK == 0;
            if !waits && matches!(seeks, Seeks::InOrder | Seeks::Device) {
                let (place, current) = match action {
                    Action::Read => (libc::SYS_pread64, libc::SYS_read),
                    _ => (libc::SYS_pwrite64, libc::SYS_write),
                };
                return Ok(Request::Here(Here { fields, place, current }, landing));
            }
            if waits && action == Action::Write && matches!(seeks, Seeks::No | Seeks::Device) {
                let (address, len_bytes) = (fields.buf.expose_provenance(), fields.nbytes);
                landing.rest = Some(Rest { address, len_bytes, moved_bytes: 0 });
            }
            let append = action == Action::Write && flags & libc::O_APPEND != 0;
            let (op, order) = transfer(&fields, action, seeks, append, waits)?;
            (op, priority, order)
        }
    };
    let landing = serve::Landing::Control(landing);
    Ok(Request::Queued(Operation { fd, op, priority, order, landing, list: None }))
}

/// The flags of an open descriptor that can be read or written at all.
fn flags_of(fd: RawFd) -> Result<i32, i32> {
    let flags = real::raw(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]);
    match flags.map(|flags| flags as i32) {
        Ok(flags) if flags & libc::O_PATH == 0 => Ok(flags),
        Ok(_) | Err(_) => Err(libc::EBADF),
    }
}

fn transfer(
    fields: &Fields,
    action: Action,
    seeks: Seeks,
    append: bool,
    waits: bool,
) -> Result<(HostOp, Order), i32> {
    let at = match (seeks, append) {
        // The kernel finds the end itself, and looks at no offset.
        (Seeks::At, true) => Position::At(0),
        (Seeks::At | Seeks::InOrder, _) => {
            Position::At(u64::try_from(fields.offset).map_err(|_| libc::EINVAL)?)
        }
        (Seeks::No | Seeks::Device, _) => Position::Current,
    };
    let way = if action == Action::Read { Way::In } else { Way::Out };
    let order = if seeks == Seeks::At && !append { Order::Free } else { Order::InTurn(way) };
    // The engine waits with a descriptor that is not to wait, unless it is told.
    let flags = if seeks == Seeks::No && !waits { libc::RWF_NOWAIT } else { 0 };
    let fd = number::foreign(fields.fildes);
    // SAFETY: the program leaves these bytes alone, and there, until the request is over (aio(7)).
    let memory = unsafe { Memory::raw(fields.buf, fields.nbytes) };
    let op = match action {
        Action::Read => HostOp::Read { fd, memory, at, flags },
        Action::Write | Action::Sync { .. } => HostOp::Write { fd, memory, at, flags },
    };
    Ok((op, order))
}

/// Whether a file has places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seeks {
    /// Files and block devices: each request for itself.
    At,
    /// Other devices that can be sought in, or say so: one after the other, for nobody knows what it does to them.
    InOrder,
    /// Pipes and sockets: the offset does not count.
    No,
    /// Terminals and what else has no places.
    Device,
}

fn seeks(fd: RawFd) -> Result<Seeks, i32> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: memory of that size, to be written.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return Err(libc::EBADF);
    }
    // SAFETY: it was written.
    let mode = unsafe { status.assume_init() }.st_mode & libc::S_IFMT;
    Ok(match mode {
        libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Seeks::At,
        libc::S_IFIFO | libc::S_IFSOCK => Seeks::No,
        _ => {
            // SAFETY: asks where it is, which moves nothing.
            let place = unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) };
            if place < 0 { Seeks::Device } else { Seeks::InOrder }
        }
    })
}

/// How a priority that is to be lowered by so much is said to the kernel (ioprio_set(2)): the thread's own, or best
/// effort 4, which is what a thread has that never said anything, down to 7. 20 steps of the standard are 3 of those.
fn priority(lower_by: i32) -> Result<u16, i32> {
    const CLASS_SHIFT: usize = 13;
    const CLASS_BEST_EFFORT: usize = 2;
    const WHO_PROCESS: usize = 1;
    match lower_by {
        0 => Ok(0),
        1..=PRIORITY_DELTA_MAX => {
            let own = real::raw(libc::SYS_ioprio_get, [WHO_PROCESS, 0, 0, 0, 0, 0]);
            let own = own.unwrap_or(0);
            let (class, level) = match own >> CLASS_SHIFT {
                0 => (CLASS_BEST_EFFORT, 4),
                class => (class, own & 7),
            };
            let level = (level + (lower_by as usize).div_ceil(7)).min(7);
            Ok((class << CLASS_SHIFT | level) as u16)
        }
        _ => Err(libc::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_lowered_within_its_class_and_not_below_the_lowest() {
        assert_eq!(priority(0), Ok(0));
        assert_eq!(priority(1), Ok(2 << 13 | 5));
        assert_eq!(priority(7), Ok(2 << 13 | 5));
        assert_eq!(priority(8), Ok(2 << 13 | 6));
        assert_eq!(priority(20), Ok(2 << 13 | 7));
        assert_eq!(priority(-1), Err(libc::EINVAL));
        assert_eq!(priority(21), Err(libc::EINVAL));
    }
}
