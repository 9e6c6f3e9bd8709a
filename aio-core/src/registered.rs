//! Memory that the device itself reads and writes.

use std::sync::atomic::AtomicU64;

use uaio_driver::{DeviceError, DmaBuf, DmaPool, FRAME_SIZE};

/// Memory of a volume's device: frames of its pool, which is mapped for the IOMMU and registered with
/// io_uring once. What [`Iocb::pread_registered`](crate::Iocb::pread_registered) and
/// [`Iocb::pwrite_registered`](crate::Iocb::pwrite_registered) move goes between these very frames and
/// the device without a copy.
///
/// Made by [`Volume::registered_buffer`](crate::Volume::registered_buffer); dropping it gives the frames
/// back to the pool. It outlives the volume, and fits every volume on the same pool.
///
/// # Ownership
///
/// A command owns it until its event, also when it was cancelled: one that the device is at ends when
/// the device is done with the frames. So nobody looks at memory that a command is writing. The pool stays
/// mapped for the device, though, and the device is not trusted: the memory is copied in and out, or
/// looked at as atomics, and never given out as `&[u8]`.
///
/// A device that could not be stopped may keep frames for ever. Then the command has failed, its event
/// brings the buffer back, and every later command with it is refused as
/// [`Invalid`](crate::Refusal::Invalid); the frames never return to the pool.
#[derive(Debug)]
pub struct RegisteredBuffer {
    frames: Vec<DmaBuf>,
    len: usize,
}

impl RegisteredBuffer {
    /// Takes frames for `len_bytes` bytes, in whole blocks. Zeroed.
    pub(crate) fn new(
        pool: &DmaPool,
        block_size: u32,
        len_bytes: usize,
    ) -> Result<Self, DeviceError> {
        if len_bytes == 0 || !len_bytes.is_multiple_of(block_size as usize) {
            let what = format!("{len_bytes} bytes are not whole blocks of {block_size}, or none");
            return Err(DeviceError::Invalid(what));
        }
        let count = len_bytes.div_ceil(FRAME_SIZE);
        // Before anything is allocated for what the pool could never give.
        let mut frames = Vec::with_capacity(count.min(pool.frames()));
        while frames.len() < count {
            let Some(frame) = pool.take() else {
                let source = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
                return Err(DeviceError::NoMemory { bytes: len_bytes as u64, source });
            };
            // What was there is another's data.
            frame.zero(0, FRAME_SIZE);
            frames.push(frame);
        }
        Ok(Self { frames, len: len_bytes })
    }

    pub(crate) fn from_frames(frames: Vec<DmaBuf>, len: usize) -> Self {
        Self { frames, len }
    }

    pub(crate) fn into_frames(self) -> Vec<DmaBuf> {
        self.frames
    }

    /// Whether a device with this pool can be given it: the frames are of the pool, and no device has
    /// kept one.
    pub(crate) fn fits(&self, pool: &DmaPool) -> bool {
        self.frames.iter().all(|frame| pool.owns(frame) && !frame.is_shared())
    }

    /// Length in bytes: what a command moves.
    #[expect(clippy::len_without_is_empty, reason = "it always holds a block")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The most bytes that it can hold: its frames, whole.
    pub fn capacity(&self) -> usize {
        self.frames.len() * FRAME_SIZE
    }

    /// Makes it another length, of which a command moves all. What lies beyond stays as it is.
    ///
    /// # Panics
    ///
    /// When it is 0 or above the [capacity](Self::capacity).
    pub fn set_len(&mut self, len_bytes: usize) {
        assert!(
            (1..=self.capacity()).contains(&len_bytes),
            "{len_bytes} bytes of a buffer for {}",
            self.capacity()
        );
        self.len = len_bytes;
    }

    /// Copies `out.len()` bytes out, from byte `position` on.
    ///
    /// # Panics
    ///
    /// When the range is outside the buffer.
    pub fn copy_to_slice(&self, position: usize, out: &mut [u8]) {
        let mut rest = out;
        self.each_piece(position, rest.len(), |frame, offset, len| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(len);
            frame.read(offset, piece);
            rest = after;
        });
    }

    /// Copies `data` in, from byte `position` on.
    ///
    /// # Panics
    ///
    /// When the range is outside the buffer.
    pub fn copy_from_slice(&mut self, position: usize, data: &[u8]) {
        let mut rest = data;
        self.each_piece(position, rest.len(), |frame, offset, len| {
            let (piece, after) = rest.split_at(len);
            frame.write(offset, piece);
            rest = after;
        });
    }

    /// The memory from its first byte to its [capacity](Self::capacity), as words that may change at
    /// any time, without a copy. Storing into them is no undefined behaviour and no race; of frames
    /// that a device has kept it is of no use.
    pub fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.frames.iter().flat_map(|frame| frame.words())
    }

    fn each_piece(
        &self,
        position: usize,
        len: usize,
        mut visit: impl FnMut(&DmaBuf, usize, usize),
    ) {
        assert!(
            position <= self.len && len <= self.len - position,
            "{len} bytes at {position} of a buffer of {}",
            self.len
        );
        let (mut at, end) = (position, position + len);
        while at < end {
            let offset = at % FRAME_SIZE;
            let part = (FRAME_SIZE - offset).min(end - at);
            visit(&self.frames[at / FRAME_SIZE], offset, part);
            at += part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;
    use uaio_driver::PoolOptions;

    #[test]
    fn bytes_go_in_and_out_at_any_place_and_its_frames_go_back_to_the_pool() {
        let pool = DmaPool::new(PoolOptions::frames(3)).unwrap();
        let mut buffer = RegisteredBuffer::new(&pool, 512, 9 * 1024).unwrap();
        assert_eq!((buffer.len(), buffer.capacity(), pool.free_frames()), (9216, 12_288, 0));
        let mut oracle = vec![0u8; 9216];
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let start = random.usize(..=9216);
            let end = random.usize(start..=9216);
            let news: Vec<u8> = (start..end).map(|_| random.u8(..)).collect();
            buffer.copy_from_slice(start, &news);
            oracle[start..end].copy_from_slice(&news);
            let start = random.usize(..=9216);
            let mut seen = vec![0; random.usize(..=9216 - start)];
            buffer.copy_to_slice(start, &mut seen);
            assert_eq!(seen, oracle[start..start + seen.len()]);
        }
        let first = buffer.words().next().unwrap().load(Ordering::Relaxed);
        assert_eq!(first.to_ne_bytes(), oracle[..8]);
        drop(buffer);
        assert_eq!(pool.free_frames(), 3);
    }

    #[test]
    fn memory_that_cannot_be_had_is_refused_and_nothing_is_kept() {
        let pool = DmaPool::new(PoolOptions::frames(3)).unwrap();
        for len in [0, 100, 513] {
            let refused = RegisteredBuffer::new(&pool, 512, len);
            assert!(matches!(refused, Err(DeviceError::Invalid(_))), "{len}");
        }
        for len in [4 * FRAME_SIZE, usize::MAX / 512 * 512] {
            let refused = RegisteredBuffer::new(&pool, 512, len);
            assert!(matches!(refused, Err(DeviceError::NoMemory { .. })), "{len}");
        }
        assert_eq!(pool.free_frames(), 3);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 511 of a buffer of 512")]
    fn bytes_past_its_length_are_not_reached() {
        let pool = DmaPool::new(PoolOptions::frames(1)).unwrap();
        RegisteredBuffer::new(&pool, 512, 512).unwrap().copy_from_slice(511, &[1, 2]);
    }
}
