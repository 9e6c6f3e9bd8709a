//! Which reads and writes are right, decided in a few comparisons.

use crate::block::{Capabilities, Geometry};
use crate::dma::FRAME_SIZE;
use crate::request::{Op, Request, SgList};

use super::spec::command::{CDW12_FUA, Opcode};

/// The requests that most are: a read or a write of at most a frame's size that starts where its frame
/// does. They are decided by four comparisons, which also tell a queue that is closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameLimits {
    blocks: u64,
    /// How many blocks a frame has, by code; 0 for what is not admitted.
    frame_blocks: [u32; 2],
    frame_blocks_if_open: [u32; 2],
    /// The first word of a command, but for its identifier, by code.
    heads: [u64; 2],
}

impl FrameLimits {
    /// For namespace `nsid`.
    pub(super) fn new(geometry: Geometry, capabilities: Capabilities, nsid: u32) -> Self {
        let Geometry { block_size, blocks, .. } = geometry;
        // Not more than the namespace has, so that the last start is never below 0.
        let reads = u64::from(FRAME_SIZE as u32 / block_size).min(blocks) as u32;
        let frame_blocks = [reads, if capabilities.read_only { 0 } else { reads }];
        let head = |opcode: Opcode| u64::from(nsid) << 32 | u64::from(opcode.0);
        Self {
            blocks,
            frame_blocks,
            frame_blocks_if_open: frame_blocks,
            heads: [head(Opcode::READ), head(Opcode::WRITE)],
        }
    }

    /// From now on nothing is admitted.
    pub(super) fn close(&mut self) {
        self.frame_blocks = [0; 2];
    }

    /// From now on requests are admitted again.
    pub(super) fn open(&mut self) {
        self.frame_blocks = self.frame_blocks_if_open;
    }

    /// The first word of the command without its identifier, and dword 12, for a request of this kind
    /// that nothing is wrong with. `None` says nothing.
    #[inline]
    pub(super) fn admit(&self, request: &Request) -> Option<(u64, u32)> {
        let Request { op, lba, blocks, data: SgList { frames, offset }, .. } = request;
        let (code, flags) = match *op {
            Op::Read => (0usize, 0),
            Op::Write { fua } => (1, u32::from(fua) * CDW12_FUA),
            Op::Flush | Op::Discard | Op::WriteZeroes { .. } => return None,
        };
        // The number of blocks is 0's based; of none, it is too large.
        let nlb = blocks.wrapping_sub(1);
        let fits = nlb < self.frame_blocks[code]
            && *offset == 0
            && frames.len() == 1
            && lba.0 <= self.blocks - u64::from(*blocks);
        fits.then_some((self.heads[code], flags | nlb))
    }
}

/// What [`Geometry::check`] lets reads and writes do, in the form that is quickest to compare with.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferLimits {
    blocks: u64,
    transfer_max_blocks: u32,
    block_shift: u32,
    /// The bits of an offset that are not a whole number of blocks inside a frame.
    bad_offset: u32,
    writable: bool,
}

impl TransferLimits {
    pub(super) fn new(geometry: Geometry, capabilities: Capabilities) -> Self {
        let Geometry { block_size, blocks, transfer_max_bytes, .. } = geometry;
        Self {
            blocks,
            transfer_max_blocks: transfer_max_bytes / block_size,
            block_shift: block_size.ilog2(),
            bad_offset: !(FRAME_SIZE as u32 - block_size),
            writable: !capabilities.read_only,
        }
    }

    /// Opcode and flags of dword 12, for a read or a write that nothing is wrong with. `None` says
    /// nothing.
    #[inline]
    pub(super) fn admit(&self, request: &Request) -> Option<(Opcode, u32)> {
        let Request { op, lba, blocks, data: SgList { frames, offset }, .. } = request;
        let command = match *op {
            Op::Read => (Opcode::READ, 0),
            Op::Write { fua } if self.writable => (Opcode::WRITE, u32::from(fua) * CDW12_FUA),
            Op::Write { .. } | Op::Flush | Op::Discard | Op::WriteZeroes { .. } => return None,
        };
        let end = lba.0.checked_add(u64::from(*blocks))?;
        let fits = blocks.wrapping_sub(1) < self.transfer_max_blocks
            && offset & self.bad_offset == 0
            && end <= self.blocks
            // At most 1 MiB and a frame, so nothing overflows.
            && frames.len() == ((offset + (blocks << self.block_shift)) as usize).div_ceil(FRAME_SIZE);
        fits.then_some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaPool, PoolOptions};
    use crate::request::Lba;
    use crate::slots::Token;

    /// The oracle is the contract's own check: whatever it says of a read or a write, this says.
    #[test]
    fn a_read_or_write_is_admitted_exactly_when_the_geometry_allows_it() {
        let pool = DmaPool::new(PoolOptions::frames(8)).unwrap();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut admitted, mut in_a_frame) = (0, 0);
        for _ in 0..200_000 {
            let block_size = 512 << random.u32(..4);
            let blocks = random.u64(1..64);
            let transfer_max_bytes = 4096 * random.u32(1..4);
            let zeroes = (100, 100);
            let geometry = Geometry {
                block_size,
                blocks,
                transfer_max_bytes,
                discard_max_blocks: zeroes.0,
                write_zeroes_max_blocks: zeroes.1,
            };
            let capabilities = Capabilities {
                volatile_cache: true,
                fua: true,
                read_only: random.bool(),
                queues_max: 1,
                depth_max: 1,
            };
            let lba = match random.u8(..8) {
                0 => u64::MAX - random.u64(..4),
                _ => random.u64(..66),
            };
            let count = match random.u8(..8) {
                0 => u32::MAX - random.u32(..4),
                _ => random.u32(..26),
            };
            let offset = match random.u8(..4) {
                0 => random.u32(..8193),
                1 => 512 * random.u32(..9),
                _ => 0,
            };
            let op = match random.u8(..4) {
                0 => Op::Write { fua: false },
                1 => Op::Write { fua: true },
                _ => Op::Read,
            };
            let frames = (0..random.usize(..5)).map(|_| pool.take().unwrap()).collect();
            let data = SgList { frames, offset };
            let token = Token::from_u64(0);
            let request = Request { token, op, lba: Lba(lba), blocks: count, data };
            let allowed = geometry.check(&capabilities, &request).is_ok();
            let limits = TransferLimits::new(geometry, capabilities);
            let admission = limits.admit(&request);
            assert_eq!(admission.is_some(), allowed, "{request:?} of {geometry:?}");
            admitted += u32::from(allowed);
            let mut quick = FrameLimits::new(geometry, capabilities, 7);
            let simple = allowed && request.data.offset == 0 && request.data.frames.len() == 1;
            let words = admission.filter(|_| simple).map(|(opcode, flags)| {
                (7 << 32 | u64::from(opcode.0), flags | (request.blocks - 1))
            });
            assert_eq!(quick.admit(&request), words, "{request:?} of {geometry:?}");
            in_a_frame += u32::from(words.is_some());
            quick.close();
            assert_eq!(quick.admit(&request), None, "closed");
        }
        assert!(admitted > 1000, "hardly any was right: {admitted}");
        assert!(in_a_frame > 300, "hardly any was in a frame: {in_a_frame}");
    }
}
