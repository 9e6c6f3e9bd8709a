//! Which reads and writes are right, decided in a few comparisons.

use crate::block::{Capabilities, Geometry};
use crate::dma::FRAME_SIZE;
use crate::request::{Op, Request, SgList};

use super::spec::command::{CDW12_FUA, Opcode};

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
        let mut admitted = 0;
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
            assert_eq!(limits.admit(&request).is_some(), allowed, "{request:?} of {geometry:?}");
            admitted += u32::from(allowed);
        }
        assert!(admitted > 1000, "hardly any was right: {admitted}");
    }
}
