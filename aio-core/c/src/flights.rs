//! What is kept of each command from its submission until its event is taken out.
//!
//! Who submits, cancels or waits for a command has a lock. Who takes events out has none, so it waits for
//! no submitter that is in the middle of a long list: a command's place is claimed by its generation.
//!
//! | a place's generation | the place is |
//! |---|---|
//! | even | empty, and its number among the free ones or with who puts something in or has taken it |
//! | odd | full, for who moves the generation on |
#![expect(unsafe_code, reason = "a flight is written and taken through a shared reference")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_queue::ArrayQueue;
use parking_lot::{Mutex, MutexGuard};
use uaio_core::Ticket;
use uaio_driver::Token;

use crate::command::Flight;
use crate::layout::UaioIocb;

/// A table of flights.
///
/// # Invariants
///
/// The number of a place is in `free` at most once, and only while its generation is even. A flight is
/// touched only by who popped the number of its place, until it makes the generation odd, and by who made
/// the generation even, until it pushes the number.
pub(crate) struct Flights {
    places: Box<[Place]>,
    free: ArrayQueue<u32>,
    notes: Mutex<Box<[Note]>>,
}

struct Place {
    generation: AtomicU32,
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
        let place = || Place { generation: AtomicU32::new(0), flight: UnsafeCell::new(None) };
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
