//! Operations that change the device under the cache: discards, write-zeroes, and writes of registered
//! frames, which go to the device themselves.
//!
//! They enter their range ([`crate::barrier`]), wait until its pages are quiet, go to the device,
//! make the pages forget what they hold, and leave. Frames that are the user's never become a page's:
//! the user writes them again as soon as the write is over, while a reader may still pin the page, and
//! a page whose write failed stays dirty for as long as it takes.
//!
//! A discard may cover the whole device, and each page of its range is looked at twice. It is done in
//! **portions** of [`PORTION_PAGES`], each entered, sent and left by itself, one after the other, with a turn
//! of the lane between two: what else the lane has goes on meanwhile, and so does whoever waits for a page
//! of a portion that is over, or has not begun. A write is never longer than a portion. One that is cancelled
//! or fails has done the portions before, and none after.

use std::ops::Range;

use uaio_driver::{FRAME_SIZE, IoError, IoErrorKind, IoResult, Op, SgList, Token};

use crate::barrier::RangeId;
use crate::buffer::Buffer;
use crate::cache::Cache;
use crate::commit::Way;
use crate::lane::{Core, Io, IoKind, Lane};
use crate::page::Blocks;
use crate::retry::Step;
use crate::wait::{Wakeup, Wants};

/// The most pages that are looked at in one step, twice each: 32 MiB of the device, a fraction of a
/// millisecond when few are cached. Portions begin at multiples of it, which is kind to what a drive can free.
pub(crate) const PORTION_PAGES: u64 = 8192;

const _: () = assert!(PORTION_PAGES >= Lane::PAGES_MAX as u64, "a write is one portion");

#[derive(Debug)]
enum Phase {
    /// To enter the portion.
    Enter,
    /// To wait until this page, and those after it, are quiet.
    Quiet(u64),
    /// To send the blocks from this one on.
    Send(u64),
    /// The device has it; a write that is to be stable waits for a flush.
    Stable,
}

/// A discard, a write-zeroes or a write of registered frames in progress.
#[derive(Debug)]
pub(crate) struct Bypass {
    op: Op,
    lba: u64,
    end_lba: u64,
    /// The blocks that are dealt with now.
    portion: Range<u64>,
    /// Of a write: the frames.
    buffer: Buffer,
    /// Of a write that is to be stable when it is over: how it becomes so.
    way: Option<Way>,
    phase: Phase,
    barrier: Option<RangeId>,
    outstanding: usize,
    /// The device was asked to change something of the portion.
    sent: bool,
    error: Option<IoError>,
    /// It was cancelled: the device may have all of it, but it is not known to be stable.
    stopped: Option<IoError>,
    waits_for: u64,
    /// How many flushes had failed when it began to send.
    failures: u64,
}

impl Bypass {
    /// An operation on whole blocks that carries no data.
    pub(crate) fn new(cache: &Cache, offset: u64, len: u64, op: Op) -> Self {
        let block_size = cache.block_size() as u64;
        let (lba, end_lba) = (offset / block_size, (offset + len) / block_size);
        Self {
            op,
            lba,
            end_lba,
            portion: portion(cache, lba, end_lba),
            buffer: Buffer::None,
            way: None,
            phase: Phase::Enter,
            barrier: None,
            outstanding: 0,
            sent: false,
            error: None,
            stopped: None,
            waits_for: offset / FRAME_SIZE as u64,
            failures: cache.stability.failures(),
        }
    }

    /// A write of whole blocks out of registered frames.
    pub(crate) fn write(
        cache: &Cache,
        offset: u64,
        len: u64,
        buffer: Buffer,
        way: Option<Way>,
    ) -> Self {
        let op = Op::Write { fua: way == Some(Way::Fua) };
        let write = Self::new(cache, offset, len, op);
        // Others see all of it or nothing.
        let portion = write.lba..write.end_lba;
        Self { portion, buffer, way, ..write }
    }

    /// Whether it is a write that is to be stable when it is over.
    pub(crate) fn is_stable(&self) -> bool {
        self.way.is_some()
    }

    /// The memory; nothing of it is with the device.
    pub(crate) fn take_buffer(&mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::None)
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        let pages = self.portion.start / per_page..self.portion.end.div_ceil(per_page);
        match wakeup {
            Wakeup::Ended(Err(error)) => self.error = Some(error),
            Wakeup::Entered(range) => {
                self.barrier = Some(range);
                if matches!(self.phase, Phase::Enter) {
                    self.phase = Phase::Quiet(pages.start);
                }
            }
            Wakeup::Turn => {
                // Nobody is busy with the page, nor has filled it to write to it now; and who comes
                // meets the range.
                core.give_back(self.waits_for, Wakeup::Turn);
                if matches!(self.phase, Phase::Quiet(page) if page == self.waits_for) {
                    self.phase = Phase::Quiet(self.waits_for + 1);
                }
            }
            other => core.give_back(self.waits_for, other),
        }
        loop {
            match self.phase {
                Phase::Enter => {
                    let first = pages.start;
                    let enter =
                        cache.barriers.enter(pages.clone(), || core.waiter(me, Wants::Anything));
                    let Some(id) = enter else { return Step::Waiting };
                    self.barrier = Some(id);
                    self.phase = Phase::Quiet(first);
                }
                Phase::Quiet(page) if page == pages.end => {
                    self.failures = cache.stability.failures();
                    self.phase = Phase::Send(self.portion.start);
                }
                Phase::Quiet(page) => {
                    if !self.is_quiet(me, core, page) {
                        return Step::Waiting;
                    }
                    self.phase = Phase::Quiet(page + 1);
                }
                Phase::Send(lba) if lba == self.portion.end || self.error.is_some() => {
                    if self.outstanding > 0 {
                        return Step::Waiting;
                    }
                    self.leave(core);
                    if self.error.is_none() && lba < self.end_lba {
                        self.portion = portion(&cache, lba, self.end_lba);
                        self.sent = false;
                        self.phase = Phase::Enter;
                        core.again(me);
                        return Step::Waiting;
                    }
                    self.phase = Phase::Stable;
                    if self.result().is_ok() && self.way == Some(Way::Flush) {
                        core.join_flush(me);
                        return Step::Waiting;
                    }
                }
                Phase::Stable => {
                    let result = self.result();
                    let kept = match self.way {
                        Some(Way::Flush) => cache.stability.verdict(self.failures),
                        None | Some(Way::Plain | Way::Fua) => Ok(()),
                    };
                    return Step::Done(result.and(kept));
                }
                Phase::Send(lba) => match self.send(me, core, lba) {
                    Some(next) => self.phase = Phase::Send(next),
                    None => return Step::Waiting,
                },
            }
        }
    }

    /// Sends nothing more, and waits for no flush. If there was nothing more to do, it is what it would have been.
    pub(crate) fn stop(&mut self, error: IoError) {
        let sent = matches!(self.phase, Phase::Send(lba) if lba == self.end_lba);
        if self.way == Some(Way::Flush) {
            self.stopped = Some(error);
        }
        if !sent && !matches!(self.phase, Phase::Stable) {
            self.error = Some(error);
            self.phase = Phase::Send(self.portion.end);
        }
    }

    fn result(&self) -> IoResult {
        self.error.or(self.stopped).map_or(Ok(()), Err)
    }

    /// Whether nobody is busy with a page; if somebody is, the entry is on its queue.
    fn is_quiet(&mut self, me: Token, core: &mut Core, page: u64) -> bool {
        let mut shard = core.cache.shard(page);
        let Some(slot) = shard.find(page) else { return true };
        let wants = match (shard.page(slot).is_quiet(), shard.is_reserved(slot)) {
            (true, false) => return true,
            // Somebody may have filled it and is about to write to it.
            (true, true) => Wants::Turn,
            (false, _) => Wants::Quiet,
        };
        self.waits_for = page;
        shard.wait_page(slot, core.waiter(me, wants));
        false
    }

    /// Sends one command; where the next begins, or `None` when it has to wait.
    fn send(&mut self, me: Token, core: &mut Core, lba: u64) -> Option<u64> {
        let geometry = core.cache.device().geometry();
        let most = match self.op {
            Op::Discard => geometry.discard_max_blocks,
            Op::Write { .. } => core.own_blocks_max(),
            _ => geometry.write_zeroes_max_blocks,
        };
        if most == 0 {
            self.error = Some(IoError::new(IoErrorKind::Unsupported));
            return Some(self.portion.end);
        }
        if !core.slot_free(None) {
            if self.outstanding == 0 {
                core.wait_slot(me);
            }
            return None;
        }
        let blocks = (self.portion.end - lba).min(u64::from(most)) as u32;
        let io = Io::new(me, IoKind::Bypass, lba, blocks);
        let data = match &self.buffer {
            Buffer::None => SgList::empty(),
            buffer => {
                let mut frames = core.spare();
                let block_size = core.cache.block_size();
                let position = (lba - self.lba) as usize * block_size;
                let offset = buffer.lend(position, blocks as usize * block_size, &mut frames);
                SgList { frames, offset }
            }
        };
        core.submit(io, self.op, data);
        self.outstanding += 1;
        self.sent = true;
        Some(lba + u64::from(blocks))
    }

    /// A device request of ours has ended.
    pub(crate) fn settle(
        &mut self,
        me: Token,
        core: &mut Core,
        io: Io,
        result: IoResult,
        mut data: SgList,
    ) -> Step<IoResult> {
        self.outstanding -= 1;
        // Handles beside our own; those that the device keeps are not among these.
        data.frames.clear();
        match result {
            Err(error) => self.error = Some(error),
            // Whatever was lost there before, this is newer.
            Ok(()) => core.cache.stability.settle(io.lba..io.lba + u64::from(io.blocks)),
        }
        core.recycle(data.frames);
        self.step(me, core, Wakeup::Retry)
    }

    /// The pages of the portion forget what the device has overwritten; after a failure, whatever it may have.
    fn leave(&mut self, core: &mut Core) {
        let cache = core.cache.clone();
        // What a discarded block holds is nobody's business.
        let may_lose = self.sent
            && cache.stability.is_volatile()
            && !matches!(self.op, Op::Discard | Op::Write { fua: true });
        let per_page = cache.blocks_per_page();
        // What was cancelled before it sent anything has changed nothing, and may not have waited
        // until its pages were quiet.
        let changed = if self.sent { self.portion.clone() } else { 0..0 };
        // Nor does it matter what was there before, and may not have been stable. At once, and not page by page:
        // a span of neighbours grown into each other would be cut into more pieces than there is room for.
        if self.op == Op::Discard && self.error.is_none() && !changed.is_empty() {
            for shard in cache.shards() {
                shard.lock().settle_gone(changed.clone());
            }
            // A flush that failed since the device answered may have told of it.
            cache.stability.settle(changed.clone());
        }
        for page in changed.start / per_page..changed.end.div_ceil(per_page) {
            let start = page * per_page;
            let from = changed.start.max(start) - start;
            let to = changed.end.min(start + per_page) - start;
            let blocks = Blocks::range(from as u32, (to - from) as u32);
            let mut shard = cache.shard(page);
            if self.op == (Op::Write { fua: true }) && self.error.is_none() {
                shard.settle_gone(start + from..start + to);
            }
            if may_lose && cache.stability.failures() == self.failures {
                shard.note_unstable(start + from..start + to);
            } else if may_lose {
                // A flush that failed meanwhile may have taken it back, and did not find it here.
                cache.stability.lose(start + from..start + to);
            }
            let Some(slot) = shard.find(page) else { continue };
            let keep_dirty = self.error.is_some();
            if keep_dirty {
                // The device may have what it had, and lose that.
                shard.note_forgotten(slot, blocks);
            }
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

/// The blocks from `lba` on that are dealt with together.
fn portion(cache: &Cache, lba: u64, end_lba: u64) -> Range<u64> {
    let blocks = PORTION_PAGES * cache.blocks_per_page();
    let end = (lba / blocks + 1).saturating_mul(blocks);
    lba..end.min(end_lba)
}
