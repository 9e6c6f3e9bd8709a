//! Contexts by name, each with its reactor, its volumes and what is in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use uaio_core::host::EngineError;
use uaio_core::{
    Callbacks, Context, ContextOptions, Handle, Host, HostOptions, Listed, Notify, OpenOptions,
    Reactor, Refused, Ticket, VolumeOptions,
};
use uaio_driver::url::Backend;
use uaio_driver::{Clock, DmaPool, PoolOptions, Slots, SystemClock, Token};
use uaio_page_cache::{Cache, CacheOptions};

use crate::Errno;
use crate::command::{Flight, command};
use crate::layout::{O_DIRECT, O_DSYNC, UaioEvent, UaioIocb};
use crate::user;

/// The most contexts of a process.
const CONTEXTS_MAX: usize = 1024;
/// The most events of a context.
const EVENTS_MAX: usize = 65536;
/// The cache of a volume in bytes if nothing is asked for, the least and the most.
const CACHE_BYTES: u64 = 64 << 20;
const CACHE_BYTES_MIN: u64 = 64 << 10;
const CACHE_BYTES_MAX: u64 = 1 << 40;
/// How often who waits without end looks whether its context is still there.
const LOOK: Duration = Duration::from_millis(50);

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
    flights: Mutex<Slots<(Flight, Option<Ticket>)>>,
    pub(crate) callbacks: Callbacks,
    reactor: Arc<Reactor>,
    clock: Arc<dyn Clock>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    destroyed: AtomicBool,
}

/// A context by its name.
pub(crate) fn find(name: u64) -> Result<Arc<State>, Errno> {
    contexts().read().get(&name).cloned().ok_or(Errno::INVAL)
}

/// Makes a context; gives its name.
pub(crate) fn set_up(events: usize) -> Result<u64, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if events == 0 || events > EVENTS_MAX {
        return Err(Errno::INVAL);
    }
    if contexts().read().len() >= CONTEXTS_MAX {
        return Err(Errno::AGAIN);
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let reactor = Arc::new(Reactor::new(Arc::clone(&clock))?);
    let host = reactor
        .attach_host(HostOptions { operations: events.min(4096), inbox: events, workers: 2 })
        .map_err(|error: EngineError| Errno(error.errno()))?;
    let context = reactor.context(ContextOptions::events(events))?;
    let callbacks = Callbacks::new();
    let state = Arc::new(State {
        context,
        host,
        volumes: RwLock::default(),
        flights: Mutex::new(Slots::new(events)),
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
    let started = spawn("uaio", Box::new(move || reactor.run()))
        .and_then(|()| spawn("uaio-notify", Box::new(move || callbacks.run())));
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
    let state = contexts().write().remove(&name).ok_or(Errno::INVAL)?;
    state.destroyed.store(true, Ordering::SeqCst);
    // Who submitted before it saw that has its slot by now, or holds this lock.
    drop(state.flights.lock());
    let _ = state.context.cancel_all();
    let mut thrown_away = Vec::new();
    while state.context.outstanding() > 0 {
        let _ = state.context.get_events(1, EVENTS_MAX, &mut thrown_away, Some(LOOK));
        thrown_away.clear();
    }
    let closed = state.reactor.close();
    state.stop();
    closed.map_err(|errors| errors.first().map_or(Errno::IO, |error| Errno(error.error.errno())))
}

impl State {
    fn stop(&self) {
        self.reactor.stop();
        self.callbacks.stop();
        let own = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
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

    pub(crate) fn size(&self, volume: i32) -> Result<u64, Errno> {
        let volumes = self.volumes.read();
        let handle =
            usize::try_from(volume).ok().and_then(|number| volumes.get(number.wrapping_sub(1)));
        handle.map(|handle| handle.volume().size_bytes()).ok_or(Errno::BADF)
    }

    /// Submits one iocb of the caller's.
    pub(crate) fn submit(&self, iocb: *mut UaioIocb) -> Result<Ticket, Errno> {
        let volumes = self.volumes.read();
        let volume = |number: i32| volumes.get(usize::try_from(number).ok()?.wrapping_sub(1));
        let (command, flight) = command(iocb, &self.host, volume)?;
        // Held until the ticket is there: whoever takes the event out waits for it.
        let mut flights = self.flights.lock();
        if self.destroyed.load(Ordering::SeqCst) {
            return Err(Errno::INVAL);
        }
        let Ok(token) = flights.insert((flight, None)) else { return Err(Errno::AGAIN) };
        user::set_key(iocb, token.to_u64())?;
        match self.context.submit(command.with_user_data(token.to_u64())) {
            Ok(ticket) => {
                if let Some((_, noted)) = flights.get_mut(token) {
                    *noted = Some(ticket);
                }
                Ok(ticket)
            }
            Err(Refused { reason, .. }) => {
                flights.remove(token);
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
            let made = command(iocb, &self.host, volume).and_then(|(command, flight)| {
                let token = flights.insert((flight, None)).map_err(|_| Errno::AGAIN)?;
                Ok((command.with_user_data(token.to_u64()), token))
            });
            match made {
                Ok((command, token)) => {
                    user::set_key(iocb, token.to_u64())?;
                    user::set_status(iocb, 0)?;
                    commands.push(command);
                    taken.push((token, iocb));
                }
                Err(errno) => user::set_status(iocb, -errno.0)?,
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
            if let Some((_, noted)) = flights.get_mut(*token) {
                *noted = Some(*ticket);
            }
        }
        Ok(tickets)
    }

    /// The ticket of an iocb whose event has not been taken out.
    pub(crate) fn ticket(&self, iocb: *mut UaioIocb) -> Result<Ticket, Errno> {
        let token = Token::from_u64(user::read(iocb, 0)?.key);
        let flights = self.flights.lock();
        let found = flights.get(token).filter(|(flight, _)| flight.is_of(iocb));
        found.and_then(|(_, ticket)| *ticket).ok_or(Errno::INVAL)
    }

    /// Moves events to the caller's array.
    pub(crate) fn events(
        &self,
        min: usize,
        max: usize,
        out: *mut UaioEvent,
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut taken = Vec::with_capacity(max.min(self.context.slots()));
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let wait = left.map_or(LOOK, |left| left.min(LOOK));
            let (need, most) = (min.saturating_sub(taken.len()), max - taken.len());
            self.context
                .get_events(need, most, &mut taken, Some(wait))
                .map_err(|_| Errno::INVAL)?;
            if taken.len() >= min || left == Some(Duration::ZERO) {
                break;
            }
            if self.destroyed.load(Ordering::SeqCst) {
                return Err(Errno::INVAL);
            }
        }
        for (at, event) in taken.iter().enumerate() {
            let flight = self.flights.lock().remove(Token::from_u64(event.user_data));
            let (flight, _) = flight.expect("one event a command");
            user::write(out, at, flight.event(event))?;
        }
        Ok(taken.len())
    }
}
