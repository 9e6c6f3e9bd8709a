//! Writing through the cache.
//!
//! A write goes page by page. Whole blocks are written without reading; bytes in part of a block
//! need that block, so the page is filled first. A write that is to be on the device when it is
//! acknowledged (write-through, O_DSYNC, FUA) puts each page under writeback in the same moment in
//! which it becomes dirty, so nobody else can start one in between, and waits for its own commands.
//! A direct write is one of these whose pages are let go when the device has them: so it meets
//! everything else, reads, writebacks and flushes, on the pages, by the rules of every write.

use uaio_driver::{DmaBuf, FRAME_SIZE, IoError, IoResult, SgList, Token};

use crate::buffer::Buffer;
use crate::cache::{Cache, CacheMode};
use crate::commit::Way;
use crate::lane::{Core, Io, IoKind, Piece, Run};
use crate::page::{Blocks, Notes, Page};
use crate::read::end_fill;
use crate::retry::Step;
use crate::room::NoRoom;
use crate::wait::{Wakeup, Wants};

/// A write in progress.
#[derive(Debug)]
pub(crate) struct Write {
    offset: u64,
    len: usize,
    buffer: Buffer,
    /// The page that is next.
    page: u64,
    end_page: u64,
    /// Device requests in flight.
    outstanding: usize,
    /// The pages go to the device before the write is acknowledged.
    store: bool,
    /// And become stable there, in this way.
    way: Option<Way>,
    /// It is on the device and has joined those who wait for a flush.
    joined: bool,
    /// How many flushes had failed when it began.
    failures: u64,
    /// And nothing stays in the cache.
    past: bool,
    error: Option<IoError>,
    /// The flusher is to be rung, once no lock is held.
    rings: bool,
    /// Room for one dirty page, not used yet.
    room: bool,
    granted: Option<(u64, DmaBuf)>,
    /// The page that was filled for us, pinned until we look at it again: otherwise those who wait
    /// for frames would take it as soon as it is there, and it would be filled for ever.
    filled: Option<DmaBuf>,
    /// The page that it is our turn to change; given back at the end of the step.
    turn: Option<u64>,
    /// We have waited for this page without asking for a turn, and others were quicker.
    overtaken: bool,
}

enum Visit {
    /// The page is written.
    Forward,
    /// Look again: something has changed.
    Again,
    /// Something of ours is in flight: wait for that.
    Blocked,
    /// The entry is on a queue.
    Queued,
    /// It cannot be done.
    Failed(IoError),
}

impl Write {
    pub(crate) fn new(
        cache: &Cache,
        offset: u64,
        len: usize,
        buffer: Buffer,
        way: Option<Way>,
        past: bool,
    ) -> Self {
        Self {
            offset,
            len,
            buffer,
            page: offset / FRAME_SIZE as u64,
            end_page: (offset + len as u64).div_ceil(FRAME_SIZE as u64),
            outstanding: 0,
            store: way.is_some() || past || cache.mode() != CacheMode::Writeback,
            way,
            joined: false,
            failures: cache.stability.failures(),
            past,
            error: None,
            rings: false,
            room: false,
            granted: None,
            filled: None,
            turn: None,
            overtaken: false,
        }
    }

    /// Whether it is to be stable when it is over.
    pub(crate) fn is_stable(&self) -> bool {
        self.way.is_some()
    }

    /// The memory, which nothing is copied from any more.
    pub(crate) fn take_buffer(&mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::None)
    }

    /// Writes no further page, and waits for no flush. What the device has been sent goes on; if that is all
    /// there was to do, the write is what it would have been.
    pub(crate) fn stop(&mut self, error: IoError) {
        if self.page != self.end_page || self.way == Some(Way::Flush) {
            self.error = Some(error);
        }
    }

    fn part(&self) -> (usize, usize, usize) {
        let start = self.page * FRAME_SIZE as u64;
        let from = self.offset.max(start);
        let to = (self.offset + self.len as u64).min(start + FRAME_SIZE as u64);
        ((from - start) as usize, (to - from) as usize, (from - self.offset) as usize)
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        let (page, mut pass) = (self.page, None);
        match wakeup {
            Wakeup::Frame(frame) => self.granted = Some((self.page, frame)),
            Wakeup::Room => self.room = true,
            Wakeup::Ended(Err(error)) => self.error = Some(error),
            Wakeup::Turn => self.turn = Some(page),
            Wakeup::Pass(of) => pass = Some(of),
            other @ (Wakeup::Retry
            | Wakeup::Filled(..)
            | Wakeup::Entered(_)
            | Wakeup::Ended(Ok(()))) => core.give_back(page, other),
        }
        let step = self.go_on(me, core);
        if let Some(pass) = pass {
            core.give_back(page, Wakeup::Pass(pass));
        }
        step
    }

    fn go_on(&mut self, me: Token, core: &mut Core) -> Step<IoResult> {
        if self.outstanding == 0 && self.page == self.offset / FRAME_SIZE as u64 {
            // Nothing of it has been sent: what failed so far took nothing of it back.
            self.failures = core.cache.stability.failures();
        }
        let mut run = None;
        let step = loop {
            if self.error.is_some() || self.page == self.end_page {
                self.outstanding += core.send(me, &mut run);
                if self.outstanding > 0 {
                    break Step::Waiting;
                }
                if self.error.is_none() && self.way == Some(Way::Flush) && !self.joined {
                    self.joined = true;
                    core.join_flush(me);
                    break Step::Waiting;
                }
                let result = self.error.map_or(Ok(()), Err);
                // A flush that failed meanwhile, whosoever it was, may have taken back what this wrote.
                let kept = match self.way {
                    Some(Way::Flush) => core.cache.stability.verdict(self.failures),
                    None | Some(Way::Plain | Way::Fua) => Ok(()),
                };
                break Step::Done(result.and(kept));
            }
            let was_pinned = self.filled.is_some();
            let visit = self.visit(me, core, &mut run);
            if std::mem::take(&mut self.rings) {
                core.cache.ring_flusher();
            }
            if was_pinned {
                // What the pin stood in the way of is anybody's again.
                core.cache.shard(self.page).hand_over(&mut core.wakes);
            }
            match visit {
                Visit::Forward => {
                    // Somebody else had made the page dirty: the room is not needed, and is not
                    // room for the next page, which may lie in another shard.
                    if std::mem::take(&mut self.room) {
                        core.give_back(self.page, Wakeup::Room);
                    }
                    self.page += 1;
                    self.overtaken = false;
                }
                Visit::Again => {}
                Visit::Blocked => {
                    self.outstanding += core.send(me, &mut run);
                    break Step::Waiting;
                }
                Visit::Queued => break Step::Waiting,
                Visit::Failed(error) => self.error = Some(error),
            }
        };
        // No hold and wait: frames not needed go to the next. Room comes before frames in the
        // order of what is taken, so it may be kept while waiting for one.
        if let Some((page, frame)) = self.granted.take() {
            core.give_back(page, Wakeup::Frame(frame));
        }
        if let Some(page) = self.turn.take() {
            core.give_back(page, Wakeup::Turn);
        }
        if matches!(step, Step::Done(_)) {
            if std::mem::take(&mut self.room) {
                core.give_back(self.page, Wakeup::Room);
            }
            if let Some(frame) = self.filled.take() {
                core.cache.unpin(self.page, frame);
            }
        }
        step
    }

    fn visit(&mut self, me: Token, core: &mut Core, run: &mut Option<Run>) -> Visit {
        let page = self.page;
        let (offset, len, position) = self.part();
        let cache = core.cache.clone();
        let touched = cache.touched(offset, len);
        // An entry is left only when nothing of ours is in flight or about to be: an operation
        // waits for one thing at a time.
        let may_wait = run.is_none() && self.outstanding == 0;
        let mut shard = cache.shard(page);
        // What was filled for us is ours to write to: who entered a range here since waits for that, or
        // we would fill it once more after each of a stream of discards.
        let ours = self.turn == Some(page) && self.filled.is_some();
        // Under the lock nobody evicts it before we have decided.
        if let Some(frame) = self.filled.take().and_then(DmaBuf::release) {
            shard.put_frame(frame);
        }
        if !ours && cache.barriers.covers(page) {
            return match may_wait {
                false => Visit::Blocked,
                true if cache.barriers.wait(page, core.waiter(me, Wants::Anything)) => {
                    Visit::Queued
                }
                true => Visit::Again,
            };
        }
        let slot = shard.find(page);
        let absent = Page::Absent;
        let state = slot.map_or(&absent, |slot| shard.page(slot));
        let rewrites = matches!(state, Page::Writeback { .. });
        let edges = edge_blocks(&cache, page, offset, len);
        let valid = state.content().map_or(Blocks::NONE, |content| content.valid);
        let fills = !valid.contains(edges);
        let busy = match state {
            Page::Reading { .. } | Page::Writing(_) => true,
            Page::Writeback { .. } => self.store || fills,
            Page::Absent | Page::Clean(_) | Page::Dirty(_) => false,
        };
        // Whoever keeps the page to itself while the device is at it takes turns with the others.
        let others = state.is_quiet()
            && self.turn != Some(page)
            && slot.is_some_and(|slot| shard.is_reserved(slot));
        let takes_room = !fills && !state.holds_room();
        let fresh_needed = fills || state.needs_fresh_frame();
        if busy || others {
            let (true, Some(slot)) = (may_wait, slot) else { return Visit::Blocked };
            shard.stats.merged += 1;
            let in_turn = others || self.store || fills || self.overtaken;
            self.overtaken = true;
            let wants = if in_turn { Wants::Turn } else { Wants::Look };
            shard.wait_page(slot, core.waiter(me, wants));
            return Visit::Queued;
        }
        if takes_room && !self.room {
            match cache.room(page).take(|| may_wait.then(|| core.waiter(me, Wants::Anything))) {
                Ok(half) => {
                    self.room = true;
                    self.rings |= half;
                }
                Err(NoRoom::Broken(error)) => return Visit::Failed(error),
                Err(NoRoom::NotNow) => return Visit::Blocked,
                Err(NoRoom::Queued) => {
                    drop(shard);
                    cache.ring_flusher();
                    return Visit::Queued;
                }
            }
        }
        let fua = self.way == Some(Way::Fua);
        let store = Piece { fua, ..Piece::new(IoKind::Store, page, touched) };
        let there_is_a_slot = match (fills, self.store) {
            // A command of its own.
            (true, _) => core.slot_free(run.as_ref()),
            (false, true) => core.slot_for(run.as_ref(), &store, 0),
            (false, false) => true,
        };
        if !there_is_a_slot {
            if may_wait {
                core.wait_slot(me);
                return Visit::Queued;
            }
            return Visit::Blocked;
        }
        let mut fresh = None;
        if fresh_needed {
            let granted = self.granted.take_if(|(of, _)| *of == page).map(|(_, frame)| frame);
            fresh = granted.or_else(|| shard.take_frame(slot));
            if fresh.is_none() {
                if !may_wait {
                    return Visit::Blocked;
                }
                if let Some(frame) = shard.wait_frame(slot, core.waiter(me, Wants::Anything)) {
                    self.granted = Some((page, frame));
                    return Visit::Again;
                }
                drop(shard);
                cache.ring_flusher();
                return Visit::Queued;
            }
        }
        let slot = match (slot, &fresh) {
            (Some(slot), _) => slot,
            (None, Some(frame)) => shard.add(page, frame),
            (None, None) => unreachable!("an absent page comes in with a frame"),
        };
        if !rewrites {
            // Used: what begins now is seen by all.
            self.turn = None;
        }
        if fills {
            let Some(frame) = fresh else { unreachable!("a fill has its frame") };
            shard.stats.misses += 1;
            let begin = |page: Page| match page.begin_read() {
                Ok(reading) => (reading, ()),
                Err((page, _)) => panic!("a fill begins on {page:?}"),
            };
            let ((), _released) = shard.transition(slot, &mut core.wakes, begin);
            drop(shard);
            // Only the blocks that are written in part: a bad block elsewhere is not our affair.
            let missing = edges.without(valid);
            self.outstanding += core.send(me, run);
            let Some((first, count)) = missing.first_run() else { unreachable!("it fills") };
            let fill = Piece::new(IoKind::Fill, page, Blocks::range(first, count));
            self.outstanding += core.gather(me, run, fill, frame);
            return Visit::Blocked;
        }
        let had_room = shard.page(slot).holds_room();
        if rewrites {
            let seq = cache.next_seq();
            let had_frame = fresh.is_some();
            let rewrite = |page: Page| page.rewrite(fresh, touched, seq);
            let (old, _released) = shard.transition(slot, &mut core.wakes, rewrite);
            if had_frame {
                shard.installed();
            }
            if let Some(old) = old {
                shard.detached(old);
            }
            if let Some(content) = shard.page(slot).content() {
                // Under the lock: the page stays readable while the device reads its old frame.
                self.buffer.store(position, &content.frame, offset, len);
            }
            return Visit::Forward;
        }
        let had_frame = fresh.is_some();
        let begin = |page: Page| match page.begin_write(fresh) {
            Ok(begun) => begun,
            Err((page, _)) => panic!("a write begins on {page:?}"),
        };
        let (old, _released) = shard.transition(slot, &mut core.wakes, begin);
        if had_frame {
            shard.installed();
        }
        if let Some(old) = old {
            shard.detached(old);
        }
        shard.touch(slot);
        let Page::Writing(content) = shard.page(slot) else { unreachable!("just begun") };
        let frame = content.frame.share();
        drop(shard);
        self.buffer.store(position, &frame, offset, len);
        let mut shard = cache.shard(page);
        // Nobody else ends the write, but the tables may have shrunk meanwhile: then it lies elsewhere.
        let Some(slot) = shard.find_at(page, slot) else {
            panic!("page {page} left while it was written to")
        };
        let seq = cache.next_seq();
        // In one change: nobody is told of a page that is quiet for no time at all.
        let stores = self.store;
        let end = |page: Page| {
            let page = page.end_write(touched, seq);
            if !stores {
                return (page, None);
            }
            match page.begin_writeback(touched) {
                Ok((page, frame)) => (page, Some(frame)),
                Err((page, _)) => panic!("a store begins on {page:?}"),
            }
        };
        let (stored, _released) = shard.transition(slot, &mut core.wakes, end);
        // The page has a handle, so this one is not the last.
        drop(frame);
        if !had_room {
            self.room = false;
        }
        if let Some(frame) = stored {
            drop(shard);
            self.outstanding += core.gather(me, run, store, frame);
        }
        Visit::Forward
    }

    /// A device request of ours has ended.
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
        let mut oldest_failed = u64::MAX;
        if io.kind == IoKind::Fill {
            let mut frames = data.frames;
            for (page, frame) in core.pages_of(&io, &mut frames) {
                let blocks = core.blocks_of(&io, page);
                self.filled =
                    end_fill(core, page, blocks, frame, result.is_ok(), true, Notes::NONE);
                self.turn = Some(page);
            }
            core.recycle(frames);
        } else {
            // The writer is told here; the data stays dirty and is tried again like any other.
            core.end_store(&io, result, data.frames, self.past, |_, _, oldest| {
                oldest_failed = oldest_failed.min(oldest);
            });
        }
        if let Err(error) = result {
            // As when the flusher fails to write what a flush covers.
            let cache = core.cache.clone();
            let pages = core.page_range(&io);
            cache.fail_covering(&mut core.wakes, error, &pages, oldest_failed);
        }
        self.go_on(me, core)
    }
}

/// The blocks of a page of which a write of these bytes covers only a part.
fn edge_blocks(cache: &Cache, page: u64, offset: usize, len: usize) -> Blocks {
    let block_size = cache.block_size();
    let mut edges = Blocks::NONE;
    if !offset.is_multiple_of(block_size) {
        edges = edges.with(cache.touched(offset, 1));
    }
    if !(offset + len).is_multiple_of(block_size) {
        edges = edges.with(cache.touched(offset + len - 1, 1));
    }
    debug_assert!(cache.existing(page).contains(edges));
    edges
}
