//! Waiting for submissions: the first, all, or so many of a list that spans several contexts.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use crate::context::Context;
use crate::reactor::{Shared, wait_until};
use crate::ticket::Ticket;
use crate::watch::Watch;

/// How long a thread sleeps at most that waits for contexts of several reactors, and so may have to
/// turn any of them. For contexts of one reactor there is no such bound.
const SLICE: Duration = Duration::from_millis(1);

/// Waits until `need` of these submissions are over (their events are there, or were), or for
/// `timeout` (`None`: however long it takes). Says whether they are.
///
/// With `need` 1 it is `aio_suspend(3)`; with the length of the list, `LIO_WAIT`. A ticket that was
/// over when this is called counts; of one that is named twice only one is waited for. Events stay
/// where they are.
/// On reactors without a thread it turns them.
///
/// # Panics
///
/// When more are needed than the list has.
pub fn suspend(list: &[(&Context, Ticket)], need: usize, timeout: Option<Duration>) -> bool {
    assert!(need <= list.len(), "{need} of {} submissions cannot be over", list.len());
    let Some((first, _)) = list.first() else { return true };
    let left = Arc::new(AtomicIsize::new(need.cast_signed()));
    let mut watching = Watching { parts: Vec::new(), left };
    for (context, ticket) in list {
        watching.add(context, *ticket);
    }
    let live: usize = watching.parts.iter().map(|part| Watch::count(&part.tickets)).sum();
    watching.left.fetch_min(live.cast_signed(), Ordering::Relaxed);
    let is_over = || watching.left.load(Ordering::Relaxed) <= 0;
    if is_over() {
        return true;
    }
    let mut reactors: Vec<&Arc<Shared>> = Vec::new();
    for (context, _) in list {
        if !reactors.iter().any(|known| Arc::ptr_eq(known, context.shared())) {
            reactors.push(context.shared());
        }
    }
    let clock = first.shared().clock();
    let until = timeout.map(|timeout| clock.now().saturating_add(timeout));
    if let [shared] = reactors[..] {
        let place = wait_until(
            shared,
            until,
            |turns| {
                watching.leave_entries(turns);
                is_over()
            },
            &is_over,
        );
        // In this order: who is woken for nothing must not keep the baton.
        watching.leave();
        drop(place);
        return is_over();
    }
    loop {
        watching.leave_entries(false);
        let busy = reactors.iter().fold(false, |busy, shared| shared.try_turn() | busy);
        let left = until.map_or(SLICE, |until| until.saturating_sub(clock.now()).min(SLICE));
        if is_over() || left.is_zero() {
            watching.leave();
            return is_over();
        }
        if !busy {
            std::thread::park_timeout(left);
        }
    }
}

/// What a thread watches, by context.
struct Watching<'a> {
    parts: Vec<Part<'a>>,
    left: Arc<AtomicIsize>,
}

struct Part<'a> {
    context: &'a Context,
    /// Its entry on the context's queue.
    id: u64,
    tickets: Vec<Ticket>,
}

impl<'a> Watching<'a> {
    /// Adds a submission; one that is over is counted now.
    fn add(&mut self, context: &'a Context, ticket: Ticket) {
        let queue = context.queue();
        if queue.tickets().is_over(ticket) {
            self.left.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let known = self.parts.iter_mut().find(|part| Arc::ptr_eq(part.context.queue(), queue));
        match known {
            Some(part) => part.tickets.push(ticket),
            None => {
                let (id, tickets) = (queue.name(), vec![ticket]);
                self.parts.push(Part { context, id, tickets });
            }
        }
    }

    /// Leaves an entry on each context, or brings it up to date, and then looks for what is over.
    fn leave_entries(&self, turns: bool) {
        for Part { context, id, tickets } in &self.parts {
            let queue = context.queue();
            let bell = turns.then(|| context.shared().bell());
            let watch = || Watch::new(tickets, Arc::clone(&self.left));
            queue.wait_submissions(*id, watch, bell);
            queue.look_at_submissions(*id, tickets);
        }
    }

    fn leave(&self) {
        self.parts.iter().for_each(|part| part.context.queue().leave(part.id));
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
