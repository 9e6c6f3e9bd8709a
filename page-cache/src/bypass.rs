//! Operations that change the device under the cache: discards and write-zeroes.
//!
//! They enter their range ([`crate::barrier`]), wait until its pages are quiet, go to the device,
//! make the pages forget what they hold, and leave.

use uaio_driver::{FRAME_SIZE, IoError, IoErrorKind, IoResult, Op, SgList, Token};

use crate::barrier::BarrierId;
use crate::cache::Cache;
use crate::lane::{Core, Io, IoKind};
use crate::page::{Blocks, Page};
use crate::retry::Step;
use crate::wait::Wakeup;

#[derive(Debug)]
enum Phase {
    /// To enter the range.
    Enter,
    /// To wait until this page, and those after it, are quiet.
    Quiet(u64),
    /// To send the blocks from this one on.
    Send(u64),
}

/// A discard or a write-zeroes in progress.
#[derive(Debug)]
pub(crate) struct Bypass {
    op: Op,
    lba: u64,
    end_lba: u64,
    phase: Phase,
    barrier: Option<BarrierId>,
    outstanding: usize,
    /// The device was asked to change something.
    sent: bool,
    error: Option<IoError>,
    waits_for: u64,
}

impl Bypass {
    /// An operation on whole blocks that carries no data.
    pub(crate) fn new(cache: &Cache, offset: u64, len: u64, op: Op) -> Self {
        let block_size = cache.block_size() as u64;
        Self {
            op,
            lba: offset / block_size,
            end_lba: (offset + len) / block_size,
            phase: Phase::Enter,
            barrier: None,
            outstanding: 0,
            sent: false,
            error: None,
            waits_for: offset / FRAME_SIZE as u64,
        }
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        core.give_back(self.waits_for, wakeup);
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        let pages = self.lba / per_page..self.end_lba.div_ceil(per_page);
        loop {
            match self.phase {
                Phase::Enter => {
                    let first = pages.start;
                    let enter = cache.barriers.enter(pages.clone(), || core.waiter(me, false));
                    let Some(id) = enter else { return Step::Waiting };
                    self.barrier = Some(id);
                    self.phase = Phase::Quiet(first);
                }
                Phase::Quiet(page) if page == pages.end => self.phase = Phase::Send(self.lba),
                Phase::Quiet(page) => {
                    if !self.is_quiet(me, core, page) {
                        return Step::Waiting;
                    }
                    self.phase = Phase::Quiet(page + 1);
                }
                Phase::Send(lba) if lba == self.end_lba || self.error.is_some() => {
                    if self.outstanding > 0 {
                        return Step::Waiting;
                    }
                    self.leave(core);
                    return Step::Done(self.error.map_or(Ok(()), Err));
                }
                Phase::Send(lba) => match self.send(me, core, lba) {
                    Some(next) => self.phase = Phase::Send(next),
                    None => return Step::Waiting,
                },
            }
        }
    }

    /// Sends nothing more. If all was sent, it is what it would have been.
    pub(crate) fn stop(&mut self, error: IoError) {
        if !matches!(self.phase, Phase::Send(lba) if lba == self.end_lba) {
            self.error = Some(error);
            self.phase = Phase::Send(self.end_lba);
        }
    }

    /// Whether nobody is busy with a page; if somebody is, the entry is on its queue.
    fn is_quiet(&mut self, me: Token, core: &mut Core, page: u64) -> bool {
        let mut shard = core.cache.shard(page);
        let Some(slot) = shard.find(page) else { return true };
        match shard.page(slot) {
            Page::Absent | Page::Clean(_) | Page::Dirty(_) => true,
            Page::Reading { .. } | Page::Writing(_) | Page::Writeback { .. } => {
                self.waits_for = page;
                shard.wait_page(slot, core.waiter(me, false));
                false
            }
        }
    }

    /// Sends one command; where the next begins, or `None` when it has to wait.
    fn send(&mut self, me: Token, core: &mut Core, lba: u64) -> Option<u64> {
        let geometry = core.cache.device().geometry();
        let most = match self.op {
            Op::Discard => geometry.discard_max_blocks,
            _ => geometry.write_zeroes_max_blocks,
        };
        if most == 0 {
            self.error = Some(IoError::new(IoErrorKind::Unsupported));
            return Some(self.end_lba);
        }
        if !core.slot_free(None) {
            if self.outstanding == 0 {
                core.wait_slot(me);
            }
            return None;
        }
        let blocks = (self.end_lba - lba).min(u64::from(most)) as u32;
        let io = Io { operation: me, kind: IoKind::Bypass, lba, blocks };
        core.submit(io, self.op, SgList::empty());
        self.outstanding += 1;
        self.sent = true;
        Some(lba + u64::from(blocks))
    }

    /// A device request of ours has ended.
    pub(crate) fn settle(
        &mut self,
        me: Token,
        core: &mut Core,
        _io: Io,
        result: IoResult,
        data: SgList,
    ) -> Step<IoResult> {
        self.outstanding -= 1;
        if let Err(error) = result {
            self.error = Some(error);
        }
        core.recycle(data.frames);
        self.step(me, core, Wakeup::Retry)
    }

    /// The pages forget what the device has overwritten; after a failure, whatever it may have.
    fn leave(&mut self, core: &mut Core) {
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        // What was cancelled before it sent anything has changed nothing, and may not have waited
        // until its pages were quiet.
        let pages = self.lba / per_page..self.end_lba.div_ceil(per_page);
        for page in pages.filter(|_| self.sent) {
            let start = page * per_page;
            let from = self.lba.max(start) - start;
            let to = self.end_lba.min(start + per_page) - start;
            let blocks = Blocks::range(from as u32, (to - from) as u32);
            let mut shard = cache.shard(page);
            let Some(slot) = shard.find(page) else { continue };
            let keep_dirty = self.error.is_some();
            let (released, result) = shard.forget(slot, &mut core.wakes, blocks, keep_dirty);
            assert!(result.is_ok(), "somebody was busy with page {page} under bypass");
            cache.room(page).release(released.room, &mut core.wakes);
            shard.hand_over(&mut core.wakes);
        }
        if let Some(barrier) = self.barrier.take() {
            cache.barriers.leave(barrier, &mut core.wakes);
        }
        // A flush may have been waiting for pages that are no longer dirty.
        cache.ring_flusher();
    }
}
