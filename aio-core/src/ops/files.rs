//! Reads, writes and syncs of any descriptor, and what files have beside.

use crate::host::{Between, Descriptor, HostOp, Memory, Position, Vectored};

/// read(2): where the descriptor is, as many bytes as `buffer` is long.
pub fn read(fd: &Descriptor, buffer: impl Into<Memory>) -> HostOp {
    HostOp::Read { fd: fd.clone(), memory: buffer.into(), at: Position::Current, flags: 0 }
}

/// pread(2): from byte `offset` on, whole unless the file ends.
pub fn pread(fd: &Descriptor, buffer: impl Into<Memory>, offset: u64) -> HostOp {
    HostOp::Read { fd: fd.clone(), memory: buffer.into(), at: Position::At(offset), flags: 0 }
}

/// write(2): where the descriptor is.
pub fn write(fd: &Descriptor, buffer: impl Into<Memory>) -> HostOp {
    HostOp::Write { fd: fd.clone(), memory: buffer.into(), at: Position::Current, flags: 0 }
}

/// pwrite(2): from byte `offset` on, whole.
pub fn pwrite(fd: &Descriptor, buffer: impl Into<Memory>, offset: u64) -> HostOp {
    HostOp::Write { fd: fd.clone(), memory: buffer.into(), at: Position::At(offset), flags: 0 }
}

/// The same, stable when it is done (`RWF_DSYNC`).
pub fn pwrite_stable(fd: &Descriptor, buffer: impl Into<Memory>, offset: u64) -> HostOp {
    let (memory, at) = (buffer.into(), Position::At(offset));
    HostOp::Write { fd: fd.clone(), memory, at, flags: libc::RWF_DSYNC }
}

/// readv(2).
pub fn readv(fd: &Descriptor, buffers: Vec<Vec<u8>>) -> HostOp {
    let memory = Vectored::new(buffers);
    HostOp::ReadV { fd: fd.clone(), memory, at: Position::Current, flags: 0 }
}

/// preadv(2).
pub fn preadv(fd: &Descriptor, buffers: Vec<Vec<u8>>, offset: u64) -> HostOp {
    let memory = Vectored::new(buffers);
    HostOp::ReadV { fd: fd.clone(), memory, at: Position::At(offset), flags: 0 }
}

/// writev(2).
pub fn writev(fd: &Descriptor, buffers: Vec<Vec<u8>>) -> HostOp {
    let memory = Vectored::new(buffers);
    HostOp::WriteV { fd: fd.clone(), memory, at: Position::Current, flags: 0 }
}

/// pwritev(2).
pub fn pwritev(fd: &Descriptor, buffers: Vec<Vec<u8>>, offset: u64) -> HostOp {
    let memory = Vectored::new(buffers);
    HostOp::WriteV { fd: fd.clone(), memory, at: Position::At(offset), flags: 0 }
}

/// fsync(2).
pub fn fsync(fd: &Descriptor) -> HostOp {
    HostOp::Fsync { fd: fd.clone(), data_only: false }
}

/// fdatasync(2).
pub fn fdatasync(fd: &Descriptor) -> HostOp {
    HostOp::Fsync { fd: fd.clone(), data_only: true }
}

/// sync_file_range(2), which makes nothing stable; see [`HostOp::SyncFileRange`].
pub fn sync_file_range(fd: &Descriptor, offset: u64, len: u32, flags: u32) -> HostOp {
    HostOp::SyncFileRange { fd: fd.clone(), offset, len, flags }
}

/// fallocate(2): space for `len` bytes from `offset` on, or what `mode` says.
pub fn fallocate(fd: &Descriptor, mode: i32, offset: u64, len: u64) -> HostOp {
    HostOp::Fallocate { fd: fd.clone(), mode, offset, len }
}

/// ftruncate(2): a length of `len` bytes.
pub fn ftruncate(fd: &Descriptor, len: u64) -> HostOp {
    HostOp::Ftruncate { fd: fd.clone(), len }
}

/// posix_fadvise(2).
pub fn fadvise(fd: &Descriptor, offset: u64, len: u32, advice: i32) -> HostOp {
    HostOp::Fadvise { fd: fd.clone(), offset, len, advice }
}

/// readahead(2).
pub fn readahead(fd: &Descriptor, offset: u64, len: u32) -> HostOp {
    HostOp::Readahead { fd: fd.clone(), offset, len }
}

/// splice(2) of at most `len` bytes; an offset of `None` is for a pipe, or where the descriptor is.
pub fn splice(
    from: (&Descriptor, Option<u64>),
    to: (&Descriptor, Option<u64>),
    len: usize,
) -> HostOp {
    HostOp::Splice(between(from, to, len))
}

/// copy_file_range(2) of at most `len` bytes.
pub fn copy_file_range(
    from: (&Descriptor, Option<u64>),
    to: (&Descriptor, Option<u64>),
    len: usize,
) -> HostOp {
    HostOp::Copy(between(from, to, len))
}

fn between(
    (from, from_offset): (&Descriptor, Option<u64>),
    (to, to_offset): (&Descriptor, Option<u64>),
    len: usize,
) -> Box<Between> {
    let (from, to) = (from.clone(), to.clone());
    Box::new(Between { from, from_offset, to, to_offset, len, flags: 0 })
}
