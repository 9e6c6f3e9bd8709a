//! Tickets: how a submission is named after the iocb has gone in.
//!
//! Whoever ends a submission and whoever takes it from one place to the next do not know of each other.
//! Each writes and then looks at what the other wrote:
//!
//! | who takes it on | who ends it |
//! |---|---|
//! | 1. puts it into the station, under its lock | 1. marks it (`end`) |
//! | 2. says where it is (`moved`) | 2. asks where it is (`place`) |
//! | 3. looks for the mark (`ending`): ends it there | 3. takes the station's lock, and ends it if it is there |
//!
//! Between 1 and 2 of who ends it, and between 2 and 3 of who takes it on, is a sequentially consistent
//! fence, so one of the two sees the other, and under the station's lock only one of them ends it. `tests/ticket_loom.rs` runs this file's own code under loom.

use uaio_driver::{IoErrorKind, Token};

use super::sync::{AtomicU32, AtomicU64, FreeList, Ordering, fence, pause};

/// Names one submission of one context: to cancel it, to wait for it, to ask whether it is over.
///
/// A submission of linked iocbs has one ticket, over when the last of them has its event. Tickets go
/// stale and are never mistaken for a later one (until 2^31 submissions have used the same slot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(crate) context: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Ticket {
    /// The ticket of what was answered before `submit` returned.
    pub(crate) const fn answered(context: u32) -> Self {
        Self { context, slot: u32::MAX, generation: 0 }
    }

    /// As one word, for a table or a foreign interface; [`from_words`](Ticket::from_words) takes it
    /// back.
    pub fn to_words(self) -> (u32, u64) {
        (self.context, u64::from(self.generation) << 32 | u64::from(self.slot))
    }

    /// The inverse of [`to_words`](Ticket::to_words). Every value is a ticket, though perhaps a stale
    /// one.
    pub fn from_words(context: u32, word: u64) -> Self {
        Self { context, slot: word as u32, generation: (word >> 32) as u32 }
    }
}

/// Why a submission is to end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Cancelled,
    TimedOut,
}

impl Ending {
    pub(crate) fn kind(self) -> IoErrorKind {
        match self {
            Self::Cancelled => IoErrorKind::Cancelled,
            Self::TimedOut => IoErrorKind::TimedOut,
        }
    }
}

/// The submissions of one context that are not over. One place a slot of the context, made at start.
pub(crate) struct Tickets {
    context: u32,
    cells: Box<[Cell]>,
    free: FreeList,
}

/// One submission after the other.
///
/// `state` is the generation in the upper half, odd while there is a submission, and the ending, once
/// there is one, in the lower: who ends a submission and who finishes it decide by one
/// compare-and-exchange. `station` and `token` are
/// a hint where it was last; only the station, under its lock, knows.
struct Cell {
    state: AtomicU64,
    station: AtomicU32,
    token: AtomicU64,
}

impl Tickets {
    pub(crate) fn new(context: u32, slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX - 1);
        let cell = |_| Cell {
            state: AtomicU64::new(0),
            station: AtomicU32::new(u32::MAX),
            token: AtomicU64::new(u64::MAX),
        };
        let free = FreeList::new(slots as usize);
        (0..slots).for_each(|slot| assert!(free.push(slot).is_ok(), "there is room for all"));
        Self { context, cells: (0..slots).map(cell).collect(), free }
    }

    pub(crate) fn context(&self) -> u32 {
        self.context
    }

    /// A ticket for a submission that begins. There are as many as the context has slots, and the
    /// caller has one of those.
    pub(crate) fn begin(&self) -> Ticket {
        loop {
            if let Some(slot) = self.free.pop() {
                // Relaxed: the queue of free slots ordered it.
                let state = &self.cells[slot as usize].state;
                let generation = ((state.load(Ordering::Relaxed) >> 32) as u32).wrapping_add(1);
                state.swap(u64::from(generation) << 32, Ordering::AcqRel);
                return Ticket { context: self.context, slot, generation };
            }
            // Its last owner has given the slot of the context back and is about to do this.
            pause();
        }
    }

    /// The submission is over: its events are there. From here on its ticket is stale.
    pub(crate) fn finish(&self, ticket: Ticket) {
        let cell = &self.cells[ticket.slot as usize];
        let next = u64::from(ticket.generation.wrapping_add(1)) << 32;
        // Release: who sees it finds the events. Whatever an ending may have put there, and in one
        // order with it: an ending that comes later fails.
        cell.state.swap(next, Ordering::AcqRel);
        let pushed = self.free.push(ticket.slot);
        debug_assert!(pushed.is_ok(), "a ticket was finished twice");
    }

    /// Whether the submission is over.
    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        self.cell(ticket).is_none_or(|cell| {
            (cell.state.load(Ordering::Acquire) >> 32) as u32 != ticket.generation
        })
    }

    /// Says that the submission is to end, unless it is over or somebody said so before. Says
    /// whether it was not over.
    pub(crate) fn end(&self, ticket: Ticket, ending: Ending) -> bool {
        let Some(cell) = self.cell(ticket) else { return false };
        let running = u64::from(ticket.generation) << 32;
        let ended = running | (1 + ending as u64);
        let marked =
            cell.state.compare_exchange(running, ended, Ordering::AcqRel, Ordering::Acquire);
        // Pairs with the fence in `moved`: see the module page.
        fence(Ordering::SeqCst);
        match marked {
            Ok(_) => true,
            Err(state) => state >> 32 == running >> 32,
        }
    }

    /// Says that every submission is to end that is not over, wherever it is.
    pub(crate) fn end_all(&self, ending: Ending) {
        for (slot, cell) in (0..).zip(&self.cells) {
            let generation = (cell.state.load(Ordering::Acquire) >> 32) as u32;
            // Of one that nobody has it is even, and `end` finds none.
            self.end(Ticket { context: self.context, slot, generation }, ending);
        }
    }

    /// Why the submission is to end, if it is.
    pub(crate) fn ending(&self, ticket: Ticket) -> Option<Ending> {
        let state = self.cell(ticket)?.state.load(Ordering::Acquire);
        if (state >> 32) as u32 != ticket.generation {
            return None;
        }
        match state as u32 {
            0 => None,
            1 => Some(Ending::Cancelled),
            _ => Some(Ending::TimedOut),
        }
    }

    /// Notes where the submission is.
    pub(crate) fn moved(&self, ticket: Ticket, station: u32, token: Option<Token>) {
        if let Some(cell) = self.cell(ticket) {
            cell.token.store(token.map_or(u64::MAX, Token::to_u64), Ordering::Relaxed);
            cell.station.store(station, Ordering::Release);
            // Pairs with the fence in `end`: see the module page.
            fence(Ordering::SeqCst);
        }
    }

    /// Where the submission was last: a hint.
    pub(crate) fn place(&self, ticket: Ticket) -> Option<(u32, Token)> {
        let cell = self.cell(ticket)?;
        let station = cell.station.load(Ordering::Acquire);
        Some((station, Token::from_u64(cell.token.load(Ordering::Relaxed))))
    }

    /// The cell of a ticket that may be live: the generation of a submission is odd, and that of a cell
    /// that nobody has is even, which words of a foreign interface may say, too.
    fn cell(&self, ticket: Ticket) -> Option<&Cell> {
        let is_possible = ticket.context == self.context && ticket.generation % 2 == 1;
        self.cells.get(ticket.slot as usize).filter(|_| is_possible)
    }
}
