//! The page machine: one enum, and every transition of it.
//!
//! | from | event | to | waiters | frame belongs to |
//! |---|---|---|---|---|
//! | absent | `begin_read` | Reading | first one queued | the request |
//! | absent | `begin_write` of whole blocks | Writing | none | the page |
//! | Clean, Dirty | `begin_read` of blocks that are not valid | Reading, holding what it has | queued | request and page, each its own |
//! | Reading | `end_read` ok, error | Clean or Dirty, or as before | all woken | the page, the pool |
//! | Clean, Dirty | `begin_write` | Writing | queued | the page |
//! | Writing | `end_write` | Dirty | all woken | the page |
//! | Dirty | `begin_writeback` | Writeback | flushers queued | page and request share it |
//! | Writeback | `rewrite` | Writeback, dirtied again | none | a fresh frame |
//! | Writeback | `end_writeback` ok | Clean, or Dirty if dirtied again | all woken | the page |
//! | Writeback | `end_writeback` error | Dirty | all woken | the page |
//! | Clean | `take_back` | Dirty | none | the page |
//! | Clean, Dirty | `forget` of every valid block | absent | none | the pool, once unpinned |
//! | Clean | evicted | absent | none | the pool |
//!
//! Everything else is busy: the caller queues on the page and looks again. A discard that meets a
//! page being read waits for the read, too: it would otherwise have to leave a mark in the page, and
//! the read is bounded like everything.
//!
//! A block that the device has taken may be lost until a device flush covers it: the page says of which
//! of its blocks that is so, and dirties them again when a flush fails ([`crate::stability`]), in whatever
//! state it is.
//!
//! # Rounds
//!
//! One command carries one run of blocks, so a page with gaps is written in several, one after the other.
//! Those are a *round*: each block that was dirty when it began is written once in it, and what is written
//! to a block that has had its turn waits for the next round, with a number of its own. Without it a block
//! that somebody writes all the time would be sent again and again in place of its neighbours, and a
//! flush that waits for those would never end.

use uaio_driver::{DmaBuf, FRAME_SIZE};

/// A set of device blocks inside one page, as a bit mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks(pub u8);

impl Blocks {
    /// No block.
    pub const NONE: Self = Self(0);

    /// `count` blocks from `first` on.
    pub const fn range(first: u32, count: u32) -> Self {
        Self((((1u32 << count) - 1) << first) as u8)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` is in this.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The first run of neighbours: `(first, count)`.
    pub const fn first_run(self) -> Option<(u32, u32)> {
        if self.is_empty() {
            return None;
        }
        let first = self.0.trailing_zeros();
        Some((first, (self.0 >> first).trailing_ones()))
    }

    /// From the first to the last, gaps included: `(first, count)`.
    pub const fn span(self) -> Option<(u32, u32)> {
        if self.is_empty() {
            return None;
        }
        let first = self.0.trailing_zeros();
        Some((first, 8 - self.0.leading_zeros() - first))
    }

    /// Each run of neighbours.
    pub fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let (first, count) = rest.first_run()?;
            rest = rest.without(Self::range(first, count));
            Some((first, count))
        })
    }
}

/// What readahead noted on a page, as a bit mask; see [`crate::readahead`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes(u8);

impl Notes {
    pub(crate) const NONE: Self = Self(0);
    /// Read ahead, and nobody has used it yet.
    pub(crate) const AHEAD: Self = Self(1);
    /// Its reader has no use for it after its last byte.
    pub(crate) const ONCE: Self = Self(2);
    /// Who reaches it sets off the next window.
    pub(crate) const MARK: Self = Self(4);

    pub(crate) fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a reader has to go through an operation, which does what the notes say.
    pub(crate) fn need_operation(self) -> bool {
        self.0 & (Self::ONCE.0 | Self::MARK.0) != 0
    }
}

/// The sequence number of a write, in the 7 bytes that last for two centuries at ten million writes a
/// second: there is one in every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seq([u8; 7]);

impl Seq {
    const FIRST: Self = Self([0; 7]);
    const LAST: Self = Self([0xff; 7]);

    pub(crate) fn new(number: u64) -> Self {
        let mut bytes = [0; 7];
        bytes.copy_from_slice(&number.to_le_bytes()[..7]);
        Self(bytes)
    }

    pub(crate) fn get(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..7].copy_from_slice(&self.0);
        u64::from_le_bytes(bytes)
    }
}

/// How much higher than another a sequence number is, at most what fits: a number that is taken for
/// lower than it is makes a flush wait for a write that it need not cover, never the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(2))]
pub(crate) struct Later(u32);

impl Later {
    const NONE: Self = Self(0);

    fn between(oldest: Seq, seq: u64) -> Self {
        Self(u32::try_from(seq.saturating_sub(oldest.get())).unwrap_or(u32::MAX))
    }

    fn after(self, oldest: Seq) -> Seq {
        Seq::new(oldest.get() + u64::from(self.0))
    }
}

/// What a page that is there holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) frame: DmaBuf,
    /// Blocks whose newest data is in the frame.
    pub(crate) valid: Blocks,
    /// Blocks that are newer than the device's; always valid too.
    pub(crate) dirty: Blocks,
    /// Blocks that are not of this round of writebacks any more, or not yet. Those of them that are dirty
    /// wait for the next.
    done: Blocks,
    /// Blocks that the device has taken and may lose. Of a clean page perhaps not any more: `seq` tells.
    unstable: Blocks,
    pub(crate) notes: Notes,
    /// Sequence number of the oldest write in this round, those that are being written included. Of a
    /// clean page the [epoch](crate::stability::Stability::epoch) in which its last writeback ended.
    seq: Seq,
    /// By how much the number of the oldest write for the next round is higher.
    later: Later,
}

impl Content {
    pub(crate) fn empty(frame: DmaBuf) -> Self {
        Self {
            frame,
            valid: Blocks::NONE,
            dirty: Blocks::NONE,
            done: Blocks::NONE,
            unstable: Blocks::NONE,
            notes: Notes::NONE,
            seq: Seq::FIRST,
            later: Later::NONE,
        }
    }

    /// The blocks that are to be written in this round still.
    pub(crate) fn round(&self) -> Blocks {
        self.dirty.without(self.done)
    }

    fn dirtied(&mut self, blocks: Blocks, seq: u64) {
        if self.done.is_empty() {
            if self.dirty.is_empty() {
                self.seq = Seq::new(seq);
            }
        } else {
            if self.dirty.and(self.done).is_empty() {
                self.later = Later::between(self.seq, seq);
            }
            // A round is of what was dirty when it began.
            self.done = self.done.with(blocks.without(self.dirty));
        }
        self.valid = self.valid.with(blocks);
        self.dirty = self.dirty.with(blocks);
    }

    /// No writeback is in flight: when the round is over, the next begins.
    fn settled(mut self) -> Page {
        if self.round().is_empty() {
            self.done = Blocks::NONE;
            self.seq = self.later.after(self.seq);
            self.later = Later::NONE;
        }
        if !self.dirty.is_empty() { Page::Dirty(self) } else { Page::Clean(self) }
    }

    /// Copies `blocks` of another frame into this one.
    pub(crate) fn copy_blocks(&self, from: &DmaBuf, blocks: Blocks, block_size: usize) {
        for (first, count) in blocks.runs() {
            let at = first as usize * block_size;
            self.frame.copy_from(at, from, at, count as usize * block_size);
        }
    }
}

/// A page: its state says who owns the frame.
#[derive(Debug)]
pub(crate) enum Page {
    /// Not in the cache.
    Absent,
    /// A device read of missing blocks is in flight, into a frame of its own.
    Reading {
        /// What the page had before, when it had something.
        held: Option<Content>,
    },
    /// As on the device.
    Clean(Content),
    /// A writer is copying into the frame.
    Writing(Content),
    /// Newer than the device.
    Dirty(Content),
    /// A device write of `writing` is in flight; request and page share the frame, unless the page
    /// was dirtied again and has a fresh one.
    Writeback {
        /// What the page holds; `dirty` are blocks dirtied again or left for later.
        content: Content,
        /// Blocks being written.
        writing: Blocks,
    },
}

/// What became of a device write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It failed, or a flush that failed meanwhile may have taken it back.
    No,
    /// The device has it, and may lose it until a flush that is begun after this epoch.
    Volatile(u64),
    /// It is on stable media, in this epoch.
    Stable(u64),
}

/// The state does not allow the event now: queue on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

impl Page {
    /// What the page holds, if it holds anything.
    pub(crate) fn content(&self) -> Option<&Content> {
        match self {
            Self::Absent | Self::Reading { held: None } => None,
            Self::Reading { held: Some(content) }
            | Self::Clean(content)
            | Self::Writing(content)
            | Self::Dirty(content)
            | Self::Writeback { content, .. } => Some(content),
        }
    }

    /// The content, when a reader may copy from it now.
    pub(crate) fn readable(&self) -> Option<&Content> {
        match self {
            Self::Clean(content) | Self::Dirty(content) | Self::Writeback { content, .. } => {
                Some(content)
            }
            Self::Absent | Self::Reading { .. } | Self::Writing(_) => None,
        }
    }

    /// Whether nobody is busy with it: an operation on it may begin.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self, Self::Absent | Self::Clean(_) | Self::Dirty(_))
    }

    /// What readahead noted, when a reader may copy from the page now.
    pub(crate) fn notes_mut(&mut self) -> Option<&mut Notes> {
        match self {
            Self::Clean(content) | Self::Dirty(content) | Self::Writeback { content, .. } => {
                Some(&mut content.notes)
            }
            Self::Absent | Self::Reading { .. } | Self::Writing(_) => None,
        }
    }

    /// Whether it has dirty blocks, and the sequence number of the oldest.
    pub(crate) fn dirty_since(&self) -> Option<u64> {
        let content = self.content().filter(|content| !content.dirty.is_empty())?;
        let next_round = content.round().is_empty();
        let later = if next_round { content.later } else { Later::NONE };
        Some(later.after(content.seq).get())
    }

    /// Whether a writeback is in flight, and the sequence number of the oldest write in it.
    pub(crate) fn written_since(&self) -> Option<u64> {
        match self {
            Self::Writeback { content, .. } => Some(content.seq.get()),
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Dirty(_) => None,
        }
    }

    /// The blocks that the device may not have: dirty, or in flight.
    pub(crate) fn unwritten(&self) -> Blocks {
        let dirty = self.content().map_or(Blocks::NONE, |content| content.dirty);
        match self {
            Self::Writeback { writing, .. } => dirty.with(*writing),
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Dirty(_) => dirty,
        }
    }

    /// Whether it counts against the dirty limit: it holds data the device does not have yet, or a
    /// writer has room for it.
    pub(crate) fn holds_room(&self) -> bool {
        matches!(self, Self::Writing(_))
            || self.dirty_since().is_some()
            || self.written_since().is_some()
    }

    /// A device read of blocks that are not valid starts.
    pub(crate) fn begin_read(self) -> Result<Self, (Self, Busy)> {
        match self {
            Self::Absent => Ok(Self::Reading { held: None }),
            Self::Clean(content) | Self::Dirty(content) => {
                Ok(Self::Reading { held: Some(content) })
            }
            Self::Reading { .. } | Self::Writing(_) | Self::Writeback { .. } => Err((self, Busy)),
        }
    }

    /// The device read of `blocks` into `frame` has ended, well or not; there is no frame when the
    /// device keeps it. Also gives back the frame that the page does not take.
    ///
    /// # Panics
    ///
    /// When the page is not being read: each read ends once.
    pub(crate) fn end_read(
        self,
        frame: Option<DmaBuf>,
        blocks: Blocks,
        ok: bool,
        block_size: usize,
    ) -> (Self, Option<DmaBuf>) {
        match (self, frame) {
            (Self::Reading { held: None }, Some(frame)) if ok => {
                let content = Content { valid: blocks, ..Content::empty(frame) };
                (Self::Clean(content), None)
            }
            (Self::Reading { held: None }, frame) => (Self::Absent, frame),
            (Self::Reading { held: Some(mut content) }, frame) => {
                if let Some(frame) = frame.as_ref().filter(|_| ok) {
                    // Blocks that are valid already may be dirty: the device's are older. Readers
                    // that pin the frame look at valid blocks only.
                    let missing = blocks.without(content.valid);
                    content.copy_blocks(frame, missing, block_size);
                    content.valid = content.valid.with(missing);
                }
                (content.settled(), frame)
            }
            (
                page @ (Self::Absent
                | Self::Clean(_)
                | Self::Writing(_)
                | Self::Dirty(_)
                | Self::Writeback { .. }),
                _,
            ) => panic!("a read ended on a page in {page:?}"),
        }
    }

    /// A writer starts to copy. `fresh` is the frame for a page that has none, or whose frame is
    /// pinned by readers: then what the frame holds is copied over, and the old frame comes back to
    /// be released. Check [`needs_fresh_frame`](Page::needs_fresh_frame) first.
    pub(crate) fn begin_write(
        self,
        fresh: Option<DmaBuf>,
    ) -> Result<(Self, Option<DmaBuf>), (Self, Busy)> {
        match (self, fresh) {
            (Self::Absent, Some(frame)) => Ok((Self::Writing(Content::empty(frame)), None)),
            (Self::Clean(content) | Self::Dirty(content), None) => {
                Ok((Self::Writing(content), None))
            }
            (Self::Clean(content) | Self::Dirty(content), Some(frame)) => {
                let (content, old) = content.moved_to(frame);
                Ok((Self::Writing(content), Some(old)))
            }
            (page @ (Self::Reading { .. } | Self::Writing(_) | Self::Writeback { .. }), None) => {
                Err((page, Busy))
            }
            (page, fresh) => panic!("a write begins on {page:?} with fresh frame {fresh:?}"),
        }
    }

    /// Whether a write that begins now needs a frame: the page has none, or readers pin it, or the
    /// device is reading it.
    pub(crate) fn needs_fresh_frame(&self) -> bool {
        match self {
            Self::Absent => true,
            Self::Clean(content) | Self::Dirty(content) | Self::Writeback { content, .. } => {
                content.frame.is_shared()
            }
            Self::Reading { .. } | Self::Writing(_) => false,
        }
    }

    /// The writer has copied `blocks`; the write has sequence number `seq`.
    ///
    /// # Panics
    ///
    /// When no writer is copying.
    pub(crate) fn end_write(self, blocks: Blocks, seq: u64) -> Self {
        match self {
            Self::Writing(mut content) => {
                content.dirtied(blocks, seq);
                Self::Dirty(content)
            }
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Dirty(_)
            | Self::Writeback { .. } => panic!("a write ended on a page in {self:?}"),
        }
    }

    /// Moves a page under writeback to a fresh frame if the device still reads the old one, so that
    /// `blocks` can be written into it at once, under the lock: it stays readable throughout.
    ///
    /// # Panics
    ///
    /// When the page is not under writeback, or the frame is needed and not given.
    pub(crate) fn rewrite(
        self,
        fresh: Option<DmaBuf>,
        blocks: Blocks,
        seq: u64,
    ) -> (Self, Option<DmaBuf>) {
        let Self::Writeback { content, writing } = self else {
            panic!("a rewrite of a page in {self:?}")
        };
        let (mut content, old) = match fresh {
            Some(frame) => {
                let (content, old) = content.moved_to(frame);
                (content, Some(old))
            }
            None => {
                assert!(!content.frame.is_shared(), "the device is reading this frame");
                (content, None)
            }
        };
        content.dirtied(blocks, seq);
        (Self::Writeback { content, writing }, old)
    }

    /// A device write of `blocks`, all of them dirty, starts; the handle is the request's.
    pub(crate) fn begin_writeback(self, blocks: Blocks) -> Result<(Self, DmaBuf), (Self, Busy)> {
        match self {
            Self::Dirty(mut content) => {
                assert!(content.dirty.contains(blocks) && !blocks.is_empty(), "{blocks:?}");
                content.dirty = content.dirty.without(blocks);
                content.done = content.done.with(blocks);
                let frame = content.frame.share();
                Ok((Self::Writeback { content, writing: blocks }, frame))
            }
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Writeback { .. } => Err((self, Busy)),
        }
    }

    /// The device write has ended. A failed one leaves its blocks dirty, with their old number; they have
    /// had their turn all the same, so that one that cannot be written stands in no other's way.
    ///
    /// # Panics
    ///
    /// When none was in flight.
    pub(crate) fn end_writeback(self, written: Written) -> Self {
        match self {
            Self::Writeback { mut content, writing } => {
                match written {
                    Written::No => {
                        // A block dirtied again meanwhile holds newer data and is as dirty as before;
                        // the others were copied along into the fresh frame.
                        content.dirty = content.dirty.with(writing.and(content.valid));
                        content.later = Later::NONE;
                    }
                    Written::Volatile(_) => content.unstable = content.unstable.with(writing),
                    Written::Stable(_) => content.unstable = content.unstable.without(writing),
                }
                let mut page = content.settled();
                if let (Self::Clean(content), Written::Volatile(epoch) | Written::Stable(epoch)) =
                    (&mut page, written)
                {
                    content.seq = Seq::new(epoch);
                }
                page
            }
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Dirty(_) => panic!("a writeback ended on a page in {self:?}"),
        }
    }

    /// The blocks that the device may lose, when `is_stable` says of epochs whether it cannot.
    pub(crate) fn unstable(&self, is_stable: impl FnOnce(u64) -> bool) -> Blocks {
        let unstable = self.content().map_or(Blocks::NONE, |content| content.unstable);
        match self {
            Self::Clean(content) if !unstable.is_empty() && is_stable(content.seq.get()) => {
                Blocks::NONE
            }
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Dirty(_)
            | Self::Writeback { .. } => unstable,
        }
    }

    /// The epoch in which the device took what it may lose of a clean page.
    pub(crate) fn taken_in(&self) -> Option<u64> {
        match self {
            Self::Clean(content) => Some(content.seq.get()),
            Self::Absent
            | Self::Reading { .. }
            | Self::Writing(_)
            | Self::Dirty(_)
            | Self::Writeback { .. } => None,
        }
    }

    /// Of a clean page, what is known to be stable by now is noted as such: when it changes its state the
    /// epoch goes.
    pub(crate) fn prune_unstable(&mut self, is_stable: impl FnOnce(u64) -> bool) {
        if let Self::Clean(content) = self
            && !content.unstable.is_empty()
            && is_stable(content.seq.get())
        {
            content.unstable = Blocks::NONE;
        }
    }

    /// A device flush has failed: what the device may have lost is dirty again, older than anything
    /// else. What is being written now is dealt with when that ends.
    pub(crate) fn take_back(mut self, is_stable: impl FnOnce(u64) -> bool) -> Self {
        let writing = match &self {
            Self::Writeback { writing, .. } => *writing,
            Self::Absent
            | Self::Reading { .. }
            | Self::Clean(_)
            | Self::Writing(_)
            | Self::Dirty(_) => Blocks::NONE,
        };
        let lost = self.unstable(is_stable).without(writing);
        let content = match &mut self {
            Self::Absent | Self::Reading { held: None } => return self,
            Self::Reading { held: Some(content) }
            | Self::Clean(content)
            | Self::Writing(content)
            | Self::Dirty(content)
            | Self::Writeback { content, .. } => content,
        };
        content.unstable = Blocks::NONE;
        if lost.is_empty() {
            return self;
        }
        if !content.dirty.and(content.done).is_empty() {
            let next_round = content.later.after(content.seq);
            content.later = Later::between(Seq::FIRST, next_round.get());
        }
        content.seq = Seq::FIRST;
        content.dirty = content.dirty.with(lost);
        content.done = content.done.without(lost);
        match self {
            Self::Clean(content) => Self::Dirty(content),
            page @ (Self::Absent
            | Self::Reading { .. }
            | Self::Writing(_)
            | Self::Dirty(_)
            | Self::Writeback { .. }) => page,
        }
    }

    /// The data of `blocks` is void: it was discarded or overwritten on the device. With
    /// `keep_dirty`, because that failed, only what could be read again goes. Gives the frame back
    /// when nothing is left.
    pub(crate) fn forget(
        self,
        blocks: Blocks,
        keep_dirty: bool,
    ) -> Result<(Self, Option<DmaBuf>), (Self, Busy)> {
        let was_dirty = matches!(self, Self::Dirty(_));
        let mut content = match self {
            Self::Absent => return Ok((Self::Absent, None)),
            Self::Reading { .. } | Self::Writing(_) | Self::Writeback { .. } => {
                return Err((self, Busy));
            }
            Self::Clean(content) | Self::Dirty(content) => content,
        };
        let kept = if keep_dirty { content.dirty } else { Blocks::NONE };
        let gone = blocks.without(kept);
        content.valid = content.valid.without(gone);
        content.dirty = content.dirty.without(gone);
        content.done = content.done.without(gone);
        content.unstable = content.unstable.without(gone);
        if content.valid.is_empty() {
            return Ok((Self::Absent, Some(content.frame)));
        }
        let mut page = content.settled();
        if let Self::Clean(content) = &mut page
            && was_dirty
        {
            // Nobody knows when what the device has of it was taken: it is stable after no flush.
            content.seq = Seq::LAST;
        }
        Ok((page, None))
    }
}

impl Content {
    /// The same content in another frame, and the old frame.
    fn moved_to(mut self, frame: DmaBuf) -> (Self, DmaBuf) {
        // The whole frame: cheaper to copy than to look at the runs of valid blocks.
        frame.copy_from(0, &self.frame, 0, FRAME_SIZE);
        let old = std::mem::replace(&mut self.frame, frame);
        (self, old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uaio_driver::{DmaPool, PoolOptions};

    const BLOCK: usize = 512;
    const ALL: Blocks = Blocks(0xff);
    const SOME: Blocks = Blocks(0b0000_1111);

    fn pool() -> DmaPool {
        DmaPool::new(PoolOptions::frames(16)).unwrap()
    }

    fn content(pool: &DmaPool, valid: Blocks, dirty: Blocks) -> Content {
        Content { valid, dirty, seq: Seq::new(7), ..Content::empty(pool.take().unwrap()) }
    }

    const STATES: [&str; 7] =
        ["absent", "reading", "reading-held", "clean", "writing", "dirty", "writeback"];

    fn page(state: &str, pool: &DmaPool) -> Page {
        match state {
            "absent" => Page::Absent,
            "reading" => Page::Reading { held: None },
            "reading-held" => Page::Reading { held: Some(content(pool, SOME, SOME)) },
            "clean" => Page::Clean(content(pool, ALL, Blocks::NONE)),
            "writing" => Page::Writing(content(pool, ALL, SOME)),
            "dirty" => Page::Dirty(content(pool, ALL, SOME)),
            "writeback" => Page::Writeback {
                content: Content {
                    seq: Seq::new(3),
                    done: SOME,
                    ..content(pool, ALL, Blocks::NONE)
                },
                writing: SOME,
            },
            other => panic!("no state {other}"),
        }
    }

    fn name(page: &Page) -> &'static str {
        match page {
            Page::Absent => "absent",
            Page::Reading { held: None } => "reading",
            Page::Reading { held: Some(_) } => "reading-held",
            Page::Clean(_) => "clean",
            Page::Writing(_) => "writing",
            Page::Dirty(_) => "dirty",
            Page::Writeback { .. } => "writeback",
        }
    }

    /// What an event does to each of [`STATES`], in that order: the next state, `busy` when the
    /// caller has to queue, `panic` when the event cannot happen there.
    fn table(event: &str) -> [&'static str; 7] {
        const P: &str = "panic";
        const B: &str = "busy";
        match event {
            "read miss" => ["reading", B, B, "reading-held", B, "reading-held", B],
            "read ok" => [P, "clean", "dirty", P, P, P, P],
            "read error" => [P, "absent", "dirty", P, P, P, P],
            "write begins" => ["writing", B, B, "writing", B, "writing", B],
            "write ends" => [P, P, P, P, "dirty", P, P],
            "writeback starts" => [B, B, B, B, B, "writeback", B],
            "rewrite" => [P, P, P, P, P, P, "writeback"],
            "writeback ok" => [P, P, P, P, P, P, "clean"],
            "a flush failed" => {
                ["absent", "reading", "reading-held", "dirty", "writing", "dirty", "writeback"]
            }
            "writeback error" => [P, P, P, P, P, P, "dirty"],
            "forget all" => ["absent", B, B, "absent", B, "absent", B],
            "forget dirty blocks" => ["absent", B, B, "clean", B, "clean", B],
            "forget all but dirty" => ["absent", B, B, "absent", B, "dirty", B],
            other => panic!("no event {other}"),
        }
    }

    fn apply(event: &str, page: Page, pool: &DmaPool) -> &'static str {
        let frame = || pool.take().unwrap();
        let result = match event {
            "read miss" => page.begin_read(),
            "read ok" => Ok(page.end_read(Some(frame()), ALL, true, BLOCK).0),
            "read error" => Ok(page.end_read(Some(frame()), ALL, false, BLOCK).0),
            "write begins" => {
                let fresh = page.needs_fresh_frame().then(frame);
                page.begin_write(fresh).map(|(page, _)| page)
            }
            "write ends" => Ok(page.end_write(SOME, 9)),
            "writeback starts" => page.begin_writeback(SOME).map(|(page, _)| page),
            "rewrite" => Ok(page.rewrite(Some(frame()), SOME, 9).0),
            "writeback ok" => Ok(page.end_writeback(Written::Volatile(1))),
            "writeback error" => Ok(page.end_writeback(Written::No)),
            "a flush failed" => {
                let unstable = |content: Content| Content { unstable: ALL, ..content };
                let page = match page {
                    Page::Clean(content) => Page::Clean(unstable(content)),
                    other => other,
                };
                Ok(page.take_back(|_| false))
            }
            "forget all" => page.forget(ALL, false).map(|(page, _)| page),
            "forget dirty blocks" => page.forget(SOME, false).map(|(page, _)| page),
            "forget all but dirty" => page.forget(ALL, true).map(|(page, _)| page),
            other => panic!("no event {other}"),
        };
        result.map_or("busy", |page| name(&page))
    }

    #[test]
    fn every_state_meets_every_event_as_the_table_says() {
        let events = [
            "read miss",
            "read ok",
            "read error",
            "write begins",
            "write ends",
            "writeback starts",
            "rewrite",
            "writeback ok",
            "writeback error",
            "a flush failed",
            "forget all",
            "forget dirty blocks",
            "forget all but dirty",
        ];
        // Panics are part of the table; their messages are not part of the output.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let mut wrong = Vec::new();
        for event in events {
            for (state, want) in STATES.iter().zip(table(event)) {
                let got = std::panic::catch_unwind(|| {
                    let pool = pool();
                    apply(event, page(state, &pool), &pool)
                });
                let got = got.unwrap_or("panic");
                if got != want {
                    wrong.push(format!("{event} on {state}: {got} instead of {want}"));
                }
            }
        }
        std::panic::set_hook(hook);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn fill(frame: &DmaBuf, byte: u8) {
        frame.write(0, &[byte; FRAME_SIZE]);
    }

    fn block(page: &Page, index: usize) -> u8 {
        let mut byte = [0];
        page.content().unwrap().frame.read(index * BLOCK, &mut byte);
        byte[0]
    }

    #[test]
    fn a_fill_takes_only_the_missing_blocks() {
        let pool = pool();
        let held = content(&pool, SOME, SOME);
        fill(&held.frame, 1);
        let from_device = pool.take().unwrap();
        fill(&from_device, 2);
        let page = Page::Reading { held: Some(held) };
        let (page, left) = page.end_read(Some(from_device), ALL, true, BLOCK);
        assert!(left.is_some(), "the frame of the request was kept");
        assert_eq!(
            (block(&page, 0), block(&page, 3), block(&page, 4), block(&page, 7)),
            (1, 1, 2, 2)
        );
        let content = page.content().unwrap();
        assert_eq!((content.valid, content.dirty), (ALL, SOME));
    }

    #[test]
    fn a_read_whose_frame_the_device_keeps_leaves_the_page_as_it_was() {
        let pool = pool();
        let (page, left) = Page::Reading { held: None }.end_read(None, ALL, false, BLOCK);
        assert_eq!((name(&page), left.is_some()), ("absent", false));
        let held = Page::Reading { held: Some(content(&pool, SOME, SOME)) };
        let (page, left) = held.end_read(None, ALL, false, BLOCK);
        assert_eq!((name(&page), left.is_some()), ("dirty", false));
        assert_eq!(page.content().unwrap().valid, SOME);
    }

    #[test]
    fn a_page_dirtied_under_writeback_keeps_what_the_device_may_lose() {
        let pool = pool();
        let dirty = content(&pool, ALL, Blocks(0b11));
        fill(&dirty.frame, 1);
        let (page, request) = Page::Dirty(dirty).begin_writeback(Blocks(0b11)).unwrap();
        assert!(page.needs_fresh_frame(), "the device is reading the frame");
        let (page, old) = page.rewrite(pool.take(), Blocks(0b10), 9);
        assert!(old.unwrap().release().is_none(), "the request has a handle");
        page.content().unwrap().frame.write(BLOCK, &[2; BLOCK]);
        assert_eq!(page.written_since(), Some(7));
        assert_eq!(page.dirty_since(), Some(9));
        // The device still reads what was there.
        let mut seen = [0];
        request.read(BLOCK, &mut seen);
        assert_eq!(seen, [1]);
        let page = page.end_writeback(Written::No);
        // Block 0 failed, block 1 was dirtied again: both are dirty, since the older write.
        assert_eq!(page.content().unwrap().dirty, Blocks(0b11));
        assert_eq!(page.dirty_since(), Some(7));
        assert_eq!((block(&page, 0), block(&page, 1)), (1, 2));
    }

    #[test]
    fn a_write_to_a_pinned_page_leaves_the_pin_a_snapshot() {
        let pool = pool();
        let clean = content(&pool, ALL, Blocks::NONE);
        fill(&clean.frame, 1);
        let pin = clean.frame.share();
        let page = Page::Clean(clean);
        assert!(page.needs_fresh_frame());
        let (page, old) = page.begin_write(pool.take()).unwrap();
        assert!(old.unwrap().release().is_none());
        page.content().unwrap().frame.write(0, &[2]);
        let mut seen = [0];
        pin.read(0, &mut seen);
        assert_eq!(seen, [1]);
        assert_eq!((block(&page, 0), block(&page, 7)), (2, 1));
    }

    #[test]
    fn what_is_left_of_a_page_with_gaps_stays_dirty_since_the_oldest_write() {
        let pool = pool();
        let dirty = content(&pool, ALL, Blocks(0b1001));
        let (page, _request) = Page::Dirty(dirty).begin_writeback(Blocks(0b0001)).unwrap();
        let page = page.end_writeback(Written::Stable(1));
        assert_eq!(page.content().unwrap().dirty, Blocks(0b1000));
        assert_eq!(page.dirty_since(), Some(7));
    }

    #[test]
    fn a_round_writes_each_block_once_however_often_others_are_written_meanwhile() {
        let pool = pool();
        let mut page = Page::Dirty(content(&pool, ALL, Blocks(0b101_0101)));
        let mut turns = Vec::new();
        for seq in 100.. {
            let content = page.content().unwrap();
            if page.dirty_since() != Some(7) {
                break;
            }
            let (first, count) = content.round().first_run().unwrap();
            turns.push(first);
            let (writeback, request) = page.begin_writeback(Blocks::range(first, count)).unwrap();
            // The first, and one in a gap, over and over.
            let (writeback, old) = writeback.rewrite(pool.take(), Blocks(0b11), seq);
            drop((request, old));
            page = writeback.end_writeback(Written::Volatile(1));
        }
        assert_eq!(turns, [0, 2, 4, 6]);
        assert_eq!(page.content().unwrap().round(), Blocks(0b11), "the next round is of these");
        assert_eq!(page.dirty_since(), Some(100), "and as old as the first write for it");
    }

    #[test]
    fn a_block_that_cannot_be_written_has_one_turn_a_round_and_keeps_its_number() {
        let pool = pool();
        let mut page = Page::Dirty(content(&pool, ALL, Blocks(0b111)));
        let mut turns = Vec::new();
        for _ in 0..6 {
            let round = page.content().unwrap().round();
            let first = round.first_run().unwrap().0;
            turns.push(first);
            let (writeback, request) = page.begin_writeback(Blocks::range(first, 1)).unwrap();
            drop(request);
            let written = if first == 0 { Written::No } else { Written::Volatile(1) };
            page = writeback.end_writeback(written);
            assert_eq!(page.dirty_since(), Some(7));
        }
        assert_eq!(turns, [0, 1, 2, 0, 0, 0]);
    }

    #[test]
    fn what_the_device_has_taken_is_dirty_again_when_a_flush_fails_unless_it_is_stable() {
        let pool = pool();
        let dirty = || Page::Dirty(content(&pool, ALL, Blocks(0b11)));
        let write = |page: Page, blocks, written| {
            let (page, request) = page.begin_writeback(blocks).unwrap();
            drop(request);
            page.end_writeback(written)
        };
        let clean = |written| write(dirty(), Blocks(0b11), written);
        let taken_back = |page: Page| {
            let page = page.take_back(|epoch| epoch < 5);
            (page.content().unwrap().dirty, page.dirty_since())
        };
        assert_eq!(taken_back(clean(Written::Volatile(5))), (Blocks(0b11), Some(0)));
        assert_eq!(taken_back(clean(Written::Volatile(4))), (Blocks::NONE, None));
        assert_eq!(taken_back(clean(Written::Stable(5))), (Blocks::NONE, None));
        // Written again by a command that is FUA, or only partly.
        let again = |blocks| {
            let (page, _) = clean(Written::Volatile(5)).begin_write(None).unwrap();
            write(page.end_write(blocks, 9), blocks, Written::Stable(6))
        };
        assert_eq!(taken_back(again(Blocks(0b11))), (Blocks::NONE, None));
        assert_eq!(taken_back(again(Blocks(0b01))), (Blocks(0b10), Some(0)));
        // Discarded since; and what is left when only the dirty part was.
        let (page, _) = clean(Written::Volatile(5)).forget(Blocks(0b01), false).unwrap();
        assert_eq!(taken_back(page), (Blocks(0b10), Some(0)));
        let half = write(dirty(), Blocks(0b01), Written::Volatile(4));
        let (page, _) = half.forget(Blocks(0b10), false).unwrap();
        assert_eq!(taken_back(page), (Blocks(0b01), Some(0)), "it does not know since when");
        // During the next writeback: what is being written is dealt with when that ends.
        let (page, _) = clean(Written::Volatile(5)).begin_write(None).unwrap();
        let page = page.end_write(Blocks(0b01), 9);
        let (page, request) = page.begin_writeback(Blocks(0b01)).unwrap();
        drop(request);
        let (page, _) = page.rewrite(pool.take(), Blocks(0b01), 30);
        let page = page.take_back(|_| false);
        assert_eq!(page.content().unwrap().round(), Blocks(0b10));
        assert_eq!(page.dirty_since(), Some(0));
        let page = write(page.end_writeback(Written::No), Blocks(0b10), Written::Volatile(6));
        assert_eq!((page.content().unwrap().dirty, page.dirty_since()), (Blocks(0b01), Some(0)));
    }

    #[test]
    fn a_number_is_what_it_was() {
        for number in [0, 1, u64::from(u32::MAX) + 7, (1 << 56) - 1] {
            assert_eq!(Seq::new(number).get(), number);
        }
    }

    #[test]
    fn runs_and_spans_of_blocks() {
        let blocks = Blocks(0b0110_1000);
        assert_eq!(blocks.first_run(), Some((3, 1)));
        assert_eq!(blocks.runs().collect::<Vec<_>>(), [(3, 1), (5, 2)]);
        assert_eq!(blocks.span(), Some((3, 4)));
        assert_eq!(Blocks::range(0, 8), ALL);
        assert_eq!(Blocks::NONE.first_run(), None);
        assert_eq!(Blocks::NONE.span(), None);
    }
}
