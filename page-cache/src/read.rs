//! Reading through the cache.
//!
//! A read copies what is there, asks the device for what is absent (neighbouring pages in one
//! command) and waits for pages that others are busy with, one at a time. A page once copied is not
//! looked at again: each step leaves less to do.

use uaio_driver::{DmaBuf, FRAME_SIZE, IoError, IoResult, SgList, Token};

use crate::buffer::Buffer;
use crate::cache::Cache;
use crate::lane::{Core, Io, IoKind, PageSet, Piece, Run};
use crate::page::{Blocks, Notes, Page};
use crate::retry::Step;
use crate::wait::{Wakeup, Wants};

/// A read in progress.
#[derive(Debug)]
pub(crate) struct Read {
    offset: u64,
    len: usize,
    buffer: Buffer,
    first_page: u64,
    todo: PageSet,
    /// Pages that held blocks of their own, newer perhaps than the device's, when we asked for the
    /// rest: what the device gives is merged by the page machine, not copied by us.
    merging: PageSet,
    /// Device requests in flight.
    outstanding: usize,
    /// Leave nothing in the cache.
    past: bool,
    /// Nobody reads yet: it only brings the pages in.
    ahead: bool,
    /// Let go of pages that came in for this handle once their last byte is read.
    once: bool,
    /// A command that covered more than we want failed: ask for exactly the blocks wanted, page by
    /// page, so that a bad block costs only who wants it.
    careful: bool,
    error: Option<IoError>,
    /// The page whose queue, or whose shard's frame queue, the entry is on.
    waits_for: u64,
    /// A frame that was handed to us, of the shard of this page.
    granted: Option<(u64, DmaBuf)>,
    /// The page that it is our turn to fill; given back at the end of the step.
    turn: Option<u64>,
}

/// What looking at a page came to.
#[derive(PartialEq, Eq)]
enum Visit {
    /// Copied, or asked for.
    Forward,
    /// Not now; the entry was left on a queue if that was allowed.
    Blocked,
}

impl Read {
    pub(crate) fn new(cache: &Cache, offset: u64, len: usize, buffer: Buffer, past: bool) -> Self {
        let first_page = offset / FRAME_SIZE as u64;
        let last_page = (offset + len as u64 - 1) / FRAME_SIZE as u64;
        debug_assert!(last_page < cache.pages());
        Self {
            offset,
            len,
            buffer,
            first_page,
            todo: PageSet::first((last_page - first_page + 1) as usize),
            merging: PageSet::first(0),
            outstanding: 0,
            past,
            ahead: false,
            once: false,
            careful: false,
            error: None,
            waits_for: first_page,
            granted: None,
            turn: None,
        }
    }

    /// Only brings the pages in; the buffer is none.
    #[must_use]
    pub(crate) fn ahead(self) -> Self {
        Self { ahead: true, ..self }
    }

    /// Lets go of pages that came in for this handle once their last byte is read.
    #[must_use]
    pub(crate) fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// The memory, which nothing is copied to any more.
    pub(crate) fn take_buffer(&mut self) -> Buffer {
        std::mem::replace(&mut self.buffer, Buffer::None)
    }

    /// Asks for nothing more, and ends with this error when what it has asked for has come.
    pub(crate) fn stop(&mut self, error: IoError) {
        self.error = Some(error);
    }

    /// The part of `page` that is wanted: `(offset in page, length, position in the buffer)`.
    fn part(&self, page: u64) -> (usize, usize, usize) {
        let start = page * FRAME_SIZE as u64;
        let from = self.offset.max(start);
        let to = (self.offset + self.len as u64).min(start + FRAME_SIZE as u64);
        ((from - start) as usize, (to - from) as usize, (from - self.offset) as usize)
    }

    /// Whether the last byte of the page is read.
    fn ends(&self, page: u64) -> bool {
        let (offset, len, _) = self.part(page);
        offset + len == FRAME_SIZE
    }

    fn want(&self, core: &Core, page: u64) -> Blocks {
        let (offset, len, _) = self.part(page);
        core.cache.touched(offset, len)
    }

    fn copy(&mut self, page: u64, frame: &DmaBuf) {
        let (offset, len, position) = self.part(page);
        self.buffer.fill(position, frame, offset, len);
        self.todo.remove((page - self.first_page) as usize);
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        let page = self.waits_for;
        let mut pass = None;
        match wakeup {
            Wakeup::Filled(frame, valid) => {
                let todo = self.todo.contains((page - self.first_page) as usize);
                if todo && valid.contains(self.want(core, page)) {
                    self.copy(page, &frame);
                }
                core.cache.unpin(page, frame);
            }
            Wakeup::Frame(frame) => self.granted = Some((page, frame)),
            Wakeup::Ended(Err(error)) => self.error = Some(error),
            Wakeup::Turn => self.turn = Some(page),
            Wakeup::Pass(of) => pass = Some(of),
            other @ (Wakeup::Retry | Wakeup::Room | Wakeup::Entered(_) | Wakeup::Ended(Ok(()))) => {
                core.give_back(page, other)
            }
        }
        let step = self.go_on(me, core);
        if let Some(pass) = pass {
            core.give_back(page, Wakeup::Pass(pass));
        }
        step
    }

    fn go_on(&mut self, me: Token, core: &mut Core) -> Step<IoResult> {
        let step = loop {
            if self.error.is_none() {
                self.visit_all(me, core);
            }
            if self.outstanding > 0 {
                break Step::Waiting;
            }
            let Some(first) = self.todo.next_from(0).filter(|_| self.error.is_none()) else {
                break Step::Done(self.error.map_or(Ok(()), Err));
            };
            // Nothing is in flight and something is not done: wait for the first such page.
            let mut run = None;
            let page = self.first_page + first as u64;
            let visit = self.visit(me, core, page, &mut run, true);
            self.outstanding += core.send(me, &mut run);
            if visit == Visit::Blocked {
                break Step::Waiting;
            }
        };
        // No hold and wait: a frame that was not needed after all goes to the next.
        if let Some((page, frame)) = self.granted.take() {
            core.give_back(page, Wakeup::Frame(frame));
        }
        if let Some(page) = self.turn.take() {
            core.give_back(page, Wakeup::Turn);
        }
        step
    }

    fn visit_all(&mut self, me: Token, core: &mut Core) {
        let mut run = None;
        let mut at = 0;
        while let Some(next) = self.todo.next_from(at) {
            at = next + 1;
            let page = self.first_page + next as u64;
            // What is in flight already is not asked for again: its page is in Reading, or, past
            // the cache, this read waits for all of it before it looks again.
            if self.past && self.outstanding > 0 && run.is_none() {
                break;
            }
            self.visit(me, core, page, &mut run, false);
        }
        self.outstanding += core.send(me, &mut run);
    }

    /// Looks at one page: copies it, asks for it, or, if allowed, leaves the entry on one queue.
    fn visit(
        &mut self,
        me: Token,
        core: &mut Core,
        page: u64,
        run: &mut Option<Run>,
        may_wait: bool,
    ) -> Visit {
        let want = self.want(core, page);
        let cache = core.cache.clone();
        let mut shard = cache.shard(page);
        let slot = shard.find(page);
        let mut missing = cache.existing(page);
        if let Some(slot) = slot {
            if let Some(content) = shard.page(slot).readable() {
                if content.valid.contains(want) {
                    if self.ahead {
                        self.todo.remove((page - self.first_page) as usize);
                        return Visit::Forward;
                    }
                    let frame = content.frame.share();
                    let drops = self.once && content.notes.contains(Notes::ONCE);
                    shard.used(slot);
                    shard.stats.hits += 1;
                    if drops && let Some(notes) = shard.notes(slot) {
                        notes.insert(Notes::ONCE);
                    }
                    drop(shard);
                    self.copy(page, &frame);
                    cache.unpin(page, frame);
                    if drops && self.ends(page) {
                        cache.drop_page(page, false);
                    }
                    return Visit::Forward;
                }
                missing = missing.without(content.valid);
            }
            let others = shard.is_reserved(slot) && self.turn != Some(page);
            if others || !shard.page(slot).is_quiet() {
                if may_wait {
                    shard.stats.merged += 1;
                    self.waits_for = page;
                    // What can be read now lacks what we want: we are to fill it.
                    let fills = shard.page(slot).readable().is_some();
                    let wants = if fills { Wants::Turn } else { Wants::Read };
                    shard.wait_page(slot, core.waiter(me, wants));
                }
                return Visit::Blocked;
            }
        }
        if cache.barriers.covers(page) {
            if may_wait {
                self.waits_for = page;
                if !cache.barriers.wait(page, core.waiter(me, Wants::Anything)) {
                    return Visit::Forward;
                }
            }
            return Visit::Blocked;
        }
        if self.careful {
            missing = missing.and(want);
        }
        // What a page holds may be newer than the device: then even a read past the cache goes
        // through the page, which merges the two.
        let past = self.past && slot.is_none();
        let kind = if past { IoKind::ReadPast } else { IoKind::Fill };
        // From the first missing block to the last: what is valid in between is read along and
        // not taken. A careful read asks for one run of blocks at a time.
        let (first, count) = match (self.careful, missing.span(), missing.first_run()) {
            (false, Some(span), _) => span,
            (true, _, Some(run)) => run,
            (_, None, _) | (_, _, None) => unreachable!("the page is missing a block we want"),
        };
        let piece = Piece::new(kind, page, Blocks::range(first, count));
        let there_is_a_slot = match self.careful {
            true => core.slot_free(run.as_ref()),
            false => core.slot_for(run.as_ref(), &piece, 0),
        };
        if !there_is_a_slot {
            if may_wait {
                core.wait_slot(me);
            }
            return Visit::Blocked;
        }
        if self.past && slot.is_none() && self.buffer.is_registered() {
            shard.stats.misses += 1;
            drop(shard);
            self.ask_own(me, core, page, run);
            return Visit::Forward;
        }
        let granted = self.granted.take_if(|(of, _)| *of == page).map(|(_, frame)| frame);
        let Some(frame) = granted.or_else(|| shard.take_frame(slot)) else {
            if may_wait {
                self.waits_for = page;
                if let Some(frame) = shard.wait_frame(slot, core.waiter(me, Wants::Anything)) {
                    self.granted = Some((page, frame));
                    return Visit::Forward;
                }
                drop(shard);
                core.cache.ring_flusher();
            }
            return Visit::Blocked;
        };
        if self.ahead {
            shard.stats.readahead += 1;
        } else {
            shard.stats.misses += 1;
        }
        let place = (page - self.first_page) as usize;
        if slot.is_some() {
            self.merging.insert(place);
        } else {
            self.merging.remove(place);
        }
        if !past {
            let slot = slot.unwrap_or_else(|| shard.add(page, &frame));
            let begin = |page: Page| match page.begin_read() {
                Ok(reading) => (reading, ()),
                Err((page, _)) => panic!("a read begins on {page:?}"),
            };
            let ((), released) = shard.transition(slot, &mut core.wakes, begin);
            debug_assert_eq!(released.room, 0, "a read frees no room");
            self.turn = self.turn.filter(|of| *of != page);
        }
        drop(shard);
        if self.careful {
            self.outstanding += core.send(me, run);
        }
        self.outstanding += core.gather(me, run, piece, frame);
        Visit::Forward
    }

    /// Has the device read what we want of an absent page into our own frames: exactly that, for the
    /// bytes before and after are not ours, or another's.
    fn ask_own(&mut self, me: Token, core: &mut Core, page: u64, run: &mut Option<Run>) {
        self.merging.remove((page - self.first_page) as usize);
        if self.careful {
            self.outstanding += core.send(me, run);
        }
        let (offset, len, position) = self.part(page);
        let cache = &core.cache;
        let block_size = cache.block_size();
        let lba = page * cache.blocks_per_page() + (offset / block_size) as u64;
        let blocks = (len / block_size) as u32;
        self.outstanding += core.gather_own(me, run, (lba, blocks), &self.buffer, position);
    }

    /// A device read of ours has ended.
    pub(crate) fn settle(
        &mut self,
        me: Token,
        core: &mut Core,
        io: Io,
        result: IoResult,
        data: SgList,
    ) -> Step<IoResult> {
        self.outstanding -= 1;
        let cache = core.cache.clone();
        let mut frames = data.frames;
        let first = io.lba / cache.blocks_per_page();
        let pages = (io.lba + u64::from(io.blocks)).div_ceil(cache.blocks_per_page()) - first;
        let exact = pages == 1 && self.want(core, first).contains(core.blocks_of(&io, first));
        // A device that could not be stopped may write them for ever: they are not asked for again.
        let kept = io.kind == IoKind::ReadOwn && frames.is_empty();
        if io.kind == IoKind::ReadOwn {
            // Handles beside our own: the bytes are where they belong.
            frames.clear();
            if result.is_ok() {
                let done = first - self.first_page..first + pages - self.first_page;
                done.for_each(|place| self.todo.remove(place as usize));
            }
        } else {
            self.take_pages(core, &io, result.is_ok(), &mut frames);
        }
        core.recycle(frames);
        match result {
            Err(error) if exact || kept => self.error = Some(error),
            Err(error) if error.do_not_retry && error.kind == uaio_driver::IoErrorKind::Gone => {
                self.error = Some(error);
            }
            Err(_) => self.careful = true,
            Ok(()) => {}
        }
        self.go_on(me, core)
    }

    /// Copies what has come, and gives the frames to their pages or back.
    fn take_pages(&mut self, core: &mut Core, io: &Io, ok: bool, frames: &mut Vec<DmaBuf>) {
        let cache = core.cache.clone();
        for (page, frame) in core.pages_of(io, frames) {
            let blocks = core.blocks_of(io, page);
            // What we came for is copied before anybody can evict it.
            let merges = self.merging.contains((page - self.first_page) as usize);
            if let Some(frame) = &frame
                && ok
                && !merges
                && blocks.contains(self.want(core, page))
            {
                self.copy(page, frame);
            }
            let mut notes = Notes::NONE;
            if self.ahead {
                notes.insert(Notes::AHEAD);
            }
            if self.once {
                notes.insert(Notes::ONCE);
            }
            match (io.kind, frame) {
                (IoKind::ReadPast, Some(frame)) => core.give_back(page, Wakeup::Frame(frame)),
                (IoKind::ReadPast, None) => cache.shard(page).kept_by_device(),
                (_, frame) => {
                    _ = end_fill(core, page, blocks, frame, ok, false, notes);
                    if self.once && !merges && self.ends(page) {
                        cache.drop_page(page, false);
                    }
                }
            }
        }
    }
}

/// Installs a frame that the device has filled, or has failed to, or keeps. With `pin` the page is
/// pinned before anybody can evict it, and the caller has the next turn at it. A page that was nowhere before gets `notes`.
pub(crate) fn end_fill(
    core: &mut Core,
    page: u64,
    blocks: Blocks,
    frame: Option<DmaBuf>,
    ok: bool,
    pin: bool,
    notes: Notes,
) -> Option<DmaBuf> {
    let cache = core.cache.clone();
    let mut shard = cache.shard(page);
    let found = match &frame {
        Some(frame) => shard.find_at(page, shard.likely_slot(frame)),
        None => shard.find(page),
    };
    let Some(slot) = found else { panic!("page {page} left while it was read") };
    let block_size = cache.block_size();
    let kept_by_device = frame.is_none();
    let waited = shard.page_waiters_len();
    let held = shard.page(slot).content().is_some();
    if pin {
        // Whoever fills a page to write to it is next.
        shard.reserve(slot);
    }
    let end = |page: Page| page.end_read(frame, blocks, ok, block_size);
    let (left, released) = shard.transition(slot, &mut core.wakes, end);
    match left {
        Some(frame) => shard.put_frame(frame),
        // Lent for good: the pool must not give it to anybody else.
        None if kept_by_device => shard.kept_by_device(),
        None => shard.installed(),
    }
    if notes != Notes::NONE
        && !held
        && let Some(own) = shard.notes(slot)
    {
        *own = notes;
        if shard.page_waiters_len() < waited && notes.contains(Notes::AHEAD) {
            // Whoever waited has it already.
            shard.used(slot);
        }
    }
    // A read that filled nothing has left the shard, and its slot is somebody else's to be.
    let pinned = match shard.page(slot).readable() {
        Some(content) if pin && ok => Some(content.frame.share()),
        _ => None,
    };
    shard.hand_over(&mut core.wakes);
    drop(shard);
    cache.room(page).release(released.room, &mut core.wakes);
    pinned
}
