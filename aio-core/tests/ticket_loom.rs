//! Cancel against completion under loom: the crate's own `ticket.rs`, with loom's primitives in the place
//! of std's, and the locks of a station around it.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::thread::yield_now as pause;

    /// As the free list of the crate, under a lock.
    pub(crate) struct FreeList(loom::sync::Mutex<Vec<u32>>);

    impl FreeList {
        pub(crate) fn new(len: usize) -> Self {
            Self(loom::sync::Mutex::new(Vec::with_capacity(len)))
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

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use ticket::{Ending, Ticket, Tickets};
use uaio_driver::Token;

const TOKEN: Token = Token { slot: 3, generation: 9 };

/// What has become of the one request there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// On its way to the station, in nobody's reach.
    OnItsWay,
    /// The device is at it.
    InProgress,
    Done,
    Cancelled,
}

struct Scene {
    tickets: Tickets,
    station: Mutex<State>,
    answers: AtomicUsize,
}

impl Scene {
    fn new() -> (Arc<Self>, Ticket) {
        let scene = Self {
            tickets: Tickets::new(1, 1),
            station: Mutex::new(State::OnItsWay),
            answers: AtomicUsize::new(0),
        };
        let ticket = scene.tickets.begin();
        (Arc::new(scene), ticket)
    }

    /// As `Core::start` in station.rs.
    fn start(&self, ticket: Ticket) {
        let mut state = self.station.lock().unwrap();
        *state = State::InProgress;
        self.tickets.moved(ticket, 0, Some(TOKEN));
        if self.tickets.ending(ticket).is_some() {
            *state = State::Cancelled;
            drop(state);
            self.answer(ticket);
        }
    }

    /// As a turn that finds it finished.
    fn finish(&self, ticket: Ticket) {
        let mut state = self.station.lock().unwrap();
        if *state == State::InProgress {
            *state = State::Done;
            drop(state);
            self.answer(ticket);
        }
    }

    /// As `Context::cancel` and `Station::cancel`.
    fn cancel(&self, ticket: Ticket) -> bool {
        if !self.tickets.end(ticket, Ending::Cancelled) {
            return false;
        }
        if self.tickets.place(ticket) == Some((0, TOKEN)) {
            let mut state = self.station.lock().unwrap();
            if *state == State::InProgress {
                *state = State::Cancelled;
                drop(state);
                self.answer(ticket);
            }
        }
        true
    }

    fn answer(&self, ticket: Ticket) {
        self.answers.fetch_add(1, Ordering::SeqCst);
        self.tickets.finish(ticket);
    }
}

fn check(scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scene);
}

/// The device never finishes it, so only the cancel can: a request that is started while it is cancelled
/// must not run on.
#[test]
fn one_that_is_cancelled_while_it_is_started_does_not_run_on() {
    check(|| {
        let (scene, ticket) = Scene::new();
        let starts = Arc::clone(&scene);
        let starter = thread::spawn(move || starts.start(ticket));
        assert!(scene.cancel(ticket), "it was not over");
        starter.join().unwrap();
        assert_eq!(*scene.station.lock().unwrap(), State::Cancelled);
        assert_eq!(scene.answers.load(Ordering::SeqCst), 1);
        assert!(scene.tickets.is_over(ticket));
    });
}

/// Started, finished and cancelled by three threads: one answer, and a cancel that was told that it was
/// too late finds it done.
#[test]
fn cancel_against_completion_gives_one_answer() {
    check(|| {
        let (scene, ticket) = Scene::new();
        let other = Arc::clone(&scene);
        let turner = thread::spawn(move || {
            other.start(ticket);
            other.finish(ticket);
        });
        let twice = Arc::clone(&scene);
        let canceller = thread::spawn(move || twice.cancel(ticket));
        let cancelled = scene.cancel(ticket);
        turner.join().unwrap();
        canceller.join().unwrap();
        let state = *scene.station.lock().unwrap();
        assert!(matches!(state, State::Done | State::Cancelled), "{state:?}");
        assert!(cancelled || state != State::OnItsWay);
        assert_eq!(scene.answers.load(Ordering::SeqCst), 1);
        assert!(scene.tickets.is_over(ticket));
        assert!(!scene.cancel(ticket), "a stale ticket");
    });
}

/// The slot's next tenant is not touched by a cancel of the one before.
#[test]
fn a_late_cancel_never_reaches_the_next_tenant() {
    check(|| {
        let (scene, ticket) = Scene::new();
        scene.start(ticket);
        let late = Arc::clone(&scene);
        let canceller = thread::spawn(move || late.tickets.end(ticket, Ending::Cancelled));
        scene.finish(ticket);
        let next = scene.tickets.begin();
        canceller.join().unwrap();
        assert_eq!((next.slot, next != ticket), (ticket.slot, true));
        assert_eq!(scene.tickets.ending(next), None);
        assert!(!scene.tickets.is_over(next));
    });
}
