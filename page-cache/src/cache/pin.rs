//! A page that is looked at where it lies.

use uaio_driver::{DmaBuf, FRAME_SIZE};

use crate::sync::Ordering;
use crate::wait::Wakes;

use super::Cache;

/// A page that stays where it is while somebody looks at it.
pub struct PagePin<'a> {
    cache: &'a Cache,
    page: u64,
    frame: Option<DmaBuf>,
}

impl PagePin<'_> {
    /// The page's frame; read only.
    #[inline]
    pub fn frame(&self) -> &DmaBuf {
        match &self.frame {
            Some(frame) => frame,
            None => unreachable!("a pin has its frame until it is dropped"),
        }
    }
}

impl Drop for PagePin<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.cache.cell(self.page).pins.fetch_sub(1, Ordering::Relaxed);
            self.cache.unpin(self.page, frame);
        }
    }
}

impl Cache {
    /// Pins the page at `offset` (a multiple of 4096) if all of it is cached: what it holds can then
    /// be looked at without a copy. Writers go on in a frame of their own meanwhile, so a pin is a
    /// snapshot. Hold it briefly: a pinned frame serves nobody else. When a quarter of the frames is
    /// pinned (of the shard that the page lies in) there is no pin to be had: copy instead.
    pub fn try_pin(&self, offset: u64) -> Option<PagePin<'_>> {
        let page = offset / FRAME_SIZE as u64;
        if !offset.is_multiple_of(FRAME_SIZE as u64) || page >= self.pages() {
            return None;
        }
        let cell = self.cell(page);
        if cell.pins.fetch_add(1, Ordering::Relaxed) < self.pins_max()
            && let Some((frame, _)) = self.share(page, self.existing(page), u32::MAX)
        {
            return Some(PagePin { cache: self, page, frame: Some(frame) });
        }
        cell.pins.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// How many pages of a shard may be pinned: a quarter.
    fn pins_max(&self) -> usize {
        self.frames() / self.shards.len() / 4
    }

    /// Gives a pin of `page` up.
    #[inline]
    pub(crate) fn unpin(&self, page: u64, frame: DmaBuf) {
        let last = frame.release();
        // Either this sees that a frame is wanted, or the one who wants it saw that this pin is gone.
        if last.is_some() || self.cell(page).wanted.is_raised() {
            self.unpin_slow(page, last);
        }
    }

    #[cold]
    fn unpin_slow(&self, page: u64, last: Option<DmaBuf>) {
        let mut wakes = Wakes::default();
        let mut shard = self.shard(page);
        if let Some(frame) = last {
            shard.put_frame(frame);
        }
        shard.hand_over(&mut wakes);
        drop(shard);
        wakes.run();
    }
}
