//! What the kernel asks for, checked.
//!
//! A descriptor comes from memory that the kernel writes. It is copied once, checked here, and what
//! passes is a [`Command`] in the device's own units; what does not pass is answered with an errno.
//! The limits given at start mean that the block layer never builds a bad one, so a refusal here is
//! a defect of somebody's, and costs one request instead of the process.

use libublk::sys;

use crate::block::Geometry;
use crate::request::{Lba, Op};

/// The block layer's unit of addresses and lengths, in bytes.
pub(super) const SECTOR: u32 = 512;

/// A positive errno, as it goes back to the kernel with its sign changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

/// A request's descriptor (`struct ublksrv_io_desc`), copied out of the memory shared with the
/// kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    /// The operation in bits 0 to 7, flags above.
    pub(super) op_flags: u32,
    /// Length in sectors.
    pub(super) sectors: u32,
    /// First sector.
    pub(super) start_sector: u64,
}

/// A checked request in the device's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) op: Op,
    pub(super) lba: Lba,
    /// At least 1; 0 for a flush.
    pub(super) blocks: u32,
}

impl Command {
    /// Checks a descriptor against the device, and against what a read or write of this queue may
    /// carry, `io_max_bytes`.
    pub(super) fn check(
        descriptor: Descriptor,
        geometry: &Geometry,
        io_max_bytes: u32,
    ) -> Result<Self, Errno> {
        let flag = |flag: u32| descriptor.op_flags & flag != 0;
        let op = match descriptor.op_flags & 0xff {
            sys::UBLK_IO_OP_READ => Op::Read,
            sys::UBLK_IO_OP_WRITE => Op::Write { fua: flag(sys::UBLK_IO_F_FUA) },
            sys::UBLK_IO_OP_FLUSH => {
                return Ok(Self { op: Op::Flush, lba: Lba(0), blocks: 0 });
            }
            sys::UBLK_IO_OP_DISCARD => Op::Discard,
            sys::UBLK_IO_OP_WRITE_ZEROES => {
                Op::WriteZeroes { may_unmap: !flag(sys::UBLK_IO_F_NOUNMAP) }
            }
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        };
        let block_sectors = geometry.block_size / SECTOR;
        let (start, sectors) = (descriptor.start_sector, descriptor.sectors);
        if sectors == 0
            || sectors % block_sectors != 0
            || !start.is_multiple_of(u64::from(block_sectors))
        {
            return Err(Errno(libc::EINVAL));
        }
        let (lba, blocks) = (start / u64::from(block_sectors), sectors / block_sectors);
        // No overflow: both are quotients of far smaller numbers than u64 holds.
        if lba + u64::from(blocks) > geometry.blocks {
            return Err(Errno(libc::EIO));
        }
        if op.has_data() && sectors > io_max_bytes / SECTOR {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Self { op, lba: Lba(lba), blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        block_size: 4096,
        blocks: 100,
        transfer_max_bytes: 1 << 20,
        discard_max_blocks: 10,
        write_zeroes_max_blocks: 10,
    };

    fn check(op_flags: u32, start_sector: u64, sectors: u32) -> Result<Command, Errno> {
        Command::check(Descriptor { op_flags, sectors, start_sector }, &GEOMETRY, 64 << 10)
    }

    #[test]
    fn every_operation_comes_out_in_blocks_with_its_flags() {
        let at = |op, lba, blocks| Ok(Command { op, lba: Lba(lba), blocks });
        assert_eq!(check(0, 8, 16), at(Op::Read, 1, 2));
        assert_eq!(check(1, 792, 8), at(Op::Write { fua: false }, 99, 1));
        assert_eq!(check(1 | 1 << 13, 0, 8), at(Op::Write { fua: true }, 0, 1));
        // A flush has no range, whatever the descriptor's other fields hold.
        assert_eq!(check(2, u64::MAX, u32::MAX), at(Op::Flush, 0, 0));
        assert_eq!(check(3, 0, 800), at(Op::Discard, 0, 100));
        assert_eq!(check(5, 0, 800), at(Op::WriteZeroes { may_unmap: true }, 0, 100));
        assert_eq!(check(5 | 1 << 15, 0, 8), at(Op::WriteZeroes { may_unmap: false }, 0, 1));
    }

    #[test]
    fn bad_descriptors_get_an_errno() {
        let errno = |errno| Err(Errno(errno));
        assert_eq!(check(0, 1, 8), errno(libc::EINVAL), "not on a block");
        assert_eq!(check(0, 0, 7), errno(libc::EINVAL), "not whole blocks");
        assert_eq!(check(0, 0, 0), errno(libc::EINVAL), "nothing");
        assert_eq!(check(0, 0, 136), errno(libc::EINVAL), "more than a read may carry");
        assert_eq!(check(1, 800, 8), errno(libc::EIO), "behind the end");
        assert_eq!(check(1, u64::MAX - 7, 8), errno(libc::EIO), "far behind the end");
        assert_eq!(check(4, 0, 8), errno(libc::EOPNOTSUPP), "write same");
        assert_eq!(check(0xff, 0, 8), errno(libc::EOPNOTSUPP), "no such operation");
    }

    #[test]
    fn no_descriptor_panics_or_passes_outside_the_device() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..100_000 {
            let start = random.u64(..) >> random.u32(..64);
            let sectors = random.u32(..) >> random.u32(..32);
            let Ok(command) = check(random.u32(..) >> random.u32(..32), start, sectors) else {
                continue;
            };
            assert!(command.lba.0 + u64::from(command.blocks) <= GEOMETRY.blocks);
            assert!(!command.op.has_data() || command.blocks * 4096 <= 64 << 10);
            assert!(command.blocks > 0 || command.op == Op::Flush);
        }
    }
}
