//! Operations that go past the cache: discards, write-zeroes and direct writes.
//!
//! They enter their range ([`crate::barrier`]), make the pages in it forget what they hold, go to
//! the device, and leave. A page under writeback is waited for first, so that the device sees the
//! two in order.

use uaio_driver::{DmaBuf, FRAME_SIZE, IoError, IoErrorKind, IoResult, Op, SgList, Token};

use crate::barrier::BarrierId;
use crate::buffer::Buffer;
use crate::cache::Cache;
use crate::lane::{Core, Io, IoKind, Run};
use crate::page::Blocks;
use crate::retry::Step;
use crate::wait::Wakeup;

#[derive(Debug)]
enum Phase {
    /// To enter the range.
    Enter,
    /// To make this page, and those after it, forget.
    Forget(u64),
    /// To send the blocks from this one on.
    Send(u64),
}

/// A discard, a write-zeroes or a direct write in progress.
#[derive(Debug)]
pub(crate) struct Bypass {
    op: Op,
    lba: u64,
    end_lba: u64,
    buffer: Buffer,
    phase: Phase,
    barrier: Option<BarrierId>,
    outstanding: usize,
    error: Option<IoError>,
    granted: Option<(u64, DmaBuf)>,
    waits_for: u64,
}

impl Bypass {
    /// A direct write of whole blocks.
    pub(crate) fn write(cache: &Cache, offset: u64, len: u64, buffer: Buffer, fua: bool) -> Self {
        Self { buffer, ..Self::blocks(cache, offset, len, Op::Write { fua }) }
    }

    /// An operation on whole blocks that carries no data.
    pub(crate) fn blocks(cache: &Cache, offset: u64, len: u64, op: Op) -> Self {
        let block_size = cache.block_size() as u64;
        Self {
            op,
            lba: offset / block_size,
            end_lba: (offset + len) / block_size,
            buffer: Buffer::None,
            phase: Phase::Enter,
            barrier: None,
            outstanding: 0,
            error: None,
            granted: None,
            waits_for: offset / FRAME_SIZE as u64,
        }
    }

    pub(crate) fn into_buffer(self) -> Buffer {
        self.buffer
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        match wakeup {
            Wakeup::Frame(frame) => self.granted = Some((self.waits_for, frame)),
            other => core.give_back(self.waits_for, other),
        }
        self.go_on(me, core)
    }

    fn go_on(&mut self, me: Token, core: &mut Core) -> Step<IoResult> {
        let step = self.advance(me, core);
        if let Some((page, frame)) = self.granted.take() {
            core.give_back(page, Wakeup::Frame(frame));
        }
        if matches!(step, Step::Done(_))
            && let Some(barrier) = self.barrier.take()
        {
            core.cache.barriers.leave(barrier, &mut core.wakes);
        }
        step
    }

    fn advance(&mut self, me: Token, core: &mut Core) -> Step<IoResult> {
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        loop {
            match self.phase {
                Phase::Enter => {
                    let pages = self.lba / per_page..self.end_lba.div_ceil(per_page);
                    let first = pages.start;
                    let Some(id) = cache.barriers.enter(pages, || core.waiter(me, false)) else {
                        return Step::Waiting;
                    };
                    self.barrier = Some(id);
                    self.phase = Phase::Forget(first);
                }
                Phase::Forget(page) if page >= self.end_lba.div_ceil(per_page) => {
                    self.phase = Phase::Send(self.lba);
                }
                Phase::Forget(page) => {
                    if !self.forget(me, core, page) {
                        return Step::Waiting;
                    }
                    self.phase = Phase::Forget(page + 1);
                }
                Phase::Send(lba) if lba >= self.end_lba || self.error.is_some() => {
                    if self.outstanding > 0 {
                        return Step::Waiting;
                    }
                    return Step::Done(self.error.map_or(Ok(()), Err));
                }
                Phase::Send(lba) => {
                    let next = if self.op.has_data() {
                        self.send_data(me, core, lba)
                    } else {
                        self.send_blocks(me, core, lba)
                    };
                    match next {
                        Some(next) => self.phase = Phase::Send(next),
                        None => return Step::Waiting,
                    }
                }
            }
        }
    }

    /// Makes one page forget; `false` when it has to be waited for.
    fn forget(&mut self, me: Token, core: &mut Core, page: u64) -> bool {
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        let start = page * per_page;
        let from = self.lba.max(start) - start;
        let to = self.end_lba.min(start + per_page) - start;
        let blocks = Blocks::range(from as u32, (to - from) as u32);
        let mut shard = cache.shard(page);
        let Some(slot) = shard.find(page) else { return true };
        let forget = |page: crate::page::Page| match page.forget(blocks) {
            Ok((page, frame)) => (page, Ok(frame)),
            Err((page, busy)) => (page, Err(busy)),
        };
        let (result, released) = shard.transition(slot, &mut core.wakes, forget);
        let done = match result {
            Ok(frame) => {
                if let Some(frame) = frame {
                    shard.detached(frame);
                }
                shard.hand_over(&mut core.wakes);
                true
            }
            Err(_) => {
                self.waits_for = page;
                shard.wait_page(slot, core.waiter(me, false));
                false
            }
        };
        drop(shard);
        cache.room.release(released.room, &mut core.wakes);
        done
    }

    /// Sends one command without data; where the next begins, or `None` when it has to wait.
    fn send_blocks(&mut self, me: Token, core: &mut Core, lba: u64) -> Option<u64> {
        let geometry = core.cache.device().geometry();
        let most = match self.op {
            Op::Discard => geometry.discard_max_blocks,
            _ => geometry.write_zeroes_max_blocks,
        };
        if most == 0 {
            self.error = Some(IoError::new(IoErrorKind::Unsupported));
            return Some(self.end_lba);
        }
        if !self.slot(me, core) {
            return None;
        }
        let blocks = (self.end_lba - lba).min(u64::from(most)) as u32;
        let io = Io { operation: me, kind: IoKind::Bypass, lba, blocks };
        core.submit(io, self.op, SgList::empty());
        self.outstanding += 1;
        Some(lba + u64::from(blocks))
    }

    /// Sends as much of the data as there are frames for at once: a shorter command rather than
    /// waiting with frames in hand.
    fn send_data(&mut self, me: Token, core: &mut Core, lba: u64) -> Option<u64> {
        if !self.slot(me, core) {
            return None;
        }
        let cache = core.cache.clone();
        let per_page = cache.blocks_per_page();
        let block_size = cache.block_size();
        let Op::Write { fua } = self.op else { unreachable!("only writes carry data") };
        let mut run: Option<Run> = None;
        let mut at = lba;
        while at < self.end_lba {
            let page = at / per_page;
            let first = at % per_page;
            let count = (per_page - first).min(self.end_lba - at);
            let granted = self.granted.take_if(|(of, _)| *of == page).map(|(_, frame)| frame);
            let mut shard = cache.shard(page);
            let Some(frame) = granted.or_else(|| shard.take_frame(None)) else {
                if run.is_none() && self.outstanding == 0 {
                    self.waits_for = page;
                    if let Some(frame) = shard.wait_frame(None, core.waiter(me, false)) {
                        self.granted = Some((page, frame));
                        continue;
                    }
                    drop(shard);
                    cache.ring_flusher();
                    return None;
                }
                break;
            };
            drop(shard);
            let position = (at - self.lba) as usize * block_size;
            let offset = first as usize * block_size;
            self.buffer.store(position, &frame, offset, count as usize * block_size);
            let blocks = Blocks::range(first as u32, count as u32);
            self.outstanding += core.gather(me, &mut run, IoKind::Bypass, page, blocks, frame, fua);
            at += count;
            if !core.slot_free(run.as_ref()) {
                break;
            }
        }
        self.outstanding += core.send(me, &mut run);
        if at == lba { None } else { Some(at) }
    }

    /// Whether a request slot is free; if not, something of ours is in flight or the entry is queued.
    fn slot(&mut self, me: Token, core: &mut Core) -> bool {
        let free = core.slot_free(None);
        if !free && self.outstanding == 0 {
            core.wait_slot(me);
        }
        free
    }

    pub(crate) fn settle(
        &mut self,
        me: Token,
        core: &mut Core,
        io: Io,
        result: IoResult,
        data: SgList,
    ) -> Step<IoResult> {
        self.outstanding -= 1;
        if let Err(error) = result {
            self.error = Some(error);
        }
        let mut frames = data.frames;
        let first = io.lba / core.cache.blocks_per_page();
        for (page, frame) in (first..).zip(frames.drain(..)) {
            core.give_back(page, Wakeup::Frame(frame));
        }
        core.recycle(frames);
        self.go_on(me, core)
    }
}
