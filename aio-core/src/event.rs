//! What the user gets, and the queue it waits in.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;

use parking_lot::Mutex;
use uaio_driver::{Doorbell, IoError, Wake};

use crate::iocb::Buffers;

/// The answer to one iocb: exactly one for each that `submit` took.
#[derive(Debug)]
#[must_use = "an event carries the memory of its command"]
pub struct Event {
    /// The word that was put on the iocb.
    pub user_data: u64,
    /// How many bytes were moved, or why none was. A transfer that failed after some bytes is short;
    /// asking for the rest tells why.
    pub result: Result<usize, IoError>,
    /// The iocb's memory.
    pub buffers: Buffers,
}

/// The events of one context, and who waits for them.
///
/// A slot is taken at submit and given back when its event is taken out, so there is always room for
/// an event. Events and those who wait lie under one lock, held for a push or a few moves: looking
/// and leaving an entry is one step, so no event is missed.
pub(crate) struct EventQueue {
    slots: usize,
    free: AtomicUsize,
    state: Mutex<State>,
    /// Counts one up for each event.
    eventfd: Option<OwnedFd>,
    /// Rung when the thread that waits is also the one that turns the reactor.
    bell: Arc<Doorbell>,
}

struct State {
    events: VecDeque<Event>,
    waiting: Vec<Entry>,
    next_id: u64,
}

/// An entry of a thread that waits; woken once, when `need` events are there.
struct Entry {
    id: u64,
    need: usize,
    thread: Thread,
    /// It turns the reactor, so it sleeps on the reactor's bell.
    turns: bool,
}

impl EventQueue {
    pub(crate) fn new(slots: usize, eventfd: Option<OwnedFd>, bell: Arc<Doorbell>) -> Arc<Self> {
        let state = State {
            events: VecDeque::with_capacity(slots),
            waiting: Vec::with_capacity(16),
            next_id: 0,
        };
        let free = AtomicUsize::new(slots);
        Arc::new(Self { slots, free, state: Mutex::new(state), eventfd, bell })
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        self.eventfd.as_ref().map(AsFd::as_fd)
    }

    /// Takes a slot for an event; `false` when there is none.
    pub(crate) fn take_slot(&self) -> bool {
        // Relaxed: a count, nothing is read by its value. The events come through the lock.
        let take = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives back a slot whose iocb was refused after all.
    pub(crate) fn give_slot(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }

    /// Iocbs taken whose event is not there yet. Exact when nobody submits.
    pub(crate) fn outstanding(&self) -> usize {
        let state = self.state.lock();
        self.slots - self.free.load(Ordering::Relaxed) - state.events.len()
    }

    /// Puts an event in and gives its notices: one on the eventfd, and one to each thread that now
    /// has as many events as it waits for. Never blocks.
    pub(crate) fn complete(&self, event: Event) {
        let mut state = self.state.lock();
        state.events.push_back(event);
        let mut entry = state.take_satisfied();
        drop(state);
        if let Some(eventfd) = &self.eventfd {
            // Non-blocking, and the counter holds 2^64 - 2 events: it cannot fail.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
        while let Some(Entry { thread, turns, .. }) = entry {
            if turns {
                self.bell.wake();
            } else {
                thread.unpark();
            }
            entry = self.state.lock().take_satisfied();
        }
    }

    /// Moves at most `max` events to the end of `out`.
    pub(crate) fn take(&self, max: usize, out: &mut impl Extend<Event>) -> usize {
        self.move_out(&mut self.state.lock(), max, out)
    }

    /// Moves at most `max` events out, and leaves the entry `id` when they were fewer than `need`.
    /// An entry left earlier is brought up to date.
    pub(crate) fn take_or_wait(
        &self,
        id: u64,
        Want { need, max, turns }: Want,
        out: &mut impl Extend<Event>,
    ) -> usize {
        let mut state = self.state.lock();
        let taken = self.move_out(&mut state, max, out);
        if taken < need {
            let need = need - taken;
            match state.waiting.iter_mut().find(|entry| entry.id == id) {
                Some(entry) => (entry.need, entry.turns) = (need, turns),
                None => {
                    let thread = std::thread::current();
                    state.waiting.push(Entry { id, need, thread, turns });
                }
            }
        }
        taken
    }

    /// A name for an entry.
    pub(crate) fn name(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_id += 1;
        state.next_id
    }

    /// Whether the entry `id` has been woken, or was never left.
    pub(crate) fn is_woken(&self, id: u64) -> bool {
        self.state.lock().waiting.iter().all(|entry| entry.id != id)
    }

    /// Takes the entry `id` away, if it has not been woken.
    pub(crate) fn leave(&self, id: u64) {
        self.state.lock().waiting.retain(|entry| entry.id != id);
    }

    fn move_out(&self, state: &mut State, max: usize, out: &mut impl Extend<Event>) -> usize {
        let count = max.min(state.events.len());
        out.extend(state.events.drain(..count));
        self.free.fetch_add(count, Ordering::Relaxed);
        count
    }
}

/// What a thread waits for.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    /// This many events at least.
    pub(crate) need: usize,
    /// And takes this many at most.
    pub(crate) max: usize,
    /// It turns the reactor meanwhile.
    pub(crate) turns: bool,
}

impl State {
    /// Somebody who has as many events as it waits for, as `aio_complete` in fs/aio.c has it: two
    /// may be told of the same events, and who comes second waits again.
    fn take_satisfied(&mut self) -> Option<Entry> {
        let there = self.events.len();
        let at = self.waiting.iter().position(|entry| entry.need <= there)?;
        Some(self.waiting.remove(at))
    }
}
