//! The engine: operations in, answers out. What goes out to the ring and to workers is in `issue.rs`, what
//! comes back in `complete.rs`, and what ends an operation early in `stop.rs`.
#![expect(unsafe_code, reason = "pushes an entry with an address")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use uaio_driver::{Armed, Slots, Token};

use super::credentials::Credentials;
use super::entry;
use super::op::{HostDone, HostRefusal, HostRefused, HostRequest};
use super::ring::{EngineError, Owner, Ring};
use super::slot::{InFlight, Stage, Stop};
use super::word::{BELL, Kind, word};
use super::workers::Workers;

/// The most operations that one engine has in flight.
pub const DEPTH_MAX: usize = 1 << 16;
/// How long a dropped engine waits for what the kernel will not let go of.
const DRAIN_MAX: Duration = Duration::from_secs(30);

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
pub struct OpId(pub(super) Token);

/// What came of a cancel. In either case the operation answers once, in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It will end as soon as it can: with ECANCELED, or with its result if it was too late.
    Asked,
    /// There is no such operation, or its answer is there already.
    Done,
}

/// Does operations of the host. See [the module](super).
///
/// # Drop
///
/// Everything in flight is cancelled, and waited for up to 30 seconds. What the kernel still has
/// then, memory and descriptors, is leaked: it may be written yet. What a worker has begun is not waited
/// for: it has its memory and frees it.
pub struct Engine {
    pub(super) id: u64,
    pub(super) ring: Ring,
    pub(super) slots: Slots<InFlight>,
    /// What is still to be put into the ring, in order.
    pub(super) backlog: VecDeque<(Token, Kind)>,
    /// Those in stage `Answered`.
    pub(super) answered: VecDeque<Token>,
    pub(super) workers: Option<Workers>,
    /// Operations that workers have.
    pub(super) working: usize,
    /// Where the kernel writes what the workers' bell says.
    pub(super) bell: Box<u64>,
    pub(super) bell_armed: bool,
    /// Credentials that the ring has.
    pub(super) taken: Vec<Credentials>,
    /// The kernel knows `RWF_NOSIGNAL`.
    pub(super) no_signal: bool,
    /// `poll` has put entries into the ring that no commit will come for.
    pub(super) unfinished: bool,
    /// Being dropped: nobody waits for workers any more.
    pub(super) closing: bool,
    pub(super) failed: Option<Errno>,
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

    /// Cancels every operation on this [descriptor](super::HostOp::descriptor), and says how many there
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

    /// Whether the kernel has every operation that was started, and looks up no descriptor for one any more.
    pub fn is_all_taken(&self) -> bool {
        self.backlog.is_empty() && !self.ring.is_pending() || self.failed.is_some()
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
    use crate::host::{Descriptor, HostOp, Position};

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
}
