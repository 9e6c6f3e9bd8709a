//! What the program's threads send to the reactor, in order, so that no thread that stops half-way holds it up.
//!
//! A signal handler may wait for a request (aio_suspend(3)) while the thread that it interrupted is in the middle of
//! sending another, or of malloc(3). So the reactor must not wait for that thread: a message is there or is not, by one
//! exchange of a pointer; and it must not free what the program's threads allocated, for which it might need a lock of
//! malloc's that the interrupted thread holds. What was read goes onto a heap of empties, which those who
//! send use again.
//!
//! ```text
//!   sender ──► sent (newest first) ──► taken (oldest first) ──► reactor
//!     ▲                                                            │
//!     └───────────────────────── empties ◄─────────────────────────┘
//! ```
#![expect(unsafe_code, reason = "lists of nodes that are handed from thread to thread")]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Node<T> {
    next: *mut Node<T>,
    message: Option<T>,
}

/// Many send, one reads.
///
/// # Invariants
///
/// Each node is in one of the three lists, or in the hands of one thread. `taken` is the reader's alone.
pub(super) struct Inbox<T> {
    sent: AtomicPtr<Node<T>>,
    taken: AtomicPtr<Node<T>>,
    empties: AtomicPtr<Node<T>>,
}

impl<T> Inbox<T> {
    pub(super) fn new() -> Self {
        let none = || AtomicPtr::new(null_mut());
        Self { sent: none(), taken: none(), empties: none() }
    }

    /// Sends a message. Never waits.
    pub(super) fn push(&self, message: T) {
        let node = match self.empty() {
            Some(mut node) => {
                node.message = Some(message);
                node
            }
            None => Box::new(Node { next: null_mut(), message: Some(message) }),
        };
        put(&self.sent, Box::into_raw(node));
    }

    /// An empty node to be used again, if there is one.
    fn empty(&self) -> Option<Box<Node<T>>> {
        if self.empties.load(Ordering::Relaxed).is_null() {
            return None;
        }
        // All of them, since to take one alone somebody would have to look at what is behind it, which may change.
        let first = own(self.empties.swap(null_mut(), Ordering::Acquire))?;
        let none = null_mut();
        let rest = first.next;
        if self.empties.compare_exchange(none, rest, Ordering::Release, Ordering::Relaxed).is_err()
        {
            // There are new ones already: these have become too many.
            free(rest);
        }
        Some(first)
    }

    /// For the one reader: the oldest message.
    pub(super) fn pop(&self) -> Option<T> {
        // Relaxed: nobody else uses `taken`.
        let mut first = self.taken.load(Ordering::Relaxed);
        if first.is_null() {
            first = reversed(self.sent.swap(null_mut(), Ordering::Acquire));
        }
        let mut node = own(first)?;
        self.taken.store(node.next, Ordering::Relaxed);
        let message = node.message.take();
        put(&self.empties, Box::into_raw(node));
        message
    }

    /// For the one reader: whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.load(Ordering::Relaxed).is_null() && self.sent.load(Ordering::Acquire).is_null()
    }
}

/// A node that a list has given up.
fn own<T>(node: *mut Node<T>) -> Option<Box<Node<T>>> {
    if node.is_null() {
        return None;
    }
    // SAFETY: every node is from a box, and whoever calls this took it out of the one list that had it.
    Some(unsafe { Box::from_raw(node) })
}

/// Frees a list of the caller's own.
fn free<T>(mut first: *mut Node<T>) {
    while let Some(node) = own(first) {
        first = node.next;
    }
}

/// Puts a node of the caller's own into a list.
fn put<T>(list: &AtomicPtr<Node<T>>, node: *mut Node<T>) {
    let mut first = list.load(Ordering::Relaxed);
    loop {
        // SAFETY: the node is the caller's own until the exchange.
        unsafe { (*node).next = first };
        // Release: whoever takes the node sees what is in it. That `first` may have been away meanwhile is no matter:
        // it is first again.
        match list.compare_exchange_weak(first, node, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// A list of the caller's own, the other way round.
fn reversed<T>(mut first: *mut Node<T>) -> *mut Node<T> {
    let mut result = null_mut();
    while !first.is_null() {
        let node = first;
        // SAFETY: not null, and the caller's own.
        first = unsafe { (*node).next };
        // SAFETY: as above.
        unsafe { (*node).next = result };
        result = node;
    }
    result
}

// SAFETY: a message goes from thread to thread, and is read by one.
unsafe impl<T: Send> Send for Inbox<T> {}
// SAFETY: as above; a node is one thread's at a time.
unsafe impl<T: Send> Sync for Inbox<T> {}

impl<T> std::fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        for list in [&self.sent, &self.taken, &self.empties] {
            free(list.load(Ordering::Acquire));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn messages_come_in_the_order_they_were_sent_in() {
        let inbox = Inbox::new();
        assert!(inbox.is_empty());
        assert_eq!(inbox.pop(), None);
        let (mut sent, mut read) = (0, 0);
        for round in 0..200 {
            for _ in 0..round % 7 {
                inbox.push(sent);
                sent += 1;
            }
            for _ in 0..round % 5 {
                if let Some(message) = inbox.pop() {
                    assert_eq!(message, read);
                    read += 1;
                }
                assert_eq!(inbox.is_empty(), read == sent);
            }
        }
        while inbox.pop().is_some() {
            read += 1;
        }
        assert_eq!(read, sent);
    }

    #[test]
    fn of_many_senders_each_message_comes_once_and_in_its_senders_order() {
        const EACH: usize = 20_000;
        let inbox = Inbox::new();
        let mut next = [0; 3];
        std::thread::scope(|scope| {
            for sender in 0..3 {
                let inbox = &inbox;
                scope.spawn(move || (0..EACH).for_each(|number| inbox.push((sender, number))));
            }
            while next != [EACH; 3] {
                let Some((sender, number)) = inbox.pop() else { continue };
                assert_eq!(number, next[sender], "of {sender}");
                next[sender] += 1;
            }
        });
        assert!(inbox.is_empty());
    }

    #[test]
    fn what_was_not_read_is_dropped_with_it() {
        let message = Arc::new(());
        let inbox = Inbox::new();
        for _ in 0..100 {
            inbox.push(Arc::clone(&message));
        }
        inbox.pop();
        inbox.push(Arc::clone(&message));
        drop(inbox);
        assert_eq!(Arc::strong_count(&message), 1);
    }
}
