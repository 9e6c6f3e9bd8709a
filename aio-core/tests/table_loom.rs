//! Where futures find their events, under loom: the crate's own `future/table.rs`, with loom's primitives in
//! the place of std's and a ring of events under a lock.

mod sync {
    use std::task::Waker;

    pub(crate) struct Lock<T>(loom::sync::Mutex<T>);

    impl<T> Lock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    /// The crate of that name under a lock: `register` before a `wake` is woken by it.
    pub(crate) struct AtomicWaker(Lock<Option<Waker>>);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(Lock::new(None))
        }
        pub(crate) fn register(&self, waker: &Waker) {
            *self.0.lock() = Some(waker.clone());
        }
        pub(crate) fn wake(&self) {
            let waker = self.0.lock().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

mod event {
    #[derive(Debug)]
    pub(crate) struct Event {
        pub(crate) user_data: u64,
        /// The memory of its command.
        #[expect(dead_code, reason = "it is only owned")]
        pub(crate) buffers: Vec<u8>,
    }
}

mod queue {
    use std::collections::VecDeque;

    use crate::event::Event;
    use crate::sync::Lock;

    pub(crate) struct EventQueue {
        slots: usize,
        ring: Lock<VecDeque<Event>>,
    }

    impl EventQueue {
        pub(crate) fn new(slots: usize) -> Self {
            Self { slots, ring: Lock::new(VecDeque::new()) }
        }
        pub(crate) fn slots(&self) -> usize {
            self.slots
        }
        pub(crate) fn push(&self, event: Event) {
            self.ring.lock().push_back(event);
        }
        pub(crate) fn take(&self, max: usize, mut out: impl FnMut(Event)) -> usize {
            assert_eq!(max, 1);
            let event = self.ring.lock().pop_front();
            event.map(&mut out).iter().count()
        }
        pub(crate) fn taken_out(&self) {}
    }
}

#[path = "../src/future/table.rs"]
#[expect(dead_code, reason = "not all of it is used here")]
mod table;

use std::sync::Arc;
use std::task::{Wake, Waker};

use event::Event;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use queue::EventQueue;
use table::{Place, Table};

/// A task of one future.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn task() -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    (Arc::clone(&woken), Waker::from(woken))
}

/// As `EventQueue::answer`, with the place as the notice.
fn complete(queue: &EventQueue, place: Arc<Place>) {
    queue.push(Event { user_data: place.index(), buffers: Vec::new() });
    Waker::from(place).wake();
}

fn check(scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scene);
}

/// Polls a future to its end: pending is right only if it is woken afterwards.
fn poll_once(table: &Table, place: &Place, waker: &Waker) -> bool {
    table.event(place, waker).is_some()
}

/// The other task takes the event out of the ring and is preempted before it puts it into its place: the
/// notice comes in between, and the task that looks on it finds the event nowhere.
#[test]
fn a_future_whose_event_another_has_taken_out_is_woken_when_it_lies_in_its_place() {
    check(|| {
        let queue = Arc::new(EventQueue::new(2));
        let table = Table::new(Arc::clone(&queue));
        let (one, waker) = task();
        let mine = table.take(&mut None, &waker).unwrap();
        let others = table.take(&mut None, &waker).unwrap();
        // It was polled once, and waits.
        assert!(!poll_once(&table, &mine, &waker));
        let reactor = {
            let (queue, place) = (Arc::clone(&queue), Arc::clone(&mine));
            thread::spawn(move || complete(&queue, place))
        };
        let other = {
            let table = Arc::clone(&table);
            let (_, waker) = task();
            thread::spawn(move || assert!(!poll_once(&table, &others, &waker)))
        };
        // Its notice has come, and so its executor polls it, whatever the other does meanwhile.
        reactor.join().unwrap();
        let woken = one.0.load(Ordering::SeqCst);
        let ready = poll_once(&table, &mine, &waker);
        other.join().unwrap();
        if !ready {
            assert!(one.0.load(Ordering::SeqCst) > woken, "nobody wakes it any more");
            assert!(poll_once(&table, &mine, &waker), "it was woken for nothing");
        }
    });
}

/// Dropped while its command ends: who comes second takes the event out, and the place is free again.
#[test]
fn an_abandoned_place_is_free_again_whoever_comes_second() {
    check(|| {
        let queue = Arc::new(EventQueue::new(1));
        let table = Table::new(Arc::clone(&queue));
        let (_, waker) = task();
        let place = table.take(&mut None, &waker).unwrap();
        let reactor = {
            let (queue, place) = (Arc::clone(&queue), Arc::clone(&place));
            thread::spawn(move || complete(&queue, place))
        };
        // As dropping a future does.
        if table.abandon(&place) {
            table.sort();
        }
        reactor.join().unwrap();
        assert!(table.take(&mut None, &waker).is_some(), "its place is lost");
    });
}
