//! Memory and descriptors that an operation of the host brings along.
//!
//! The kernel keeps addresses of all this while an operation is in flight, so it belongs to the
//! operation until then and its address does not change when the operation is moved: heap memory, or
//! memory for which the caller vouches.
#![expect(unsafe_code, reason = "constructors for callers who vouch for what types cannot say")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// The most bytes of one read or write of Linux (`MAX_RW_COUNT`, read(2)): 2 GiB less a page.
pub const TRANSFER_MAX_BYTES: usize = 0x7fff_f000;

/// A descriptor of the host. It stays open while an operation on it is in flight.
#[derive(Clone, Debug)]
pub struct Descriptor(Held);

#[derive(Clone, Debug)]
enum Held {
    Owned(Arc<OwnedFd>),
    Raw(RawFd),
}

impl Descriptor {
    /// Takes a file, a socket, one end of a pipe or any other descriptor.
    pub fn new(owner: impl Into<OwnedFd>) -> Self {
        Self(Held::Owned(Arc::new(owner.into())))
    }

    /// A descriptor that belongs to somebody else, by number. A number that is not open is not an
    /// error here: the operation gets EBADF.
    ///
    /// # Safety
    ///
    /// Whoever owns it agrees that it is used, and does not let the number come to mean another file
    /// before the operations on it are done.
    pub unsafe fn raw(fd: RawFd) -> Self {
        Self(Held::Raw(fd))
    }
}

impl From<Arc<OwnedFd>> for Descriptor {
    fn from(owner: Arc<OwnedFd>) -> Self {
        Self(Held::Owned(owner))
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        match &self.0 {
            Held::Owned(fd) => fd.as_raw_fd(),
            Held::Raw(fd) => *fd,
        }
    }
}

/// A descriptor of somebody else's that is to be closed, by number. Dropping this does not close it: only
/// the operation does.
#[derive(Debug)]
pub struct ForeignFd(RawFd);

impl ForeignFd {
    /// The descriptor of this number. One that is not open is not an error here: the operation gets
    /// EBADF.
    ///
    /// # Safety
    ///
    /// Whoever owns it gives it up to the operation, and has it back only when that was cancelled.
    pub unsafe fn new(fd: RawFd) -> Self {
        Self(fd)
    }
}

impl AsRawFd for ForeignFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Two are equal when they are the same number, which is the same file as long as both are open.
impl PartialEq for Descriptor {
    fn eq(&self, other: &Self) -> bool {
        self.as_raw_fd() == other.as_raw_fd()
    }
}

impl Eq for Descriptor {}

impl PartialEq<BorrowedFd<'_>> for Descriptor {
    fn eq(&self, other: &BorrowedFd<'_>) -> bool {
        self.as_raw_fd() == other.as_raw_fd()
    }
}

/// One run of bytes: read into, or written from.
#[derive(Debug)]
pub struct Memory(Bytes);

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Raw { address: usize, len: usize },
}

impl Memory {
    /// Memory of the caller by address, which the kernel checks: an address that is not mapped, or
    /// not the program's, gives EFAULT as in read(2).
    ///
    /// # Safety
    ///
    /// Until the operation is done, and not merely cancelled, nothing else uses the `len` bytes from
    /// `address` on in a way that the kernel's reading (of what is written) or writing (of what is
    /// read) would disturb; whatever of them is mapped stays so and is the caller's to give.
    pub unsafe fn raw(address: *mut u8, len: usize) -> Self {
        Self(Bytes::Raw { address: address.expose_provenance(), len })
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Bytes::Owned(bytes) => bytes.len(),
            Bytes::Raw { len, .. } => *len,
        }
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The vector that it was made of; empty for memory by address.
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Bytes::Owned(bytes) => bytes,
            Bytes::Raw { .. } => Vec::new(),
        }
    }

    pub(super) fn is_owned(&self) -> bool {
        matches!(self.0, Bytes::Owned(_))
    }

    /// Where the bytes from `from` on are, and how many one transfer may have of them.
    pub(super) fn rest(&mut self, from: usize) -> (*mut u8, u32) {
        let len = self.len().saturating_sub(from).min(TRANSFER_MAX_BYTES);
        let start = match &mut self.0 {
            Bytes::Owned(bytes) => bytes.as_mut_ptr(),
            Bytes::Raw { address, .. } => std::ptr::with_exposed_provenance_mut(*address),
        };
        (start.wrapping_add(from), len as u32)
    }
}

impl From<Vec<u8>> for Memory {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Bytes::Owned(bytes))
    }
}

/// Several runs of bytes that are one transfer, with the list of them in the kernel's form.
pub struct Vectored(Runs);

enum Runs {
    /// The list is made with the buffers, so that starting the operation allocates nothing.
    Owned { buffers: Vec<Vec<u8>>, list: Box<[libc::iovec]> },
    /// A list of the caller's own.
    Raw { address: usize, count: u32, len: Option<usize> },
}

// SAFETY: the addresses in `list` are of heap memory that `buffers` owns, tied to no thread.
unsafe impl Send for Vectored {}

impl Vectored {
    /// The buffers, one after the other.
    pub fn new(buffers: Vec<Vec<u8>>) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let list = vec![empty; buffers.len()].into_boxed_slice();
        Self(Runs::Owned { buffers, list })
    }

    /// A list of the caller's, by address, which the kernel checks (EFAULT). A short transfer is not
    /// gone on with.
    ///
    /// # Safety
    ///
    /// As [`Memory::raw`], for the list itself and for all that it names.
    pub unsafe fn raw(list: *const libc::iovec, count: u32) -> Self {
        Self(Runs::Raw { address: list.expose_provenance(), count, len: None })
    }

    /// Says how many bytes a list by address names in all. What is linked to its operation goes on when it
    /// has moved as many; without this, when it has moved any.
    #[must_use]
    pub fn with_len(mut self, len_bytes: usize) -> Self {
        if let Runs::Raw { len, .. } = &mut self.0 {
            *len = Some(len_bytes);
        }
        self
    }

    /// How many bytes it is to move, if that is known.
    pub(crate) fn asked(&self) -> Option<usize> {
        match &self.0 {
            Runs::Owned { .. } => Some(self.len()),
            Runs::Raw { len, .. } => *len,
        }
    }

    /// How many bytes the buffers hold; 0 for a list by address.
    pub fn len(&self) -> usize {
        match &self.0 {
            Runs::Owned { buffers, .. } => buffers.iter().map(Vec::len).sum(),
            Runs::Raw { .. } => 0,
        }
    }

    /// Whether the buffers hold no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffers; none for a list by address.
    pub fn into_buffers(self) -> Vec<Vec<u8>> {
        match self.0 {
            Runs::Owned { buffers, .. } => buffers,
            Runs::Raw { .. } => Vec::new(),
        }
    }

    /// Whether the buffers are its own, so that what is left after a part was moved can be told.
    pub(super) fn is_owned(&self) -> bool {
        matches!(self.0, Runs::Owned { .. })
    }

    /// The kernel's list of the bytes from `from` on, at most `most` of them.
    pub(super) fn rest(&mut self, from: usize, most: usize) -> (*const libc::iovec, u32) {
        let (buffers, list) = match &mut self.0 {
            Runs::Owned { buffers, list } => (buffers, list),
            Runs::Raw { address, count, .. } => {
                return (std::ptr::with_exposed_provenance(*address), *count);
            }
        };
        let (mut skip, mut left, mut count) = (from, most.min(TRANSFER_MAX_BYTES), 0);
        for buffer in buffers {
            let skipped = skip.min(buffer.len());
            skip -= skipped;
            let len = (buffer.len() - skipped).min(left);
            if len > 0 {
                left -= len;
                let start = buffer.as_mut_ptr().wrapping_add(skipped);
                list[count] = libc::iovec { iov_base: start.cast(), iov_len: len };
                count += 1;
            }
        }
        (list.as_ptr(), count as u32)
    }
}

impl std::fmt::Debug for Vectored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vectored").field("len_bytes", &self.len()).finish_non_exhaustive()
    }
}

/// The status of a file of which nothing is known.
pub(super) fn no_status() -> libc::statx {
    // SAFETY: a structure of numbers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_goes_on_in_the_middle_of_a_buffer() {
        let mut vectored = Vectored::new(vec![vec![1; 3], vec![], vec![2; 5], vec![3; 2]]);
        fn list(vectored: &mut Vectored, from: usize, most: usize) -> Vec<libc::iovec> {
            let (_, count) = vectored.rest(from, most);
            let Runs::Owned { list, .. } = &vectored.0 else { panic!("not of its own") };
            list[..count as usize].to_vec()
        }
        let lens = |vectored: &mut Vectored, from, most| {
            list(vectored, from, most).iter().map(|vec| vec.iov_len).collect::<Vec<_>>()
        };
        assert_eq!(lens(&mut vectored, 0, usize::MAX), [3, 5, 2]);
        assert_eq!(lens(&mut vectored, 4, usize::MAX), [4, 2]);
        assert_eq!(lens(&mut vectored, 3, 5), [5]);
        assert_eq!(lens(&mut vectored, 10, usize::MAX), [0; 0]);
        let base = list(&mut vectored, 4, usize::MAX)[0].iov_base.cast::<u8>();
        assert_eq!(base, vectored.into_buffers()[2].as_mut_ptr().wrapping_add(1));
    }
}
