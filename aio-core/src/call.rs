//! Synchronous calls: the asynchronous command with a wait added at the end.

use std::sync::Arc;
use std::time::Duration;

use uaio_driver::IoError;

use crate::context::Context;
use crate::event::Event;
use crate::iocb::Iocb;
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

/// Each blocks until it is done, and no longer than the device's own deadlines. None takes a
/// timeout: the memory is borrowed, and a borrow may not time out. It never reaches the device or
/// the reactor: what is cached is copied straight to it, anything else goes through memory of ours.
impl Handle {
    /// Reads as many bytes as `out` is long from byte `offset` on, fewer at the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a read.
    pub fn pread(&self, out: &mut [u8], offset: u64) -> Result<usize, CallError> {
        let size = self.volume().size_bytes();
        let inside = offset.checked_add(out.len() as u64).is_some_and(|end| end <= size);
        if inside && !self.is_direct() && self.volume().cache().try_read(offset, out) {
            return Ok(out.len());
        }
        let mut bytes = self.take_memory();
        bytes.resize(out.len(), 0);
        let (result, bytes) = self.call(Iocb::pread(self, offset, bytes));
        if let Ok(len) = result {
            out[..len].copy_from_slice(&bytes[..len]);
        }
        self.keep_memory(bytes);
        result
    }

    /// Writes `data` from byte `offset` on, less at the end of the volume.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`] and the event of a write.
    pub fn pwrite(&self, data: &[u8], offset: u64) -> Result<usize, CallError> {
        let mut bytes = self.take_memory();
        bytes.clear();
        bytes.extend_from_slice(data);
        let (result, bytes) = self.call(Iocb::pwrite(self, offset, bytes));
        self.keep_memory(bytes);
        result
    }

    /// Makes stable every write on the volume that was finished before; see [`Iocb::fsync`].
    ///
    /// # Errors
    ///
    /// When any of it could not be made stable, or a writeback had failed since this handle was
    /// last told.
    pub fn fsync(&self) -> Result<(), CallError> {
        self.call(Iocb::fsync(self)).0.map(|_| ())
    }

    /// As [`fsync`](Handle::fsync).
    ///
    /// # Errors
    ///
    /// As [`fsync`](Handle::fsync).
    pub fn fdatasync(&self) -> Result<(), CallError> {
        self.call(Iocb::fdatasync(self)).0.map(|_| ())
    }

    /// Submit and wait.
    fn call(&self, mut iocb: Iocb) -> (Result<usize, CallError>, Vec<u8>) {
        let shared = self.volume().station().shared();
        let context = Context::for_call(Arc::clone(shared));
        let (result, buffers) = loop {
            let Err(Refused { iocb: back, reason }) = context.submit(iocb) else {
                let Event { result, buffers, .. } = context.wait_event();
                break (result.map_err(CallError::Io), buffers);
            };
            if reason != Refusal::Busy {
                break (Err(reason.into()), back.into_buffers());
            }
            // The inbox is full: whoever waits in it is served first. Turning, if nobody does, makes
            // room.
            if !shared.try_turn() {
                shared.clock().sleep(Duration::from_micros(50));
            }
            iocb = back;
        };
        context.end_call();
        (result, buffers.into_bytes())
    }

    fn take_memory(&self) -> Vec<u8> {
        self.volume().station().shared().memory.pop().unwrap_or_default()
    }

    fn keep_memory(&self, bytes: Vec<u8>) {
        if bytes.capacity() <= KEPT_MAX {
            // When there is enough of it, this goes.
            let _ = self.volume().station().shared().memory.push(bytes);
        }
    }
}
