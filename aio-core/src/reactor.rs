//! The reactor: owns lanes and flushers, and turns them.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;
use rustix::event::{Timespec, epoll};
use uaio_driver::{Armed, Clock, DeviceError, Doorbell, Token, Wake};
use uaio_page_cache::{Cache, Flusher, Lane};

use crate::baton::{Baton, Place};
use crate::cached::{Cached, FlusherBell};
use crate::cancel::Cancel;
use crate::context::{Context, ContextOptions};
use crate::host::{Credentials, DEPTH_MAX, Engine, EngineError, EngineOptions};
use crate::hosted::{Host, HostOptions, Hosted};
use crate::queue::EventQueue;
use crate::request::Request;
use crate::runner::Runner;
use crate::station::{Backend, Station, Turned};
use crate::ticket::Ticket;
use crate::volume::{CloseError, Volume, VolumeOptions};

/// How long whoever turns the reactor keeps polling after something went on last, before it sleeps: a thread
/// of the reactor's own always, since a submitter need not wake it then, and who waits for events when something
/// is in progress on a volume. The kernel wakes who waits for the host alone.
pub const POLL_FOR: Duration = Duration::from_micros(50);
/// How long it sleeps at most while a device that cannot tell has something in flight. With
/// [`POLL_FOR`] this is the bound on what sleeping adds to the latency of a polled device, the
/// kernel's own slack (50 µs) aside. A device that can tell ends the sleep itself.
pub const NAP_MAX: Duration = Duration::from_micros(100);
/// The most commands that one volume or host has in progress, and in its inbox.
const REQUESTS_MAX: usize = 1 << 20;
/// Sync calls at once whose queue and memory are kept for the next.
const CALLS_KEPT: usize = 16;

/// Turns volumes: takes submissions, steps what can go on, commits, polls and completes.
///
/// **With a thread**: somebody calls [`run`](Reactor::run) on a thread of theirs. Needed for what
/// must go on while nobody waits: eventfd notification, writeback by age.
///
/// **Without**: those who wait, in [`Context::get_events`] and the synchronous calls, turn it
/// themselves, one of them at a time; who stops turning wakes the next. Nothing goes on while nobody
/// waits, except first steps in `submit`.
///
/// Dropping it closes its volumes, as [`close`](Reactor::close) without the answer.
pub struct Reactor {
    shared: Arc<Shared>,
    volumes: Mutex<Vec<Volume>>,
    hosts: Mutex<Vec<Arc<Station<Hosted>>>>,
    stop: AtomicBool,
    /// The thread in `run`, when it is parked for the baton.
    runner: Mutex<Option<Thread>>,
}

impl Reactor {
    /// A reactor without volumes, on this clock.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new(clock: Arc<dyn Clock>) -> Result<Self, DeviceError> {
        Ok(Self {
            shared: Arc::new(Shared::new(clock)?),
            volumes: Mutex::new(Vec::new()),
            hosts: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            runner: Mutex::new(None),
        })
    }

    /// Takes a cache on: opens a queue of its device for commands and, with
    /// [`VolumeOptions::writeback`], another for the flusher.
    ///
    /// # Errors
    ///
    /// What the device said.
    pub fn attach(&self, cache: Arc<Cache>, options: VolumeOptions) -> Result<Volume, DeviceError> {
        let options = VolumeOptions { operations: options.operations.max(1), ..options };
        if options.operations > REQUESTS_MAX || options.inbox > REQUESTS_MAX {
            let what = format!("more than {REQUESTS_MAX} operations at once, or in the inbox");
            return Err(DeviceError::Invalid(what));
        }
        let bell = &self.shared.bell;
        let wake: Arc<dyn Wake> = bell.clone();
        let lane = Lane::new(Arc::clone(&cache), options.operations, options.depth, wake)?;
        let mut flusher = None;
        if options.writeback {
            let rung = FlusherBell::new(Arc::clone(bell));
            let wake: Arc<dyn Wake> = rung.clone();
            flusher = Some((Flusher::new(Arc::clone(&cache), options.depth.min(32), wake)?, rung));
        }
        for fd in [lane.event_fd(), flusher.as_ref().and_then(|(flusher, _)| flusher.event_fd())] {
            fd.map_or(Ok(()), |fd| self.shared.sleep_on(fd))?;
        }
        let VolumeOptions { operations, inbox, .. } = options;
        let station = self.add_station(|id, shared| {
            Station::new(id, shared, Cached::new(lane, flusher), operations, inbox)
        });
        let volume = Volume::new(cache, station);
        self.volumes.lock().push(volume.clone());
        Ok(volume)
    }

    /// Takes the host on: its descriptors, sockets, names and system calls. See [`Host`].
    ///
    /// # Errors
    ///
    /// When there is no io_uring to be had, and why.
    pub fn attach_host(&self, options: HostOptions) -> Result<Host, EngineError> {
        let HostOptions { operations, inbox, workers } = options;
        if operations > DEPTH_MAX || inbox > REQUESTS_MAX {
            return Err(EngineError::Depth { depth: operations.max(inbox) });
        }
        let mut hosts = self.hosts.lock();
        let depth = self.shared.slots().clamp(operations.max(1), DEPTH_MAX);
        let mut engine = Engine::new(EngineOptions { workers, ..EngineOptions::depth(depth) })?;
        let credentials = engine.take_credentials()?;
        let asleep = self.shared.sleep_on(engine.event_fd());
        asleep.map_err(|error| std::io::Error::other(error.to_string()))?;
        let station = self
            .add_station(|id, shared| Station::new(id, shared, Hosted::new(engine), depth, inbox));
        hosts.push(Arc::clone(&station));
        drop(hosts);
        Ok(Host::new(station, credentials))
    }

    fn add_station<B: Backend + 'static>(
        &self,
        make: impl FnOnce(u32, Arc<Shared>) -> Arc<Station<B>>,
    ) -> Arc<Station<B>> {
        let mut stations = self.shared.stations.lock();
        let station = make(stations.len() as u32, Arc::clone(&self.shared));
        let added = Arc::clone(&station) as Arc<dyn Serve>;
        *stations = stations.iter().cloned().chain([added]).collect();
        station
    }

    /// A context for commands on this reactor's volumes and hosts, with the calling thread's
    /// [credentials](Context#credentials). Makes room for as many operations in
    /// progress on a host as it has slots, and may wait for one turn for that.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] for no events or more than [`EVENTS_MAX`](crate::EVENTS_MAX), [`DeviceError::Os`] when there is no descriptor left
    /// for the eventfd, or the kernel keeps no more credentials.
    pub fn context(&self, options: ContextOptions) -> Result<Context, DeviceError> {
        let context = Context::new(Arc::clone(&self.shared), options)?;
        let hosts = self.hosts.lock();
        hosts.iter().for_each(|host| host.grow(self.shared.slots()));
        Ok(context)
    }

    /// Turns everything once, if nobody else does; says whether anything went on. For who steps the
    /// reactor by hand: a simulation, an event loop of their own. Does not block.
    pub fn turn(&self) -> bool {
        self.shared.try_turn()
    }

    /// Turns the reactor on this thread until [`stop`](Reactor::stop): polls while something goes
    /// on and [`POLL_FOR`] after, then sleeps until a device, a submitter or a timer wakes it.
    pub fn run(&self) {
        let mut place = self.shared.baton.join();
        while !place.holds() {
            *self.runner.lock() = Some(std::thread::current());
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            std::thread::park();
        }
        *self.runner.lock() = None;
        if self.stop.load(Ordering::SeqCst) {
            return;
        }
        let running = self.shared.runner.begin();
        let mut turner = Turner::new(true);
        while !self.stop.load(Ordering::SeqCst) {
            turner.step(&self.shared, None, &|| self.stop.load(Ordering::SeqCst));
        }
        drop(running);
        // Whoever still saw it left something under a station's lock, which this takes after it.
        self.shared.turn(self.shared.clock.now());
    }

    /// Ends [`run`](Reactor::run), now or when it is called, for good.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(runner) = &*self.runner.lock() {
            runner.unpark();
        }
        self.shared.bell.wake();
    }

    /// Closes every volume: what was submitted is finished and answered, what is dirty is written
    /// and made stable, and the devices' queues are let go. What was submitted to the host is
    /// cancelled. Later submissions are refused. Blocks as
    /// long as the devices take, bounded by their deadlines.
    ///
    /// # Errors
    ///
    /// For each volume whose data could not all be made stable: what is missing, and why. The cache
    /// still holds it; another reactor may try again.
    pub fn close(&self) -> Result<(), Vec<CloseError>> {
        let volumes = std::mem::take(&mut *self.volumes.lock());
        let errors: Vec<CloseError> = volumes
            .iter()
            .filter_map(|volume| volume.station().close().err().map(|e| volume.close_error(e)))
            .collect();
        // Not under the lock: a notice may make a context, or take another host on.
        let hosts = std::mem::take(&mut *self.hosts.lock());
        for host in hosts {
            // It has nothing of its own to save, so there is nothing to be said.
            let _ = host.close();
        }
        *self.shared.stations.lock() = Arc::new([]);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // There is nobody to tell. The data is still in the caches, which say so (`dirty_ranges`).
        let _ = self.close();
    }
}

/// A station, whatever its backend.
pub(crate) trait Serve: Send + Sync {
    /// See [`Station::take_in`].
    fn take_in(&self, request: Request, commit: bool) -> Result<(), Request>;
    /// See [`Station::go_on`].
    fn go_on(&self, request: Request);
    /// See [`Station::commit`].
    fn commit(&self);
    /// See [`Station::turn`].
    fn turn(&self, now: Duration) -> Turned;
    /// See [`Station::arm`].
    fn arm(&self) -> Armed;
    /// See [`Station::cancel`].
    fn cancel(&self, ticket: Ticket, token: Token) -> Option<Cancel>;
    /// See [`Station::cancel_all`].
    fn cancel_all(&self, which: &dyn Fn(&Request) -> bool) -> usize;
    /// See [`Station::is_closed`].
    fn is_closed(&self) -> bool;
    /// See [`Backend::MAY_WAIT`].
    fn may_wait(&self) -> bool;
    /// See [`Backend::take_credentials`].
    fn take_credentials(&self) -> Option<std::io::Result<Credentials>>;
}

impl<B: Backend> Serve for Station<B> {
    fn take_in(&self, request: Request, commit: bool) -> Result<(), Request> {
        Self::take_in(self, request, commit)
    }
    fn go_on(&self, request: Request) {
        Self::go_on(self, request);
    }
    fn commit(&self) {
        Self::commit(self);
    }
    fn turn(&self, now: Duration) -> Turned {
        Self::turn(self, now)
    }
    fn arm(&self) -> Armed {
        Self::arm(self)
    }
    fn cancel(&self, ticket: Ticket, token: Token) -> Option<Cancel> {
        Self::cancel(self, ticket, token)
    }
    fn cancel_all(&self, which: &dyn Fn(&Request) -> bool) -> usize {
        Self::cancel_all(self, which)
    }
    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }
    fn may_wait(&self) -> bool {
        B::MAY_WAIT
    }
    fn take_credentials(&self) -> Option<std::io::Result<Credentials>> {
        B::take_credentials(self)
    }
}

/// What a reactor's contexts and volumes share with it.
pub(crate) struct Shared {
    pub(crate) baton: Baton,
    clock: Arc<dyn Clock>,
    bell: Arc<Doorbell>,
    /// The bell and the event descriptors of the queues, edge-triggered: each ring ends one sleep
    /// and nothing needs to be read empty.
    epoll: OwnedFd,
    /// Replaced whole when there is one more: whoever turns or cancels has its own hold on them.
    stations: Mutex<Arc<[Arc<dyn Serve>]>>,
    /// How many contexts there have been.
    contexts: AtomicU32,
    /// How many slots the contexts that there are have in all.
    slots: AtomicUsize,
    /// Queues of one event for sync calls.
    pub(crate) calls: ArrayQueue<Arc<EventQueue>>,
    /// Memory for sync calls.
    pub(crate) memory: ArrayQueue<Vec<u8>>,
    /// Whether a thread is in [`Reactor::run`]; asked under the core's lock of a station.
    pub(crate) runner: Runner,
}

impl Shared {
    fn new(clock: Arc<dyn Clock>) -> Result<Self, DeviceError> {
        let os = |what: &str, source: std::io::Error| DeviceError::Os { what: what.into(), source };
        let bell = Doorbell::new().map_err(|error| os("eventfd", error))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| os("epoll_create1", error.into()))?;
        let shared = Self {
            baton: Baton::new(64),
            clock,
            bell: Arc::new(bell),
            epoll,
            stations: Mutex::new(Arc::new([])),
            contexts: AtomicU32::new(0),
            slots: AtomicUsize::new(0),
            calls: ArrayQueue::new(CALLS_KEPT),
            memory: ArrayQueue::new(CALLS_KEPT),
            runner: Runner::new(),
        };
        shared.sleep_on(shared.bell.as_fd())?;
        Ok(shared)
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(crate) fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }

    /// Adds a descriptor to what ends a sleep. It leaves when it is closed.
    fn sleep_on(&self, fd: impl AsFd) -> Result<(), DeviceError> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(0), flags)
            .map_err(|error| DeviceError::Os { what: "epoll_ctl".into(), source: error.into() })
    }

    pub(crate) fn stations(&self) -> Arc<[Arc<dyn Serve>]> {
        Arc::clone(&self.stations.lock())
    }

    /// A number that no other context of the reactor has.
    pub(crate) fn next_context(&self) -> u32 {
        self.contexts.fetch_add(1, Ordering::Relaxed)
    }

    /// How many slots the contexts that there are have in all.
    pub(crate) fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// There is another context with so many slots.
    pub(crate) fn add_slots(&self, count: usize) {
        self.slots.fetch_add(count, Ordering::Relaxed);
    }

    /// There is one less.
    pub(crate) fn remove_slots(&self, count: usize) {
        self.slots.fetch_sub(count, Ordering::Relaxed);
    }

    /// Turns once, if nobody does; says whether anything went on.
    pub(crate) fn try_turn(&self) -> bool {
        let place = self.baton.try_hold();
        place.is_some() && self.turn(self.clock.now()).busy
    }

    /// Turns every station once. The caller has the baton.
    fn turn(&self, now: Duration) -> Turned {
        let stations = self.stations();
        stations.iter().fold(Turned::IDLE, |all, station| all.and(station.turn(now)))
    }

    /// Notes that this thread answers what is finished until the value is dropped.
    pub(crate) fn delivering(&self) -> DeliveredHere {
        DeliveredHere::new(self)
    }

    /// Whether this thread is in the middle of answering what is finished, and so in a notice.
    pub(crate) fn is_delivered_here(&self) -> bool {
        let here = DELIVERED_HERE.try_with(|reactors| reactors.borrow().contains(&self.address()));
        // Of a thread that is ending, whose list is gone, nothing is delivered any more.
        here.unwrap_or(false)
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn arm(&self) -> Armed {
        let mut all = Armed::Yes;
        for station in &*self.stations() {
            match station.arm() {
                Armed::Ready => return Armed::Ready,
                Armed::MustPoll => all = Armed::MustPoll,
                Armed::Yes => {}
            }
        }
        all
    }

    /// Sleeps until a queue has completions, the bell rings, or `until`. The caller has the baton.
    /// Does not sleep when there is work, or `ready` says so.
    fn sleep(&self, until: Duration, ready: &dyn Fn() -> bool) {
        // Set sleeping, fence, look again, sleep: see `uaio_driver::doorbell`.
        self.bell.announce_sleep();
        let armed = if ready() { Armed::Ready } else { self.arm() };
        let left = until.saturating_sub(self.clock.now());
        match armed {
            Armed::Ready => {}
            Armed::Yes => self.wait(left),
            Armed::MustPoll => self.wait(left.min(NAP_MAX)),
        }
        self.bell.revoke_sleep();
    }

    fn wait(&self, timeout: Duration) {
        let mut events: [MaybeUninit<epoll::Event>; 8] = [const { MaybeUninit::uninit() }; 8];
        // A time that does not fit is longer than anybody waits.
        let timeout = Timespec::try_from(timeout).ok();
        // An interrupted sleep is a short one; the caller looks again in any case.
        let _ = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref());
    }
}

thread_local! {
    /// The reactors whose finished commands this thread is in the middle of answering: a notice of one
    /// may do so for another.
    static DELIVERED_HERE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// An entry of `DELIVERED_HERE`, taken away at the end, also of a panic.
pub(crate) struct DeliveredHere;

impl DeliveredHere {
    fn new(shared: &Shared) -> Self {
        let _ = DELIVERED_HERE.try_with(|reactors| reactors.borrow_mut().push(shared.address()));
        Self
    }
}

impl Drop for DeliveredHere {
    fn drop(&mut self) {
        let _ = DELIVERED_HERE.try_with(|reactors| reactors.borrow_mut().pop());
    }
}

/// One stay at the helm: turns, and sleeps when nothing goes on.
#[derive(Debug)]
pub(crate) struct Turner {
    idle_since: Option<Duration>,
    /// It polls for submitters, too.
    serves: bool,
}

impl Turner {
    /// For the reactor's own thread, which serves submitters, or for one that waits for events.
    pub(crate) fn new(serves: bool) -> Self {
        Self { idle_since: None, serves }
    }

    /// Turns once; or, when nothing has gone on for [`POLL_FOR`] or is polled for, sleeps, at most until `until`. The
    /// caller has the baton, and looks at what it waits for in between. `ready` says whether that
    /// has come; it is asked once more before a sleep.
    pub(crate) fn step(
        &mut self,
        shared: &Shared,
        until: Option<Duration>,
        ready: &dyn Fn() -> bool,
    ) {
        let now = shared.clock.now();
        let turned = shared.turn(now);
        if turned.busy {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if (self.serves || turned.polls) && now.saturating_sub(since) < POLL_FOR {
            std::hint::spin_loop();
            return;
        }
        shared.sleep(turned.next.min(until.unwrap_or(Duration::MAX)), ready);
    }
}

/// Turns the reactor, or sleeps while somebody else does, until `look` says that what is waited for
/// has come, or until `until`. `look` is told whether this thread turns, and so sleeps at the bell
/// rather than parked; it leaves an entry before it says no. `woken` says whether that entry is gone.
/// Gives the place in the line, to be dropped after the entry.
pub(crate) fn wait_until<'a>(
    shared: &'a Shared,
    until: Option<Duration>,
    mut look: impl FnMut(bool) -> bool,
    woken: &dyn Fn() -> bool,
) -> Option<Place<'a>> {
    // The entry is left before the place in the line is taken and looked at: whoever gives what is
    // waited for, or the baton up, finds us.
    if look(false) {
        return None;
    }
    let mut place = shared.baton.join();
    let mut turner = Turner::new(false);
    loop {
        let turns = place.holds();
        let left = until.map(|until| until.saturating_sub(shared.clock.now()));
        if look(turns) || left == Some(Duration::ZERO) {
            return Some(place);
        }
        match left {
            _ if turns => turner.step(shared, until, woken),
            Some(left) => std::thread::park_timeout(left),
            None => std::thread::park(),
        }
    }
}
