//! The user's end of an operation: where data goes to or comes from.

use std::ops::Range;

use uaio_driver::{DmaBuf, FRAME_SIZE, SgList};

/// Memory that an operation owns until it is finished.
#[derive(Debug)]
pub enum Buffer {
    /// Nothing, for operations without data.
    None,
    /// Frames of the device's pool, as a [`uaio_driver::Request`] carries them.
    Frames(SgList),
    /// Ordinary memory.
    Bytes(Vec<u8>),
    /// Ordinary memory, from byte `from` on: a part of a longer transfer.
    Part {
        /// The memory.
        bytes: Vec<u8>,
        /// Where the operation's first byte lies in it.
        from: usize,
    },
    /// Pieces of ordinary memory as one run, from byte `from` of the run on.
    Pieces {
        /// The memory, in order.
        pieces: Vec<Vec<u8>>,
        /// Where the operation's first byte lies in the run.
        from: usize,
    },
    /// Frames of the device's pool that a direct operation hands to the device as they are, from byte
    /// `from` on: a multiple of the device's block size. They hold one run of bytes, and nobody else has
    /// a handle to them. What is cached, and what a cached operation moves, is copied.
    Registered {
        /// The memory, in order.
        frames: Vec<DmaBuf>,
        /// Where the operation's first byte lies in it.
        from: usize,
    },
}

impl Buffer {
    /// How many bytes it can hold at least.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Frames(list) => {
                (list.frames.len() * FRAME_SIZE).saturating_sub(list.offset as usize)
            }
            Self::Bytes(bytes) => bytes.len(),
            Self::Part { bytes, from } => bytes.len().saturating_sub(*from),
            Self::Pieces { pieces, from } => {
                pieces.iter().map(Vec::len).sum::<usize>().saturating_sub(*from)
            }
            Self::Registered { frames, from } => (frames.len() * FRAME_SIZE).saturating_sub(*from),
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
            Self::Part { bytes, from } => {
                let start = *from + position;
                frame.read(offset, &mut bytes[start..start + len]);
            }
            Self::Pieces { pieces, from } => {
                let mut runs = Runs::new(*from + position, len);
                for piece in pieces {
                    let (own, at) = runs.next(piece.len());
                    frame.read(offset + at, &mut piece[own]);
                }
            }
            Self::Registered { frames, from } => {
                each_piece(frames, *from + position, len, |own, at, range| {
                    own.copy_from(at, frame, offset + range.start, range.len());
                });
            }
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
            Self::Part { bytes, from } => {
                let start = from + position;
                frame.write(offset, &bytes[start..start + len]);
            }
            Self::Pieces { pieces, from } => {
                let mut runs = Runs::new(from + position, len);
                for piece in pieces {
                    let (own, at) = runs.next(piece.len());
                    frame.write(offset + at, &piece[own]);
                }
            }
            Self::Registered { frames, from } => {
                each_piece(frames, *from + position, len, |own, at, range| {
                    frame.copy_from(offset + range.start, own, at, range.len());
                });
            }
        }
    }

    /// Whether its frames go to the device themselves.
    pub(crate) fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Adds handles of the frames that hold the `len` bytes from `position` on to `frames`, which hold
    /// the bytes before them or none. Gives where in its frame the first of those bytes lies.
    ///
    /// # Panics
    ///
    /// When it is not registered, or shorter.
    pub(crate) fn lend(&self, position: usize, len: usize, frames: &mut Vec<DmaBuf>) -> u32 {
        let Self::Registered { frames: own, from } = self else {
            panic!("memory that is not registered has no frames to lend")
        };
        let (start, end) = (from + position, from + position + len);
        // Bytes that follow those before in the same frame bring no new one.
        let follows = !frames.is_empty() && !start.is_multiple_of(FRAME_SIZE);
        let first = start / FRAME_SIZE + usize::from(follows);
        frames.extend(own[first..end.div_ceil(FRAME_SIZE)].iter().map(DmaBuf::share));
        (start % FRAME_SIZE) as u32
    }
}

/// Calls `visit(frame, offset in frame, range in the piece)` for each part of a frame that the `len`
/// bytes from `start` on lie in.
fn each_piece(
    frames: &[DmaBuf],
    start: usize,
    len: usize,
    mut visit: impl FnMut(&DmaBuf, usize, Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let at = start + done;
        let offset = at % FRAME_SIZE;
        let part = (FRAME_SIZE - offset).min(len - done);
        visit(&frames[at / FRAME_SIZE], offset, done..done + part);
        done += part;
    }
}

/// Walks pieces, and says which part of each belongs to a run of `len` bytes, and where in the run.
struct Runs {
    skip: usize,
    left: usize,
    done: usize,
}

impl Runs {
    fn new(skip: usize, len: usize) -> Self {
        Self { skip, left: len, done: 0 }
    }

    fn next(&mut self, piece_len: usize) -> (Range<usize>, usize) {
        let start = self.skip.min(piece_len);
        let len = self.left.min(piece_len - start);
        let at = self.done;
        self.skip -= start;
        self.left -= len;
        self.done += len;
        (start..start + len, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uaio_driver::{DmaPool, PoolOptions};

    #[test]
    fn frames_that_begin_behind_their_end_hold_nothing() {
        let list = SgList { frames: Vec::new(), offset: 512 };
        assert!(Buffer::Frames(list).is_empty());
    }

    #[test]
    fn pieces_are_one_run_of_bytes() {
        let frame = DmaPool::new(PoolOptions::frames(1)).unwrap().take().unwrap();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..500 {
            let flat: Vec<u8> = (0..600).map(|_| random.u8(..)).collect();
            let mut pieces = Vec::new();
            let mut rest = &flat[..];
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(random.usize(..=rest.len().min(90)));
                pieces.push(piece.to_vec());
                rest = left;
            }
            let (from, position) = (random.usize(..200), random.usize(..200));
            let (len, offset) = (random.usize(..=200), random.usize(..3000));
            let mut buffer = Buffer::Pieces { pieces, from };
            assert_eq!(buffer.len(), 600 - from);
            buffer.store(position, &frame, offset, len);
            let mut seen = vec![0; len];
            frame.read(offset, &mut seen);
            assert_eq!(seen, flat[from + position..from + position + len]);
            let news: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
            frame.write(offset, &news);
            buffer.fill(position, &frame, offset, len);
            let Buffer::Pieces { pieces, .. } = buffer else { unreachable!() };
            let mut oracle = flat.clone();
            oracle[from + position..from + position + len].copy_from_slice(&news);
            assert_eq!(pieces.concat(), oracle);
        }
    }
}
