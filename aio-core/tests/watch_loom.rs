//! Waiting for submissions under loom: the crate's own `watch.rs`, `ticket.rs` and `waiters.rs`, with loom's
//! primitives in the place of std's.

mod sync {
    pub(crate) use loom::sync::atomic::{
        AtomicIsize, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now as pause;
    pub(crate) use std::sync::PoisonError;

    /// As the free list of the crate, under a lock.
    pub(crate) struct FreeList(Mutex<Vec<u32>>);

    impl FreeList {
        pub(crate) fn new(len: usize) -> Self {
            Self(Mutex::new(Vec::with_capacity(len)))
        }
        pub(crate) fn push(&self, value: u32) -> Result<(), u32> {
            self.0.lock().unwrap().push(value);
            Ok(())
        }
        pub(crate) fn pop(&self) -> Option<u32> {
            self.0.lock().unwrap().pop()
        }
    }
}

#[path = "../src/ticket.rs"]
#[expect(dead_code, unreachable_pub, reason = "not all of it is used here")]
mod ticket;
#[path = "../src/waiters.rs"]
mod waiters;
#[path = "../src/watch.rs"]
mod watch;

use loom::sync::Arc;
use loom::sync::atomic::AtomicIsize;
use loom::thread;
use ticket::{Ticket, Tickets};
use waiters::Waiters;
use watch::Watch;

struct Scene {
    tickets: Tickets,
    waiters: Waiters<Watch>,
}

impl Scene {
    fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { tickets: Tickets::new(1, slots), waiters: Waiters::new(1) })
    }

    /// As `EventQueue::answer`: the slot is free again before those who wait are told.
    fn answer(&self, ticket: Ticket) {
        self.tickets.finish(ticket);
        self.waiters.find(|watches| {
            watches.iter_mut().for_each(|watch| watch.over(ticket));
            Some(())
        });
    }

    /// As `suspend`: leaves a watch, then looks for what is over; says whether all is.
    fn suspend(&self, tickets: &[Ticket]) -> bool {
        let left = Arc::new(AtomicIsize::new(Watch::count(tickets) as isize));
        self.waiters.change(|watches| watches.push(Watch::new(tickets, left)));
        self.waiters.change(|watches| {
            for ticket in tickets.iter().filter(|ticket| self.tickets.is_over(**ticket)) {
                watches[0].over(*ticket);
            }
        });
        self.is_over()
    }

    fn is_over(&self) -> bool {
        self.waiters.look(|watches| watches[0].is_over())
    }
}

fn check(scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scene);
}

/// The slot of a submission that is over is taken by the next, which is waited for: that the first is
/// over is told late, and says nothing of the second.
#[test]
fn the_end_of_a_slots_last_tenant_does_not_end_the_wait_for_the_next() {
    check(|| {
        let scene = Scene::new(1);
        let first = scene.tickets.begin();
        let other = Arc::clone(&scene);
        let ender = thread::spawn(move || other.answer(first));
        // Waits until the slot is free.
        let second = scene.tickets.begin();
        assert!(!scene.suspend(&[second]), "it is not over");
        ender.join().unwrap();
        assert!(!scene.is_over(), "the first's end was taken for the second's");
        scene.answer(second);
        assert!(scene.is_over());
    });
}

/// Whichever side comes first, the end of each is counted once.
#[test]
fn each_of_two_that_end_on_two_threads_is_counted_once() {
    check(|| {
        let scene = Scene::new(2);
        let tickets = [scene.tickets.begin(), scene.tickets.begin()];
        let enders = tickets.map(|ticket| {
            let scene = Arc::clone(&scene);
            thread::spawn(move || scene.answer(ticket))
        });
        // Named twice, one is waited for.
        scene.suspend(&[tickets[0], tickets[1], tickets[0]]);
        enders.into_iter().for_each(|ender| ender.join().unwrap());
        assert!(scene.is_over());
    });
}
