//! A station: where the requests of one target are taken in, stepped and finished.
//!
//! Two things lie under locks of their own: the *inbox*, and the *core* with what is in progress.
//! Whoever submits tries the core's lock and takes the first step itself; otherwise the request goes
//! to the inbox and whoever turns the reactor takes it out. Whatever is finished under the core's
//! lock is answered after it is dropped, so nobody who is told runs under a lock of ours.
//!
//! Lock order: core, inbox; then whatever the backend locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;
use uaio_driver::{Armed, IoError, IoErrorKind, IoResult, Slots, Token, Wake};

use crate::cancel::Cancel;
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::host::Credentials;
use crate::inbox::Inbox;
use crate::queue::EventQueue;
use crate::reactor::Shared;
use crate::request::Request;
use crate::ticket::{Ending, Ticket};

/// What does the work of a station. Stepped under its core's lock; nothing in it blocks.
pub(crate) trait Backend: Send {
    /// What it does may wait for ever (for a peer, a descriptor), so it is cancelled rather than
    /// waited for when its context or its reactor goes.
    const MAY_WAIT: bool;
    /// What it does is sooner seen by who polls than by who sleeps until it is told. Not so of what the
    /// kernel does: it interrupts a thread that runs to tell it, and polling takes the processor from the
    /// kernel's own threads.
    const POLLED: bool;
    /// Whether it takes another request.
    fn has_room(&self) -> bool;
    /// Makes room for so many requests, if it can have more than it was made for; says how many it has
    /// room for then.
    fn grow(&mut self, operations: usize) -> usize;
    /// Starts a request. There is room.
    fn start(&mut self, token: Token, request: &mut Request);
    /// Steps what can go on.
    fn turn(&mut self) -> bool;
    /// A request of which a piece is finished, and how, when that was the last; the next piece is
    /// started.
    fn next_finished(&mut self, requests: &mut Slots<Request>) -> Option<(Token, Outcome)>;
    /// Ends a request early, if that is possible; it will be finished in any case.
    fn cancel(&mut self, token: Token);
    /// Makes visible what was started.
    fn commit(&mut self);
    /// Whether anything was started that a commit would make visible.
    fn is_untold(&self) -> bool;
    /// What goes on beside the requests.
    fn turn_background(&mut self, now: Duration) -> Turned;
    /// Prepares for whoever turns to sleep.
    fn arm(&mut self) -> Armed;
    /// Prepares for whoever turns to sleep, as far as requests go.
    fn arm_requests(&mut self) -> Armed;
    /// Starts what has to be done at the end, once no request is left.
    fn start_closing(&mut self);
    /// How that went, when it is over.
    fn closed(&mut self) -> Option<IoResult>;
    /// The credentials of the calling thread, in the form that requests carry; none for who looks at
    /// nobody's, and where the station was closed. Waits for one turn at most.
    fn take_credentials(_: &Station<Self>) -> Option<std::io::Result<Credentials>>
    where
        Self: Sized,
    {
        None
    }
}

/// What became of a piece.
pub(crate) enum Outcome {
    /// The request goes on.
    GoesOn,
    /// It goes on, and has had one of several answers; a slot for that was taken.
    More(Result<usize, IoError>),
    /// That was all.
    Over(Result<usize, IoError>),
}

/// What a turn came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turned {
    /// Something went on.
    pub(crate) busy: bool,
    /// Something is in progress that is polled for.
    pub(crate) polls: bool,
    /// When to turn again at the latest.
    pub(crate) next: Duration,
}

impl Turned {
    pub(crate) const IDLE: Self = Self { busy: false, polls: false, next: Duration::MAX };

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            busy: self.busy | other.busy,
            polls: self.polls | other.polls,
            next: self.next.min(other.next),
        }
    }
}

/// Where requests are taken in, stepped and finished.
pub(crate) struct Station<B> {
    /// Its place among the reactor's.
    id: u32,
    shared: Arc<Shared>,
    inbox: Mutex<Inbox>,
    /// How many wait in the inbox: looked at without its lock.
    waiting: AtomicUsize,
    /// Newcomers are refused, and who closes it steps it.
    closed: AtomicBool,
    /// Nobody steps it any more.
    gone: AtomicBool,
    /// Taken by who turns the reactor and who cancels, and tried by who submits. `None` once closed.
    core: Mutex<Option<Core<B>>>,
    /// Vectors for what is finished, to be used again.
    spare: ArrayQueue<Vec<Done>>,
}

/// What is not answered yet.
enum Done {
    /// A request that is finished.
    Over(Request, Result<usize, IoError>),
    /// One of several answers of one that is not.
    More(Arc<EventQueue>, Event),
}

struct Core<B> {
    backend: B,
    requests: Slots<Request>,
    deadlines: Deadlines,
    done: Vec<Done>,
}

impl<B: Backend> Station<B> {
    pub(crate) fn new(
        id: u32,
        shared: Arc<Shared>,
        backend: B,
        operations: usize,
        inbox: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            shared,
            inbox: Mutex::new(Inbox::new(inbox.max(1))),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            core: Mutex::new(Some(Core {
                backend,
                requests: Slots::new(operations),
                deadlines: Deadlines::new(operations),
                done: Vec::with_capacity(operations),
            })),
            spare: ArrayQueue::new(4),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes a request in: its first step is done here, in the caller's thread, unless somebody
    /// steps the station already or it is full; then it goes to the inbox. Never blocks. With
    /// `commit` the device sees it now, or [as soon as the reactor's thread turns](Self::commit_or_leave).
    ///
    /// # Errors
    ///
    /// The request, when the inbox is full or the station closed.
    pub(crate) fn take_in(&self, request: Request, commit: bool) -> Result<(), Request> {
        let mut request = Some(request);
        // Newcomers queue behind those who wait.
        if self.waiting.load(Ordering::Relaxed) == 0
            && let Some(mut guard) = self.core.try_lock()
            && let Some(core) = guard.as_mut()
            && core.has_room()
            // Under the lock: who closes it takes the lock after saying so, and finds the request.
            && !self.is_closed()
            && let Some(first) = request.take()
        {
            let timed = first.deadline.is_some();
            core.start(self.id, first);
            core.finish();
            let left = commit && self.commit_or_leave(core);
            let done = self.take_done(core);
            drop(guard);
            self.deliver(done);
            if timed || left {
                // Who sleeps does not know of this deadline yet, or of what was left to it.
                self.shared.bell().wake();
            }
            return Ok(());
        }
        let Some(request) = request else { return Ok(()) };
        self.enqueue(request, false)
    }

    /// Takes in what was linked to a request that is done. It has had its slots from the beginning,
    /// so it is never refused.
    pub(crate) fn go_on(&self, request: Request) {
        if let Err(request) = self.enqueue(request, true) {
            debug_assert!(B::MAY_WAIT, "a linked request was refused");
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Gone)));
        }
    }

    fn enqueue(&self, request: Request, beyond: bool) -> Result<(), Request> {
        let (ticket, queue) = (request.ticket(), Arc::clone(request.queue()));
        queue.tickets().moved(ticket, self.id, None);
        self.in_inbox(|inbox| {
            // Under the lock, as above. What is linked to something goes on all the same, unless it
            // may wait for ever: who closes has cancelled what it found here, and does so once.
            let refused = (!beyond || B::MAY_WAIT) && self.is_closed();
            if refused { Err(request) } else { inbox.push(request, beyond) }
        })?;
        if queue.tickets().ending(ticket).is_some()
            && let Some(request) = self.in_inbox(|inbox| inbox.remove(ticket))
        {
            // Cancelled on its way here.
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Cancelled)));
        }
        // Pairs with the fence in `close`: it finds the request, or we see that it looked already.
        fence(Ordering::SeqCst);
        if self.gone.load(Ordering::Relaxed) {
            self.fail_inbox();
        }
        self.shared.bell().wake();
        Ok(())
    }

    fn in_inbox<R>(&self, change: impl FnOnce(&mut Inbox) -> R) -> R {
        let mut inbox = self.inbox.lock();
        let result = change(&mut inbox);
        self.waiting.store(inbox.len(), Ordering::Relaxed);
        result
    }

    /// Makes the device see what was started; or leaves that to the reactor's thread, if it has one. Telling
    /// a device may take long (entering the kernel for a cold read of a virtual disk 10 to 40 us), and
    /// that is not the submitter's time. Only a request that is alone, while that thread sleeps, goes out
    /// at once: waking the thread would be all there is to wait for. Whether it was left: then the bell is
    /// to be rung, once the lock is dropped.
    fn commit_or_leave(&self, core: &mut Core<B>) -> bool {
        let waits_for_it = core.requests.len() == 1 && self.shared.bell().is_sleeping();
        // Under the lock: a thread that stops says so, and then turns once more. What was answered at once
        // has nothing to be told: it wakes nobody.
        let left = core.backend.is_untold() && !waits_for_it && self.shared.runner.turns();
        if !left {
            self.commit_core(core);
        }
        left
    }

    fn commit_core(&self, core: &mut Core<B>) {
        core.backend.commit();
        // Who turns is asleep on what was armed before: arm again for what was sent since, or wake
        // it. If it only is about to sleep, it takes this lock once more and does so itself.
        let bell = self.shared.bell();
        if bell.is_sleeping() && core.backend.arm_requests() != Armed::Yes {
            bell.wake();
        }
    }

    /// Makes the device see what was taken in without it, as [`commit_or_leave`](Self::commit_or_leave).
    pub(crate) fn commit(&self) {
        let left = match self.core.try_lock().as_deref_mut() {
            Some(Some(core)) => self.commit_or_leave(core),
            Some(None) => false,
            // Whoever has the lock may be past committing, or not about to: whoever turns is.
            None => true,
        };
        if left {
            self.shared.bell().wake();
        }
    }

    /// Answers what was waiting when the station was closed.
    fn fail_inbox(&self) {
        while let Some(request) = self.in_inbox(Inbox::pop) {
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Gone)));
        }
    }

    fn take_done(&self, core: &mut Core<B>) -> Vec<Done> {
        if core.done.is_empty() {
            return Vec::new();
        }
        std::mem::replace(&mut core.done, self.spare.pop().unwrap_or_default())
    }

    /// Answers what is finished, and begins what is linked to it. No lock is held.
    fn deliver(&self, mut done: Vec<Done>) {
        if done.is_empty() {
            return;
        }
        let _here = self.shared.delivering();
        for done in done.drain(..) {
            match done {
                Done::Over(request, result) => self.answer_one(request, result),
                Done::More(queue, event) => queue.complete(event),
            }
        }
        // When there are enough of them, this one goes.
        let _ = self.spare.push(done);
    }

    fn deliver_one(&self, request: Request, result: Result<usize, IoError>) {
        let _here = self.shared.delivering();
        self.answer_one(request, result);
    }

    fn answer_one(&self, request: Request, result: Result<usize, IoError>) {
        let next = request.answer(result);
        if let Some(next) = next
            && let Some(next) = next.begin(None, || self.shared.clock().now())
        {
            next.go_on();
        }
    }

    fn turn_once(&self, now: Duration) -> Turned {
        let mut guard = self.core.lock();
        let Some(core) = guard.as_mut() else { return Turned::IDLE };
        let mut turned = Turned { busy: core.backend.turn(), ..Turned::IDLE };
        turned.busy |= core.finish();
        while self.waiting.load(Ordering::Relaxed) > 0
            && core.has_room()
            && let Some(request) = self.in_inbox(Inbox::pop)
        {
            turned.busy = true;
            core.start(self.id, request);
        }
        turned.busy |= core.expire(now);
        turned.busy |= core.finish();
        core.backend.commit();
        turned = turned.and(core.backend.turn_background(now));
        turned.next = turned.next.min(core.deadlines.next());
        turned.polls = B::POLLED && !core.requests.is_empty();
        let done = self.take_done(core);
        drop(guard);
        self.deliver(done);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            turned = turned.and(self.expire_inbox(now));
        }
        turned
    }

    /// Ends those whose time is up while they wait to be started.
    fn expire_inbox(&self, now: Duration) -> Turned {
        let mut turned = Turned::IDLE;
        while let Some(request) = self.in_inbox(|inbox| inbox.pop_due(now)) {
            request.queue().tickets().end(request.ticket(), Ending::TimedOut);
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Cancelled)));
            turned.busy = true;
        }
        turned.next = self.inbox.lock().next_due();
        turned
    }

    /// Steps everything once. Does not block but for a submitter's first step.
    pub(crate) fn turn(&self, now: Duration) -> Turned {
        if self.closed.load(Ordering::Acquire) { Turned::IDLE } else { self.turn_once(now) }
    }

    /// Whether who turns may sleep.
    pub(crate) fn arm(&self) -> Armed {
        if self.closed.load(Ordering::Acquire) {
            return Armed::Yes;
        }
        let mut core = self.core.lock();
        let Some(core) = core.as_mut() else { return Armed::Yes };
        // Under the inbox's lock: who puts something in rings the bell after that.
        if self.inbox.lock().len() > 0 && core.has_room() {
            return Armed::Ready;
        }
        // Left to us, or of a batch whose end found the lock taken by somebody who does not commit.
        if core.backend.is_untold() {
            return Armed::Ready;
        }
        core.backend.arm()
    }

    /// Finishes everything that was taken in, then what the backend has to do at the end, and lets
    /// go of it. Takes as long as the device does, bounded by its deadlines.
    pub(crate) fn close(&self) -> IoResult {
        self.closed.store(true, Ordering::Release);
        if B::MAY_WAIT {
            self.cancel_all(&|_| true);
        }
        let clock = self.shared.clock();
        let (mut ending, mut late) = (false, false);
        let result = loop {
            let busy = self.turn_once(clock.now()).busy;
            let mut guard = self.core.lock();
            let Some(core) = guard.as_mut() else { return Ok(()) };
            let idle = core.requests.is_empty() && self.inbox.lock().len() == 0;
            // What was cancelled at the device may have all the room there is until the device is done.
            if idle && !ending && core.has_room() {
                ending = true;
                core.backend.start_closing();
            }
            if let Some(result) = ending.then(|| core.backend.closed()).flatten() {
                if idle && !late {
                    *guard = None;
                    break result;
                }
                // Something that was linked to a command of another station came after the end was
                // begun: it is done, too, and then what has to be done at the end is done for it.
                (ending, late) = (false, false);
            }
            late |= ending && !idle;
            drop(guard);
            if !busy {
                clock.sleep(Duration::from_micros(50));
            }
        };
        self.gone.store(true, Ordering::Relaxed);
        // Pairs with the fence in `enqueue`.
        fence(Ordering::SeqCst);
        self.fail_inbox();
        result
    }

    /// Does something with the backend, unless the station was closed. Waits for one turn at most.
    pub(crate) fn with_backend<R>(&self, with: impl FnOnce(&mut B) -> R) -> Option<R> {
        self.core.lock().as_mut().map(|core| with(&mut core.backend))
    }

    /// Makes room for so many requests in progress, if its backend can. Waits for one turn at most.
    pub(crate) fn grow(&self, operations: usize) {
        if let Some(core) = self.core.lock().as_mut()
            && operations > core.requests.capacity()
        {
            let room = core.backend.grow(operations);
            core.requests.grow(room);
            core.deadlines.grow(room);
        }
    }

    /// Cancels one submission, if it is here; it has been marked. `token` says where it was last.
    pub(crate) fn cancel(&self, ticket: Ticket, token: Token) -> Option<Cancel> {
        if let Some(request) = self.in_inbox(|inbox| inbox.remove(ticket)) {
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Cancelled)));
            return Some(Cancel::Cancelled);
        }
        let mut guard = self.core.lock();
        let core = guard.as_mut()?;
        let here = core.requests.get(token).is_some_and(|request| request.ticket() == ticket);
        if !here {
            return None;
        }
        core.backend.cancel(token);
        core.finish();
        let decided = core.done.iter().find_map(|done| match done {
            Done::Over(request, result) if request.ticket() == ticket => Some(*result),
            _ => None,
        });
        let decided = decided.map_or(Cancel::InProgress, |result| match result {
            Err(error) if error.kind == IoErrorKind::Cancelled => Cancel::Cancelled,
            _ => Cancel::Over,
        });
        self.commit_core(core);
        let done = self.take_done(core);
        drop(guard);
        self.deliver(done);
        Some(decided)
    }

    /// Cancels every request that `which` says yes to, and says how many there were.
    pub(crate) fn cancel_all(&self, which: &dyn Fn(&Request) -> bool) -> usize {
        let mut count = 0;
        let mut mark = |request: &Request| {
            let marked = request.queue().tickets().end(request.ticket(), Ending::Cancelled);
            count += usize::from(marked);
            marked
        };
        while let Some(request) = self.in_inbox(|inbox| inbox.pop_if(which)) {
            mark(&request);
            self.deliver_one(request, Err(IoError::new(IoErrorKind::Cancelled)));
        }
        let mut guard = self.core.lock();
        let Some(core) = guard.as_mut() else { return count };
        for token in core.requests.tokens() {
            let found = core.requests.get(token).filter(|request| which(request));
            if found.is_some_and(&mut mark) {
                core.backend.cancel(token);
            }
        }
        core.finish();
        self.commit_core(core);
        let done = self.take_done(core);
        drop(guard);
        self.deliver(done);
        count
    }
}

impl<B: Backend> Core<B> {
    fn has_room(&self) -> bool {
        self.requests.free() > 0 && self.backend.has_room()
    }

    /// Starts a request. There is room.
    fn start(&mut self, station: u32, request: Request) {
        let (ticket, queue, deadline) =
            (request.ticket(), Arc::clone(request.queue()), request.deadline);
        let Ok(token) = self.requests.insert(request) else { panic!("a station without room") };
        queue.tickets().moved(ticket, station, Some(token));
        // Whoever ends it marks it and then looks where it is; we have said where it is and now look
        // for the mark. One of us sees the other.
        if queue.tickets().ending(ticket).is_some() {
            self.over(token, Err(IoError::new(IoErrorKind::Cancelled)));
            return;
        }
        if let Some(deadline) = deadline {
            self.deadlines.push(deadline, token, &self.requests);
        }
        let Some(request) = self.requests.get_mut(token) else { return };
        self.backend.start(token, request);
    }

    fn over(&mut self, token: Token, result: Result<usize, IoError>) {
        if let Some(request) = self.requests.remove(token) {
            self.done.push(Done::Over(request, result));
        }
    }

    /// Takes in what is finished, and goes on with what is not.
    fn finish(&mut self) -> bool {
        let mut any = false;
        while let Some((token, outcome)) = self.backend.next_finished(&mut self.requests) {
            any = true;
            match (outcome, self.requests.get(token)) {
                (Outcome::Over(result), _) => self.over(token, result),
                (Outcome::More(result), Some(request)) => {
                    let queue = Arc::clone(request.queue());
                    self.done.push(Done::More(queue, request.one_of_several(result)));
                }
                (Outcome::GoesOn | Outcome::More(_), _) => {}
            }
        }
        any
    }

    /// Ends those whose time is up.
    fn expire(&mut self, now: Duration) -> bool {
        let mut any = false;
        while let Some(token) = self.deadlines.pop_due(now) {
            // It may be over, and its slot another's, who is not due.
            let Some(request) = self.requests.get(token) else { continue };
            if request.queue().tickets().end(request.ticket(), Ending::TimedOut) {
                any = true;
                self.backend.cancel(token);
            }
        }
        any
    }
}
