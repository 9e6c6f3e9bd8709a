//! Requests and completions: owned in, owned out.

use crate::dma::{DmaBuf, FRAME_SIZE};
use crate::error::IoResult;
use crate::slots::Token;

/// A logical block address, in units of the device's block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lba(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill the frames from the blocks.
    Read,
    /// Write the frames to the blocks. With `fua` (Force Unit Access) the completion says that the
    /// blocks are stable; without, they may be in the device's volatile cache.
    Write {
        /// Complete only when stable. Allowed on every device: one without FUA emulates it.
        fua: bool,
    },
    /// Make stable every write that had *completed* before this flush was submitted. Carries no
    /// blocks and no frames.
    Flush,
    /// The blocks are not needed any more; what they read as afterwards is undefined until written
    /// (`BLKDISCARD`, NVMe Deallocate). Carries no frames.
    Discard,
    /// The blocks read as zeroes afterwards (`BLKZEROOUT`). Carries no frames.
    WriteZeroes {
        /// The device may free the blocks instead of writing them, if they still read as zeroes.
        may_unmap: bool,
    },
}

impl Op {
    /// Whether the operation moves data in frames.
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. })
    }

    /// Whether the operation changes the medium.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard | Self::WriteZeroes { .. })
    }
}

/// The memory of a request: frames that hold one contiguous run of bytes.
///
/// The run starts at `offset` in the first frame, fills every inner frame whole, and ends where the
/// request's length says: the form an NVMe PRP list can express, so every device takes it.
///
/// # Ownership
///
/// From `submit` to the completion the request owns the frames. A read's frames may be written by
/// the device at any moment in between, so nobody else looks at them; a write's may be shared with
/// readers ([`DmaBuf::share`]), but nobody writes them.
#[derive(Debug, Default)]
pub struct SgList {
    /// The frames, in order. The vector comes back with its capacity, for the next request: the
    /// data path does not allocate.
    pub frames: Vec<DmaBuf>,
    /// Where the run starts in the first frame, in bytes: a multiple of the device's block size,
    /// below [`FRAME_SIZE`]. Coarser than NVMe asks (a PRP entry may start at any dword, Base 2.0c
    /// §4.1.1), because O_DIRECT asks for it.
    pub offset: u32,
}

impl SgList {
    /// A run that starts at the first byte of the first frame.
    pub fn new(frames: Vec<DmaBuf>) -> Self {
        Self { frames, offset: 0 }
    }

    /// A list without frames and without allocation.
    pub const fn empty() -> Self {
        Self { frames: Vec::new(), offset: 0 }
    }

    /// How many frames a run of `len_bytes` needs when it starts at `offset`.
    pub const fn frames_for(offset: u32, len_bytes: usize) -> usize {
        (offset as usize + len_bytes).div_ceil(FRAME_SIZE)
    }

    /// Copies `out.len()` bytes out, from `position` in the run on.
    ///
    /// # Panics
    ///
    /// When the range is outside the frames.
    pub fn copy_to_slice(&self, position: usize, out: &mut [u8]) {
        self.each_piece(position, out.len(), |frame, offset, range| {
            frame.read(offset, &mut out[range]);
        });
    }

    /// Copies `data` in, from `position` in the run on.
    ///
    /// # Panics
    ///
    /// When the range is outside the frames.
    pub fn copy_from_slice(&self, position: usize, data: &[u8]) {
        self.each_piece(position, data.len(), |frame, offset, range| {
            frame.write(offset, &data[range]);
        });
    }

    /// Calls `visit(frame, offset in frame, range in the piece)` for each part of a frame that the
    /// `len_bytes` from `position` on lie in.
    ///
    /// # Panics
    ///
    /// When the range is outside the frames.
    pub fn each_piece(
        &self,
        position: usize,
        len_bytes: usize,
        mut visit: impl FnMut(&DmaBuf, usize, std::ops::Range<usize>),
    ) {
        let mut at = self.offset as usize + position;
        let mut done = 0;
        while done < len_bytes {
            let offset = at % FRAME_SIZE;
            let len = (FRAME_SIZE - offset).min(len_bytes - done);
            visit(&self.frames[at / FRAME_SIZE], offset, done..done + len);
            done += len;
            at += len;
        }
    }
}

/// One command to a device, with all it needs.
#[derive(Debug)]
#[must_use = "a request that is dropped instead of submitted is never answered"]
pub struct Request {
    /// The submitter's name for it; comes back in the completion as it is.
    pub token: Token,
    /// What to do.
    pub op: Op,
    /// The first block; ignored by [`Op::Flush`].
    pub lba: Lba,
    /// How many blocks, at least 1; 0 for [`Op::Flush`].
    pub blocks: u32,
    /// The memory, for [`Op::Read`] and [`Op::Write`].
    pub data: SgList,
}

impl Request {
    /// A read of `blocks` blocks from `lba` on, into `data`.
    pub fn read(token: Token, lba: Lba, blocks: u32, data: SgList) -> Self {
        Self { token, op: Op::Read, lba, blocks, data }
    }

    /// A write of `blocks` blocks from `lba` on, out of `data`.
    pub fn write(token: Token, lba: Lba, blocks: u32, data: SgList, fua: bool) -> Self {
        Self { token, op: Op::Write { fua }, lba, blocks, data }
    }

    /// A flush of the device's volatile cache.
    pub fn flush(token: Token) -> Self {
        Self { token, op: Op::Flush, lba: Lba(0), blocks: 0, data: SgList::empty() }
    }

    /// An operation on blocks that carries no data.
    pub fn on_blocks(token: Token, op: Op, lba: Lba, blocks: u32) -> Self {
        Self { token, op, lba, blocks, data: SgList::empty() }
    }
}

/// The answer to one request: exactly one for each that `submit` took.
#[derive(Debug)]
#[must_use = "a completion carries the frames of its request"]
pub struct Completion {
    /// The request's token.
    pub token: Token,
    /// Whether it was done. A multi-block request that fails may have been done in part.
    pub result: IoResult,
    /// The request's memory, given back.
    pub data: SgList,
}

/// Why `submit` did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue holds as many requests as it can: poll, then submit again.
    #[error("the queue is full")]
    Full,
    /// Blocks outside the device.
    #[error("blocks outside the device")]
    OutOfRange,
    /// More blocks than one command may carry, or none.
    #[error("a request of this many blocks is not possible")]
    BadLength,
    /// The frames do not hold what the blocks need, start at a bad offset, or are of another pool.
    #[error("the frames do not fit the blocks")]
    BadFrames,
    /// The device does not do this operation.
    #[error("the device does not support this operation")]
    Unsupported,
    /// The device may not be written.
    #[error("the device is read-only")]
    ReadOnly,
    /// The queue has failed; nothing more can be submitted.
    #[error("the queue has failed")]
    Failed,
}

/// A request that was not taken, whole, with the reason.
#[derive(Debug)]
#[must_use = "the request inside was not submitted and will not be answered"]
pub struct Refused {
    /// The request, untouched.
    pub request: Request,
    /// Why.
    pub reason: Refusal,
}
