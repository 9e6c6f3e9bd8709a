//! The completion ring and those who wait for it under loom: the crate's own files, with loom's
//! primitives in the place of std's.
//!
//! Loom runs every interleaving and every value that C11 lets an atomic load return, and finds any
//! two accesses of a slot that nothing orders.

mod sync {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now as pause;
    pub(crate) use std::sync::PoisonError;
}

#[path = "../src/ring.rs"]
mod ring;
#[path = "../src/waiters.rs"]
#[expect(dead_code, reason = "not all of it is used here")]
mod waiters;

use loom::sync::Arc;
use loom::thread::{self, Thread};
use ring::Ring;
use sync::{AtomicUsize, Ordering};
use waiters::Waiters;

fn check(bound: usize, scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.check(scene);
}

fn pop(ring: &Ring<Box<usize>>, max: usize) -> Vec<usize> {
    let mut out = Vec::new();
    ring.pop(max, |value| out.push(*value));
    out
}

/// Values are boxes, so one that is lost, or given twice, is found by loom's own leak check and by
/// the counts.
#[test]
fn every_value_comes_out_once_whoever_puts_in_and_takes_out() {
    check(3, || {
        let ring = Arc::new(Ring::new(2));
        let producers: Vec<_> = [1, 2]
            .map(|value| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.push(Box::new(value)))
            })
            .into();
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || pop(&other, 2));
        let mut seen = pop(&ring, 1);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        seen.extend(consumer.join().unwrap());
        seen.extend(pop(&ring, 2));
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
        assert_eq!(ring.len(), 0);
    });
}

/// A ring of two that is gone round twice, with the room handed back as a context does it: only after
/// a value was taken out is another put in.
#[test]
fn a_slot_is_used_again_only_when_its_last_value_is_out() {
    check(3, || {
        let ring = Arc::new(Ring::new(2));
        ring.push(Box::new(0));
        ring.push(Box::new(1));
        let other = Arc::clone(&ring);
        let second = thread::spawn(move || {
            let seen = pop(&other, 1);
            seen.iter().for_each(|value| other.push(Box::new(10 + value)));
            seen
        });
        let mut seen = pop(&ring, 1);
        seen.clone().iter().for_each(|value| ring.push(Box::new(20 + value)));
        seen.extend(second.join().unwrap());
        assert!(!seen.is_empty(), "two were there");
        seen.extend(pop(&ring, 2));
        // Whatever came out first, both first ones did, and one more for each of them.
        assert_eq!(seen.len() + ring.len(), 4);
    });
}

/// What is left in a ring is dropped with it; one that was taken out is not.
#[test]
fn a_ring_drops_what_is_left_in_it() {
    check(2, || {
        let ring = Ring::new(2);
        let value = Arc::new(());
        ring.push(Arc::clone(&value));
        ring.push(Arc::clone(&value));
        let mut out = Vec::new();
        ring.pop(1, |value| out.push(value));
        drop(ring);
        assert_eq!(Arc::strong_count(&value), 2);
    });
}

/// As a context does it: a slot, an entry, and a thread that sleeps when there is nothing.
struct Scene {
    ring: Ring<usize>,
    waiters: Waiters<(usize, Thread)>,
    /// Not 0: nobody waits any more.
    ended: AtomicUsize,
}

impl Scene {
    fn new() -> Arc<Self> {
        let (ring, waiters) = (Ring::new(2), Waiters::new(2));
        Arc::new(Self { ring, waiters, ended: AtomicUsize::new(0) })
    }

    fn complete(&self, value: usize) {
        self.ring.push(value);
        self.wake();
    }

    fn end_waits(&self) {
        self.ended.store(1, Ordering::Relaxed);
        self.wake();
    }

    fn has_ended_waits(&self) -> bool {
        self.ended.load(Ordering::Relaxed) != 0
    }

    fn wake(&self) {
        while let Some((_, thread)) = self.waiters.find(|entries| {
            let there = self.ring.len();
            let wanted = |need: usize| need <= there || self.has_ended_waits();
            let at = entries.iter().position(|(need, _)| wanted(*need))?;
            Some(entries.remove(at))
        }) {
            thread.unpark();
        }
    }

    fn wait(&self, need: usize) -> Vec<usize> {
        let mut out = Vec::new();
        loop {
            self.ring.pop(need - out.len(), |value| out.push(value));
            if out.len() >= need || self.has_ended_waits() {
                return out;
            }
            let left = need - out.len();
            let me = thread::current();
            self.waiters.change(|entries| {
                entries.retain(|(_, thread)| thread.id() != me.id());
                entries.push((left, me.clone()));
            });
            // As `Context::wait` has it: both are looked at again.
            if self.ring.pop(left, |value| out.push(value)) == 0 && !self.has_ended_waits() {
                thread::park();
            }
        }
    }
}

/// Who waits does so in a thread of its own: loom takes a late unpark for the end of a join.
fn waiter(scene: &Arc<Scene>, need: usize) -> thread::JoinHandle<Vec<usize>> {
    let scene = Arc::clone(scene);
    thread::spawn(move || scene.wait(need))
}

/// An event that is missed is a thread that sleeps for ever, which loom reports as a deadlock.
#[test]
fn an_event_that_comes_while_somebody_goes_to_sleep_wakes_it() {
    check(3, || {
        let scene = Scene::new();
        let waiter = waiter(&scene, 2);
        let other = Arc::clone(&scene);
        let producer = thread::spawn(move || other.complete(1));
        scene.complete(2);
        producer.join().unwrap();
        let mut seen = waiter.join().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    });
}

/// Two wait for one event each; each gets one, whichever.
#[test]
fn two_who_wait_both_get_theirs() {
    check(2, || {
        let scene = Scene::new();
        let waiters = [1, 1].map(|need| waiter(&scene, need));
        scene.complete(1);
        scene.complete(2);
        let mut seen = waiters.map(|waiter| waiter.join().unwrap()).concat();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
    });
}

/// One event wakes two, and the one that does not get it is on its way back to sleep when the waits are
/// ended: its entry is not there to be found, so it has to see that itself.
#[test]
fn the_end_of_all_waits_reaches_one_that_was_woken_for_nothing() {
    check(2, || {
        let scene = Scene::new();
        let waiters = [1, 1].map(|need| waiter(&scene, need));
        scene.complete(1);
        scene.end_waits();
        let seen = waiters.map(|waiter| waiter.join().unwrap()).concat();
        assert!(seen.len() + scene.ring.len() == 1, "{seen:?}");
    });
}
