//! Physical Region Pages: how a command says where its data is (Base 2.0c §4.1.1).
//!
//! A run of bytes in frames is exactly what PRP entries can express: the first may start inside its
//! page, the others are whole pages. One page is PRP1; two are PRP1 and PRP2; more are PRP1 and, in
//! PRP2, the address of a list of the rest. Each slot of a queue has one page for its list, made at
//! start: 512 entries, so a list never has to be chained for transfers up to 2 MiB.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaBuf, FRAME_SIZE};

/// The largest transfer this driver makes, in bytes, whatever the controller would take. Larger ones
/// gain nothing and hold the drive's other commands up; with a run that starts inside its first frame
/// it takes 256 entries of a list, so one page of a list is always enough.
pub(super) const TRANSFER_MAX_BYTES: u32 = 1 << 20;

const LIST_ENTRIES: usize = FRAME_SIZE / 8;
const _: () = assert!(TRANSFER_MAX_BYTES as usize / FRAME_SIZE <= LIST_ENTRIES);

/// PRP1 of a run that starts at `offset` in `frame` and stays in it, with the pool's first frame at
/// `pool_iova`.
#[inline]
pub(super) fn describe_one(frame: &DmaBuf, offset: u32, pool_iova: u64) -> u64 {
    iova(frame, pool_iova) + u64::from(offset)
}

/// PRP1 and PRP2 of a run that starts at `offset` in the first of `frames`, with the pool's first frame
/// at `pool_iova`. When a list is needed, `list` gives the slot's page and its IOVA, and it is written.
/// `frames` is at most one longer than the list.
pub(super) fn describe<'a>(
    frames: &[DmaBuf],
    offset: u32,
    pool_iova: u64,
    list: impl FnOnce() -> (&'a [AtomicU64], u64),
) -> (u64, u64) {
    let Some((first, rest)) = frames.split_first() else { return (0, 0) };
    let prp1 = describe_one(first, offset, pool_iova);
    match rest {
        [] => (prp1, 0),
        [second] => (prp1, iova(second, pool_iova)),
        rest => {
            let (list, list_iova) = list();
            for (entry, frame) in list.iter().zip(rest) {
                // Relaxed: ordered before the device's read of the list by the doorbell's write.
                entry.store(iova(frame, pool_iova).to_le(), Ordering::Relaxed);
            }
            (prp1, list_iova)
        }
    }
}

fn iova(frame: &DmaBuf, pool_iova: u64) -> u64 {
    pool_iova + u64::from(frame.index()) * FRAME_SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::super::model::prp::walk;
    use super::*;
    use crate::dma::{DmaPool, PoolOptions};
    use crate::request::SgList;

    /// The oracle is the walk that the controller model does, written from the specification's text:
    /// it must find, byte for byte, the run that the request means.
    #[test]
    fn a_device_that_walks_the_entries_finds_the_run() {
        let pool = DmaPool::new(PoolOptions::frames(300)).unwrap();
        let list = pool.take_region(1).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..400 {
            let offset = random.u32(..8) * 512;
            let blocks = match round {
                0 => 2048,
                _ if round % 3 == 0 => random.usize(1..=2048),
                _ => random.usize(1..=24),
            };
            let len_bytes = blocks * 512;
            let count = SgList::frames_for(offset, len_bytes);
            let mut frames: Vec<_> = (0..count).map(|_| pool.take().unwrap()).collect();
            random.shuffle(&mut frames);
            // What an earlier command left in the list must not matter.
            list.words().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            let page = || (list.words(), list.iova().0);
            let (prp1, prp2) = describe(&frames, offset, pool.iova().0, page);
            let pieces = walk(&pool, prp1, prp2, len_bytes).unwrap();
            let mut want = Vec::new();
            let data = SgList { frames, offset };
            data.each_piece(0, len_bytes, |frame, offset, range| {
                want.push((frame.iova().0 + offset as u64, range.len()));
            });
            assert_eq!(pieces, want, "offset {offset}, {len_bytes} bytes");
        }
    }
}
