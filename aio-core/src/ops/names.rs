//! Names: what is opened, made, moved and removed.

use std::ffi::{CString, NulError};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::host::{Directory, HostOp, Names, Open, Statx, Symlink};

/// A path as these functions take it.
///
/// # Errors
///
/// When it has a zero in it, which no name of the kernel's can.
pub fn name(path: impl AsRef<Path>) -> Result<CString, NulError> {
    CString::new(path.as_ref().as_os_str().as_bytes())
}

/// open(2) of what there is: `O_RDONLY` and the like. `O_CLOEXEC` is always set.
pub fn open(path: impl Into<CString>, flags: i32) -> HostOp {
    openat(Directory::Current, path, flags, 0)
}

/// open(2) of a file that is made if it is not there, for reading and writing.
pub fn create(path: impl Into<CString>, mode: u32) -> HostOp {
    openat(Directory::Current, path, libc::O_RDWR | libc::O_CREAT, mode)
}

/// openat(2).
pub fn openat(directory: Directory, path: impl Into<CString>, flags: i32, mode: u32) -> HostOp {
    HostOp::Open(Box::new(Open { directory, path: path.into(), flags, mode, opened: None }))
}

/// close(2).
pub fn close(fd: impl Into<OwnedFd>) -> HostOp {
    HostOp::Close { fd: Some(fd.into()) }
}

/// unlinkat(2): with `AT_REMOVEDIR` a directory, else a file.
pub fn unlinkat(directory: Directory, path: impl Into<CString>, flags: i32) -> HostOp {
    HostOp::Unlink { directory, path: path.into(), flags }
}

/// renameat2(2).
pub fn renameat(
    from: (Directory, impl Into<CString>),
    to: (Directory, impl Into<CString>),
    flags: u32,
) -> HostOp {
    HostOp::Rename(names(from, to, flags))
}

/// linkat(2).
pub fn linkat(
    from: (Directory, impl Into<CString>),
    to: (Directory, impl Into<CString>),
    flags: u32,
) -> HostOp {
    HostOp::Link(names(from, to, flags))
}

/// symlinkat(2): makes `path` say `target`.
pub fn symlinkat(
    target: impl Into<CString>,
    directory: Directory,
    path: impl Into<CString>,
) -> HostOp {
    let (target, path) = (target.into(), path.into());
    HostOp::Symlink(Box::new(Symlink { target, directory, path }))
}

/// mkdirat(2).
pub fn mkdirat(directory: Directory, path: impl Into<CString>, mode: u32) -> HostOp {
    HostOp::Mkdir { directory, path: path.into(), mode }
}

/// statx(2) of the fields of `mask`.
pub fn statx(directory: Directory, path: impl Into<CString>, flags: i32, mask: u32) -> HostOp {
    HostOp::Statx(Box::new(Statx::new(directory, path.into(), flags, mask)))
}

fn names(
    (old_directory, old_path): (Directory, impl Into<CString>),
    (new_directory, new_path): (Directory, impl Into<CString>),
    flags: u32,
) -> Box<Names> {
    let (old_path, new_path) = (old_path.into(), new_path.into());
    Box::new(Names { old_directory, old_path, new_directory, new_path, flags })
}
