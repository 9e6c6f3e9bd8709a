//! The events of one context, and who waits for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::thread::Thread;

use uaio_driver::{Doorbell, Wake};

use crate::event::Event;
use crate::listio::List;
use crate::notify::Notify;
use crate::ring::Ring;
use crate::ticket::{Ticket, Tickets};
use crate::waiters::Waiters;
use crate::watch::Watch;

/// The events of one context, and who waits for them.
///
/// A slot is taken at submit and given back when its event is taken out, so there is always room for
/// an event. Events lie in a ring without a lock; who waits has an entry under one. What keeps an
/// event from being missed is in [`crate::waiters`].
pub(crate) struct EventQueue {
    slots: usize,
    free: AtomicUsize,
    ring: Ring<Event>,
    waiters: Waiters<Entry>,
    tickets: Tickets,
    next_id: AtomicU64,
    /// Counts one up for each event.
    eventfd: Option<OwnedFd>,
    /// Notices that did not arrive.
    lost: AtomicU64,
    /// Nobody waits for events any more.
    waits_ended: AtomicBool,
}

/// An entry of a thread or task that waits; woken once.
struct Entry {
    id: u64,
    wants: Wants,
    sleeper: Sleeper,
}

/// Who waits, and how it is woken.
enum Sleeper {
    /// A thread that is parked.
    Parked(Thread),
    /// A thread that turns a reactor meanwhile, and sleeps at its bell.
    Turning(Arc<Doorbell>),
    /// A task.
    Task(Waker),
}

impl Sleeper {
    fn here(bell: Option<&Arc<Doorbell>>) -> Self {
        bell.map_or_else(
            || Self::Parked(std::thread::current()),
            |bell| Self::Turning(bell.clone()),
        )
    }

    fn wake(self) {
        match self {
            Self::Parked(thread) => thread.unpark(),
            Self::Turning(bell) => bell.wake(),
            Self::Task(task) => task.wake(),
        }
    }
}

/// What an entry waits for.
pub(crate) enum Wants {
    /// That so many events are there.
    Events(usize),
    /// That submissions are over.
    Submissions(Watch),
    /// That every command taken has its event, which may have been taken out.
    All,
}

/// An event, and whom it concerns beside those who wait for events.
pub(crate) struct Answer {
    pub(crate) event: Event,
    /// The submission that is over with it.
    pub(crate) last_of: Option<Ticket>,
    pub(crate) notify: Notify,
    pub(crate) list: Option<Arc<List>>,
}

impl EventQueue {
    pub(crate) fn new(context: u32, slots: usize, eventfd: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            slots,
            free: AtomicUsize::new(slots),
            ring: Ring::new(slots),
            waiters: Waiters::new(16),
            tickets: Tickets::new(context, slots),
            next_id: AtomicU64::new(0),
            eventfd,
            lost: AtomicU64::new(0),
            waits_ended: AtomicBool::new(false),
        })
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    pub(crate) fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        self.eventfd.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes slots for so many events, all or none.
    pub(crate) fn take_slots(&self, count: usize) -> bool {
        // Relaxed: a count, nothing is read by its value. The events come through the ring.
        let take = |free: usize| free.checked_sub(count);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives back slots whose iocbs were refused after all.
    pub(crate) fn give_slots(&self, count: usize) {
        // Release: pairs with the Acquire of `outstanding`.
        self.free.fetch_add(count, Ordering::Release);
    }

    /// Iocbs taken whose event is not there yet. Exact when nobody submits or gets events; never too few
    /// when nobody submits.
    pub(crate) fn outstanding(&self) -> usize {
        // Before the events are counted, and Acquire: one whose slot is seen free is not counted then.
        let free = self.free.load(Ordering::Acquire);
        (self.slots - free).saturating_sub(self.ring.len())
    }

    /// Puts the event of an iocb without a ticket in, and wakes those who wait for it.
    #[inline]
    pub(crate) fn complete(&self, event: Event) {
        self.ring.push(event);
        self.wake(None);
        self.count_up();
    }

    /// Puts an event in and gives its notices. Never blocks; called under no lock.
    pub(crate) fn answer(&self, Answer { event, last_of, notify, list }: Answer) {
        self.ring.push(event);
        if let Some(ticket) = last_of {
            self.tickets.finish(ticket);
        }
        self.wake(last_of);
        self.count_up();
        let mut arrived = notify.send();
        if let Some(list) = list {
            arrived &= list.one_done();
        }
        if !arrived {
            self.lose_notice();
        }
    }

    /// Counts a notice that did not arrive.
    pub(crate) fn lose_notice(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn count_up(&self) {
        if let Some(eventfd) = &self.eventfd {
            // Non-blocking, and the counter holds 2^64 - 2 events: it cannot fail.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Tells everybody who now has what it waits for, as `aio_complete` in fs/aio.c has it: two may
    /// be told of the same events, and who comes second waits again.
    #[inline]
    fn wake(&self, over: Option<Ticket>) {
        let mut next = self.waiters.find(|entries| {
            if let Some(ticket) = over {
                for entry in entries.iter_mut() {
                    if let Wants::Submissions(watch) = &mut entry.wants {
                        watch.over(ticket);
                    }
                }
            }
            self.take_satisfied(entries)
        });
        while let Some(Entry { sleeper, .. }) = next {
            sleeper.wake();
            next = self.waiters.find(|entries| self.take_satisfied(entries));
        }
    }

    fn take_satisfied(&self, entries: &mut Vec<Entry>) -> Option<Entry> {
        let there = self.ring.len();
        let at = entries.iter().position(|entry| match &entry.wants {
            Wants::Events(need) => *need <= there || self.has_ended_waits(),
            Wants::Submissions(watch) => watch.is_over(),
            Wants::All => self.outstanding() == 0,
        })?;
        Some(entries.remove(at))
    }

    /// Moves at most `max` events to `out`.
    #[inline]
    pub(crate) fn take(&self, max: usize, out: impl FnMut(Event)) -> usize {
        let count = self.ring.pop(max, out);
        if count > 0 {
            self.give_slots(count);
        }
        count
    }

    /// Ends every wait for events, and every one to come.
    pub(crate) fn end_waits(&self) {
        self.waits_ended.store(true, Ordering::Relaxed);
        self.wake(None);
    }

    pub(crate) fn has_ended_waits(&self) -> bool {
        self.waits_ended.load(Ordering::Relaxed)
    }

    /// A name for an entry.
    pub(crate) fn name(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Leaves the entry `id` of this thread, or brings it up to date: to be woken at `bell`, if it
    /// will sleep there. Look again afterwards, before sleeping.
    pub(crate) fn wait_events(&self, id: u64, need: usize, bell: Option<&Arc<Doorbell>>) {
        self.leave_or_update(
            id,
            bell,
            |wants| *wants = Wants::Events(need),
            || Wants::Events(need),
        );
    }

    /// The same for the end of all commands.
    pub(crate) fn wait_all(&self, id: u64, bell: Option<&Arc<Doorbell>>) {
        self.leave_or_update(id, bell, |_| {}, || Wants::All);
    }

    /// Who takes events out beside whoever waits for the end of all does this afterwards: between
    /// taking one out and giving its slot back there is one too many outstanding, and whoever looks
    /// then goes on waiting.
    pub(crate) fn taken_out(&self) {
        self.wake(None);
    }

    /// The same for submissions. An entry that is there keeps its watch.
    pub(crate) fn wait_submissions(
        &self,
        id: u64,
        watch: impl FnOnce() -> Watch,
        bell: Option<&Arc<Doorbell>>,
    ) {
        self.leave_or_update(id, bell, |_| {}, || Wants::Submissions(watch()));
    }

    fn leave_or_update(
        &self,
        id: u64,
        bell: Option<&Arc<Doorbell>>,
        update: impl FnOnce(&mut Wants),
        make: impl FnOnce() -> Wants,
    ) {
        self.waiters.change(|entries| match entries.iter_mut().find(|entry| entry.id == id) {
            Some(entry) => {
                update(&mut entry.wants);
                if matches!(entry.sleeper, Sleeper::Turning(_)) != bell.is_some() {
                    entry.sleeper = Sleeper::here(bell);
                }
            }
            None => entries.push(Entry { id, wants: make(), sleeper: Sleeper::here(bell) }),
        });
    }

    /// Leaves the entry `id` of a task that waits for an event, or brings it up to date. Look again
    /// afterwards.
    pub(crate) fn wait_task(&self, id: u64, task: &Waker) {
        self.waiters.change(|entries| match entries.iter_mut().find(|entry| entry.id == id) {
            Some(entry) => entry.sleeper = Sleeper::Task(task.clone()),
            None => {
                let sleeper = Sleeper::Task(task.clone());
                entries.push(Entry { id, wants: Wants::Events(1), sleeper });
            }
        });
    }

    /// Counts in the entry `id` the submissions that are over by now.
    pub(crate) fn look_at_submissions(&self, id: u64, tickets: &[Ticket]) {
        self.waiters.change(|entries| {
            let entry = entries.iter_mut().find(|entry| entry.id == id);
            let Some(Entry { wants: Wants::Submissions(watch), .. }) = entry else { return };
            for ticket in tickets.iter().filter(|ticket| self.tickets.is_over(**ticket)) {
                watch.over(*ticket);
            }
        });
    }

    /// Whether the entry `id` has been woken, or was never left.
    pub(crate) fn is_woken(&self, id: u64) -> bool {
        self.waiters.look(|entries| entries.iter().all(|entry| entry.id != id))
    }

    /// Takes the entry `id` away, if it has not been woken.
    pub(crate) fn leave(&self, id: u64) {
        self.waiters.change(|entries| entries.retain(|entry| entry.id != id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;

    /// Somebody takes events out while a context is dropped: it must not go before its last command.
    #[test]
    fn a_command_without_event_is_outstanding_while_others_events_are_taken_out() {
        const EVENTS: usize = 64;
        for _ in 0..500 {
            let queue = EventQueue::new(0, EVENTS + 1, None);
            assert!(queue.take_slots(EVENTS + 1));
            for user_data in 0..EVENTS as u64 {
                queue.complete(Event {
                    user_data,
                    result: Ok(0),
                    buffers: Buffers::None,
                    more: false,
                });
            }
            std::thread::scope(|threads| {
                let taker = threads.spawn(|| while queue.take(1, drop) > 0 {});
                while !taker.is_finished() {
                    assert!(queue.outstanding() >= 1);
                }
            });
            assert_eq!(queue.outstanding(), 1);
        }
    }
}
