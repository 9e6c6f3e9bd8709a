//! Scatter/gather lists: the other way for a command to say where its data is (Base 2.0c §4.1.2).
//!
//! A PRP list has an entry a page; a descriptor here has an address and a length, so frames that follow
//! one another share one. 128 KiB out of frames in runs of 32 KiB are four descriptors of 16 bytes, or 31
//! entries of 8, and out of one run they are a descriptor in the command itself, and the controller
//! fetches nothing. A controller that takes them is given whatever has fewer bytes to fetch; what fits
//! into PRP1 and PRP2 stays there.
//!
//! The list lies in the page of the slot, as a PRP list does. One page is enough for any list that is
//! the shorter one: it has at most half as many descriptors as there are frames.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma::{DmaBuf, FRAME_SIZE};

use super::prp;

/// SGL Descriptor Type 0h, subtype 0h (address), in the top byte of the second word: Data Block.
const DATA_BLOCK: u64 = 0x00 << 56;
/// Type 3h, subtype 0h: Last Segment, whose descriptors are all data blocks.
const LAST_SEGMENT: u64 = 0x30 << 56;
/// Dword 0 of a command: PSDT 01b, the data pointer is a descriptor, the metadata pointer an address.
pub(super) const PSDT_SGL: u64 = 0b01 << 14;

const DESCRIPTOR_BYTES: usize = 16;

const _: () = assert!(
    (prp::TRANSFER_MAX_BYTES as usize / FRAME_SIZE).div_ceil(2) * DESCRIPTOR_BYTES <= FRAME_SIZE,
    "the longest list fits into a page"
);

/// Whether a controller with this SGLS takes data at any address that a request may have: at any byte
/// (01b), or at any dword (10b).
pub(super) const fn is_supported(sgls: u32) -> bool {
    matches!(sgls & 0b11, 0b01 | 0b10)
}

/// The descriptor, as the two words of the data pointer, of a run of `len_bytes` that starts at `offset`
/// in the first of `frames`; `None` when PRP entries say it as short. When a list is needed, `list`
/// gives the slot's page and its IOVA, and it is written.
pub(super) fn describe<'a>(
    frames: &[DmaBuf],
    offset: u32,
    len_bytes: u32,
    pool_iova: u64,
    list: impl FnOnce() -> (&'a [AtomicU64], u64),
) -> Option<(u64, u64)> {
    let runs = 1 + frames.windows(2).filter(|pair| !follows(&pair[0], &pair[1])).count();
    // Twice the bytes an entry, and PRP1 stands for the first frame.
    if frames.len() <= 2 || runs * 2 > frames.len() - 1 {
        return None;
    }
    let start = prp::describe_one(frames.first()?, offset, pool_iova);
    if runs == 1 {
        return Some((start, DATA_BLOCK | u64::from(len_bytes)));
    }
    let (list, list_iova) = list();
    let (mut address, mut left) = (start, u64::from(len_bytes));
    let mut rest = frames;
    let mut descriptors = 0;
    for descriptor in list.chunks_exact(2).take(runs) {
        let frames = 1 + rest.windows(2).take_while(|pair| follows(&pair[0], &pair[1])).count();
        let within = address % FRAME_SIZE as u64;
        let len = (frames as u64 * FRAME_SIZE as u64 - within).min(left);
        // Relaxed: ordered before the device's read of the list by the doorbell's write.
        descriptor[0].store(address.to_le(), Ordering::Relaxed);
        descriptor[1].store((DATA_BLOCK | len).to_le(), Ordering::Relaxed);
        descriptors += 1;
        left -= len;
        rest = &rest[frames..];
        let Some(next) = rest.first() else { break };
        address = prp::describe_one(next, 0, pool_iova);
    }
    Some((list_iova, LAST_SEGMENT | (descriptors * DESCRIPTOR_BYTES as u64)))
}

/// Whether the second frame lies right behind the first.
fn follows(first: &DmaBuf, second: &DmaBuf) -> bool {
    second.index().checked_sub(1) == Some(first.index())
}

#[cfg(test)]
mod tests {
    use super::super::model::sgl::walk;
    use super::*;
    use crate::dma::{DmaPool, PoolOptions};
    use crate::request::SgList;

    /// The oracle is the walk that the controller model does, written from the specification's text: it
    /// must find, byte for byte, the run that the request means; and the list is the shorter one.
    #[test]
    fn a_device_that_walks_the_descriptors_finds_the_run() {
        let pool = DmaPool::new(PoolOptions::frames(600)).unwrap();
        let list = pool.take_region(1).unwrap();
        let mut all: Vec<_> = (0..500).map(|_| pool.take().unwrap()).collect();
        all.sort_by_key(DmaBuf::index);
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut inline, mut lists, mut none) = (0, 0, 0);
        for _ in 0..2000 {
            let offset = random.u32(..8) * 512;
            let longest = if random.bool() { 2048 } else { 100 };
            let blocks = random.usize(1..=longest);
            let len_bytes = blocks * 512;
            let count = SgList::frames_for(offset, len_bytes);
            // Runs of so many frames, each from anywhere.
            let longest = random.usize(1..40);
            let mut frames: Vec<DmaBuf> = Vec::new();
            while frames.len() < count {
                let run = random.usize(1..=longest).min(count - frames.len());
                let at = random.usize(..all.len() - run);
                frames.extend(all[at..at + run].iter().map(DmaBuf::share));
            }
            list.words().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            let page = || (list.words(), list.iova().0);
            let found = describe(&frames, offset, len_bytes as u32, pool.iova().0, page);
            let runs = 1 + frames.windows(2).filter(|it| !follows(&it[0], &it[1])).count();
            let Some((low, high)) = found else {
                assert!(frames.len() <= 2 || runs * 16 > (frames.len() - 1) * 8);
                none += 1;
                continue;
            };
            *if runs == 1 { &mut inline } else { &mut lists } += 1;
            let pieces = walk(&pool, low, high, len_bytes).unwrap();
            assert_eq!(pieces.len(), runs, "one descriptor a run");
            let bytes = |(start, len): (u64, usize)| start..start + len as u64;
            let found: Vec<u64> = pieces.into_iter().flat_map(bytes).step_by(512).collect();
            let mut want = Vec::new();
            SgList { frames, offset }.each_piece(0, len_bytes, |frame, offset, range| {
                want.extend(
                    (0..range.len()).step_by(512).map(|at| frame.iova().0 + (offset + at) as u64),
                );
            });
            assert_eq!(found, want, "offset {offset}, {len_bytes} bytes");
        }
        assert!(inline > 100 && lists > 100 && none > 100, "{inline} {lists} {none}");
    }

    #[test]
    fn only_controllers_that_take_any_address_are_given_lists() {
        let taken: Vec<u32> = (0..8).filter(|&sgls| is_supported(sgls)).collect();
        assert_eq!(taken, [1, 2, 5, 6]);
    }
}
