//! Random programs on a volume and on the host, in the same contexts and chains, against what one call
//! after the other would say.
//!
//! Commands in flight do not overlap where one of them writes, so each has one right answer: what was
//! acknowledged. They come alone, linked, as lists and as futures; some are cancelled (by ticket, by
//! descriptor, by handle, all of a context), have a timeout, or are abandoned with their future or
//! context. Of a write to the volume that ended early each byte is what it was or what it was to be, and
//! nothing else; one to a file (`host.rs`) that says it was cancelled has done nothing.
//!
//! The device is simulated: it takes its time, in an order of its own, from one seed. When a sync has
//! succeeded and nothing is in flight, the device's *durable* image is the map, and files, pipes and
//! counters hold what they are to. Small caches, few operations and few requests make every wait happen.

#[path = "../common/mod.rs"]
mod common;
mod host;

use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context as Task, Poll, Waker};
use std::time::{Duration, Instant};

use common::with_thread;
use host::{Flying, Hosts, pieces};
use uaio_core::{
    AsyncContext, Buffers, CallError, Context, ContextOptions, Event, Handle, HostOptions, Iocb,
    NoticeFd, Notify, OpenOptions, Priority, Reactor, Refused, Ticket, VolumeOptions,
};
use uaio_driver::sim::{SimDevice, SimOptions};
use uaio_driver::{DmaPool, IoErrorKind, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheMode, CacheOptions};

const SIZE: usize = 2 << 20;
const BLOCK: usize = 512;
const COMMANDS: usize = 1500;
/// Nothing takes longer but what will never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was submitted: the bytes it covers, and what becomes of them.
#[derive(Debug)]
struct Flight {
    range: Range<usize>,
    does: Does,
    /// It was cancelled, or has a timeout, or what it is linked to may not be done.
    may_end: bool,
    /// By which handle.
    handle: Option<usize>,
    /// The first of the chain.
    chain: u64,
}

#[derive(Debug)]
enum Does {
    /// Reads them.
    Reads,
    /// Writes them; this is what was there.
    Writes(Vec<u8>),
    /// Neither.
    Nothing,
    /// Something that is not the volume's.
    Host(Flying),
}

impl Flight {
    fn of(range: Range<usize>, does: Does, handle: usize) -> Self {
        Self { range, does, may_end: false, handle: Some(handle), chain: 0 }
    }

    fn writes_to_a_stream(&self) -> bool {
        matches!(&self.does, Does::Host(flying) if flying.writes_to_a_stream())
    }

    /// Whether it may wait for another one.
    fn waits(&self) -> bool {
        matches!(&self.does, Does::Host(flying) if flying.waits)
    }
}

struct Model<'a> {
    reactor: &'a Reactor,
    handles: Vec<Handle>,
    hosts: Hosts,
    bytes: Vec<u8>,
    flights: Vec<Option<Flight>>,
    contexts: Vec<Context>,
    /// Submissions by context, some of them over.
    tickets: Vec<(usize, u64, Ticket)>,
    /// Those that ended early.
    ended: usize,
    reader: Handle,
    /// Where some are told of, and how many.
    notice: NoticeFd,
    notices: u64,
    random: fastrand::Rng,
}

impl Model<'_> {
    fn name(&mut self, flight: Flight) -> u64 {
        let name = self.flights.len() as u64;
        self.flights.push(Some(Flight { chain: name, ..flight }));
        name
    }

    fn flight(&mut self, name: u64) -> &mut Flight {
        self.flights[name as usize].as_mut().expect("it is in flight")
    }

    fn clashes(&self, range: &Range<usize>, writes: bool) -> bool {
        self.flights.iter().flatten().any(|other| {
            (matches!(other.does, Does::Writes(_)) || writes)
                && other.range.start < range.end
                && range.start < other.range.end
        })
    }

    fn check(&mut self, event: Event) {
        let flight = self.flights[event.user_data as usize].take().expect("an event twice");
        let range = flight.range;
        if let Does::Host(flying) = flight.does {
            let what = format!("command {}", event.user_data);
            self.ended += usize::from(event.result.is_err());
            let Event { result, buffers, .. } = event;
            return self.hosts.answered(flying, result, buffers, flight.may_end, &what);
        }
        if flight.may_end && event.result != Ok(range.len()) {
            self.ended += 1;
            let done = match event.result {
                Ok(done) => done,
                Err(error) => {
                    let ends = [IoErrorKind::Cancelled, IoErrorKind::TimedOut];
                    assert!(ends.contains(&error.kind), "command {}: {error}", event.user_data);
                    0
                }
            };
            if let Does::Writes(old) = flight.does {
                self.settle(range, &old, done);
            }
            return;
        }
        assert_eq!(event.result, Ok(range.len()), "command {}", event.user_data);
        if !matches!(flight.does, Does::Reads) {
            return;
        }
        let seen = match event.buffers {
            Buffers::One(bytes) => bytes,
            Buffers::Many(pieces) => pieces.concat(),
            Buffers::Registered(buffer) => {
                let mut bytes = vec![0; buffer.len()];
                buffer.copy_to_slice(0, &mut bytes);
                bytes
            }
            _ => Vec::new(),
        };
        let right = self.bytes[range.clone()] == seen[..range.len()];
        assert!(right, "command {} read wrong bytes at {range:?}", event.user_data);
    }

    /// Looks at what a write that ended early has left: what it said it has done, and of the rest each
    /// byte as it was or as it was to be.
    fn settle(&mut self, range: Range<usize>, old: &[u8], done: usize) {
        let mut seen = vec![0; range.len()];
        assert_eq!(self.reader.pread(&mut seen, range.start as u64), Ok(range.len()));
        let new = &mut self.bytes[range.clone()];
        assert!(seen[..done] == new[..done], "acknowledged bytes are gone at {range:?}");
        for ((seen, old), new) in seen.iter().zip(old).zip(&*new).skip(done) {
            assert!(seen == old || seen == new, "a byte that nobody wrote in {range:?}");
        }
        new.copy_from_slice(&seen);
    }

    /// Takes in that a command is over, and nobody saw how it went.
    fn lost(&mut self, name: u64) {
        let Some(flight) = self.flights[name as usize].take() else { return };
        self.ended += 1;
        match flight.does {
            Does::Host(flying) => self.hosts.lost(flying, &format!("command {name}")),
            Does::Writes(old) => self.settle(flight.range, &old, 0),
            Does::Reads | Does::Nothing => {}
        }
    }

    /// Cancels one of the last few submissions, or all of a context, of a handle or on a descriptor.
    fn random_cancel(&mut self) {
        let recent = self.tickets.len().min(8);
        if recent == 0 {
            return;
        }
        let at = self.tickets.len() - 1 - self.random.usize(..recent);
        let (context, _, ticket) = self.tickets[at];
        match self.random.u8(..20) {
            0 => {
                let all = self.tickets.iter().filter(|(of, ..)| *of == context);
                let all: Vec<u64> = all.map(|(_, name, _)| *name).collect();
                self.may_end(|name, _| all.contains(&name));
                self.contexts[context].cancel_all();
            }
            1 => {
                let handle = self.random.usize(..self.handles.len());
                self.may_end(|_, flight| flight.handle == Some(handle));
                self.handles[handle].cancel_all();
            }
            2..=4 => {
                use std::os::fd::AsRawFd;
                let fd = self.hosts.random_descriptor(&mut self.random);
                let of_it = |flying: &Flying| flying.fd == fd.as_raw_fd();
                self.may_end(
                    |_, flight| matches!(&flight.does, Does::Host(flying) if of_it(flying)),
                );
                self.hosts.host.cancel_descriptor(&fd);
            }
            _ => {
                let chain = self.tickets.iter().filter(|(.., of)| *of == ticket);
                let chain: Vec<u64> = chain.map(|(_, name, _)| *name).collect();
                self.may_end(|name, _| chain.contains(&name));
                let _ = self.contexts[context].cancel(ticket);
            }
        }
    }

    /// Notes that some may end early, and with them what they are linked to.
    fn may_end(&mut self, which: impl Fn(u64, &Flight) -> bool) {
        let flying = || self.flights.iter().enumerate();
        let chains: Vec<u64> = flying()
            .filter_map(|(name, flight)| Some((name as u64, flight.as_ref()?)))
            .filter_map(|(name, flight)| which(name, flight).then_some(flight.chain))
            .collect();
        for flight in self.flights.iter_mut().flatten() {
            flight.may_end |= chains.contains(&flight.chain);
        }
    }

    /// Gets at least `min` events of a context. What waits for something from outside gets it when
    /// nothing else goes on.
    fn gather(&mut self, context: usize, min: usize) {
        let start = Instant::now();
        let mut left = min.min(self.contexts[context].outstanding());
        loop {
            let mut events = Vec::new();
            let wait = Some(Duration::from_millis(1));
            let got = self.contexts[context].get_events(left, 64, &mut events, wait).unwrap();
            events.into_iter().for_each(|event| self.check(event));
            left = left.saturating_sub(got);
            if left == 0 {
                return;
            }
            if start.elapsed() > PATIENCE {
                self.give_up(context);
            }
            // What was waited for may have been cancelled meanwhile, by its event in another context.
            for other in 0..self.contexts.len() {
                let mut events = Vec::new();
                self.contexts[other].get_events(0, 64, &mut events, None).unwrap();
                left = left.saturating_sub(if other == context { events.len() } else { 0 });
                events.into_iter().for_each(|event| self.check(event));
            }
            self.hosts.help(&mut self.random);
        }
    }

    /// Says what does not end.
    fn give_up(&self, context: usize) -> ! {
        for (of, name, ticket) in &self.tickets {
            if let Some(flight) = &self.flights[*name as usize] {
                let over = self.contexts[*of].is_over(*ticket);
                eprintln!("{name} in {of}: {ticket:?} {over} {flight:?}");
            }
        }
        eprintln!("{}", self.hosts.streams());
        panic!("what is in flight does not end in context {context}");
    }

    fn finish(&mut self) {
        for context in 0..self.contexts.len() {
            while self.contexts[context].outstanding() > 0 {
                self.gather(context, 1);
            }
            self.gather(context, 0);
        }
        assert!(self.flights.iter().all(Option::is_none), "a command without an event");
        self.flights.clear();
        self.tickets.clear();
        self.hosts.check();
        // A notice comes after its event.
        let start = Instant::now();
        while self.notices > 0 {
            let told = self.notice.take();
            assert!(told <= self.notices && start.elapsed() < PATIENCE, "{told} notices");
            self.notices -= told;
        }
        assert_eq!(self.notice.take(), 0, "a notice too many");
        assert!(self.contexts.iter().all(|context| context.notices_lost() == 0));
    }

    /// A command on the volume, unless it clashes with one in flight.
    fn on_volume(&mut self) -> Option<(Iocb, u64)> {
        let number = self.random.usize(..self.handles.len());
        let handle = &self.handles[number].clone();
        let kind = self.random.u8(..20);
        if kind == 0 {
            let name = self.name(Flight::of(0..0, Does::Nothing, number));
            let sync = match self.random.u8(..3) {
                0 => Iocb::fdatasync(handle),
                1 => Iocb::fsync(handle),
                _ => Iocb::sync_range(handle, 100, 5000),
            };
            return Some((sync, name));
        }
        if kind == 1 {
            let start = self.random.usize(..SIZE);
            let range = start..(start + 50_000).min(SIZE);
            let (offset, len) = (start as u64, 50_000);
            let name = self.name(Flight::of(range, Does::Nothing, number));
            return Some((Iocb::readahead(handle, offset, len), name));
        }
        let grain = if handle.options().direct { BLOCK } else { 1 };
        let most = if self.random.u8(..40) == 0 { SIZE } else { 20_000 };
        let start = self.random.usize(..SIZE) / grain * grain;
        let asked = self.random.usize(..most) / grain * grain;
        // Past the end it is short.
        let range = start..(start + asked).min(SIZE);
        let writes = kind.is_multiple_of(2);
        if self.clashes(&range, writes) {
            return None;
        }
        let offset = start as u64;
        let mut data = vec![0; asked];
        let mut does = Does::Reads;
        let zeroes = writes && grain == BLOCK && range.len() == asked && self.random.u8(..4) == 0;
        if writes {
            if !zeroes {
                self.random.fill(&mut data);
            }
            does = Does::Writes(self.bytes[range.clone()].to_vec());
            let len = range.len();
            self.bytes[range.clone()].copy_from_slice(&data[..len]);
        }
        let name = self.name(Flight::of(range, does, number));
        let mut registered = None;
        if !zeroes && grain == BLOCK && self.random.bool() {
            registered = handle.volume().registered_buffer(asked).ok();
        }
        if let Some(buffer) = &mut registered {
            buffer.copy_from_slice(0, &data);
        }
        let vectored = self.random.bool();
        let iocb = match (registered, writes, vectored) {
            (Some(buffer), true, _) => Iocb::pwrite_registered(handle, offset, buffer),
            (Some(buffer), false, _) => Iocb::pread_registered(handle, offset, buffer),
            (None, true, _) if zeroes => Iocb::write_zeroes(handle, offset, asked as u64),
            (None, false, false) => Iocb::pread(handle, offset, data),
            (None, false, true) => Iocb::preadv(handle, offset, pieces(&mut self.random, data)),
            (None, true, false) => Iocb::pwrite(handle, offset, data),
            (None, true, true) => Iocb::pwritev(handle, offset, pieces(&mut self.random, data)),
        };
        Some((iocb, name))
    }

    /// A command, unless it clashes with one in flight.
    fn random_iocb(&mut self) -> Option<(Iocb, u64)> {
        let (mut iocb, name) = if self.random.u8(..5) < 3 {
            self.on_volume()?
        } else {
            let flying = self.flights.iter().flatten();
            let flying = flying.filter_map(|flight| match &flight.does {
                Does::Host(flying) => Some(flying),
                _ => None,
            });
            let (iocb, flying) = self.hosts.random(&mut self.random, flying)?;
            let (range, does, may_end) = (0..0, Does::Host(flying), false);
            (iocb, self.name(Flight { range, does, may_end, handle: None, chain: 0 }))
        };
        if self.random.u8(..20) == 0 {
            iocb = iocb.with_timeout(Duration::from_micros(self.random.u64(..300)));
            self.flight(name).may_end = true;
        }
        let classes = [Priority::RealTime, Priority::BestEffort, Priority::Idle];
        let iocb = iocb.with_priority(classes[self.random.usize(..3)]);
        Some((iocb.with_user_data(name), name))
    }

    fn random_command(&mut self) {
        let context = self.random.usize(..self.contexts.len());
        match self.random.u8(..60) {
            0 => self.random_futures(),
            1 => self.abandon(context),
            2..=5 => self.random_list(context),
            6..=12 => self.random_chain(context),
            _ => match self.random_iocb() {
                Some((iocb, name)) => {
                    let iocb = self.noticed(iocb);
                    self.submit(context, iocb, &[name]);
                }
                None => self.finish(),
            },
        }
    }

    /// Has some told of.
    fn noticed(&mut self, iocb: Iocb) -> Iocb {
        if self.random.u8(..8) > 0 {
            return iocb;
        }
        self.notices += 1;
        iocb.with_notify(Notify::Descriptor(self.notice.clone()))
    }

    /// Commands that go one after the other, on whatever they are. One of them at most waits for
    /// others, or those could be behind it.
    fn random_chain(&mut self, context: usize) {
        let count = self.random.usize(2..5).min(self.contexts[context].slots());
        let (mut chain, mut names, mut waits): (Option<Iocb>, Vec<u64>, _) = (None, vec![], false);
        while names.len() < count {
            let Some((iocb, name)) = self.random_iocb() else { break };
            let iocb = self.noticed(iocb);
            let first = *names.first().unwrap_or(&name);
            let flight = self.flight(name);
            flight.chain = first;
            // When the one before it is short.
            flight.may_end |= first != name;
            let stop = waits && flight.waits();
            waits |= flight.waits();
            names.push(name);
            if stop {
                // Not this one any more: alone, behind them.
                let flight = self.flight(name);
                flight.chain = name;
                names.pop();
                if let Some(chain) = chain.take() {
                    self.submit(context, chain, &names);
                }
                return self.submit(context, iocb, &[name]);
            }
            chain = Some(match chain {
                Some(chain) => chain.then(iocb),
                None => iocb,
            });
        }
        match chain {
            Some(chain) => self.submit(context, chain, &names),
            None => self.finish(),
        }
    }

    /// Commands at once, some of which may find no slot; now and then it waits for all that did.
    fn random_list(&mut self, context: usize) {
        let (mut iocbs, mut names, mut waits) = (Vec::new(), Vec::new(), false);
        for _ in 0..self.random.usize(1..6) {
            let Some((iocb, name)) = self.random_iocb() else { break };
            waits |= self.flight(name).waits();
            iocbs.push(self.noticed(iocb));
            names.push(name);
        }
        let notify = match self.random.bool() && !iocbs.is_empty() {
            true => {
                self.notices += 1;
                Notify::Descriptor(self.notice.clone())
            }
            false => Notify::None,
        };
        let told = matches!(notify, Notify::Descriptor(_));
        let listed = match !waits && !told && self.random.bool() {
            true => self.contexts[context].listio_wait(iocbs),
            false => self.contexts[context].listio(iocbs, notify),
        };
        names.retain(|name| listed.refused.iter().all(|one| one.iocb.user_data() != *name));
        assert_eq!(names.len(), listed.tickets.len());
        let taken = names.iter().zip(listed.tickets);
        self.tickets.extend(taken.map(|(name, ticket)| (context, *name, ticket)));
        for Refused { iocb, reason } in listed.refused {
            assert_eq!(reason.errno(), 11, "{reason:?}");
            let name = iocb.user_data();
            self.submit(context, iocb, &[name]);
        }
    }

    /// Commands as futures, some of which are dropped before they are ready.
    fn random_futures(&mut self) {
        let context = self.reactor.context(ContextOptions::events(3)).unwrap();
        let futures = AsyncContext::new(context);
        let (mut running, mut names) = (Vec::new(), Vec::new());
        for _ in 0..self.random.usize(1..5) {
            let Some((iocb, name)) = self.random_iocb() else { break };
            names.push(name);
            if self.flight(name).writes_to_a_stream() {
                // Nobody would know how far it came.
                self.submit(1, iocb, &[name]);
                break;
            }
            running.push(Box::pin(futures.run(iocb)));
        }
        let mut task = Task::from_waker(Waker::noop());
        for _ in 0..self.random.usize(1..200) {
            running.retain_mut(|future| {
                let Poll::Ready(finished) = pin!(future).poll(&mut task) else { return true };
                let result = finished.result.map_err(|error| match error {
                    CallError::Io(error) => error,
                    other => panic!("{other}"),
                });
                let (user_data, buffers) = (finished.user_data, finished.buffers);
                self.check(Event { user_data, result, buffers, more: false });
                false
            });
            self.reactor.turn();
        }
        drop(running);
        drop(futures);
        names.retain(|name| self.tickets.iter().all(|(_, other, _)| other != name));
        names.into_iter().for_each(|name| self.lost(name));
    }

    /// Drops a context with whatever it has in flight.
    fn abandon(&mut self, context: usize) {
        let of_it = self.tickets.iter().filter(|(of, ..)| *of == context);
        let names: Vec<u64> = of_it.map(|(_, name, _)| *name).collect();
        let known = |name: &u64| {
            let flight = self.flights[*name as usize].as_ref();
            !flight.is_some_and(Flight::writes_to_a_stream)
        };
        if !names.iter().all(known) {
            return;
        }
        let options = ContextOptions::events(self.contexts[context].slots());
        self.contexts[context] = self.reactor.context(options).unwrap();
        self.tickets.retain(|(of, ..)| *of != context);
        names.into_iter().for_each(|name| self.lost(name));
    }

    /// Where there is no room it goes to the wide context: those that fill the narrow one may wait for it.
    fn submit(&mut self, mut context: usize, mut iocb: Iocb, names: &[u64]) {
        loop {
            match self.contexts[context].submit(iocb) {
                Ok(ticket) => {
                    let named = names.iter().map(|name| (context, *name, ticket));
                    return self.tickets.extend(named);
                }
                Err(refused) => {
                    assert_eq!(refused.reason.errno(), 11, "{:?}", refused.reason);
                    let wide = self.contexts.len() - 1;
                    let was_wide = std::mem::replace(&mut context, wide) == wide;
                    self.gather(wide, usize::from(was_wide));
                    iocb = refused.iocb;
                }
            }
        }
    }
}

/// Runs `UAIO_SEEDS` programs, or the one that `UAIO_SEED` names.
fn run(mode: CacheMode, frames: usize, options: VolumeOptions) {
    run_by(|_, program| program(), mode, frames, options);
}

/// The same, and `turns` says who turns the reactor meanwhile.
fn run_by(
    turns: impl Fn(&Reactor, &mut dyn FnMut()),
    mode: CacheMode,
    frames: usize,
    options: VolumeOptions,
) {
    let seeds = std::env::var("UAIO_SEEDS").map_or(1, |seeds| seeds.parse::<u32>().unwrap());
    (0..seeds).for_each(|_| run_one(&turns, mode, frames, options));
}

fn run_one(
    turns: impl Fn(&Reactor, &mut dyn FnMut()),
    mode: CacheMode,
    frames: usize,
    options: VolumeOptions,
) {
    let replayed = std::env::var("UAIO_SEED").map(|seed| seed.parse().unwrap());
    let seed = replayed.unwrap_or_else(|_| fastrand::u64(..));
    println!("{mode:?}, {frames} frames: seed {seed}");
    let pool = DmaPool::new(PoolOptions::frames(frames + 64)).unwrap();
    let device = SimDevice::new(SimOptions::sized(SIZE as u64, BLOCK as u32), seed, pool).unwrap();
    let device = Arc::new(device);
    let cache = Cache::new(device.clone(), CacheOptions { mode, ..CacheOptions::frames(frames) });
    let cache = cache.unwrap();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let volume = reactor.attach(Arc::clone(&cache), options).unwrap();
    let handles = [(false, false), (false, false), (true, false), (false, true), (true, true)]
        .map(|(direct, dsync)| volume.open(OpenOptions { direct, dsync }));
    let host = reactor.attach_host(HostOptions::default()).unwrap();
    let contexts = [3, 17]
        .map(|events| reactor.context(ContextOptions::events(events)).unwrap())
        .into_iter()
        .collect();
    let directory = Directory::new();
    let mut model = Model {
        reactor: &reactor,
        handles: handles.into(),
        hosts: Hosts::new(host, &directory.0),
        bytes: vec![0; SIZE],
        flights: Vec::new(),
        contexts,
        tickets: Vec::new(),
        ended: 0,
        reader: volume.open(OpenOptions::default()),
        notice: NoticeFd::new().unwrap(),
        notices: 0,
        random: fastrand::Rng::with_seed(seed),
    };
    let mut program = || {
        for command in 0..COMMANDS {
            model.random_command();
            if model.random.u8(..12) == 0 {
                model.random_cancel();
            }
            if model.random.u8(..4) == 0 {
                let (context, min) = (model.random.usize(..2), model.random.usize(..4));
                model.gather(context, min);
            }
            if command % 250 == 249 {
                model.finish();
                model.handles[0].fsync().unwrap();
                assert!(
                    device.durable_image() == model.bytes,
                    "the sync was no sync (seed {seed})"
                );
                cache.assert_sound();
                assert_eq!(cache.frames_lent(), 0, "seed {seed}");
            }
        }
        model.finish();
        // The synchronous calls see the same bytes.
        let mut all = vec![0; SIZE];
        assert_eq!(model.handles[0].pread(&mut all, 0), Ok(SIZE));
        assert!(all == model.bytes, "seed {seed}");
        assert!(model.ended > 0, "nothing ended early (seed {seed})");
    };
    turns(&reactor, &mut program);
    drop(model);
    reactor.close().unwrap();
    assert_eq!(cache.dirty_ranges(), []);
}

/// A directory of its own, for as long as this is there.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("uaio-model-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writeback_cache() {
    run(CacheMode::Writeback, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_through_a_writethrough_cache() {
    run(CacheMode::Writethrough, 256, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_without_a_cache() {
    run(CacheMode::None, 64, VolumeOptions::default());
}

#[test]
fn reads_give_what_was_acknowledged_with_hardly_any_room() {
    let narrow = VolumeOptions { operations: 2, inbox: 3, depth: 2, writeback: true };
    for _ in 0..3 {
        run(CacheMode::Writeback, CacheOptions::FRAMES_MIN, narrow);
    }
}

#[test]
fn programs_answer_the_same_on_a_reactor_with_a_thread() {
    let turns = |reactor: &Reactor, program: &mut dyn FnMut()| with_thread(reactor, program);
    run_by(turns, CacheMode::Writeback, 256, VolumeOptions::default());
}
