//! Waiting for one of a list: `aio_suspend`.
//!
//! Who waits for one request sleeps on the word of its block, and is woken with it alone, however many threads wait
//! for others. Who waits for one of several sleeps on one word that all such share, because a list is waited for
//! without memory or locks, in signal handlers too. Its lowest bit says that somebody is about to sleep:
//!
//! | sleeper | reactor |
//! |---|---|
//! | 1. set the bit | 1. write the states of a batch |
//! | 2. fence | 2. fence |
//! | 3. look at the states | 3. the bit is set: count up, which takes it back, and wake |
//! | 4. none is over: sleep while the word is that | |
//!
//! Neither side has anything to undo, so a thread may be cancelled, or leave by a long jump, at any of these places:
//! what stays is a bit, which costs one wake of nobody.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::control::{Control, Status};
use super::sleep::{self, Cancellation, Deadline, Ended};

/// Somebody sleeps, or is about to.
const SLEPT_ON: u32 = 1;

/// What those sleep on who wait for one of several.
static LISTS: AtomicU32 = AtomicU32::new(0);

/// A list of the program's: an array of addresses, some of them null.
#[derive(Clone, Copy)]
pub(super) struct List<'a>(pub(super) &'a [*const super::control::Aiocb]);

impl List<'_> {
    fn blocks(&self) -> impl Iterator<Item = Control> {
        self.0.iter().filter_map(|block| Control::new(block.cast_mut()))
    }

    fn is_one_over(&self, generation: u32) -> bool {
        self.blocks().any(|block| block.status(generation) != Status::InProgress)
    }
}

/// Waits until one of the list is over, which one that is no request is. Else why not: EAGAIN or EINTR.
pub(super) fn suspend(
    list: List<'_>,
    generation: u32,
    deadline: Option<&Deadline>,
) -> Result<(), i32> {
    loop {
        if list.is_one_over(generation) {
            return Ok(());
        }
        let mut blocks = list.blocks();
        let ended = match (blocks.next(), blocks.next()) {
            (Some(one), None) => match one.sleep_on() {
                Some((word, value)) => sleep::wait(word, value, deadline, Cancellation::Point),
                None => Ended::Woken,
            },
            _ => {
                let word = LISTS.fetch_or(SLEPT_ON, Ordering::Relaxed) | SLEPT_ON;
                // Pairs with the one in `tell`.
                fence(Ordering::SeqCst);
                if list.is_one_over(generation) {
                    return Ok(());
                }
                sleep::wait(&raw const LISTS, word, deadline, Cancellation::Point)
            }
        };
        match ended {
            Ended::Woken => {}
            // What was over before the time or the signal counts.
            Ended::TimedOut | Ended::Interrupted if list.is_one_over(generation) => return Ok(()),
            Ended::TimedOut => return Err(libc::EAGAIN),
            Ended::Interrupted => return Err(libc::EINTR),
        }
    }
}

/// After a batch of landings: wakes those who wait for one of several.
pub(crate) fn tell() {
    // Pairs with the one in `suspend`: either the sleeper sees what landed, or its bit is seen here.
    fence(Ordering::SeqCst);
    if LISTS.load(Ordering::Relaxed) & SLEPT_ON != 0 {
        // One more: the bit is clear, and the word another than any sleeper saw.
        LISTS.fetch_add(1, Ordering::Relaxed);
        sleep::wake(&raw const LISTS);
    }
}
