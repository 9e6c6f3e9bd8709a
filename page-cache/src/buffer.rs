//! The user's end of an operation: where data goes to or comes from.

use uaio_driver::{DmaBuf, SgList};

/// Memory that an operation owns until it is finished.
#[derive(Debug)]
pub enum Buffer {
    /// Nothing, for operations without data.
    None,
    /// Frames of the device's pool, as a [`uaio_driver::Request`] carries them.
    Frames(SgList),
    /// Ordinary memory.
    Bytes(Vec<u8>),
}

impl Buffer {
    /// How many bytes it can hold at least.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Frames(list) => {
                list.frames.len() * uaio_driver::FRAME_SIZE - list.offset as usize
            }
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Whether it can hold nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `len` bytes of `frame` to `position` in the buffer.
    pub(crate) fn fill(&mut self, position: usize, frame: &DmaBuf, offset: usize, len: usize) {
        match self {
            Self::None => {}
            Self::Frames(list) => list.each_piece(position, len, |own, at, range| {
                own.copy_from(at, frame, offset + range.start, range.len());
            }),
            Self::Bytes(bytes) => frame.read(offset, &mut bytes[position..position + len]),
        }
    }

    /// Copies `len` bytes at `position` of the buffer into `frame`.
    pub(crate) fn store(&self, position: usize, frame: &DmaBuf, offset: usize, len: usize) {
        match self {
            Self::None => {}
            Self::Frames(list) => list.each_piece(position, len, |own, at, range| {
                frame.copy_from(offset + range.start, own, at, range.len());
            }),
            Self::Bytes(bytes) => frame.write(offset, &bytes[position..position + len]),
        }
    }
}
