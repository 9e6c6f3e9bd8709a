//! Contexts by name, each with its reactor, its volumes and what is in flight.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use parking_lot::{Mutex, RwLock};
use uaio_core::host::EngineError;
use uaio_core::{
    Batch, Callbacks, Context, ContextOptions, Event, Handle, Host, HostOptions, Iocb, Listed,
    NoticeFd, Notify, OpenOptions, Reactor, Refused, Ticket, VolumeOptions,
};
use uaio_driver::url::Backend;
use uaio_driver::{Clock, DmaPool, PoolOptions, SystemClock, Token};
use uaio_page_cache::{Cache, CacheOptions};

use crate::Errno;
use crate::command::command;
use crate::flights::Flights;
use crate::forked;
use crate::layout::{F_VOLUME, O_DIRECT, O_DSYNC, UaioEvent, UaioIocb};
use crate::quiet::Quiet;
use crate::user;

/// The most contexts of a process.
const CONTEXTS_MAX: usize = 1024;
/// The most events of a context.
const EVENTS_MAX: usize = 65536;
/// The cache of a volume in bytes if nothing is asked for, the least and the most.
const CACHE_BYTES: u64 = 64 << 20;
const CACHE_BYTES_MIN: u64 = 64 << 10;
const CACHE_BYTES_MAX: u64 = 1 << 40;
/// How often who destroys a context looks whether it is quiet.
const LOOK: Duration = Duration::from_micros(200);
/// Contexts that a thread finds without a lock.
const KNOWN_MAX: usize = 4;
/// Vectors of events that a context keeps.
const SPARE: usize = 4;
/// Eventfds of the caller's that a context keeps a name of.
const EVENTFDS_MAX: usize = 64;

/// What has been set up.
fn contexts() -> &'static RwLock<HashMap<u64, Arc<State>>> {
    static CONTEXTS: OnceLock<RwLock<HashMap<u64, Arc<State>>>> = OnceLock::new();
    CONTEXTS.get_or_init(RwLock::default)
}

/// A context of C.
pub(crate) struct State {
    pub(crate) context: Context,
    host: Host,
    volumes: RwLock<Vec<Handle>>,
    flights: Flights,
    /// Those that commands named last, by the caller's number; only notices to come keep one open.
    eventfds: Mutex<VecDeque<(i32, Weak<OwnedFd>)>>,
    /// Threads that take events out, and so write to memory of the caller's.
    taking: AtomicUsize,
    /// Vectors for events on their way, to be used again.
    spare: ArrayQueue<Vec<Event>>,
    pub(crate) callbacks: Callbacks,
    reactor: Arc<Reactor>,
    clock: Arc<dyn Clock>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    destroyed: AtomicBool,
}

/// Contexts that a thread has looked up, by name.
struct Known {
    contexts: [(u64, Weak<State>); KNOWN_MAX],
    /// Which it forgets next.
    oldest: usize,
}

thread_local! {
    static KNOWN: RefCell<Known> = const {
        RefCell::new(Known { contexts: [const { (0, Weak::new()) }; KNOWN_MAX], oldest: 0 })
    };
}

/// A context by its name. Without a lock, if this thread has asked for it lately.
pub(crate) fn find(name: u64) -> Result<Arc<State>, Errno> {
    forked::check()?;
    let known = KNOWN.try_with(|known| {
        let known = known.try_borrow().ok()?;
        known.contexts.iter().find(|(of, _)| *of == name).and_then(|(_, state)| state.upgrade())
    });
    if let Ok(Some(state)) = known {
        // Somebody may still have it whose call began before it was destroyed.
        let destroyed = state.destroyed.load(Ordering::SeqCst);
        return if destroyed { Err(Errno::INVAL) } else { Ok(state) };
    }
    let state = contexts().read().get(&name).cloned().ok_or(Errno::INVAL)?;
    // A thread that is ending has nothing to remember it in.
    let _ = KNOWN.try_with(|known| {
        if let Ok(mut known) = known.try_borrow_mut() {
            let at = known.oldest;
            known.oldest = (at + 1) % KNOWN_MAX;
            known.contexts[at] = (name, Arc::downgrade(&state));
        }
    });
    Ok(state)
}

/// Makes a context; gives its name.
pub(crate) fn set_up(events: usize) -> Result<u64, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if events == 0 || events > EVENTS_MAX {
        return Err(Errno::INVAL);
    }
    forked::watch()?;
    if contexts().read().len() >= CONTEXTS_MAX {
        return Err(Errno::AGAIN);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let reactor = Arc::new(Reactor::new(Arc::clone(&clock))?);
    let host = reactor
        .attach_host(HostOptions { operations: events, inbox: events, workers: 2 })
        .map_err(|error: EngineError| Errno(error.errno()))?;
    let context = reactor.context(ContextOptions::events(events))?;
    let callbacks = Callbacks::new();
    let state = Arc::new(State {
        context,
        host,
        volumes: RwLock::default(),
        flights: Flights::new(events),
        spare: ArrayQueue::new(SPARE),
        eventfds: Mutex::default(),
        taking: AtomicUsize::new(0),
        callbacks: callbacks.clone(),
        reactor: Arc::clone(&reactor),
        clock,
        threads: Mutex::default(),
        destroyed: AtomicBool::new(false),
    });
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|_| Errno::AGAIN)?;
        state.threads.lock().push(thread);
        Ok(())
    };
    let quiet = Quiet::new();
    let started = spawn("uaio", Box::new(move || reactor.run()))
        .and_then(|()| spawn("uaio-notify", Box::new(move || callbacks.run())));
    drop(quiet);
    if let Err(errno) = started {
        state.stop();
        return Err(errno);
    }
    let name = NEXT.fetch_add(1, Ordering::Relaxed);
    contexts().write().insert(name, state);
    Ok(name)
}

/// Ends a context: nothing of the caller's is used when this returns.
pub(crate) fn destroy(name: u64) -> Result<(), Errno> {
    forked::check()?;
    let state = contexts().write().remove(&name).ok_or(Errno::INVAL)?;
    state.destroyed.store(true, Ordering::SeqCst);
    // Who submitted before it saw that has its slot by now, or holds this lock.
    drop(state.flights.lock());
    state.context.end_waits();
    let _ = state.context.cancel_all();
    let mut thrown_away = Vec::new();
    // Who takes events out has perhaps taken one and not copied its bytes yet.
    while state.context.outstanding() > 0 || state.taking.load(Ordering::SeqCst) > 0 {
        let _ = state.context.get_events(0, EVENTS_MAX, &mut thrown_away, None);
        thrown_away.clear();
        std::thread::sleep(LOOK);
    }
    let closed = state.reactor.close();
    state.stop();
    closed.map_err(|errors| errors.first().map_or(Errno::IO, |error| Errno(error.error.errno())))
}

impl State {
    fn stop(&self) {
        self.reactor.stop();
        let own = std::thread::current().id();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.iter().any(|thread| thread.thread().id() == own) {
            // Called back: the functions behind this one would run when we have returned.
            self.callbacks.stop_now();
        } else {
            self.callbacks.stop();
        }
        for thread in threads {
            // A function that is called back may destroy its context; its thread ends after it.
            if thread.thread().id() != own {
                // It does not panic; if it did there is nobody left to tell.
                let _ = thread.join();
            }
        }
    }

    /// Opens a volume; gives its number.
    pub(crate) fn open(&self, url: &str, flags: u32, cache_bytes: u64) -> Result<usize, Errno> {
        let cache_bytes = if cache_bytes == 0 { CACHE_BYTES } else { cache_bytes };
        if flags & !(O_DIRECT | O_DSYNC) != 0
            || !(CACHE_BYTES_MIN..=CACHE_BYTES_MAX).contains(&cache_bytes)
        {
            return Err(Errno::INVAL);
        }
        let backend: Backend = url.parse().map_err(|_| Errno::INVAL)?;
        let frames = (cache_bytes / uaio_driver::FRAME_SIZE as u64) as usize;
        // Beside those of the cache, what direct transfers and partly valid pages go through.
        let pool = DmaPool::new(PoolOptions::frames(frames + 512))?;
        let device = backend.open(&pool, Arc::clone(&self.clock))?;
        let cache = Cache::new(device, CacheOptions::frames(frames)).map_err(|_| Errno::NOMEM)?;
        let volume = self.reactor.attach(cache, VolumeOptions::default())?;
        let options = OpenOptions { direct: flags & O_DIRECT != 0, dsync: flags & O_DSYNC != 0 };
        let mut volumes = self.volumes.write();
        volumes.push(volume.open(options));
        Ok(volumes.len())
    }

    /// Has the host's operations done as the calling thread from now on.
    pub(crate) fn refresh_credentials(&self) -> Result<(), Errno> {
        let refreshed = self.context.refresh_credentials();
        refreshed.map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::ENOMEM)))
    }

    pub(crate) fn size(&self, volume: i32) -> Result<u64, Errno> {
        let volumes = self.volumes.read();
        volumes
            .get(volume_index(volume)?)
            .map(|handle| handle.volume().size_bytes())
            .ok_or(Errno::BADF)
    }

    /// Submits iocbs of the caller's in order, until one is refused, and says how many were taken; the
    /// devices see them together. Those that are linked are taken together or not at all.
    pub(crate) fn submit(
        &self,
        nr: usize,
        iocb: impl Fn(usize) -> Result<*mut UaioIocb, Errno>,
    ) -> Result<usize, Errno> {
        let volumes = self.volumes.read();
        let mut batch = self.context.batch();
        let mut taken = 0;
        while taken < nr {
            match self.submit_chain(&volumes, &mut batch, taken..nr, &iocb) {
                Ok(count) => taken += count,
                Err(errno) if taken == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    /// Submits the next iocb, and those it is linked to; says how many they were.
    fn submit_chain(
        &self,
        volumes: &[Handle],
        batch: &mut Batch<'_>,
        range: Range<usize>,
        iocb: impl Fn(usize) -> Result<*mut UaioIocb, Errno>,
    ) -> Result<usize, Errno> {
        let volume = |number: i32| volumes.get(usize::try_from(number).ok()?.wrapping_sub(1));
        let mut made = Vec::with_capacity(1);
        for at in range {
            let address = iocb(at)?;
            let (command, flight) = command(address, self, volume)?;
            let is_linked = flight.is_linked();
            made.push((address, command, flight));
            if !is_linked {
                break;
            }
        }
        let count = made.len();
        // Held until the tickets are noted, which whoever cancels asks for.
        let mut flights = self.flights.lock();
        if self.destroyed.load(Ordering::SeqCst) {
            return Err(Errno::INVAL);
        }
        if flights.free() < count {
            return Err(Errno::AGAIN);
        }
        let mut tokens = Vec::with_capacity(count);
        let mut chain: Option<Iocb> = None;
        for (address, command, flight) in made {
            let Ok(token) = flights.insert(flight) else { unreachable!("there is room") };
            tokens.push(token);
            if let Err(errno) = user::set_key(address, token.to_u64()) {
                tokens.iter().for_each(|token| drop(flights.remove(*token)));
                return Err(errno);
            }
            let command = command.with_user_data(token.to_u64());
            chain = Some(match chain {
                Some(chain) => chain.then(command),
                None => command,
            });
        }
        let Some(chain) = chain else { return Ok(0) };
        match batch.submit(chain) {
            Ok(ticket) => {
                tokens.into_iter().for_each(|token| flights.note(token, ticket));
                Ok(count)
            }
            Err(Refused { reason, .. }) => {
                tokens.iter().for_each(|token| drop(flights.remove(*token)));
                Err(Errno(reason.errno()))
            }
        }
    }

    /// Submits a list: what can be, whatever becomes of the rest; says in each iocb which it was.
    pub(crate) fn list(
        &self,
        iocbs: impl Iterator<Item = *mut UaioIocb>,
        notify: Notify,
    ) -> Result<Vec<Ticket>, Errno> {
        let volumes = self.volumes.read();
        let volume = |number: i32| volumes.get(usize::try_from(number).ok()?.wrapping_sub(1));
        let mut flights = self.flights.lock();
        if self.destroyed.load(Ordering::SeqCst) {
            return Err(Errno::INVAL);
        }
        let (mut commands, mut taken) = (Vec::new(), Vec::new());
        for iocb in iocbs {
            let made = command(iocb, self, volume).and_then(|(command, flight)| {
                if flight.is_linked() {
                    // Each of a list goes by itself.
                    return Err(Errno::INVAL);
                }
                let token = flights.insert(flight).map_err(|_| Errno::AGAIN)?;
                let noted = user::set_key(iocb, token.to_u64());
                let noted = noted.and_then(|()| user::set_status(iocb, 0));
                noted.inspect_err(|_| drop(flights.remove(token)))?;
                Ok((command.with_user_data(token.to_u64()), token))
            });
            match made {
                Ok((command, token)) => {
                    commands.push(command);
                    taken.push((token, iocb));
                }
                // What cannot be written to cannot be told why it was not taken.
                Err(errno) => drop(user::set_status(iocb, -errno.0)),
            }
        }
        let Listed { tickets, refused } = self.context.listio(commands, notify);
        for Refused { iocb: command, reason } in refused {
            let token = Token::from_u64(command.user_data());
            flights.remove(token);
            taken.retain(|(of, iocb)| {
                // Its iocb could be written above.
                let _ = *of == token && user::set_status(*iocb, -reason.errno()).is_err();
                *of != token
            });
        }
        for ((token, _), ticket) in taken.iter().zip(&tickets) {
            flights.note(*token, *ticket);
        }
        Ok(tickets)
    }

    /// An eventfd of the caller's, by a name of our own: it may close its own at any time. One that is
    /// named again while a notice on it is to come is duplicated once. Kept no longer than that: an open
    /// name would hold the caller's eventfd in its epoll sets after it closed it.
    pub(crate) fn eventfd(&self, fd: i32) -> Result<NoticeFd, Errno> {
        let mut known = self.eventfds.lock();
        known.retain(|(_, own)| own.strong_count() > 0);
        if let Some(at) = known.iter().position(|(number, _)| *number == fd) {
            let own = known[at].1.upgrade();
            if let Some(own) = own.filter(|own| user::is_same_file(own.as_fd(), fd)) {
                return Ok(NoticeFd::from_fd(own));
            }
            // Another file has the number by now.
            known.remove(at);
        }
        let own = Arc::new(user::eventfd(fd)?);
        if known.len() == EVENTFDS_MAX {
            known.pop_front();
        }
        known.push_back((fd, Arc::downgrade(&own)));
        Ok(NoticeFd::from_fd(own))
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Cancels what is on a descriptor of the host, or on a volume; says how much that was.
    pub(crate) fn cancel_fd(&self, fd: i32, flags: u32) -> Result<usize, Errno> {
        match flags {
            0 => match self.host.cancel_descriptor(&fd) {
                // A number that was closed too early may have some all the same.
                0 => user::is_open(fd).map(|()| 0),
                count => Ok(count),
            },
            F_VOLUME => {
                let handle = self.volumes.read().get(volume_index(fd)?).cloned();
                Ok(handle.ok_or(Errno::BADF)?.cancel_all())
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// The ticket of an iocb whose event has not been taken out.
    pub(crate) fn ticket(&self, iocb: *mut UaioIocb) -> Result<Ticket, Errno> {
        let key = Token::from_u64(user::read(iocb, 0)?.key);
        self.flights.ticket(key, iocb).ok_or(Errno::INVAL)
    }

    /// Moves events to the caller's array. Takes no lock, makes no system call and allocates nothing when
    /// enough are there.
    pub(crate) fn events(
        &self,
        min: usize,
        max: usize,
        out: *mut UaioEvent,
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let _taking = Taking::new(self);
        // After that: who destroys the context waits for us, or we see that it did.
        if self.destroyed.load(Ordering::SeqCst) {
            return Err(Errno::INVAL);
        }
        let mut taken = self.spare.pop().unwrap_or_default();
        let got = self.context.get_events(min, max, &mut taken, timeout);
        got.map_err(|_| Errno::INVAL)?;
        if taken.is_empty() && min > 0 && self.destroyed.load(Ordering::SeqCst) {
            return Err(Errno::INVAL);
        }
        let count = taken.len();
        let mut written = Ok(());
        for (at, event) in taken.drain(..).enumerate() {
            let event = self.flights.tell(event).expect("each event has its flight");
            written = written.and(user::write(out, at, event));
        }
        // When there are enough of them, this one goes.
        let _ = self.spare.push(taken);
        written.map(|()| count)
    }
}

/// Where the handle of a volume is, by its number.
fn volume_index(volume: i32) -> Result<usize, Errno> {
    usize::try_from(volume).map(|number| number.wrapping_sub(1)).map_err(|_| Errno::BADF)
}

/// A thread that takes events out.
struct Taking<'a>(&'a State);

impl<'a> Taking<'a> {
    fn new(state: &'a State) -> Self {
        state.taking.fetch_add(1, Ordering::SeqCst);
        Self(state)
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.taking.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};
    use std::sync::mpsc;

    use super::*;
    use crate::layout::opcode;

    /// A submitter with a long list, and somebody who makes a context, may be preempted with their locks.
    #[test]
    fn events_that_are_there_are_taken_out_without_a_lock() {
        let name = set_up(4).unwrap();
        let state = find(name).unwrap();
        let (go, wait) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let taker = std::thread::spawn(move || {
            // Known to this thread from here on.
            assert!(find(name).is_ok());
            for () in wait {
                let mut out =
                    [const { UaioEvent { data: 0, obj: null_mut(), res: 1, res2: 0 } }; 4];
                let taken = find(name).and_then(|state| state.events(4, 4, out.as_mut_ptr(), None));
                tell.send((taken, out.map(|event| event.data))).unwrap();
            }
        });
        for round in 0..50 {
            let mut iocbs = [0, 1, 2, 3].map(|at| noop(round * 4 + at));
            let list = iocbs.each_mut().map(std::ptr::from_mut);
            assert_eq!(state.submit(4, |at| Ok(list[at])), Ok(4));
            while state.context.outstanding() > 0 {
                std::thread::yield_now();
            }
            let (submitting, making) = (state.flights.lock(), contexts().write());
            go.send(()).unwrap();
            let (taken, mut data) = told.recv_timeout(Duration::from_secs(20)).expect("it waited");
            drop((submitting, making));
            data.sort_unstable();
            assert_eq!(taken, Ok(4));
            assert_eq!(data, [0, 1, 2, 3].map(|at| round * 4 + at));
        }
        drop(go);
        taker.join().unwrap();
        assert_eq!(destroy(name), Ok(()));
        assert!(find(name).is_err(), "we still have it");
    }

    fn noop(data: u64) -> UaioIocb {
        UaioIocb {
            data,
            opcode: opcode::NOOP,
            priority: 0,
            fd: 0,
            buf: null_mut(),
            nbytes: 0,
            offset: 0,
            flags: 0,
            resfd: 0,
            timeout_ms: 0,
            status: 0,
            key: 0,
            notify: null(),
            op_flags: 0,
            reserved: 0,
        }
    }
}
