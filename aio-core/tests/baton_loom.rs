//! The baton under loom: the crate's own file, with loom's primitives in the place of std's.
//!
//! The scene is that of [`uaio_core::Context::get_events`] on a reactor without a thread. What the
//! threads wait for only comes when somebody turns. A protocol that lets the baton lie beside a
//! parked thread deadlocks, which loom reports.

mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::{Thread, current};
    pub(crate) use std::sync::PoisonError;
}

#[path = "../src/baton.rs"]
mod baton;

use baton::Baton;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

struct Scene {
    baton: Baton,
    /// Turns so far; a waiter is served by the turn of its number.
    turns: AtomicUsize,
    /// Threads in a turn: never two.
    turning: AtomicUsize,
}

impl Scene {
    fn new() -> Arc<Self> {
        let (turns, turning) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { baton: Baton::new(4), turns, turning })
    }

    fn turn(&self) {
        assert_eq!(self.turning.fetch_add(1, Ordering::SeqCst), 0, "two threads turn");
        self.turns.fetch_add(1, Ordering::SeqCst);
        self.turning.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until `turns` turns have been taken, by whomever.
    fn wait_for(&self, turns: usize) {
        if let Some(_place) = self.baton.try_hold() {
            self.turn();
        }
        let mut place = self.baton.join();
        while self.turns.load(Ordering::SeqCst) < turns {
            if place.holds() {
                self.turn();
            } else {
                thread::park();
            }
        }
    }
}

/// Each waits for more turns than the one before: who leaves first leaves the others without.
#[test]
fn who_stops_turning_hands_the_baton_on() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let scene = Scene::new();
        let others: Vec<_> = [1, 2]
            .map(|turns| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.wait_for(turns))
            })
            .into();
        scene.wait_for(3);
        others.into_iter().for_each(|other| other.join().unwrap());
        let free = scene.baton.try_hold();
        assert!(free.is_some(), "nobody waits and the baton is not free");
    });
}

/// A waiter that leaves without ever looking (its time was up) may have been handed the baton.
#[test]
fn who_is_handed_the_baton_while_leaving_hands_it_on() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let scene = Scene::new();
        let leaves = Arc::clone(&scene);
        let leaver = thread::spawn(move || drop(leaves.baton.join()));
        let waits = Arc::clone(&scene);
        let waiter = thread::spawn(move || waits.wait_for(2));
        scene.wait_for(1);
        leaver.join().unwrap();
        waiter.join().unwrap();
        assert!(scene.baton.try_hold().is_some());
    });
}
