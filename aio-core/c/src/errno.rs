//! Errors as C has them.

use uaio_driver::DeviceError;

/// A positive errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const AGAIN: Self = Self(libc::EAGAIN);
    pub(crate) const BADF: Self = Self(libc::EBADF);
    pub(crate) const FAULT: Self = Self(libc::EFAULT);
    pub(crate) const INVAL: Self = Self(libc::EINVAL);
    pub(crate) const NAMETOOLONG: Self = Self(libc::ENAMETOOLONG);
    pub(crate) const NOMEM: Self = Self(libc::ENOMEM);
    pub(crate) const OPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    pub(crate) const IO: Self = Self(libc::EIO);
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<DeviceError> for Errno {
    /// The kernel's own where it said one; the library has no way to tell the rest.
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Os { source, .. } => source.raw_os_error().map_or(Self::IO, Self),
            DeviceError::Invalid(_) => Self::INVAL,
            _ => Self::IO,
        }
    }
}

/// What a call returns: a number that is not negative, or the negative of an errno.
pub(crate) fn answer(result: Result<usize, Errno>) -> i32 {
    match result {
        // Numbers of iocbs and events, all bounded by 65536.
        Ok(number) => i32::try_from(number).unwrap_or(i32::MAX),
        Err(errno) => -errno.0,
    }
}
