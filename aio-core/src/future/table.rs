//! Where the futures of one context find their events, and the line of those that wait to begin.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};

use crate::event::Event;
use crate::queue::EventQueue;
use crate::sync::{AtomicWaker, Lock};

/// The places of one context: as many as it has event slots, so whoever has a place has a slot.
///
/// Whoever looks for its event takes all that are in the ring, puts each into its place, and wakes that
/// place's task: its own notice may have come in between, when the event was in neither. Each command
/// has its place as its notice, since nobody else may come to look. `tests/table_loom.rs` runs this
/// file's own code under loom.
pub(super) struct Table {
    queue: Arc<EventQueue>,
    places: Box<[Arc<Place>]>,
    line: Lock<Line>,
}

/// Free places, and who waits for one. A place that becomes free goes to the first who waits, in its
/// name, before that one is woken; while anyone waits, newcomers queue behind.
struct Line {
    free: Vec<usize>,
    waiting: VecDeque<(u64, Waker)>,
    given: Vec<(u64, usize)>,
    next: u64,
}

/// One command after the other, each of one future.
pub(super) struct Place {
    at: usize,
    /// Weak: the notice of a command may be the last to know it, on the thread that completes.
    table: Weak<Table>,
    task: AtomicWaker,
    state: Lock<State>,
}

/// What a place is about.
///
/// | from | event | to |
/// |---|---|---|
/// | Free | a future begins | Running |
/// | Running | its event is found | Finished |
/// | Running | the future is dropped | Abandoned |
/// | Finished | the future takes the event, or is dropped | Free |
/// | Abandoned | its event is found: the memory goes here | Free |
enum State {
    Free,
    Running,
    Abandoned,
    Finished(Event),
}

impl Table {
    pub(super) fn new(queue: Arc<EventQueue>) -> Arc<Self> {
        let slots = queue.slots();
        Arc::new_cyclic(|table| {
            let place = |at| {
                let (task, state) = (AtomicWaker::new(), Lock::new(State::Free));
                Arc::new(Place { at, table: Weak::clone(table), task, state })
            };
            let line = Line {
                free: (0..slots).rev().collect(),
                waiting: VecDeque::new(),
                given: Vec::with_capacity(slots),
                next: 0,
            };
            Self { queue, places: (0..slots).map(place).collect(), line: Lock::new(line) }
        })
    }

    /// A place for who is in the line as `waiter`, or comes new; otherwise it is in the line and
    /// `waker` is woken when a place is its own.
    pub(super) fn take(&self, waiter: &mut Option<u64>, waker: &Waker) -> Option<Arc<Place>> {
        let mut line = self.line.lock();
        let at = if let Some(id) = *waiter {
            if let Some(given) = line.given.iter().position(|(to, _)| *to == id) {
                *waiter = None;
                line.given.swap_remove(given).1
            } else {
                let entry = line.waiting.iter_mut().find(|(of, _)| *of == id);
                entry.into_iter().for_each(|(_, old)| old.clone_from(waker));
                return None;
            }
        } else if let (true, Some(at)) = (line.waiting.is_empty(), line.free.pop()) {
            at
        } else {
            let id = line.next;
            line.next += 1;
            line.waiting.push_back((id, waker.clone()));
            *waiter = Some(id);
            return None;
        };
        drop(line);
        let place = Arc::clone(&self.places[at]);
        *place.state.lock() = State::Running;
        Some(place)
    }

    /// Whoever was in the line as `waiter` wants nothing any more; what it was given goes on.
    pub(super) fn leave(&self, waiter: u64) {
        let mut line = self.line.lock();
        line.waiting.retain(|(id, _)| *id != waiter);
        let given = line.given.iter().position(|(to, _)| *to == waiter);
        let given = given.map(|given| line.given.swap_remove(given).1);
        drop(line);
        given.into_iter().for_each(|at| self.release(at));
    }

    fn release(&self, at: usize) {
        let mut line = self.line.lock();
        match line.waiting.pop_front() {
            Some((id, waker)) => {
                line.given.push((id, at));
                drop(line);
                waker.wake();
            }
            None => line.free.push(at),
        }
    }

    /// The command of this place was refused: there will be no event.
    pub(super) fn give_back(&self, place: &Place) {
        *place.state.lock() = State::Free;
        self.release(place.at);
    }

    /// Puts every event that is there into its place.
    pub(super) fn sort(&self) {
        loop {
            let mut next = None;
            // One by one: its slot is free again before its place is.
            self.queue.take(1, |event| next = Some(event));
            let Some(event) = next else { return };
            // What it was submitted with: see `Running`.
            let place = &self.places[event.user_data as usize];
            let mut state = place.state.lock();
            match &*state {
                State::Running => {
                    *state = State::Finished(event);
                    drop(state);
                    place.task.wake();
                }
                State::Abandoned => {
                    *state = State::Free;
                    drop(state);
                    self.release(place.at);
                }
                State::Free | State::Finished(_) => unreachable!("one event a command"),
            }
        }
    }

    /// The event of a place, once it is there; `waker` is woken when it comes.
    pub(super) fn event(&self, place: &Place, waker: &Waker) -> Option<Event> {
        // Before looking: what comes after that wakes it.
        place.task.register(waker);
        self.sort();
        let mut state = place.state.lock();
        if !matches!(*state, State::Finished(_)) {
            return None;
        }
        let State::Finished(event) = std::mem::replace(&mut *state, State::Free) else {
            unreachable!("looked at above, under this lock");
        };
        drop(state);
        self.release(place.at);
        Some(event)
    }

    /// The future of a place is gone. Says whether its command goes on.
    pub(super) fn abandon(&self, place: &Place) -> bool {
        let mut state = place.state.lock();
        let finished = match &*state {
            State::Finished(_) => std::mem::replace(&mut *state, State::Free),
            _ => {
                *state = State::Abandoned;
                return true;
            }
        };
        drop(state);
        drop(finished);
        self.release(place.at);
        false
    }
}

impl Place {
    /// The word on its commands, by which [`Table::sort`] finds it.
    pub(super) fn index(&self) -> u64 {
        self.at as u64
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// The notice of its command. On the thread that completes, under no lock.
    fn wake_by_ref(self: &Arc<Self>) {
        let abandoned = matches!(*self.state.lock(), State::Abandoned);
        if abandoned {
            // Nobody else may come to look. Who abandons it looks after it has said so, and the
            // event was there before this notice: one of the two finds it.
            if let Some(table) = self.table.upgrade() {
                table.sort();
                table.queue.taken_out();
            }
        } else {
            self.task.wake();
        }
    }
}
