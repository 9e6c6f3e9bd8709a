//! Those who wait for the pages of a shard, and whose turn it is at a page that is quiet.
//!
//! What waking means is in [`crate::wait`].

use crate::page::Page;
use crate::wait::{Entries, WaitQueue, WaitTable, Waiter, Wakes, Wakeup, Wants};

use super::Shard;
use super::records::Records;
use super::resize::Moved;

/// Those who wait for the pages of one hash: who looks, and who waits for a turn, so that neither has to
/// be passed over to find the other.
#[derive(Clone, Copy)]
struct PageQueues {
    looking: WaitQueue,
    in_turn: WaitQueue,
}

impl PageQueues {
    const EMPTY: Self = Self { looking: WaitQueue::EMPTY, in_turn: WaitQueue::EMPTY };
}

/// Few operations wait at a time; two that share a queue cost a look at each other's key.
fn queues_for(slots: usize) -> usize {
    (slots / 64).next_power_of_two().clamp(8, 1024)
}

/// The wait queues of a shard's pages.
pub(super) struct Turns {
    /// By a hash of the slot; a power of two of them.
    queues: Box<[PageQueues]>,
    /// How many wait, so that what wakes nobody looks at no queue.
    len: usize,
    /// A bit for each slot: its page is quiet, and whose turn it is has been told. Until he has looked
    /// nobody else changes the page, and it is not evicted.
    reserved: Vec<u64>,
}

impl Turns {
    /// For the pages of so many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            queues: vec![PageQueues::EMPTY; queues_for(slots)].into(),
            len: 0,
            reserved: vec![0; slots.div_ceil(64)],
        }
    }

    /// For the pages of so many slots from now on; whoever waits keeps his place.
    pub(super) fn resize(&mut self, entries: &WaitTable, slots: usize, moved: &Moved) {
        let mut resized = Self::new(slots);
        for slot in (0..self.reserved.len() as u32 * 64).filter(|slot| self.is_reserved(*slot)) {
            resized.reserve(moved.slot(slot), true);
        }
        // Those who wait for one page are in one queue before, and in one after.
        for queues in &mut self.queues {
            for (queue, wants) in
                [(&mut queues.looking, Wants::Anything), (&mut queues.in_turn, Wants::Turn)]
            {
                while let Some(slot) = entries.first_key(queue) {
                    let slot = moved.slot(slot as u32);
                    entries.move_first(queue, resized.queue(slot, wants), u64::from(slot));
                }
            }
        }
        *self = Self { len: self.len, ..resized };
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queues.len() * size_of::<PageQueues>() + self.reserved.capacity() * size_of::<u64>()
    }

    /// Whether the page in a slot is reserved for somebody.
    pub(super) fn is_reserved(&self, slot: u32) -> bool {
        self.reserved[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    fn reserve(&mut self, slot: u32, reserved: bool) {
        let (word, bit) = (&mut self.reserved[slot as usize / 64], slot % 64);
        *word = *word & !(1 << bit) | u64::from(reserved) << bit;
    }

    fn queues(&mut self, slot: u32) -> &mut PageQueues {
        let mask = self.queues.len() - 1;
        &mut self.queues[slot as usize & mask]
    }

    fn queue(&mut self, slot: u32, wants: Wants) -> &mut WaitQueue {
        let queues = self.queues(slot);
        if wants == Wants::Turn { &mut queues.in_turn } else { &mut queues.looking }
    }

    fn wait(&mut self, entries: &WaitTable, slot: u32, waiter: &Waiter) {
        entries.enqueue(self.queue(slot, waiter.wants()), waiter, u64::from(slot));
        self.len += 1;
    }

    /// Takes the entry of an operation, which waits for the page in a slot, off its queue.
    pub(super) fn cancel(
        &mut self,
        entries: &WaitTable,
        (slot, wants): (u32, Wants),
        (lane, operation): (&Entries, u32),
    ) {
        entries.remove(self.queue(slot, wants), lane, operation);
        self.len -= 1;
    }

    /// Shows those who wait for a page its new state: all who only look, and, when it is quiet, the first
    /// who waits for its turn. Of a page that has gone there are no turns: all look for it again.
    pub(super) fn wake(&mut self, entries: &WaitTable, slot: u32, page: &Page, wakes: &mut Wakes) {
        if !page.is_quiet() || matches!(page, Page::Absent) {
            // Whose turn it was has begun, or there is nothing left to have one of.
            self.reserve(slot, false);
        }
        if self.len == 0 {
            return;
        }
        let queues = self.queues(slot);
        let key = u64::from(slot);
        let answer = |wants| wakeup_of(wants, page);
        let mut woken = entries.wake(&mut queues.looking, key, usize::MAX, wakes, answer);
        if matches!(page, Page::Absent) {
            let again = |_| Some(Wakeup::Retry);
            woken += entries.wake(&mut queues.in_turn, key, usize::MAX, wakes, again);
        }
        self.len -= woken;
        self.hand(entries, slot, page, wakes);
    }

    /// Hands the turn at a quiet page to the first who waits for it, unless somebody has it.
    fn hand(&mut self, entries: &WaitTable, slot: u32, page: &Page, wakes: &mut Wakes) {
        if !page.is_quiet() || self.is_reserved(slot) {
            return;
        }
        let turn = |_| Some(Wakeup::Turn);
        if entries.wake(&mut self.queues(slot).in_turn, u64::from(slot), 1, wakes, turn) == 1 {
            self.len -= 1;
            self.reserve(slot, true);
        }
    }

    /// Panics when a waiter is where nothing will wake it. For tests.
    pub(super) fn assert_sound(&self, entries: &WaitTable, records: &Records) {
        let mut waiting = 0;
        for queues in &self.queues {
            let looking = entries.waiting(&queues.looking);
            for (slot, wants) in looking.into_iter().chain(entries.waiting(&queues.in_turn)) {
                let page = &records[slot as u32].page;
                // What is quiet and reserved has somebody on his way to it.
                let comes = match wants {
                    Wants::Turn => !page.is_quiet() || self.is_reserved(slot as u32),
                    _ => wakeup_of(wants, page).is_none(),
                };
                assert!(comes, "somebody waits for {page:?}");
                waiting += 1;
            }
        }
        assert_eq!(waiting, self.len, "waiters were miscounted");
        for slot in (0..records.len() as u32).filter(|slot| self.is_reserved(*slot)) {
            let page = &records[slot].page;
            assert!(page.is_quiet() && !matches!(page, Page::Absent), "reserved: {page:?}");
        }
    }
}

impl Shard {
    /// How many wait for pages.
    pub(crate) fn page_waiters_len(&self) -> usize {
        self.turns.len
    }

    /// Whether a page is reserved for somebody: whoever else wants to change it waits for a turn.
    pub(crate) fn is_reserved(&self, slot: u32) -> bool {
        self.turns.is_reserved(slot)
    }

    /// Whoever is busy with a page has the next turn at it, too.
    pub(crate) fn reserve(&mut self, slot: u32) {
        self.turns.reserve(slot, true);
    }

    /// Leaves `waiter` on the page's queue, or of those who wait for a turn at it.
    pub(crate) fn wait_page(&mut self, slot: u32, waiter: Waiter) {
        self.turns.wait(&self.entries, slot, &waiter);
    }

    /// A turn at a page was not used: it goes to the next. Of a page that has left meanwhile, or that
    /// somebody is busy with, there is nothing to hand on: those who waited were woken, or will be.
    pub(crate) fn return_turn(&mut self, key: u64, wakes: &mut Wakes) {
        let Some(slot) = self.find(key) else { return };
        let page = &self.records[slot].page;
        if page.is_quiet() {
            self.turns.reserve(slot, false);
            self.turns.hand(&self.entries, slot, page, wakes);
            // It may be evicted again.
            self.hand_over(wakes);
        }
    }
}

/// The wake functions of those who wait for a page: what one is woken with when it has come to this state,
/// or `None` when it stays.
fn wakeup_of(wants: Wants, page: &Page) -> Option<Wakeup> {
    let quiet = page.is_quiet();
    match (wants, page.readable()) {
        (_, None) => quiet.then_some(Wakeup::Retry),
        (Wants::Read, Some(content)) => Some(Wakeup::Filled(content.frame.share(), content.valid)),
        (Wants::Look, Some(_)) => Some(Wakeup::Retry),
        (Wants::Quiet, Some(_)) => quiet.then_some(Wakeup::Retry),
        (Wants::Turn | Wants::Anything, Some(_)) => None,
    }
}
