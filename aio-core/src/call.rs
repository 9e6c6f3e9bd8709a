//! Synchronous calls: the asynchronous command with a wait added at the end.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use uaio_driver::{IoError, IoErrorKind};

use crate::buffers::Buffers;
use crate::context::Context;
use crate::event::Event;
use crate::host::{HostOp, HostRequest};
use crate::hosted::Host;
use crate::iocb::{BUFFERS_MAX, Iocb};
use crate::reactor::Shared;
use crate::refusal::{Refusal, Refused};
use crate::volume::Handle;

/// The longest memory that is kept for the next call, in bytes.
const KEPT_MAX: usize = 1 << 20;

/// Why a synchronous call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The command was not taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was, and failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl CallError {
    /// The positive errno that says this to a program.
    pub fn errno(self) -> i32 {
        match self {
            Self::Refused(reason) => reason.errno(),
            Self::Io(error) => error.errno(),
        }
    }
}

impl From<CallError> for std::io::Error {
    fn from(error: CallError) -> Self {
        Self::from_raw_os_error(error.errno())
    }
}

/// Each blocks until it is done, and no longer than the device's own deadlines. The memory is borrowed and never
/// reaches the device or the reactor: what is cached is copied straight to it, anything else goes through
/// memory of ours.
///
/// # Timeouts
///
/// A wait may time out; a borrow may not. The forms with a timeout cancel the command past it and return when it is
/// detached from the caller's memory and has its event, [`TimedOut`](IoErrorKind::TimedOut) if the cancel came in
/// time, and else how it went. A read, and a write that waits in the cache, is detached at once, also when
/// the device is stuck: its late answer finds frames of ours. A direct write that the device is at is waited for
/// until the device has done it or let go of it, so that no write lands after its call has returned.
impl Handle {
    /// Reads as many bytes as `out` is long from byte `offset` on, fewer at the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a read.
    pub fn pread(&self, out: &mut [u8], offset: u64) -> Result<usize, CallError> {
        self.read(&mut [IoSliceMut::new(out)], offset, None)
    }

    /// As [`pread`](Handle::pread), cancelled when `timeout` is over; see [timeouts](Handle#timeouts).
    ///
    /// # Errors
    ///
    /// As [`pread`](Handle::pread).
    pub fn pread_within(
        &self,
        out: &mut [u8],
        offset: u64,
        timeout: Duration,
    ) -> Result<usize, CallError> {
        self.read(&mut [IoSliceMut::new(out)], offset, Some(timeout))
    }

    /// Fills `out`, one after the other, from byte `offset` on, up to the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a read.
    pub fn preadv(&self, out: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize, CallError> {
        self.read(out, offset, None)
    }

    /// As [`preadv`](Handle::preadv), cancelled when `timeout` is over; see [timeouts](Handle#timeouts).
    ///
    /// # Errors
    ///
    /// As [`preadv`](Handle::preadv).
    pub fn preadv_within(
        &self,
        out: &mut [IoSliceMut<'_>],
        offset: u64,
        timeout: Duration,
    ) -> Result<usize, CallError> {
        self.read(out, offset, Some(timeout))
    }

    /// Writes `data` from byte `offset` on, less at the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a write.
    pub fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize, CallError> {
        self.write(&[IoSlice::new(data)], offset, None)
    }

    /// As [`pwrite`](Handle::pwrite), cancelled when `timeout` is over; see [timeouts](Handle#timeouts).
    ///
    /// # Errors
    ///
    /// As [`pwrite`](Handle::pwrite).
    pub fn pwrite_within(
        &self,
        data: &[u8],
        offset: u64,
        timeout: Duration,
    ) -> Result<usize, CallError> {
        self.write(&[IoSlice::new(data)], offset, Some(timeout))
    }

    /// Writes `data`, one after the other, from byte `offset` on, up to the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a write.
    pub fn pwritev(&self, data: &[IoSlice<'_>], offset: u64) -> Result<usize, CallError> {
        self.write(data, offset, None)
    }

    /// As [`pwritev`](Handle::pwritev), cancelled when `timeout` is over; see [timeouts](Handle#timeouts).
    ///
    /// # Errors
    ///
    /// As [`pwritev`](Handle::pwritev).
    pub fn pwritev_within(
        &self,
        data: &[IoSlice<'_>],
        offset: u64,
        timeout: Duration,
    ) -> Result<usize, CallError> {
        self.write(data, offset, Some(timeout))
    }

    /// Makes stable every write on the volume that was finished before; see [`Iocb::fsync`].
    ///
    /// # Errors
    ///
    /// When any of it could not be made stable, or a writeback had failed since this handle was
    /// last told.
    pub fn fsync(&self) -> Result<(), CallError> {
        self.call(Iocb::fsync(self)).map(|_| ())
    }

    /// As [`fsync`](Handle::fsync).
    ///
    /// # Errors
    ///
    /// As [`fsync`](Handle::fsync).
    pub fn fdatasync(&self) -> Result<(), CallError> {
        self.call(Iocb::fdatasync(self)).map(|_| ())
    }

    /// Makes stable every write of a range that was finished before; see [`Iocb::sync_range`].
    ///
    /// # Errors
    ///
    /// As [`fsync`](Handle::fsync), of the range.
    pub fn sync_range(&self, offset: u64, len_bytes: u64) -> Result<(), CallError> {
        self.call(Iocb::sync_range(self, offset, len_bytes)).map(|_| ())
    }

    /// Brings a range into the cache and says how long it was as far as it was looked at; see
    /// [`Iocb::readahead`].
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a read.
    pub fn readahead(&self, offset: u64, len_bytes: u64) -> Result<usize, CallError> {
        self.call(Iocb::readahead(self, offset, len_bytes))
    }

    /// Says that a range is not needed any more; see [`Iocb::discard`].
    ///
    /// # Errors
    ///
    /// As [`Context::submit`], and what the device says.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> Result<usize, CallError> {
        self.call(Iocb::discard(self, offset, len_bytes))
    }

    /// Makes a range zeroes; see [`Iocb::write_zeroes`].
    ///
    /// # Errors
    ///
    /// As [`Context::submit`], and what the device says.
    pub fn write_zeroes(&self, offset: u64, len_bytes: u64) -> Result<usize, CallError> {
        self.call(Iocb::write_zeroes(self, offset, len_bytes))
    }

    fn call(&self, iocb: Iocb) -> Result<usize, CallError> {
        call(self.shared(), iocb, None).0
    }

    fn read(
        &self,
        out: &mut [IoSliceMut<'_>],
        offset: u64,
        timeout: Option<Duration>,
    ) -> Result<usize, CallError> {
        let len = len_of(out.iter().map(|piece| piece.len()))?;
        let size = self.volume().size_bytes();
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= size);
        if inside && !self.is_direct() && self.try_hit(out, offset) {
            return Ok(len);
        }
        let mut bytes = self.take_memory();
        bytes.resize(len, 0);
        let (result, buffers) = call(self.shared(), Iocb::pread(self, offset, bytes), timeout);
        let bytes = buffers.into_bytes();
        if let Ok(len) = result {
            let mut rest = &bytes[..len];
            for piece in out {
                let (now, later) = rest.split_at(piece.len().min(rest.len()));
                piece[..now.len()].copy_from_slice(now);
                rest = later;
            }
        }
        self.keep_memory(bytes);
        result
    }

    /// Does a read that lies inside and is all cached; says whether it did.
    fn try_hit(&self, out: &mut [IoSliceMut<'_>], offset: u64) -> bool {
        let mut at = offset;
        out.iter_mut().all(|piece| {
            let hit = self.volume().cache().try_read(at, piece);
            at += piece.len() as u64;
            hit
        })
    }

    fn write(
        &self,
        data: &[IoSlice<'_>],
        offset: u64,
        timeout: Option<Duration>,
    ) -> Result<usize, CallError> {
        let len = len_of(data.iter().map(|piece| piece.len()))?;
        let mut bytes = self.take_memory();
        bytes.clear();
        bytes.reserve(len);
        data.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let (result, buffers) = call(self.shared(), Iocb::pwrite(self, offset, bytes), timeout);
        self.keep_memory(buffers.into_bytes());
        result
    }

    fn shared(&self) -> &Arc<Shared> {
        self.volume().station().shared()
    }

    fn take_memory(&self) -> Vec<u8> {
        self.shared().memory.pop().unwrap_or_default()
    }

    fn keep_memory(&self, bytes: Vec<u8>) {
        if bytes.capacity() <= KEPT_MAX {
            // When there is enough of it, this goes.
            let _ = self.shared().memory.push(bytes);
        }
    }
}

impl Host {
    /// Has an operation done and waits for it, as [`Iocb::host`] with a wait at the end: what the system call of
    /// its name is, with the operation back and all that it brought. Blocks for as long as that takes, for
    /// ever if need be, unless it is given a [timeout](HostRequest::with_timeout); then it returns when
    /// the kernel has let go of its memory.
    ///
    /// It is done with the credentials of the thread that attached the host, or made this name
    /// ([`as_caller`](Host::as_caller)); the working directory and umask are the calling thread's.
    ///
    /// # Errors
    ///
    /// Beside the operation: as [`Context::submit`], and what the system call says. A multishot poll has several
    /// answers and is [`Refusal::Invalid`].
    ///
    /// # Example
    ///
    /// ```
    /// # fn example(host: &uaio_core::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// use uaio_core::{host::Descriptor, ops};
    /// let (opened, op) = host.call(ops::open(c"/proc/self/comm", libc::O_RDONLY));
    /// opened?;
    /// let file = Descriptor::new(op.into_descriptor().ok_or("no descriptor")?);
    /// let (len, op) = host.call(ops::pread(&file, vec![0; 64], 0));
    /// let name = &op.into_bytes()[..len?];
    /// # Ok(())
    /// # }
    /// ```
    pub fn call(&self, request: impl Into<HostRequest>) -> (Result<usize, CallError>, HostOp) {
        let request = request.into();
        if matches!(request.op, HostOp::Poll { multishot: true, .. }) {
            return (Err(Refusal::Invalid.into()), request.op);
        }
        // As a context's slots do: one that waits for ever keeps none waiting that would end it.
        let shared = self.station().shared();
        shared.add_slots(1);
        self.station().grow(shared.slots());
        let (result, buffers) = call(shared, Iocb::host(self, request), None);
        shared.remove_slots(1);
        let Buffers::Host(reply) = buffers else {
            unreachable!("an operation of the host comes back with its event or refusal")
        };
        (result, reply.into_op())
    }
}

/// The length of all pieces.
fn len_of(mut pieces: impl ExactSizeIterator<Item = usize>) -> Result<usize, Refusal> {
    if pieces.len() > BUFFERS_MAX {
        return Err(Refusal::Invalid);
    }
    pieces.try_fold(0, usize::checked_add).ok_or(Refusal::Invalid)
}

/// Submit and wait. Past the timeout it is cancelled, and its event waited for all the same.
fn call(
    shared: &Arc<Shared>,
    mut iocb: Iocb,
    timeout: Option<Duration>,
) -> (Result<usize, CallError>, Buffers) {
    let now = || shared.clock().now();
    let until = timeout.map(|timeout| now().saturating_add(timeout));
    let context = Context::for_call(Arc::clone(shared));
    let answer = loop {
        if let Some(until) = until {
            iocb = iocb.with_timeout(until.saturating_sub(now()));
        }
        let Err(Refused { iocb: back, reason }) = context.submit(iocb) else {
            let Event { result, buffers, .. } = context.wait_event();
            break (result.map_err(CallError::Io), buffers);
        };
        if reason != Refusal::Busy {
            break (Err(reason.into()), back.into_buffers());
        }
        if until.is_some_and(|until| now() >= until) {
            break (Err(IoError::new(IoErrorKind::TimedOut).into()), back.into_buffers());
        }
        // The inbox is full: whoever waits in it is served first. Turning, if nobody does, makes
        // room.
        if !shared.try_turn() {
            shared.clock().sleep(Duration::from_micros(50));
        }
        iocb = back;
    };
    context.end_call();
    answer
}
