//! What is kept of each command from its submission until its event is taken out.
//!
//! Who submits, cancels or waits for a command has a lock. Who takes events out has none, so it waits for
//! no submitter that is in the middle of a long list: a command's place is claimed by its generation.
//!
//! | a place's generation | the place is |
//! |---|---|
//! | even | empty, and its number among the free ones or with who puts something in or has taken it |
//! | odd | full, for who moves the generation on |
//!
//! A multishot poll has several events, and threads look at them in any order: whoever looks at the last one
//! that was left does not have the last that there was. Each counts itself once it has been looked at, and
//! the last event, which knows how many there were before it, takes those off and marks the count: the flight
//! goes with whoever makes it nothing but the mark.
#![expect(unsafe_code, reason = "a flight is written and taken through a shared reference")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use parking_lot::{Mutex, MutexGuard};
use uaio_core::{Buffers, Event, Ticket};
use uaio_driver::Token;

use crate::command::Flight;
use crate::layout::{UaioEvent, UaioIocb};

/// A table of flights.
///
/// # Invariants
///
/// The number of a place is in `free` at most once, and only while its generation is even. A flight is
/// touched only by who popped the number of its place, until it makes the generation odd, and by who made
/// the generation even, until it pushes the number. Between the two it is only looked at, by who has one of
/// its events that is not counted yet.
pub(crate) struct Flights {
    places: Box<[Place]>,
    free: ArrayQueue<u32>,
    notes: Mutex<Box<[Note]>>,
}

/// The mark of the last event, below the count.
const LAST: u64 = 1;

struct Place {
    generation: AtomicU32,
    /// Of a flight with several events; 0 otherwise. Those that have been looked at, two for each, less those
    /// that there were before the last, and [`LAST`] once that has been.
    looked: AtomicU64,
    flight: UnsafeCell<Option<Flight>>,
}

/// What cancelling and waiting need to know of a place; it may be about an earlier flight.
#[derive(Clone, Copy)]
struct Note {
    generation: u32,
    iocb: usize,
    ticket: Option<Ticket>,
}

// SAFETY: a flight is `Send`, and no two threads reach the same one at a time (see the invariants).
unsafe impl Sync for Flights {}

impl Flights {
    pub(crate) fn new(capacity: usize) -> Self {
        let free = ArrayQueue::new(capacity);
        // INVARIANT: each number once, and the generations are even. There is room for all.
        for number in 0..capacity as u32 {
            let _ = free.push(number);
        }
        let place = || Place {
            generation: AtomicU32::new(0),
            looked: AtomicU64::new(0),
            flight: UnsafeCell::new(None),
        };
        let note = Note { generation: 0, iocb: 0, ticket: None };
        let notes = Mutex::new(vec![note; capacity].into_boxed_slice());
        Self { places: (0..capacity).map(|_| place()).collect(), free, notes }
    }

    /// For who submits.
    pub(crate) fn lock(&self) -> Submitting<'_> {
        Submitting { flights: self, notes: self.notes.lock() }
    }

    /// Takes a flight out, for its event has been; none if somebody has. Without a lock.
    pub(crate) fn take(&self, token: Token) -> Option<Flight> {
        let place = self.places.get(token.slot as usize).filter(|_| token.generation % 2 == 1)?;
        let next = token.generation.wrapping_add(1);
        // Acquire: pairs with the Release of `insert`.
        let claim = place.generation.compare_exchange(
            token.generation,
            next,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        claim.ok()?;
        // SAFETY: we have just made the generation even, and have not pushed the number.
        let flight = unsafe { (*place.flight.get()).take() };
        // Never full: each number is there once. Whoever pops it sees that the place is empty.
        let _ = self.free.push(token.slot);
        flight
    }

    /// An event as C has it; none for a flight that nobody has put in. Takes the flight out with its only
    /// event, or with the last of several that is looked at.
    pub(crate) fn tell(&self, event: Event) -> Option<UaioEvent> {
        let token = Token::from_u64(event.user_data);
        let before = match &event.buffers {
            Buffers::Host(reply) => reply.events_before(),
            _ => 0,
        };
        if !event.more && before == 0 {
            return self.take(token).map(|flight| flight.event(event));
        }
        let step = if event.more { 2 } else { LAST.wrapping_sub(2 * before) };
        self.look(token, step, |flight| flight.event(event))
    }

    /// Looks at a flight for one of its events, which is not counted yet, and counts it.
    fn look<R>(&self, token: Token, step: u64, look: impl FnOnce(&Flight) -> R) -> Option<R> {
        let place = self.places.get(token.slot as usize).filter(|_| token.generation % 2 == 1)?;
        // Acquire: pairs with the Release of `insert`.
        if place.generation.load(Ordering::Acquire) != token.generation {
            return None;
        }
        // SAFETY: the flight stays until all its events are counted, and this one is not. Nobody changes it
        // meanwhile.
        let flight = unsafe { &*place.flight.get() };
        let seen = flight.as_ref().map(look);
        // Acquire and Release: whoever takes it does so after all others have looked.
        if place.looked.fetch_add(step, Ordering::AcqRel).wrapping_add(step) == LAST {
            drop(self.take(token));
        }
        seen
    }

    /// The ticket of an iocb, by the key that is written in it, while its event has not been taken out.
    pub(crate) fn ticket(&self, key: Token, iocb: *mut UaioIocb) -> Option<Ticket> {
        let notes = self.notes.lock();
        let note = notes.get(key.slot as usize)?;
        let generation = self.places[key.slot as usize].generation.load(Ordering::Relaxed);
        let is_it = (note.generation, note.iocb) == (key.generation, iocb.addr());
        note.ticket.filter(|_| is_it && generation == key.generation)
    }
}

/// The table, for who submits: nobody asks for a ticket that is still to be noted.
pub(crate) struct Submitting<'a> {
    flights: &'a Flights,
    notes: MutexGuard<'a, Box<[Note]>>,
}

impl Submitting<'_> {
    /// How many more there is room for.
    pub(crate) fn free(&self) -> usize {
        self.flights.free.len()
    }

    /// Puts a flight in; gives it back when there is no room.
    pub(crate) fn insert(&mut self, flight: Flight) -> Result<Token, Box<Flight>> {
        let Some(slot) = self.flights.free.pop() else { return Err(Box::new(flight)) };
        let place = &self.flights.places[slot as usize];
        let generation = place.generation.load(Ordering::Relaxed).wrapping_add(1);
        self.notes[slot as usize] = Note { generation, iocb: flight.iocb().addr(), ticket: None };
        place.looked.store(0, Ordering::Relaxed);
        // SAFETY: we have just popped the number.
        unsafe { *place.flight.get() = Some(flight) };
        // Release: pairs with the Acquire of `take`. INVARIANT: the number is not among the free.
        place.generation.store(generation, Ordering::Release);
        Ok(Token { slot, generation })
    }

    /// Takes one out whose command was refused.
    pub(crate) fn remove(&mut self, token: Token) -> Option<Flight> {
        self.flights.take(token)
    }

    /// Notes the ticket of one that was put in by this, which may have been taken out by now.
    pub(crate) fn note(&mut self, token: Token, ticket: Ticket) {
        // Nobody else has put anything in since.
        self.notes[token.slot as usize].ticket = Some(ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn flight(at: usize) -> Flight {
        Flight::of(std::ptr::without_provenance_mut(at))
    }

    #[test]
    fn a_flight_is_taken_once_and_by_its_own_name() {
        let flights = Flights::new(2);
        let mut lock = flights.lock();
        let first = lock.insert(flight(8)).unwrap();
        let second = lock.insert(flight(16)).unwrap();
        assert_eq!(lock.free(), 0);
        assert_eq!(lock.insert(flight(24)).unwrap_err().iocb().addr(), 24);
        let ticket = Ticket::from_words(1, 2);
        lock.note(first, ticket);
        drop(lock);
        let iocb = std::ptr::without_provenance_mut;
        assert_eq!(flights.ticket(first, iocb(8)), Some(ticket));
        assert_eq!(flights.ticket(first, iocb(16)), None);
        assert_eq!(flights.ticket(second, iocb(16)), None, "it has none yet");
        assert_eq!(flights.take(first).unwrap().iocb().addr(), 8);
        assert_eq!(flights.ticket(first, iocb(8)), None);
        assert!(flights.take(first).is_none());
        let again = flights.lock().insert(flight(32)).unwrap();
        assert_eq!(again.slot, first.slot);
        assert!(flights.take(first).is_none());
        for wild in [Token { slot: 2, generation: 1 }, Token { slot: 0, generation: 0 }] {
            assert!(flights.take(wild).is_none());
            assert_eq!(flights.ticket(wild, iocb(8)), None);
        }
        assert_eq!(flights.take(again).unwrap().iocb().addr(), 32);
        assert_eq!(flights.take(second).unwrap().iocb().addr(), 16);
    }

    /// What `tell` makes of the events of a multishot poll: `more`, and the last with how many there were.
    fn one_more(flights: &Flights, token: Token) -> usize {
        flights.look(token, 2, |flight| flight.iocb().addr()).unwrap()
    }

    fn last(flights: &Flights, token: Token, before: u64) -> usize {
        let step = LAST.wrapping_sub(2 * before);
        flights.look(token, step, |flight| flight.iocb().addr()).unwrap()
    }

    #[test]
    fn a_flight_of_several_events_is_there_for_each_in_any_order_and_goes_with_the_last_looked_at()
    {
        for before in 1..6 {
            for place_of_last in 0..=before {
                let flights = Flights::new(1);
                // Twice: the count begins anew.
                for _ in 0..2 {
                    let token = flights.lock().insert(flight(8)).unwrap();
                    for at in 0..=before {
                        assert_eq!(flights.lock().free(), 0, "{at} of {before} have been told");
                        let told = match at == place_of_last {
                            true => last(&flights, token, before),
                            false => one_more(&flights, token),
                        };
                        assert_eq!(told, 8);
                    }
                    assert_eq!(
                        flights.lock().free(),
                        1,
                        "{before}, the last as number {place_of_last}"
                    );
                    assert!(flights.look(token, 2, |_| ()).is_none());
                    assert!(flights.take(token).is_none());
                }
            }
        }
    }

    #[test]
    fn threads_that_look_at_events_of_one_flight_all_find_it_and_one_takes_it() {
        const THREADS: usize = 3;
        let flights = Flights::new(1);
        let turn = std::sync::Barrier::new(THREADS);
        let token = Mutex::new(None);
        std::thread::scope(|threads| {
            for thread in 0..THREADS {
                let (flights, turn, token) = (&flights, &turn, &token);
                threads.spawn(move || {
                    for round in 1..5_000 {
                        if thread == 0 {
                            assert_eq!(flights.lock().free(), 1, "round {round}");
                            *token.lock() = Some(flights.lock().insert(flight(8 * round)).unwrap());
                        }
                        turn.wait();
                        let token = token.lock().unwrap();
                        let told = match thread {
                            0 => last(flights, token, THREADS as u64 - 1),
                            _ => one_more(flights, token),
                        };
                        assert_eq!(told, 8 * round);
                        turn.wait();
                    }
                });
            }
        });
        assert_eq!(flights.lock().free(), 1);
    }

    #[test]
    fn what_one_thread_puts_in_another_takes_out_as_it_was() {
        let flights = Flights::new(4);
        std::thread::scope(|threads| {
            for thread in 0..2 {
                let (sender, receiver) = mpsc::channel();
                let flights = &flights;
                threads.spawn(move || {
                    for number in (0..50_000).map(|number| 2 * number + thread) {
                        let token = loop {
                            let inserted = flights.lock().insert(flight(number));
                            match inserted {
                                Ok(token) => break token,
                                Err(_) => std::thread::yield_now(),
                            }
                        };
                        sender.send((token, number)).unwrap();
                    }
                });
                threads.spawn(move || {
                    for (token, number) in receiver {
                        assert_eq!(flights.take(token).unwrap().iocb().addr(), number);
                        assert!(flights.take(token).is_none());
                    }
                });
            }
        });
        assert_eq!(flights.lock().free(), 4);
    }
}
