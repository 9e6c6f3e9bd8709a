//! A context: where commands are submitted and events come out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustix::event::{EventfdFlags, eventfd};
use uaio_driver::{DeviceError, IoError};

use crate::event::Event;
use crate::host::Credentials;
use crate::iocb::{Iocb, Plan, Work};
use crate::listio::List;
use crate::notify::Notify;
use crate::queue::EventQueue;
use crate::reactor::{Serve, Shared, wait_until};
use crate::refusal::{Refusal, Refused};
use crate::request::Request;
use crate::ticket::Ticket;

/// The most events that a context holds.
pub const EVENTS_MAX: usize = 1 << 20;

/// How a context is to be made.
#[derive(Clone, Copy, Debug)]
pub struct ContextOptions {
    /// How many commands and events not taken out it holds, at least 1, at most [`EVENTS_MAX`]
    /// (`nr_events` of `io_setup`).
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
/// # Credentials
///
/// Operations of the host are done with the credentials (user, groups, capabilities, security label) of
/// the thread that made the context, whoever submits and whatever becomes of that thread, until
/// they are [refreshed](Context::refresh_credentials). What io_uring does not do is done by a thread of
/// this process as what the process is then, and fails with EPERM unless that is the same. A host
/// that was attached later has those of the thread that attached it. Volumes look at nobody's.
///
/// # Dropping
///
/// Dropping it cancels what it has with the host, which may wait for ever, waits until every command
/// it took is finished, bounded by the devices' deadlines, and throws the events away.
///
/// In a notice, on the thread that gives it, it cannot wait, since what it waits for may be next to be
/// answered there: what is in progress is cancelled, ends by itself, and frees its memory then.
pub struct Context {
    queue: Arc<EventQueue>,
    shared: Arc<Shared>,
    /// One for each host that there was when they were taken.
    credentials: RwLock<Vec<Credentials>>,
    /// The queue is another's by now, or nobody's: there is nothing to wait for.
    given_up: bool,
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
        if events > EVENTS_MAX {
            let what = format!("a context of more than {EVENTS_MAX} events is not possible");
            return Err(DeviceError::Invalid(what));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfd = notify
            .then(|| eventfd(0, flags))
            .transpose()
            .map_err(|error| DeviceError::Os { what: "eventfd".into(), source: error.into() })?;
        let taken = take_credentials(&shared);
        let credentials = taken.map_err(|source| DeviceError::Os {
            what: "registering credentials with io_uring".into(),
            source,
        })?;
        let queue = EventQueue::new(shared.next_context(), events, eventfd);
        shared.add_slots(events);
        Ok(Self { queue, shared, credentials: RwLock::new(credentials), given_up: false })
    }

    /// For one sync call: a kept queue of one event, or a new one.
    pub(crate) fn for_call(shared: Arc<Shared>) -> Self {
        let kept = shared.calls.pop();
        let queue = kept.unwrap_or_else(|| EventQueue::new(shared.next_context(), 1, None));
        // Volumes look at nobody's, and an operation of the host has those of its `Host`.
        Self { queue, shared, credentials: RwLock::default(), given_up: false }
    }

    /// After one sync call: keeps the queue for the next.
    pub(crate) fn end_call(mut self) {
        // Before it is kept: from then on it may be another call's, whose event is none of ours.
        self.given_up = true;
        // When there are enough of them, this one goes.
        let _ = self.shared.calls.push(Arc::clone(&self.queue));
    }

    pub(crate) fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Operations of the host that are submitted from now on are done with the credentials that the
    /// calling thread has now. May wait for one turn of the reactor.
    ///
    /// # Errors
    ///
    /// ENOMEM or EBUSY when the kernel keeps no more of them; they stay what they were.
    pub fn refresh_credentials(&self) -> std::io::Result<()> {
        let taken = take_credentials(&self.shared)?;
        *self.credentials.write() = taken;
        Ok(())
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

    /// Whether a submission of this context is over: its events are there, or were.
    pub fn is_over(&self, ticket: Ticket) -> bool {
        self.queue.tickets().is_over(ticket)
    }

    /// Notices that were asked for ([`Notify`], lists) and did not arrive: a signal that the kernel
    /// would not queue, a thread that is gone, callbacks that were stopped. Their events are there.
    pub fn notices_lost(&self) -> u64 {
        self.queue.lost()
    }

    /// Submits a command, with what is linked to it. Never blocks and does no waiting I/O: what is cached is answered here, in
    /// the caller's thread; of anything else the first step is done here if nobody else is stepping
    /// the volume, and the rest goes on when the reactor turns.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the iocb, when there is no slot for it and each that is linked to it, or one
    /// of them is not possible.
    pub fn submit(&self, iocb: Iocb) -> Result<Ticket, Refused> {
        self.submit_one(iocb, None, true).map(|(ticket, _)| ticket)
    }

    /// Submits commands in order, until one is refused, and says how many it took; the device sees
    /// them together. The one that was refused and those after it stay in `iocbs`.
    ///
    /// # Errors
    ///
    /// Why the first was refused, when none was taken: as `io_submit`.
    pub fn submit_all(&self, iocbs: &mut VecDeque<Iocb>) -> Result<usize, Refusal> {
        let mut taken = 0;
        let mut batch = self.batch();
        while let Some(iocb) = iocbs.pop_front() {
            match batch.submit(iocb) {
                Ok(_) => taken += 1,
                Err(Refused { iocb, reason }) => {
                    iocbs.push_front(iocb);
                    return if taken == 0 { Err(reason) } else { Ok(taken) };
                }
            }
        }
        Ok(taken)
    }

    /// Submissions that the devices see together: those of this, when it is dropped.
    ///
    /// # Example
    ///
    /// ```
    /// # use uaio_core::{Context, Handle, Iocb, Refused, Ticket};
    /// # fn example(context: &Context, handle: &Handle) -> Vec<Result<Ticket, Refused>> {
    /// let mut batch = context.batch();
    /// (0..32).map(|page| batch.submit(Iocb::pread(handle, page * 4096, vec![0; 4096]))).collect()
    /// # }
    /// ```
    pub fn batch(&self) -> Batch<'_> {
        Batch { context: self, stations: [const { None }; 4] }
    }

    /// Submits a command; says where it went, if it was not answered at once.
    fn submit_one(
        &self,
        mut iocb: Iocb,
        list: Option<&Arc<List>>,
        commit: bool,
    ) -> Result<(Ticket, Option<Arc<dyn Serve>>), Refused> {
        let refuse = |iocb, reason| Err(Refused { iocb, reason });
        let plan = match self.plan(&mut iocb) {
            Ok(plan) => plan,
            Err(reason) => return refuse(iocb, reason),
        };
        let count = iocb.count();
        if !self.queue.take_slots(count) {
            return refuse(iocb, Refusal::NoSlot);
        }
        let mut first = None;
        if count == 1 && list.is_none() && matches!(iocb.notify, Notify::None) {
            // The usual way of a hit: nobody needs a ticket for it.
            let answer = match (&plan, &mut iocb.work) {
                (Plan::Answer(result), _) => Some(*result),
                (Plan::Go(len), Work::Volume(work)) => work.try_hit(*len).then_some(Ok(*len)),
                (Plan::Go(_), Work::Host(_)) => None,
            };
            if let Some(result) = answer {
                let Iocb { user_data, work, .. } = iocb;
                let buffers = work.into_buffers();
                self.queue.complete(Event { user_data, result, buffers, more: false });
                return Ok((Ticket::answered(self.queue.tickets().context()), None));
            }
            first = Some(plan);
        }
        let ticket = self.queue.tickets().begin();
        let request = Request::new(iocb, &self.queue, ticket, list.cloned());
        let Some(request) = request.begin(first, || self.shared.clock().now()) else {
            return Ok((ticket, None));
        };
        let station = request.station();
        if request.iocb.count() < count {
            // The first of a chain have been answered: there is no way back.
            request.go_on();
            return Ok((ticket, Some(station)));
        }
        match station.take_in(request, commit) {
            Ok(()) => Ok((ticket, Some(station))),
            Err(request) => {
                self.queue.tickets().finish(ticket);
                self.queue.give_slots(count);
                let reason = if station.is_closed() { Refusal::Closed } else { Refusal::Busy };
                refuse(request.into_iocb(), reason)
            }
        }
    }

    /// Answers an iocb that can be answered without a slot: a read whose bytes are cached, or one
    /// whose result is known.
    ///
    /// # Errors
    ///
    /// Why it is not possible. What has more than one event, a chain or a multishot poll, is not.
    pub(crate) fn try_now(
        &self,
        iocb: &mut Iocb,
    ) -> Result<Option<Result<usize, IoError>>, Refusal> {
        let multishot = matches!(&iocb.work, Work::Host(work) if work.is_multishot());
        if iocb.links.is_some() || multishot {
            return Err(Refusal::Invalid);
        }
        let plan = self.plan(iocb)?;
        Ok(match (plan, &mut iocb.work) {
            (Plan::Answer(result), _) => Some(result),
            (Plan::Go(len), Work::Volume(work)) => work.try_hit(len).then_some(Ok(len)),
            (Plan::Go(_), Work::Host(_)) => None,
        })
    }

    /// Whether an iocb and all that is linked to it is possible here, and what it comes to.
    fn plan(&self, iocb: &mut Iocb) -> Result<Plan, Refusal> {
        let shared = match &iocb.work {
            Work::Volume(work) => work.handle.volume().station().shared(),
            Work::Host(work) => work.host.station().shared(),
        };
        if !Arc::ptr_eq(shared, &self.shared) {
            return Err(Refusal::Invalid);
        }
        let plan = match &mut iocb.work {
            Work::Volume(work) => work.plan()?,
            Work::Host(work) => {
                work.submitted(&self.credentials.read());
                Plan::Go(0)
            }
        };
        if let Some(links) = &mut iocb.links {
            for linked in &mut links.0 {
                self.plan(linked)?;
                if let Work::Host(work) = &mut linked.work {
                    // Here, not where it is begun: that may be another thread.
                    work.settle().map_err(Refusal::Submitter)?;
                }
            }
        }
        Ok(plan)
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
        let mut taken = self.queue.take(max, |event| out.push(event));
        if taken < min.max(1) && taken < max {
            // Perhaps nobody turns. A waiting call goes on turning below.
            self.shared.try_turn();
            taken += self.queue.take(max - taken, |event| out.push(event));
        }
        if taken < min && timeout != Some(Duration::ZERO) {
            taken += self.wait(min - taken, max - taken, |event| out.push(event), timeout);
        }
        Ok(taken)
    }

    /// Ends every wait of [`get_events`](Context::get_events), now and from now on: it gives what there
    /// is, also when that is less than `min`. For who is about to take the context away.
    pub fn end_waits(&self) {
        self.queue.end_waits();
    }

    /// Waits for the event of the only command of a sync call.
    pub(crate) fn wait_event(&self) -> Event {
        let mut only = None;
        loop {
            self.wait(1, 1, |event| only = Some(event), None);
            if let Some(event) = only.take() {
                return event;
            }
        }
    }

    /// Waits until it has moved `need` events out, or for `timeout`.
    fn wait(
        &self,
        need: usize,
        max: usize,
        mut out: impl FnMut(Event),
        timeout: Option<Duration>,
    ) -> usize {
        let queue = &self.queue;
        let until = timeout.map(|timeout| self.shared.clock().now().saturating_add(timeout));
        let waiting = Waiting { queue, id: queue.name() };
        let mut taken = 0;
        let look = |turns: bool| {
            let bell = turns.then(|| self.shared.bell());
            loop {
                taken += queue.take(max - taken, &mut out);
                if taken >= need || queue.has_ended_waits() {
                    return true;
                }
                queue.wait_events(waiting.id, need - taken, bell);
                // Again, both: what came in between did not see the entry.
                match queue.take(max - taken, &mut out) {
                    0 => return queue.has_ended_waits(),
                    more => taken += more,
                }
            }
        };
        let place = wait_until(&self.shared, until, look, &|| queue.is_woken(waiting.id));
        // In this order: who is woken for nothing must not keep the baton.
        drop(waiting);
        drop(place);
        taken
    }
}

/// Those of the calling thread, for each host.
fn take_credentials(shared: &Shared) -> std::io::Result<Vec<Credentials>> {
    shared.stations().iter().filter_map(|station| station.take_credentials()).collect()
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.given_up {
            return;
        }
        self.shared.remove_slots(self.queue.slots());
        let waiting = Waiting { queue: &self.queue, id: self.queue.name() };
        while self.queue.outstanding() > 0 {
            // Again each time: one may have been linked to a command of a volume.
            let host = self.shared.stations().iter().fold(0, |host, station| {
                let ours = |request: &Request| {
                    Arc::ptr_eq(request.queue(), &self.queue)
                        && matches!(request.iocb.work, Work::Host(_))
                };
                host + usize::from(station.may_wait()) * (1 + station.cancel_all(&ours))
            });
            if self.shared.is_delivered_here() {
                let _ = self.cancel_all();
                return;
            }
            let slice = Duration::from_millis(10);
            let until = (host > 0).then(|| self.shared.clock().now().saturating_add(slice));
            // For the end of them all, not for an event: the notice of a command that was abandoned
            // takes its event out itself.
            let look = |turns: bool| {
                self.queue.take(usize::MAX, drop);
                self.queue.wait_all(waiting.id, turns.then(|| self.shared.bell()));
                self.queue.outstanding() == 0
            };
            let woken = || self.queue.is_woken(waiting.id);
            drop(wait_until(&self.shared, until, look, &woken));
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

/// Submissions that the devices see together, when it is dropped; see [`Context::batch`].
#[must_use = "what is submitted is sent when it is dropped"]
pub struct Batch<'a> {
    context: &'a Context,
    /// Where something has gone that was not committed.
    stations: [Option<Arc<dyn Serve>>; 4],
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Batch").field(self.context).finish()
    }
}

impl Batch<'_> {
    /// Submits a command, as [`Context::submit`] but for what the devices see.
    ///
    /// # Errors
    ///
    /// As [`Context::submit`].
    pub fn submit(&mut self, iocb: Iocb) -> Result<Ticket, Refused> {
        self.submit_of(iocb, None)
    }

    /// The same of a list.
    pub(crate) fn submit_of(
        &mut self,
        iocb: Iocb,
        list: Option<&Arc<List>>,
    ) -> Result<Ticket, Refused> {
        let (ticket, station) = self.context.submit_one(iocb, list, false)?;
        if let Some(station) = station {
            let is_it = |known: &Arc<dyn Serve>| Arc::ptr_eq(known, &station);
            if !self.stations.iter().flatten().any(is_it) {
                // Of more than that, the one that has waited longest goes first.
                self.stations.rotate_right(1);
                if let Some(oldest) = self.stations[0].replace(station) {
                    oldest.commit();
                }
            }
        }
        Ok(ticket)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.stations.iter().flatten().for_each(|station| station.commit());
    }
}

/// An entry on an event queue, taken away when its thread stops waiting.
struct Waiting<'a> {
    queue: &'a EventQueue,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec};
    use uaio_driver::ram::RamDevice;
    use uaio_driver::{DmaPool, PoolOptions, SystemClock};
    use uaio_page_cache::{Cache, CacheOptions};

    use super::*;
    use crate::buffers::Buffers;
    use crate::host::HostOp;
    use crate::hosted::HostOptions;
    use crate::reactor::Reactor;
    use crate::volume::{OpenOptions, Volume, VolumeOptions};

    /// A thread that ends its call may be preempted when it has given the queue back, and another call
    /// may have it then.
    #[test]
    fn the_end_of_a_sync_call_leaves_the_event_of_the_next_call_on_its_queue() {
        let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
        let context = reactor.context(ContextOptions::events(1)).unwrap();
        let call = Context::for_call(Arc::clone(context.shared()));
        let queue = Arc::clone(call.queue());
        // The next call: submitted, and then answered by another thread.
        assert!(queue.take_slots(1));
        std::thread::scope(|threads| {
            let ended = threads.spawn(move || call.end_call());
            let start = Instant::now();
            while !ended.is_finished() && start.elapsed() < Duration::from_millis(200) {
                std::thread::yield_now();
            }
            let event = Event { user_data: 5, result: Ok(0), buffers: Buffers::None, more: false };
            queue.complete(event);
            ended.join().unwrap();
        });
        let mut taken = None;
        queue.take(1, |event| taken = Some(event.user_data));
        assert_eq!(taken, Some(5), "the event is the next call's");
    }

    fn volume_in_memory() -> (Reactor, Volume) {
        let pool = DmaPool::new(PoolOptions::frames(128)).unwrap();
        let device = Arc::new(RamDevice::new(1 << 20, 4096, pool).unwrap());
        let cache = Cache::new(device, CacheOptions::frames(64)).unwrap();
        let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
        let volume = reactor.attach(cache, VolumeOptions::default()).unwrap();
        (reactor, volume)
    }

    /// What is answered at once has nothing to be told to a device, and nobody is to be woken for it.
    #[test]
    fn a_cached_write_wakes_no_thread() {
        let (reactor, volume) = volume_in_memory();
        let handle = volume.open(OpenOptions::default());
        let context = reactor.context(ContextOptions::events(4)).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| reactor.run());
            let bell = context.shared().bell();
            let mut silent = false;
            let start = Instant::now();
            // Once in a while it wakes by itself, for what has been dirty for long.
            while !silent && start.elapsed() < Duration::from_secs(20) {
                while !bell.is_sleeping() && start.elapsed() < Duration::from_secs(20) {
                    std::thread::yield_now();
                }
                uaio_driver::doorbell::quiet(bell.as_fd());
                let write = Iocb::pwrite(&handle, 0, vec![7; 4096]);
                context.submit(write).unwrap();
                let mut rung = [PollFd::new(&**bell, PollFlags::IN)];
                silent = rustix::event::poll(&mut rung, Some(&Timespec::default())) == Ok(0);
                context.get_events(1, 1, &mut Vec::new(), None).unwrap();
            }
            reactor.stop();
            assert!(silent, "each write rings the bell");
        });
    }

    /// As below, over a device that asks for no turn because of what it has not been told of.
    #[test]
    fn what_a_batch_could_not_commit_reaches_a_device_that_asks_for_nothing() {
        let (reactor, volume) = volume_in_memory();
        let handle = volume.open(OpenOptions::default());
        let context = reactor.context(ContextOptions::events(1)).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| reactor.run());
            for page in 0..50 {
                let mut batch = context.batch();
                batch.submit(Iocb::pread(&handle, page * 5 % 256 * 4096, vec![0; 1])).unwrap();
                volume.station().with_backend(|_| drop(batch)).unwrap();
                let mut events = Vec::new();
                let taken = context.get_events(1, 1, &mut events, Some(Duration::from_secs(5)));
                if taken != Ok(1) {
                    reactor.stop();
                }
                assert_eq!(taken, Ok(1), "page {page} was not told to the device");
            }
            reactor.stop();
        });
    }

    /// Somebody who only asks the engine something has the lock when a batch ends.
    #[test]
    fn what_a_batch_could_not_commit_is_committed_by_the_thread_that_sleeps() {
        let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
        let host = reactor.attach_host(HostOptions::default()).unwrap();
        let context = reactor.context(ContextOptions::events(1)).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| reactor.run());
            std::thread::sleep(Duration::from_millis(20));
            let mut batch = context.batch();
            batch.submit(Iocb::host(&host, HostOp::Nop)).unwrap();
            host.station().with_backend(|_| drop(batch)).unwrap();
            let mut events = Vec::new();
            let taken = context.get_events(1, 1, &mut events, Some(Duration::from_secs(5)));
            reactor.stop();
            assert_eq!(taken, Ok(1), "it was sent");
        });
    }
}
