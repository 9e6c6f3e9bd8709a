//! The reactor: the one thread that enters the ring.
//!
//! A turn takes what was submitted, asks the kernel for it in one call, puts results down, and tells whoever waits. For
//! a while after the last work it looks again and again (`spin.rs`), then it sleeps in the ring, where its bell is armed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uaio_core::host::{
    Cancel, Engine, EngineError, EngineOptions, HostDone, HostOp, HostRequest, OpId, Owner,
    Position,
};
use uaio_driver::{Slots, Token};

use super::guard::{Asked, Inside};
use super::lines::{Lines, Place};
use super::process::Quiet;
use super::reply::{Cancelled, Reply};
use super::service::{Counters, Message, Service, Which};
use super::spin::Spin;
use super::{Batch, Landing, Operation};
use crate::number;
use crate::user::List;

/// Requests in the kernel at a time, to begin with.
const DEPTH: usize = 256;
/// Requests taken in, or answers, before the other side has its turn.
const PORTION: usize = 256;
/// How long it sleeps when nobody wakes it; then it looks whether the program is still there.
const SLEEP: Duration = Duration::from_secs(2);
/// Its stack, of which the C library takes the thread-local data of the program.
const STACK: usize = 2 << 20;
/// How long a cancel waits for the kernel.
const CANCEL_MAX: Duration = Duration::from_secs(1);
/// The word of the wait for the bell; no slot has it.
const BELL: Token = Token { slot: u32::MAX >> 4, generation: u32::MAX };

/// Starts the thread, and waits until it has its ring.
pub(super) fn start(service: &'static Service) -> Result<(), EngineError> {
    let (tell, told) = mpsc::sync_channel(1);
    let _quiet = Quiet::new();
    let thread = std::thread::Builder::new().name("uaio-aio".into()).stack_size(STACK);
    thread.spawn(move || {
        // This thread waits for nobody, in a close least of all: it would be for itself.
        let _inside = Inside::enter();
        // The thread that submits first may be bound to a processor, and never leave it to anybody.
        let all = [u64::MAX; 16];
        let mask = (&raw const all).expose_provenance();
        let _ =
            crate::real::raw(libc::SYS_sched_setaffinity, [0, size_of_val(&all), mask, 0, 0, 0]);
        match Reactor::new(service) {
            Ok(mut reactor) => {
                drop(tell.send(Ok(())));
                let _ends = EndsTogether;
                reactor.run();
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    })?;
    told.recv().unwrap_or_else(|_| Err(std::io::Error::other("the reactor ended").into()))
}

/// A program whose requests nobody answers any more is better ended than left waiting.
struct EndsTogether;

impl Drop for EndsTogether {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// A request that the kernel has.
#[derive(Debug)]
struct Flight {
    fd: RawFd,
    place: Place,
    landing: Landing,
    id: Option<OpId>,
    is_poll: bool,
    changes: bool,
    /// The kernel has read it by the time it is issued; it is kept until the end for an issue that is put off.
    _list: Option<List>,
    /// The cancels that wait for it.
    cancels: Vec<u64>,
    /// The kernel takes the file of a sync when it begins it, on a thread of its own, and not when it is given it.
    is_sync: bool,
    /// Its number may mean another file by now.
    closed: bool,
}

/// A cancel that waits for the kernel.
#[derive(Debug)]
struct Cancelling {
    name: u64,
    reply: Arc<Reply>,
    answer: Cancelled,
    outstanding: u32,
    until: Instant,
}

struct Reactor {
    service: &'static Service,
    engine: Engine,
    flights: Slots<Flight>,
    lines: Lines<Operation>,
    /// May be started, and the kernel has as much as it takes.
    waiting: VecDeque<(Place, Operation)>,
    done: Vec<HostDone>,
    ready: Vec<(Place, Operation)>,
    batch: Batch,
    cancelling: Vec<Cancelling>,
    /// Names the next of them.
    cancels: u64,
    /// Writes and syncs that are not done.
    changing: usize,
    /// The program runs under valgrind, which lets other threads run only in the calls that it knows to block, and
    /// io_uring_enter(2) is none of them: then it naps elsewhere, for a millisecond at a time.
    checked: bool,
}

impl Reactor {
    fn new(service: &'static Service) -> Result<Self, EngineError> {
        let options = EngineOptions { depth: DEPTH, workers: 0, owner: Owner::ThisThread };
        let mut engine = Engine::new(options)?;
        // It stays armed, and is never read: each ring is an event of its own.
        let fd = number::foreign(service.bell.as_fd().as_raw_fd());
        let poll = HostOp::Poll { fd, events: libc::POLLIN as u32, multishot: true };
        engine
            .start(BELL, poll.into())
            .map_err(|refused| std::io::Error::from_raw_os_error(refused.reason.errno()))?;
        // A filter may let the ring be made and not be entered.
        let nop = HostRequest::from(HostOp::Nop);
        let mut done = Vec::new();
        if engine.start(Token { slot: 0, generation: 0 }, nop).is_ok() {
            engine.commit_and_wait(Duration::from_secs(1));
            engine.poll(1, &mut done);
        }
        match done.pop().map(|answer| answer.result) {
            Some(Ok(_)) => {}
            Some(Err(errno)) => return Err(std::io::Error::from(errno).into()),
            None => return Err(std::io::Error::from_raw_os_error(libc::ETIMEDOUT).into()),
        }
        crate::own::keep(service.bell.as_fd());
        crate::own::keep(engine.event_fd());
        Ok(Self {
            service,
            engine,
            // One of the engine's is the bell's.
            flights: Slots::new(DEPTH - 1),
            lines: Lines::new(),
            waiting: VecDeque::new(),
            done: Vec::with_capacity(PORTION),
            ready: Vec::new(),
            batch: Batch::default(),
            cancelling: Vec::new(),
            cancels: 0,
            changing: 0,
            checked: std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("vgpreload")),
        })
    }

    fn run(&mut self) -> ! {
        let (mut spin, mut last_work, mut looked) = (Spin::new(), Instant::now(), false);
        loop {
            if self.turn() {
                let now = Instant::now();
                // What comes with the last is no find.
                if looked {
                    spin.found(now - last_work);
                }
                (last_work, looked) = (now, false);
            } else if spin.goes_on(last_work.elapsed()) {
                looked = true;
                std::hint::spin_loop();
            } else {
                if looked {
                    spin.in_vain();
                }
                looked = true;
                self.sleep();
            }
        }
    }

    /// Does what there is to do, and says whether there was anything.
    fn turn(&mut self) -> bool {
        let asked = self.service.guard.asked();
        let mut taken = 0;
        // Who waits to close waits for everything that was submitted before.
        while taken < PORTION || asked.is_some() {
            match self.service.inbox.pop() {
                Some(Message::Operation(operation)) => self.take(operation),
                Some(Message::Cancel { which, reply }) => self.cancel(which, reply),
                None => break,
            }
            taken += 1;
        }
        self.start_waiting();
        self.engine.commit();
        if let Some(asked) = asked {
            taken += self.let_close(&asked);
        }
        let moved = self.land();
        self.give_up();
        if self.changing == 0 && self.service.is_ending() && self.service.inbox.is_empty() {
            self.service.settled();
        }
        taken + moved > 0
    }

    /// Sleeps until there is something to do.
    fn sleep(&mut self) {
        self.service.bell.announce_sleep();
        let nothing = self.service.inbox.is_empty()
            && self.service.guard.asked().is_none()
            && !self.service.is_ending();
        if nothing && self.checked {
            let timeout = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            let mut bell = [PollFd::new(&self.service.bell, PollFlags::IN)];
            // Whatever ended it, the next turn looks at everything.
            let _ = poll(&mut bell, Some(&timeout));
            self.service.bell.hush();
        } else if nothing {
            let began = Instant::now();
            self.engine.commit_and_wait(if self.cancelling.is_empty() {
                SLEEP
            } else {
                CANCEL_MAX
            });
            if self.flights.is_empty() && began.elapsed() >= SLEEP && crate::end::is_alone() {
                std::process::exit(0);
            }
        }
        self.service.bell.revoke_sleep();
    }

    fn take(&mut self, operation: Operation) {
        self.changing += usize::from(changes(&operation.op));
        let arrived = self.lines.arrive(operation.fd, operation.order, operation);
        self.waiting.extend(arrived);
    }

    fn start_waiting(&mut self) {
        while let Some((place, operation)) = self.waiting.pop_front() {
            if self.flights.free() == 0 {
                let depth = self.flights.capacity() * 2;
                self.engine.grow(depth + 1);
                // One of the engine's is the bell's.
                if self.engine.depth() > self.flights.capacity() + 1 {
                    self.flights.grow(self.engine.depth() - 1);
                } else {
                    self.waiting.push_front((place, operation));
                    return;
                }
            }
            self.issue(place, operation);
        }
    }

    fn issue(&mut self, place: Place, operation: Operation) {
        let Operation { fd, op, priority, order: _, landing, list } = operation;
        let (is_poll, changes) = (matches!(op, HostOp::Poll { .. }), changes(&op));
        let is_sync = matches!(op, HostOp::Fsync { .. });
        let flight = Flight {
            fd,
            place,
            landing,
            id: None,
            is_poll,
            changes,
            _list: list,
            cancels: Vec::new(),
            is_sync,
            closed: false,
        };
        let token = match self.flights.insert(flight) {
            Ok(token) => token,
            Err(flight) => return self.finish(flight, -i64::from(libc::EAGAIN)),
        };
        let request = HostRequest::from(op).with_io_priority(priority).once();
        match self.engine.start(token, request) {
            Ok(id) => {
                if let Some(flight) = self.flights.get_mut(token) {
                    flight.id = Some(id);
                }
            }
            Err(refused) => {
                if let Some(flight) = self.flights.remove(token) {
                    self.finish(flight, -i64::from(refused.reason.errno()));
                }
            }
        }
    }

    /// Puts results down, and says how many there were.
    fn land(&mut self) -> usize {
        let mut done = std::mem::take(&mut self.done);
        let moved = self.engine.poll(PORTION, &mut done);
        for HostDone { token, result, op: _ } in done.drain(..) {
            let result = match result {
                Ok(value) => value.cast_signed(),
                Err(errno) => -i64::from(errno.raw_os_error()),
            };
            if self.goes_on(token, result) {
                continue;
            }
            if let Some(flight) = self.flights.remove(token) {
                self.finish(flight, result);
            }
        }
        self.done = done;
        self.batch.tell();
        moved
    }

    /// Issues the rest of a write that moved a part, if it is to move all; not when it is cancelled, or its number is
    /// closed: then the part is the result.
    fn goes_on(&mut self, token: Token, result: i64) -> bool {
        let Some(flight) = self.flights.get_mut(token) else { return false };
        let Landing::Control(landing) = &mut flight.landing else { return false };
        if flight.closed || !flight.cancels.is_empty() {
            return false;
        }
        let Some(memory) = landing.rest_after(result) else { return false };
        let fd = number::foreign(flight.fd);
        let op = HostOp::Write { fd, memory, at: Position::Current, flags: 0 };
        match self.engine.start(token, HostRequest::from(op).once()) {
            Ok(id) => {
                flight.id = Some(id);
                true
            }
            Err(refused) => {
                if let Some(flight) = self.flights.remove(token) {
                    self.finish(flight, -i64::from(refused.reason.errno()));
                }
                true
            }
        }
    }

    /// A request is done.
    fn finish(&mut self, flight: Flight, result: i64) {
        let Flight { fd, place, landing, changes, cancels, .. } = flight;
        let result = match &landing {
            Landing::Event(_) => result,
            Landing::Control(landing) => landing.in_all(result),
        };
        self.changing -= usize::from(changes);
        self.end(fd, landing, result);
        let mut ready = std::mem::take(&mut self.ready);
        self.lines.finished(fd, place, &mut ready);
        self.waiting.extend(ready.drain(..));
        self.ready = ready;
        for name in cancels {
            self.came(name, result);
        }
    }

    fn end(&mut self, fd: RawFd, landing: Landing, result: i64) {
        self.service.guard.release(fd);
        let counters = &self.service.counters;
        if result == -i64::from(libc::ECANCELED) {
            Counters::count(&counters.cancelled);
        }
        match landing {
            Landing::Event(_) => Counters::count(&counters.libaio),
            Landing::Control(_) => Counters::count(&counters.posix),
        }
        self.batch.land(landing, result);
    }

    /// Lets those go who wait to close a number of which the kernel has everything. What waits for its turn on a pipe or
    /// socket may do so for ever and is cancelled, as close(2) there may; what waits on a file is waited for. Says how
    /// many were cancelled.
    fn let_close(&mut self, asked: &Asked) -> usize {
        let mut cancelled = 0;
        for number in asked.numbers() {
            if self.lines.has_waiting(number) && !number::is_file(number) {
                cancelled += self.withdraw(|fd, _| fd == number) as usize;
            }
            self.service.contexts.forget_notice(self.service, number);
        }
        let all_taken = self.engine.is_all_taken() && self.waiting.is_empty();
        let Self { service, lines, flights, .. } = self;
        service.guard.answer(asked, |number| {
            let on_number = |flight: &Flight| flight.fd == number && !flight.closed;
            let tokens = flights.tokens();
            let is_sync = |flight: &Flight| on_number(flight) && flight.is_sync;
            let syncing = tokens.iter().any(|token| flights.get(*token).is_some_and(is_sync));
            let issued = all_taken && !syncing && !lines.has_waiting(number);
            if issued {
                lines.part(number);
                for token in tokens {
                    if let Some(flight) = flights.get_mut(token).filter(|flight| on_number(flight))
                    {
                        flight.closed = true;
                    }
                }
            }
            issued
        });
        cancelled
    }

    /// Ends those that wait and are wanted, and says how many there were.
    fn withdraw(&mut self, wanted: impl Fn(RawFd, &Operation) -> bool) -> u32 {
        let (mut out, mut ready) = (Vec::new(), Vec::new());
        self.lines.withdraw(&wanted, &mut out, &mut ready);
        self.waiting.extend(ready);
        let mut count = 0;
        for operation in out {
            self.changing -= usize::from(changes(&operation.op));
            self.end(operation.fd, operation.landing, -i64::from(libc::ECANCELED));
            count += 1;
        }
        for (place, operation) in std::mem::take(&mut self.waiting) {
            if wanted(operation.fd, &operation) {
                let Operation { fd, op, landing, .. } = operation;
                let (is_poll, changes) = (false, changes(&op));
                let flight = Flight {
                    fd,
                    place,
                    landing,
                    id: None,
                    is_poll,
                    changes,
                    _list: None,
                    cancels: Vec::new(),
                    is_sync: false,
                    closed: false,
                };
                self.finish(flight, -i64::from(libc::ECANCELED));
                count += 1;
            } else {
                self.waiting.push_back((place, operation));
            }
        }
        count
    }

    fn cancel(&mut self, which: Which, reply: Arc<Reply>) {
        let cancelled = self.withdraw(|fd, operation| which.is(fd, &operation.landing));
        let mut answer = Cancelled { cancelled, ..Cancelled::default() };
        let name = self.cancels;
        self.cancels += 1;
        let mut outstanding = 0;
        for token in self.flights.tokens() {
            let Some(flight) = self.flights.get_mut(token) else { continue };
            let wanted = which.is(flight.fd, &flight.landing);
            let Some(id) = flight.id.filter(|_| wanted) else { continue };
            // What a disk does it ends by itself, soon, and cannot be told not to.
            if !flight.is_poll && number::is_file(flight.fd) {
                answer.in_progress += 1;
            } else if !flight.cancels.is_empty() || self.engine.cancel(id) == Cancel::Asked {
                flight.cancels.push(name);
                outstanding += 1;
            } else {
                answer.done += 1;
            }
        }
        // It is answered when its turn has landed what it ended, or when the kernel has said what came of the rest.
        let until = Instant::now() + CANCEL_MAX;
        self.cancelling.push(Cancelling { name, reply, answer, outstanding, until });
    }

    /// One that a cancel waits for is done.
    fn came(&mut self, name: u64, result: i64) {
        let cancelling = self.cancelling.iter_mut().find(|cancelling| cancelling.name == name);
        let Some(cancelling) = cancelling else { return };
        cancelling.outstanding -= 1;
        match result == -i64::from(libc::ECANCELED) {
            true => cancelling.answer.cancelled += 1,
            false => cancelling.answer.done += 1,
        }
    }

    /// Answers cancels that are decided, or have waited long enough.
    fn give_up(&mut self) {
        if self.cancelling.is_empty() {
            return;
        }
        let now = Instant::now();
        let flights = &mut self.flights;
        self.cancelling.retain(|cancelling| {
            if cancelling.outstanding > 0 && now < cancelling.until {
                return true;
            }
            let mut answer = cancelling.answer;
            answer.in_progress += cancelling.outstanding;
            for token in flights.tokens() {
                if let Some(flight) = flights.get_mut(token) {
                    flight.cancels.retain(|name| *name != cancelling.name);
                }
            }
            cancelling.reply.answer(answer);
            false
        });
    }
}

/// Whether an operation leaves something behind in a file, so that a process that ends waits for it.
fn changes(op: &HostOp) -> bool {
    match op {
        HostOp::Write { at, .. } | HostOp::WriteV { at, .. } => matches!(at, Position::At(_)),
        HostOp::Fsync { .. } => true,
        _ => false,
    }
}
