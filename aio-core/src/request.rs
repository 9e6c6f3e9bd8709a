//! An iocb on its way: one lane operation after the other, then one event.

use std::sync::Arc;

use uaio_driver::{FRAME_SIZE, IoError, Token};
use uaio_page_cache::{Buffer, Lane, OpKind, Operation};

use crate::event::{Event, EventQueue};
use crate::iocb::{Buffers, Command, Iocb};

/// A command that has its event slot and is not finished.
///
/// A long transfer goes piece by piece, each at most [`Lane::LEN_MAX`] bytes and up to a page
/// boundary: one is in flight at a time, so what a command holds is bounded, and bytes are done in
/// order, so a short result says exactly which.
pub(crate) struct Request {
    iocb: Iocb,
    queue: Arc<EventQueue>,
    /// Bytes to move: the buffers' length, cut at the end of the volume.
    len: usize,
    done: usize,
    /// The piece that is in flight.
    piece: usize,
}

impl Request {
    pub(crate) fn new(iocb: Iocb, len: usize, queue: Arc<EventQueue>) -> Self {
        Self { iocb, queue, len, done: 0, piece: 0 }
    }

    pub(crate) fn into_iocb(self) -> Iocb {
        self.iocb
    }

    /// The operation for the next piece, with the memory of all of them.
    pub(crate) fn next_operation(&mut self, token: Token) -> Operation {
        let offset = self.iocb.offset + self.done as u64;
        let in_page = (offset % FRAME_SIZE as u64) as usize;
        self.piece = (self.len - self.done).min(Lane::LEN_MAX as usize - in_page);
        let buffer = match std::mem::take(&mut self.iocb.buffers) {
            Buffers::None => Buffer::None,
            Buffers::One(bytes) => Buffer::Part { bytes, from: self.done },
            Buffers::Many(pieces) => Buffer::Pieces { pieces, from: self.done },
        };
        let handle = &self.iocb.handle;
        let kind = match self.iocb.command {
            Command::Read => OpKind::Read { direct: handle.is_direct() },
            Command::Write => {
                OpKind::Write { stable: handle.is_stable(), direct: handle.is_direct() }
            }
            Command::Fsync | Command::Fdatasync => OpKind::Flush,
        };
        let opener = Arc::clone(handle.opener());
        Operation { token, kind, offset, len: self.piece as u64, buffer, handle: opener }
    }

    /// Takes in how a piece went, and its memory. Says whether another is to follow.
    pub(crate) fn piece_done(&mut self, result: Result<(), IoError>, buffer: Buffer) -> bool {
        self.iocb.buffers = match buffer {
            Buffer::Part { bytes, .. } => Buffers::One(bytes),
            Buffer::Pieces { pieces, .. } => Buffers::Many(pieces),
            Buffer::None | Buffer::Frames(_) | Buffer::Bytes(_) => Buffers::None,
        };
        if result.is_ok() {
            self.done += self.piece;
        }
        result.is_ok() && self.done < self.len
    }

    /// Answers it, with the result of its last piece.
    pub(crate) fn complete(self, result: Result<(), IoError>) {
        let Self { iocb: Iocb { user_data, buffers, .. }, queue, done, .. } = self;
        let result = match result {
            Err(error) if done == 0 => Err(error),
            _ => Ok(done),
        };
        queue.complete(Event { user_data, result, buffers });
    }
}
