//! The engine: operations in, answers out.
#![expect(unsafe_code, reason = "pushes entries with addresses, owns descriptors the kernel gave")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::Timespec;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use uaio_driver::{Armed, Slots, Token};

use super::credentials::Credentials;
use super::entry;
use super::op::{EpollWait, HostDone, HostOp, HostRefusal, HostRefused, HostRequest};
use super::ring::{EngineError, Owner, Ring};
use super::settled::{creates, last_errno};
use super::slot::{InFlight, Next, Stage, Stop};
use super::workers::{Job, Workers};

/// The most operations that one engine has in flight.
pub const DEPTH_MAX: usize = 1 << 16;
/// How long a dropped engine waits for what the kernel will not let go of.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How often a cancel is sent at once that did not find its operation, which may just have been between
/// two places of the kernel. After that it is sent again every 10 ms.
const CANCELS_MAX: u8 = 8;
/// `IORING_CQE_F_MORE` (include/uapi/linux/io_uring.h).
const CQE_MORE: u32 = 1 << 1;
/// Completions that are taken out of the ring at once.
const BATCH: usize = 32;

static ENGINES: AtomicU64 = AtomicU64::new(0);

/// How an engine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Operations in flight at most: 1 to [`DEPTH_MAX`].
    pub depth: usize,
    /// Worker threads at most, started when there is work for one; 0 for none, and then what
    /// io_uring cannot do is refused.
    pub workers: usize,
    /// Who enters the ring.
    pub owner: Owner,
}

impl EngineOptions {
    /// An engine of this depth with four workers, which any thread may turn.
    pub fn depth(depth: usize) -> Self {
        Self { depth, workers: 4, owner: Owner::Anyone }
    }
}

/// Names an operation in flight to the engine that has it. One that is done is named by nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(Token);

/// What came of a cancel. In either case the operation answers once, in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It will end as soon as it can: with ECANCELED, or with its result if it was too late.
    Asked,
    /// There is no such operation, or its answer is there already.
    Done,
}

/// What an entry of the ring is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Step = 0,
    Timer = 1,
    CancelStep = 2,
    CancelTimer = 3,
}

const KIND_SHIFT: u32 = 30;
/// The word of the wait for the workers' bell; no token is so large.
const BELL: u64 = u64::MAX;

fn word(token: Token, kind: Kind) -> u64 {
    Token { slot: token.slot | (kind as u32) << KIND_SHIFT, ..token }.to_u64()
}

fn from_word(word: u64) -> (Token, Kind) {
    let Token { slot, generation } = Token::from_u64(word);
    let kind = match slot >> KIND_SHIFT {
        0 => Kind::Step,
        1 => Kind::Timer,
        2 => Kind::CancelStep,
        _ => Kind::CancelTimer,
    };
    (Token { slot: slot & ((1 << KIND_SHIFT) - 1), generation }, kind)
}

/// Does operations of the host. See [the module](super).
///
/// # Drop
///
/// Everything in flight is cancelled, and waited for up to 30 seconds. What the kernel still has
/// then, memory and descriptors, is leaked: it may be written yet. What a worker has begun is not waited
/// for: it has its memory and frees it.
pub struct Engine {
    id: u64,
    ring: Ring,
    slots: Slots<InFlight>,
    /// What is still to be put into the ring, in order.
    backlog: VecDeque<(Token, Kind)>,
    /// Those in stage `Answered`.
    answered: VecDeque<Token>,
    workers: Option<Workers>,
    /// Operations that workers have.
    working: usize,
    /// Where the kernel writes what the workers' bell says.
    bell: Box<u64>,
    bell_armed: bool,
    /// Credentials that the ring has.
    taken: Vec<Credentials>,
    /// The kernel knows `RWF_NOSIGNAL`.
    no_signal: bool,
    /// `poll` has put entries into the ring that no commit will come for.
    unfinished: bool,
    /// Being dropped: nobody waits for workers any more.
    closing: bool,
    failed: Option<Errno>,
}

impl Engine {
    /// An engine with nothing in flight.
    ///
    /// # Errors
    ///
    /// When there is no io_uring to be had, and why; see [`EngineError`].
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions { depth, workers, owner } = options;
        if depth == 0 || depth > DEPTH_MAX {
            return Err(EngineError::Depth { depth });
        }
        let ring = Ring::new(depth as u32, owner)?;
        let workers = match workers {
            0 => None,
            _ => Some(Workers::new(workers, depth)?),
        };
        Ok(Self {
            id: ENGINES.fetch_add(1, Ordering::Relaxed),
            ring,
            slots: Slots::new(depth),
            // Of one operation at most one entry of each kind is on its way.
            backlog: VecDeque::with_capacity(4 * depth),
            answered: VecDeque::with_capacity(depth),
            workers,
            working: 0,
            bell: Box::new(0),
            bell_armed: false,
            taken: Vec::new(),
            no_signal: true,
            unfinished: false,
            closing: false,
            failed: None,
        })
    }

    /// Makes room for `depth` operations in flight, if there is less; beyond [`DEPTH_MAX`] for that many.
    /// Commits; when the kernel is too short of memory to take everything that was started the depth
    /// stays what it is. Allocates.
    pub fn grow(&mut self, depth: usize) {
        let depth = depth.min(DEPTH_MAX);
        if depth <= self.depth() {
            return;
        }
        // The times that entries in the ring point to lie in the slots, which move. Once an entry is
        // taken nobody looks there again.
        self.commit();
        if self.ring.is_pending() {
            return;
        }
        self.slots.grow(depth);
        self.backlog.reserve(4 * depth - self.backlog.len());
        self.answered.reserve(depth - self.answered.len());
    }

    /// Takes an operation, and gives it a name. `token` comes back with its answer. Never blocks;
    /// nothing is asked of the kernel before [`commit`](Engine::commit), but for what an epoll
    /// descriptor has at once, and what an operation for a worker has to be [settled] with.
    ///
    /// [settled]: HostRequest::settle
    ///
    /// # Errors
    ///
    /// The request, whole, and why it was not started.
    pub fn start(&mut self, token: Token, request: HostRequest) -> Result<OpId, HostRefused> {
        let refused = |request, reason| Err(HostRefused { request, reason });
        let to_worker = self.is_for_worker(&request);
        let reason = if self.failed.is_some() {
            Some(HostRefusal::Failed)
        } else if self.slots.free() == 0 {
            Some(HostRefusal::Full)
        } else if request.credentials.as_ref().is_some_and(|taken| taken.engine() != self.id) {
            Some(HostRefusal::ForeignCredentials)
        } else if to_worker {
            self.workers.is_none().then_some(HostRefusal::NoWorkers)
        } else {
            let known = entry::opcode_of(&request.op).is_some_and(|code| self.ring.has(code));
            (!known).then_some(HostRefusal::Unsupported)
        };
        if let Some(reason) = reason {
            return refused(request, reason);
        }
        let slot = match self.slots.insert(InFlight::new(token, request)) {
            Ok(slot) => slot,
            Err(InFlight { request, .. }) => return refused(request, HostRefusal::Full),
        };
        if to_worker {
            self.hand_over(slot);
        } else if self.answers_at_once(slot) {
            return Ok(OpId(slot));
        } else {
            self.send(slot, Kind::Step);
        }
        self.start_timer(slot);
        Ok(OpId(slot))
    }

    /// Cancels an operation. Its answer comes in any case, and says whether the cancel was in time.
    pub fn cancel(&mut self, id: OpId) -> Cancel {
        self.stop(id.0, Stop::Cancelled)
    }

    /// Cancels every operation on this [descriptor](HostOp::descriptor), and says how many there
    /// were. Looks at everything in flight.
    pub fn cancel_descriptor(&mut self, fd: BorrowedFd<'_>) -> usize {
        self.cancel_where(|slot| slot.descriptor().is_some_and(|held| *held == fd))
    }

    /// Cancels everything in flight, and says how many there were.
    pub fn cancel_all(&mut self) -> usize {
        self.cancel_where(|_| true)
    }

    fn cancel_where(&mut self, which: impl Fn(&InFlight) -> bool) -> usize {
        let tokens = self.slots.tokens();
        let asked = tokens.into_iter().filter(|token| {
            let found = self.slots.get(*token).is_some_and(&which);
            found && self.stop(*token, Stop::Cancelled) == Cancel::Asked
        });
        asked.count()
    }

    /// Asks the kernel for everything started or cancelled since the last commit: one system call,
    /// which does not wait.
    pub fn commit(&mut self) {
        self.enter(None);
    }

    /// As [`commit`](Engine::commit), and sleeps until there is something to poll or the time is up;
    /// a signal ends it too. For who has nothing else to wait for.
    pub fn commit_and_wait(&mut self, timeout: Duration) {
        let ready = !self.answered.is_empty() || self.ring.has_completions();
        self.enter((!ready).then_some(timeout));
    }

    /// Moves at most `budget` answers out, and says how many. Does not wait; enters the kernel only
    /// when it has something to be run, or an operation is to be gone on with.
    pub fn poll(&mut self, budget: usize, out: &mut Vec<HostDone>) -> usize {
        let mut moved = self.tell_answered(budget, out);
        moved += self.reap(budget - moved, out);
        if moved == budget || !(self.unfinished || self.ring.wants_entering()) {
            return moved;
        }
        if std::mem::take(&mut self.unfinished) {
            self.enter(None);
        }
        if self.ring.wants_entering() {
            self.ring.run_completions();
        }
        moved += self.tell_answered(budget - moved, out);
        moved + self.reap(budget - moved, out)
    }

    /// Operations in flight, those that are done and not polled included.
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Operations that it takes at most.
    pub fn depth(&self) -> usize {
        self.slots.capacity()
    }

    /// Whether the owner may sleep on [`event_fd`](Engine::event_fd). Call it after `commit`.
    pub fn arm(&mut self) -> Armed {
        let ready = !self.answered.is_empty()
            || !self.backlog.is_empty()
            || self.ring.is_pending() && self.failed.is_none()
            || self.ring.has_completions()
            || self.ring.wants_entering();
        if ready {
            Armed::Ready
        } else if self.failed.is_some() && self.working > 0 {
            // The bell of the workers rang through the ring.
            Armed::MustPoll
        } else {
            Armed::Yes
        }
    }

    /// The ring's own descriptor: readable while there are completions. There is nothing to read
    /// empty.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Takes the credentials of the calling thread, for requests to this engine. Those that nobody
    /// holds any more are let go of.
    ///
    /// # Errors
    ///
    /// When the kernel has no room for more; it takes 65,535.
    pub fn take_credentials(&mut self) -> io::Result<Credentials> {
        let ring = &self.ring;
        self.taken.retain(|taken| {
            // One that cannot be let go of stays until the ring goes.
            !taken.is_last() || ring.unregister_personality(taken.personality()).is_err()
        });
        let credentials = Credentials::new(self.id, self.ring.register_personality()?)?;
        self.taken.push(credentials.clone());
        Ok(credentials)
    }

    /// Whether an operation is for a worker: what io_uring has no opcode for, and what is created,
    /// which is to have exactly the mode that was settled. The kernel's own threads would put the
    /// umask of then to it. They can be anybody, though, and a worker cannot.
    fn is_for_worker(&self, request: &HostRequest) -> bool {
        let created = match &request.op {
            HostOp::Copy(_) | HostOp::Call(_) => return true,
            HostOp::Ftruncate { .. } => {
                return !entry::opcode_of(&request.op).is_some_and(|code| self.ring.has(code));
            }
            HostOp::Open(open) => creates(open.flags),
            HostOp::Mkdir { .. } => true,
            _ => false,
        };
        created
            && request.settled.is_some()
            && self.workers.is_some()
            && request.credentials.as_ref().is_none_or(Credentials::are_of_this_thread)
    }

    fn hand_over(&mut self, token: Token) {
        let (Some(slot), Some(workers)) = (self.slots.get_mut(token), &self.workers) else {
            return;
        };
        let placed = match slot.request.settled {
            Some(_) => Ok(()),
            None => slot.request.settle_place(),
        };
        if let Err(errno) = placed {
            return self.answer(token, Err(errno));
        }
        slot.stage = Stage::Working;
        let op = slot.lend();
        let credentials = slot.request.credentials.clone();
        match workers.push(Job { slot: token, op, credentials, result: Err(Errno::CANCELED) }) {
            Ok(()) => {
                self.working += 1;
                self.arm_bell();
            }
            Err(job) => {
                slot.request.op = job.op;
                self.answer(token, Err(Errno::AGAIN));
            }
        }
    }

    /// Waits for the workers' bell, if anything is with them and nobody waits for it yet.
    fn arm_bell(&mut self) {
        let Some(workers) = &self.workers else { return };
        if self.bell_armed || self.working == 0 || self.closing || self.failed.is_some() {
            return;
        }
        let entry = entry::wait_for(workers.bell().as_raw_fd(), &raw mut *self.bell);
        let entry = entry.user_data(BELL);
        // SAFETY: the word is on the heap, and goes only after its completion came; if none does it
        // is leaked.
        self.bell_armed = unsafe { self.ring.push(&entry) };
        self.unfinished = true;
    }

    /// Takes over what workers have done.
    fn collect(&mut self) {
        while let Some(job) = self.workers.as_ref().and_then(Workers::next_done) {
            self.working -= 1;
            if let Some(slot) = self.slots.get_mut(job.slot) {
                slot.request.op = job.op;
                let result = match (job.result, slot.stopped()) {
                    (Err(Errno::INTR), Some(errno)) => Err(errno),
                    (result, _) => result,
                };
                self.answer(job.slot, result);
            }
        }
    }

    /// Tries an epoll descriptor, which says at once if it is none or has events.
    fn answers_at_once(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return false };
        let HostOp::EpollWait(wait) = &mut slot.request.op else { return false };
        match take_events(wait) {
            Ok(0) | Err(Errno::INTR) => false,
            result => {
                self.answer(token, result);
                true
            }
        }
    }

    /// Sets the timer of an operation that has one, or is one. It is the kernel's timer, so its clock
    /// is the kernel's; an absolute time survives being set again.
    fn start_timer(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if let Some(timeout) = slot.request.timeout {
            slot.timer = time_from_now(timeout);
            self.send(token, Kind::Timer);
        }
    }

    /// Puts an entry into the ring, or where it waits for room.
    fn send(&mut self, token: Token, kind: Kind) {
        if !self.backlog.is_empty() || !self.try_send(token, kind) {
            self.backlog.push_back((token, kind));
        }
    }

    fn try_send(&mut self, token: Token, kind: Kind) -> bool {
        if self.ring.is_full() {
            return false;
        }
        let entry = match kind {
            Kind::Step => match self.step(token) {
                Some(entry) => entry,
                None => return true,
            },
            Kind::Timer => match self.slots.get(token) {
                Some(slot) => entry::timeout(&raw const slot.timer),
                None => return true,
            },
            Kind::CancelStep if self.slots.get(token).is_some_and(|slot| slot.napping) => {
                entry::nap()
            }
            Kind::CancelStep => entry::cancel(word(token, Kind::Step)),
            Kind::CancelTimer => entry::cancel(word(token, Kind::Timer)),
        };
        let entry = entry.user_data(word(token, kind));
        // SAFETY: what a step names is owned by the request, which stays in its slot until the step's
        // completion was reaped, or is memory for which its maker vouched; a timer's time is read
        // when the entry is taken, and the slots, which never move, outlive the ring's use or are
        // leaked.
        let pushed = unsafe { self.ring.push(&entry) };
        assert!(pushed, "the ring has room, as was asked above");
        true
    }

    /// The entry for the next step of an operation; none when it needs none any more.
    fn step(&mut self, token: Token) -> Option<Entry> {
        let slot = self.slots.get_mut(token)?;
        let done = slot.done_bytes;
        let answer = match slot.stopped() {
            Some(errno) if done == 0 => Some(Err(errno)),
            Some(_) => Some(Ok(done)),
            None if slot.write_limit() == 0 && slot.is_left() => {
                Some(if done == 0 { Err(Errno::FBIG) } else { Ok(done) })
            }
            None => None,
        };
        if let Some(answer) = answer {
            self.answer(token, answer);
            return None;
        }
        if let HostOp::Sleep(time) = slot.request.op {
            slot.sleep.get_or_insert_with(|| time_from_now(time));
        }
        let away = slot.away || !self.no_signal && slot.is_stream_write();
        let entry = entry::step(slot, self.no_signal && !slot.loud);
        slot.stage = Stage::Issued(self.ring.pushed());
        let personality = slot.request.credentials.as_ref().map_or(0, Credentials::personality);
        let entry = entry.personality(personality);
        Some(if away { entry.flags(Flags::ASYNC) } else { entry })
    }

    /// An operation is over; its answer is told by the next poll.
    fn answer(&mut self, token: Token, result: Result<u64, Errno>) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.stage = Stage::Answered(result);
            self.answered.push_back(token);
        }
    }

    fn stop(&mut self, token: Token, why: Stop) -> Cancel {
        let Some(slot) = self.slots.get_mut(token) else { return Cancel::Done };
        match slot.stage {
            Stage::Answered(_) => return Cancel::Done,
            _ => drop(slot.stop.get_or_insert(why)),
        }
        match slot.stage {
            Stage::Issued(_) => self.send_cancel(token, false),
            Stage::Working => {
                let job = self.workers.as_ref().and_then(|workers| workers.take(token));
                if let Some(job) = job {
                    self.working -= 1;
                    slot.request.op = job.op;
                    let errno = slot.stopped().unwrap_or(Errno::CANCELED);
                    self.answer(token, Err(errno));
                } else {
                    self.interrupt(token);
                }
            }
            // Its entry is not in the ring, and will not be.
            Stage::Waiting | Stage::Answered(_) => {}
        }
        Cancel::Asked
    }

    /// Sends a cancel, or, with `nap`, a timer after which another is sent. One at a time is on its way.
    fn send_cancel(&mut self, token: Token, nap: bool) {
        if let Some(slot) = self.slots.get_mut(token)
            && !std::mem::replace(&mut slot.cancelling, true)
        {
            slot.napping = nap;
            self.send(token, Kind::CancelStep);
        }
    }

    /// Gets the worker out of the call that it has begun for an operation, and comes again until it is.
    fn interrupt(&mut self, token: Token) {
        if let Some(workers) = &self.workers {
            workers.interrupt(token);
        }
        self.send_cancel(token, true);
    }

    /// A cancel has found its operation or not, or it is time for the next.
    fn cancel_again(&mut self, token: Token, result: i32) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.cancelling = false;
        let napped = std::mem::take(&mut slot.napping);
        match slot.stage {
            Stage::Working => self.interrupt(token),
            Stage::Issued(_) if napped => self.send_cancel(token, false),
            Stage::Issued(_) if matches!(-result, libc::ENOENT | libc::EALREADY) => {
                // Between two places of the kernel it is for a moment only; anything else takes longer.
                let at_once = slot.may_wait_for_ever() && slot.cancels < CANCELS_MAX;
                slot.cancels = slot.cancels.saturating_add(1);
                self.send_cancel(token, !at_once);
            }
            Stage::Issued(_) | Stage::Waiting | Stage::Answered(_) => return,
        }
        self.unfinished = true;
    }

    fn enter(&mut self, mut wait: Option<Duration>) {
        loop {
            while let Some((token, kind)) = self.backlog.front().copied() {
                if !self.try_send(token, kind) {
                    break;
                }
                self.backlog.pop_front();
            }
            self.arm_bell();
            if self.failed.is_some() || wait.is_none() && !self.ring.is_pending() {
                return;
            }
            let taken = self.ring.taken();
            let more = !self.backlog.is_empty();
            // What was answered on the way here, or is still to be sent, is not waited for.
            wait = wait.filter(|_| self.answered.is_empty() && !more);
            if let Err(errno) = self.ring.submit(wait) {
                return self.fail(Errno::from_raw_os_error(errno));
            }
            if !more || self.ring.taken() == taken {
                return;
            }
        }
    }

    /// The kernel takes no more entries: what it never took is answered with why.
    fn fail(&mut self, errno: Errno) {
        self.failed = Some(errno);
        self.backlog.clear();
        let taken = self.ring.taken();
        for token in self.slots.tokens() {
            let Some(slot) = self.slots.get_mut(token) else { continue };
            let lost = match slot.stage {
                Stage::Waiting => true,
                Stage::Issued(entry) => entry >= taken,
                Stage::Working | Stage::Answered(_) => false,
            };
            if lost {
                take_back(slot);
                self.answer(token, Err(errno));
            }
        }
    }

    fn reap(&mut self, budget: usize, out: &mut Vec<HostDone>) -> usize {
        let mut batch = [(0, 0, 0); BATCH];
        let mut moved = 0;
        if self.failed.is_some() {
            self.collect();
        }
        while moved < budget {
            let count = self.ring.reap(&mut batch[..BATCH.min(budget - moved)]);
            for (word, result, flags) in &batch[..count] {
                moved += usize::from(self.completed(*word, *result, flags & CQE_MORE != 0, out));
            }
            moved += self.tell_answered(budget - moved, out);
            if count == 0 {
                break;
            }
        }
        moved
    }

    /// Takes one completion in, and says whether it was an answer.
    fn completed(&mut self, word: u64, result: i32, more: bool, out: &mut Vec<HostDone>) -> bool {
        if word == BELL {
            self.bell_armed = false;
            self.collect();
            self.arm_bell();
            return false;
        }
        let (token, kind) = from_word(word);
        // One for nothing in flight is the late end of a timer, or the kernel's mistake.
        let Some(slot) = self.slots.get_mut(token) else { return false };
        match kind {
            Kind::Step => {}
            Kind::Timer => {
                match -result {
                    libc::ETIME => drop(self.stop(token, Stop::TimedOut)),
                    // A thread that ended took it along.
                    libc::ECANCELED => self.send(token, Kind::Timer),
                    _ => {}
                }
                self.unfinished = true;
                return false;
            }
            Kind::CancelStep => {
                self.cancel_again(token, result);
                return false;
            }
            Kind::CancelTimer => return false,
        }
        if !matches!(slot.stage, Stage::Issued(_)) {
            return false;
        }
        if result == -libc::ECANCELED {
            // Whatever it is answered with: it was not begun.
            take_back(slot);
        }
        if result == -libc::EOPNOTSUPP && self.no_signal && !slot.loud && slot.is_stream_write() {
            // An older kernel: such writes go to its own threads, which take no signals. Or it is
            // another flag, of the caller's, that it does not know.
            self.no_signal = slot.has_flags();
            (slot.loud, slot.away) = (true, true);
            self.issue(token);
            return false;
        }
        let next = match slot.advance(result, more) {
            Next::TakeEvents => {
                let HostOp::EpollWait(wait) = &mut slot.request.op else { return false };
                match (take_events(wait), slot.stopped()) {
                    (Ok(0) | Err(Errno::INTR), None) => Next::Issue,
                    (Ok(0) | Err(Errno::INTR), Some(errno)) => Next::Finish(Err(errno)),
                    (result, _) => Next::Finish(result),
                }
            }
            next => next,
        };
        match next {
            Next::Issue | Next::TakeEvents => {
                self.issue(token);
                false
            }
            Next::Tell(value) => {
                out.push(HostDone { token: slot.token, result: Ok(value), op: None });
                if !more {
                    self.issue(token);
                }
                true
            }
            Next::Finish(result) => self.finish(token, result, out),
        }
    }

    /// Issues the next step from within `poll`.
    fn issue(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            take_back(slot);
            slot.stage = Stage::Waiting;
            match self.failed {
                Some(errno) => self.answer(token, Err(errno)),
                None => self.send(token, Kind::Step),
            }
            self.unfinished = true;
        }
    }

    fn tell_answered(&mut self, budget: usize, out: &mut Vec<HostDone>) -> usize {
        let mut moved = 0;
        while moved < budget
            && let Some(token) = self.answered.pop_front()
        {
            if let Some(Stage::Answered(result)) = self.slots.get(token).map(|slot| slot.stage) {
                moved += usize::from(self.finish(token, result, out));
            }
        }
        moved
    }

    /// Tells the last answer of an operation and gives its memory back.
    fn finish(
        &mut self,
        token: Token,
        mut result: Result<u64, Errno>,
        out: &mut Vec<HostDone>,
    ) -> bool {
        let Some(mut slot) = self.slots.remove(token) else { return false };
        if slot.request.timeout.is_some() {
            self.send(token, Kind::CancelTimer);
            self.unfinished = true;
        }
        let by_ring = matches!(slot.stage, Stage::Issued(_));
        match (&mut slot.request.op, result) {
            (HostOp::Accept(accept), Ok(fd)) => accept.accepted = Some(own(fd)),
            (HostOp::Open(open), Ok(fd)) if by_ring => open.opened = Some(own(fd)),
            (HostOp::RecvMsg { message, .. }, Ok(_)) => message.received(),
            (HostOp::EpollWait(_), Err(Errno::TIMEDOUT)) => result = Ok(0),
            _ => {}
        }
        if let Err(errno) = result
            && let Some((settled, signal)) = slot.request.signal_of(errno.raw_os_error())
        {
            settled.signal(signal);
        }
        out.push(HostDone { token: slot.token, result, op: Some(slot.request.op) });
        true
    }
}

/// Takes ownership of a descriptor that the kernel has just made for us.
fn own(fd: u64) -> OwnedFd {
    // SAFETY: it is the result of an accept or open that succeeded, told once.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Gives a descriptor back to a close that did not happen, or is to be issued anew.
fn take_back(slot: &mut InFlight) {
    if let HostOp::Close { fd } = &mut slot.request.op
        && slot.closing >= 0
    {
        // SAFETY: the step took it out of its owner, and the kernel did not close it.
        *fd = Some(unsafe { OwnedFd::from_raw_fd(slot.closing) });
        slot.closing = -1;
    }
}

/// The events that there are now. Does not wait.
fn take_events(wait: &mut EpollWait) -> Result<u64, Errno> {
    let room = i32::try_from(wait.events.len()).unwrap_or(i32::MAX);
    let fd = wait.fd.as_raw_fd();
    // SAFETY: there is room for as many events as are said.
    let count = unsafe { libc::epoll_wait(fd, wait.events.as_mut_ptr(), room, 0) };
    if count < 0 { Err(last_errno()) } else { Ok(count as u64) }
}

fn time_from_now(timeout: Duration) -> Timespec {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    // The kernel takes 63 bits of seconds; nobody waits for longer than half of that.
    now.saturating_add(timeout).min(Duration::from_secs(1 << 62)).into()
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.closing = true;
        self.cancel_all();
        let mut waited = Duration::ZERO;
        let slice = Duration::from_millis(20);
        let mut out = Vec::with_capacity(self.slots.len());
        loop {
            if self.bell_armed && self.failed.is_none() {
                // Each time anew: it may be between two places of the kernel.
                let entry =
                    entry::cancel(BELL).user_data(word(Token::from_u64(0), Kind::CancelTimer));
                // SAFETY: it names no memory.
                let _ = unsafe { self.ring.push(&entry) };
            }
            self.unfinished = true;
            self.poll(usize::MAX, &mut out);
            out.clear();
            let mut held = self.slots.tokens();
            // Workers own what they work on.
            held.retain(|token| {
                self.slots.get(*token).is_some_and(|slot| slot.stage != Stage::Working)
            });
            if held.is_empty() && !self.bell_armed || waited >= DRAIN_MAX || self.failed.is_some() {
                break;
            }
            waited += slice;
            self.commit_and_wait(slice);
        }
        if self.bell_armed {
            // The kernel may still write it.
            Box::leak(std::mem::take(&mut self.bell));
        }
        let issued = |slot: &InFlight| matches!(slot.stage, Stage::Issued(_));
        if self.slots.tokens().iter().any(|token| self.slots.get(*token).is_some_and(issued)) {
            // The kernel may still use what these own: they are leaked.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("depth", &self.depth())
            .field("in_flight", &self.in_flight())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Descriptor, Position};

    /// What 6.18 does with a flag, older kernels do by who does the write. The signal would be
    /// pending here, where it is blocked, if this thread had been the one.
    #[test]
    fn on_an_older_kernel_a_write_to_nobody_signals_nobody_either() {
        extern "C" fn nothing(_: i32) {}
        // SAFETY: a handler that does nothing: a signal that is ignored is never pending.
        unsafe { libc::signal(libc::SIGPIPE, nothing as *const () as libc::sighandler_t) };
        // SAFETY: a set of signals is numbers, for which zero is a value.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGPIPE) };
        // SAFETY: blocks a signal of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        let mut engine = Engine::new(EngineOptions::depth(4)).unwrap();
        engine.no_signal = false;
        let fd = Descriptor::new(std::io::pipe().unwrap().1);
        let (memory, at) = (vec![1].into(), Position::Current);
        let op = HostOp::Write { fd, memory, at, flags: 0 };
        engine.start(Token::from_u64(1), op.into()).unwrap();
        let mut done = Vec::new();
        for _ in 0..200 {
            engine.commit_and_wait(Duration::from_millis(100));
            if engine.poll(1, &mut done) > 0 {
                break;
            }
        }
        assert_eq!(done[0].result, Err(Errno::PIPE));
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigpending(&raw mut set) };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::sigismember(&raw const set, libc::SIGPIPE) }, 0);
    }

    /// A close that the kernel never began comes back open, whatever ended it.
    #[test]
    fn a_close_whose_time_was_up_before_it_was_begun_comes_back_open() {
        for stop in [Stop::Cancelled, Stop::TimedOut] {
            let mut engine = Engine::new(EngineOptions::depth(4)).unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            let close = HostOp::Close { fd: Some(reader.into()) };
            let id = engine.start(Token::from_u64(1), close.into()).unwrap();
            engine.slots.get_mut(id.0).unwrap().stop = Some(stop);
            let mut done = Vec::new();
            engine.completed(word(id.0, Kind::Step), -libc::ECANCELED, false, &mut done);
            let HostDone { result, op, .. } = done.remove(0);
            assert!(matches!(result, Err(Errno::CANCELED | Errno::TIMEDOUT)), "{result:?}");
            let Some(HostOp::Close { fd: Some(fd) }) = op else { panic!("its descriptor is lost") };
            io::Write::write_all(&mut writer, b"x").unwrap();
            assert_eq!(io::Read::read(&mut std::fs::File::from(fd), &mut [0; 2]).unwrap(), 1);
            // Its entry is in the ring still, and must not be taken: the descriptor is ours.
            std::mem::forget(engine);
        }
    }

    #[test]
    fn a_word_says_whose_it_is_and_what_it_is_about() {
        for slot in [0, 1, DEPTH_MAX as u32 - 1] {
            for kind in [Kind::Step, Kind::Timer, Kind::CancelStep, Kind::CancelTimer] {
                let token = Token { slot, generation: u32::MAX };
                assert_eq!(from_word(word(token, kind)), (token, kind));
                assert_ne!(word(token, kind), BELL);
            }
        }
    }
}
