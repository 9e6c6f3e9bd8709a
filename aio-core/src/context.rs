//! A context: where commands are submitted and events come out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use uaio_driver::DeviceError;

use crate::event::{Event, EventQueue, Want};
use crate::iocb::{Iocb, Plan, Refusal, Refused};
use crate::reactor::{Shared, Turner};
use crate::request::Request;
use crate::volume::Volume;

/// How a context is to be made.
#[derive(Clone, Copy, Debug)]
pub struct ContextOptions {
    /// How many commands and events not taken out it holds, at least 1 (`nr_events` of
    /// `io_setup`).
    pub events: usize,
    /// Make an eventfd that counts events; it needs a reactor with a thread.
    pub eventfd: bool,
}

impl ContextOptions {
    /// For `events` commands at once, without eventfd.
    pub fn events(events: usize) -> Self {
        Self { events, eventfd: false }
    }
}

/// Where commands are submitted and their events come out (`io_context_t`).
///
/// Shared between threads: any may submit, any may get events, at the same time.
///
/// # Dropping
///
/// Dropping it waits until every command it took is finished, bounded by the device's deadlines,
/// and throws the events away.
pub struct Context {
    queue: Arc<EventQueue>,
    shared: Arc<Shared>,
}

/// More events at least than at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at least {min} events cannot be had with room for {max}")]
pub struct InvalidRange {
    /// How many at least.
    pub min: usize,
    /// How many at most.
    pub max: usize,
}

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, options: ContextOptions) -> Result<Self, DeviceError> {
        let ContextOptions { events, eventfd: notify } = options;
        if events == 0 {
            return Err(DeviceError::Invalid("a context without events is not possible".into()));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = notify
            .then(|| eventfd(0, flags))
            .transpose()
            .map_err(|error| DeviceError::Os { what: "eventfd".into(), source: error.into() })?;
        let queue = EventQueue::new(events, eventfd, Arc::clone(shared.bell()));
        Ok(Self { queue, shared })
    }

    /// For one sync call: a kept queue of one event, or a new one.
    pub(crate) fn for_call(shared: Arc<Shared>) -> Self {
        let kept = shared.calls.pop();
        let queue = kept.unwrap_or_else(|| EventQueue::new(1, None, Arc::clone(shared.bell())));
        Self { queue, shared }
    }

    /// After one sync call: keeps the queue for the next.
    pub(crate) fn end_call(self) {
        // When there are enough of them, this one goes.
        let _ = self.shared.calls.push(Arc::clone(&self.queue));
    }

    /// How many commands and events it holds.
    pub fn slots(&self) -> usize {
        self.queue.slots()
    }

    /// Commands taken whose event is not there yet.
    pub fn outstanding(&self) -> usize {
        self.queue.outstanding()
    }

    /// What counts the events, if it was asked for: its value goes up by one for each event, after
    /// the event is there. Whoever reads it gets the number since the last read.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.eventfd()
    }

    /// Submits a command. Never blocks and does no waiting I/O: what is cached is answered here, in
    /// the caller's thread; of anything else the first step is done here if nobody else is stepping
    /// the volume, and the rest goes on when the reactor turns.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the iocb, when there is no slot, or the command is not possible.
    pub fn submit(&self, iocb: Iocb) -> Result<(), Refused> {
        self.submit_one(iocb, true)
    }

    /// Submits commands in order, until one is refused, and says how many it took; the device sees
    /// them together. The one that was refused and those after it stay in `iocbs`.
    ///
    /// # Errors
    ///
    /// Why the first was refused, when none was taken: as `io_submit`.
    pub fn submit_all(&self, iocbs: &mut VecDeque<Iocb>) -> Result<usize, Refusal> {
        let mut taken = 0;
        let mut volume: Option<Volume> = None;
        let mut refusal = None;
        while let Some(iocb) = iocbs.pop_front() {
            let next = iocb.handle.volume();
            let same = volume.as_ref().is_some_and(|last| std::ptr::eq(last.inner(), next.inner()));
            if !same && let Some(last) = volume.replace(next.clone()) {
                last.inner().commit();
            }
            match self.submit_one(iocb, false) {
                Ok(()) => taken += 1,
                Err(Refused { iocb, reason }) => {
                    iocbs.push_front(iocb);
                    refusal = Some(reason);
                    break;
                }
            }
        }
        if let Some(last) = volume {
            last.inner().commit();
        }
        refusal.filter(|_| taken == 0).map_or(Ok(taken), Err)
    }

    fn submit_one(&self, mut iocb: Iocb, commit: bool) -> Result<(), Refused> {
        let refuse = |iocb, reason| Err(Refused { iocb, reason });
        if !Arc::ptr_eq(iocb.handle.volume().inner().shared(), &self.shared) {
            return refuse(iocb, Refusal::Invalid);
        }
        let plan = match iocb.plan() {
            Ok(plan) => plan,
            Err(reason) => return refuse(iocb, reason),
        };
        if !self.queue.take_slot() {
            return refuse(iocb, Refusal::NoSlot);
        }
        let result = match plan {
            Plan::Answer(result) => result,
            Plan::Go(len) if iocb.try_hit(len) => Ok(len),
            Plan::Go(len) => {
                let volume = iocb.handle.volume().clone();
                let request = Request::new(iocb, len, Arc::clone(&self.queue));
                return volume.inner().take_in(request, commit).map_err(|request| {
                    self.queue.give_slot();
                    let closed = volume.inner().is_closed();
                    let reason = if closed { Refusal::Closed } else { Refusal::Busy };
                    Refused { iocb: request.into_iocb(), reason }
                });
            }
        };
        let Iocb { user_data, buffers, .. } = iocb;
        self.queue.complete(Event { user_data, result, buffers });
        Ok(())
    }

    /// Moves at most `max` events to the end of `out`, waiting until there were at least `min` or
    /// `timeout` is over (`None`: however long it takes), and says how many (`io_getevents`). When
    /// time is up it gives what there is; with `min` 0 or no time it does not wait.
    ///
    /// Many threads may wait: each event goes to one of them. On a reactor without a thread the
    /// waiting threads turn it, and a call that does not wait turns it once.
    ///
    /// # Errors
    ///
    /// When `min` is more than `max`.
    pub fn get_events(
        &self,
        min: usize,
        max: usize,
        out: &mut Vec<Event>,
        timeout: Option<Duration>,
    ) -> Result<usize, InvalidRange> {
        if min > max {
            return Err(InvalidRange { min, max });
        }
        let mut taken = self.queue.take(max, out);
        if taken < min.max(1)
            && taken < max
            && let Some(_place) = self.shared.baton.try_hold()
        {
            // Perhaps nobody turns. A waiting call goes on turning below.
            self.shared.turn(self.shared.clock().now());
            taken += self.queue.take(max - taken, out);
        }
        if taken < min && timeout != Some(Duration::ZERO) {
            taken += self.wait(min - taken, max - taken, out, timeout);
        }
        Ok(taken)
    }

    /// Waits for the event of the only command of a sync call.
    pub(crate) fn wait_event(&self) -> Event {
        struct Only(Option<Event>);
        impl Extend<Event> for Only {
            fn extend<T: IntoIterator<Item = Event>>(&mut self, events: T) {
                self.0 = events.into_iter().next();
            }
        }
        let mut only = Only(None);
        loop {
            self.wait(1, 1, &mut only, None);
            if let Some(event) = only.0.take() {
                return event;
            }
        }
    }

    /// Turns the reactor once, if nobody does; says whether anything went on.
    pub(crate) fn turn_once(&self) -> bool {
        let place = self.shared.baton.try_hold();
        place.is_some() && self.shared.turn(self.shared.clock().now()).busy
    }

    /// Waits until it has moved `need` events out, or for `timeout`.
    fn wait(
        &self,
        need: usize,
        max: usize,
        out: &mut impl Extend<Event>,
        timeout: Option<Duration>,
    ) -> usize {
        let clock = self.shared.clock();
        let until = timeout.map(|timeout| clock.now().saturating_add(timeout));
        let mut waiting = Waiting { queue: &self.queue, id: self.queue.name() };
        // The entry is left before the place in the line is taken and looked at: whoever gives the
        // event or the baton up finds us.
        let mut taken = waiting.take(Want { need, max, turns: false }, out);
        let mut place = self.shared.baton.join();
        let mut turner = Turner::default();
        while taken < need {
            let turns = place.holds();
            let want = Want { need: need - taken, max: max - taken, turns };
            taken += waiting.take(want, out);
            let left = until.map(|until| until.saturating_sub(clock.now()));
            if taken >= need || left == Some(Duration::ZERO) {
                break;
            }
            match left {
                _ if turns => {
                    turner.step(&self.shared, until, &|| self.queue.is_woken(waiting.id));
                }
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
        // In this order: who is woken for nothing must not keep the baton.
        drop(waiting);
        drop(place);
        taken
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        struct ThrownAway;
        impl Extend<Event> for ThrownAway {
            fn extend<T: IntoIterator<Item = Event>>(&mut self, events: T) {
                events.into_iter().for_each(drop);
            }
        }
        while self.queue.outstanding() > 0 {
            self.wait(1, self.slots(), &mut ThrownAway, None);
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("slots", &self.slots())
            .field("outstanding", &self.outstanding())
            .finish()
    }
}

/// An entry on an event queue, taken away when its thread stops waiting.
struct Waiting<'a> {
    queue: &'a EventQueue,
    id: u64,
}

impl Waiting<'_> {
    fn take(&mut self, want: Want, out: &mut impl Extend<Event>) -> usize {
        self.queue.take_or_wait(self.id, want, out)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.leave(self.id);
    }
}
