//! A flush, as its lane steps it.

use std::ops::Range;
use std::sync::Arc;

use uaio_driver::{IoResult, Token};

use crate::cache::Handle;
use crate::retry::Step;
use crate::wait::{Wakeup, Wants};

use super::CANCELLED;
use super::core::Core;

/// A flush: an order to the flusher, and the wait for it.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) handle: Arc<Handle>,
    /// What it covers.
    pub(super) pages: Range<u64>,
    pub(super) ordered: bool,
    /// It was cancelled: whoever asked is not told, so no error counts as told.
    pub(super) stopped: bool,
}

impl Flush {
    pub(super) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        match (self.ordered, wakeup) {
            _ if self.stopped => Step::Done(Err(CANCELLED)),
            (false, _) => {
                self.ordered = true;
                core.cache.order_flush(self.pages.clone(), core.waiter(me, Wants::Anything));
                Step::Waiting
            }
            (true, Wakeup::Ended(result)) => {
                // A writeback that failed and has healed since is told once, here.
                let earlier = self.handle.take_error(&core.cache, &self.pages);
                let lost = core.cache.stability.check_lost(core.cache.blocks_in(&self.pages));
                Step::Done(result.and(lost).and(earlier.map_or(Ok(()), Err)))
            }
            (true, wakeup) => {
                core.give_back(0, wakeup);
                Step::Waiting
            }
        }
    }
}
