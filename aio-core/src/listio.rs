//! Lists: many iocbs in one submission, and one notice for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::context::Context;
use crate::iocb::Iocb;
use crate::notify::Notify;
use crate::refusal::Refused;
use crate::ticket::Ticket;

/// What is not over of a list, and who is told when all of it is.
#[derive(Debug)]
pub(crate) struct List {
    left: AtomicUsize,
    notify: Mutex<Notify>,
}

impl List {
    fn new(left: usize, notify: Notify) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(left), notify: Mutex::new(notify) })
    }

    /// One event is there. Says whether the notice, if it was due, arrived.
    pub(crate) fn one_done(&self) -> bool {
        self.some_done(1)
    }

    fn some_done(&self, count: usize) -> bool {
        // AcqRel: whoever takes the last one out has seen the events of all.
        if self.left.fetch_sub(count, Ordering::AcqRel) > count {
            return true;
        }
        let notify = std::mem::take(&mut *self.notify.lock());
        notify.send()
    }
}

/// A list that was submitted.
#[derive(Debug)]
pub struct Listed {
    /// What was taken, in order: to cancel, or to wait for with [`crate::suspend()`].
    pub tickets: Vec<Ticket>,
    /// What was not, with the reasons. It stopped nothing else.
    pub refused: Vec<Refused>,
}

impl Context {
    /// Submits a list: everything that can be, whatever becomes of the rest; the devices see it
    /// together (`lio_listio(3)` with `LIO_NOWAIT`). Each has its event. `notify` is given once, when
    /// all that were taken have theirs; at once if none was. Never blocks.
    ///
    /// For `LIO_WAIT`, wait for the tickets: see [`listio_wait`](Context::listio_wait).
    pub fn listio(&self, iocbs: impl IntoIterator<Item = Iocb>, notify: Notify) -> Listed {
        let iocbs: Vec<Iocb> = iocbs.into_iter().collect();
        // One more than there are: the notice cannot come before all have been submitted.
        let events: usize = iocbs.iter().map(Iocb::count).sum();
        let list = List::new(events + 1, notify);
        let mut listed = Listed { tickets: Vec::with_capacity(iocbs.len()), refused: Vec::new() };
        let mut batch = self.batch();
        let mut not_taken = 0;
        for iocb in iocbs {
            match batch.submit_of(iocb, Some(&list)) {
                Ok(ticket) => listed.tickets.push(ticket),
                Err(refused) => {
                    not_taken += refused.iocb.count();
                    listed.refused.push(refused);
                }
            }
        }
        drop(batch);
        if !list.some_done(not_taken + 1) {
            self.queue().lose_notice();
        }
        listed
    }

    /// Submits a list, as [`listio`](Context::listio), and waits until all that were taken have
    /// their events (`LIO_WAIT`).
    pub fn listio_wait(&self, iocbs: impl IntoIterator<Item = Iocb>) -> Listed {
        let listed = self.listio(iocbs, Notify::None);
        let parts: Vec<_> = listed.tickets.iter().map(|ticket| (self, *ticket)).collect();
        let over = crate::suspend::suspend(&parts, parts.len(), None);
        debug_assert!(over, "a wait without a timeout ended early");
        listed
    }
}
