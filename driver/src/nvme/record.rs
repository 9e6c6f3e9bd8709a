//! What a command in flight asks, beside its slot's other things.

use crate::request::{Lba, Op};

use super::spec::Opcode;
use super::spec::command::{CDW12_DEAC, CDW12_FUA};

/// What is wanted of a command in flight beside that it be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// It is late and was asked to end, to be sent again.
    Again,
    /// Its owner wants it to end.
    Cancel,
    /// It is a flush of a volatile cache that may have been lost: it fails.
    CacheLost,
}

/// What a command in flight asks, so that it can be asked again. Written with every command, hence
/// short: the words of the command that are not its memory's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    lba: u64,
    cdw12: u32,
    opcode: u8,
    /// How often it was sent before.
    pub(super) tries: u8,
    pub(super) wish: Wish,
}

impl Record {
    /// Of a slot that was never used.
    pub(super) const NONE: Self = Self::new(Opcode::FLUSH, 0, 0);

    /// A command that is somebody else's, and is never sent again.
    pub(super) const ONCE: Self = Self::new(Opcode(0xff), 0, 0);

    #[inline]
    pub(super) const fn new(opcode: Opcode, lba: u64, cdw12: u32) -> Self {
        Self { lba, cdw12, opcode: opcode.0, tries: 0, wish: Wish::Nothing }
    }

    /// The request that was: operation, first block, number of blocks. `None` when it is none of those
    /// that may be done twice.
    pub(super) fn operation(self) -> Option<(Op, Lba, u32)> {
        let blocks = (self.cdw12 & 0xffff) + 1;
        let (op, blocks) = match Opcode(self.opcode) {
            Opcode::READ => (Op::Read, blocks),
            Opcode::WRITE => (Op::Write { fua: self.cdw12 & CDW12_FUA != 0 }, blocks),
            Opcode::WRITE_ZEROES => {
                (Op::WriteZeroes { may_unmap: self.cdw12 & CDW12_DEAC != 0 }, blocks)
            }
            Opcode::FLUSH => (Op::Flush, 0),
            // One of several: its own range, whose length fills the word.
            Opcode::DATASET_MANAGEMENT => (Op::Discard, self.cdw12),
            _ => return None,
        };
        Some((op, Lba(self.lba), blocks))
    }
}
