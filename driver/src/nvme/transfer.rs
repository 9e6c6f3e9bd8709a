//! Memory for the data of one command of the control paths: a run of frames and its PRP entries.

use std::sync::atomic::Ordering;

use crate::dma::{DmaPool, DmaRegion, FRAME_SIZE};

use super::prp::TRANSFER_MAX_BYTES;

/// Frames of a pool that a command's data goes through, contiguous.
#[derive(Debug)]
pub(super) struct Transfer {
    data: DmaRegion,
    /// The page of the PRP list, for more than two pages of data.
    list: Option<DmaRegion>,
    len_bytes: usize,
}

impl Transfer {
    /// Zeroed memory for `len_bytes`, at least 1 and what one command of this driver carries at most, which
    /// one page of a PRP list describes; `None` when the pool has no such run free.
    pub(super) fn new(pool: &DmaPool, len_bytes: usize) -> Option<Self> {
        assert!(len_bytes <= TRANSFER_MAX_BYTES as usize, "{len_bytes} bytes in one command");
        let frames = len_bytes.div_ceil(FRAME_SIZE).max(1);
        let data = pool.take_region(frames)?;
        let list = if frames > 2 { Some(pool.take_region(1)?) } else { None };
        if let Some(list) = &list {
            for (index, entry) in list.words().iter().enumerate().take(frames - 1) {
                let page = data.iova().0 + ((index + 1) * FRAME_SIZE) as u64;
                // Relaxed: ordered before the device's read of the list by the doorbell's write.
                entry.store(page.to_le(), Ordering::Relaxed);
            }
        }
        Some(Self { data, list, len_bytes })
    }

    /// How many frames a transfer of `len_bytes` takes.
    pub(super) const fn frames_for(len_bytes: usize) -> usize {
        let frames = len_bytes.div_ceil(FRAME_SIZE);
        if frames > 2 { frames + 1 } else { frames }
    }

    /// PRP1 and PRP2 (Base 2.0c §4.1.1).
    pub(super) fn prps(&self) -> (u64, u64) {
        let prp1 = self.iova();
        let prp2 = match (&self.list, self.len_bytes > FRAME_SIZE) {
            (Some(list), _) => list.iova().0,
            (None, true) => prp1 + FRAME_SIZE as u64,
            (None, false) => 0,
        };
        (prp1, prp2)
    }

    /// Where the device finds the data.
    pub(super) fn iova(&self) -> u64 {
        self.data.iova().0
    }

    /// Puts what the device is to read.
    pub(super) fn fill(&self, bytes: &[u8]) {
        for (chunk, word) in bytes.chunks(8).zip(self.data.words()) {
            let mut own = [0; 8];
            own[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(own), Ordering::Relaxed);
        }
    }

    /// Takes what the device has written: copied out, so that it cannot change any more.
    pub(super) fn copy_out(&self, bytes: &mut [u8]) {
        for (chunk, word) in bytes.chunks_mut(8).zip(self.data.words()) {
            let own = word.load(Ordering::Relaxed).to_ne_bytes();
            chunk.copy_from_slice(&own[..chunk.len()]);
        }
    }

    /// Gives the memory up for ever: the device may still use it.
    pub(super) fn leak(&mut self) {
        self.data.leak();
        if let Some(list) = &mut self.list {
            list.leak();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::prp::walk;
    use super::*;
    use crate::dma::PoolOptions;

    /// The oracle is the walk of the controller model, from the specification's text.
    #[test]
    fn the_device_finds_every_byte_of_every_length() {
        let pool = DmaPool::new(PoolOptions::frames(600)).unwrap();
        for len in [1, 7, 8, 4095, 4096, 4097, 8192, 8193, 12288, 1 << 20] {
            let transfer = Transfer::new(&pool, len).unwrap();
            assert_eq!(600 - pool.free_frames(), Transfer::frames_for(len), "{len}");
            let sent: Vec<u8> = (0..len).map(|at| (at * 31 + at / 4096) as u8).collect();
            transfer.fill(&sent);
            let (prp1, prp2) = transfer.prps();
            let pieces = walk(&pool, prp1, prp2, len).unwrap();
            let start = pieces[0].0;
            let mut next = start;
            for (iova, piece) in pieces {
                assert_eq!(iova, next, "{len}: contiguous");
                next += piece as u64;
            }
            assert_eq!(next - start, len as u64);
            let mut back = vec![0; len];
            transfer.copy_out(&mut back);
            assert!(back == sent, "{len}");
            drop(transfer);
            assert_eq!(pool.free_frames(), 600);
        }
    }
}
