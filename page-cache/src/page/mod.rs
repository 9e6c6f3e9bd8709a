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

mod blocks;
mod content;
#[cfg(test)]
mod tests;

use uaio_driver::DmaBuf;

pub use blocks::Blocks;
pub(crate) use content::{Content, Notes};
use content::{Later, Seq};

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
        /// The page has a fresh frame: the old one is the request's alone.
        moved: bool,
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
        let Self::Writeback { content, writing, moved } = self else {
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
        let moved = moved || old.is_some();
        (Self::Writeback { content, writing, moved }, old)
    }

    /// A device write of `blocks`, all of them dirty, starts; the handle is the request's.
    pub(crate) fn begin_writeback(self, blocks: Blocks) -> Result<(Self, DmaBuf), (Self, Busy)> {
        match self {
            Self::Dirty(mut content) => {
                assert!(content.dirty.contains(blocks) && !blocks.is_empty(), "{blocks:?}");
                content.dirty = content.dirty.without(blocks);
                content.done = content.done.with(blocks);
                let frame = content.frame.share();
                Ok((Self::Writeback { content, writing: blocks, moved: false }, frame))
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
            Self::Writeback { mut content, writing, .. } => {
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
    /// No writeback is in flight: when the round is over, the next begins.
    fn settled(mut self) -> Page {
        if self.round().is_empty() {
            self.done = Blocks::NONE;
            self.seq = self.later.after(self.seq);
            self.later = Later::NONE;
        }
        if !self.dirty.is_empty() { Page::Dirty(self) } else { Page::Clean(self) }
    }
}
