//! Operations on names, between two descriptors, and other system calls: what their structures name is
//! taken in at submission.

use std::ffi::CString;

use uaio_core::host::{
    Argument, Between, Call, Directory, HostOp, Names, Open, Statx, Symlink, Takes,
};

use crate::Errno;
use crate::command::{Later, usize_of};
use crate::host;
use crate::layout::{UaioCall, UaioIocb, UaioNames, UaioStatx, UaioTo, opcode};
use crate::user::{self, Span};

/// The operation on names that this is, if it is one; where statx(2) is to answer goes to `later`.
pub(crate) fn on_names(iocb: &UaioIocb, later: &mut Later) -> Result<Option<HostOp>, Errno> {
    let flags = iocb.op_flags;
    let path = || user::path(iocb.buf.cast_const().cast());
    let mode = || u32::try_from(iocb.nbytes).map_err(|_| Errno::INVAL);
    let no_flags = || if flags == 0 { Ok(()) } else { Err(Errno::INVAL) };
    let from = || directory(iocb.fd);
    Ok(Some(match iocb.opcode {
        opcode::OPENAT => {
            let (flags, mode) = (flags.cast_signed(), mode()?);
            HostOp::Open(Box::new(Open {
                directory: from(),
                path: path()?,
                flags,
                mode,
                opened: None,
            }))
        }
        opcode::UNLINKAT => {
            HostOp::Unlink { directory: from(), path: path()?, flags: flags.cast_signed() }
        }
        opcode::MKDIRAT => {
            no_flags()?;
            HostOp::Mkdir { directory: from(), path: path()?, mode: mode()? }
        }
        opcode::RENAMEAT | opcode::LINKAT => {
            let (old_path, new_directory, new_path) = names(iocb)?;
            let names =
                Box::new(Names { old_directory: from(), old_path, new_directory, new_path, flags });
            if iocb.opcode == opcode::LINKAT { HostOp::Link(names) } else { HostOp::Rename(names) }
        }
        opcode::SYMLINKAT => {
            no_flags()?;
            let (target, directory, path) = names(iocb)?;
            HostOp::Symlink(Box::new(Symlink { target, directory, path }))
        }
        opcode::STATX => {
            let UaioStatx { path, status: to, mask, reserved } =
                user::fetch(iocb.buf.cast_const().cast())?;
            zero(reserved)?;
            Span::of(to.cast_const(), 1)?;
            *later = Later::Status(to);
            let path = user::path(path)?;
            HostOp::Statx(Box::new(Statx::new(from(), path, flags.cast_signed(), mask)))
        }
        opcode::CALL => {
            no_flags()?;
            HostOp::Call(Box::new(call(&user::fetch(iocb.buf.cast_const().cast())?)?))
        }
        _ => return Ok(None),
    }))
}

/// The two names of a structure: the old, where the new begins, the new.
fn names(iocb: &UaioIocb) -> Result<(CString, Directory, CString), Errno> {
    let UaioNames { old_path, new_path, new_fd, reserved } =
        user::fetch(iocb.buf.cast_const().cast())?;
    zero(reserved)?;
    Ok((user::path(old_path)?, directory(new_fd), user::path(new_path)?))
}

/// Where the bytes of `iocb` go, for splice(2) and copy_file_range(2).
pub(crate) fn between(iocb: &UaioIocb) -> Result<Box<Between>, Errno> {
    let UaioTo { offset, fd, reserved } = user::fetch(iocb.buf.cast_const().cast())?;
    zero(reserved)?;
    user::is_open(fd)?;
    let at = |offset: i64| match offset {
        -1 => Ok(None),
        offset => u64::try_from(offset).map(Some).map_err(|_| Errno::INVAL),
    };
    Ok(Box::new(Between {
        from: host::descriptor(iocb.fd),
        from_offset: at(iocb.offset)?,
        to: host::descriptor(fd),
        to_offset: at(offset)?,
        len: usize_of(iocb.nbytes)?,
        flags: iocb.op_flags,
    }))
}

/// A call with its arguments by their kinds, so that a number is an address only where the kernel takes
/// one.
fn call(call: &UaioCall) -> Result<Call, Errno> {
    let number = call.number;
    let takes = Call::takes(number).map_err(|refused| Errno(refused.errno()))?;
    let mut words = call.arguments.into_iter();
    let mut arguments = Vec::with_capacity(takes.len());
    for takes in takes {
        // The list says no call of more than six.
        let word = words.next().unwrap_or_default();
        let address = std::ptr::with_exposed_provenance_mut::<std::ffi::c_void>(word as usize);
        let structure = |len| -> Result<Argument, Errno> {
            Span::of(address.cast::<u8>().cast_const(), len)?;
            Ok(Argument::Memory(host::memory(address, len)))
        };
        arguments.push(match *takes {
            // A number where there must be no address is refused by `Call::new`.
            Takes::Null if word != 0 => Argument::Value(word),
            Takes::Null => Argument::Null,
            Takes::StructOrNull(_) if word == 0 => Argument::Null,
            Takes::Struct(len) | Takes::StructOrNull(len) => structure(len)?,
            Takes::Bytes => {
                let len = usize_of(words.next().unwrap_or_default())?;
                // With no length there is no address either: some calls say then how long it would be.
                structure(len)?
            }
            Takes::Value if is_own_times(call) => {
                Argument::Value(libc::AT_EMPTY_PATH.cast_unsigned().into())
            }
            Takes::Value => Argument::Value(word),
            Takes::Fd => Argument::Descriptor(host::descriptor(word as i32)),
            Takes::Dir => Argument::Directory(directory(word as i32)),
            // utimensat(fd, NULL) is the descriptor itself, which the kernel also says by no name.
            Takes::Path if is_own_times(call) => Argument::Path(CString::default()),
            Takes::Path => Argument::Path(user::path(address.cast_const().cast())?),
        });
    }
    Call::new(number, arguments).map_err(|refused| Errno(refused.errno()))
}

/// Whether it is utimensat(2) as futimens(3) calls it: without a name and flags.
fn is_own_times(call: &UaioCall) -> bool {
    let [fd, name, _, flags, ..] = call.arguments;
    call.number == libc::SYS_utimensat
        && name == 0
        && flags as i32 == 0
        && fd as i32 != libc::AT_FDCWD
}

fn directory(fd: i32) -> Directory {
    if fd == libc::AT_FDCWD { Directory::Current } else { Directory::At(host::descriptor(fd)) }
}

fn zero(reserved: u32) -> Result<(), Errno> {
    if reserved == 0 { Ok(()) } else { Err(Errno::INVAL) }
}
