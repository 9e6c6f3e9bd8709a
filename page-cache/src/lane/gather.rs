//! Gathering: neighbouring pages become one command, up to what the device takes.

use uaio_driver::{DmaBuf, FRAME_SIZE, Op, SgList, Token};

use crate::buffer::Buffer;
use crate::page::Blocks;

use super::core::Core;
use super::io::{Io, IoKind};

/// Blocks of one page that a command is to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) kind: IoKind,
    pub(crate) page: u64,
    pub(crate) blocks: Blocks,
    pub(crate) fua: bool,
}

impl Piece {
    pub(crate) fn new(kind: IoKind, page: u64, blocks: Blocks) -> Self {
        Self { kind, page, blocks, fua: false }
    }
}

/// A command that is being gathered: neighbouring pages, one frame each.
#[derive(Debug)]
pub(crate) struct Run {
    kind: IoKind,
    lba: u64,
    blocks: u32,
    frames: Vec<DmaBuf>,
    offset: u32,
    fua: bool,
}

impl Core {
    /// Whether there is a slot for `piece`, and `spare` more: that of the command being gathered when it
    /// joins that, so that the last slot of a full queue carries as many pages as any other.
    pub(crate) fn slot_for(&self, gathering: Option<&Run>, piece: &Piece, spare: usize) -> bool {
        gathering.is_some_and(|run| self.joins(run, piece)) || self.slots_free(gathering, spare)
    }

    /// Whether the command being gathered can carry this piece, too.
    fn joins(&self, run: &Run, piece: &Piece) -> bool {
        let starts = piece.blocks.0 & 1 == 1;
        std::mem::discriminant(&run.kind) == std::mem::discriminant(&piece.kind)
            && run.fua == piece.fua
            && starts
            && run.lba + u64::from(run.blocks) == piece.page * self.cache.blocks_per_page()
            && run.frames.len() < self.pages_max
    }

    /// Adds the first run of blocks of one page to the command being gathered, or sends that and begins
    /// another. The caller has seen that there is a [slot](Self::slot_for).
    pub(crate) fn gather(
        &mut self,
        operation: Token,
        run: &mut Option<Run>,
        piece: Piece,
        frame: DmaBuf,
    ) -> usize {
        let Piece { kind, page, blocks, fua } = piece;
        let Some((first, count)) = blocks.first_run() else {
            panic!("a command for no block of page {page}")
        };
        let lba = page * self.cache.blocks_per_page() + u64::from(first);
        if let Some(open) = run
            && self.joins(open, &piece)
        {
            open.blocks += count;
            open.frames.push(frame);
            return 0;
        }
        let sent = self.send(operation, run);
        let mut frames = self.spare.pop().unwrap_or_default();
        frames.push(frame);
        let offset = first * self.cache.block_size() as u32;
        *run = Some(Run { kind, lba, blocks: count, frames, offset, fua });
        sent
    }

    /// As [`gather`](Self::gather), of blocks that the device reads into frames of `memory`, from byte
    /// `position` of it on.
    pub(crate) fn gather_own(
        &mut self,
        operation: Token,
        run: &mut Option<Run>,
        (lba, blocks): (u64, u32),
        memory: &Buffer,
        position: usize,
    ) -> usize {
        let len = blocks as usize * self.cache.block_size();
        let blocks_max = self.own_blocks_max();
        let mut sent = 0;
        if let Some(open) = run {
            let joins = open.kind == IoKind::ReadOwn
                && open.lba + u64::from(open.blocks) == lba
                && open.blocks + blocks <= blocks_max;
            if joins {
                open.blocks += blocks;
                memory.lend(position, len, &mut open.frames);
                return 0;
            }
            sent = self.send(operation, run);
        }
        let mut frames = self.spare.pop().unwrap_or_default();
        let offset = memory.lend(position, len, &mut frames);
        *run = Some(Run { kind: IoKind::ReadOwn, lba, blocks, frames, offset, fua: false });
        sent
    }

    /// The most blocks of a command that moves an operation's own frames.
    pub(crate) fn own_blocks_max(&self) -> u32 {
        (self.pages_max * FRAME_SIZE / self.cache.block_size()) as u32
    }

    /// A vector for the frames of a command.
    pub(crate) fn spare(&mut self) -> Vec<DmaBuf> {
        self.spare.pop().unwrap_or_default()
    }

    /// Sends the command that was gathered, if there is one, and says how many were sent.
    pub(crate) fn send(&mut self, operation: Token, run: &mut Option<Run>) -> usize {
        let Some(Run { kind, lba, blocks, frames, offset, fua }) = run.take() else { return 0 };
        let op = match kind {
            IoKind::Fill | IoKind::Ahead { .. } | IoKind::ReadPast | IoKind::ReadOwn => Op::Read,
            IoKind::Store => Op::Write { fua },
            IoKind::Bypass | IoKind::Flush => unreachable!("no frames are gathered for {kind:?}"),
        };
        let io = Io::new(operation, kind, lba, blocks);
        self.submit(io, op, SgList { frames, offset });
        1
    }
}
