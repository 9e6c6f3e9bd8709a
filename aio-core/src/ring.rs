//! The completion ring: where the events of a context lie until they are taken out.
//!
//! Any thread puts in, any thread takes out, without a lock and without a system call (the ring that
//! `io_setup(2)` maps, and what `io_getevents` does with it in user space, for many readers). It is the
//! bounded queue of D. Vyukov: each slot has a sequence number that says whose turn it is. A position
//! is claimed by moving `tail` or `head` on, and handed over by the slot's number, so a number that is
//! stored last with Release and read first with Acquire is all that orders the value.
//!
//! | the slot's number, for position `p` | the slot is |
//! |---|---|
//! | `p` | empty, for who claims `p` to put in |
//! | `p + 1` | full, for who claims `p` to take out |
//! | `p + capacity` | empty again, for the next round |
//!
//! `tests/ring_loom.rs` runs this file's own code under loom, through every order that C11 allows.
#![expect(unsafe_code, reason = "a slot is written and read through a shared reference")]

use std::mem::MaybeUninit;

use super::sync::{AtomicUsize, Ordering, UnsafeCell, pause};

/// On a cache line of its own: who puts in and who takes out do not disturb each other.
#[repr(align(64))]
struct Apart(AtomicUsize);

struct Slot<T> {
    sequence: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// A bounded ring of many producers and many consumers.
///
/// # Invariants
///
/// The value of a slot is initialised exactly when its number is `p + 1` for a position `p` of it, or
/// who claimed `p` has not stored the next number yet. Between claiming a position and storing the
/// slot's next number, who claimed it has the slot to itself.
pub(crate) struct Ring<T> {
    tail: Apart,
    head: Apart,
    mask: usize,
    slots: Box<[Slot<T>]>,
}

// SAFETY: a value is moved in by one thread and out by another, which `T: Send` allows; no two threads
// reach the same value (see the invariants).
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above; a shared ring gives no reference to a value.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    /// An empty ring with room for at least `capacity` values.
    pub(crate) fn new(capacity: usize) -> Self {
        // With a single slot, "full" and "empty again" would be the same number.
        let capacity = capacity.next_power_of_two().max(2);
        // INVARIANT: slot p has the number p and no value.
        let slots = (0..capacity)
            .map(|at| Slot {
                sequence: AtomicUsize::new(at),
                value: UnsafeCell::new(MaybeUninit::uninit()),
            })
            .collect();
        let (tail, head) = (Apart(AtomicUsize::new(0)), Apart(AtomicUsize::new(0)));
        Self { tail, head, mask: capacity - 1, slots }
    }

    /// How many values are in it or about to be. Exact when nobody puts in or takes out.
    pub(crate) fn len(&self) -> usize {
        let head = self.head.0.load(Ordering::Relaxed);
        let len = self.tail.0.load(Ordering::Relaxed).wrapping_sub(head);
        // The head may have been read long before the tail.
        len.min(self.mask + 1)
    }

    /// Puts a value in. The caller knows that there is room: fewer than `capacity` values were put in
    /// and not taken out. The only thing that it may have to wait for is a thread that is in the
    /// middle of taking the slot's last value out.
    pub(crate) fn push(&self, value: T) {
        // Relaxed: the slot's number orders the value; this only shares the positions out.
        let at = self.tail.0.fetch_add(1, Ordering::Relaxed);
        let slot = &self.slots[at & self.mask];
        // Acquire: pairs with the Release of who took the last value out.
        while slot.sequence.load(Ordering::Acquire) != at {
            pause();
        }
        // SAFETY: position `at` was claimed above and the slot's number says that it is empty, so
        // nobody else touches it until the number is stored.
        slot.value.with_mut(|place| unsafe { place.cast::<T>().write(value) });
        // Release: pairs with the Acquire of who takes it out. INVARIANT: it is initialised.
        slot.sequence.store(at.wrapping_add(1), Ordering::Release);
    }

    /// Takes at most `max` values out, oldest first, and says how many.
    pub(crate) fn pop(&self, max: usize, mut out: impl FnMut(T)) -> usize {
        let mut head = self.head.0.load(Ordering::Relaxed);
        loop {
            let count = self.full_from(head, max);
            if count == 0 {
                let number = self.slots[head & self.mask].sequence.load(Ordering::Acquire);
                if number.wrapping_sub(head.wrapping_add(1)).cast_signed() <= 0 {
                    return 0;
                }
                // Somebody has taken that position already: our head is old. The Acquire above has
                // seen what that thread stored after it moved the head.
                head = self.head.0.load(Ordering::Relaxed);
                continue;
            }
            // Relaxed: as for `tail`. It fails when somebody else took them.
            let next = head.wrapping_add(count);
            let claim =
                self.head.0.compare_exchange(head, next, Ordering::Relaxed, Ordering::Relaxed);
            if let Err(seen) = claim {
                head = seen;
                continue;
            }
            for at in (0..count).map(|step| head.wrapping_add(step)) {
                let slot = &self.slots[at & self.mask];
                // SAFETY: position `at` was claimed above and `full_from` saw the number `at + 1`
                // with Acquire, so the value is initialised, and ours alone until the number is
                // stored.
                let value = slot.value.with(|place| unsafe { place.cast::<T>().read() });
                // Release: pairs with the Acquire in `push`. INVARIANT: it was moved out.
                let again = at.wrapping_add(self.mask + 1);
                slot.sequence.store(again, Ordering::Release);
                out(value);
            }
            return count;
        }
    }

    /// How many positions from `head` on are full, at most `max`.
    fn full_from(&self, head: usize, max: usize) -> usize {
        let full = |step: &usize| {
            let at = head.wrapping_add(*step);
            // Acquire: pairs with the Release in `push`.
            self.slots[at & self.mask].sequence.load(Ordering::Acquire) == at.wrapping_add(1)
        };
        (0..max.min(self.mask + 1)).take_while(full).count()
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        self.pop(usize::MAX, drop);
    }
}
